/* SPDX-License-Identifier: MIT */
/*
 * CoMutex across threads: order of service over two and five contexts, each
 * waiter in its own context, mutual exclusion, and who may free it.
 */
#include "loops.h"

#include "os/fault.h"
#include "os/thread.h"

#include <coaio/coaio.h>

#include <stdlib.h>

typedef struct Waiter {
    CoMutex *mutex;
    AioContext *ctx;
    int number;
} Waiter;

static int order[64];
static int served; /* under the mutex */
static bool held;
static bool let_go;

static void holder(void *opaque)
{
    CoMutex *mutex = opaque;

    co_mutex_lock(mutex);
    store_release(&held, true);
    /* On the loop's thread, which others must not need meanwhile. */
    until(load_acquire(&let_go));
    co_mutex_unlock(mutex);
    job_done();
}

static void locker(void *opaque)
{
    Waiter *w = opaque;

    co_mutex_lock(w->mutex);
    CHECK(aio_context_current() == w->ctx);
    order[served++] = w->number;
    co_mutex_unlock(w->mutex);
    job_done();
}

/* One on loop 0 holds it; n on the others come one after the other. */
static void serve_in_order(unsigned contexts, int n)
{
    CoMutex mutex = {0};
    Waiter w[64];

    loops_start(contexts + 1);
    start(loop(0), holder, &mutex);
    until(load_acquire(&held));
    for (int i = 0; i < n; i++) {
        uintptr_t word = load_acquire(&mutex.word_);

        w[i].mutex = &mutex;
        w[i].ctx = loop(1 + (unsigned)i % contexts);
        w[i].number = i;
        start(w[i].ctx, locker, &w[i]);
        until(load_acquire(&mutex.word_) != word);
    }
    store_release(&let_go, true);
    loops_join((unsigned)n + 1);
    CHECK_EQ(served, n);
    for (int i = 0; i < n; i++) {
        CHECK_EQ(order[i], i);
    }
    loops_stop();
}

TEST(two_contexts_are_served_in_order)
{
    serve_in_order(2, 16);
}

TEST(five_contexts_are_served_in_order)
{
    serve_in_order(5, 60);
}

/* --- spinning ------------------------------------------------------------*/

static void holder_that_waits(void *opaque)
{
    CoMutex *mutex = opaque;

    co_mutex_lock(mutex);
    store_release(&held, true);
    coroutine_yield();
    co_mutex_unlock(mutex);
    job_done();
}

/* Somebody queues behind one on another thread. */
static void wait_behind(CoMutex *mutex)
{
    Waiter w = {.mutex = mutex};
    Coroutine *co;

    loops_start(2);
    co = start(loop(0), holder_that_waits, mutex);
    until(load_acquire(&held));
    w.ctx = loop(1);
    start(w.ctx, locker, &w);
    until(load_acquire(&mutex->word_) > 1);
    aio_co_wake(co);
    loops_join(2);
    loops_stop();
}

/* Spinning for one on another thread is bounded, and learns that it fails. */
TEST(spinning_in_vain_is_given_up)
{
    CoMutex mutex = {.spins_ = 40};

    os_one_cpu = false;
    wait_behind(&mutex);
    CHECK_EQ(load_relaxed(&mutex.spins_), 20);
}

/* It would keep the holder from running. */
TEST(nobody_spins_on_the_only_processor)
{
    CoMutex mutex = {.spins_ = 40};

    os_one_cpu = true;
    wait_behind(&mutex);
    CHECK_EQ(load_relaxed(&mutex.spins_), 40); /* neither paid nor failed */
}

static bool occupied, vacated; /* atomic */

static void occupier(void *opaque)
{
    (void)opaque;
    store_release(&occupied, true);
    until(load_acquire(&vacated)); /* on the loop's thread */
    job_done();
}

/* The one who was handed it is late: nobody spins for it without end. */
TEST(waiting_for_an_arrival_in_vain_is_given_up)
{
    CoMutex mutex = {0};
    Waiter late = {.mutex = &mutex};
    Waiter w = {.mutex = &mutex, .number = 1};

    os_one_cpu = false;
    loops_start(3);
    start(loop(0), holder, &mutex);
    until(load_acquire(&held));
    late.ctx = loop(1);
    start(late.ctx, locker, &late);
    until(load_acquire(&mutex.word_) > 1);
    start(loop(1), occupier, NULL);
    until(load_acquire(&occupied));
    store_release(&let_go, true);
    until(((uintptr_t)load_acquire(&mutex.thread_) & 1) &&
          load_acquire(&mutex.holder_));
    w.ctx = loop(2);
    start(w.ctx, locker, &w);
    until(load_acquire(&mutex.word_) > 1);
    CHECK_EQ(load_relaxed(&mutex.vain_), 1);
    store_release(&vacated, true);
    loops_join(4);
    CHECK_EQ(order[0], 0);
    CHECK_EQ(order[1], 1);
    loops_stop();
}

/* --- mutual exclusion ----------------------------------------------------*/

typedef struct Counter {
    CoMutex mutex;
    unsigned long rounds;
    unsigned long count; /* plain: the mutex protects it */
    bool hop;            /* suspend in the critical section, at times */
    bool try;
} Counter;

static void count(void *opaque)
{
    Counter *c = opaque;

    for (unsigned long i = 0; i < c->rounds; i++) {
        unsigned long seen;

        if (!c->try || !co_mutex_trylock(&c->mutex)) {
            co_mutex_lock(&c->mutex);
        }
        seen = c->count;
        if (c->hop && i % 16 == 0) {
            aio_co_schedule(aio_context_current(), coroutine_self());
            coroutine_yield();
        }
        c->count = seen + 1;
        co_mutex_unlock(&c->mutex);
    }
    job_done();
}

static void count_on_five(Counter *c, unsigned per_thread)
{
    unsigned n = 5 * per_thread;

    c->rounds = harness_load(c->rounds);
    loops_start(5);
    for (unsigned i = 0; i < n; i++) {
        start(loop(i), count, c);
    }
    loops_join(n);
    CHECK_EQ(c->count, n * c->rounds);
    CHECK_EQ(c->mutex.word_, 0);
    CHECK(c->mutex.head_ == NULL && c->mutex.holder_ == NULL);
    loops_stop();
}

TEST(five_threads_count)
{
    Counter c = {.rounds = 4000};

    count_on_five(&c, 1);
}

TEST(five_threads_with_many_coroutines_count)
{
    Counter c = {.rounds = 200};

    count_on_five(&c, 20);
}

TEST(five_threads_count_and_suspend_meanwhile)
{
    Counter c = {.rounds = 1000, .hop = true};

    count_on_five(&c, 3);
}

TEST(five_threads_count_and_try_first)
{
    Counter c = {.rounds = 2000, .try = true};

    count_on_five(&c, 2);
}

/* --- freed by the last unlocker ------------------------------------------*/

typedef struct Shared {
    CoMutex mutex;
    int users;
} Shared;

static void use_and_drop(void *opaque)
{
    Shared *s = opaque;
    bool last;

    co_mutex_lock(&s->mutex);
    last = --s->users == 0;
    co_mutex_unlock(&s->mutex);
    if (last) {
        free(s);
    }
    job_done();
}

/* An earlier unlock may still be returning on another thread: it must not
 * look at the mutex again (ASan sees it if it does). */
TEST(the_last_unlocker_frees_it)
{
    unsigned long rounds = harness_load(3000);

    loops_start(3);
    for (unsigned long i = 0; i < rounds; i++) {
        Shared *s = calloc(1, sizeof(*s));

        CHECK(s != NULL);
        s->users = 6;
        for (unsigned k = 0; k < 6; k++) {
            start(loop(k), use_and_drop, s);
        }
        loops_join(6);
    }
    loops_stop();
}

/* --- what a hand-over costs ----------------------------------------------*/

static void counting_holder(void *opaque)
{
    CoMutex *mutex = opaque;
    uint64_t notifications, allocations;

    co_mutex_lock(mutex);
    store_release(&held, true);
    until(load_acquire(&let_go));
    notifications = os_counter(OS_COUNT_NOTIFICATIONS);
    allocations = os_counter(OS_COUNT_ALLOCATIONS);
    co_mutex_unlock(mutex);
    CHECK(os_counter(OS_COUNT_NOTIFICATIONS) - notifications <= 1);
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS), allocations);
    job_done();
}

static void quiet_locker(void *opaque)
{
    Waiter *w = opaque;

    co_mutex_lock(w->mutex);
    CHECK(aio_context_current() == w->ctx);
    co_mutex_unlock(w->mutex);
    fetch_add_acq_rel(&jobs_done, 1u); /* without a kick, which may notify */
}

TEST(a_hand_over_to_another_thread_notifies_once_and_allocates_nothing)
{
    CoMutex mutex = {0};
    Waiter w = {.mutex = &mutex};

    loops_start(2);
    start(loop(0), counting_holder, &mutex);
    until(load_acquire(&held));
    w.ctx = loop(1);
    start(w.ctx, quiet_locker, &w);
    until(load_acquire(&mutex.word_) > 1);
    store_release(&let_go, true);
    until(load_acquire(&jobs_done) == 2);
    loops_stop();
}

TEST_MAIN()
