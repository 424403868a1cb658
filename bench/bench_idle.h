/* SPDX-License-Identifier: MIT */
/*
 * bench_idle.h: what the workload idle of all rivals has in common.
 *
 * A loop that waits for other threads has nothing to do.  An operation is a
 * tenth of a second, and what is measured is the processor time that the
 * thread of the loop takes in it; the kernel's count of its sleeps tells
 * whether it was ever woken.
 */
#ifndef BENCH_IDLE_H
#define BENCH_IDLE_H

#include <sys/syscall.h>
#include <unistd.h>

#include "bench.h"

typedef struct BenchIdle {
    pthread_t thread;
    long tid;
} BenchIdle;

/* Called once by the thread of the loop. */
static inline void bench_idle_here(BenchIdle *idle)
{
    idle->thread = pthread_self();
    idle->tid = syscall(SYS_gettid);
}

static inline void bench_idle_pass(void)
{
    struct timespec tenth = {0, 100000000};

    while (nanosleep(&tenth, &tenth)) {
    }
}

static inline unsigned long bench_idle_sleeps(const BenchIdle *idle)
{
    unsigned long sleeps = 0;
    char path[64], line[128];
    FILE *status;

    snprintf(path, sizeof(path), "/proc/self/task/%ld/status", idle->tid);
    status = fopen(path, "r");
    bench_check(status != NULL, "the thread is there");
    while (fgets(line, sizeof(line), status) &&
           sscanf(line, "voluntary_ctxt_switches: %lu", &sleeps) != 1) {
    }
    fclose(status);
    return sleeps;
}

static inline double bench_idle_cpu_ns(const BenchIdle *idle)
{
    struct timespec t;
    clockid_t clock;

    bench_check(!pthread_getcpuclockid(idle->thread, &clock) &&
                !clock_gettime(clock, &t), "the thread has a clock");
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static inline double bench_idle_work(const BenchIdle *idle, uint64_t count)
{
    unsigned long sleeps;
    double begin;

    bench_idle_pass(); /* it goes to sleep */
    sleeps = bench_idle_sleeps(idle);
    begin = bench_idle_cpu_ns(idle);
    for (uint64_t i = 0; i < count; i++) {
        bench_idle_pass();
    }
    begin = bench_idle_cpu_ns(idle) - begin;
    bench_check(bench_idle_sleeps(idle) == sleeps, "it is never woken");
    return begin;
}

#endif
