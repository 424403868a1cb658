/* SPDX-License-Identifier: MIT */

/*
 * Stacks: the geometry of slots, guards, and what happens where there are no
 * guards or no memory.  What stacks cost is in test_stack_memory.c.
 */

#include "coroutine/slab.h"
#include "coroutine/stack.h"
#include "harness.h"
#include "nth.h"
#include "os/fault.h"
#include "os/memory.h"
#include "os/valgrind.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MANY 100

static void get_many(int size_class, Coroutine **co, int n)
{
    for (int i = 0; i < n; i++) {
        CHECK_EQ(stack_get(size_class, true, &co[i]), 0);
    }
}

static void put_many(Coroutine **co, int n)
{
    for (int i = 0; i < n; i++) {
        stack_put(co[i]);
    }
}

static size_t used(int size_class)
{
    StackStats stats;

    stack_stats(size_class, &stats);
    return stats.used;
}

TEST(sizes_are_rounded_up_to_a_class)
{
    CHECK_EQ(stack_class_for(0), STACK_CLASS_DEFAULT);
    CHECK_EQ(stack_class_for(1), 0);
    CHECK_EQ(stack_class_for(16 << 10), 0);
    CHECK_EQ(stack_class_for((16 << 10) + 1), 1);
    CHECK_EQ(stack_class_for(64 << 10), 2);
    CHECK_EQ(stack_class_for(8 << 20), STACK_CLASS_COUNT - 1);
    CHECK_EQ(stack_class_for((8 << 20) + 1), -EINVAL);
    CHECK_EQ(stack_class_for(SIZE_MAX), -EINVAL);
}

TEST(a_slot_has_what_its_class_says)
{
    for (int c = 0; c < STACK_CLASS_COUNT; c++) {
        Coroutine *co;

        CHECK_EQ(stack_get(c, true, &co), 0);
        CHECK_EQ(co->state, COROUTINE_FREE);
        CHECK_EQ(co->size_class, c);
        CHECK(!co->unguarded);
        CHECK(co->stack_size >= (size_t)16 << 10 << c);
        CHECK_EQ(co->stack_bottom + co->stack_size, (char *)co);
        CHECK_EQ((uintptr_t)co % 64, 0);
        CHECK_EQ((uintptr_t)co->stack_bottom % os_page_size(), 0);
        CHECK_EQ(co->poolable, c == STACK_CLASS_DEFAULT);
        CHECK((char *)co->sp > co->stack_bottom);
        CHECK((char *)co->sp < (char *)co);
        CHECK(co->home == NULL);
        stack_put(co);
    }
}

TEST(slots_do_not_overlap)
{
    Coroutine *co[MANY];

    get_many(0, co, MANY);
    for (int i = 0; i < MANY; i++) {
        memset(co[i]->stack_bottom, i, co[i]->stack_size);
    }
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(co[i]->stack_bottom[0], i);
        CHECK_EQ(co[i]->stack_bottom[co[i]->stack_size - 1], i);
        CHECK_EQ(co[i]->size_class, 0);
    }
    put_many(co, MANY);
}

TEST(at_least_16_kib_below_each_slot_are_guarded)
{
    Coroutine *co[MANY];

    for (int c = 0; c <= STACK_CLASS_DEFAULT; c++) {
        get_many(c, co, MANY);
        for (int i = 0; i < MANY; i++) {
            CHECK(!os_address_guarded(co[i]->stack_bottom));
            CHECK(os_address_guarded(co[i]->stack_bottom - 1));
            CHECK(os_address_guarded(co[i]->stack_bottom - (16 << 10)));
        }
        put_many(co, MANY);
    }
}

TEST(guards_outlive_the_pages)
{
    size_t n = 3000;
    Coroutine **co = calloc(n, sizeof(*co));

    get_many(0, co, (int)n);
    put_many(co, (int)n);
    get_many(0, co, (int)n);
    for (size_t i = 0; i < n; i += 7) {
        CHECK(!co[i]->unguarded);
        CHECK(os_address_guarded(co[i]->stack_bottom - 1));
    }
    put_many(co, (int)n);
    free(co);
}

TEST(the_owner_of_a_guard_is_found)
{
    Coroutine *co[MANY];

    get_many(STACK_CLASS_DEFAULT, co, MANY);
    for (int i = 0; i < MANY; i++) {
        store_relaxed(&co[i]->state, COROUTINE_PARKED);
    }
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(stack_guard_owner(co[i]->stack_bottom - 1), co[i]);
        CHECK_EQ(stack_guard_owner(co[i]->stack_bottom - (16 << 10)), co[i]);
        CHECK_EQ(stack_guard_owner(co[i]->stack_bottom), NULL);
        CHECK_EQ(stack_guard_owner(co[i]), NULL);
    }
    for (int i = 0; i < MANY; i++) {
        store_relaxed(&co[i]->state, COROUTINE_FREE);
    }
    CHECK_EQ(stack_guard_owner(co[0]->stack_bottom - 1), NULL);
    CHECK_EQ(stack_guard_owner(NULL), NULL);
    CHECK_EQ(stack_guard_owner(&co), NULL);
    CHECK_EQ(stack_guard_owner((void *)UINTPTR_MAX), NULL);
    put_many(co, MANY);
}

TEST(the_slot_given_back_last_is_used_first)
{
    Coroutine *co[3], *again;

    get_many(STACK_CLASS_DEFAULT, co, 3);
    stack_put(co[0]);
    stack_put(co[2]);
    stack_put(co[1]);
    CHECK_EQ(stack_get(STACK_CLASS_DEFAULT, true, &again), 0);
    CHECK_EQ(again, co[1]);
    stack_put(again);
    CHECK_EQ(used(STACK_CLASS_DEFAULT), 0);
}

TEST(a_batch_takes_only_what_has_its_pages)
{
    Coroutine *co[MANY], *chain;
    unsigned n;

    /* Of fresh ones one: each would cost a page that may not be needed. */
    CHECK_EQ(stack_get_batch(STACK_CLASS_DEFAULT, 64, &chain), 1);
    stack_put_batch(chain);
    get_many(STACK_CLASS_DEFAULT, co, MANY);
    put_many(co, MANY);
    n = stack_get_batch(STACK_CLASS_DEFAULT, 64, &chain);
    CHECK_EQ(n, 64);
    for (Coroutine *c = chain; n > 0; n--) {
        CHECK_EQ(c->state, COROUTINE_FREE);
        c = c->link.next ? container_of(c->link.next, Coroutine, link) : NULL;
        CHECK_EQ(c == NULL, n == 1);
    }
    stack_put_batch(chain);
    CHECK_EQ(used(STACK_CLASS_DEFAULT), 0);
}

static void count_one(Coroutine *co, void *opaque)
{
    CHECK(co->state == COROUTINE_PARKED);
    ++*(int *)opaque;
}

TEST(only_coroutines_are_reported)
{
    Coroutine *co[MANY];
    int n = 0;

    get_many(1, co, MANY);
    for (int i = 0; i < MANY; i += 2) {
        store_relaxed(&co[i]->state, COROUTINE_PARKED);
    }
    stack_for_each(count_one, &n);
    CHECK_EQ(n, MANY / 2);
    for (int i = 0; i < MANY; i += 2) {
        store_relaxed(&co[i]->state, COROUTINE_FREE);
    }
    put_many(co, MANY);
}

/* --- where something fails ------------------------------------------------*/

/* In a process in which the nth call of some name fails. */
static void get_many_and_put(void)
{
    Coroutine *co[MANY];
    int got = 0;

    for (int i = 0; i < MANY; i++) {
        int result = stack_get(STACK_CLASS_DEFAULT, true, &co[got]);

        CHECK(result == 0 || result == -ENOMEM);
        got += result == 0;
    }
    CHECK(got >= MANY - 1);
    for (int i = 0; i < got; i++) {
        CHECK(!co[i]->unguarded);
        CHECK(os_address_guarded(co[i]->stack_bottom - 1));
    }
    put_many(co, got);
    CHECK_EQ(used(STACK_CLASS_DEFAULT), 0);
}

/* What describes slabs, and the bits of one. */
TEST(creation_survives_failing_allocations)
{
    CHECK(nth_alone(get_many_and_put, ENOMEM, "alloc") >= 2);
}

TEST(creation_survives_failing_mappings)
{
    CHECK(nth_alone(get_many_and_put, ENOMEM, "map") >= 1);
}

TEST(creation_survives_failing_guards)
{
    CHECK(nth_alone(get_many_and_put, ENOMEM, "guard") >= 2);
}

TEST(nothing_is_kept_when_nothing_works)
{
    Coroutine *co;
    StackStats stats;

    for (int i = 0; i < 10; i++) {
        os_fault_arm(1, ENOMEM, "alloc");
        CHECK_EQ(stack_get(3, true, &co), -ENOMEM);
        CHECK(os_fault_fired());
    }
    stack_stats(3, &stats);
    CHECK_EQ(stats.slabs, 0);
}

TEST(without_guards_a_required_one_fails)
{
    StackStats stats;
    Coroutine *co;

    CHECK_EQ(setenv("COAIO_GUARD", "none", 1), 0);
    for (int i = 0; i < 100; i++) {
        CHECK_EQ(stack_get(STACK_CLASS_DEFAULT, true, &co), -ENOMEM);
    }
    stack_stats(STACK_CLASS_DEFAULT, &stats);
    CHECK_EQ(stats.used, 0);
    CHECK(stats.slabs <= 1);
}

TEST(without_guards_a_preferred_one_goes_on)
{
    Coroutine *co[MANY], *guarded;

    CHECK_EQ(setenv("COAIO_GUARD", "none", 1), 0);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < MANY; i++) {
            CHECK_EQ(stack_get(STACK_CLASS_DEFAULT, false, &co[i]), 0);
            CHECK(co[i]->unguarded);
            memset(co[i]->stack_bottom, 1, co[i]->stack_size);
        }
        CHECK_EQ(stack_get(STACK_CLASS_DEFAULT, true, &guarded), -ENOMEM);
        put_many(co, MANY);
        CHECK_EQ(stack_get(STACK_CLASS_DEFAULT, true, &guarded), -ENOMEM);
    }
    CHECK_EQ(used(STACK_CLASS_DEFAULT), 0);
}

/* The line must be there once, so look for it and end by a signal. */
TEST_ABORTS(going_on_without_is_said, "stacks cannot be given guards")
{
    Coroutine *co;

    CHECK_EQ(setenv("COAIO_GUARD", "none", 1), 0);
    CHECK_EQ(stack_get(STACK_CLASS_DEFAULT, false, &co), 0);
    abort();
}

/* As many as guards may split mappings, or 0. */
static size_t splits_at_most(void)
{
    FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
    size_t limit = 0;

    if (file) {
        CHECK_EQ(fscanf(file, "%zu", &limit), 1);
        fclose(file);
    }
    return limit / 4;
}

TEST(a_slot_that_had_no_guard_gets_one_when_it_can)
{
    size_t page = os_page_size(), n = splits_at_most() + 1, done;
    Coroutine *co, *all[MANY];
    char *bottom, *map;
    bool again = false;

    if (os_in_valgrind() || n == 1 || n > 250000) {
        SKIP("the limit on mappings is not to be reached");
    }
    CHECK_EQ(setenv("COAIO_GUARD", "mprotect", 1), 0);
    if (os_guard_kind() != OS_GUARD_MPROTECT) {
        SKIP("mprotect does not guard here");
    }
    map = os_map(n * 2 * page, page);
    CHECK(map != NULL);
    CHECK_EQ(os_guard(map, page, 2 * page, n, &done), OS_GUARD_MPROTECT);
    CHECK(done < n);
    CHECK_EQ(stack_get(STACK_CLASS_DEFAULT, false, &co), 0);
    CHECK(co->unguarded);
    bottom = co->stack_bottom;
    stack_put(co);
    os_unmap(map, n * 2 * page);
    os_unguard(OS_GUARD_MPROTECT, done);

    get_many(STACK_CLASS_DEFAULT, all, MANY);
    for (int i = 0; i < MANY; i++) {
        CHECK(!all[i]->unguarded);
        CHECK(os_address_guarded(all[i]->stack_bottom - 1));
        again |= (char *)all[i]->stack_bottom == bottom;
    }
    CHECK(again);
    put_many(all, MANY);
}

/*
 * Guards that split mappings run into vm.max_map_count.  Creation then fails,
 * and what is given back can be used again.
 */
TEST(split_guards_end_in_an_error)
{
    size_t most = 1 << 20;
    StackStats stats;
    size_t n = 0;
    size_t again = 0;
    Coroutine **co;
    void *block;

    if (os_in_valgrind()) {
        SKIP("Valgrind knows 30,000 mappings at the most");
    }
    CHECK_EQ(setenv("COAIO_GUARD", "mprotect", 1), 0);
    if (os_guard_kind() != OS_GUARD_MPROTECT) {
        SKIP("mprotect does not guard here");
    }
    co = calloc(most, sizeof(*co));
    CHECK(co != NULL);
    while (n < most && stack_get(0, true, &co[n]) == 0) {
        n++;
    }
    CHECK(n > 1000);
    CHECK(n < most);
    /* The rest of the program can still map. */
    block = os_map(1 << 20, os_page_size());
    CHECK(block != NULL);
    os_unmap(block, 1 << 20);
    put_many(co, (int)n);
    while (again < n && stack_get(0, true, &co[again]) == 0) {
        again++;
    }
    CHECK_EQ(again, n);
    put_many(co, (int)n);
    stack_stats(0, &stats);
    CHECK_EQ(stats.used, 0);
    free(co);
}

/* --- threads --------------------------------------------------------------*/

typedef struct Churn {
    pthread_t thread;
    unsigned seed;
    unsigned long rounds;
} Churn;

static void *churn_main(void *opaque)
{
    Churn *churn = opaque;
    Coroutine *co[MANY] = {0};

    for (unsigned long i = 0; i < churn->rounds; i++) {
        int slot = rand_r(&churn->seed) % MANY;

        if (co[slot]) {
            CHECK_EQ(*(Coroutine **)(void *)co[slot]->stack_bottom, co[slot]);
            *(Coroutine **)(void *)co[slot]->stack_bottom = NULL;
            stack_put(co[slot]);
            co[slot] = NULL;
        } else {
            CHECK_EQ(stack_get(slot % 3, true, &co[slot]), 0);
            *(Coroutine **)(void *)co[slot]->stack_bottom = co[slot];
        }
    }
    for (int i = 0; i < MANY; i++) {
        if (co[i]) {
            stack_put(co[i]);
        }
    }
    return NULL;
}

TEST(threads_share_slabs)
{
    Churn churn[4];

    for (int i = 0; i < 4; i++) {
        churn[i].seed = (unsigned)harness_seed() + (unsigned)i;
        churn[i].rounds = harness_load(20000);
        CHECK_EQ(pthread_create(&churn[i].thread, NULL, churn_main, &churn[i]),
                 0);
    }
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(pthread_join(churn[i].thread, NULL), 0);
    }
    for (int c = 0; c < 3; c++) {
        CHECK_EQ(used(c), 0);
    }
}

TEST_MAIN()
