/* SPDX-License-Identifier: MIT */
/*
 * Whether Valgrind runs this process: there are calls that it does not know,
 * or takes for others; and what to tell it that it cannot see.
 */
#ifndef COAIO_OS_VALGRIND_H
#define COAIO_OS_VALGRIND_H

#include <stdbool.h>
#include <stddef.h>

#ifdef COAIO_HAVE_VALGRIND
#include <valgrind/memcheck.h>
#endif

static inline bool os_in_valgrind(void)
{
#ifdef COAIO_HAVE_VALGRIND
    return RUNNING_ON_VALGRIND;
#else
    return false;
#endif
}

/* The kernel has written there, in no call that Valgrind saw. */
static inline void os_valgrind_defined(const void *address, size_t size)
{
    (void)address, (void)size;
#ifdef COAIO_HAVE_VALGRIND
    VALGRIND_MAKE_MEM_DEFINED(address, size);
#endif
}

/*
 * An access there is a fault, though the mapping allows it.  Not told, the
 * search for leaks reads each word and has a signal for each: seconds for
 * a few stacks.
 */
static inline void os_valgrind_guarded(const void *address, size_t size)
{
    (void)address, (void)size;
#ifdef COAIO_HAVE_VALGRIND
    VALGRIND_MAKE_MEM_NOACCESS(address, size);
#endif
}

/* Between these two, this thread's accesses are no errors. */
static inline void os_valgrind_hush(void)
{
#ifdef COAIO_HAVE_VALGRIND
    VALGRIND_DISABLE_ERROR_REPORTING;
#endif
}

static inline void os_valgrind_unhush(void)
{
#ifdef COAIO_HAVE_VALGRIND
    VALGRIND_ENABLE_ERROR_REPORTING;
#endif
}

#endif
