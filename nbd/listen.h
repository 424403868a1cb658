/* SPDX-License-Identifier: MIT */
/*
 * Listening sockets: UNIX, TCP, and those that a service manager passes on.
 */
#ifndef NBD_LISTEN_H
#define NBD_LISTEN_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "options.h"

typedef struct Listener {
    int fd;             /* listening; -1 when closed */
    char *uri;          /* what a client would type, for the log */
    char *path;         /* of a UNIX socket that we have made; else NULL */
    dev_t device;       /* which file path was when we made it */
    ino_t inode;
} Listener;

typedef struct Listeners {
    Listener *items;
    size_t count;
} Listeners;

/**
 * How many sockets the environment passes to this process (LISTEN_PID,
 * LISTEN_FDS), and forget the variables.  Call it once.
 */
unsigned listen_passed_count(void);

/**
 * Open all sockets that options name, and take over the n_passed ones from
 * descriptor 3 on.  Logs a line and returns false if one fails; then those
 * that were opened are closed and removed again.
 */
bool listeners_open(Listeners *listeners, const Options *options,
                    unsigned n_passed);

/**
 * Remove the UNIX sockets that were made, unless somebody has put something
 * else there, close what is open, and free the rest.
 */
void listeners_clear(Listeners *listeners);

/**
 * The first part of that.
 */
void listeners_unlink(Listeners *listeners);

#endif
