/* SPDX-License-Identifier: MIT */
/*
 * A lock for a few instructions: what protects the fields of CoRwlock,
 * CoSemaphore and CoGroup.  It is the two lowest bits of a word of theirs; zero
 * is unlocked.  The other bits are the owner's: while the lock is held only
 * the holder changes them, and by the unlock; what may be done to them while it
 * is free is for the owner to say.
 *
 * Guarantees mutual exclusion between threads, and that brief_unlock() touches
 * the memory no more once another thread can have taken the lock: so whoever
 * finds, under the lock, that he is the last may unlock and free.  Not fair,
 * and need not be: who waits for long waits in a list that the lock protects.
 *
 * The holder never suspends, calls nobody's code and takes no other lock.  A
 * thread that finds it taken spins a little, and then sleeps, since the holder
 * may have been preempted.
 *
 * The system call that wakes a sleeper comes after the unlock and passes the
 * address only.  The memory may belong to something else by then; the worst
 * that a futex call on such an address does is to wake somebody for nothing,
 * which every user of a futex must bear (os_futex_wait()).
 *
 * PROTOCOL AND MEMORY ORDER: [brief] in docs/memory-ordering.md.
 */
#ifndef COAIO_SYNC_BRIEF_H
#define COAIO_SYNC_BRIEF_H

#include "base/atomic.h"
#include "base/compiler.h"

enum {
    BRIEF_FREE = 0,
    BRIEF_HELD = 1,
    BRIEF_SLEEPERS = 2, /* held, and somebody may sleep */
    BRIEF_STATE = 3,    /* the mask of these */
    BRIEF_OWNERS = 4    /* the first bit that is the owner's */
};

COLD uint32_t brief_lock_slow(uint32_t *lock);
COLD void brief_wake(uint32_t *lock);

/* Returns the owner's bits. */
static inline uint32_t brief_lock_bits(uint32_t *lock)
{
    uint32_t found = load_relaxed(lock);

    /* [brief/B] pairs with [brief/A] in brief_unlock_bits(). */
    if (likely((found & BRIEF_STATE) == BRIEF_FREE &&
               cas_acquire(lock, &found, found | BRIEF_HELD))) {
        return found;
    }
    return brief_lock_slow(lock);
}

/* And set these. */
static inline void brief_unlock_bits(uint32_t *lock, uint32_t bits)
{
    /*
     * [brief/A] Release: what was done under the lock is visible to the next
     * holder.  The last access to the memory.  Pairs with [brief/B] in
     * brief_lock(), brief_lock_bits() and brief_lock_slow().
     */
    uint32_t state = xchg_release(lock, bits) & BRIEF_STATE;

    if (unlikely(state == BRIEF_SLEEPERS)) {
        brief_wake(lock);
    }
}

/* For a word that has nothing else in it. */
static inline void brief_lock(uint32_t *lock)
{
    uint32_t found = BRIEF_FREE;

    /* [brief/B] pairs with [brief/A] in brief_unlock_bits(). */
    if (unlikely(!cas_acquire(lock, &found, BRIEF_HELD))) {
        brief_lock_slow(lock);
    }
}

static inline void brief_unlock(uint32_t *lock)
{
    brief_unlock_bits(lock, 0);
}

#endif
