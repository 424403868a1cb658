/* SPDX-License-Identifier: MIT */
/*
 * The slow halves of the brief lock; see brief.h.
 */
#include "sync/brief.h"

#include "base/explore.h"
#include "os/thread.h"

/* Some microseconds at most: what it protects takes far less. */
#define BRIEF_SPINS SCALED(100, 1)

void brief_lock_slow(uint32_t *lock)
{
    for (int i = 0; i < BRIEF_SPINS; i++) {
        uint32_t found = BRIEF_FREE;

        if (load_relaxed(lock) == BRIEF_FREE &&
            cas_acquire(lock, &found, BRIEF_HELD)) {
            return;
        }
        spin_hint();
    }

    /*
     * [brief/B] Who has slept cannot know whether others sleep, and so leaves
     * SLEEPERS behind when he takes the lock; at worst that wakes nobody.
     */
    while (xchg_acquire(lock, BRIEF_SLEEPERS) != BRIEF_FREE) {
        os_futex_wait(lock, BRIEF_SLEEPERS, -1);
    }
}

void brief_wake(uint32_t *lock)
{
    MARK("brief: a sleeper is woken");
    if (!MUTANT(BRIEF_NO_WAKE)) {
        os_futex_wake(lock, 1);
    }
}
