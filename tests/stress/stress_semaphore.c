/* SPDX-License-Identifier: MIT */
/*
 * CoSemaphore and CoGroup on real threads; with plain threads that contend for
 * the brief lock inside, and cancellations that race with releases.
 */
#include "loops.h"

#include "loop/wait.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define LOOPS 5

/* --- plain threads and coroutines share units ----------------------------*/

static CoSemaphore units;
static unsigned long rounds;
static int64_t inside; /* atomic */
#define LIMIT 3

static void use_unit(void)
{
    CHECK(fetch_add_acq_rel(&inside, (int64_t)1) < LIMIT);
    fetch_sub_acq_rel(&inside, (int64_t)1);
    co_semaphore_release(&units, 1);
}

static void use_in_coroutine(void *opaque)
{
    (void)opaque;
    for (unsigned long i = 0; i < rounds; i++) {
        CHECK_EQ(co_semaphore_acquire(&units, 1), 0);
        use_unit();
    }
    job_done();
}

static void *use_in_thread(void *opaque)
{
    (void)opaque;
    for (unsigned long i = 0; i < rounds; i++) {
        while (!co_semaphore_try_acquire(&units, 1)) {
            sched_yield();
        }
        use_unit();
    }
    return NULL;
}

TEST(plain_threads_and_coroutines_share_units)
{
    pthread_t threads[3];

    rounds = harness_load(5000);
    co_semaphore_init(&units, LIMIT);
    loops_start(LOOPS);
    for (unsigned i = 0; i < 10; i++) {
        start(loop(i), use_in_coroutine, NULL);
    }
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, use_in_thread, NULL), 0);
    }
    loops_join(10);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    }
    loops_stop();
    CHECK_EQ(units.units_, LIMIT);
}

/* --- cancellations race with releases ------------------------------------*/

typedef struct Acquirer {
    unsigned long got;
    unsigned long cancelled;
    Coroutine *co;
    bool done;
} Acquirer;

static void acquire_until_done(void *opaque)
{
    Acquirer *a = opaque;

    for (unsigned long i = 0; i < rounds; i++) {
        int ret = co_semaphore_acquire(&units, 1 + i % 2);

        CHECK(ret == 0 || ret == -ECANCELED);
        if (ret == 0) {
            a->got += 1 + i % 2;
        } else {
            a->cancelled++;
        }
    }
    a->done = true;
    job_done();
}

/* On the home thread of what it cancels. */
static void cancel_often(void *opaque)
{
    Acquirer *a = opaque;

    if (!a->done) {
        co_wait_cancel(a->co, -ECANCELED);
        aio_bh_schedule_oneshot(aio_context_current(), cancel_often, a);
    } else {
        job_done();
    }
}

static void begin_acquirer(void *opaque)
{
    Acquirer *a = opaque;

    a->co = coroutine_create(acquire_until_done, a);
    aio_bh_schedule_oneshot(aio_context_current(), cancel_often, a);
    coroutine_enter(a->co);
}

static bool give_more = true;

static void *give_units(void *opaque)
{
    unsigned long *given = opaque;

    while (load_acquire(&give_more)) {
        co_semaphore_release(&units, 1);
        ++*given;
        sched_yield();
    }
    return NULL;
}

TEST(cancellations_race_with_releases)
{
    Acquirer acquirers[LOOPS];
    unsigned long given = 0, got = 0;
    pthread_t thread;

    rounds = harness_load(2000);
    memset(acquirers, 0, sizeof(acquirers));
    loops_start(LOOPS);
    for (unsigned i = 0; i < LOOPS; i++) {
        aio_bh_schedule_oneshot(loop(i), begin_acquirer, &acquirers[i]);
    }
    CHECK_EQ(pthread_create(&thread, NULL, give_units, &given), 0);
    loops_join(2 * LOOPS);
    store_release(&give_more, false);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    loops_stop();
    for (unsigned i = 0; i < LOOPS; i++) {
        got += acquirers[i].got;
    }
    CHECK_EQ(got + units.units_, given);
    CHECK(units.waiters_.head_ == NULL);
}

/* --- freed by the one that got the last units ----------------------------*/

typedef struct Line {
    CoSemaphore **objects;
    unsigned long count;
} Line;

static void acquire_and_free(void *opaque)
{
    Line *line = opaque;

    for (unsigned long i = 0; i < line->count; i++) {
        CHECK_EQ(co_semaphore_acquire(line->objects[i], LOOPS - 1), 0);
        free(line->objects[i]);
    }
    job_done();
}

static void release_along(void *opaque)
{
    Line *line = opaque;

    for (unsigned long i = 0; i < line->count; i++) {
        co_semaphore_release(line->objects[i], 1);
    }
    job_done();
}

TEST(semaphores_are_freed_by_the_thousand)
{
    Line line = {.count = harness_load(50000)};

    line.objects = calloc(line.count, sizeof(*line.objects));
    CHECK(line.objects != NULL);
    for (unsigned long i = 0; i < line.count; i++) {
        line.objects[i] = calloc(1, sizeof(*line.objects[i]));
        CHECK(line.objects[i] != NULL);
    }
    loops_start(LOOPS);
    for (unsigned i = 0; i < LOOPS; i++) {
        start(loop(i), i ? release_along : acquire_and_free, &line);
    }
    loops_join(LOOPS);
    loops_stop();
    free(line.objects);
}

/* --- groups --------------------------------------------------------------*/

typedef struct Node {
    unsigned depth;
    unsigned number;
} Node;

static unsigned long leaves; /* atomic */

/* A tree of groups over all loops: each node waits for its two. */
static int grow(void *opaque)
{
    Node *node = opaque;
    CoGroup group = {0};
    Node children[2];

    if (node->depth == 0) {
        fetch_add_relaxed(&leaves, 1ul);
        return 0;
    }
    for (unsigned i = 0; i < 2; i++) {
        children[i] =
            (Node){.depth = node->depth - 1, .number = 2 * node->number + i};
        CHECK_EQ(
            co_group_run(&group, loop(children[i].number), grow, &children[i]),
            0);
    }
    return co_group_wait(&group);
}

static void grow_tree(void *opaque)
{
    CHECK_EQ(grow(opaque), 0);
    job_done();
}

TEST(a_tree_of_groups_over_five_contexts)
{
    Node root = {.depth = 9};
    unsigned long trees = harness_load(20);

    loops_start(LOOPS);
    for (unsigned long i = 0; i < trees; i++) {
        start(loop((unsigned)i), grow_tree, &root);
        loops_join(1);
    }
    loops_stop();
    CHECK_EQ(leaves, trees << root.depth);
}

TEST_MAIN()
