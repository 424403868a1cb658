/* SPDX-License-Identifier: MIT */
#ifndef COAIO_TESTS_GO_H
#define COAIO_TESTS_GO_H

/*
 * Coroutines for tests, on a context that the case polls itself.
 *
 *     static void coroutine_fn reader(void *arg) { ... }
 *
 *     AioContext *ctx = go_begin(engine);
 *     go(reader, &r);            runs until it waits
 *     go_until(ctx, &r.done);    polls
 *     go_end(ctx);
 */

#include "base/atomic.h"
#include "engines.h"
#include "loop/context.h"

#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <sched.h>

/* A context of its own for this thread; engine as in context_on(). */
static inline AioContext *go_begin(const char *engine)
{
    AioContext *ctx = context_on(engine);

    aio_context_attach(ctx);
    return ctx;
}

/*
 * A waker may still be on its way out, with a pin on the context; only without
 * any are its descriptors closed here and now, as the harness expects.
 */
static inline void go_end(AioContext *ctx)
{
    while (aio_poll(ctx, false)) {
        /* what the coroutines have left */
    }
    while (load_acquire(&ctx->pins) > 2) {
        sched_yield();
    }
    aio_context_unref(ctx);
}

/* Returns the coroutine, which may have finished. */
static inline Coroutine *go(CoroutineEntry *entry, void *arg)
{
    Coroutine *co = coroutine_create(entry, arg);

    coroutine_enter(co);
    return co;
}

/* Poll until *done, which callbacks of this thread set. */
static inline void go_until(AioContext *ctx, const bool *done)
{
    while (!*done) {
        aio_poll(ctx, true);
    }
}

/* Poll until nothing is left to do at once. */
static inline void go_settle(AioContext *ctx)
{
    while (aio_poll(ctx, false)) {
        /* more */
    }
}

#endif
