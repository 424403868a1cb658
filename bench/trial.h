/* SPDX-License-Identifier: MIT */
/*
 * trial.h: what the tasks of trial-uring have in common.
 */
#ifndef TRIAL_H
#define TRIAL_H

#include <liburing.h>

#include "bench.h"

enum { ENTRIES = 64 };

typedef struct Cost {
    double wall_ns, cpu_ns; /* of one operation */
} Cost;

typedef struct Way Way;
struct Way {
    const char *task;
    const char *name;
    /* Work for about ns.  Returns false if the kernel does not know the way. */
    bool (*run)(const Way *way, uint64_t ns, Cost *cost);
    int how;     /* the task's own */
    size_t size; /* of a message */
    int domain;  /* of sockets */
};

/* Those of a task stand together; a last one has no task. */
extern const Way wake_ways[], socket_ways[], file_ways[];

static inline uint64_t cpu_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void ring_open(struct io_uring *ring)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER |
                 IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL,
        .cq_entries = 1024,
    };

    bench_check(io_uring_queue_init_params(ENTRIES, ring, &params) == 0,
                "there is io_uring of Linux 6.1");
}

static inline struct io_uring_sqe *ring_sqe(struct io_uring *ring)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

    bench_check(sqe != NULL, "there is room in the ring");
    return sqe;
}

#endif
