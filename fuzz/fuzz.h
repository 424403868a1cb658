/* SPDX-License-Identifier: MIT */
/*
 * What all fuzz targets have in common.
 *
 * A target is a function that takes any bytes and, besides surviving them,
 * checks what came of them.  libFuzzer calls it with what it makes up
 * (`make fuzz`); replay.c calls it with each file of the corpus, in any build.
 */
#ifndef FUZZ_FUZZ_H
#define FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/**
 * The target.  Returns 0; aborts if something is wrong.
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/**
 * Say in one line what is wrong, and abort.
 */
void fuzz_fail(const char *file, int line, const char *format, ...)
    __attribute__((noreturn, format(printf, 3, 4)));

/* What must be true; the text, a format with values, says what it means. */
#define EXPECT(condition, ...)                         \
    do {                                               \
        if (!(condition)) {                            \
            fuzz_fail(__FILE__, __LINE__, __VA_ARGS__); \
        }                                              \
    } while (0)

#endif
