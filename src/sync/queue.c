/* SPDX-License-Identifier: MIT */
/*
 * CoQueue: the waiters' records, on their stacks, in the order in which they
 * began to wait, and who wakes them.
 *
 * What it guarantees is said in coaio/queue.h.  How:
 *
 *   - A waker takes records off the queue and ends their waits under the lock.
 *     From then on the queue is nobody's business but the user's: woken waiters
 *     know their lock, and never look at the queue again.
 *   - A waiter that needs a CoMutex is not woken but moved into the list of
 *     that mutex, which the waker holds (mutex.c); unlocking wakes it, with
 *     the mutex in its hands.
 *   - A timeout ends the wait without the lock, so it leaves the record in the
 *     queue.  The waiter takes the lock, and then the record off, unless a
 *     waker has done that meanwhile.
 *
 * INVARIANTS
 *
 *   1. The lists, and linked in each record, are only touched under the lock.
 *   2. A record is off the queue before its wait ends with 0, and before
 *      co_queue_wait() returns.
 *   3. A waker touches a record whose timeout came first only while it has the
 *      lock: the waiter needs the lock to go on.
 *   4. A wake call does not touch the queue after the first coroutine has been
 *      delivered, and entering ones drop the lock only then.
 *
 * PROTOCOL AND MEMORY ORDER: [wait] decides between timeout and waker; all
 * else is ordered by the lock, and by waking.  See docs/memory-ordering.md.
 */
#include "base/explore.h"
#include "sync/mutex_int.h"

#include <coaio/queue.h>

#include <errno.h>

typedef struct QueueWaiter {
    Waiter base; /* first */
    CoLock lock; /* that it holds before and after; constant */
} QueueWaiter;

void co_queue_init(CoQueue *queue)
{
    queue->waiters_.head_ = NULL;
    queue->waiters_.tail_ = NULL;
}

bool co_queue_empty(const CoQueue *queue)
{
    return waiters_empty(&queue->waiters_);
}

/* --- waiting -------------------------------------------------------------*/

static COLD NORETURN void misuse_lock_type(const char *who, CoLock lock)
{
    misuse("%s: the lock %p is a void pointer; it must be a CoMutex *, a "
           "pthread_mutex_t * or NULL",
           who, lock.lock);
}

static inline void check_lock(CoLock lock, const char *who)
{
    if (unlikely(lock.kind == CO_LOCK_NONE && lock.lock)) {
        misuse_lock_type(who, lock);
    }
}

static void release_lock(CoLock lock)
{
    if (lock.kind == CO_LOCK_MUTEX) {
        co_mutex_unlock(lock.lock);
    } else if (lock.kind == CO_LOCK_PTHREAD) {
        os_user_mutex_unlock(lock.lock);
    }
}

/* After a wait that ended with result. */
static void coroutine_fn retake_lock(CoLock lock, int64_t result)
{
    if (lock.kind == CO_LOCK_PTHREAD) {
        os_user_mutex_lock(lock.lock);
    } else if (lock.kind == CO_LOCK_MUTEX && result == 0) {
        mutex_arrive(lock.lock); /* it was handed over */
    } else if (lock.kind == CO_LOCK_MUTEX) {
        co_mutex_lock(lock.lock);
    }
}

/* The queue belongs to the lock, which this does not have: only end it. */
static void cancel_wait(CoWait *wait, int error)
{
    co_wait_end(wait, error,
                error == -ETIMEDOUT ? "a timeout" : "a cancellation");
}

static int coroutine_fn queue_wait(CoQueue *queue, CoLock lock,
                                   int64_t timeout_ns, const char *who)
{
    Coroutine *self = sync_self(who, "CoQueue", queue);
    QueueWaiter waiter = {.lock = lock};
    int64_t result;

    check_lock(lock, who);
    if (lock.kind == CO_LOCK_MUTEX && !mutex_held_by(lock.lock, self)) {
        mutex_misuse_not_holder(who, lock.lock);
    }
    co_wait_init(&waiter.base.wait, "CoQueue", queue, cancel_wait);
    waiters_append(&queue->waiters_, &waiter.base);
    release_lock(lock);

    result = co_wait_park(&waiter.base.wait, timeout_ns);

    retake_lock(lock, result);
    if (waiter.base.linked) {
        invariant(result != 0); /* INVARIANTS 2 */
        waiters_remove(&queue->waiters_, &waiter.base);
    }
    return (int)result;
}

int co_queue_wait_lock(CoQueue *queue, CoLock lock)
{
    return queue_wait(queue, lock, -1, "co_queue_wait");
}

int co_queue_wait_lock_timeout_ns(CoQueue *queue, CoLock lock,
                                  int64_t timeout_ns)
{
    return queue_wait(queue, lock, timeout_ns < 0 ? 0 : timeout_ns,
                      "co_queue_wait_timeout_ns");
}

/* --- waking --------------------------------------------------------------*/

/* One wake call. */
typedef struct QueueWake {
    const char *who; /* the call */
    CoQueue *queue;  /* for messages */
    Coroutine *self; /* the waker, or NULL outside coroutines */
    CoLock lock;     /* outside: the one that the caller holds */
    CoMutex *mutex;  /* whose pushed waiters have been taken over */
    WakeChain ready; /* claimed, to be delivered by this call */
} QueueWake;

static COLD NORETURN void misuse_other_lock(const QueueWake *wake,
                                            const QueueWaiter *waiter)
{
    static const char *const kinds[] = {"no lock", "CoMutex",
                                        "pthread_mutex_t"};
    CoroutineLabel label;

    misuse("%s: %s waits in CoQueue %p with %s %p, and the call was made with "
           "%s %p",
           wake->who, coroutine_label(waiter->base.wait.co, &label),
           (void *)wake->queue, kinds[waiter->lock.kind], waiter->lock.lock,
           kinds[wake->lock.kind], wake->lock.lock);
}

static COLD NORETURN void misuse_other_thread(const QueueWake *wake,
                                              const QueueWaiter *waiter)
{
    CoroutineLabel label;

    misuse("%s: %s waits in CoQueue %p without a lock, and its home is not "
           "this thread's context",
           wake->who, coroutine_label(waiter->base.wait.co, &label),
           (void *)wake->queue);
}

/* Whether the caller can have the lock of waiter; aborts if not. */
static void check_may_wake(const QueueWake *wake, const QueueWaiter *waiter)
{
    if (!wake->self && (waiter->lock.kind != wake->lock.kind ||
                        waiter->lock.lock != wake->lock.lock)) {
        misuse_other_lock(wake, waiter);
    }
    if (waiter->lock.kind == CO_LOCK_MUTEX &&
        !mutex_held_by(waiter->lock.lock, wake->self)) {
        mutex_misuse_not_holder(wake->who, waiter->lock.lock);
    }
    if (waiter->lock.kind == CO_LOCK_NONE &&
        waiter->base.wait.co->home != (CoHome *)(void *)os_thread()->context) {
        misuse_other_thread(wake, waiter);
    }
}

static void move_to_mutex(QueueWake *wake, QueueWaiter *waiter)
{
    CoMutex *mutex = waiter->lock.lock;

    if (mutex != wake->mutex) {
        mutex_take_over_pushed(mutex);
        wake->mutex = mutex;
    }
    MARK("queue: a waiter moves to the mutex");
    mutex_append(mutex, &waiter->base);
}

/*
 * End the wait of one that was taken off the queue.  Returns false if its time
 * was up before; then it knows by itself, and finds itself off the queue.
 */
static bool wake_waiter(QueueWake *wake, Waiter *base)
{
    QueueWaiter *waiter = container_of(base, QueueWaiter, base);

    check_may_wake(wake, waiter);
    if (!co_wait_claim_end(&base->wait, 0)) {
        MARK("queue: a waiter's time was up before");
        return false; /* INVARIANTS 3 */
    }
    if (waiter->lock.kind == CO_LOCK_MUTEX) {
        move_to_mutex(wake, waiter);
    } else {
        waiter_claim(base, &wake->ready, wake->who);
    }
    return true;
}

/* Wake the first whose time is not up.  Returns whether there was one. */
static bool collect_first(QueueWake *wake, CoQueue *queue)
{
    Waiter *waiter;

    while ((waiter = waiters_take(&queue->waiters_))) {
        if (wake_waiter(wake, waiter)) {
            return true;
        }
    }
    return false;
}

/* Fetch from memory what is needed of the next, and of the one after it. */
static ALWAYS_INLINE void fetch_ahead(const CoWaiterList *list)
{
    const Waiter *next = waiters_first(list);

    if (next) {
        prefetch(next->wait.co);
        prefetch(&next->wait.co->link);
        if (next->next) {
            prefetch(next->next);
            prefetch((const char *)next->next + CACHE_LINE);
        }
    }
}

/* Wake all who wait now. */
static bool collect_all(QueueWake *wake, CoQueue *queue)
{
    CoWaiterList all = queue->waiters_;
    bool any = false;
    Waiter *waiter;

    co_queue_init(queue);
    while ((waiter = waiters_take(&all))) {
        fetch_ahead(&all);
        if (wake_waiter(wake, waiter)) {
            any = true;
        }
    }
    return any;
}

bool co_queue_next(CoQueue *queue)
{
    const char *who = "co_queue_next";
    QueueWake wake = {
        .who = who,
        .queue = queue,
        .self = sync_self(who, "CoQueue", queue),
    };
    bool any = collect_first(&wake, queue);

    waiters_deliver(&wake.ready); /* INVARIANTS 4 */
    return any;
}

void co_queue_restart_all(CoQueue *queue)
{
    const char *who = "co_queue_restart_all";
    QueueWake wake = {
        .who = who,
        .queue = queue,
        .self = sync_self(who, "CoQueue", queue),
    };

    collect_all(&wake, queue);
    waiters_deliver(&wake.ready); /* INVARIANTS 4 */
}

/* --- waking from outside coroutines --------------------------------------*/

static COLD NORETURN void misuse_inside(const char *who, const CoQueue *queue)
{
    CoroutineLabel label;

    misuse("%s: called in %s, on CoQueue %p: in coroutines use co_queue_next() "
           "or co_queue_restart_all()",
           who, coroutine_label(os_thread()->current, &label),
           (const void *)queue);
}

static COLD NORETURN void misuse_mutex_outside(const char *who, CoLock lock)
{
    misuse("%s: CoMutex %p cannot be held outside coroutines", who, lock.lock);
}

static QueueWake enter_begin(CoQueue *queue, CoLock lock, const char *who)
{
    QueueWake wake = {.who = who, .queue = queue, .lock = lock};

    os_check_fork(who);
    check_lock(lock, who);
    if (unlikely(os_thread()->current != NULL)) {
        misuse_inside(who, queue);
    }
    if (unlikely(lock.kind == CO_LOCK_MUTEX)) {
        misuse_mutex_outside(who, lock);
    }
    return wake;
}

/* Wake what was collected, without the lock, since it is going to need that. */
static void enter_ready(QueueWake *wake)
{
    release_lock(wake->lock);
    waiters_deliver(&wake->ready); /* INVARIANTS 4 */
    if (MUTANT(QUEUE_FREED)) {
        co_queue_init(wake->queue);
    }
    if (wake->lock.kind == CO_LOCK_PTHREAD) {
        os_user_mutex_lock(wake->lock.lock);
    }
}

bool co_queue_enter_next_lock(CoQueue *queue, CoLock lock)
{
    QueueWake wake = enter_begin(queue, lock, "co_queue_enter_next");

    if (!collect_first(&wake, queue)) {
        return false;
    }
    enter_ready(&wake);
    return true;
}

void co_queue_enter_all_lock(CoQueue *queue, CoLock lock)
{
    QueueWake wake = enter_begin(queue, lock, "co_queue_enter_all");

    if (collect_all(&wake, queue)) {
        enter_ready(&wake);
    }
    if (MUTANT(QUEUE_REWAIT) && collect_first(&wake, queue)) {
        enter_ready(&wake);
    }
}
