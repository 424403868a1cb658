/* SPDX-License-Identifier: MIT */
/*
 * The pool of free stacks of the default size: a small batch in each thread,
 * which trades whole batches with the slabs' free lists.  So creating on one
 * thread and finishing on another neither drains one nor bloats the other.
 *
 * A thread's batch is its own: no lock, no atomics.  It goes back when the
 * thread ends.  With COAIO_DEBUG=1 freed slots stay out of use for a while,
 * so that a stale pointer is recognised.
 */
#ifndef COAIO_COROUTINE_POOL_H
#define COAIO_COROUTINE_POOL_H

#include "base/explore.h"
#include "coroutine/coroutine_int.h"
#include "coroutine/stack.h"

#define POOL_BATCH SCALED(64, 2)  /* slots that change hands at once */
#define POOL_LIMIT SCALED(128, 3) /* a thread keeps at most so many */

/* The newest slot of the thread's batch, which is not empty. */
static inline Coroutine *pool_pop(OsThread *thread)
{
    FifoNode *node = thread->pool;

    thread->pool = node->next;
    thread->pool_size--;
    return container_of(node, Coroutine, link);
}

static inline void pool_push(OsThread *thread, Coroutine *co)
{
    co->link.next = thread->pool;
    thread->pool = &co->link;
    thread->pool_size++;
}

/* A slot of the default class, or NULL. */
Coroutine *pool_take(OsThread *thread);

/* Take back a slot of any class that was left for good; state is FREE. */
void pool_put(OsThread *thread, Coroutine *co);

/*
 * Take back a slot whose stack the calling thread is still running on, and
 * will leave before it takes another from the pool.  Returns false, and has
 * done nothing, if that cannot be done: pool_put() must follow, after leaving.
 */
static inline bool pool_put_early(OsThread *thread, Coroutine *co)
{
    if (unlikely(!co->poolable || thread->pool_size >= thread->pool_limit)) {
        return false;
    }
    pool_push(thread, co);
    return true;
}

#endif
