/* SPDX-License-Identifier: MIT */
/*
 * The pid file: whoever waits for it knows, when it is there, that the server
 * answers; it is never seen half written.
 */
#ifndef NBD_PIDFILE_H
#define NBD_PIDFILE_H

#include <stdbool.h>

/**
 * Write the process number to path, in place of what was there.  Logs a line
 * and returns false if that fails.
 */
bool pidfile_write(const char *path);

/**
 * Remove it if it still holds this process's number.
 */
void pidfile_remove(const char *path);

#endif
