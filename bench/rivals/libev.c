/* SPDX-License-Identifier: MIT */
/*
 * libev.c: ev_timer, kept in its 4-ary heap (Debian's build).
 */
#include <ev.h>

#include "../bench_timers.h"

static uint64_t fired;

static void fire(struct ev_loop *loop, ev_timer *timer, int what)
{
    (void)loop;
    (void)timer;
    (void)what;
    fired++;
}

/* The loop and its timers, made on the first call. */
static ev_timer *timers_get(struct ev_loop **loop, uint64_t count)
{
    static ev_timer *timers;
    static struct ev_loop *own;

    if (!timers) {
        own = ev_loop_new(EVFLAG_AUTO);
        bench_check(own != NULL, "a loop is made");
        timers = bench_allocate(count, sizeof(*timers));
        for (uint64_t i = 0; i < count; i++) {
            ev_timer_init(&timers[i], fire, 0., 0.);
        }
    }
    ev_now_update(own);
    *loop = own;
    return timers;
}

static void arm(ev_timer *timers, struct ev_loop *loop,
                const uint32_t *delays, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        ev_timer_set(&timers[i], delays[i] / 1e3, 0.);
        ev_timer_start(loop, &timers[i]);
    }
}

static double far_timers_work(uint64_t count, bool cancel)
{
    uint32_t *delays = bench_far_delays(count), *order = bench_order(count);
    struct ev_loop *loop;
    ev_timer *timers = timers_get(&loop, count);
    uint64_t begin = bench_now(), middle;

    arm(timers, loop, delays, count);
    middle = bench_now();
    begin = middle - begin;
    for (uint64_t i = 0; i < count; i++) {
        ev_timer_stop(loop, &timers[order[i]]);
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
    struct ev_loop *loop;
    ev_timer *timers = timers_get(&loop, count);
    uint64_t begin;

    fired = 0;
    arm(timers, loop, delays, count);
    bench_sleep_past_near();
    begin = bench_now();
    while (fired < count) {
        ev_run(loop, EVRUN_ONCE);
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
    char version[32];
    const BenchProgram program = {
        "libev", version, "EVFLAG_AUTO", workloads,
    };

    snprintf(version, sizeof(version), "%d.%d", ev_version_major(),
             ev_version_minor());
    return bench_main(argc, argv, &program);
}
