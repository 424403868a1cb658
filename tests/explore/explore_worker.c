/* SPDX-License-Identifier: MIT */
/*
 * The worker pool (loop/worker.c): jobs, their completions, taking them back.
 */
#include "base/atomic.h"
#include "cothread.h"
#include "loop/context.h"
#include "loop/worker.h"
#include "os/memory.h"

#include <coaio/bh.h>
#include <coaio/timer.h>
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

/* Its owner is gone as soon as it has been told. */
static void cancel_and_be_gone(void)
{
    aio_context_attach(co_context[0]);
    explore_begin();
    submit();
    worker_cancel(job);
    poll_until(1);
    explore_end();
    aio_context_unref(co_context[0]);
}

/* Two completions of one job are a race before one finds it freed. */
EXPLORE(a_job_is_taken_back_and_gone, .setup = make_one,
        .threads = {cancel_and_be_gone},
        .marks = {"worker: a job is taken back",
                  "worker: too late to take a job back"},
        .mutants = {{MUTANT_WORKER_CANCEL, "data race", "complete()", false}})

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

/* --- an idle thread gives up ----------------------------------------------*/

EXPLORE(a_job_comes_as_a_thread_gives_up, .setup = make_one,
        .threads = {submit_two}, .timeouts = true,
        .marks = {"worker: a job comes as an idle one gives up",
                  "worker: one ends for want of work"},
        .mutants = {{MUTANT_WORKER_GIVES_UP, "lost wake-up", "worker", false}})

/* --- a job that waits for the next one ------------------------------------*/

static WorkerJob jobs[2];
static uint32_t began; /* atomic futex: the second one has */

static int wait_for_the_next(void *arg)
{
    (void)arg;
    while (!load_acquire(&began)) {
        os_futex_wait(&began, 0, -1);
    }
    return 0;
}

static int begin(void *arg)
{
    (void)arg;
    store_release(&began, 1u);
    os_futex_wake(&began, 1);
    return 0;
}

static void count(WorkerJob *completed)
{
    (void)completed;
    completions++;
}

static void submit_job(int i, int (*fn)(void *arg))
{
    jobs[i].fn = fn;
    jobs[i].done = count;
    CHECK_EQ(worker_submit(&jobs[i]), 0);
}

/* One thread is idle, so the second job needs another. */
static void submit_two_at_once(void)
{
    aio_context_attach(co_context[0]);
    submit_job(1, begin);
    poll_until(1);
    began = 0;
    explore_begin();
    submit_job(0, wait_for_the_next);
    submit_job(1, begin);
    poll_until(3);
    explore_end();
    aio_context_unref(co_context[0]);
}

EXPLORE(a_job_waits_for_the_next, .setup = make_one,
        .threads = {submit_two_at_once},
        .mutants = {{MUTANT_WORKER_MISCOUNTS, "lost wake-up",
                     "wait_for_the_next", false}})

/* --- a lane ---------------------------------------------------------------*/

static WorkerLane lane;
static bool in_lane; /* a job of it runs; none of them runs beside another */

static int work_in_lane(void *arg)
{
    (void)arg;
    CHECK(!in_lane);
    in_lane = true;
    CHECK(in_lane);
    in_lane = false;
    return 0;
}

static void submit_to_lane(int i)
{
    jobs[i].lane = &lane;
    submit_job(i, work_in_lane);
}

/* Nobody came to look after those that wait in a lane: what was to be done, was
 * done by itself. */
static void poll_until_unhelped(unsigned n)
{
    const int64_t begin_ns = aio_clock_ns(AIO_CLOCK_MONOTONIC);

    poll_until(n);
    CHECK(aio_clock_ns(AIO_CLOCK_MONOTONIC) - begin_ns < 5000000);
}

static void submit_two_to_lane(void)
{
    aio_context_attach(co_context[0]);
    explore_begin();
    submit_to_lane(0);
    submit_to_lane(1);
    poll_until_unhelped(2);
    explore_end();
    aio_context_unref(co_context[0]);
}

EXPLORE(two_jobs_share_a_lane, .setup = make_one,
        .threads = {submit_two_to_lane},
        .marks = {"worker: one goes on in its lane",
                  "worker: a lane is free"},
        .mutants = {
            {MUTANT_WORKER_LANE_LEFT, "failed check", "unhelped", false}})

static void submit_two_to_lane_and_cancel(void)
{
    bool cancelled;

    aio_context_attach(co_context[0]);
    explore_begin();
    submit_to_lane(0);
    submit_to_lane(1);
    cancelled = worker_cancel(&jobs[0]);
    poll_until_unhelped(2);
    CHECK_EQ(jobs[0].result, cancelled ? -ECANCELED : 0);
    CHECK_EQ(jobs[1].result, 0);
    explore_end();
    aio_context_unref(co_context[0]);
}

EXPLORE(the_first_of_a_lane_is_taken_back, .setup = make_one,
        .threads = {submit_two_to_lane_and_cancel},
        .marks = {"worker: a job is taken back",
                  "worker: too late to take a job back"},
        .mutants = {
            {MUTANT_WORKER_LANE_STUCK, "failed check", "unhelped", false}})

static void submit_two_to_lane_and_cancel_the_second(void)
{
    bool cancelled;

    aio_context_attach(co_context[0]);
    explore_begin();
    submit_to_lane(0);
    submit_to_lane(1);
    cancelled = worker_cancel(&jobs[1]);
    poll_until_unhelped(2);
    CHECK_EQ(jobs[0].result, 0);
    CHECK_EQ(jobs[1].result, cancelled ? -ECANCELED : 0);
    explore_end();
    aio_context_unref(co_context[0]);
}

EXPLORE(the_next_of_a_lane_is_taken_back, .setup = make_one,
        .threads = {submit_two_to_lane_and_cancel_the_second},
        .marks = {"worker: a job is taken back from its lane",
                  "worker: too late to take a job back"})

/* The first ends when the second has begun, which must leave the lane. */
static void submit_two_that_do_not_exclude(void)
{
    aio_context_attach(co_context[0]);
    explore_begin();
    jobs[0].lane = &lane;
    jobs[1].lane = &lane;
    submit_job(0, wait_for_the_next);
    submit_job(1, begin);
    poll_until(2);
    explore_end();
    aio_context_unref(co_context[0]);
}

EXPLORE(the_first_of_a_lane_hangs, .setup = make_one,
        .threads = {submit_two_that_do_not_exclude},
        .marks = {"worker: a job leaves its lane", "worker: a lane is free"},
        .mutants = {{MUTANT_WORKER_LANE_KEPT, "failed check", "lane->taken",
                     false}})

/* Whatever the lane does when somebody looks. */
static void submit_two_and_look(void)
{
    aio_context_attach(co_context[0]);
    explore_begin();
    for (int i = 0; i < 2; i++) {
        jobs[i].lane = &lane;
        submit_job(i, begin);
    }
    poll_until(2);
    jobs[0].lane = &lane;
    submit_job(0, begin);
    poll_until(3);
    explore_end();
    aio_context_unref(co_context[0]);
}

EXPLORE(a_lane_is_looked_at_any_time, .setup = make_one,
        .threads = {submit_two_and_look}, .timeouts = true,
        .marks = {"worker: a job leaves its lane",
                  "worker: one goes on in its lane"})

/* --- two contexts ---------------------------------------------------------*/

static bool finished[2]; /* each its own thread's */

static void make_two(void)
{
    co_make_contexts(2);
}

static void finish_own(WorkerJob *completed)
{
    finished[completed - jobs] = true;
}

static int do_nothing(void *arg)
{
    (void)arg;
    return 0;
}

static void submit_from(int i)
{
    aio_context_attach(co_context[i]);
    jobs[i].fn = do_nothing;
    jobs[i].done = finish_own;
    explore_begin();
    CHECK_EQ(worker_submit(&jobs[i]), 0);
    while (!finished[i]) {
        aio_poll(co_context[i], true);
    }
    explore_end();
    aio_context_unref(co_context[i]);
}

static void submit_from_first(void)
{
    submit_from(0);
}

static void submit_from_second(void)
{
    submit_from(1);
}

EXPLORE(two_contexts_have_jobs, .setup = make_two,
        .threads = {submit_from_first, submit_from_second})

/* --- a thread that ends while its job is on its way -----------------------*/

static void submit_and_stop(void)
{
    aio_context_attach(co_context[0]);
    explore_begin();
    submit_job(0, do_nothing);
    context_stop(co_context[0]);
    aio_context_unref(co_context[0]);
    explore_end();
}

/* done is not called any more. */
static void check_not_done(void)
{
    context_reap();
    CHECK_EQ(completions, 0);
}

EXPLORE(a_thread_ends_before_its_job, .setup = make_one,
        .threads = {submit_and_stop}, .finish = check_not_done,
        .mutants = {
            {MUTANT_WORKER_UNPINNED, "use after free", "context_free",
             false}})

EXPLORE_MAIN()
