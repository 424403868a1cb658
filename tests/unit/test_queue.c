/* SPDX-License-Identifier: MIT */
/*
 * CoQueue on one context, with each kind of lock: the numbered guarantees of
 * queue.h where order is certain.  Across threads: test_queue_threads.c; with
 * timeouts: test_queue_timeout.c; misuse: test_queue_misuse.c.
 */
#include "queue_cases.h"

#include "os/fault.h"

static Shared shared;
static QueueJob jobs[QUEUE_WAITERS];

static void start_waiters(int n, int rounds)
{
    for (int i = 0; i < n; i++) {
        jobs[i] = queue_job(&shared, i);
        jobs[i].rounds = rounds;
        begin(queue_waiter, &jobs[i]);
        CHECK(!jobs[i].done);
    }
    CHECK_EQ(shared.waiting, n);
}

/* All n have woken, round after round, in the order of their numbers. */
static void check_order(int n, int rounds)
{
    CHECK_EQ(shared.woken, n * rounds);
    for (int i = 0; i < n * rounds; i++) {
        CHECK_EQ(shared.order[i], i % n);
    }
}

/* --- a waker: does one thing under the lock, and looks -------------------*/

typedef struct Waker {
    void (*act)(int n);
    int n;
    bool stays; /* runs on after the wake call, and yields */
    bool done;
} Waker;

static void waker_entry(void *opaque)
{
    Waker *waker = opaque;
    int woken = shared.woken;

    shared_lock(&shared);
    waker->act(waker->n);
    CHECK_EQ(shared.woken, woken); /* guarantee 1: none runs within */
    shared_unlock(&shared);
    CHECK_EQ(shared.woken, woken); /* nor within an unlock */
    waker->done = true;
    if (waker->stays) {
        coroutine_yield();
    }
}

static Coroutine *wake_by(void (*act)(int n), int n, bool stays)
{
    static Waker waker;
    Coroutine *co;

    waker = (Waker){.act = act, .n = n, .stays = stays};
    co = begin(waker_entry, &waker);
    CHECK(waker.done);
    return co;
}

static void act_next(int n)
{
    for (int i = 0; i < n; i++) {
        CHECK(co_queue_next(shared.queue));
    }
}

static void act_restart_all(int n)
{
    (void)n;
    co_queue_restart_all(shared.queue);
    CHECK(co_queue_empty(shared.queue));
}

static void act_restart_all_and_free(int n)
{
    (void)n;
    co_queue_restart_all(shared.queue);
    queue_drop(&shared);
}

static void act_next_and_free(int n)
{
    act_next(n);
    CHECK(co_queue_empty(shared.queue));
    queue_drop(&shared);
}

static void act_find_nobody(int n)
{
    (void)n;
    CHECK(!co_queue_next(shared.queue));
    co_queue_restart_all(shared.queue);
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

/* --- state ---------------------------------------------------------------*/

TEST(init_makes_it_empty)
{
    CoQueue queue;

    memset(&queue, 0xa5, sizeof(queue));
    co_queue_init(&queue);
    CHECK(co_queue_empty(&queue));
}

QUEUE_CASES(empty_tells_whether_somebody_waits)
{
    open_for(kind);
    CHECK(co_queue_empty(shared.queue)); /* zeroed */
    wake_by(act_find_nobody, 0, false);
    start_waiters(2, 1);
    CHECK(!co_queue_empty(shared.queue));
    wake_by(act_next, 1, false);
    CHECK(!co_queue_empty(shared.queue));
    wake_by(act_next, 1, false);
    CHECK(co_queue_empty(shared.queue));
    wake_by(act_find_nobody, 0, false);
    check_order(2, 1);
    close_all();
}

/* --- guarantees 1 and 2: order -------------------------------------------*/

QUEUE_CASES(next_wakes_the_oldest)
{
    open_for(kind);
    start_waiters(10, 1);
    for (int i = 0; i < 10; i++) {
        CHECK_EQ(shared.woken, i);
        wake_by(act_next, 1, false);
        CHECK_EQ(shared.woken, i + 1);
        CHECK_EQ(shared.order[i], i);
    }
    close_all();
}

QUEUE_CASES(next_again_before_the_first_has_run)
{
    open_for(kind);
    start_waiters(10, 1);
    wake_by(act_next, 4, false);
    CHECK_EQ(shared.woken, 4);
    wake_by(act_next, 6, false);
    check_order(10, 1);
    close_all();
}

QUEUE_CASES(restart_all_wakes_in_order)
{
    open_for(kind);
    start_waiters(10, 1);
    wake_by(act_restart_all, 0, false);
    check_order(10, 1);
    close_all();
}

QUEUE_CASES(restart_all_of_a_thousand)
{
    open_for(kind);
    start_waiters(a_thousand(), 1);
    wake_by(act_restart_all, 0, false);
    check_order(a_thousand(), 1);
    close_all();
}

/* Each waits again at once, while others of the same call have not run. */
QUEUE_CASES(one_that_waits_again_is_not_woken_twice)
{
    open_for(kind);
    start_waiters(7, 3);
    for (int i = 1; i <= 3; i++) {
        wake_by(act_restart_all, 0, false);
        CHECK_EQ(shared.woken, 7 * i);
    }
    check_order(7, 3);
    close_all();
}

QUEUE_CASES(one_that_waits_again_goes_to_the_end)
{
    static const int expected[] = {0, 1, 2, 0, 1, 2};

    open_for(kind);
    start_waiters(3, 2);
    for (int i = 0; i < 6; i++) {
        wake_by(act_next, 1, false);
        CHECK_EQ(shared.order[i], expected[i]);
    }
    close_all();
}

/* The waker does not finish but parks; the woken run all the same. */
QUEUE_CASES(a_waker_that_stays)
{
    Coroutine *co;

    open_for(kind);
    start_waiters(5, 1);
    co = wake_by(act_restart_all, 0, true);
    check_order(5, 1);
    coroutine_enter(co);
    close_all();
}

/* --- guarantee 3: freed at once ------------------------------------------*/

QUEUE_CASES(freed_after_next)
{
    open_for(kind);
    start_waiters(3, 1);
    wake_by(act_next_and_free, 3, false);
    check_order(3, 1);
    close_all();
}

QUEUE_CASES(freed_after_restart_all)
{
    open_for(kind);
    start_waiters(a_thousand(), 1);
    wake_by(act_restart_all_and_free, 0, false);
    check_order(a_thousand(), 1);
    close_all();
}

/* --- a waiter that wakes others ------------------------------------------*/

static void chain_link(void *opaque)
{
    QueueJob *job = opaque;

    shared_lock(&shared);
    CHECK_EQ(shared_wait(&shared, -1), 0);
    shared.order[shared.woken++] = job->number;
    CHECK_EQ(co_queue_next(shared.queue), job->number < a_thousand() - 1);
    shared_unlock(&shared);
}

/* Each wakes the next and ends; no stack grows. */
QUEUE_CASES(a_chain_of_a_thousand_wakers)
{
    open_for(kind);
    for (int i = 0; i < a_thousand(); i++) {
        jobs[i] = queue_job(&shared, i);
        begin(chain_link, &jobs[i]);
    }
    wake_by(act_next, 1, false);
    check_order(a_thousand(), 1);
    close_all();
}

/* --- guarantee 4: cost ---------------------------------------------------*/

static void act_count(int n)
{
    uint64_t allocations = os_counter(OS_COUNT_ALLOCATIONS);
    uint64_t notifications = os_counter(OS_COUNT_NOTIFICATIONS);
    uint64_t system_calls = os_counter(OS_COUNT_SYSCALLS);

    (void)n;
    co_queue_restart_all(shared.queue);
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS), allocations);
    CHECK_EQ(os_counter(OS_COUNT_NOTIFICATIONS), notifications);
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS), system_calls);
}

QUEUE_CASES(waking_here_costs_no_system_call_and_no_memory)
{
    open_for(kind);
    start_waiters(a_thousand(), 1);
    wake_by(act_count, 0, false);
    check_order(a_thousand(), 1);
    close_all();
}

/* --- guarantee 6: morphing -----------------------------------------------*/

static int lock_order[8];
static int locked;

static void plain_locker(void *opaque)
{
    QueueJob *job = opaque;

    co_mutex_lock(&shared.mutex);
    lock_order[locked++] = job->number;
    co_mutex_unlock(&shared.mutex);
}

static void noting_waiter(void *opaque)
{
    QueueJob *job = opaque;

    co_mutex_lock(&shared.mutex);
    CHECK_EQ(co_queue_wait(shared.queue, &shared.mutex), 0);
    lock_order[locked++] = job->number;
    co_mutex_unlock(&shared.mutex);
}

static void waker_between_lockers(void *opaque)
{
    bool all = *(bool *)opaque;

    co_mutex_lock(&shared.mutex);
    coroutine_yield(); /* 0 queues for the mutex */
    if (all) {
        co_queue_restart_all(shared.queue);
    } else {
        CHECK(co_queue_next(shared.queue));
        CHECK(co_queue_next(shared.queue));
    }
    coroutine_yield(); /* 3 queues for the mutex */
    CHECK_EQ(locked, 0);
    co_mutex_unlock(&shared.mutex);
}

/* Behind those who had queued for the mutex, before those who queue later. */
static void morph(bool all)
{
    Coroutine *co;

    open_for(CO_LOCK_MUTEX);
    for (int i = 0; i < 4; i++) {
        jobs[i] = queue_job(&shared, i);
    }
    begin(noting_waiter, &jobs[1]);
    begin(noting_waiter, &jobs[2]);
    co = begin(waker_between_lockers, &all);
    begin(plain_locker, &jobs[0]);
    coroutine_enter(co);
    begin(plain_locker, &jobs[3]);
    coroutine_enter(co);
    CHECK_EQ(locked, 4);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(lock_order[i], i);
    }
    close_all();
}

TEST(restart_all_moves_waiters_to_the_mutex_in_turn)
{
    morph(true);
}

TEST(next_moves_a_waiter_to_the_mutex_in_turn)
{
    morph(false);
}

static void lone_waiter(void *opaque)
{
    (void)opaque;
    co_mutex_lock(&shared.mutex);
    CHECK_EQ(co_queue_wait(shared.queue, &shared.mutex), 0);
    /* Whoever comes next is in the holder's list, or not woken at all: nobody
     * has woken only to queue for the mutex. */
    CHECK_EQ(shared.mutex.word_, 1);
    shared.woken++;
    aio_co_schedule(here, coroutine_self());
    coroutine_yield();
    CHECK_EQ(shared.mutex.word_, 1);
    co_mutex_unlock(&shared.mutex);
}

TEST(restart_all_of_a_thousand_is_no_stampede)
{
    open_for(CO_LOCK_MUTEX);
    for (int i = 0; i < a_thousand(); i++) {
        begin(lone_waiter, NULL);
    }
    wake_by(act_restart_all, 0, false);
    /* The first has the mutex and is parked: nobody else has run. */
    CHECK_EQ(shared.woken, 1);
    for (int i = 1; i < a_thousand(); i++) {
        aio_poll(here, false);
        CHECK(shared.woken <= i + 1);
    }
    while (aio_poll(here, false)) {
    }
    CHECK_EQ(shared.woken, a_thousand());
    close_all();
}

static CoMutex other_mutex;

static void other_waiter(void *opaque)
{
    bool *done = opaque;

    co_mutex_lock(&other_mutex);
    CHECK_EQ(co_queue_wait(shared.queue, &other_mutex), 0);
    co_mutex_unlock(&other_mutex);
    *done = true;
}

static void waker_with_two(void *opaque)
{
    (void)opaque;
    co_mutex_lock(&shared.mutex);
    co_mutex_lock(&other_mutex);
    co_queue_restart_all(shared.queue);
    co_mutex_unlock(&other_mutex);
    co_mutex_unlock(&shared.mutex);
}

/* Unusual, but sound for a waker that holds both. */
TEST(waiters_of_one_queue_may_use_two_mutexes)
{
    bool done[2] = {false, false};

    open_for(CO_LOCK_MUTEX);
    start_waiters(1, 1);
    begin(other_waiter, &done[0]);
    jobs[1] = queue_job(&shared, 1);
    begin(queue_waiter, &jobs[1]);
    begin(other_waiter, &done[1]);
    begin(waker_with_two, NULL);
    CHECK(jobs[0].done && jobs[1].done && done[0] && done[1]);
    check_order(2, 1);
    close_all();
}

/* --- from outside coroutines ---------------------------------------------*/

static bool enter_next(void)
{
    return shared.kind == CO_LOCK_PTHREAD
               ? co_queue_enter_next(shared.queue, &shared.pthread)
               : co_queue_enter_next(shared.queue, NULL);
}

static void enter_all(void)
{
    if (shared.kind == CO_LOCK_PTHREAD) {
        co_queue_enter_all(shared.queue, &shared.pthread);
    } else {
        co_queue_enter_all(shared.queue, NULL);
    }
}

static void enter_one_by_one(CoLockKind kind)
{
    open_for(kind);
    shared_lock(&shared);
    CHECK(!enter_next());
    shared_unlock(&shared);
    start_waiters(3, 1);
    shared_lock(&shared);
    for (int i = 0; i < 3; i++) {
        CHECK(enter_next());
        CHECK_EQ(shared.woken, i + 1); /* it has run within the call */
        shared_check_locked(&shared);
    }
    CHECK(!enter_next());
    shared_unlock(&shared);
    check_order(3, 1);
    close_all();
}

TEST(enter_next_enters_the_oldest_without_lock)
{
    enter_one_by_one(CO_LOCK_NONE);
}

TEST(enter_next_enters_the_oldest_with_pthread_mutex)
{
    enter_one_by_one(CO_LOCK_PTHREAD);
}

static void enter_them_all(CoLockKind kind)
{
    open_for(kind);
    start_waiters(a_thousand(), 1);
    shared_lock(&shared);
    enter_all();
    shared_check_locked(&shared);
    check_order(a_thousand(), 1);
    enter_all();
    shared_unlock(&shared);
    close_all();
}

TEST(enter_all_enters_in_order_without_lock)
{
    enter_them_all(CO_LOCK_NONE);
}

TEST(enter_all_enters_in_order_with_pthread_mutex)
{
    enter_them_all(CO_LOCK_PTHREAD);
}

/* They wait again within the call, and are not entered twice by it. */
static void enter_all_again(CoLockKind kind)
{
    open_for(kind);
    start_waiters(7, 3);
    shared_lock(&shared);
    for (int i = 1; i <= 3; i++) {
        enter_all();
        CHECK_EQ(shared.woken, 7 * i);
    }
    shared_unlock(&shared);
    check_order(7, 3);
    close_all();
}

TEST(enter_all_enters_once_without_lock)
{
    enter_all_again(CO_LOCK_NONE);
}

TEST(enter_all_enters_once_with_pthread_mutex)
{
    enter_all_again(CO_LOCK_PTHREAD);
}

static void freeing_waiter(void *opaque)
{
    QueueJob *job = opaque;

    shared_lock(&shared);
    CHECK_EQ(shared_wait(&shared, -1), 0);
    shared.woken++;
    if (shared.queue && job->number == 0) {
        queue_drop(&shared);
    }
    shared_unlock(&shared);
}

/* The first that is entered frees the queue, within the call. */
static void enter_and_free(CoLockKind kind)
{
    open_for(kind);
    for (int i = 0; i < 5; i++) {
        jobs[i] = queue_job(&shared, i);
        begin(freeing_waiter, &jobs[i]);
    }
    shared_lock(&shared);
    enter_all();
    shared_unlock(&shared);
    CHECK_EQ(shared.woken, 5);
    CHECK(shared.queue == NULL);
    close_all();
}

TEST(freed_within_enter_all_without_lock)
{
    enter_and_free(CO_LOCK_NONE);
}

TEST(freed_within_enter_all_with_pthread_mutex)
{
    enter_and_free(CO_LOCK_PTHREAD);
}

static void enter_next_and_free(CoLockKind kind)
{
    open_for(kind);
    jobs[0] = queue_job(&shared, 0);
    begin(freeing_waiter, &jobs[0]);
    shared_lock(&shared);
    CHECK(enter_next());
    shared_unlock(&shared);
    CHECK(shared.queue == NULL);
    close_all();
}

TEST(freed_within_enter_next_without_lock)
{
    enter_next_and_free(CO_LOCK_NONE);
}

TEST(freed_within_enter_next_with_pthread_mutex)
{
    enter_next_and_free(CO_LOCK_PTHREAD);
}

/* From a callback of the loop, which is outside coroutines, too. */
static void enter_all_bh(void *opaque)
{
    (void)opaque;
    enter_all();
    check_order(5, 1);
}

TEST(enter_all_from_a_bottom_half)
{
    open_for(CO_LOCK_NONE);
    start_waiters(5, 1);
    aio_bh_schedule_oneshot(here, enter_all_bh, NULL);
    CHECK(aio_poll(here, false));
    check_order(5, 1);
    close_all();
}

TEST_MAIN()
