/* SPDX-License-Identifier: MIT */
/*
 * Giving up with one line.  The line is composed first and leaves in one
 * write, so that lines of several threads do not mix.  Nothing is allocated;
 * the buffer is small because the caller may be on a small stack.
 */
#include "base/assert.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static void PRINTF_FORMAT(1, 0) put_line(const char *format, va_list args)
{
    char line[512];

    vsnprintf(line, sizeof(line), format, args);
    fprintf(stderr, "coaio: %s\n", line);
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
