/* SPDX-License-Identifier: MIT */
/*
 * Thread-locals in coroutines that change threads: the CO_TLS_ macros,
 * co_errno() and the library's own os_thread() answer for the thread that runs
 * the coroutine now.  A compiler that kept the address of a thread-local across
 * a yield would fail here.
 */
#include "harness.h"
#include "loopthread.h"
#include "os/thread.h"

#include <coaio/coroutine.h>
#include <coaio/tls.h>
#include <coaio/wake.h>
#include <errno.h>
#include <string.h>

typedef struct Pair {
    long first;
    const char *second;
} Pair;

CO_TLS_DECLARE(int, tls_shared)
CO_TLS_DEFINE(int, tls_shared)
CO_TLS_DEFINE_STATIC(unsigned long, tls_own)
CO_TLS_DEFINE_STATIC(Pair, tls_pair)

static void check_zero(void *arg)
{
    (void)arg;
    CHECK_EQ(get_tls_shared(), 0);
    CHECK_EQ(get_tls_own(), 0);
    CHECK_EQ(get_tls_pair().first, 0);
    CHECK(get_tls_pair().second == NULL);
}

TEST(each_thread_has_its_own_and_begins_with_zeroes)
{
    check_zero(NULL);
    set_tls_shared(1);
    set_tls_own(2);
    set_tls_pair((Pair){3, "four"});
    run_in_thread(check_zero, NULL);
    CHECK_EQ(get_tls_shared(), 1);
    CHECK_EQ(get_tls_own(), 2);
    CHECK_EQ(get_tls_pair().first, 3);
    CHECK_STR(get_tls_pair().second, "four");
}

TEST(the_pointer_is_that_of_the_variable)
{
    *get_ptr_tls_own() = 5;
    CHECK_EQ(get_tls_own(), 5);
    set_tls_own(6);
    CHECK_EQ(*get_ptr_tls_own(), 6);
    CHECK_EQ(get_ptr_tls_own(), get_ptr_tls_own());
}

/* --- moving between bare threads ------------------------------------------*/

enum {
    THREADS = 6
};

typedef struct Visitor {
    Coroutine *co;
    int visits;
    int seen[THREADS];
    unsigned long *addresses[THREADS];
} Visitor;

/* All in one function, so that the compiler has every temptation. */
static void visit(void *opaque)
{
    Visitor *visitor = opaque;

    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(get_tls_shared(), i + 1);
        CHECK_EQ(get_tls_pair().first, -(i + 1));
        visitor->addresses[i] = get_ptr_tls_own();
        set_tls_own(get_tls_own() + 100);
        coroutine_yield();
    }
}

static void enter_visitor(void *arg)
{
    Visitor *visitor = arg;
    int number = ++visitor->visits;

    set_tls_shared(number);
    set_tls_own((unsigned long)number);
    set_tls_pair((Pair){-number, NULL});
    coroutine_enter(visitor->co);
    CHECK_EQ(get_tls_own(), number + 100);
    CHECK_EQ(get_ptr_tls_own(), visitor->addresses[number - 1]);
}

TEST(a_coroutine_sees_the_variables_of_the_thread_that_runs_it)
{
    Visitor visitor = {.visits = 0};

    visitor.co = coroutine_create(visit, &visitor);
    enter_visitor(&visitor);
    for (int i = 1; i < THREADS; i++) {
        run_in_thread(enter_visitor, &visitor);
    }
    CHECK_EQ(visitor.visits, THREADS);
    coroutine_enter(visitor.co);
}

/* --- moving between contexts ----------------------------------------------*/

static void set_number(void *arg)
{
    set_tls_own((unsigned long)(uintptr_t)arg);
}

typedef struct Commuter {
    AioContext *ends[2];
    unsigned long hops;
    sem_t done;
} Commuter;

static void commute(void *opaque)
{
    Commuter *c = opaque;

    for (unsigned long i = 0; i < c->hops; i++) {
        unsigned long *before = get_ptr_tls_own();

        CHECK_EQ(*before, 1 + i % 2);
        co_reschedule_self(c->ends[(i + 1) % 2]);
        CHECK_EQ(get_tls_own(), 1 + (i + 1) % 2);
        CHECK(get_ptr_tls_own() != before);
    }
    gate_open(&c->done);
}

/* The same with what the library itself goes by, twice in one function. */
static void commute_within(void *opaque)
{
    Commuter *c = opaque;

    for (unsigned long i = 0; i < c->hops; i++) {
        CHECK_EQ(os_thread()->context, c->ends[i % 2]);
        co_reschedule_self(c->ends[(i + 1) % 2]);
        CHECK_EQ(os_thread()->context, c->ends[(i + 1) % 2]);
    }
    gate_open(&c->done);
}

static void run_commuter(CoroutineEntry *entry)
{
    Commuter c = {.hops = harness_load(10000)};
    LoopThread loops[2];

    gate_init(&c.done);
    for (int i = 0; i < 2; i++) {
        loop_thread_start(&loops[i], "end");
        c.ends[i] = loops[i].ctx;
        loop_call(loops[i].ctx, set_number, (void *)(uintptr_t)(i + 1));
    }
    aio_co_enter(loops[0].ctx, coroutine_create(entry, &c));
    gate_pass(&c.done);
    loop_thread_stop(&loops[0]);
    loop_thread_stop(&loops[1]);
}

TEST(a_coroutine_that_moves_itself_sees_the_new_variables)
{
    run_commuter(commute);
}

TEST(a_coroutine_that_moves_itself_is_on_the_new_thread)
{
    run_commuter(commute_within);
}

/* --- errno ----------------------------------------------------------------*/

static void read_errno(void *opaque)
{
    Visitor *visitor = opaque;

    for (int i = 0; i < THREADS; i++) {
        visitor->seen[i] = co_errno();
        errno = 0; /* of whatever thread */
        coroutine_yield();
    }
}

static void enter_with_errno(void *arg)
{
    Visitor *visitor = arg;

    errno = 1000 + visitor->visits++;
    coroutine_enter(visitor->co);
}

TEST(co_errno_is_that_of_the_thread_that_runs_it)
{
    Visitor visitor = {.visits = 0};

    visitor.co = coroutine_create(read_errno, &visitor);
    enter_with_errno(&visitor);
    for (int i = 1; i < THREADS; i++) {
        run_in_thread(enter_with_errno, &visitor);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(visitor.seen[i], 1000 + i);
    }
    coroutine_enter(visitor.co);
}

TEST(co_errno_outside_coroutines_is_errno)
{
    errno = 42;
    CHECK_EQ(co_errno(), 42);
    errno = 0;
    CHECK_EQ(co_errno(), 0);
}

TEST_MAIN()
