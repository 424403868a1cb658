/* SPDX-License-Identifier: MIT */
/*
 * The registers that a call must keep, lp64 and lp64d: s0-s11, fs0-fs11.
 *
 * See test_coroutine_switch.c for what the functions do.
 */
    .text

    .macro EACH_INTEGER what
    \what   s0, 1
    \what   s1, 2
    \what   s2, 3
    \what   s3, 4
    \what   s4, 5
    \what   s5, 6
    \what   s6, 7
    \what   s7, 8
    \what   s8, 9
    \what   s9, 10
    \what   s10, 11
    \what   s11, 12
    .endm

    .macro EACH_FLOAT what
#if defined(__riscv_float_abi_double)
    \what   fs0, 13
    \what   fs1, 14
    \what   fs2, 15
    \what   fs3, 16
    \what   fs4, 17
    \what   fs5, 18
    \what   fs6, 19
    \what   fs7, 20
    \what   fs8, 21
    \what   fs9, 22
    \what   fs10, 23
    \what   fs11, 24
#endif
    .endm

    .macro FILL register, number
    addi    \register, a0, \number
    .endm

    .macro FILL_FLOAT register, number
    addi    t0, a0, \number
    fmv.d.x \register, t0
    .endm

    .macro SAVE register, number
    sd      \register, 8 * \number(sp)
    .endm

    .macro SAVE_FLOAT register, number
    fsd     \register, 8 * \number(sp)
    .endm

    .macro LOAD register, number
    ld      \register, 8 * \number(sp)
    .endm

    .macro LOAD_FLOAT register, number
    fld     \register, 8 * \number(sp)
    .endm

    .macro LOOK register, number
    sub     t1, \register, t0
    addi    t1, t1, -\number
    or      a0, a0, t1
    .endm

    .macro LOOK_FLOAT register, number
    fmv.x.d t2, \register
    LOOK    t2, \number
    .endm

    .globl  call_keeps_registers
    .type   call_keeps_registers, @function
call_keeps_registers:
    addi    sp, sp, -208
    sd      ra, 0(sp)
    EACH_INTEGER SAVE
    EACH_FLOAT SAVE_FLOAT
    sd      a0, 200(sp)
    EACH_INTEGER FILL
    EACH_FLOAT FILL_FLOAT
    mv      a0, a2
    jalr    a1
    ld      t0, 200(sp)
    li      a0, 0
    EACH_INTEGER LOOK
    EACH_FLOAT LOOK_FLOAT
    EACH_INTEGER LOAD
    EACH_FLOAT LOAD_FLOAT
    ld      ra, 0(sp)
    addi    sp, sp, 208
    ret
    .size   call_keeps_registers, . - call_keeps_registers

    .globl  stack_at_call
    .type   stack_at_call, @function
stack_at_call:
    mv      a0, sp
    ret
    .size   stack_at_call, . - stack_at_call

    .section .note.GNU-stack, "", @progbits
