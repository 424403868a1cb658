/* SPDX-License-Identifier: MIT */
#ifndef COAIO_TESTS_QUEUE_CASES_H
#define COAIO_TESTS_QUEUE_CASES_H

/*
 * What the tests of CoQueue share: a queue with one of the three kinds of
 * lock, and waiters that note in which order they woke.
 *
 * QUEUE_CASES(name) makes three cases of one function, one for each kind.
 */

#include "loops.h"
#include "os/valgrind.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_WAITERS 1000

/* Valgrind takes ever longer for each further stack that it knows. */
LOOPS_UNUSED static int a_thousand(void)
{
    return os_in_valgrind() ? QUEUE_WAITERS / 10 : QUEUE_WAITERS;
}

typedef struct Shared {
    CoQueue *queue; /* on the heap, so that it can be freed */
    CoMutex mutex;
    pthread_mutex_t pthread;
    CoLockKind kind;
    int order[QUEUE_WAITERS * 2];
    int woken;   /* how many entries order has */
    int waiting; /* under the lock */
} Shared;

typedef struct QueueJob {
    Shared *shared;
    int number;
    int rounds;         /* waits so often */
    int64_t timeout_ns; /* below 0: none */
    int result;         /* of the last wait */
    AioContext *ctx;    /* where it lives, or NULL */
    bool done;
} QueueJob;

/* Nothing of a CoQueue is ever used after it was freed: poison it, for builds
 * without a sanitizer. */
LOOPS_UNUSED static void queue_drop(Shared *s)
{
    memset(s->queue, 0xa5, sizeof(*s->queue));
    free(s->queue);
    s->queue = NULL;
}

LOOPS_UNUSED static void shared_open(Shared *s, CoLockKind kind)
{
    memset(s, 0, sizeof(*s));
    s->kind = kind;
    s->queue = calloc(1, sizeof(*s->queue));
    CHECK(s->queue != NULL);
    CHECK_EQ(pthread_mutex_init(&s->pthread, NULL), 0);
}

LOOPS_UNUSED static void shared_close(Shared *s)
{
    free(s->queue);
    CHECK_EQ(pthread_mutex_destroy(&s->pthread), 0);
}

LOOPS_UNUSED static void shared_lock(Shared *s)
{
    if (s->kind == CO_LOCK_MUTEX) {
        co_mutex_lock(&s->mutex);
    } else if (s->kind == CO_LOCK_PTHREAD) {
        CHECK_EQ(pthread_mutex_lock(&s->pthread), 0);
    }
}

LOOPS_UNUSED static void shared_unlock(Shared *s)
{
    if (s->kind == CO_LOCK_MUTEX) {
        co_mutex_unlock(&s->mutex);
    } else if (s->kind == CO_LOCK_PTHREAD) {
        CHECK_EQ(pthread_mutex_unlock(&s->pthread), 0);
    }
}

LOOPS_UNUSED static void shared_check_locked(Shared *s)
{
    if (s->kind == CO_LOCK_MUTEX) {
        co_mutex_assert_locked(&s->mutex);
    } else if (s->kind == CO_LOCK_PTHREAD) {
        CHECK_EQ(pthread_mutex_trylock(&s->pthread), EBUSY);
    }
}

/* One wait, through the macros as users write them. */
LOOPS_UNUSED static int shared_wait(Shared *s, int64_t timeout_ns)
{
    bool limited = timeout_ns >= 0;

    switch (s->kind) {
    case CO_LOCK_MUTEX:
        return limited
                   ? co_queue_wait_timeout_ns(s->queue, &s->mutex, timeout_ns)
                   : co_queue_wait(s->queue, &s->mutex);
    case CO_LOCK_PTHREAD:
        return limited
                   ? co_queue_wait_timeout_ns(s->queue, &s->pthread, timeout_ns)
                   : co_queue_wait(s->queue, &s->pthread);
    default:
        return limited ? co_queue_wait_timeout_ns(s->queue, NULL, timeout_ns)
                       : co_queue_wait(s->queue, NULL);
    }
}

/* Waits job->rounds times, and notes its number each time that it wakes. */
LOOPS_UNUSED static void queue_waiter(void *opaque)
{
    QueueJob *job = opaque;
    Shared *s = job->shared;

    shared_lock(s);
    for (int i = 0; i < job->rounds; i++) {
        s->waiting++;
        job->result = shared_wait(s, job->timeout_ns);
        s->waiting--;
        shared_check_locked(s);
        if (job->ctx) {
            CHECK(aio_context_current() == job->ctx);
        }
        if (job->result == 0) {
            s->order[s->woken++] = job->number;
        }
    }
    job->done = true;
    shared_unlock(s);
    if (job->ctx) {
        job_done();
    }
}

LOOPS_UNUSED static QueueJob queue_job(Shared *s, int number)
{
    QueueJob job = {
        .shared = s,
        .number = number,
        .rounds = 1,
        .timeout_ns = -1,
    };

    return job;
}

#define QUEUE_CASES(name)              \
    static void name(CoLockKind kind); \
    TEST(name##_without_lock)          \
    {                                  \
        name(CO_LOCK_NONE);            \
    }                                  \
    QUEUE_CASES_LOCKED(name)

#define QUEUE_CASES_LOCKED(name)       \
    static void name(CoLockKind kind); \
    TEST(name##_with_mutex)            \
    {                                  \
        name(CO_LOCK_MUTEX);           \
    }                                  \
    TEST(name##_with_pthread_mutex)    \
    {                                  \
        name(CO_LOCK_PTHREAD);         \
    }                                  \
    static void name(CoLockKind kind)

#endif
