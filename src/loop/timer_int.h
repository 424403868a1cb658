/* SPDX-License-Identifier: MIT */
/*
 * The queue of armed timers of one clock of one context.
 */
#ifndef COAIO_LOOP_TIMER_INT_H
#define COAIO_LOOP_TIMER_INT_H

#include <coaio/timer.h>
#include <stdbool.h>
#include <stdint.h>

/* Ordered by (expiry, order of arming).  Home thread only. */
typedef struct TimerQueue {
    AioTimer *root;
    uint64_t armed;       /* how many are in it */
    uint64_t next_order;  /* number of the next arming */
} TimerQueue;

/* When the earliest timer of ctx is due, on the monotonic clock and at most a
 * second ahead for the real-time clock; INT64_MAX: none.  Home thread. */
int64_t timer_deadline_ns(AioContext *ctx);

/* Run the timers that are due now, and no timer twice.  Returns whether any
 * ran.  Home thread. */
bool timer_dispatch(AioContext *ctx);

/* misuse() naming each timer that is left. */
void timer_check_none_left(AioContext *ctx);

/* Serve deletions that other threads wait for, when the home has stopped. */
void timer_stopped(AioContext *ctx);

#endif
