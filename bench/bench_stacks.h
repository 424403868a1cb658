/* SPDX-License-Identifier: MIT */
/*
 * Where rivals have their stacks that bring none: as coaio lays out its own, an
 * odd number of pages apart and shifted by cache lines, so that what all of
 * them touch does not fall into the same few sets of the caches and of the TLB.
 */
#ifndef BENCH_STACKS_H
#define BENCH_STACKS_H

#include <stddef.h>

enum {
    BENCH_STACK_BYTES = 64 << 10,
    BENCH_STACK_STRIDE = BENCH_STACK_BYTES + 4096,
    BENCH_STACK_COLOURS = 16,
    BENCH_STACK_COLOUR = 64,
};

/* The upper end of one of at least BENCH_STACK_BYTES. */
static inline char *bench_stack_top(char *slab, size_t index)
{
    return slab + (index + 1) * BENCH_STACK_STRIDE -
           index % BENCH_STACK_COLOURS * BENCH_STACK_COLOUR;
}

#endif
