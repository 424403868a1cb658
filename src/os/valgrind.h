/* SPDX-License-Identifier: MIT */
/*
 * Whether Valgrind runs this process: there are calls that it does not know,
 * or takes for others.
 */
#ifndef COAIO_OS_VALGRIND_H
#define COAIO_OS_VALGRIND_H

#include <stdbool.h>

#ifdef COAIO_HAVE_VALGRIND
#include <valgrind/valgrind.h>
#endif

static inline bool os_in_valgrind(void)
{
#ifdef COAIO_HAVE_VALGRIND
    return RUNNING_ON_VALGRIND;
#else
    return false;
#endif
}

#endif
