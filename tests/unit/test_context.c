/* SPDX-License-Identifier: MIT */
/*
 * Contexts: what options they take, binding to a thread, what a pass answers,
 * busy polling.  References and coroutines: test_context_home; misuse:
 * test_context_misuse.
 */
#include "engines.h"
#include "loop/context.h"
#include "loop/fd_int.h"
#include "loopthread.h"
#include "os/clock.h"
#include "os/fault.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <coaio/fd.h>
#include <coaio/timer.h>
#include <coaio/wake.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static AioContext *new_named(const char *name)
{
    AioContextOptions options = {.size = sizeof(options), .name = name};
    AioContext *ctx = NULL;

    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    CHECK(ctx != NULL);
    return ctx;
}

static void nothing(void *opaque)
{
    (void)opaque;
}

/* --- options --------------------------------------------------------------*/

static int try_options(const AioContextOptions *options)
{
    AioContext *const untouched = (AioContext *)(void *)&try_options;
    AioContext *ctx = untouched;
    int ret = aio_context_new(&ctx, options);

    CHECK((ctx == untouched) == (ret < 0));
    if (ret == 0) {
        aio_context_unref(ctx);
    }
    return ret;
}

TEST(options_of_a_size_that_is_not_known_are_refused)
{
    AioContextOptions options = {.size = sizeof(options)};

    CHECK_EQ(try_options(NULL), 0);
    CHECK_EQ(try_options(&options), 0);
    options.size = 0;
    CHECK_EQ(try_options(&options), -EINVAL);
    options.size = sizeof(options) - 1;
    CHECK_EQ(try_options(&options), -EINVAL);
    options.size = sizeof(options) + 8;
    CHECK_EQ(try_options(&options), -EINVAL);
}

static int try_engine(const char *engine)
{
    AioContextOptions options = {.size = sizeof(options), .engine = engine};

    return try_options(&options);
}

TEST(engines_go_by_their_names)
{
    static const char *const names[] = {"epoll", "poll"};

    for (int i = 0; i < 2; i++) {
        AioContextOptions options = {
            .size = sizeof(options),
            .engine = names[i],
        };
        AioContext *ctx;

        CHECK_EQ(aio_context_new(&ctx, &options), 0);
        CHECK_STR(aio_context_engine(ctx), names[i]);
        aio_bh_schedule_oneshot(ctx, nothing, NULL);
        CHECK(aio_poll(ctx, true));
        aio_context_unref(ctx);
    }
    CHECK_EQ(try_engine("kqueue"), -EINVAL);
    CHECK_EQ(try_engine("epol"), -EINVAL);
    CHECK_EQ(try_engine("epoll "), -EINVAL);
}

static void check_engine(const char *environment, const char *expected)
{
    AioContext *ctx;

    setenv("COAIO_ENGINE", environment, 1);
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    CHECK_STR(aio_context_engine(ctx), expected);
    aio_context_unref(ctx);
}

TEST(the_environment_chooses_the_engine)
{
    check_engine("poll", "poll");
    check_engine("epoll", "epoll");
    unsetenv("COAIO_ENGINE");
    CHECK_EQ(try_engine(NULL), 0);
    setenv("COAIO_ENGINE", "steam", 1);
    CHECK_EQ(try_engine(NULL), -EINVAL);
    CHECK_EQ(try_engine("poll"), 0); /* the option counts */
}

/* The name is copied, and cut after 31 bytes. */
TEST_ABORTS(a_name_is_what_reports_show,
            "^coaio: .*context \"0123456789abcdef0123456789abcde\" ends with a "
            "bottom half left")
{
    char name[] = "0123456789abcdef0123456789abcdef and more";
    AioContext *ctx = new_named(name);

    memset(name, 'x', sizeof(name) - 1);
    aio_bh_new(ctx, nothing, NULL);
    aio_context_unref(ctx);
}

/* With every number of descriptors that is left, up to enough. */
TEST(running_out_of_descriptors_is_an_error)
{
    struct rlimit limit;
    int ret = -EMFILE;
    int lowest = dup(0);

    CHECK(lowest >= 0);
    close(lowest);
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    for (rlim_t n = (rlim_t)lowest; ret < 0; n++) {
        CHECK(n < (rlim_t)lowest + 8);
        limit.rlim_cur = n;
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
        ret = try_engine("epoll");
        CHECK(ret == 0 || ret == -EMFILE);
        CHECK(ret < 0 || n > (rlim_t)lowest);
    }
    CHECK_EQ(dup(0), lowest); /* nothing stayed open */
    close(lowest);
}

/* --- before it is bound ---------------------------------------------------*/

static char trail[64];

static void mark_letter(void *opaque)
{
    size_t length = strlen(trail);

    CHECK(length + 1 < sizeof(trail));
    trail[length] = *(const char *)opaque;
}

TEST(an_unbound_context_takes_what_it_will_run_later)
{
    AioContext *ctx = new_named("unbound");
    AioBH *bh = aio_bh_new(ctx, mark_letter, "b");

    aio_bh_schedule_oneshot(ctx, mark_letter, "a");
    aio_bh_schedule(bh);
    aio_co_schedule(ctx, coroutine_create(mark_letter, "c"));
    aio_bh_schedule_oneshot(ctx, mark_letter, "d");
    CHECK(aio_context_current() == NULL);
    CHECK_STR(trail, "");
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(aio_context_current(), ctx);
    CHECK_STR(trail, "abcd");
    aio_bh_delete(bh);
    aio_context_unref(ctx);
}

TEST(an_unbound_context_can_go)
{
    aio_context_unref(new_named("unbound"));
    CHECK(aio_context_current() == NULL);
}

/* --- binding --------------------------------------------------------------*/

static void check_no_current(void *arg)
{
    (void)arg;
    CHECK(aio_context_current() == NULL);
}

TEST(attaching_binds_it_to_this_thread_alone)
{
    AioContext *ctx = new_named("bound");

    CHECK(aio_context_current() == NULL);
    aio_context_attach(ctx);
    CHECK_EQ(aio_context_current(), ctx);
    aio_context_attach(ctx); /* again: nothing */
    CHECK_EQ(aio_context_current(), ctx);
    run_in_thread(check_no_current, NULL);
    CHECK(!aio_poll(ctx, false));
    aio_context_unref(ctx);
    CHECK(aio_context_current() == NULL);
}

TEST(the_first_poll_binds_it)
{
    AioContext *ctx = new_named("bound");

    CHECK(!aio_poll(ctx, false));
    CHECK_EQ(aio_context_current(), ctx);
    aio_context_unref(ctx);
}

TEST(a_thread_may_have_one_context_after_the_other)
{
    for (int i = 0; i < 5; i++) {
        AioContext *ctx = new_named("next");

        aio_context_attach(ctx);
        CHECK_EQ(aio_context_current(), ctx);
        aio_context_unref(ctx);
    }
}

static void check_current(void *opaque)
{
    CHECK_EQ(aio_context_current(), opaque);
}

TEST(the_current_context_is_current_in_callbacks_and_coroutines)
{
    AioContext *ctx = new_named("home");

    aio_bh_schedule_oneshot(ctx, check_current, ctx);
    aio_co_schedule(ctx, coroutine_create(check_current, ctx));
    CHECK(aio_poll(ctx, true));
    aio_context_unref(ctx);
}

/* --- the main context -----------------------------------------------------*/

static void get_main(void *arg)
{
    *(AioContext **)arg = aio_context_main();
    CHECK(aio_context_current() == NULL);
}

TEST(the_main_context_belongs_to_the_thread_that_first_asks)
{
    AioContext *ctx, *other;

    harness_allow_fds(4);
    ctx = aio_context_main();
    CHECK(ctx != NULL);
    CHECK_EQ(aio_context_current(), ctx);
    CHECK_EQ(aio_context_main(), ctx);
    run_in_thread(get_main, &other);
    CHECK_EQ(other, ctx);
    aio_bh_schedule_oneshot(ctx, mark_letter, "m");
    CHECK(aio_poll(ctx, true));
    CHECK_STR(trail, "m");
}

TEST(the_main_context_may_be_asked_for_anew_after_a_failure)
{
    harness_allow_fds(4);
    os_fault_arm(1, ENOMEM, "alloc");
    CHECK(aio_context_main() == NULL);
    CHECK(os_fault_fired());
    CHECK(aio_context_current() == NULL);
    CHECK(aio_context_main() != NULL);
    CHECK_EQ(aio_context_current(), aio_context_main());
}

/* --- what a pass answers --------------------------------------------------*/

TEST(a_pass_says_whether_it_ran_a_callback)
{
    AioContext *ctx = new_named("home");
    AioTimer timer;
    int ends[2];
    char c = 0;

    CHECK(!aio_poll(ctx, false));
    aio_bh_schedule_oneshot(ctx, nothing, NULL);
    CHECK(aio_poll(ctx, false));
    CHECK(!aio_poll(ctx, false));
    aio_co_schedule(ctx, coroutine_create(nothing, NULL));
    CHECK(aio_poll(ctx, true));
    aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, nothing, NULL);
    aio_timer_mod_ns(&timer, 0);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(pipe(ends), 0);
    CHECK_EQ(write(ends[1], &c, 1), 1);
    CHECK_EQ(aio_set_fd_handler(ctx, ends[0], nothing, NULL, NULL, NULL, NULL),
             0);
    CHECK(aio_poll(ctx, true));
    CHECK(aio_poll(ctx, false));
    CHECK_EQ(read(ends[0], &c, 1), 1);
    CHECK(!aio_poll(ctx, false));
    CHECK_EQ(aio_set_fd_handler(ctx, ends[0], NULL, NULL, NULL, NULL, NULL), 0);
    close(ends[0]);
    close(ends[1]);
    aio_context_unref(ctx);
}

/* A nested pass has run the callbacks; the outer one still knows. */
static void poll_nested(void *opaque)
{
    CHECK(aio_poll(opaque, true));
    CHECK(!aio_poll(opaque, false));
}

TEST(a_pass_knows_of_what_ran_nested)
{
    AioContext *ctx = new_named("home");

    aio_bh_schedule_oneshot(ctx, poll_nested, ctx);
    aio_bh_schedule_oneshot(ctx, nothing, NULL);
    CHECK(aio_poll(ctx, true));
    CHECK(!aio_poll(ctx, false));
    aio_context_unref(ctx);
}

/* Bottom halves that go on and on keep neither timers nor descriptors from
 * their turn, nor do these keep them. */
typedef struct Endless {
    AioContext *ctx;
    AioBH *bh;
    unsigned bhs, fds, timers;
    AioTimer timer;
} Endless;

static void endless_bh(void *opaque)
{
    Endless *endless = opaque;

    endless->bhs++;
    aio_bh_schedule(endless->bh);
}

static void endless_fd(void *opaque)
{
    Endless *endless = opaque;

    endless->fds++;
}

static void endless_timer(void *opaque)
{
    Endless *endless = opaque;

    endless->timers++;
    aio_timer_mod_ns(&endless->timer, 0);
}

TEST(nothing_starves)
{
    Endless e = {.ctx = new_named("busy")};
    int ends[2];
    char c = 0;

    CHECK_EQ(pipe(ends), 0);
    CHECK_EQ(write(ends[1], &c, 1), 1); /* readable all the time */
    aio_context_attach(e.ctx);
    e.bh = aio_bh_new(e.ctx, endless_bh, &e);
    aio_bh_schedule(e.bh);
    CHECK_EQ(
        aio_set_fd_handler(e.ctx, ends[0], endless_fd, NULL, NULL, NULL, &e),
        0);
    aio_timer_init(&e.timer, e.ctx, AIO_CLOCK_MONOTONIC, endless_timer, &e);
    aio_timer_mod_ns(&e.timer, 0);
    for (unsigned i = 1; i <= 1000; i++) {
        CHECK(aio_poll(e.ctx, true));
        CHECK_EQ(e.bhs, i);
        CHECK_EQ(e.timers, i);
    }
    CHECK(e.fds >= 1000 / 20);
    aio_timer_del(&e.timer);
    aio_bh_delete(e.bh);
    aio_set_fd_handler(e.ctx, ends[0], NULL, NULL, NULL, NULL, NULL);
    close(ends[0]);
    close(ends[1]);
    aio_context_unref(e.ctx);
}

static bool always(void *opaque)
{
    (void)opaque;
    return true;
}

/* A descriptor that polling finds nothing out about was not looked at as long
 * as polling found something at another. */
ON_EACH_ENGINE(nothing_starves_while_polling_finds_something)
{
    Endless polled = {.ctx = context_on(engine)}, e = {.ctx = polled.ctx};
    int silent[2], ends[2];
    char c = 0;

    CHECK_EQ(pipe(silent), 0);
    CHECK_EQ(pipe(ends), 0);
    CHECK_EQ(write(ends[1], &c, 1), 1);
    aio_context_attach(e.ctx);
    CHECK_EQ(aio_context_set_poll_params(e.ctx, 1000000000, 0, 0), 0);
    e.ctx->poll_ns = 1000000000;
    CHECK_EQ(aio_set_fd_handler(e.ctx, silent[0], endless_fd, NULL, always,
                                endless_fd, &polled),
             0);
    CHECK_EQ(
        aio_set_fd_handler(e.ctx, ends[0], endless_fd, NULL, NULL, NULL, &e),
        0);
    for (int i = 0; i < 1000; i++) {
        aio_poll(e.ctx, true);
    }
    CHECK(polled.fds >= 900);
    CHECK(e.fds >= 1000 / 20);
    aio_set_fd_handler(e.ctx, silent[0], NULL, NULL, NULL, NULL, NULL);
    aio_set_fd_handler(e.ctx, ends[0], NULL, NULL, NULL, NULL, NULL);
    for (int i = 0; i < 2; i++) {
        close(silent[i]);
        close(ends[i]);
    }
    aio_context_unref(e.ctx);
}

/* --- busy polling ---------------------------------------------------------*/

TEST(poll_parameters_are_not_negative)
{
    AioContext *ctx = new_named("home");

    CHECK_EQ(aio_context_set_poll_params(ctx, 0, 0, 0), 0);
    CHECK_EQ(aio_context_set_poll_params(ctx, 1000, 2, 2), 0);
    CHECK_EQ(aio_context_set_poll_params(ctx, -1, 2, 2), -EINVAL);
    CHECK_EQ(aio_context_set_poll_params(ctx, 1000, -1, 2), -EINVAL);
    CHECK_EQ(aio_context_set_poll_params(ctx, 1000, 2, -1), -EINVAL);
    CHECK_EQ(aio_context_set_poll_params(ctx, INT64_MIN, 0, 0), -EINVAL);
    aio_context_unref(ctx);
}

#define MINUTE INT64_C(60000000000)

typedef struct Busy {
    AioContext *ctx;
    sem_t ready;
    bool stop;
} Busy;

/* Looks for events for a minute from the first pass on. */
static void poll_busily(void *opaque)
{
    Busy *busy = opaque;

    CHECK_EQ(aio_context_set_poll_params(busy->ctx, MINUTE, 2, 2), 0);
    busy->ctx->poll_ns = MINUTE;
    aio_poll(busy->ctx, false);
    gate_open(&busy->ready);
    while (!busy->stop) {
        aio_poll(busy->ctx, true);
    }
}

static void stop_busy(void *opaque)
{
    Busy *busy = opaque;

    busy->stop = true;
}

/* It finds what is posted without having been woken. */
TEST(a_busy_loop_needs_no_notification)
{
    Busy busy = {.ctx = new_named("busy")};
    BareThread thread;
    uint64_t before;

    gate_init(&busy.ready);
    bare_thread_start(&thread, poll_busily, &busy);
    gate_pass(&busy.ready);
    before = os_counter(OS_COUNT_NOTIFICATIONS);
    for (unsigned long i = harness_load(1000); i > 0; i--) {
        loop_flush(busy.ctx);
    }
    CHECK_EQ(os_counter(OS_COUNT_NOTIFICATIONS), before);
    aio_bh_schedule_oneshot(busy.ctx, stop_busy, &busy);
    bare_thread_join(&thread);
    aio_context_unref(busy.ctx);
}

static int64_t cpu_time(clockid_t clock)
{
    struct timespec now;

    CHECK_EQ(clock_gettime(clock, &now), 0);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* What thread takes of the processor that it shares with this one, which works
 * for 100 ms; as a part of that. */
static double share_once(clockid_t clock)
{
    const int64_t work_ns = 100000000;
    int64_t before, taken;

    taken = cpu_time(clock);
    before = cpu_time(CLOCK_THREAD_CPUTIME_ID);
    while (cpu_time(CLOCK_THREAD_CPUTIME_ID) < before + work_ns) {
        continue;
    }
    taken = cpu_time(clock) - taken;
    return (double)taken / (double)work_ns;
}

/* The least in a few times: where a machine's processor is taken away from it
 * for a while, that counts for whoever had it. */
static double share_of(pthread_t thread)
{
    double least = 1;
    clockid_t clock;

    CHECK_EQ(pthread_getcpuclockid(thread, &clock), 0);
    for (int i = 0; i < 3; i++) {
        double share = share_once(clock);

        least = share < least ? share : least;
    }
    return least;
}

static void yield_until_told(void *opaque)
{
    Busy *busy = opaque;

    gate_open(&busy->ready);
    while (!load_relaxed(&busy->stop)) {
        sched_yield();
    }
}

static void share_one_processor(void)
{
    cpu_set_t one;

    CPU_ZERO(&one);
    CPU_SET((size_t)sched_getcpu(), &one);
    CHECK_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
}

/* Where it did not give way, each had half of the processor: who was waited
 * for had to wait for the end of its time slice. */
TEST(a_busy_loop_leaves_its_processor_to_others)
{
    Busy busy = {.ctx = new_named("busy")};
    BareThread thread;
    double share;

    share_one_processor();
    gate_init(&busy.ready);
    bare_thread_start(&thread, yield_until_told, &busy);
    gate_pass(&busy.ready);
    share = share_of(thread.thread);
    store_relaxed(&busy.stop, true);
    bare_thread_join(&thread);
    if (share > 0.2) {
        SKIP("before Linux 6.18 sched_yield() gives little away");
    }
    busy.stop = false;
    bare_thread_start(&thread, poll_busily, &busy);
    gate_pass(&busy.ready);
    share = share_of(thread.thread);
    aio_bh_schedule_oneshot(busy.ctx, stop_busy, &busy);
    bare_thread_join(&thread);
    CHECK(share < 0.5);
    aio_context_unref(busy.ctx);
}

/* Parameters that another thread changes take effect, and wake it up. */
TEST(a_busy_loop_can_be_told_to_sleep)
{
    Busy busy = {.ctx = new_named("busy")};
    BareThread thread;

    gate_init(&busy.ready);
    bare_thread_start(&thread, poll_busily, &busy);
    gate_pass(&busy.ready);
    for (int i = 0; i < 20; i++) {
        int64_t max = i % 2 ? MINUTE : 0;

        CHECK_EQ(aio_context_set_poll_params(busy.ctx, max, 2, 0), 0);
        loop_flush(busy.ctx);
        while (max == 0 && load_relaxed(&busy.ctx->wake) != WAKE_SLEEPING) {
            sched_yield();
        }
    }
    aio_bh_schedule_oneshot(busy.ctx, stop_busy, &busy);
    bare_thread_join(&thread);
    aio_context_unref(busy.ctx);
}

/* A loop that adapts, now busy and now asleep, loses nothing. */
TEST(a_loop_that_is_busy_at_times_is_woken)
{
    LoopThread loop;

    loop_thread_start(&loop, "adaptive");
    CHECK_EQ(aio_context_set_poll_params(loop.ctx, 50000, 0, 2), 0);
    for (unsigned long i = harness_load(2000); i > 0; i--) {
        loop_flush(loop.ctx);
    }
    loop_thread_stop(&loop);
}

TEST(a_timer_ends_busy_polling)
{
    AioContext *ctx = new_named("busy");
    AioTimer timer;

    aio_context_attach(ctx);
    CHECK_EQ(aio_context_set_poll_params(ctx, MINUTE, 2, 2), 0);
    ctx->poll_ns = MINUTE;
    aio_poll(ctx, true); /* it has been notified */
    aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, nothing, NULL);
    aio_timer_mod_ns(&timer, os_clock_monotonic_ns() + 1000000);
    while (aio_timer_pending(&timer)) {
        aio_poll(ctx, true);
    }
    aio_context_unref(ctx);
}

static PollerOps spied;
static int (*spied_wait)(AioContext *ctx, int64_t timeout_ns);
static int64_t longest_ns; /* that the engine was told to wait */

static int spy_on_wait(AioContext *ctx, int64_t timeout_ns)
{
    longest_ns = timeout_ns > longest_ns ? timeout_ns : longest_ns;
    return spied_wait(ctx, timeout_ns);
}

/*
 * The whole time was slept for after the busy part of it: a timer could be late
 * by as much.
 */
TEST(busy_polling_is_part_of_the_time_to_wait)
{
    const int64_t wait_ns = 60000000, busy_ns = 30000000;
    AioContext *ctx = new_named("busy");
    AioTimer timer;

    aio_context_attach(ctx);
    CHECK_EQ(aio_context_set_poll_params(ctx, MINUTE, 2, 2), 0);
    aio_poll(ctx, true); /* it has been notified */
    aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, nothing, NULL);
    spied = *ctx->poller.ops;
    spied_wait = spied.wait;
    spied.wait = spy_on_wait;
    ctx->poller.ops = &spied;
    for (int64_t poll_ns = 1; poll_ns <= busy_ns; poll_ns += busy_ns - 1) {
        ctx->poll_ns = poll_ns;
        longest_ns = 0;
        aio_timer_mod_ns(&timer, os_clock_monotonic_ns() + wait_ns);
        while (aio_timer_pending(&timer)) {
            aio_poll(ctx, true);
        }
        CHECK(longest_ns <= wait_ns - poll_ns);
    }
    aio_context_unref(ctx);
}

typedef struct Asked {
    AioContext *ctx;
    int fd;
    struct Asked *next; /* takes its place when it is asked */
    unsigned runs;
} Asked;

static void run_asked(void *opaque)
{
    Asked *asked = opaque;

    asked->runs++;
}

static bool give_way(void *opaque);

static void watch_asked(Asked *asked)
{
    CHECK_EQ(aio_set_fd_handler(asked->ctx, asked->fd, NULL, NULL, give_way,
                                run_asked, asked),
             0);
}

static bool give_way(void *opaque)
{
    const Asked *asked = opaque;

    if (asked->next) {
        watch_asked(asked->next);
    }
    return asked->next;
}

/* It was told that it was ready, which it had not said. */
TEST(a_handler_does_not_answer_for_the_one_in_its_place)
{
    AioContext *ctx = new_named("busy");
    Asked second = {.ctx = ctx}, first = {.ctx = ctx, .next = &second};
    int fds[2];

    aio_context_attach(ctx);
    CHECK_EQ(pipe(fds), 0);
    first.fd = second.fd = fds[0];
    watch_asked(&first);
    CHECK(!fd_busy_poll(ctx));
    CHECK(!fd_dispatch(ctx));
    CHECK_EQ(first.runs + second.runs, 0);
    CHECK_EQ(aio_set_fd_handler(ctx, fds[0], NULL, NULL, NULL, NULL, NULL), 0);
    close(fds[0]);
    close(fds[1]);
    aio_context_unref(ctx);
}

/*
 * Wait with a timer until the loop has learnt from it.  What a slow machine
 * takes to begin the wait may be longer than the timer: it is due then, and
 * teaches nothing.
 */
static void wait_until_adapted(AioContext *ctx)
{
    int64_t before = ctx->poll_ns;
    AioTimer timer;

    aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, nothing, NULL);
    for (int64_t ns = 2000000; ctx->poll_ns == before; ns *= 2) {
        CHECK(ns < MINUTE);
        aio_timer_mod_ns(&timer, os_clock_monotonic_ns() + ns);
        while (aio_timer_pending(&timer)) {
            aio_poll(ctx, true);
        }
    }
}

/*
 * The time was multiplied by the factor before it was compared with the most
 * that it may be: with large parameters that overflowed.
 */
TEST(busy_polling_grows_to_its_limit_and_not_beyond)
{
    AioContext *ctx = new_named("busy");

    aio_context_attach(ctx);
    CHECK_EQ(aio_context_set_poll_params(ctx, INT64_MAX, INT64_MAX, 0), 0);
    aio_poll(ctx, true);
    ctx->poll_ns = 4;
    wait_until_adapted(ctx);
    CHECK_EQ(ctx->poll_ns, INT64_MAX);
    aio_context_unref(ctx);
}

/* What came soon after the loop had fallen asleep would have been found. */
TEST(busy_polling_begins_with_nothing_and_grows_by_its_factor)
{
    AioContext *ctx = new_named("busy");
    int64_t before;

    aio_context_attach(ctx);
    CHECK_EQ(aio_context_set_poll_params(ctx, MINUTE, 3, 0), 0);
    aio_poll(ctx, false);
    CHECK_EQ(ctx->poll_ns, 0);
    wait_until_adapted(ctx);
    before = ctx->poll_ns;
    CHECK(before > 0);
    for (int i = 0; i < 3; i++) {
        /* Far longer than it polls for; once, unless a wait ends early. */
        wait_until_adapted(ctx);
        CHECK(ctx->poll_ns >= 3 * before);
        CHECK_EQ(ctx->poll_ns % (3 * before), 0);
        before = ctx->poll_ns;
    }
    CHECK_EQ(aio_context_set_poll_params(ctx, 1, 2, 0), 0);
    wait_until_adapted(ctx);
    CHECK(ctx->poll_ns <= 1);
    aio_context_unref(ctx);
}

TEST_MAIN()
