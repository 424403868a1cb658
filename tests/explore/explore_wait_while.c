/* SPDX-License-Identifier: MIT */
/*
 * aio_wait_while() and aio_wait_kick() (loop/wait_while.c): whoever waits sees
 * the change that was followed by a kick.
 */
#include "base/atomic.h"
#include "explore.h"
#include "loop/context.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/wait.h>

static AioContext *ctx;
static uint32_t done; /* atomic */
static unsigned plain;
static AioBHStorage storage;
static bool ran;

static void make_context(void)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
}

/* --- a thread without a context -------------------------------------------*/

static void wait(void)
{
    explore_begin();
    aio_wait_while(NULL, !load_relaxed(&done));
    explore_end();
}

static void change_and_kick(void)
{
    explore_begin();
    store_relaxed(&done, 1u);
    aio_wait_kick();
    explore_end();
}

EXPLORE(one_waits, .threads = {wait, change_and_kick},
        .marks = {"wait-while: nobody waits, so nothing is woken"},
        .mutants = {
            {MUTANT_WAIT_KICK_NO_FENCE_KICKER, "lost wake-up", "wait()", true},
            {MUTANT_WAIT_KICK_NO_FENCE_WAITER, "lost wake-up", "wait()", true},
            {MUTANT_WAIT_KICK_EPOCH_LATE, "lost wake-up", "wait()", false},
        })
EXPLORE(two_wait, .threads = {wait, wait, change_and_kick},
        .mutants = {
            {MUTANT_WAIT_KICK_WAKES_ONE, "lost wake-up", "wait()", false}})

/* A kick without a change comes first: it may be what is seen. */
static void kick(void)
{
    explore_begin();
    aio_wait_kick();
    explore_end();
}

EXPLORE(one_waits_and_two_kick, .threads = {wait, change_and_kick, kick})

/* Two conditions that are changed one after the other. */
static void wait_for_two(void)
{
    explore_begin();
    aio_wait_while(NULL, load_relaxed(&done) < 1);
    aio_wait_while(NULL, load_relaxed(&done) < 2);
    explore_end();
}

static void change_twice(void)
{
    explore_begin();
    store_relaxed(&done, 1u);
    aio_wait_kick();
    store_relaxed(&done, 2u);
    aio_wait_kick();
    explore_end();
}

EXPLORE(one_waits_twice, .threads = {wait_for_two, change_twice})

/* --- a thread that polls --------------------------------------------------*/

static void poll_and_wait(void)
{
    aio_context_attach(ctx);
    explore_begin();
    aio_wait_while(NULL, !load_relaxed(&done));
    explore_end();
    aio_context_unref(ctx);
}

EXPLORE(one_polls_and_waits, .setup = make_context,
        .threads = {poll_and_wait, change_and_kick},
        .marks = {"wait-while: one that polls is notified"},
        .mutants = {{MUTANT_WAIT_KICK_POLLERS_MISSED, "data race",
                     "pollers_add", false}})
EXPLORE(one_polls_and_one_sleeps, .setup = make_context,
        .threads = {poll_and_wait, wait, change_and_kick})

/* The wait is over, and the context goes, while the kick is not through. */
static void poll_and_wait_and_let_go(void)
{
    aio_context_attach(ctx);
    explore_begin();
    aio_wait_while(NULL, !load_relaxed(&done));
    aio_context_unref(ctx);
    explore_end();
    context_reap();
}

EXPLORE(the_context_goes, .setup = make_context,
        .threads = {poll_and_wait_and_let_go, change_and_kick})

/* Another thread lets go of it, and the home thread has no other handle. */
static void poll_and_wait_without_handle(void)
{
    aio_context_attach(ctx);
    explore_begin();
    aio_wait_while(NULL, !load_relaxed(&done));
    explore_end();
    CHECK(!aio_context_current());
}

static void unref_and_change_and_kick(void)
{
    explore_begin();
    aio_context_unref(ctx);
    store_relaxed(&done, 1u);
    aio_wait_kick();
    explore_end();
}

EXPLORE(another_closes_the_context, .setup = make_context,
        .threads = {poll_and_wait_without_handle, unref_and_change_and_kick},
        .finish = context_reap,
        .marks = {"context: the last handle went just before it was wanted"},
        .mutants = {{MUTANT_CONTEXT_REF_BLIND, "misuse", "no references left",
                     false}})

/* A wait in a callback takes the notification that the outer one has had. */
static void wait_within(void *opaque)
{
    (void)opaque;
    aio_wait_while(NULL, load_relaxed(&done) < 1);
    ran = true;
}

static void poll_and_wait_nested(void)
{
    aio_context_attach(ctx);
    aio_bh_schedule_oneshot_embedded(ctx, &storage, wait_within, NULL);
    explore_begin();
    aio_wait_while(NULL, load_relaxed(&done) < 2);
    explore_end();
    while (!ran) {
        aio_poll(ctx, false);
    }
    aio_context_unref(ctx);
}

EXPLORE(one_waits_in_a_callback, .setup = make_context,
        .threads = {poll_and_wait_nested, change_twice})

/* --- aio_wait_bh_oneshot() ------------------------------------------------*/

static void note(void *opaque)
{
    (void)opaque;
    plain = 1;
}

static void poll_until_noted(void)
{
    aio_context_attach(ctx);
    explore_begin();
    while (!plain) {
        aio_poll(ctx, true);
    }
    explore_end();
    aio_context_unref(ctx);
}

static void run_and_wait(void)
{
    explore_begin();
    aio_wait_bh_oneshot(ctx, note, NULL);
    CHECK_EQ(plain, 1);
    explore_end();
}

EXPLORE(run_in_another_thread, .setup = make_context,
        .threads = {poll_until_noted, run_and_wait})

EXPLORE_MAIN()
