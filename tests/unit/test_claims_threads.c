/* SPDX-License-Identifier: MIT */

/*
 * Thread-locals and errno in coroutines that change threads: CO_TLS_... and
 * co_errno() reach those of the thread that runs the coroutine now.
 */

#include "harness.h"

#include <coaio/coaio.h>

#include <errno.h>

CO_TLS_DEFINE_STATIC(int, number)
CO_TLS_DEFINE(int *, pointer)

static IOThread *threads[2];
static AioContext *here;
static bool done; /* written and read on the case's thread */

/* Each thread has its own values, in whatever order they are visited. */
static void coroutine_fn visit(void *opaque)
{
    static int values[3];
    int *addresses[3];
    AioContext *places[3] = { here, iothread_context(threads[0]),
                              iothread_context(threads[1]) };

    (void)opaque;
    for (int i = 0; i < 3; i++) {
        co_reschedule_self(places[i]);
        CHECK_EQ(get_number(), 0);
        set_number(i + 1);
        *get_ptr_pointer() = &values[i];
        addresses[i] = get_ptr_number();
    }
    for (unsigned long i = 0; i < harness_load(1000); i++) {
        int place = (int)(i * i % 3);
        int before = get_number();

        co_reschedule_self(places[place]);
        CHECK_EQ(get_number(), place + 1);
        CHECK_EQ(get_ptr_number(), addresses[place]);
        CHECK_EQ(get_pointer(), &values[place]);
        set_number(before);
        set_number(place + 1);
    }
    co_reschedule_self(here);
    done = true;
}

/*
 * The function may compute the address of errno once, but co_errno() does not:
 * so it is asked after each move, against what that thread was told to have.
 */
static void coroutine_fn visit_errno(void *opaque)
{
    AioContext *place = iothread_context(threads[0]);
    void (**set)(int) = opaque;

    for (unsigned long i = 0; i < harness_load(1000); i++) {
        co_reschedule_self(place);
        (*set)(EXDEV);
        CHECK_EQ(co_errno(), EXDEV);
        co_reschedule_self(here);
        (*set)(ENOTTY);
        CHECK_EQ(co_errno(), ENOTTY);
    }
    co_reschedule_self(here);
    done = true;
}

static __attribute__((noinline)) void set_errno(int value)
{
    errno = value;
}

static void run(CoroutineEntry *entry, void *opaque)
{
    CHECK_EQ(aio_context_new(&here, NULL), 0);
    aio_context_attach(here);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(iothread_new(&threads[i], "visited", NULL), 0);
    }
    coroutine_enter(coroutine_create(entry, opaque));
    while (!done) {
        aio_poll(here, true);
    }
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(iothread_stop(threads[i]), 0);
        iothread_unref(threads[i]);
    }
    aio_context_unref(here);
}

TEST(thread_locals_are_those_of_the_thread_that_runs_now)
{
    run(visit, NULL);
}

TEST(errno_is_that_of_the_thread_that_runs_now)
{
    void (*set)(int) = set_errno;

    run(visit_errno, &set);
}

TEST_MAIN()
