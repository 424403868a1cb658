/* SPDX-License-Identifier: MIT */
/*
 * AioBH, a bottom half: a callback that anybody, also a signal handler, can
 * ask an AioContext to run soon.
 *
 * Bottom halves run first in, first out, in the order of the calls that made
 * each of them pending.  Scheduling one that is pending changes nothing, but
 * what was written before is visible to the callback nevertheless.  Cancelling
 * does not give up the place: one that is scheduled again before its turn
 * runs at the old place.  One that a bottom half schedules runs in the next
 * pass.  The callback runs on the home thread, outside any coroutine.
 *
 * Life cycle
 *
 *   aio_bh_new() ──> idle ──schedule──> pending ──the loop's turn──> idle
 *                      └──── aio_bh_delete(), also in its own callback
 *
 *   A bottom half does not hold a reference on its context: delete it before
 *   the last reference to the context goes.
 *
 * Thread table
 *
 *                                       home    coroutine  other   signal
 *                                      thread              thread  handler
 *   aio_bh_new, aio_bh_new_main          yes       yes       yes     no
 *   aio_bh_schedule, _schedule_idle      yes       yes       yes     yes
 *   aio_bh_cancel                        yes       yes       yes     yes
 *   aio_bh_delete                        yes       yes       yes     no
 *   aio_bh_schedule_oneshot              yes       yes       yes     no
 *   aio_bh_schedule_oneshot_embedded     yes       yes       yes     yes
 *
 *   aio_bh_delete() must not run at the same time as any other call on the
 *   same bottom half; the others may run at once with each other.
 */
#ifndef COAIO_BH_H
#define COAIO_BH_H

#include <coaio/types.h>

COAIO_BEGIN_DECLS

typedef void AioBHFunc(void *opaque);

/**
 * Make a bottom half of ctx that calls cb(opaque).  Aborts when memory runs
 * out.
 */
COAIO_API AioBH *aio_bh_new(AioContext *ctx, AioBHFunc *cb, void *opaque);

/**
 * aio_bh_new() in the main context (aio_context_main()), which must exist or
 * is made and bound to this thread.  Aborts if it cannot be made.
 */
COAIO_API AioBH *aio_bh_new_main(AioBHFunc *cb, void *opaque);

/**
 * Make bh pending.  Lock-free, allocates nothing, keeps errno, never waits
 * for another thread.
 *
 * Barriers: release; what was written before is visible to the callback.
 */
COAIO_API void aio_bh_schedule(AioBH *bh);

/**
 * Make bh pending without hurry: it runs in the next pass that something else
 * wakes, and after 10 ms at the latest.  If it is pending already it stays
 * as it was; aio_bh_schedule() turns an idle one into an ordinary one.
 *
 * Barriers: release; what was written before is visible to the callback.
 */
COAIO_API void aio_bh_schedule_idle(AioBH *bh);

/**
 * Make bh not pending.  After a call on the home thread the callback does not
 * run unless it is scheduled again; after one from elsewhere it may be running
 * at this moment.
 *
 * Barriers: none.
 */
COAIO_API void aio_bh_cancel(AioBH *bh);

/**
 * Cancel bh and free it; NULL is ignored.  The pointer is dead.  As with
 * aio_bh_cancel(), after a call from elsewhere the callback may be running.
 *
 * Barriers: none.
 */
COAIO_API void aio_bh_delete(AioBH *bh);

/**
 * Call cb(opaque) once in ctx.  Aborts when memory runs out.
 *
 * Barriers: release; what was written before is visible to cb.
 */
COAIO_API void aio_bh_schedule_oneshot(AioContext *ctx, AioBHFunc *cb,
                                       void *opaque);

/*
 * Storage for aio_bh_schedule_oneshot_embedded().  The fields are the
 * library's own.
 */
typedef struct AioBHStorage {
    void *opaque_[6];
} AioBHStorage;

/**
 * The same without allocating: storage belongs to the library until cb is
 * called, which may free it or use it again.
 *
 * Barriers: release; what was written before is visible to cb.
 */
COAIO_API void aio_bh_schedule_oneshot_embedded(AioContext *ctx,
                                                AioBHStorage *storage,
                                                AioBHFunc *cb, void *opaque);

COAIO_END_DECLS

#endif
