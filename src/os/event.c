/* SPDX-License-Identifier: MIT */
/*
 * The event that wakes a loop, and the waits.
 *
 * Guarantees: os_event_set() is signal-safe, never blocks and keeps errno, and
 * the event is set afterwards, or the process aborts with a line that says why;
 * waits never return before their time has passed (a kernel that only knows
 * milliseconds is asked for the next one).
 */
#include "os/event.h"

#include "base/assert.h"
#include "base/atomic.h"
#include "base/compiler.h"
#include "os/fault.h"
#include "os/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/time_types.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NS_PER_S  1000000000
#define NS_PER_MS 1000000

/* Tries to set an event before giving up; more than one is rare. */
#define SET_TRIES 100

static int open_eventfd(void)
{
    int error = os_fault("eventfd");
    int fd;

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return -error;
    }
    fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

static int open_pipe(int fds[2])
{
    int error = os_fault("pipe2");

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return -error;
    }
    return pipe2(fds, O_CLOEXEC | O_NONBLOCK) ? -errno : 0;
}

int os_event_open(int fds[2])
{
    int fd = open_eventfd();

    if (fd >= 0) {
        fds[0] = fd;
        fds[1] = fd;
        return 0;
    }
    return fd == -ENOSYS ? open_pipe(fds) : fd;
}

void os_event_close(int fds[2])
{
    os_count(OS_COUNT_SYSCALLS);
    close(fds[0]);
    if (fds[1] != fds[0]) {
        os_count(OS_COUNT_SYSCALLS);
        close(fds[1]);
    }
}

/* Returns 0 or the error. */
static int try_to_set(int fd)
{
    const uint64_t one = 1;
    int error = os_fault("event_set");

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return error;
    }
    return write(fd, &one, sizeof(one)) < 0 ? errno : 0;
}

void os_event_set(const int fds[2])
{
    int saved = errno;
    int error = EINTR;

    os_count(OS_COUNT_NOTIFICATIONS);
    /* EAGAIN: it is as set as can be. */
    for (int i = 0; i < SET_TRIES && error && error != EAGAIN; i++) {
        error = try_to_set(fds[1]);
    }
    if (unlikely(error && error != EAGAIN)) {
        misuse("the event that wakes a loop cannot be set (error %d), and the "
               "loop would sleep for ever: was file descriptor %d closed?",
               error, fds[1]);
    }
    errno = saved;
}

static ssize_t read_event(int fd, void *buf, size_t size)
{
    int error = os_fault("event_drain");

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        errno = error;
        return -1;
    }
    return read(fd, buf, size);
}

void os_event_drain(const int fds[2])
{
    uint64_t buf[64];
    ssize_t n;

    /*
     * An event fd is empty after one read, a pipe after a short one.  After an
     * error it stays set: the next wait ends at once, and that is tried again.
     */
    do {
        n = read_event(fds[0], buf, sizeof(buf));
    } while (n == sizeof(buf) || (n < 0 && errno == EINTR));
}

int os_epoll_create(void)
{
    int error = os_fault("epoll_create");
    int fd;

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return -error;
    }
    fd = epoll_create1(EPOLL_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int os_epoll_ctl(int epfd, int op, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    int error = os_fault("epoll_ctl");

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return -error;
    }
    return epoll_ctl(epfd, op, fd, &event) ? -errno : 0;
}

bool os_has_readiness(int fd)
{
    int epfd = os_epoll_create();
    int ret;

    if (epfd < 0) {
        return true;
    }
    ret = os_epoll_ctl(epfd, EPOLL_CTL_ADD, fd, 0, 0);
    os_close(epfd);
    return ret != -EPERM;
}

/* Nanoseconds as the milliseconds of poll(2), rounded up. */
static int to_ms(int64_t timeout_ns)
{
    if (timeout_ns < 0) {
        return -1;
    }
    if (timeout_ns > (int64_t)INT_MAX * NS_PER_MS - NS_PER_MS) {
        return INT_MAX;
    }
    return (int)((timeout_ns + NS_PER_MS - 1) / NS_PER_MS);
}

#if defined(SYS_epoll_pwait2) && !COAIO_TSAN
/*
 * epoll_wait() with nanoseconds, or -ENOSYS.  The system call itself, since
 * the C library may be older than the kernel.  Not under TSan, which does not
 * know it: it would sleep with a signal that TSan has put off.
 */
static int wait_ns(int epfd, struct epoll_event *events, int max,
                   int64_t timeout_ns)
{
    static int missing; /* atomic */
    struct __kernel_timespec timeout = {
        .tv_sec = timeout_ns / NS_PER_S,
        .tv_nsec = timeout_ns % NS_PER_S,
    };
    long n;

    if (load_relaxed(&missing)) {
        return -ENOSYS;
    }
    n = syscall(SYS_epoll_pwait2, epfd, events, max,
                timeout_ns < 0 ? NULL : &timeout, NULL, 0);
    if (n >= 0) {
        return (int)n;
    }
    /* Some containers answer EPERM to calls that they do not know. */
    if (errno == ENOSYS || errno == EPERM) {
        store_relaxed(&missing, 1);
        return -ENOSYS;
    }
    return -errno;
}
#else
static int wait_ns(int epfd, struct epoll_event *events, int max,
                   int64_t timeout_ns)
{
    (void)epfd;
    (void)events;
    (void)max;
    (void)timeout_ns;
    return -ENOSYS;
}
#endif

int os_epoll_wait(int epfd, struct epoll_event *events, int max,
                  int64_t timeout_ns)
{
    int error = os_fault("epoll_wait");
    int n;

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return -error;
    }
    n = wait_ns(epfd, events, max, timeout_ns);
    if (n == -ENOSYS) {
        n = epoll_wait(epfd, events, max, to_ms(timeout_ns));
        n = n < 0 ? -errno : n;
    }
    return n;
}

int os_poll(struct pollfd *fds, unsigned n, int64_t timeout_ns)
{
    int error = os_fault("poll");
    int ready;

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return -error;
    }
    if (COAIO_TSAN) {
        /* TSan delivers signals in poll(2), and not in ppoll(2). */
        ready = poll(fds, n, to_ms(timeout_ns));
    } else {
        struct timespec timeout = {
            .tv_sec = timeout_ns / NS_PER_S,
            .tv_nsec = timeout_ns % NS_PER_S,
        };

        ready = ppoll(fds, n, timeout_ns < 0 ? NULL : &timeout, NULL);
    }
    return ready < 0 ? -errno : ready;
}
