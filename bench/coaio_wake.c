/* SPDX-License-Identifier: MIT */
/*
 * coaio_wake.c: coaio between threads.
 *
 *   post_1, post_3   distinct bottom halves, scheduled by plain threads, run by
 *                    an I/O thread (bench_posts.h)
 *   wake_busy        two coroutines in two I/O threads wake each other in turn,
 *                    and both loops poll busily
 *   wake_asleep      the same, and both loops sleep in between
 *   idle             an I/O thread that may poll busily, with nothing to do
 */
#include <coaio/coaio.h>
#include <semaphore.h>

#include "bench_idle.h"
#include "bench_posts.h"

enum { BUSY_NS = 200000 };

static IOThread *thread_on_core(unsigned which, int64_t poll_max_ns)
{
    unsigned core = bench_core(which);
    IOThreadOptions options = {
        .size = sizeof(options),
        .cpus = &core,
        .n_cpus = 1,
        .poll_max_ns = poll_max_ns,
    };
    IOThread *thread;

    bench_check(!iothread_new(&thread, "bench", &options),
                "an I/O thread starts");
    return thread;
}

static sem_t posts_done;

static void slot_run(void *opaque)
{
    bench_post_run(opaque);
    if (bench_posts_over()) {
        sem_post(&posts_done);
    }
}

static void slot_post(BenchSlot *slot)
{
    aio_bh_schedule(slot->handle);
}

static void posts_consume(void)
{
    while (sem_wait(&posts_done)) {
    }
}

static double posts_work(uint64_t count, unsigned producers)
{
    static IOThread *consumer;

    if (!consumer) {
        consumer = thread_on_core(0, 0);
        sem_init(&posts_done, 0, 0);
        for (unsigned i = 0; i < BENCH_MAX_PRODUCERS; i++) {
            for (unsigned j = 0; j < BENCH_RING; j++) {
                BenchSlot *slot = &bench_posts.slots[i][j];

                slot->handle = aio_bh_new(iothread_context(consumer),
                                          slot_run, slot);
            }
        }
    }
    return bench_posts_work(count, producers, slot_post, posts_consume);
}

static double post_1_work(uint64_t count)
{
    return posts_work(count, 1);
}

static double post_3_work(uint64_t count)
{
    return posts_work(count, 3);
}

static struct {
    IOThread *threads[2];
    Coroutine *sides[2];
    uint64_t rounds;
    uint64_t hits; /* written at the end: the sides read the line it is in */
    sem_t done;
} court;

static void coroutine_fn serve_side(void *opaque)
{
    (void)opaque;
    for (uint64_t i = 0; i < court.rounds; i++) {
        aio_co_wake(court.sides[1]);
        coroutine_yield();
    }
    sem_post(&court.done);
}

/* It is the first to run, and lets the other side begin. */
static void coroutine_fn return_side(void *opaque)
{
    uint64_t hits = 0;

    (void)opaque;
    aio_co_schedule(iothread_context(court.threads[0]), court.sides[0]);
    for (uint64_t i = 0; i < court.rounds; i++) {
        coroutine_yield();
        hits++;
        aio_co_wake(court.sides[0]);
    }
    court.hits = hits;
    sem_post(&court.done);
}

static double wake_work(uint64_t count, int64_t poll_max_ns)
{
    uint64_t begin;

    if (!court.threads[0]) {
        court.threads[0] = thread_on_core(0, poll_max_ns);
        court.threads[1] = thread_on_core(1, poll_max_ns);
        sem_init(&court.done, 0, 0);
    }
    court.rounds = count;
    court.hits = 0;
    court.sides[0] = coroutine_create(serve_side, NULL);
    court.sides[1] = coroutine_create(return_side, NULL);
    begin = bench_now();
    aio_co_schedule(iothread_context(court.threads[1]), court.sides[1]);
    for (unsigned i = 0; i < 2; i++) {
        while (sem_wait(&court.done)) {
        }
    }
    begin = bench_now() - begin;
    bench_check(court.hits == count, "each wake-up arrives");
    return (double)begin;
}

static double wake_busy_work(uint64_t count)
{
    return wake_work(count, BUSY_NS);
}

static double wake_asleep_work(uint64_t count)
{
    return wake_work(count, 0);
}

static void idle_begin(void *opaque)
{
    bench_idle_here(opaque);
    sem_post(&court.done);
}

static double idle_work(uint64_t count)
{
    static BenchIdle idle;
    static IOThread *thread;

    if (!thread) {
        thread = thread_on_core(0, BUSY_NS);
        sem_init(&court.done, 0, 0);
    }
    aio_bh_schedule_oneshot(iothread_context(thread), idle_begin, &idle);
    while (sem_wait(&court.done)) {
    }
    return bench_idle_work(&idle, count);
}

static const BenchWorkload workloads[] = {
    {"post_1", post_1_work},
    {"post_3", post_3_work},
    {"wake_busy", wake_busy_work},
    {"wake_asleep", wake_asleep_work},
    {"idle", idle_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        BENCH_RIVAL, BENCH_VERSION,
        "static; wake_busy and idle with poll_max_ns = 200,000", workloads,
    };

    return bench_main(argc, argv, &program);
}
