/* SPDX-License-Identifier: MIT */
/*
 * The back end of a context: how it waits for file descriptors.  One file an
 * engine, behind one table of functions.
 *
 * An engine watches descriptors for fd.c, which owns all state of who waits
 * for what; the engine knows only (fd, events, serial) and reports what is
 * ready by calling fd_ready().  Interest is level-triggered, and is changed
 * by update(); an engine may keep it in the kernel (epoll) or build it for
 * each wait (poll).
 *
 * io_uring is not there if the library was built without it.
 */
#ifndef COAIO_LOOP_POLLER_H
#define COAIO_LOOP_POLLER_H

#include "base/post.h"
#include "os/uring.h"

#include <stdbool.h>
#include <stdint.h>

struct AioContext;

/*
 * An operation that an engine completes by itself.  Its owner fills in
 * post.run and request, and submits it; from then on it is the engine's, until
 * post.run is called on the home thread, outside coroutines, as for a wake-up
 * that was posted.
 */
typedef struct IoOp {
    Post post; /* first */
    OsUringRequest request;
    /* Called in place of post.run where the thread ends first, and the kernel
     * is done with it.  NULL: it is given up; of a socket. */
    void (*left)(struct IoOp *op);
    ssize_t result;        /* or -errno; the engine's, then the owner's */
    struct IoOp *next; /* the engine's, like all below; 0 at first */
    unsigned slot;
    bool queued;   /* has not reached the kernel */
    bool entering; /* may reach it just now */
    bool dropped;  /* must not reach it any more */
} IoOp;

typedef struct PollerOps {
    const char *name;

    /*
     * What is watched holds the open file: closing the descriptor does not
     * close that.  So nothing may be watched that nobody waits for.
     */
    bool holds_files;

    /* Set up; returns 0 or -errno (-ENOSYS: not on this machine). */
    int (*open)(struct AioContext *ctx);
    void (*close)(struct AioContext *ctx);

    /*
     * Watch fd for events (POLLIN | POLLOUT | POLLPRI | POLLRDHUP; 0: stop
     * watching).  With POLLER_ONESHOT, report it once, then ignore fd until
     * the next update().  Called with the lock of the fd table, by any thread.
     * serial is handed back to fd_ready(), which ignores reports of an older
     * one.  old is what was asked for before: 0, or the events.  It is a hint:
     * the kernel may have forgotten fd since, when it was closed.
     *
     * Returns 0 or -errno; -EPERM: fd has no readiness (always ready).
     * Stopping always succeeds.
     */
    int (*update)(struct AioContext *ctx, int fd, uint32_t serial,
                  uint32_t old, uint32_t events);

    /*
     * prepare / wait / (dispatch is the context's): wait up to timeout_ns (0:
     * look only; below 0: for ever), and report with fd_ready().  Must see
     * ctx->event.  Home thread.  Returns how many descriptors were reported,
     * or -errno (-EINTR).
     */
    int (*wait)(struct AioContext *ctx, int64_t timeout_ns);

    /* These five are NULL for engines that have no operations, and for the home
     * thread.  Whether the engine and the kernel make that call, and it pays
     * now: */
    bool (*takes)(struct AioContext *ctx, OsUringCall call);
    /* Whether a call that it takes is better made by it though a system call
     * would not block.  Asked before each. */
    bool (*prefers)(struct AioContext *ctx, OsUringCall call);
    /*
     * Take in an operation that it takes, for the next wait().  Returns false
     * if there is no room now.
     */
    bool (*submit)(struct AioContext *ctx, IoOp *op);
    /*
     * Have one that was taken in complete soon, with -ECANCELED or -EINTR if it
     * has not been done by then.  Returns false if there is no room now.
     */
    bool (*cancel)(struct AioContext *ctx, IoOp *op);
    /*
     * The socket of an operation is about to be closed: from the return of
     * this on, the operation, which need not have been submitted yet, uses it
     * no more, or holds the open file.  Any thread; whoever was woken must not
     * go on before.
     */
    void (*drop)(struct AioContext *ctx, IoOp *op);

    /*
     * The home thread ends, and nobody waits here any more: let go of all
     * files.  Who is closing one goes on, and may begin something that ends
     * with this.  What comes afterwards is update() and drop(), of other
     * threads.  NULL: nothing is held.  Home thread.
     */
    void (*stop)(struct AioContext *ctx);

    /* A descriptor that is readable when wait() would find something, for
     * foreign loops; or -1, perhaps because operations are under way. */
    int (*descriptor)(struct AioContext *ctx);

    /* Before a foreign loop sleeps on that; or NULL.  Returns false if it must
     * not sleep, but come again.  Home thread. */
    bool (*prepare)(struct AioContext *ctx);
} PollerOps;

typedef struct Poller {
    const PollerOps *ops; /* atomic, for aio_context_engine() */
    void *state;   /* the engine's own */
    bool best;      /* no engine was asked for, or "auto"; constant */
    bool replaceable; /* another may take its place; constant */
    unsigned ops_taken; /* operations that have not completed; the home's */
    unsigned ops_known; /* that fd_cancel_all() may find, or has found, taken
                           or not; the home's */
    bool ops_waiting; /* some of them for the next wait(); the home's */
    uint32_t due;  /* atomic; it has something to tell the kernel, and wants
                      to wait() even if nothing is watched */
} Poller;

extern const PollerOps poller_epoll;
extern const PollerOps poller_poll;
extern const PollerOps poller_uring;

#ifdef COAIO_TESTING
/* From how many reports in one wait() on it takes calls on sockets (0:
 * always). */
void poller_uring_set_crowd(unsigned n);
/* From what price of a system call on it prefers reads and sends, in rings to
 * come. */
void poller_uring_set_dear_ns(int64_t ns);
#endif

/* In the events of update(); no POLL... flag has this value. */
#define POLLER_ONESHOT (UINT32_C(1) << 30)

/* Choose by name (NULL: the environment, then the best) and open.  Returns
 * what aio_context_new() documents. */
int poller_open(struct AioContext *ctx, const char *name);
void poller_close(struct AioContext *ctx);

/*
 * The engine of ctx, which has no operations, and none that are known, may not
 * use the kernel any more: another takes its place, and the engine's state is
 * gone.  Returns 0, or error if none can.  Home thread, with no lock held.
 */
int poller_replace(struct AioContext *ctx, int error);

/*
 * For engines: fd, watched under serial, has events.  Home thread, with no
 * lock held.  Returns false for a stale report: nothing is watched under that
 * serial (any more).
 */
bool fd_ready(struct AioContext *ctx, int fd, uint32_t serial,
              uint32_t events);

/*
 * For engines that cannot get rid of a stale registration otherwise: forget
 * all with reset(), and watch again what is to be watched.  Returns what
 * reset() did; if that is an error, nothing else happens.  Home thread.
 */
int fd_rewatch(struct AioContext *ctx, int (*reset)(struct AioContext *ctx));

#endif
