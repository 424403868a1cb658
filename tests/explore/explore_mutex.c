/* SPDX-License-Identifier: MIT */
/*
 * CoMutex (sync/mutex.c): exclusion, order, hand-over, lifetime.
 */
#include "base/atomic.h"
#include "explore.h"
#include "loop/context.h"

#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <coaio/mutex.h>

static CoMutex mutex;
static unsigned inside; /* plain: the mutex guards it */
static unsigned done[3];
static AioContext *ctx[3];

static void make_contexts(unsigned threads)
{
    for (unsigned i = 0; i < threads; i++) {
        CHECK_EQ(aio_context_new(&ctx[i], NULL), 0);
    }
    co_mutex_init(&mutex);
}

static void make_two(void)
{
    make_contexts(2);
}

static void make_three(void)
{
    make_contexts(3);
}

static void coroutine_fn lock_once(void *opaque)
{
    co_mutex_lock(&mutex);
    CHECK_EQ(inside++, 0);
    inside--;
    co_mutex_unlock(&mutex);
    *(unsigned *)opaque = 1;
}

static void locker(int i)
{
    aio_context_attach(ctx[i]);
    explore_begin();
    coroutine_enter(coroutine_create(lock_once, &done[i]));
    while (!done[i]) {
        aio_poll(ctx[i], true);
    }
    explore_end();
    aio_context_unref(ctx[i]);
}

static void locker_0(void)
{
    locker(0);
}

static void locker_1(void)
{
    locker(1);
}

static void locker_2(void)
{
    locker(2);
}

EXPLORE(two_lockers, .setup = make_two, .threads = {locker_0, locker_1})
EXPLORE(three_lockers, .setup = make_three,
        .threads = {locker_0, locker_1, locker_2})

EXPLORE_MAIN()
