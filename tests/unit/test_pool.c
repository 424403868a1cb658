/* SPDX-License-Identifier: MIT */

/*
 * The pool: slots move between threads in batches, without drain or bloat; a
 * pooled coroutine inherits nothing; COAIO_DEBUG=1 keeps freed ones away.
 */

#include "coroutine/pool.h"
#include "coroutine/stack.h"
#include "harness.h"
#include "loopthread.h"
#include "os/fault.h"

#include <errno.h>
#include <stdlib.h>

#define BATCH 1000

static size_t used(void)
{
    StackStats stats;

    stack_stats(STACK_CLASS_DEFAULT, &stats);
    return stats.used;
}

static void nothing(void *opaque)
{
    (void)opaque;
}

static void yield_once(void *opaque)
{
    (void)opaque;
    coroutine_yield();
}

static void run_one(void)
{
    coroutine_enter(coroutine_create(nothing, NULL));
}

TEST(a_finished_one_is_used_again)
{
    Coroutine *first = coroutine_create(nothing, NULL);
    Coroutine *second;

    coroutine_enter(first);
    second = coroutine_create(nothing, NULL);
    CHECK_EQ(second, first);
    coroutine_enter(second);
}

TEST(a_pooled_one_inherits_nothing)
{
    CoroutineOptions options = {.size = sizeof(options), .name = "first"};
    Coroutine *first, *second;

    CHECK_EQ(coroutine_create_full(&first, yield_once, &options, &options), 0);
    coroutine_enter(first);
    coroutine_enter(first);
    second = coroutine_create(nothing, NULL);
    CHECK_EQ(second, first);
    CHECK_STR(coroutine_name(second), NULL);
    CHECK_EQ(coroutine_context(second), NULL);
    CHECK(!coroutine_entered(second));
    CHECK_EQ(second->state, COROUTINE_NEW);
    CHECK_EQ(second->locks_held, 0);
    CHECK(second->wait == NULL);
    CHECK(second->on_yield == NULL);
    CHECK(load_relaxed(&second->scheduled) == NULL);
    coroutine_enter(second);
}

TEST(a_warm_pool_makes_no_call_and_no_locked_operation)
{
    uint64_t calls, locked;

    run_one();
    calls = os_counter(OS_COUNT_SYSCALLS) + os_counter(OS_COUNT_ALLOCATIONS);
    locked = os_locked_operations();
    for (int i = 0; i < BATCH; i++) {
        run_one();
    }
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS) + os_counter(OS_COUNT_ALLOCATIONS),
             calls);
    CHECK_EQ(os_locked_operations(), locked);
}

TEST(a_thread_keeps_a_bounded_number)
{
    Coroutine *co[BATCH];

    for (int i = 0; i < BATCH; i++) {
        co[i] = coroutine_create(nothing, NULL);
    }
    for (int i = 0; i < BATCH; i++) {
        coroutine_enter(co[i]);
        CHECK(os_thread()->pool_size <= POOL_LIMIT);
    }
    CHECK(used() <= POOL_LIMIT);
}

static void run_some(void *arg)
{
    (void)arg;
    for (int i = 0; i < 200; i++) {
        run_one();
    }
    CHECK(used() > 0);
}

TEST(a_thread_gives_back_what_it_has_when_it_ends)
{
    for (int i = 0; i < 20; i++) {
        run_in_thread(run_some, NULL);
        CHECK_EQ(used(), 0);
    }
}

/* --- from one thread to another -------------------------------------------*/

typedef struct Relay {
    Coroutine *co[BATCH];
    unsigned long rounds;
    sem_t full;
    sem_t empty;
    size_t most_used;
    size_t most_slabs;
} Relay;

static void create_all(void *opaque)
{
    Relay *relay = opaque;

    for (unsigned long r = 0; r < relay->rounds; r++) {
        gate_pass(&relay->empty);
        for (int i = 0; i < BATCH; i++) {
            relay->co[i] = coroutine_create(nothing, NULL);
        }
        gate_open(&relay->full);
    }
}

static void finish_all(void *opaque)
{
    Relay *relay = opaque;
    StackStats stats;

    for (unsigned long r = 0; r < relay->rounds; r++) {
        gate_pass(&relay->full);
        for (int i = 0; i < BATCH; i++) {
            coroutine_enter(relay->co[i]);
        }
        stack_stats(STACK_CLASS_DEFAULT, &stats);
        if (stats.used > relay->most_used) {
            relay->most_used = stats.used;
        }
        if (stats.slabs > relay->most_slabs) {
            relay->most_slabs = stats.slabs;
        }
        gate_open(&relay->empty);
    }
}

TEST(created_here_and_finished_there_neither_drains_nor_bloats)
{
    BareThread creator, finisher;
    Relay relay = {.rounds = harness_load(100)};
    StackStats stats;

    gate_init(&relay.full);
    gate_init(&relay.empty);
    gate_open(&relay.empty);
    bare_thread_start(&creator, create_all, &relay);
    bare_thread_start(&finisher, finish_all, &relay);
    bare_thread_join(&creator);
    bare_thread_join(&finisher);

    /* The batches of both threads; BATCH slots fit in five slabs. */
    CHECK(relay.most_used <= 2 * POOL_LIMIT);
    CHECK(relay.most_slabs <= 6);
    CHECK_EQ(used(), 0);
    stack_stats(STACK_CLASS_DEFAULT, &stats);
    CHECK(stats.free_slots <= 4 * BATCH);
}

/* --- COAIO_DEBUG ----------------------------------------------------------*/

TEST(debugging_keeps_a_finished_one_out_of_use)
{
    Coroutine *first;

    CHECK_EQ(setenv("COAIO_DEBUG", "1", 1), 0);
    first = coroutine_create(nothing, NULL);
    coroutine_enter(first);
    for (int i = 0; i < 256; i++) {
        Coroutine *other = coroutine_create(nothing, NULL);

        CHECK(other != first);
        coroutine_enter(other);
    }
    CHECK_EQ(first->state, COROUTINE_FREE);
}

TEST(debugging_is_bounded)
{
    CHECK_EQ(setenv("COAIO_DEBUG", "1", 1), 0);
    for (int i = 0; i < 5000; i++) {
        run_one();
    }
    CHECK(used() <= 256 + 2 * POOL_LIMIT);
}

TEST_ABORTS(debugging_recognises_a_finished_one, "not a live coroutine")
{
    Coroutine *first;

    CHECK_EQ(setenv("COAIO_DEBUG", "1", 1), 0);
    first = coroutine_create(nothing, NULL);
    coroutine_enter(first);
    for (int i = 0; i < 100; i++) {
        run_one();
    }
    coroutine_enter(first);
}

/* --- other classes, failures ----------------------------------------------*/

TEST(other_sizes_go_back_to_their_slabs)
{
    CoroutineOptions options = {.size = sizeof(options)};
    StackStats stats;
    Coroutine *co;

    for (int c = 0; c < STACK_CLASS_COUNT; c++) {
        options.stack_size = (size_t)16 << 10 << c;
        CHECK_EQ(coroutine_create_full(&co, nothing, NULL, &options), 0);
        CHECK_EQ(co->size_class, c);
        coroutine_enter(co);
        stack_stats(c, &stats);
        CHECK_EQ(stats.used,
                 c == STACK_CLASS_DEFAULT ? os_thread()->pool_size : 0);
    }
}

TEST(an_unguarded_one_is_never_pooled)
{
    CoroutineOptions options = {
        .size = sizeof(options),
        .guard = COROUTINE_GUARD_PREFERRED,
    };
    Coroutine *co;

    CHECK_EQ(setenv("COAIO_GUARD", "none", 1), 0);
    for (int i = 0; i < 100; i++) {
        CHECK_EQ(coroutine_create_full(&co, nothing, NULL, &options), 0);
        CHECK(co->unguarded && !co->poolable);
        coroutine_enter(co);
        CHECK_EQ(os_thread()->pool_size, 0);
    }
    CHECK_EQ(used(), 0);
    CHECK_EQ(coroutine_create_full(&co, nothing, NULL, NULL), -ENOMEM);
}

static void run_unprepared(void *opaque)
{
    Coroutine *co[10];

    (void)opaque;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 10; i++) {
            co[i] = coroutine_create(nothing, NULL);
            CHECK_EQ(os_thread()->pool_size, 0);
        }
        for (int i = 0; i < 10; i++) {
            coroutine_enter(co[i]);
            CHECK_EQ(os_thread()->pool_size, 0);
        }
    }
    CHECK(!os_thread()->prepared);
}

/* Nobody would learn of its end: what it had pooled was lost. */
TEST(a_thread_that_cannot_be_prepared_pools_nothing)
{
    os_fault_arm(1, EAGAIN, "pthread_key_create");
    run_in_thread(run_unprepared, NULL);
    CHECK(os_fault_fired());
    CHECK_EQ(used(), 0);
}

TEST(a_failed_refill_is_an_error_and_leaks_nothing)
{
    CoroutineOptions options = {.size = sizeof(options)};
    Coroutine *co;

    for (uint64_t nth = 1; nth <= 4; nth++) {
        os_fault_arm(nth, ENOMEM, NULL);
        if (coroutine_create_full(&co, nothing, NULL, &options) == 0) {
            coroutine_delete(co);
        }
        os_fault_fired();
    }
    CHECK_EQ(coroutine_create_full(&co, nothing, NULL, &options), 0);
    coroutine_enter(co);
    CHECK_EQ(used(), os_thread()->pool_size);
}

TEST_MAIN()
