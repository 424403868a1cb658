/* SPDX-License-Identifier: MIT */
#ifndef COAIO_TESTS_WORKERS_H
#define COAIO_TESTS_WORKERS_H

/*
 * The worker pool outlives contexts, and a worker lets go of a context a little
 * after its job is done.  Only then are the descriptors of a context closed
 * that was given up meanwhile, as the harness expects at the end of a case.
 */

#include "loop/worker.h"

#include <sched.h>

/* Wait until all workers have ended.  From then on none waits for jobs. */
static inline void end_workers(void)
{
    worker_set_idle_ns(0);
    while (worker_thread_count() > 0) {
        sched_yield();
    }
}

#endif
