/* SPDX-License-Identifier: MIT */
/*
 * CoRwlock: a count of owners and one queue for both sides, under a brief
 * lock.  Ownership is passed by whoever lets go: a waiter that runs again has
 * the lock already, so nobody can come in between.
 *
 * What it guarantees is said in coaio/rwlock.h.  No call waits for the brief
 * lock longer than another thread takes for a few instructions, so downgrade
 * never waits.  Locking again by a coroutine that reads is not noticed: it
 * works unless a writer queues in between, and then both wait for ever.
 *
 * LIFETIME: the last access of an unlock is that of brief_unlock() (brief.h);
 * those that it has let in are woken after that.
 *
 * INVARIANTS
 *
 *   1. owners_ is the number of readers, or WRITER.
 *   2. writer_ is the writer while owners_ is WRITER, and NULL otherwise.
 *   3. If somebody waits, the oldest cannot have the lock now.
 *   4. A waiter is taken off the queue, and counted as owner, in one critical
 *      section; whoever does so wakes it.
 *
 * PROTOCOL AND MEMORY ORDER: [brief] and [wait] in docs/memory-ordering.md.
 */
#include "base/explore.h"
#include "sync/brief.h"
#include "sync/waiter.h"

#include <coaio/rwlock.h>

#include <string.h>

#define WRITER (-1)

typedef struct RwlockWaiter {
    Waiter base; /* first */
    bool write;  /* constant */
} RwlockWaiter;

static COLD NORETURN void misuse_own(const char *call, CoRwlock *rwlock,
                                     const Coroutine *self)
{
    CoroutineLabel label;

    misuse("%s: %s has CoRwlock %p for writing already, and would wait for "
           "itself",
           call, coroutine_label(self, &label), (void *)rwlock);
}

static COLD NORETURN void misuse_not_owner(const char *call, CoRwlock *rwlock,
                                           const Coroutine *self)
{
    CoroutineLabel label, other;

    if (rwlock->owners_ == WRITER) {
        misuse("%s: %s does not hold CoRwlock %p; %s has it for writing", call,
               coroutine_label(self, &label), (void *)rwlock,
               coroutine_label(rwlock->writer_, &other));
    }
    misuse("%s: %s does not hold CoRwlock %p; it has %lld readers", call,
           coroutine_label(self, &label), (void *)rwlock,
           (long long)rwlock->owners_);
}

void co_rwlock_init(CoRwlock *rwlock)
{
    memset(rwlock, 0, sizeof(*rwlock));
}

/* --- under the brief lock ------------------------------------------------*/

static bool available(const CoRwlock *rwlock, bool write)
{
    return write ? rwlock->owners_ == 0 : rwlock->owners_ != WRITER;
}

static void own(CoRwlock *rwlock, bool write, Coroutine *co)
{
    invariant(available(rwlock, write)); /* INVARIANTS 1 */
    if (write) {
        rwlock->owners_ = WRITER;
        rwlock->writer_ = co;
    } else {
        rwlock->owners_++;
    }
}

static void disown(CoRwlock *rwlock)
{
    if (rwlock->owners_ == WRITER) {
        rwlock->owners_ = 0;
        rwlock->writer_ = NULL;
    } else {
        rwlock->owners_--;
    }
}

/* Let in, in their order, all who can have the lock now, and put them into
 * granted: a writer, or neighbouring readers. */
static void grant(CoRwlock *rwlock, Fifo *granted, const char *call)
{
    Waiter *first;

    while ((first = waiters_first(&rwlock->waiters_))) {
        RwlockWaiter *waiter = container_of(first, RwlockWaiter, base);

        if (!available(rwlock, waiter->write)) {
            break; /* INVARIANTS 3 */
        }
        waiters_remove(&rwlock->waiters_, first);
        MARK("rwlock: granted to one who waits");
        own(rwlock, waiter->write, first->wait.co); /* INVARIANTS 4 */
        co_wait_settle(&first->wait, 0);
        waiter_claim(first, granted, call);
    }
}

static void check_owner(const char *call, CoRwlock *rwlock,
                        const Coroutine *self)
{
    if (unlikely(rwlock->owners_ == 0 || self->locks_held == 0 ||
                 (rwlock->owners_ == WRITER && rwlock->writer_ != self))) {
        misuse_not_owner(call, rwlock, self);
    }
}

/* --- the calls -----------------------------------------------------------*/

static void enqueue(CoRwlock *rwlock, RwlockWaiter *waiter, bool write)
{
    waiter->write = write;
    co_wait_init(&waiter->base.wait, "CoRwlock", rwlock, NULL);
    waiters_append(&rwlock->waiters_, &waiter->base);
}

static void coroutine_fn lock_as(CoRwlock *rwlock, bool write, const char *call)
{
    Coroutine *self = sync_self(call, "CoRwlock", rwlock);
    RwlockWaiter waiter;
    bool wait;

    brief_lock(&rwlock->lock_);
    if (unlikely(rwlock->writer_ == self)) {
        misuse_own(call, rwlock, self);
    }
    wait = !waiters_empty(&rwlock->waiters_) || !available(rwlock, write);
    if (wait) {
        enqueue(rwlock, &waiter, write);
    } else {
        own(rwlock, write, self);
    }
    brief_unlock(&rwlock->lock_);
    if (wait) {
        co_wait_park(&waiter.base.wait, -1);
    }
    self->locks_held++;
}

void co_rwlock_rdlock(CoRwlock *rwlock)
{
    lock_as(rwlock, false, "co_rwlock_rdlock");
}

void co_rwlock_wrlock(CoRwlock *rwlock)
{
    lock_as(rwlock, true, "co_rwlock_wrlock");
}

void co_rwlock_unlock(CoRwlock *rwlock)
{
    const char *call = "co_rwlock_unlock";
    Coroutine *self = sync_self(call, "CoRwlock", rwlock);
    Fifo granted = {NULL, NULL};

    brief_lock(&rwlock->lock_);
    check_owner(call, rwlock, self);
    disown(rwlock);
    if (!MUTANT(RWLOCK_UNLOCK_FORGETS)) {
        grant(rwlock, &granted, call);
    }
    brief_unlock(&rwlock->lock_);
    self->locks_held--;
    waiters_deliver(&granted);
}

void co_rwlock_downgrade(CoRwlock *rwlock)
{
    const char *call = "co_rwlock_downgrade";
    Coroutine *self = sync_self(call, "CoRwlock", rwlock);
    Fifo granted = {NULL, NULL};

    brief_lock(&rwlock->lock_);
    if (unlikely(rwlock->writer_ != self)) {
        misuse_not_owner(call, rwlock, self);
    }
    disown(rwlock);
    own(rwlock, false, self);
    if (!MUTANT(RWLOCK_DOWNGRADE)) {
        grant(rwlock, &granted, call);
    }
    brief_unlock(&rwlock->lock_);
    waiters_deliver(&granted);
}

void co_rwlock_upgrade(CoRwlock *rwlock)
{
    const char *call = "co_rwlock_upgrade";
    Coroutine *self = sync_self(call, "CoRwlock", rwlock);
    Fifo granted = {NULL, NULL};
    RwlockWaiter waiter;
    bool wait;

    brief_lock(&rwlock->lock_);
    if (unlikely(rwlock->writer_ == self)) {
        misuse_own(call, rwlock, self);
    }
    check_owner(call, rwlock, self);
    wait = rwlock->owners_ > 1 || !waiters_empty(&rwlock->waiters_);
    if (wait) {
        enqueue(rwlock, &waiter, true);
    }
    disown(rwlock);
    if (wait) {
        grant(rwlock, &granted, call);
    } else {
        own(rwlock, true, self);
    }
    brief_unlock(&rwlock->lock_);
    if (wait) {
        waiters_deliver(&granted);
        co_wait_park(&waiter.base.wait, -1);
    }
}
