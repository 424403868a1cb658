/* SPDX-License-Identifier: MIT */

/*
 * A timer never runs before its expiry, on either clock, and a sleep is never
 * short, however the loop is driven: by passes that do not block, which come at
 * any moment, and by a loop that sleeps.  The times are close together, so that
 * a deadline which is rounded, or taken for another's, shows.
 */

#include "harness.h"

#include <coaio/coaio.h>

#define TIMERS 50

typedef struct Late {
    AioTimer timer;
    AioClock clock;
    int64_t expiry_ns;
} Late;

static unsigned fired;

static void fire(void *opaque)
{
    Late *late = opaque;

    CHECK(aio_clock_ns(late->clock) >= late->expiry_ns);
    fired++;
}

static void run(AioClock clock, bool blocking, int64_t step_ns)
{
    static Late lates[TIMERS];
    AioContext *ctx;
    int64_t now_ns;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    aio_context_attach(ctx);
    fired = 0;
    now_ns = aio_clock_ns(clock);
    for (unsigned i = 0; i < TIMERS; i++) {
        Late *late = &lates[i * 7 % TIMERS];

        late->clock = clock;
        late->expiry_ns = now_ns + (i + 1) * step_ns;
        aio_timer_init(&late->timer, ctx, clock, fire, late);
        aio_timer_mod_ns(&late->timer, late->expiry_ns);
    }
    while (fired < TIMERS) {
        aio_poll(ctx, blocking);
    }
    aio_context_unref(ctx);
}

TEST(never_early_in_passes_that_do_not_block)
{
    run(AIO_CLOCK_MONOTONIC, false, 70001);
    run(AIO_CLOCK_REALTIME, false, 70001);
}

TEST(never_early_in_a_loop_that_sleeps)
{
    run(AIO_CLOCK_MONOTONIC, true, 70001);
    run(AIO_CLOCK_REALTIME, true, 70001);
}

static void coroutine_fn sleep_often(void *opaque)
{
    for (int64_t i = 0; i < 20; i++) {
        int64_t ns = i * 30001;
        int64_t before_ns = aio_clock_ns(AIO_CLOCK_MONOTONIC);

        CHECK_EQ(co_sleep_ns(ns), 0);
        CHECK(aio_clock_ns(AIO_CLOCK_MONOTONIC) - before_ns >= ns);
    }
    *(bool *)opaque = true;
}

TEST(a_sleep_is_never_short)
{
    for (int blocking = 0; blocking < 2; blocking++) {
        bool done = false;
        AioContext *ctx;

        CHECK_EQ(aio_context_new(&ctx, NULL), 0);
        aio_context_attach(ctx);
        coroutine_enter(coroutine_create(sleep_often, &done));
        while (!done) {
            aio_poll(ctx, blocking);
        }
        aio_context_unref(ctx);
    }
}

TEST_MAIN()
