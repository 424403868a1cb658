/* SPDX-License-Identifier: MIT */
/*
 * Transmission: a client that has negotiated as it should, and then says
 * anything at all.
 *
 * Input: a byte for the client's manner (conversation.h), a byte for what it
 * has negotiated, then its bytes.  The low two bits of the second are the
 * number of the export, modulo how many there are.
 */
#include "fuzz.h"

#include <string.h>

#include "../nbd/protocol.h"
#include "../nbd/wire.h"
#include "conversation.h"

#define AGREED_EXPORT     0x03
#define AGREED_STRUCTURED 0x04
#define AGREED_CONTEXT    0x08

/* Room for the handshake. */
#define HANDSHAKE_MAX 256

static uint8_t *put_option(uint8_t *p, uint32_t option, uint32_t length)
{
    wire_put64(p, NBD_MAGIC_OPTION);
    wire_put32(p + 8, option);
    wire_put32(p + 12, length);
    return p + NBD_OPTION_SIZE;
}

/* A string with its length before it. */
static uint8_t *put_string(uint8_t *p, const char *text)
{
    wire_put32(p, (uint32_t)strlen(text));
    memcpy(p + 4, text, strlen(text));
    return p + 4 + strlen(text);
}

/* What the client says before.  Returns its length. */
static size_t put_handshake(uint8_t *bytes, unsigned agreed)
{
    static const char context[] = "base:allocation";
    unsigned number = (agreed & AGREED_EXPORT) % CONVERSATION_EXPORTS;
    const char *name = conversation_exports[number].name;
    uint32_t name_length = (uint32_t)strlen(name);
    uint8_t *p = bytes;

    wire_put32(p, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    p += 4;
    if (agreed & AGREED_STRUCTURED) {
        p = put_option(p, NBD_OPT_STRUCTURED_REPLY, 0);
    }
    if (agreed & AGREED_CONTEXT) {
        p = put_option(p, NBD_OPT_SET_META_CONTEXT,
                       12 + name_length + (uint32_t)strlen(context));
        p = put_string(p, name);
        wire_put32(p, 1); /* query */
        p = put_string(p + 4, context);
    }
    p = put_option(p, NBD_OPT_GO, 6 + name_length);
    p = put_string(p, name);
    wire_put16(p, 0); /* wishes */
    return (size_t)(p + 2 - bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t bytes[SENT_MAX];
    size_t n;

    if (size < 2 || size - 2 > SENT_MAX - HANDSHAKE_MAX) {
        return 0;
    }
    n = put_handshake(bytes, data[1]);
    memcpy(bytes + n, data + 2, size - 2);
    converse(data[0], bytes, n + size - 2);
    return 0;
}
