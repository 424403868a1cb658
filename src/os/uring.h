/* SPDX-License-Identifier: MIT */
/*
 * io_uring: a ring that one thread submits requests to and takes completions
 * from, by way of liburing.  Only there if the library was built with it.
 *
 * Life cycle: os_uring_open() by any thread; os_uring_enable() by the thread
 * that is to use the ring, from then on for good; os_uring_close() by any
 * thread, when nobody uses it.
 *
 * Requests are put into a queue that the kernel sees with the next
 * os_uring_wait(), however many they are, if they fit in (-EAGAIN: they do
 * not).  Each request but the cancels completes once with the data that it
 * was given, except that a multishot poll completes again and again, and says
 * with `more` that it goes on.
 *
 *                            any thread, before   the thread that enabled it
 *   os_uring_close                  yes                     yes
 *   os_uring_enter_ns               yes                     yes
 *   all the others                  no                      yes
 */
#ifndef COAIO_OS_URING_H
#define COAIO_OS_URING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct msghdr;

typedef struct OsUring OsUring;

typedef enum OsUringCall {
    OS_URING_READ,  /* preadv(2) */
    OS_URING_WRITE, /* pwritev(2) */
    OS_URING_FSYNC,
    OS_URING_FDATASYNC,
    OS_URING_FALLOCATE,
    OS_URING_RECV, /* from here on: of sockets */
    OS_URING_SEND,
    OS_URING_SENDMSG,
} OsUringCall;

static inline bool os_uring_call_of_socket(OsUringCall call)
{
    return call >= OS_URING_RECV;
}

/* A call on a file or a socket, as the system calls of these names. */
typedef struct OsUringRequest {
    OsUringCall call;
    int fd;
    off_t offset;            /* of transfers of files and fallocate(2) */
    const struct iovec *iov; /* of transfers; and what it points to: belong to
                                the kernel until the request has completed */
    const struct msghdr *msg; /* of sendmsg(2), in place of iov; likewise */
    int iovcnt;               /* of recv(2) and send(2): 1 */
    int mode; /* of fallocate(2); the flags of calls on sockets */
    off_t length;
} OsUringRequest;

typedef struct OsUringEvent {
    uint64_t data;  /* of the request */
    int32_t result; /* or -errno */
    bool more;      /* the request goes on */
} OsUringEvent;

/* What not to use though the kernel has it: for tests of the ways round. */
enum {
    OS_URING_NO_DEFER = 1, /* completions delivered when we ask only */
    OS_URING_NO_COOP = 2,  /* or when we enter the kernel */
    OS_URING_NO_SKIP = 4,  /* cancels that work complete in silence */
    OS_URING_NO_FILES = 8, /* calls on files */
    OS_URING_NO_SOCKETS = 32, /* calls on sockets */
    OS_URING_BEST = 16,    /* not for tests: a kernel that lacks the first */
};

/*
 * A ring that is not enabled yet, without the features named in without.
 * Returns 0 or -errno: -ENOSYS if the kernel has none; -EOPNOTSUPP if it lacks
 * what is needed; -EPERM or -EACCES if this process may not; -ENOBUFS if the
 * kernel has no memory for it (RLIMIT_MEMLOCK, perhaps); -ENOMEM, -EMFILE, ...
 */
int os_uring_open(OsUring **ring, unsigned without);
void os_uring_close(OsUring *ring);

/* What kernel.io_uring_disabled is: 0, 1 (for who has no privilege), 2 (for
 * all), or -1 if this kernel does not have the setting. */
int os_uring_disabled(void);

/* The calling thread is the one that uses it.  Returns 0 or -errno. */
int os_uring_enable(OsUring *ring);

/*
 * Readable while there is something to take.  Only of a ring that was opened
 * with OS_URING_NO_DEFER: who polls another is not woken (seen with 6.18).
 */
int os_uring_descriptor(const OsUring *ring);

/*
 * Complete with the events (POLLIN, ...) that hold of fd once one of events
 * does, or trouble (POLLERR, POLLHUP, or POLLRDHUP, asked for or not).
 * A multishot one completes anew with each change after that.  Holds the open
 * file.  Returns 0, or -EAGAIN if there is no room.
 */
int os_uring_poll(OsUring *ring, int fd, uint32_t events, bool multishot,
                  uint64_t data);

/* Whether there is no room for a request before the next os_uring_wait(). */
bool os_uring_full(const OsUring *ring);

/* What it costs to enter the kernel and to come out again. */
int64_t os_uring_enter_ns(const OsUring *ring);

/* Whether the kernel has requests for that call. */
bool os_uring_takes(const OsUring *ring, OsUringCall call);

/*
 * Make a call that os_uring_takes(); completes with its result or -errno.  A
 * receive waits until there is something, whether O_NONBLOCK is set or not; a
 * send until there is some room, unless mode has MSG_DONTWAIT.
 * Returns 0, or -EAGAIN if there is no room; or, in test builds, the error that
 * the call is to fail with, as a positive number.  os_uring_finished() is to be
 * told the result.  *slot is set to its place.
 */
int os_uring_request(OsUring *ring, const OsUringRequest *request,
                     uint64_t data, unsigned *slot);
void os_uring_finished(const OsUringRequest *request, ssize_t result);

/* Whether the kernel has taken in what was put there; until then it may be
 * replaced by nothing, which completes with 0. */
bool os_uring_taken(const OsUring *ring, unsigned slot);
void os_uring_replace(OsUring *ring, unsigned slot);

/*
 * Have the request with that data complete soon: with -ECANCELED or -EINTR if
 * it has not been done by then.  This may complete by itself, with the data
 * ignore.  Returns 0, or -EAGAIN if there is no room.
 */
int os_uring_cancel(OsUring *ring, uint64_t data, uint64_t ignore);

/*
 * The same for all there are, polls as well.  Kernels before 5.19 do not know
 * that, and do nothing.
 */
int os_uring_cancel_all(OsUring *ring, uint64_t ignore);

/*
 * Submit what is queued, and wait until there is a completion to be taken, for
 * at most timeout_ns (below 0: for ever; 0: do not wait): one system call, or
 * none if there is nothing to do for the kernel.  Returns 0 or -errno (-EINTR;
 * -EAGAIN, -EBUSY: no memory for what was queued, which stays so).
 */
int os_uring_wait(OsUring *ring, int64_t timeout_ns);

/*
 * Whether the kernel has done only some of what was due when it was entered
 * last: newer ones do a bounded part.
 */
bool os_uring_due(const OsUring *ring);

/* Take the oldest completion.  Returns whether there was one. */
bool os_uring_take(OsUring *ring, OsUringEvent *event);

#ifdef COAIO_TESTING
/* Rings to come are what newer versions of liburing make of them: without an
 * array of indices. */
void os_uring_set_no_array(bool value);
#endif

#endif
