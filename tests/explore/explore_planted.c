/* SPDX-License-Identifier: MIT */
/*
 * Bugs planted on purpose: the explorer must report each as what it is.
 */
#include "base/atomic.h"
#include "explore.h"
#include "os/memory.h"
#include "os/thread.h"

#include <string.h>

static OsMutex first, second;
static OsCond cond;
static uint32_t word;  /* atomic */
static uint32_t other; /* atomic */
static uint32_t plain;
static uint32_t *block;

/* --- deadlock -------------------------------------------------------------*/

static void lock_first_second(void)
{
    explore_begin();
    os_mutex_lock(&first);
    os_mutex_lock(&second);
    os_mutex_unlock(&second);
    os_mutex_unlock(&first);
    explore_end();
}

static void lock_second_first(void)
{
    explore_begin();
    os_mutex_lock(&second);
    os_mutex_lock(&first);
    os_mutex_unlock(&first);
    os_mutex_unlock(&second);
    explore_end();
}

static void lock_twice(void)
{
    explore_begin();
    os_mutex_lock(&first);
    os_mutex_lock(&first);
    explore_end();
}

EXPLORE(deadlock, .threads = {lock_first_second, lock_second_first},
        .fails = "deadlock: a cycle")
EXPLORE(no_deadlock, .threads = {lock_first_second, lock_first_second})
EXPLORE(lock_that_is_held, .threads = {lock_twice},
        .fails = "deadlock: thread 0 takes a lock twice")

/* --- lost wake-up ---------------------------------------------------------*/

/* The condition is looked at before the lock is taken. */
static void wait_badly(void)
{
    explore_begin();
    if (!load_acquire(&word)) {
        os_mutex_lock(&first);
        os_cond_wait(&cond, &first);
        os_mutex_unlock(&first);
    }
    explore_end();
}

static void wait_well(void)
{
    explore_begin();
    os_mutex_lock(&first);
    while (!load_relaxed(&word)) {
        os_cond_wait(&cond, &first);
    }
    os_mutex_unlock(&first);
    explore_end();
}

static void wake(void)
{
    explore_begin();
    os_mutex_lock(&first);
    store_release(&word, 1u);
    os_cond_signal(&cond);
    os_mutex_unlock(&first);
    explore_end();
}

EXPLORE(lost_wake_up, .threads = {wait_badly, wake}, .fails = "lost wake-up")
EXPLORE(no_lost_wake_up, .threads = {wait_well, wake})

/* Each tells the other that it sleeps, and looks: under sequential consistency
 * one of them sees the other. */
static void doze(uint32_t *mine, const uint32_t *theirs, uint32_t *sleep_on)
{
    explore_begin();
    store_relaxed(mine, 1u);
    if (!load_relaxed(theirs)) {
        os_futex_wait(sleep_on, 0, -1);
    } else {
        store_relaxed(sleep_on, 1u);
        os_futex_wake(sleep_on, 1);
    }
    explore_end();
}

static uint32_t bed; /* atomic */

static void doze_left(void)
{
    doze(&word, &other, &bed);
}

static void doze_right(void)
{
    doze(&other, &word, &bed);
}

EXPLORE(both_sleep_for_want_of_a_fence, .threads = {doze_left, doze_right},
        .fails = "lost wake-up")

/* --- livelock -------------------------------------------------------------*/

static void give_way_for_ever(void)
{
    explore_begin();
    store_relaxed(&word, 1u);
    while (load_relaxed(&word)) {
        spin_hint();
    }
    explore_end();
}

static void only_look(void)
{
    explore_begin();
    (void)load_relaxed(&word);
    explore_end();
}

EXPLORE(livelock, .threads = {give_way_for_ever, only_look},
        .fails = "livelock")

/* --- data race ------------------------------------------------------------*/

static void write_plain(void)
{
    explore_begin();
    plain = 1;
    store_release(&word, 1u);
    explore_end();
}

static void read_too_early(void)
{
    explore_begin();
    if (load_relaxed(&word)) {
        CHECK_EQ(plain, 1);
    }
    explore_end();
}

static void read_plain(void)
{
    explore_begin();
    if (load_acquire(&word)) {
        CHECK_EQ(plain, 1);
    }
    explore_end();
}

EXPLORE(data_race, .threads = {write_plain, read_too_early},
        .fails = "data race: read of")
EXPLORE(no_data_race, .threads = {write_plain, read_plain})

/* What others use as an atomic is made anew by plain stores. */
static void write_over_an_atomic(void)
{
    explore_begin();
    word = 0;
    explore_end();
}

EXPLORE(an_atomic_written_plainly, .threads = {only_look, write_over_an_atomic},
        .fails = "data race: write to")

static uint32_t many[4];

static void clear_many(void)
{
    explore_begin();
    memset(many, 0, sizeof(many));
    explore_end();
}

static void copy_many(void)
{
    uint32_t copy[4];

    explore_begin();
    memcpy(copy, many, sizeof(copy));
    CHECK_EQ(copy[3], 0);
    explore_end();
}

EXPLORE(data_race_of_memory, .threads = {clear_many, copy_many},
        .fails = "data race")

/* --- memory ---------------------------------------------------------------*/

static void make_block(void)
{
    block = os_alloc(sizeof(*block));
}

static void use_block(void)
{
    explore_begin();
    *block = 1;
    store_release(&word, 1u);
    explore_end();
}

static void free_block(void)
{
    explore_begin();
    os_free(block);
    explore_end();
}

static void free_block_after_use(void)
{
    explore_begin();
    while (!load_acquire(&word)) {
        spin_hint();
    }
    os_free(block);
    explore_end();
}

static void load_from_block(void)
{
    explore_begin();
    (void)load_relaxed(block);
    explore_end();
}

EXPLORE(use_after_free, .setup = make_block, .threads = {use_block, free_block},
        .fails = "use after free")
EXPLORE(no_use_after_free, .setup = make_block,
        .threads = {use_block, free_block_after_use})
EXPLORE(atomic_use_after_free, .setup = make_block,
        .threads = {load_from_block, free_block}, .fails = "use after free")
EXPLORE(double_free, .setup = make_block, .threads = {free_block, free_block},
        .fails = "double free")
EXPLORE(leak, .setup = make_block, .threads = {read_plain}, .fails = "leak")

/* What compares addresses must be ready for this. */
static void renew_block(void)
{
    uint32_t *renewed;

    explore_begin();
    os_free(block);
    renewed = os_alloc(sizeof(*renewed));
    CHECK(renewed != block);
    explore_end();
    os_free(renewed);
}

EXPLORE(memory_is_used_again, .setup = make_block,
        .threads = {renew_block, only_look}, .reuse = true,
        .fails = "failed check: renewed != block")
EXPLORE(memory_is_not_used_again, .setup = make_block,
        .threads = {renew_block, only_look})

/* --- the rest -------------------------------------------------------------*/

static void check_in_vain(void)
{
    explore_begin();
    store_relaxed(&word, 1u);
    CHECK_EQ(load_relaxed(&word), 1);
    explore_end();
}

static void store_two(void)
{
    explore_begin();
    store_relaxed(&word, 2u);
    explore_end();
}

static uint32_t *volatile nowhere;

static void crash(void)
{
    explore_begin();
    if (load_relaxed(&word)) {
        *nowhere = 1;
    }
    explore_end();
}

static void choose(void)
{
    unsigned a, b;

    explore_begin();
    a = explore_choose(3);
    b = explore_choose(4);
    CHECK(a * b != 6);
    explore_end();
}

static void mark_some(void)
{
    explore_begin();
    if (load_relaxed(&word) == 2) {
        MARK("two is seen");
    }
    if (load_relaxed(&word) == 3) {
        MARK("three is seen");
    }
    explore_end();
}

EXPLORE(failed_check, .threads = {check_in_vain, store_two},
        .fails = "failed check: load_relaxed(&word)")
EXPLORE(crashes, .threads = {crash, store_two}, .fails = "crash: signal 11")
EXPLORE(free_choices, .threads = {choose}, .fails = "failed check: a * b")
EXPLORE(reached_mark, .threads = {mark_some, store_two},
        .marks = {"two is seen"})
EXPLORE(unreached_mark, .threads = {mark_some, store_two},
        .marks = {"two is seen", "three is seen"},
        .fails = "unreached mark: no schedule came to \"three is seen\"")

EXPLORE_MAIN()
