/* SPDX-License-Identifier: MIT */
/*
 * Moving coroutines: aio_co_schedule(), aio_co_enter(), co_reschedule_self().
 *
 * The heart is a table: coroutines in each state, given to a context by each
 * kind of caller; wherever they come from, they have to resume once, on the
 * thread of that context, with it as their home, and never within the call.
 */
#include "harness.h"
#include "loopthread.h"

#include <coaio/coroutine.h>
#include <coaio/wake.h>
#include <string.h>

static AioContext *attach_new(const char *name)
{
    AioContextOptions options = {.size = sizeof(options), .name = name};
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    aio_context_attach(ctx);
    return ctx;
}

static void enter_it(void *arg)
{
    coroutine_enter(arg);
}

/* --- the table ------------------------------------------------------------*/

typedef struct Traveller {
    Coroutine *co;
    AioContext *target;
    AioContext *seen; /* the home when it went on */
    pthread_t thread;
    int steps;
} Traveller;

static void travel(void *opaque)
{
    Traveller *t = opaque;

    CHECK_EQ(coroutine_self(), t->co);
    CHECK_EQ(coroutine_context(t->co), aio_context_current());
    t->seen = coroutine_context(t->co);
    t->thread = this_thread();
    t->steps++;
}

static void park_and_travel(void *opaque)
{
    coroutine_yield();
    travel(opaque);
}

/* The main thread is `home`; the others are these. */
typedef struct World {
    AioContext *home;
    LoopThread near; /* where coroutines "elsewhere" live */
    LoopThread target;
} World;

static void create_parked(void *arg)
{
    Traveller *t = arg;

    t->co = coroutine_create(park_and_travel, t);
    coroutine_enter(t->co);
}

static void create_new(void *arg)
{
    Traveller *t = arg;

    t->co = coroutine_create(travel, t);
}

typedef void MakeFn(World *world, Traveller *t);

static void make_new_homeless(World *world, Traveller *t)
{
    (void)world;
    run_in_thread(create_new, t);
}

static void make_parked_homeless(World *world, Traveller *t)
{
    (void)world;
    run_in_thread(create_parked, t);
}

static void make_new_here(World *world, Traveller *t)
{
    (void)world;
    create_new(t);
}

static void make_parked_here(World *world, Traveller *t)
{
    (void)world;
    create_parked(t);
}

static void make_new_near(World *world, Traveller *t)
{
    loop_call(world->near.ctx, create_new, t);
}

static void make_parked_near(World *world, Traveller *t)
{
    loop_call(world->near.ctx, create_parked, t);
}

static void make_parked_at_target(World *world, Traveller *t)
{
    loop_call(world->target.ctx, create_parked, t);
}

static MakeFn *const makers[] = {
    make_new_homeless,     make_parked_homeless, make_new_here,
    make_parked_here,      make_new_near,        make_parked_near,
    make_parked_at_target,
};

/* The callers: each calls move(t) in its place. */
typedef void MoveFn(void *traveller);
typedef void CallFn(World *world, MoveFn *move, Traveller *t);

static void call_here(World *world, MoveFn *move, Traveller *t)
{
    (void)world;
    move(t);
}

static void call_in_coroutine(World *world, MoveFn *move, Traveller *t)
{
    (void)world;
    coroutine_enter(coroutine_create(move, t));
}

static void call_bare(World *world, MoveFn *move, Traveller *t)
{
    (void)world;
    run_in_thread(move, t);
}

typedef struct InCoroutine {
    MoveFn *move;
    Traveller *t;
} InCoroutine;

static void enter_mover(void *arg)
{
    InCoroutine *in = arg;

    coroutine_enter(coroutine_create(in->move, in->t));
}

static void call_bare_coroutine(World *world, MoveFn *move, Traveller *t)
{
    InCoroutine in = {move, t};

    (void)world;
    run_in_thread(enter_mover, &in);
}

static void call_near(World *world, MoveFn *move, Traveller *t)
{
    loop_call(world->near.ctx, move, t);
}

static void call_near_coroutine(World *world, MoveFn *move, Traveller *t)
{
    InCoroutine in = {move, t};

    loop_call(world->near.ctx, enter_mover, &in);
}

static void call_target(World *world, MoveFn *move, Traveller *t)
{
    loop_call(world->target.ctx, move, t);
}

static void call_target_coroutine(World *world, MoveFn *move, Traveller *t)
{
    InCoroutine in = {move, t};

    loop_call(world->target.ctx, enter_mover, &in);
}

static CallFn *const callers[] = {
    call_here, call_in_coroutine,   call_bare,   call_bare_coroutine,
    call_near, call_near_coroutine, call_target, call_target_coroutine,
};

/* Let whatever is under way arrive: it may pass through its old home. */
static void settle(World *world)
{
    aio_poll(world->home, false);
    loop_flush(world->near.ctx);
    loop_flush(world->target.ctx);
}

static void try_each(MoveFn *move)
{
    World world;

    world.home = attach_new("home");
    loop_thread_start(&world.near, "near");
    loop_thread_start(&world.target, "target");
    for (unsigned m = 0; m < sizeof(makers) / sizeof(*makers); m++) {
        for (unsigned c = 0; c < sizeof(callers) / sizeof(*callers); c++) {
            Traveller t = {.target = world.target.ctx};

            makers[m](&world, &t);
            callers[c](&world, move, &t);
            settle(&world);
            if (t.steps != 1 || t.seen != t.target ||
                !pthread_equal(t.thread, world.target.thread)) {
                harness_fail(__FILE__, __LINE__,
                             "maker %u, caller %u: %d steps, home %p", m, c,
                             t.steps, (void *)t.seen);
            }
        }
    }
    loop_thread_stop(&world.near);
    loop_thread_stop(&world.target);
    aio_context_unref(world.home);
}

static void schedule_traveller(void *arg)
{
    Traveller *t = arg;
    bool here = aio_context_current() == t->target;

    aio_co_schedule(t->target, t->co);
    /* Elsewhere it may run meanwhile; here it cannot, unless it was nested. */
    CHECK(!here || t->steps == 0);
}

TEST(schedule_from_everywhere)
{
    try_each(schedule_traveller);
}

static void enter_traveller(void *arg)
{
    Traveller *t = arg;

    aio_co_enter(t->target, t->co);
}

TEST(co_enter_from_everywhere)
{
    try_each(enter_traveller);
}

/* --- aio_co_schedule() ----------------------------------------------------*/

static char trail[64];

static void mark(char c)
{
    size_t length = strlen(trail);

    CHECK(length + 1 < sizeof(trail));
    trail[length] = c;
}

static void mark_letter(void *opaque)
{
    mark(*(const char *)opaque);
}

static Coroutine *letter(const char *text)
{
    return coroutine_create(mark_letter, (void *)text);
}

TEST(scheduled_run_first_in_first_out_with_bottom_halves)
{
    AioContext *ctx = attach_new("home");

    aio_co_schedule(ctx, letter("a"));
    aio_bh_schedule_oneshot(ctx, mark_letter, (void *)"1");
    aio_co_schedule(ctx, letter("b"));
    aio_co_schedule(ctx, letter("c"));
    aio_bh_schedule_oneshot(ctx, mark_letter, (void *)"2");
    CHECK_STR(trail, "");
    CHECK(aio_poll(ctx, true));
    CHECK_STR(trail, "a1bc2");
    CHECK(!aio_poll(ctx, false));
    aio_context_unref(ctx);
}

static void schedule_self(void *opaque)
{
    mark('1');
    aio_co_schedule(opaque, coroutine_self());
    mark('2');
    coroutine_yield();
    mark('3');
}

TEST(one_that_schedules_itself_resumes_in_the_next_pass)
{
    AioContext *ctx = attach_new("home");

    coroutine_enter(coroutine_create(schedule_self, ctx));
    CHECK_STR(trail, "12");
    CHECK(aio_poll(ctx, true));
    CHECK_STR(trail, "123");
    aio_context_unref(ctx);
}

TEST(one_scheduled_to_an_unbound_context_waits_for_it)
{
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    aio_co_schedule(ctx, letter("a"));
    CHECK_STR(trail, "");
    CHECK(aio_poll(ctx, true));
    CHECK_STR(trail, "a");
    aio_context_unref(ctx);
}

static void schedule_self_elsewhere(void *opaque)
{
    Traveller *t = opaque;

    aio_co_schedule(t->target, coroutine_self());
    CHECK(!pthread_equal(this_thread(), t->thread));
    t->steps = 10;
    coroutine_yield();
    travel(t);
}

/* From a coroutine that has a home, and from one that has none. */
TEST(one_that_schedules_itself_elsewhere_moves_when_it_yields)
{
    for (int homeless = 0; homeless <= 1; homeless++) {
        AioContext *ctx = homeless ? NULL : attach_new("home");
        LoopThread loop;
        Traveller t = {.steps = 0};

        loop_thread_start(&loop, "target");
        t.target = loop.ctx;
        t.thread = loop.thread;
        t.co = coroutine_create(schedule_self_elsewhere, &t);
        if (homeless) {
            run_in_thread(enter_it, t.co);
        } else {
            coroutine_enter(t.co);
        }
        loop_flush(loop.ctx);
        CHECK_EQ(t.steps, 11);
        CHECK_EQ(t.seen, loop.ctx);
        CHECK(pthread_equal(t.thread, loop.thread));
        loop_thread_stop(&loop);
        aio_context_unref(ctx);
    }
}

typedef struct Late {
    Traveller t;
    sem_t running;
    sem_t go_on;
} Late;

static void yield_late(void *opaque)
{
    Late *late = opaque;

    gate_open(&late->running);
    gate_pass(&late->go_on);
    CHECK_EQ(late->t.steps, 0);
    coroutine_yield();
    travel(&late->t);
}

/* It runs over there and is about to yield: it moves when it has. */
static void move_before_it_yields(MoveFn *move)
{
    LoopThread home, target;
    Late late = {.t.steps = 0};

    gate_init(&late.running);
    gate_init(&late.go_on);
    loop_thread_start(&home, "old home");
    loop_thread_start(&target, "target");
    late.t.target = target.ctx;
    late.t.co = coroutine_create(yield_late, &late);
    aio_bh_schedule_oneshot(home.ctx, enter_it, late.t.co);
    gate_pass(&late.running);
    move(&late.t);
    loop_flush(target.ctx);
    CHECK_EQ(late.t.steps, 0);
    gate_open(&late.go_on);
    loop_flush(home.ctx);
    loop_flush(target.ctx);
    CHECK_EQ(late.t.steps, 1);
    CHECK_EQ(late.t.seen, target.ctx);
    CHECK(pthread_equal(late.t.thread, target.thread));
    loop_thread_stop(&home);
    loop_thread_stop(&target);
}

TEST(schedule_waits_for_the_yield_in_another_context)
{
    move_before_it_yields(schedule_traveller);
}

TEST(co_enter_waits_for_the_yield_in_another_context)
{
    move_before_it_yields(enter_traveller);
}

static void enter_traveller_here(void *arg)
{
    Late *late = arg;

    aio_co_enter(late->t.target, late->t.co);
    CHECK_EQ(late->t.steps, 0);
}

/* The same, called on the target's own thread: it cannot enter at once. */
TEST(co_enter_on_the_thread_of_the_target_waits_for_the_yield)
{
    LoopThread home, target;
    Late late = {.t.steps = 0};

    gate_init(&late.running);
    gate_init(&late.go_on);
    loop_thread_start(&home, "old home");
    loop_thread_start(&target, "target");
    late.t.target = target.ctx;
    late.t.co = coroutine_create(yield_late, &late);
    aio_bh_schedule_oneshot(home.ctx, enter_it, late.t.co);
    gate_pass(&late.running);
    loop_call(target.ctx, enter_traveller_here, &late);
    gate_open(&late.go_on);
    loop_flush(home.ctx);
    loop_flush(target.ctx);
    CHECK_EQ(late.t.seen, target.ctx);
    loop_thread_stop(&home);
    loop_thread_stop(&target);
}

/* --- aio_co_enter() -------------------------------------------------------*/

static void park_and_mark(void *opaque)
{
    coroutine_yield();
    mark(*(const char *)opaque);
}

static Coroutine *parked_letter(const char *text)
{
    Coroutine *co = coroutine_create(park_and_mark, (void *)text);

    coroutine_enter(co);
    return co;
}

TEST(co_enter_outside_coroutines_enters_at_once)
{
    Coroutine *homeless = letter("a");
    Coroutine *parked = parked_letter("b");
    AioContext *ctx = attach_new("home");

    aio_co_enter(ctx, homeless);
    mark('1');
    aio_co_enter(ctx, parked);
    mark('2');
    aio_co_enter(ctx, letter("c"));
    mark('3');
    aio_co_enter(ctx, parked_letter("d"));
    mark('4');
    CHECK_STR(trail, "a1b2c3d4");
    aio_context_unref(ctx);
}

static void co_enter_three(void *opaque)
{
    Coroutine **co = opaque;
    AioContext *ctx = aio_context_current();

    for (int i = 0; i < 3; i++) {
        mark('(');
        aio_co_enter(ctx, co[i]);
        mark(')');
    }
}

/* Also those without a home until now. */
TEST(co_enter_in_a_coroutine_defers)
{
    Coroutine *co[3] = {letter("a"), parked_letter("b"), NULL};
    AioContext *ctx = attach_new("home");

    co[2] = parked_letter("c");
    coroutine_enter(coroutine_create(co_enter_three, co));
    CHECK_STR(trail, "()()()abc");
    aio_context_unref(ctx);
}

static void co_enter_self(void *opaque)
{
    mark('1');
    aio_co_enter(opaque, coroutine_self());
    mark('2');
    coroutine_yield();
    mark('3');
    CHECK_EQ(aio_context_current(), opaque);
}

TEST(co_enter_of_oneself_goes_on_after_the_yield)
{
    AioContext *ctx = attach_new("home");

    coroutine_enter(coroutine_create(co_enter_self, ctx));
    CHECK_STR(trail, "123");
    aio_context_unref(ctx);
}

TEST(co_enter_of_oneself_elsewhere_moves)
{
    AioContext *ctx = attach_new("home");
    LoopThread loop;

    loop_thread_start(&loop, "target");
    coroutine_enter(coroutine_create(co_enter_self, loop.ctx));
    loop_flush(loop.ctx);
    CHECK_STR(trail, "123");
    loop_thread_stop(&loop);
    aio_context_unref(ctx);
}

static void co_enter_here(void *arg)
{
    mark('(');
    aio_co_enter(aio_context_current(), arg);
    mark(')');
}

/* One that lives elsewhere must come from there: not at once. */
TEST(co_enter_fetches_one_from_another_context)
{
    AioContext *ctx = attach_new("home");
    LoopThread loop;

    loop_thread_start(&loop, "target");
    loop_call(loop.ctx, co_enter_here, parked_letter("a"));
    CHECK_STR(trail, "()");
    aio_poll(ctx, true); /* sends it on; that is no callback */
    loop_flush(loop.ctx);
    CHECK_STR(trail, "()a");
    loop_thread_stop(&loop);
    aio_context_unref(ctx);
}

/* --- co_reschedule_self() -------------------------------------------------*/

static void stay(void *opaque)
{
    mark('1');
    co_reschedule_self(opaque);
    mark('2');
    CHECK_EQ(coroutine_context(coroutine_self()), opaque);
}

TEST(reschedule_self_to_where_it_is_does_not_suspend)
{
    AioContext *ctx = attach_new("home");

    coroutine_enter(coroutine_create(stay, ctx));
    CHECK_STR(trail, "12");
    aio_context_unref(ctx);
}

typedef struct Commuter {
    AioContext *ends[2];
    unsigned long hops;
    sem_t done;
} Commuter;

static void commute(void *opaque)
{
    Commuter *c = opaque;

    for (unsigned long i = 0; i < c->hops; i++) {
        AioContext *to = c->ends[i % 2];

        co_reschedule_self(to);
        CHECK_EQ(aio_context_current(), to);
        CHECK_EQ(coroutine_context(coroutine_self()), to);
    }
    gate_open(&c->done);
}

/* Begins without a home, which is as good a place as any. */
TEST(reschedule_self_by_the_hundred_thousand)
{
    Commuter c = {.hops = harness_load(200000)};
    LoopThread loops[2];

    loop_thread_start(&loops[0], "one");
    loop_thread_start(&loops[1], "two");
    c.ends[0] = loops[0].ctx;
    c.ends[1] = loops[1].ctx;
    gate_init(&c.done);
    coroutine_enter(coroutine_create(commute, &c));
    gate_pass(&c.done);
    loop_thread_stop(&loops[0]);
    loop_thread_stop(&loops[1]);
}

/* With an inner coroutine, only the caller moves; its enterer stays. */
static void move_away(void *opaque)
{
    mark('i');
    co_reschedule_self(opaque);
    mark('j');
}

static void enter_one_that_moves(void *opaque)
{
    AioContext *here = aio_context_current();

    mark('<');
    coroutine_enter(coroutine_create(move_away, opaque));
    CHECK_EQ(aio_context_current(), here);
    CHECK_EQ(coroutine_context(coroutine_self()), here);
}

TEST(reschedule_self_of_a_nested_one_returns_to_its_enterer)
{
    AioContext *ctx = attach_new("home");
    LoopThread loop;

    loop_thread_start(&loop, "target");
    coroutine_enter(coroutine_create(enter_one_that_moves, loop.ctx));
    loop_flush(loop.ctx);
    CHECK_STR(trail, "<ij");
    loop_thread_stop(&loop);
    aio_context_unref(ctx);
}

TEST_MAIN()
