/* SPDX-License-Identifier: MIT */
/*
 * CoWait: a wait ends once, whoever comes first; ended before, during and
 * after the coroutine has yielded; by completion, timeout and cancellation.
 */
#include "loops.h"

#include "loop/wait.h"

#include <errno.h>

typedef struct Wait {
    CoWait wait;
    int64_t timeout_ns;
    int64_t result;
    bool done;
    int cancelled; /* calls of the hook */
    int error;     /* of the last */
} Wait;

static void cancel(CoWait *wait, int error)
{
    Wait *w = (Wait *)wait->object;

    w->cancelled++;
    w->error = error;
    co_wait_end(wait, error, "test");
}

static void leave_to_completion(CoWait *wait, int error)
{
    Wait *w = (Wait *)wait->object;

    w->cancelled++;
    w->error = error;
}

static void park(Wait *w, CoWaitCancel *hook)
{
    co_wait_init(&w->wait, "Thing", w, hook);
    w->result = co_wait_park(&w->wait, w->timeout_ns);
    w->done = true;
}

static void waiter(void *opaque)
{
    park(opaque, cancel);
}

static void stubborn(void *opaque)
{
    park(opaque, leave_to_completion);
}

static void uncancellable(void *opaque)
{
    park(opaque, NULL);
}

TEST(ends_with_the_result_of_its_completion)
{
    Wait w = {.timeout_ns = -1};

    here_open();
    begin(waiter, &w);
    CHECK(!w.done);
    CHECK(!co_wait_ended(&w.wait));
    CHECK(co_wait_end(&w.wait, 42, "test"));
    CHECK(w.done);
    CHECK_EQ(w.result, 42);
    here_close();
}

static void ends_itself(void *opaque)
{
    Wait *w = opaque;

    co_wait_init(&w->wait, "Thing", w, cancel);
    CHECK(co_wait_end(&w->wait, 7, "test"));
    CHECK(co_wait_ended(&w->wait));
    CHECK(!co_wait_end(&w->wait, 8, "test"));
    w->result = co_wait_park(&w->wait, w->timeout_ns);
    w->done = true;
}

TEST(may_end_before_it_is_parked)
{
    Wait w = {.timeout_ns = -1};

    here_open();
    begin(ends_itself, &w);
    CHECK(w.done);
    CHECK_EQ(w.result, 7);
    here_close();
}

TEST(may_end_before_it_is_parked_with_a_timeout)
{
    Wait w = {.timeout_ns = 0};

    here_open();
    begin(ends_itself, &w);
    CHECK(w.done);
    CHECK_EQ(w.result, 7);
    here_close();
}

TEST(ends_once)
{
    Wait w = {.timeout_ns = -1};

    here_open();
    begin(waiter, &w);
    CHECK(co_wait_claim_end(&w.wait, 1));
    CHECK(!co_wait_claim_end(&w.wait, 2));
    CHECK(!co_wait_end(&w.wait, 3, "test"));
    CHECK(!w.done);
    co_wait_wake(&w.wait, "test");
    CHECK(w.done);
    CHECK_EQ(w.result, 1);
    here_close();
}

TEST(settling_is_ending)
{
    Wait w = {.timeout_ns = -1};

    here_open();
    begin(uncancellable, &w);
    co_wait_settle(&w.wait, -EIO);
    CHECK(co_wait_ended(&w.wait));
    co_wait_wake(&w.wait, "test");
    CHECK_EQ(w.result, -EIO);
    here_close();
}

TEST(times_out)
{
    Wait w = {.timeout_ns = 1000};

    here_open();
    begin(waiter, &w);
    while (!w.done) {
        aio_poll(here, true);
    }
    CHECK_EQ(w.result, -ETIMEDOUT);
    CHECK_EQ(w.cancelled, 1);
    CHECK_EQ(w.error, -ETIMEDOUT);
    here_close();
}

TEST(a_timeout_of_zero_waits_for_one_turn_of_the_loop)
{
    Wait w = {.timeout_ns = 0};

    here_open();
    begin(waiter, &w);
    CHECK(!w.done);
    aio_poll(here, true);
    CHECK(w.done);
    CHECK_EQ(w.result, -ETIMEDOUT);
    here_close();
}

/* A context that is destroyed with an armed timer aborts. */
TEST(a_wait_that_ends_in_time_leaves_no_timer)
{
    Wait w = {.timeout_ns = INT64_MAX};

    here_open();
    begin(waiter, &w);
    aio_poll(here, false);
    CHECK(!w.done);
    CHECK(co_wait_end(&w.wait, 5, "test"));
    CHECK_EQ(w.result, 5);
    CHECK_EQ(w.cancelled, 0);
    here_close();
}

TEST(a_timeout_that_comes_too_late_changes_nothing)
{
    Wait w = {.timeout_ns = 0};

    here_open();
    begin(waiter, &w);
    CHECK(co_wait_claim_end(&w.wait, 5));
    aio_poll(here, true); /* the timer runs, and finds that it has ended */
    CHECK(!w.done);
    CHECK_EQ(w.cancelled, 0);
    co_wait_wake(&w.wait, "test");
    CHECK_EQ(w.result, 5);
    here_close();
}

TEST(a_completion_that_comes_too_late_is_told)
{
    Wait w = {.timeout_ns = 0};

    here_open();
    begin(waiter, &w);
    CHECK(co_wait_claim_end(&w.wait, -ETIMEDOUT));
    CHECK(!co_wait_end(&w.wait, 1, "test"));
    co_wait_wake(&w.wait, "test");
    CHECK_EQ(w.result, -ETIMEDOUT);
    here_close();
}

static void cancels_itself(void *opaque)
{
    Wait *w = opaque;

    CHECK(!co_wait_cancel(coroutine_self(), -ECANCELED));
    co_wait_init(&w->wait, "Thing", w, cancel);
    CHECK(!co_wait_cancel(coroutine_self(), -ECANCELED));
    w->result = co_wait_park(&w->wait, w->timeout_ns);
    CHECK(!co_wait_cancel(coroutine_self(), -ECANCELED));
    w->done = true;
    coroutine_yield();
}

TEST(cancel_before_during_and_after)
{
    Wait w = {.timeout_ns = -1};
    Coroutine *co;

    here_open();
    co = begin(cancels_itself, &w);
    CHECK(co_wait_cancel(co, -ECANCELED));
    CHECK(w.done);
    CHECK_EQ(w.result, -ECANCELED);
    CHECK_EQ(w.cancelled, 1);
    CHECK(!co_wait_cancel(co, -ECANCELED));
    CHECK_EQ(w.cancelled, 1);
    coroutine_enter(co);
    here_close();
}

TEST(cancel_after_the_end_and_before_the_wake)
{
    Wait w = {.timeout_ns = -1};
    Coroutine *co;

    here_open();
    co = begin(waiter, &w);
    CHECK(co_wait_claim_end(&w.wait, 3));
    CHECK(!co_wait_cancel(co, -ECANCELED));
    co_wait_wake(&w.wait, "test");
    CHECK_EQ(w.result, 3);
    CHECK_EQ(w.cancelled, 0);
    here_close();
}

TEST(cancel_of_what_cannot_be_cancelled)
{
    Wait w = {.timeout_ns = -1};
    Coroutine *co;

    here_open();
    co = begin(uncancellable, &w);
    CHECK(!co_wait_cancel(co, -ECANCELED));
    CHECK(co_wait_end(&w.wait, 3, "test"));
    CHECK_EQ(w.result, 3);
    here_close();
}

/* A transfer in the kernel ends by its completion, also when cancelled. */
TEST(a_hook_may_leave_the_end_to_a_completion)
{
    Wait w = {.timeout_ns = 0};

    here_open();
    begin(stubborn, &w);
    aio_poll(here, true);
    CHECK_EQ(w.cancelled, 1);
    CHECK(!w.done);
    CHECK(co_wait_end(&w.wait, 512, "test"));
    CHECK_EQ(w.result, 512);
    here_close();
}

/* --- across threads ------------------------------------------------------*/

static void remote_waiter(void *opaque)
{
    Wait *w = opaque;

    co_wait_init(&w->wait, "Thing", w, cancel);
    store_release(&w->done, true); /* published */
    w->result = co_wait_park(&w->wait, w->timeout_ns);
    job_done();
}

/* Ended from another thread, at times before it has yielded. */
TEST(ends_from_another_thread)
{
    unsigned rounds = harness_load(2000);

    loops_start(1);
    for (unsigned i = 0; i < rounds; i++) {
        Wait w = {.timeout_ns = -1};

        start(loop(0), remote_waiter, &w);
        until(load_acquire(&w.done));
        CHECK(co_wait_end(&w.wait, i, "test"));
        loops_join(1);
        CHECK_EQ(w.result, i);
    }
    loops_stop();
}

/* One of timeout and completion wins, and the waiter learns which. */
TEST(a_timeout_races_with_a_completion)
{
    unsigned rounds = harness_load(2000);

    loops_start(1);
    for (unsigned i = 0; i < rounds; i++) {
        Wait w = {.timeout_ns = i % 64 * 100};
        bool first;

        start(loop(0), remote_waiter, &w);
        until(load_acquire(&w.done));
        first = co_wait_claim_end(&w.wait, 1);
        if (first) {
            co_wait_wake(&w.wait, "test");
        }
        loops_join(1);
        CHECK_EQ(w.result, first ? 1 : -ETIMEDOUT);
        CHECK(w.cancelled <= 1);
    }
    loops_stop();
}

/* --- misuse --------------------------------------------------------------*/

TEST_ABORTS(resumed_by_a_stranger,
            "coroutine \"sleeper\" waits for Thing 0x[0-9a-f]+, and was "
            "resumed by somebody else")
{
    Wait w = {.timeout_ns = -1};

    here_open();
    coroutine_enter(begin_named("sleeper", waiter, &w));
}

TEST_ABORTS(resumed_by_a_stranger_before_its_timeout,
            "coroutine \"sleeper\" waits for Thing 0x[0-9a-f]+, and was "
            "resumed by somebody else")
{
    Wait w = {.timeout_ns = INT64_MAX};

    here_open();
    aio_co_wake(begin_named("sleeper", waiter, &w));
}

TEST_ABORTS(without_a_home,
            "coroutine \"vagabond\" would have to wait for Thing "
            "0x[0-9a-f]+, but has no home .* aio_co_enter\\(\\)")
{
    Wait w = {.timeout_ns = -1};

    begin_named("vagabond", waiter, &w);
}

TEST_ABORTS(outside_a_coroutine, "Thing 0x[0-9a-f]+: called outside")
{
    Wait w = {.timeout_ns = -1};

    here_open();
    waiter(&w);
}

TEST_MAIN()
