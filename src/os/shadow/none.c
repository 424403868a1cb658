/* SPDX-License-Identifier: MIT */
/*
 * Processors that have no shadow stacks.
 */
#include "os/misc.h"

#include <stddef.h>

const char *os_shadow_stack(void)
{
    return NULL;
}
