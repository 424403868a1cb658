/* SPDX-License-Identifier: MIT */
/*
 * Wake-ups to a context whose thread has ended: each is counted in
 * lost_wakeups and none runs; a coroutine that is left there may still be
 * moved to a context that lives.
 */
#include "harness.h"
#include "loop/context.h"
#include "loopthread.h"
#include "os/fault.h"

#include <coaio/coroutine.h>
#include <coaio/iothread.h>
#include <coaio/wake.h>

/* What is left in a stopped context is lost, and so are its descriptors. */
enum {
    FDS_LEFT = 4
};

static Coroutine *left[8]; /* reachable, for leak checkers */

static void run_count(void *opaque)
{
    int *runs = opaque;

    for (;;) {
        coroutine_yield();
        ++*runs;
    }
}

static void enter_it(void *arg)
{
    coroutine_enter(arg);
}

static AioContext *attach_new(const char *name)
{
    AioContextOptions options = {.size = sizeof(options), .name = name};
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    aio_context_attach(ctx);
    return ctx;
}

static IOThread *start(const char *name)
{
    IOThread *iothread;

    CHECK_EQ(iothread_new(&iothread, name, NULL), 0);
    return iothread;
}

static Coroutine *parked_in(IOThread *iothread, int *runs)
{
    CoroutineOptions options = {.size = sizeof(options), .name = "left"};
    AioContext *ctx = iothread_context(iothread);
    Coroutine *co;

    CHECK_EQ(coroutine_create_full(&co, run_count, runs, &options), 0);
    loop_call(ctx, enter_it, co);
    CHECK_EQ(coroutine_context(co), ctx);
    return co;
}

static uint64_t lost(IOThread *iothread)
{
    return load_relaxed(&iothread_context(iothread)->lost_wakeups);
}

static void wake_it(void *arg)
{
    aio_co_wake(arg);
}

TEST(wakeups_to_a_stopped_context_are_counted_and_never_run)
{
    IOThread *iothread = start("stopped");
    int runs = 0;

    harness_allow_fds(FDS_LEFT);
    for (int i = 0; i < 4; i++) {
        left[i] = parked_in(iothread, &runs);
    }
    CHECK_EQ(iothread_stop(iothread), 4);
    CHECK_EQ(lost(iothread), 0);
    aio_co_wake(left[0]);
    CHECK_EQ(lost(iothread), 1);
    run_in_thread(wake_it, left[1]);
    CHECK_EQ(lost(iothread), 2);
    aio_co_enter(iothread_context(iothread), left[2]);
    CHECK_EQ(lost(iothread), 3);
    aio_co_schedule(iothread_context(iothread), left[3]);
    CHECK_EQ(lost(iothread), 4);
    CHECK_EQ(iothread_stop(iothread), 4);
    iothread_unref(iothread);
    CHECK_EQ(runs, 0);
}

static void do_nothing(void *opaque)
{
    (void)opaque;
}

TEST(a_new_one_scheduled_to_a_stopped_context_is_counted)
{
    IOThread *iothread = start("stopped");

    CHECK_EQ(iothread_stop(iothread), 0);
    left[0] = coroutine_create(do_nothing, NULL);
    aio_co_schedule(iothread_context(iothread), left[0]);
    CHECK_EQ(lost(iothread), 1);
    iothread_unref(iothread);
}

static void wake_four(void *opaque)
{
    (void)opaque;
    for (int i = 0; i < 4; i++) {
        aio_co_wake(left[i]);
    }
}

/* From a coroutine of another context they go the same way. */
TEST(wakeups_from_a_coroutine_are_counted)
{
    AioContext *ctx = attach_new("home");
    IOThread *iothread = start("stopped");
    int runs = 0;

    harness_allow_fds(FDS_LEFT);
    for (int i = 0; i < 4; i++) {
        left[i] = parked_in(iothread, &runs);
    }
    iothread_stop(iothread);
    coroutine_enter(coroutine_create(wake_four, NULL));
    CHECK_EQ(lost(iothread), 4);
    iothread_unref(iothread);
    CHECK(!aio_poll(ctx, false));
    CHECK_EQ(runs, 0);
    aio_context_unref(ctx);
}

/* --- rescue ---------------------------------------------------------------*/

static void park_and_note(void *opaque)
{
    AioContext **seen = opaque;

    coroutine_yield();
    *seen = aio_context_current();
}

static uint64_t live_blocks(void)
{
    return os_counter(OS_COUNT_ALLOCATIONS) - os_counter(OS_COUNT_FREES);
}

typedef void RescueFn(AioContext *ctx, Coroutine *co);

/*
 * A coroutine that was left in a stopped I/O thread goes on in ctx; and when
 * it has gone, nothing of the I/O thread's context is left.
 */
static void rescue(RescueFn *fn, bool unref_first)
{
    AioContext *ctx = attach_new("home");
    AioContext *seen = NULL;
    uint64_t before;
    IOThread *iothread;
    Coroutine *co;

    coroutine_enter(coroutine_create(do_nothing, NULL));
    co = coroutine_create(park_and_note, &seen);
    before = live_blocks();
    iothread = start("stopped");
    loop_call(iothread_context(iothread), enter_it, co);
    CHECK_EQ(iothread_stop(iothread), 1);
    if (unref_first) {
        iothread_unref(iothread);
    }
    fn(ctx, co);
    if (!unref_first) {
        iothread_unref(iothread);
    }
    aio_poll(ctx, false);
    CHECK_EQ(seen, ctx);
    aio_context_unref(NULL);
    CHECK(aio_context_current() == ctx);
    aio_context_unref(aio_context_ref(ctx)); /* sweeps up */
    CHECK_EQ(live_blocks(), before);
    aio_context_unref(ctx);
}

static void rescue_by_schedule(AioContext *ctx, Coroutine *co)
{
    aio_co_schedule(ctx, co);
}

static void rescue_by_co_enter(AioContext *ctx, Coroutine *co)
{
    aio_co_enter(ctx, co);
}

static void rescue_by_enter(AioContext *ctx, Coroutine *co)
{
    CHECK_EQ(aio_context_current(), ctx);
    coroutine_enter(co);
}

TEST(schedule_rescues_it)
{
    rescue(rescue_by_schedule, false);
}

TEST(co_enter_rescues_it)
{
    rescue(rescue_by_co_enter, false);
}

TEST(enter_rescues_it)
{
    rescue(rescue_by_enter, false);
}

/*
 * The context of a stopped thread stayed for ever if its last coroutine was
 * moved away after the last user had let go of it: nobody looked any more
 * whether coroutines were left.
 */
TEST(schedule_frees_the_context_that_it_was_the_last_in)
{
    rescue(rescue_by_schedule, true);
}

TEST(co_enter_frees_the_context_that_it_was_the_last_in)
{
    rescue(rescue_by_co_enter, true);
}

TEST(enter_frees_the_context_that_it_was_the_last_in)
{
    rescue(rescue_by_enter, true);
}

/* --- in the last moments --------------------------------------------------*/

/*
 * What is posted between the last pass of a thread and its end is neither run
 * nor forgotten.  The last pass has been made when the thread runs the exit
 * functions of its thread-locals, and there this test catches it.
 */
static pthread_key_t key;
static sem_t passed, posted;

static void hold_up(void *value)
{
    (void)value;
    gate_open(&passed);
    gate_pass(&posted);
}

static void set_key(void *arg)
{
    CHECK_EQ(pthread_setspecific(key, arg), 0);
}

/* The key comes before the library's, whose exit function runs after it. */
static void make_key(void)
{
    CHECK_EQ(pthread_key_create(&key, hold_up), 0);
    gate_init(&passed);
    gate_init(&posted);
}

static void set_end(void *opaque)
{
    LoopThread *loop = opaque;

    loop->stop = true;
}

TEST(a_wakeup_after_the_last_pass_is_counted)
{
    LoopThread loop;
    int runs = 0;
    Coroutine *co;

    make_key();
    loop_thread_start(&loop, "ending");
    loop_call(loop.ctx, set_key, &loop);
    co = coroutine_create(run_count, &runs);
    left[0] = co;
    harness_allow_fds(FDS_LEFT);
    loop_call(loop.ctx, enter_it, co);
    aio_bh_schedule_oneshot(loop.ctx, set_end, &loop);
    gate_pass(&passed);
    aio_co_wake(co);
    gate_open(&posted);
    CHECK_EQ(pthread_join(loop.thread, NULL), 0);
    CHECK_EQ(runs, 0);
    CHECK_EQ(load_relaxed(&loop.ctx->lost_wakeups), 1);
    aio_context_unref(loop.ctx);
}

TEST(one_moved_away_after_the_last_pass_arrives)
{
    AioContext *seen = NULL;
    AioContext *ctx;
    uint64_t before;
    LoopThread loop;
    Coroutine *co;

    make_key();
    ctx = attach_new("home");
    coroutine_enter(coroutine_create(do_nothing, NULL));
    co = coroutine_create(park_and_note, &seen);
    before = live_blocks();
    loop_thread_start(&loop, "ending");
    loop_call(loop.ctx, set_key, &loop);
    loop_call(loop.ctx, enter_it, co);
    aio_bh_schedule_oneshot(loop.ctx, set_end, &loop);
    gate_pass(&passed);
    aio_co_schedule(ctx, co);
    gate_open(&posted);
    CHECK_EQ(pthread_join(loop.thread, NULL), 0);
    aio_context_unref(loop.ctx);
    aio_poll(ctx, false);
    CHECK_EQ(seen, ctx);
    aio_context_unref(aio_context_ref(ctx));
    CHECK_EQ(live_blocks(), before);
    aio_context_unref(ctx);
}

TEST_MAIN()
