/* SPDX-License-Identifier: MIT */
/*
 * Oracle: what the protocol says that a server must answer to a client's
 * bytes, written down anew, from the client's side.
 *
 * It knows of each option whether it is granted, of each request whether it
 * succeeds and how much comes back, and where a connection ends; not in which
 * order replies come, nor what is on a disk that was written to.
 */
#ifndef FUZZ_ORACLE_H
#define FUZZ_ORACLE_H

#include <stdbool.h>

#include "../nbd/options.h"
#include "bytes.h"

/* A conversation as far as it has been followed. */
typedef struct Oracle {
    Bytes sent;            /* by the client */
    Bytes got;             /* by the client, from the server */
    const uint8_t *first;  /* of what was sent: places are counted from here */

    /* What was agreed upon. */
    bool fixed;
    bool no_zeroes;
    bool structured;
    const ExportSpec *meta;    /* base:allocation was selected for it */
    const ExportSpec *export;
} Oracle;

/**
 * Check that a server with conversation_exports may answer sent with got, all
 * of it, and closes the connection then.
 */
void oracle_check(const uint8_t *sent, size_t n_sent, const uint8_t *got,
                  size_t n_got);

/*
 * oracle_handshake.c: follow it.  Returns whether transmission begins.
 */
bool oracle_handshake(Oracle *o);

/*
 * oracle_transmission.c: follow it to its end.
 */
void oracle_transmission(Oracle *o);

/**
 * The transmission flags that an export must have.
 */
uint16_t oracle_flags(const Oracle *o, const ExportSpec *export);

#endif
