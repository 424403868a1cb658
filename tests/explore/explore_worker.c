/* SPDX-License-Identifier: MIT */
/*
 * The worker pool (loop/worker.c): jobs, their completions, taking them back.
 */
#include "base/atomic.h"
#include "cothread.h"
#include "loop/worker.h"
#include "os/memory.h"

#include <coaio/bh.h>
#include <errno.h>

static WorkerJob *job;
static unsigned completions;
static int result;
static bool ran; /* by the worker, handed over by the completion */

static void make_one(void)
{
    co_make_contexts(1);
}

static int work(void *arg)
{
    (void)arg;
    ran = true;
    return 7;
}

/* The job is gone with its completion. */
static void complete(WorkerJob *completed)
{
    CHECK(completed == job);
    result = job->result;
    completions++;
    os_free(job);
    job = NULL;
}

static void submit(void)
{
    job = os_alloc(sizeof(*job));
    job->fn = work;
    job->done = complete;
    CHECK_EQ(worker_submit(job), 0);
}

static void poll_until(unsigned n)
{
    while (completions < n) {
        aio_poll(co_context[0], true);
    }
}

static void submit_two(void)
{
    aio_context_attach(co_context[0]);
    explore_begin();
    submit();
    poll_until(1);
    CHECK(ran);
    CHECK_EQ(result, 7);
    submit();
    poll_until(2);
    explore_end();
    aio_context_unref(co_context[0]);
}

EXPLORE(jobs_one_after_the_other, .setup = make_one, .threads = {submit_two},
        .marks = {"worker: an idle one is called"},
        .mutants = {
            {MUTANT_WORKER_NOT_CALLED, "lost wake-up", "worker", false}})

static void submit_and_cancel(void)
{
    bool cancelled;

    aio_context_attach(co_context[0]);
    explore_begin();
    submit();
    cancelled = worker_cancel(job);
    poll_until(1);
    CHECK_EQ(result, cancelled ? -ECANCELED : 7);
    CHECK_EQ(ran, !cancelled);
    explore_end();
    while (aio_poll(co_context[0], false)) {
    }
    CHECK_EQ(completions, 1);
    aio_context_unref(co_context[0]);
}

EXPLORE(a_job_is_taken_back, .setup = make_one, .threads = {submit_and_cancel},
        .marks = {"worker: a job is taken back"},
        .mutants = {
            {MUTANT_WORKER_CANCEL, "failed check", "!cancelled", false}})

/* The context ends as soon as the job has completed. */
static void submit_and_end(void)
{
    aio_context_attach(co_context[0]);
    explore_begin();
    submit();
    poll_until(1);
    aio_context_unref(co_context[0]);
    explore_end();
}

EXPLORE(a_job_is_the_last_of_its_context, .setup = make_one,
        .threads = {submit_and_end})

/* --- a nested poll waits for a completion that is due in the same pass ----*/

static void wait_for_job(void *opaque)
{
    (void)opaque;
    poll_until(1);
}

static void poll_within(void)
{
    aio_context_attach(co_context[0]);
    explore_begin();
    aio_bh_schedule_oneshot(co_context[0], wait_for_job, NULL);
    submit();
    poll_until(1);
    explore_end();
    aio_context_unref(co_context[0]);
}

EXPLORE(a_nested_poll_waits_for_a_job, .setup = make_one,
        .threads = {poll_within},
        .mutants = {
            {MUTANT_WORKER_NESTED, "lost wake-up", "post_take_all", false}})

EXPLORE_MAIN()
