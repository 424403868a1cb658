/* SPDX-License-Identifier: MIT */
/*
 * Waiting for readiness inside the library: what io/ builds on.
 */
#ifndef COAIO_LOOP_FD_INT_H
#define COAIO_LOOP_FD_INT_H

#include "base/list.h"
#include "loop/wait.h"

#include <coaio/fd.h>

/*
 * One coroutine's wait for a descriptor, on its stack.  The wait's result is
 * the events (positive) or -errno.
 */
typedef struct FdWait {
    CoWait wait;      /* first */
    List link;        /* in the descriptor's list; the fd table's lock */
    int fd;
    uint32_t events;  /* asked for */
    struct IoOp *op;  /* which it waits for instead, or NULL */
} FdWait;

/*
 * Wait in the calling coroutine's home until fd has one of events, or until
 * timeout_ns (below 0: for ever) has passed.  Several may wait at once, for
 * the same or for different events; each is woken when its events come.
 * Returns the events, -ETIMEDOUT, -ECANCELED, or what the engine reported.
 * A descriptor without readiness is always ready.  Aborts if fd has a handler
 * in this context; what is the caller's name for the report.
 */
int coroutine_fn fd_wait(int fd, uint32_t events, int64_t timeout_ns,
                         const char *what);

/*
 * The two halves of it, for callers who begin under a lock of their own, so
 * that whoever takes that lock next and then calls fd_cancel_all() ends the
 * wait.  fd_wait_begin() returns 0, and fd_wait_park() must follow; or the
 * events that hold always; or -errno.
 */
int fd_wait_begin(FdWait *wait, int fd, uint32_t events, const char *what);
int coroutine_fn fd_wait_park(FdWait *wait, int64_t timeout_ns);

/*
 * Wait for op on fd, which is to be submitted to the engine then.  The engine
 * watches nothing for it: it is in the table for fd_cancel_all(), and for
 * reports.  Returns 0 or -errno.
 */
int fd_wait_begin_op(FdWait *wait, int fd, struct IoOp *op, const char *what);

/* End such a wait with 0, unless somebody else has ended it.  Home thread. */
void fd_wait_end_op(FdWait *wait);

/*
 * End all waits on fd in all contexts with error, before fd is closed.  Any
 * thread.  Waits of other contexts end there, a little later.  When this
 * returns no engine will read from or write to what fd names next; one that
 * holds files lets go of this one now in this context, and in others when they
 * next look at their descriptors.  Handlers are misuse.
 */
void fd_cancel_all(int fd, int error);

/* Abort, naming call, if fd has handlers in ctx. */
void fd_check_no_handler(AioContext *ctx, int fd, const char *call);

/* The descriptor that a wait is for, or -1 if it is no fd_wait().  For
 * reports; on the home thread, or when it has stopped. */
int fd_of_wait(const CoWait *wait);

#endif
