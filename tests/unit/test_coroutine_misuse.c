/* SPDX-License-Identifier: MIT */
/*
 * Misuse of coroutines: each case must abort with a line that names the
 * parties.  A finished coroutine has to be recognised as long as its slot is
 * not in use again; with COAIO_DEBUG=1 that is for a while also where others
 * are made afterwards.
 */
#include "harness.h"
#include "loopthread.h"

#include <coaio/coroutine.h>
#include <coaio/mutex.h>
#include <coaio/wake.h>
#include <stdlib.h>

static void do_nothing(void *opaque)
{
    (void)opaque;
}

static void park(void *opaque)
{
    (void)opaque;
    coroutine_yield();
}

static Coroutine *new_named(const char *name, CoroutineEntry *entry,
                            void *opaque)
{
    CoroutineOptions options = {.size = sizeof(options), .name = name};
    Coroutine *co;

    CHECK_EQ(coroutine_create_full(&co, entry, opaque, &options), 0);
    return co;
}

static Coroutine *finished(void)
{
    Coroutine *co = new_named("ended", do_nothing, NULL);

    coroutine_enter(co);
    return co;
}

static Coroutine *deleted(void)
{
    Coroutine *co = new_named("deleted", do_nothing, NULL);

    coroutine_delete(co);
    return co;
}

static AioContext *attach_new(const char *name)
{
    AioContextOptions options = {.size = sizeof(options), .name = name};
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    aio_context_attach(ctx);
    return ctx;
}

/* --- entering one that is entered -----------------------------------------*/

static void enter_self(void *opaque)
{
    (void)opaque;
    coroutine_enter(coroutine_self());
}

TEST_ABORTS(entering_oneself,
            "^coaio: coroutine_enter: coroutine \"ouro\" is entered already; "
            "the caller is coroutine \"ouro\"$")
{
    coroutine_enter(new_named("ouro", enter_self, NULL));
}

static void enter_other(void *opaque)
{
    coroutine_enter(opaque);
}

static void enter_back(void *opaque)
{
    (void)opaque;
    coroutine_enter(new_named("inner", enter_other, coroutine_self()));
}

TEST_ABORTS(entering_the_enterer,
            "^coaio: coroutine_enter: coroutine \"outer\" is entered already; "
            "the caller is coroutine \"inner\"$")
{
    coroutine_enter(new_named("outer", enter_back, NULL));
}

static sem_t is_running;
static sem_t never;

static void run_for_ever(void *opaque)
{
    (void)opaque;
    gate_open(&is_running);
    gate_pass(&never);
}

static void enter_in_thread(void *arg)
{
    coroutine_enter(arg);
}

TEST_ABORTS(entering_one_that_runs_in_another_thread,
            "^coaio: coroutine_enter: coroutine \"busy\" is entered already; "
            "the caller is nobody$")
{
    Coroutine *co = new_named("busy", run_for_ever, NULL);
    BareThread bare;

    gate_init(&is_running);
    gate_init(&never);
    bare_thread_start(&bare, enter_in_thread, co);
    gate_pass(&is_running);
    coroutine_enter(co);
}

/* --- entering what is not there -------------------------------------------*/

TEST_ABORTS(entering_null, "^coaio: coroutine_enter: the coroutine is NULL$")
{
    coroutine_enter(NULL);
}

TEST_ABORTS(entering_one_that_has_finished,
            "^coaio: coroutine_enter: 0x[0-9a-f]+ is not a live coroutine: it "
            "has finished or was deleted$")
{
    coroutine_enter(finished());
}

TEST_ABORTS(entering_one_that_was_deleted,
            "^coaio: coroutine_enter: 0x[0-9a-f]+ is not a live coroutine")
{
    coroutine_enter(deleted());
}

static void finish_in_thread(void *arg)
{
    Coroutine **co = arg;

    *co = finished();
}

/* The thread's pool has gone back to the slabs by then. */
TEST_ABORTS(entering_one_that_has_finished_in_a_thread_that_ended,
            "^coaio: coroutine_enter: 0x[0-9a-f]+ is not a live coroutine")
{
    Coroutine *co;

    run_in_thread(finish_in_thread, &co);
    coroutine_enter(co);
}

static void make_others(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        coroutine_enter(coroutine_create(do_nothing, NULL));
    }
}

/* Its slot would be the next to be used, but COAIO_DEBUG=1 keeps it out. */
TEST_ABORTS(debug_recognises_a_finished_one_after_others_were_made,
            "^coaio: coroutine_enter: 0x[0-9a-f]+ is not a live coroutine")
{
    Coroutine *co, *other;

    setenv("COAIO_DEBUG", "1", 1);
    co = finished();
    make_others(100);
    other = coroutine_create(park, NULL);
    CHECK(other != co);
    coroutine_enter(other);
    coroutine_enter(co);
}

TEST_ABORTS(debug_recognises_a_deleted_one_after_others_were_made,
            "^coaio: aio_co_wake: 0x[0-9a-f]+ is not a live coroutine")
{
    Coroutine *co;

    setenv("COAIO_DEBUG", "1", 1);
    co = deleted();
    make_others(100);
    aio_co_wake(co);
}

/* What is kept out of use is bounded: the slots come back in the end. */
TEST(debug_gives_slots_back_after_a_while)
{
    Coroutine *co, *other = NULL;

    setenv("COAIO_DEBUG", "1", 1);
    co = finished();
    for (int i = 0; i < 10000 && other != co; i++) {
        other = coroutine_create(do_nothing, NULL);
        coroutine_enter(other);
    }
    CHECK_EQ(other, co);
}

TEST_ABORTS(enter_if_inactive_of_null,
            "^coaio: coroutine_enter_if_inactive: the coroutine is NULL$")
{
    coroutine_enter_if_inactive(NULL);
}

TEST_ABORTS(enter_if_inactive_of_a_finished_one,
            "^coaio: coroutine_enter_if_inactive: 0x[0-9a-f]+ is not a live")
{
    coroutine_enter_if_inactive(finished());
}

/* --- entering one that somebody has woken ---------------------------------*/

TEST_ABORTS(entering_one_that_is_scheduled,
            "^coaio: coroutine_enter: coroutine \"late\" has been woken "
            "already by aio_co_schedule and has not run yet$")
{
    AioContext *ctx = attach_new("home");
    Coroutine *co = new_named("late", park, NULL);

    aio_co_schedule(ctx, co);
    coroutine_enter(co);
}

static void wake_and_enter(void *opaque)
{
    aio_co_wake(opaque);
    coroutine_enter(opaque);
}

TEST_ABORTS(entering_one_that_is_deferred,
            "^coaio: coroutine_enter: coroutine \"late\" has been woken "
            "already by aio_co_wake and has not run yet$")
{
    Coroutine *co;

    attach_new("home");
    co = new_named("late", park, NULL);
    coroutine_enter(co);
    coroutine_enter(coroutine_create(wake_and_enter, co));
}

static void enter_in_loop(void *arg)
{
    coroutine_enter(arg);
}

TEST_ABORTS(entering_one_that_is_on_its_way_elsewhere,
            "^coaio: coroutine_enter: coroutine \"mover\" has been woken "
            "already by aio_co_schedule and has not run yet$")
{
    AioContext *target;
    LoopThread loop;
    Coroutine *co;

    attach_new("home");
    co = new_named("mover", park, NULL);
    CHECK_EQ(aio_context_new(&target, NULL), 0);
    loop_thread_start(&loop, "other");
    aio_co_schedule(target, co);
    loop_call(loop.ctx, enter_in_loop, co);
}

/* --- entering in the wrong place ------------------------------------------*/

TEST_ABORTS(entering_one_with_a_home_without_a_context,
            "^coaio: coroutine_enter: coroutine \"local\" lives in context "
            "\"home\" and this thread has no context: use aio_co_wake\\(\\) "
            "or aio_co_enter\\(\\)$")
{
    Coroutine *co;

    attach_new("home");
    co = new_named("local", park, NULL);
    coroutine_enter(co);
    run_in_thread(enter_in_thread, co);
}

TEST_ABORTS(entering_a_new_one_with_a_home_without_a_context,
            "^coaio: coroutine_enter: coroutine \"local\" lives in context "
            "\"home\" and this thread has no context")
{
    attach_new("home");
    run_in_thread(enter_in_thread, new_named("local", park, NULL));
}

/* --- yielding -------------------------------------------------------------*/

TEST_ABORTS(yielding_outside,
            "^coaio: coroutine_yield: called outside a coroutine: there is "
            "nobody to yield to$")
{
    coroutine_yield();
}

TEST_ABORTS(yielding_outside_after_a_coroutine_has_run,
            "^coaio: coroutine_yield: called outside a coroutine")
{
    coroutine_enter(coroutine_create(park, NULL));
    coroutine_yield();
}

/* --- finishing ------------------------------------------------------------*/

static CoMutex mutexes[3];

static void lock_some(void *opaque)
{
    int n = *(int *)opaque;

    for (int i = 0; i < n; i++) {
        co_mutex_lock(&mutexes[i]);
    }
}

TEST_ABORTS(finishing_with_a_lock,
            "^coaio: coroutine \"greedy\" has finished with 1 lock held$")
{
    int n = 1;

    coroutine_enter(new_named("greedy", lock_some, &n));
}

TEST_ABORTS(finishing_with_locks,
            "^coaio: coroutine \"greedy\" has finished with 3 locks held$")
{
    int n = 3;

    coroutine_enter(new_named("greedy", lock_some, &n));
}

static void wake_self_and_end(void *opaque)
{
    (void)opaque;
    aio_co_wake(coroutine_self());
}

TEST_ABORTS(finishing_while_woken,
            "^coaio: coroutine \"restless\" has finished, but was woken by "
            "aio_co_wake and would have to run again$")
{
    attach_new("home");
    coroutine_enter(new_named("restless", wake_self_and_end, NULL));
}

static void schedule_self_and_end(void *opaque)
{
    aio_co_schedule(opaque, coroutine_self());
}

TEST_ABORTS(finishing_while_scheduled_elsewhere,
            "^coaio: coroutine \"restless\" has finished, but was woken by "
            "aio_co_schedule and would have to run again$")
{
    AioContext *ctx;

    attach_new("home");
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    coroutine_enter(new_named("restless", schedule_self_and_end, ctx));
}

/* --- deleting -------------------------------------------------------------*/

TEST_ABORTS(deleting_one_that_has_begun,
            "^coaio: coroutine_delete: coroutine \"begun\" has begun, and ends "
            "only by returning from its entry function$")
{
    Coroutine *co = new_named("begun", park, NULL);

    coroutine_enter(co);
    coroutine_delete(co);
}

static void delete_self(void *opaque)
{
    (void)opaque;
    coroutine_delete(coroutine_self());
}

TEST_ABORTS(deleting_oneself,
            "^coaio: coroutine_delete: coroutine \"begun\" has begun")
{
    coroutine_enter(new_named("begun", delete_self, NULL));
}

TEST_ABORTS(deleting_null, "^coaio: coroutine_delete: the coroutine is NULL$")
{
    coroutine_delete(NULL);
}

TEST_ABORTS(deleting_one_that_has_finished,
            "^coaio: coroutine_delete: 0x[0-9a-f]+ is not a live coroutine")
{
    coroutine_delete(finished());
}

TEST_ABORTS(deleting_twice,
            "^coaio: coroutine_delete: 0x[0-9a-f]+ is not a live coroutine")
{
    coroutine_delete(deleted());
}

TEST_ABORTS(deleting_one_that_is_scheduled,
            "^coaio: coroutine_delete: coroutine \"due\" has been woken "
            "already by aio_co_schedule and has not run yet$")
{
    AioContext *ctx = attach_new("home");
    Coroutine *co = new_named("due", park, NULL);

    aio_co_schedule(ctx, co);
    coroutine_delete(co);
}

/* --- asking about what is not there ---------------------------------------*/

TEST_ABORTS(asking_a_finished_one_whether_it_is_entered,
            "^coaio: coroutine_entered: 0x[0-9a-f]+ is not a live coroutine")
{
    coroutine_entered(finished());
}

TEST_ABORTS(asking_a_finished_one_for_its_context,
            "^coaio: coroutine_context: 0x[0-9a-f]+ is not a live coroutine")
{
    coroutine_context(finished());
}

TEST_ABORTS(asking_a_finished_one_for_its_name,
            "^coaio: coroutine_name: 0x[0-9a-f]+ is not a live coroutine")
{
    coroutine_name(finished());
}

TEST_ABORTS(asking_null, "^coaio: coroutine_entered: the coroutine is NULL$")
{
    coroutine_entered(NULL);
}

TEST_MAIN()
