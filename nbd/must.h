/* SPDX-License-Identifier: MIT */
/*
 * Memory at start-up, where there is nothing to serve without it.
 */
#ifndef NBD_MUST_H
#define NBD_MUST_H

#include <stdlib.h>

#include "log.h"

/**
 * Returns p, which an allocation gave; if it is NULL, the program ends.
 */
static inline void *must(void *p)
{
    if (!p) {
        log_line(LOG_LEVEL_ERROR, "out of memory");
        exit(EXIT_FAILURE);
    }
    return p;
}

#endif
