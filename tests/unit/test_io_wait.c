/* SPDX-License-Identifier: MIT */

/*
 * co_poll_fd, co_sleep_ns, co_run_in_worker.
 */

#include "go.h"
#include "loop/worker.h"
#include "loopthread.h"
#include "os/fault.h"

#include <coaio/io.h>
#include <coaio/timer.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

typedef struct Look {
    int fd;
    int events;
    int64_t timeout_ns;
    int result;
    bool done;
} Look;

static void coroutine_fn look(void *opaque)
{
    Look *l = opaque;

    l->result = co_poll_fd(l->fd, l->events, l->timeout_ns);
    l->done = true;
}

static void pair(int fds[2])
{
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
}

/* --- readiness ------------------------------------------------------------*/

ON_EACH_ENGINE(what_holds_is_said_at_once)
{
    AioContext *ctx = go_begin(engine);
    Look l = {.events = POLLIN | POLLOUT, .timeout_ns = -1};
    int fds[2];

    pair(fds);
    l.fd = fds[0];
    go(look, &l);
    CHECK(l.done);
    CHECK_EQ(l.result, POLLOUT);
    close(fds[1]);
    go(look, &l);
    CHECK(l.result & POLLHUP);
    CHECK(l.result & POLLIN);
    close(fds[0]);
    l.done = false;
    go(look, &l);
    CHECK_EQ(l.result, -EBADF);
    l.fd = -1;
    go(look, &l);
    CHECK_EQ(l.result, -EBADF);
    go_end(ctx);
}

ON_EACH_ENGINE(several_look_at_once)
{
    AioContext *ctx = go_begin(engine);
    Look l[3];
    int fds[2];

    pair(fds);
    for (int i = 0; i < 3; i++) {
        l[i] = (Look){.fd = fds[0],
                      .events = i == 2 ? POLLRDHUP : POLLIN,
                      .timeout_ns = -1};
        go(look, &l[i]);
        CHECK(!l[i].done);
    }
    CHECK_EQ(write(fds[1], "x", 1), 1);
    go_until(ctx, &l[0].done);
    go_until(ctx, &l[1].done);
    CHECK_EQ(l[0].result, POLLIN);
    CHECK_EQ(l[1].result, POLLIN);
    CHECK(!l[2].done);
    CHECK_EQ(shutdown(fds[1], SHUT_WR), 0);
    go_until(ctx, &l[2].done);
    CHECK(l[2].result & POLLRDHUP);
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

ON_EACH_ENGINE(looking_ends_with_its_time)
{
    AioContext *ctx = go_begin(engine);
    Look l = {.events = POLLIN};
    int fds[2];

    pair(fds);
    l.fd = fds[0];
    go(look, &l);
    CHECK(l.done);
    CHECK_EQ(l.result, -ETIMEDOUT);
    l.done = false;
    l.timeout_ns = 1000;
    go(look, &l);
    CHECK(!l.done);
    go_until(ctx, &l.done);
    CHECK_EQ(l.result, -ETIMEDOUT);
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

/* Also of what asks for nothing else, or for that only: it was never told. */
ON_EACH_ENGINE(a_hangup_is_always_waited_for)
{
    const int asked[] = {0, POLLHUP, POLLERR};
    AioContext *ctx = go_begin(engine);
    int fds[2];

    for (int i = 0; i < 3; i++) {
        Look l = {.events = asked[i], .timeout_ns = -1};

        CHECK_EQ(pipe(fds), 0);
        l.fd = fds[0];
        go(look, &l);
        CHECK(!l.done);
        go_settle(ctx);
        close(fds[1]);
        go_until(ctx, &l.done);
        CHECK_EQ(l.result, POLLHUP);
        close(fds[0]);
    }
    go_end(ctx);
}

/* It ended with what epoll says, with an event that does not hold, or never; or
 * with -ETIMEDOUT, when nobody was to wait. */
ON_EACH_ENGINE(a_file_has_no_other_events)
{
    const int asked[] = {0, POLLHUP, POLLPRI};
    const char *paths[] = {"/", "/proc/self/exe", "/dev/null"};
    AioContext *ctx = go_begin(engine);

    for (int i = 0; i < 18; i++) {
        int fd = open(paths[i / 3 % 3], O_RDONLY | O_CLOEXEC);
        Look l = {
            .fd = fd,
            .events = asked[i % 3],
            .timeout_ns = i < 9 ? -1 : 0,
        };

        CHECK(fd >= 0);
        go(look, &l);
        CHECK(l.done);
        CHECK_EQ(l.result, -EPERM);
        close(fd);
    }
    go_end(ctx);
}

/* Some files of proc have events: that is how their changes are told. */
ON_EACH_ENGINE(a_file_of_proc_may_have_other_events)
{
    AioContext *ctx = go_begin(engine);
    int fd = open("/proc/self/mounts", O_RDONLY | O_CLOEXEC);
    Look l = {.fd = fd, .events = POLLPRI, .timeout_ns = 1000};

    if (fd < 0) {
        SKIP("there is no /proc/self/mounts");
    }
    go(look, &l);
    go_until(ctx, &l.done);
    CHECK(l.result > 0 || l.result == -ETIMEDOUT);
    close(fd);
    go_end(ctx);
}

TEST(looking_without_a_home_blocks)
{
    Look l = {.events = POLLIN, .timeout_ns = 1000};
    int fds[2];

    pair(fds);
    l.fd = fds[0];
    go(look, &l);
    CHECK(l.done);
    CHECK_EQ(l.result, -ETIMEDOUT);
    close(fds[0]);
    close(fds[1]);
}

/* --- sleep ----------------------------------------------------------------*/

typedef struct Sleeper {
    int64_t ns;
    int64_t earliest_ns; /* its time is not before this, */
    int64_t latest_ns;   /* and not after this */
    unsigned *order;
    unsigned place;
    int result;
    bool done;
} Sleeper;

static void coroutine_fn snooze(void *opaque)
{
    Sleeper *s = opaque;

    s->earliest_ns = aio_clock_ns(AIO_CLOCK_MONOTONIC) + s->ns;
    s->result = co_sleep_ns(s->ns);
    CHECK(aio_clock_ns(AIO_CLOCK_MONOTONIC) >= s->earliest_ns);
    s->place = (*s->order)++;
    s->done = true;
}

/* This thread may be kept from running between two of them: only where the
 * times are certain to differ is there an order. */
ON_EACH_ENGINE(sleepers_wake_in_the_order_of_their_times)
{
    static const int64_t ms[] = {30, 10, 20, 0, 15};
    AioContext *ctx = go_begin(engine);
    Sleeper sleepers[5];
    unsigned order = 0;

    for (int i = 0; i < 5; i++) {
        sleepers[i] = (Sleeper){.ns = ms[i] * 1000000, .order = &order};
        go(snooze, &sleepers[i]);
        CHECK(!sleepers[i].done);
        sleepers[i].latest_ns =
            aio_clock_ns(AIO_CLOCK_MONOTONIC) + sleepers[i].ns;
    }
    for (int i = 0; i < 5; i++) {
        go_until(ctx, &sleepers[i].done);
        CHECK_EQ(sleepers[i].result, 0);
    }
    for (int i = 0; i < 5; i++) {
        for (int j = 0; j < 5; j++) {
            CHECK(sleepers[i].latest_ns >= sleepers[j].earliest_ns ||
                  sleepers[i].place < sleepers[j].place);
        }
    }
    go_end(ctx);
}

static void note(void *opaque)
{
    *(bool *)opaque = true;
}

/* What was due before the sleep of nothing has run after it. */
ON_EACH_ENGINE(a_sleep_of_nothing_is_one_pass)
{
    AioContext *ctx = go_begin(engine);
    bool noted = false;
    unsigned order = 0;
    Sleeper s = {.order = &order};

    aio_bh_schedule_oneshot(ctx, note, &noted);
    go(snooze, &s);
    CHECK(!s.done);
    CHECK(aio_poll(ctx, false));
    CHECK(s.done);
    CHECK(noted);
    s = (Sleeper){.ns = 0, .order = &order};
    go(snooze, &s);
    CHECK(!s.done);
    CHECK(aio_poll(ctx, true));
    CHECK(s.done);
    go_end(ctx);
}

static void coroutine_fn snooze_below_zero(void *opaque)
{
    CHECK_EQ(co_sleep_ns(INT64_MIN), 0);
    *(bool *)opaque = true;
}

TEST(no_time_is_too_short)
{
    AioContext *ctx = go_begin(NULL);
    bool done = false;

    go(snooze_below_zero, &done);
    go_until(ctx, &done);
    go_end(ctx);
}

TEST(sleeping_without_a_home_blocks)
{
    unsigned order = 0;
    Sleeper s = {.ns = 1000, .order = &order};

    go(snooze, &s);
    CHECK(s.done);
}

/* --- signals --------------------------------------------------------------*/

#define TICK_US    2000
#define TICKS_MOST 500 /* then there are no more */

static volatile sig_atomic_t ticks;
static volatile sig_atomic_t write_after; /* so many: 0 is never */
static volatile sig_atomic_t write_to;

static void set_ticks(int us)
{
    const struct itimerval timer = {{0, us}, {0, us}};

    CHECK_EQ(setitimer(ITIMER_REAL, &timer, NULL), 0);
}

static void tick(int signal)
{
    (void)signal;
    ticks = ticks + 1;
    if (ticks == write_after) {
        CHECK_EQ(write(write_to, "x", 1), 1);
    }
    if (ticks == TICKS_MOST) {
        set_ticks(0);
    }
}

static void begin_ticks(void)
{
    const struct sigaction action = {.sa_handler = tick};

    CHECK_EQ(sigaction(SIGALRM, &action, NULL), 0);
    ticks = 0;
    set_ticks(TICK_US);
}

/* Each signal began the time anew: it ended when there were no more. */
TEST(a_sleep_without_a_home_ends_under_signals)
{
    unsigned order = 0;
    Sleeper s = {.ns = 20000000, .order = &order};

    begin_ticks();
    go(snooze, &s);
    CHECK(s.done);
    CHECK(ticks < TICKS_MOST);
    set_ticks(0);
}

TEST(looking_without_a_home_ends_under_signals)
{
    Look l = {.events = POLLIN, .timeout_ns = 20000000};
    int fds[2];

    pair(fds);
    l.fd = fds[0];
    begin_ticks();
    go(look, &l);
    CHECK_EQ(l.result, -ETIMEDOUT);
    CHECK(ticks < TICKS_MOST);
    set_ticks(0);
    close(fds[0]);
    close(fds[1]);
}

/* Nor do they end what has no end, or one beyond all times. */
TEST(looking_without_a_home_goes_on_after_signals)
{
    static const int64_t timeouts[] = {-1, INT64_MAX};
    int fds[2];

    for (int i = 0; i < 2; i++) {
        Look l = {.events = POLLIN, .timeout_ns = timeouts[i]};

        pair(fds);
        l.fd = fds[0];
        write_to = fds[1];
        write_after = 5;
        begin_ticks();
        go(look, &l);
        set_ticks(0);
        CHECK_EQ(l.result, POLLIN);
        CHECK(ticks >= 5);
        close(fds[0]);
        close(fds[1]);
    }
}

/* --- workers --------------------------------------------------------------*/

#define JOBS 100

typedef struct Job {
    int number;
    int result;
    bool done;
    sem_t *gate; /* to pass first, or NULL */
    bool here;   /* not in a worker */
} Job;

static int compute(void *opaque)
{
    Job *job = opaque;

    CHECK_EQ(in_coroutine(), job->here);
    if (job->gate) {
        gate_pass(job->gate);
    }
    return job->number * 2;
}

static void coroutine_fn compute_in_worker(void *opaque)
{
    Job *job = opaque;

    job->result = co_run_in_worker(compute, job);
    job->done = true;
}

ON_EACH_ENGINE(a_hundred_jobs)
{
    AioContext *ctx = go_begin(engine);
    Job jobs[JOBS];

    for (int i = 0; i < JOBS; i++) {
        jobs[i] = (Job){.number = i};
        go(compute_in_worker, &jobs[i]);
    }
    for (int i = 0; i < JOBS; i++) {
        go_until(ctx, &jobs[i].done);
        CHECK_EQ(jobs[i].result, 2 * i);
    }
    CHECK(worker_thread_count() <= WORKER_MAX);
    go_end(ctx);
}

/* A job that blocks holds up neither the loop nor the other jobs. */
ON_EACH_ENGINE(a_job_that_blocks)
{
    AioContext *ctx = go_begin(engine);
    sem_t gate;
    Job slow = {.number = 1, .gate = &gate}, quick = {.number = 2};

    gate_init(&gate);
    go(compute_in_worker, &slow);
    go(compute_in_worker, &quick);
    go_until(ctx, &quick.done);
    CHECK(!slow.done);
    gate_open(&gate);
    go_until(ctx, &slow.done);
    CHECK_EQ(slow.result, 2);
    go_end(ctx);
}

static int fail(void *opaque)
{
    (void)opaque;
    return -EIO;
}

static void coroutine_fn fail_in_worker(void *opaque)
{
    Job *job = opaque;

    job->result = co_run_in_worker(fail, NULL);
    job->done = true;
}

TEST(what_the_function_returns_is_returned)
{
    AioContext *ctx = go_begin(NULL);
    Job job = {0};

    go(fail_in_worker, &job);
    go_until(ctx, &job.done);
    CHECK_EQ(job.result, -EIO);
    go_end(ctx);
}

TEST(no_thread_is_eagain)
{
    AioContext *ctx = go_begin(NULL);
    Job job = {0};

    os_fault_arm(1, EAGAIN, "thread");
    go(compute_in_worker, &job);
    CHECK(os_fault_fired());
    CHECK(job.done);
    CHECK_EQ(job.result, -EAGAIN);
    go_end(ctx);
}

TEST(work_without_a_home_is_done_here)
{
    Job job = {.number = 4, .here = true};

    go(compute_in_worker, &job);
    CHECK(job.done);
    CHECK_EQ(job.result, 8);
    CHECK_EQ(worker_thread_count(), 0);
}

TEST_MAIN()
