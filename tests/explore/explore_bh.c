/* SPDX-License-Identifier: MIT */
/*
 * Bottom halves (loop/bh.c): what was written before a call that schedules is
 * seen by a run of the callback; nobody touches one that is gone.
 */
#include "base/atomic.h"
#include "explore.h"
#include "loop/context.h"
#include "os/memory.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/timer.h>

static AioContext *ctx;
static AioBH *bh;
static uint32_t said[2]; /* atomic */
static bool heard[2];    /* the home thread's */
static unsigned runs;
static bool stop;

static void listen(void *opaque)
{
    (void)opaque;
    runs++;
    for (int i = 0; i < 2; i++) {
        heard[i] |= load_relaxed(&said[i]);
    }
}

static void make_bh(void)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    bh = aio_bh_new(ctx, listen, NULL);
}

static void say(int i)
{
    store_relaxed(&said[i], 1u);
    aio_bh_schedule(bh);
}

static void open_loop(void)
{
    aio_context_attach(ctx);
    explore_begin();
}

static void close_loop(void)
{
    explore_end();
    aio_bh_delete(bh);
    while (aio_poll(ctx, false)) {
    }
    aio_context_unref(ctx);
}

/* --- scheduled by two -----------------------------------------------------*/

static void poll_until_both_heard(void)
{
    open_loop();
    while (!heard[0] || !heard[1]) {
        aio_poll(ctx, true);
    }
    close_loop();
}

static void say_first(void)
{
    explore_begin();
    say(0);
    explore_end();
}

static void say_second(void)
{
    explore_begin();
    say(1);
    explore_end();
}

EXPLORE(scheduled_by_two, .setup = make_bh,
        .threads = {poll_until_both_heard, say_first, say_second},
        .marks = {"bh: it is on its way already",
                  "bh: it ran while it was scheduled again"},
        .mutants = {
            {MUTANT_BH_EARLY_RETURN, "lost wake-up", "epoll_wait", true},
            {MUTANT_BH_CLEAR_PLAIN, "lost wake-up", "epoll_wait", true},
        })

/* --- scheduled by one, cancelled by another -------------------------------*/

static void poll_until_first_heard(void)
{
    open_loop();
    while (!heard[0]) {
        aio_poll(ctx, true);
    }
    close_loop();
}

/* Whatever was cancelled is scheduled again. */
static void cancel_then_schedule(void)
{
    explore_begin();
    aio_bh_cancel(bh);
    aio_bh_schedule(bh);
    explore_end();
}

EXPLORE(cancelled_and_scheduled_again, .setup = make_bh,
        .threads = {poll_until_first_heard, say_first, cancel_then_schedule},
        .marks = {"bh: it was cancelled in its place",
                  "bh: it is on its way already"},
        .mutants = {{MUTANT_BH_CANCEL_PLAIN, "data race", "post_push", false}})

/* --- cancelled on the home thread: it does not run ------------------------*/

static void cancel_at_home(void)
{
    bool scheduled;
    unsigned before;

    open_loop();
    aio_poll(ctx, false);
    scheduled = load_acquire(&said[1]);
    aio_bh_cancel(bh);
    before = runs;
    aio_poll(ctx, false);
    if (scheduled) {
        CHECK_EQ(runs, before); /* it has run before, or does not */
    }
    close_loop();
}

/* The last word is said when the call has returned. */
static void schedule_and_tell(void)
{
    explore_begin();
    aio_bh_schedule(bh);
    store_release(&said[1], 1u);
    explore_end();
}

EXPLORE(cancelled_at_home, .setup = make_bh,
        .threads = {cancel_at_home, schedule_and_tell})

/* --- idle, and then urgent ------------------------------------------------*/

static void poll_in_a_hurry(void)
{
    int64_t start;

    aio_context_attach(ctx);
    aio_bh_schedule_idle(bh);
    start = aio_clock_ns(AIO_CLOCK_MONOTONIC);
    explore_begin();
    while (!heard[0]) {
        aio_poll(ctx, true);
        /* Time passes only where all threads sleep. */
        CHECK_EQ(aio_clock_ns(AIO_CLOCK_MONOTONIC), start);
    }
    close_loop();
}

EXPLORE(an_idle_one_becomes_urgent, .setup = make_bh,
        .threads = {poll_in_a_hurry, say_first},
        .marks = {"bh: an idle one is hurried"},
        .mutants = {
            {MUTANT_BH_HURRY_QUIET, "failed check", "poll_in_a_hurry", false}})

static void poll_until_heard_at_once(void)
{
    int64_t start;

    aio_context_attach(ctx);
    start = aio_clock_ns(AIO_CLOCK_MONOTONIC);
    explore_begin();
    while (!heard[0]) {
        aio_poll(ctx, true);
        CHECK_EQ(aio_clock_ns(AIO_CLOCK_MONOTONIC), start);
    }
    close_loop();
}

static void schedule_idle(void)
{
    explore_begin();
    aio_bh_schedule_idle(bh);
    explore_end();
}

/* Which of the two pushes it is open; it may even be urgent before it is in
 * the list of those that are idle. */
EXPLORE(idle_for_one_and_urgent_for_another, .setup = make_bh,
        .threads = {poll_until_heard_at_once, say_first, schedule_idle},
        .marks = {"bh: an idle one is hurried",
                  "bh: it was hurried before it was pushed"},
        .mutants = {
            {MUTANT_BH_HURRY_MISSED, "failed check", "poll_until_heard_at_once",
             false},
            {MUTANT_BH_HURRY_NO_FENCE, "failed check",
             "poll_until_heard_at_once", true},
        })

/* An idle one comes while the home thread goes to sleep, for as long as it
 * takes, as there was none. */
static void poll_until_run_once(void)
{
    open_loop();
    while (!runs) {
        aio_poll(ctx, true);
    }
    close_loop();
}

EXPLORE(idle_from_elsewhere, .setup = make_bh,
        .threads = {poll_until_run_once, schedule_idle},
        .marks = {"notify: the thread is awake"},
        .mutants = {{MUTANT_NOTIFY_NO_FENCE_POLLER, "lost wake-up",
                     "notify_prepare_sleep", true},
                    {MUTANT_NOTIFY_NO_FENCE_NOTIFIER, "lost wake-up",
                     "context_notify_posted", true}})

/* The callback runs, and context and bottom half go, while the call that
 * scheduled is not through. */
static void poll_and_let_go(void)
{
    aio_context_attach(ctx);
    aio_bh_schedule_idle(bh);
    explore_begin();
    while (!heard[0]) {
        aio_poll(ctx, true);
    }
    aio_bh_delete(bh);
    while (aio_poll(ctx, false)) {
    }
    aio_context_unref(ctx);
    explore_end();
    context_reap(); /* who was last may have been no thread of a context */
}

EXPLORE(hurried_and_gone, .setup = make_bh,
        .threads = {poll_and_let_go, say_first},
        .marks = {"bh: an idle one is hurried"},
        .mutants = {
            {MUTANT_BH_HURRY_UNPINNED, "use after free", "hurry", false}})

/* --- deleted in its own callback ------------------------------------------*/

static void delete_self(void *opaque)
{
    (void)opaque;
    aio_bh_delete(bh);
    runs++;
}

static void make_bh_that_deletes_itself(void)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    bh = aio_bh_new(ctx, delete_self, NULL);
}

static void poll_until_run(void)
{
    aio_context_attach(ctx);
    explore_begin();
    while (!runs) {
        aio_poll(ctx, true);
    }
    explore_end();
    aio_context_unref(ctx);
}

static void schedule(void)
{
    explore_begin();
    aio_bh_schedule(bh);
    explore_end();
}

EXPLORE(deletes_itself, .setup = make_bh_that_deletes_itself,
        .threads = {poll_until_run, schedule},
        .mutants = {{MUTANT_BH_CONTEXT_AFTER_PUBLISH, "use after free",
                     "delete_self", false}})

/* --- deleted from elsewhere -----------------------------------------------*/

static void set_stop(void *opaque)
{
    (void)opaque;
    stop = true;
}

static void poll_until_stop(void)
{
    aio_context_attach(ctx);
    explore_begin();
    while (!stop) {
        aio_poll(ctx, true);
    }
    explore_end();
    aio_context_unref(ctx);
}

static void schedule_and_delete(void)
{
    static AioBHStorage storage;

    explore_begin();
    aio_bh_schedule(bh);
    aio_bh_delete(bh);
    aio_bh_schedule_oneshot_embedded(ctx, &storage, set_stop, NULL);
    explore_end();
}

EXPLORE(deleted_from_elsewhere, .setup = make_bh,
        .threads = {poll_until_stop, schedule_and_delete},
        .marks = {"bh: the home thread frees it"},
        .mutants = {
            {MUTANT_BH_FREED_TWICE, "use after free", "post_take_all", false},
            {MUTANT_BH_RUN_READS_LATE, "use after free", "schedule_and_delete",
             false},
        })

/* --- one-shots ------------------------------------------------------------*/

static void free_storage(void *opaque)
{
    heard[0] = load_relaxed(&said[0]);
    os_free(opaque);
}

static void poll_until_one_shots_ran(void)
{
    aio_context_attach(ctx);
    explore_begin();
    while (!heard[0] || !stop) {
        aio_poll(ctx, true);
    }
    explore_end();
    aio_bh_delete(bh);
    aio_context_unref(ctx);
}

/* One on the heap, and one whose callback frees the storage. */
static void schedule_one_shots(void)
{
    AioBHStorage *storage = os_alloc(sizeof(*storage));

    explore_begin();
    store_relaxed(&said[0], 1u);
    aio_bh_schedule_oneshot_embedded(ctx, storage, free_storage, storage);
    aio_bh_schedule_oneshot(ctx, set_stop, NULL);
    explore_end();
}

EXPLORE(one_shots, .setup = make_bh,
        .threads = {poll_until_one_shots_ran, schedule_one_shots})

EXPLORE_MAIN()
