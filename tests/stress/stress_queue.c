/* SPDX-License-Identifier: MIT */
/*
 * CoQueue on real threads: bounded buffers, barriers whose queue is freed by
 * each waker, timeouts that race with wake-ups, and plain threads that wake.
 */
#include "loops.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define LOOPS 5

/* A monitor with either kind of lock. */
typedef struct Monitor {
    bool use_pthread;
    CoMutex mutex;
    pthread_mutex_t pthread;
} Monitor;

static void enter(Monitor *m)
{
    if (m->use_pthread) {
        CHECK_EQ(pthread_mutex_lock(&m->pthread), 0);
    } else {
        co_mutex_lock(&m->mutex);
    }
}

static void leave(Monitor *m)
{
    if (m->use_pthread) {
        CHECK_EQ(pthread_mutex_unlock(&m->pthread), 0);
    } else {
        co_mutex_unlock(&m->mutex);
    }
}

static int wait_in(CoQueue *queue, Monitor *m, int64_t timeout_ns)
{
    if (m->use_pthread) {
        return timeout_ns < 0
                   ? co_queue_wait(queue, &m->pthread)
                   : co_queue_wait_timeout_ns(queue, &m->pthread, timeout_ns);
    }
    return timeout_ns < 0
               ? co_queue_wait(queue, &m->mutex)
               : co_queue_wait_timeout_ns(queue, &m->mutex, timeout_ns);
}

static void monitor_init(Monitor *m, bool use_pthread)
{
    memset(m, 0, sizeof(*m));
    m->use_pthread = use_pthread;
    CHECK_EQ(pthread_mutex_init(&m->pthread, NULL), 0);
}

/* --- bounded buffer: every item arrives once -----------------------------*/

#define SLOTS 4

typedef struct Buffer {
    Monitor monitor;
    CoQueue not_full;
    CoQueue not_empty;
    unsigned long slots[SLOTS];
    unsigned used;
    unsigned long next; /* the item to produce */
    unsigned long total;
    unsigned long got;
    unsigned long sum;
} Buffer;

static void produce(void *opaque)
{
    Buffer *b = opaque;

    enter(&b->monitor);
    while (b->next < b->total) {
        if (b->used == SLOTS) {
            CHECK_EQ(wait_in(&b->not_full, &b->monitor, -1), 0);
            continue;
        }
        b->slots[b->used++] = b->next++;
        co_queue_next(&b->not_empty);
    }
    co_queue_restart_all(&b->not_full);
    leave(&b->monitor);
    job_done();
}

static void consume(void *opaque)
{
    Buffer *b = opaque;

    enter(&b->monitor);
    while (b->got < b->total) {
        if (b->used == 0) {
            CHECK_EQ(wait_in(&b->not_empty, &b->monitor, -1), 0);
            continue;
        }
        b->sum += b->slots[--b->used];
        b->got++;
        co_queue_next(&b->not_full);
        leave(&b->monitor);
        enter(&b->monitor);
    }
    co_queue_restart_all(&b->not_empty);
    leave(&b->monitor);
    job_done();
}

static void pass_through_buffer(bool use_pthread)
{
    static Buffer b;

    memset(&b, 0, sizeof(b));
    monitor_init(&b.monitor, use_pthread);
    b.total = harness_load(50000);
    loops_start(LOOPS);
    for (unsigned i = 0; i < 20; i++) {
        start(loop(i), i % 2 ? produce : consume, &b);
    }
    loops_join(20);
    loops_stop();
    CHECK_EQ(b.got, b.total);
    CHECK_EQ(b.sum, b.total * (b.total - 1) / 2);
    CHECK(co_queue_empty(&b.not_full) && co_queue_empty(&b.not_empty));
}

TEST(bounded_buffer_with_mutex)
{
    pass_through_buffer(false);
}

TEST(bounded_buffer_with_pthread_mutex)
{
    pass_through_buffer(true);
}

/* --- barrier: the queue of each round is freed by the one that wakes -----*/

typedef struct Barrier {
    Monitor monitor;
    CoQueue *queue; /* of this round */
    unsigned arrived;
    unsigned members;
    unsigned long round;
    unsigned long rounds;
} Barrier;

static CoQueue *queue_new(void)
{
    CoQueue *queue = calloc(1, sizeof(*queue));

    CHECK(queue != NULL);
    return queue;
}

static void next_round(Barrier *b)
{
    CoQueue *queue = b->queue;

    b->queue = queue_new();
    b->arrived = 0;
    b->round++;
    co_queue_restart_all(queue);
    memset(queue, 0xa5, sizeof(*queue));
    free(queue);
}

static void meet(void *opaque)
{
    Barrier *b = opaque;

    for (unsigned long i = 0; i < b->rounds; i++) {
        enter(&b->monitor);
        CHECK_EQ(b->round, i);
        if (++b->arrived == b->members) {
            next_round(b);
        } else {
            CHECK_EQ(wait_in(b->queue, &b->monitor, -1), 0);
        }
        CHECK_EQ(b->round, i + 1); /* woken once a round */
        leave(&b->monitor);
    }
    job_done();
}

static void meet_often(bool use_pthread, unsigned members, unsigned long rounds)
{
    static Barrier b;

    memset(&b, 0, sizeof(b));
    monitor_init(&b.monitor, use_pthread);
    b.queue = queue_new();
    b.members = members;
    b.rounds = harness_load(rounds);
    loops_start(LOOPS);
    for (unsigned i = 0; i < members; i++) {
        start(loop(i), meet, &b);
    }
    loops_join(members);
    loops_stop();
    free(b.queue);
}

TEST(barrier_of_five_with_mutex)
{
    meet_often(false, 5, 3000);
}

TEST(barrier_of_five_with_pthread_mutex)
{
    meet_often(true, 5, 3000);
}

TEST(barrier_of_a_thousand_with_mutex)
{
    meet_often(false, 1000, 20);
}

TEST(barrier_of_a_thousand_with_pthread_mutex)
{
    meet_often(true, 1000, 20);
}

/* --- timeouts that race with wake-ups ------------------------------------*/

typedef struct Race {
    Monitor monitor;
    CoQueue queue;
    unsigned waiting;       /* in co_queue_wait(), as far as anybody knows */
    unsigned left;          /* waiters that have not ended */
    unsigned long given;    /* wake-ups that next said it gave */
    unsigned long received; /* waits that ended with 0 */
    unsigned long timeouts;
    unsigned long rounds;
    Random random;
} Race;

static void wait_briefly(void *opaque)
{
    Race *r = opaque;

    enter(&r->monitor);
    for (unsigned long i = 0; i < r->rounds; i++) {
        int64_t timeout_ns = random_below(&r->random, 30000);
        int ret = wait_in(&r->queue, &r->monitor, timeout_ns);

        CHECK(ret == 0 || ret == -ETIMEDOUT);
        if (ret == 0) {
            r->received++;
        } else {
            r->timeouts++;
        }
    }
    r->left--;
    leave(&r->monitor);
    job_done();
}

static void wake_at_random(void *opaque)
{
    Race *r = opaque;
    bool more = true;

    while (more) {
        enter(&r->monitor);
        for (unsigned i = random_below(&r->random, 4); i > 0; i--) {
            r->given += co_queue_next(&r->queue);
        }
        more = r->left > 0;
        leave(&r->monitor);
        step_aside();
    }
    job_done();
}

static void race(bool use_pthread)
{
    static Race r;
    unsigned n = 20, wakers = 2;

    memset(&r, 0, sizeof(r));
    monitor_init(&r.monitor, use_pthread);
    r.rounds = harness_load(500);
    r.random = random_from(harness_seed(), 0);
    r.left = n;
    loops_start(LOOPS);
    for (unsigned i = 0; i < n; i++) {
        start(loop(i), wait_briefly, &r);
    }
    for (unsigned i = 0; i < wakers; i++) {
        start(loop(i), wake_at_random, &r);
    }
    loops_join(n + wakers);
    loops_stop();
    CHECK_EQ(r.given, r.received);
    CHECK_EQ(r.received + r.timeouts, n * r.rounds);
    CHECK(co_queue_empty(&r.queue));
}

TEST(timeouts_race_with_wakes_with_mutex)
{
    race(false);
}

TEST(timeouts_race_with_wakes_with_pthread_mutex)
{
    race(true);
}

/* --- queues that are gone when the time is up ----------------------------*/

typedef struct Brief {
    Monitor monitor;
    CoQueue *queue; /* replaced by each waker; under the lock */
    unsigned left;
    unsigned long rounds;
    Random random;
} Brief;

static void wait_in_passing_queues(void *opaque)
{
    Brief *b = opaque;

    enter(&b->monitor);
    for (unsigned long i = 0; i < b->rounds; i++) {
        wait_in(b->queue, &b->monitor, random_below(&b->random, 30000));
    }
    b->left--;
    leave(&b->monitor);
    job_done();
}

static void replace_queue(void *opaque)
{
    Brief *b = opaque;
    bool more = true;

    while (more) {
        CoQueue *queue;

        enter(&b->monitor);
        queue = b->queue;
        b->queue = queue_new();
        co_queue_restart_all(queue);
        memset(queue, 0xa5, sizeof(*queue));
        free(queue);
        more = b->left > 0;
        leave(&b->monitor);
        step_aside();
    }
    job_done();
}

static void race_with_free(bool use_pthread)
{
    static Brief b;
    unsigned n = 20;

    memset(&b, 0, sizeof(b));
    monitor_init(&b.monitor, use_pthread);
    b.queue = queue_new();
    b.rounds = harness_load(500);
    b.random = random_from(harness_seed(), 0);
    b.left = n;
    loops_start(LOOPS);
    for (unsigned i = 0; i < n; i++) {
        start(loop(i), wait_in_passing_queues, &b);
    }
    start(loop(0), replace_queue, &b);
    loops_join(n + 1);
    loops_stop();
    free(b.queue);
}

TEST(timeouts_race_with_the_end_of_the_queue_with_mutex)
{
    race_with_free(false);
}

TEST(timeouts_race_with_the_end_of_the_queue_with_pthread_mutex)
{
    race_with_free(true);
}

/* --- plain threads wake --------------------------------------------------*/

typedef struct Tokens {
    pthread_mutex_t lock;
    CoQueue queue;
    unsigned long tokens;
    unsigned long taken;
    unsigned long total;
} Tokens;

static void take_tokens(void *opaque)
{
    Tokens *t = opaque;

    CHECK_EQ(pthread_mutex_lock(&t->lock), 0);
    while (t->taken < t->total) {
        if (t->tokens == 0) {
            CHECK_EQ(co_queue_wait(&t->queue, &t->lock), 0);
            continue;
        }
        t->tokens--;
        t->taken++;
    }
    co_queue_restart_all(&t->queue);
    CHECK_EQ(pthread_mutex_unlock(&t->lock), 0);
    job_done();
}

static void *give_tokens(void *opaque)
{
    Tokens *t = opaque;

    for (unsigned long i = 0; i < t->total / 2; i++) {
        CHECK_EQ(pthread_mutex_lock(&t->lock), 0);
        t->tokens++;
        if (i % 8) {
            co_queue_enter_next(&t->queue, &t->lock);
        } else {
            co_queue_enter_all(&t->queue, &t->lock);
        }
        CHECK_EQ(pthread_mutex_unlock(&t->lock), 0);
    }
    return NULL;
}

TEST(two_plain_threads_wake_five_contexts)
{
    static Tokens t = {.lock = PTHREAD_MUTEX_INITIALIZER};
    pthread_t threads[2];

    t.total = 2 * harness_load(20000);
    loops_start(LOOPS);
    for (unsigned i = 0; i < 20; i++) {
        start(loop(i), take_tokens, &t);
    }
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, give_tokens, &t), 0);
    }
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    }
    loops_join(20);
    loops_stop();
    CHECK_EQ(t.taken, t.total);
}

TEST_MAIN()
