/* SPDX-License-Identifier: MIT */
/*
 * Processors that have no shadow stacks.
 */
#include "os/misc.h"

bool os_shadow_stack(void)
{
    return false;
}
