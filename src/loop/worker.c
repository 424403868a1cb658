/* SPDX-License-Identifier: MIT */
/*
 * The worker pool: one for the process.
 *
 * Guarantees: jobs begin in the order in which they were submitted; done is
 * called once for each job that was taken, cancelled ones included, unless
 * its context has stopped.  Does not guarantee that a job begins at all while
 * WORKER_MAX others block.
 *
 * A job lives in its owner's memory, who is parked until done.  From the
 * submission until its completion has been posted it holds a pin on its
 * context; after the post nobody here touches the job.
 *
 * The threads are detached, and the pool is static: there is nothing to give
 * back when the process ends.
 *
 * INVARIANTS (all of the pool is protected by its lock)
 *
 *   1. A job is in the queue exactly while its state is JOB_QUEUED.
 *   2. idle counts the threads that wait for a job; queued the jobs in the
 *      queue.  When a submission ends, queued > idle only if no more threads
 *      can be had, and then at least one thread exists that will look.
 *   3. threads <= WORKER_MAX.
 */
#include "base/explore.h"
#include "loop/worker.h"

#include "base/assert.h"
#include "loop/context.h"

#include <errno.h>

#define IDLE_NS (10 * INT64_C(1000000000))

enum { JOB_QUEUED = 1, JOB_RUNNING, JOB_CANCELLED };

static struct {
    OsMutex lock;
    bool ready;          /* has_work can be used */
    OsCond has_work;
    List queue;          /* of WorkerJob.link */
    unsigned queued;
    unsigned idle;
    unsigned threads;
    int64_t idle_ns;     /* how long a thread waits for a job */
} pool = {.lock = OS_MUTEX_INIT, .idle_ns = IDLE_NS};

/* The completion, on the home thread. */
static void job_posted(void *owner, Post *post)
{
    WorkerJob *job = container_of(post, WorkerJob, post);
    AioContext *ctx = owner;

    ctx->ran++;
    job->done(job);
}

/* Without the lock; the job is gone afterwards. */
static void complete(WorkerJob *job, int result)
{
    AioContext *ctx = job->ctx;

    job->result = result;
    context_post(ctx, &job->post);
    if (!MUTANT(WORKER_UNPINNED)) {
        context_unpin(ctx);
    }
    context_reap(); /* the owner may have finished before we got here */
}

static WorkerJob *take_job_locked(void)
{
    List *link = list_take_first(&pool.queue);
    WorkerJob *job;

    if (!link) {
        return NULL;
    }
    job = list_entry(link, WorkerJob, link);
    invariant(job->state == JOB_QUEUED); /* INVARIANTS 1 */
    job->state = JOB_RUNNING;
    pool.queued--;
    return job;
}

/* Wait for work; false: there was none for long enough. */
static bool await_work_locked(void)
{
    bool in_time = true;

    pool.idle++;
    while (in_time && list_empty(&pool.queue)) {
        in_time = os_cond_wait_ns(&pool.has_work, &pool.lock, pool.idle_ns);
    }
    pool.idle--;
    if (!in_time && !list_empty(&pool.queue)) {
        MARK("worker: a job comes as an idle one gives up");
        return !MUTANT(WORKER_GIVES_UP);
    }
    return !list_empty(&pool.queue);
}

static void worker_main(void *arg)
{
    WorkerJob *job;

    (void)arg;
    os_mutex_lock(&pool.lock);
    do {
        while ((job = take_job_locked())) {
            os_mutex_unlock(&pool.lock);
            complete(job, job->fn(job->arg));
            os_mutex_lock(&pool.lock);
        }
    } while (await_work_locked());
    MARK("worker: one ends for want of work");
    pool.threads--;
    os_mutex_unlock(&pool.lock);
}

/*
 * Under the lock, so that nobody takes a thread that fails to start for one
 * that will look at the queue.
 */
static int start_thread_locked(void)
{
    const OsThreadStart start = {.name = "coaio-worker", .run = worker_main};
    OsThreadHandle handle;
    int ret = os_thread_start(&handle, &start);

    if (ret < 0) {
        return ret;
    }
    os_thread_detach(&handle);
    pool.threads++;
    return 0;
}

static void remove_locked(WorkerJob *job)
{
    list_remove(&job->link);
    pool.queued--;
}

/* Returns 0 if some thread will take what is queued. */
static int call_thread_locked(void)
{
    if (pool.queued <= pool.idle || (MUTANT(WORKER_MISCOUNTS) && pool.idle)) {
        MARK("worker: an idle one is called");
        if (!MUTANT(WORKER_NOT_CALLED)) {
            os_cond_signal(&pool.has_work);
        }
        return 0;
    }
    if (pool.threads < WORKER_MAX && start_thread_locked() == 0) {
        return 0;
    }
    return pool.threads > 0 ? 0 : -EAGAIN; /* INVARIANTS 2 */
}

int worker_submit(WorkerJob *job)
{
    AioContext *ctx = os_thread()->context;
    int ret;

    invariant(ctx);
    job->ctx = ctx;
    job->post.run = job_posted;
    job->state = JOB_QUEUED;
    if (!MUTANT(WORKER_UNPINNED)) {
        context_pin(ctx);
    }

    os_mutex_lock(&pool.lock);
    if (!pool.ready) {
        os_cond_init(&pool.has_work);
        pool.ready = true;
    }
    list_append(&pool.queue, &job->link);
    pool.queued++;
    ret = call_thread_locked();
    invariant(pool.threads <= WORKER_MAX); /* INVARIANTS 3 */
    if (ret < 0) {
        remove_locked(job);
    }
    os_mutex_unlock(&pool.lock);

    if (ret < 0) {
        context_unpin(ctx);
    }
    return ret;
}

bool worker_cancel(WorkerJob *job)
{
    bool cancelled;

    os_mutex_lock(&pool.lock);
    cancelled = job->state == JOB_QUEUED;
    if (MUTANT(WORKER_CANCEL) && job->state == JOB_RUNNING) {
        cancelled = true;
        job->state = JOB_CANCELLED;
    } else if (cancelled) {
        MARK("worker: a job is taken back");
        remove_locked(job);
        job->state = JOB_CANCELLED;
    } else {
        MARK("worker: too late to take a job back");
    }
    os_mutex_unlock(&pool.lock);

    if (cancelled) {
        complete(job, -ECANCELED);
    }
    return cancelled;
}

unsigned worker_thread_count(void)
{
    unsigned n;

    os_mutex_lock(&pool.lock);
    n = pool.threads;
    os_mutex_unlock(&pool.lock);
    return n;
}

unsigned worker_idle_count(void)
{
    unsigned n;

    os_mutex_lock(&pool.lock);
    n = pool.idle;
    os_mutex_unlock(&pool.lock);
    return n;
}

#ifdef COAIO_TESTING
void worker_set_idle_ns(int64_t idle_ns)
{
    os_mutex_lock(&pool.lock);
    pool.idle_ns = idle_ns;
    if (pool.ready) {
        os_cond_broadcast(&pool.has_work);
    }
    os_mutex_unlock(&pool.lock);
}
#endif
