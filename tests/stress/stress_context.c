/* SPDX-License-Identifier: MIT */
/*
 * Contexts that end while others still deal with them: wake-ups and posts in
 * flight to a context whose last reference goes with what they have brought
 * about, and I/O threads that are stopped amidst wake-ups and moves.  Memory
 * that is used after it was freed is for the sanitizers to find; what is lost
 * is found by counting; and a context that stays leaves descriptors open, which
 * the harness reports.
 */
#include "base/atomic.h"
#include "harness.h"
#include "loop/context.h"
#include "loopthread.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <coaio/iothread.h>
#include <coaio/wake.h>
#include <sched.h>

/* --- destroyed while wake-ups are in flight -------------------------------*/

/*
 * The loop thread takes one context after the other.  It lets go of each, the
 * last one to do so, as soon as what the waker has woken says that it is done;
 * the waker may not have returned then.
 */
typedef struct Relay {
    AioContext *ctx; /* of this round */
    Coroutine *co;
    unsigned long round;  /* atomic; ctx is there */
    unsigned long parked; /* atomic; co is, in that round */
    unsigned long ended;  /* atomic; the loop thread is done with that round */
    unsigned long rounds;
    bool done; /* the loop's */
    AioBHStorage storage;
} Relay;

static void park_and_finish(void *opaque)
{
    Relay *relay = opaque;

    store_release(&relay->parked, load_relaxed(&relay->round));
    coroutine_yield();
    relay->done = true;
}

static void run_relay(void *opaque)
{
    Relay *relay = opaque;

    for (unsigned long i = 1; i <= relay->rounds; i++) {
        AioContext *ctx;

        while (load_acquire(&relay->round) < i) {
            sched_yield();
        }
        ctx = relay->ctx;
        relay->done = false;
        aio_context_attach(ctx);
        while (!relay->done) {
            aio_poll(ctx, true);
        }
        aio_context_unref(ctx);
        CHECK(aio_context_current() == NULL);
        store_release(&relay->ended, i);
    }
}

static AioContext *new_context(void)
{
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    return ctx;
}

static void wake_parked(Relay *relay, unsigned long round)
{
    while (load_acquire(&relay->parked) < round) {
        sched_yield();
    }
    aio_co_wake(relay->co);
}

static void begin_with_coroutine(Relay *relay)
{
    relay->co = coroutine_create(park_and_finish, relay);
    aio_co_schedule(relay->ctx, relay->co);
}

static void nothing(Relay *relay)
{
    (void)relay;
}

static void run_rounds(void (*begin)(Relay *relay),
                       void (*act)(Relay *relay, unsigned long round))
{
    static Relay relay;
    BareThread thread;

    relay.rounds = harness_load(5000);
    bare_thread_start(&thread, run_relay, &relay);
    for (unsigned long i = 1; i <= relay.rounds; i++) {
        relay.ctx = new_context();
        begin(&relay);
        store_release(&relay.round, i);
        act(&relay, i);
        while (load_acquire(&relay.ended) < i) {
            sched_yield();
        }
    }
    bare_thread_join(&thread);
    context_reap();
}

TEST(a_context_ends_while_a_wakeup_is_in_flight)
{
    run_rounds(begin_with_coroutine, wake_parked);
}

static void finish(void *opaque)
{
    Relay *relay = opaque;

    relay->done = true;
}

static void post_end(Relay *relay, unsigned long round)
{
    if (round % 2) {
        aio_bh_schedule_oneshot(relay->ctx, finish, relay);
    } else {
        aio_bh_schedule_oneshot_embedded(relay->ctx, &relay->storage, finish,
                                         relay);
    }
}

TEST(a_context_ends_while_a_post_is_in_flight)
{
    run_rounds(nothing, post_end);
}

static void run_at_once(void *opaque)
{
    Relay *relay = opaque;

    relay->done = true;
}

static void schedule_end(Relay *relay, unsigned long round)
{
    Coroutine *co = coroutine_create(run_at_once, relay);

    if (round % 2) {
        aio_co_schedule(relay->ctx, co);
    } else {
        aio_co_enter(relay->ctx, co);
    }
}

TEST(a_context_ends_while_a_move_to_it_is_in_flight)
{
    run_rounds(nothing, schedule_end);
}

/* --- stopped amidst wake-ups ----------------------------------------------*/

enum {
    PARKED = 24,
    WAKERS = 3
};

typedef struct Guest {
    Coroutine *co;
    unsigned long ran; /* plain: on the thread that it has resumed on */
    AioContext *where;
} Guest;

typedef struct Inn {
    Guest guests[PARKED];
    AioContext *away; /* where movers send them */
    unsigned next;    /* atomic; the guest that is to be woken next */
    unsigned ready;   /* atomic; wakers that have started */
    bool go;          /* atomic */
} Inn;

static Inn inn;

static void stay(void *opaque)
{
    Guest *guest = opaque;

    coroutine_yield();
    guest->where = aio_context_current();
    guest->ran++;
}

static void enter_guests(void *opaque)
{
    (void)opaque;
    for (int i = 0; i < PARKED; i++) {
        coroutine_enter(inn.guests[i].co);
    }
}

static void call_guests(void (*call)(Guest *guest))
{
    unsigned number;

    fetch_add_relaxed(&inn.ready, 1u);
    while (!load_acquire(&inn.go)) {
        spin_hint();
    }
    while ((number = fetch_add_relaxed(&inn.next, 1u)) < PARKED) {
        call(&inn.guests[number]);
    }
}

static void wake_guest(Guest *guest)
{
    aio_co_wake(guest->co);
}

static void wake_guests(void *opaque)
{
    (void)opaque;
    call_guests(wake_guest);
}

static void move_guest(Guest *guest)
{
    aio_co_schedule(inn.away, guest->co);
}

static void move_guests(void *opaque)
{
    (void)opaque;
    call_guests(move_guest);
}

static IOThread *open_inn(void)
{
    IOThread *iothread;

    CHECK_EQ(iothread_new(&iothread, "inn", NULL), 0);
    store_relaxed(&inn.next, 0u);
    store_relaxed(&inn.ready, 0u);
    store_relaxed(&inn.go, false);
    for (int i = 0; i < PARKED; i++) {
        inn.guests[i] = (Guest){.ran = 0};
        inn.guests[i].co = coroutine_create(stay, &inn.guests[i]);
    }
    loop_call(iothread_context(iothread), enter_guests, NULL);
    return iothread;
}

/* Stop the thread while the others call its guests; all have when it returns.
 */
static void stop_amidst(IOThread *iothread, void (*call)(void *opaque),
                        unsigned long round)
{
    BareThread threads[WAKERS];

    for (int i = 0; i < WAKERS; i++) {
        bare_thread_start(&threads[i], call, NULL);
    }
    while (load_relaxed(&inn.ready) < WAKERS) {
        sched_yield();
    }
    store_release(&inn.go, true);
    for (unsigned spin = 0; spin < (unsigned)(round % 50) * 20; spin++) {
        spin_hint();
    }
    iothread_stop(iothread);
    for (int i = 0; i < WAKERS; i++) {
        bare_thread_join(&threads[i]);
    }
}

static unsigned long count_guests(void)
{
    unsigned long ran = 0;

    for (int i = 0; i < PARKED; i++) {
        CHECK(inn.guests[i].ran <= 1);
        ran += inn.guests[i].ran;
    }
    return ran;
}

/* The contexts of these rounds stay: what was left in them keeps them. */
TEST(each_wakeup_runs_or_is_counted_as_lost)
{
    static IOThread *volatile kept[200]; /* reachable, for leak checkers */
    unsigned long rounds = harness_load(sizeof(kept) / sizeof(*kept));

    harness_allow_fds(4 * 200);
    for (unsigned long round = 0; round < rounds; round++) {
        IOThread *iothread = open_inn();
        AioContext *ctx = iothread_context(iothread);

        stop_amidst(iothread, wake_guests, round);
        CHECK_EQ(count_guests() + load_relaxed(&ctx->lost_wakeups), PARKED);
        if (count_guests() == PARKED) {
            iothread_unref(iothread);
        } else {
            kept[round] = iothread;
        }
    }
}

TEST(each_move_arrives)
{
    LoopThread loop;

    loop_thread_start(&loop, "away");
    inn.away = loop.ctx;
    for (unsigned long round = harness_load(200); round > 0; round--) {
        IOThread *iothread = open_inn();

        stop_amidst(iothread, move_guests, round);
        iothread_unref(iothread);
        loop_flush(loop.ctx);
        CHECK_EQ(count_guests(), PARKED);
        for (int i = 0; i < PARKED; i++) {
            CHECK_EQ(inn.guests[i].where, loop.ctx);
        }
    }
    loop_thread_stop(&loop);
    context_reap();
}

TEST_MAIN()
