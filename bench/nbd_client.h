/* SPDX-License-Identifier: MIT */
/*
 * nbd_client.h: how the load generator gets a connection to an NBD server.
 *
 * Blocking throughout.  Whatever goes wrong ends the program with one line
 * and exit status 1: a measurement has no use for half a connection.
 */
#ifndef BENCH_NBD_CLIENT_H
#define BENCH_NBD_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Prints one line after the program's name and exits with status 1. */
void die(const char *format, ...)
    __attribute__((noreturn, format(printf, 1, 2)));

int nbd_connect_unix(const char *path);

/* The first address of the host that answers; TCP_NODELAY is set. */
int nbd_connect_tcp(const char *host, const char *port);

/*
 * The fixed newstyle handshake up to the reply to GO: the connection is in
 * transmission afterwards.  With `structured`, structured replies are
 * negotiated first, and a server that lacks them is an error.
 */
void nbd_handshake(int fd, const char *name, bool structured, uint64_t *size,
                   uint16_t *export_flags);

void nbd_send_all(int fd, const void *data, size_t length);

#endif
