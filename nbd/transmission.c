/* SPDX-License-Identifier: MIT */
/*
 * Transmission: the receiver takes in requests, one after the other, and
 * starts them.
 *
 * INVARIANTS
 *
 *   1. A request whose header was accepted is answered, unless its payload
 *      did not arrive wholly.
 *   2. inflight is at most the limit, or there is only one request.
 */
#include "request.h"

#include <assert.h>
#include <string.h>

#include "log.h"
#include "protocol.h"
#include "server.h"
#include "wire.h"

static bool has_room(const Connection *conn, size_t charge)
{
    uint64_t limit = conn->thread->server->options->max_inflight;

    return conn->n_requests == 0 || (conn->inflight + charge <= limit &&
                                     conn->n_requests < REQUESTS_MAX);
}

/* Waits until there is room for a request that needs so much. */
static void coroutine_fn admit(Connection *conn, Request *req, size_t charge)
{
    while (!has_room(conn, charge)) {
        conn->corked = false;
        reply_flush(conn);
        if (!has_room(conn, charge)) { /* the flush may have made some */
            co_queue_wait(&conn->room, NULL);
        }
        conn->corked = true;
    }
    req->charge = charge;
    conn->turn += REQUEST_COST + req->length; /* what it may make us do */
    conn->inflight += charge;
    conn->n_requests++;
}

/* Makes room for the request and gives it its buffer.  Returns the error that
 * it has, or gets: *why says of what kind. */
static uint32_t coroutine_fn provide(Connection *conn, Request *req,
                                     const char **why)
{
    uint32_t error = request_check(req, why);
    size_t size = error || request_borrow(req) ? 0 : request_buffer_size(req);

    req->capacity = size ? buffer_capacity(size) : 0;
    admit(conn, req, request_charge(req));
    if (size == 0) {
        return error;
    }
    req->buffer = buffer_get(&conn->thread->buffers, req->capacity);
    if (!req->buffer) {
        *why = "no memory for the payload";
        return NBD_ENOMEM;
    }
    return NBD_SUCCESS;
}

/* Receives the payload, for nothing if there is an error.  Returns whether it
 * came wholly. */
static bool coroutine_fn take_payload(Connection *conn, Request *req,
                                      uint32_t error)
{
    if (req->type != NBD_CMD_WRITE) {
        return true;
    }
    if (error) {
        return input_skip(conn, req->length);
    }
    return req->length == 0 || input_read(conn, req->buffer, req->length);
}

/* Where the ring takes reads, it is those of passes that have so many
 * (MANY_CALLS in src/loop/poller/uring.c): smaller halves would be read by a
 * system call each. */
#define BEGIN_LEAST 8

/* Starts it, and, with the first half of those that came together, lets the
 * loop begin (connection.h, "Batching"). */
static void coroutine_fn start(Connection *conn, Request *req)
{
    uint64_t made = conn->n_made;

    request_start(req);
    if (conn->n_made == made) {
        conn->begun++;
    }
    if (conn->begun >= BEGIN_LEAST && connection_is_half(conn, conn->begun) &&
        input_waiting(conn) >= BEGIN_LEAST) {
        connection_give_way(conn);
    }
}

/* Takes in one request.  Returns whether there may be more. */
static bool coroutine_fn take_request(Connection *conn, const uint8_t *header)
{
    Request *req = request_new(conn, header);
    const char *why = NULL;
    uint32_t error;

    if (!req) {
        log_client(LOG_LEVEL_ERROR, "client %llu: out of memory",
                   (unsigned long long)conn->id);
        return false;
    }
    conn->taken++;
    input_take(conn, NBD_REQUEST_SIZE);
    error = provide(conn, req, &why);
    if (!take_payload(conn, req, error)) {
        log_client(LOG_LEVEL_INFO, "client %llu: gone in the middle of a "
                   "payload", (unsigned long long)conn->id);
        request_free(req);
        return false;
    }
    if (error) {
        request_log(req, LOG_LEVEL_INFO, why);
        reply_status(req, error, why);
    } else if (req->payload) {
        reply_data(req);
    } else {
        start(conn, req);
    }
    return true;
}

void coroutine_fn transmission_run(Connection *conn)
{
    const uint8_t *header;

    do {
        if (conn->turn >= TURN_MOST) {
            connection_give_way(conn);
        }
        header = input_need(conn, NBD_REQUEST_SIZE);
        if (!header) {
            return;
        }
        if (wire_get32(header) != NBD_MAGIC_REQUEST) {
            log_client(LOG_LEVEL_WARNING, "client %llu: sent 0x%08x in place "
                       "of a request; dropping it",
                       (unsigned long long)conn->id, wire_get32(header));
            return;
        }
        if (wire_get16(header + 6) == NBD_CMD_DISC) {
            return;
        }
    } while (take_request(conn, header));
}
