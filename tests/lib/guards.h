/* SPDX-License-Identifier: MIT */
#ifndef COAIO_TESTS_GUARDS_H
#define COAIO_TESTS_GUARDS_H

/* For tests of guards that do not split mappings. */

#include "harness.h"

#include "os/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/*
 * Skip the case where there are none: in Linux before 6.13, which does not
 * know the advice, and in emulators, which accept any.  A kernel that gives
 * them is not to be mistaken for one of those.
 */
static inline void needs_madvise_guards(void)
{
    const char *wanted = getenv("COAIO_GUARD");
    char *map;
    int advice;

    if (os_guard_kind() == OS_GUARD_MADVISE) {
        return;
    }
    if (wanted && (!strcmp(wanted, "none") || !strcmp(wanted, "mprotect"))) {
        SKIP("COAIO_GUARD asks for others");
    }
    map = os_map(os_page_size(), os_page_size());
    CHECK(map != NULL);
    advice = madvise(map, os_page_size(), 102 /* MADV_GUARD_INSTALL */);
    CHECK(advice ? errno == EINVAL : !os_address_guarded(map));
    SKIP("MADV_GUARD_INSTALL does nothing here");
}

#endif
