/* SPDX-License-Identifier: MIT */
/*
 * The state of a handshake, and its parts: sending and receiving
 * (handshake.c), and what each option does (handshake_option.c).
 */
#ifndef NBD_HANDSHAKE_H
#define NBD_HANDSHAKE_H

#include "connection.h"

typedef struct Handshake {
    Connection *conn;

    /* The client's flags. */
    bool fixed;          /* understands replies to options */
    bool no_zeroes;

    /* The export for which base:allocation was selected, or NULL. */
    Export *meta_export;

    /* The option at hand. */
    uint32_t option;
    uint32_t length;     /* of its data */
    uint8_t *data;       /* NULL if there is none, or too much of what means
                            nothing */

    /* What is to be sent. */
    uint8_t *out;
    size_t out_length;
    bool failed;         /* sending has failed */
} Handshake;

/* What comes after an option. */
typedef enum HandshakeNext {
    HANDSHAKE_OPTION,    /* another one */
    HANDSHAKE_TRANSMIT,  /* transmission; the connection's export is set */
    HANDSHAKE_CLOSE,
} HandshakeNext;

/**
 * Append bytes to what is to be sent; they leave when the option is done, or
 * when there are many.
 */
void coroutine_fn handshake_put(Handshake *h, const void *bytes, size_t n);

/**
 * Append the header of a reply to the option at hand, with length bytes of
 * data to follow.
 */
void coroutine_fn handshake_reply(Handshake *h, uint32_t type, size_t length);

/**
 * Append an error with a text.
 */
void coroutine_fn handshake_error(Handshake *h, uint32_t type,
                                  const char *text);

/**
 * Do what the option says.  Its data is there.
 */
HandshakeNext coroutine_fn handshake_option(Handshake *h);

#endif
