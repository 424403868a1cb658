/* SPDX-License-Identifier: MIT */
/*
 * What must not be left when the last reference to a context goes: each thing
 * is named on a line of its own, and then the process aborts.
 */
#include "harness.h"
#include "loopthread.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <coaio/fd.h>
#include <coaio/timer.h>
#include <unistd.h>

static void nothing(void *opaque)
{
    (void)opaque;
}

static AioContext *new_named(const char *name)
{
    AioContextOptions options = {.size = sizeof(options), .name = name};
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    return ctx;
}

#define AS_OPAQUE(n) ((void *)(uintptr_t)(n))

TEST_ABORTS(a_bottom_half,
            "^coaio: context \"full\" ends with a bottom half left: callback "
            "0x[0-9a-f]+, opaque 0x1234$")
{
    AioContext *ctx = new_named("full");

    aio_bh_new(ctx, nothing, AS_OPAQUE(0x1234));
    aio_context_unref(ctx);
}

TEST_ABORTS(the_end_counts_what_is_left,
            "^coaio: aio_context_unref: the last reference to context \"full\" "
            "went while 1 bottom halves, fd handlers or timers were left "
            "\\(named above\\): delete them first$")
{
    AioContext *ctx = new_named("full");

    aio_bh_schedule(aio_bh_new(ctx, nothing, NULL));
    aio_context_unref(ctx);
}

TEST_ABORTS(a_one_shot,
            "^coaio: context \"full\" ends with a one-shot bottom half "
            "pending: callback 0x[0-9a-f]+, opaque 0x1234$")
{
    AioContext *ctx = new_named("full");

    aio_bh_schedule_oneshot(ctx, nothing, AS_OPAQUE(0x1234));
    aio_context_unref(ctx);
}

TEST_ABORTS(an_embedded_one_shot,
            "^coaio: context \"full\" ends with a one-shot bottom half "
            "pending: callback 0x[0-9a-f]+, opaque 0x1234$")
{
    AioContext *ctx = new_named("full");
    AioBHStorage storage;

    aio_bh_schedule_oneshot_embedded(ctx, &storage, nothing, AS_OPAQUE(0x1234));
    aio_context_unref(ctx);
}

static AioContext *leave_one_of_each(void)
{
    static AioBHStorage storage;
    static AioTimer timer;
    AioContext *ctx = new_named("full");
    int ends[2];

    CHECK_EQ(pipe(ends), 0);
    aio_bh_new(ctx, nothing, AS_OPAQUE(0x11));
    aio_bh_schedule(aio_bh_new(ctx, nothing, AS_OPAQUE(0x12)));
    aio_bh_schedule_oneshot(ctx, nothing, AS_OPAQUE(0x13));
    aio_bh_schedule_oneshot_embedded(ctx, &storage, nothing, AS_OPAQUE(0x14));
    aio_context_attach(ctx);
    aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, nothing, AS_OPAQUE(0x15));
    aio_timer_mod_ns(&timer, INT64_MAX);
    CHECK_EQ(aio_set_fd_handler(ctx, ends[0], nothing, NULL, NULL, NULL,
                                AS_OPAQUE(0x16)),
             0);
    return ctx;
}

#define ONE_OF_EACH(name, pattern)              \
    TEST_ABORTS(name, pattern)                  \
    {                                           \
        aio_context_unref(leave_one_of_each()); \
    }

ONE_OF_EACH(all_first, "a bottom half left: .*, opaque 0x11$")
ONE_OF_EACH(all_second, "a bottom half left: .*, opaque 0x12$")
ONE_OF_EACH(all_third, "a one-shot bottom half pending: .*, opaque 0x13$")
ONE_OF_EACH(all_fourth, "a one-shot bottom half pending: .*, opaque 0x14$")
ONE_OF_EACH(all_fifth,
            "^coaio: timer 0x[0-9a-f]+ .* is armed while context \"full\"")
ONE_OF_EACH(all_sixth, "context \"full\" ends with a handler for fd [0-9]+ "
                       "left: opaque 0x16$")
ONE_OF_EACH(all_counted, "while 6 bottom halves, fd handlers or timers were")

/* --- whoever drops the last reference -------------------------------------*/

static void unref(void *ctx)
{
    aio_context_unref(ctx);
}

TEST_ABORTS(another_thread_may_be_the_one,
            "^coaio: context \"full\" ends with a bottom half left")
{
    AioContext *ctx = new_named("full");

    aio_context_attach(ctx);
    aio_bh_new(ctx, nothing, NULL);
    run_in_thread(unref, ctx);
}

static void park(void *opaque)
{
    (void)opaque;
    coroutine_yield();
}

TEST_ABORTS(a_coroutine_may_be_the_one,
            "^coaio: context \"full\" ends with a bottom half left")
{
    AioContext *ctx = new_named("full");
    Coroutine *co;

    aio_context_attach(ctx);
    co = coroutine_create(park, NULL);
    coroutine_enter(co);
    aio_bh_new(ctx, nothing, NULL);
    aio_context_unref(ctx);
    coroutine_enter(co);
    aio_poll(ctx, false);
}

/* --- what may be left -----------------------------------------------------*/

TEST(deleted_ones_are_not_left)
{
    AioContext *ctx = new_named("empty");
    AioBH *bh = aio_bh_new(ctx, nothing, NULL);
    AioTimer timer;

    aio_bh_schedule(bh);
    aio_bh_delete(bh);
    aio_context_attach(ctx);
    aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, nothing, NULL);
    aio_timer_mod_ns(&timer, INT64_MAX);
    aio_timer_del(&timer);
    aio_context_unref(ctx);
}

TEST(a_new_coroutine_keeps_its_home)
{
    AioContext *ctx = new_named("empty");
    Coroutine *co;

    aio_context_attach(ctx);
    co = coroutine_create(park, NULL);
    aio_context_unref(ctx);
    coroutine_delete(co);
}

TEST_MAIN()
