/* SPDX-License-Identifier: MIT */
/*
 * The oracle's view of transmission (oracle.h).
 *
 * The first half of a cookie is the place of its request (conversation.h), so
 * a reply leads straight to what it answers, and `due` says by place which
 * requests have not been answered yet.
 */
#include "oracle.h"

#include <string.h>

#include "../nbd/connection.h"
#include "../nbd/protocol.h"
#include "../nbd/wire.h"
#include "conversation.h"
#include "fuzz.h"

static bool due[SENT_MAX];

/* A request as the client sent it. */
typedef struct Sent {
    size_t place;
    uint16_t flags;
    uint16_t type;
    uint64_t cookie;
    uint64_t offset;
    uint32_t length;
} Sent;

static Sent sent_from(const uint8_t *header, size_t place)
{
    Sent sent = {
        .place = place,
        .flags = wire_get16(header + 4),
        .type = wire_get16(header + 6),
        .cookie = wire_get64(header + 8),
        .offset = wire_get64(header + 16),
        .length = wire_get32(header + 24),
    };

    return sent;
}

uint16_t oracle_flags(const Oracle *o, const ExportSpec *export)
{
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH |
                     NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN |
                     NBD_FLAG_SEND_CACHE;

    flags |= export->read_only
                 ? NBD_FLAG_READ_ONLY
                 : NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                       NBD_FLAG_SEND_FAST_ZERO;
    flags |= o->structured ? NBD_FLAG_SEND_DF : 0;
    return (uint16_t)flags;
}

/* Notes which requests must be answered.  Returns how many. */
static size_t take_requests(Oracle *o)
{
    const uint8_t *header;
    size_t n = 0;

    while ((header = bytes_take(&o->sent, NBD_REQUEST_SIZE))) {
        Sent sent = sent_from(header, (size_t)(header - o->first));

        if (wire_get32(header) != NBD_MAGIC_REQUEST ||
            sent.type == NBD_CMD_DISC ||
            (sent.type == NBD_CMD_WRITE &&
             !bytes_take(&o->sent, sent.length))) {
            break;
        }
        due[sent.place] = true;
        n++;
    }
    return n;
}

static bool has_flags(const Oracle *o, const Sent *sent)
{
    unsigned known = NBD_CMD_FLAG_FUA;

    if (sent->type == NBD_CMD_READ && o->structured) {
        known |= NBD_CMD_FLAG_DF;
    } else if (sent->type == NBD_CMD_WRITE_ZEROES) {
        known |= NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    } else if (sent->type == NBD_CMD_BLOCK_STATUS) {
        known |= NBD_CMD_FLAG_REQ_ONE;
    }
    return (sent->flags & ~known) == 0;
}

/* Writing zeroes to memory without a hole is not fast. */
static bool is_slow_zero(const Oracle *o, const Sent *sent)
{
    unsigned both = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;

    return o->export->kind == EXPORT_MEMORY && sent->length > 0 &&
           sent->type == NBD_CMD_WRITE_ZEROES && (sent->flags & both) == both;
}

/* Whether the request must succeed; it must fail otherwise. */
static bool is_good(const Oracle *o, const Sent *sent)
{
    uint64_t size = o->export->size;
    bool inside = sent->offset <= size && size - sent->offset >= sent->length;

    if (!has_flags(o, sent) || is_slow_zero(o, sent)) {
        return false;
    }
    switch (sent->type) {
    case NBD_CMD_READ:
        return inside && sent->length <= PAYLOAD_MAX;
    case NBD_CMD_WRITE:
        return inside && sent->length <= PAYLOAD_MAX && !o->export->read_only;
    case NBD_CMD_TRIM:
    case NBD_CMD_WRITE_ZEROES:
        return inside && !o->export->read_only;
    case NBD_CMD_CACHE:
        return inside;
    case NBD_CMD_FLUSH:
        return sent->offset == 0 && sent->length == 0;
    case NBD_CMD_BLOCK_STATUS:
        return inside && sent->length > 0 && o->structured &&
               o->meta == o->export;
    default:
        return false;
    }
}

static bool is_error(uint32_t error)
{
    return error == NBD_EPERM || error == NBD_EINVAL || error == NBD_ENOSPC ||
           error == NBD_ENOTSUP;
}

/* The data of a READ.  On what nobody can write to, it is zeroes. */
static void check_data(const Oracle *o, const uint8_t *data, uint32_t length)
{
    if (o->export->kind == EXPORT_NULL || o->export->read_only) {
        EXPECT(length == 0 || (data[0] == 0 &&
                               memcmp(data, data + 1, length - 1) == 0),
               "data of somebody else is read from %s", o->export->name);
    }
}

static void check_extents(const Sent *sent, const uint8_t *data,
                          uint32_t length)
{
    uint64_t sum = 0;

    EXPECT(length >= 12 && length % 8 == 4 && wire_get32(data) == 1,
           "a BLOCK_STATUS of %u bytes", length);
    EXPECT(!(sent->flags & NBD_CMD_FLAG_REQ_ONE) || length == 12,
           "more than one extent");
    for (uint32_t i = 4; i < length; i += 8) {
        EXPECT(wire_get32(data + i) > 0, "an extent of nothing");
        EXPECT(wire_get32(data + i + 4) <= (NBD_STATE_HOLE | NBD_STATE_ZERO),
               "an extent in a state that nobody knows");
        sum += wire_get32(data + i);
    }
    EXPECT(sum <= sent->length, "extents of more than was asked for");
}

/* The request that a reply answers, which is answered by that. */
static Sent settle(const Oracle *o, uint64_t cookie)
{
    size_t place = (size_t)(cookie >> 32);
    Sent sent;

    EXPECT(place < SENT_MAX && due[place], "a reply to no request");
    sent = sent_from(o->first + place, place);
    EXPECT(sent.cookie == cookie, "the cookie of the request at byte %zu has "
           "changed", place);
    due[place] = false;
    return sent;
}

static void check_simple(Oracle *o)
{
    const uint8_t *header = bytes_take(&o->got, NBD_SIMPLE_REPLY_SIZE);
    uint32_t error;
    Sent sent;

    EXPECT(header, "a reply is cut off");
    error = wire_get32(header + 4);
    sent = settle(o, wire_get64(header + 8));
    EXPECT(is_good(o, &sent) ? error == 0 : is_error(error),
           "the request at byte %zu comes to %u", sent.place, error);
    EXPECT(!o->structured || (error == 0 && sent.type != NBD_CMD_READ &&
                              sent.type != NBD_CMD_BLOCK_STATUS),
           "the reply should be structured");
    if (sent.type == NBD_CMD_READ && error == 0) {
        const uint8_t *data = bytes_take(&o->got, sent.length);

        EXPECT(data, "the data of a reply is cut off");
        check_data(o, data, sent.length);
    }
}

static void check_error(const Oracle *o, const Sent *sent, const uint8_t *data,
                        uint32_t length)
{
    EXPECT(length >= 6 && wire_get16(data + 4) == length - 6,
           "an error whose text has another length");
    EXPECT(!is_good(o, sent) && is_error(wire_get32(data)),
           "the request at byte %zu comes to %u", sent->place,
           wire_get32(data));
}

static void check_structured(Oracle *o)
{
    const uint8_t *header = bytes_take(&o->got, NBD_STRUCTURED_REPLY_SIZE);
    const uint8_t *data;
    uint32_t length;
    uint16_t type;
    Sent sent;

    EXPECT(o->structured && header, "a reply is structured, or cut off");
    EXPECT(wire_get16(header + 4) == NBD_REPLY_FLAG_DONE, "a part of a reply");
    sent = settle(o, wire_get64(header + 8));
    type = wire_get16(header + 6);
    length = wire_get32(header + 16);
    data = bytes_take(&o->got, length);
    EXPECT(data, "the data of a reply is cut off");
    if (type == NBD_REPLY_TYPE_ERROR) {
        check_error(o, &sent, data, length);
        return;
    }
    EXPECT(is_good(o, &sent), "the request at byte %zu succeeds", sent.place);
    if (sent.type == NBD_CMD_BLOCK_STATUS) {
        EXPECT(type == NBD_REPLY_TYPE_BLOCK_STATUS, "no BLOCK_STATUS");
        check_extents(&sent, data, length);
    } else if (sent.length == 0) {
        EXPECT(type == NBD_REPLY_TYPE_NONE && length == 0, "data of nothing");
    } else {
        EXPECT(sent.type == NBD_CMD_READ &&
               type == NBD_REPLY_TYPE_OFFSET_DATA &&
               length == 8 + (uint64_t)sent.length &&
               wire_get64(data) == sent.offset,
               "this is not the data of the request at byte %zu", sent.place);
        check_data(o, data + 8, sent.length);
    }
}

void oracle_transmission(Oracle *o)
{
    size_t n;

    memset(due, 0, o->sent.left + (size_t)(o->sent.p - o->first));
    for (n = take_requests(o); n > 0; n--) {
        EXPECT(o->got.left >= 4, "%zu requests are not answered", n);
        if (wire_get32(o->got.p) == NBD_MAGIC_SIMPLE_REPLY) {
            check_simple(o);
        } else {
            EXPECT(wire_get32(o->got.p) == NBD_MAGIC_STRUCTURED_REPLY,
                   "0x%x in place of a reply", wire_get32(o->got.p));
            check_structured(o);
        }
    }
}

void oracle_check(const uint8_t *sent, size_t n_sent, const uint8_t *got,
                  size_t n_got)
{
    Oracle o = {
        .sent = { sent, n_sent },
        .got = { got, n_got },
        .first = sent,
    };

    if (oracle_handshake(&o)) {
        oracle_transmission(&o);
    }
    EXPECT(o.got.left == 0, "%zu bytes that nobody asked for", o.got.left);
}
