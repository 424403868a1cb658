/* SPDX-License-Identifier: MIT */
/*
 * CoQueue (sync/queue.c): no waiter is forgotten, none is woken twice, and the
 * queue may be freed by whom it has woken.
 */
#include "cothread.h"
#include "os/memory.h"
#include "os/thread.h"

#include <coaio/queue.h>

static CoMutex mutex;
static CoQueue queue;
static unsigned items; /* mutex */

static void make_two(void)
{
    co_make_contexts(2);
}

static void make_three(void)
{
    co_make_contexts(3);
}

static void coroutine_fn take_item(void *done)
{
    co_mutex_lock(&mutex);
    while (items == 0) {
        CHECK_EQ(co_queue_wait(&queue, &mutex), 0);
    }
    items--;
    co_mutex_unlock(&mutex);
    *(bool *)done = true;
}

static void coroutine_fn put_item(void *done)
{
    co_mutex_lock(&mutex);
    items++;
    co_queue_next(&queue);
    co_mutex_unlock(&mutex);
    *(bool *)done = true;
}

static void coroutine_fn put_two(void *done)
{
    co_mutex_lock(&mutex);
    items += 2;
    co_queue_restart_all(&queue);
    co_mutex_unlock(&mutex);
    *(bool *)done = true;
}

CO_THREAD(take_0, 0, take_item)
CO_THREAD(take_1, 1, take_item)
CO_THREAD(put_1, 1, put_item)
CO_THREAD(put_two_2, 2, put_two)

static void check_empty(void)
{
    CHECK_EQ(items, 0);
    CHECK(co_queue_empty(&queue));
}

EXPLORE(wait_against_next, .setup = make_two, .threads = {take_0, put_1},
        .finish = check_empty,
        .marks = {"queue: a waiter moves to the mutex", "mutex: handed over"})

EXPLORE(two_wait_against_restart_all, .setup = make_three,
        .threads = {take_0, take_1, put_two_2}, .finish = check_empty,
        .stale = 1,
        .marks = {"queue: a waiter moves to the mutex"})

/* --- with a timeout -------------------------------------------------------*/

static unsigned wakeups, timeouts;

static void coroutine_fn take_item_in_time(void *done)
{
    co_mutex_lock(&mutex);
    while (items == 0) {
        if (co_queue_wait_timeout_ns(&queue, &mutex, 1000) == 0) {
            wakeups++;
        } else {
            MARK("explore_queue: it was too late");
            timeouts++;
            break;
        }
    }
    co_mutex_unlock(&mutex);
    *(bool *)done = true;
}

CO_THREAD(in_time_0, 0, take_item_in_time)

static void check_one_ended_it(void)
{
    CHECK(wakeups + timeouts <= 1);
    CHECK(co_queue_empty(&queue));
}

EXPLORE(next_against_a_timeout, .setup = make_two,
        .threads = {in_time_0, put_1}, .finish = check_one_ended_it,
        .timeouts = true,
        .marks = {"explore_queue: it was too late",
                  "queue: a waiter's time was up before"},
        .mutants = {{MUTANT_WAIT_OUTCOME_PLAIN, "misuse",
                     "would wait for itself", false}})

/* --- from outside coroutines, and freed at once ---------------------------*/

static pthread_mutex_t user_lock = PTHREAD_MUTEX_INITIALIZER;
static CoQueue *shared;
static bool ready; /* user_lock */

static void make_shared(void)
{
    co_make_contexts(1);
    shared = os_alloc(sizeof(*shared));
    co_queue_init(shared);
}

static void coroutine_fn wait_and_free(void *done)
{
    os_user_mutex_lock(&user_lock);
    while (!ready) {
        co_queue_wait(shared, &user_lock);
    }
    os_user_mutex_unlock(&user_lock);
    os_free(shared);
    *(bool *)done = true;
}

CO_THREAD(free_0, 0, wait_and_free)

static void enter_all(void)
{
    explore_begin();
    os_user_mutex_lock(&user_lock);
    if (!ready) {
        ready = true;
        co_queue_enter_all(shared, &user_lock);
    }
    os_user_mutex_unlock(&user_lock);
    explore_end();
}

EXPLORE(freed_by_who_is_woken, .setup = make_shared,
        .threads = {free_0, enter_all},
        .mutants = {
            {MUTANT_QUEUE_FREED, "use after free", "queue.c", false},
            {MUTANT_QUEUE_RESTART_TOUCHES, "data race", "pool_push", false}})

/* --- who waits again is not woken again by the same call ------------------*/

static unsigned rounds;

static void coroutine_fn wait_twice(void *opaque)
{
    (void)opaque;
    for (int i = 0; i < 2; i++) {
        co_queue_wait(&queue, NULL);
        rounds++;
    }
}

static void enter_all_twice(void)
{
    explore_begin();
    explore_end();
    aio_context_attach(co_context[0]);
    coroutine_enter(coroutine_create(wait_twice, NULL));
    co_queue_enter_all(&queue, NULL);
    CHECK_EQ(rounds, 1);
    co_queue_enter_all(&queue, NULL);
    CHECK_EQ(rounds, 2);
    aio_context_unref(co_context[0]);
}

static void make_one(void)
{
    co_make_contexts(1);
}

EXPLORE(who_waits_again, .setup = make_one, .threads = {enter_all_twice},
        .mutants = {{MUTANT_QUEUE_REWAIT, "failed check", "rounds", false}})

EXPLORE_MAIN()
