/* SPDX-License-Identifier: MIT */
#ifndef COAIO_TESTS_LOOPS_H
#define COAIO_TESTS_LOOPS_H

/*
 * Contexts to test in: one on the thread of the case ("here"), which runs only
 * what the case enters or polls, so that its order is certain; and others on
 * I/O threads ("loops"), for what must hold across threads.
 *
 * Nothing here sleeps: a case waits by loops_join() until so many coroutines
 * have called job_done(), or by until() for a condition that another thread is
 * sure to bring about.
 */

#include "base/atomic.h"
#include "harness.h"

#include <coaio/coaio.h>

#include <sched.h>

#define LOOPS_MAX    8
#define LOOPS_UNUSED __attribute__((unused))

static AioContext *here LOOPS_UNUSED;
static IOThread *loops_threads[LOOPS_MAX] LOOPS_UNUSED;
static unsigned loops_count LOOPS_UNUSED;
static unsigned jobs_done LOOPS_UNUSED;

LOOPS_UNUSED static void here_open(void)
{
    CHECK_EQ(aio_context_new(&here, NULL), 0);
    aio_context_attach(here);
}

LOOPS_UNUSED static void here_close(void)
{
    while (aio_poll(here, false)) {
    }
    aio_context_unref(here);
    here = NULL;
}

/* Create a coroutine here and run it until it waits. */
LOOPS_UNUSED static Coroutine *begin(CoroutineEntry *entry, void *opaque)
{
    Coroutine *co = coroutine_create(entry, opaque);

    coroutine_enter(co);
    return co;
}

LOOPS_UNUSED static Coroutine *create_named(const char *name,
                                            CoroutineEntry *entry, void *opaque)
{
    CoroutineOptions options = {.size = sizeof(options), .name = name};
    Coroutine *co;

    CHECK_EQ(coroutine_create_full(&co, entry, opaque, &options), 0);
    return co;
}

LOOPS_UNUSED static Coroutine *begin_named(const char *name,
                                           CoroutineEntry *entry, void *opaque)
{
    Coroutine *co = create_named(name, entry, opaque);

    coroutine_enter(co);
    return co;
}

LOOPS_UNUSED static void loops_start(unsigned n)
{
    CHECK(n <= LOOPS_MAX);
    for (loops_count = 0; loops_count < n; loops_count++) {
        CHECK_EQ(iothread_new(&loops_threads[loops_count], "loop", NULL), 0);
    }
}

LOOPS_UNUSED static AioContext *loop(unsigned i)
{
    return iothread_context(loops_threads[i % loops_count]);
}

/* End the threads; no coroutine may be left on them. */
LOOPS_UNUSED static void loops_stop(void)
{
    for (unsigned i = 0; i < loops_count; i++) {
        CHECK_EQ(iothread_stop(loops_threads[i]), 0);
        iothread_unref(loops_threads[i]);
    }
    loops_count = 0;
}

/* Start a coroutine in ctx. */
LOOPS_UNUSED static Coroutine *start(AioContext *ctx, CoroutineEntry *entry,
                                     void *opaque)
{
    Coroutine *co = coroutine_create(entry, opaque);

    aio_co_enter(ctx, co);
    return co;
}

/* The last thing that a coroutine does for its case. */
LOOPS_UNUSED static void job_done(void)
{
    fetch_add_acq_rel(&jobs_done, 1u);
    aio_wait_kick();
}

/* Wait, outside coroutines, until n of them are done in all. */
LOOPS_UNUSED static void loops_join(unsigned n)
{
    aio_wait_while(loop(0), load_acquire(&jobs_done) < n);
    CHECK_EQ(load_acquire(&jobs_done), n);
    jobs_done = 0;
}

/* A generator of one's own for each coroutine, so that a seed gives the same
 * numbers whatever the threads do. */
typedef struct Random {
    uint64_t state;
} Random;

LOOPS_UNUSED static Random random_from(uint64_t seed, uint64_t number)
{
    Random random = {(seed ^ (number + 1) * 0x9e3779b97f4a7c15u) | 1};

    return random;
}

LOOPS_UNUSED static unsigned random_below(Random *random, unsigned limit)
{
    random->state ^= random->state << 13;
    random->state ^= random->state >> 7;
    random->state ^= random->state << 17;
    return (unsigned)((random->state >> 32) % limit);
}

/* Let others of this context run. */
LOOPS_UNUSED static void step_aside(void)
{
    aio_co_schedule(aio_context_current(), coroutine_self());
    coroutine_yield();
}

/* Wait for what another thread is about to do. */
#define until(condition)       \
    do {                       \
        while (!(condition)) { \
            sched_yield();     \
        }                      \
    } while (0)

#endif
