/* SPDX-License-Identifier: MIT */
/*
 * CoWait: the record of one coroutine's wait, on its stack.  Everything in the
 * library that suspends a coroutine for a reason has one; there is no other
 * way to wait.
 *
 * A wait ends once: by completion (any thread) or by cancellation (the home
 * thread: timeouts now, scopes and deadlines later).  Whoever ends it first
 * decides the result and resumes the coroutine; the other is told that it
 * came too late.
 *
 *     CoWait w;
 *
 *     co_wait_init(&w, "CoQueue", queue, cancel);
 *     ... publish &w where the completer finds it ...
 *     result = co_wait_park(&w, timeout_ns);
 *
 * PROTOCOL AND MEMORY ORDER
 *
 *   [wait/A] the one who ends it moves outcome from WAIT_PENDING to the result
 *   by an acq_rel compare-and-swap after writing what the waiter is to see.
 *   [wait/B] the waiter reads outcome with acquire when it runs again.  The
 *   memory may be gone as soon as the coroutine has been woken: nobody touches
 *   a wait after co_wait_end() returned.
 *
 * A coroutine that is resumed while its wait is pending was woken by somebody
 * who had no right to: misuse, naming both.
 */
#ifndef COAIO_LOOP_WAIT_H
#define COAIO_LOOP_WAIT_H

#include "coroutine/coroutine_int.h"

#include <coaio/timer.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct CoWait CoWait;

/*
 * Called on the home thread, outside the waiter, when the wait is to end with
 * error.  It takes the record from where completers find it, as far as needed,
 * and calls co_wait_end(wait, error, who) unless somebody has ended it, or
 * leaves that to a completion that is sure to come (a transfer in the kernel).
 */
typedef void CoWaitCancel(CoWait *wait, int error);

struct CoWait {
    Coroutine *co;        /* who waits; constant */
    const char *what;     /* "CoMutex", "fd", ...: for reports; constant */
    const void *object;   /* the lock, queue, ...; or NULL */
    CoWaitCancel *cancel; /* NULL: cannot be cancelled */
    int64_t outcome;      /* atomic: WAIT_PENDING, or the result */
};

#define WAIT_PENDING INT64_MIN

COLD NORETURN void co_wait_misuse_init(const CoWait *wait);

/* For the running coroutine.  Aborts if it has no home, naming what/object,
 * and pointing to aio_co_enter(). */
static inline void co_wait_init(CoWait *wait, const char *what,
                                const void *object, CoWaitCancel *cancel)
{
    Coroutine *self = os_thread()->current;

    wait->co = self;
    wait->what = what;
    wait->object = object;
    wait->cancel = cancel;
    store_relaxed(&wait->outcome, WAIT_PENDING);
    if (unlikely(!self || !self->home)) {
        co_wait_misuse_init(wait);
    }
}

/* Has it ended (as seen now, with acquire)? */
static inline bool co_wait_ended(CoWait *wait)
{
    /* [wait/B] pairs with [wait/A] in co_wait_claim_end(). */
    return load_acquire(&wait->outcome) != WAIT_PENDING;
}

/* Yield, and let a timer cancel the wait with -ETIMEDOUT after timeout_ns. */
void coroutine_fn co_wait_yield_timed(CoWait *wait, int64_t timeout_ns);

COLD NORETURN void co_wait_misuse_resumed(const CoWait *wait);

/*
 * Yield until the wait has ended, at most timeout_ns (below 0: for ever; the
 * wait is then cancelled with -ETIMEDOUT).  Returns the result.  Inline, as
 * each lock that is handed over comes through here.
 */
static inline int64_t coroutine_fn co_wait_park(CoWait *wait,
                                                int64_t timeout_ns)
{
    Coroutine *self = wait->co;
    int64_t outcome;

    invariant(!load_relaxed(&self->wait)); /* INVARIANTS 2 in wait.c */
    /* [iothread/B] Release: the record, and the home that self has now.  Pairs
     * with [iothread/A] in note_one(). */
    store_release(&self->wait, wait);
    if (timeout_ns < 0) {
        coroutine_yield();
    } else {
        co_wait_yield_timed(wait, timeout_ns);
    }

    /*
     * [wait/B] Acquire: what was written before the wait was ended is visible
     * from here on.  Pairs with [wait/A] in co_wait_claim_end() and
     * co_wait_settle().
     */
    outcome = load_acquire(&wait->outcome);
    if (unlikely(outcome == WAIT_PENDING)) {
        co_wait_misuse_resumed(wait);
    }
    store_relaxed(&self->wait, NULL);
    return outcome;
}

/*
 * End the wait with result and wake its coroutine, as who.  Any thread.
 * Returns false, and has done nothing, if it had ended before.
 */
bool co_wait_end(CoWait *wait, int64_t result, const char *who);

/*
 * The two halves of it, for wakers that end several waits under a lock and
 * wake later: after claiming, the record stays valid until the wake.
 */
bool co_wait_claim_end(CoWait *wait, int64_t result);
void co_wait_wake(CoWait *wait, const char *who);

/* co_wait_claim_end() by one who alone can end it: no cancel, no other
 * completer. */
static inline void co_wait_settle(CoWait *wait, int64_t result)
{
    invariant(load_relaxed(&wait->outcome) == WAIT_PENDING);
    /*
     * [wait/A] Nobody comes first, so no compare-and-swap is needed.  Release:
     * as there.
     */
    store_release(&wait->outcome, result);
}

/*
 * End what co waits for with error (-ETIMEDOUT, -ECANCELED), if it waits for
 * something that can be cancelled.  On the home thread of co, outside co.
 * Returns whether there was such a wait.
 */
bool co_wait_cancel(Coroutine *co, int error);

#endif
