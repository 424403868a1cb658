/* SPDX-License-Identifier: MIT */
/*
 * CoMutex, for CoQueue: its waiters are moved over to the mutex that they will
 * need, instead of all waking at once to fight for it.
 */
#ifndef COAIO_SYNC_MUTEX_INT_H
#define COAIO_SYNC_MUTEX_INT_H

#include "sync/waiter.h"

#include <coaio/mutex.h>

/* Whether co holds mutex; only co itself can be sure of the answer. */
static inline bool mutex_held_by(CoMutex *mutex, const Coroutine *co)
{
    return load_relaxed(&mutex->holder_) == co;
}

/* For the holder: put those who have queued by now into the order of service,
 * before who is appended next. */
void mutex_take_over_pushed(CoMutex *mutex);

/* For the holder: waiter, whose wait has been ended with result 0, gets the
 * mutex when its turn comes, and is woken with it. */
void mutex_append(CoMutex *mutex, Waiter *waiter);

/* For one that was appended, when it runs: it holds mutex now. */
void mutex_arrive(CoMutex *mutex);

COLD NORETURN void mutex_misuse_not_holder(const char *call, CoMutex *mutex);

#endif
