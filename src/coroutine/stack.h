/* SPDX-License-Identifier: MIT */
/*
 * Stacks come from slabs: one mapping holds many slots of one size class.
 *
 *   slot:  | guard, 16 KiB at least | stack ... grows down | struct Coroutine |
 *          lowest address                                       highest
 *
 * Slots are guarded in batches without splitting the mapping, where the
 * machine can (os/memory.h).  A slab whose slots are all free may be unmapped;
 * free slots may be given back to the kernel.  slab.h is one slab, stack.c all
 * of them.
 *
 * Everything here is for any thread, in or outside coroutines, and takes the
 * lock of the size class; the pool (pool.h) keeps that off the hot path.
 */
#ifndef COAIO_COROUTINE_STACK_H
#define COAIO_COROUTINE_STACK_H

#include "coroutine/coroutine_int.h"

#define STACK_CLASS_COUNT   10 /* 16 KiB << class: 16 KiB to 8 MiB */
#define STACK_CLASS_DEFAULT 2  /* 64 KiB */

/* The class for a stack of size bytes (0: the default), or -EINVAL. */
int stack_class_for(size_t size);

/*
 * A free slot of the class, its Coroutine in state FREE with the stack's
 * fields set, and coroutine_main() as what a switch to it begins with.  With
 * need_guard, fails rather than give an unguarded one.  Returns 0 or -ENOMEM.
 */
int stack_get(int size_class, bool need_guard, Coroutine **co);

/* Up to n of them, all guarded, as a chain by link; returns how many. */
unsigned stack_get_batch(int size_class, unsigned n, Coroutine **chain);

/* Give a slot back; it was left for good. */
void stack_put(Coroutine *co);
/* The same for guarded slots of one class, each after stack_recycle(). */
void stack_put_batch(Coroutine *chain);

/* What has to happen to a stack between two uses, if it is not put back. */
void stack_recycle(Coroutine *co);

/*
 * The coroutine whose guard holds address, or NULL.  Signal-safe: reads
 * without a lock what is never unmapped while coroutines of it live.
 */
Coroutine *stack_guard_owner(const void *address);

void stack_for_each(void (*fn)(Coroutine *co, void *opaque), void *opaque);

/* For tests: mappings made and not unmapped, slots in use, slots free. */
typedef struct StackStats {
    size_t slabs;
    size_t used;
    size_t free_slots;
    size_t free_backed; /* free slots whose pages are not given back */
} StackStats;
void stack_stats(int size_class, StackStats *stats);

#endif
