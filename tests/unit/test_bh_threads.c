/* SPDX-License-Identifier: MIT */
/*
 * Bottom halves and other threads: order across threads, what a callback sees
 * of those who scheduled it, deleting from elsewhere.
 *
 * Where visibility is the point, threads are kept in step by relaxed atomics
 * only, which order nothing: the only edge is that of the bottom half, and
 * ThreadSanitizer reports a race if it is not there.
 */
#include "base/atomic.h"
#include "harness.h"
#include "loopthread.h"
#include "os/fault.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <sched.h>
#include <string.h>

static char trail[64];

static void mark_letter(void *opaque)
{
    size_t length = strlen(trail);

    CHECK(length + 1 < sizeof(trail));
    trail[length] = *(const char *)opaque;
}

static void schedule(void *bh)
{
    aio_bh_schedule(bh);
}

/* --- order ----------------------------------------------------------------*/

TEST(the_order_of_the_calls_holds_across_threads)
{
    AioContext *ctx;
    AioBH *bh[4];

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    for (int i = 0; i < 4; i++) {
        bh[i] = aio_bh_new(ctx, mark_letter, &"abcd"[i]);
    }
    run_in_thread(schedule, bh[2]);
    aio_bh_schedule(bh[1]);
    run_in_thread(schedule, bh[3]);
    run_in_thread(schedule, bh[2]); /* is pending: keeps its place */
    run_in_thread(schedule, bh[0]);
    CHECK(aio_poll(ctx, true));
    CHECK_STR(trail, "cbda");
    for (int i = 0; i < 4; i++) {
        aio_bh_delete(bh[i]);
    }
    aio_context_unref(ctx);
}

static void cancel_and_schedule(void *bh)
{
    aio_bh_cancel(bh);
    aio_bh_schedule(bh);
}

TEST(another_thread_cancels_without_giving_up_the_place)
{
    AioContext *ctx;
    AioBH *bh[2];

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    bh[0] = aio_bh_new(ctx, mark_letter, "a");
    bh[1] = aio_bh_new(ctx, mark_letter, "b");
    aio_bh_schedule(bh[0]);
    aio_bh_schedule(bh[1]);
    run_in_thread(cancel_and_schedule, bh[0]);
    CHECK(aio_poll(ctx, true));
    CHECK_STR(trail, "ab");
    aio_bh_delete(bh[0]);
    aio_bh_delete(bh[1]);
    aio_context_unref(ctx);
}

/* --- visibility -----------------------------------------------------------*/

enum {
    PRODUCERS = 3
};

typedef struct Fan {
    AioBH *bh;
    unsigned long rounds;
    unsigned long round;           /* atomic; the producers may begin it */
    unsigned scheduled;            /* atomic; relaxed: orders nothing */
    unsigned long data[PRODUCERS]; /* plain */
    unsigned long sum;             /* of data, as the callback saw it */
} Fan;

typedef struct Producer {
    Fan *fan;
    int number;
} Producer;

static void produce(void *opaque)
{
    Producer *producer = opaque;
    Fan *fan = producer->fan;

    for (unsigned long round = 1; round <= fan->rounds; round++) {
        while (load_acquire(&fan->round) < round) {
            sched_yield();
        }
        fan->data[producer->number] = round;
        aio_bh_schedule(fan->bh);
        fetch_add_relaxed(&fan->scheduled, 1u);
    }
}

static void consume(void *opaque)
{
    Fan *fan = opaque;

    fan->sum = 0;
    for (int i = 0; i < PRODUCERS; i++) {
        fan->sum += fan->data[i];
    }
}

/* One of the three finds it idle; the others find it pending already. */
TEST(the_callback_sees_what_each_scheduler_wrote)
{
    Fan fan = {.rounds = harness_load(2000)};
    Producer producers[PRODUCERS];
    BareThread threads[PRODUCERS];
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    fan.bh = aio_bh_new(ctx, consume, &fan);
    for (int i = 0; i < PRODUCERS; i++) {
        producers[i] = (Producer){&fan, i};
        bare_thread_start(&threads[i], produce, &producers[i]);
    }
    for (unsigned long round = 1; round <= fan.rounds; round++) {
        store_release(&fan.round, round);
        while (load_relaxed(&fan.scheduled) < PRODUCERS * round) {
            sched_yield();
        }
        CHECK(aio_poll(ctx, false));
        CHECK_EQ(fan.sum, PRODUCERS * round);
    }
    for (int i = 0; i < PRODUCERS; i++) {
        bare_thread_join(&threads[i]);
    }
    aio_bh_delete(fan.bh);
    aio_context_unref(ctx);
}

/* --- deleting from elsewhere ----------------------------------------------*/

static uint64_t live_blocks(void)
{
    return os_counter(OS_COUNT_ALLOCATIONS) - os_counter(OS_COUNT_FREES);
}

static void delete_bh(void *bh)
{
    aio_bh_delete(bh);
}

TEST(another_thread_may_delete_one_that_is_pending)
{
    AioContext *ctx;
    uint64_t before;
    AioBH *bh;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    before = live_blocks();
    bh = aio_bh_new(ctx, mark_letter, "a");
    aio_bh_schedule(bh);
    run_in_thread(delete_bh, bh);
    CHECK(!aio_poll(ctx, false));
    CHECK_STR(trail, "");
    CHECK_EQ(live_blocks(), before);
    aio_context_unref(ctx);
}

TEST(another_thread_may_delete_one_that_is_not_pending)
{
    AioContext *ctx;
    uint64_t before;
    AioBH *bh;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    before = live_blocks();
    bh = aio_bh_new(ctx, mark_letter, "a");
    run_in_thread(delete_bh, bh);
    CHECK_EQ(live_blocks(), before);
    aio_context_unref(ctx);
}

typedef struct Running {
    AioBH *bh;
    sem_t runs;
    sem_t deleted;
} Running;

static void wait_for_delete(void *opaque)
{
    Running *running = opaque;

    gate_open(&running->runs);
    gate_pass(&running->deleted);
}

/* Its callback runs at this moment; also where it is pending once more. */
TEST(another_thread_may_delete_one_that_runs)
{
    uint64_t before;
    LoopThread loop;
    Running running;

    gate_init(&running.runs);
    gate_init(&running.deleted);
    loop_thread_start(&loop, "loop");
    loop_flush(loop.ctx);
    before = live_blocks();
    for (int again = 0; again <= 1; again++) {
        running.bh = aio_bh_new(loop.ctx, wait_for_delete, &running);
        aio_bh_schedule(running.bh);
        gate_pass(&running.runs);
        if (again) {
            aio_bh_schedule(running.bh);
        }
        aio_bh_delete(running.bh);
        gate_open(&running.deleted);
        loop_flush(loop.ctx);
        CHECK_EQ(live_blocks(), before);
    }
    loop_thread_stop(&loop);
}

/* --- one-shots ------------------------------------------------------------*/

enum {
    SHOTS = 1000
};

typedef struct Shooter {
    AioContext *ctx;
    unsigned long next; /* atomic */
    unsigned long ran;  /* the loop's */
    unsigned long shots;
} Shooter;

static void hit(void *opaque)
{
    ++*(unsigned long *)opaque;
}

static void shoot(void *opaque)
{
    Shooter *shooter = opaque;

    while (fetch_add_relaxed(&shooter->next, 1UL) < shooter->shots) {
        aio_bh_schedule_oneshot(shooter->ctx, hit, &shooter->ran);
    }
}

TEST(one_shots_of_several_threads_all_run)
{
    Shooter shooter = {.shots = harness_load(SHOTS)};
    BareThread threads[PRODUCERS];
    uint64_t before;

    CHECK_EQ(aio_context_new(&shooter.ctx, NULL), 0);
    aio_notify(shooter.ctx);
    aio_poll(shooter.ctx, true); /* waits once: engines allocate for that */
    before = live_blocks();
    for (int i = 0; i < PRODUCERS; i++) {
        bare_thread_start(&threads[i], shoot, &shooter);
    }
    while (shooter.ran < shooter.shots) {
        aio_poll(shooter.ctx, true);
    }
    for (int i = 0; i < PRODUCERS; i++) {
        bare_thread_join(&threads[i]);
    }
    CHECK(!aio_poll(shooter.ctx, false));
    CHECK_EQ(shooter.ran, shooter.shots);
    CHECK_EQ(live_blocks(), before);
    aio_context_unref(shooter.ctx);
}

TEST_MAIN()
