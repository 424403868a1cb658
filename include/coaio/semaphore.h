/* SPDX-License-Identifier: MIT */
/*
 * CoSemaphore: a counter of units that coroutines take and give back; whoever
 * finds too few waits.  Users may live in different contexts.  First come,
 * first served.  Usable when zeroed (no units); no destroy function; may be
 * freed as soon as the last call on it that had to happen has returned.
 *
 * Thread table
 *
 *                               outside      inside a    signal
 *                               coroutines   coroutine   handler
 *   co_semaphore_init               yes         yes        no
 *   co_semaphore_acquire            no          yes        no
 *   co_semaphore_try_acquire        yes         yes        no
 *   co_semaphore_release            yes         yes        no
 */
#ifndef COAIO_SEMAPHORE_H
#define COAIO_SEMAPHORE_H

#include <coaio/types.h>

COAIO_BEGIN_DECLS

/* The fields are the library's own. */
struct CoSemaphore {
    uint32_t lock_;
    uint32_t pad_;
    uint64_t units_;
    CoWaiterList waiters_;
};

/**
 * Make semaphore one with that many units.
 */
COAIO_API void co_semaphore_init(CoSemaphore *semaphore, uint64_t units);

/**
 * Take units of them, waiting behind those who came before.
 *
 * Barriers: acquire.
 * Returns 0, or (later) -ECANCELED, and then has taken none.
 */
COAIO_API int coroutine_fn co_semaphore_acquire(CoSemaphore *semaphore,
                                                uint64_t units);

/**
 * Take them if there are enough and nobody waits.  Returns whether it did.
 *
 * Barriers: acquire if it did, else none.
 */
COAIO_API bool co_semaphore_try_acquire(CoSemaphore *semaphore,
                                        uint64_t units);

/**
 * Give units back, and wake the waiters for whom there are now enough.
 *
 * Barriers: release.
 */
COAIO_API void co_semaphore_release(CoSemaphore *semaphore, uint64_t units);

COAIO_END_DECLS

#endif
