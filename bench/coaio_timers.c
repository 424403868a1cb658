/* SPDX-License-Identifier: MIT */
/*
 * coaio_timers.c: AioTimer, on its home thread (bench_timers.h).
 */
#include <coaio/coaio.h>

#include "bench_timers.h"

static uint64_t fired;

static void fire(void *opaque)
{
    (void)opaque;
    fired++;
}

/* The context and its timers, made on the first call. */
static AioTimer *timers_get(AioContext **ctx, uint64_t count)
{
    static AioTimer *timers;
    static AioContext *own;

    if (!timers) {
        bench_check(!aio_context_new(&own, NULL), "a context is made");
        aio_context_attach(own);
        timers = bench_allocate(count, sizeof(*timers));
        for (uint64_t i = 0; i < count; i++) {
            aio_timer_init(&timers[i], own, AIO_CLOCK_MONOTONIC, fire, NULL);
        }
    }
    *ctx = own;
    return timers;
}

static void arm(AioTimer *timers, const uint32_t *delays, uint64_t count)
{
    int64_t now = aio_clock_ns(AIO_CLOCK_MONOTONIC);

    for (uint64_t i = 0; i < count; i++) {
        aio_timer_mod_ns(&timers[i], now + delays[i] * INT64_C(1000000));
    }
}

static double far_timers_work(uint64_t count, bool cancel)
{
    uint32_t *delays = bench_far_delays(count), *order = bench_order(count);
    AioContext *ctx;
    AioTimer *timers = timers_get(&ctx, count);
    uint64_t begin = bench_now(), middle;

    arm(timers, delays, count);
    middle = bench_now();
    begin = middle - begin;
    for (uint64_t i = 0; i < count; i++) {
        aio_timer_del(&timers[order[i]]);
    }
    middle = bench_now() - middle;
    free(delays);
    free(order);
    return (double)(cancel ? middle : begin);
}

static double timer_arm_work(uint64_t count)
{
    return far_timers_work(count, false);
}

static double timer_cancel_work(uint64_t count)
{
    return far_timers_work(count, true);
}

static double timer_fire_work(uint64_t count)
{
    uint32_t *delays = bench_near_delays(count);
    AioContext *ctx;
    AioTimer *timers = timers_get(&ctx, count);
    uint64_t begin;

    fired = 0;
    arm(timers, delays, count);
    bench_sleep_past_near();
    begin = bench_now();
    while (fired < count) {
        aio_poll(ctx, true);
    }
    begin = bench_now() - begin;
    free(delays);
    return (double)begin;
}

static const BenchWorkload workloads[] = {
    {"timer_arm", timer_arm_work},
    {"timer_cancel", timer_cancel_work},
    {"timer_fire", timer_fire_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        BENCH_RIVAL, BENCH_VERSION, "static", workloads,
    };

    return bench_main(argc, argv, &program);
}
