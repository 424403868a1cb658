/* SPDX-License-Identifier: MIT */
/*
 * CoWait: one coroutine's wait; see wait.h.
 *
 * Guarantees that a wait ends once, with the result of whoever ended it first,
 * and that its coroutine is woken once for it.  Does not guarantee that the
 * record lives on after the wake: whoever ends a wait keeps what it needs
 * before it wakes.
 *
 * INVARIANTS
 *
 *   1. outcome leaves WAIT_PENDING once.  Whoever moved it wakes the coroutine,
 *      once; nobody else may.
 *   2. co->wait is the record while its coroutine is parked for it, and NULL
 *      otherwise.
 *   3. The timer of a timeout is armed in the waiter's home, and idle before
 *      co_wait_park() returns.
 *
 * PROTOCOL AND MEMORY ORDER: [wait] in docs/memory-ordering.md.
 */
#include "base/explore.h"
#include "loop/wait.h"

#include "loop/wake_int.h"

#include <errno.h>

void co_wait_misuse_init(const CoWait *wait)
{
    CoroutineLabel label;

    if (!wait->co) {
        misuse("%s %p: called outside a coroutine, where nothing can wait "
               "for it",
               wait->what, wait->object);
    }
    misuse("%s would have to wait for %s %p, but has no home to resume in: "
           "start it with aio_co_enter(), or where a context is attached",
           coroutine_label(wait->co, &label), wait->what, wait->object);
}

void co_wait_misuse_resumed(const CoWait *wait)
{
    CoroutineLabel label;

    misuse("%s waits for %s %p, and was resumed by somebody else: only what "
           "it waits for may wake it",
           coroutine_label(wait->co, &label), wait->what, wait->object);
}

/* --- the waiter ----------------------------------------------------------*/

static void timed_out(void *opaque)
{
    CoWait *wait = opaque;

    co_wait_cancel(wait->co, -ETIMEDOUT);
}

void co_wait_yield_timed(CoWait *wait, int64_t timeout_ns)
{
    AioContext *ctx = (AioContext *)(void *)wait->co->home;
    int64_t now_ns = aio_clock_ns(AIO_CLOCK_MONOTONIC);
    AioTimer timer;

    aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, timed_out, wait);
    aio_timer_mod_ns(&timer, timeout_ns < INT64_MAX - now_ns
                                 ? now_ns + timeout_ns
                                 : INT64_MAX);
    coroutine_yield();
    if (unlikely(!co_wait_ended(wait))) {
        /* Perhaps not even on the timer's thread. */
        co_wait_misuse_resumed(wait);
    }
    aio_timer_del(&timer); /* INVARIANTS 3 */
}

/* --- those who end it ----------------------------------------------------*/

bool co_wait_claim_end(CoWait *wait, int64_t result)
{
    int64_t pending = WAIT_PENDING;

    invariant(result != WAIT_PENDING);
    if (MUTANT(WAIT_OUTCOME_PLAIN)) {
        bool first = load_acquire(&wait->outcome) == WAIT_PENDING;

        store_release(&wait->outcome, result);
        return first;
    }
    /*
     * [wait/A] The linearisation point of ending a wait: of a completion and a
     * timeout at once, one sees PENDING here.  Release: the waiter sees what
     * was written before.  Acquire on failure: the loser sees what the winner
     * had done.
     */
    return cas_acq_rel(&wait->outcome, &pending, result);
}

void co_wait_wake(CoWait *wait, const char *who)
{
    wake_as(wait->co, who);
}

bool co_wait_end(CoWait *wait, int64_t result, const char *who)
{
    if (!co_wait_claim_end(wait, result)) {
        return false;
    }
    co_wait_wake(wait, who); /* INVARIANTS 1: by the winner alone */
    return true;
}

bool co_wait_cancel(Coroutine *co, int error)
{
    CoWait *wait = load_relaxed(&co->wait);

    invariant(error < 0);
    if (!wait || !wait->cancel || co_wait_ended(wait)) {
        return false;
    }
    wait->cancel(wait, error);
    return true;
}
