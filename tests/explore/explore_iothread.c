/* SPDX-License-Identifier: MIT */
/*
 * IOThread (loop/iothread.c): starting it, and stopping it while others post
 * to it, delete its timers, and wake or take away what is parked on it.
 */
#include "base/atomic.h"
#include "explore.h"
#include "loop/context.h"
#include "os/memory.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <coaio/iothread.h>
#include <coaio/semaphore.h>
#include <coaio/timer.h>
#include <coaio/wait.h>
#include <coaio/wake.h>
#include <string.h>

static IOThread *iothread;
static AioContext *ctx; /* the I/O thread's */
static AioContext *own; /* of the second thread, if it has one */
static AioBH *first, *bh;
static AioTimer *timer;
static Coroutine *parked;
static AioContext *resumed_in;
static uint32_t posted; /* atomic; before iothread_stop() was called */
static bool ran;
static size_t left;

static void note(void *opaque)
{
    (void)opaque;
    ran = true;
}

static void start(void)
{
    CHECK_EQ(iothread_new(&iothread, "io", NULL), 0);
    ctx = iothread_context(iothread);
}

/* --- starting -------------------------------------------------------------*/

static void start_and_stop(void)
{
    explore_begin();
    start();
    CHECK_EQ(iothread_stop(iothread), 0);
    explore_end();
    iothread_unref(iothread);
}

EXPLORE(started_and_stopped, .threads = {start_and_stop},
        .mutants = {{MUTANT_IOTHREAD_STARTED_RELAXED, "data race",
                     "await_start", false}})

/* --- stopping while work comes --------------------------------------------*/

static void do_nothing(void *opaque)
{
    (void)opaque;
}

static void stop_and_look(void)
{
    uint32_t before;

    start();
    first = aio_bh_new(ctx, do_nothing, NULL);
    bh = aio_bh_new(ctx, note, NULL);
    explore_begin();
    before = load_acquire(&posted);
    CHECK_EQ(iothread_stop(iothread), 0);
    if (before) {
        CHECK(ran);
    }
    explore_end();
    aio_bh_delete(first);
    aio_bh_delete(bh);
    iothread_unref(iothread);
}

/* The first wakes it, the other comes when it is on its way. */
static void schedule(void)
{
    explore_begin();
    aio_bh_schedule(first);
    aio_bh_schedule(bh);
    store_release(&posted, 1u);
    explore_end();
}

EXPLORE(stopped_while_work_comes, .threads = {stop_and_look, schedule},
        .marks = {"iothread: it runs what is due before it ends"},
        .mutants = {
            {MUTANT_IOTHREAD_STOPPING_LATE, "lost wake-up", "stop_as", false},
            {MUTANT_IOTHREAD_NO_LAST_PASS, "failed check: ran", "stop_and_look",
             false},
        })

/* --- stopped by two -------------------------------------------------------*/

static void stop_one(void)
{
    CHECK_EQ(iothread_stop(iothread), 0);
    CHECK(load_acquire(&ctx->stopped));
}

static void start_and_stop_with_another(void)
{
    start();
    explore_begin();
    stop_one();
    explore_end();
    iothread_unref(iothread);
}

static void stop_too(void)
{
    explore_begin();
    stop_one();
    explore_end();
}

EXPLORE(stopped_by_two, .threads = {start_and_stop_with_another, stop_too},
        .mutants = {
            {MUTANT_IOTHREAD_STOP_UNLOCKED, "failed check", "stop_one", false}})

/* Who drops the last reference stops it. */
static void start_and_unref(void)
{
    start();
    iothread_ref(iothread);
    explore_begin();
    iothread_unref(iothread);
    explore_end();
}

static void unref_too(void)
{
    explore_begin();
    iothread_unref(iothread);
    explore_end();
    context_reap();
}

EXPLORE(let_go_by_two, .threads = {start_and_unref, unref_too})

/* --- a timer of it --------------------------------------------------------*/

static void start_with_a_timer(void)
{
    start();
    timer = os_alloc(sizeof(*timer));
    aio_timer_init(timer, ctx, AIO_CLOCK_MONOTONIC, note, NULL);
    aio_timer_mod_ns(timer, INT64_MAX);
    explore_begin();
    CHECK_EQ(iothread_stop(iothread), 0);
    explore_end();
    iothread_unref(iothread);
}

static void delete_timer(void)
{
    explore_begin();
    aio_timer_del(timer);
    os_free(timer);
    explore_end();
}

EXPLORE(stopped_while_a_timer_is_deleted,
        .threads = {start_with_a_timer, delete_timer},
        .marks = {"timer: deleted when the home thread has ended"},
        .mutants = {{MUTANT_TIMER_NOT_STOPPED, "lost wake-up", "await_deletion",
                     false}})

/* --- a coroutine that is parked on it -------------------------------------*/

static void coroutine_fn park(void *opaque)
{
    (void)opaque;
    coroutine_yield();
    resumed_in = aio_context_current();
    ran = true;
}

static void enter_parked(void *opaque)
{
    (void)opaque;
    parked = coroutine_create(park, NULL);
    coroutine_enter(parked);
}

static void start_with_a_coroutine(void)
{
    start();
    aio_wait_bh_oneshot(ctx, enter_parked, NULL);
}

static void stop_under_a_coroutine(void)
{
    start_with_a_coroutine();
    explore_begin();
    left = iothread_stop(iothread);
    explore_end();
    CHECK(left <= 1);
    iothread_unref(iothread);
}

static void begin_own(void)
{
    CHECK_EQ(aio_context_new(&own, NULL), 0);
    aio_context_attach(own);
    explore_begin();
}

static void end_own_when_it_ran(void)
{
    while (!ran) {
        aio_poll(own, true);
    }
    explore_end();
    while (aio_poll(own, false)) {
    }
    aio_context_unref(own);
}

static void take_away(void)
{
    begin_own();
    aio_co_schedule(own, parked);
    end_own_when_it_ran();
    CHECK(resumed_in == own);
}

EXPLORE(stopped_while_one_is_taken_away,
        .threads = {stop_under_a_coroutine, take_away},
        .marks = {"wake: forwarded from its home",
                  "wake: a post to a thread that has ended is taken back",
                  "iothread: coroutines are left"},
        .mutants = {
            {MUTANT_STOP_NO_FENCE, "lost wake-up", "await_epoll", true}})

/* The report says what those wait for that are left, and of one that is taken
 * away, and waits elsewhere, nothing that was. */

static CoSemaphore units;

static void release_one(void *opaque)
{
    (void)opaque;
    co_semaphore_release(&units, 1);
}

static void coroutine_fn wait_for_one(void)
{
    aio_bh_schedule_oneshot(own, release_one, NULL);
    co_semaphore_acquire(&units, 1);
}

static void coroutine_fn park_and_wait(void *opaque)
{
    (void)opaque;
    coroutine_yield();
    resumed_in = aio_context_current();
    wait_for_one();
    wait_for_one(); /* with a record that lies where that of the first was */
    ran = true;
}

static void enter_parked_that_waits(void *opaque)
{
    (void)opaque;
    parked = coroutine_create(park_and_wait, NULL);
    coroutine_enter(parked);
}

static void stop_under_one_that_waits(void)
{
    start();
    co_semaphore_init(&units, 0);
    aio_wait_bh_oneshot(ctx, enter_parked_that_waits, NULL);
    explore_begin();
    left = iothread_stop(iothread);
    explore_end();
    CHECK(left <= 1);
    iothread_unref(iothread);
}

EXPLORE(stopped_while_one_is_taken_away_and_waits,
        .threads = {stop_under_one_that_waits, take_away},
        .marks = {"iothread: coroutines are left"},
        .mutants = {
            {MUTANT_IOTHREAD_HOME_FIRST, "crash", "note_one", true}})

/* The other way round: it has waited elsewhere, and comes when the thread has
 * ended and leaves another one behind. */

/* Deeper down than what is called later, with a record of the wait that nothing
 * overwrites but use_the_stack(). */
static NOINLINE void coroutine_fn wait_deep_down(void)
{
    char frame[4096];

    memset(frame, 1, sizeof(frame));
    wait_for_one();
    memset(frame, 2, sizeof(frame));
}

static NOINLINE void use_the_stack(void)
{
    char frame[8192];

    memset(frame, 1, sizeof(frame));
    __asm__ volatile("" : : "r"(frame) : "memory");
}

static void coroutine_fn wait_and_come(void *opaque)
{
    (void)opaque;
    wait_deep_down();
    use_the_stack();
    ran = true;
    co_reschedule_self(ctx);
}

static void stop_under_another(void)
{
    co_semaphore_init(&units, 0);
    start_with_a_coroutine();
    explore_begin();
    left = iothread_stop(iothread);
    explore_end();
    CHECK(left >= 1);
    iothread_unref(iothread);
}

static void send_there(void)
{
    begin_own();
    coroutine_enter(coroutine_create(wait_and_come, NULL));
    end_own_when_it_ran();
}

EXPLORE(stopped_while_one_comes,
        .threads = {stop_under_another, send_there}, .leaks = true,
        .marks = {"iothread: coroutines are left",
                  "iothread: one has come while it was looked at"},
        .mutants = {{MUTANT_IOTHREAD_ONE_LOOK, "crash", "note_one", true}})

static void stop_under_one_that_is_woken(void)
{
    uint32_t before;

    start_with_a_coroutine();
    explore_begin();
    before = load_acquire(&posted);
    left = iothread_stop(iothread);
    if (before) {
        CHECK(ran);
    }
    explore_end();
    CHECK_EQ(left, !ran);
    CHECK_EQ(load_relaxed(&ctx->lost_wakeups), !ran);
    iothread_unref(iothread);
}

static void wake(void)
{
    explore_begin();
    aio_co_wake(parked);
    store_release(&posted, 1u);
    explore_end();
}

/* One that was woken too late is left, and its context with it. */
EXPLORE(stopped_while_one_is_woken,
        .threads = {stop_under_one_that_is_woken, wake}, .leaks = true,
        .marks = {"wake: a post to a thread that has ended is taken back"})

EXPLORE_MAIN()
