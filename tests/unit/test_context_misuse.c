/* SPDX-License-Identifier: MIT */
/*
 * Misuse of contexts: each case must abort with a line that names the parties.
 */
#include "harness.h"
#include "loopthread.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>

static AioContext *new_named(const char *name)
{
    AioContextOptions options = {.size = sizeof(options), .name = name};
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    return ctx;
}

static void poll_it(void *ctx)
{
    aio_poll(ctx, false);
}

static void attach_it(void *ctx)
{
    aio_context_attach(ctx);
}

/* --- from another thread --------------------------------------------------*/

TEST_ABORTS(polling_from_another_thread,
            "^coaio: aio_context_attach: context \"mine\" is bound to another "
            "thread for good; only that thread may poll it$")
{
    AioContext *ctx = new_named("mine");

    aio_context_attach(ctx);
    run_in_thread(poll_it, ctx);
}

TEST_ABORTS(polling_an_iothread_like_loop,
            "^coaio: aio_context_attach: context \"loop\" is bound to another "
            "thread for good")
{
    LoopThread loop;

    loop_thread_start(&loop, "loop");
    aio_poll(loop.ctx, false);
}

TEST_ABORTS(attaching_in_another_thread,
            "^coaio: aio_context_attach: context \"mine\" is bound to another "
            "thread for good")
{
    AioContext *ctx = new_named("mine");

    aio_poll(ctx, false);
    run_in_thread(attach_it, ctx);
}

/* For good: also when that thread has ended. */
TEST_ABORTS(attaching_after_its_thread_has_ended,
            "^coaio: aio_context_attach: context \"mine\" is bound to another "
            "thread for good")
{
    AioContext *ctx = new_named("mine");

    run_in_thread(attach_it, ctx);
    aio_context_attach(ctx);
}

/* --- a second one on this thread ------------------------------------------*/

TEST_ABORTS(attaching_a_second_context,
            "^coaio: aio_context_attach: this thread has context \"first\" "
            "already, and cannot poll context \"second\"$")
{
    AioContext *first = new_named("first");
    AioContext *second = new_named("second");

    aio_context_attach(first);
    aio_context_attach(second);
}

TEST_ABORTS(polling_a_second_context,
            "^coaio: aio_context_attach: this thread has context \"first\" "
            "already, and cannot poll context \"second\"$")
{
    AioContext *first = new_named("first");
    AioContext *second = new_named("second");

    aio_poll(first, false);
    aio_poll(second, false);
}

TEST_ABORTS(asking_for_the_main_context_on_a_thread_that_has_another,
            "^coaio: aio_context_attach: this thread has context \"first\" "
            "already, and cannot poll context \"main\"$")
{
    aio_context_attach(new_named("first"));
    aio_context_main();
}

/* --- in coroutines --------------------------------------------------------*/

static Coroutine *named_coroutine(CoroutineEntry *entry, void *opaque)
{
    CoroutineOptions options = {.size = sizeof(options), .name = "inside"};
    Coroutine *co;

    CHECK_EQ(coroutine_create_full(&co, entry, opaque, &options), 0);
    return co;
}

TEST_ABORTS(polling_in_a_coroutine,
            "^coaio: aio_poll: context \"mine\" is polled from within "
            "coroutine \"inside\"; polling is for code outside coroutines$")
{
    AioContext *ctx = new_named("mine");

    aio_context_attach(ctx);
    coroutine_enter(named_coroutine(poll_it, ctx));
}

TEST_ABORTS(polling_in_a_coroutine_without_a_home,
            "^coaio: aio_poll: context \"mine\" is polled from within "
            "coroutine \"inside\"")
{
    coroutine_enter(named_coroutine(poll_it, new_named("mine")));
}

static void enter_it(void *co)
{
    coroutine_enter(co);
}

TEST_ABORTS(polling_in_a_coroutine_of_the_loop,
            "^coaio: aio_poll: context \"mine\" is polled from within "
            "coroutine \"inside\"")
{
    AioContext *ctx = new_named("mine");

    aio_context_attach(ctx);
    aio_bh_schedule_oneshot(ctx, enter_it, named_coroutine(poll_it, ctx));
    aio_poll(ctx, true);
}

TEST_ABORTS(attaching_in_a_coroutine,
            "^coaio: aio_context_attach: context \"mine\" is attached in "
            "coroutine \"inside\"; do so outside coroutines$")
{
    coroutine_enter(named_coroutine(attach_it, new_named("mine")));
}

/* --- references -----------------------------------------------------------*/

static void unref_it(void *ctx)
{
    aio_context_unref(ctx);
}

/* The thread that it is bound to keeps the memory, which has to say so. */
TEST_ABORTS(a_reference_on_one_that_has_none_left,
            "^coaio: aio_context_ref: context 0x[0-9a-f]+ has no references "
            "left: it is gone$")
{
    AioContext *ctx = new_named("gone");

    aio_context_attach(ctx);
    run_in_thread(unref_it, ctx);
    aio_context_ref(ctx);
}

TEST_ABORTS(dropping_a_reference_that_is_none,
            "^coaio: aio_context_unref: context 0x[0-9a-f]+ has no references "
            "left: it is gone$")
{
    AioContext *ctx = new_named("gone");

    aio_context_attach(ctx);
    run_in_thread(unref_it, ctx);
    aio_context_unref(ctx);
}

TEST_ABORTS(polling_one_that_has_none_left,
            "^coaio: aio_poll: the last reference to context \"gone\" has "
            "gone: keep one while you poll$")
{
    AioContext *ctx = new_named("gone");

    aio_context_attach(ctx);
    run_in_thread(unref_it, ctx);
    aio_poll(ctx, false);
}

static void create_it(void *co)
{
    *(Coroutine **)co = named_coroutine(create_it, NULL);
}

TEST_ABORTS(entering_one_of_another_where_the_context_has_gone,
            "^coaio: coroutine_enter: coroutine \"inside\" lives in context "
            "\"loop\" and this thread has no context: use aio_co_wake\\(\\) or "
            "aio_co_enter\\(\\)$")
{
    AioContext *ctx = new_named("gone");
    LoopThread loop;
    Coroutine *co;

    loop_thread_start(&loop, "loop");
    loop_call(loop.ctx, create_it, &co);
    aio_context_attach(ctx);
    run_in_thread(unref_it, ctx);
    coroutine_enter(co);
}

static void unref_and_poll(void *ctx)
{
    aio_context_unref(ctx);
    aio_poll(ctx, false);
}

/* The pass that is on keeps the memory. */
TEST_ABORTS(polling_in_a_pass_that_has_dropped_the_last,
            "^coaio: aio_poll: the last reference to context \"gone\" has gone")
{
    AioContext *ctx = new_named("gone");

    aio_bh_schedule_oneshot(ctx, unref_and_poll, ctx);
    aio_poll(ctx, true);
}

static void unref_and_attach_other(void *ctx)
{
    aio_context_unref(ctx);
    aio_context_attach(new_named("next"));
}

/* The thread is not free for another while the pass of its own is on. */
TEST_ABORTS(attaching_another_in_a_pass_that_has_dropped_the_last,
            "^coaio: aio_context_attach: the last reference to context "
            "\"gone\" has gone, but a pass of it is on: attach context "
            "\"next\" when that is over$")
{
    AioContext *ctx = new_named("gone");

    aio_bh_schedule_oneshot(ctx, unref_and_attach_other, ctx);
    aio_poll(ctx, true);
}

TEST_MAIN()
