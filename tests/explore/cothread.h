/* SPDX-License-Identifier: MIT */
/*
 * Threads of an exploration, each with a context in which one coroutine runs
 * from explore_begin() to its end.
 */
#ifndef COAIO_TESTS_EXPLORE_COTHREAD_H
#define COAIO_TESTS_EXPLORE_COTHREAD_H

#include "explore.h"

#include <coaio/context.h>
#include <coaio/coroutine.h>

#define CO_THREADS 3

static AioContext *co_context[CO_THREADS];
static bool co_done[CO_THREADS];

/* For .setup. */
static inline void co_make_contexts(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        CHECK_EQ(aio_context_new(&co_context[i], NULL), 0);
    }
}

/* The body of thread i. entry ends with co_done[i] = true. */
static inline void co_thread(unsigned i, CoroutineEntry *entry)
{
    AioContext *ctx = co_context[i];

    aio_context_attach(ctx);
    explore_begin();
    coroutine_enter(coroutine_create(entry, &co_done[i]));
    while (!co_done[i]) {
        aio_poll(ctx, true);
    }
    explore_end();
    while (aio_poll(ctx, false)) {
    }
    aio_context_unref(ctx);
}

#define CO_THREAD(name, i, entry) \
    static void name(void)        \
    {                             \
        co_thread(i, entry);      \
    }

#endif
