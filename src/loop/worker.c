/* SPDX-License-Identifier: MIT */
/*
 * The worker pool: one for the process.
 *
 * Guarantees: jobs begin in the order in which they were submitted, those of a
 * lane among themselves; done is called once for each job that was taken,
 * cancelled ones included, unless its context has stopped.  Does not guarantee
 * that a job begins at all while WORKER_MAX others block.
 *
 * Of a lane, one job at most is in the queue or runs; the others wait in the
 * lane.  The thread that has run one goes on with the next of its lane, so that
 * nobody is woken for it; after LANE_TURN of them, while others wait for a
 * thread, the next goes to the end of the queue instead.  The context of a job
 * that waits looks at it every LOOK_NS: if the lane has begun nothing since the
 * last look, then the job is of no lane from then on, and goes to the queue.
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
 *   1. A job is in the queue exactly while its state is JOB_QUEUED, and waits
 *      in its lane exactly while that is JOB_WAITING.
 *   2. idle counts the threads that wait for a job; queued the jobs in the
 *      queue.  When a submission ends, queued > idle only if no more threads
 *      can be had, and then at least one thread exists that will look.
 *   3. threads <= WORKER_MAX.
 *   4. A lane in which a job waits is taken.
 */
#include "base/explore.h"
#include "loop/worker.h"

#include "base/assert.h"
#include "loop/context.h"

#include <errno.h>

#define IDLE_NS (10 * INT64_C(1000000000))

/* So many jobs of a lane a thread runs before others have their turn. */
#define LANE_TURN 16

/* At most after two of them a job leaves a lane that does not move. */
#define LOOK_NS (10 * INT64_C(1000000))

enum { JOB_NEW, JOB_QUEUED, JOB_WAITING, JOB_RUNNING, JOB_CANCELLED };

static struct {
    OsMutex lock;
    bool ready;          /* has_work can be used */
    OsCond has_work;
    List queue;          /* of WorkerJob.link */
    unsigned queued;
    unsigned idle;
    unsigned threads;
    int64_t idle_ns;     /* how long a thread waits for a job */
    int64_t look_ns;     /* LOOK_NS; atomic */
} pool = {.lock = OS_MUTEX_INIT, .idle_ns = IDLE_NS, .look_ns = LOOK_NS};

/* --- jobs behind others, on their home thread -----------------------------*/

static void arm(WorkerWatch *watch)
{
    aio_timer_mod_ns(&watch->timer, aio_clock_ns(AIO_CLOCK_MONOTONIC) +
                                        load_relaxed(&pool.look_ns));
}

static void watch_job(AioContext *ctx, WorkerJob *job)
{
    WorkerWatch *watch = &ctx->workers;

    if (list_empty(&watch->jobs)) {
        arm(watch);
    }
    list_append(&watch->jobs, &job->watch_link);
}

static void unwatch_job(AioContext *ctx, WorkerJob *job)
{
    WorkerWatch *watch = &ctx->workers;

    if (list_linked(&job->watch_link)) {
        list_remove(&job->watch_link);
        if (list_empty(&watch->jobs)) {
            aio_timer_del(&watch->timer);
        }
    }
}

/* --- completions ----------------------------------------------------------*/

/* On the home thread. */
static void job_posted(void *owner, Post *post)
{
    WorkerJob *job = container_of(post, WorkerJob, post);
    AioContext *ctx = owner;

    ctx->ran++;
    if (job->behind) {
        unwatch_job(ctx, job);
    }
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

static void enqueue_locked(WorkerJob *job)
{
    job->state = JOB_QUEUED;
    list_append(&pool.queue, &job->link);
    pool.queued++;
}

static void begin_locked(WorkerJob *job)
{
    job->state = JOB_RUNNING;
    if (job->lane) {
        job->lane->begun++;
    }
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
    pool.queued--;
    begin_locked(job);
    return job;
}

/* The next of a lane that goes on, or NULL: then it is free. */
static WorkerJob *take_waiting_locked(WorkerLane *lane)
{
    List *link = list_take_first(&lane->waiting);
    WorkerJob *job;

    invariant(lane->taken); /* INVARIANTS 4 */
    if (!link) {
        MARK("worker: a lane is free");
        lane->taken = false;
        return NULL;
    }
    job = list_entry(link, WorkerJob, link);
    invariant(job->state == JOB_WAITING); /* INVARIANTS 1 */
    return job;
}

/*
 * A thread has run a job of lane (NULL: of none), the ran-th in a row.  Returns
 * the next, if it is to run that at once.  Else it looks at the queue, so what
 * is put there needs no other thread.
 */
static WorkerJob *go_on_locked(WorkerLane *lane, unsigned ran)
{
    WorkerJob *job = NULL;

    if (lane && !MUTANT(WORKER_LANE_LEFT)) {
        job = take_waiting_locked(lane);
    }
    if (job && ran >= LANE_TURN && pool.queued > pool.idle) {
        enqueue_locked(job);
        return NULL;
    }
    if (job) {
        MARK("worker: one goes on in its lane");
        begin_locked(job);
    }
    return job;
}

/* A job of lane left the queue without having run. */
static void pass_on_locked(WorkerLane *lane)
{
    WorkerJob *next = take_waiting_locked(lane);

    if (next) {
        enqueue_locked(next);
    }
}

/* Run job, without the lock, and what else of its lane comes next. */
static void run_locked(WorkerJob *job)
{
    for (unsigned ran = 1; job; ran++) {
        WorkerLane *lane = job->lane;

        os_mutex_unlock(&pool.lock);
        complete(job, job->fn(job->arg));
        os_mutex_lock(&pool.lock);
        job = go_on_locked(lane, ran);
    }
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
            run_locked(job);
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

/* Returns 0, or -EAGAIN. */
static int submit_locked(WorkerJob *job)
{
    WorkerLane *lane = job->lane;
    int ret;

    if (lane && lane->taken) {
        job->state = JOB_WAITING;
        job->behind = true;
        job->seen = lane->begun - 1; /* the first look is no reason to leave */
        list_append(&lane->waiting, &job->link);
        return 0;
    }
    enqueue_locked(job);
    ret = call_thread_locked();
    if (ret < 0) {
        remove_locked(job);
        job->state = JOB_NEW; /* there is nothing to take back */
    } else if (lane) {
        lane->taken = true;
    }
    return ret;
}

int worker_submit(WorkerJob *job)
{
    AioContext *ctx = os_thread()->context;
    int ret;

    invariant(ctx);
    job->ctx = ctx;
    job->behind = false;
    job->post.run = job_posted;
    if (!MUTANT(WORKER_UNPINNED)) {
        context_pin(ctx);
    }

    os_mutex_lock(&pool.lock);
    if (!pool.ready) {
        os_cond_init(&pool.has_work);
        pool.ready = true;
    }
    ret = submit_locked(job);
    invariant(pool.threads <= WORKER_MAX); /* INVARIANTS 3 */
    os_mutex_unlock(&pool.lock);

    if (ret < 0) {
        context_unpin(ctx);
    } else if (job->behind) {
        watch_job(ctx, job);
    }
    return ret;
}

/* Take a job that has not begun from where it waits. */
static void take_back_locked(WorkerJob *job)
{
    if (job->state == JOB_WAITING) {
        MARK("worker: a job is taken back from its lane");
        list_remove(&job->link);
    } else {
        MARK("worker: a job is taken back");
        remove_locked(job);
        if (job->lane && !MUTANT(WORKER_LANE_STUCK)) {
            pass_on_locked(job->lane);
        }
    }
    job->state = JOB_CANCELLED;
}

bool worker_cancel(WorkerJob *job)
{
    bool cancelled;

    os_mutex_lock(&pool.lock);
    cancelled = job->state == JOB_QUEUED || job->state == JOB_WAITING;
    if (MUTANT(WORKER_CANCEL) && job->state == JOB_RUNNING) {
        cancelled = true;
        job->state = JOB_CANCELLED;
    } else if (cancelled) {
        take_back_locked(job);
    } else {
        MARK("worker: too late to take a job back");
    }
    os_mutex_unlock(&pool.lock);

    if (cancelled) {
        complete(job, -ECANCELED);
    }
    return cancelled;
}

/* A job that waits in its lane is to run beside what does not end there. */
static void leave_lane_locked(WorkerJob *job)
{
    int ret;

    MARK("worker: a job leaves its lane");
    list_remove(&job->link);
    if (!MUTANT(WORKER_LANE_KEPT)) {
        job->lane = NULL;
    }
    enqueue_locked(job);
    ret = call_thread_locked();
    invariant(ret == 0); /* INVARIANTS 4: so there is a thread, by 2 */
}

/* Returns whether job still waits in its lane. */
static bool look_at_locked(WorkerJob *job)
{
    if (job->state != JOB_WAITING) {
        return false;
    }
    if (job->seen == job->lane->begun) {
        leave_lane_locked(job);
        return false;
    }
    job->seen = job->lane->begun;
    return true;
}

static void look(void *opaque)
{
    AioContext *ctx = opaque;
    WorkerWatch *watch = &ctx->workers;
    List *next;

    os_mutex_lock(&pool.lock);
    for (List *link = list_first(&watch->jobs); link; link = next) {
        next = list_next(&watch->jobs, link);
        if (!look_at_locked(list_entry(link, WorkerJob, watch_link))) {
            list_remove(link);
        }
    }
    os_mutex_unlock(&pool.lock);
    if (!list_empty(&watch->jobs)) {
        arm(watch);
    }
}

void worker_watch_init(AioContext *ctx)
{
    list_init(&ctx->workers.jobs);
    aio_timer_init(&ctx->workers.timer, ctx, AIO_CLOCK_MONOTONIC, look, ctx);
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
void worker_set_look_ns(int64_t look_ns)
{
    store_relaxed(&pool.look_ns, look_ns);
}

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
