/* SPDX-License-Identifier: MIT */
/*
 * The slow halves of the brief lock; see brief.h.
 */
#include "sync/brief.h"

#include "base/explore.h"
#include "os/thread.h"

/* Some microseconds at most: what it protects takes far less. */
#define BRIEF_SPINS SCALED(100, 1)

/* Take it from free to state.  Returns false if it is taken, and has changed
 * *found to what it is. */
static bool take(uint32_t *lock, uint32_t *found, uint32_t state)
{
    *found = load_relaxed(lock);
    while ((*found & BRIEF_STATE) == BRIEF_FREE) {
        /* [brief/B] pairs with [brief/A] in brief_unlock_bits(). */
        if (cas_acquire(lock, found, *found | state)) {
            return true;
        }
    }
    return false;
}

uint32_t brief_lock_slow(uint32_t *lock)
{
    uint32_t found, sleepers;

    for (int i = 0; i < BRIEF_SPINS && !os_one_cpu; i++) {
        if (take(lock, &found, BRIEF_HELD)) {
            return found;
        }
        spin_hint();
    }

    /*
     * Who has slept cannot know whether others sleep, and so leaves SLEEPERS
     * behind when he takes the lock; at worst that wakes nobody.
     */
    while (!take(lock, &found, BRIEF_SLEEPERS)) {
        sleepers = (found & ~(uint32_t)BRIEF_STATE) | BRIEF_SLEEPERS;
        if (found == sleepers || cas_relaxed(lock, &found, sleepers)) {
            os_futex_wait(lock, sleepers, -1);
        }
    }
    return found;
}

void brief_wake(uint32_t *lock)
{
    MARK("brief: a sleeper is woken");
    if (!MUTANT(BRIEF_NO_WAKE)) {
        os_futex_wake(lock, 1);
    }
}
