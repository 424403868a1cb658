/* SPDX-License-Identifier: MIT */
/*
 * The brief lock, on bare threads: mutual exclusion, and that nobody who sleeps
 * for it is forgotten.  That it is not touched after an unlock is in
 * test_lock_step.c.
 */
#include "harness.h"

#include "os/fault.h"
#include "sync/brief.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#define THREADS 4

static uint32_t lock;
static unsigned long rounds;
static unsigned long count; /* plain; the lock protects it */

static void *count_up(void *opaque)
{
    (void)opaque;
    for (unsigned long i = 0; i < rounds; i++) {
        brief_lock(&lock);
        count++;
        brief_unlock(&lock);
    }
    return NULL;
}

TEST(four_threads_count)
{
    pthread_t threads[THREADS];

    rounds = harness_load(100000);
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, count_up, NULL), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    }
    CHECK_EQ(count, THREADS * rounds);
    CHECK_EQ(lock, BRIEF_FREE);
}

TEST(uncontended_it_costs_two_locked_operations_and_no_system_call)
{
    uint64_t locked, calls;

    locked = os_locked_operations();
    calls = os_counter(OS_COUNT_SYSCALLS);
    brief_lock(&lock);
    CHECK_EQ(lock, BRIEF_HELD);
    brief_unlock(&lock);
    CHECK_EQ(lock, BRIEF_FREE);
    CHECK_EQ(os_locked_operations() - locked, 2);
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS), calls);
}

/* --- sleepers ------------------------------------------------------------*/

static int tids[THREADS]; /* atomic; 0: has not begun */

static void *lock_once(void *opaque)
{
    int *tid = opaque;

    store_release(tid, (int)gettid());
    brief_lock(&lock);
    count++;
    brief_unlock(&lock);
    return NULL;
}

/* The thread sleeps; it has nothing to sleep for but the lock. */
static bool sleeps(const int *tid)
{
    char name[64], state = 0;
    FILE *stat;
    int id = load_acquire(tid);

    if (!id) {
        return false;
    }
    snprintf(name, sizeof(name), "/proc/self/task/%d/stat", id);
    stat = fopen(name, "re");
    CHECK(stat != NULL);
    CHECK_EQ(fscanf(stat, "%*d (%*[^)]) %c", &state), 1);
    fclose(stat);
    return state == 'S';
}

/* The first that is woken must remember that others sleep. */
TEST(all_who_sleep_for_it_get_it)
{
    pthread_t threads[THREADS];

    brief_lock(&lock);
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, lock_once, &tids[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        while (!sleeps(&tids[i]) || load_acquire(&lock) != BRIEF_SLEEPERS) {
            sched_yield();
        }
    }
    CHECK_EQ(count, 0);
    brief_unlock(&lock);
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    }
    CHECK_EQ(count, THREADS);
    CHECK_EQ(lock, BRIEF_FREE);
}

TEST_MAIN()
