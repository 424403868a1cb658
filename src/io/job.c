/* SPDX-License-Identifier: MIT */
/*
 * Work that blocks, in a worker, with the coroutine parked meanwhile.
 *
 * A job on a descriptor is in the descriptor's list from its submission until
 * the worker has done it, or until done says that none will.  So co_close()
 * finds what has not begun and takes it back, and counts what has.
 *
 * Guarantees that the coroutine goes on only when no worker uses the job, its
 * buffers or the descriptor any more, cancelled or not.
 *
 * INVARIANTS
 *
 *   1. done alone ends the wait, once.  A cancel only makes it come earlier.
 *   2. running of a descriptor counts the jobs in its list that have begun, and
 *      the operations of engines (submit.c).
 */
#include "io/io_int.h"

#include <errno.h>

typedef struct IoJob {
    WorkerJob job; /* first */
    CoWait wait;
    IoBlocking *fn;
    void *arg;
    ssize_t result; /* of fn; the worker's, then done's */
    int error;      /* the result if it has not begun; the home's */
    bool begun;     /* the worker's, then done's */

    IoFd *entry;         /* NULL: of no descriptor */
    List link;           /* in entry->jobs; the lock of its reading side */
    uint32_t generation; /* of entry, when the call began */
} IoJob;

static OsMutex *lock_of(IoFd *entry)
{
    return &entry->sides[IO_READ].lock;
}

/* --- in the worker --------------------------------------------------------*/

/* Returns whether the job may begin. */
static bool job_begin(IoJob *job)
{
    IoFd *entry = job->entry;

    if (!entry) {
        return true;
    }
    os_mutex_lock(lock_of(entry));
    if (io_fd_stale(entry, job->generation)) {
        list_remove(&job->link);
        os_mutex_unlock(lock_of(entry));
        return false;
    }
    store_relaxed(&entry->running, entry->running + 1);
    os_mutex_unlock(lock_of(entry));
    return true;
}

/* Under the lock, which it drops: nobody may touch entry's jobs after that. */
static void running_ends_unlock(IoFd *entry)
{
    CoWait *closer = NULL;
    bool blocked = false;

    store_release(&entry->running, entry->running - 1); /* INVARIANTS 2 */
    if (entry->running == 0) {
        closer = entry->closer;
        blocked = entry->blocked;
        entry->closer = NULL;
        entry->blocked = false;
    }
    os_mutex_unlock(lock_of(entry));
    if (closer) {
        co_wait_settle(closer, 0);
        co_wait_wake(closer, "the last one that used the file");
    } else if (blocked) {
        os_futex_wake(&entry->running, 1);
    }
}

static void job_end(IoJob *job)
{
    IoFd *entry = job->entry;

    if (entry) {
        os_mutex_lock(lock_of(entry));
        list_remove(&job->link);
        running_ends_unlock(entry);
    }
}

static int job_run(void *arg)
{
    IoJob *job = arg;

    job->begun = job_begin(job);
    if (job->begun) {
        job->result = job->fn(job->arg);
        job_end(job);
    }
    return 0;
}

/* --- on the home thread ---------------------------------------------------*/

static void job_done(WorkerJob *worker_job)
{
    IoJob *job = container_of(worker_job, IoJob, job);
    IoFd *entry = job->entry;

    if (!job->begun && entry) {
        os_mutex_lock(lock_of(entry));
        if (list_linked(&job->link)) {
            list_remove(&job->link);
        }
        os_mutex_unlock(lock_of(entry));
    }
    co_wait_settle(&job->wait, job->begun ? job->result : job->error);
    co_wait_wake(&job->wait, "a worker");
}

static void job_cancel(CoWait *wait, int error)
{
    IoJob *job = container_of(wait, IoJob, wait);

    job->error = error;
    worker_cancel(&job->job); /* else it ends by itself: INVARIANTS 1 */
}

void io_jobs_cancel_locked(IoFd *entry)
{
    for (List *link = list_first(&entry->jobs); link;
         link = list_next(&entry->jobs, link)) {
        worker_cancel(&list_entry(link, IoJob, link)->job);
    }
}

/* Put the job where co_close() finds it.  Returns 0 or -ECANCELED. */
static int job_link(IoJob *job)
{
    IoFd *entry = job->entry;
    bool stale;

    if (!entry) {
        return 0;
    }
    os_mutex_lock(lock_of(entry));
    stale = io_fd_stale(entry, job->generation);
    if (!stale) {
        list_append(&entry->jobs, &job->link);
    }
    os_mutex_unlock(lock_of(entry));
    return stale ? -ECANCELED : 0;
}

static void job_unlink(IoJob *job)
{
    if (job->entry) {
        os_mutex_lock(lock_of(job->entry));
        list_remove(&job->link);
        os_mutex_unlock(lock_of(job->entry));
    }
}

static ssize_t coroutine_fn job_make(IoJob *job, const char *what)
{
    int ret;

    co_wait_init(&job->wait, what, job->entry, job_cancel);
    job->job.fn = job_run;
    job->job.arg = job;
    job->job.done = job_done;
    job->error = -ECANCELED;
    ret = job_link(job);
    if (ret < 0) {
        return ret;
    }
    /*
     * co_close() may have found it before it was submitted, and could not take
     * it back: then it does not begin.
     */
    ret = worker_submit(&job->job);
    if (ret < 0) {
        job_unlink(job);
        return ret;
    }
    return co_wait_park(&job->wait, -1);
}

static ssize_t coroutine_fn run(const IoUse *use, WorkerLane *lane,
                                IoBlocking *fn, void *arg, const char *what)
{
    IoJob job = {
        .job = {.lane = lane},
        .fn = fn,
        .arg = arg,
        .entry = use ? use->entry : NULL,
        .generation = use ? use->generation : 0,
    };
    ssize_t result;

    if (!io_has_home()) {
        return fn(arg);
    }
    result = job_make(&job, what);
    /* No worker; one that has begun says what fn says. */
    return result == -EAGAIN && !job.begun ? -ENOMEM : result;
}

ssize_t io_run_in_worker(const IoUse *use, IoBlocking *fn, void *arg,
                         const char *what)
{
    return run(use, NULL, fn, arg, what);
}

ssize_t io_write_in_worker(const IoUse *use, IoBlocking *fn, void *arg,
                           const char *what)
{
    IoFd *entry = use->entry;
    bool exclude = load_relaxed(&entry->facts) & IO_WRITES_EXCLUDE;

    return run(use, exclude ? &entry->writes : NULL, fn, arg, what);
}

ssize_t io_run_in_worker_turn(const IoTurn *turn, IoBlocking *fn, void *arg,
                              const char *what)
{
    const IoUse use = {turn->entry, turn->generation};

    return run(&use, NULL, fn, arg, what);
}

/* --- the public call ------------------------------------------------------*/

typedef struct UserJob {
    int (*fn)(void *arg);
    void *arg;
} UserJob;

static ssize_t call_user(void *opaque)
{
    UserJob *user = opaque;

    return user->fn(user->arg);
}

int co_run_in_worker(int (*fn)(void *arg), void *arg)
{
    UserJob user = {.fn = fn, .arg = arg};
    IoJob job = {.fn = call_user, .arg = &user};

    if (!io_begin("co_run_in_worker", -1)) {
        return fn(arg);
    }
    return (int)job_make(&job, "co_run_in_worker");
}

/* --- operations of the engine ---------------------------------------------*/

int io_fd_hold(const IoUse *use)
{
    IoFd *entry = use->entry;
    bool stale;

    os_mutex_lock(lock_of(entry));
    stale = io_fd_stale(entry, use->generation);
    if (!stale) {
        store_relaxed(&entry->running, entry->running + 1);
    }
    os_mutex_unlock(lock_of(entry));
    return stale ? -ECANCELED : 0;
}

void io_fd_release(IoFd *entry)
{
    os_mutex_lock(lock_of(entry));
    running_ends_unlock(entry);
}
