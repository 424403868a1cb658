/* SPDX-License-Identifier: MIT */
/*
 * The handshake, and whatever follows it: a client that says anything at all.
 *
 * Input: a byte for the client's manner (conversation.h), then its bytes.
 */
#include "fuzz.h"

#include <string.h>

#include "conversation.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t bytes[SENT_MAX];

    if (size < 1 || size - 1 > SENT_MAX) {
        return 0;
    }
    memcpy(bytes, data + 1, size - 1);
    converse(data[0], bytes, size - 1);
    return 0;
}
