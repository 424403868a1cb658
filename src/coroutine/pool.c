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
 *   1. OsThread.pool is a chain of pool_size free slots, all poolable;
 *      pool_size is at most POOL_LIMIT.
 *   2. A thread whose pool is not empty is prepared: the hook will run.  One
 *      that could not be prepared, for want of a key or of memory, has none.
 *   3. OsThread.pool_limit is POOL_LIMIT in a thread that is prepared, and 0
 *      before and with COAIO_DEBUG=1, when no slot may go straight back.
 */
#include "coroutine/pool.h"

#include "coroutine/stack.h"
#include "os/misc.h"

#define QUARANTINE 256 /* slots that COAIO_DEBUG=1 keeps out of use */

static OsMutex quarantine_lock = OS_MUTEX_INIT;
static Fifo quarantine; /* of Coroutine.link; quarantine_lock */
static unsigned quarantined;

static bool hooked; /* atomic; threads that end give back what they have */

/*
 * The bug pool-pop-one: slots change hands on a stack, of Coroutine.post.node,
 * from which one at a time is taken.  Between the look at next and the
 * compare-and-swap others may take several and bring the first one back.
 */
static FifoNode *mutant_stack; /* atomic */

static FifoNode *mutant_pop_one(void)
{
    FifoNode *node = load_acquire(&mutant_stack);

    while (node &&
           !cas_acq_rel(&mutant_stack, &node, load_relaxed(&node->next))) {
    }
    return node ? &container_of(node, Coroutine, post.node)->link : NULL;
}

static void mutant_push_all(FifoNode *link)
{
    FifoNode *next;

    for (; link; link = next) {
        FifoNode *node = &container_of(link, Coroutine, link)->post.node;
        FifoNode *head = load_relaxed(&mutant_stack);

        next = link->next;
        do {
            store_relaxed(&node->next, head);
        } while (!cas_release(&mutant_stack, &head, node));
    }
}

/* A chain of slots goes back to the slabs. */
static void give_back(FifoNode *chain)
{
    if (MUTANT(POOL_POP_ONE)) {
        mutant_push_all(chain);
        return;
    }
    stack_put_batch(container_of(chain, Coroutine, link));
}

static void give_back_all(OsThread *thread)
{
    if (thread->pool && !MUTANT(POOL_KEPT_AT_END)) {
        MARK("pool: a thread ends and gives back what it has");
        give_back(thread->pool);
        thread->pool = NULL;
        thread->pool_size = 0;
    }
    thread->pool_limit = 0; /* INVARIANTS 3 */
}

/* Others prepare threads, too, and know nothing of the hook. */
static void prepare(OsThread *thread)
{
    if (unlikely(!thread->prepared || !load_relaxed(&hooked))) {
        os_thread_on_exit(give_back_all);
        os_thread_prepare(thread);
        store_release(&hooked, true);
    }
    /* INVARIANTS 3 */
    thread->pool_limit = thread->prepared && !os_debug() ? POOL_LIMIT : 0;
}

static bool refill(OsThread *thread)
{
    Coroutine *chain;
    unsigned n;

    invariant(thread->pool_size == 0);
    prepare(thread);
    if (MUTANT(POOL_POP_ONE)) {
        thread->pool = mutant_pop_one();
        if (thread->pool) {
            thread->pool->next = NULL;
            thread->pool_size = 1;
            return true;
        }
    }
    /* One that is not prepared takes what it needs now: INVARIANTS 2. */
    n = stack_get_batch(STACK_CLASS_DEFAULT, thread->prepared ? POOL_BATCH : 1,
                        &chain);
    if (n == 0) {
        return false;
    }
    thread->pool = &chain->link;
    thread->pool_size = n;
    return true;
}

Coroutine *pool_take(OsThread *thread)
{
    if (unlikely(!thread->pool) && !refill(thread)) {
        return NULL;
    }
    return pool_pop(thread);
}

/* Give the older half of a full pool back: the newer ones are in the caches. */
static void give_back_batch(OsThread *thread)
{
    FifoNode *last = thread->pool;
    FifoNode *rest;

    for (unsigned i = 1; i < POOL_LIMIT - POOL_BATCH; i++) {
        last = last->next;
    }
    rest = last->next;
    last->next = NULL;
    thread->pool_size = POOL_LIMIT - POOL_BATCH;
    MARK("pool: a full one gives a batch back");
    give_back(rest);
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
    prepare(thread);
    if (unlikely(os_debug())) {
        co = pass_quarantine(co);
        if (!co) {
            return;
        }
    }
    if (unlikely(!co->poolable || !thread->prepared)) {
        stack_put(co);
        return;
    }
    if (COAIO_ASAN) {
        stack_recycle(co);
    }
    if (thread->pool_size == POOL_LIMIT) { /* INVARIANTS 1 */
        give_back_batch(thread);
    }
    pool_push(thread, co);
}
