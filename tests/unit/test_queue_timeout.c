/* SPDX-License-Identifier: MIT */
/*
 * CoQueue with timeouts: on one context, with each kind of lock, every order
 * of wake-up, timeout and return that one thread can bring about; and across
 * threads the one that needs two: the waker has the lock while the time is up.
 */
#include "queue_cases.h"

#include "loop/wait.h"
#include "sync/waiter.h"

static Shared shared;
static QueueJob jobs[QUEUE_WAITERS];

static Coroutine *start_waiter(int i, int64_t timeout_ns)
{
    jobs[i] = queue_job(&shared, i);
    jobs[i].timeout_ns = timeout_ns;
    jobs[i].result = 1;
    return begin(queue_waiter, &jobs[i]);
}

static void open_for(CoLockKind kind)
{
    here_open();
    shared_open(&shared, kind);
}

static void close_all(void)
{
    shared_close(&shared);
    here_close();
}

static void poll_until_done(int i)
{
    while (!jobs[i].done) {
        aio_poll(here, true);
    }
}

static void next_entry(void *opaque)
{
    bool *woken = opaque;

    shared_lock(&shared);
    *woken = co_queue_next(shared.queue);
    shared_unlock(&shared);
}

static bool next_here(void)
{
    bool woken = false;

    begin(next_entry, &woken);
    return woken;
}

static void restart_entry(void *opaque)
{
    (void)opaque;
    shared_lock(&shared);
    co_queue_restart_all(shared.queue);
    shared_unlock(&shared);
}

QUEUE_CASES(times_out_with_the_lock_held_and_off_the_queue)
{
    open_for(kind);
    start_waiter(0, 1000);
    poll_until_done(0); /* queue_waiter() checks the lock */
    CHECK_EQ(jobs[0].result, -ETIMEDOUT);
    CHECK(co_queue_empty(shared.queue));
    close_all();
}

QUEUE_CASES(a_timeout_of_zero_or_less_lasts_one_turn)
{
    open_for(kind);
    start_waiter(0, 0);
    CHECK(!jobs[0].done);
    aio_poll(here, true);
    CHECK(jobs[0].done);
    CHECK_EQ(jobs[0].result, -ETIMEDOUT);
    close_all();
}

static void negative_timeout(void *opaque)
{
    int *result = opaque;

    *result = co_queue_wait_timeout_ns(shared.queue, NULL, INT64_MIN);
}

TEST(a_negative_timeout_is_no_special_case)
{
    int result = 1;

    open_for(CO_LOCK_NONE);
    begin(negative_timeout, &result);
    CHECK_EQ(result, 1);
    aio_poll(here, true);
    CHECK_EQ(result, -ETIMEDOUT);
    close_all();
}

/* A context that is destroyed with a timer left aborts. */
QUEUE_CASES(woken_in_time_leaves_no_timer)
{
    open_for(kind);
    start_waiter(0, INT64_MAX);
    CHECK(next_here());
    CHECK(jobs[0].done);
    CHECK_EQ(jobs[0].result, 0);
    close_all();
}

QUEUE_CASES(those_that_time_out_leave_the_others_in_order)
{
    int expected = 0;

    open_for(kind);
    for (int i = 0; i < 9; i++) {
        start_waiter(i, i % 3 == 1 ? 0 : -1);
    }
    aio_poll(here, true);
    for (int i = 0; i < 9; i++) {
        CHECK_EQ(jobs[i].done, i % 3 == 1);
    }
    while (next_here()) {
        expected += expected % 3 == 1;
        CHECK_EQ(shared.order[shared.woken - 1], expected);
        expected++;
    }
    CHECK_EQ(shared.woken, 6);
    CHECK(co_queue_empty(shared.queue));
    close_all();
}

QUEUE_CASES(the_first_and_the_last_time_out)
{
    open_for(kind);
    start_waiter(0, 0);
    start_waiter(1, -1);
    start_waiter(2, 0);
    aio_poll(here, true);
    CHECK(jobs[0].done && jobs[2].done && !jobs[1].done);
    start_waiter(3, -1);
    begin(restart_entry, NULL);
    CHECK_EQ(shared.woken, 2);
    CHECK_EQ(shared.order[0], 1);
    CHECK_EQ(shared.order[1], 3);
    close_all();
}

QUEUE_CASES(all_of_a_thousand_time_out)
{
    open_for(kind);
    for (int i = 0; i < a_thousand(); i++) {
        start_waiter(i, i % 7);
    }
    for (int i = 0; i < a_thousand(); i++) {
        poll_until_done(i);
        CHECK_EQ(jobs[i].result, -ETIMEDOUT);
    }
    CHECK(co_queue_empty(shared.queue));
    CHECK(!next_here());
    close_all();
}

/* --- woken and timed out at once -----------------------------------------*/

static void restart_and_linger(void *opaque)
{
    (void)opaque;
    shared_lock(&shared);
    co_queue_restart_all(shared.queue);
    queue_drop(&shared);
    coroutine_yield(); /* with the mutex held: those moved there must wait */
    shared_unlock(&shared);
}

/* The time is up while it waits for the mutex: it was woken, so it is too late
 * for that, and the queue is gone anyway. */
TEST(a_timeout_after_the_wake_changes_nothing)
{
    Coroutine *co;

    open_for(CO_LOCK_MUTEX);
    start_waiter(0, 0);
    co = begin(restart_and_linger, NULL);
    CHECK(!jobs[0].done);
    aio_poll(here, true);
    CHECK(!jobs[0].done);
    coroutine_enter(co);
    CHECK(jobs[0].done);
    CHECK_EQ(jobs[0].result, 0);
    close_all();
}

static void wake_too_late(void *opaque)
{
    bool all = *(bool *)opaque;

    shared_lock(&shared);
    coroutine_yield(); /* the time is up, and the waiter needs the mutex */
    if (all) {
        co_queue_restart_all(shared.queue);
    } else {
        CHECK(!co_queue_next(shared.queue));
    }
    CHECK(co_queue_empty(shared.queue));
    queue_drop(&shared);
    shared_unlock(&shared);
}

/* The waiter finds itself off the queue, which is gone. */
static void timeout_before_the_wake(bool all)
{
    Coroutine *co;

    open_for(CO_LOCK_MUTEX);
    start_waiter(0, 0);
    start_waiter(1, 0);
    co = begin(wake_too_late, &all);
    aio_poll(here, true);
    CHECK(!jobs[0].done && !jobs[1].done);
    CHECK(!co_queue_empty(shared.queue));
    coroutine_enter(co);
    for (int i = 0; i < 2; i++) {
        CHECK(jobs[i].done);
        CHECK_EQ(jobs[i].result, -ETIMEDOUT);
    }
    close_all();
}

TEST(next_passes_over_those_whose_time_is_up)
{
    timeout_before_the_wake(false);
}

TEST(restart_all_passes_over_those_whose_time_is_up)
{
    timeout_before_the_wake(true);
}

/* --- cancelled -----------------------------------------------------------*/

QUEUE_CASES(cancelled_with_the_lock_held)
{
    Coroutine *co;

    open_for(kind);
    co = start_waiter(0, -1);
    CHECK(co_wait_cancel(co, -ECANCELED));
    CHECK(jobs[0].done);
    CHECK_EQ(jobs[0].result, -ECANCELED);
    CHECK(co_queue_empty(shared.queue));
    close_all();
}

static void wake_then_cancel(void *opaque)
{
    Coroutine *co = opaque;

    shared_lock(&shared);
    CHECK(co_queue_next(shared.queue));
    CHECK(!co_wait_cancel(co, -ECANCELED));
    shared_unlock(&shared);
}

QUEUE_CASES(cancelled_too_late)
{
    Coroutine *co;

    open_for(kind);
    co = start_waiter(0, -1);
    begin(wake_then_cancel, co);
    CHECK(jobs[0].done);
    CHECK_EQ(jobs[0].result, 0);
    close_all();
}

/* --- another thread has the lock while the time is up --------------------*/

static bool waiting_seen;

/* Lock, when the waiter waits or has waited. */
static void lock_behind_waiter(void)
{
    shared_lock(&shared);
    while (co_queue_empty(shared.queue) && jobs[0].result == 1) {
        shared_unlock(&shared);
        sched_yield();
        shared_lock(&shared);
    }
}

/* Has the lock, and keeps it until the time of the waiter is up. */
static void late_waker(void *opaque)
{
    Waiter *waiter;

    (void)opaque;
    lock_behind_waiter();
    waiter = waiters_first(&shared.queue->waiters_);
    if (!waiter) {
        shared_unlock(&shared); /* too late */
        job_done();
        return;
    }
    waiting_seen = true;
    until(co_wait_ended(&waiter->wait));
    CHECK(!co_queue_next(shared.queue));
    CHECK(co_queue_empty(shared.queue));
    queue_drop(&shared);
    shared_unlock(&shared);
    job_done();
}

/*
 * The waiter is on loop 0, the waker on loop 1; the time grows until the waker
 * finds the waiter waiting.  It must not grow because the waker comes too
 * early: where threads share a core, that may be so in each round, and after 36
 * of them the waiter waits for a minute.
 */
QUEUE_CASES_LOCKED(the_time_is_up_while_another_thread_has_the_lock)
{
    shared_open(&shared, kind);
    loops_start(2);
    jobs[0] = queue_job(&shared, 0);
    jobs[0].timeout_ns = 1;
    jobs[0].ctx = loop(0);
    while (!waiting_seen) {
        jobs[0].timeout_ns *= 2;
        jobs[0].result = 1;
        start(loop(0), queue_waiter, &jobs[0]);
        start(loop(1), late_waker, NULL);
        loops_join(2);
        CHECK_EQ(jobs[0].result, -ETIMEDOUT);
    }
    loops_stop();
    shared_close(&shared);
}

TEST_MAIN()
