/* SPDX-License-Identifier: MIT */
/*
 * Log lines on stderr, each "coaio-nbd: text" in one write.
 *
 * log_line() is for what the program does by itself.  log_client() is for
 * whatever a client can provoke: it is rate limited, so that no client fills
 * a disk or slows the others.  Neither ever waits for whoever reads stderr: a
 * line that cannot be written at once is dropped.
 *
 * Both may be called from any thread and any coroutine.
 */
#ifndef NBD_LOG_H
#define NBD_LOG_H

#include <stdbool.h>

typedef enum LogLevel {
    LOG_LEVEL_ERROR = 0,
    LOG_LEVEL_WARNING,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
} LogLevel;

/**
 * Set what is logged from now on.  Call it before there are threads.
 */
void log_set_level(LogLevel level);

/**
 * The level of that name.  Returns whether there is one.
 */
bool log_level_parse(const char *name, LogLevel *level);

/**
 * Whether a line of this level would be logged.
 */
bool log_enabled(LogLevel level);

void log_line(LogLevel level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

void log_client(LogLevel level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif
