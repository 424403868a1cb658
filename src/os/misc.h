/* SPDX-License-Identifier: MIT */
/*
 * What is left of the machine: the environment and random numbers.
 */
#ifndef COAIO_OS_MISC_H
#define COAIO_OS_MISC_H

#include <stdbool.h>
#include <stdint.h>

/* An environment variable, or NULL. */
const char *os_getenv(const char *name);

/* COAIO_DEBUG=1 in the environment; read once. */
bool os_debug(void);

/* Random bits, not for secrets. */
uint64_t os_random(void);

/*
 * NULL if this thread runs without a shadow stack (x86 CET, arm64 GCS), or
 * else the setting of the C library that starts a program without one.
 */
const char *os_shadow_stack(void);

#endif
