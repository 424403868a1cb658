/* SPDX-License-Identifier: MIT */
/*
 * What each option of the handshake does (handshake.h).
 *
 * The data of an option is read through a Cursor, which knows where it ends:
 * whatever lengths a client claims, nothing behind the end is looked at.
 */
#include "handshake.h"

#include <string.h>

#include "log.h"
#include "protocol.h"
#include "server.h"
#include "wire.h"

#define META_NAME "base:allocation"
#define META_ID   1

/* The part of an option's data that was not read yet. */
typedef struct Cursor {
    const uint8_t *p;
    size_t left;
} Cursor;

static bool cursor_get16(Cursor *c, uint16_t *value)
{
    if (c->left < 2) {
        return false;
    }
    *value = wire_get16(c->p);
    c->p += 2;
    c->left -= 2;
    return true;
}

static bool cursor_get32(Cursor *c, uint32_t *value)
{
    if (c->left < 4) {
        return false;
    }
    *value = wire_get32(c->p);
    c->p += 4;
    c->left -= 4;
    return true;
}

/* A string with its length before it. */
static bool cursor_get_string(Cursor *c, const uint8_t **string,
                              uint32_t *length)
{
    if (!cursor_get32(c, length) || *length > c->left ||
        *length > NBD_STRING_MAX) {
        return false;
    }
    *string = c->p;
    c->p += *length;
    c->left -= *length;
    return true;
}

/* The end of every way into transmission. */
static HandshakeNext enter(Handshake *h, Export *export)
{
    h->conn->export = export;
    h->conn->block_status = h->conn->structured && h->meta_export == export;
    return HANDSHAKE_TRANSMIT;
}

static HandshakeNext coroutine_fn do_export_name(Handshake *h)
{
    uint8_t reply[10 + NBD_EXPORT_NAME_ZEROES] = { 0 };
    Export *export = server_find_export(h->conn->thread->server, h->data,
                                        h->length);

    if (!export) {
        log_client(LOG_LEVEL_INFO, "client %llu: no such export; dropping it",
                   (unsigned long long)h->conn->id);
        return HANDSHAKE_CLOSE;
    }
    wire_put64(reply, export->size);
    wire_put16(reply + 8, export_flags(export, h->conn->structured));
    handshake_put(h, reply, h->no_zeroes ? 10 : sizeof(reply));
    return enter(h, export);
}

static void coroutine_fn do_list(Handshake *h)
{
    Server *server = h->conn->thread->server;

    if (h->length != 0) {
        handshake_error(h, NBD_REP_ERR_INVALID, "a list takes no data");
        return;
    }
    for (size_t i = 0; i < server->n_exports; i++) {
        const char *name = server->exports[i]->name;
        uint8_t length[4];

        handshake_reply(h, NBD_REP_SERVER, 4 + strlen(name));
        wire_put32(length, (uint32_t)strlen(name));
        handshake_put(h, length, sizeof(length));
        handshake_put(h, name, strlen(name));
    }
    handshake_reply(h, NBD_REP_ACK, 0);
}

static void coroutine_fn send_info_export(Handshake *h, const Export *export)
{
    uint8_t info[12];

    wire_put16(info, NBD_INFO_EXPORT);
    wire_put64(info + 2, export->size);
    wire_put16(info + 10, export_flags(export, h->conn->structured));
    handshake_reply(h, NBD_REP_INFO, sizeof(info));
    handshake_put(h, info, sizeof(info));
}

static void coroutine_fn send_info_name(Handshake *h, const Export *export)
{
    uint8_t type[2];

    wire_put16(type, NBD_INFO_NAME);
    handshake_reply(h, NBD_REP_INFO, sizeof(type) + strlen(export->name));
    handshake_put(h, type, sizeof(type));
    handshake_put(h, export->name, strlen(export->name));
}

/* Any offset and length will do, whatever the back end is made of. */
static void coroutine_fn send_info_block_size(Handshake *h,
                                              const Export *export)
{
    uint8_t info[14];

    wire_put16(info, NBD_INFO_BLOCK_SIZE);
    wire_put32(info + 2, 1);
    wire_put32(info + 6, export->preferred_block);
    wire_put32(info + 10, PAYLOAD_MAX);
    handshake_reply(h, NBD_REP_INFO, sizeof(info));
    handshake_put(h, info, sizeof(info));
}

/* INFO and GO: the name, then the numbers of what the client wants to know. */
static HandshakeNext coroutine_fn do_info(Handshake *h)
{
    Cursor c = { h->data, h->length };
    const uint8_t *name;
    uint32_t length;
    uint16_t count, info;
    bool want_name = false, want_block_size = false;
    Export *export;

    if (!cursor_get_string(&c, &name, &length) || !cursor_get16(&c, &count) ||
        c.left != (size_t)count * 2) {
        handshake_error(h, NBD_REP_ERR_INVALID, "lengths do not fit");
        return HANDSHAKE_OPTION;
    }
    export = server_find_export(h->conn->thread->server, name, length);
    if (!export) {
        handshake_error(h, NBD_REP_ERR_UNKNOWN, "no such export");
        return HANDSHAKE_OPTION;
    }
    while (cursor_get16(&c, &info)) {
        want_name |= info == NBD_INFO_NAME;
        want_block_size |= info == NBD_INFO_BLOCK_SIZE;
    }
    send_info_export(h, export);
    if (want_name) {
        send_info_name(h, export);
    }
    if (want_block_size) {
        send_info_block_size(h, export);
    }
    handshake_reply(h, NBD_REP_ACK, 0);
    return h->option == NBD_OPT_GO ? enter(h, export) : HANDSHAKE_OPTION;
}

static void coroutine_fn do_structured_reply(Handshake *h)
{
    if (h->length != 0) {
        handshake_error(h, NBD_REP_ERR_INVALID, "this option takes no data");
        return;
    }
    h->conn->structured = true;
    handshake_reply(h, NBD_REP_ACK, 0);
}

/* Whether a query means base:allocation; "base:" does so in lists only. */
static bool query_matches(const uint8_t *query, uint32_t length, bool list)
{
    if (length == strlen(META_NAME)) {
        return memcmp(query, META_NAME, length) == 0;
    }
    return list && length == strlen("base:") &&
           memcmp(query, "base:", length) == 0;
}

/* Reads all queries.  Returns false if they are not well formed. */
static bool read_queries(Cursor *c, bool list, bool *selected)
{
    const uint8_t *query;
    uint32_t count, length;

    if (!cursor_get32(c, &count)) {
        return false;
    }
    *selected = list && count == 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!cursor_get_string(c, &query, &length)) {
            return false;
        }
        *selected |= query_matches(query, length, list);
    }
    return c->left == 0;
}

/* LIST_META_CONTEXT and SET_META_CONTEXT. */
static void coroutine_fn do_meta_context(Handshake *h)
{
    bool list = h->option == NBD_OPT_LIST_META_CONTEXT;
    Cursor c = { h->data, h->length };
    const uint8_t *name;
    uint32_t length;
    bool selected;
    Export *export;

    if (!list) {
        h->meta_export = NULL; /* also if it fails */
    }
    if (!h->conn->structured) {
        handshake_error(h, NBD_REP_ERR_INVALID,
                        "structured replies must be negotiated before");
        return;
    }
    if (!cursor_get_string(&c, &name, &length) ||
        !read_queries(&c, list, &selected)) {
        handshake_error(h, NBD_REP_ERR_INVALID, "lengths do not fit");
        return;
    }
    export = server_find_export(h->conn->thread->server, name, length);
    if (!export) {
        handshake_error(h, NBD_REP_ERR_UNKNOWN, "no such export");
        return;
    }
    if (selected) {
        uint8_t id[4];

        wire_put32(id, list ? 0 : META_ID);
        handshake_reply(h, NBD_REP_META_CONTEXT,
                        sizeof(id) + strlen(META_NAME));
        handshake_put(h, id, sizeof(id));
        handshake_put(h, META_NAME, strlen(META_NAME));
        if (!list) {
            h->meta_export = export;
        }
    }
    handshake_reply(h, NBD_REP_ACK, 0);
}

HandshakeNext coroutine_fn handshake_option(Handshake *h)
{
    switch (h->option) {
    case NBD_OPT_EXPORT_NAME:
        return do_export_name(h);
    case NBD_OPT_ABORT:
        handshake_reply(h, NBD_REP_ACK, 0);
        return HANDSHAKE_CLOSE;
    case NBD_OPT_LIST:
        do_list(h);
        return HANDSHAKE_OPTION;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return do_info(h);
    case NBD_OPT_STRUCTURED_REPLY:
        do_structured_reply(h);
        return HANDSHAKE_OPTION;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        do_meta_context(h);
        return HANDSHAKE_OPTION;
    default:
        handshake_error(h, NBD_REP_ERR_UNSUP, "this option is not known");
        return HANDSHAKE_OPTION;
    }
}
