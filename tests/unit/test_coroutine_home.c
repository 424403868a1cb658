/* SPDX-License-Identifier: MIT */
/*
 * Where a coroutine lives: its home at birth, coroutines without one on bare
 * threads, and coroutine_enter() on the thread of another context, which
 * moves it.  What wake-ups and aio_co_schedule() do to homes: test_wake_move.
 */
#include "coroutine/coroutine_int.h"
#include "harness.h"
#include "loopthread.h"

#include <coaio/coroutine.h>
#include <coaio/mutex.h>
#include <coaio/wake.h>

static AioContext *attach_new(const char *name)
{
    AioContextOptions options = {.size = sizeof(options), .name = name};
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    aio_context_attach(ctx);
    return ctx;
}

static void do_nothing(void *opaque)
{
    (void)opaque;
}

/* --- birth ----------------------------------------------------------------*/

static void check_home(void *opaque)
{
    CHECK_EQ(coroutine_context(coroutine_self()), opaque);
    coroutine_yield();
    CHECK_EQ(coroutine_context(coroutine_self()), opaque);
}

TEST(born_without_a_context_it_has_no_home)
{
    Coroutine *co = coroutine_create(check_home, NULL);

    CHECK(coroutine_context(co) == NULL);
    coroutine_enter(co);
    CHECK(coroutine_context(co) == NULL);
    coroutine_enter(co);
}

/* An unbound context that exists is nobody's home. */
TEST(only_the_context_of_the_thread_counts)
{
    AioContext *ctx;
    Coroutine *co;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    co = coroutine_create(do_nothing, NULL);
    CHECK(coroutine_context(co) == NULL);
    coroutine_delete(co);
    aio_context_attach(ctx);
    co = coroutine_create(do_nothing, NULL);
    CHECK_EQ(coroutine_context(co), ctx);
    coroutine_delete(co);
    aio_context_unref(ctx);
}

TEST(born_on_the_thread_of_a_context_it_lives_there)
{
    AioContext *ctx = attach_new("home");
    Coroutine *co = coroutine_create(check_home, ctx);

    coroutine_enter(co);
    CHECK_EQ(coroutine_context(co), ctx);
    coroutine_enter(co);
    aio_context_unref(ctx);
}

static void create_inner(void *opaque)
{
    Coroutine **inner = opaque;

    *inner = coroutine_create(do_nothing, NULL);
}

TEST(born_in_a_coroutine_it_lives_where_that_runs)
{
    AioContext *ctx = attach_new("home");
    Coroutine *inner;

    coroutine_enter(coroutine_create(create_inner, &inner));
    CHECK_EQ(coroutine_context(inner), ctx);
    coroutine_enter(inner);
    aio_context_unref(ctx);
}

TEST(entered_on_the_thread_of_a_context_the_homeless_gets_a_home)
{
    Coroutine *parked = coroutine_create(check_home, NULL);
    Coroutine *new = coroutine_create(do_nothing, NULL);
    AioContext *ctx;

    coroutine_enter(coroutine_create(do_nothing, NULL));
    ctx = attach_new("home");
    CHECK(coroutine_context(new) == NULL);
    coroutine_delete(parked);
    parked = coroutine_create(check_home, ctx);
    coroutine_enter(parked);
    CHECK_EQ(coroutine_context(parked), ctx);
    coroutine_enter(parked);
    coroutine_enter(new);
    aio_context_unref(ctx);
}

static void note_homes(void *opaque)
{
    AioContext **homes = opaque;

    homes[0] = coroutine_context(coroutine_self());
    coroutine_yield();
    homes[1] = coroutine_context(coroutine_self());
}

/* One that has run without a home already gets one, too. */
TEST(a_parked_homeless_one_gets_a_home)
{
    AioContext *homes[2];
    Coroutine *co = coroutine_create(note_homes, homes);
    AioContext *ctx;

    coroutine_enter(co);
    ctx = attach_new("home");
    coroutine_enter(co);
    CHECK(homes[0] == NULL);
    CHECK_EQ(homes[1], ctx);
    aio_context_unref(ctx);
}

/* --- bare threads, one after the other ------------------------------------*/

enum {
    THREADS = 8
};

typedef struct Visitor {
    Coroutine *co;
    pthread_t threads[THREADS];
    int visits;
} Visitor;

static void visit(void *opaque)
{
    Visitor *visitor = opaque;

    while (visitor->visits < THREADS) {
        CHECK_EQ(coroutine_self(), visitor->co);
        CHECK(coroutine_context(visitor->co) == NULL);
        CHECK(aio_context_current() == NULL);
        visitor->threads[visitor->visits++] = this_thread();
        coroutine_yield();
    }
}

static void enter_visitor(void *arg)
{
    Visitor *visitor = arg;

    CHECK(!in_coroutine());
    CHECK(!coroutine_entered(visitor->co));
    coroutine_enter(visitor->co);
    CHECK(!in_coroutine());
}

TEST(the_homeless_runs_on_whatever_bare_thread_enters_it)
{
    Visitor visitor = {.visits = 0};

    visitor.co = coroutine_create(visit, &visitor);
    for (int i = 0; i < THREADS; i++) {
        BareThread bare;

        bare_thread_start(&bare, enter_visitor, &visitor);
        bare_thread_join(&bare);
        CHECK_EQ(visitor.visits, i + 1);
    }
    coroutine_enter(visitor.co);
}

/* All threads are there at once, so each is really another one. */
typedef struct Ring {
    Visitor visitor;
    sem_t turn[THREADS + 1];
} Ring;

typedef struct Seat {
    Ring *ring;
    int number;
    BareThread bare;
} Seat;

static void take_turn(void *arg)
{
    Seat *seat = arg;

    gate_pass(&seat->ring->turn[seat->number]);
    enter_visitor(&seat->ring->visitor);
    gate_open(&seat->ring->turn[seat->number + 1]);
}

TEST(the_homeless_moves_between_threads_that_live)
{
    Ring ring = {.visitor.visits = 0};
    Seat seats[THREADS];

    ring.visitor.co = coroutine_create(visit, &ring.visitor);
    for (int i = 0; i <= THREADS; i++) {
        gate_init(&ring.turn[i]);
    }
    for (int i = 0; i < THREADS; i++) {
        seats[i].ring = &ring;
        seats[i].number = i;
        bare_thread_start(&seats[i].bare, take_turn, &seats[i]);
    }
    gate_open(&ring.turn[0]);
    gate_pass(&ring.turn[THREADS]);
    for (int i = 0; i < THREADS; i++) {
        bare_thread_join(&seats[i].bare);
        CHECK(pthread_equal(ring.visitor.threads[i], seats[i].bare.thread));
    }
    coroutine_enter(ring.visitor.co);
}

/* --- locks ----------------------------------------------------------------*/

static CoMutex mutex;

static void lock_across_a_yield(void *opaque)
{
    (void)opaque;
    for (int i = 0; i < 3; i++) {
        co_mutex_lock(&mutex);
        coroutine_yield();
        co_mutex_unlock(&mutex);
    }
}

static void enter_in_thread(void *arg)
{
    coroutine_enter(arg);
}

TEST(the_homeless_may_take_free_locks)
{
    Coroutine *co = coroutine_create(lock_across_a_yield, NULL);

    for (int i = 0; i < 4; i++) {
        run_in_thread(enter_in_thread, co);
    }
}

TEST_ABORTS(the_homeless_cannot_wait_for_a_lock,
            "^coaio: coroutine 0x[0-9a-f]+ would have to wait for CoMutex "
            "0x[0-9a-f]+, but has no home to resume in: .*aio_co_enter\\(\\)")
{
    coroutine_enter(coroutine_create(lock_across_a_yield, NULL));
    coroutine_enter(coroutine_create(lock_across_a_yield, NULL));
}

/* --- entered on the thread of another context -----------------------------*/

typedef struct Mover {
    Coroutine *co;
    pthread_t threads[4];
    AioContext *homes[4];
    int steps;
} Mover;

static void note_steps(void *opaque)
{
    Mover *mover = opaque;

    while (mover->steps < 4) {
        CHECK_EQ(coroutine_context(mover->co), aio_context_current());
        mover->threads[mover->steps] = this_thread();
        mover->homes[mover->steps++] = coroutine_context(mover->co);
        coroutine_yield();
    }
}

TEST(entering_it_on_another_contexts_thread_moves_it)
{
    AioContext *ctx = attach_new("first");
    Mover mover = {.steps = 0};
    LoopThread loop;

    loop_thread_start(&loop, "second");
    mover.co = coroutine_create(note_steps, &mover);
    coroutine_enter(mover.co);
    loop_call(loop.ctx, enter_in_thread, mover.co);
    CHECK_EQ(mover.steps, 2);
    CHECK_EQ(coroutine_context(mover.co), loop.ctx);
    /* It lives there now: a wake-up from here goes there. */
    aio_co_wake(mover.co);
    loop_flush(loop.ctx);
    CHECK_EQ(mover.steps, 3);
    coroutine_enter(mover.co);
    CHECK_EQ(mover.steps, 4);
    CHECK_EQ(mover.homes[0], ctx);
    CHECK_EQ(mover.homes[1], loop.ctx);
    CHECK_EQ(mover.homes[2], loop.ctx);
    CHECK_EQ(mover.homes[3], ctx);
    CHECK(pthread_equal(mover.threads[1], loop.thread));
    CHECK(pthread_equal(mover.threads[2], loop.thread));
    CHECK(pthread_equal(mover.threads[3], this_thread()));
    coroutine_enter(mover.co);
    loop_thread_stop(&loop);
    aio_context_unref(ctx);
}

TEST(entering_a_new_one_on_another_contexts_thread_moves_it)
{
    AioContext *ctx = attach_new("first");
    Mover mover = {.steps = 0};
    LoopThread loop;

    loop_thread_start(&loop, "second");
    mover.co = coroutine_create(note_steps, &mover);
    CHECK_EQ(coroutine_context(mover.co), ctx);
    loop_call(loop.ctx, enter_in_thread, mover.co);
    CHECK_EQ(mover.steps, 1);
    CHECK_EQ(mover.homes[0], loop.ctx);
    for (int i = 0; i < 4; i++) {
        loop_call(loop.ctx, enter_in_thread, mover.co);
    }
    loop_thread_stop(&loop);
    aio_context_unref(ctx);
}

/* Entered from a coroutine over there; the yield goes back to that. */
static void enter_in_coroutine(void *arg)
{
    coroutine_enter(coroutine_create(enter_in_thread, arg));
}

TEST(a_coroutine_of_another_context_may_enter_it)
{
    AioContext *ctx = attach_new("first");
    Mover mover = {.steps = 0};
    LoopThread loop;

    loop_thread_start(&loop, "second");
    mover.co = coroutine_create(note_steps, &mover);
    coroutine_enter(mover.co);
    loop_call(loop.ctx, enter_in_coroutine, mover.co);
    CHECK_EQ(mover.homes[1], loop.ctx);
    coroutine_enter(mover.co);
    CHECK_EQ(mover.homes[2], ctx);
    coroutine_enter(mover.co);
    coroutine_enter(mover.co);
    loop_thread_stop(&loop);
    aio_context_unref(ctx);
}

TEST_MAIN()
