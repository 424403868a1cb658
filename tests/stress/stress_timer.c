/* SPDX-License-Identifier: MIT */
/*
 * Threads that arm and delete timers of several loops at random, while some of
 * the callbacks arm their timers themselves.  After each deletion the timer's
 * memory is filled with rubbish: whoever touches it later falls over it, and a
 * callback that runs later is counted.
 */
#include "harness.h"

#include "base/atomic.h"

#include <coaio/coroutine.h>
#include <coaio/iothread.h>
#include <coaio/timer.h>
#include <pthread.h>
#include <string.h>

#define LOOPS 3
#define THREADS 3
#define TIMERS 8

static IOThread *loops[LOOPS];

typedef struct Subject {
    AioTimer timer;
    unsigned live;   /* atomic; 0: the callback must not run */
    unsigned again;  /* atomic; how often the callback arms it again */
    bool made;
} Subject;

typedef struct Owner {
    pthread_t thread;
    uint64_t random;
    Subject subjects[TIMERS];
} Owner;

static uint32_t draw(uint64_t *state, uint32_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % below;
}

static void fire(void *opaque)
{
    Subject *subject = opaque;

    CHECK(load_acquire(&subject->live));
    if (load_acquire(&subject->again) > 0) {
        fetch_sub_acq_rel(&subject->again, 1u);
        aio_timer_mod_ns(&subject->timer, 1);
    }
}

static int64_t some_time(uint64_t *random)
{
    switch (draw(random, 3)) {
    case 0:
        return 1;
    case 1:
        return aio_clock_ns(AIO_CLOCK_MONOTONIC) + draw(random, 50000);
    default:
        return INT64_MAX;
    }
}

static void end(Subject *subject)
{
    aio_timer_del(&subject->timer);
    CHECK(!aio_timer_pending(&subject->timer));
    store_release(&subject->live, 0);
    memset(&subject->timer, 0xa5, sizeof(subject->timer));
    subject->made = false;
}

static void step(Owner *owner)
{
    Subject *subject = &owner->subjects[draw(&owner->random, TIMERS)];

    if (!subject->made) {
        aio_timer_init(&subject->timer,
                       iothread_context(loops[draw(&owner->random, LOOPS)]),
                       AIO_CLOCK_MONOTONIC, fire, subject);
        store_release(&subject->again, draw(&owner->random, 4));
        store_release(&subject->live, 1);
        subject->made = true;
    }
    if (draw(&owner->random, 3) == 0) {
        end(subject);
    } else {
        aio_timer_mod_ns(&subject->timer, some_time(&owner->random));
    }
}

static void *own(void *opaque)
{
    Owner *owner = opaque;

    for (unsigned long i = 0; i < harness_load(10000); i++) {
        step(owner);
    }
    for (int i = 0; i < TIMERS; i++) {
        if (owner->subjects[i].made) {
            end(&owner->subjects[i]);
        }
    }
    return NULL;
}

TEST(foreign_arming_and_deleting)
{
    static Owner owners[THREADS];

    for (int i = 0; i < LOOPS; i++) {
        CHECK_EQ(iothread_new(&loops[i], "loop", NULL), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        owners[i].random = harness_seed() + (uint64_t)i;
        CHECK_EQ(pthread_create(&owners[i].thread, NULL, own, &owners[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_join(owners[i].thread, NULL), 0);
    }
    for (int i = 0; i < LOOPS; i++) {
        CHECK_EQ(iothread_stop(loops[i]), 0);
        iothread_unref(loops[i]);
    }
}

TEST_MAIN()
