/* SPDX-License-Identifier: MIT */
/*
 * The event that wakes a loop, as an event fd and as a pipe; epoll and poll,
 * with the system calls of today and without epoll_pwait2.
 */
#include "harness.h"
#include "os/clock.h"
#include "os/event.h"
#include "os/fault.h"
#include "os/thread.h"
#include "seccomp.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/time.h>

static bool readable(const int fds[2])
{
    struct pollfd poll = {.fd = fds[0], .events = POLLIN};

    return os_poll(&poll, 1, 0) == 1 && poll.revents == POLLIN;
}

static void check_event(int fds[2])
{
    uint64_t before = os_counter(OS_COUNT_NOTIFICATIONS);
    unsigned i;

    CHECK(!readable(fds));
    for (i = 0; i < 2; i++) {
        CHECK(fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
        CHECK(fcntl(fds[i], F_GETFL) & O_NONBLOCK);
    }
    errno = 77;
    os_event_set(fds);
    CHECK_EQ(errno, 77);
    CHECK(readable(fds));
    CHECK(readable(fds));
    os_event_drain(fds);
    CHECK(!readable(fds));
    os_event_drain(fds); /* does not block */

    /* More than a pipe holds. */
    errno = 77;
    for (i = 0; i < 20000; i++) {
        os_event_set(fds);
    }
    CHECK_EQ(errno, 77);
    CHECK_EQ(os_counter(OS_COUNT_NOTIFICATIONS) - before, 20001);
    CHECK(readable(fds));
    os_event_drain(fds);
    CHECK(!readable(fds));
    os_event_close(fds);
}

TEST(an_event_fd_is_one_descriptor)
{
    int fds[2];

    CHECK_EQ(os_event_open(fds), 0);
    CHECK_EQ(fds[0], fds[1]);
    check_event(fds);
}

TEST(without_event_fds_it_is_a_pipe)
{
    int fds[2];

    os_fault_arm(1, ENOSYS, "eventfd");
    CHECK_EQ(os_event_open(fds), 0);
    CHECK(fds[0] != fds[1]);
    check_event(fds);
}

TEST(an_event_that_cannot_be_had_is_an_error)
{
    int fds[2] = {-5, -5};

    os_fault_arm(1, EMFILE, "eventfd");
    CHECK_EQ(os_event_open(fds), -EMFILE);
    CHECK(os_fault_fired());
}

/* The other way fails, too. */
TEST(a_pipe_that_cannot_be_had_is_an_error)
{
    int fds[2] = {-5, -5};

    if (seccomp_refuse(SYS_eventfd2, ENOSYS)) {
        SKIP("no seccomp here");
    }
    os_fault_arm(1, EMFILE, "pipe2");
    CHECK_EQ(os_event_open(fds), -EMFILE);
    CHECK(os_fault_fired());
    CHECK_EQ(os_event_open(fds), 0);
    CHECK(fds[0] != fds[1]);
    os_event_close(fds);
}

/* A loop would sleep for ever. */
TEST(an_event_is_set_though_a_call_fails)
{
    static const int errors[] = {EINTR, ENOMEM, EIO};
    int fds[2];

    CHECK_EQ(os_event_open(fds), 0);
    for (int i = 0; i < 3; i++) {
        os_fault_arm(1, errors[i], "event_set");
        errno = 77;
        os_event_set(fds);
        CHECK_EQ(errno, 77);
        CHECK(os_fault_fired());
        CHECK(readable(fds));
        os_event_drain(fds);
    }
    os_event_close(fds);
}

TEST_ABORTS(an_event_that_cannot_be_set_aborts,
            "^coaio: the event that wakes a loop cannot be set \\(error 9\\), "
            "and the loop would sleep for ever: was file descriptor -1 "
            "closed\\?$")
{
    const int fds[2] = {-1, -1};

    os_event_set(fds);
}

static void drain_with_fault(int fds[2])
{
    os_event_set(fds);
    os_fault_arm(1, EINTR, "event_drain");
    os_event_drain(fds);
    CHECK(os_fault_fired());
    CHECK(!readable(fds));
    os_event_set(fds);
    os_fault_arm(1, EIO, "event_drain");
    os_event_drain(fds);
    CHECK(os_fault_fired());
    CHECK(readable(fds));
    os_event_drain(fds);
    CHECK(!readable(fds));
    os_event_close(fds);
}

TEST(what_could_not_be_drained_is_drained_later)
{
    int fds[2];

    CHECK_EQ(os_event_open(fds), 0);
    drain_with_fault(fds);
    os_fault_arm(1, ENOSYS, "eventfd");
    CHECK_EQ(os_event_open(fds), 0);
    drain_with_fault(fds);
}

static int handler_fds[2];

static void set_from_handler(int number)
{
    (void)number;
    os_event_set(handler_fds);
}

TEST(a_signal_handler_may_set_it)
{
    CHECK_EQ(os_event_open(handler_fds), 0);
    signal(SIGUSR1, set_from_handler);
    raise(SIGUSR1);
    CHECK(readable(handler_fds));
    os_event_close(handler_fds);
}

static void set_later(void *arg)
{
    os_event_set(arg);
}

static void check_epoll(void)
{
    OsThreadStart start = {.run = set_later};
    OsThreadHandle thread;
    struct epoll_event events[4];
    int fds[2], epfd = os_epoll_create();
    int64_t begin;

    CHECK(epfd >= 0);
    CHECK(fcntl(epfd, F_GETFD) & FD_CLOEXEC);
    CHECK_EQ(os_event_open(fds), 0);
    CHECK_EQ(os_epoll_ctl(epfd, EPOLL_CTL_ADD, fds[0], EPOLLIN, 1ull << 40), 0);
    CHECK_EQ(os_epoll_ctl(epfd, EPOLL_CTL_ADD, fds[0], EPOLLIN, 0), -EEXIST);
    CHECK_EQ(os_epoll_wait(epfd, events, 4, 0), 0);

    /* Never early, also where the kernel counts in milliseconds. */
    begin = os_clock_monotonic_ns();
    CHECK_EQ(os_epoll_wait(epfd, events, 4, 1300001), 0);
    CHECK(os_clock_monotonic_ns() - begin >= 1300001);

    start.arg = fds;
    CHECK_EQ(os_thread_start(&thread, &start), 0);
    CHECK_EQ(os_epoll_wait(epfd, events, 4, -1), 1);
    CHECK_EQ(events[0].data.u64, 1ull << 40);
    os_thread_join(&thread);
    CHECK_EQ(os_epoll_wait(epfd, events, 4, INT64_MAX), 1);
    os_event_drain(fds);
    CHECK_EQ(os_epoll_wait(epfd, events, 4, 0), 0);
    CHECK_EQ(os_epoll_ctl(epfd, EPOLL_CTL_DEL, fds[0], 0, 0), 0);
    os_event_close(fds);
    fds[0] = fds[1] = epfd;
    os_event_close(fds);
}

TEST(epoll_waits)
{
    check_epoll();
}

#ifdef SYS_epoll_pwait2
TEST(epoll_waits_where_the_kernel_has_only_milliseconds)
{
    if (seccomp_refuse(SYS_epoll_pwait2, ENOSYS)) {
        SKIP("no seccomp here");
    }
    check_epoll();
}

TEST(epoll_waits_where_a_container_refuses_what_it_does_not_know)
{
    if (seccomp_refuse(SYS_epoll_pwait2, EPERM)) {
        SKIP("no seccomp here");
    }
    check_epoll();
}
#endif

TEST(poll_waits)
{
    int64_t begin = os_clock_monotonic_ns();
    struct pollfd poll;
    int fds[2];

    CHECK_EQ(os_event_open(fds), 0);
    poll = (struct pollfd){.fd = fds[0], .events = POLLIN};
    CHECK_EQ(os_poll(&poll, 1, 1300001), 0);
    CHECK(os_clock_monotonic_ns() - begin >= 1300001);
    os_event_set(fds);
    CHECK_EQ(os_poll(&poll, 1, -1), 1);
    CHECK_EQ(os_poll(&poll, 1, INT64_MAX), 1);
    os_event_close(fds);
}

static void do_nothing(int number)
{
    (void)number;
}

TEST(a_signal_ends_a_wait)
{
    struct sigaction action = {.sa_handler = do_nothing};
    struct itimerval often = {{0, 1000}, {0, 1000}}, off = {{0, 0}, {0, 0}};
    struct epoll_event event;
    int fds[2];

    fds[0] = fds[1] = os_epoll_create();
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    CHECK_EQ(os_epoll_wait(fds[0], &event, 1, -1), -EINTR);
    CHECK_EQ(os_poll(NULL, 0, -1), -EINTR);
    setitimer(ITIMER_REAL, &off, NULL);
    os_event_close(fds);
}

TEST(each_call_can_be_made_to_fail)
{
    struct epoll_event event;

    os_fault_arm(1, EMFILE, "epoll_create");
    CHECK_EQ(os_epoll_create(), -EMFILE);
    os_fault_arm(1, ENOSPC, "epoll_ctl");
    CHECK_EQ(os_epoll_ctl(-1, EPOLL_CTL_ADD, 0, 0, 0), -ENOSPC);
    CHECK_EQ(os_epoll_ctl(-1, EPOLL_CTL_ADD, 0, 0, 0), -EBADF);
    os_fault_arm(1, EINTR, "epoll_wait");
    CHECK_EQ(os_epoll_wait(-1, &event, 1, -1), -EINTR);
    CHECK_EQ(os_epoll_wait(-1, &event, 1, -1), -EBADF);
    os_fault_arm(1, ENOMEM, "poll");
    CHECK_EQ(os_poll(NULL, 0, -1), -ENOMEM);
}

TEST_MAIN()
