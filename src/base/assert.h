/* SPDX-License-Identifier: MIT */
/*
 * The two ways in which the library gives up, both in release builds too:
 *
 *   misuse()     the caller broke the contract: one line that names both
 *                parties, then abort
 *   invariant()  the library is wrong: the condition, then abort
 */
#ifndef COAIO_BASE_ASSERT_H
#define COAIO_BASE_ASSERT_H

#include "base/compiler.h"

/* Print "coaio: " and the message as one line on stderr, and abort. */
COLD NORETURN PRINTF_FORMAT(1, 2) void misuse(const char *format, ...);

/* The same without aborting: for warnings. */
COLD PRINTF_FORMAT(1, 2) void warn_line(const char *format, ...);

COLD NORETURN void invariant_failed(const char *condition, const char *file,
                                    int line);

#define invariant(condition)                                                  \
    do {                                                                      \
        if (unlikely(!(condition))) {                                         \
            invariant_failed(#condition, __FILE__, __LINE__);                 \
        }                                                                     \
    } while (0)

#endif
