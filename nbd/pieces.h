/* SPDX-License-Identifier: MIT */
/*
 * Pieces: long work on the loop's own thread, done a megabyte at a time, with
 * a turn for everybody else in between.
 *
 *     for (Pieces p = pieces(length); pieces_next(&p);) {
 *         memset(data + p.start, 0, p.length);
 *     }
 */
#ifndef NBD_PIECES_H
#define NBD_PIECES_H

#include <stdbool.h>
#include <stddef.h>

#include <coaio/io.h>

#define PIECE_MAX ((size_t)1 << 20)

typedef struct Pieces {
    size_t start;   /* of this piece */
    size_t length;  /* of this piece; 0 before the first */
    size_t left;    /* from start on */
} Pieces;

static inline Pieces pieces(size_t length)
{
    Pieces p = { 0, 0, length };

    return p;
}

/* Goes on to the next piece.  Returns whether there is one. */
static inline bool coroutine_fn pieces_next(Pieces *p)
{
    p->start += p->length;
    p->left -= p->length;
    if (p->left > 0 && p->length > 0) {
        co_sleep_ns(0);
    }
    p->length = p->left < PIECE_MAX ? p->left : PIECE_MAX;
    return p->left > 0;
}

#endif
