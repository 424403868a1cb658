/* SPDX-License-Identifier: MIT */
/*
 * bench_timers.h: what the timer workloads of all rivals have in common.
 *
 * timer_arm     arms COUNT timers with random delays of 10 to 1,010 seconds
 * timer_cancel  cancels COUNT armed timers in random order
 * timer_fire    arms COUNT timers with random delays of 1 to 50 ms, lets 60 ms
 *               go by without running the loop, and times the loop until the
 *               last callback has run
 *
 * Loop and timers live as long as the program, so that the warm-up round has
 * touched all memory that the measured rounds use.  Every rival gets the same
 * delays and the same order, in milliseconds, since libuv has no finer unit.
 */
#ifndef BENCH_TIMERS_H
#define BENCH_TIMERS_H

#include "bench.h"

enum {
    BENCH_FAR_FROM_MS = 10000,
    BENCH_FAR_TO_MS = 1010000,
    BENCH_NEAR_FROM_MS = 1,
    BENCH_NEAR_TO_MS = 50,
    BENCH_NEAR_WAIT_MS = 60,
};

static inline uint32_t *bench_delays(uint64_t count, uint32_t from,
                                     uint32_t to)
{
    uint32_t *delays = (uint32_t *)bench_allocate(count, sizeof(*delays));
    uint64_t state = 1;

    for (uint64_t i = 0; i < count; i++) {
        delays[i] = from + (uint32_t)(bench_random(&state) % (to - from + 1));
    }
    return delays;
}

static inline uint32_t *bench_far_delays(uint64_t count)
{
    return bench_delays(count, BENCH_FAR_FROM_MS, BENCH_FAR_TO_MS);
}

static inline uint32_t *bench_near_delays(uint64_t count)
{
    return bench_delays(count, BENCH_NEAR_FROM_MS, BENCH_NEAR_TO_MS);
}

/* A random permutation of 0 to count - 1. */
static inline uint32_t *bench_order(uint64_t count)
{
    uint32_t *order = (uint32_t *)bench_allocate(count, sizeof(*order));
    uint64_t state = 2;

    for (uint64_t i = 0; i < count; i++) {
        uint64_t j = bench_random(&state) % (i + 1);

        order[i] = order[j];
        order[j] = (uint32_t)i;
    }
    return order;
}

/* Until the near delays, counted from now, are over. */
static inline void bench_sleep_past_near(void)
{
    struct timespec t = {0, BENCH_NEAR_WAIT_MS * 1000000L};

    while (nanosleep(&t, &t)) {
    }
}

#endif
