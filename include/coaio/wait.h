/* SPDX-License-Identifier: MIT */
/*
 * Waiting for a loop from a plain thread: until a condition, which callbacks
 * or coroutines of some context change, no longer holds.
 *
 *     done = false;
 *     aio_bh_schedule_oneshot(ctx, work, &done);    (sets done, then kicks)
 *     aio_wait_while(ctx, !load_acquire(&done));
 *
 * Whoever changes the condition calls aio_wait_kick() afterwards.  The
 * condition is read by the waiting thread: use atomics for it.
 *
 * A waiting thread that has a context of its own polls that meanwhile (nested,
 * if in a callback); so the home thread of ctx may wait for ctx, too.
 *
 * Thread table
 *
 *                          outside      inside a    signal
 *                          coroutines   coroutine   handler
 *   aio_wait_while             yes         no         no
 *   aio_wait_bh_oneshot        yes         no         no
 *   aio_wait_kick              yes         yes        no
 */
#ifndef COAIO_WAIT_H
#define COAIO_WAIT_H

#include <coaio/bh.h>
#include <coaio/types.h>

COAIO_BEGIN_DECLS

/**
 * Block the calling thread while condition (an expression, evaluated again
 * and again) is true.  ctx is the context that will change it, or NULL; it is
 * only used for checks and reports.
 *
 * Barriers: a full barrier before each evaluation.
 */
#define aio_wait_while(ctx, condition)                                        \
    do {                                                                      \
        AioWaiter coaio_waiter_;                                              \
        aio_wait_begin(&coaio_waiter_, (ctx));                                \
        while (aio_wait_prepare(&coaio_waiter_), (condition)) {               \
            aio_wait_step(&coaio_waiter_);                                    \
        }                                                                     \
        aio_wait_end(&coaio_waiter_);                                         \
    } while (0)

/**
 * Make every aio_wait_while() evaluate its condition again.  Costs a load and
 * a full barrier when nobody waits.
 */
COAIO_API void aio_wait_kick(void);

/**
 * Call cb(opaque) in ctx as a bottom half, and return when it has run.  Aborts
 * if ctx has stopped, where nothing would run it.
 *
 * Barriers: release, then acquire; cb sees what the caller wrote before, and
 * the caller what cb wrote.
 */
COAIO_API void aio_wait_bh_oneshot(AioContext *ctx, AioBHFunc *cb,
                                   void *opaque);

/* The parts that aio_wait_while() is made of; the fields are the library's. */
typedef struct AioWaiter {
    struct AioWaiter *next_;
    struct AioWaiter *prev_;
    AioContext *own_;
    AioContext *target_;
    uint32_t seen_;
} AioWaiter;

COAIO_API void aio_wait_begin(AioWaiter *waiter, AioContext *ctx);
COAIO_API void aio_wait_prepare(AioWaiter *waiter);
COAIO_API void aio_wait_step(AioWaiter *waiter);
COAIO_API void aio_wait_end(AioWaiter *waiter);

COAIO_END_DECLS

#endif
