/* SPDX-License-Identifier: MIT */
/*
 * I/O threads that stop while others hand them work, wait for them, and have
 * jobs with the workers.  Whatever a stopping thread has taken has run exactly
 * once; nothing is lost in silence, nothing is freed too early.
 */
#include "harness.h"

#include "base/atomic.h"
#include "loop/context.h"
#include "workers.h"

#include <coaio/bh.h>
#include <coaio/coroutine.h>
#include <coaio/iothread.h>
#include <coaio/wait.h>
#include <coaio/wake.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>

/* --- work that comes while a thread stops ---------------------------------*/

#define POSTERS 3

typedef struct Stopping {
    AioContext *ctx;
    unsigned posted; /* atomic */
    unsigned ran;    /* atomic */
    unsigned stop;   /* atomic */
} Stopping;

static void count_run(void *opaque)
{
    Stopping *s = opaque;

    fetch_add_acq_rel(&s->ran, 1u);
}

static void *post_until_stopped(void *opaque)
{
    Stopping *s = opaque;
    AioBH *bh = aio_bh_new(s->ctx, count_run, s);

    while (!load_acquire(&s->stop)) {
        aio_bh_schedule(bh);
        aio_notify(s->ctx);
        fetch_add_acq_rel(&s->posted, 1u);
    }
    aio_bh_delete(bh);
    return NULL;
}

static void join_posters(Stopping *s, pthread_t *posters)
{
    store_release(&s->stop, 1);
    for (int k = 0; k < POSTERS; k++) {
        CHECK_EQ(pthread_join(posters[k], NULL), 0);
    }
}

/* In every other round they stop before, and what comes last must not be lost,
 * as nothing comes after it. */
TEST(stopped_while_others_post)
{
    for (unsigned long i = 0; i < harness_load(100); i++) {
        pthread_t posters[POSTERS];
        Stopping s = {0}, last = {0};
        IOThread *iothread;

        CHECK_EQ(iothread_new(&iothread, "stops", NULL), 0);
        s.ctx = aio_context_ref(iothread_context(iothread));
        for (int k = 0; k < POSTERS; k++) {
            CHECK_EQ(pthread_create(&posters[k], NULL, post_until_stopped, &s),
                     0);
        }
        while (load_acquire(&s.ran) < 3) {
            sched_yield();
        }
        if (i % 2) {
            join_posters(&s, posters);
            aio_bh_schedule_oneshot(s.ctx, count_run, &last);
        }
        CHECK_EQ(iothread_stop(iothread), 0);
        if (i % 2) {
            CHECK_EQ(last.ran, 1);
        } else {
            join_posters(&s, posters);
        }
        CHECK(load_acquire(&s.ran) <= load_acquire(&s.posted) + POSTERS);
        iothread_unref(iothread);
        aio_context_unref(s.ctx);
    }
}

/* --- waiting for each other -----------------------------------------------*/

static IOThread *ring[3];

static void hop(void *opaque)
{
    unsigned *n = opaque;
    unsigned at = fetch_add_acq_rel(n, 1u);

    if (at < 12) {
        aio_wait_bh_oneshot(iothread_context(ring[at % 3]), hop, n);
    }
}

static void *hop_around(void *opaque)
{
    (void)opaque;
    for (unsigned long i = 0; i < harness_load(300); i++) {
        unsigned n = 0;

        hop(&n);
        CHECK_EQ(load_acquire(&n), 13);
    }
    return NULL;
}

TEST(waits_nest_across_threads)
{
    pthread_t threads[3];

    for (int i = 0; i < 3; i++) {
        CHECK_EQ(iothread_new(&ring[i], "ring", NULL), 0);
    }
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, hop_around, NULL), 0);
    }
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    }
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(iothread_stop(ring[i]), 0);
        iothread_unref(ring[i]);
    }
}

/* --- jobs -----------------------------------------------------------------*/

typedef struct Job {
    WorkerJob job;
    Coroutine *co;
    unsigned done;
    unsigned ran; /* atomic */
} Job;

static unsigned workers_left; /* atomic; coroutines */
static unsigned cancelled;    /* atomic */

static int job_run(void *opaque)
{
    Job *job = opaque;

    fetch_add_acq_rel(&job->ran, 1u);
    return 7;
}

static void job_done(WorkerJob *worker_job)
{
    Job *job = (Job *)worker_job;

    job->done++;
    aio_co_wake(job->co);
}

static void submit_again_and_again(void *opaque)
{
    uint64_t random = (uint64_t)(uintptr_t)opaque;

    for (unsigned long i = 0; i < harness_load(1000); i++) {
        Job job = {.co = coroutine_self()};
        bool taken = false;

        job.job.fn = job_run;
        job.job.arg = &job;
        job.job.done = job_done;
        CHECK_EQ(worker_submit(&job.job), 0);
        random = random * 6364136223846793005u + 1442695040888963407u;
        if ((random >> 40) % 3 == 0) {
            taken = worker_cancel(&job.job);
            fetch_add_acq_rel(&cancelled, taken);
        }
        coroutine_yield();
        CHECK_EQ(job.done, 1);
        CHECK_EQ(job.ran, !taken);
        CHECK_EQ(job.job.result, taken ? -ECANCELED : 7);
    }
    fetch_sub_acq_rel(&workers_left, 1u);
    aio_wait_kick();
}

TEST(jobs_and_their_cancellation_on_several_loops)
{
    uint64_t seed = harness_seed();

    for (int i = 0; i < 3; i++) {
        CHECK_EQ(iothread_new(&ring[i], "loop", NULL), 0);
    }
    workers_left = 12;
    for (uint64_t i = 0; i < 12; i++) {
        aio_co_enter(iothread_context(ring[i % 3]),
                     coroutine_create(submit_again_and_again,
                                      (void *)(uintptr_t)(seed + i)));
    }
    aio_wait_while(iothread_context(ring[0]), load_acquire(&workers_left) > 0);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(iothread_stop(ring[i]), 0);
        iothread_unref(ring[i]);
    }
    end_workers();
}

TEST_MAIN()
