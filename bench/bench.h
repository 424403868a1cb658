/* SPDX-License-Identifier: MIT */
/*
 * bench.h: the harness that every program measured by bench/run shares.
 *
 * A program implements named workloads and calls bench_main().  It is called
 * as
 *
 *     PROGRAM --list
 *     PROGRAM WORKLOAD COUNT [ROUNDS]
 *
 * and prints one JSON object: what it is, and for each round the nanoseconds
 * that one operation took.  COUNT comes from bench/run, so that every rival
 * does the same number of operations; one unmeasured round of the same length
 * goes before the measured ones.
 *
 * A workload takes the number of operations and returns the nanoseconds that
 * they took, set-up and tear-down left out, or whatever else bench/run has as
 * the unit of its row.  It must check its own work with bench_check(): a
 * workload that did not do what it says must not be timed.
 *
 * C11 and C++17.
 */
#ifndef BENCH_H
#define BENCH_H

#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BENCH_NOINLINE __attribute__((noinline))

enum { BENCH_MAX_ROUNDS = 100, BENCH_MAX_THREADS = 16 };

/* `count` operations; returns the nanoseconds that they took together. */
typedef double BenchWork(uint64_t count);

typedef struct BenchWorkload {
    const char *name;
    BenchWork *work;
} BenchWorkload;

typedef struct BenchProgram {
    const char *rival;
    const char *version;
    const char *settings;           /* what was chosen, in a few words */
    const BenchWorkload *workloads; /* ends with a NULL name */
} BenchProgram;

static inline uint64_t bench_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void bench_check(bool good, const char *what)
{
    if (!good) {
        fprintf(stderr, "bench: does not hold: %s\n", what);
        exit(1);
    }
}

static inline void *bench_allocate(size_t count, size_t size)
{
    void *p = calloc(count, size);

    bench_check(p != NULL, "there is memory");
    return p;
}

/* splitmix64 */
static inline uint64_t bench_random(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/*
 * The number of a core: the `which`-th of those that the process could use
 * when it first asked, counted around.
 */
static inline unsigned bench_core(unsigned which)
{
    static cpu_set_t allowed;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    unsigned seen = 0;

    pthread_mutex_lock(&lock);
    if (CPU_COUNT(&allowed) == 0) {
        bench_check(!sched_getaffinity(0, sizeof(allowed), &allowed),
                    "the cores are known");
    }
    pthread_mutex_unlock(&lock);
    which %= (unsigned)CPU_COUNT(&allowed);
    for (unsigned core = 0;; core++) {
        if (CPU_ISSET(core, &allowed) && seen++ == which) {
            return core;
        }
    }
}

/*
 * Binds the calling thread to bench_core(which).  Rows with two threads need
 * it, since the kernel puts both on one core in some rounds only.
 */
static inline void bench_pin(unsigned which)
{
    cpu_set_t mine;

    CPU_ZERO(&mine);
    CPU_SET(bench_core(which), &mine);
    bench_check(!pthread_setaffinity_np(pthread_self(), sizeof(mine), &mine),
                "a thread can be bound to a core");
}

/*
 * Threads that contend do so for a time: with a number of operations to do, the
 * first would be done with theirs when the last begin.  It is several slices of
 * the scheduler, as there may be more threads than cores.
 *
 *   bench_contend();             before they start
 *   while (bench_goes_on())      each of them
 *   bench_let_contend();         who waits for them; bench_parallel() does
 *   bench_contended(...)         what the `count` asked for would have taken
 */
static int bench_contending;

static inline void bench_contend(void)
{
    __atomic_store_n(&bench_contending, 1, __ATOMIC_RELAXED);
}

static inline bool bench_goes_on(void)
{
    return __atomic_load_n(&bench_contending, __ATOMIC_RELAXED);
}

static inline void bench_let_contend(void)
{
    struct timespec time = {.tv_sec = 0, .tv_nsec = 50000000};

    nanosleep(&time, NULL);
    __atomic_store_n(&bench_contending, 0, __ATOMIC_RELAXED);
}

static inline double bench_contended(double elapsed, uint64_t made,
                                     uint64_t count)
{
    return elapsed * (double)count / (double)made;
}

/*
 * bench_parallel: `threads` threads run body(index, opaque) at once.  Returns
 * the time from when all stand ready until the last has returned.
 */
typedef void BenchBody(unsigned index, void *opaque);

typedef struct BenchThread {
    pthread_t thread;
    pthread_barrier_t *start;
    BenchBody *body;
    void *opaque;
    unsigned index;
} BenchThread;

static inline void *bench_thread_entry(void *opaque)
{
    BenchThread *t = (BenchThread *)opaque;

    pthread_barrier_wait(t->start);
    t->body(t->index, t->opaque);
    return NULL;
}

static inline double bench_parallel(unsigned threads, BenchBody *body,
                                    void *opaque)
{
    BenchThread all[BENCH_MAX_THREADS];
    pthread_barrier_t start;
    uint64_t begin;

    bench_check(threads <= BENCH_MAX_THREADS, "so many threads are foreseen");
    pthread_barrier_init(&start, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++) {
        all[i].start = &start;
        all[i].body = body;
        all[i].opaque = opaque;
        all[i].index = i;
        bench_check(!pthread_create(&all[i].thread, NULL, bench_thread_entry,
                                    &all[i]), "a thread starts");
    }
    /* With fewer cores than threads they may begin before we are back. */
    begin = bench_now();
    pthread_barrier_wait(&start);
    if (bench_contending) {
        bench_let_contend();
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(all[i].thread, NULL);
    }
    begin = bench_now() - begin;
    pthread_barrier_destroy(&start);
    return (double)begin;
}

static inline int bench_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static inline int bench_report(const BenchProgram *program,
                               const BenchWorkload *w, uint64_t count,
                               unsigned rounds)
{
    double values[BENCH_MAX_ROUNDS], sorted[BENCH_MAX_ROUNDS];

    w->work(count);
    for (unsigned i = 0; i < rounds; i++) {
        sorted[i] = values[i] = w->work(count) / (double)count;
    }
    qsort(sorted, rounds, sizeof(*sorted), bench_compare);
    printf("{\"rival\": \"%s\", \"version\": \"%s\", \"settings\": \"%s\""
           ", \"workload\": \"%s\", \"count\": %llu, \"min\": %.3f"
           ", \"median\": %.3f, \"max\": %.3f, \"values\": [", program->rival,
           program->version, program->settings, w->name,
           (unsigned long long)count, sorted[0],
           rounds % 2 ? sorted[rounds / 2]
                      : (sorted[rounds / 2 - 1] + sorted[rounds / 2]) / 2,
           sorted[rounds - 1]);
    for (unsigned i = 0; i < rounds; i++) {
        printf("%s%.3f", i ? ", " : "", values[i]);
    }
    printf("]}\n");
    return 0;
}

static inline int bench_main(int argc, char **argv,
                             const BenchProgram *program)
{
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000000;
    unsigned long rounds = argc > 3 ? strtoul(argv[3], NULL, 10) : 1;

    if (argc == 2 && !strcmp(argv[1], "--list")) {
        for (const BenchWorkload *w = program->workloads; w->name; w++) {
            printf("%s\n", w->name);
        }
        return 0;
    }
    if (argc >= 2 && argc <= 4 && count && rounds
        && rounds <= BENCH_MAX_ROUNDS) {
        for (const BenchWorkload *w = program->workloads; w->name; w++) {
            if (!strcmp(argv[1], w->name)) {
                return bench_report(program, w, count, (unsigned)rounds);
            }
        }
    }
    fprintf(stderr, "Usage: %s --list | WORKLOAD [COUNT [ROUNDS]]\n",
            argv[0]);
    return 2;
}

#endif
