/* SPDX-License-Identifier: MIT */
/*
 * Timers that other threads arm and delete while the loop runs them
 * (loop/timer.c): what was armed runs; when a deletion has returned, nobody
 * touches the timer.
 */
#include "base/atomic.h"
#include "explore.h"
#include "loop/context.h"
#include "os/memory.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/timer.h>

#define FAR_NS INT64_MAX

typedef struct Clock {
    AioTimer timer;
    unsigned runs;        /* plain: the home thread's, then the deleter's */
    bool nested;          /* the callback polls, and arms itself once more */
    struct Clock *victim; /* or polls, and deletes this */
} Clock;

static AioContext *ctx, *other;
static Clock *clock_0, *clock_1;
static uint32_t said; /* atomic */
static bool heard;    /* the home thread's */
static bool stop;
static AioBHStorage storage;

static void tick(void *opaque)
{
    Clock *clock = opaque;

    clock->runs++;
    heard |= load_relaxed(&said);
    if (clock->nested) {
        aio_poll(ctx, false);
        clock->nested = false;
        aio_timer_mod_ns(&clock->timer, 0);
    }
    if (clock->victim) {
        aio_poll(clock->timer.context_, false);
        aio_timer_del(&clock->victim->timer);
        os_free(clock->victim);
    }
}

static Clock *clock_new(AioContext *home)
{
    Clock *clock = os_alloc(sizeof(*clock));

    aio_timer_init(&clock->timer, home, AIO_CLOCK_MONOTONIC, tick, clock);
    return clock;
}

static void make_context(void)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    clock_0 = clock_new(ctx);
    clock_1 = clock_new(ctx);
}

static void set_stop(void *opaque)
{
    (void)opaque;
    stop = true;
}

/* --- deleted from elsewhere -----------------------------------------------*/

static void poll_until_stop(void)
{
    explore_begin();
    while (!stop) {
        aio_poll(ctx, true);
    }
    explore_end();
    os_free(clock_1);
    aio_context_unref(ctx);
}

static void poll_with_a_due_timer(void)
{
    aio_context_attach(ctx);
    aio_timer_mod_ns(&clock_0->timer, 0);
    poll_until_stop();
}

static void delete_and_free(void)
{
    explore_begin();
    aio_timer_del(&clock_0->timer);
    os_free(clock_0);
    aio_bh_schedule_oneshot_embedded(ctx, &storage, set_stop, NULL);
    explore_end();
}

EXPLORE(a_due_timer_is_deleted, .setup = make_context,
        .threads = {poll_with_a_due_timer, delete_and_free},
        .mutants = {
            {MUTANT_TIMER_DEL_NO_LOCK, "use after free", "delete_and_free",
             false},
            {MUTANT_TIMER_FIRED_AS_IDLE, "use after free", "delete_and_free",
             false},
        })

/* The home thread serves the deletion in the midst of the callback, which arms
 * the timer after that. */
static void poll_with_a_nested_timer(void)
{
    clock_0->nested = true;
    poll_with_a_due_timer();
}

EXPLORE(a_timer_is_deleted_that_runs, .setup = make_context,
        .threads = {poll_with_a_nested_timer, delete_and_free},
        .marks = {"timer: a deletion waits for the callback"},
        .mutants = {{MUTANT_TIMER_FRAME_MISSED, "use after free",
                     "delete_and_free", false}})

/* --- armed from elsewhere -------------------------------------------------*/

static void poll_until_heard(void)
{
    aio_context_attach(ctx);
    aio_timer_mod_ns(&clock_0->timer, 0);
    explore_begin();
    while (!heard) {
        aio_poll(ctx, true);
    }
    explore_end();
    while (aio_poll(ctx, false)) {
    }
    CHECK(!aio_timer_pending(&clock_0->timer));
    os_free(clock_0);
    os_free(clock_1);
    aio_context_unref(ctx);
}

static void say_and_arm(void)
{
    explore_begin();
    store_relaxed(&said, 1u);
    aio_timer_mod_ns(&clock_0->timer, 0);
    explore_end();
}

EXPLORE(a_due_timer_is_armed_again, .setup = make_context,
        .threads = {poll_until_heard, say_and_arm})

static void poll_until_both_ran(void)
{
    aio_context_attach(ctx);
    explore_begin();
    while (!clock_0->runs || !clock_1->runs) {
        aio_poll(ctx, true);
    }
    explore_end();
    os_free(clock_0);
    os_free(clock_1);
    aio_context_unref(ctx);
}

static void arm_both(void)
{
    explore_begin();
    aio_timer_mod_ns(&clock_0->timer, 0);
    aio_timer_mod_ns(&clock_1->timer, 0);
    explore_end();
}

EXPLORE(two_are_armed, .setup = make_context,
        .threads = {poll_until_both_ran, arm_both},
        .marks = {"timer: a request goes with the post of another"},
        .mutants = {
            {MUTANT_TIMER_POSTED_LATE, "lost wake-up", "await_epoll", false}})

/* --- armed and deleted from elsewhere -------------------------------------*/

static void attach_and_poll_until_stop(void)
{
    aio_context_attach(ctx);
    poll_until_stop();
}

static void arm_and_delete(void)
{
    explore_begin();
    aio_timer_mod_ns(&clock_0->timer, 0);
    aio_timer_del(&clock_0->timer);
    os_free(clock_0);
    aio_bh_schedule_oneshot_embedded(ctx, &storage, set_stop, NULL);
    explore_end();
}

EXPLORE(armed_and_deleted, .setup = make_context,
        .threads = {attach_and_poll_until_stop, arm_and_delete},
        .marks = {"timer: a request is taken back",
                  "timer: deleted without the home thread"})

/* --- two who delete each other's ------------------------------------------*/

static void make_two_contexts(void)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    CHECK_EQ(aio_context_new(&other, NULL), 0);
    clock_0 = clock_new(ctx);
    clock_1 = clock_new(other);
}

static void let_go(void *opaque)
{
    *(bool *)opaque = true;
}

/* Each deletes the other's, tells him so, and polls until its own is gone. */
static void delete_others(int i, AioContext *own, Clock *mine,
                          AioContext *theirs_context, Clock *theirs)
{
    static AioBHStorage told[2];
    static bool gone[2];

    aio_context_attach(own);
    aio_timer_mod_ns(&mine->timer, FAR_NS);
    explore_begin();
    aio_timer_del(&theirs->timer);
    os_free(theirs);
    aio_bh_schedule_oneshot_embedded(theirs_context, &told[i], let_go,
                                     &gone[!i]);
    while (!gone[i]) {
        aio_poll(own, true);
    }
    explore_end();
    aio_context_unref(own);
}

static void delete_right(void)
{
    delete_others(0, ctx, clock_0, other, clock_1);
}

static void delete_left(void)
{
    delete_others(1, other, clock_1, ctx, clock_0);
}

EXPLORE(two_delete_each_others, .setup = make_two_contexts,
        .threads = {delete_right, delete_left},
        .marks = {"timer: a deleter looks around"})

/* The one sleeps until the callback of the other has returned, which wants a
 * timer of his deleted. */
static void delete_one_that_runs(void)
{
    aio_context_attach(ctx);
    aio_timer_mod_ns(&clock_0->timer, FAR_NS);
    explore_begin();
    aio_timer_del(&clock_1->timer);
    stop = clock_1->runs == 0;
    aio_bh_schedule_oneshot_embedded(other, &storage, let_go, &heard);
    explore_end();
    if (stop) {
        aio_timer_del(&clock_0->timer);
        os_free(clock_0);
    }
    os_free(clock_1);
    while (aio_poll(ctx, false)) {
    }
    aio_context_unref(ctx);
}

static void run_one_that_deletes(void)
{
    aio_context_attach(other);
    clock_1->victim = clock_0;
    aio_timer_mod_ns(&clock_1->timer, 0);
    explore_begin();
    while (!heard) {
        aio_poll(other, true);
    }
    explore_end();
    aio_context_unref(other);
}

EXPLORE(deleted_by_a_callback_that_is_waited_for, .setup = make_two_contexts,
        .threads = {run_one_that_deletes, delete_one_that_runs},
        .marks = {"timer: a deletion waits for the callback",
                  "timer: a deleter looks around"},
        .mutants = {
            {MUTANT_TIMER_NO_POKE, "lost wake-up", "await_deletion", false}})

EXPLORE_MAIN()
