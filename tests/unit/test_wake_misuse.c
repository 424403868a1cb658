/* SPDX-License-Identifier: MIT */
/*
 * Misuse of wake-ups: each case must abort with a line that names who had
 * woken the coroutine, or what it lacks.
 */
#include "coroutine/coroutine_int.h"
#include "harness.h"
#include "loopthread.h"
#include "os/thread.h"

#include <coaio/coroutine.h>
#include <coaio/wake.h>

static AioContext *attach_new(const char *name)
{
    AioContextOptions options = {.size = sizeof(options), .name = name};
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    aio_context_attach(ctx);
    return ctx;
}

static void park(void *opaque)
{
    (void)opaque;
    coroutine_yield();
}

static void do_nothing(void *opaque)
{
    (void)opaque;
}

static Coroutine *new_named(CoroutineEntry *entry, void *opaque)
{
    CoroutineOptions options = {.size = sizeof(options), .name = "victim"};
    Coroutine *co;

    CHECK_EQ(coroutine_create_full(&co, entry, opaque, &options), 0);
    return co;
}

static Coroutine *parked(void)
{
    Coroutine *co = new_named(park, NULL);

    coroutine_enter(co);
    return co;
}

static Coroutine *finished(void)
{
    Coroutine *co = coroutine_create(do_nothing, NULL);

    coroutine_enter(co);
    return co;
}

/* --- twice ----------------------------------------------------------------*/

static void wake_twice(void *opaque)
{
    aio_co_wake(opaque);
    aio_co_wake(opaque);
}

TEST_ABORTS(waking_twice_in_a_coroutine,
            "^coaio: aio_co_wake: coroutine \"victim\" has been woken already "
            "by aio_co_wake and has not run yet$")
{
    attach_new("home");
    coroutine_enter(coroutine_create(wake_twice, parked()));
}

TEST_ABORTS(entering_in_no_context,
            "^coaio: aio_co_enter: the context is NULL$")
{
    aio_co_enter(NULL, coroutine_create(wake_twice, NULL));
}

TEST_ABORTS(scheduling_in_no_context,
            "^coaio: aio_co_schedule: the context is NULL$")
{
    aio_co_schedule(NULL, coroutine_create(wake_twice, NULL));
}

static void move_nowhere(void *opaque)
{
    (void)opaque;
    co_reschedule_self(NULL);
}

TEST_ABORTS(moving_to_no_context,
            "^coaio: co_reschedule_self: the context is NULL$")
{
    attach_new("home");
    coroutine_enter(coroutine_create(move_nowhere, NULL));
}

TEST_ABORTS(waking_twice_from_another_thread,
            "^coaio: aio_co_wake: coroutine \"victim\" has been woken already "
            "by aio_co_wake and has not run yet$")
{
    attach_new("home");
    run_in_thread(wake_twice, parked());
}

static void wake_one(void *opaque)
{
    aio_co_wake(opaque);
}

TEST_ABORTS(waking_from_two_threads,
            "^coaio: aio_co_wake: coroutine \"victim\" has been woken already "
            "by aio_co_wake and has not run yet$")
{
    Coroutine *co;

    attach_new("home");
    co = parked();
    run_in_thread(wake_one, co);
    run_in_thread(wake_one, co);
}

TEST_ABORTS(waking_a_scheduled_one,
            "^coaio: aio_co_wake: coroutine \"victim\" has been woken already "
            "by aio_co_schedule and has not run yet$")
{
    AioContext *ctx = attach_new("home");
    Coroutine *co = parked();

    aio_co_schedule(ctx, co);
    aio_co_wake(co);
}

TEST_ABORTS(scheduling_twice,
            "^coaio: aio_co_schedule: coroutine \"victim\" has been woken "
            "already by aio_co_schedule and has not run yet$")
{
    AioContext *ctx = attach_new("home");
    Coroutine *co = parked();

    aio_co_schedule(ctx, co);
    aio_co_schedule(ctx, co);
}

TEST_ABORTS(scheduling_a_new_one_in_two_contexts,
            "^coaio: aio_co_schedule: coroutine \"victim\" has been woken "
            "already by aio_co_schedule and has not run yet$")
{
    Coroutine *co = new_named(park, NULL);
    AioContext *one, *two;

    CHECK_EQ(aio_context_new(&one, NULL), 0);
    CHECK_EQ(aio_context_new(&two, NULL), 0);
    aio_co_schedule(one, co);
    aio_co_schedule(two, co);
}

static void co_enter_one(void *opaque)
{
    aio_co_enter(coroutine_context(opaque), opaque);
}

TEST_ABORTS(scheduling_one_that_co_enter_has_woken,
            "^coaio: aio_co_schedule: coroutine \"victim\" has been woken "
            "already by aio_co_enter and has not run yet$")
{
    AioContext *ctx = attach_new("home");
    Coroutine *co = parked();

    run_in_thread(co_enter_one, co);
    aio_co_schedule(ctx, co);
}

TEST_ABORTS(co_enter_of_a_scheduled_one,
            "^coaio: aio_co_enter: coroutine \"victim\" has been woken already "
            "by aio_co_schedule and has not run yet$")
{
    AioContext *ctx = attach_new("home");
    Coroutine *co = parked();

    aio_co_schedule(ctx, co);
    aio_co_enter(ctx, co);
}

static void wake_self_and_reschedule(void *opaque)
{
    aio_co_wake(coroutine_self());
    co_reschedule_self(opaque);
}

TEST_ABORTS(rescheduling_oneself_when_woken,
            "^coaio: co_reschedule_self: coroutine \"victim\" has been woken "
            "already by aio_co_wake and has not run yet$")
{
    AioContext *other;

    attach_new("home");
    CHECK_EQ(aio_context_new(&other, NULL), 0);
    coroutine_enter(new_named(wake_self_and_reschedule, other));
}

/* --- without a home, or not there at all ----------------------------------*/

TEST_ABORTS(waking_one_without_a_home,
            "^coaio: aio_co_wake: coroutine \"victim\" has no home to resume "
            "in: give it one with aio_co_enter\\(\\) or "
            "aio_co_schedule\\(\\)$")
{
    aio_co_wake(parked());
}

TEST_ABORTS(waking_a_new_one_without_a_home,
            "^coaio: aio_co_wake: coroutine \"victim\" has no home to resume")
{
    aio_co_wake(new_named(park, NULL));
}

TEST_ABORTS(waking_null, "^coaio: aio_co_wake: the coroutine is NULL$")
{
    aio_co_wake(NULL);
}

TEST_ABORTS(scheduling_null, "^coaio: aio_co_schedule: the coroutine is NULL$")
{
    aio_co_schedule(attach_new("home"), NULL);
}

TEST_ABORTS(co_enter_of_null, "^coaio: aio_co_enter: the coroutine is NULL$")
{
    aio_co_enter(attach_new("home"), NULL);
}

TEST_ABORTS(waking_a_finished_one,
            "^coaio: aio_co_wake: 0x[0-9a-f]+ is not a live coroutine: it has "
            "finished or was deleted$")
{
    attach_new("home");
    aio_co_wake(finished());
}

TEST_ABORTS(scheduling_a_finished_one,
            "^coaio: aio_co_schedule: 0x[0-9a-f]+ is not a live coroutine")
{
    AioContext *ctx = attach_new("home");

    aio_co_schedule(ctx, finished());
}

TEST_ABORTS(co_enter_of_a_finished_one,
            "^coaio: aio_co_enter: 0x[0-9a-f]+ is not a live coroutine")
{
    AioContext *ctx = attach_new("home");

    aio_co_enter(ctx, finished());
}

TEST_ABORTS(rescheduling_outside_coroutines,
            "^coaio: co_reschedule_self: called outside a coroutine")
{
    co_reschedule_self(attach_new("home"));
}

/* --- woken, and then something else ---------------------------------------*/

static void enter_it(void *opaque)
{
    coroutine_enter(opaque);
}

TEST_ABORTS(entering_one_that_another_thread_has_woken,
            "^coaio: coroutine_enter: coroutine \"victim\" has been woken "
            "already by aio_co_wake and has not run yet$")
{
    Coroutine *co;

    attach_new("home");
    co = parked();
    run_in_thread(wake_one, co);
    coroutine_enter(co);
}

static void wake_and_enter_if_inactive(void *opaque)
{
    aio_co_wake(opaque);
    coroutine_enter_if_inactive(opaque);
}

TEST_ABORTS(enter_if_inactive_of_one_that_is_woken,
            "^coaio: coroutine_enter: coroutine \"victim\" has been woken "
            "already by aio_co_wake and has not run yet$")
{
    attach_new("home");
    coroutine_enter(coroutine_create(wake_and_enter_if_inactive, parked()));
}

/* It was woken while it ran, and ends without yielding. */
static sem_t running, woken;

static void end_late(void *opaque)
{
    (void)opaque;
    gate_open(&running);
    gate_pass(&woken);
}

TEST_ABORTS(ending_after_another_thread_has_woken_it,
            "^coaio: coroutine \"victim\" has finished, but was woken by "
            "aio_co_wake and would have to run again$")
{
    Coroutine *co = new_named(end_late, NULL);
    LoopThread loop;

    gate_init(&running);
    gate_init(&woken);
    loop_thread_start(&loop, "home");
    aio_bh_schedule_oneshot(loop.ctx, enter_it, co);
    gate_pass(&running);
    aio_co_wake(co);
    gate_open(&woken);
    loop_flush(loop.ctx);
}

/* --- running, where nobody can be asked to move it ------------------------*/

static BareThread runner;

/* A coroutine without a home that runs on a bare thread, for ever. */
static Coroutine *running_elsewhere(void)
{
    Coroutine *co = new_named(end_late, NULL);

    gate_init(&running);
    gate_init(&woken);
    bare_thread_start(&runner, enter_it, co);
    gate_pass(&running);
    return co;
}

TEST_ABORTS(scheduling_one_that_runs_elsewhere_without_a_home,
            "^coaio: aio_co_schedule: coroutine \"victim\" has no home and "
            "runs on another thread: it can only be moved when it has returned "
            "to the one who entered it$")
{
    Coroutine *co = running_elsewhere();

    aio_co_schedule(attach_new("home"), co);
}

TEST_ABORTS(co_enter_of_one_that_runs_elsewhere_without_a_home,
            "^coaio: aio_co_enter: coroutine \"victim\" has no home and runs "
            "on another thread")
{
    Coroutine *co = running_elsewhere();

    aio_co_enter(attach_new("home"), co);
}

/*
 * Two threads misuse it at once: one schedules it, the other enters it, and
 * neither sees the other in time.  Here is what the loop finds then.
 */
TEST_ABORTS(resuming_one_that_was_entered_meanwhile,
            "^coaio: aio_co_schedule: coroutine \"victim\" is entered already$")
{
    Coroutine *co = running_elsewhere();

    coroutine_claim(co, "aio_co_schedule");
    coroutine_resume_claimed(os_thread(), co);
}

TEST_MAIN()
