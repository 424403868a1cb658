/* SPDX-License-Identifier: MIT */
/*
 * I/O that suspends the calling coroutine, not its thread.
 *
 * Results are those of the POSIX calls of the same names, short counts
 * included, with errors as negative errno values; never -EINTR, and -EAGAIN
 * only where a call says so that was made to wait: a co_connect() of a UNIX
 * socket for which SO_SNDTIMEO was too short (of a TCP socket that is
 * -EINPROGRESS), a device asked at an offset that has O_NONBLOCK.  Besides, any
 * of them may return
 *
 *   -ECANCELED  co_close() ended the wait
 *   -ENOMEM     the runtime found no memory
 *
 * Sends never raise SIGPIPE, nor does co_write() on a socket; on a pipe without
 * readers it does, as write(2).  File descriptors that are opened here are
 * close-on-exec.  O_NONBLOCK of a descriptor is never changed, and does not
 * matter otherwise: a blocking descriptor works as well.
 *
 * One coroutine reads and one writes at a time on a descriptor that has
 * readiness (a socket, a pipe); a second one waits its turn, in order.  Files
 * have no such limit, but at the position.  A buffer belongs to the call until
 * it returns.
 *
 * A call that finds what it asks for does not suspend.  Who may always find
 * something (a server whose client sends without end) calls co_sleep_ns(0) from
 * time to time, or nobody else has his turn.
 *
 * Which way a transfer takes (readiness, the calling thread at once, a worker
 * thread) is the library's choice: it learns for each file whether it can
 * answer without blocking.  Without a context, i.e. in a coroutine without a
 * home, these calls do their work in the calling thread and block it.
 *
 * Thread table: all of them are for coroutines only.  None may be called on
 * a descriptor that has handlers (fd.h): that aborts.
 */
#ifndef COAIO_IO_H
#define COAIO_IO_H

#include <coaio/types.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
static_assert(sizeof(off_t) == 8, "-D_FILE_OFFSET_BITS=64, as pkg-config says");
#else
_Static_assert(sizeof(off_t) == 8,
               "-D_FILE_OFFSET_BITS=64, as pkg-config says");
#endif

COAIO_BEGIN_DECLS

/**
 * read(2), write(2): at the position of the file, if it has one.
 *
 * Of a file, each call reads or writes one piece, whoever else does so at the
 * position at the same time.  A write is a single write(2), so with O_APPEND no
 * other process gets in between either.  A read may take two calls, and of a
 * block device the kernel lets two calls have the same piece: there others wait
 * for their turn, but not those who share the position in another way (through
 * a duplicate of the descriptor, in another process, with read(2) or write(2),
 * in a coroutine without a home).
 */
COAIO_API ssize_t coroutine_fn co_read(int fd, void *buf, size_t count);
COAIO_API ssize_t coroutine_fn co_write(int fd, const void *buf, size_t count);

/**
 * preadv(2), pwritev(2), and for one buffer pread(2), pwrite(2).
 */
COAIO_API ssize_t coroutine_fn co_pread(int fd, void *buf, size_t count,
                                        off_t offset);
COAIO_API ssize_t coroutine_fn co_pwrite(int fd, const void *buf, size_t count,
                                         off_t offset);
COAIO_API ssize_t coroutine_fn co_preadv(int fd, const struct iovec *iov,
                                         int iovcnt, off_t offset);
COAIO_API ssize_t coroutine_fn co_pwritev(int fd, const struct iovec *iov,
                                          int iovcnt, off_t offset);

/**
 * recv(2), send(2), recvmsg(2), sendmsg(2).  flags are passed on, except that
 * MSG_DONTWAIT does not make them return -EAGAIN: use co_poll_fd() to look.
 * An error that ends a receive with MSG_WAITALL after some bytes gives their
 * count; on TCP the next call may then see the end of the stream in its place.
 */
COAIO_API ssize_t coroutine_fn co_recv(int fd, void *buf, size_t count,
                                       int flags);
COAIO_API ssize_t coroutine_fn co_send(int fd, const void *buf, size_t count,
                                       int flags);
COAIO_API ssize_t coroutine_fn co_recvmsg(int fd, struct msghdr *msg,
                                          int flags);
COAIO_API ssize_t coroutine_fn co_sendmsg(int fd, const struct msghdr *msg,
                                          int flags);

/**
 * accept4(2) with SOCK_CLOEXEC and flags (SOCK_NONBLOCK or 0).  addr and
 * addrlen may be NULL.
 *
 * A listening socket that others take connections from as well, another process
 * or accept(2) in this one, should have O_NONBLOCK.  Without that, if they take
 * the one that was there, the thread blocks until the next comes, and its loop
 * with it, whatever the engine.
 *
 * Returns the new descriptor, which belongs to the caller.
 */
COAIO_API int coroutine_fn co_accept(int fd, struct sockaddr *addr,
                                     socklen_t *addrlen, int flags);

/**
 * connect(2).  Returns 0 when connected.
 */
COAIO_API int coroutine_fn co_connect(int fd, const struct sockaddr *addr,
                                      socklen_t addrlen);

/**
 * fsync(2), fdatasync(2), fallocate(2).
 */
COAIO_API int coroutine_fn co_fsync(int fd);
COAIO_API int coroutine_fn co_fdatasync(int fd);
COAIO_API int coroutine_fn co_fallocate(int fd, int mode, off_t offset,
                                        off_t length);

/**
 * End every wait on fd, in all contexts, with -ECANCELED, then close(2) it.
 * A transfer that a worker has begun ends first.  A descriptor on which
 * coroutines have waited should be closed so.  On io_uring a wait in another
 * context lets the open file go there, when that next looks at its descriptors
 * (a busy one does so every few passes).
 *
 * A call that another thread begins at the same time may be too late: as with
 * close(2), it finds the number closed, or used for something else.
 *
 * Barriers: none.
 *
 * Returns 0, or what close(2) reported; fd is closed in any case.  The caller,
 * and not its loop, waits for what close(2) waits for (SO_LINGER, what a
 * terminal has to send, what a file has to write back), and before that for
 * what a worker cannot be cut short in:
 *
 *   - a call on a file that has begun; one that io_uring makes for another
 *     context has ended when the loop of that has run again
 *   - a connect(2) of a blocking UNIX socket whose peer's queue is full, which
 *     ends when the peer accepts or goes
 *   - a read or write of a blocking terminal or device (of what does not know
 *     RWF_NOWAIT, and is no file) that was ready until another process took
 *     what there was, which ends when there is something again
 */
COAIO_API int coroutine_fn co_close(int fd);

/**
 * Wait until fd is ready for one of events (POLLIN, POLLOUT, POLLPRI,
 * POLLRDHUP of <poll.h>; 0: for POLLERR or POLLHUP, which are waited for
 * always), for at most timeout_ns (below 0: for ever).
 *
 * Returns the events that hold, at least one of those asked for, POLLERR or
 * POLLHUP; or -ETIMEDOUT, -ECANCELED, -EBADF; or -EPERM if fd has no readiness
 * (files on disks, directories, block devices, /dev/null, ...: what
 * epoll_ctl(2) refuses), and events has neither POLLIN nor POLLOUT, for which
 * it is always ready.
 */
COAIO_API int coroutine_fn co_poll_fd(int fd, int events, int64_t timeout_ns);

/**
 * Suspend for at least ns nanoseconds; 0 or less lets the loop make a pass.
 *
 * Returns 0, or (later) -ECANCELED.
 */
COAIO_API int coroutine_fn co_sleep_ns(int64_t ns);

/**
 * Call fn(arg) in a worker thread and wait for it.  The pool of workers is
 * one for the process, bounded, and serves jobs in the order of their coming.
 * fn must not call coaio, except aio_bh_schedule() and aio_co_wake().
 *
 * Barriers: release, then acquire; fn sees what the caller wrote before, and
 * the caller what fn wrote.
 *
 * Returns what fn returned, or -EAGAIN if there is no worker and no thread
 * could be started.
 */
COAIO_API int coroutine_fn co_run_in_worker(int (*fn)(void *arg), void *arg);

COAIO_END_DECLS

#endif
