/* SPDX-License-Identifier: MIT */
/*
 * The worker pool: threads for calls that block.  One pool for the process,
 * with at most WORKER_MAX threads that start when there is more to do than
 * idle ones and end after a while without work.
 *
 * A job belongs to its user's memory (a coroutine's stack).  Its completion is
 * posted to the context that submitted it, so done runs on that home thread.
 */
#ifndef COAIO_LOOP_WORKER_H
#define COAIO_LOOP_WORKER_H

#include "base/list.h"
#include "base/post.h"

#include <coaio/timer.h>
#include <coaio/types.h>

#define WORKER_MAX 64

typedef struct WorkerJob WorkerJob;

/*
 * Jobs that would only wait for one another if they ran at once: they run one
 * after the other, in the order of submission, most of them by one thread,
 * which need not be woken for each.  Where one hangs, those behind it leave the
 * lane after 10 to 20 ms and run beside it.  Usable when zeroed; it is to
 * outlive the run of its jobs, fn, not their completion only.
 */
typedef struct WorkerLane {
    List waiting;   /* of WorkerJob.link; the pool's lock, like: */
    bool taken;     /* one of its jobs is in the pool's queue or runs */
    uint32_t begun; /* how many of its jobs have; wraps */
} WorkerLane;

struct WorkerJob {
    Post post;                      /* first: the completion */
    List link;                      /* in a queue; the pool's lock */
    int (*fn)(void *arg);
    void *arg;
    void (*done)(WorkerJob *job);   /* on the home thread, outside coroutines */
    WorkerLane *lane;               /* or NULL: may run beside any other; the
                                       pool's lock, after submission, like: */
    uint32_t seen;                  /* lane->begun, at the last look */
    bool behind;                    /* lane was taken; constant */
    List watch_link;                /* in WorkerWatch.jobs; zero at first */
    AioContext *ctx;
    int result;                     /* of fn, or -ECANCELED */
    uint32_t state;                 /* the pool's lock, after submission */
};

/* In each context: its jobs that found their lane taken.  The home thread's. */
typedef struct WorkerWatch {
    List jobs;      /* of WorkerJob.watch_link */
    AioTimer timer; /* armed while there are any */
} WorkerWatch;

void worker_watch_init(AioContext *ctx);

/*
 * Queue a job of the calling thread's context.  Returns 0, or -EAGAIN if no
 * worker exists and none could be started; then done is not called.
 */
int worker_submit(WorkerJob *job);

/*
 * Take a job back that has not begun: its result is -ECANCELED, and done is
 * called soon, as for any other.  Returns false if it runs or has run: done is
 * called when it has ended.
 */
bool worker_cancel(WorkerJob *job);

/* For tests. */
unsigned worker_thread_count(void);
unsigned worker_idle_count(void);
#ifdef COAIO_TESTING
/* How long from now on a thread waits for a job. */
void worker_set_idle_ns(int64_t idle_ns);
/* How often from now on jobs that wait in lanes are looked at. */
void worker_set_look_ns(int64_t look_ns);
#endif

#endif
