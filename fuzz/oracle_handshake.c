/* SPDX-License-Identifier: MIT */
/*
 * The oracle's view of a handshake (oracle.h).
 */
#include "oracle.h"

#include <string.h>

#include "../nbd/protocol.h"
#include "../nbd/wire.h"
#include "conversation.h"
#include "fuzz.h"

/* The server's limits; whatever else it does is the protocol's choice. */
#define OPTION_DATA_MAX ((uint32_t)32 << 10)
#define OPTIONS_MAX     (128 + 8 * CONVERSATION_EXPORTS)

#define CONTEXT "base:allocation"

typedef enum Next { NEXT_OPTION, NEXT_TRANSMISSION, NEXT_END } Next;

/* An option as the client sent it, and what it must come to. */
typedef struct Option {
    uint32_t number;
    uint32_t length;
    const uint8_t *data;
    const ExportSpec *export;  /* that it names */
    bool context;              /* a context must be named in reply */
} Option;

static const ExportSpec *find_export(const uint8_t *name, size_t length)
{
    for (size_t i = 0; i < CONVERSATION_EXPORTS; i++) {
        const ExportSpec *export = &conversation_exports[i];

        if (length == strlen(export->name) &&
            memcmp(name, export->name, length) == 0) {
            return export;
        }
    }
    return length == 0 ? &conversation_exports[0] : NULL;
}

/* A length and as many bytes.  Returns NULL if it is not well formed. */
static const uint8_t *take_string(Bytes *bytes, uint32_t *length)
{
    const uint8_t *p = bytes_take(bytes, 4);

    if (!p || wire_get32(p) > NBD_STRING_MAX) {
        return NULL;
    }
    *length = wire_get32(p);
    return bytes_take(bytes, *length);
}

/* INFO and GO.  Returns the type of the last reply. */
static uint32_t expected_of_info(Option *option)
{
    Bytes data = { option->data, option->length };
    uint32_t length = 0;
    const uint8_t *name = take_string(&data, &length);
    const uint8_t *count = bytes_take(&data, 2);

    if (!name || !count || data.left != 2u * wire_get16(count)) {
        return NBD_REP_ERR_INVALID;
    }
    option->export = find_export(name, length);
    return option->export ? NBD_REP_ACK : NBD_REP_ERR_UNKNOWN;
}

static bool is_query(const uint8_t *query, uint32_t length, const char *text)
{
    return length == strlen(text) && memcmp(query, text, length) == 0;
}

/* LIST_META_CONTEXT and SET_META_CONTEXT, likewise. */
static uint32_t expected_of_meta(const Oracle *o, Option *option)
{
    bool list = option->number == NBD_OPT_LIST_META_CONTEXT;
    Bytes data = { option->data, option->length };
    uint32_t length = 0;
    const uint8_t *name = take_string(&data, &length);
    const uint8_t *count = bytes_take(&data, 4);
    bool context;

    if (!o->structured || !name || !count) {
        return NBD_REP_ERR_INVALID;
    }
    option->export = find_export(name, length);
    context = list && wire_get32(count) == 0;
    for (uint32_t i = wire_get32(count); i > 0; i--) {
        const uint8_t *query = take_string(&data, &length);

        if (!query) {
            return NBD_REP_ERR_INVALID;
        }
        context |= is_query(query, length, CONTEXT) ||
                   (list && is_query(query, length, "base:"));
    }
    if (data.left > 0) {
        return NBD_REP_ERR_INVALID;
    }
    option->context = context && option->export;
    return option->export ? NBD_REP_ACK : NBD_REP_ERR_UNKNOWN;
}

static uint32_t expected_type(const Oracle *o, Option *option)
{
    bool too_big = option->length > OPTION_DATA_MAX;

    switch (option->number) {
    case NBD_OPT_ABORT:
        return NBD_REP_ACK;
    case NBD_OPT_LIST:
    case NBD_OPT_STRUCTURED_REPLY:
        return option->length == 0 ? NBD_REP_ACK : NBD_REP_ERR_INVALID;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return too_big ? NBD_REP_ERR_TOO_BIG : expected_of_info(option);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return too_big ? NBD_REP_ERR_TOO_BIG : expected_of_meta(o, option);
    default:
        return NBD_REP_ERR_UNSUP;
    }
}

static void check_info(const Oracle *o, const Option *option,
                       const uint8_t *data, uint32_t length)
{
    const ExportSpec *export = option->export;

    EXPECT(length >= 2, "an INFO without a number");
    switch (wire_get16(data)) {
    case NBD_INFO_EXPORT:
        EXPECT(length == 12 && wire_get64(data + 2) == export->size &&
               wire_get16(data + 10) == oracle_flags(o, export),
               "what an INFO says of %s is wrong", export->name);
        break;
    case NBD_INFO_NAME:
        EXPECT(find_export(data + 2, length - 2) == export,
               "an INFO names another export");
        break;
    default:
        EXPECT(wire_get16(data) == NBD_INFO_BLOCK_SIZE && length == 14,
               "an INFO that nobody knows");
        break;
    }
}

/* One of the replies before the last; n of them came before. */
static void check_part(const Oracle *o, const Option *option, uint32_t type,
                       const uint8_t *data, uint32_t length, unsigned n)
{
    switch (type) {
    case NBD_REP_SERVER:
        EXPECT(option->number == NBD_OPT_LIST && n < CONVERSATION_EXPORTS &&
               length >= 4 && wire_get32(data) == length - 4 &&
               find_export(data + 4, length - 4) == &conversation_exports[n],
               "a list that is not that of the exports");
        break;
    case NBD_REP_INFO:
        EXPECT((option->number == NBD_OPT_INFO ||
                option->number == NBD_OPT_GO) && n < 3 && option->export,
               "an INFO that nobody asked for");
        check_info(o, option, data, length);
        break;
    default:
        EXPECT(type == NBD_REP_META_CONTEXT, "a reply of type %u", type);
        EXPECT(option->context && n == 0 && length > 4 &&
               is_query(data + 4, length - 4, CONTEXT),
               "a context that nobody asked for");
        break;
    }
}

/* How many replies come before the last, at least. */
static unsigned parts_min(const Option *option)
{
    switch (option->number) {
    case NBD_OPT_LIST:
        return CONVERSATION_EXPORTS;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return 1;
    default:
        return option->context;
    }
}

/* All replies to one option. */
static void check_replies(Oracle *o, const Option *option, uint32_t expected)
{
    for (unsigned n = 0;; n++) {
        const uint8_t *header = bytes_take(&o->got, NBD_OPTION_REPLY_SIZE);
        const uint8_t *data;
        uint32_t type, length;

        EXPECT(header, "option %u is not answered", option->number);
        EXPECT(wire_get64(header) == NBD_MAGIC_REPLY &&
               wire_get32(header + 8) == option->number,
               "this does not answer option %u", option->number);
        type = wire_get32(header + 12);
        length = wire_get32(header + 16);
        data = bytes_take(&o->got, length);
        EXPECT(data, "a reply to option %u is cut off", option->number);
        if (type == NBD_REP_ACK || type & UINT32_C(0x80000000)) {
            EXPECT(type == expected, "option %u is answered with 0x%x, not "
                   "0x%x", option->number, type, expected);
            EXPECT(type != NBD_REP_ACK ||
                   (length == 0 && n >= parts_min(option)),
                   "an ACK for less than was asked for");
            return;
        }
        check_part(o, option, type, data, length, n);
    }
}

static Next follow_export_name(Oracle *o, const Option *option)
{
    size_t size = 10 + (o->no_zeroes ? 0 : NBD_EXPORT_NAME_ZEROES);
    const uint8_t *reply;

    o->export = find_export(option->data, option->length);
    if (!o->export) {
        return NEXT_END;
    }
    reply = bytes_take(&o->got, size);
    EXPECT(reply && wire_get64(reply) == o->export->size &&
           wire_get16(reply + 8) == oracle_flags(o, o->export),
           "what EXPORT_NAME says of %s is wrong", o->export->name);
    return NEXT_TRANSMISSION;
}

/* What the client and the server have agreed upon with an option. */
static Next agree(Oracle *o, const Option *option, bool granted)
{
    switch (option->number) {
    case NBD_OPT_ABORT:
        return granted ? NEXT_END : NEXT_OPTION;
    case NBD_OPT_STRUCTURED_REPLY:
        o->structured |= granted;
        return NEXT_OPTION;
    case NBD_OPT_SET_META_CONTEXT:
        o->meta = option->context ? option->export : NULL;
        return NEXT_OPTION;
    case NBD_OPT_GO:
        o->export = option->export;
        return granted ? NEXT_TRANSMISSION : NEXT_OPTION;
    default:
        return NEXT_OPTION;
    }
}

static Next follow_option(Oracle *o)
{
    const uint8_t *header = bytes_take(&o->sent, NBD_OPTION_SIZE);
    Option option = { 0 };
    uint32_t expected;

    if (!header || wire_get64(header) != NBD_MAGIC_OPTION) {
        return NEXT_END;
    }
    option.number = wire_get32(header + 8);
    option.length = wire_get32(header + 12);
    option.data = bytes_take(&o->sent, option.length);
    if (!option.data || (!o->fixed && option.number != NBD_OPT_EXPORT_NAME)) {
        return NEXT_END;
    }
    if (option.number == NBD_OPT_EXPORT_NAME) {
        return follow_export_name(o, &option);
    }
    expected = expected_type(o, &option);
    check_replies(o, &option, expected);
    return agree(o, &option, expected == NBD_REP_ACK);
}

bool oracle_handshake(Oracle *o)
{
    const uint8_t *greeting = bytes_take(&o->got, NBD_GREETING_SIZE);
    const uint8_t *flags = bytes_take(&o->sent, 4);
    Next next = NEXT_OPTION;

    EXPECT(greeting && wire_get64(greeting) == NBD_MAGIC_INIT &&
           wire_get64(greeting + 8) == NBD_MAGIC_OPTION &&
           wire_get16(greeting + 16) ==
               (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES),
           "the greeting is wrong");
    if (!flags || wire_get32(flags) & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE |
                                                  NBD_FLAG_NO_ZEROES)) {
        return false;
    }
    o->fixed = wire_get32(flags) & NBD_FLAG_FIXED_NEWSTYLE;
    o->no_zeroes = wire_get32(flags) & NBD_FLAG_NO_ZEROES;
    for (int i = 0; i < OPTIONS_MAX && next == NEXT_OPTION; i++) {
        next = follow_option(o);
    }
    return next == NEXT_TRANSMISSION;
}
