/* SPDX-License-Identifier: MIT */
/*
 * rwlock.c: pthread_rwlock_t with its defaults, which lets a reader pass the
 * writers that wait; 19 readers for each writer (bench_rwlock.h), in one
 * thread, or in each of two on two cores.
 */
#include <stdatomic.h>

#include "../bench_rwlock.h"

static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static atomic_uint missing;

/* A thread that begins late on its core would find the other one done. */
static void meet(void)
{
    atomic_fetch_sub(&missing, 1);
    while (atomic_load(&missing)) {
    }
}

static void body(unsigned index, void *opaque)
{
    (void)opaque;
    bench_pin(index);
    meet();
    for (uint64_t i = 0; i < bench_guarded.per_user; i++) {
        if (bench_guarded_writes(i)) {
            pthread_rwlock_wrlock(&rwlock);
            bench_guarded_write();
        } else {
            pthread_rwlock_rdlock(&rwlock);
            bench_guarded_read();
        }
        pthread_rwlock_unlock(&rwlock);
    }
}

static double threads_work(uint64_t count, unsigned threads)
{
    double elapsed;

    bench_guarded_reset(count / threads);
    atomic_store(&missing, threads);
    elapsed = bench_parallel(threads, body, NULL);
    bench_guarded_check(threads);
    return elapsed;
}

static double alone_work(uint64_t count)
{
    return threads_work(count, 1);
}

static double threads_2_work(uint64_t count)
{
    return threads_work(count, 2);
}

static const BenchWorkload workloads[] = {
    {"rwlock_1", alone_work},
    {"rwlock_t2", threads_2_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        "pthread",
        "glibc",
        "pthread_mutex_t and pthread_rwlock_t, default attributes",
        workloads,
    };

    return bench_main(argc, argv, &program);
}
