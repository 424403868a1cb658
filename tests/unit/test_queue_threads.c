/* SPDX-License-Identifier: MIT */
/*
 * CoQueue over two and five contexts: woken by a coroutine of yet another
 * context, or from a plain thread. Each resumes in its own context; those of
 * one context in the order in which they began to wait; at one notification
 * a context.
 */
#include "queue_cases.h"

#include "os/fault.h"

static Shared shared;
static QueueJob jobs[QUEUE_WAITERS];

/* --- taking the lock from a plain thread, also if it is a CoMutex --------*/

typedef struct Count {
    int waiting;
    int woken;
} Count;

static Count seen;

static void look(void)
{
    seen = (Count){.waiting = shared.waiting, .woken = shared.woken};
}

static void look_in_coroutine(void *opaque)
{
    (void)opaque;
    co_mutex_lock(&shared.mutex);
    look();
    co_mutex_unlock(&shared.mutex);
    job_done();
}

/* Until so many have woken, and so many wait again. */
static void wait_until_waiting(int n, int woken)
{
    do {
        if (shared.kind == CO_LOCK_PTHREAD) {
            sched_yield();
            shared_lock(&shared);
            look();
            shared_unlock(&shared);
        } else {
            start(loop(0), look_in_coroutine, NULL);
            loops_join(1);
        }
    } while (seen.waiting != n || seen.woken != woken);
}

/*
 * n waiters, turn by turn in the contexts 1 to contexts; each waits before the
 * next is started, so that the order is certain.
 */
static void start_waiters(CoLockKind kind, unsigned contexts, int n, int rounds)
{
    shared_open(&shared, kind);
    loops_start(contexts + 1);
    for (int i = 0; i < n; i++) {
        jobs[i] = queue_job(&shared, i);
        jobs[i].rounds = rounds;
        jobs[i].ctx = loop(1 + (unsigned)i % contexts);
        start(jobs[i].ctx, queue_waiter, &jobs[i]);
    }
    wait_until_waiting(n, 0);
}

static void stop_all(int n)
{
    loops_join((unsigned)n);
    loops_stop();
    shared_close(&shared);
}

/* Those of one context have woken in the order in which they were started. */
static void check_order_in_each_context(int n, unsigned contexts)
{
    int last[LOOPS_MAX];

    memset(last, -1, sizeof(last));
    CHECK_EQ(shared.woken, n);
    for (int i = 0; i < n; i++) {
        int number = shared.order[i];
        unsigned context = (unsigned)number % contexts;

        CHECK(number > last[context]);
        last[context] = number;
    }
}

static void restart_all(void *opaque)
{
    (void)opaque;
    shared_lock(&shared);
    co_queue_restart_all(shared.queue);
    CHECK(co_queue_empty(shared.queue));
    shared_unlock(&shared);
    job_done();
}

static void restart_across(CoLockKind kind, unsigned contexts, int n)
{
    start_waiters(kind, contexts, n, 1);
    start(loop(0), restart_all, NULL);
    stop_all(n + 1);
    check_order_in_each_context(n, contexts);
}

QUEUE_CASES_LOCKED(restart_all_in_another_context)
{
    restart_across(kind, 1, 100);
}

QUEUE_CASES_LOCKED(restart_all_across_two_contexts)
{
    restart_across(kind, 2, 100);
}

QUEUE_CASES_LOCKED(restart_all_of_a_thousand_across_five_contexts)
{
    restart_across(kind, 5, a_thousand());
}

static void next_by_next(void *opaque)
{
    int n = *(int *)opaque;

    for (int i = 0; i < n; i++) {
        shared_lock(&shared);
        CHECK(co_queue_next(shared.queue));
        shared_unlock(&shared);
    }
    shared_lock(&shared);
    CHECK(!co_queue_next(shared.queue));
    shared_unlock(&shared);
    job_done();
}

QUEUE_CASES_LOCKED(next_across_five_contexts)
{
    int n = 100;

    start_waiters(kind, 5, n, 1);
    start(loop(0), next_by_next, &n);
    stop_all(n + 1);
    check_order_in_each_context(n, 5);
}

/* --- the queue is freed at once, and the waker ends ----------------------*/

static void restart_and_free(void *opaque)
{
    (void)opaque;
    shared_lock(&shared);
    co_queue_restart_all(shared.queue);
    queue_drop(&shared);
    shared_unlock(&shared);
    job_done();
}

QUEUE_CASES_LOCKED(freed_at_once_across_five_contexts)
{
    for (unsigned long i = harness_load(20); i > 0; i--) {
        start_waiters(kind, 5, 50, 1);
        start(loop(0), restart_and_free, NULL);
        stop_all(51);
        CHECK_EQ(shared.woken, 50);
    }
}

/* --- waiting again -------------------------------------------------------*/

/* Waiters that wait again are there for the next call, and only for that. */
QUEUE_CASES_LOCKED(one_that_waits_again_is_woken_once_a_call)
{
    int n = 50;

    start_waiters(kind, 5, n, 4);
    for (int i = 1; i <= 4; i++) {
        start(loop(0), restart_all, NULL);
        if (i < 4) {
            loops_join(1);
            wait_until_waiting(n, i * n);
        }
    }
    stop_all(n + 1);
    CHECK_EQ(shared.woken, 4 * n);
}

/* --- cost ----------------------------------------------------------------*/

static void counted_restart(void *opaque)
{
    unsigned contexts = *(unsigned *)opaque;
    uint64_t notifications, allocations;

    shared_lock(&shared);
    notifications = os_counter(OS_COUNT_NOTIFICATIONS);
    allocations = os_counter(OS_COUNT_ALLOCATIONS);
    co_queue_restart_all(shared.queue);
    /* The woken need the lock, so nobody else has notified meanwhile. */
    CHECK(os_counter(OS_COUNT_NOTIFICATIONS) - notifications <= contexts);
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS), allocations);
    shared_unlock(&shared);
    job_done();
}

static void count_across(CoLockKind kind, unsigned contexts, unsigned allowed)
{
    start_waiters(kind, contexts, a_thousand(), 1);
    start(loop(0), counted_restart, &allowed);
    stop_all(a_thousand() + 1);
    check_order_in_each_context(a_thousand(), contexts);
}

TEST(a_thousand_in_one_context_cost_one_notification)
{
    count_across(CO_LOCK_PTHREAD, 1, 1);
}

TEST(a_thousand_in_five_contexts_cost_five_notifications)
{
    count_across(CO_LOCK_PTHREAD, 5, 5);
}

TEST(moving_a_thousand_to_the_mutex_notifies_nobody)
{
    count_across(CO_LOCK_MUTEX, 5, 0);
}

/* --- no stampede ---------------------------------------------------------*/

static bool someone_runs;

static void alone(void *opaque)
{
    co_mutex_lock(&shared.mutex);
    shared.waiting++;
    CHECK_EQ(co_queue_wait(shared.queue, &shared.mutex), 0);
    CHECK(!someone_runs);
    someone_runs = true;
    /* Nobody has woken without the mutex and queues for it now. */
    CHECK_EQ(load_acquire(&shared.mutex.word_), 1);
    shared.woken++;
    someone_runs = false;
    co_mutex_unlock(&shared.mutex);
    (void)opaque;
    job_done();
}

TEST(restart_all_across_five_contexts_is_no_stampede)
{
    shared_open(&shared, CO_LOCK_MUTEX);
    loops_start(6);
    for (unsigned i = 0; i < (unsigned)a_thousand(); i++) {
        start(loop(1 + i % 5), alone, NULL);
    }
    wait_until_waiting(a_thousand(), 0);
    start(loop(0), restart_all, NULL);
    stop_all(a_thousand() + 1);
    CHECK_EQ(shared.woken, a_thousand());
}

/* --- from plain threads --------------------------------------------------*/

TEST(enter_all_from_a_thread_without_a_context)
{
    start_waiters(CO_LOCK_PTHREAD, 5, a_thousand(), 1);
    shared_lock(&shared);
    co_queue_enter_all(shared.queue, &shared.pthread);
    shared_check_locked(&shared);
    shared_unlock(&shared);
    stop_all(a_thousand());
    check_order_in_each_context(a_thousand(), 5);
}

TEST(enter_next_from_a_thread_without_a_context)
{
    start_waiters(CO_LOCK_PTHREAD, 5, 100, 1);
    shared_lock(&shared);
    for (int i = 0; i < 100; i++) {
        CHECK(co_queue_enter_next(shared.queue, &shared.pthread));
    }
    CHECK(!co_queue_enter_next(shared.queue, &shared.pthread));
    queue_drop(&shared);
    shared_unlock(&shared);
    stop_all(100);
    check_order_in_each_context(100, 5);
}

/* Those of this thread run within the call, the others where they live. */
TEST(enter_all_enters_its_own_and_schedules_the_rest)
{
    QueueJob mine[10];

    here_open();
    start_waiters(CO_LOCK_PTHREAD, 2, 20, 1);
    for (int i = 0; i < 10; i++) {
        mine[i] = queue_job(&shared, 100 + i);
        begin(queue_waiter, &mine[i]);
    }
    shared_lock(&shared);
    co_queue_enter_all(shared.queue, &shared.pthread);
    for (int i = 0; i < 10; i++) {
        CHECK(mine[i].done);
    }
    shared_unlock(&shared);
    stop_all(20);
    CHECK_EQ(shared.woken, 30);
    here_close();
}

TEST_MAIN()
