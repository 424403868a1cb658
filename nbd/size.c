/* SPDX-License-Identifier: MIT */
/*
 * Sizes and numbers as people write them (size.h).  Nothing is accepted that
 * strtoull() would let pass in silence: signs, blanks, other bases, overflow.
 */
#include "size.h"

#include <stddef.h>
#include <string.h>

/* Digits up to the first other character.  NULL: none, or too many. */
static const char *digits_parse(const char *text, uint64_t *number)
{
    uint64_t value = 0;
    const char *p = text;

    for (; *p >= '0' && *p <= '9'; p++) {
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*p - '0'), &value)) {
            return NULL;
        }
    }
    *number = value;
    return p == text ? NULL : p;
}

bool size_parse(const char *text, uint64_t *size)
{
    static const char units[] = "KMGTPE";
    uint64_t value;
    const char *rest = digits_parse(text, &value);

    if (!rest) {
        return false;
    }
    if (*rest) {
        char unit = (char)(*rest & ~0x20); /* upper case */
        const char *found = unit ? strchr(units, unit) : NULL;

        if (!found || rest[1]) {
            return false;
        }
        for (ptrdiff_t i = 0; i <= found - units; i++) {
            if (__builtin_mul_overflow(value, 1024, &value)) {
                return false;
            }
        }
    }
    if (value > INT64_MAX) {
        return false;
    }
    *size = value;
    return true;
}

bool number_parse(const char *text, uint64_t min, uint64_t max,
                  uint64_t *number)
{
    uint64_t value;
    const char *rest = digits_parse(text, &value);

    if (!rest || *rest || value < min || value > max) {
        return false;
    }
    *number = value;
    return true;
}
