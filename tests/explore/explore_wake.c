/* SPDX-License-Identifier: MIT */
/*
 * aio_co_wake() and aio_co_schedule() (loop/wake.c) against yield, poll, and
 * the end of contexts and threads.
 */
#include "base/atomic.h"
#include "cothread.h"
#include "loop/context.h"
#include "os/thread.h"

#include <coaio/wake.h>
#include <stdlib.h>

static Coroutine *co;
static bool ended;      /* of the coroutine's home */
static uint32_t parked; /* atomic */

static void make_one(void)
{
    co_make_contexts(1);
}

static void make_two(void)
{
    co_make_contexts(2);
}

static void coroutine_fn yield_once(void *opaque)
{
    coroutine_yield();
    *(bool *)opaque = true;
}

/* --- waking one that is about to yield ------------------------------------*/

static void wake_it(void)
{
    explore_begin();
    aio_co_wake(co);
    explore_end();
}

static void enter_and_end_context(void)
{
    aio_context_attach(co_context[0]);
    co = coroutine_create(yield_once, &ended);
    aio_co_enter(co_context[0], co);
    explore_begin();
    while (!ended) {
        aio_poll(co_context[0], true);
    }
    /* At once, whatever the waker still does. */
    aio_context_unref(co_context[0]);
    explore_end();
}

/* The waker may have been the last to hold it, and left it to be reaped. */
static void reap(void)
{
    context_reap();
}

EXPLORE(woken_and_the_context_ends, .setup = make_one,
        .threads = {enter_and_end_context, wake_it}, .finish = reap,
        .marks = {"context: the last pin goes elsewhere"},
        .mutants = {{MUTANT_WAKE_CONTEXT_FREED, "use after free",
                     "sweep_if_stopped", false}})

static void coroutine_fn begin_and_yield(void *opaque)
{
    explore_begin();
    yield_once(opaque);
}

/* It has not yielded yet when it is woken. */
static void enter_while_woken(void)
{
    aio_context_attach(co_context[0]);
    co = coroutine_create(begin_and_yield, &ended);
    coroutine_enter(co);
    while (!ended) {
        aio_poll(co_context[0], true);
    }
    explore_end();
    aio_context_unref(co_context[0]);
}

EXPLORE(woken_before_it_yields, .setup = make_one,
        .threads = {enter_while_woken, wake_it})

/* Two wake it at once: the second is told. */
EXPLORE(woken_by_two, .setup = make_one,
        .threads = {enter_and_end_context, wake_it, wake_it},
        .fails = "misuse: aio_co_wake",
        .mutants = {{MUTANT_WAKE_TWICE, "data race", "post_coroutine", false}})

/* --- moving ---------------------------------------------------------------*/

static void coroutine_fn move_there(void *opaque)
{
    co_reschedule_self(co_context[1]);
    CHECK(aio_context_current() == co_context[1]);
    *(bool *)opaque = true;
}

static void send_it(void)
{
    aio_context_attach(co_context[0]);
    explore_begin();
    coroutine_enter(coroutine_create(move_there, &co_done[1]));
    aio_context_unref(co_context[0]);
    explore_end();
}

static void receive_it(void)
{
    aio_context_attach(co_context[1]);
    explore_begin();
    while (!co_done[1]) {
        aio_poll(co_context[1], true);
    }
    aio_context_unref(co_context[1]);
    explore_end();
}

EXPLORE(moves_to_another_context, .setup = make_two,
        .threads = {send_it, receive_it},
        .marks = {"wake: moves when it has yielded"},
        .mutants = {{MUTANT_WAKE_NOT_QUIET, "data race", "quiet()", false}})

/* --- again and again ------------------------------------------------------*/

static void coroutine_fn yield_twice(void *opaque)
{
    store_relaxed(&parked, 1u);
    coroutine_yield();
    store_relaxed(&parked, 2u);
    yield_once(opaque);
}

static void enter_one_that_yields_twice(void)
{
    aio_context_attach(co_context[0]);
    co = coroutine_create(yield_twice, &ended);
    explore_begin();
    coroutine_enter(co);
    while (!ended) {
        aio_poll(co_context[0], true);
    }
    explore_end();
    aio_context_unref(co_context[0]);
}

/* All that the second wake knows of the first is that its claim has gone. */
static void wake_twice(void)
{
    explore_begin();
    while (load_relaxed(&parked) < 1) {
        spin_hint();
    }
    aio_co_wake(co);
    while (load_relaxed(&parked) < 2) {
        spin_hint();
    }
    aio_co_wake(co);
    explore_end();
}

EXPLORE(woken_again_as_it_yields, .setup = make_one,
        .threads = {enter_one_that_yields_twice, wake_twice},
        .mutants = {{MUTANT_WAKE_UNCLAIM_RELAXED, "data race", "post_coroutine",
                     false}})

/* Two want it, each in another context: the second is told. */
static void fetch_first(void)
{
    aio_context_attach(co_context[0]);
    co = coroutine_create(yield_once, &ended);
    explore_begin();
    aio_co_schedule(co_context[0], co);
    explore_end();
}

static void fetch_second(void)
{
    explore_begin();
    aio_co_schedule(co_context[1], co);
    explore_end();
}

EXPLORE(fetched_by_two, .setup = make_two,
        .threads = {fetch_first, fetch_second}, .leaks = true,
        .fails = "misuse: aio_co_schedule",
        .mutants = {
            {MUTANT_WAKE_TWICE, "data race", "coroutine_claim()", false}})

/* Somebody else schedules it where he polls, while its home polls, too. */
static void coroutine_fn yield_and_tell(void *opaque)
{
    coroutine_yield();
    CHECK(aio_context_current() == co_context[1]);
    *(bool *)opaque = true;
}

static void be_home(void)
{
    aio_context_attach(co_context[0]);
    co = coroutine_create(yield_and_tell, &co_done[1]);
    coroutine_enter(co);
    explore_begin();
    while (!load_acquire(&parked)) { /* here: has gone */
        aio_poll(co_context[0], true);
    }
    explore_end();
    while (aio_poll(co_context[0], false)) {
    }
    aio_context_unref(co_context[0]);
}

static void fetch_it(void)
{
    aio_context_attach(co_context[1]);
    explore_begin();
    aio_co_schedule(co_context[1], co);
    while (!co_done[1]) {
        aio_poll(co_context[1], true);
    }
    store_release(&parked, 1u);
    aio_notify(co_context[0]);
    explore_end();
    aio_context_unref(co_context[1]);
}

EXPLORE(fetched_from_its_home, .setup = make_two,
        .threads = {be_home, fetch_it},
        .marks = {"wake: forwarded from its home"})

/* --- its home's thread ends -----------------------------------------------*/

static void home_thread(void *arg)
{
    (void)arg;
    aio_context_attach(co_context[0]);
    co = coroutine_create(yield_and_tell, &co_done[1]);
    coroutine_enter(co);
    store_release(&parked, 1u);
}

/* The thread is on its way to its end when the coroutine is fetched. */
static void fetch_from_a_thread_that_ends(void)
{
    const OsThreadStart start = {.name = "home", .run = home_thread};
    OsThreadHandle handle;

    aio_context_attach(co_context[1]);
    explore_begin();
    CHECK_EQ(os_thread_start(&handle, &start), 0);
    while (!load_acquire(&parked)) {
        spin_hint();
    }
    aio_co_schedule(co_context[1], co);
    while (!co_done[1]) {
        aio_poll(co_context[1], true);
    }
    os_thread_join(&handle);
    explore_end();
    aio_context_unref(co_context[0]);
    aio_context_unref(co_context[1]);
}

EXPLORE(fetched_from_a_thread_that_ends, .setup = make_two,
        .threads = {fetch_from_a_thread_that_ends},
        .marks = {"wake: a post to a thread that has ended is taken back",
                  "wake: forwarded by another than its home"},
        .mutants = {
            {MUTANT_STOP_NO_FENCE, "lost wake-up", "context_stop", true}})

/* --- the thread that it goes to ends --------------------------------------*/

static void poll_and_stop(void)
{
    aio_context_attach(co_context[1]);
    explore_begin();
    aio_poll(co_context[1], false);
    if (os_thread()->context) { /* as any thread does at its end */
        context_stop(os_thread()->context);
    }
    explore_end();
}

static void coroutine_fn end_at_once(void *opaque)
{
    CHECK(aio_context_current() == co_context[1]);
    *(bool *)opaque = true;
}

/* Nothing holds the target any more but the coroutine on its way. */
static void send_and_let_go(void)
{
    aio_context_attach(co_context[0]);
    co = coroutine_create(end_at_once, &ended);
    explore_begin();
    aio_co_schedule(co_context[1], co);
    aio_context_unref(co_context[1]);
    explore_end();
    aio_context_unref(co_context[0]);
}

/* It has run there, or belongs nowhere. */
static void check_arrived_or_lost(void)
{
    reap();
    CHECK(ended || !co->home);
}

EXPLORE(sent_to_a_thread_that_ends, .setup = make_two,
        .threads = {send_and_let_go, poll_and_stop},
        .finish = check_arrived_or_lost,
        .marks = {"wake: one on its way never arrives",
                  "wake: a post to a thread that has ended is taken back"},
        .mutants = {
            {MUTANT_WAKE_NOT_SWEPT, "failed check", "sweep_if_stopped", false},
            {MUTANT_WAKE_WAY_KEPT, "leak", "resolve_late", false},
            {MUTANT_STOP_NO_FENCE, "failed check", "context_stop", true},
            {MUTANT_STOP_NO_FENCE_WAKER, "failed check", "sweep_if_stopped",
             true},
        })

EXPLORE_MAIN()
