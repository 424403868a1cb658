/* SPDX-License-Identifier: MIT */
/*
 * Sockets: MSG_DONTWAIT makes a call on a blocking socket not block, and
 * MSG_NOSIGNAL keeps SIGPIPE away; so O_NONBLOCK does not matter.
 *
 * There is no such flag for accept(2) and connect(2).  On a blocking listening
 * socket a connection is taken when there is one, by one thread at a time; if
 * it is taken away by another process in between, or by accept(2) elsewhere in
 * this one, the thread blocks until the next one comes
 * (a socket that several processes accept from should be nonblocking, for us
 * as for anybody).  A blocking socket is connected in a worker.
 */
#include "io/io_int.h"

#include "os/event.h"

#include <errno.h>
#include <limits.h>

typedef struct SocketCall {
    IoCall call; /* first */
    char *buf;
    size_t count;
    size_t done; /* MSG_WAITALL: of count */
    int flags;
    struct msghdr *msg;
    struct sockaddr *addr; /* accept */
    socklen_t *addrlen;
    const struct sockaddr *peer;
    socklen_t peerlen;
    bool connecting;  /* connect(2) has begun */
    bool interrupted; /* a call of it has said EINTR */
} SocketCall;

static SocketCall *socket_call(IoCall *call)
{
    return container_of(call, SocketCall, call);
}

/* What to wait for before the next try to receive. */
static short events_for(int flags)
{
    /* The queue of errors is reported by POLLERR, which is always waited for;
     * POLLIN would be true while there is data. */
    return flags & MSG_ERRQUEUE ? POLLPRI : POLLIN;
}

/* --- transfers ------------------------------------------------------------*/

static ssize_t try_recv(IoCall *call)
{
    SocketCall *s = socket_call(call);

    return os_recv_nowait(call->fd, s->buf, s->count, s->flags);
}

/* The whole of it, until the stream ends. */
static ssize_t try_recv_all(IoCall *call)
{
    SocketCall *s = socket_call(call);
    ssize_t n;

    while (s->done < s->count) {
        n = os_recv_nowait(call->fd, s->buf + s->done, s->count - s->done,
                           s->flags);
        if (n == -EAGAIN || n == -EINTR) {
            return n;
        }
        if (n <= 0) {
            return s->done ? (ssize_t)s->done : n;
        }
        s->done += (size_t)n;
        call->progress = true;
    }
    return (ssize_t)s->done;
}

/* What a receive that the engine makes knows of flags. */
#define ENGINE_FLAGS (MSG_PEEK | MSG_TRUNC)
/* What makes no difference to it. */
#define WAIT_FLAGS (MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL)
/* What one receives at most, as recv(2) does: the kernel's MAX_RW_COUNT.  The
 * engine's requests have no room for more than 4 GiB. */
#define ENGINE_MAX ((size_t)0x7ffff000)

static void describe_recv(const IoCall *call, OsUringRequest *request,
                          struct iovec *iov)
{
    const SocketCall *s = container_of(call, const SocketCall, call);

    iov->iov_base = s->buf + s->done;
    iov->iov_len = s->count - s->done;
    if (iov->iov_len > ENGINE_MAX) {
        iov->iov_len = ENGINE_MAX;
    }
    *request = (OsUringRequest){
        .call = OS_URING_RECV,
        .fd = call->fd,
        .offset = -1,
        .iov = iov,
        .iovcnt = 1,
        .mode = s->flags & ENGINE_FLAGS,
    };
}

/* Let the engine make the receive if it can. */
static void offer(SocketCall *s)
{
    if ((s->flags & ~(ENGINE_FLAGS | WAIT_FLAGS)) == 0) {
        s->call.describe = describe_recv;
        s->call.described = OS_URING_RECV;
    }
}

static void describe_send(const IoCall *call, OsUringRequest *request,
                          struct iovec *iov)
{
    const SocketCall *s = container_of(call, const SocketCall, call);

    iov->iov_base = s->buf;
    iov->iov_len = s->count;
    *request = (OsUringRequest){
        .call = call->described,
        .fd = call->fd,
        .offset = -1,
        .msg = s->msg,
        .iov = iov,
        .iovcnt = 1,
        .mode = (s->flags & MSG_MORE) | MSG_DONTWAIT,
    };
}

/* Whether it is the call that costs, not the bytes. */
static bool is_small(const SocketCall *s)
{
    size_t n = s->msg ? s->msg->msg_iovlen : 0;
    size_t size = s->count;

    for (size_t i = 0; i < n && n <= IOV_MAX && size <= IO_DEAR_MAX; i++) {
        size += s->msg->msg_iov[i].iov_len;
    }
    return n <= IOV_MAX && size <= IO_DEAR_MAX;
}

/* The same for a send that is not too large, whose peer would miss what is on
 * its way meanwhile.  File descriptors are sent by who has them. */
static void offer_send(SocketCall *s)
{
    if ((s->flags & ~(MSG_MORE | MSG_DONTWAIT | MSG_NOSIGNAL)) == 0 &&
        (!s->msg || s->msg->msg_controllen == 0) &&
        is_small(s)) {
        s->call.describe = describe_send;
        s->call.described = s->msg ? OS_URING_SENDMSG : OS_URING_SEND;
    }
}

static ssize_t went_recv_all(IoCall *call, ssize_t n)
{
    SocketCall *s = socket_call(call);

    if (n <= 0) {
        return s->done ? (ssize_t)s->done : n;
    }
    s->done += (size_t)n;
    call->progress = true;
    return s->done < s->count ? -EAGAIN : (ssize_t)s->done;
}

static ssize_t try_send(IoCall *call)
{
    SocketCall *s = socket_call(call);

    return os_send_nowait(call->fd, s->buf, s->count, s->flags);
}

static ssize_t try_recvmsg(IoCall *call)
{
    SocketCall *s = socket_call(call);

    return os_recvmsg_nowait(call->fd, s->msg, s->flags);
}

static ssize_t try_sendmsg(IoCall *call)
{
    SocketCall *s = socket_call(call);

    return os_sendmsg_nowait(call->fd, s->msg, s->flags);
}

/* MSG_WAITALL.  Of a stream: what has come is kept if the rest does not. */
static NOINLINE ssize_t coroutine_fn recv_all(SocketCall *s)
{
    ssize_t result;
    int type;

    do {
        type = os_socket_type(s->call.fd);
    } while (type == -EINTR);
    if (type < 0) {
        return type; /* rather than a part of it */
    }
    if (type == SOCK_STREAM) {
        s->call.attempt = try_recv_all;
        s->call.went = went_recv_all;
    }
    result = io_transfer(&s->call);
    return result < 0 && s->done ? (ssize_t)s->done : result;
}

ssize_t co_recv(int fd, void *buf, size_t count, int flags)
{
    SocketCall s = {
        .call = {
            .what = "co_recv",
            .fd = fd,
            .direction = IO_READ,
            .events = events_for(flags),
            .attempt = try_recv,
        },
        .buf = buf,
        .count = count,
        .flags = flags,
    };

    io_begin("co_recv", fd);
    offer(&s);
    if ((flags & (MSG_WAITALL | MSG_PEEK | MSG_ERRQUEUE)) == MSG_WAITALL) {
        return recv_all(&s);
    }
    return io_transfer(&s.call);
}

ssize_t co_send(int fd, const void *buf, size_t count, int flags)
{
    SocketCall s = {
        .call = {
            .what = "co_send",
            .fd = fd,
            .direction = IO_WRITE,
            .events = POLLOUT,
            .attempt = try_send,
        },
        .buf = (char *)buf,
        .count = count,
        .flags = flags,
    };

    io_begin("co_send", fd);
    offer_send(&s);
    return io_transfer(&s.call);
}

ssize_t co_recvmsg(int fd, struct msghdr *msg, int flags)
{
    SocketCall s = {
        .call = {
            .what = "co_recvmsg",
            .fd = fd,
            .direction = IO_READ,
            .events = events_for(flags),
            .attempt = try_recvmsg,
        },
        .msg = msg,
        .flags = flags,
    };

    io_begin("co_recvmsg", fd);
    return io_transfer(&s.call);
}

ssize_t co_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    SocketCall s = {
        .call = {
            .what = "co_sendmsg",
            .fd = fd,
            .direction = IO_WRITE,
            .events = POLLOUT,
            .attempt = try_sendmsg,
        },
        .msg = (struct msghdr *)msg,
        .flags = flags,
    };

    io_begin("co_sendmsg", fd);
    offer_send(&s);
    return io_transfer(&s.call);
}

ssize_t io_socket_transfer(const IoTransfer *transfer)
{
    bool reads = transfer->direction == IO_READ;
    SocketCall s = {
        .call = {
            .what = transfer->what,
            .fd = transfer->fd,
            .direction = transfer->direction,
            .events = reads ? POLLIN : POLLOUT,
            .attempt = reads ? try_recv : try_send,
        },
        .buf = transfer->iov->iov_base,
        .count = transfer->iov->iov_len,
    };

    /* recv(2) of nothing would wait for something. */
    if (reads && s.count == 0) {
        return 0;
    }
    if (reads) {
        offer(&s);
    } else {
        offer_send(&s);
    }
    return io_transfer(&s.call);
}

/* --- accept ---------------------------------------------------------------*/

/* Nobody is there; or nobody will ever be, which accept(2) says at once. */
static ssize_t no_connection(int fd)
{
    int type = os_socket_type(fd);
    int ret;

    if (type < 0) {
        return type;
    }
    if (type != SOCK_STREAM && type != SOCK_SEQPACKET) {
        return -EOPNOTSUPP;
    }
    ret = os_socket_listens(fd);
    if (ret < 0) {
        return ret;
    }
    return ret ? -EAGAIN : -EINVAL;
}

static ssize_t accept_now(const SocketCall *s)
{
    return os_accept(s->call.fd, s->addr, s->addrlen, s->flags);
}

/*
 * Of one that has no O_NONBLOCK: the connection that poll(2) has seen must be
 * there still.  The lock is that of the other side, as nobody writes to what
 * listens; ours may be held already, or not.
 */
static ssize_t accept_if_ready(const SocketCall *s)
{
    struct pollfd pollfd = {.fd = s->call.fd, .events = POLLIN};
    IoFd *entry = io_fd_get(s->call.fd);
    OsMutex *lock;
    ssize_t result;

    if (!entry) {
        return -ENOMEM;
    }
    lock = &entry->sides[IO_WRITE].lock;
    os_mutex_lock(lock);
    result = os_poll(&pollfd, 1, 0);
    if (result > 0) {
        result = accept_now(s);
    } else if (result == 0) {
        result = no_connection(s->call.fd);
    }
    os_mutex_unlock(lock);
    return result;
}

static ssize_t try_accept(IoCall *call)
{
    int ready = os_file_nonblocking(call->fd);

    if (ready == 0) {
        return accept_if_ready(socket_call(call));
    }
    return ready < 0 ? ready : accept_now(socket_call(call));
}

int co_accept(int fd, struct sockaddr *addr, socklen_t *addrlen, int flags)
{
    SocketCall s = {
        .call = {
            .what = "co_accept",
            .fd = fd,
            .direction = IO_READ,
            .events = POLLIN,
            .attempt = try_accept,
        },
        .addr = addr,
        .addrlen = addrlen,
        .flags = flags,
    };
    int result;

    io_begin("co_accept", fd);
    result = (int)io_transfer(&s.call);
    if (result >= 0) {
        io_fd_opened(result, OS_FILE_SOCKET);
    }
    return result;
}

/* --- connect --------------------------------------------------------------*/

/* The socket has begun to connect: how far is it? */
static ssize_t connect_state(const SocketCall *s)
{
    struct pollfd pollfd = {.fd = s->call.fd, .events = POLLOUT};
    int result = os_poll(&pollfd, 1, 0);

    if (result <= 0) {
        return result < 0 ? result : -EAGAIN;
    }
    result = os_socket_error(s->call.fd);
    if (result == 0) {
        /* Linux wants to be asked once more, and says 0 then; without that it
         * would say 0, not EISCONN, to the user's next call. */
        os_connect(s->call.fd, s->peer, s->peerlen);
    }
    return result;
}

/* After one that was interrupted it may have begun already. */
static ssize_t call_connect(SocketCall *s)
{
    int result = os_connect(s->call.fd, s->peer, s->peerlen);

    if (!s->interrupted) {
        s->interrupted = result == -EINTR;
        return result;
    }
    if (result == -EISCONN) {
        return 0;
    }
    return result == -EALREADY ? -EINPROGRESS : result;
}

static ssize_t try_connect(IoCall *call)
{
    SocketCall *s = socket_call(call);
    ssize_t result;

    if (s->connecting) {
        return connect_state(s);
    }
    result = os_file_nonblocking(call->fd);
    if (result <= 0) {
        return result < 0 ? result : IO_NEEDS_WORKER;
    }
    /*
     * EAGAIN is that of a UNIX socket whose peer's queue is full: there is
     * nothing begun, and nothing to wait for but a while.
     */
    result = call_connect(s);
    if (result == -EINPROGRESS) {
        s->connecting = true;
        return -EAGAIN;
    }
    return result;
}

/*
 * In a worker.  Interrupted, it is called again: a TCP socket then waits for
 * the connection that it has begun to make, or takes what came of that.  A UNIX
 * socket has begun nothing, and nothing else would tell: it is ready, and
 * without an error.  Others say at once that they have begun.
 */
static ssize_t block_connect(IoCall *call)
{
    struct pollfd pollfd = {.fd = call->fd, .events = POLLOUT};
    SocketCall *s = socket_call(call);
    ssize_t result = call_connect(s);

    if (result != -EINPROGRESS || !s->interrupted) {
        return result;
    }
    result = os_poll(&pollfd, 1, -1);
    return result < 0 ? result : os_socket_error(call->fd);
}

int co_connect(int fd, const struct sockaddr *addr, socklen_t addrlen)
{
    SocketCall s = {
        .call = {
            .what = "co_connect",
            .fd = fd,
            .direction = IO_WRITE,
            .events = POLLOUT,
            .attempt = try_connect,
            .block = block_connect,
        },
        .peer = addr,
        .peerlen = addrlen,
    };

    io_begin("co_connect", fd);
    return (int)io_transfer(&s.call);
}
