/* SPDX-License-Identifier: MIT */
/*
 * The worker pool: a hundred jobs, order, cancellation before, during and
 * after, the limit of threads and their end, failure to start one, jobs of
 * several contexts and of one that has stopped, jobs that share a lane.
 */
#include "loopthread.h"
#include "workers.h"

#include "base/atomic.h"
#include "loop/context.h"
#include "loop/worker.h"
#include "os/fault.h"

#include <coaio/coroutine.h>
#include <coaio/iothread.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>

#define MANY 100

static AioContext *ctx;

static void open_context(void)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    aio_context_attach(ctx);
}

static void close_context(void)
{
    aio_context_unref(ctx);
    end_workers();
}

typedef struct Job {
    WorkerJob job;
    int id;
    unsigned ran;    /* atomic; calls of fn */
    unsigned done;   /* calls of done */
    int result;
    sem_t began;
    sem_t go_on;
    bool gated;
    unsigned order;  /* atomic; of beginning */
} Job;

static unsigned begun; /* atomic */
static unsigned done_n;

static int job_fn(void *opaque)
{
    Job *job = opaque;

    job->order = fetch_add_acq_rel(&begun, 1u);
    fetch_add_acq_rel(&job->ran, 1u);
    gate_open(&job->began);
    if (job->gated) {
        gate_pass(&job->go_on);
    }
    return job->id;
}

static void job_done(WorkerJob *worker_job)
{
    Job *job = (Job *)worker_job;

    CHECK(!in_coroutine());
    CHECK_EQ(aio_context_current(), job->job.ctx);
    job->done++;
    job->result = worker_job->result;
    done_n++;
}

static void job_init(Job *job, int id)
{
    memset(job, 0, sizeof(*job));
    job->id = id;
    job->job.fn = job_fn;
    job->job.arg = job;
    job->job.done = job_done;
    gate_init(&job->began);
    gate_init(&job->go_on);
}

static void await_done(unsigned n)
{
    while (done_n < n) {
        aio_poll(ctx, true);
    }
    CHECK_EQ(done_n, n);
}

/* Occupy a thread each, so that what follows must queue. */
static void occupy(Job *jobs, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        job_init(&jobs[i], -1);
        jobs[i].gated = true;
        CHECK_EQ(worker_submit(&jobs[i].job), 0);
        gate_pass(&jobs[i].began);
    }
}

static void release(Job *jobs, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        gate_open(&jobs[i].go_on);
    }
}

TEST(a_hundred_jobs_run_once_each)
{
    static Job jobs[MANY];

    open_context();
    for (int i = 0; i < MANY; i++) {
        job_init(&jobs[i], i);
        CHECK_EQ(worker_submit(&jobs[i].job), 0);
    }
    await_done(MANY);
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(jobs[i].ran, 1);
        CHECK_EQ(jobs[i].done, 1);
        CHECK_EQ(jobs[i].result, i);
    }
    CHECK(worker_thread_count() <= WORKER_MAX);
    close_context();
}

TEST(there_is_a_limit_of_threads_and_the_rest_queues)
{
    static Job busy[WORKER_MAX], queued[8];

    open_context();
    occupy(busy, WORKER_MAX);
    CHECK_EQ(worker_thread_count(), WORKER_MAX);
    for (int i = 0; i < 8; i++) {
        job_init(&queued[i], i);
        CHECK_EQ(worker_submit(&queued[i].job), 0);
    }
    CHECK_EQ(worker_thread_count(), WORKER_MAX);
    CHECK_EQ(load_acquire(&begun), WORKER_MAX);
    release(busy, WORKER_MAX);
    await_done(WORKER_MAX + 8);
    close_context();
}

TEST(jobs_begin_in_the_order_of_submission)
{
    static Job busy[WORKER_MAX], queued[MANY];

    open_context();
    occupy(busy, WORKER_MAX);
    for (int i = 0; i < MANY; i++) {
        job_init(&queued[i], i);
        CHECK_EQ(worker_submit(&queued[i].job), 0);
    }
    release(busy, 1); /* one thread does all of them */
    await_done(MANY + 1);
    for (unsigned i = 0; i < MANY; i++) {
        CHECK_EQ(queued[i].order, WORKER_MAX + i);
    }
    release(busy + 1, WORKER_MAX - 1);
    await_done(MANY + WORKER_MAX);
    close_context();
}

TEST(an_idle_thread_takes_the_next_job)
{
    Job job;

    open_context();
    for (unsigned i = 1; i <= 50; i++) {
        job_init(&job, 0);
        CHECK_EQ(worker_submit(&job.job), 0);
        await_done(i);
        while (worker_idle_count() == 0) {
            sched_yield(); /* the thread has not come to rest */
        }
        CHECK_EQ(worker_thread_count(), 1);
    }
    close_context();
}

TEST(one_idle_thread_does_not_count_for_two_jobs)
{
    unsigned n = 0;
    Job jobs[2];

    open_context();
    for (unsigned long i = 0; i < harness_load(200); i++) {
        while (worker_idle_count() != worker_thread_count()) {
            sched_yield();
        }
        for (int k = 0; k < 2; k++) {
            job_init(&jobs[k], k);
            jobs[k].gated = true;
            CHECK_EQ(worker_submit(&jobs[k].job), 0);
        }
        gate_pass(&jobs[0].began);
        gate_pass(&jobs[1].began); /* while the first has not ended */
        release(jobs, 2);
        n += 2;
        await_done(n);
        end_workers(); /* one, then two */
        worker_set_idle_ns(1000000000);
        job_init(&jobs[0], 0);
        CHECK_EQ(worker_submit(&jobs[0].job), 0);
        n++;
        await_done(n);
    }
    close_context();
}

TEST(a_queued_job_can_be_cancelled)
{
    static Job busy[WORKER_MAX], queued[MANY];

    open_context();
    occupy(busy, WORKER_MAX);
    for (int i = 0; i < MANY; i++) {
        job_init(&queued[i], i);
        CHECK_EQ(worker_submit(&queued[i].job), 0);
    }
    for (int i = 0; i < MANY; i += 2) {
        CHECK(worker_cancel(&queued[i].job));
        CHECK(!worker_cancel(&queued[i].job));
        CHECK_EQ(queued[i].done, 0); /* soon, but not in the call */
    }
    await_done(MANY / 2);
    release(busy, WORKER_MAX);
    await_done(MANY + WORKER_MAX);
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(queued[i].done, 1);
        CHECK_EQ(queued[i].ran, i % 2);
        CHECK_EQ(queued[i].result, i % 2 ? i : -ECANCELED);
    }
    close_context();
}

TEST(a_running_job_cannot_be_cancelled)
{
    Job job;

    open_context();
    occupy(&job, 1);
    CHECK(!worker_cancel(&job.job));
    release(&job, 1);
    await_done(1);
    CHECK_EQ(job.result, -1);
    CHECK_EQ(job.done, 1);
    close_context();
}

TEST(a_job_may_race_with_its_cancellation)
{
    unsigned cancelled = 0;
    Job job;

    open_context();
    for (unsigned i = 1; i <= harness_load(2000); i++) {
        bool in_time;

        job_init(&job, 1);
        CHECK_EQ(worker_submit(&job.job), 0);
        in_time = worker_cancel(&job.job);
        cancelled += in_time;
        await_done(i);
        CHECK_EQ(job.result, in_time ? -ECANCELED : 1);
        CHECK_EQ(job.ran, !in_time);
    }
    (void)cancelled; /* either is fine */
    close_context();
}

/* --- starting threads -----------------------------------------------------*/

TEST(without_a_thread_a_job_is_refused)
{
    Job job;

    open_context();
    job_init(&job, 1);
    os_fault_arm(1, EAGAIN, "thread");
    CHECK_EQ(worker_submit(&job.job), -EAGAIN);
    CHECK(os_fault_fired());
    CHECK_EQ(worker_thread_count(), 0);
    os_fault_arm(1, ENOMEM, "alloc");
    CHECK_EQ(worker_submit(&job.job), -EAGAIN);
    CHECK(os_fault_fired());
    CHECK(!aio_poll(ctx, false));
    CHECK_EQ(job.done, 0);

    CHECK_EQ(worker_submit(&job.job), 0);
    await_done(1);
    CHECK_EQ(job.result, 1);
    close_context(); /* no pin was left */
}

/*
 * co_close() looks for jobs in the list of the descriptor, where one that was
 * refused still is for a moment: it was taken for one in the queue, which had
 * one less than none then, and its context lost a pin that was not the job's.
 */
TEST(a_refused_job_cannot_be_cancelled)
{
    Job refused, others[2];

    open_context();
    job_init(&refused, 1);
    os_fault_arm(1, EAGAIN, "thread");
    CHECK_EQ(worker_submit(&refused.job), -EAGAIN);
    CHECK(os_fault_fired());
    CHECK(!worker_cancel(&refused.job));
    CHECK(!aio_poll(ctx, false));
    CHECK_EQ(refused.done, 0);

    for (int i = 0; i < 2; i++) {
        job_init(&others[i], i);
        CHECK_EQ(worker_submit(&others[i].job), 0);
    }
    await_done(2);
    CHECK_EQ(worker_submit(&refused.job), 0);
    await_done(3);
    CHECK_EQ(refused.result, 1);
    close_context();
}

TEST(with_some_thread_a_job_waits_for_it)
{
    Job busy, job;

    open_context();
    occupy(&busy, 1);
    job_init(&job, 1);
    os_fault_arm(1, EAGAIN, "thread");
    CHECK_EQ(worker_submit(&job.job), 0);
    CHECK(os_fault_fired());
    CHECK_EQ(worker_thread_count(), 1);
    release(&busy, 1);
    await_done(2);
    CHECK_EQ(job.result, 1);
    close_context();
}

TEST(idle_threads_end_and_others_start)
{
    Job busy[3], job;

    open_context();
    worker_set_idle_ns(0);
    occupy(busy, 3);
    CHECK_EQ(worker_thread_count(), 3);
    release(busy, 3);
    await_done(3);
    end_workers();
    job_init(&job, 1);
    CHECK_EQ(worker_submit(&job.job), 0);
    await_done(4);
    CHECK_EQ(job.result, 1);
    close_context();
}

static int blocked_signals(void *opaque)
{
    sigset_t set;

    (void)opaque;
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, NULL, &set), 0);
    CHECK(aio_context_current() == NULL);
    return sigismember(&set, SIGTERM) && sigismember(&set, SIGUSR1) &&
           sigismember(&set, SIGALRM);
}

TEST(the_threads_block_signals_and_have_no_context)
{
    Job job;

    open_context();
    job_init(&job, 0);
    job.job.fn = blocked_signals;
    CHECK_EQ(worker_submit(&job.job), 0);
    await_done(1);
    CHECK_EQ(job.result, 1);
    close_context();
}

/* --- lanes ----------------------------------------------------------------*/

#define NEVER_NS (INT64_C(1000000000000))

static WorkerLane lane, other_lane;

/* Jobs leave no lane, however slow this machine is. */
static void open_patient_context(void)
{
    open_context();
    worker_set_look_ns(NEVER_NS);
}

static void submit_gated(Job *job, WorkerLane *in)
{
    job_init(job, 7);
    job->gated = true;
    job->job.lane = in;
    CHECK_EQ(worker_submit(&job->job), 0);
}

TEST(jobs_of_a_lane_run_one_after_the_other)
{
    static Job jobs[MANY];

    open_patient_context();
    for (int i = 0; i < MANY; i++) {
        submit_gated(&jobs[i], &lane);
    }
    for (unsigned i = 0; i < MANY; i++) {
        gate_pass(&jobs[i].began);
        CHECK_EQ(load_acquire(&begun), i + 1);
        CHECK_EQ(jobs[i].order, i);
        release(&jobs[i], 1);
        await_done(i + 1);
        CHECK_EQ(jobs[i].result, 7);
    }
    CHECK_EQ(worker_thread_count(), 1); /* nobody else was called */
    close_context();
}

TEST(jobs_of_other_lanes_do_not_wait)
{
    Job first, second, other, plain;

    open_patient_context();
    submit_gated(&first, &lane);
    submit_gated(&second, &lane);
    submit_gated(&other, &other_lane);
    submit_gated(&plain, NULL);
    gate_pass(&first.began);
    gate_pass(&other.began);
    gate_pass(&plain.began);
    CHECK_EQ(load_acquire(&second.ran), 0);
    release(&other, 1);
    release(&plain, 1);
    await_done(2);
    CHECK_EQ(load_acquire(&second.ran), 0);
    release(&first, 1);
    release(&second, 1);
    await_done(4);
    close_context();
}

/* All threads but one block, and that one has a lane's jobs to do. */
TEST(a_long_lane_lets_others_have_their_turn)
{
    static Job busy[WORKER_MAX], jobs[MANY];
    Job plain;

    open_patient_context();
    occupy(busy, WORKER_MAX - 1);
    submit_gated(&jobs[0], &lane);
    gate_pass(&jobs[0].began);
    for (int i = 1; i < MANY; i++) {
        job_init(&jobs[i], i);
        jobs[i].job.lane = &lane;
        CHECK_EQ(worker_submit(&jobs[i].job), 0);
    }
    job_init(&plain, 1);
    CHECK_EQ(worker_submit(&plain.job), 0);
    release(jobs, 1);
    await_done(MANY + 1);
    CHECK(plain.order > jobs[1].order);
    CHECK(plain.order < jobs[MANY / 2].order);
    for (unsigned i = 1; i < MANY; i++) {
        CHECK(jobs[i].order > jobs[i - 1].order);
    }
    release(busy, WORKER_MAX - 1);
    await_done(WORKER_MAX + MANY);
    close_context();
}

TEST(what_waits_in_a_lane_can_be_cancelled)
{
    Job jobs[4];

    open_patient_context();
    for (int i = 0; i < 4; i++) {
        submit_gated(&jobs[i], &lane);
    }
    gate_pass(&jobs[0].began);
    CHECK(!worker_cancel(&jobs[0].job));
    CHECK(worker_cancel(&jobs[1].job));
    CHECK(!worker_cancel(&jobs[1].job));
    CHECK(worker_cancel(&jobs[3].job));
    CHECK_EQ(jobs[1].done, 0); /* soon, but not in the call */
    await_done(2);
    release(jobs, 4);
    await_done(4);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(jobs[i].ran, !(i % 2));
        CHECK_EQ(jobs[i].result, i % 2 ? -ECANCELED : 7);
    }
    close_context();
}

/* The one that waits for a thread is taken back: the next waits in its stead,
 * and after the last the lane is free. */
TEST(a_lane_goes_on_without_its_first)
{
    static Job busy[WORKER_MAX];
    Job jobs[3];

    open_patient_context();
    occupy(busy, WORKER_MAX);
    for (int i = 0; i < 3; i++) {
        submit_gated(&jobs[i], &lane);
    }
    CHECK(worker_cancel(&jobs[0].job));
    CHECK(worker_cancel(&jobs[1].job));
    await_done(2);
    release(busy, WORKER_MAX);
    release(jobs, 3);
    await_done(WORKER_MAX + 3);
    CHECK_EQ(jobs[2].result, 7);

    occupy(busy, WORKER_MAX);
    submit_gated(&jobs[0], &lane);
    CHECK(worker_cancel(&jobs[0].job));
    submit_gated(&jobs[1], &lane);
    release(busy, WORKER_MAX);
    release(&jobs[1], 1);
    await_done(2 * WORKER_MAX + 5);
    CHECK_EQ(jobs[1].result, 7);
    close_context();
}

TEST(a_refused_job_leaves_its_lane_free)
{
    Job job;

    open_context();
    job_init(&job, 1);
    job.job.lane = &lane;
    os_fault_arm(1, EAGAIN, "thread");
    CHECK_EQ(worker_submit(&job.job), -EAGAIN);
    CHECK(os_fault_fired());
    CHECK_EQ(worker_submit(&job.job), 0);
    await_done(1);
    CHECK_EQ(job.result, 1);
    close_context();
}

static void await_begin(Job *job)
{
    while (load_acquire(&job->ran) == 0) {
        aio_poll(ctx, false);
        sched_yield();
    }
}

TEST(those_behind_a_job_that_hangs_leave_its_lane)
{
    Job jobs[4], last;

    open_context();
    worker_set_look_ns(1000000);
    for (int i = 0; i < 3; i++) {
        submit_gated(&jobs[i], &lane);
    }
    await_begin(&jobs[1]);
    await_begin(&jobs[2]);
    submit_gated(&jobs[3], &lane); /* it is the first one's still */
    CHECK_EQ(load_acquire(&jobs[3].ran), 0);
    await_begin(&jobs[3]);
    release(&jobs[1], 3);
    await_done(3);
    CHECK_EQ(jobs[0].done, 0);
    release(jobs, 1);
    await_done(4);

    submit_gated(&last, &lane);
    gate_pass(&last.began); /* the lane was free: nobody need look */
    release(&last, 1);
    await_done(5);
    close_context();
}

/* Each pass looks at them, and each time another of the lane has begun. */
TEST(nobody_leaves_a_lane_that_moves)
{
    static Job jobs[MANY];

    open_context();
    worker_set_look_ns(0);
    for (int i = 0; i < MANY; i++) {
        submit_gated(&jobs[i], &lane);
    }
    for (int i = 0; i < MANY; i++) {
        gate_pass(&jobs[i].began);
        aio_poll(ctx, false);
        CHECK_EQ(load_acquire(&begun), i + 1);
        release(&jobs[i], 1);
    }
    await_done(MANY);
    CHECK_EQ(worker_thread_count(), 1);
    close_context();
}

TEST(jobs_of_a_lane_may_race_with_their_cancellation)
{
    Job jobs[3];
    unsigned n = 0;

    open_context();
    for (unsigned long i = 0; i < harness_load(2000); i++) {
        unsigned victim = (unsigned)i % 3;
        bool in_time;

        for (int k = 0; k < 3; k++) {
            job_init(&jobs[k], 1);
            jobs[k].job.lane = &lane;
            CHECK_EQ(worker_submit(&jobs[k].job), 0);
        }
        in_time = worker_cancel(&jobs[victim].job);
        n += 3;
        await_done(n);
        for (unsigned k = 0; k < 3; k++) {
            bool cancelled = in_time && k == victim;

            CHECK_EQ(jobs[k].ran, !cancelled);
            CHECK_EQ(jobs[k].result, cancelled ? -ECANCELED : 1);
        }
    }
    close_context();
}

/* --- several contexts -----------------------------------------------------*/

typedef struct Batch {
    Job jobs[MANY];
    sem_t all_done;
    unsigned left;
} Batch;

static void batch_done(WorkerJob *worker_job)
{
    Job *job = (Job *)worker_job;
    Batch *batch = container_of(job - job->id, Batch, jobs[0]);

    CHECK_EQ(aio_context_current(), worker_job->ctx);
    CHECK_EQ(worker_job->result, job->id);
    if (--batch->left == 0) {
        gate_open(&batch->all_done);
    }
}

static void batch_submit(void *opaque)
{
    Batch *batch = opaque;

    batch->left = MANY;
    for (int i = 0; i < MANY; i++) {
        job_init(&batch->jobs[i], i);
        batch->jobs[i].job.done = batch_done;
        batch->jobs[i].job.lane = i % 2 ? &lane : NULL; /* of all contexts */
        CHECK_EQ(worker_submit(&batch->jobs[i].job), 0);
    }
}

TEST(each_context_gets_its_own_jobs_back)
{
    static Batch batches[3];
    LoopThread loops[3];

    for (int i = 0; i < 3; i++) {
        loop_thread_start(&loops[i], "loop");
        gate_init(&batches[i].all_done);
        loop_call(loops[i].ctx, batch_submit, &batches[i]);
    }
    for (int i = 0; i < 3; i++) {
        gate_pass(&batches[i].all_done);
        loop_thread_stop(&loops[i]);
    }
    end_workers();
}

static Job orphan;

static void submit_orphan(void *opaque)
{
    (void)opaque;
    CHECK_EQ(worker_submit(&orphan.job), 0);
}

TEST(a_job_of_a_stopped_context_is_never_done)
{
    AioContext *stopped;
    IOThread *iothread;

    open_context();
    worker_set_idle_ns(0);
    CHECK_EQ(iothread_new(&iothread, "stops", NULL), 0);
    stopped = aio_context_ref(iothread_context(iothread));
    job_init(&orphan, 1);
    orphan.gated = true;
    loop_call(stopped, submit_orphan, NULL);
    gate_pass(&orphan.began);
    CHECK_EQ(iothread_stop(iothread), 0);
    iothread_unref(iothread);
    aio_context_unref(stopped);
    /* Only the job's pin keeps it now. */
    gate_open(&orphan.go_on);
    end_workers(); /* and with it the context goes */
    CHECK_EQ(orphan.ran, 1);
    CHECK_EQ(orphan.done, 0);
    close_context();
}

static Job orphans[2];

static void submit_orphans(void *opaque)
{
    (void)opaque;
    for (int i = 0; i < 2; i++) {
        submit_gated(&orphans[i], &lane);
    }
}

/* What looks at the one that waits goes with the context. */
TEST(a_stopped_context_may_have_jobs_in_lanes)
{
    AioContext *stopped;
    IOThread *iothread;

    open_patient_context();
    worker_set_idle_ns(0);
    CHECK_EQ(iothread_new(&iothread, "stops", NULL), 0);
    stopped = aio_context_ref(iothread_context(iothread));
    loop_call(stopped, submit_orphans, NULL);
    gate_pass(&orphans[0].began);
    CHECK_EQ(iothread_stop(iothread), 0);
    iothread_unref(iothread);
    aio_context_unref(stopped);
    release(orphans, 2);
    end_workers();
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(orphans[i].ran, 1);
        CHECK_EQ(orphans[i].done, 0);
    }
    close_context();
}

TEST_MAIN()
