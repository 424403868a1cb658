/* SPDX-License-Identifier: MIT */
/*
 * Replies (request.h): made, queued, and sent together.
 *
 * Whoever finishes a request appends it to the queue of its connection.  The
 * queue is sent by a sender coroutine, which is made when there is something
 * to send and ends when there is nothing left: so whoever asks for a flush
 * never waits for a client that does not read.  Replies whose bytes the export
 * has lent count little in the bytes in flight, so the queue may hold any
 * number of them: the sender sends a turn of it at a time (connection.h).
 *
 * INVARIANTS
 *
 *   1. There is at most one sender at a time (sending).
 *   2. If the queue is not empty, then it will be sent: there is a sender, or
 *      the connection is corked and the receiver will flush before it waits,
 *      or the bottom half is posted.
 *   3. sent is less than the length of the first reply, and 0 if there is none.
 */
#include "request.h"

#include <assert.h>
#include <string.h>
#include <sys/uio.h>

#include <coaio/coroutine.h>
#include <coaio/io.h>

#include "log.h"
#include "protocol.h"
#include "server.h"
#include "wire.h"

/* Replies that one send takes at most; each has one or two parts. */
#define SEND_MAX 128

/* So many bytes are worth a send of their own while others are made. */
#define SEND_BYTES ((size_t)256 << 10)

static size_t reply_length(const Request *req)
{
    return (size_t)req->header_length + req->payload_length;
}

/* Takes the first reply off the queue. */
static Request *ready_pop(Connection *conn)
{
    Request *req = conn->ready_head;

    conn->ready_head = req->next;
    if (!conn->ready_head) {
        conn->ready_tail = &conn->ready_head;
    }
    conn->sent = 0;
    return req;
}

/* Makes the part length bytes long, or room, if that is less. */
static size_t cut(struct iovec *part, size_t length, size_t room)
{
    part->iov_len = length < room ? length : room;
    return part->iov_len;
}

/* Gathers what comes next, TURN bytes and a header at the most, so that a reply
 * of TURN bytes is not cut.  Returns the number of parts. */
static int gather(Connection *conn, struct iovec *iov)
{
    size_t skip = conn->sent;
    size_t room = TURN + sizeof(conn->ready_head->header);
    int n = 0;

    for (Request *req = conn->ready_head;
         req && room > 0 && n < 2 * SEND_MAX - 1; req = req->next) {
        if (skip < req->header_length) {
            iov[n].iov_base = req->header + skip;
            room -= cut(&iov[n], req->header_length - skip, room);
            n++;
            skip = 0;
        } else {
            skip -= req->header_length;
        }
        if (req->payload_length > 0 && room > 0) {
            iov[n].iov_base = (char *)req->payload + skip;
            room -= cut(&iov[n], req->payload_length - skip, room);
            n++;
        }
        skip = 0;
    }
    return n;
}

/* Lets go of the replies that bytes more have completed. */
static void account(Connection *conn, size_t bytes)
{
    conn->progress++;
    bytes += conn->sent;
    while (conn->ready_head && bytes >= reply_length(conn->ready_head)) {
        bytes -= reply_length(conn->ready_head);
        request_free(ready_pop(conn));
    }
    conn->sent = bytes;
    assert(conn->ready_head || bytes == 0); /* invariant 3 */
}

static void coroutine_fn send_ready(Connection *conn)
{
    struct iovec iov[2 * SEND_MAX];
    struct msghdr msg = { .msg_iov = iov };
    uint64_t turn = 0;

    while (conn->ready_head && !conn->mute) {
        ssize_t n;

        if (turn >= TURN) {
            co_sleep_ns(0); /* connection.h, "Turns" */
            turn = 0;
            continue; /* it may be mute now */
        }
        msg.msg_iovlen = (size_t)gather(conn, iov);
        conn->ready_bytes = 0;
        conn->n_ready = 0;
        n = co_sendmsg(conn->fd, &msg, MSG_NOSIGNAL);
        if (n < 0) {
            if (log_enabled(LOG_LEVEL_DEBUG)) {
                log_client(LOG_LEVEL_DEBUG, "client %llu: sending: %s",
                           (unsigned long long)conn->id, strerror((int)-n));
            }
            connection_mute(conn);
        } else {
            account(conn, (size_t)n);
            turn += (uint64_t)n;
        }
    }
    while (conn->ready_head) {
        request_free(ready_pop(conn)); /* mute */
    }
}

static void coroutine_fn sender(void *opaque)
{
    Connection *conn = opaque;

    send_ready(conn);
    conn->sending = false;
    co_queue_next(&conn->room); /* it may be waiting for the last reply */
}

static void flush_posted(void *opaque);

static void post_flush(Connection *conn)
{
    if (!conn->flush_posted) {
        conn->flush_posted = true;
        aio_bh_schedule_oneshot_embedded(conn->thread->context,
                                         &conn->flush_bh, flush_posted, conn);
    }
}

/* Makes a sender; if there is no memory for one, tries again later. */
static void start_sender(Connection *conn)
{
    static const CoroutineOptions options = {
        .size = sizeof(options),
        .name = "nbd sender",
    };
    Coroutine *co;

    assert(!conn->sending); /* invariant 1 */
    if (coroutine_create_full(&co, sender, conn, &options) < 0) {
        post_flush(conn);
        return;
    }
    conn->sending = true;
    coroutine_enter(co);
}

/*
 * The bottom half.  Starts a sender even if there is nothing to send: one that
 * waits for the connection to come to rest must be woken in any case.
 */
static void flush_posted(void *opaque)
{
    Connection *conn = opaque;

    conn->flush_posted = false;
    if (!conn->sending) {
        start_sender(conn);
    }
}

void reply_flush(Connection *conn)
{
    if (conn->ready_head && !conn->sending) {
        start_sender(conn);
    }
}

/* Whether what is ready is worth a send while others are made. */
static bool worth_sending(const Connection *conn)
{
    return conn->ready_bytes >= SEND_BYTES ||
           connection_is_half(conn, conn->n_ready);
}

/* Queues a reply that is complete (invariant 2). */
static void reply_ready(Request *req)
{
    Connection *conn = req->conn;

    assert(req->header_length <= sizeof(req->header));
    req->next = NULL;
    *conn->ready_tail = req;
    conn->ready_tail = &req->next;
    conn->ready_bytes += reply_length(req);
    conn->n_ready++;
    conn->n_made++;
    if (worth_sending(conn)) {
        reply_flush(conn);
    } else if (!conn->corked && !conn->sending) {
        post_flush(conn);
    }
}

static const char *error_text(uint32_t error)
{
    switch (error) {
    case NBD_EPERM:
        return "operation not permitted";
    case NBD_EIO:
        return "input/output error";
    case NBD_ENOMEM:
        return "out of memory";
    case NBD_EINVAL:
        return "invalid request";
    case NBD_ENOSPC:
        return "no space left";
    case NBD_EOVERFLOW:
        return "too large";
    case NBD_ENOTSUP:
        return "not supported";
    case NBD_ESHUTDOWN:
        return "the server stops";
    default:
        return "failed";
    }
}

/* Fills in the header of the one chunk that every structured reply has. */
static void structured_header(Request *req, uint16_t type, size_t length)
{
    wire_put32(req->header, NBD_MAGIC_STRUCTURED_REPLY);
    wire_put16(req->header + 4, NBD_REPLY_FLAG_DONE);
    wire_put16(req->header + 6, type);
    wire_put64(req->header + 8, req->cookie);
    wire_put32(req->header + 16, (uint32_t)length);
    req->header_length = NBD_STRUCTURED_REPLY_SIZE;
}

static void simple_header(Request *req, uint32_t error)
{
    wire_put32(req->header, NBD_MAGIC_SIMPLE_REPLY);
    wire_put32(req->header + 4, error);
    wire_put64(req->header + 8, req->cookie);
    req->header_length = NBD_SIMPLE_REPLY_SIZE;
}

void reply_status(Request *req, uint32_t error, const char *text)
{
    request_drop_buffer(req);
    req->payload = NULL;
    req->payload_length = 0;
    if (!req->conn->structured) {
        simple_header(req, error);
    } else if (error != NBD_SUCCESS) {
        text = text ? text : error_text(error);
        req->payload = text;
        req->payload_length = (uint32_t)strlen(text);
        structured_header(req, NBD_REPLY_TYPE_ERROR, 6 + strlen(text));
        wire_put32(req->header + 20, error);
        wire_put16(req->header + 24, (uint16_t)strlen(text));
        req->header_length += 6;
    } else if (req->type == NBD_CMD_READ) {
        structured_header(req, NBD_REPLY_TYPE_NONE, 0); /* of no bytes */
    } else {
        simple_header(req, NBD_SUCCESS);
    }
    reply_ready(req);
}

void reply_data(Request *req)
{
    if (req->buffer) {
        req->payload = req->buffer;
    }
    assert(req->payload);
    req->payload_length = req->length;
    if (req->conn->structured) {
        structured_header(req, NBD_REPLY_TYPE_OFFSET_DATA, 8 + req->length);
        wire_put64(req->header + 20, req->offset);
        req->header_length += 8;
    } else {
        simple_header(req, NBD_SUCCESS);
    }
    reply_ready(req);
}

void reply_extents(Request *req, const Extent *extents, int count)
{
    uint8_t *p = req->buffer;

    wire_put32(p, 1); /* the context's number */
    for (int i = 0; i < count; i++) {
        wire_put32(p + 4 + 8 * i, extents[i].length);
        wire_put32(p + 8 + 8 * i, extents[i].state);
    }
    req->payload = p;
    req->payload_length = 4 + 8 * (uint32_t)count;
    structured_header(req, NBD_REPLY_TYPE_BLOCK_STATUS, req->payload_length);
    reply_ready(req);
}
