/* SPDX-License-Identifier: MIT */
/*
 * coaio_mutex.c: CoMutex.
 *
 *   mutex_1        one coroutine locks and unlocks
 *   mutex_wN       N coroutines on one loop lock, add one, unlock; the mutex
 *                  hands itself on in order, so all but one always wait
 *   mutex_t2       one coroutine on each of two I/O threads, on two cores
 *   mutex_t5       one coroutine on each of five I/O threads
 *
 * The critical section adds one to a plain counter, which is checked.
 */
#include <coaio/coaio.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "bench.h"

/* How long the I/O threads look for something to do before they sleep. */
#ifndef BENCH_POLL_MAX_NS
#define BENCH_POLL_MAX_NS 0
#define BENCH_POLLING     "static; no busy polling"
#endif

enum { MAX_CONTENDERS = 100 };

static CoMutex mutex;
static uint64_t counter, wanted, began;

static void attach_once(void)
{
    static AioContext *ctx;

    if (!ctx) {
        bench_check(!aio_context_new(&ctx, NULL), "a context is made");
        aio_context_attach(ctx);
    }
}

static void coroutine_fn lock_alone(void *opaque)
{
    (void)opaque;
    for (uint64_t i = 0; i < wanted; i++) {
        co_mutex_lock(&mutex);
        counter++;
        co_mutex_unlock(&mutex);
    }
}

static double mutex_work(uint64_t count)
{
    uint64_t begin;

    attach_once();
    counter = 0;
    wanted = count;
    begin = bench_now();
    coroutine_enter(coroutine_create(lock_alone, NULL));
    begin = bench_now() - begin;
    bench_check(counter == count, "each acquisition is counted");
    return (double)begin;
}

static void coroutine_fn contend(void *opaque)
{
    (void)opaque;
    for (bool enough = false; !enough;) {
        co_mutex_lock(&mutex);
        enough = counter >= wanted;
        counter += !enough;
        co_mutex_unlock(&mutex);
    }
}

/* Holds the mutex until all others have queued. */
static void coroutine_fn start_contenders(void *opaque)
{
    unsigned contenders = *(unsigned *)opaque;

    co_mutex_lock(&mutex);
    for (unsigned i = 0; i < contenders; i++) {
        coroutine_enter(coroutine_create(contend, NULL));
    }
    began = bench_now();
    co_mutex_unlock(&mutex);
}

static double contend_work(uint64_t count, unsigned contenders)
{
    uint64_t end;

    attach_once();
    counter = 0;
    wanted = count;
    coroutine_enter(coroutine_create(start_contenders, &contenders));
    end = bench_now();
    bench_check(counter == count, "each acquisition is counted");
    return (double)(end - began);
}

static double contend_2_work(uint64_t count)
{
    return contend_work(count, 2);
}

static double contend_10_work(uint64_t count)
{
    return contend_work(count, 10);
}

static double contend_100_work(uint64_t count)
{
    return contend_work(count, MAX_CONTENDERS);
}

static pthread_barrier_t start; /* as the rivals' threads have it */
static _Atomic uint64_t made_by_all;
static sem_t done;

static void coroutine_fn lock_among_threads(void *opaque)
{
    uint64_t made = 0;

    (void)opaque;
    pthread_barrier_wait(&start);
    while (bench_goes_on()) {
        co_mutex_lock(&mutex);
        counter++;
        co_mutex_unlock(&mutex);
        made++;
    }
    atomic_fetch_add(&made_by_all, made);
    sem_post(&done);
}

static double threads_work(uint64_t count, unsigned threads, bool pin)
{
    static IOThread *all[BENCH_MAX_THREADS];
    uint64_t begin;

    for (unsigned i = 0; i < threads && !all[i]; i++) {
        unsigned core = bench_core(i);
        IOThreadOptions options = {
            .size = sizeof(options),
            .cpus = pin ? &core : NULL,
            .n_cpus = pin ? 1 : 0,
            .poll_max_ns = BENCH_POLL_MAX_NS,
        };

        bench_check(!iothread_new(&all[i], "bench", &options),
                    "an I/O thread starts");
    }
    sem_init(&done, 0, 0);
    pthread_barrier_init(&start, NULL, threads + 1);
    counter = 0;
    made_by_all = 0;
    bench_contend();
    for (unsigned i = 0; i < threads; i++) {
        aio_co_schedule(iothread_context(all[i]),
                        coroutine_create(lock_among_threads, NULL));
    }
    /* With fewer cores than threads they may begin before we are back. */
    begin = bench_now();
    pthread_barrier_wait(&start);
    bench_let_contend();
    for (unsigned i = 0; i < threads; i++) {
        while (sem_wait(&done)) {
        }
    }
    begin = bench_now() - begin;
    pthread_barrier_destroy(&start);
    bench_check(counter == made_by_all, "the lock excludes");
    return bench_contended((double)begin, counter, count);
}

static double threads_2_work(uint64_t count)
{
    return threads_work(count, 2, true);
}

static double threads_5_work(uint64_t count)
{
    return threads_work(count, 5, false);
}

static const BenchWorkload workloads[] = {
    {"mutex_1", mutex_work},
    {"mutex_w2", contend_2_work},
    {"mutex_w10", contend_10_work},
    {"mutex_w100", contend_100_work},
    {"mutex_t2", threads_2_work},
    {"mutex_t5", threads_5_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        BENCH_RIVAL, BENCH_VERSION, BENCH_POLLING, workloads,
    };

    return bench_main(argc, argv, &program);
}
