/* SPDX-License-Identifier: MIT */

/*
 * What stacks cost: mappings, resident memory, system calls; and that memory
 * goes back when load falls.  Measured with /proc/self, not with time.
 */

#include "coroutine/slab.h"
#include "coroutine/stack.h"
#include "guards.h"
#include "harness.h"
#include "os/fault.h"
#include "os/memory.h"
#include "os/valgrind.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WARM_MOST 1024 /* free slots that may keep their pages */

static Coroutine **co;
static size_t n_co;

static size_t resident(void)
{
    unsigned long size, pages;
    FILE *stream = fopen("/proc/self/statm", "re");

    CHECK(stream != NULL);
    CHECK_EQ(fscanf(stream, "%lu %lu", &size, &pages), 2);
    fclose(stream);
    return pages * os_page_size();
}

/*
 * The tools keep memory of their own for each byte of ours, and emulators for
 * each page that is mapped, even if nobody has touched it.
 */
static void need_plain_memory(void)
{
    size_t size = (size_t)1 << 30;
    size_t before, after;
    char *map;

    if (COAIO_ASAN || COAIO_TSAN || os_in_valgrind()) {
        SKIP("resident memory is the tool's here");
    }
    before = resident();
    map = os_map(size, os_page_size());
    CHECK(map != NULL);
    after = resident();
    os_unmap(map, size);
    if (after - before > 16 * os_page_size()) {
        SKIP("mapping without touching takes memory here, as in emulators");
    }
}

static size_t mappings(void)
{
    FILE *stream = fopen("/proc/self/maps", "re");
    size_t n = 0;
    int c;

    CHECK(stream != NULL);
    while ((c = getc(stream)) != EOF) {
        n += c == '\n';
    }
    fclose(stream);
    return n;
}

/* As many as the load says, but enough for the bound that is checked. */
static size_t at_least(size_t least, size_t n)
{
    n = harness_load(n);
    return n > least ? n : least;
}

static void get_all(int size_class, size_t n)
{
    n_co = n;
    co = calloc(n, sizeof(*co));
    CHECK(co != NULL);
    memset(co, 0, n * sizeof(*co));
    for (size_t i = 0; i < n; i++) {
        CHECK_EQ(stack_get(size_class, true, &co[i]), 0);
    }
}

static void put_all(void)
{
    unsigned seed = (unsigned)harness_seed();

    /* In any order. */
    for (size_t i = n_co - 1; i > 0; i--) {
        size_t j = (size_t)rand_r(&seed) % (i + 1);
        Coroutine *other = co[j];

        co[j] = co[i];
        co[i] = other;
    }
    for (size_t i = 0; i < n_co; i++) {
        stack_put(co[i]);
    }
    free(co);
}

TEST(a_hundred_thousand_need_few_mappings)
{
    StackStats stats;
    size_t before;

    needs_madvise_guards();
    before = mappings();
    get_all(STACK_CLASS_DEFAULT, COAIO_TSAN ? 2000 : harness_load(100000));
    CHECK(mappings() < before + 100);
    stack_stats(STACK_CLASS_DEFAULT, &stats);
    CHECK(stats.slabs < 25);
    CHECK_EQ(stats.used, n_co);
    put_all();
}

TEST(a_stack_in_use_costs_one_page)
{
    size_t before;

    need_plain_memory();
    CHECK_EQ(stack_get(STACK_CLASS_DEFAULT, true, &(Coroutine *){NULL}), 0);
    before = resident();
    get_all(STACK_CLASS_DEFAULT, at_least(4 * WARM_MOST, 20000));
    /* The array of pointers is ours; the rest is less than 1 %. */
    CHECK(resident() - before <
          n_co * (os_page_size() + sizeof(*co) + os_page_size() / 100));
    put_all();
}

TEST(slots_that_were_never_used_cost_nothing)
{
    size_t before;
    Coroutine *first;

    need_plain_memory();
    CHECK_EQ(stack_get(STACK_CLASS_COUNT - 1, true, &first), 0);
    before = resident();
    for (int c = 0; c < STACK_CLASS_COUNT; c++) {
        Coroutine *one;

        CHECK_EQ(stack_get(c, true, &one), 0);
    }
    /* Kernels count to some 30 pages for each processor. */
    CHECK(resident() < before + 256 * os_page_size());
}

TEST(memory_goes_back_when_load_falls)
{
    size_t before;
    StackStats stats;

    need_plain_memory();
    before = resident();
    get_all(STACK_CLASS_DEFAULT, at_least(4 * WARM_MOST, 20000));
    for (size_t i = 0; i < n_co; i++) {
        memset(co[i]->stack_bottom, 1, co[i]->stack_size / 2);
    }
    put_all();
    CHECK(resident() - before < (WARM_MOST + 64) * ((size_t)64 << 10));
    stack_stats(STACK_CLASS_DEFAULT, &stats);
    CHECK_EQ(stats.used, 0);
    CHECK(stats.free_backed <= WARM_MOST);
}

TEST(empty_slabs_are_unmapped)
{
    StackStats most, least;

    get_all(0, harness_load(30000));
    stack_stats(0, &most);
    put_all();
    stack_stats(0, &least);
    CHECK_EQ(least.used, 0);
    if (n_co == 30000) {
        CHECK(most.slabs > 8);
        /* Those of the slots that are kept, and a spare one. */
        CHECK(least.slabs <= 6);
    }
    CHECK(least.free_backed <= WARM_MOST);
}

/* The large ones keep little more than the small ones. */
TEST(large_stacks_keep_their_top_only)
{
    size_t before;

    need_plain_memory();
    before = resident();
    get_all(6, at_least(100, 400)); /* 1 MiB */
    for (size_t i = 0; i < n_co; i++) {
        memset(co[i]->stack_bottom, 1, co[i]->stack_size);
    }
    CHECK(resident() - before > n_co << 20);
    put_all();
    CHECK(resident() - before < ((size_t)64 << 20) + n_co * (80 << 10));
}

TEST(a_stale_pointer_reads_as_free)
{
    Coroutine *keep[64];

    /* So that no slab is unmapped; the rest loses its pages. */
    get_all(1, 5000);
    for (size_t i = 0; i < n_co; i++) {
        store_relaxed(&co[i]->state, COROUTINE_PARKED);
    }
    for (size_t i = 0; i < 64; i++) {
        keep[i] = co[i * n_co / 64];
    }
    for (size_t i = 0; i < n_co; i++) {
        store_relaxed(&co[i]->state, COROUTINE_FREE);
        if (i % (n_co / 64 + 1) != 0) {
            stack_put(co[i]);
        }
    }
    for (size_t i = 0; i < 64; i++) {
        CHECK_EQ(load_relaxed(&keep[i]->state), COROUTINE_FREE);
    }
    free(co);
}

TEST(a_warm_burst_makes_no_system_call)
{
    uint64_t before;

    get_all(STACK_CLASS_DEFAULT, 1000);
    put_all();
    get_all(STACK_CLASS_DEFAULT, 1000);
    put_all();
    before = os_counter(OS_COUNT_SYSCALLS);
    get_all(STACK_CLASS_DEFAULT, 1000);
    put_all();
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS), before);
}

TEST(guards_come_in_batches)
{
    uint64_t before;

    needs_madvise_guards();
    if (os_in_valgrind()) {
        SKIP("Valgrind does not know the call that guards many at once");
    }
    before = os_counter(OS_COUNT_SYSCALLS);
    get_all(STACK_CLASS_DEFAULT, 2048);
    /* A map, its advice, and a guard call for up to 64 slots. */
    CHECK(os_counter(OS_COUNT_SYSCALLS) - before < 2048 / 8);
    put_all();
}

TEST_MAIN()
