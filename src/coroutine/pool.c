/* SPDX-License-Identifier: MIT */
/*
 * The pool; see pool.h.
 *
 * A thread that only creates takes batches from the slabs, one that only
 * finishes gives batches to them: both pay the class's lock once for
 * POOL_BATCH coroutines.
 *
 * INVARIANTS
 *
 *   1. OsThread.pool is a chain of pool_size guarded free slots of the default
 *      class; pool_size is at most POOL_LIMIT.
 *   2. A thread whose pool is not empty is prepared: the hook will run.
 */
#include "coroutine/pool.h"

#include "coroutine/stack.h"
#include "os/misc.h"

#define QUARANTINE 256 /* slots that COAIO_DEBUG=1 keeps out of use */

static OsMutex quarantine_lock = OS_MUTEX_INIT;
static Fifo quarantine; /* of Coroutine.link; quarantine_lock */
static unsigned quarantined;

bool pool_plain; /* the pool's hook is set, and COAIO_DEBUG is not */

static bool hooked; /* atomic; threads that end give back what they have */

static Coroutine *next_of(const Coroutine *co)
{
    return co->link.next ? container_of(co->link.next, Coroutine, link) : NULL;
}

static void give_back_all(OsThread *thread)
{
    if (thread->pool) {
        stack_put_batch(thread->pool);
        thread->pool = NULL;
        thread->pool_size = 0;
    }
}

static COLD void prepare(OsThread *thread)
{
    os_thread_on_exit(give_back_all);
    os_thread_prepare(thread);
    store_release(&hooked, true);
    store_relaxed(&pool_plain, !os_debug());
}

/* Others prepare threads, too, and know nothing of the hook. */
static inline bool needs_prepare(const OsThread *thread)
{
    return unlikely(!thread->prepared || !load_relaxed(&hooked));
}

Coroutine *pool_refill(OsThread *thread)
{
    Coroutine *co;
    unsigned n;

    invariant(thread->pool == NULL && thread->pool_size == 0);
    if (needs_prepare(thread)) {
        prepare(thread);
    }
    n = stack_get_batch(STACK_CLASS_DEFAULT, POOL_BATCH, &co);
    if (n == 0) {
        return NULL;
    }
    thread->pool = next_of(co);
    thread->pool_size = n - 1;
    return co;
}

/* Give the older half back: the newer ones are in the caches. */
void pool_give_back_batch(OsThread *thread)
{
    Coroutine *last = thread->pool;
    Coroutine *rest;

    for (unsigned i = 1; i < POOL_LIMIT - POOL_BATCH; i++) {
        last = next_of(last);
    }
    rest = next_of(last);
    last->link.next = NULL;
    thread->pool_size = POOL_LIMIT - POOL_BATCH;
    stack_put_batch(rest);
}

/*
 * Put co behind those that wait out their time.  Returns the one whose time is
 * over, or NULL.
 */
static Coroutine *pass_quarantine(Coroutine *co)
{
    FifoNode *node = NULL;

    os_mutex_lock(&quarantine_lock);
    fifo_append(&quarantine, &co->link);
    if (quarantined == QUARANTINE) {
        node = fifo_take(&quarantine);
    } else {
        quarantined++;
    }
    os_mutex_unlock(&quarantine_lock);
    return node ? container_of(node, Coroutine, link) : NULL;
}

void pool_put(OsThread *thread, Coroutine *co)
{
    invariant(co->state == COROUTINE_FREE);
    if (needs_prepare(thread)) {
        prepare(thread);
    }
    if (unlikely(os_debug())) {
        co = pass_quarantine(co);
        if (!co) {
            return;
        }
    }
    if (unlikely(co->size_class != STACK_CLASS_DEFAULT || co->unguarded)) {
        stack_put(co);
        return;
    }
    if (COAIO_ASAN) {
        stack_recycle(co);
    }
    pool_push(thread, co);
}
