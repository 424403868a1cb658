/* SPDX-License-Identifier: MIT */
/*
 * libuv.c: uv_async posts and wake-ups, and uv_timer.
 *
 * uv_async_send() coalesces, so distinct posts need a queue of the user's: a
 * list under a mutex, taken over whole by the async callback, as libuv's own
 * documentation has it.  Its timers have a resolution of one millisecond.
 */
#include <uv.h>

#include "../bench_idle.h"
#include "../bench_posts.h"
#include "../bench_timers.h"

static struct {
    uv_loop_t loop;
    uv_async_t async;
    pthread_mutex_t lock;
    BenchSlot *first, **last;
} queue = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void queue_run(uv_async_t *async)
{
    BenchSlot *slot;

    pthread_mutex_lock(&queue.lock);
    slot = queue.first;
    queue.first = NULL;
    queue.last = &queue.first;
    pthread_mutex_unlock(&queue.lock);
    while (slot) {
        BenchSlot *next = slot->next;

        bench_post_run(slot);
        slot = next;
    }
    if (bench_posts_over()) {
        uv_close((uv_handle_t *)async, NULL);
    }
}

static void queue_post(BenchSlot *slot)
{
    slot->next = NULL;
    pthread_mutex_lock(&queue.lock);
    *queue.last = slot;
    queue.last = &slot->next;
    pthread_mutex_unlock(&queue.lock);
    uv_async_send(&queue.async);
}

static void queue_consume(void)
{
    uv_run(&queue.loop, UV_RUN_DEFAULT);
}

static double posts_work(uint64_t count, unsigned producers)
{
    double elapsed;

    uv_loop_init(&queue.loop);
    uv_async_init(&queue.loop, &queue.async, queue_run);
    queue.first = NULL;
    queue.last = &queue.first;
    elapsed = bench_posts_work(count, producers, queue_post, queue_consume);
    bench_check(!uv_loop_close(&queue.loop), "the loop is empty");
    return elapsed;
}

static double post_1_work(uint64_t count)
{
    return posts_work(count, 1);
}

static double post_3_work(uint64_t count)
{
    return posts_work(count, 3);
}

/* Side 0 begins and ends; side 1 answers each hit. */
typedef struct Side {
    unsigned index;
    uv_loop_t loop;
    uv_async_t async;
    struct Side *other;
    uint64_t left;
} Side;

static void side_hit(uv_async_t *async)
{
    Side *side = async->data;

    side->left--;
    if (side->index == 1 || side->left) {
        uv_async_send(&side->other->async);
    }
    if (!side->left) {
        uv_close((uv_handle_t *)async, NULL);
    }
}

static void side_body(unsigned index, void *opaque)
{
    Side *side = (Side *)opaque + index;

    bench_pin(index);
    if (index == 0) {
        uv_async_send(&side->other->async);
    }
    uv_run(&side->loop, UV_RUN_DEFAULT);
}

static double wake_work(uint64_t count)
{
    Side sides[2];
    double elapsed;

    for (unsigned i = 0; i < 2; i++) {
        uv_loop_init(&sides[i].loop);
        uv_async_init(&sides[i].loop, &sides[i].async, side_hit);
        sides[i].async.data = &sides[i];
        sides[i].index = i;
        sides[i].other = &sides[1 - i];
        sides[i].left = count;
    }
    elapsed = bench_parallel(2, side_body, sides);
    for (unsigned i = 0; i < 2; i++) {
        bench_check(!sides[i].left, "each hit arrives");
        uv_loop_close(&sides[i].loop);
    }
    return elapsed;
}

static struct {
    BenchIdle self;
    uv_loop_t loop;
    uv_async_t async;
    pthread_barrier_t runs;
} idle;

static void idle_hit(uv_async_t *async)
{
    (void)async;
    bench_idle_here(&idle.self);
    pthread_barrier_wait(&idle.runs);
}

static void *idle_entry(void *opaque)
{
    (void)opaque;
    uv_run(&idle.loop, UV_RUN_DEFAULT);
    return NULL;
}

static double idle_work(uint64_t count)
{
    pthread_t thread;

    if (!idle.self.tid) {
        pthread_barrier_init(&idle.runs, NULL, 2);
        uv_loop_init(&idle.loop);
        uv_async_init(&idle.loop, &idle.async, idle_hit);
        bench_check(!pthread_create(&thread, NULL, idle_entry, NULL),
                    "a thread starts");
    }
    uv_async_send(&idle.async);
    pthread_barrier_wait(&idle.runs);
    return bench_idle_work(&idle.self, count);
}

static uint64_t fired;

static void fire(uv_timer_t *timer)
{
    (void)timer;
    fired++;
}

/* The loop and its timers, made on the first call. */
static uv_timer_t *timers_get(uv_loop_t **loop, uint64_t count)
{
    static uv_timer_t *timers;
    static uv_loop_t own;

    *loop = &own;
    if (!timers) {
        timers = bench_allocate(count, sizeof(*timers));
        uv_loop_init(&own);
        for (uint64_t i = 0; i < count; i++) {
            uv_timer_init(&own, &timers[i]);
        }
    }
    uv_update_time(&own);
    return timers;
}

static double far_timers_work(uint64_t count, bool cancel)
{
    uint32_t *delays = bench_far_delays(count), *order = bench_order(count);
    uv_loop_t *loop;
    uv_timer_t *timers = timers_get(&loop, count);
    uint64_t begin = bench_now(), middle;

    for (uint64_t i = 0; i < count; i++) {
        uv_timer_start(&timers[i], fire, delays[i], 0);
    }
    middle = bench_now();
    begin = middle - begin;
    for (uint64_t i = 0; i < count; i++) {
        uv_timer_stop(&timers[order[i]]);
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
    uv_loop_t *loop;
    uv_timer_t *timers = timers_get(&loop, count);
    uint64_t begin;

    fired = 0;
    for (uint64_t i = 0; i < count; i++) {
        uv_timer_start(&timers[i], fire, delays[i], 0);
    }
    bench_sleep_past_near();
    begin = bench_now();
    while (fired < count) {
        uv_run(loop, UV_RUN_ONCE);
    }
    begin = bench_now() - begin;
    free(delays);
    return (double)begin;
}

static const BenchWorkload workloads[] = {
    {"post_1", post_1_work},
    {"post_3", post_3_work},
    {"wake_asleep", wake_work},
    {"idle", idle_work},
    {"timer_arm", timer_arm_work},
    {"timer_cancel", timer_cancel_work},
    {"timer_fire", timer_fire_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    const BenchProgram program = {
        "libuv", uv_version_string(), "default loop options", workloads,
    };

    return bench_main(argc, argv, &program);
}
