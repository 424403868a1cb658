/* SPDX-License-Identifier: MIT */
/*
 * The timers of a context.
 */
#ifndef COAIO_LOOP_TIMER_INT_H
#define COAIO_LOOP_TIMER_INT_H

#include "base/list.h"
#include "base/post.h"
#include "loop/timer_queue.h"

#include <coaio/timer.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct TimerFrame;
struct Deletion;

/* The timers of a context.  Home thread, but for what says otherwise. */
typedef struct Timers {
    uint64_t armed;             /* how many are in the queues or due */
    struct TimerFrame *running; /* the innermost callback that runs */
    AioTimerLink due;           /* taken out of the queues, to run */

    /* What other threads ask for; the context's lock. */
    AioTimer *requested_first;  /* to arm; by request_next_ */
    AioTimer *requested_last;
    List deletions;             /* of Deletion.link: who waits for the end */
    struct Deletion *awaiting;  /* the home thread sleeps for this one */
    bool posted;                /* post is on its way */
    Post post;                  /* lets the home thread serve these */

    TimerQueue queues[2];       /* by AioClock */
} Timers;

/* No timers yet. */
void timer_init(AioContext *ctx);

/* When the earliest timer of ctx is due, on the monotonic clock and at most a
 * second ahead for the real-time clock; INT64_MAX: none.  Home thread. */
int64_t timer_deadline_ns(AioContext *ctx);

/* Run the timers that are due now, and no timer twice.  Returns whether any
 * ran.  Home thread. */
bool timer_dispatch(AioContext *ctx);

/*
 * The home thread of own, in aio_wait_while(), has found that it must wait for
 * target: misuse() if target's thread in turn waits for a timer callback that
 * is to return first.
 */
void timer_check_waiting(AioContext *own, AioContext *target);

/* warn_line() for each timer that is left; returns how many. */
size_t timer_check_none_left(AioContext *ctx);

/* Serve what other threads asked for, after ctx->stopped was set under
 * ctx->lock by the home thread, which calls this as its last.  */
void timer_stopped(AioContext *ctx);

#endif
