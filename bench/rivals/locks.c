/* SPDX-License-Identifier: MIT */
/*
 * locks.c: mutexes of threads, for the rows where a coroutine mutex is used
 * by several threads.  LOCK chooses one of three programs:
 *
 *   LOCK_PTHREAD   pthread_mutex_t with its defaults: lets a newcomer pass
 *                  those who wait
 *   LOCK_FIFO      a fair lock, own: one word that names the newest waiter;
 *                  each waiter sleeps on a futex of its own at once, and is
 *                  handed the lock in order of arrival
 *   LOCK_FIFO_SPIN the same, but a waiter looks 1,000 times before it sleeps
 *
 * The critical section adds one to a plain counter, which is checked.
 */
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../bench.h"

#define LOCK_PTHREAD 1
#define LOCK_FIFO 2
#define LOCK_FIFO_SPIN 3

#if LOCK == LOCK_PTHREAD

typedef struct Waiter {
    int unused;
} Waiter;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static inline void lock(Waiter *self)
{
    (void)self;
    pthread_mutex_lock(&mutex);
}

static inline void unlock(Waiter *self)
{
    (void)self;
    pthread_mutex_unlock(&mutex);
}

#else

enum { WAITING, GRANTED, SLEEPING };

typedef struct Waiter {
    _Alignas(64) _Atomic uint32_t state;
    struct Waiter *_Atomic next;
} Waiter;

static _Alignas(64) Waiter *_Atomic newest;

static void wait_for_grant(Waiter *self)
{
    uint32_t seen = WAITING;

#if LOCK == LOCK_FIFO_SPIN
    for (int i = 0; i < 1000; i++) {
        if (atomic_load_explicit(&self->state, memory_order_acquire)
            == GRANTED) {
            return;
        }
#ifdef __x86_64__
        __builtin_ia32_pause();
#endif
    }
#endif
    if (!atomic_compare_exchange_strong(&self->state, &seen, SLEEPING)) {
        return;
    }
    while (atomic_load(&self->state) == SLEEPING) {
        syscall(SYS_futex, &self->state, FUTEX_WAIT_PRIVATE, SLEEPING, NULL,
                NULL, 0);
    }
}

static void lock(Waiter *self)
{
    Waiter *before;

    atomic_store_explicit(&self->next, NULL, memory_order_relaxed);
    atomic_store_explicit(&self->state, WAITING, memory_order_relaxed);
    before = atomic_exchange(&newest, self);
    if (before) {
        atomic_store_explicit(&before->next, self, memory_order_release);
        wait_for_grant(self);
    }
}

static void unlock(Waiter *self)
{
    Waiter *next = atomic_load_explicit(&self->next, memory_order_acquire);

    if (!next) {
        Waiter *expected = self;

        if (atomic_compare_exchange_strong(&newest, &expected, NULL)) {
            return;
        }
        /* Someone has exchanged himself in and is about to link himself. */
        while (!(next = atomic_load_explicit(&self->next,
                                             memory_order_acquire))) {
            sched_yield();
        }
    }
    if (atomic_exchange(&next->state, GRANTED) == SLEEPING) {
        syscall(SYS_futex, &next->state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL,
                0);
    }
}

#endif

static struct {
    uint64_t counter;
    _Atomic uint64_t made;
    bool pin;
} shared;

static inline void add_one(Waiter *self)
{
    lock(self);
    shared.counter++;
    unlock(self);
}

static void body(unsigned index, void *opaque)
{
    uint64_t made = 0;
    Waiter self;

    (void)opaque;
    if (shared.pin) {
        bench_pin(index);
    }
    while (bench_goes_on()) {
        add_one(&self);
        made++;
    }
    atomic_fetch_add(&shared.made, made);
}

static double threads_work(uint64_t count, unsigned threads, bool pin)
{
    double elapsed;

    shared.made = 0;
    shared.counter = 0;
    shared.pin = pin;
    bench_contend();
    elapsed = bench_parallel(threads, body, NULL);
    bench_check(shared.counter == shared.made, "the lock excludes");
    return bench_contended(elapsed, shared.made, count);
}

static void body_alone(unsigned index, void *opaque)
{
    uint64_t count = *(uint64_t *)opaque;
    Waiter self;

    (void)index;
    for (uint64_t i = 0; i < count; i++) {
        add_one(&self);
    }
}

/*
 * In a thread of its own: glibc leaves the locked operations out as long as
 * the process has never had a second one.
 */
static double mutex_work(uint64_t count)
{
    return bench_parallel(1, body_alone, &count);
}

static double threads_2_work(uint64_t count)
{
    return threads_work(count, 2, true);
}

static double threads_5_work(uint64_t count)
{
    return threads_work(count, 5, false);
}

static const BenchWorkload workloads[] = {
    {"mutex_1", mutex_work},
    {"mutex_t2", threads_2_work},
    {"mutex_t5", threads_5_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
#if LOCK == LOCK_PTHREAD
        "pthread", "glibc",
        "pthread_mutex_t and pthread_rwlock_t, default attributes",
#elif LOCK == LOCK_FIFO
        "fifo", "own", "fair hand-off, a waiter sleeps at once",
#elif LOCK == LOCK_FIFO_SPIN
        "fifo-spin", "own", "fair hand-off, a waiter spins 1,000 times first",
#endif
        workloads,
    };

    return bench_main(argc, argv, &program);
}
