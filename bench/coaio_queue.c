/* SPDX-License-Identifier: MIT */
/*
 * coaio_queue.c: CoQueue.
 *
 *   restart_all    a queue without a lock, on one loop; one operation is a
 *                  waiter that is woken together with all others, runs, and
 *                  waits again.  That it ran once for each time is checked.
 */
#include <coaio/coaio.h>

#include "bench.h"

static CoQueue queue;
static uint64_t waiters, times, ran;

static void coroutine_fn wait_on_and_on(void *opaque)
{
    (void)opaque;
    for (uint64_t mine = times + 1;; mine++) {
        co_queue_wait(&queue, NULL);
        bench_check(mine == times, "a waiter runs once each time");
        ran++;
    }
}

static void coroutine_fn restart(void *opaque)
{
    (void)opaque;
    co_queue_restart_all(&queue);
}

static double restart_all_work(uint64_t count)
{
    static AioContext *ctx;
    uint64_t begin;

    if (!ctx) {
        bench_check(!aio_context_new(&ctx, NULL), "a context is made");
        aio_context_attach(ctx);
    }
    /* To make them takes far longer than to wake them: once only. */
    for (; waiters < count; waiters++) {
        coroutine_enter(coroutine_create(wait_on_and_on, NULL));
    }
    ran = 0;
    times++;
    begin = bench_now();
    coroutine_enter(coroutine_create(restart, NULL));
    begin = bench_now() - begin;
    bench_check(ran == count, "each waiter runs");
    return (double)begin;
}

static const BenchWorkload workloads[] = {
    {"restart_all", restart_all_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        BENCH_RIVAL,
        BENCH_VERSION,
        "static; no busy polling",
        workloads,
    };

    return bench_main(argc, argv, &program);
}
