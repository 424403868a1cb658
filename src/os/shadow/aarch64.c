/* SPDX-License-Identifier: MIT */
/*
 * arm64, guarded control stacks: CHKFEAT clears, in x16, the bits of those
 * features that are on; bit 0 is the guarded control stack.  It is a hint, so
 * older processors leave x16 alone.
 */
#include "os/misc.h"

#include <stddef.h>

const char *os_shadow_stack(void)
{
    register uint64_t features __asm__("x16") = 1;

    /* chkfeat x16 */
    __asm__ volatile("hint #40" : "+r"(features));
    return features & 1 ? NULL : "glibc.cpu.aarch64_gcs=0";
}
