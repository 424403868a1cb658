/* SPDX-License-Identifier: MIT */
/*
 * The registers that a call must keep, AAPCS64: x19-x29, d8-d15.
 *
 * See test_coroutine_switch.c for what the functions do.
 */
    .text

    .macro EACH_INTEGER what
    \what   x19, 1
    \what   x20, 2
    \what   x21, 3
    \what   x22, 4
    \what   x23, 5
    \what   x24, 6
    \what   x25, 7
    \what   x26, 8
    \what   x27, 9
    \what   x28, 10
    \what   x29, 11
    .endm

    .macro EACH_FLOAT what
    \what   d8, 12
    \what   d9, 13
    \what   d10, 14
    \what   d11, 15
    \what   d12, 16
    \what   d13, 17
    \what   d14, 18
    \what   d15, 19
    .endm

    .macro FILL register, number
    add     \register, x0, #\number
    .endm

    .macro FILL_FLOAT register, number
    add     x9, x0, #\number
    fmov    \register, x9
    .endm

    .macro LOOK register, number
    sub     x10, \register, x9
    sub     x10, x10, #\number
    orr     x0, x0, x10
    .endm

    .macro LOOK_FLOAT register, number
    fmov    x11, \register
    LOOK    x11, \number
    .endm

    .globl  call_keeps_registers
    .type   call_keeps_registers, %function
call_keeps_registers:
    stp     x29, x30, [sp, #-176]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    stp     d8, d9, [sp, #96]
    stp     d10, d11, [sp, #112]
    stp     d12, d13, [sp, #128]
    stp     d14, d15, [sp, #144]
    str     x0, [sp, #160]
    EACH_INTEGER FILL
    EACH_FLOAT FILL_FLOAT
    mov     x0, x2
    blr     x1
    ldr     x9, [sp, #160]
    mov     x0, #0
    EACH_INTEGER LOOK
    EACH_FLOAT LOOK_FLOAT
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     d8, d9, [sp, #96]
    ldp     d10, d11, [sp, #112]
    ldp     d12, d13, [sp, #128]
    ldp     d14, d15, [sp, #144]
    ldp     x29, x30, [sp], #176
    ret
    .size   call_keeps_registers, . - call_keeps_registers

    .globl  stack_at_call
    .type   stack_at_call, %function
stack_at_call:
    mov     x0, sp
    ret
    .size   stack_at_call, . - stack_at_call

    .section .note.GNU-stack, "", %progbits
