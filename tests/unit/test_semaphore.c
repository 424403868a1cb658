/* SPDX-License-Identifier: MIT */
/*
 * CoSemaphore: units, order of service, cancellation; on one context, across
 * threads; misuse.
 */
#include "loops.h"

#include "loop/wait.h"
#include "os/fault.h"
#include "sync/brief.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MANY 100

typedef struct Job {
    CoSemaphore *semaphore;
    uint64_t units;
    int number;
    int result;
    bool done;
} Job;

static CoSemaphore semaphore;
static Job jobs[MANY];
static int order[MANY];
static int served;

static void acquirer(void *opaque)
{
    Job *job = opaque;

    job->result = co_semaphore_acquire(job->semaphore, job->units);
    order[served++] = job->number;
    job->done = true;
}

static Coroutine *acquire(int i, uint64_t units)
{
    jobs[i] = (Job){.semaphore = &semaphore, .units = units, .number = i};
    return begin(acquirer, &jobs[i]);
}

TEST(zeroed_has_no_units)
{
    here_open();
    CHECK(!co_semaphore_try_acquire(&semaphore, 1));
    CHECK(co_semaphore_try_acquire(&semaphore, 0));
    co_semaphore_release(&semaphore, 1);
    CHECK(co_semaphore_try_acquire(&semaphore, 1));
    CHECK(!co_semaphore_try_acquire(&semaphore, 1));
    here_close();
}

TEST(init_gives_units)
{
    here_open();
    memset(&semaphore, 0xa5, sizeof(semaphore));
    co_semaphore_init(&semaphore, 5);
    CHECK(!co_semaphore_try_acquire(&semaphore, 6));
    CHECK(co_semaphore_try_acquire(&semaphore, 3));
    CHECK(co_semaphore_try_acquire(&semaphore, 2));
    CHECK(!co_semaphore_try_acquire(&semaphore, 1));
    here_close();
}

TEST(acquire_waits_for_enough)
{
    here_open();
    acquire(0, 3);
    co_semaphore_release(&semaphore, 2);
    CHECK(!jobs[0].done);
    co_semaphore_release(&semaphore, 1);
    CHECK(jobs[0].done);
    CHECK_EQ(jobs[0].result, 0);
    CHECK_EQ(semaphore.units_, 0);
    acquire(1, 0);
    CHECK(jobs[1].done);
    here_close();
}

TEST(served_in_order)
{
    here_open();
    for (int i = 0; i < MANY; i++) {
        acquire(i, 1);
        CHECK(!jobs[i].done);
    }
    for (int i = 0; i < MANY / 2; i++) {
        co_semaphore_release(&semaphore, 1);
        CHECK_EQ(served, i + 1);
    }
    co_semaphore_release(&semaphore, MANY / 2);
    CHECK_EQ(served, MANY);
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(order[i], i);
    }
    here_close();
}

/* Otherwise a stream of small requests would starve a large one. */
TEST(a_small_request_does_not_overtake_a_large_one)
{
    here_open();
    co_semaphore_release(&semaphore, 2);
    acquire(0, 5);
    acquire(1, 1);
    CHECK(!jobs[0].done && !jobs[1].done);
    CHECK(!co_semaphore_try_acquire(&semaphore, 1));
    CHECK(!co_semaphore_try_acquire(&semaphore, 0));
    co_semaphore_release(&semaphore, 3);
    CHECK(jobs[0].done && !jobs[1].done);
    co_semaphore_release(&semaphore, 1);
    CHECK(jobs[1].done);
    here_close();
}

static void release_and_look(void *opaque)
{
    Job *waiter = opaque;

    co_semaphore_release(&semaphore, 1);
    CHECK(!waiter->done);          /* does not run within the call, */
    CHECK_EQ(semaphore.units_, 0); /* but has the unit already */
    CHECK(!co_semaphore_try_acquire(&semaphore, 1));
}

TEST(release_hands_over_and_runs_nobody)
{
    here_open();
    acquire(0, 1);
    begin(release_and_look, &jobs[0]);
    CHECK(jobs[0].done);
    here_close();
}

/* --- cancellation --------------------------------------------------------*/

TEST(cancelled_it_has_taken_nothing)
{
    Coroutine *co;

    here_open();
    co_semaphore_release(&semaphore, 1);
    co = acquire(0, 2);
    CHECK(co_wait_cancel(co, -ECANCELED));
    CHECK(jobs[0].done);
    CHECK_EQ(jobs[0].result, -ECANCELED);
    CHECK(co_semaphore_try_acquire(&semaphore, 1));
    here_close();
}

TEST(cancelled_it_lets_those_behind_it_in)
{
    Coroutine *co;

    here_open();
    co_semaphore_release(&semaphore, 2);
    co = acquire(0, 5);
    acquire(1, 1);
    acquire(2, 1);
    acquire(3, 1);
    CHECK(co_wait_cancel(co, -ECANCELED));
    CHECK_EQ(jobs[0].result, -ECANCELED);
    CHECK(jobs[1].done && jobs[2].done && !jobs[3].done);
    CHECK_EQ(jobs[1].result, 0);
    co_semaphore_release(&semaphore, 1);
    CHECK(jobs[3].done);
    here_close();
}

TEST(cancelled_in_the_middle)
{
    Coroutine *co;

    here_open();
    acquire(0, 1);
    co = acquire(1, 1);
    acquire(2, 1);
    CHECK(co_wait_cancel(co, -ECANCELED));
    co_semaphore_release(&semaphore, 2);
    CHECK(jobs[0].done && jobs[2].done);
    CHECK_EQ(jobs[0].result, 0);
    CHECK_EQ(jobs[1].result, -ECANCELED);
    CHECK_EQ(jobs[2].result, 0);
    here_close();
}

static void release_then_cancel(void *opaque)
{
    co_semaphore_release(&semaphore, 1);
    CHECK(!co_wait_cancel(opaque, -ECANCELED));
}

TEST(cancelled_too_late_it_has_the_units)
{
    Coroutine *co;

    here_open();
    co = acquire(0, 1);
    begin(release_then_cancel, co);
    CHECK(jobs[0].done);
    CHECK_EQ(jobs[0].result, 0);
    CHECK_EQ(semaphore.units_, 0);
    here_close();
}

/* --- across threads ------------------------------------------------------*/

typedef struct Pool {
    CoSemaphore semaphore;
    int64_t inside; /* atomic */
    int64_t limit;
    unsigned long rounds;
} Pool;

static void use_pool(void *opaque)
{
    Pool *pool = opaque;

    for (unsigned long i = 0; i < pool->rounds; i++) {
        int64_t units = 1 + (int64_t)(i % 3);

        CHECK_EQ(co_semaphore_acquire(&pool->semaphore, (uint64_t)units), 0);
        CHECK(fetch_add_acq_rel(&pool->inside, units) + units <= pool->limit);
        if (i % 4 == 0) {
            aio_co_schedule(aio_context_current(), coroutine_self());
            coroutine_yield();
        }
        fetch_sub_acq_rel(&pool->inside, units);
        co_semaphore_release(&pool->semaphore, (uint64_t)units);
    }
    job_done();
}

TEST(five_threads_share_units)
{
    Pool pool = {.limit = 7, .rounds = harness_load(500)};

    co_semaphore_init(&pool.semaphore, 7);
    loops_start(5);
    for (unsigned i = 0; i < 25; i++) {
        start(loop(i), use_pool, &pool);
    }
    loops_join(25);
    loops_stop();
    CHECK_EQ(pool.semaphore.units_, 7);
    CHECK_EQ(pool.inside, 0);
}

static void acquire_many(void *opaque)
{
    for (unsigned long i = *(unsigned long *)opaque; i > 0; i--) {
        CHECK_EQ(co_semaphore_acquire(&semaphore, 1), 0);
    }
    job_done();
}

TEST(a_plain_thread_releases)
{
    unsigned long rounds = harness_load(2000);

    loops_start(2);
    for (unsigned i = 0; i < 4; i++) {
        start(loop(i), acquire_many, &rounds);
    }
    for (unsigned long i = 0; i < 4 * rounds; i++) {
        co_semaphore_release(&semaphore, 1);
    }
    loops_join(4);
    loops_stop();
    CHECK_EQ(semaphore.units_, 0);
}

typedef struct Ended {
    CoSemaphore semaphore;
} Ended;

static void release_last(void *opaque)
{
    Ended *ended = opaque;

    co_semaphore_release(&ended->semaphore, 1);
    job_done();
}

static void acquire_and_free(void *opaque)
{
    Ended *ended = opaque;

    CHECK_EQ(co_semaphore_acquire(&ended->semaphore, 2), 0);
    free(ended);
    job_done();
}

/* Whoever has the last units may free it, while release still returns. */
TEST(freed_by_the_one_that_got_the_last_units)
{
    loops_start(3);
    for (unsigned long i = harness_load(2000); i > 0; i--) {
        Ended *ended = calloc(1, sizeof(*ended));

        CHECK(ended != NULL);
        start(loop(0), acquire_and_free, ended);
        start(loop(1), release_last, ended);
        start(loop(2), release_last, ended);
        loops_join(3);
    }
    loops_stop();
}

static void *last_waiter(void)
{
    void *last;

    brief_lock(&semaphore.lock_);
    last = semaphore.waiters_.tail_;
    brief_unlock(&semaphore.lock_);
    return last;
}

static void quiet_acquirer(void *opaque)
{
    CHECK_EQ(co_semaphore_acquire(&semaphore, 1), 0);
    CHECK(aio_context_current() == opaque);
    fetch_add_acq_rel(&jobs_done, 1u);
}

TEST(waking_a_hundred_costs_a_notification_a_context)
{
    uint64_t notifications, allocations;

    loops_start(5);
    for (unsigned i = 0; i < 100; i++) {
        void *last = last_waiter();

        start(loop(i), quiet_acquirer, loop(i));
        until(last_waiter() != last);
    }
    notifications = os_counter(OS_COUNT_NOTIFICATIONS);
    allocations = os_counter(OS_COUNT_ALLOCATIONS);
    co_semaphore_release(&semaphore, 100);
    CHECK(os_counter(OS_COUNT_NOTIFICATIONS) - notifications <= 5);
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS), allocations);
    until(load_acquire(&jobs_done) == 100);
    loops_stop();
}

/* --- misuse --------------------------------------------------------------*/

TEST_ABORTS(release_of_too_many,
            "co_semaphore_release: CoSemaphore 0x[0-9a-f]+ has 1 units, and "
            "cannot take 18446744073709551615 more")
{
    here_open();
    co_semaphore_release(&semaphore, 1);
    co_semaphore_release(&semaphore, UINT64_MAX);
}

TEST_ABORTS(acquire_outside_coroutines,
            "co_semaphore_acquire: called outside a coroutine, on CoSemaphore")
{
    here_open();
    co_semaphore_acquire(&semaphore, 1);
}

TEST_ABORTS(waiting_without_a_home,
            "coroutine 0x[0-9a-f]+ would have to wait for CoSemaphore "
            "0x[0-9a-f]+, but has no home .*aio_co_enter\\(\\)")
{
    acquire(0, 1);
}

TEST_MAIN()
