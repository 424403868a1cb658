/* SPDX-License-Identifier: MIT */
/*
 * CoMutex: a lock that suspends the coroutine that waits for it, not the
 * thread.  Its users may live in different contexts, on different threads.
 *
 * Guarantees
 *
 *   - Mutual exclusion, across threads, without a lock of its own.
 *   - First come, first served among those that have queued.  A locker that
 *     still spins has not queued, and may take a free lock; an unlocker never
 *     passes over a queued waiter.
 *   - A locker spins briefly, and only for a holder that took the mutex on
 *     another thread, or was handed it and is being woken there, while nobody
 *     queues.  Whether that one runs cannot be asked, for it may be gone: so
 *     spinning that fails makes later spinning shorter.  Where the process had
 *     one processor when it loaded the library, nobody spins.
 *   - Whoever unlocks last may free the mutex at once, even while an earlier
 *     unlock is still returning in another thread.
 *   - There is no destroy function.  A zeroed CoMutex is an unlocked one.
 *
 * Misuse that aborts: unlocking by a coroutine that does not hold it, locking
 * what one holds already, a coroutine that finishes with a mutex held, waiting
 * in a coroutine that has no home.
 *
 * Thread table
 *
 *                            outside      inside a    signal
 *                            coroutines   coroutine   handler
 *   co_mutex_init                yes         yes        no
 *   co_mutex_lock                no          yes        no
 *   co_mutex_trylock             no          yes        no
 *   co_mutex_unlock              no          yes        no
 *   co_mutex_assert_locked       no          yes        no
 */
#ifndef COAIO_MUTEX_H
#define COAIO_MUTEX_H

#include <coaio/types.h>

COAIO_BEGIN_DECLS

/* The fields are the library's own. */
struct CoMutex {
    uintptr_t word_;    /* free, held, or the newest that was pushed */
    void *head_;        /* the holder's: who waits, oldest first */
    void *tail_;
    Coroutine *holder_; /* compared, never followed */
    void *thread_;      /* where the holder runs; compared only */
    uint32_t spins_;    /* how long spinning has paid of late */
    uint32_t vain_;     /* how often waiting for an arrival has not */
};

/**
 * Make mutex unlocked.  The same as filling it with zeroes.
 */
COAIO_API void co_mutex_init(CoMutex *mutex);

/**
 * Take mutex, waiting for it if need be.  Cannot be cancelled.
 *
 * Barriers: acquire; what the holder before wrote is visible.
 */
COAIO_API void coroutine_fn co_mutex_lock(CoMutex *mutex);

/**
 * Take mutex if it is free.  Returns whether it was.  Never suspends.
 *
 * Barriers: acquire if taken, else none.
 */
COAIO_API bool co_mutex_trylock(CoMutex *mutex);

/**
 * Give mutex to the waiter that queued first, or set it free.  Never suspends:
 * the waiter goes on later (wake.h).
 *
 * Barriers: release.
 */
COAIO_API void co_mutex_unlock(CoMutex *mutex);

/**
 * Abort unless the calling coroutine holds mutex.
 */
COAIO_API void co_mutex_assert_locked(CoMutex *mutex);

COAIO_END_DECLS

#endif
