/* SPDX-License-Identifier: MIT */
/*
 * CoSemaphore: units and a queue, under a brief lock.  Units are given to the
 * oldest waiter by whoever releases them; a waiter that runs again has them.
 *
 * Guarantees first come, first served: a small request never overtakes a large
 * one that waits.
 *
 * LIFETIME: the last access of a call is that of brief_unlock() (brief.h).
 *
 * INVARIANTS
 *
 *   1. If somebody waits, there are too few units for the oldest.
 *   2. Whoever takes a waiter off the queue ends its wait and wakes it:
 *      release with the units, or a cancellation without.
 *
 * PROTOCOL AND MEMORY ORDER: [brief] and [wait] in docs/memory-ordering.md.
 */
#include "sync/brief.h"
#include "sync/waiter.h"

#include <coaio/semaphore.h>

#include <string.h>

typedef struct SemaphoreWaiter {
    Waiter base;    /* first */
    uint64_t units; /* wanted; constant */
} SemaphoreWaiter;

void co_semaphore_init(CoSemaphore *semaphore, uint64_t units)
{
    memset(semaphore, 0, sizeof(*semaphore));
    semaphore->units_ = units;
}

/* Under the brief lock: serve, in order, those for whom there are enough. */
static void grant(CoSemaphore *semaphore, WakeChain *granted, const char *who)
{
    Waiter *first;

    while ((first = waiters_first(&semaphore->waiters_))) {
        SemaphoreWaiter *waiter = container_of(first, SemaphoreWaiter, base);

        if (waiter->units > semaphore->units_) {
            break; /* INVARIANTS 1 */
        }
        semaphore->units_ -= waiter->units;
        waiters_remove(&semaphore->waiters_, first);
        co_wait_settle(&first->wait, 0); /* INVARIANTS 2 */
        waiter_claim(first, granted, who);
    }
}

static bool take_if_enough(CoSemaphore *semaphore, uint64_t units)
{
    if (!waiters_empty(&semaphore->waiters_) || semaphore->units_ < units) {
        return false;
    }
    semaphore->units_ -= units;
    return true;
}

/* The one that gives up may have kept others waiting, who wanted less. */
static void cancel_acquire(CoWait *wait, int error)
{
    CoSemaphore *semaphore = (CoSemaphore *)wait->object;
    Waiter *waiter = waiter_of(wait);
    const char *who = "a cancellation";
    WakeChain woken = {0};

    brief_lock(&semaphore->lock_);
    if (waiter->linked) {
        waiters_remove(&semaphore->waiters_, waiter);
        co_wait_settle(wait, error); /* INVARIANTS 2 */
        waiter_claim(waiter, &woken, who);
        grant(semaphore, &woken, who);
    }
    brief_unlock(&semaphore->lock_);
    waiters_deliver(&woken);
}

int co_semaphore_acquire(CoSemaphore *semaphore, uint64_t units)
{
    SemaphoreWaiter waiter = {.units = units};

    sync_self("co_semaphore_acquire", "CoSemaphore", semaphore);
    brief_lock(&semaphore->lock_);
    if (take_if_enough(semaphore, units)) {
        brief_unlock(&semaphore->lock_);
        return 0;
    }
    co_wait_init(&waiter.base.wait, "CoSemaphore", semaphore, cancel_acquire);
    waiters_append(&semaphore->waiters_, &waiter.base);
    brief_unlock(&semaphore->lock_);
    return (int)co_wait_park(&waiter.base.wait, -1);
}

bool co_semaphore_try_acquire(CoSemaphore *semaphore, uint64_t units)
{
    bool taken;

    os_check_fork("co_semaphore_try_acquire");
    brief_lock(&semaphore->lock_);
    taken = take_if_enough(semaphore, units);
    brief_unlock(&semaphore->lock_);
    return taken;
}

static COLD NORETURN void misuse_overflow(CoSemaphore *semaphore,
                                          uint64_t units)
{
    misuse("co_semaphore_release: CoSemaphore %p has %llu units, and cannot "
           "take %llu more",
           (void *)semaphore, (unsigned long long)semaphore->units_,
           (unsigned long long)units);
}

void co_semaphore_release(CoSemaphore *semaphore, uint64_t units)
{
    WakeChain granted = {0};

    os_check_fork("co_semaphore_release");
    brief_lock(&semaphore->lock_);
    if (unlikely(units > UINT64_MAX - semaphore->units_)) {
        misuse_overflow(semaphore, units);
    }
    semaphore->units_ += units;
    grant(semaphore, &granted, "co_semaphore_release");
    brief_unlock(&semaphore->lock_);
    waiters_deliver(&granted);
}
