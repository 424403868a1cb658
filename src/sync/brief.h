/* SPDX-License-Identifier: MIT */
/*
 * A lock for a few instructions: what protects the fields of CoRwlock,
 * CoSemaphore and CoGroup.  It lives in their uint32_t lock_; zero is unlocked.
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
    BRIEF_HELD,
    BRIEF_SLEEPERS
};

COLD void brief_lock_slow(uint32_t *lock);
COLD void brief_wake(uint32_t *lock);

static inline void brief_lock(uint32_t *lock)
{
    uint32_t found = BRIEF_FREE;

    /* [brief/B] pairs with [brief/A] in brief_unlock(). */
    if (unlikely(!cas_acquire(lock, &found, BRIEF_HELD))) {
        brief_lock_slow(lock);
    }
}

static inline void brief_unlock(uint32_t *lock)
{
    /*
     * [brief/A] Release: what was done under the lock is visible to the next
     * holder.  The last access to the memory.  Pairs with [brief/B] in
     * brief_lock() and brief_lock_slow().
     */
    if (unlikely(xchg_release(lock, BRIEF_FREE) == BRIEF_SLEEPERS)) {
        brief_wake(lock);
    }
}

#endif
