/* SPDX-License-Identifier: MIT */
/*
 * The environment and random numbers.
 *
 * Programs that run with more rights than their user do not listen to the
 * environment: COAIO_GUARD=none is not for that user to ask.
 */
#include "os/misc.h"

#include "base/atomic.h"
#include "base/compiler.h"
#include "os/clock.h"
#include "os/fault.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

const char *os_getenv(const char *name)
{
    return secure_getenv(name);
}

bool os_debug(void)
{
    static int answer; /* atomic; 0: not read yet, 1: no, 2: yes */
    int known = load_relaxed(&answer);

    if (known == 0) {
        const char *value = os_getenv("COAIO_DEBUG");

        known = value && strcmp(value, "1") == 0 ? 2 : 1;
        store_relaxed(&answer, known);
    }
    return known == 2;
}

static uint64_t seed(void)
{
    uint64_t bits;

    os_count(OS_COUNT_SYSCALLS);
    if (os_fault("getrandom") ||
        getrandom(&bits, sizeof(bits), GRND_NONBLOCK) != sizeof(bits)) {
        bits = (uint64_t)os_clock_monotonic_ns() ^ (uintptr_t)&bits;
    }
    return bits | 1;
}

/* SplitMix64 on a counter that all threads share. */
uint64_t os_random(void)
{
    static uint64_t counter; /* atomic; 0: not seeded */
    uint64_t bits = 0;

    if (unlikely(load_relaxed(&counter) == 0)) {
        /* Of two threads that come first at once, one seed is kept. */
        cas_relaxed(&counter, &bits, seed());
    }
    bits = fetch_add_relaxed(&counter, UINT64_C(0x9e3779b97f4a7c15));
    bits = (bits ^ (bits >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    bits = (bits ^ (bits >> 27)) * UINT64_C(0x94d049bb133111eb);
    return bits ^ (bits >> 31);
}
