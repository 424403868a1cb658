/* SPDX-License-Identifier: MIT */
/*
 * CoRwlock: readers in parallel, writers alone; its users may live in
 * different contexts.
 *
 * Guarantees
 *
 *   - First come, first served: a reader that comes after a queued writer
 *     queues behind it; neighbouring readers in the queue are woken together.
 *     Neither side starves.
 *   - co_rwlock_downgrade() never waits; readers queued first go on with it.
 *   - co_rwlock_upgrade() waits its turn: it gives up the read lock, and
 *     another writer may run before it has the write lock.  Look again at what
 *     you read.  Two upgraders do not deadlock.
 *   - The last unlocker may free the lock at once.  There is no destroy
 *     function.  A zeroed CoRwlock is an unlocked one.
 *
 * All calls may only be made in coroutines, except co_rwlock_init(), which any
 * thread and signal handler may make.  A wait for the lock cannot be cancelled.
 * A coroutine that finishes with the lock held aborts, as does an unlock of
 * what nobody holds.
 */
#ifndef COAIO_RWLOCK_H
#define COAIO_RWLOCK_H

#include <coaio/types.h>

COAIO_BEGIN_DECLS

/* The fields are the library's own. */
struct CoRwlock {
    uint32_t word_;     /* who has it, and the lock of the queue */
    uint32_t spins_;    /* how often looking again has paid */
    void *thread_;      /* of the one who came in last; compared */
    Coroutine *writer_; /* compared, never followed */
    CoWaiterList waiters_;
};

/**
 * Make rwlock unlocked.  The same as filling it with zeroes.
 */
COAIO_API void co_rwlock_init(CoRwlock *rwlock);

/**
 * Take rwlock for reading, waiting if need be.
 *
 * Barriers: acquire.
 */
COAIO_API void coroutine_fn co_rwlock_rdlock(CoRwlock *rwlock);

/**
 * Take rwlock for writing, waiting if need be.
 *
 * Barriers: acquire.
 */
COAIO_API void coroutine_fn co_rwlock_wrlock(CoRwlock *rwlock);

/**
 * Turn a write lock into a read lock without letting a writer in between.
 * Never suspends.
 *
 * Barriers: release.
 */
COAIO_API void co_rwlock_downgrade(CoRwlock *rwlock);

/**
 * Turn a read lock into a write lock; another writer may run in between.
 *
 * Barriers: release and acquire.
 */
COAIO_API void coroutine_fn co_rwlock_upgrade(CoRwlock *rwlock);

/**
 * Give up the read or write lock that the caller holds.  Never suspends.
 *
 * Barriers: release.
 */
COAIO_API void co_rwlock_unlock(CoRwlock *rwlock);

COAIO_END_DECLS

#endif
