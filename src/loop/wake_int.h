/* SPDX-License-Identifier: MIT */
/*
 * Wake-ups, for the layers above: the public calls under another name, so
 * that a report says who it was.
 */
#ifndef COAIO_LOOP_WAKE_INT_H
#define COAIO_LOOP_WAKE_INT_H

#include "coroutine/coroutine_int.h"

#include <coaio/wake.h>

/* aio_co_wake() on behalf of who. */
void wake_as(Coroutine *co, const char *who);

/*
 * Claim now, deliver later: for wakers that first collect (under a lock) and
 * then wake without it.  A chain of claimed coroutines (by Coroutine.link, in
 * order); zero is empty.
 */
typedef struct WakeChain {
    Fifo here; /* of the calling thread's context */
    Fifo away; /* of others */
} WakeChain;

/* Claim co, and append it.  After that nobody else can wake it. */
void wake_claim_to(WakeChain *chain, Coroutine *co, const char *who);

/*
 * Deliver all of a chain, on the thread that has made it, with at most one
 * notification for each context.
 */
void wake_deliver_chain(WakeChain *chain);

/*
 * ctx has stopped: deal with the coroutines that were posted to it too late
 * for its last pass.  Those that were to resume there are counted in
 * lost_wakeups; those that were to move on do so.  Any thread; ctx is pinned.
 */
void wake_sweep_stopped(AioContext *ctx);

/* aio_co_schedule() on behalf of who: resumes on a later pass of ctx. */
void schedule_as(AioContext *ctx, Coroutine *co, const char *who);

#endif
