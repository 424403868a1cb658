/* SPDX-License-Identifier: MIT */
/*
 * Receiving (connection.h): as much as there is in one call.
 *
 * A connection receives into a buffer of INPUT_SMALL bytes of its own.  A
 * client that streams small payloads, which a small buffer would cut into many
 * receives, is given one of INPUT_LARGE from the cache.  With that, a silent
 * client is waited for by co_poll_fd(), and soon in vain: a receive would keep
 * the buffer as long as it waits.  So idle connections cost little, and busy
 * ones no system call more.  Large payloads go straight to where they belong,
 * with the buffer behind them to catch what follows.
 *
 * INVARIANTS
 *
 *   1. Nobody waits for the client while the connection is corked: the replies
 *      that it may be waiting for would not leave.
 *   2. start <= end <= size, and data == small unless large.
 */
#include "connection.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <coaio/io.h>

#include "log.h"
#include "protocol.h"
#include "request.h"
#include "server.h"

/* A large buffer goes back that was not needed so many times in a row... */
#define LARGE_QUIET 64

/* ... and one whose client has been silent for so long. */
#define SILENCE_NS INT64_C(1000000000)

/* Payloads up to here are small: worth copying out of a large buffer. */
#define SMALL_PAYLOAD ((size_t)32 << 10)

void input_init(Connection *conn)
{
    memset(&conn->in, 0, sizeof(conn->in));
    conn->in.data = conn->small;
    conn->in.size = sizeof(conn->small);
}

static size_t input_length(const Input *in)
{
    return in->end - in->start;
}

/* Goes back to the small buffer; what is there must fit. */
static void input_shrink(Connection *conn)
{
    Input *in = &conn->in;
    size_t length = input_length(in);

    assert(in->large && length <= sizeof(conn->small));
    memcpy(conn->small, in->data + in->start, length);
    buffer_put(&conn->thread->buffers, in->data, INPUT_LARGE);
    in->data = conn->small;
    in->size = sizeof(conn->small);
    in->start = 0;
    in->end = length;
    in->large = false;
    in->quiet = 0;
}

static void input_grow(Connection *conn)
{
    Input *in = &conn->in;
    size_t length = input_length(in);
    uint8_t *data = buffer_get(&conn->thread->buffers, INPUT_LARGE);

    if (!data) {
        return; /* the small one does as well */
    }
    memcpy(data, in->data + in->start, length);
    in->data = data;
    in->size = INPUT_LARGE;
    in->start = 0;
    in->end = length;
    in->large = true;
    in->quiet = 0;
}

void input_clear(Connection *conn)
{
    conn->in.start = conn->in.end = 0;
    if (conn->in.large) {
        input_shrink(conn);
    }
}

/* Makes room behind the bytes that are there, in the buffer of best size. */
static void input_prepare(Connection *conn)
{
    Input *in = &conn->in;

    if (!in->large && in->want_large) {
        input_grow(conn);
    } else if (in->large && in->quiet >= LARGE_QUIET &&
               input_length(in) < sizeof(conn->small)) {
        input_shrink(conn);
    }
    if (in->start > 0) { /* also where there was no memory for a large one */
        memmove(in->data, in->data + in->start, input_length(in));
        in->end -= in->start;
        in->start = 0;
    }
    in->want_large = false;
    assert(in->start == 0 && in->end < in->size); /* invariant 2 */
}

/* Learns how many requests the client keeps in flight. */
static void note_depth(Connection *conn)
{
    unsigned depth =
        conn->taken > conn->n_requests ? conn->taken : conn->n_requests;

    if (depth > conn->deepest) {
        conn->deepest = depth;
    }
    conn->taken = 0;
    conn->begun = 0;
}

/* With a large buffer that is empty.  As co_recv(); but the buffer may be the
 * small one afterwards. */
static ssize_t coroutine_fn receive_large(Connection *conn)
{
    Input *in = &conn->in;
    ssize_t got;
    int ready;

    do {
        got = recv(conn->fd, in->data, in->size, MSG_DONTWAIT);
        if (got >= 0) {
            return got;
        }
        if (errno != EAGAIN && errno != EINTR) {
            return -errno;
        }
        ready = co_poll_fd(conn->fd, POLLIN, SILENCE_NS);
    } while (ready >= 0);
    if (ready != -ETIMEDOUT) {
        return ready;
    }
    input_shrink(conn);
    return co_recv(conn->fd, in->data, in->size, 0);
}

/* The only place where a connection receives what it uses.  Returns bytes, or 0
 * when there is nothing more to be had. */
static size_t coroutine_fn receive(Connection *conn, struct iovec *iov, int n)
{
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = (size_t)n };
    ssize_t got;

    if (conn->stopping || conn->dead) {
        return 0;
    }
    note_depth(conn);
    if (conn->turn >= TURN) {
        connection_give_way(conn);
    }
    conn->corked = false; /* invariant 1 */
    reply_flush(conn);
    if (conn->in.large && iov->iov_base == conn->in.data) {
        got = receive_large(conn);
    } else if (n == 1) {
        got = co_recv(conn->fd, iov->iov_base, iov->iov_len, 0);
    } else {
        got = co_recvmsg(conn->fd, &msg, 0);
    }
    conn->corked = true;
    if (got < 0 && log_enabled(LOG_LEVEL_DEBUG)) {
        log_client(LOG_LEVEL_DEBUG, "client %llu: receiving: %s",
                   (unsigned long long)conn->id, strerror((int)-got));
    }
    if (got <= 0) {
        return 0;
    }
    conn->turn += (uint64_t)got;
    return (size_t)got;
}

/* Receives something into the buffer. */
static bool coroutine_fn input_fill(Connection *conn)
{
    Input *in = &conn->in;
    struct iovec iov;
    size_t got;

    input_prepare(conn);
    iov.iov_base = in->data + in->end;
    iov.iov_len = in->size - in->end;
    got = receive(conn, &iov, 1);
    in->end += got;
    in->quiet = input_length(in) > sizeof(conn->small) ? 0 : in->quiet + 1;
    return got > 0;
}

const uint8_t *coroutine_fn input_need(Connection *conn, size_t n)
{
    assert(n <= INPUT_SMALL);
    while (input_length(&conn->in) < n) {
        if (!input_fill(conn)) {
            return NULL;
        }
    }
    return conn->in.data + conn->in.start;
}

void input_take(Connection *conn, size_t n)
{
    assert(n <= input_length(&conn->in));
    conn->in.start += n;
}

size_t input_waiting(const Connection *conn)
{
    return input_length(&conn->in) / NBD_REQUEST_SIZE;
}

bool coroutine_fn input_read(Connection *conn, void *data, size_t n)
{
    Input *in = &conn->in;
    size_t have = input_length(in);
    uint8_t *p = data;

    if (have > n) {
        have = n;
    }
    if (have < n) {
        /* It does not fit in; would the next ones in a large buffer? */
        in->want_large = n <= SMALL_PAYLOAD;
        in->quiet = in->want_large ? in->quiet : LARGE_QUIET;
    }
    memcpy(p, in->data + in->start, have);
    input_take(conn, have);
    p += have;
    n -= have;
    if (n > 0) {
        input_prepare(conn);
    }
    while (n > 0) {
        struct iovec iov[2] = {
            { p, n },
            { in->data, in->size },
        };
        size_t got = receive(conn, iov, 2);

        if (got == 0) {
            return false;
        }
        if (got > n) {
            in->end = got - n;
            got = n;
        }
        p += got;
        n -= got;
    }
    return true;
}

bool coroutine_fn input_skip(Connection *conn, uint64_t n)
{
    Input *in = &conn->in;

    while (n > 0) {
        size_t have = input_length(in);

        if (have == 0) {
            if (!input_fill(conn)) {
                return false;
            }
            continue;
        }
        if (have > n) {
            have = (size_t)n;
        }
        input_take(conn, have);
        n -= have;
    }
    return true;
}
