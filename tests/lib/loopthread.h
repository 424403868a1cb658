/* SPDX-License-Identifier: MIT */
#ifndef COAIO_TESTS_LOOPTHREAD_H
#define COAIO_TESTS_LOOPTHREAD_H

/*
 * Threads for tests: a bare one that runs a function, and one that polls a
 * context of its own until it is stopped.  Nothing here waits for time: every
 * step is handed over with a semaphore.
 */

#include "harness.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <pthread.h>
#include <semaphore.h>

/*
 * pthread_self() for coroutines.  That one is declared const, and a compiler
 * may take the answer from before a yield for the one after it.
 */
__attribute__((noinline, unused)) static pthread_t this_thread(void)
{
    pthread_t self = pthread_self();

    __asm__ volatile("" : "+r"(self) : : "memory");
    return self;
}

/* --- bare threads ---------------------------------------------------------*/

typedef struct BareThread {
    void (*fn)(void *arg);
    void *arg;
    pthread_t thread;
} BareThread;

static inline void *bare_thread_main(void *opaque)
{
    BareThread *bare = opaque;

    bare->fn(bare->arg);
    return NULL;
}

static inline void bare_thread_start(BareThread *bare, void (*fn)(void *arg),
                                     void *arg)
{
    bare->fn = fn;
    bare->arg = arg;
    CHECK_EQ(pthread_create(&bare->thread, NULL, bare_thread_main, bare), 0);
}

static inline void bare_thread_join(BareThread *bare)
{
    CHECK_EQ(pthread_join(bare->thread, NULL), 0);
}

/* Call fn(arg) in a thread that has nothing to do with coaio. */
static inline void run_in_thread(void (*fn)(void *arg), void *arg)
{
    BareThread bare;

    bare_thread_start(&bare, fn, arg);
    bare_thread_join(&bare);
}

/* --- semaphores -----------------------------------------------------------*/

static inline void gate_init(sem_t *gate)
{
    CHECK_EQ(sem_init(gate, 0, 0), 0);
}

static inline void gate_open(sem_t *gate)
{
    CHECK_EQ(sem_post(gate), 0);
}

static inline void gate_pass(sem_t *gate)
{
    while (sem_wait(gate) != 0) {
        /* interrupted by a signal */
    }
}

/* --- loops ----------------------------------------------------------------*/

typedef struct LoopThread {
    AioContext *ctx; /* with a reference */
    sem_t ready;     /* the context is bound */
    bool stop;       /* the loop's */
    pthread_t thread;
} LoopThread;

static inline void *loop_thread_main(void *opaque)
{
    LoopThread *loop = opaque;

    aio_context_attach(loop->ctx);
    /* A first wait, for which engines allocate: tests count blocks. */
    aio_notify(loop->ctx);
    aio_poll(loop->ctx, true);
    gate_open(&loop->ready);
    while (!loop->stop) {
        aio_poll(loop->ctx, true);
    }
    return NULL;
}

static inline void loop_thread_start(LoopThread *loop, const char *name)
{
    AioContextOptions options = {.size = sizeof(options), .name = name};

    loop->stop = false;
    gate_init(&loop->ready);
    CHECK_EQ(aio_context_new(&loop->ctx, &options), 0);
    CHECK_EQ(pthread_create(&loop->thread, NULL, loop_thread_main, loop), 0);
    gate_pass(&loop->ready);
}

static inline void loop_thread_end(void *opaque)
{
    LoopThread *loop = opaque;

    loop->stop = true;
}

/* Runs what was posted before, then ends the thread; keeps the context. */
static inline void loop_thread_join(LoopThread *loop)
{
    aio_bh_schedule_oneshot(loop->ctx, loop_thread_end, loop);
    CHECK_EQ(pthread_join(loop->thread, NULL), 0);
    sem_destroy(&loop->ready);
}

static inline void loop_thread_stop(LoopThread *loop)
{
    loop_thread_join(loop);
    aio_context_unref(loop->ctx);
}

/* --- calls into a loop ----------------------------------------------------*/

typedef struct LoopCall {
    AioBHStorage storage;
    void (*fn)(void *arg);
    void *arg;
    sem_t done;
} LoopCall;

static inline void loop_call_run(void *opaque)
{
    LoopCall *call = opaque;

    call->fn(call->arg);
    gate_open(&call->done);
}

/* Call fn(arg) on the thread of ctx, outside coroutines; return afterwards. */
static inline void loop_call(AioContext *ctx, void (*fn)(void *arg), void *arg)
{
    LoopCall call = {.fn = fn, .arg = arg};

    gate_init(&call.done);
    aio_bh_schedule_oneshot_embedded(ctx, &call.storage, loop_call_run, &call);
    gate_pass(&call.done);
    sem_destroy(&call.done);
}

static inline void loop_nothing(void *arg)
{
    (void)arg;
}

/*
 * Return when what had been posted to ctx before has run.  The pass may go on:
 * it runs idle bottom halves last, and frees those that were deleted.
 */
static inline void loop_flush(AioContext *ctx)
{
    loop_call(ctx, loop_nothing, NULL);
}

/* Return when the pass has ended that ran what had been posted before, and
 * idle bottom halves with it.  What is posted now runs in a later one. */
static inline void loop_finish_pass(AioContext *ctx)
{
    loop_flush(ctx);
    loop_flush(ctx);
}

#endif
