/* SPDX-License-Identifier: MIT */
/*
 * The pool of free stacks (coroutine/pool.c, stack.c): threads take batches
 * from the slabs and give batches back, and no slot has two users.
 *
 * A slot that two had at once would be a data race as well: both write to its
 * Coroutine.  Here a thread keeps 3 slots, and 2 change hands at once.
 */
#include "base/atomic.h"
#include "coroutine/stack.h"
#include "explore.h"
#include "os/thread.h"

#include <coaio/coroutine.h>

#define MADE 5

static Coroutine *made[3][MADE]; /* by each thread */
static bool ran[3][MADE];
static Coroutine *held; /* atomic */

static void coroutine_fn note(void *opaque)
{
    CHECK(!*(bool *)opaque);
    *(bool *)opaque = true;
}

static void create(unsigned t, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++) {
        ran[t][i] = false;
        made[t][i] = coroutine_create(note, &ran[t][i]);
    }
}

/* Each ends, and its slot is free. */
static void enter(unsigned t, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++) {
        coroutine_enter(made[t][i]);
        CHECK(ran[t][i]);
    }
}

/* In no order: but for what this thread keeps, all slots have come back. */
static void check_all_back(void)
{
    StackStats stats;

    stack_stats(STACK_CLASS_DEFAULT, &stats);
    CHECK_EQ(stats.used, os_thread()->pool_size);
}

/* --- batches --------------------------------------------------------------*/

static void create_and_enter_four(unsigned t)
{
    explore_begin();
    create(t, 0, 4);
    enter(t, 0, 4);
    explore_end();
}

static void first_goes_through_four(void)
{
    create_and_enter_four(0);
}

/* Leaves a batch in the slabs before it begins. */
static void second_goes_through_four(void)
{
    create(1, 0, 4);
    enter(1, 0, 4);
    create_and_enter_four(1);
}

EXPLORE(batches_change_hands,
        .threads = {first_goes_through_four, second_goes_through_four},
        .finish = check_all_back,
        .marks = {"pool: a full one gives a batch back",
                  "stack: a batch is taken"})

/* --- a slot comes back while another is about to take it ------------------*/

static void take_two(void)
{
    create(0, 2, 3); /* what the start has left in the pool */
    explore_begin();
    create(0, 0, 2);
    CHECK(made[0][0] != load_relaxed(&held));
    CHECK(made[0][1] != load_relaxed(&held));
    explore_end();
    enter(0, 0, 3);
}

/*
 * Takes the two that are there, keeps the second, and brings the first back:
 * it is in the older half of a pool that is full.
 */
static void take_two_and_give_one_back(void)
{
    create(1, 0, 5);
    enter(1, 0, 4); /* two stay here, two go back */
    create(1, 0, 2);
    explore_begin();
    create(2, 0, 2);
    store_relaxed(&held, made[2][1]);
    enter(2, 0, 1);
    enter(1, 0, 2);
    enter(1, 4, 5);
    explore_end();
    enter(2, 1, 2);
}

EXPLORE(a_slot_comes_back_while_it_is_taken,
        .threads = {take_two, take_two_and_give_one_back},
        .mutants = {{MUTANT_POOL_POP_ONE, "failed check", "take_two", false}})

/* --- made here, ended there -----------------------------------------------*/

static Coroutine *handed[4]; /* atomic */

/* Slots leave this pool, and come to the other one. */
static void make_four(void)
{
    explore_begin();
    for (unsigned i = 0; i < 4; i++) {
        create(0, i, i + 1);
        store_release(&handed[i], made[0][i]);
    }
    explore_end();
}

static void end_four(void)
{
    explore_begin();
    for (unsigned i = 0; i < 4; i++) {
        while (!load_acquire(&handed[i])) {
            spin_hint();
        }
        coroutine_enter(handed[i]);
        CHECK(ran[0][i]);
    }
    explore_end();
}

EXPLORE(made_here_and_ended_there, .threads = {make_four, end_four},
        .finish = check_all_back,
        .marks = {"pool: a full one gives a batch back",
                  "pool: a thread ends and gives back what it has"})

/* --- a thread ends --------------------------------------------------------*/

static void go_through_two(void *arg)
{
    (void)arg;
    create(1, 0, 2);
    enter(1, 0, 2);
}

static void start_one_that_ends(void)
{
    const OsThreadStart start = {.name = "other", .run = go_through_two};
    OsThreadHandle handle;

    explore_begin();
    CHECK_EQ(os_thread_start(&handle, &start), 0);
    create(0, 0, 3);
    os_thread_join(&handle);
    explore_end();
    enter(0, 0, 3);
}

EXPLORE(a_thread_ends_with_free_slots, .threads = {start_one_that_ends},
        .finish = check_all_back,
        .marks = {"pool: a thread ends and gives back what it has",
                  "stack: a batch is taken"},
        .mutants = {
            {MUTANT_POOL_KEPT_AT_END, "failed check", "check_all_back", false}})

/* --- more free slots than are to keep their pages -------------------------*/

static void give_back_five(unsigned t)
{
    create(t, 0, 5);
    explore_begin();
    enter(t, 0, 5);
    create(t, 0, 4); /* one more than were kept */
    explore_end();
    enter(t, 0, 4);
}

static void first_gives_back_five(void)
{
    give_back_five(0);
}

static void second_gives_back_five(void)
{
    give_back_five(1);
}

EXPLORE(surplus_slots_lose_their_pages,
        .threads = {first_gives_back_five, second_gives_back_five},
        .finish = check_all_back,
        .marks = {"stack: surplus slots lose their pages"},
        .mutants = {
            {MUTANT_STACK_RETIRE_UNLOCKED, "data race", "retire", false}})

EXPLORE_MAIN()
