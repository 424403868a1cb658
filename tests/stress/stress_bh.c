/* SPDX-License-Identifier: MIT */
/*
 * Bottom halves on real threads: scheduled by three threads at once while the
 * loop runs them, so that schedulers meet the callback in every state; deleted
 * and cancelled by others; and idle ones among them.
 *
 * The last thing that a producer wrote must have been seen by a callback in
 * the end, or a scheduling was lost: then the case hangs, and is killed.
 */
#include "base/atomic.h"
#include "harness.h"
#include "loopthread.h"
#include "os/fault.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <sched.h>

enum {
    PRODUCERS = 3
};

/* --- one bottom half, many schedulers -------------------------------------*/

typedef struct Fan {
    AioBH *bh;
    unsigned long rounds;
    unsigned long written[PRODUCERS]; /* atomic, relaxed: bh orders them */
    unsigned long seen[PRODUCERS];    /* atomic, likewise */
    unsigned long runs;               /* the loop's */
    void (*schedule)(AioBH *bh, unsigned long round);
} Fan;

typedef struct Producer {
    Fan *fan;
    int number;
    BareThread thread;
} Producer;

static void see(void *opaque)
{
    Fan *fan = opaque;

    fan->runs++;
    for (int i = 0; i < PRODUCERS; i++) {
        store_relaxed(&fan->seen[i], load_relaxed(&fan->written[i]));
    }
}

/*
 * Each round waits until a callback has seen it.  Several producers find it
 * idle, pending, running and pending again.
 */
static void produce(void *opaque)
{
    Producer *producer = opaque;
    Fan *fan = producer->fan;
    int i = producer->number;

    for (unsigned long round = 1; round <= fan->rounds; round++) {
        store_relaxed(&fan->written[i], round);
        fan->schedule(fan->bh, round);
        for (unsigned spins = 0; load_relaxed(&fan->seen[i]) < round;) {
            if (++spins % 4096 == 0) {
                sched_yield();
            }
        }
    }
}

static void schedule_fan(void (*schedule)(AioBH *bh, unsigned long round),
                         unsigned long rounds)
{
    Fan fan = {.rounds = harness_load(rounds), .schedule = schedule};
    Producer producers[PRODUCERS];
    LoopThread loop;

    loop_thread_start(&loop, "fan");
    fan.bh = aio_bh_new(loop.ctx, see, &fan);
    for (int i = 0; i < PRODUCERS; i++) {
        producers[i].fan = &fan;
        producers[i].number = i;
        bare_thread_start(&producers[i].thread, produce, &producers[i]);
    }
    for (int i = 0; i < PRODUCERS; i++) {
        bare_thread_join(&producers[i].thread);
    }
    aio_bh_delete(fan.bh);
    loop_thread_stop(&loop);
    CHECK(fan.runs <= 2 * PRODUCERS * fan.rounds);
}

static void schedule_plainly(AioBH *bh, unsigned long round)
{
    (void)round;
    aio_bh_schedule(bh);
}

TEST(no_scheduling_of_three_threads_is_lost)
{
    schedule_fan(schedule_plainly, 50000);
}

static void schedule_in_many_ways(AioBH *bh, unsigned long round)
{
    if (round % 3 == 0) {
        aio_bh_schedule_idle(bh);
    }
    if (round % 5 == 0) {
        aio_bh_cancel(bh); /* those of the others come again below */
    }
    aio_bh_schedule(bh);
}

/*
 * A cancelling takes what another producer has scheduled, too; but all of them
 * schedule after it, and the callback that follows sees everything.
 */
TEST(no_scheduling_is_lost_among_cancellings_and_idle_ones)
{
    schedule_fan(schedule_in_many_ways, 20000);
}

/* --- made, scheduled and deleted ------------------------------------------*/

typedef struct Maker {
    AioContext *ctx;
    unsigned long rounds;
    unsigned long *runs; /* atomic */
    BareThread thread;
} Maker;

static void count(void *opaque)
{
    fetch_add_relaxed((unsigned long *)opaque, 1UL);
}

static void make_and_delete(void *opaque)
{
    Maker *maker = opaque;

    for (unsigned long i = 0; i < maker->rounds; i++) {
        AioBH *bh = aio_bh_new(maker->ctx, count, maker->runs);

        if (i % 4) {
            aio_bh_schedule(bh);
        }
        if (i % 3 == 0) {
            sched_yield(); /* perhaps it runs at this moment */
        }
        if (i % 5 == 0) {
            aio_bh_schedule_idle(bh);
        }
        aio_bh_delete(bh);
        aio_bh_schedule_oneshot(maker->ctx, count, maker->runs);
    }
}

TEST(bottom_halves_are_deleted_at_any_moment)
{
    unsigned long rounds = harness_load(20000);
    unsigned long runs = 0;
    Maker makers[PRODUCERS];
    LoopThread loop;
    uint64_t blocks;

    loop_thread_start(&loop, "loop");
    blocks = os_counter(OS_COUNT_ALLOCATIONS) - os_counter(OS_COUNT_FREES);
    for (int i = 0; i < PRODUCERS; i++) {
        makers[i].ctx = loop.ctx;
        makers[i].rounds = rounds;
        makers[i].runs = &runs;
        bare_thread_start(&makers[i].thread, make_and_delete, &makers[i]);
    }
    for (int i = 0; i < PRODUCERS; i++) {
        bare_thread_join(&makers[i].thread);
    }
    loop_finish_pass(loop.ctx); /* idle ones are freed at its end */
    CHECK(load_relaxed(&runs) >= PRODUCERS * rounds);
    CHECK(load_relaxed(&runs) <= 3 * PRODUCERS * rounds);
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS) - os_counter(OS_COUNT_FREES),
             blocks);
    loop_thread_stop(&loop);
}

/* --- order ----------------------------------------------------------------*/

enum {
    RINGS = 64
};

typedef struct Shooter Shooter;

typedef struct Shot {
    AioBHStorage storage;
    Shooter *shooter;
    unsigned long number;
    bool free; /* atomic */
} Shot;

struct Shooter {
    AioContext *ctx;
    unsigned long shots;
    unsigned long next; /* the loop's: the number that has to come */
    Shot ring[RINGS];
    BareThread thread;
};

static void arrive(void *opaque)
{
    Shot *shot = opaque;

    CHECK_EQ(shot->number, shot->shooter->next);
    shot->shooter->next++;
    store_release(&shot->free, true);
}

static void shoot(void *opaque)
{
    Shooter *shooter = opaque;

    for (unsigned long i = 0; i < shooter->shots; i++) {
        Shot *shot = &shooter->ring[i % RINGS];

        while (!load_acquire(&shot->free)) {
            sched_yield();
        }
        store_relaxed(&shot->free, false);
        shot->number = i;
        aio_bh_schedule_oneshot_embedded(shooter->ctx, &shot->storage, arrive,
                                         shot);
    }
}

TEST(what_one_thread_posts_arrives_in_order)
{
    static Shooter shooters[PRODUCERS];
    LoopThread loop;

    loop_thread_start(&loop, "target");
    for (int i = 0; i < PRODUCERS; i++) {
        Shooter *shooter = &shooters[i];

        shooter->ctx = loop.ctx;
        shooter->shots = harness_load(100000);
        for (int j = 0; j < RINGS; j++) {
            shooter->ring[j].shooter = shooter;
            shooter->ring[j].free = true;
        }
        bare_thread_start(&shooter->thread, shoot, shooter);
    }
    for (int i = 0; i < PRODUCERS; i++) {
        bare_thread_join(&shooters[i].thread);
    }
    loop_flush(loop.ctx);
    for (int i = 0; i < PRODUCERS; i++) {
        CHECK_EQ(shooters[i].next, shooters[i].shots);
    }
    loop_thread_stop(&loop);
}

TEST_MAIN()
