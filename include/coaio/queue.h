/* SPDX-License-Identifier: MIT */
/*
 * CoQueue: a condition variable for coroutines; those that wait for one are a
 * first-in, first-out queue.  Waiters may belong to different contexts; each
 * resumes in its own.
 *
 * A CoQueue has no lock of its own.  All calls on a queue are made under the
 * one lock that its waiters pass: a CoMutex or a pthread_mutex_t; or, with
 * NULL for the lock, all on one home thread.
 *
 *     co_mutex_lock(&s->lock);
 *     while (!s->data) {
 *         co_queue_wait(&s->queue, &s->lock);
 *     }
 *
 * Guarantees
 *
 *   1. A woken coroutine never runs inside the call of a waker that is a
 *      coroutine.
 *   2. Waiters wake in the order in which they began to wait.
 *      co_queue_restart_all() wakes exactly those that wait at the time of the
 *      call; one that waits again is not woken twice.
 *   3. The queue may be freed as soon as the wake call returns.  Its waiters
 *      still wake.  There is no destroy function, and nothing leaks.
 *   4. A wake call costs at most one notification for each context concerned,
 *      and allocates nothing.
 *   5. Each waiter resumes in its own context.
 *   6. The lock is released while waiting and held again on every return,
 *      also after a timeout.  Waiters whose lock is a CoMutex are moved to the
 *      mutex, behind those who had queued for it before, and run one after
 *      the other as it becomes free.
 *
 * Thread table
 *
 *                              outside      inside a    signal
 *                              coroutines   coroutine   handler
 *   co_queue_init                  yes         yes        no
 *   co_queue_wait                  no          yes        no
 *   co_queue_wait_timeout_ns       no          yes        no
 *   co_queue_next                  no          yes        no
 *   co_queue_restart_all           no          yes        no
 *   co_queue_enter_next            yes         no         no
 *   co_queue_enter_all             yes         no         no
 *   co_queue_empty                 yes         yes        no
 */
#ifndef COAIO_QUEUE_H
#define COAIO_QUEUE_H

#include <coaio/lock.h>
#include <coaio/types.h>

COAIO_BEGIN_DECLS

/* The fields are the library's own. */
struct CoQueue {
    CoWaiterList waiters_;
};

/**
 * Make queue empty.  The same as filling it with zeroes.
 */
COAIO_API void co_queue_init(CoQueue *queue);

/**
 * Release lock, wait to be woken, take lock again.
 *
 *   int co_queue_wait(CoQueue *queue, lock);
 *   int co_queue_wait_timeout_ns(CoQueue *queue, lock, int64_t timeout_ns);
 *
 * lock is a CoMutex *, a pthread_mutex_t * or NULL; the type is checked by
 * the compiler.  timeout_ns is relative; 0 or less gives other waiters and
 * wakers one chance, and below 0 is no special case.  A waiter that is woken
 * and times out at once counts as woken.
 *
 * Returns 0 when woken, -ETIMEDOUT, or (later) -ECANCELED; the lock is held
 * whatever it returns.
 */
#define co_queue_wait(queue, lock) co_queue_wait_lock((queue), CO_LOCK(lock))
#define co_queue_wait_timeout_ns(queue, lock, timeout_ns)                     \
    co_queue_wait_lock_timeout_ns((queue), CO_LOCK(lock), (timeout_ns))

COAIO_API int coroutine_fn co_queue_wait_lock(CoQueue *queue, CoLock lock);
COAIO_API int coroutine_fn co_queue_wait_lock_timeout_ns(CoQueue *queue,
                                                         CoLock lock,
                                                         int64_t timeout_ns);

/**
 * Wake the waiter that has waited longest.  It does not run within the call.
 * Returns whether there was one (whose time was not up).
 */
COAIO_API bool co_queue_next(CoQueue *queue);

/**
 * Wake all who wait now.
 */
COAIO_API void co_queue_restart_all(CoQueue *queue);

/**
 * For code outside coroutines: take the first waiter (all waiters) off the
 * queue, drop lock, enter what lives on this thread, schedule the rest, and
 * take lock again.
 *
 *   bool co_queue_enter_next(CoQueue *queue, lock);
 *   void co_queue_enter_all(CoQueue *queue, lock);
 *
 * lock is the pthread_mutex_t that the waiters passed, or NULL: a CoMutex
 * cannot be held outside coroutines.  The queue may be gone on return.
 *
 * Returns whether there was a waiter.
 */
#define co_queue_enter_next(queue, lock)                                      \
    co_queue_enter_next_lock((queue), CO_LOCK(lock))
#define co_queue_enter_all(queue, lock)                                       \
    co_queue_enter_all_lock((queue), CO_LOCK(lock))

COAIO_API bool co_queue_enter_next_lock(CoQueue *queue, CoLock lock);
COAIO_API void co_queue_enter_all_lock(CoQueue *queue, CoLock lock);

/**
 * Whether nobody waits.  One whose time is up, but who does not run yet, may
 * still count as waiting.
 */
COAIO_API bool co_queue_empty(const CoQueue *queue);

COAIO_END_DECLS

#endif
