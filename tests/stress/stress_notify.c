/* SPDX-License-Identifier: MIT */
/*
 * Notifications on real threads: storms of posts by one to three threads
 * against a loop that blocks, every post received; nested passes in bottom
 * halves and handlers while a worker posts; notifiers that set themselves
 * again.  A lost notification leaves the loop asleep with work to do, and the
 * case hangs.
 */
#include "base/atomic.h"
#include "harness.h"
#include "loopthread.h"
#include "os/fault.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/fd.h>
#include <sched.h>
#include <unistd.h>

enum {
    POSTERS_MOST = 3
};

/* --- storms ---------------------------------------------------------------*/

typedef struct Storm Storm;

typedef struct Poster {
    Storm *storm;
    AioBHStorage storage;
    unsigned long sent;
    unsigned long received; /* atomic */
    BareThread thread;
} Poster;

struct Storm {
    AioContext *ctx;
    unsigned long posts; /* of each */
    unsigned pause;      /* spins between two: lets the loop fall asleep */
    unsigned long total; /* the loop's */
    Poster posters[POSTERS_MOST];
};

static void receive(void *opaque)
{
    Poster *poster = opaque;

    poster->storm->total++;
    fetch_add_release(&poster->received, 1UL);
}

/* Post, wait until it has been received, post again. */
static void post(void *opaque)
{
    Poster *poster = opaque;
    Storm *storm = poster->storm;

    for (unsigned long i = 1; i <= storm->posts; i++) {
        aio_bh_schedule_oneshot_embedded(storm->ctx, &poster->storage, receive,
                                         poster);
        for (unsigned spins = 0; load_acquire(&poster->received) < i;) {
            if (++spins % 4096 == 0) {
                sched_yield();
            }
        }
        /* Come at another moment of the pass each time. */
        for (volatile unsigned spin = 0; spin < i % 211; spin = spin + 1) {
        }
        for (unsigned spin = 0; spin < storm->pause * (i % 4); spin++) {
            spin_hint();
        }
    }
}

static void storm_of(unsigned posters, unsigned pause, unsigned long posts)
{
    static Storm storm;

    storm.posts = harness_load(posts);
    storm.pause = pause;
    CHECK_EQ(aio_context_new(&storm.ctx, NULL), 0);
    aio_context_attach(storm.ctx);
    for (unsigned i = 0; i < posters; i++) {
        storm.posters[i].storm = &storm;
        bare_thread_start(&storm.posters[i].thread, post, &storm.posters[i]);
    }
    while (storm.total < posters * storm.posts) {
        aio_poll(storm.ctx, true);
    }
    for (unsigned i = 0; i < posters; i++) {
        bare_thread_join(&storm.posters[i].thread);
    }
    CHECK(!aio_poll(storm.ctx, false));
    aio_context_unref(storm.ctx);
}

TEST(one_thread_against_a_loop_that_blocks)
{
    storm_of(1, 0, 100000);
}

TEST(one_thread_against_a_loop_that_falls_asleep)
{
    storm_of(1, 200, 50000);
}

TEST(two_threads_against_a_loop_that_blocks)
{
    storm_of(2, 50, 50000);
}

TEST(three_threads_against_a_loop_that_blocks)
{
    storm_of(3, 20, 30000);
}

/* --- notify alone ---------------------------------------------------------*/

typedef struct Notifier {
    AioContext *ctx;
    unsigned long wanted; /* atomic */
    unsigned long got;    /* atomic */
    unsigned long rounds;
} Notifier;

/* No post: what the loop looks at is changed before each notification. */
static void notify(void *opaque)
{
    Notifier *notifier = opaque;

    for (unsigned long i = 1; i <= notifier->rounds; i++) {
        store_relaxed(&notifier->wanted, i);
        aio_notify(notifier->ctx);
        for (unsigned spins = 0; load_relaxed(&notifier->got) < i;) {
            if (++spins % 4096 == 0) {
                sched_yield();
            }
        }
    }
}

TEST(a_loop_sees_what_it_was_notified_of)
{
    Notifier notifier = {.rounds = harness_load(50000)};
    BareThread thread;

    CHECK_EQ(aio_context_new(&notifier.ctx, NULL), 0);
    aio_context_attach(notifier.ctx);
    bare_thread_start(&thread, notify, &notifier);
    while (load_relaxed(&notifier.got) < notifier.rounds) {
        aio_poll(notifier.ctx, true);
        store_relaxed(&notifier.got, load_relaxed(&notifier.wanted));
    }
    bare_thread_join(&thread);
    aio_context_unref(notifier.ctx);
}

/* --- nested passes --------------------------------------------------------*/

typedef struct Nest {
    AioContext *ctx;
    AioBH *outer;            /* polls nested until its post has come */
    int ends[2];             /* a pipe that is always readable, or not */
    unsigned long requested; /* atomic; posts that the worker is to make */
    unsigned long posted;    /* the loop's: those that have come */
    unsigned long rounds;
    unsigned long done; /* the loop's */
} Nest;

static void come(void *opaque)
{
    Nest *nest = opaque;

    nest->posted++;
}

/* Posts what is asked for, while the loop is somewhere in its passes. */
static void work(void *opaque)
{
    Nest *nest = opaque;

    for (unsigned long i = 1; i <= nest->rounds; i++) {
        while (load_acquire(&nest->requested) < i) {
            sched_yield();
        }
        aio_bh_schedule_oneshot(nest->ctx, come, nest);
    }
}

/* Ask for one post, and wait for it in nested passes. */
static void wait_nested(Nest *nest)
{
    unsigned long wanted = nest->posted + 1;

    if (load_relaxed(&nest->requested) >= nest->rounds) {
        return;
    }
    fetch_add_release(&nest->requested, 1UL);
    while (nest->posted < wanted) {
        aio_poll(nest->ctx, true);
    }
    nest->done++;
}

static void outer_bh(void *opaque)
{
    Nest *nest = opaque;

    wait_nested(nest);
    if (nest->done < nest->rounds) {
        aio_bh_schedule(nest->outer);
    }
}

TEST(nested_passes_in_a_bottom_half_get_what_a_worker_posts)
{
    Nest nest = {.rounds = harness_load(30000)};
    BareThread thread;

    CHECK_EQ(aio_context_new(&nest.ctx, NULL), 0);
    nest.outer = aio_bh_new(nest.ctx, outer_bh, &nest);
    aio_bh_schedule(nest.outer);
    bare_thread_start(&thread, work, &nest);
    while (nest.done < nest.rounds) {
        aio_poll(nest.ctx, true);
    }
    bare_thread_join(&thread);
    CHECK_EQ(nest.posted, nest.rounds);
    aio_bh_delete(nest.outer);
    aio_context_unref(nest.ctx);
}

/* One byte in, one byte out: the handler runs once a round. */
static void outer_handler(void *opaque)
{
    Nest *nest = opaque;
    char c;

    CHECK_EQ(read(nest->ends[0], &c, 1), 1);
    wait_nested(nest);
    CHECK_EQ(write(nest->ends[1], &c, 1), 1);
}

TEST(nested_passes_in_a_handler_get_what_a_worker_posts)
{
    Nest nest = {.rounds = harness_load(10000)};
    BareThread thread;
    char c = 0;

    CHECK_EQ(aio_context_new(&nest.ctx, NULL), 0);
    CHECK_EQ(pipe(nest.ends), 0);
    CHECK_EQ(aio_set_fd_handler(nest.ctx, nest.ends[0], outer_handler, NULL,
                                NULL, NULL, &nest),
             0);
    CHECK_EQ(write(nest.ends[1], &c, 1), 1);
    bare_thread_start(&thread, work, &nest);
    while (nest.done < nest.rounds) {
        aio_poll(nest.ctx, true);
    }
    bare_thread_join(&thread);
    CHECK_EQ(nest.posted, nest.rounds);
    aio_set_fd_handler(nest.ctx, nest.ends[0], NULL, NULL, NULL, NULL, NULL);
    close(nest.ends[0]);
    close(nest.ends[1]);
    aio_context_unref(nest.ctx);
}

/* --- two loops ------------------------------------------------------------*/

typedef struct Rally {
    AioBHStorage storage;
    AioContext *ends[2];
    unsigned long left;
    sem_t done;
} Rally;

/* The ball wakes each loop in turn, and lets the other fall asleep. */
static void hit(void *opaque)
{
    Rally *rally = opaque;

    if (rally->left == 0) {
        gate_open(&rally->done);
        return;
    }
    rally->left--;
    aio_bh_schedule_oneshot_embedded(rally->ends[rally->left % 2],
                                     &rally->storage, hit, rally);
}

TEST(two_loops_wake_each_other)
{
    Rally rally = {.left = harness_load(100000)};
    LoopThread loops[2];

    gate_init(&rally.done);
    for (int i = 0; i < 2; i++) {
        loop_thread_start(&loops[i], "player");
        rally.ends[i] = loops[i].ctx;
    }
    aio_bh_schedule_oneshot_embedded(rally.ends[0], &rally.storage, hit,
                                     &rally);
    gate_pass(&rally.done);
    loop_thread_stop(&loops[0]);
    loop_thread_stop(&loops[1]);
}

TEST_MAIN()
