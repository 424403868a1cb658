/* SPDX-License-Identifier: MIT */
/*
 * libevent.c: timers on a base without locks (one thread), kept in its heap:
 * delays that differ cannot use its common timeouts.
 */
#include <event2/event.h>
#include <event2/event_struct.h>

#include "../bench_timers.h"

static uint64_t fired;

static void fire(evutil_socket_t fd, short what, void *opaque)
{
    (void)fd;
    (void)what;
    (void)opaque;
    fired++;
}

/* The base and its timers, made on the first call. */
static struct event *timers_get(struct event_base **base, uint64_t count)
{
    static struct event *timers;
    static struct event_base *own;

    if (!timers) {
        struct event_config *config = event_config_new();

        event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
        own = event_base_new_with_config(config);
        bench_check(own != NULL, "an event base is made");
        event_config_free(config);
        timers = bench_allocate(count, sizeof(*timers));
        for (uint64_t i = 0; i < count; i++) {
            event_assign(&timers[i], own, -1, 0, fire, NULL);
        }
    }
    *base = own;
    return timers;
}

static void arm(struct event *timers, const uint32_t *delays, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        struct timeval t = {delays[i] / 1000, delays[i] % 1000 * 1000};

        event_add(&timers[i], &t);
    }
}

static double far_timers_work(uint64_t count, bool cancel)
{
    uint32_t *delays = bench_far_delays(count), *order = bench_order(count);
    struct event_base *base;
    struct event *timers = timers_get(&base, count);
    uint64_t begin = bench_now(), middle;

    arm(timers, delays, count);
    middle = bench_now();
    begin = middle - begin;
    for (uint64_t i = 0; i < count; i++) {
        event_del(&timers[order[i]]);
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
    struct event_base *base;
    struct event *timers = timers_get(&base, count);
    uint64_t begin;

    fired = 0;
    arm(timers, delays, count);
    bench_sleep_past_near();
    begin = bench_now();
    while (fired < count) {
        event_base_loop(base, EVLOOP_ONCE);
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
    const BenchProgram program = {
        "libevent", event_get_version(), "base without locks", workloads,
    };

    return bench_main(argc, argv, &program);
}
