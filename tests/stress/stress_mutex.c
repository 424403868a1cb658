/* SPDX-License-Identifier: MIT */
/*
 * CoMutex on real threads: coroutines that lock at random, suspend themselves
 * and change contexts with mutexes held; and mutexes that are freed by their
 * last unlocker, by the thousand.
 */
#include "loops.h"

#include <stdlib.h>

#define LOOPS   5
#define MUTEXES 3

typedef struct Guarded {
    CoMutex mutex;
    unsigned long count; /* plain */
    Coroutine *inside;   /* plain */
} Guarded;

typedef struct Worker {
    Guarded *guarded;
    unsigned long rounds;
    unsigned long counted[MUTEXES];
    Random random;
} Worker;

static bool take(CoMutex *mutex, Random *random)
{
    if (random_below(random, 4) == 0) {
        return co_mutex_trylock(mutex);
    }
    co_mutex_lock(mutex);
    return true;
}

static void dawdle(Random *random)
{
    switch (random_below(random, 16)) {
    case 0:
        step_aside();
        break;
    case 1:
        co_reschedule_self(loop(random_below(random, LOOPS)));
        break;
    default:
        break;
    }
}

/* Lock mutex i, and perhaps those after it, too. */
static void lock_from(Worker *w, unsigned i)
{
    Guarded *g = &w->guarded[i];

    if (!take(&g->mutex, &w->random)) {
        return;
    }
    CHECK(g->inside == NULL);
    g->inside = coroutine_self();
    dawdle(&w->random);
    if (i + 1 < MUTEXES && random_below(&w->random, 3) == 0) {
        lock_from(w, i + 1);
    }
    CHECK(g->inside == coroutine_self());
    g->inside = NULL;
    g->count++;
    w->counted[i]++;
    co_mutex_unlock(&g->mutex);
}

static void work(void *opaque)
{
    Worker *w = opaque;

    for (unsigned long i = 0; i < w->rounds; i++) {
        lock_from(w, random_below(&w->random, MUTEXES));
        dawdle(&w->random);
    }
    job_done();
}

static void work_at_random(unsigned n, unsigned long rounds)
{
    Guarded guarded[MUTEXES] = {{.count = 0}};
    Worker *workers = calloc(n, sizeof(*workers));
    uint64_t seed = harness_seed();

    CHECK(workers != NULL);
    loops_start(LOOPS);
    for (unsigned i = 0; i < n; i++) {
        workers[i] = (Worker){.guarded = guarded,
                              .rounds = harness_load(rounds),
                              .random = random_from(seed, i)};
        start(loop(i), work, &workers[i]);
    }
    loops_join(n);
    loops_stop();
    for (unsigned m = 0; m < MUTEXES; m++) {
        for (unsigned i = 0; i < n; i++) {
            guarded[m].count -= workers[i].counted[m];
        }
        CHECK_EQ(guarded[m].count, 0);
        CHECK_EQ(guarded[m].mutex.word_, 0);
    }
    free(workers);
}

TEST(few_coroutines_lock_at_random)
{
    work_at_random(LOOPS, 20000);
}

TEST(many_coroutines_lock_at_random)
{
    work_at_random(200, 500);
}

/* --- freed by the last unlocker ------------------------------------------*/

typedef struct Object {
    CoMutex mutex;
    unsigned users;
} Object;

typedef struct Line {
    Object **objects;
    unsigned long count;
    unsigned users;
} Line;

/* All users walk along the same line, so they meet at each object. */
static void walk(void *opaque)
{
    Line *line = opaque;

    for (unsigned long i = 0; i < line->count; i++) {
        Object *object = load_acquire(&line->objects[i]);
        bool last;

        co_mutex_lock(&object->mutex);
        last = --object->users == 0;
        co_mutex_unlock(&object->mutex);
        if (last) {
            free(object);
        }
    }
    job_done();
}

static void walk_along(unsigned users, unsigned long count)
{
    Line line = {.count = harness_load(count), .users = users};

    line.objects = calloc(line.count, sizeof(*line.objects));
    CHECK(line.objects != NULL);
    for (unsigned long i = 0; i < line.count; i++) {
        line.objects[i] = calloc(1, sizeof(*line.objects[i]));
        CHECK(line.objects[i] != NULL);
        line.objects[i]->users = users;
    }
    loops_start(LOOPS);
    for (unsigned i = 0; i < users; i++) {
        start(loop(i), walk, &line);
    }
    loops_join(users);
    loops_stop();
    free(line.objects);
}

TEST(two_users_free_mutexes_by_the_thousand)
{
    walk_along(2, 100000);
}

TEST(ten_users_free_mutexes_by_the_thousand)
{
    walk_along(10, 20000);
}

TEST_MAIN()
