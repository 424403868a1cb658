/* SPDX-License-Identifier: MIT */
/*
 * Conversation: one connection to a server, in this process and on this
 * thread, from accept(2) to close(2).
 *
 * The server is the program's own code from connection_start() on, with the
 * exports of conversation_exports.  Its event loop runs on the calling thread,
 * which plays the client, too; so whatever happens depends on the bytes alone.
 */
#ifndef FUZZ_CONVERSATION_H
#define FUZZ_CONVERSATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../nbd/options.h"

/* The longest that a client can say. */
#define SENT_MAX ((size_t)68 << 10)

/* One that is written to, one larger than any sum of offset and length that
 * fits in 63 bits, one that refuses writes.  The first is the default. */
#define CONVERSATION_EXPORTS 3
extern ExportSpec conversation_exports[CONVERSATION_EXPORTS];

/**
 * Connect, send, and check what the server answers (oracle.h).  Besides that
 *
 *   - the connection ends, within a number of passes of the event loop;
 *   - requests, buffers and file descriptors have all been given back.
 *
 * manner says how the client behaves.  Bits 0 to 5: the size of the first
 * pieces that it sends, each of which the server takes in by itself; 0: all at
 * once.  Bit 6: the server treats the socket as one of TCP.  Bit 7: the client
 * goes away without having read anything.
 *
 * bytes are the client's, and are changed: in what looks like a request, the
 * first half of the cookie becomes its place in bytes.  So every reply tells
 * which request it answers.
 */
void converse(unsigned manner, uint8_t *bytes, size_t n);

#endif
