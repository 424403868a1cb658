/* SPDX-License-Identifier: MIT */
/*
 * Waking a loop that sleeps, and leaving alone one that does not: claims of
 * count are tested with the counter of notifications.
 *
 * Whether a loop sleeps is read off AioContext.wake, or brought about by
 * calling notify_prepare_sleep() in place of a pass.
 */
#include "base/atomic.h"
#include "harness.h"
#include "loop/context.h"
#include "loop/wake_int.h"
#include "loopthread.h"
#include "os/event.h"
#include "os/fault.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <coaio/wake.h>
#include <sched.h>

static AioContext *attach_new(void)
{
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    aio_context_attach(ctx);
    return ctx;
}

static uint64_t notifications(void)
{
    return os_counter(OS_COUNT_NOTIFICATIONS);
}

static void nothing(void *opaque)
{
    (void)opaque;
}

static void count(void *opaque)
{
    ++*(unsigned *)opaque;
}

/* --- posts ----------------------------------------------------------------*/

static void schedule_three(void *opaque)
{
    AioBH **bh = opaque;

    for (int i = 0; i < 3; i++) {
        aio_bh_schedule(bh[i]);
    }
}

TEST(posts_to_an_awake_context_cost_none)
{
    AioContext *ctx = attach_new();
    unsigned runs = 0;
    AioBH *bh[3];
    uint64_t before = notifications();

    for (int i = 0; i < 3; i++) {
        bh[i] = aio_bh_new(ctx, count, &runs);
    }
    schedule_three(bh); /* by itself */
    CHECK(aio_poll(ctx, true));
    run_in_thread(schedule_three, bh); /* by others; it runs this test */
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(runs, 6);
    CHECK_EQ(notifications(), before);
    for (int i = 0; i < 3; i++) {
        aio_bh_delete(bh[i]);
    }
    aio_context_unref(ctx);
}

typedef struct Locked {
    AioBH *bh;
    AioContext *ctx;
    AioBHStorage *storage;
    uint64_t first, again, oneshot; /* locked operations of each call */
} Locked;

static void count_locked(void *opaque)
{
    Locked *locked = opaque;
    uint64_t before = os_locked_operations();

    aio_bh_schedule(locked->bh);
    locked->first = os_locked_operations() - before;
    before = os_locked_operations();
    aio_bh_schedule(locked->bh);
    locked->again = os_locked_operations() - before;
    before = os_locked_operations();
    aio_bh_schedule_oneshot_embedded(locked->ctx, locked->storage, nothing,
                                     NULL);
    locked->oneshot = os_locked_operations() - before;
}

/* The flags and the list: nothing is pinned, and there is no fence. */
TEST(a_post_to_an_awake_context_costs_two_locked_operations)
{
    AioBHStorage storage;
    Locked locked = {.ctx = attach_new(), .storage = &storage};

    locked.bh = aio_bh_new(locked.ctx, nothing, NULL);
    run_in_thread(count_locked, &locked);
    CHECK_EQ(locked.first, 2);
    CHECK_EQ(locked.again, 2);
    CHECK_EQ(locked.oneshot, 1);
    CHECK(aio_poll(locked.ctx, true));
    count_locked(&locked);
    CHECK_EQ(locked.first, 2);
    CHECK_EQ(locked.oneshot, 1);
    CHECK(aio_poll(locked.ctx, true));
    aio_bh_delete(locked.bh);
    aio_context_unref(locked.ctx);
}

/* Something else than the post has ended its sleep. */
TEST(posts_to_one_that_has_just_awoken_cost_none)
{
    AioContext *ctx = attach_new();
    unsigned runs = 0;
    AioBH *bh[3];
    uint64_t before = notifications();

    for (int i = 0; i < 3; i++) {
        bh[i] = aio_bh_new(ctx, count, &runs);
    }
    CHECK(notify_prepare_sleep(ctx, false));
    notify_woken(ctx);
    run_in_thread(schedule_three, bh);
    CHECK_EQ(notifications(), before);
    CHECK(!notify_prepare_sleep(ctx, false));
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(runs, 3);
    for (int i = 0; i < 3; i++) {
        aio_bh_delete(bh[i]);
    }
    aio_context_unref(ctx);
}

TEST(a_post_and_a_notification_cost_one)
{
    AioContext *ctx = attach_new();
    unsigned runs = 0;
    AioBH *bh[3];
    uint64_t before = notifications();

    for (int i = 0; i < 3; i++) {
        bh[i] = aio_bh_new(ctx, count, &runs);
    }
    for (int order = 0; order < 2; order++) {
        CHECK(notify_prepare_sleep(ctx, false));
        if (order == 0) {
            aio_notify(ctx);
        }
        run_in_thread(schedule_three, bh);
        aio_notify(ctx);
        notify_woken(ctx);
        CHECK_EQ(notifications(), before + 1);
        before++;
        CHECK(aio_poll(ctx, true));
    }
    CHECK_EQ(runs, 6);
    for (int i = 0; i < 3; i++) {
        aio_bh_delete(bh[i]);
    }
    aio_context_unref(ctx);
}

TEST(posts_to_a_sleeping_context_cost_one)
{
    AioContext *ctx = attach_new();
    unsigned runs = 0;
    AioBH *bh[3];
    uint64_t before;

    for (int i = 0; i < 3; i++) {
        bh[i] = aio_bh_new(ctx, count, &runs);
    }
    before = notifications();
    CHECK(notify_prepare_sleep(ctx, false));
    run_in_thread(schedule_three, bh);
    run_in_thread(schedule_three, bh);
    notify_woken(ctx);
    CHECK_EQ(notifications(), before + 1);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(runs, 3);
    for (int i = 0; i < 3; i++) {
        aio_bh_delete(bh[i]);
    }
    aio_context_unref(ctx);
}

static void schedule_idle(void *bh)
{
    aio_bh_schedule_idle(bh);
}

TEST(an_idle_one_wakes_a_sleeping_context_too)
{
    AioContext *ctx = attach_new();
    unsigned runs = 0;
    AioBH *bh = aio_bh_new(ctx, count, &runs);
    uint64_t before = notifications();

    CHECK(notify_prepare_sleep(ctx, false));
    run_in_thread(schedule_idle, bh);
    notify_woken(ctx);
    CHECK_EQ(notifications(), before + 1);
    aio_poll(ctx, false);
    CHECK_EQ(runs, 1);
    aio_bh_delete(bh);
    aio_context_unref(ctx);
}

static void post_one(void *ctx)
{
    aio_bh_schedule_oneshot(ctx, nothing, NULL);
}

/* What came before it fell asleep keeps it from sleeping. */
TEST(it_does_not_fall_asleep_over_a_post)
{
    AioContext *ctx = attach_new();
    uint64_t before = notifications();

    run_in_thread(post_one, ctx);
    CHECK(!notify_prepare_sleep(ctx, false));
    CHECK_EQ(load_relaxed(&ctx->wake), WAKE_AWAKE);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(notifications(), before);
    aio_context_unref(ctx);
}

TEST(it_falls_asleep_over_an_idle_one_that_it_knows_of)
{
    AioContext *ctx = attach_new();
    unsigned runs = 0;
    AioBH *bh = aio_bh_new(ctx, count, &runs);

    aio_bh_schedule_idle(bh);
    CHECK(!notify_prepare_sleep(ctx, false));
    CHECK(notify_prepare_sleep(ctx, true));
    notify_woken(ctx);
    aio_bh_schedule(bh); /* it is urgent now */
    CHECK(!notify_prepare_sleep(ctx, true));
    aio_bh_delete(bh);
    aio_context_unref(ctx);
}

/* It sleeps, or is about to, unless it finds a post. */
static void await_sleep(AioContext *ctx)
{
    while (load_relaxed(&ctx->wake) != WAKE_SLEEPING) {
        sched_yield();
    }
}

typedef struct Nap {
    AioContext *ctx;
    sem_t scheduled; /* and the event, if any, has been set */
    sem_t noted;
    uint64_t calls; /* of the kernel, before the sleep */
} Nap;

static void prepare_nap(void *opaque)
{
    Nap *nap = opaque;

    gate_pass(&nap->scheduled);
    nap->ctx->poller.ops->wait(nap->ctx, 0); /* takes an event that was late */
    nap->calls = os_counter(OS_COUNT_SYSCALLS);
    gate_open(&nap->noted);
}

/*
 * Return when the loop sleeps.  SLEEPING does not tell that: it comes before
 * the last look at what was posted, and a post that this look finds costs
 * nothing.  But the next system call after a callback is the wait, which comes
 * after that look; and without an event it is a sleep.
 */
static void await_nap(AioContext *ctx)
{
    Nap nap = {.ctx = ctx};

    gate_init(&nap.scheduled);
    gate_init(&nap.noted);
    aio_bh_schedule_oneshot(ctx, prepare_nap, &nap);
    gate_open(&nap.scheduled);
    gate_pass(&nap.noted);
    while (os_counter(OS_COUNT_SYSCALLS) == nap.calls) {
        sched_yield();
    }
    sem_destroy(&nap.scheduled);
    sem_destroy(&nap.noted);
}

TEST(a_loop_that_really_sleeps_costs_one)
{
    LoopThread loop;

    loop_thread_start(&loop, "sleeper");
    for (unsigned long i = harness_load(500); i > 0; i--) {
        uint64_t before;

        await_nap(loop.ctx);
        before = notifications();
        loop_flush(loop.ctx);
        CHECK_EQ(notifications(), before + 1);
    }
    loop_thread_stop(&loop);
}

/* --- wake-ups -------------------------------------------------------------*/

enum {
    MANY = 10
};

static void park(void *opaque)
{
    coroutine_yield();
    ++*(unsigned *)opaque;
}

static void wake_all(void *opaque)
{
    Coroutine **co = opaque;

    for (int i = 0; i < MANY; i++) {
        aio_co_wake(co[i]);
    }
}

static void wake_chain(void *opaque)
{
    Coroutine **co = opaque;
    WakeChain chain = {0};

    for (int i = 0; i < MANY; i++) {
        wake_claim_to(&chain, co[i], "wake_chain");
    }
    wake_deliver_chain(&chain);
}

static void wake_many(void (*wake)(void *co))
{
    AioContext *ctx = attach_new();
    Coroutine *co[MANY];
    unsigned runs = 0;
    uint64_t before = notifications();

    for (int i = 0; i < MANY; i++) {
        co[i] = coroutine_create(park, &runs);
        coroutine_enter(co[i]);
    }
    CHECK(notify_prepare_sleep(ctx, false));
    run_in_thread(wake, co);
    notify_woken(ctx);
    CHECK_EQ(notifications(), before + 1);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(runs, MANY);
    aio_context_unref(ctx);
}

TEST(many_wakeups_of_a_sleeping_context_cost_one)
{
    wake_many(wake_all);
}

TEST(a_chain_of_wakeups_costs_one)
{
    wake_many(wake_chain);
}

/* One for each context, however they are mixed. */
TEST(a_chain_of_wakeups_costs_one_for_each_context)
{
    AioContext *ctx = attach_new();
    AioContext *other;
    Coroutine *co[MANY];
    unsigned runs = 0;
    uint64_t before;

    CHECK_EQ(aio_context_new(&other, NULL), 0);
    for (int i = 0; i < MANY; i++) {
        co[i] = coroutine_create(park, &runs);
        if (i % 2) {
            coroutine_count_out(os_thread(), co[i]);
            co[i]->home = &other->home; /* not counted, as on a move */
        } else {
            coroutine_enter(co[i]);
        }
    }
    CHECK(notify_prepare_sleep(ctx, false));
    CHECK(notify_prepare_sleep(other, false));
    before = notifications();
    run_in_thread(wake_chain, co);
    CHECK_EQ(notifications(), before + 2);
    notify_woken(ctx);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(runs, MANY / 2);
    aio_context_unref(ctx);
    notify_woken(other);
    CHECK(aio_poll(other, true));
    for (int i = 1; i < MANY; i += 2) {
        coroutine_enter(co[i]);
    }
    CHECK_EQ(runs, MANY);
    aio_context_unref(other);
}

TEST(wakeups_at_home_cost_none)
{
    AioContext *ctx = attach_new();
    Coroutine *co[MANY];
    unsigned runs = 0;
    uint64_t before = notifications();

    for (int i = 0; i < MANY; i++) {
        co[i] = coroutine_create(park, &runs);
        coroutine_enter(co[i]);
    }
    coroutine_enter(coroutine_create(wake_all, co));
    CHECK_EQ(runs, MANY);
    CHECK_EQ(notifications(), before);
    aio_context_unref(ctx);
}

/* --- aio_notify() ---------------------------------------------------------*/

static void notify_thrice(void *ctx)
{
    aio_notify(ctx);
    aio_notify(ctx);
    aio_notify(ctx);
}

TEST(notify_before_a_pass_keeps_it_from_sleeping)
{
    AioContext *ctx = attach_new();
    uint64_t before = notifications();

    notify_thrice(ctx);
    run_in_thread(notify_thrice, ctx);
    CHECK_EQ(notifications(), before);
    CHECK(!aio_poll(ctx, true));
    /* That was for one pass, however often it was called. */
    CHECK(notify_prepare_sleep(ctx, false));
    notify_woken(ctx);
    aio_context_unref(ctx);
}

TEST(notify_costs_one_if_the_loop_sleeps)
{
    AioContext *ctx = attach_new();
    uint64_t before = notifications();

    CHECK(notify_prepare_sleep(ctx, false));
    run_in_thread(notify_thrice, ctx);
    CHECK_EQ(notifications(), before + 1);
    CHECK(notify_requested(ctx));
    CHECK(!notify_requested(ctx));
    aio_context_unref(ctx);
}

TEST(notify_outlasts_passes_that_would_not_have_slept)
{
    AioContext *ctx = attach_new();

    aio_notify(ctx);
    CHECK(!aio_poll(ctx, false));
    post_one(ctx);
    CHECK(aio_poll(ctx, true));
    CHECK(!aio_poll(ctx, false));
    CHECK(!aio_poll(ctx, true));
    aio_context_unref(ctx);
}

static void poll_nested(void *ctx)
{
    CHECK(!aio_poll(ctx, true));
}

/* A nested pass takes it, and the outer one does not sleep for that. */
TEST(notify_reaches_a_nested_pass)
{
    AioContext *ctx = attach_new();

    aio_notify(ctx);
    aio_bh_schedule_oneshot(ctx, poll_nested, ctx);
    CHECK(aio_poll(ctx, true));
    CHECK(notify_prepare_sleep(ctx, false));
    notify_woken(ctx);
    aio_context_unref(ctx);
}

/* An event that comes late ends one sleep early, and no second one. */
TEST(a_late_event_is_harmless)
{
    AioContext *ctx = attach_new();
    unsigned runs = 0;
    AioBH *bh = aio_bh_new(ctx, count, &runs);
    int64_t begin_ns;

    os_event_set(ctx->event);
    CHECK(!aio_poll(ctx, true));
    begin_ns = aio_clock_ns(AIO_CLOCK_MONOTONIC);
    run_in_thread(schedule_idle, bh);
    while (runs < 1) {
        CHECK(!aio_poll(ctx, true));
    }
    /* It ran because its time had come, not as the event was still set. */
    CHECK(aio_clock_ns(AIO_CLOCK_MONOTONIC) - begin_ns >= 10000000);
    aio_bh_delete(bh);
    aio_context_unref(ctx);
}

typedef struct Ticker {
    AioContext *ctx;
    unsigned long data;   /* plain: written before the notification */
    unsigned long passes; /* atomic */
    unsigned long most;
    sem_t ready;
} Ticker;

/* Each pass blocks, ends by a notification, and sees what came with it. */
static void tick(void *opaque)
{
    Ticker *ticker = opaque;

    aio_context_attach(ticker->ctx);
    gate_open(&ticker->ready);
    for (unsigned long i = 1; i <= ticker->most; i++) {
        CHECK(!aio_poll(ticker->ctx, true));
        CHECK_EQ(ticker->data, i);
        store_release(&ticker->passes, i);
    }
}

TEST(each_notification_ends_one_pass_and_carries_data)
{
    static Ticker ticker; /* TSan does not watch the fields of a local */
    BareThread thread;

    ticker.most = harness_load(5000);
    CHECK_EQ(aio_context_new(&ticker.ctx, NULL), 0);
    gate_init(&ticker.ready);
    bare_thread_start(&thread, tick, &ticker);
    gate_pass(&ticker.ready);
    for (unsigned long i = 1; i <= ticker.most; i++) {
        if (i % 3 == 0) {
            await_sleep(ticker.ctx);
        }
        ticker.data = i;
        aio_notify(ticker.ctx);
        while (load_acquire(&ticker.passes) < i) {
            sched_yield();
        }
    }
    bare_thread_join(&thread);
    aio_context_unref(ticker.ctx);
}

TEST_MAIN()
