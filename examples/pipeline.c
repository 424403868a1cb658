/* SPDX-License-Identifier: MIT */
/*
 * A bounded queue between two I/O threads: producers wait while it is full,
 * consumers while it is empty, and each resumes on its own thread.
 */
#include <coaio/coaio.h>

#include <stdatomic.h>
#include <stdio.h>

typedef struct Pipeline {
    CoMutex lock; /* protects all but done; usable zeroed, as the queues are */
    CoQueue not_full, not_empty;
    int items[8];
    unsigned put, taken, producers, consumers;
    long sum;
    atomic_bool done;
} Pipeline;

static void coroutine_fn produce(void *opaque)
{
    Pipeline *p = opaque;

    co_mutex_lock(&p->lock);
    for (int i = 1; i <= 1000; i++) {
        while (p->put - p->taken == 8) {
            co_queue_wait(&p->not_full, &p->lock);
        }
        p->items[p->put++ % 8] = i;
        co_queue_next(&p->not_empty);
    }
    if (--p->producers == 0) {
        co_queue_restart_all(&p->not_empty); /* nothing more will come */
    }
    co_mutex_unlock(&p->lock);
}

static void coroutine_fn consume(void *opaque)
{
    Pipeline *p = opaque;

    co_mutex_lock(&p->lock);
    while (p->producers > 0 || p->put != p->taken) {
        if (p->put == p->taken) {
            co_queue_wait(&p->not_empty, &p->lock);
        } else {
            p->sum += p->items[p->taken++ % 8];
            co_queue_next(&p->not_full);
        }
    }
    if (--p->consumers == 0) {
        p->done = true;
        aio_wait_kick();
    }
    co_mutex_unlock(&p->lock);
}

int main(void)
{
    Pipeline p = { .producers = 4, .consumers = 4 };
    IOThread *left, *right;

    if (iothread_new(&left, "producers", NULL) < 0 ||
        iothread_new(&right, "consumers", NULL) < 0) {
        return 1;
    }
    for (int i = 0; i < 4; i++) {
        aio_co_enter(iothread_context(left), coroutine_create(produce, &p));
        aio_co_enter(iothread_context(right), coroutine_create(consume, &p));
    }
    aio_wait_while(iothread_context(right), !p.done);
    iothread_unref(left); /* the last reference: ends the thread */
    iothread_unref(right);
    printf("%u items, their sum is %ld\n", p.taken, p.sum);
    return p.sum == 4 * 1000L * 1001 / 2 ? 0 : 1;
}
