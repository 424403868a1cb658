/* SPDX-License-Identifier: MIT */
/*
 * The end of contexts (loop/context.c): handles, pins, and the coroutines that
 * hold one; who comes last frees, once, and nobody touches it afterwards.
 */
#include "base/atomic.h"
#include "explore.h"
#include "loop/context.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>

static AioContext *ctx[2];
static AioBHStorage storage[2];
static Coroutine *co[2];
static bool ran;

static void make_one(void)
{
    CHECK_EQ(aio_context_new(&ctx[0], NULL), 0);
}

static void make_two(void)
{
    make_one();
    CHECK_EQ(aio_context_new(&ctx[1], NULL), 0);
}

/* What was not freed is a leak. */
static void reap(void)
{
    context_reap();
}

static void note(void *opaque)
{
    (void)opaque;
    ran = true;
}

/* --- handles --------------------------------------------------------------*/

static void make_one_for_two(void)
{
    make_one();
    aio_context_ref(ctx[0]);
}

static void attach_poll_and_unref(void)
{
    aio_context_attach(ctx[0]);
    explore_begin();
    aio_bh_schedule_oneshot_embedded(ctx[0], &storage[0], note, NULL);
    while (!ran) {
        aio_poll(ctx[0], false);
    }
    aio_context_unref(ctx[0]);
    explore_end();
    CHECK(!aio_context_current());
}

static void unref(void)
{
    explore_begin();
    aio_context_unref(ctx[0]);
    explore_end();
}

EXPLORE(let_go_by_its_thread_and_another, .setup = make_one_for_two,
        .threads = {unref, attach_poll_and_unref}, .finish = reap,
        .marks = {"context: a thread finds that its own was closed elsewhere"})

/* The coroutine lives in the context and keeps it, or has no home. */
static void attach_and_run_one(void)
{
    aio_context_attach(ctx[0]);
    explore_begin();
    coroutine_enter(coroutine_create(note, NULL));
    CHECK(ran);
    explore_end();
    CHECK(!aio_context_current());
}

EXPLORE(closed_as_its_thread_creates_a_coroutine, .setup = make_one,
        .threads = {unref, attach_and_run_one}, .finish = reap,
        .marks = {"context: the last handle went just before it was wanted"},
        .mutants = {{MUTANT_CONTEXT_REF_BLIND, "misuse", "no references left",
                     false}})

static void unref_second(void)
{
    explore_begin();
    aio_context_unref(ctx[1]);
    explore_end();
}

/* Each may free both. */
EXPLORE(two_end_at_once, .setup = make_two, .threads = {unref, unref_second},
        .finish = reap, .marks = {"post: another has taken all"},
        .mutants = {
            {MUTANT_POST_TAKE_PLAIN, "use after free", "post_take_all", false}})

/* --- pins -----------------------------------------------------------------*/

static void post(void)
{
    explore_begin();
    aio_bh_schedule_oneshot_embedded(ctx[0], &storage[0], note, NULL);
    explore_end();
}

static void poll_until_ran_and_unref(void)
{
    aio_context_attach(ctx[0]);
    explore_begin();
    while (!ran) {
        aio_poll(ctx[0], true);
    }
    aio_context_unref(ctx[0]);
    explore_end();
}

EXPLORE(it_ends_under_the_one_who_posts, .setup = make_one,
        .threads = {poll_until_ran_and_unref, post}, .finish = reap,
        .marks = {"context: the last pin goes elsewhere"},
        .mutants = {{MUTANT_CONTEXT_UNPIN_RELAXED, "use after free",
                     "context_free", false}})

/* --- in a pass ------------------------------------------------------------*/

static void unref_within(void *opaque)
{
    aio_context_unref(opaque);
    aio_context_current(); /* does not let go of it before the pass is over */
    ran = true;
}

static void poll_and_unref_within(void)
{
    AioContext *own = ctx[0];

    aio_context_attach(own);
    aio_bh_schedule_oneshot_embedded(own, &storage[0], unref_within, own);
    explore_begin();
    aio_poll(own, false);
    CHECK(ran);
    explore_end();
    CHECK(!aio_context_current());
}

EXPLORE(closed_in_a_pass, .setup = make_one_for_two,
        .threads = {unref, poll_and_unref_within}, .finish = reap,
        .marks = {"context: it was closed in a pass",
                  "context: a pass asks for its own, which was closed in it"},
        .mutants = {{MUTANT_CONTEXT_CLOSED_IN_PASS, "use after free",
                     "drop_handle", false}})

/* --- coroutines hold it, and its thread ends ------------------------------*/

static void attach_and_create(unsigned n)
{
    aio_context_attach(ctx[0]);
    for (unsigned i = 0; i < n; i++) {
        co[i] = coroutine_create(note, NULL);
    }
    aio_context_unref(ctx[0]);
}

static void stop_with_one(void)
{
    attach_and_create(1);
    explore_begin();
    context_stop(ctx[0]);
    explore_end();
}

static void stop_with_two(void)
{
    attach_and_create(2);
    explore_begin();
    context_stop(ctx[0]);
    explore_end();
}

static void delete_first(void)
{
    explore_begin();
    coroutine_delete(co[0]);
    explore_end();
}

static void delete_second(void)
{
    explore_begin();
    coroutine_delete(co[1]);
    explore_end();
}

/* The thread's own fence is not missed here: aio_wait_kick() has another. */
EXPLORE(its_coroutine_ends_as_its_thread_does, .setup = make_one,
        .threads = {delete_first, stop_with_one}, .finish = reap,
        .marks = {"context: another has let go for the coroutines"},
        .mutants = {
            {MUTANT_STOP_NO_FENCE_LEAVER, "leak", "leave_home", true},
            {MUTANT_CONTEXT_HELD_PLAIN, "misuse", "no references left", false},
        })

EXPLORE(its_coroutines_end_as_its_thread_does, .setup = make_one,
        .threads = {delete_first, stop_with_two, delete_second}, .finish = reap)

EXPLORE_MAIN()
