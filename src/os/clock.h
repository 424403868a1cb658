/* SPDX-License-Identifier: MIT */
/*
 * The clocks, in nanoseconds.  Signal-safe.
 */
#ifndef COAIO_OS_CLOCK_H
#define COAIO_OS_CLOCK_H

#include <stdint.h>

int64_t os_clock_monotonic_ns(void);
int64_t os_clock_realtime_ns(void);

/* When timeout_ns from now is over, on the monotonic clock; INT64_MAX if that
 * is beyond all numbers. */
static inline int64_t os_deadline_ns(int64_t timeout_ns)
{
    int64_t now_ns = timeout_ns > 0 ? os_clock_monotonic_ns() : 0;

    return timeout_ns < INT64_MAX - now_ns ? now_ns + timeout_ns : INT64_MAX;
}

/* What is left of timeout_ns until its deadline; 0 and below 0 (for ever) stay
 * what they are. */
static inline int64_t os_remaining_ns(int64_t timeout_ns, int64_t deadline_ns)
{
    int64_t left_ns;

    if (timeout_ns <= 0) {
        return timeout_ns;
    }
    left_ns = deadline_ns - os_clock_monotonic_ns();
    return left_ns > 0 ? left_ns : 0;
}

#endif
