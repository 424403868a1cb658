/* SPDX-License-Identifier: MIT */
/*
 * Who keeps a context alive: users by their references, coroutines from when
 * they start until they end or move, wakers while they notify.  That it is
 * freed afterwards, and not before, is seen by counting what the library
 * allocates and frees.
 */
#include "harness.h"
#include "loop/context.h"
#include "loopthread.h"
#include "os/fault.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <coaio/iothread.h>
#include <coaio/wait.h>
#include <coaio/wake.h>

static void nothing(void *opaque)
{
    (void)opaque;
}

static void park(void *opaque)
{
    (void)opaque;
    coroutine_yield();
}

static uint64_t live_blocks(void)
{
    return os_counter(OS_COUNT_ALLOCATIONS) - os_counter(OS_COUNT_FREES);
}

static uint64_t blocks_before; /* without contexts, stacks being there */
static uint64_t blocks_of_context;
static uint64_t blocks_of_stopped; /* whose thread has ended */

static AioContext *new_context(void)
{
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    return ctx;
}

static void attach(void *ctx)
{
    aio_context_attach(ctx);
}

/* What the pool and the engine keep is there already. */
static void begin(void)
{
    Coroutine *co[2] = {
        coroutine_create(park, NULL),
        coroutine_create(park, NULL),
    };
    AioContext *ctx = new_context();

    coroutine_delete(co[0]);
    coroutine_delete(co[1]);
    aio_context_unref(ctx);
    blocks_before = live_blocks();
    ctx = new_context();
    blocks_of_context = live_blocks() - blocks_before;
    CHECK(blocks_of_context > 0);
    run_in_thread(attach, ctx);
    blocks_of_stopped = live_blocks() - blocks_before;
    CHECK(blocks_of_stopped > 0);
    aio_context_unref(ctx);
    CHECK_EQ(live_blocks(), blocks_before);
}

static void check_alive(unsigned contexts)
{
    CHECK_EQ(live_blocks(), blocks_before + contexts * blocks_of_context);
}

/* Nothing is left of it, and the thread may have another. */
static void check_over(void)
{
    AioContext *next;

    CHECK(aio_context_current() == NULL);
    check_alive(0);
    next = new_context();
    aio_context_attach(next);
    CHECK_EQ(aio_context_current(), next);
    aio_context_unref(next);
    check_alive(0);
}

/* --- users ----------------------------------------------------------------*/

TEST(the_last_of_several_references_frees_it)
{
    AioContext *ctx;

    begin();
    ctx = new_context();
    CHECK_EQ(aio_context_ref(ctx), ctx);
    CHECK_EQ(aio_context_ref(ctx), ctx);
    aio_context_unref(ctx);
    check_alive(1);
    aio_context_attach(ctx);
    aio_context_unref(ctx);
    check_alive(1);
    CHECK_EQ(aio_context_current(), ctx);
    aio_context_unref(ctx);
    check_alive(0);
    CHECK(aio_context_current() == NULL);
    aio_context_unref(NULL);
}

static void unref(void *ctx)
{
    aio_context_unref(ctx);
}

/* The thread that it is bound to notices when it asks. */
TEST(another_thread_may_drop_the_last_reference)
{
    AioContext *ctx;

    begin();
    ctx = new_context();
    aio_context_attach(ctx);
    run_in_thread(unref, ctx);
    check_over();
}

TEST(a_bottom_half_may_drop_the_last_reference)
{
    AioContext *ctx;

    begin();
    ctx = new_context();
    aio_bh_schedule_oneshot(ctx, unref, ctx);
    CHECK(aio_poll(ctx, true));
    CHECK(aio_context_current() == NULL);
    check_alive(0);
}

static void poll_nested(void *ctx)
{
    CHECK(aio_poll(ctx, true));
}

TEST(a_nested_pass_may_drop_the_last_reference)
{
    AioContext *ctx;

    begin();
    ctx = new_context();
    aio_bh_schedule_oneshot(ctx, poll_nested, ctx);
    aio_bh_schedule_oneshot(ctx, poll_nested, ctx);
    aio_bh_schedule_oneshot(ctx, unref, ctx);
    CHECK(aio_poll(ctx, true));
    CHECK(aio_context_current() == NULL);
    check_alive(0);
}

TEST(a_thread_that_ends_lets_go_of_its_context)
{
    AioContext *ctx;

    begin();
    ctx = new_context();
    run_in_thread(attach, ctx);
    CHECK_EQ(live_blocks(), blocks_before + blocks_of_stopped);
    aio_context_unref(ctx);
    check_alive(0);
}

static void coroutine_fn end_at_once(void *opaque)
{
    (void)opaque;
}

/* Outside a pass, which nobody may make any more. */
TEST(a_thread_notices_that_its_last_coroutine_has_ended)
{
    AioContext *ctx;
    Coroutine *co;

    begin();
    ctx = new_context();
    aio_context_attach(ctx);
    co = coroutine_create(end_at_once, NULL);
    aio_context_unref(ctx);
    CHECK_EQ(aio_context_current(), ctx);
    check_alive(1);
    coroutine_enter(co);
    check_over();
}

static void attach_and_unref(void *ctx)
{
    aio_context_attach(ctx);
    aio_context_unref(ctx);
}

TEST(a_context_may_go_before_its_thread)
{
    begin();
    run_in_thread(attach_and_unref, new_context());
    check_alive(0);
}

/* --- in the pass that closes it -------------------------------------------*/

/*
 * The pass that is on needs the memory until it is over.  Once it went when
 * somebody asked in that pass for the thread's context, as several calls do.
 */
static void ask(void)
{
    CHECK(aio_context_current() == NULL);
    check_alive(1);
}

static void unref_and_ask(void *ctx)
{
    aio_context_unref(ctx);
    ask();
}

TEST(asking_in_the_pass_that_closes_it_leaves_it_alone)
{
    AioContext *ctx;

    begin();
    ctx = new_context();
    aio_bh_schedule_oneshot(ctx, unref_and_ask, ctx);
    CHECK(aio_poll(ctx, true));
    check_over();
}

static void poll_nested_and_ask(void *ctx)
{
    poll_nested(ctx);
    ask();
}

TEST(so_does_asking_when_a_nested_pass_has_closed_it)
{
    AioContext *ctx;

    begin();
    ctx = new_context();
    aio_bh_schedule_oneshot(ctx, poll_nested_and_ask, ctx);
    aio_bh_schedule_oneshot(ctx, unref_and_ask, ctx);
    CHECK(aio_poll(ctx, true));
    check_over();
}

static void unref_and_create(void *ctx)
{
    Coroutine *co[2];

    aio_context_unref(ctx);
    co[0] = coroutine_create(nothing, NULL);
    CHECK_EQ(coroutine_create_full(&co[1], nothing, NULL, NULL), 0);
    for (int i = 0; i < 2; i++) {
        CHECK(coroutine_context(co[i]) == NULL);
        coroutine_delete(co[i]);
    }
    check_alive(1);
}

TEST(a_coroutine_made_in_the_pass_that_closes_it_has_no_home)
{
    AioContext *ctx;

    begin();
    ctx = new_context();
    aio_bh_schedule_oneshot(ctx, unref_and_create, ctx);
    CHECK(aio_poll(ctx, true));
    check_over();
}

static LoopThread helper;

static void unref_and_wait(void *ctx)
{
    aio_context_unref(ctx);
    aio_wait_bh_oneshot(helper.ctx, nothing, NULL);
    check_alive(1);
}

TEST(waiting_in_the_pass_that_closes_it_polls_it_no_more)
{
    AioContext *ctx;

    loop_thread_start(&helper, "helper");
    begin();
    ctx = new_context();
    aio_bh_schedule_oneshot(ctx, unref_and_wait, ctx);
    CHECK(aio_poll(ctx, true));
    check_over();
    loop_thread_stop(&helper);
}

/* --- wakers ---------------------------------------------------------------*/

/* A waker that is still notifying keeps the memory, though nothing else. */
TEST(a_pin_keeps_the_memory_only)
{
    AioContext *ctx;

    begin();
    ctx = new_context();
    context_pin(ctx);
    aio_context_unref(ctx);
    check_alive(1);
    CHECK_EQ(load_relaxed(&ctx->home.closed), 1);
    aio_notify(ctx);
    context_unpin(ctx);
    context_reap();
    check_alive(0);
}

/* --- coroutines -----------------------------------------------------------*/

TEST(a_new_coroutine_keeps_its_home)
{
    AioContext *ctx;
    Coroutine *co;

    begin();
    ctx = new_context();
    aio_context_attach(ctx);
    co = coroutine_create(park, NULL);
    aio_context_unref(ctx);
    check_alive(1);
    coroutine_delete(co);
    check_alive(0);
}

TEST(a_parked_coroutine_keeps_its_home)
{
    AioContext *ctx;
    Coroutine *co;

    begin();
    ctx = new_context();
    aio_context_attach(ctx);
    co = coroutine_create(park, NULL);
    coroutine_enter(co);
    aio_context_unref(ctx);
    check_alive(1);
    CHECK_EQ(coroutine_context(co), ctx);
    CHECK_EQ(aio_context_current(), ctx);
    coroutine_enter(co);
    aio_poll(ctx, false); /* here it is noticed that it has gone */
    check_alive(0);
    CHECK(aio_context_current() == NULL);
}

TEST(several_coroutines_keep_it_until_the_last_has_ended)
{
    AioContext *ctx;
    Coroutine *co[3];

    begin();
    ctx = new_context();
    aio_context_attach(ctx);
    for (int i = 0; i < 3; i++) {
        co[i] = coroutine_create(park, NULL);
        coroutine_enter(co[i]);
    }
    aio_context_unref(ctx);
    for (int i = 0; i < 3; i++) {
        aio_poll(ctx, false);
        CHECK_EQ(aio_context_current(), ctx);
        coroutine_enter(co[i]);
    }
    aio_poll(ctx, false);
    CHECK(aio_context_current() == NULL);
    check_alive(0);
}

/* Those that have ended are forgotten, and another may start. */
TEST(coroutines_that_come_and_go_keep_the_count)
{
    AioContext *ctx;
    Coroutine *co;

    begin();
    ctx = new_context();
    aio_context_attach(ctx);
    for (int i = 0; i < 10; i++) {
        co = coroutine_create(park, NULL);
        coroutine_enter(co);
        coroutine_enter(coroutine_create(nothing, NULL));
        aio_poll(ctx, false);
        coroutine_enter(co);
        aio_poll(ctx, false);
    }
    CHECK_EQ(aio_context_current(), ctx);
    aio_context_unref(ctx);
    check_alive(0);
}

static void wake(void *co)
{
    aio_co_wake(co);
}

/* The wake-up and the end of the context are one pass. */
TEST(the_pass_in_which_the_last_coroutine_ends_frees_it)
{
    AioContext *ctx;
    Coroutine *co;

    begin();
    ctx = new_context();
    aio_context_attach(ctx);
    co = coroutine_create(park, NULL);
    coroutine_enter(co);
    aio_context_unref(ctx);
    run_in_thread(wake, co);
    CHECK(aio_poll(ctx, true));
    CHECK(aio_context_current() == NULL);
    check_alive(0);
}

/* One on its way is the only one to hold the context that it goes to. */
TEST(a_coroutine_on_its_way_keeps_where_it_goes)
{
    AioContext *ctx;
    Coroutine *co;

    begin();
    co = coroutine_create(nothing, NULL);
    ctx = new_context();
    aio_co_schedule(ctx, co);
    aio_context_unref(ctx);
    check_alive(1);
    CHECK(aio_poll(ctx, true));
    CHECK(aio_context_current() == NULL);
    check_alive(0);
}

static void schedule_self(void *ctx)
{
    aio_co_schedule(ctx, coroutine_self());
    aio_context_unref(ctx);
    coroutine_yield();
}

TEST(so_does_one_that_will_go_when_it_has_yielded)
{
    AioContext *ctx;

    begin();
    ctx = new_context();
    coroutine_enter(coroutine_create(schedule_self, ctx));
    check_alive(1);
    CHECK(aio_poll(ctx, true));
    CHECK(aio_context_current() == NULL);
    check_alive(0);
}

static void enter(void *co)
{
    coroutine_enter(co);
}

/* Nobody asks for the thread's context in between: it was made the home once,
 * without a reference left. */
TEST(one_without_a_home_is_entered_where_the_context_has_gone)
{
    AioContext *ctx;
    Coroutine *co;

    begin();
    co = coroutine_create(park, NULL);
    ctx = new_context();
    aio_context_attach(ctx);
    run_in_thread(unref, ctx);
    coroutine_enter(co);
    CHECK(coroutine_context(co) == NULL);
    coroutine_enter(co);
    check_over();
}

static void unref_and_enter_new(void *ctx)
{
    Coroutine *co;

    aio_context_unref(ctx);
    co = coroutine_create(park, NULL);
    coroutine_enter(co);
    CHECK(coroutine_context(co) == NULL);
    coroutine_enter(coroutine_create(enter, co)); /* by another such */
    check_alive(1);
}

TEST(and_in_the_pass_that_closes_it)
{
    AioContext *ctx;

    begin();
    ctx = new_context();
    aio_bh_schedule_oneshot(ctx, unref_and_enter_new, ctx);
    CHECK(aio_poll(ctx, true));
    check_over();
}

/* Moved by another thread; the old home notices in its next pass. */
TEST(a_coroutine_that_was_taken_away_keeps_its_home_no_more)
{
    AioContext *ctx;
    LoopThread loop;
    Coroutine *co;

    begin();
    ctx = new_context();
    aio_context_attach(ctx);
    co = coroutine_create(park, NULL);
    coroutine_enter(co);
    loop_thread_start(&loop, "thief");
    loop_call(loop.ctx, enter, co); /* and there it ends */
    loop_thread_stop(&loop);
    check_alive(1);
    aio_context_unref(ctx);
    check_alive(0);
}

TEST(a_pass_notices_that_the_last_one_was_taken_away)
{
    AioContext *ctx;
    LoopThread loop;
    Coroutine *co;

    begin();
    ctx = new_context();
    aio_context_attach(ctx);
    co = coroutine_create(park, NULL);
    coroutine_enter(co);
    aio_context_unref(ctx);
    loop_thread_start(&loop, "thief");
    loop_call(loop.ctx, enter, co);
    loop_thread_stop(&loop);
    check_alive(1);
    aio_poll(ctx, false);
    check_alive(0);
}

typedef struct Traveller {
    AioContext *ends[2];
    sem_t done;
} Traveller;

static void travel(void *opaque)
{
    Traveller *t = opaque;

    for (int i = 0; i < 1000; i++) {
        co_reschedule_self(t->ends[i % 2]);
    }
    gate_open(&t->done);
}

TEST(a_thousand_hops_leave_nothing)
{
    LoopThread loops[2];
    Traveller t;

    begin();
    gate_init(&t.done);
    for (int i = 0; i < 2; i++) {
        loop_thread_start(&loops[i], "stop");
        t.ends[i] = loops[i].ctx;
    }
    coroutine_enter(coroutine_create(travel, &t));
    gate_pass(&t.done);
    loop_thread_stop(&loops[0]);
    loop_thread_stop(&loops[1]);
    check_alive(0);
}

/* An I/O thread is stopped and dropped while a coroutine is parked there: the
 * coroutine keeps the context, and another thread may fetch it. */
TEST(a_coroutine_keeps_the_context_of_a_stopped_thread)
{
    AioContext *ctx;
    IOThread *iothread;
    Coroutine *co;

    begin();
    co = coroutine_create(park, NULL);
    CHECK_EQ(iothread_new(&iothread, "stopped", NULL), 0);
    loop_call(iothread_context(iothread), enter, co);
    CHECK_EQ(iothread_stop(iothread), 1);
    iothread_unref(iothread);
    CHECK(live_blocks() >= blocks_before + blocks_of_stopped);
    ctx = new_context();
    aio_context_attach(ctx);
    coroutine_enter(co);
    aio_context_unref(ctx);
    context_reap();
    check_alive(0);
}

TEST_MAIN()
