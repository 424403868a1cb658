/* SPDX-License-Identifier: MIT */
/*
 * Idle bottom halves: they run in the next pass that something else wakes, or
 * after 10 ms; a pass that ran nothing else has made no progress, and that is
 * how these tests tell an idle one from an ordinary one, without a clock.
 */
#include "harness.h"
#include "loop/context.h"
#include "loopthread.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/fd.h>
#include <sched.h>
#include <unistd.h>

static AioContext *ctx;
static int runs;

static void count(void *opaque)
{
    (void)opaque;
    runs++;
}

static void nothing(void *opaque)
{
    (void)opaque;
}

static AioBH *begin(void)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    return aio_bh_new(ctx, count, NULL);
}

static void end(AioBH *bh)
{
    CHECK(!aio_poll(ctx, false));
    aio_bh_delete(bh);
    aio_context_unref(ctx);
}

TEST(runs_in_a_pass_that_something_else_wakes)
{
    AioBH *bh = begin();

    aio_bh_schedule_idle(bh);
    aio_bh_schedule_oneshot(ctx, nothing, NULL);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(runs, 1);
    end(bh);
    CHECK_EQ(runs, 1);
}

TEST(runs_alone_after_a_while)
{
    AioBH *bh = begin();
    int64_t wait_ns;

    aio_bh_schedule_idle(bh);
    wait_ns = context_prepare(ctx); /* how long a pass would sleep now */
    CHECK(wait_ns > 0);
    CHECK(wait_ns <= 10000000);
    while (runs < 1) {
        aio_poll(ctx, true);
    }
    runs = 0;

    for (int i = 1; i <= 3; i++) {
        aio_bh_schedule_idle(bh);
        while (runs < i) {
            CHECK(!aio_poll(ctx, true)); /* is no progress */
        }
        CHECK_EQ(runs, i);
    }
    end(bh);
}

TEST(runs_in_a_pass_that_does_not_block)
{
    AioBH *bh = begin();

    aio_bh_schedule_idle(bh);
    CHECK(!aio_poll(ctx, false));
    CHECK_EQ(runs, 1);
    end(bh);
}

TEST(runs_in_a_pass_that_was_notified)
{
    AioBH *bh = begin();

    aio_bh_schedule_idle(bh);
    aio_notify(ctx);
    CHECK(!aio_poll(ctx, true));
    CHECK_EQ(runs, 1);
    end(bh);
}

TEST(schedule_turns_it_into_an_ordinary_one)
{
    AioBH *bh = begin();

    aio_bh_schedule_idle(bh);
    aio_bh_schedule(bh);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(runs, 1);
    end(bh);
    CHECK_EQ(runs, 1);
}

TEST(schedule_idle_leaves_an_ordinary_one_as_it_was)
{
    AioBH *bh = begin();

    aio_bh_schedule(bh);
    aio_bh_schedule_idle(bh);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(runs, 1);
    end(bh);
    CHECK_EQ(runs, 1);
}

TEST(a_cancelled_one_does_not_run)
{
    AioBH *bh = begin();

    aio_bh_schedule_idle(bh);
    aio_bh_cancel(bh);
    aio_bh_schedule_oneshot(ctx, nothing, NULL);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(runs, 0);
    end(bh);
    CHECK_EQ(runs, 0);
}

TEST(one_that_was_cancelled_may_be_scheduled)
{
    AioBH *bh = begin();

    aio_bh_schedule_idle(bh);
    aio_bh_cancel(bh);
    aio_bh_schedule(bh);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(runs, 1);
    end(bh);
}

TEST(an_ordinary_one_that_was_cancelled_may_become_idle)
{
    AioBH *bh = begin();

    aio_bh_schedule(bh);
    aio_bh_cancel(bh);
    aio_bh_schedule_idle(bh);
    while (runs < 1) {
        CHECK(!aio_poll(ctx, true));
    }
    end(bh);
    CHECK_EQ(runs, 1);
}

TEST(a_deleted_one_does_not_run)
{
    AioBH *bh = begin();

    aio_bh_schedule_idle(bh);
    aio_bh_delete(bh);
    CHECK(!aio_poll(ctx, false));
    CHECK_EQ(runs, 0);
    aio_context_unref(ctx);
}

typedef struct Again {
    AioBH *bh;
    int runs;
} Again;

static void run_again(void *opaque)
{
    Again *again = opaque;

    if (++again->runs < 4) {
        aio_bh_schedule_idle(again->bh);
    }
}

/* Once a pass, and never within the pass that it was made pending in. */
TEST(one_that_goes_on_and_on_runs_once_a_pass)
{
    Again again = {.runs = 0};

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    again.bh = aio_bh_new(ctx, run_again, &again);
    aio_bh_schedule_idle(again.bh);
    for (int i = 1; i <= 3; i++) {
        aio_bh_schedule_oneshot(ctx, nothing, NULL);
        CHECK(aio_poll(ctx, true));
        CHECK_EQ(again.runs, i);
    }
    while (again.runs < 4) {
        CHECK(!aio_poll(ctx, true));
    }
    end(again.bh);
    CHECK_EQ(again.runs, 4);
}

/* --- from another thread --------------------------------------------------*/

static void schedule_idle(void *bh)
{
    aio_bh_schedule_idle(bh);
}

static void schedule(void *bh)
{
    aio_bh_schedule(bh);
}

TEST(another_thread_may_make_it_pending)
{
    AioBH *bh = begin();

    run_in_thread(schedule_idle, bh);
    while (runs < 1) {
        CHECK(!aio_poll(ctx, true));
    }
    CHECK_EQ(runs, 1);
    end(bh);
}

TEST(another_thread_may_make_it_an_ordinary_one)
{
    AioBH *bh = begin();

    aio_bh_schedule_idle(bh);
    run_in_thread(schedule, bh);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(runs, 1);
    end(bh);
}

static void open_gate(void *gate)
{
    gate_open(gate);
}

/* The loop sleeps without an end in sight, and is woken for it. */
TEST(a_loop_that_sleeps_runs_it)
{
    LoopThread loop;
    sem_t ran;
    AioBH *bh;

    gate_init(&ran);
    loop_thread_start(&loop, "idle");
    bh = aio_bh_new(loop.ctx, open_gate, &ran);
    for (int i = 0; i < 5; i++) {
        loop_flush(loop.ctx);
        aio_bh_schedule_idle(bh);
        gate_pass(&ran);
    }
    aio_bh_delete(bh);
    loop_thread_stop(&loop);
}

#define MINUTE INT64_C(60000000000)

typedef struct Busy {
    LoopThread loop;
    int ends[2];
    bool polls;    /* atomic; set while it polls busily */
    unsigned runs; /* atomic */
} Busy;

static bool note_polling(void *opaque)
{
    Busy *busy = opaque;

    store_relaxed(&busy->polls, true);
    return false;
}

/* From the next pass on the loop looks for events for a minute. */
static void be_busy(void *opaque)
{
    Busy *busy = opaque;
    AioContext *own = busy->loop.ctx;

    CHECK_EQ(aio_set_fd_handler(own, busy->ends[0], nothing, NULL, note_polling,
                                NULL, busy),
             0);
    CHECK_EQ(aio_context_set_poll_params(own, MINUTE, 2, 2), 0);
    own->poll_ns = MINUTE;
}

static void be_lazy(void *opaque)
{
    Busy *busy = opaque;

    aio_set_fd_handler(busy->loop.ctx, busy->ends[0], NULL, NULL, NULL, NULL,
                       NULL);
}

static void count_busy(void *opaque)
{
    Busy *busy = opaque;

    fetch_add_relaxed(&busy->runs, 1u);
}

/* Return when the loop is in the midst of it. */
static void await_polling(Busy *busy)
{
    store_relaxed(&busy->polls, false);
    while (!load_relaxed(&busy->polls)) {
        sched_yield();
    }
}

/*
 * A loop that polled busily did not look at idle bottom halves that came
 * meanwhile, nor at those that became urgent: they waited until it was tired.
 */
TEST(a_busy_loop_runs_it)
{
    Busy busy = {.runs = 0};
    AioBH *bh;

    CHECK_EQ(pipe(busy.ends), 0);
    loop_thread_start(&busy.loop, "busy");
    bh = aio_bh_new(busy.loop.ctx, count_busy, &busy);
    loop_call(busy.loop.ctx, be_busy, &busy);
    for (unsigned i = 0; i < 20; i++) {
        unsigned before = load_relaxed(&busy.runs);

        await_polling(&busy);
        aio_bh_schedule_idle(bh);
        if (i % 2) {
            aio_bh_schedule(bh);
        }
        while (load_relaxed(&busy.runs) == before) {
            sched_yield();
        }
    }
    loop_call(busy.loop.ctx, be_lazy, &busy);
    aio_bh_delete(bh);
    loop_thread_stop(&busy.loop);
    close(busy.ends[0]);
    close(busy.ends[1]);
}

TEST_MAIN()
