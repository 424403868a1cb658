/* SPDX-License-Identifier: MIT */
/*
 * IOThread: a thread that polls an AioContext of its own.
 *
 * Life cycle
 *
 *   iothread_new() returns when the thread runs and polls.  iothread_stop()
 *   ends the thread; the context lives on while somebody refers to it, but
 *   nothing runs in it any more.  iothread_unref() drops a reference, and the
 *   last one stops the thread if it still runs.
 *
 * The thread blocks all signals but those of its own faults (SIGSEGV, SIGBUS,
 * SIGILL, SIGFPE, SIGTRAP, SIGSYS), and reports stack overflows
 * (aio_install_overflow_handler()).
 *
 * Thread table
 *
 *                                 any thread      its own   signal
 *                                 but its own               handler
 *   iothread_new                      yes             -        no
 *   iothread_ref, iothread_context    yes            yes       no
 *   iothread_stop                     yes (1)        no        no
 *   iothread_unref                    yes (1)        (2)       no
 *
 *   (1) not in a coroutine: it blocks until the thread has ended
 *   (2) yes, unless it is the last reference and the thread runs: that aborts
 */
#ifndef COAIO_IOTHREAD_H
#define COAIO_IOTHREAD_H

#include <coaio/types.h>

COAIO_BEGIN_DECLS

typedef struct IOThreadOptions {
    size_t size;            /* sizeof(IOThreadOptions) */
    const char *engine;     /* as in AioContextOptions */
    const unsigned *cpus;   /* the CPUs that it may run on; NULL: all */
    size_t n_cpus;
    int64_t poll_max_ns;    /* as in aio_context_set_poll_params() */
    int64_t poll_grow;
    int64_t poll_shrink;
} IOThreadOptions;

/**
 * Start a thread.  name (at most 15 bytes are shown by the system) is copied;
 * options may be NULL.
 *
 * Barriers: release; what was written before is visible in the thread.
 *
 * Returns 0 and fills *iothread with a reference, or returns
 *   -ENOMEM, -EAGAIN  no memory, or no more threads allowed
 *   -EINVAL           a CPU that does not exist, poll parameters below 0, ...
 *   what aio_context_new() and aio_install_overflow_handler() return
 */
COAIO_API int iothread_new(IOThread **iothread, const char *name,
                           const IOThreadOptions *options);

/**
 * Take a reference.  Returns iothread.
 */
COAIO_API IOThread *iothread_ref(IOThread *iothread);

/**
 * Drop a reference; NULL is ignored.
 */
COAIO_API void iothread_unref(IOThread *iothread);

/**
 * The context that it polls.  Borrowed: valid while iothread is; take a
 * reference of your own to keep it longer.
 */
COAIO_API AioContext *iothread_context(IOThread *iothread);

/**
 * Run what is due, then end the thread and wait for it, and for calls on files
 * that its engine makes just then.  Coroutines that are parked there are
 * reported on stderr, by name and by what they wait for, and are left alone;
 * they keep no descriptor from being closed, but until it is, the turn to read
 * or write it that they had.  Of what one was closing, another co_close() says
 * -EBADF if a worker closes it.  Wake-ups that come later are counted and never
 * run.  The caller's own loop stands still meanwhile: nothing that still runs
 * there may wait for it, as aio_timer_del() of one of its timers does.
 * Calling it again does nothing.  Aborts when called from the thread itself.
 *
 * Barriers: acquire; what the thread wrote is visible.
 *
 * Returns the number of coroutines that were left.
 */
COAIO_API size_t iothread_stop(IOThread *iothread);

COAIO_END_DECLS

#endif
