/* SPDX-License-Identifier: MIT */
/*
 * Log lines (log.h).
 *
 * INVARIANTS
 *
 *   1. One line is one write(2) of at most LINE_MAX_ bytes, which a pipe that
 *      polls writable takes without blocking.
 *   2. Clients get LIMIT_BURST lines at once and LIMIT_PER_SECOND after that,
 *      all clients together; how many were left out is said in the next line
 *      that gets through.
 */
#include "log.h"

#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include <coaio/timer.h>

#define LINE_MAX_        1024
#define LIMIT_BURST      50
#define LIMIT_PER_SECOND 10
#define NS_PER_TOKEN     (INT64_C(1000000000) / LIMIT_PER_SECOND)

static LogLevel log_level = LOG_LEVEL_INFO;

static const char *const level_names[] = {
    [LOG_LEVEL_ERROR] = "error",
    [LOG_LEVEL_WARNING] = "warning",
    [LOG_LEVEL_INFO] = "info",
    [LOG_LEVEL_DEBUG] = "debug",
};

/* The bucket that clients draw from; under the lock. */
static struct {
    pthread_mutex_t lock;
    int64_t full_ns;   /* when the bucket will be full again */
    uint64_t dropped;  /* since the last line that got through */
} limit = { .lock = PTHREAD_MUTEX_INITIALIZER };

void log_set_level(LogLevel level)
{
    log_level = level;
}

bool log_level_parse(const char *name, LogLevel *level)
{
    for (size_t i = 0; i < sizeof(level_names) / sizeof(*level_names); i++) {
        if (strcasecmp(name, level_names[i]) == 0) {
            *level = (LogLevel)i;
            return true;
        }
    }
    return false;
}

bool log_enabled(LogLevel level)
{
    return level <= log_level;
}

/* Control characters come from clients, too: they never reach a terminal. */
static void make_printable(char *text)
{
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f) {
            *text = '?';
        }
    }
}

static void write_line(const char *fmt, va_list args)
{
    static const char prefix[] = "coaio-nbd: ";
    char line[LINE_MAX_];
    struct pollfd out = { .fd = STDERR_FILENO, .events = POLLOUT };
    size_t length = sizeof(prefix) - 1;
    int n;

    memcpy(line, prefix, length);
    n = vsnprintf(line + length, sizeof(line) - length, fmt, args);
    if (n < 0) {
        return;
    }
    make_printable(line);
    length = strlen(line);
    line[length++] = '\n'; /* where the terminator was, at the latest */
    if (poll(&out, 1, 0) == 1 && (out.revents & POLLOUT)) {
        ssize_t ignored = write(STDERR_FILENO, line, length);

        (void)ignored;
    }
}

/* Draws a token.  Returns whether there was one; *dropped as invariant 2. */
static bool limit_draw(uint64_t *dropped)
{
    int64_t now = aio_clock_ns(AIO_CLOCK_MONOTONIC);
    bool ok;

    pthread_mutex_lock(&limit.lock);
    if (limit.full_ns < now) {
        limit.full_ns = now;
    }
    ok = limit.full_ns - now <= (LIMIT_BURST - 1) * NS_PER_TOKEN;
    *dropped = 0;
    if (ok) {
        limit.full_ns += NS_PER_TOKEN;
        *dropped = limit.dropped;
        limit.dropped = 0;
    } else {
        limit.dropped++;
    }
    pthread_mutex_unlock(&limit.lock);
    return ok;
}

void log_line(LogLevel level, const char *fmt, ...)
{
    va_list args;

    if (!log_enabled(level)) {
        return;
    }
    va_start(args, fmt);
    write_line(fmt, args);
    va_end(args);
}

void log_client(LogLevel level, const char *fmt, ...)
{
    va_list args;
    uint64_t dropped;

    if (!log_enabled(level) || !limit_draw(&dropped)) {
        return;
    }
    if (dropped) {
        log_line(level, "%llu lines about clients were left out",
                 (unsigned long long)dropped);
    }
    va_start(args, fmt);
    write_line(fmt, args);
    va_end(args);
}
