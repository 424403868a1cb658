/* SPDX-License-Identifier: MIT */
/*
 * CoMutex (sync/mutex.c): exclusion, order, hand-over, lifetime.
 */
#include "cothread.h"
#include "os/memory.h"
#include "sync/mutex_int.h"

static CoMutex mutex;
static unsigned inside; /* plain: the mutex guards it */
static unsigned taken;

static void make_two(void)
{
    co_make_contexts(2);
}

static void make_three(void)
{
    co_make_contexts(3);
}

static void use_what_it_guards(void)
{
    CHECK_EQ(inside++, 0);
    taken++;
    inside--;
}

static void coroutine_fn lock_once(void *done)
{
    co_mutex_lock(&mutex);
    use_what_it_guards();
    co_mutex_unlock(&mutex);
    *(bool *)done = true;
}

static void coroutine_fn lock_twice(void *done)
{
    co_mutex_lock(&mutex);
    use_what_it_guards();
    co_mutex_unlock(&mutex);
    lock_once(done);
}

CO_THREAD(once_0, 0, lock_once)
CO_THREAD(once_1, 1, lock_once)
CO_THREAD(once_2, 2, lock_once)
CO_THREAD(twice_0, 0, lock_twice)
CO_THREAD(twice_1, 1, lock_twice)

static void check_two_taken(void)
{
    CHECK_EQ(taken, 2);
    CHECK_EQ(mutex.word_, 0);
}

static void check_four_taken(void)
{
    CHECK_EQ(taken, 4);
}

/* The fences of QEMU's lock and unlock have no place here: what orders a lock
 * after an unlock is the word itself, and these take that away. */
EXPLORE(
    two_lockers, .setup = make_two, .threads = {once_0, once_1},
    .finish = check_two_taken,
    .marks = {"mutex: handed over", "mutex: taken while spinning",
              "mutex: somebody was pushed before it was freed"},
    .mutants = {
        {MUTANT_MUTEX_NO_FENCE_LOCK, "data race", "use_what_it_guards", false},
        {MUTANT_MUTEX_NO_FENCE_UNLOCK, "data race", "use_what_it_guards",
         false},
        {MUTANT_MUTEX_PUSH_RELAXED, "data race", "mutex.c", false},
        {MUTANT_MUTEX_NO_RETAKE, "lost wake-up", "co_mutex_unlock", false},
        {MUTANT_MUTEX_WAITERS_INVERTED, "livelock", "co_mutex_unlock", false},
        {MUTANT_MUTEX_HOLDER_LATE, "misuse", "waits for CoMutex", false}})
EXPLORE(two_lockers_twice, .setup = make_two, .threads = {twice_0, twice_1},
        .finish = check_four_taken,
        .marks = {"mutex: an arrival is waited for",
                  "mutex: just taken, by another thread than it says"})
EXPLORE(three_lockers, .setup = make_three, .threads = {once_0, once_1, once_2})

/* --- trying ---------------------------------------------------------------*/

static void coroutine_fn try_once(void *done)
{
    if (co_mutex_trylock(&mutex)) {
        use_what_it_guards();
        co_mutex_unlock(&mutex);
    } else {
        MARK("explore_mutex: trying was in vain");
    }
    *(bool *)done = true;
}

CO_THREAD(try_0, 0, try_once)

EXPLORE(one_tries, .setup = make_two, .threads = {try_0, twice_1},
        .marks = {"explore_mutex: trying was in vain"})

/* --- order: who was pushed first is served first --------------------------*/

static unsigned order[2], served;
static bool holding;

static void coroutine_fn hold_until_both_wait(void *done)
{
    co_mutex_lock(&mutex);
    holding = true;
    explore_begin();
    co_mutex_unlock(&mutex);
    *(bool *)done = true;
}

/* The holder has the mutex when the others begin; one of them lets the other
 * be first. */
static void holder_0(void)
{
    aio_context_attach(co_context[0]);
    coroutine_enter(coroutine_create(hold_until_both_wait, &co_done[0]));
    while (!co_done[0]) {
        aio_poll(co_context[0], true);
    }
    explore_end();
    aio_context_unref(co_context[0]);
}

static void coroutine_fn come_first(void *done)
{
    co_mutex_lock(&mutex);
    order[served++] = 1;
    co_mutex_unlock(&mutex);
    *(bool *)done = true;
}

static void coroutine_fn come_second(void *done)
{
    co_mutex_lock(&mutex);
    order[served++] = 2;
    co_mutex_unlock(&mutex);
    *(bool *)done = true;
}

/* Both wait on one thread, so their order is that of their coming. */
static void both_1(void)
{
    static bool first, second;

    aio_context_attach(co_context[1]);
    explore_begin();
    coroutine_enter(coroutine_create(come_first, &first));
    coroutine_enter(coroutine_create(come_second, &second));
    while (!first || !second) {
        aio_poll(co_context[1], true);
    }
    explore_end();
    aio_context_unref(co_context[1]);
}

static void check_order(void)
{
    CHECK(holding);
    CHECK_EQ(order[0], 1);
    CHECK_EQ(order[1], 2);
}

EXPLORE(two_who_wait, .setup = make_two, .threads = {holder_0, both_1},
        .finish = check_order, .marks = {"mutex: several were pushed"},
        .mutants = {
            {MUTANT_MUTEX_NOT_TURNED, "failed check", "order[0]", false}})

/* --- the last one frees it ------------------------------------------------*/

static CoMutex *shared;
static unsigned users; /* plain: the mutex guards it */

static void make_shared(void)
{
    co_make_contexts(2);
    shared = os_alloc(sizeof(*shared));
    co_mutex_init(shared);
    users = 2;
}

static void coroutine_fn use_and_drop(void *done)
{
    bool last;

    co_mutex_lock(shared);
    last = --users == 0;
    co_mutex_unlock(shared);
    if (last) {
        os_free(shared);
    }
    *(bool *)done = true;
}

CO_THREAD(drop_0, 0, use_and_drop)
CO_THREAD(drop_1, 1, use_and_drop)

EXPLORE(freed_after_the_last_unlock, .setup = make_shared,
        .threads = {drop_0, drop_1},
        .mutants = {{MUTANT_MUTEX_TOUCH_AFTER_UNLOCK, "use after free",
                     "co_mutex_unlock", false},
                    {MUTANT_MUTEX_TOUCH_AFTER_HAND_OVER, "use after free",
                     "hand_over", false}})

EXPLORE_MAIN()
