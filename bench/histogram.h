/* SPDX-License-Identifier: MIT */
/*
 * histogram.h: a log-linear histogram of nanoseconds.
 *
 * 64 buckets for each power of two: a quantile is exact to 1.6 % at any scale,
 * recording costs a count of leading zeros and two additions, and nothing is
 * ever dropped.  A quantile is the upper edge of its bucket, never more than
 * the largest value seen.  One thread only.
 */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>

enum {
    HISTOGRAM_BITS = 6,
    HISTOGRAM_SUB = 1 << HISTOGRAM_BITS,
    HISTOGRAM_BUCKETS = (64 - HISTOGRAM_BITS + 1) * HISTOGRAM_SUB,
};

typedef struct Histogram {
    uint64_t count;
    uint64_t sum;
    uint64_t max;
    uint64_t buckets[HISTOGRAM_BUCKETS];
} Histogram;

static inline unsigned histogram_bucket(uint64_t ns)
{
    unsigned shift;

    if (ns < HISTOGRAM_SUB) {
        return (unsigned)ns;
    }
    shift = 63 - (unsigned)__builtin_clzll(ns) - HISTOGRAM_BITS;
    return (shift + 1) * HISTOGRAM_SUB
           + (unsigned)((ns >> shift) & (HISTOGRAM_SUB - 1));
}

/* The largest value that falls into the bucket. */
static inline uint64_t histogram_top(unsigned bucket)
{
    unsigned shift;

    if (bucket < HISTOGRAM_SUB) {
        return bucket;
    }
    shift = bucket / HISTOGRAM_SUB - 1;
    return (((uint64_t)HISTOGRAM_SUB + bucket % HISTOGRAM_SUB + 1) << shift)
           - 1;
}

static inline void histogram_add(Histogram *h, uint64_t ns)
{
    h->count++;
    h->sum += ns;
    h->buckets[histogram_bucket(ns)]++;
    if (ns > h->max) {
        h->max = ns;
    }
}

/* The value below or at which `share` (0 to 1) of the values lie; 0 if none. */
static inline uint64_t histogram_quantile(const Histogram *h, double share)
{
    uint64_t wanted = (uint64_t)(share * (double)h->count);
    uint64_t seen = 0;

    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen > wanted) {
            uint64_t top = histogram_top(i);

            return top < h->max ? top : h->max;
        }
    }
    return h->max;
}

#endif
