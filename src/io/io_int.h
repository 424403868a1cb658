/* SPDX-License-Identifier: MIT */
/*
 * What the files of this layer share: the registry of descriptors, the turns
 * of those who wait on one, and the ways in which a transfer is made.
 *
 *   co_read ... ──> io.c ──> socket.c ─┐
 *                     │                ├──> transfer.c (readiness)
 *                     ├────> stream.c ─┘       │
 *                     └────> file.c ───────────┼──> job.c (workers)
 *                                              └──> submit.c (the engine)
 */
#ifndef COAIO_IO_IO_INT_H
#define COAIO_IO_IO_INT_H

#include "base/list.h"
#include "loop/context.h"
#include "loop/wait.h"
#include "loop/worker.h"
#include "os/file.h"
#include "os/uring.h"
#include "os/thread.h"

#include <coaio/io.h>

/* Beyond that it is the bytes that a transfer costs, not the call. */
#define IO_DEAR_MAX ((size_t)32 << 10)

typedef enum IoDirection {
    IO_READ = 0,
    IO_WRITE = 1
} IoDirection;

/* --- registry.c: what is known of a descriptor ---------------------------- */

/* One direction of a descriptor. */
typedef struct IoSide {
    OsMutex lock;
    uint32_t held; /* atomic, written under lock: somebody has the turn */
    uint32_t bets; /* atomic; a hint: so many first tries to read are not worth
                      it, or so many writes are not worth the engine */
    List waiters;  /* of IoTurn.link, in order of arrival; lock */
} IoSide;

/*
 * A descriptor number, as this process uses it.  Made when something is first
 * known of it, and never freed.  "both locks": those of the two sides, to
 * read either one suffices.
 */
typedef struct IoFd {
    IoSide sides[2];     /* by IoDirection */
    uint32_t generation; /* atomic; both locks: grows with each co_close() */
    bool closing;        /* both locks: co_close() is under way */
    uint32_t facts;      /* atomic; IO_KIND..., IO_NO_... */
    uint32_t transfers;  /* atomic; since the facts were checked; a hint */
    uint64_t serial;     /* atomic; of the file, when they were, and whether
                            that is in memory */
    uint64_t seen;       /* atomic; AioContext.pass in which it was a file;
                            a hint */

    WorkerLane writes; /* those that exclude one another; the pool's */

    List jobs;        /* of IoJob.link; lock of sides[IO_READ], like: */
    CoWait *closer;   /* waits for running to be 0, or NULL */
    uint32_t running; /* atomic, futex: jobs that a worker has begun, and
                         operations that an engine was given */
    bool blocked;     /* a thread waits for running to be 0 */
} IoFd;

/* IoFd.facts: 0, or a kind and what was learned of the file. */
#define IO_KIND(kind)      ((uint32_t)(kind) + 1)
#define IO_KIND_MASK       7u
#define IO_NO_NOWAIT_READ  8u /* RWF_NOWAIT does not work, or would block */
#define IO_NO_NOWAIT_WRITE 16u
#define IO_WRITES_EXCLUDE  32u /* each other, for all of their time */

/* After so many transfers the kernel is asked again what a number is. */
#define IO_CHECK_INTERVAL 256

/* The record of fd, or NULL if nothing is known of it. */
IoFd *io_fd_find(int fd);
/* The record of fd; NULL if there is no memory. */
IoFd *io_fd_get(int fd);

static inline uint32_t io_fd_kind(const IoFd *entry)
{
    return load_relaxed(&entry->facts) & IO_KIND_MASK;
}

/*
 * Ask the kernel what fd is, and begin to learn anew if it is something else
 * than before.  Returns the record and the kind, or -EBADF, -ENOMEM.
 */
int io_fd_check(int fd, IoFd **entry, OsFileKind *kind);
void io_fd_learn(IoFd *entry, uint32_t fact);

/* fd was just opened by the library: forget what the number stood for. */
void io_fd_opened(int fd, OsFileKind kind);

/* Who closes a number.  On its stack, from io_fd_retire() to its end, which is
 * io_fd_close() or io_fd_hand_over(); or the end of its thread, and then the
 * number is one that nobody closes. */
typedef struct IoClosing {
    ContextFarewell farewell; /* if it has a home */
    IoFd *entry;
} IoClosing;

/*
 * End all that waits on fd here, and wait for what workers have begun.  Then
 * nothing can begin on it any more.
 * Returns 0, or -EBADF if somebody else is closing it, and then closing is
 * nothing.
 */
int coroutine_fn io_fd_retire(IoClosing *closing, IoFd *entry, int fd);
/* Close fd and let the number begin anew. */
int io_fd_close(IoClosing *closing, int fd);
/* The number is closing until who took it over has called io_fd_reopen(). */
void io_fd_hand_over(IoClosing *closing);
/* Let the number begin anew; for a file that nobody can wait on, which is
 * closed without a lock just after that. */
void io_fd_reopen(IoFd *entry);

/*
 * The file that a descriptor stood for when a call began.  Each step of the
 * call that comes after it has been suspended must ask whether it is that
 * still.
 */
typedef struct IoUse {
    IoFd *entry;
    uint32_t generation;
} IoUse;

static inline IoUse io_use(IoFd *entry)
{
    return (IoUse){entry, load_relaxed(&entry->generation)};
}

/* Has what the lock of a side protects gone since generation? */
static inline bool io_fd_stale(const IoFd *entry, uint32_t generation)
{
    return entry->generation != generation || entry->closing;
}

/* --- turn.c: who waits on a direction ------------------------------------- */

/* A coroutine's place in the queue, then its turn.  On its stack. */
typedef struct IoTurn {
    CoWait wait; /* first */
    List link;   /* in IoSide.waiters; its lock */
    IoFd *entry;
    IoSide *side;
    uint32_t generation; /* of entry, when it arrived */
} IoTurn;

/* Wait for the turn.  Returns 0, or -ECANCELED, and then there is none. */
int coroutine_fn io_turn_take(IoTurn *turn, IoFd *entry, IoDirection direction,
                              const char *what);
/* Pass it on. */
void io_turn_end(IoTurn *turn);

/* Take all that wait out of the queue, each ended with error; both locks. */
void io_turn_end_all_locked(IoSide *side, int error, List *ended);
void io_turn_wake_all(List *ended);

/* --- transfer.c: readiness ------------------------------------------------ */

/* What an attempt says that would block, where readiness is no promise. */
#define IO_NEEDS_WORKER ((ssize_t)-10000)

/*
 * A call that is attempted again and again until it need not wait.  Embedded,
 * as the first member, in what the attempt needs besides.
 */
typedef struct IoCall IoCall;
struct IoCall {
    const char *what; /* the caller's name */
    int fd;
    IoDirection direction;
    short events;  /* what to wait for after -EAGAIN */
    bool progress; /* set by an attempt that did a part of the work
                               before its -EAGAIN */
    bool preferred; /* a write that the engine is better at, once */
    /* Never blocks.  Returns the result, -EAGAIN or IO_NEEDS_WORKER. */
    ssize_t (*attempt)(IoCall *call);
    /* May block; for IO_NEEDS_WORKER only. */
    ssize_t (*block)(IoCall *call);
    /* What the engine may do in place of an attempt: receive, once those would
     * block, or send; iov is room for it.  NULL: nothing. */
    void (*describe)(const IoCall *call, OsUringRequest *request,
                     struct iovec *iov);
    OsUringCall described; /* what it describes */
    /* What the result of that means for the call: its result, or -EAGAIN if
     * that was a part of the work.  NULL: the result. */
    ssize_t (*went)(IoCall *call, ssize_t result);
};

/* The result is never -EINTR; -EAGAIN only if it is that of block. */
ssize_t coroutine_fn io_transfer(IoCall *call);

/* --- job.c: workers ------------------------------------------------------- */

typedef ssize_t IoBlocking(void *arg);

/*
 * Call fn(arg), which works on what is used (NULL: no descriptor), in a worker.
 * Without a home: here.  Returns what it returned; or, if it was not called,
 * -ECANCELED or -ENOMEM.  To tell these apart is for fn, if need be.
 */
ssize_t coroutine_fn io_run_in_worker(const IoUse *use, IoBlocking *fn,
                                      void *arg, const char *what);

/*
 * The same for a write: after all that were so given for it before, if such
 * writes would only wait for each other, and none of them hangs.
 */
ssize_t coroutine_fn io_write_in_worker(const IoUse *use, IoBlocking *fn,
                                        void *arg, const char *what);

/* The same while the caller has a turn that may have been taken away. */
ssize_t coroutine_fn io_run_in_worker_turn(const IoTurn *turn, IoBlocking *fn,
                                           void *arg, const char *what);

/* Take back the jobs of entry that have not begun; lock of its reading side,
 * and it is closing. */
void io_jobs_cancel_locked(IoFd *entry);

/* What co_close() waits for: returns 0 or -ECANCELED; to be released. */
int io_fd_hold(const IoUse *use);
void io_fd_release(IoFd *entry);

/* --- submit.c: operations of the engine ----------------------------------- */

/* What says that the engine cannot. */
#define IO_NEEDS_OTHER_WAY ((ssize_t)-10001)

/* Whether the engine of the caller's context makes such calls. */
bool io_may_submit(OsUringCall call);
/* And better than a system call that would not block.  Asked before each. */
bool io_better_submit(OsUringCall call);

/*
 * Make request, on the file that is used, an operation of the engine
 * of the caller's context.  Returns its result, -ECANCELED, or
 * IO_NEEDS_OTHER_WAY: nothing was done.
 */
ssize_t coroutine_fn io_submit(const IoUse *use, const OsUringRequest *request,
                               const char *what);

/*
 * The same for a call on a socket, which io_may_submit(), with the turn.  It
 * may also be ended by fd_cancel_all().
 */
ssize_t coroutine_fn io_submit_with_turn(const IoTurn *turn,
                                         const OsUringRequest *request,
                                         const char *what);

/* --- the kinds of descriptors --------------------------------------------- */

/* A transfer of any kind: to or from iov, at offset or (-1) the position. */
typedef struct IoTransfer {
    const char *what;
    int fd;
    IoDirection direction;
    const struct iovec *iov;
    int iovcnt;
    off_t offset;
} IoTransfer;

#define IO_SLICE_MAX 16

/*
 * Fill slice with at most IO_SLICE_MAX pieces of what lies after skip bytes.
 * Returns how many; *bytes is their sum, cut to at most limit.
 */
int io_slice(const IoTransfer *transfer, size_t skip, size_t limit,
             struct iovec *slice, size_t *bytes);

/* -ENOTSOCK if it is no socket. */
ssize_t coroutine_fn io_socket_transfer(const IoTransfer *transfer);
ssize_t coroutine_fn io_stream_transfer(const IoTransfer *transfer,
                                        IoFd *entry);
/* kind: OS_FILE_MEMORY or anything else. */
ssize_t coroutine_fn io_file_transfer(const IoTransfer *transfer, IoFd *entry,
                                      OsFileKind kind);

/* --- io.c ----------------------------------------------------------------- */

/*
 * At the beginning of each call: aborts outside a coroutine, in a forked child
 * and if fd has handlers.  Returns whether the caller has a home.
 */
bool io_begin(const char *what, int fd);

static inline bool io_has_home(void)
{
    return os_thread()->current->home != NULL;
}

#endif
