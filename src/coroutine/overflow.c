/* SPDX-License-Identifier: MIT */
/*
 * Reports of stack overflows: says of a fault whether it hit a coroutine's
 * guard, and of which.  The handler itself is os/overflow.c.
 *
 * All but aio_install_overflow_handler() runs in a signal handler: no lock, no
 * allocation, no stdio.
 */
#include "coroutine/stack.h"
#include "os/overflow.h"

#include <stdint.h>
#include <string.h>

#define NAME_MAX_SHOWN 64

/* A line under construction; what does not fit is cut off. */
typedef struct Line {
    char *text;
    size_t size; /* of text, the terminating zero included */
    size_t length;
} Line;

static void put_char(Line *line, char c)
{
    /* Two bytes are kept for the newline and the zero. */
    if (line->length + 2 < line->size) {
        line->text[line->length++] = c;
    }
}

static void put_text(Line *line, const char *text)
{
    while (*text) {
        put_char(line, *text++);
    }
}

static void put_number(Line *line, uint64_t n, unsigned base)
{
    char digits[24];
    unsigned count = 0;

    do {
        digits[count++] = "0123456789abcdef"[n % base];
        n /= base;
    } while (n > 0);
    while (count > 0) {
        put_char(line, digits[--count]);
    }
}

/* The user's text: control characters must not break the line. */
static void put_name(Line *line, const char *name)
{
    put_char(line, '"');
    for (unsigned i = 0; name[i] && i < NAME_MAX_SHOWN; i++) {
        put_char(line, (unsigned char)name[i] < ' ' ? '?' : name[i]);
    }
    put_char(line, '"');
}

static void put_end(Line *line)
{
    line->text[line->length++] = '\n';
    line->text[line->length] = '\0';
}

static bool claims(const void *address, char *text, size_t size)
{
    Coroutine *co = stack_guard_owner(address);
    Line line = {.text = text, .size = size};

    if (!co) {
        return false;
    }
    put_text(&line, "coaio: stack overflow in coroutine ");
    if (co->name) {
        put_name(&line, co->name);
    } else {
        put_text(&line, "0x");
        put_number(&line, (uintptr_t)co, 16);
    }
    put_text(&line, ": its stack of ");
    put_number(&line, (uint64_t)16 << co->size_class, 10);
    put_text(&line, " KiB is too small (address 0x");
    put_number(&line, (uintptr_t)address, 16);
    put_text(&line, "); give it a larger stack_size, and compile with "
                    "-fstack-clash-protection");
    put_end(&line);
    return true;
}

int aio_install_overflow_handler(void)
{
    int result;

    os_check_fork("aio_install_overflow_handler");
    result = os_signal_stack_install();
    return result < 0 ? result : os_install_fault_handler(claims);
}
