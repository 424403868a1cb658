/* SPDX-License-Identifier: MIT */
/*
 * Pipes, terminals, and all that has readiness but is no socket.
 *
 * Where RWF_NOWAIT works on them (pipes, event fds), that is all there is to
 * it.  Elsewhere readiness only says that some byte can be had, or some room,
 * and somebody else may take it first: so, unless the descriptor is
 * nonblocking, the transfer is then made by a worker, and at most PIPE_BUF
 * bytes at a time are written.  The loop's thread never blocks.
 */
#include "io/io_int.h"

#include "os/event.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>

typedef struct StreamCall {
    IoCall call; /* first */
    const IoTransfer *transfer;
    IoFd *entry;
} StreamCall;

static StreamCall *stream_call(IoCall *call)
{
    return container_of(call, StreamCall, call);
}

static ssize_t transfer_nowait(const IoTransfer *t)
{
    return t->direction == IO_READ
               ? os_preadv_nowait(t->fd, t->iov, t->iovcnt, -1)
               : os_pwritev_nowait(t->fd, t->iov, t->iovcnt, -1);
}

static ssize_t transfer_now(const IoTransfer *t)
{
    return t->direction == IO_READ ? os_readv(t->fd, t->iov, t->iovcnt)
                                   : os_writev(t->fd, t->iov, t->iovcnt);
}

static ssize_t try_stream(IoCall *call)
{
    StreamCall *s = stream_call(call);
    uint32_t no_nowait =
        call->direction == IO_READ ? IO_NO_NOWAIT_READ : IO_NO_NOWAIT_WRITE;
    struct pollfd pollfd = {.fd = call->fd, .events = call->events};
    ssize_t result;
    int flags;

    if (!(load_relaxed(&s->entry->facts) & no_nowait)) {
        result = transfer_nowait(s->transfer);
        if (result != -EOPNOTSUPP) {
            return result;
        }
        io_fd_learn(s->entry, no_nowait);
    }
    flags = os_file_flags(call->fd);
    if (flags < 0) {
        return flags;
    }
    if (flags & O_NONBLOCK) {
        return transfer_now(s->transfer);
    }
    /* The wrong end never becomes ready, and this would wait for ever. */
    if ((flags & O_ACCMODE) ==
        (call->direction == IO_READ ? O_WRONLY : O_RDONLY)) {
        return -EBADF;
    }
    result = os_poll(&pollfd, 1, 0);
    if (result <= 0) {
        return result < 0 ? result : -EAGAIN;
    }
    return pollfd.revents & POLLNVAL ? -EBADF : IO_NEEDS_WORKER;
}

static ssize_t block_stream(IoCall *call)
{
    const IoTransfer *t = stream_call(call)->transfer;
    struct iovec slice[IO_SLICE_MAX];
    IoTransfer part = *t;
    size_t bytes;

    if (t->direction == IO_WRITE) {
        part.iov = slice;
        part.iovcnt = io_slice(t, 0, PIPE_BUF, slice, &bytes);
    }
    return transfer_now(&part);
}

ssize_t io_stream_transfer(const IoTransfer *transfer, IoFd *entry)
{
    StreamCall s = {
        .call = {
            .what = transfer->what,
            .fd = transfer->fd,
            .direction = transfer->direction,
            .events = transfer->direction == IO_READ ? POLLIN : POLLOUT,
            .attempt = try_stream,
            .block = block_stream,
        },
        .transfer = transfer,
        .entry = entry,
    };

    return io_transfer(&s.call);
}
