/* SPDX-License-Identifier: MIT */
/*
 * The fixed newstyle handshake: greeting, flags, then options until one of
 * them begins transmission.
 *
 * Bounded: the data of an option that is looked at (OPTION_MAX; longer ones
 * are read and forgotten), the number of options, which grows with that of the
 * exports, since clients that list them ask about each, and, by the timer of
 * connection.c, the time that all of it takes.
 *
 * Buffers come from the cache and not from the stack: its pages would stay
 * with the connection.
 */
#include "handshake.h"

#include <assert.h>
#include <string.h>

#include <coaio/io.h>

#include "log.h"
#include "protocol.h"
#include "server.h"
#include "wire.h"

#define OPTION_MAX ((uint32_t)32 << 10)
#define OUT_SIZE   BUFFER_MIN

/* So many options in all, and for each export.  To list them, nbdinfo sends two
 * an export on one connection, and qemu-nbd three. */
#define OPTIONS_MAX        128
#define OPTIONS_PER_EXPORT 8

/* Sends what there is. */
static void coroutine_fn handshake_send(Handshake *h)
{
    size_t done = 0;

    while (done < h->out_length && !h->failed) {
        ssize_t n = co_send(h->conn->fd, h->out + done, h->out_length - done,
                            MSG_NOSIGNAL);

        if (n < 0) {
            h->failed = true;
        } else {
            done += (size_t)n;
            h->conn->turn += (uint64_t)n;
        }
        if (h->conn->turn >= TURN) { /* one may ask for much with few bytes */
            connection_give_way(h->conn);
        }
    }
    h->out_length = 0;
}

void coroutine_fn handshake_put(Handshake *h, const void *bytes, size_t n)
{
    const uint8_t *p = bytes;

    while (n > 0) {
        size_t part = OUT_SIZE - h->out_length;

        if (part > n) {
            part = n;
        }
        memcpy(h->out + h->out_length, p, part);
        h->out_length += part;
        p += part;
        n -= part;
        if (h->out_length == OUT_SIZE) {
            handshake_send(h);
        }
    }
}

void coroutine_fn handshake_reply(Handshake *h, uint32_t type, size_t length)
{
    uint8_t header[NBD_OPTION_REPLY_SIZE];

    wire_put64(header, NBD_MAGIC_REPLY);
    wire_put32(header + 8, h->option);
    wire_put32(header + 12, type);
    wire_put32(header + 16, (uint32_t)length);
    handshake_put(h, header, sizeof(header));
}

void coroutine_fn handshake_error(Handshake *h, uint32_t type,
                                  const char *text)
{
    /* Clients ask for what is new as a matter of course. */
    log_client(type == NBD_REP_ERR_UNSUP ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO,
               "client %llu: option %u of %u bytes: %s",
               (unsigned long long)h->conn->id, h->option, h->length, text);
    handshake_reply(h, type, strlen(text));
    handshake_put(h, text, strlen(text));
}

/* Greets, and learns the client's flags.  Returns whether to go on. */
static bool coroutine_fn exchange_flags(Handshake *h)
{
    uint8_t greeting[NBD_GREETING_SIZE];
    const uint8_t *p;
    uint32_t flags;

    wire_put64(greeting, NBD_MAGIC_INIT);
    wire_put64(greeting + 8, NBD_MAGIC_OPTION);
    wire_put16(greeting + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    handshake_put(h, greeting, sizeof(greeting));
    handshake_send(h);

    p = input_need(h->conn, 4);
    if (!p) {
        return false;
    }
    flags = wire_get32(p);
    input_take(h->conn, 4);
    if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        log_client(LOG_LEVEL_INFO, "client %llu: unknown flags 0x%x; dropping "
                   "it", (unsigned long long)h->conn->id, flags);
        return false;
    }
    h->fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
    h->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    return !h->failed;
}

/* Whether the option at hand has data that means anything. */
static bool has_data(const Handshake *h)
{
    switch (h->option) {
    case NBD_OPT_EXPORT_NAME:
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return true;
    default:
        return false;
    }
}

/*
 * An option whose data is too long to be looked at.  Before that it is read
 * over, or the next option could not be found.
 */
static HandshakeNext coroutine_fn take_long(Handshake *h)
{
    if (h->option == NBD_OPT_SET_META_CONTEXT) {
        h->meta_export = NULL; /* as in do_meta_context() */
    }
    if (h->option == NBD_OPT_EXPORT_NAME ||
        !input_skip(h->conn, h->length)) {
        return HANDSHAKE_CLOSE;
    }
    if (!has_data(h)) {
        return handshake_option(h);
    }
    handshake_error(h, NBD_REP_ERR_TOO_BIG, "too much data");
    return HANDSHAKE_OPTION;
}

/* Receives the data of the option at hand and does what it says. */
static HandshakeNext coroutine_fn take_option(Handshake *h)
{
    BufferCache *buffers = &h->conn->thread->buffers;
    HandshakeNext next = HANDSHAKE_CLOSE;
    size_t capacity;

    if (!h->fixed && h->option != NBD_OPT_EXPORT_NAME) {
        return HANDSHAKE_CLOSE; /* it would not understand any reply */
    }
    h->data = NULL;
    if (h->length > OPTION_MAX) {
        return take_long(h);
    }
    if (h->length == 0) {
        return handshake_option(h);
    }
    capacity = buffer_capacity(h->length);
    h->data = buffer_get(buffers, capacity);
    if (h->data) {
        if (input_read(h->conn, h->data, h->length)) {
            next = handshake_option(h);
        }
        buffer_put(buffers, h->data, capacity);
    }
    return next;
}

/* One option from its header on, with all replies sent. */
static HandshakeNext coroutine_fn next_option(Handshake *h)
{
    const uint8_t *p = input_need(h->conn, NBD_OPTION_SIZE);
    HandshakeNext next;

    if (!p) {
        return HANDSHAKE_CLOSE;
    }
    if (wire_get64(p) != NBD_MAGIC_OPTION) {
        log_client(LOG_LEVEL_INFO, "client %llu: sent 0x%016llx in place of "
                   "an option; dropping it", (unsigned long long)h->conn->id,
                   (unsigned long long)wire_get64(p));
        return HANDSHAKE_CLOSE;
    }
    h->option = wire_get32(p + 8);
    h->length = wire_get32(p + 12);
    input_take(h->conn, NBD_OPTION_SIZE);
    next = take_option(h);
    handshake_send(h);
    return h->failed ? HANDSHAKE_CLOSE : next;
}

bool coroutine_fn handshake_run(Connection *conn)
{
    BufferCache *buffers = &conn->thread->buffers;
    Handshake h = { .conn = conn };
    HandshakeNext next = HANDSHAKE_CLOSE;
    size_t most = OPTIONS_MAX +
                  OPTIONS_PER_EXPORT * conn->thread->server->n_exports;

    h.out = buffer_get(buffers, OUT_SIZE);
    if (!h.out) {
        return false;
    }
    if (exchange_flags(&h)) {
        for (size_t i = 0; i < most; i++) {
            next = next_option(&h);
            if (next != HANDSHAKE_OPTION) {
                break;
            }
        }
        if (next == HANDSHAKE_OPTION) {
            log_client(LOG_LEVEL_INFO, "client %llu: more than %zu options; "
                       "dropping it", (unsigned long long)conn->id, most);
        }
    }
    buffer_put(buffers, h.out, OUT_SIZE);
    assert(next != HANDSHAKE_TRANSMIT || conn->export);
    return next == HANDSHAKE_TRANSMIT;
}
