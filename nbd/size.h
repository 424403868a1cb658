/* SPDX-License-Identifier: MIT */
/*
 * Sizes and numbers as people write them.
 */
#ifndef NBD_SIZE_H
#define NBD_SIZE_H

#include <stdbool.h>
#include <stdint.h>

/**
 * Parse a number of bytes: decimal digits and, at choice, one of the letters
 * K M G T P E in either case, for powers of 1024.
 *
 * Returns whether text is one of at most INT64_MAX, and fills *size.
 */
bool size_parse(const char *text, uint64_t *size);

/**
 * Parse a decimal number from min to max.  Returns whether text is one.
 */
bool number_parse(const char *text, uint64_t min, uint64_t max,
                  uint64_t *number);

#endif
