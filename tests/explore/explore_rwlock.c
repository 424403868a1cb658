/* SPDX-License-Identifier: MIT */
/*
 * CoRwlock (sync/rwlock.c), and the brief lock under it (sync/brief.c).
 */
#include "cothread.h"
#include "os/memory.h"
#include "sync/brief.h"

#include <coaio/rwlock.h>
#include <coaio/wake.h>

static CoRwlock rwlock;
static unsigned written; /* rwlock */

static void make_two(void)
{
    co_make_contexts(2);
}

static void make_three(void)
{
    co_make_contexts(3);
}

static void coroutine_fn read_once(void *done)
{
    co_rwlock_rdlock(&rwlock);
    CHECK_EQ(written % 2, 0);
    co_rwlock_unlock(&rwlock);
    *(bool *)done = true;
}

static void coroutine_fn write_once(void *done)
{
    co_rwlock_wrlock(&rwlock);
    written++;
    written++;
    co_rwlock_unlock(&rwlock);
    *(bool *)done = true;
}

CO_THREAD(read_0, 0, read_once)
CO_THREAD(read_2, 2, read_once)
CO_THREAD(write_0, 0, write_once)
CO_THREAD(write_1, 1, write_once)

EXPLORE(a_reader_and_a_writer, .setup = make_two, .threads = {read_0, write_1},
        .marks = {"rwlock: granted to one who waits"},
        .mutants = {
            {MUTANT_RWLOCK_UNLOCK_FORGETS, "lost wake-up", "thread 1 waits",
             false},
            {MUTANT_RWLOCK_NO_FENCE_UNLOCK, "data race", "write_once", false}})

EXPLORE(two_writers, .setup = make_two, .threads = {write_0, write_1},
        .marks = {"rwlock: taken while spinning"},
        .mutants = {
            {MUTANT_RWLOCK_NO_FENCE_LOCK, "data race", "write_once", false}})

EXPLORE(two_readers_and_a_writer, .setup = make_three,
        .threads = {read_0, write_1, read_2}, .stale = 1)

/* --- whoever is the last frees it -----------------------------------------*/

typedef struct Shared {
    CoRwlock lock;
    unsigned users; /* lock */
} Shared;

static Shared *shared;

static void make_shared(void)
{
    co_make_contexts(2);
    shared = os_alloc(sizeof(*shared));
    shared->users = 2;
}

static void coroutine_fn use_and_free(void *done)
{
    bool last;

    co_rwlock_rdlock(&shared->lock);
    co_rwlock_unlock(&shared->lock);
    co_rwlock_wrlock(&shared->lock);
    last = --shared->users == 0;
    co_rwlock_unlock(&shared->lock);
    if (last) {
        os_free(shared);
    }
    *(bool *)done = true;
}

CO_THREAD(use_and_free_0, 0, use_and_free)
CO_THREAD(use_and_free_1, 1, use_and_free)

EXPLORE(the_last_one_frees_it, .setup = make_shared,
        .threads = {use_and_free_0, use_and_free_1}, .stale = 1,
        .mutants = {{MUTANT_RWLOCK_UNLOCK_TOUCHES, "use after free",
                     "co_rwlock_unlock", false}})

/* --- the brief lock -------------------------------------------------------*/

static uint32_t brief;   /* with bits of its owner, that stay */
static unsigned counted; /* brief */
static uint32_t briefly; /* atomic */

static void start_with_bits(void)
{
    brief = BRIEF_OWNERS;
}

static void count_briefly(void)
{
    uint32_t bits;

    explore_begin();
    bits = brief_lock_bits(&brief);
    CHECK_EQ(bits, BRIEF_OWNERS);
    for (uint32_t step = 0; step < 2; step++) {
        store_relaxed(&briefly, step); /* long enough for one to fall asleep */
    }
    counted++;
    brief_unlock_bits(&brief, bits);
    explore_end();
}

static void check_count(void)
{
    CHECK_EQ(brief, BRIEF_OWNERS);
    CHECK_EQ(counted, 2);
}

EXPLORE(two_lock_it_briefly, .setup = start_with_bits,
        .threads = {count_briefly, count_briefly}, .finish = check_count,
        .marks = {"brief: a sleeper is woken"},
        .mutants = {
            {MUTANT_BRIEF_NO_WAKE, "lost wake-up", "brief_lock_slow", false}})

/* --- downgrade: who wants to read comes in --------------------------------*/

static Coroutine *writer;

static void coroutine_fn downgrade(void *done)
{
    co_rwlock_wrlock(&rwlock);
    writer = coroutine_self();
    explore_begin();
    co_rwlock_downgrade(&rwlock);
    coroutine_yield(); /* until the reader has it, too */
    co_rwlock_unlock(&rwlock);
    *(bool *)done = true;
}

static void downgrade_0(void)
{
    aio_context_attach(co_context[0]);
    coroutine_enter(coroutine_create(downgrade, &co_done[0]));
    while (!co_done[0]) {
        aio_poll(co_context[0], true);
    }
    explore_end();
    aio_context_unref(co_context[0]);
}

static void coroutine_fn read_and_wake(void *done)
{
    co_rwlock_rdlock(&rwlock);
    aio_co_wake(writer);
    co_rwlock_unlock(&rwlock);
    *(bool *)done = true;
}

CO_THREAD(read_and_wake_1, 1, read_and_wake)

EXPLORE(a_writer_downgrades, .setup = make_two,
        .threads = {downgrade_0, read_and_wake_1},
        .marks = {"rwlock: granted to one who waits"},
        .mutants = {
            {MUTANT_RWLOCK_DOWNGRADE, "lost wake-up", "thread 1 waits", false}})

/* --- upgrade --------------------------------------------------------------*/

static void coroutine_fn upgrade(void *done)
{
    unsigned before;

    co_rwlock_rdlock(&rwlock);
    before = written;
    co_rwlock_upgrade(&rwlock);
    CHECK(written == before || written == before + 2);
    written++;
    written++;
    co_rwlock_unlock(&rwlock);
    *(bool *)done = true;
}

CO_THREAD(upgrade_0, 0, upgrade)

EXPLORE(a_reader_upgrades, .setup = make_two, .threads = {upgrade_0, write_1})

EXPLORE_MAIN()
