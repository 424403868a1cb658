/* SPDX-License-Identifier: MIT */
/*
 * Request: one command of a client, from its header to the reply.
 *
 *   request_new --> checked --> admitted --> payload received
 *       --> request_start, in a coroutine --> reply_...() --> sent
 *       --> request_free
 *
 * A whole request is checked before anything of it reaches the back end.
 */
#ifndef NBD_REQUEST_H
#define NBD_REQUEST_H

#include "connection.h"

/* The longest reply header: a structured one with offset. */
#define REPLY_HEADER_MAX 28

struct Request {
    Connection *conn;
    Request *next;        /* in the queue of ready replies, or of free ones */

    /* As the client sent it. */
    uint64_t cookie;
    uint64_t offset;
    uint32_t length;
    uint16_t flags;
    uint16_t type;

    /* The payload, of the request or of the reply. */
    uint8_t *buffer;      /* from the cache; NULL: none */
    size_t capacity;      /* of it */
    size_t charge;        /* what it counts in conn->inflight */

    /* The reply. */
    uint8_t header[REPLY_HEADER_MAX];
    uint32_t header_length;
    uint32_t payload_length;
    const void *payload;  /* buffer, static text, or what the export lent */
};

/**
 * A request with the fields that header (NBD_REQUEST_SIZE bytes) gives.  NULL:
 * no memory.
 */
Request *request_new(Connection *conn, const uint8_t *header);

/**
 * Undo that, and give room to the receiver.  In a coroutine.
 */
void request_free(Request *req);

/**
 * Give back the buffer of a request that needs it no more.
 */
void request_drop_buffer(Request *req);

/**
 * Check everything that the client sent.  Returns NBD_SUCCESS, or the error to
 * answer; then *why says what is wrong with it, in static text.
 */
uint32_t request_check(const Request *req, const char **why);

/**
 * Say in the log what the request is and why it fails.
 */
void request_log(const Request *req, LogLevel level, const char *why);

/**
 * Whether it is a READ that needs no buffer, as the export lends the bytes;
 * then payload is where they are, and reply_data() is all that is left to do.
 */
bool request_borrow(Request *req);

/**
 * The size of the buffer that the request needs, for whatever direction.
 */
size_t request_buffer_size(const Request *req);

/**
 * What it counts in the bytes in flight, with the capacity of its buffer
 * known: that, REQUEST_COST, and what the export takes for itself.
 */
size_t request_charge(const Request *req);

/**
 * Run it, in a coroutine of its own.  It may be over on return.
 */
void coroutine_fn request_start(Request *req);

/*
 * reply.c
 */

/**
 * Answer with the NBD error, and text for the client's user if it can take it
 * (NULL: what the error means).  NBD_SUCCESS answers what has no payload.
 * The request belongs to the connection then.
 */
void reply_status(Request *req, uint32_t error, const char *text);

/**
 * Answer a READ whose data is in the buffer, or borrowed.
 */
void reply_data(Request *req);

/**
 * Answer a BLOCK_STATUS with the count extents.
 */
void reply_extents(Request *req, const Extent *extents, int count);

/**
 * Begin to send what is ready, if there is anything and nobody sends yet.
 */
void reply_flush(Connection *conn);

#endif
