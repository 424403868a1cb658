/* SPDX-License-Identifier: MIT */
/*
 * Wake-ups on real threads: coroutines that schedule each other at random over
 * five I/O threads, with a token that must never get lost; coroutines that hop
 * contexts by the hundred thousand; many wakers of many coroutines; and
 * wake-ups that race with the yield that they are for.
 */
#include "base/atomic.h"
#include "coroutine/coroutine_int.h"
#include "harness.h"
#include "loopthread.h"

#include <coaio/coroutine.h>
#include <coaio/iothread.h>
#include <coaio/wake.h>
#include <sched.h>
#include <string.h>

enum {
    THREADS = 5
};

static IOThread *threads[THREADS];

static void start_threads(void)
{
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(iothread_new(&threads[i], "stress", NULL), 0);
    }
}

static void stop_threads(void)
{
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(iothread_stop(threads[i]), 0);
        iothread_unref(threads[i]);
    }
}

static AioContext *context(unsigned i)
{
    return iothread_context(threads[i % THREADS]);
}

static unsigned next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (unsigned)(*state >> 32);
}

/* --- the token ------------------------------------------------------------*/

enum {
    PLAYERS = 40
};

typedef struct Game Game;

typedef struct Player {
    Game *game;
    Coroutine *co;
    uint64_t random;
    bool parked; /* atomic; 1: whoever takes it to 0 may wake it */
} Player;

struct Game {
    Player players[PLAYERS];
    unsigned long holder; /* plain: passed on with the token alone */
    unsigned long passes; /* plain, likewise */
    unsigned long most;
    unsigned over; /* atomic; players that have ended */
    sem_t done;
};

/* Take the right to wake some player that is parked. */
static Player *take_parked(Game *game, uint64_t *random)
{
    for (;;) {
        Player *player = &game->players[next_random(random) % PLAYERS];
        bool parked = true;

        if (load_relaxed(&player->parked) &&
            cas_acq_rel(&player->parked, &parked, false)) {
            return player;
        }
        spin_hint();
    }
}

/* Wake it one way or another; where it wakes up is left to chance. */
static void wake_somehow(Player *player, uint64_t *random)
{
    switch (next_random(random) % 3) {
    case 0:
        aio_co_wake(player->co);
        break;
    case 1:
        aio_co_schedule(context(next_random(random)), player->co);
        break;
    default:
        aio_co_enter(context(next_random(random)), player->co);
        break;
    }
}

static void end_game(Game *game)
{
    /* Everybody else is parked, or about to be. */
    for (unsigned woken = 1; woken < PLAYERS; woken++) {
        uint64_t random = woken * 77;

        wake_somehow(take_parked(game, &random), &random);
    }
}

static void pass_token(Game *game, uint64_t *random)
{
    Player *next = take_parked(game, random);

    game->holder = (unsigned long)(next - game->players);
    wake_somehow(next, random);
}

/* Runs only while it has the token: so what it writes needs no atomics. */
static void play(void *opaque)
{
    Player *player = opaque;
    Game *game = player->game;

    for (;;) {
        store_release(&player->parked, true);
        coroutine_yield();
        CHECK_EQ(coroutine_context(player->co), aio_context_current());
        if (game->passes >= game->most) {
            break;
        }
        CHECK_EQ(game->holder, (unsigned long)(player - game->players));
        game->passes++;
        if (game->passes == game->most) {
            end_game(game);
            break;
        }
        pass_token(game, &player->random);
    }
    if (fetch_add_acq_rel(&game->over, 1u) == PLAYERS - 1) {
        gate_open(&game->done);
    }
}

TEST(the_token_never_gets_lost)
{
    static Game game;
    uint64_t seed = harness_seed() | 1;

    start_threads();
    gate_init(&game.done);
    game.most = harness_load(200000);
    for (unsigned i = 0; i < PLAYERS; i++) {
        Player *player = &game.players[i];

        player->game = &game;
        player->random = seed * (2 * i + 1);
        player->co = coroutine_create(play, player);
        aio_co_enter(context(i), player->co);
    }
    for (unsigned i = 0; i < PLAYERS; i++) {
        while (!load_acquire(&game.players[i].parked)) {
            sched_yield();
        }
    }
    pass_token(&game, &seed);
    gate_pass(&game.done);
    CHECK_EQ(game.passes, game.most);
    stop_threads();
}

/* --- hopping --------------------------------------------------------------*/

enum {
    HOPPERS = 10
};

typedef struct Hopper {
    uint64_t random;
    unsigned long hops;
    unsigned *over; /* atomic */
    sem_t *done;
} Hopper;

static void hop(void *opaque)
{
    Hopper *hopper = opaque;
    Coroutine *self = coroutine_self();

    for (unsigned long i = 0; i < hopper->hops; i++) {
        AioContext *to = context(next_random(&hopper->random));

        co_reschedule_self(to);
        CHECK_EQ(aio_context_current(), to);
        CHECK_EQ(coroutine_context(self), to);
        CHECK_EQ(coroutine_self(), self);
    }
    if (fetch_add_acq_rel(hopper->over, 1u) == HOPPERS - 1) {
        gate_open(hopper->done);
    }
}

TEST(coroutines_hop_by_the_hundred_thousand)
{
    Hopper hoppers[HOPPERS];
    uint64_t seed = harness_seed() | 1;
    unsigned over = 0;
    sem_t done;

    start_threads();
    gate_init(&done);
    for (unsigned i = 0; i < HOPPERS; i++) {
        hoppers[i] = (Hopper){
            .random = seed * (2 * i + 1),
            .hops = harness_load(20000),
            .over = &over,
            .done = &done,
        };
        aio_co_enter(context(i), coroutine_create(hop, &hoppers[i]));
    }
    gate_pass(&done);
    stop_threads();
}

/* --- many wakers ----------------------------------------------------------*/

enum {
    SLEEPERS = 30,
    WAKERS = 3
};

typedef struct Sleeper {
    Coroutine *co;
    bool parked;           /* atomic, as above */
    bool end;              /* plain: travels with the wake-up */
    unsigned long woken;   /* plain: written by wakers in turn */
    unsigned long resumed; /* plain: its own */
} Sleeper;

typedef struct Dormitory {
    Sleeper sleepers[SLEEPERS];
    unsigned over; /* atomic */
    sem_t done;
} Dormitory;

typedef struct Waker {
    Dormitory *dormitory;
    uint64_t random;
    unsigned long wakeups;
    BareThread thread;
} Waker;

static Dormitory dormitory;

/* Between saying that it is parked and being it, it may be woken. */
static void sleep_on(void *opaque)
{
    Sleeper *sleeper = opaque;
    AioContext *home = aio_context_current();

    while (!sleeper->end) {
        store_release(&sleeper->parked, true);
        coroutine_yield();
        sleeper->resumed++;
        CHECK_EQ(sleeper->resumed, sleeper->woken);
        CHECK_EQ(aio_context_current(), home);
    }
    if (fetch_add_acq_rel(&dormitory.over, 1u) == SLEEPERS - 1) {
        gate_open(&dormitory.done);
    }
}

static bool take_sleeper(Sleeper *sleeper)
{
    bool parked = true;

    return load_relaxed(&sleeper->parked) &&
           cas_acq_rel(&sleeper->parked, &parked, false);
}

static void wake_many(void *opaque)
{
    Waker *waker = opaque;

    for (unsigned long i = 0; i < waker->wakeups;) {
        unsigned number = next_random(&waker->random) % SLEEPERS;
        Sleeper *sleeper = &waker->dormitory->sleepers[number];

        if (take_sleeper(sleeper)) {
            sleeper->woken++;
            aio_co_wake(sleeper->co);
            i++;
        } else if (number == 0) {
            sched_yield();
        }
    }
}

TEST(each_wakeup_of_many_is_one_resumption)
{
    Waker wakers[WAKERS];
    uint64_t seed = harness_seed() | 1;

    start_threads();
    gate_init(&dormitory.done);
    for (unsigned i = 0; i < SLEEPERS; i++) {
        Sleeper *sleeper = &dormitory.sleepers[i];

        sleeper->co = coroutine_create(sleep_on, sleeper);
        aio_co_enter(context(i), sleeper->co);
    }
    for (unsigned i = 0; i < WAKERS; i++) {
        wakers[i].dormitory = &dormitory;
        wakers[i].random = seed * (2 * i + 1);
        wakers[i].wakeups = harness_load(50000);
        bare_thread_start(&wakers[i].thread, wake_many, &wakers[i]);
    }
    for (unsigned i = 0; i < WAKERS; i++) {
        bare_thread_join(&wakers[i].thread);
    }
    for (unsigned i = 0; i < SLEEPERS; i++) {
        Sleeper *sleeper = &dormitory.sleepers[i];

        while (!take_sleeper(sleeper)) {
            sched_yield();
        }
        sleeper->end = true;
        sleeper->woken++;
        aio_co_wake(sleeper->co);
    }
    gate_pass(&dormitory.done);
    stop_threads();
}

TEST_MAIN()
