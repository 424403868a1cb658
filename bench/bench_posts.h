/* SPDX-License-Identifier: MIT */
/*
 * bench_posts.h: what the workloads post_1 and post_3 of all rivals have in
 * common.
 *
 * One or three producer threads post to one consumer.  Each producer has a
 * ring of slots of its own and posts them in turn; a slot is posted again
 * only after the consumer has run it, so that every post is run exactly once
 * and none is coalesced away.  A producer that has caught up with the consumer
 * yields its core.  Time runs from when all threads stand ready until the
 * consumer has run the last post.
 *
 * The consumer is bound to one core and the producers to another: left to the
 * kernel, rounds differ by ten times with the placement.  The rings are long
 * enough for the producers to run ahead of a consumer that is being woken:
 * this is throughput, the rows wake_* are latency.
 *
 * C11 only: the slots hold atomics.
 */
#ifndef BENCH_POSTS_H
#define BENCH_POSTS_H

#include <stdatomic.h>

#include "bench.h"

enum { BENCH_RING = 4096, BENCH_MAX_PRODUCERS = 3 };

/* One cache line, so that a rival's own link and the flag travel together. */
typedef struct BenchSlot {
    _Alignas(64) _Atomic bool busy; /* posted and not run yet */
    struct BenchSlot *next;         /* the rival's */
    void *handle;                   /* the rival's */
} BenchSlot;

typedef struct BenchPosts {
    BenchSlot slots[BENCH_MAX_PRODUCERS][BENCH_RING];
    uint64_t per_producer;
    uint64_t wanted;
    unsigned producers;
    void (*post)(BenchSlot *slot);
    void (*consume)(void);          /* returns when bench_posts_over() */

    /* The consumer's, on a line that producers do not look at. */
    _Alignas(64) uint64_t consumed;
} BenchPosts;

static BenchPosts bench_posts;

/* The consumer calls it for each slot that it runs. */
static inline void bench_post_run(BenchSlot *slot)
{
    bench_check(atomic_load_explicit(&slot->busy, memory_order_relaxed),
                "a slot runs once for each post");
    bench_posts.consumed++;
    atomic_store_explicit(&slot->busy, false, memory_order_release);
}

static inline bool bench_posts_over(void)
{
    return bench_posts.consumed == bench_posts.wanted;
}

static inline void bench_produce(unsigned producer)
{
    BenchSlot *ring = bench_posts.slots[producer];

    for (uint64_t i = 0; i < bench_posts.per_producer; i++) {
        BenchSlot *slot = &ring[i % BENCH_RING];

        while (atomic_load_explicit(&slot->busy, memory_order_acquire)) {
            sched_yield();
        }
        atomic_store_explicit(&slot->busy, true, memory_order_relaxed);
        bench_posts.post(slot);
    }
}

static inline void bench_posts_body(unsigned index, void *opaque)
{
    (void)opaque;
    bench_pin(index > 0);
    if (index == 0) {
        bench_posts.consume();
    } else {
        bench_produce(index - 1);
    }
}

static inline double bench_posts_work(uint64_t count, unsigned producers,
                                      void (*post)(BenchSlot *slot),
                                      void (*consume)(void))
{
    bench_posts.producers = producers;
    bench_posts.per_producer = count / producers;
    bench_posts.wanted = bench_posts.per_producer * producers;
    bench_posts.consumed = 0;
    bench_posts.post = post;
    bench_posts.consume = consume;
    return bench_parallel(producers + 1, bench_posts_body, NULL)
           * (double)count / (double)bench_posts.wanted;
}

#endif
