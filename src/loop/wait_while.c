/* SPDX-License-Identifier: MIT */
/*
 * aio_wait_while(): threads that wait for a loop.
 *
 * Guarantees that a change of the condition that is followed by a kick is
 * seen.  Does not guarantee that every kick leads to an evaluation of its own,
 * nor that an evaluation was caused by a kick.
 *
 * A thread without a context sleeps on `epoch`, a futex that each kick moves
 * on.  A thread with one polls it, and is in the list of `pollers` so that a
 * kick can notify it.
 *
 * INVARIANTS
 *
 *   1. waiters is the number of AioWaiters between begin and end.
 *   2. A waiter with a context is in pollers between begin and end, and holds
 *      a handle of the context as long: nobody else can close what it polls.
 *
 * PROTOCOL AND MEMORY ORDER
 *
 *   [wait-kick] is store-buffering order between the condition and `waiters`:
 *
 *       changes the condition              waits
 *       condition = false                  waiters++
 *       fence                       A      seen = epoch
 *       if (waiters == 0) return           fence                        B
 *       epoch++, wake                      if (!condition) done
 *                                          sleep while epoch == seen
 *
 *   With both fences, either the kick sees the waiter, or the waiter sees the
 *   new condition.  If the kick sees the waiter and the waiter saw the old
 *   condition, then seen is the epoch before the kick's increment: had it been
 *   the one after, the acquire load of epoch would have made the condition
 *   visible.  So the futex does not sleep, or is woken.
 *
 *   For a poller aio_notify() takes the place of the epoch: it stays in force
 *   until a pass has seen it, and none runs between the evaluation and
 *   aio_poll().  If an earlier pass has consumed it, that pass made the
 *   condition visible.  A nested wait may consume it, but returns into a pass,
 *   after which the condition is evaluated again.
 */
#include "base/assert.h"
#include "base/explore.h"
#include "loop/context.h"

#include <coaio/wait.h>

static uint32_t epoch;    /* atomic futex; counts kicks that saw waiters */
static uint32_t waiters;  /* atomic; INVARIANTS 1 */

static OsMutex lock = OS_MUTEX_INIT;
static AioWaiter *pollers; /* lock; by next_ and prev_ */

static void pollers_add(AioWaiter *waiter)
{
    os_mutex_lock(&lock);
    waiter->prev_ = NULL;
    waiter->next_ = pollers;
    if (pollers) {
        pollers->prev_ = waiter;
    }
    pollers = waiter;
    os_mutex_unlock(&lock);
}

static void pollers_remove(AioWaiter *waiter)
{
    os_mutex_lock(&lock);
    if (waiter->prev_) {
        waiter->prev_->next_ = waiter->next_;
    } else {
        invariant(pollers == waiter);
        pollers = waiter->next_;
    }
    if (waiter->next_) {
        waiter->next_->prev_ = waiter->prev_;
    }
    os_mutex_unlock(&lock);
}

static void check_outside_coroutine(const char *call, AioContext *ctx)
{
    Coroutine *self = os_thread()->current;
    CoroutineLabel label, ctx_label;

    if (unlikely(self)) {
        misuse("%s for %s called in %s: it would block the thread, and all "
               "coroutines on it",
               call, ctx ? context_label(ctx, &ctx_label) : "no context",
               coroutine_label(self, &label));
    }
}

/* This thread's context, with a handle for INVARIANTS 2. */
static AioContext *context_of_waiter(void)
{
    AioContext *ctx = aio_context_current();

    return ctx && context_try_ref(ctx) ? ctx : NULL;
}

void aio_wait_begin(AioWaiter *waiter, AioContext *ctx)
{
    os_check_fork("aio_wait_while");
    check_outside_coroutine("aio_wait_while", ctx);
    waiter->own_ = context_of_waiter();
    waiter->target_ = ctx;
    waiter->seen_ = 0;
    if (waiter->own_) {
        pollers_add(waiter);
    }
    /*
     * Relaxed: aio_wait_prepare() has the fence.  What a kick reads of a
     * waiter that it sees here goes through the lock, or the futex.
     */
    fetch_add_relaxed(&waiters, 1);
}

void aio_wait_prepare(AioWaiter *waiter)
{
    waiter->seen_ = load_acquire(&epoch);
    /*
     * [wait-kick/B] Count the waiter, and read the epoch, before the condition
     * is read.  Pairs with [wait-kick/A] in aio_wait_kick().
     */
    if (!MUTANT(WAIT_KICK_NO_FENCE_WAITER)) {
        fence_seq_cst();
    }
}

void aio_wait_step(AioWaiter *waiter)
{
    if (!waiter->own_) {
        if (MUTANT(WAIT_KICK_EPOCH_LATE)) {
            waiter->seen_ = load_acquire(&epoch);
        }
        os_futex_wait(&epoch, waiter->seen_, -1);
        return;
    }
    timer_check_waiting(waiter->own_, waiter->target_);
    aio_poll(waiter->own_, true);
}

void aio_wait_end(AioWaiter *waiter)
{
    if (waiter->own_) {
        pollers_remove(waiter);
        aio_context_unref(waiter->own_);
    }
    fetch_sub_relaxed(&waiters, 1);
}

void aio_wait_kick(void)
{
    os_check_fork("aio_wait_kick");
    /*
     * [wait-kick/A] What the caller changed comes before the look for waiters.
     * Pairs with [wait-kick/B] in aio_wait_prepare(): either we see the
     * waiter, or it sees the change.
     */
    if (!MUTANT(WAIT_KICK_NO_FENCE_KICKER)) {
        fence_seq_cst();
    }
    if (likely(load_relaxed(&waiters) == 0)) {
        MARK("wait-while: nobody waits, so nothing is woken");
        return;
    }
    /* Release: who reads this epoch sees the change, and need not sleep. */
    fetch_add_release(&epoch, 1);
    os_futex_wake(&epoch, MUTANT(WAIT_KICK_WAKES_ONE) ? 1 : INT32_MAX);
    if (MUTANT(WAIT_KICK_POLLERS_MISSED) && !pollers) {
        return; /* "none is there": they are looked at without the lock */
    }
    os_mutex_lock(&lock);
    for (AioWaiter *waiter = pollers; waiter; waiter = waiter->next_) {
        MARK("wait-while: one that polls is notified");
        aio_notify(waiter->own_); /* alive: INVARIANTS 2 */
    }
    os_mutex_unlock(&lock);
}

/* --- aio_wait_bh_oneshot() ------------------------------------------------*/

/* On the stack of the thread that waits. */
typedef struct WaitBH {
    AioBHStorage storage;
    AioBHFunc *cb;
    void *opaque;
    uint32_t done; /* atomic */
} WaitBH;

static void wait_bh_run(void *opaque)
{
    WaitBH *bh = opaque;

    bh->cb(bh->opaque);
    store_release(&bh->done, 1); /* bh may be gone now */
    aio_wait_kick();
}

static COLD NORETURN void misuse_never_runs(AioContext *ctx, AioBHFunc *cb)
{
    CoroutineLabel label;

    misuse("aio_wait_bh_oneshot for %s, which has stopped: the callback %p "
           "would never run",
           context_label(ctx, &label), (void *)(uintptr_t)cb);
}

void aio_wait_bh_oneshot(AioContext *ctx, AioBHFunc *cb, void *opaque)
{
    WaitBH bh = {.cb = cb, .opaque = opaque};

    os_check_fork("aio_wait_bh_oneshot");
    check_outside_coroutine("aio_wait_bh_oneshot", ctx);
    if (unlikely(load_acquire(&ctx->stopped))) {
        misuse_never_runs(ctx, cb);
    }
    aio_bh_schedule_oneshot_embedded(ctx, &bh.storage, wait_bh_run, &bh);
    aio_wait_while(ctx, !load_acquire(&bh.done) &&
                            !load_acquire(&ctx->stopped));
    if (unlikely(!load_acquire(&bh.done))) {
        misuse_never_runs(ctx, cb);
    }
}
