/* SPDX-License-Identifier: MIT */
/*
 * The clocks, in nanoseconds.  Signal-safe.
 */
#ifndef COAIO_OS_CLOCK_H
#define COAIO_OS_CLOCK_H

#include <stdint.h>

int64_t os_clock_monotonic_ns(void);
int64_t os_clock_realtime_ns(void);

#endif
