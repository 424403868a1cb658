/* SPDX-License-Identifier: MIT */
/*
 * I/O threads: starting with every option and every failure, stopping with
 * work due and with coroutines parked, wake-ups that come too late, the end of
 * references, misuse.
 */
#include "loopthread.h"

#include "base/atomic.h"
#include "base/compiler.h"
#include "loop/context.h"
#include "loop/fd_int.h"
#include "os/fault.h"

#include <coaio/coroutine.h>
#include <coaio/iothread.h>
#include <coaio/semaphore.h>
#include <coaio/timer.h>
#include <coaio/wait.h>
#include <coaio/wake.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static IOThread *iothread;
static AioContext *ctx;

static void open_thread(void)
{
    CHECK_EQ(iothread_new(&iothread, "io", NULL), 0);
    ctx = iothread_context(iothread);
    CHECK(ctx);
}

static void close_thread(void)
{
    CHECK_EQ(iothread_stop(iothread), 0);
    iothread_unref(iothread);
}

/* --- starting -------------------------------------------------------------*/

typedef struct Facts {
    AioContext *ctx;
    char name[16];
    bool blocked;
    cpu_set_t cpus;
    stack_t stack;
} Facts;

static void learn(void *opaque)
{
    Facts *facts = opaque;
    sigset_t set;

    facts->ctx = aio_context_current();
    CHECK_EQ(pthread_getname_np(pthread_self(), facts->name,
                                sizeof(facts->name)),
             0);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, NULL, &set), 0);
    facts->blocked = sigismember(&set, SIGTERM) && sigismember(&set, SIGCHLD);
    CHECK_EQ(sched_getaffinity(0, sizeof(facts->cpus), &facts->cpus), 0);
    CHECK_EQ(sigaltstack(NULL, &facts->stack), 0);
}

TEST(its_thread_has_its_name_and_context_and_blocks_signals)
{
    Facts facts;

    open_thread();
    loop_call(ctx, learn, &facts);
    CHECK_EQ(facts.ctx, ctx);
    CHECK_STR(facts.name, "io");
    CHECK(facts.blocked);
    CHECK(!(facts.stack.ss_flags & SS_DISABLE)); /* reports overflows */
    close_thread();
}

TEST(a_long_name_is_cut_and_none_is_fine)
{
    Facts facts;

    CHECK_EQ(iothread_new(&iothread, "a-name-of-more-than-fifteen-bytes",
                          NULL),
             0);
    loop_call(iothread_context(iothread), learn, &facts);
    CHECK_STR(facts.name, "a-name-of-more-");
    close_thread();
    CHECK_EQ(iothread_new(&iothread, NULL, NULL), 0);
    loop_call(iothread_context(iothread), learn, &facts);
    close_thread();
}

TEST(it_runs_on_the_cpus_that_it_is_given)
{
    IOThreadOptions options = {.size = sizeof(options)};
    cpu_set_t allowed;
    unsigned cpu = 0;
    Facts facts;

    CHECK_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    while (!CPU_ISSET(cpu, &allowed)) {
        cpu++;
    }
    options.cpus = &cpu;
    options.n_cpus = 1;
    CHECK_EQ(iothread_new(&iothread, "pinned", &options), 0);
    loop_call(iothread_context(iothread), learn, &facts);
    CHECK_EQ(CPU_COUNT(&facts.cpus), 1);
    CHECK(CPU_ISSET(cpu, &facts.cpus));
    close_thread();
}

TEST(options_that_make_no_sense_are_refused)
{
    IOThreadOptions options = {.size = sizeof(options)};
    unsigned cpu = 40000;

    options.cpus = &cpu;
    options.n_cpus = 1;
    CHECK_EQ(iothread_new(&iothread, "x", &options), -EINVAL);
    options.cpus = NULL;
    options.n_cpus = 0;
    options.poll_max_ns = -1;
    CHECK_EQ(iothread_new(&iothread, "x", &options), -EINVAL);
    options.poll_max_ns = 0;
    options.engine = "nonsense";
    CHECK_EQ(iothread_new(&iothread, "x", &options), -EINVAL);
    options.engine = NULL;
    options.size--;
    CHECK_EQ(iothread_new(&iothread, "x", &options), -EINVAL);
}

TEST(the_engine_and_polling_can_be_chosen)
{
    IOThreadOptions options = {
        .size = sizeof(options),
        .engine = "poll",
        .poll_max_ns = 20000,
    };

    CHECK_EQ(iothread_new(&iothread, "x", &options), 0);
    CHECK_STR(aio_context_engine(iothread_context(iothread)), "poll");
    CHECK_EQ(iothread_context(iothread)->poll_max_ns, 20000);
    loop_flush(iothread_context(iothread));
    close_thread();
}

TEST(starting_fails_cleanly)
{
    bool fired = true;

    for (uint64_t nth = 1; fired; nth++) {
        int ret;

        os_fault_arm(nth, ENOMEM, NULL);
        ret = iothread_new(&iothread, "fails", NULL);
        fired = os_fault_fired();
        if (ret < 0) {
            CHECK(fired);
            CHECK_EQ(ret, -ENOMEM);
        } else {
            /* The thread had started, and its first sleep failed. */
            close_thread();
        }
        CHECK(nth < 100);
    }
}

TEST(no_more_threads_is_an_error)
{
    os_fault_arm(1, EAGAIN, "thread");
    CHECK_EQ(iothread_new(&iothread, "fails", NULL), -EAGAIN);
    CHECK(os_fault_fired());
}

/* --- stopping -------------------------------------------------------------*/

static unsigned ran; /* atomic */

static void count_run(void *opaque)
{
    (void)opaque;
    fetch_add_acq_rel(&ran, 1u);
}

static void count_and_go_on(void *opaque)
{
    unsigned n = fetch_add_acq_rel(&ran, 1u);

    if (n < 99) {
        aio_bh_schedule_oneshot(aio_context_current(), count_and_go_on,
                                opaque);
    }
}

TEST(stopping_runs_what_is_due)
{
    for (unsigned long i = 0; i < harness_load(50); i++) {
        open_thread();
        store_release(&ran, 0);
        for (int k = 0; k < 20; k++) {
            aio_bh_schedule_oneshot(ctx, count_run, NULL);
        }
        close_thread();
        CHECK_EQ(load_acquire(&ran), 20);
    }
}

TEST(stopping_runs_what_that_schedules)
{
    open_thread();
    aio_bh_schedule_oneshot(ctx, count_and_go_on, NULL);
    close_thread();
    CHECK_EQ(load_acquire(&ran), 100);
}

static void go_on_for_ever(void *opaque)
{
    aio_bh_schedule(*(AioBH **)opaque);
}

TEST(stopping_does_not_wait_for_what_never_ends)
{
    AioBH *bh;

    open_thread();
    bh = aio_bh_new(ctx, go_on_for_ever, &bh);
    aio_bh_schedule(bh);
    CHECK_EQ(iothread_stop(iothread), 0);
    aio_bh_delete(bh);
    iothread_unref(iothread);
}

static void note_thread_id(void *opaque)
{
    *(long *)opaque = syscall(SYS_gettid);
}

/* How often it has gone to sleep, which is how often it was woken. */
static unsigned long sleeps(long tid)
{
    unsigned long n = 0;
    char path[64], line[128];
    FILE *status;

    snprintf(path, sizeof(path), "/proc/self/task/%ld/status", tid);
    status = fopen(path, "r");
    CHECK(status);
    while (fgets(line, sizeof(line), status) &&
           sscanf(line, "voluntary_ctxt_switches: %lu", &n) != 1) {
    }
    fclose(status);
    return n;
}

static void raise_bool(void *opaque)
{
    *(bool *)opaque = true;
}

/* The calling thread polls its own context, of which nobody else knows. */
static void let_time_pass(AioContext *own, int64_t ns)
{
    AioTimer timer;
    bool fired = false;

    aio_timer_init(&timer, own, AIO_CLOCK_MONOTONIC, raise_bool, &fired);
    aio_timer_mod_ns(&timer, aio_clock_ns(AIO_CLOCK_MONOTONIC) + ns);
    while (!fired) {
        aio_poll(own, true);
    }
}

/* Whether the thread sleeps for 300 ms on end; to go to sleep may take it a
 * while. */
static bool comes_to_rest(AioContext *own, long tid)
{
    for (int i = 0; i < 10; i++) {
        unsigned long before = sleeps(tid);

        let_time_pass(own, 300000000);
        if (sleeps(tid) == before) {
            return true;
        }
    }
    return false;
}

/* No tick, no look now and then: one that has nothing to do costs nothing,
 * also if it polls busily where that pays. */
TEST(an_idle_one_is_never_woken)
{
    static const int64_t poll_max_ns[] = {0, 200000};
    AioContext *own;

    CHECK_EQ(aio_context_new(&own, NULL), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(poll_max_ns); i++) {
        IOThreadOptions options = {
            .size = sizeof(options),
            .poll_max_ns = poll_max_ns[i],
        };
        IOThread *idler;
        long tid;

        CHECK_EQ(iothread_new(&idler, "idle", &options), 0);
        aio_bh_schedule_oneshot(iothread_context(idler), note_thread_id,
                                &tid);
        loop_flush(iothread_context(idler));
        CHECK(comes_to_rest(own, tid));
        loop_flush(iothread_context(idler));
        CHECK(sleeps(tid) > 0); /* it is there */
        iothread_unref(idler);
    }
    aio_context_unref(own);
}

TEST(stopping_twice_does_nothing)
{
    open_thread();
    CHECK_EQ(iothread_stop(iothread), 0);
    CHECK_EQ(iothread_stop(iothread), 0);
    iothread_unref(iothread);
}

static void stop_too(void *opaque)
{
    CHECK_EQ(iothread_stop(opaque), 0);
    iothread_unref(opaque);
}

TEST(several_threads_may_stop_it)
{
    for (unsigned long i = 0; i < harness_load(50); i++) {
        BareThread others[3];

        open_thread();
        for (int k = 0; k < 3; k++) {
            iothread_ref(iothread);
            bare_thread_start(&others[k], stop_too, iothread);
        }
        close_thread();
        for (int k = 0; k < 3; k++) {
            bare_thread_join(&others[k]);
        }
    }
}

TEST(the_last_reference_stops_it)
{
    AioContext *kept;

    open_thread();
    CHECK_EQ(iothread_ref(iothread), iothread);
    iothread_unref(iothread);
    loop_flush(ctx);
    kept = aio_context_ref(ctx);
    store_release(&ran, 0);
    aio_bh_schedule_oneshot(ctx, count_run, NULL);
    iothread_unref(iothread);
    CHECK_EQ(load_acquire(&ran), 1);
    CHECK(load_acquire(&kept->stopped));
    aio_context_unref(kept);
    iothread_unref(NULL);
}

/* --- coroutines that are left ---------------------------------------------*/

static int pair[2];

static void park(void *opaque)
{
    fetch_add_acq_rel((unsigned *)opaque, 1u);
    coroutine_yield();
    fetch_add_acq_rel((unsigned *)opaque, 100u); /* never */
}

static void park_on_fd(void *opaque)
{
    fetch_add_acq_rel((unsigned *)opaque, 1u);
    fd_wait(pair[0], POLLIN, -1, "co_thing");
    fetch_add_acq_rel((unsigned *)opaque, 100u); /* never */
}

static CoSemaphore no_units;

static void park_on_semaphore(void *opaque)
{
    fetch_add_acq_rel((unsigned *)opaque, 1u);
    co_semaphore_acquire(&no_units, 1);
    fetch_add_acq_rel((unsigned *)opaque, 100u); /* never */
}

static Coroutine *start_named(const char *name, CoroutineEntry *entry)
{
    CoroutineOptions options = {.size = sizeof(options), .name = name};
    Coroutine *co;

    CHECK_EQ(coroutine_create_full(&co, entry, &ran, &options), 0);
    aio_co_enter(ctx, co);
    return co;
}

/* Keep what the library writes to stderr for reading; returns the pipe. */
static int capture_stderr(int *saved)
{
    int fds[2];

    CHECK_EQ(pipe(fds), 0);
    *saved = dup(2);
    CHECK_EQ(dup2(fds[1], 2), 2);
    close(fds[1]);
    return fds[0];
}

static void release_stderr(int fd, int saved, char *text, size_t size)
{
    ssize_t n;
    size_t len = 0;

    CHECK_EQ(dup2(saved, 2), 2);
    close(saved);
    while (len + 1 < size && (n = read(fd, text + len, size - 1 - len)) > 0) {
        len += (size_t)n;
    }
    text[len] = '\0';
    close(fd);
}

static unsigned count_lines(const char *text)
{
    unsigned n = 0;

    for (; *text; text++) {
        n += *text == '\n';
    }
    return n;
}

/*
 * The coroutines of a stopped thread keep its context, as documented.  So
 * these cases leave an event fd and an epoll set open.
 */
TEST(coroutines_that_are_left_are_named_and_counted)
{
    char text[4096], line[128];
    int fd, saved;

    harness_allow_fds(2);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    open_thread();
    start_named("by-itself", park);
    start_named("on-fd", park_on_fd);
    start_named("on-semaphore", park_on_semaphore);
    loop_flush(ctx);
    CHECK_EQ(load_acquire(&ran), 3);
    fd = capture_stderr(&saved);
    CHECK_EQ(iothread_stop(iothread), 3);
    release_stderr(fd, saved, text, sizeof(text));
    CHECK(strstr(text, "coaio: iothread_stop: context \"io\" has stopped while "
                       "3 coroutines were parked in it, which will never go "
                       "on\n"));
    CHECK(strstr(text, "coaio: iothread_stop: coroutine \"by-itself\" is left: "
                       "it has yielded by itself\n"));
    snprintf(line, sizeof(line),
             "\"on-fd\" is left: it waits for co_thing fd %d\n", pair[0]);
    CHECK(strstr(text, line));
    snprintf(line, sizeof(line),
             "\"on-semaphore\" is left: it waits for CoSemaphore %p\n",
             (void *)&no_units);
    CHECK(strstr(text, line));
    CHECK_EQ(count_lines(text), 4);
    CHECK_EQ(iothread_stop(iothread), 3); /* says so again, in silence */
    iothread_unref(iothread);
    close(pair[0]);
    close(pair[1]);
}

static void make_new(void *opaque)
{
    *(Coroutine **)opaque = coroutine_create(park, &ran);
}

TEST(one_that_was_never_entered_is_named_and_can_be_given_back)
{
    char text[4096];
    Coroutine *new;
    int fd, saved;

    open_thread();
    loop_call(ctx, make_new, &new);
    fd = capture_stderr(&saved);
    CHECK_EQ(iothread_stop(iothread), 1);
    release_stderr(fd, saved, text, sizeof(text));
    CHECK(strstr(text, "has stopped while 1 coroutine was parked in it"));
    CHECK(strstr(text, " is left: it was never entered\n"));
    CHECK_EQ(count_lines(text), 2);
    coroutine_delete(new);
    iothread_unref(iothread);
    CHECK_EQ(load_acquire(&ran), 0);
}

TEST(not_more_than_twenty_are_named)
{
    char text[8192];
    int fd, saved;

    harness_allow_fds(2);
    open_thread();
    for (int i = 0; i < 50; i++) {
        start_named("one-of-many", park);
    }
    loop_flush(ctx);
    fd = capture_stderr(&saved);
    CHECK_EQ(iothread_stop(iothread), 50);
    release_stderr(fd, saved, text, sizeof(text));
    CHECK_EQ(count_lines(text), 22);
    CHECK(strstr(text, "and 30 more"));
    iothread_unref(iothread);
}

TEST(those_of_other_contexts_are_not_meant)
{
    IOThread *other;
    Coroutine *co;

    CHECK_EQ(iothread_new(&other, "other", NULL), 0);
    open_thread();
    ctx = iothread_context(other);
    co = start_named("elsewhere", park);
    loop_flush(ctx);
    CHECK_EQ(iothread_stop(iothread), 0);
    iothread_unref(iothread);
    aio_co_wake(co);
    CHECK_EQ(iothread_stop(other), 0);
    iothread_unref(other);
    CHECK_EQ(load_acquire(&ran), 101);
}

static unsigned stop_creating; /* atomic */

static void nothing_much(void *opaque)
{
    (void)opaque;
    coroutine_yield();
}

static void create_and_finish(void *opaque)
{
    AioContext *own;

    (void)opaque;
    CHECK_EQ(aio_context_new(&own, NULL), 0);
    aio_context_attach(own);
    while (!load_acquire(&stop_creating)) {
        Coroutine *co = coroutine_create(nothing_much, NULL);

        coroutine_enter(co);
        coroutine_enter(co);
    }
    aio_context_unref(own);
}

TEST(reports_while_other_coroutines_live_on)
{
    BareThread other;

    harness_allow_fds(4);
    bare_thread_start(&other, create_and_finish, NULL);
    for (int i = 0; i < 2; i++) {
        open_thread();
        start_named("left", park);
        loop_flush(ctx);
        CHECK_EQ(iothread_stop(iothread), 1);
        iothread_unref(iothread);
    }
    store_release(&stop_creating, 1);
    bare_thread_join(&other);
}

TEST(wake_ups_that_come_too_late_are_counted_and_never_run)
{
    Coroutine *co, *new;

    harness_allow_fds(2);
    open_thread();
    co = start_named("late", park);
    loop_flush(ctx);
    CHECK_EQ(iothread_stop(iothread), 1);
    CHECK_EQ(load_acquire(&ctx->lost_wakeups), 0);
    aio_co_wake(co);
    CHECK_EQ(load_acquire(&ctx->lost_wakeups), 1);
    new = coroutine_create(park, &ran);
    aio_co_enter(ctx, new);
    CHECK_EQ(load_acquire(&ctx->lost_wakeups), 2);
    CHECK_EQ(load_acquire(&ran), 1);
    iothread_unref(iothread);
}

TEST(the_context_may_live_longer)
{
    AioContext *kept;
    AioBH *bh;

    open_thread();
    kept = aio_context_ref(ctx);
    bh = aio_bh_new(kept, count_run, NULL);
    close_thread();
    aio_bh_schedule(bh); /* never runs */
    aio_notify(kept);
    aio_bh_delete(bh);
    aio_context_unref(kept);
    CHECK_EQ(load_acquire(&ran), 0);
}

/* --- misuse ---------------------------------------------------------------*/

static void stop_it(void *opaque)
{
    (void)opaque;
    iothread_stop(iothread);
}

static void unref_it(void *opaque)
{
    (void)opaque;
    iothread_unref(iothread);
}

TEST_ABORTS(stopping_from_its_own_thread_aborts,
            "iothread_stop: the I/O thread of context \"io\" cannot stop "
            "itself")
{
    open_thread();
    loop_call(ctx, stop_it, NULL);
}

TEST_ABORTS(dropping_the_last_reference_there_aborts,
            "iothread_unref: the I/O thread of context \"io\" cannot stop "
            "itself")
{
    open_thread();
    loop_call(ctx, unref_it, NULL);
}

TEST_ABORTS(stopping_in_a_coroutine_aborts,
            "iothread_stop for context \"io\" called in coroutine 0x")
{
    open_thread();
    coroutine_enter(coroutine_create(stop_it, NULL));
}

TEST_ABORTS(dropping_the_last_reference_in_a_coroutine_aborts,
            "iothread_unref for context \"io\" called in coroutine 0x")
{
    open_thread();
    coroutine_enter(coroutine_create(unref_it, NULL));
}

static sem_t runs;

/* The thread is notified when the last reference has gone. */
static void count_it_too_late(void (*count)(IOThread *))
{
    notify_requested(ctx); /* what was left of the start */
    gate_open(&runs);
    while (load_acquire(&ctx->wake) == WAKE_AWAKE) {
        sched_yield();
    }
    count(iothread);
}

static void ref_one(IOThread *thread)
{
    iothread_ref(thread);
}

static void ref_it_too_late(void *opaque)
{
    (void)opaque;
    count_it_too_late(ref_one);
}

static void unref_it_too_late(void *opaque)
{
    (void)opaque;
    count_it_too_late(iothread_unref);
}

TEST_ABORTS(a_reference_on_one_that_has_none_left_aborts,
            "^coaio: iothread_ref: the I/O thread 0x[0-9a-f]+ has no "
            "references left: it is gone$")
{
    gate_init(&runs);
    open_thread();
    aio_bh_schedule_oneshot(ctx, ref_it_too_late, NULL);
    gate_pass(&runs);
    iothread_unref(iothread);
}

TEST_ABORTS(dropping_a_reference_that_is_none_aborts,
            "^coaio: iothread_unref: the I/O thread 0x[0-9a-f]+ has no "
            "references left: it is gone$")
{
    gate_init(&runs);
    open_thread();
    aio_bh_schedule_oneshot(ctx, unref_it_too_late, NULL);
    gate_pass(&runs);
    iothread_unref(iothread);
}

TEST_MAIN()
