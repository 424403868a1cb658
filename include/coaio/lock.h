/* SPDX-License-Identifier: MIT */
/*
 * CoLock: either a CoMutex, or a pthread_mutex_t, or none, as one value that
 * is passed along.  CO_LOCK(lock) makes one; the compiler rejects any other
 * type.  Users meet it only through the macros of queue.h.
 */
#ifndef COAIO_LOCK_H
#define COAIO_LOCK_H

#include <coaio/mutex.h>
#include <coaio/types.h>
#include <pthread.h>

typedef enum CoLockKind {
    CO_LOCK_NONE = 0,
    CO_LOCK_MUTEX,
    CO_LOCK_PTHREAD,
} CoLockKind;

typedef struct CoLock {
    void *lock;
    CoLockKind kind;
} CoLock;

static inline CoLock co_lock_from_mutex(CoMutex *mutex)
{
    CoLock lock = { mutex, mutex ? CO_LOCK_MUTEX : CO_LOCK_NONE };

    return lock;
}

static inline CoLock co_lock_from_pthread(pthread_mutex_t *mutex)
{
    CoLock lock = { mutex, mutex ? CO_LOCK_PTHREAD : CO_LOCK_NONE };

    return lock;
}

/* For a literal NULL; a void pointer to anything else aborts when used. */
static inline CoLock co_lock_from_null(void *null)
{
    CoLock lock = { null, CO_LOCK_NONE };

    return lock;
}

#ifdef __cplusplus

#include <cstddef>
#include <type_traits>

static inline CoLock co_lock_from(CoMutex *mutex)
{
    return co_lock_from_mutex(mutex);
}

static inline CoLock co_lock_from(pthread_mutex_t *mutex)
{
    return co_lock_from_pthread(mutex);
}

/* For nullptr, and for NULL, which has an integer type in C++. */
template <typename Null> static inline CoLock co_lock_from(Null null)
{
    static_assert(std::is_same<Null, std::nullptr_t>::value ||
                      std::is_integral<Null>::value,
                  "a lock is a CoMutex *, a pthread_mutex_t * or NULL");
    return co_lock_from_null(null == 0 ? nullptr
                                       : reinterpret_cast<void *>(1));
}

#define CO_LOCK(lock) co_lock_from(lock)

#else

#define CO_LOCK(lock)                                                         \
    _Generic((lock), CoMutex *: co_lock_from_mutex,                           \
             pthread_mutex_t *: co_lock_from_pthread,                         \
             void *: co_lock_from_null)(lock)

#endif

#endif
