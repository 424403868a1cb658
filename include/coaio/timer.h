/* SPDX-License-Identifier: MIT */
/*
 * AioTimer: a callback at a point in time.  It lives in its user's memory and
 * never allocates.
 *
 * Life cycle
 *
 *   aio_timer_init() ──> idle ──mod──> armed ──expiry──> idle (callback runs)
 *                          └─<─────────del──────────┘
 *
 *   The memory may be reused when the timer is idle and aio_timer_del() has
 *   returned, or in the callback.  A timer holds no reference on its context:
 *   delete armed ones before the context goes.
 *
 * Timers that are due run in the order of their expiry, and those with equal
 * expiry in the order in which they were armed.  The callback runs on the home
 * thread, outside any coroutine, never before the expiry.  A callback that
 * arms its timer in the past runs again in the next pass.
 *
 * Thread table
 *
 *                          home thread   coroutine  other thread  signal
 *                                                                 handler
 *   aio_timer_init             yes          yes         yes         no
 *   aio_timer_mod_ns           yes          yes         yes (1)     no
 *   aio_timer_del              yes          yes         yes (2)     no
 *   aio_timer_pending          yes          yes         yes (3)     no
 *   aio_clock_ns               yes          yes         yes         yes
 *
 *   (1) takes effect when the home thread gets to it
 *   (2) blocks the calling thread until the home thread gets to it, and until
 *       the callback has returned if it runs: so the callback must not wait for
 *       a thread that does this.  Aborts where that is seen, that is, where the
 *       callback waits by aio_wait_while() for the context of that thread.
 *   (3) an answer that may be old
 *
 *   Calls on one timer from several threads at once are the user's to order.
 */
#ifndef COAIO_TIMER_H
#define COAIO_TIMER_H

#include <coaio/types.h>

COAIO_BEGIN_DECLS

typedef enum AioClock {
    AIO_CLOCK_MONOTONIC = 0, /* since some point in the past; never jumps */
    AIO_CLOCK_REALTIME,      /* since 1970; jumps when the clock is set, and
                                such a jump is noticed within a second */
} AioClock;

typedef void AioTimerFunc(void *opaque);

/* A place in a list of timers. */
typedef struct AioTimerLink {
    struct AioTimerLink *next_;
    struct AioTimerLink *prev_;
} AioTimerLink;

/* The fields are the library's own.  Those that the home thread uses are the
 * first 64 bytes. */
struct AioTimer {
    AioTimerLink link_;
    AioContext *context_;
    uint8_t state_;
    uint8_t clock_;
    uint8_t requested_;
    int64_t expiry_ns_;
    const void *ahead_; /* a hint, never followed: what to fetch ahead */
    AioTimerFunc *callback_;
    void *opaque_;
    int64_t requested_ns_;
    AioTimer *request_next_;
    AioTimer *request_prev_;
};

/**
 * The time of a clock, in nanoseconds.
 */
COAIO_API int64_t aio_clock_ns(AioClock clock);

/**
 * Make timer an idle timer of ctx that calls cb(opaque).  The memory may hold
 * anything before.
 */
COAIO_API void aio_timer_init(AioTimer *timer, AioContext *ctx, AioClock clock,
                              AioTimerFunc *cb, void *opaque);

/**
 * Arm timer, or arm it anew if it is armed, to run at expiry_ns (an absolute
 * time of its clock).
 *
 * Barriers: release; what was written before is visible to the callback.
 */
COAIO_API void aio_timer_mod_ns(AioTimer *timer, int64_t expiry_ns);

/**
 * Make timer idle.  When the call returns, the callback is not running (except
 * in the callback itself) and does not run unless timer is armed again.
 *
 * Barriers: acquire; what the callback wrote, if it has run, is visible.
 */
COAIO_API void aio_timer_del(AioTimer *timer);

/**
 * Whether timer is armed and has not expired.
 */
COAIO_API bool aio_timer_pending(const AioTimer *timer);

COAIO_END_DECLS

#endif
