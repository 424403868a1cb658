/* SPDX-License-Identifier: MIT */
/*
 * aio_co_wake(): at once, deferred or posted, by where the caller stands; in
 * order, never nested, never on a growing stack.  Moving coroutines between
 * contexts: test_wake_move; misuse: test_wake_misuse.
 */
#include "coroutine/coroutine_int.h"
#include "harness.h"
#include "loopthread.h"

#include <coaio/coroutine.h>
#include <coaio/wake.h>
#include <string.h>

static char trail[256];

static void mark(char c)
{
    size_t length = strlen(trail);

    CHECK(length + 1 < sizeof(trail));
    trail[length] = c;
}

static AioContext *attach_new(const char *name)
{
    AioContextOptions options = {.size = sizeof(options), .name = name};
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    aio_context_attach(ctx);
    return ctx;
}

/* It was entered from outside, or straight from one that had left. */
static void check_not_nested(void)
{
    CHECK(coroutine_self()->caller == NULL);
}

static void park_and_mark(void *opaque)
{
    const char *letter = opaque;

    coroutine_yield();
    check_not_nested();
    mark(*letter);
}

/* A parked one that marks its letter when it goes on, and ends. */
static Coroutine *parked(const char *letter)
{
    Coroutine *co = coroutine_create(park_and_mark, (void *)letter);

    coroutine_enter(co);
    return co;
}

/* --- from home, outside coroutines ----------------------------------------*/

TEST(outside_coroutines_it_enters_at_once)
{
    AioContext *ctx = attach_new("home");

    mark('<');
    aio_co_wake(parked("a"));
    mark('>');
    CHECK_STR(trail, "<a>");
    aio_context_unref(ctx);
}

static void wake_it(void *opaque)
{
    mark('(');
    aio_co_wake(opaque);
    mark(')');
}

TEST(from_a_bottom_half_it_enters_at_once)
{
    AioContext *ctx = attach_new("home");

    aio_bh_schedule_oneshot(ctx, wake_it, parked("a"));
    CHECK(aio_poll(ctx, true));
    CHECK_STR(trail, "(a)");
    aio_context_unref(ctx);
}

/* A new one may be woken, too: then it begins. */
static void just_mark(void *opaque)
{
    check_not_nested();
    mark(*(const char *)opaque);
}

TEST(a_new_one_begins_when_woken)
{
    AioContext *ctx = attach_new("home");

    aio_co_wake(coroutine_create(just_mark, (void *)"a"));
    CHECK_STR(trail, "a");
    coroutine_enter(
        coroutine_create(wake_it, coroutine_create(just_mark, (void *)"b")));
    CHECK_STR(trail, "a()b");
    aio_context_unref(ctx);
}

/* --- in a coroutine of the same context -----------------------------------*/

static void wake_three(void *opaque)
{
    Coroutine **co = opaque;

    for (int i = 0; i < 3; i++) {
        mark('(');
        aio_co_wake(co[i]);
        mark(')');
    }
    mark('.');
    coroutine_yield();
    mark('!');
}

TEST(in_a_coroutine_they_wait_for_its_yield_in_order)
{
    AioContext *ctx = attach_new("home");
    Coroutine *co[3] = {parked("a"), parked("b"), parked("c")};
    Coroutine *waker = coroutine_create(wake_three, co);

    mark('<');
    coroutine_enter(waker);
    mark('>');
    CHECK_STR(trail, "<()()().abc>");
    coroutine_enter(waker);
    CHECK_STR(trail, "<()()().abc>!");
    aio_context_unref(ctx);
}

static void wake_and_end(void *opaque)
{
    Coroutine **co = opaque;

    aio_co_wake(co[1]);
    aio_co_wake(co[0]);
    mark('.');
}

TEST(in_a_coroutine_they_wait_for_its_end)
{
    AioContext *ctx = attach_new("home");
    Coroutine *co[2] = {parked("a"), parked("b")};

    mark('<');
    coroutine_enter(coroutine_create(wake_and_end, co));
    mark('>');
    CHECK_STR(trail, "<.ba>");
    aio_context_unref(ctx);
}

/* What a woken one wakes comes last, still before the enter returns. */
static void park_and_wake(void *opaque)
{
    Coroutine **co = opaque;

    coroutine_yield();
    check_not_nested();
    mark('w');
    aio_co_wake(co[2]);
    mark('.');
}

TEST(what_the_woken_wake_queues_behind)
{
    AioContext *ctx = attach_new("home");
    Coroutine *co[3];

    co[0] = coroutine_create(park_and_wake, co);
    coroutine_enter(co[0]);
    co[1] = parked("b");
    co[2] = parked("c");
    mark('<');
    coroutine_enter(coroutine_create(wake_and_end, co));
    mark('>');
    CHECK_STR(trail, "<.bw.c>");
    aio_context_unref(ctx);
}

static void enter_the_waker(void *opaque)
{
    Coroutine **co = opaque;

    mark('1');
    coroutine_enter(coroutine_create(wake_and_end, co));
    mark('2');
    coroutine_enter(co[2]);
    mark('3');
}

static void note_and_yield(void *opaque)
{
    mark(*(const char *)opaque);
    coroutine_yield();
    mark('?');
}

/* Not when the inner one leaves: control is not outside coroutines then. */
TEST(they_wait_for_the_outermost)
{
    AioContext *ctx = attach_new("home");
    Coroutine *co[3] = {parked("a"), parked("b")};

    co[2] = coroutine_create(note_and_yield, (void *)"n");
    coroutine_enter(coroutine_create(enter_the_waker, co));
    CHECK_STR(trail, "1.2n3ba");
    coroutine_enter(co[2]);
    aio_context_unref(ctx);
}

static void enter_from_bh(void *opaque)
{
    mark('[');
    coroutine_enter(coroutine_create(wake_and_end, opaque));
    mark(']');
}

TEST(they_run_before_an_enter_from_a_bottom_half_returns)
{
    AioContext *ctx = attach_new("home");
    Coroutine *co[2] = {parked("a"), parked("b")};

    aio_bh_schedule_oneshot(ctx, enter_from_bh, co);
    aio_poll(ctx, true);
    CHECK_STR(trail, "[.ba]");
    aio_context_unref(ctx);
}

/* --- woken before it has yielded ------------------------------------------*/

static void wake_self(void *opaque)
{
    (void)opaque;
    mark('a');
    aio_co_wake(coroutine_self());
    mark('b');
    coroutine_yield();
    mark('c');
    coroutine_yield();
    mark('d');
}

TEST(it_may_wake_itself)
{
    AioContext *ctx = attach_new("home");
    Coroutine *co = coroutine_create(wake_self, NULL);

    coroutine_enter(co);
    CHECK_STR(trail, "abc");
    coroutine_enter(co);
    CHECK_STR(trail, "abcd");
    aio_context_unref(ctx);
}

/* Its own wake-up has no precedence over those before. */
static void wake_other_and_self(void *opaque)
{
    aio_co_wake(opaque);
    aio_co_wake(coroutine_self());
    mark('.');
    coroutine_yield();
    mark('s');
}

TEST(its_own_wakeup_waits_its_turn)
{
    AioContext *ctx = attach_new("home");

    coroutine_enter(coroutine_create(wake_other_and_self, parked("a")));
    CHECK_STR(trail, ".as");
    aio_context_unref(ctx);
}

static void wake_enterer(void *opaque)
{
    mark('(');
    aio_co_wake(opaque);
    mark(')');
}

static void enter_one_that_wakes_us(void *opaque)
{
    (void)opaque;
    coroutine_enter(coroutine_create(wake_enterer, coroutine_self()));
    mark('.');
    coroutine_yield();
    check_not_nested();
    mark('s');
}

TEST(the_enterer_may_be_woken_by_the_one_it_entered)
{
    AioContext *ctx = attach_new("home");

    coroutine_enter(coroutine_create(enter_one_that_wakes_us, NULL));
    CHECK_STR(trail, "().s");
    aio_context_unref(ctx);
}

typedef struct SlowYielder {
    sem_t running;
    sem_t woken;
    Coroutine *co;
    int steps;
} SlowYielder;

/* Yields only when somebody else says that he has woken it. */
static void yield_late(void *opaque)
{
    SlowYielder *slow = opaque;

    slow->steps = 1;
    gate_open(&slow->running);
    gate_pass(&slow->woken);
    CHECK_EQ(slow->steps, 1);
    coroutine_yield();
    CHECK_EQ(aio_context_current(), coroutine_context(slow->co));
    slow->steps = 2;
}

static void enter_it(void *arg)
{
    coroutine_enter(arg);
}

static void wake_in_thread(void *arg)
{
    aio_co_wake(arg);
}

static void wake_before_it_yields(void (*wake)(SlowYielder *slow))
{
    SlowYielder slow;
    LoopThread loop;

    gate_init(&slow.running);
    gate_init(&slow.woken);
    loop_thread_start(&loop, "slow");
    slow.co = coroutine_create(yield_late, &slow);
    aio_bh_schedule_oneshot(loop.ctx, enter_it, slow.co);
    gate_pass(&slow.running);
    wake(&slow);
    gate_open(&slow.woken);
    loop_flush(loop.ctx);
    CHECK_EQ(slow.steps, 2);
    loop_thread_stop(&loop);
}

static void wake_from_here(SlowYielder *slow)
{
    aio_co_wake(slow->co);
}

static void wake_from_bare_thread(SlowYielder *slow)
{
    run_in_thread(wake_in_thread, slow->co);
}

TEST(another_context_may_wake_it_before_it_has_yielded)
{
    AioContext *ctx = attach_new("home");

    wake_before_it_yields(wake_from_here);
    aio_context_unref(ctx);
}

TEST(a_bare_thread_may_wake_it_before_it_has_yielded)
{
    wake_before_it_yields(wake_from_bare_thread);
}

/* --- from elsewhere -------------------------------------------------------*/

TEST(from_a_bare_thread_it_is_posted)
{
    AioContext *ctx = attach_new("home");

    run_in_thread(wake_in_thread, parked("a"));
    CHECK_STR(trail, "");
    CHECK(aio_poll(ctx, true));
    CHECK_STR(trail, "a");
    aio_context_unref(ctx);
}

TEST(from_another_context_it_is_posted)
{
    AioContext *ctx = attach_new("home");
    LoopThread loop;

    loop_thread_start(&loop, "other");
    loop_call(loop.ctx, wake_in_thread, parked("a"));
    CHECK_STR(trail, "");
    CHECK(aio_poll(ctx, true));
    CHECK_STR(trail, "a");
    loop_thread_stop(&loop);
    aio_context_unref(ctx);
}

static void wake_in_coroutine(void *arg)
{
    coroutine_enter(coroutine_create(wake_in_thread, arg));
}

TEST(from_a_coroutine_of_another_context_it_is_posted)
{
    AioContext *ctx = attach_new("home");
    LoopThread loop;

    loop_thread_start(&loop, "other");
    loop_call(loop.ctx, wake_in_coroutine, parked("a"));
    CHECK_STR(trail, "");
    CHECK(aio_poll(ctx, true));
    CHECK_STR(trail, "a");
    loop_thread_stop(&loop);
    aio_context_unref(ctx);
}

TEST(from_a_homeless_coroutine_it_is_posted)
{
    AioContext *ctx = attach_new("home");

    run_in_thread(wake_in_coroutine, parked("a"));
    CHECK_STR(trail, "");
    CHECK(aio_poll(ctx, true));
    CHECK_STR(trail, "a");
    aio_context_unref(ctx);
}

typedef struct Mixed {
    AioContext *ctx;
    Coroutine *co[3];
} Mixed;

static void mark_bh(void *opaque)
{
    CHECK(!in_coroutine());
    mark(*(const char *)opaque);
}

static void post_mixed(void *arg)
{
    Mixed *mixed = arg;

    aio_bh_schedule_oneshot(mixed->ctx, mark_bh, (void *)"1");
    aio_co_wake(mixed->co[0]);
    aio_bh_schedule_oneshot(mixed->ctx, mark_bh, (void *)"2");
    aio_co_wake(mixed->co[1]);
    aio_co_wake(mixed->co[2]);
    aio_bh_schedule_oneshot(mixed->ctx, mark_bh, (void *)"3");
}

TEST(posted_they_keep_their_place_among_bottom_halves)
{
    AioContext *ctx = attach_new("home");
    Mixed mixed = {ctx, {parked("a"), parked("b"), parked("c")}};

    run_in_thread(post_mixed, &mixed);
    aio_poll(ctx, true);
    CHECK_STR(trail, "1a2bc3");
    aio_context_unref(ctx);
}

/* --- chains ---------------------------------------------------------------*/

enum {
    RING = 1000,
    ROUNDS = 25
};

typedef struct Wheel {
    Coroutine *co[RING];
    unsigned long woken;
    void *leader_sp; /* of the thread's stack when the first one ran */
} Wheel;

typedef struct Spoke {
    Wheel *wheel;
    int number;
} Spoke;

/* Wakes its neighbour each time it is woken; the thread's stack stays. */
static void pass_on(void *opaque)
{
    Spoke *spoke = opaque;
    Wheel *wheel = spoke->wheel;
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);

    for (int i = 0; i < ROUNDS; i++) {
        coroutine_yield();
        check_not_nested();
        CHECK_EQ((uintptr_t)__builtin_frame_address(0), here);
        if (wheel->woken++ == 0) {
            wheel->leader_sp = os_thread()->leader_sp;
        }
        CHECK_EQ(os_thread()->leader_sp, wheel->leader_sp);
        if (wheel->woken < RING * ROUNDS) {
            aio_co_wake(wheel->co[(spoke->number + 1) % RING]);
        }
    }
}

static void make_wheel(Wheel *wheel, Spoke *spokes)
{
    for (int i = 0; i < RING; i++) {
        spokes[i].wheel = wheel;
        spokes[i].number = i;
        wheel->co[i] = coroutine_create(pass_on, &spokes[i]);
        coroutine_enter(wheel->co[i]);
    }
}

TEST(twenty_five_thousand_in_a_chain_need_no_stack)
{
    static Wheel wheel;
    static Spoke spokes[RING];
    AioContext *ctx = attach_new("home");

    make_wheel(&wheel, spokes);
    aio_co_wake(wheel.co[0]);
    CHECK_EQ(wheel.woken, RING * ROUNDS);
    aio_context_unref(ctx);
}

/* The same with the chain started from a coroutine, and all ends on the way. */
static void wake_next_and_end(void *opaque)
{
    Spoke *spoke = opaque;
    Wheel *wheel = spoke->wheel;

    coroutine_yield();
    check_not_nested();
    wheel->woken++;
    if (spoke->number + 1 < RING) {
        aio_co_wake(wheel->co[spoke->number + 1]);
    }
}

TEST(a_chain_of_ends_needs_no_stack)
{
    static Wheel wheel;
    static Spoke spokes[RING];
    AioContext *ctx = attach_new("home");

    for (int round = 0; round < ROUNDS; round++) {
        wheel.woken = 0;
        for (int i = 0; i < RING; i++) {
            spokes[i] = (Spoke){&wheel, i};
            wheel.co[i] = coroutine_create(wake_next_and_end, &spokes[i]);
            coroutine_enter(wheel.co[i]);
        }
        coroutine_enter(coroutine_create(wake_in_thread, wheel.co[0]));
        CHECK_EQ(wheel.woken, RING);
    }
    aio_context_unref(ctx);
}

typedef struct Pair {
    Coroutine *co[2];
    unsigned long left;
} Pair;

static void ping(Pair *pair, int own)
{
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);

    while (pair->left > 0) {
        pair->left--;
        aio_co_wake(pair->co[!own]);
        coroutine_yield();
        CHECK_EQ((uintptr_t)__builtin_frame_address(0), here);
        check_not_nested();
    }
    if (pair->co[!own]) {
        pair->co[own] = NULL;
        aio_co_wake(pair->co[!own]);
    }
}

static void ping_first(void *opaque)
{
    ping(opaque, 0);
}

static void ping_second(void *opaque)
{
    coroutine_yield();
    ping(opaque, 1);
}

TEST(two_wake_each_other_for_long)
{
    AioContext *ctx = attach_new("home");
    Pair pair = {.left = harness_load(100000)};

    pair.co[0] = coroutine_create(ping_first, &pair);
    pair.co[1] = coroutine_create(ping_second, &pair);
    coroutine_enter(pair.co[1]);
    coroutine_enter(pair.co[0]);
    CHECK_EQ(pair.left, 0);
    aio_context_unref(ctx);
}

static void wake_self_often(void *opaque)
{
    unsigned long *left = opaque;

    while (*left > 0) {
        aio_co_wake(coroutine_self());
        coroutine_yield();
        check_not_nested();
        --*left;
    }
}

TEST(one_wakes_itself_for_long)
{
    AioContext *ctx = attach_new("home");
    unsigned long left = harness_load(100000);

    coroutine_enter(coroutine_create(wake_self_often, &left));
    CHECK_EQ(left, 0);
    aio_context_unref(ctx);
}

TEST_MAIN()
