/* SPDX-License-Identifier: MIT */
/*
 * The canary: a bug that fuzzing must find, or it would find no other.
 *
 * If the data of an option begin with four bytes from 0x80 on, each larger than
 * the one before, a byte behind the data is read.  No seed has such a byte
 * there, and chance does not make four: the fuzzer must be told of each by the
 * coverage of this file, which is compiled as the program's own are.  And what
 * is read lies in a buffer: only AddressSanitizer sees the mistake, and only
 * because of guard.c.
 */
#include <stdio.h>

#include "guard.h"

/* One branch a byte, so that each has coverage of its own. */
static bool is_rising(const uint8_t *p)
{
    if (p[0] < 0x80) {
        return false;
    }
    if (p[1] <= p[0]) {
        return false;
    }
    if (p[2] <= p[1]) {
        return false;
    }
    return p[3] > p[2];
}

void canary_sing(Handshake *h)
{
    if (h->data && h->length >= 4 && is_rising(h->data)) {
        const volatile uint8_t *behind = h->data + h->length;

        fputs("canary: reading behind an option's data\n", stderr);
        (void)*behind;
    }
}
