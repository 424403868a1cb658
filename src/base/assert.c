/* SPDX-License-Identifier: MIT */
/*
 * Giving up with one line.  The line is composed first and leaves in one
 * write, so that lines of several threads do not mix.  Nothing is allocated;
 * the buffer is small because the caller may be on a small stack, for which
 * fprintf() to a stream without a buffer is too much: glibc lends it one of
 * 8 KiB there.
 */
#include "base/assert.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void PRINTF_FORMAT(1, 0) put_line(const char *format, va_list args)
{
    static const char prefix[] = "coaio: ";
    enum { TEXT = sizeof(prefix) - 1 };
    char line[512];
    size_t room = sizeof(line) - TEXT - 1; /* with the newline's */
    int length;

    memcpy(line, prefix, TEXT);
    length = vsnprintf(line + TEXT, room, format, args);
    if (length < 0 || (size_t)length >= room) {
        length = (int)strlen(line + TEXT);
    }
    line[TEXT + length] = '\n';
    fwrite(line, 1, TEXT + (size_t)length + 1, stderr);
}

void misuse(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    put_line(format, args);
    va_end(args);
    abort();
}

void warn_line(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    put_line(format, args);
    va_end(args);
}

void invariant_failed(const char *condition, const char *file, int line)
{
    misuse("internal error: %s does not hold at %s:%d", condition, file, line);
}
