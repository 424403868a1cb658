/* SPDX-License-Identifier: MIT */

/*
 * A user's program, in the language that C11 and C++17 have in common. The
 * test `installed` compiles it as both against an installed coaio.
 */

#include <coaio/coaio.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

typedef struct Job {
    IOThread *thread;
    CoQueue queue;
    CoMutex mutex;
    pthread_mutex_t plain_mutex;
    int timeouts;
    bool done;
} Job;

static void coroutine_fn wait_in_vain(Job *job)
{
    co_mutex_lock(&job->mutex);
    job->timeouts +=
        co_queue_wait_timeout_ns(&job->queue, &job->mutex, 1000) == -ETIMEDOUT;
    co_mutex_unlock(&job->mutex);

    pthread_mutex_lock(&job->plain_mutex);
    job->timeouts += co_queue_wait_timeout_ns(&job->queue, &job->plain_mutex,
                                              1000) == -ETIMEDOUT;
    pthread_mutex_unlock(&job->plain_mutex);

    job->timeouts +=
        co_queue_wait_timeout_ns(&job->queue, NULL, 1000) == -ETIMEDOUT;
}

static void coroutine_fn run_job(void *opaque)
{
    Job *job = (Job *)opaque;
    AioContext *home = aio_context_current();

    co_reschedule_self(iothread_context(job->thread));
    wait_in_vain(job);
    co_sleep_ns(1000);
    co_reschedule_self(home);
    job->done = true;
}

int main(void)
{
    AioContext *ctx = aio_context_main();
    Job job;
    int error;

    memset(&job, 0, sizeof job);
    pthread_mutex_init(&job.plain_mutex, NULL);
    error = iothread_new(&job.thread, "worker", NULL);
    if (error) {
        fprintf(stderr, "iothread_new: %s\n", strerror(-error));
        return 1;
    }
    coroutine_enter(coroutine_create(run_job, &job));
    while (!job.done) {
        aio_poll(ctx, true);
    }
    iothread_stop(job.thread);
    iothread_unref(job.thread);
    pthread_mutex_destroy(&job.plain_mutex);
    printf("%d timeouts\n", job.timeouts);
    return job.timeouts == 3 ? 0 : 1;
}
