/* SPDX-License-Identifier: MIT */
/*
 * Bytes that are read from the front.
 */
#ifndef FUZZ_BYTES_H
#define FUZZ_BYTES_H

#include <stddef.h>
#include <stdint.h>

typedef struct Bytes {
    const uint8_t *p;
    size_t left;
} Bytes;

/* Takes n bytes and returns where they are, or NULL if there are fewer. */
static inline const uint8_t *bytes_take(Bytes *bytes, size_t n)
{
    const uint8_t *p = bytes->p;

    if (bytes->left < n) {
        return NULL;
    }
    bytes->p += n;
    bytes->left -= n;
    return p;
}

#endif
