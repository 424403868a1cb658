/* SPDX-License-Identifier: MIT */
/*
 * Notification (loop/notify.c): nobody sleeps while there is something to do.
 */
#include "base/atomic.h"
#include "explore.h"
#include "loop/context.h"

#include <coaio/bh.h>
#include <coaio/context.h>

static AioContext *ctx, *other;
static AioBHStorage storage[4];
static bool ran[4];
static uint32_t flag; /* atomic */

static void make_context(void)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
}

static void make_two(void)
{
    make_context();
    CHECK_EQ(aio_context_new(&other, NULL), 0);
}

static void note(void *opaque)
{
    *(bool *)opaque = true;
}

static void post(AioContext *to, int i)
{
    aio_bh_schedule_oneshot_embedded(to, &storage[i], note, &ran[i]);
}

static void open_loop(void)
{
    aio_context_attach(ctx);
    explore_begin();
}

static void close_loop(void)
{
    explore_end();
    while (aio_poll(ctx, false)) {
    }
    aio_context_unref(ctx);
}

/* --- one poller, one worker -----------------------------------------------*/

static void poll_until_ran(void)
{
    open_loop();
    while (!ran[0]) {
        aio_poll(ctx, true);
    }
    close_loop();
}

static void post_first(void)
{
    explore_begin();
    post(ctx, 0);
    explore_end();
}

EXPLORE(one_poller_one_worker, .setup = make_context,
        .threads = {poll_until_ran, post_first},
        .marks = {"notify: the event is set",
                  "notify: the system call is saved",
                  "notify: it finds a post on its way to sleep"},
        .mutants = {{MUTANT_POST_SLEEP_PLAIN, "lost wake-up", "post_sleep",
                     false}})

static void poll_until_both_ran(void)
{
    open_loop();
    while (!ran[0] || !ran[1]) {
        aio_poll(ctx, true);
    }
    close_loop();
}

static void post_second(void)
{
    explore_begin();
    post(ctx, 1);
    explore_end();
}

EXPLORE(one_poller_two_workers, .setup = make_context,
        .threads = {poll_until_both_ran, post_first, post_second},
        .marks = {"notify: another has found the sleeper"})

/* It has a reference, until it is through. */
static void make_context_for_two(void)
{
    make_context();
    aio_context_ref(ctx);
}

static void notify_and_let_go(void)
{
    explore_begin();
    aio_notify(ctx);
    aio_context_unref(ctx);
    explore_end();
}

static void poll_until_ran_and_let_go(void)
{
    aio_context_attach(ctx);
    explore_begin();
    while (!ran[0]) {
        aio_poll(ctx, true);
    }
    aio_context_unref(ctx);
    explore_end();
    CHECK(!aio_context_current()); /* it lets go of one closed elsewhere */
    context_reap(); /* who was last may have been no thread of a context */
}

/* The context may be gone when the poster gets to setting the event. */
EXPLORE(woken_by_a_post_and_by_another, .setup = make_context_for_two,
        .threads = {poll_until_ran_and_let_go, post_first, notify_and_let_go},
        .marks = {"notify: somebody else was first"},
        .mutants = {
            {MUTANT_NOTIFY_UNPINNED, "use after free", "wake_sleeper", false}})

/* Looks for a while before it sleeps. */
static void make_busy_context(void)
{
    make_context();
    CHECK_EQ(aio_context_set_poll_params(ctx, 100000, 0, 0), 0);
}

static void poll_busily(void)
{
    aio_context_attach(ctx);
    aio_poll(ctx, false);
    ctx->poll_ns = 1000;
    explore_begin();
    while (!ran[0]) {
        aio_poll(ctx, true);
    }
    close_loop();
}

EXPLORE(one_busy_poller_one_worker, .setup = make_busy_context,
        .threads = {poll_busily, post_first})

/* --- aio_notify(): no post, but what was written before is seen -----------*/

static void poll_until_flag(void)
{
    open_loop();
    while (!load_relaxed(&flag)) {
        aio_poll(ctx, true);
    }
    close_loop();
}

static void raise_flag(void)
{
    explore_begin();
    store_relaxed(&flag, 1u);
    aio_notify(ctx);
    explore_end();
}

EXPLORE(a_flag_and_a_notification, .setup = make_context,
        .threads = {poll_until_flag, raise_flag},
        .marks = {"notify: a call without a post sets the event",
                  "notify: a request keeps it from sleeping"},
        .mutants = {
            {MUTANT_NOTIFY_RELAXED, "lost wake-up", "aio_notify", true}})

static void post_and_raise_flag(void)
{
    explore_begin();
    post(ctx, 0);
    store_relaxed(&flag, 1u);
    aio_notify(ctx);
    explore_end();
}

/* The notification comes when the loop has been woken, and goes round. */
EXPLORE(a_post_then_a_notification, .setup = make_context,
        .threads = {poll_until_flag, post_and_raise_flag},
        .mutants = {{MUTANT_NOTIFY_CLEAR_LATE, "lost wake-up",
                     "notify_requested", false}})

/* --- nested polls ---------------------------------------------------------*/

static void poll_once_within(void *opaque)
{
    aio_poll(ctx, false);
    note(opaque);
}

static void poll_with_a_nested_look(void)
{
    aio_context_attach(ctx);
    aio_bh_schedule_oneshot_embedded(ctx, &storage[2], poll_once_within,
                                     &ran[2]);
    explore_begin();
    while (!ran[0] || !ran[2]) {
        aio_poll(ctx, true);
    }
    close_loop();
}

EXPLORE(a_nested_look, .setup = make_context,
        .threads = {poll_with_a_nested_look, post_first})

static void wait_for_flag_within(void *opaque)
{
    aio_poll(ctx, false);
    while (!load_relaxed(&flag)) {
        aio_poll(ctx, true);
    }
    note(opaque);
}

static void poll_with_a_nested_wait(void)
{
    aio_context_attach(ctx);
    aio_bh_schedule_oneshot_embedded(ctx, &storage[2], wait_for_flag_within,
                                     &ran[2]);
    explore_begin();
    while (!ran[2]) {
        aio_poll(ctx, true);
    }
    close_loop();
}

EXPLORE(a_nested_look_and_a_nested_wait, .setup = make_context,
        .threads = {poll_with_a_nested_wait, raise_flag},
        .mutants = {{MUTANT_NOTIFY_NONBLOCKING_EATS, "lost wake-up",
                     "notify_prepare_sleep", true}})

static void wait_for_first_within(void *opaque)
{
    while (!ran[0]) {
        aio_poll(ctx, true);
    }
    note(opaque);
}

/* The outer poll sleeps, too: the worker posts what waits for his next post. */
static void poll_for_second(void)
{
    open_loop();
    while (!ran[2]) {
        aio_poll(ctx, true);
    }
    close_loop();
}

static void post_a_waiter_and_first(void)
{
    explore_begin();
    aio_bh_schedule_oneshot_embedded(ctx, &storage[2], wait_for_first_within,
                                     &ran[2]);
    post(ctx, 0);
    explore_end();
}

EXPLORE(a_blocking_poll_in_a_blocking_poll, .setup = make_context,
        .threads = {poll_for_second, post_a_waiter_and_first},
        .mutants = {{MUTANT_NOTIFY_DISPATCHING, "lost wake-up",
                     "epoll_wait", false}})

/* --- two contexts ---------------------------------------------------------*/

static void answer(void *opaque)
{
    (void)opaque;
    ran[1] = true;
    post(ctx, 0);
}

static void poll_other(void)
{
    aio_context_attach(other);
    explore_begin();
    while (!ran[1]) {
        aio_poll(other, true);
    }
    explore_end();
    aio_context_unref(other);
}

/* Each has something for the other, and the worker has for both. */
static void ask_and_poll(void)
{
    open_loop();
    aio_bh_schedule_oneshot_embedded(other, &storage[1], answer, NULL);
    while (!ran[0]) {
        aio_poll(ctx, true);
    }
    close_loop();
}

static void notify_both(void)
{
    explore_begin();
    aio_notify(ctx);
    aio_notify(other);
    explore_end();
}

EXPLORE(two_contexts_and_a_worker, .setup = make_two,
        .threads = {ask_and_poll, poll_other, notify_both})

EXPLORE_MAIN()
