/* SPDX-License-Identifier: MIT */
/*
 * x86-64, control-flow enforcement: RDSSPQ reads the shadow stack pointer.
 * Where there is no shadow stack, in the processor or in this thread, it is a
 * no-operation that leaves its register as it was.  It stands here in bytes,
 * since assemblers before 2.29 do not know it.
 */
#include "os/misc.h"

#include <stddef.h>

const char *os_shadow_stack(void)
{
    uint64_t pointer = 0;

    /* rdsspq %rax */
    __asm__ volatile(".byte 0xf3, 0x48, 0x0f, 0x1e, 0xc8" : "+a"(pointer));
    return pointer ? "glibc.cpu.x86_shstk=off" : NULL;
}
