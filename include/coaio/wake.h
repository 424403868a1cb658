/* SPDX-License-Identifier: MIT */
/*
 * Waking coroutines: from any thread, in the context where they live.
 *
 * The one rule: a coroutine with a home resumes only on its home's thread.
 * That makes it safe to wake a coroutine that is about to yield but has not
 * done so yet: the wake-up waits in the home for the yield.
 *
 * What a wake-up does depends on who calls:
 *
 *   on the home thread, outside coroutines    enters it at once
 *   on the home thread, in a coroutine        deferred: runs, in order, when
 *                                             control is back outside any
 *                                             coroutine, before the outermost
 *                                             coroutine_enter() returns
 *   anywhere else                             posted to the home, first in,
 *                                             first out with bottom halves
 *
 * A coroutine can be woken once until it runs.  Whoever wakes one that is
 * woken already aborts, with a line that says who had woken it.  The pointer
 * must not be used after waking: the coroutine may run and finish at once.
 *
 * A wake-up to the context of a stopped IOThread is counted and never runs.
 *
 * Thread table
 *
 *                          outside     inside a    other     signal
 *                          coroutines  coroutine   threads   handler
 *   aio_co_wake                yes        yes        yes       no
 *   aio_co_schedule            yes        yes        yes       no
 *   aio_co_enter               yes        yes        yes       no
 *   co_reschedule_self         no         yes        no        no
 *
 * Barriers of them all: release; what was written before is visible to the
 * coroutine when it goes on.
 */
#ifndef COAIO_WAKE_H
#define COAIO_WAKE_H

#include <coaio/types.h>

COAIO_BEGIN_DECLS

/**
 * Resume co in its home, as the table above says.  Aborts if it has none.
 */
COAIO_API void aio_co_wake(Coroutine *co);

/**
 * Make ctx the home of co and resume it there, in turn with what was posted
 * to ctx before; never within the call.  co may be new, parked, or about to
 * yield: then it moves when it has yielded.  Only one without a home must have
 * returned to the one who entered it, or be entered on this thread.
 */
COAIO_API void aio_co_schedule(AioContext *ctx, Coroutine *co);

/**
 * Make ctx the home of co and resume it there as soon as may be: at once if
 * this is the thread of ctx and no coroutine runs, deferred if one does, else
 * like aio_co_schedule().
 */
COAIO_API void aio_co_enter(AioContext *ctx, Coroutine *co);

/**
 * Move the calling coroutine to ctx: when the call returns, it runs on the
 * thread of ctx.  Returns without suspending if it is there already.
 */
COAIO_API void coroutine_fn co_reschedule_self(AioContext *ctx);

COAIO_END_DECLS

#endif
