/* SPDX-License-Identifier: MIT */
/*
 * CoMutex on one context: its states, the order of service, what it costs, and
 * its misuse.  Across threads: test_mutex_threads.c.
 */
#include "loops.h"

#include "loop/wait.h"
#include "os/fault.h"

#include <errno.h>
#include <string.h>

#define MANY 100

typedef struct Job {
    CoMutex *mutex;
    int number;
    bool waits; /* yields once while it holds the mutex */
    bool has;   /* holds it now */
    bool done;
} Job;

static int order[MANY + 8];
static int served;

static void lock_once(void *opaque)
{
    Job *job = opaque;

    co_mutex_lock(job->mutex);
    co_mutex_assert_locked(job->mutex);
    job->has = true;
    order[served++] = job->number;
    if (job->waits) {
        coroutine_yield();
    }
    job->has = false;
    co_mutex_unlock(job->mutex);
    job->done = true;
}

static void try_once(void *opaque)
{
    Job *job = opaque;

    job->has = co_mutex_trylock(job->mutex);
    if (job->has) {
        co_mutex_unlock(job->mutex);
    }
    job->done = true;
}

TEST(zeroed_is_unlocked)
{
    CoMutex mutex = {0};
    Job job = {.mutex = &mutex};

    here_open();
    begin(lock_once, &job);
    CHECK(job.done);
    here_close();
}

TEST(init_makes_it_unlocked)
{
    CoMutex mutex;
    Job job = {.mutex = &mutex};

    here_open();
    memset(&mutex, 0xa5, sizeof(mutex));
    co_mutex_init(&mutex);
    begin(lock_once, &job);
    CHECK(job.done);
    here_close();
}

static void count_operations(void *opaque)
{
    CoMutex *mutex = opaque;
    uint64_t before;

    for (int i = 0; i < 3; i++) {
        before = os_locked_operations();
        co_mutex_lock(mutex);
        co_mutex_unlock(mutex);
        CHECK_EQ(os_locked_operations() - before, 2);
    }
    before = os_locked_operations();
    CHECK(co_mutex_trylock(mutex));
    co_mutex_unlock(mutex);
    CHECK_EQ(os_locked_operations() - before, 2);
}

TEST(uncontended_costs_two_locked_operations)
{
    CoMutex mutex = {0};

    here_open();
    begin(count_operations, &mutex);
    here_close();
}

TEST(trylock_takes_a_free_one_only)
{
    CoMutex mutex = {0};
    Job holder = {.mutex = &mutex, .waits = true};
    Job job = {.mutex = &mutex};
    Coroutine *co;

    here_open();
    co = begin(lock_once, &holder);
    begin(try_once, &job);
    CHECK(job.done && !job.has);
    coroutine_enter(co);
    begin(try_once, &job);
    CHECK(job.has);
    here_close();
}

TEST(lockers_are_served_in_the_order_of_their_coming)
{
    CoMutex mutex = {0};
    Job holder = {.mutex = &mutex, .number = -1, .waits = true};
    Job jobs[MANY];
    Coroutine *co;

    here_open();
    co = begin(lock_once, &holder);
    for (int i = 0; i < MANY; i++) {
        jobs[i] = (Job){.mutex = &mutex, .number = i};
        begin(lock_once, &jobs[i]);
        CHECK(!jobs[i].done);
    }
    coroutine_enter(co); /* all of them run before this returns */
    CHECK_EQ(served, MANY + 1);
    for (int i = 0; i <= MANY; i++) {
        CHECK_EQ(order[i], i - 1);
    }
    here_close();
}

/* Those who come while the queue is being served go behind it. */
TEST(late_lockers_queue_behind_early_ones)
{
    CoMutex mutex = {0};
    Job jobs[6];
    Coroutine *co[6];

    here_open();
    for (int i = 0; i < 6; i++) {
        jobs[i] = (Job){.mutex = &mutex, .number = i, .waits = true};
    }
    for (int i = 0; i < 3; i++) {
        co[i] = begin(lock_once, &jobs[i]);
    }
    for (int i = 0; i < 6; i++) {
        CHECK(jobs[i].has);
        if (i < 3) {
            co[i + 3] = begin(lock_once, &jobs[i + 3]);
            CHECK(!jobs[i + 3].has);
        }
        coroutine_enter(co[i]);
        CHECK(jobs[i].done);
    }
    CHECK_EQ(served, 6);
    for (int i = 0; i < 6; i++) {
        CHECK_EQ(order[i], i);
    }
    here_close();
}

/* The unlocker of these, which has a waiter. */
static void unlock_and_look(void *opaque)
{
    Job *job = opaque;
    Job *waiter = job + 1;

    co_mutex_lock(job->mutex);
    coroutine_yield();
    CHECK(!waiter->has);
    co_mutex_unlock(job->mutex);

    /* It has not run, but the mutex is its own. */
    CHECK(!waiter->has && !waiter->done);
    CHECK(!co_mutex_trylock(job->mutex));

    /* Nor can the unlocker overtake it. */
    co_mutex_lock(job->mutex);
    CHECK(waiter->done);
    order[served++] = job->number;
    co_mutex_unlock(job->mutex);
    job->done = true;
}

TEST(an_unlocker_passes_over_no_waiter_and_runs_none)
{
    CoMutex mutex = {0};
    Job jobs[2] = {
        {.mutex = &mutex, .number = 1},
        {.mutex = &mutex, .number = 0},
    };
    Coroutine *co;

    here_open();
    co = begin(unlock_and_look, &jobs[0]);
    begin(lock_once, &jobs[1]);
    coroutine_enter(co);
    CHECK(jobs[0].done);
    CHECK_EQ(served, 2);
    CHECK_EQ(order[0], 0);
    CHECK_EQ(order[1], 1);
    here_close();
}

/* Two mutexes, taken by turns: waits for one while holding another. */
static void lock_two(void *opaque)
{
    CoMutex *mutexes = opaque;

    for (int i = 0; i < 10; i++) {
        co_mutex_lock(&mutexes[0]);
        co_mutex_lock(&mutexes[1]);
        aio_co_schedule(here, coroutine_self());
        coroutine_yield();
        co_mutex_unlock(&mutexes[0]);
        co_mutex_unlock(&mutexes[1]);
    }
    served++;
}

TEST(mutexes_nest)
{
    CoMutex mutexes[2] = {{0}, {0}};

    here_open();
    for (int i = 0; i < 5; i++) {
        begin(lock_two, mutexes);
    }
    while (served < 5) {
        aio_poll(here, true);
    }
    here_close();
}

TEST(waiting_cannot_be_cancelled)
{
    CoMutex mutex = {0};
    Job holder = {.mutex = &mutex, .waits = true};
    Job job = {.mutex = &mutex};
    Coroutine *co, *waiter;

    here_open();
    co = begin(lock_once, &holder);
    waiter = begin(lock_once, &job);
    CHECK(!co_wait_cancel(waiter, -ECANCELED));
    CHECK(!job.done);
    coroutine_enter(co);
    CHECK(job.done);
    here_close();
}

/* The holder of this thread cannot run meanwhile. */
TEST(nobody_spins_for_a_holder_on_his_own_thread)
{
    CoMutex mutex = {0};
    Job holder = {.mutex = &mutex, .waits = true};
    Job job = {.mutex = &mutex};
    Coroutine *co;

    os_one_cpu = false;
    here_open();
    co = begin(lock_once, &holder);
    mutex.spins_ = 50;
    begin(lock_once, &job);
    CHECK_EQ(mutex.spins_, 50); /* it has neither paid nor failed */
    coroutine_enter(co);
    CHECK(job.done);
    here_close();
}

static void lock_anew(void *opaque)
{
    CoMutex *mutex = opaque;

    co_mutex_lock(mutex);
    coroutine_yield();
    co_mutex_unlock(mutex); /* hands it over */
    co_mutex_lock(mutex);
    co_mutex_unlock(mutex);
    served++;
}

/* Who was handed it here cannot come to it meanwhile. */
TEST(nobody_spins_for_an_arrival_on_his_own_thread)
{
    CoMutex mutex = {0};
    Job job = {.mutex = &mutex};
    Coroutine *co;

    os_one_cpu = false;
    here_open();
    co = begin(lock_anew, &mutex);
    begin(lock_once, &job);
    coroutine_enter(co);
    CHECK(job.done);
    CHECK_EQ(served, 2);
    CHECK_EQ(mutex.vain_, 0);
    here_close();
}

static void take_over_costs_nothing(void *opaque)
{
    Job *job = opaque;
    uint64_t allocations, notifications;

    co_mutex_lock(job->mutex);
    coroutine_yield();
    allocations = os_counter(OS_COUNT_ALLOCATIONS);
    notifications = os_counter(OS_COUNT_NOTIFICATIONS);
    co_mutex_unlock(job->mutex);
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS), allocations);
    CHECK_EQ(os_counter(OS_COUNT_NOTIFICATIONS), notifications);
    job->done = true;
}

TEST(handing_over_allocates_nothing_and_notifies_nobody_here)
{
    CoMutex mutex = {0};
    Job holder = {.mutex = &mutex};
    Job jobs[MANY];
    Coroutine *co;

    here_open();
    co = begin(take_over_costs_nothing, &holder);
    for (int i = 0; i < MANY; i++) {
        jobs[i] = (Job){.mutex = &mutex, .number = i};
        begin(lock_once, &jobs[i]);
    }
    coroutine_enter(co);
    CHECK(holder.done);
    CHECK_EQ(served, MANY);
    here_close();
}

/* Without a context there is nowhere to wait, but what is free can be had. */
TEST(a_coroutine_without_a_home_takes_free_ones)
{
    CoMutex mutex = {0};
    Job job = {.mutex = &mutex, .waits = true};
    Coroutine *co;

    co = begin(lock_once, &job);
    CHECK(job.has);
    coroutine_enter(co);
    CHECK(job.done);
    job.done = false;
    begin(try_once, &job);
    CHECK(job.done && job.has);
}

/* --- misuse --------------------------------------------------------------*/

TEST_ABORTS(waiting_without_a_home,
            "coroutine \"vagabond\" would have to wait for CoMutex "
            "0x[0-9a-f]+, but has no home .*aio_co_enter\\(\\)")
{
    CoMutex mutex = {0};
    Job holder = {.mutex = &mutex, .waits = true};
    Job job = {.mutex = &mutex};

    begin(lock_once, &holder);
    begin_named("vagabond", lock_once, &job);
}

static void unlock_only(void *opaque)
{
    Job *job = opaque;

    co_mutex_unlock(job->mutex);
}

TEST_ABORTS(unlock_by_a_stranger,
            "co_mutex_unlock: coroutine \"stranger\" does not hold CoMutex "
            "0x[0-9a-f]+; it is held by coroutine \"owner\"")
{
    CoMutex mutex = {0};
    Job job = {.mutex = &mutex, .waits = true};

    here_open();
    begin_named("owner", lock_once, &job);
    begin_named("stranger", unlock_only, &job);
}

TEST_ABORTS(unlock_of_a_free_one,
            "co_mutex_unlock: coroutine \"stranger\" does not hold CoMutex "
            "0x[0-9a-f]+; it is held by nobody")
{
    CoMutex mutex = {0};
    Job job = {.mutex = &mutex};

    here_open();
    begin_named("stranger", unlock_only, &job);
}

static void unlock_twice(void *opaque)
{
    Job *job = opaque;

    co_mutex_lock(job->mutex);
    coroutine_yield();
    co_mutex_unlock(job->mutex);
    co_mutex_unlock(job->mutex);
}

/* After the hand-over it belongs to the waiter, though that has not run. */
TEST_ABORTS(unlock_of_what_was_handed_over,
            "co_mutex_unlock: coroutine \"first\" does not hold CoMutex "
            "0x[0-9a-f]+; it is held by coroutine \"second\"")
{
    CoMutex mutex = {0};
    Job jobs[2] = {{.mutex = &mutex}, {.mutex = &mutex}};
    Coroutine *co;

    here_open();
    co = begin_named("first", unlock_twice, &jobs[0]);
    begin_named("second", lock_once, &jobs[1]);
    coroutine_enter(co);
}

static void lock_twice(void *opaque)
{
    Job *job = opaque;

    co_mutex_lock(job->mutex);
    co_mutex_lock(job->mutex);
}

TEST_ABORTS(lock_of_what_one_holds,
            "co_mutex_lock: coroutine \"fool\" holds CoMutex 0x[0-9a-f]+ "
            "already")
{
    CoMutex mutex = {0};
    Job job = {.mutex = &mutex};

    here_open();
    begin_named("fool", lock_twice, &job);
}

static void lock_only(void *opaque)
{
    Job *job = opaque;

    co_mutex_lock(job->mutex);
}

TEST_ABORTS(finish_with_it,
            "coroutine \"greedy\" has finished with 1 lock held")
{
    CoMutex mutex = {0};
    Job job = {.mutex = &mutex};

    here_open();
    begin_named("greedy", lock_only, &job);
}

/* A lock that was handed over counts like any other, for the new holder. */
TEST_ABORTS(finish_with_what_was_handed_over,
            "coroutine \"greedy\" has finished with 1 lock held")
{
    CoMutex mutex = {0};
    Job holder = {.mutex = &mutex, .waits = true};
    Job job = {.mutex = &mutex};
    Coroutine *co;

    here_open();
    co = begin(lock_once, &holder);
    begin_named("greedy", lock_only, &job);
    coroutine_enter(co);
}

static void assert_only(void *opaque)
{
    Job *job = opaque;

    co_mutex_assert_locked(job->mutex);
}

TEST_ABORTS(assert_locked_without_it,
            "co_mutex_assert_locked: coroutine \"liar\" does not hold CoMutex "
            "0x[0-9a-f]+; it is held by nobody")
{
    CoMutex mutex = {0};
    Job job = {.mutex = &mutex};

    here_open();
    begin_named("liar", assert_only, &job);
}

TEST_ABORTS(lock_outside_coroutines,
            "co_mutex_lock: called outside a coroutine, on CoMutex 0x")
{
    CoMutex mutex = {0};

    here_open();
    co_mutex_lock(&mutex);
}

TEST_ABORTS(trylock_outside_coroutines,
            "co_mutex_trylock: called outside a coroutine, on CoMutex 0x")
{
    CoMutex mutex = {0};

    here_open();
    co_mutex_trylock(&mutex);
}

TEST_ABORTS(unlock_outside_coroutines,
            "co_mutex_unlock: called outside a coroutine, on CoMutex 0x")
{
    CoMutex mutex = {0};

    here_open();
    co_mutex_unlock(&mutex);
}

TEST_ABORTS(waiter_resumed_by_a_stranger,
            "coroutine \"sleeper\" waits for CoMutex 0x[0-9a-f]+, and was "
            "resumed by somebody else")
{
    CoMutex mutex = {0};
    Job holder = {.mutex = &mutex, .waits = true};
    Job job = {.mutex = &mutex};

    here_open();
    begin(lock_once, &holder);
    aio_co_wake(begin_named("sleeper", lock_once, &job));
}

TEST_MAIN()
