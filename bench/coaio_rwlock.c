/* SPDX-License-Identifier: MIT */
/*
 * coaio_rwlock.c: CoRwlock, 19 readers for each writer (bench_rwlock.h).
 *
 *   rwlock_1       one coroutine
 *   rwlock_t2      four coroutines on each of two I/O threads, on two cores
 */
#include <coaio/coaio.h>
#include <semaphore.h>

#include "bench_rwlock.h"

/* How long the I/O threads look for something to do before they sleep. */
#ifndef BENCH_POLL_MAX_NS
#define BENCH_POLL_MAX_NS 0
#define BENCH_POLLING     "static; no busy polling"
#endif

enum {
    THREADS = 2,
    COROUTINES = 4 /* on each */
};

static CoRwlock rwlock;
static sem_t done;

static void coroutine_fn use_lock(void *opaque)
{
    (void)opaque;
    for (uint64_t i = 0; i < bench_guarded.per_user; i++) {
        if (bench_guarded_writes(i)) {
            co_rwlock_wrlock(&rwlock);
            bench_guarded_write();
        } else {
            co_rwlock_rdlock(&rwlock);
            bench_guarded_read();
        }
        co_rwlock_unlock(&rwlock);
    }
    sem_post(&done);
}

static void wait_for_users(unsigned users)
{
    for (unsigned i = 0; i < users; i++) {
        while (sem_wait(&done)) {
        }
    }
    bench_guarded_check(users);
}

static double alone_work(uint64_t count)
{
    static AioContext *ctx;
    uint64_t begin;

    if (!ctx) {
        bench_check(!aio_context_new(&ctx, NULL), "a context is made");
        aio_context_attach(ctx);
        sem_init(&done, 0, 0);
    }
    bench_guarded_reset(count);
    begin = bench_now();
    coroutine_enter(coroutine_create(use_lock, NULL));
    begin = bench_now() - begin;
    wait_for_users(1);
    return (double)begin;
}

static IOThread *thread_on_core(unsigned which)
{
    unsigned core = bench_core(which);
    IOThreadOptions options = {
        .size = sizeof(options),
        .cpus = &core,
        .n_cpus = 1,
        .poll_max_ns = BENCH_POLL_MAX_NS,
    };
    IOThread *thread;

    bench_check(!iothread_new(&thread, "bench", &options),
                "an I/O thread starts");
    return thread;
}

static double threads_work(uint64_t count)
{
    static IOThread *all[THREADS];
    uint64_t begin;

    if (!all[0]) {
        for (unsigned i = 0; i < THREADS; i++) {
            all[i] = thread_on_core(i);
        }
        sem_init(&done, 0, 0);
    }
    bench_guarded_reset(count / (THREADS * COROUTINES));
    begin = bench_now();
    for (unsigned i = 0; i < THREADS * COROUTINES; i++) {
        aio_co_schedule(iothread_context(all[i % THREADS]),
                        coroutine_create(use_lock, NULL));
    }
    wait_for_users(THREADS * COROUTINES);
    return (double)(bench_now() - begin);
}

static const BenchWorkload workloads[] = {
    {"rwlock_1", alone_work},
    {"rwlock_t2", threads_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        BENCH_RIVAL,
        BENCH_VERSION,
        BENCH_POLLING,
        workloads,
    };

    return bench_main(argc, argv, &program);
}
