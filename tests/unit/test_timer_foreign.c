/* SPDX-License-Identifier: MIT */
/*
 * Timers that another thread arms and deletes: what takes effect when, what a
 * deletion waits for, how the home thread takes back what was asked for, and
 * what happens when the home thread has ended or was never there.
 */
#include "loopthread.h"

#include "base/atomic.h"
#include "loop/context.h"
#include "os/fault.h"

#include <coaio/iothread.h>
#include <coaio/timer.h>
#include <coaio/wait.h>
#include <string.h>

#define NEVER INT64_MAX

static LoopThread home;

typedef struct Foreign {
    AioTimer timer;
    unsigned runs;    /* atomic */
    int64_t again_ns; /* arm anew in the callback; 0: do not */
    sem_t began;      /* each run */
    sem_t go_on;      /* if gated: passed by the callback before it ends */
    bool gated;
    bool nested;      /* make a nested pass before it ends */
    bool ended;       /* the callback has returned */
    int data;         /* written before arming */
    int seen;         /* by the callback */
} Foreign;

static void run_foreign(void *opaque)
{
    Foreign *f = opaque;

    f->seen = f->data;
    fetch_add_acq_rel(&f->runs, 1u);
    gate_open(&f->began);
    if (f->gated) {
        gate_pass(&f->go_on);
    }
    if (f->nested) {
        aio_poll(aio_context_current(), false);
    }
    if (f->again_ns) {
        aio_timer_mod_ns(&f->timer, f->again_ns);
    }
    f->ended = true;
}

static void init_foreign(Foreign *f, AioContext *ctx)
{
    memset(f, 0, sizeof(*f));
    gate_init(&f->began);
    gate_init(&f->go_on);
    aio_timer_init(&f->timer, ctx, AIO_CLOCK_MONOTONIC, run_foreign, f);
}

static void open_home(Foreign *f)
{
    loop_thread_start(&home, "home");
    init_foreign(f, home.ctx);
}

TEST(one_armed_by_another_thread_runs)
{
    Foreign f;

    open_home(&f);
    f.data = 42;
    aio_timer_mod_ns(&f.timer, 1);
    gate_pass(&f.began);
    CHECK_EQ(f.seen, 42);
    aio_timer_del(&f.timer);
    CHECK(f.ended);
    CHECK_EQ(f.runs, 1);
    loop_thread_stop(&home);
}

TEST(arming_shortens_the_sleep_of_the_home_thread)
{
    Foreign f;

    open_home(&f);
    aio_timer_mod_ns(&f.timer, NEVER);
    loop_flush(home.ctx);
    CHECK(aio_timer_pending(&f.timer));
    aio_timer_mod_ns(&f.timer,
                     aio_clock_ns(AIO_CLOCK_MONOTONIC) + 1000000);
    gate_pass(&f.began);
    aio_timer_del(&f.timer);
    loop_thread_stop(&home);
}

/* Keeps the home thread busy between two points. */
typedef struct Hold {
    AioBHStorage storage;
    sem_t held;
    sem_t release;
} Hold;

static void hold_run(void *opaque)
{
    Hold *hold = opaque;

    gate_open(&hold->held);
    gate_pass(&hold->release);
}

static void hold_home(Hold *hold)
{
    gate_init(&hold->held);
    gate_init(&hold->release);
    aio_bh_schedule_oneshot_embedded(home.ctx, &hold->storage, hold_run, hold);
    gate_pass(&hold->held);
}

TEST(only_the_newest_arming_counts)
{
    Foreign f;
    Hold hold;

    open_home(&f);
    hold_home(&hold);
    aio_timer_mod_ns(&f.timer, 1);
    aio_timer_mod_ns(&f.timer, 2);
    aio_timer_mod_ns(&f.timer, NEVER);
    CHECK(aio_timer_pending(&f.timer));
    gate_open(&hold.release);
    loop_flush(home.ctx);
    loop_flush(home.ctx);
    CHECK_EQ(load_acquire(&f.runs), 0);
    CHECK(aio_timer_pending(&f.timer));
    aio_timer_mod_ns(&f.timer, 1);
    gate_pass(&f.began);
    aio_timer_del(&f.timer);
    CHECK_EQ(f.runs, 1);
    loop_thread_stop(&home);
}

TEST(many_armings_cost_one_notification)
{
    enum { N = 50 };
    static Foreign f[N];
    uint64_t before;
    Hold hold;

    loop_thread_start(&home, "home");
    for (int i = 0; i < N; i++) {
        init_foreign(&f[i], home.ctx);
    }
    hold_home(&hold);
    before = os_counter(OS_COUNT_NOTIFICATIONS);
    for (int i = 0; i < N; i++) {
        aio_timer_mod_ns(&f[i].timer, 1);
    }
    CHECK_EQ(os_counter(OS_COUNT_NOTIFICATIONS), before); /* it is awake */
    gate_open(&hold.release);
    for (int i = 0; i < N; i++) {
        gate_pass(&f[i].began);
        aio_timer_del(&f[i].timer);
    }
    loop_thread_stop(&home);
}

TEST(deleting_takes_back_what_was_asked_for)
{
    Foreign f;
    Hold hold;

    open_home(&f);
    hold_home(&hold);
    aio_timer_mod_ns(&f.timer, 1);
    /* The home thread cannot answer, and need not: it never saw the timer. */
    aio_timer_del(&f.timer);
    CHECK(!aio_timer_pending(&f.timer));
    memset(&f.timer, 0xff, sizeof(f.timer));
    gate_open(&hold.release);
    loop_flush(home.ctx);
    loop_flush(home.ctx);
    CHECK_EQ(f.runs, 0);
    loop_thread_stop(&home);
}

TEST(deleting_an_idle_one_does_not_ask_the_home_thread)
{
    Foreign f;
    Hold hold;

    open_home(&f);
    aio_timer_mod_ns(&f.timer, NEVER);
    loop_flush(home.ctx);
    aio_timer_del(&f.timer);
    hold_home(&hold);
    aio_timer_del(&f.timer); /* would wait for ever */
    gate_open(&hold.release);
    loop_thread_stop(&home);
}

TEST(deleting_an_armed_one_leaves_nothing_behind)
{
    Foreign f;

    open_home(&f);
    for (int i = 0; i < 100; i++) {
        aio_timer_init(&f.timer, home.ctx, AIO_CLOCK_MONOTONIC, run_foreign,
                       &f);
        aio_timer_mod_ns(&f.timer, NEVER - i);
        if (i % 2) {
            loop_flush(home.ctx);
        }
        aio_timer_del(&f.timer);
        memset(&f.timer, 0xff, sizeof(f.timer));
    }
    CHECK_EQ(f.runs, 0);
    loop_thread_stop(&home);
}

/* Wait until a deletion has asked the home thread of ctx. */
static void await_request(AioContext *ctx)
{
    bool asked = false;

    while (!asked) {
        os_mutex_lock(&ctx->lock);
        asked = !list_empty(&ctx->timers.deletions);
        os_mutex_unlock(&ctx->lock);
        sched_yield();
    }
}

static void delete_it(void *opaque)
{
    Foreign *f = opaque;

    aio_timer_del(&f->timer);
    /* The callback is not running, and runs no more. */
    CHECK(f->ended);
    memset(&f->timer, 0xff, sizeof(f->timer));
}

TEST(deleting_waits_for_the_callback)
{
    BareThread deleter;
    Foreign f;

    open_home(&f);
    f.gated = true;
    aio_timer_mod_ns(&f.timer, 1);
    gate_pass(&f.began);
    bare_thread_start(&deleter, delete_it, &f);
    await_request(home.ctx);
    gate_open(&f.go_on);
    bare_thread_join(&deleter);
    CHECK_EQ(f.runs, 1);
    loop_thread_stop(&home);
}

TEST(deleting_waits_for_a_callback_that_polls)
{
    BareThread deleter;
    Foreign f;

    open_home(&f);
    f.gated = true;
    f.nested = true;      /* serves the deletion, below the callback */
    f.again_ns = 1;       /* which arms the timer after that, in vain */
    aio_timer_mod_ns(&f.timer, 1);
    gate_pass(&f.began);
    bare_thread_start(&deleter, delete_it, &f);
    await_request(home.ctx);
    gate_open(&f.go_on);
    bare_thread_join(&deleter);
    loop_flush(home.ctx);
    loop_flush(home.ctx);
    CHECK_EQ(f.runs, 1);
    loop_thread_stop(&home);
}

/* Its callback runs again in the nested pass that its callback makes. */
static void run_twice(void *opaque)
{
    Foreign *f = opaque;
    unsigned run = fetch_add_acq_rel(&f->runs, 1u);

    if (run == 0) {
        aio_timer_mod_ns(&f->timer, 1);
        aio_poll(aio_context_current(), false);
        f->ended = true;
        return;
    }
    gate_open(&f->began);
    gate_pass(&f->go_on);
    aio_poll(aio_context_current(), false); /* serves the deletion */
    CHECK(!f->ended);
}

TEST(deleting_waits_for_the_outer_of_two_callbacks_of_one_timer)
{
    BareThread deleter;
    Foreign f;

    open_home(&f);
    aio_timer_init(&f.timer, home.ctx, AIO_CLOCK_MONOTONIC, run_twice, &f);
    aio_timer_mod_ns(&f.timer, 1);
    gate_pass(&f.began);
    bare_thread_start(&deleter, delete_it, &f);
    await_request(home.ctx);
    gate_open(&f.go_on);
    bare_thread_join(&deleter); /* checks that the outer one has ended */
    CHECK_EQ(f.runs, 2);
    loop_thread_stop(&home);
}

static void run_and_delete_itself(void *opaque)
{
    Foreign *f = opaque;

    aio_timer_del(&f->timer);
    gate_open(&f->began);
    gate_pass(&f->go_on);
    f->ended = true;
}

TEST(deleting_waits_for_a_callback_that_has_deleted_its_timer)
{
    BareThread deleter;
    Foreign f;

    open_home(&f);
    aio_timer_init(&f.timer, home.ctx, AIO_CLOCK_MONOTONIC,
                   run_and_delete_itself, &f);
    aio_timer_mod_ns(&f.timer, 1);
    gate_pass(&f.began);
    bare_thread_start(&deleter, delete_it, &f);
    await_request(home.ctx);
    gate_open(&f.go_on);
    bare_thread_join(&deleter);
    loop_thread_stop(&home);
}

static void run_always(void *opaque)
{
    Foreign *f = opaque;

    fetch_add_acq_rel(&f->runs, 1u);
    aio_timer_mod_ns(&f->timer, 1);
}

TEST(deleting_ends_one_that_arms_itself_for_ever)
{
    unsigned runs;
    Foreign f;

    open_home(&f);
    for (unsigned long i = 0; i < harness_load(200); i++) {
        aio_timer_init(&f.timer, home.ctx, AIO_CLOCK_MONOTONIC, run_always,
                       &f);
        runs = load_acquire(&f.runs);
        aio_timer_mod_ns(&f.timer, 1);
        while (load_acquire(&f.runs) == runs) {
            sched_yield();
        }
        aio_timer_del(&f.timer);
        runs = load_acquire(&f.runs);
        memset(&f.timer, 0xff, sizeof(f.timer));
        loop_flush(home.ctx);
        CHECK_EQ(load_acquire(&f.runs), runs);
    }
    loop_thread_stop(&home);
}

/* --- the home thread takes back what another has asked for ----------------*/

static void delete_at_home(void *opaque)
{
    Foreign *f = opaque;

    CHECK(aio_timer_pending(&f->timer));
    aio_timer_del(&f->timer);
    CHECK(!aio_timer_pending(&f->timer));
    memset(&f->timer, 0xff, sizeof(f->timer));
}

static void arm_far_away_at_home(void *opaque)
{
    Foreign *f = opaque;

    aio_timer_mod_ns(&f->timer, NEVER);
}

static void request_while_held(Foreign *f, void (*then)(void *opaque))
{
    AioBHStorage storage;
    Hold hold;

    hold_home(&hold);
    /* Its turn is before that of the request below. */
    aio_bh_schedule_oneshot_embedded(home.ctx, &storage, then, f);
    aio_timer_mod_ns(&f->timer, 1);
    gate_open(&hold.release);
    loop_flush(home.ctx);
    loop_flush(home.ctx);
    CHECK_EQ(load_acquire(&f->runs), 0);
}

TEST(deleting_at_home_takes_back_a_request)
{
    Foreign f;

    open_home(&f);
    request_while_held(&f, delete_at_home);
    loop_thread_stop(&home);
}

TEST(arming_at_home_replaces_a_request)
{
    Foreign f;

    open_home(&f);
    request_while_held(&f, arm_far_away_at_home);
    CHECK(aio_timer_pending(&f.timer));
    aio_timer_del(&f.timer);
    loop_thread_stop(&home);
}

/* --- without a home thread ------------------------------------------------*/

TEST(one_of_an_unbound_context_runs_when_somebody_polls)
{
    AioContext *ctx;
    Foreign f, g;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    init_foreign(&f, ctx);
    init_foreign(&g, ctx);
    aio_timer_mod_ns(&f.timer, 1);
    aio_timer_mod_ns(&g.timer, 1);
    aio_timer_del(&g.timer); /* does not wait for a thread that is not there */
    CHECK(aio_timer_pending(&f.timer));
    CHECK(!aio_timer_pending(&g.timer));
    while (!f.runs) {
        aio_poll(ctx, true);
    }
    CHECK_EQ(g.runs, 0);
    aio_context_unref(ctx);
}

TEST_ABORTS(a_request_that_is_left_is_named,
            "last reference .* 1 .*timers")
{
    AioContext *ctx;
    Foreign f;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    init_foreign(&f, ctx);
    aio_timer_mod_ns(&f.timer, 1);
    aio_context_unref(ctx);
}

TEST(one_whose_thread_has_ended_can_be_deleted)
{
    Foreign armed, fired, late;

    open_home(&armed);
    init_foreign(&fired, home.ctx);
    init_foreign(&late, home.ctx);
    aio_timer_mod_ns(&armed.timer, NEVER);
    aio_timer_mod_ns(&fired.timer, 1);
    gate_pass(&fired.began);
    loop_thread_join(&home);
    aio_timer_mod_ns(&late.timer, 1); /* never runs */
    CHECK(aio_timer_pending(&late.timer));
    aio_timer_mod_ns(&late.timer, 2);
    aio_timer_del(&armed.timer);
    aio_timer_del(&fired.timer);
    aio_timer_del(&late.timer);
    CHECK(!aio_timer_pending(&late.timer));
    CHECK_EQ(armed.runs, 0);
    CHECK_EQ(late.runs, 0);
    aio_context_unref(home.ctx);
}

/* A thread that arms a timer and then ends without another pass. */
typedef struct Leaver {
    AioContext *ctx;
    Foreign f;
    sem_t armed;
    sem_t go_on;
} Leaver;

static void leave(void *opaque)
{
    Leaver *leaver = opaque;

    aio_context_attach(leaver->ctx);
    init_foreign(&leaver->f, leaver->ctx);
    aio_timer_mod_ns(&leaver->f.timer, 1);
    gate_open(&leaver->armed);
    gate_pass(&leaver->go_on);
}

static void delete_left(void *opaque)
{
    Leaver *leaver = opaque;

    aio_timer_del(&leaver->f.timer);
    memset(&leaver->f.timer, 0xff, sizeof(leaver->f.timer));
}

TEST(a_thread_that_ends_serves_those_who_wait)
{
    BareThread home_thread, deleter;
    Leaver leaver;

    CHECK_EQ(aio_context_new(&leaver.ctx, NULL), 0);
    gate_init(&leaver.armed);
    gate_init(&leaver.go_on);
    bare_thread_start(&home_thread, leave, &leaver);
    gate_pass(&leaver.armed);
    bare_thread_start(&deleter, delete_left, &leaver);
    await_request(leaver.ctx);
    gate_open(&leaver.go_on);
    bare_thread_join(&home_thread);
    bare_thread_join(&deleter);
    CHECK_EQ(leaver.f.runs, 0);
    aio_context_unref(leaver.ctx);
}

typedef struct StopRace {
    AioContext *ctx;
    sem_t go;
} StopRace;

static void delete_while_it_stops(void *opaque)
{
    StopRace *race = opaque;
    Foreign f;

    for (int i = 0; i < 50; i++) {
        init_foreign(&f, race->ctx);
        aio_timer_mod_ns(&f.timer, i % 2 ? 1 : NEVER);
        aio_timer_del(&f.timer);
        memset(&f.timer, 0xff, sizeof(f.timer));
        if (i == 10) {
            gate_open(&race->go);
        }
    }
}

TEST(deleting_may_race_with_the_end_of_the_thread)
{
    for (unsigned long i = 0; i < harness_load(100); i++) {
        BareThread deleter;
        IOThread *iothread;
        StopRace race;

        CHECK_EQ(iothread_new(&iothread, "racing", NULL), 0);
        race.ctx = iothread_context(iothread);
        gate_init(&race.go);
        bare_thread_start(&deleter, delete_while_it_stops, &race);
        gate_pass(&race.go);
        CHECK_EQ(iothread_stop(iothread), 0);
        bare_thread_join(&deleter);
        iothread_unref(iothread);
    }
}

/* --- a callback that waits for its own deleter ----------------------------*/

static LoopThread other;

static void delete_in_other(void *opaque)
{
    Foreign *f = opaque;

    aio_timer_del(&f->timer);
}

static void run_and_wait_for_deletion(void *opaque)
{
    aio_wait_bh_oneshot(other.ctx, delete_in_other, opaque);
}

TEST_ABORTS(a_callback_that_waits_for_its_deleter_aborts,
            "aio_timer_del of timer .* in context \"other\" waits for the "
            "timer's callback")
{
    Foreign f;

    loop_thread_start(&other, "other");
    open_home(&f);
    aio_timer_init(&f.timer, home.ctx, AIO_CLOCK_MONOTONIC,
                   run_and_wait_for_deletion, &f);
    aio_timer_mod_ns(&f.timer, 1);
    loop_thread_join(&home);
}

static uint32_t condition; /* atomic */

static void kick_and_delete(void *opaque)
{
    Foreign *f = opaque;

    store_release(&condition, 1);
    aio_wait_kick();
    aio_timer_del(&f->timer);
    gate_open(&f->began);
}

static void run_and_wait_for_condition(void *opaque)
{
    aio_bh_schedule_oneshot(other.ctx, kick_and_delete, opaque);
    aio_wait_while(other.ctx, !load_acquire(&condition));
}

TEST(one_that_waited_for_something_else_of_its_deleter_goes_on)
{
    loop_thread_start(&other, "other");
    for (unsigned long i = 0; i < harness_load(100); i++) {
        Foreign f;

        open_home(&f);
        store_release(&condition, 0);
        aio_timer_init(&f.timer, home.ctx, AIO_CLOCK_MONOTONIC,
                       run_and_wait_for_condition, &f);
        aio_timer_mod_ns(&f.timer, 1);
        gate_pass(&f.began);
        loop_thread_stop(&home);
    }
    loop_thread_stop(&other);
}

/* --- deleting each other's ------------------------------------------------*/

static uint32_t arrived;  /* atomic; both threads are about to delete */
static uint32_t finished; /* atomic */

static void delete_crosswise(void *opaque)
{
    fetch_add_acq_rel(&arrived, 1);
    while (load_acquire(&arrived) < 2) {
        spin_hint();
    }
    aio_timer_del(opaque);
    fetch_add_acq_rel(&finished, 1);
    aio_wait_kick();
}

static void never(void *opaque)
{
    (void)opaque;
    CHECK(false);
}

/* Each of the two threads slept for the other, and neither served it. */
TEST(two_home_threads_delete_each_others)
{
    loop_thread_start(&home, "home");
    loop_thread_start(&other, "other");
    for (unsigned long i = 0; i < harness_load(1000); i++) {
        AioTimer mine, its;

        store_release(&arrived, 0);
        store_release(&finished, 0);
        aio_timer_init(&mine, home.ctx, AIO_CLOCK_MONOTONIC, never, NULL);
        aio_timer_init(&its, other.ctx, AIO_CLOCK_MONOTONIC, never, NULL);
        aio_timer_mod_ns(&mine, INT64_MAX);
        aio_timer_mod_ns(&its, INT64_MAX);
        aio_bh_schedule_oneshot(home.ctx, delete_crosswise, &its);
        aio_bh_schedule_oneshot(other.ctx, delete_crosswise, &mine);
        aio_wait_while(home.ctx, load_acquire(&finished) < 2);
        CHECK(!aio_timer_pending(&mine));
        CHECK(!aio_timer_pending(&its));
    }
    loop_thread_stop(&home);
    loop_thread_stop(&other);
}

TEST_ABORTS(two_callbacks_that_delete_each_others_abort,
            "aio_timer_del of timer .* waits for the timer's callback, which "
            "waits for that context in turn")
{
    static AioTimer mine, its;

    loop_thread_start(&home, "home");
    loop_thread_start(&other, "other");
    aio_timer_init(&mine, home.ctx, AIO_CLOCK_MONOTONIC, delete_crosswise,
                   &its);
    aio_timer_init(&its, other.ctx, AIO_CLOCK_MONOTONIC, delete_crosswise,
                   &mine);
    aio_timer_mod_ns(&mine, 1);
    aio_timer_mod_ns(&its, 1);
    loop_thread_join(&home);
}

TEST_MAIN()
