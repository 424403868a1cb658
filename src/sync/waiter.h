/* SPDX-License-Identifier: MIT */
/*
 * Waiter: the record of one coroutine's wait for a lock, on its stack, and the
 * list of them.  A list has no lock of its own: it is protected by the lock
 * that it belongs to (or that it is used under, for a CoQueue).
 *
 * A waiter is in one list at a time.  Whoever takes it off ends its wait, so
 * where every ender goes through the list, there is one at most.
 */
#ifndef COAIO_SYNC_WAITER_H
#define COAIO_SYNC_WAITER_H

#include "loop/wait.h"
#include "loop/wake_int.h"

#include <coaio/types.h>

typedef struct Waiter {
    CoWait wait;         /* first */
    struct Waiter *next; /* in a list, or in that of a CoMutex */
    struct Waiter *prev; /* valid while linked */
    bool linked;         /* whether it is in one; the list's lock */
} Waiter;

/* The waiter that wait is part of. */
static inline Waiter *waiter_of(CoWait *wait)
{
    return container_of(wait, Waiter, wait);
}

static inline Waiter *waiters_first(const CoWaiterList *list)
{
    return list->head_;
}

static inline bool waiters_empty(const CoWaiterList *list)
{
    return list->head_ == NULL;
}

static inline void waiters_append(CoWaiterList *list, Waiter *waiter)
{
    Waiter *last = list->head_ ? list->tail_ : NULL;

    waiter->next = NULL;
    waiter->prev = last;
    waiter->linked = true;
    if (last) {
        last->next = waiter;
    } else {
        list->head_ = waiter;
    }
    list->tail_ = waiter;
}

static inline void waiters_remove(CoWaiterList *list, Waiter *waiter)
{
    invariant(waiter->linked);
    waiter->linked = false;
    if (waiter->prev) {
        waiter->prev->next = waiter->next;
    } else {
        list->head_ = waiter->next;
    }
    if (waiter->next) {
        waiter->next->prev = waiter->prev;
    } else {
        list->tail_ = waiter->prev;
    }
}

/* The oldest, taken off, or NULL. */
static inline Waiter *waiters_take(CoWaiterList *list)
{
    Waiter *first = waiters_first(list);

    if (first) {
        waiters_remove(list, first);
    }
    return first;
}

/*
 * For one who has taken waiter off its list and ended its wait: make it part of
 * a chain to be delivered, as who, when no lock is held any more.  It cannot
 * run before that; its record is not used again.
 */
static inline void waiter_claim(Waiter *waiter, WakeChain *chain,
                                const char *who)
{
    wake_claim_to(chain, waiter->wait.co, who);
}

/* Wake a chain in its order, with at most one notification a context.  What
 * they waited for may be gone when this returns. */
static inline void waiters_deliver(WakeChain *chain)
{
    if (chain->here.head || chain->away.head) {
        wake_deliver_chain(chain);
    }
}

COLD NORETURN void sync_misuse_outside(const char *call, const char *kind,
                                       const void *object);

/* The running coroutine; outside one, abort and say that call may not be made
 * there on the object of that kind. */
static inline Coroutine *sync_self(const char *call, const char *kind,
                                   const void *object)
{
    Coroutine *self = os_thread()->current;

    os_check_fork(call);
    if (unlikely(!self)) {
        sync_misuse_outside(call, kind, object);
    }
    return self;
}

#endif
