/* SPDX-License-Identifier: MIT */
/*
 * Builds for soak only (COAIO_DELAYS): threads are held up for random whiles
 * at the points where they meet, which are atomic accesses, locks, condition
 * variables and system calls (which count themselves with an atomic access).
 *
 * A window of two instructions, which the scheduler opens once in a day, is
 * open for microseconds then.  That finds what an explorer of schedules cannot
 * run: real threads, the kernel's part, and timers.
 *
 * Guarantees: off, it costs a load and a branch; on, it keeps errno, allocates
 * nothing, takes no lock, may be called by a signal handler, and leaves the
 * counters of os/fault.h alone.  COAIO_TEST_DELAYS=SEED switches it on.  Does
 * not guarantee the same run for the same seed: that fixes how often, how long
 * and in which order each thread is held up, and the kernel decides the rest.
 *
 * One seed stands for one temper: from a short stumble at every sixteenth
 * point to a long sleep at every few thousandth, with the same cost on
 * average.  Bugs differ in which of them they need.
 */
#ifdef COAIO_DELAYS

#include "base/atomic.h"
#include "os/thread.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#define GAP_MIN_LOG 4
#define GAP_MAX_LOG 12

/* Pauses of the processor in a microsecond, more or less. */
#define PAUSES_PER_US 32

bool os_delays;

static uint64_t seed;       /* these three are written before main() */
static uint32_t gap;        /* points between two delays, on average */
static uint32_t longest_us; /* that a delay lasts */
static uint32_t threads;    /* atomic; that have been at a point */

/* Spread the bits of x over all of the result. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 32) * 0x9e3779b97f4a7c15;
    x = (x ^ x >> 29) * 0xd1b54a32d192ed03;
    return x ^ x >> 32;
}

static uint32_t draw(OsThread *thread, uint32_t below)
{
    thread->delay_random = mix(thread->delay_random + 1);
    return (uint32_t)(thread->delay_random >> 32) % below;
}

__attribute__((constructor)) static void read_seed(void)
{
    const char *text = getenv("COAIO_TEST_DELAYS");
    unsigned log;

    if (!text || !*text) {
        return;
    }
    seed = mix(strtoull(text, NULL, 0) + 1);
    log = GAP_MIN_LOG + (unsigned)(seed % (GAP_MAX_LOG - GAP_MIN_LOG + 1));
    gap = 1U << log;
    longest_us = gap / 4;
    os_delays = true;
}

/* The thread is at its first point. */
static void enroll(OsThread *thread)
{
    uint32_t number;

    /* Not in here: the addition is a point, too. */
    thread->delay_random = 1;
    thread->delay_left = UINT32_MAX;
    number = fetch_add_relaxed(&threads, 1U);
    thread->locked_operations--; /* not one of the code that is tested */
    thread->delay_random = mix(seed + number) | 1;
    thread->delay_left = draw(thread, 2 * gap);
}

static void hold_up(OsThread *thread)
{
    uint32_t us = draw(thread, longest_us) + 1;
    struct timespec sleep = {.tv_nsec = (long)us * 1000};

    switch (draw(thread, 8)) {
    case 0:
        nanosleep(&sleep, NULL);
        break;
    case 1:
    case 2:
    case 3:
        sched_yield();
        break;
    default:
        for (uint32_t i = 0; i < us * PAUSES_PER_US; i++) {
            spin_hint();
        }
    }
}

void os_delay(void)
{
    OsThread *thread = os_thread();
    int saved = errno;

    if (thread->delay_random == 0) {
        enroll(thread);
    }
    if (thread->delay_left > 0) {
        thread->delay_left--;
        return;
    }
    thread->delay_left = draw(thread, 2 * gap);
    hold_up(thread);
    errno = saved;
}

#else

/* A file must not be empty. */
typedef int OsNoDelays;

#endif
