/* SPDX-License-Identifier: MIT */
/*
 * Stack switch for 64-bit RISC-V, the calling conventions lp64, lp64f, lp64d.
 *
 *   register            across a call       here
 *   s0-s11              kept by the callee  saved on the stack that is left
 *   fs0-fs11            kept as wide as     saved there as wide as that
 *                       the name says
 *   sp                  kept                *from, and loaded from to
 *   ra                  return address      on the stack, and where it goes on
 *   t0-t6 a0-a7         the caller's        not saved
 *   ft0-ft11 fa0-fa7    the caller's        not saved
 *   v0-v31, vl, vtype   the caller's        not saved
 *   fcsr                control bits kept   the thread's; see coroutine.h
 *   gp tp               the thread's        not touched
 *
 * A saved stack, from its stack pointer up:
 *
 *   ra s0 s1 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11  fs0 ... fs11
 *
 * The way out is a jump through t2.  Through ra it would be a return, which
 * the predictor has not seen, and which costs more than all the rest if it is
 * mispredicted.  For the same reason the callers make the switch their last
 * act, so that the address is that of their own caller.  Through any other
 * register but t2 it would have to find a landing pad, in processors that
 * check that (Zicfilp), and what follows a call has none.  Between stacks that
 * are alike it is a return: the predictor is right about it, and stays in step.
 */
    .text

#if defined(__riscv_float_abi_double)
#define FRAME 208
#define FSTORE fsd
#define FLOAD fld
#elif defined(__riscv_float_abi_single)
#define FRAME 208
#define FSTORE fsw
#define FLOAD flw
#elif defined(__riscv_float_abi_soft)
#define FRAME 112
#else
#error "a calling convention that keeps wider registers"
#endif

    .macro SAVE register, at
    sd      \register, \at(sp)
    .cfi_rel_offset \register, \at
    .endm

    .macro LOAD register, at
    ld      \register, \at(sp)
    .cfi_restore \register
    .endm

#if defined(FSTORE)
    .macro SAVE_FLOAT register, at
    FSTORE  \register, \at(sp)
    .cfi_rel_offset \register, \at
    .endm

    .macro LOAD_FLOAT register, at
    FLOAD   \register, \at(sp)
    .cfi_restore \register
    .endm

    .macro SAVE_FLOATS
    SAVE_FLOAT fs0, 104
    SAVE_FLOAT fs1, 112
    SAVE_FLOAT fs2, 120
    SAVE_FLOAT fs3, 128
    SAVE_FLOAT fs4, 136
    SAVE_FLOAT fs5, 144
    SAVE_FLOAT fs6, 152
    SAVE_FLOAT fs7, 160
    SAVE_FLOAT fs8, 168
    SAVE_FLOAT fs9, 176
    SAVE_FLOAT fs10, 184
    SAVE_FLOAT fs11, 192
    .endm

    .macro LOAD_FLOATS
    LOAD_FLOAT fs0, 104
    LOAD_FLOAT fs1, 112
    LOAD_FLOAT fs2, 120
    LOAD_FLOAT fs3, 128
    LOAD_FLOAT fs4, 136
    LOAD_FLOAT fs5, 144
    LOAD_FLOAT fs6, 152
    LOAD_FLOAT fs7, 160
    LOAD_FLOAT fs8, 168
    LOAD_FLOAT fs9, 176
    LOAD_FLOAT fs10, 184
    LOAD_FLOAT fs11, 192
    .endm
#else
    .macro SAVE_FLOATS
    .endm

    .macro LOAD_FLOATS
    .endm
#endif

    .macro SAVE_STACK
    addi    sp, sp, -FRAME
    .cfi_adjust_cfa_offset FRAME
    SAVE    ra, 0
    SAVE    s0, 8
    SAVE    s1, 16
    SAVE    s2, 24
    SAVE    s3, 32
    SAVE    s4, 40
    SAVE    s5, 48
    SAVE    s6, 56
    SAVE    s7, 64
    SAVE    s8, 72
    SAVE    s9, 80
    SAVE    s10, 88
    SAVE    s11, 96
    SAVE_FLOATS
    sd      sp, 0(a0)
    mv      sp, a1
    .endm

    .macro LOAD_STACK
    LOAD    s0, 8
    LOAD    s1, 16
    LOAD    s2, 24
    LOAD    s3, 32
    LOAD    s4, 40
    LOAD    s5, 48
    LOAD    s6, 56
    LOAD    s7, 64
    LOAD    s8, 72
    LOAD    s9, 80
    LOAD    s10, 88
    LOAD    s11, 96
    LOAD_FLOATS
    addi    sp, sp, FRAME
    .cfi_adjust_cfa_offset -FRAME
    .endm

    .macro GO_ON
    ld      t2, 0(sp)
    .cfi_register ra, t2
    LOAD_STACK
    jr      t2
    .endm

/* void switch_stack(void **from, void *to) */
    .globl  switch_stack
    .hidden switch_stack
    .type   switch_stack, @function
    .p2align 4
switch_stack:
    .cfi_startproc
    SAVE_STACK
    GO_ON
    .cfi_endproc
    .size   switch_stack, . - switch_stack

/* void switch_stack_alike(void **from, void *to) */
    .globl  switch_stack_alike
    .hidden switch_stack_alike
    .type   switch_stack_alike, @function
    .p2align 4
switch_stack_alike:
    .cfi_startproc
    SAVE_STACK
    LOAD    ra, 0
    LOAD_STACK
    ret
    .cfi_endproc
    .size   switch_stack_alike, . - switch_stack_alike

/* void switch_stack_call(void **from, void *to, void (*)(void *), void *) */
    .globl  switch_stack_call
    .hidden switch_stack_call
    .type   switch_stack_call, @function
    .p2align 4
switch_stack_call:
    .cfi_startproc
    SAVE_STACK
    mv      a0, a3
    jalr    a2
    GO_ON
    .cfi_endproc
    .size   switch_stack_call, . - switch_stack_call

/*
 * Where a new stack begins: s1 is the entry function.  There is no frame
 * above, and unwinders are told so; who looks in the middle of the switch
 * finds this address as a return address, and looks up what is before it.
 */
    .type   switch_entry, @function
    .p2align 4
switch_entry:
    .cfi_startproc
    .cfi_undefined ra
    .cfi_undefined s0
    nop
.Lentry:
    jalr    s1
    ebreak
    .cfi_endproc
    .size   switch_entry, . - switch_entry

/* void *switch_init(void *bottom, size_t size, void (*entry)(void)) */
    .globl  switch_init
    .hidden switch_init
    .type   switch_init, @function
    .p2align 4
switch_init:
    .cfi_startproc
    add     a0, a0, a1
    andi    a0, a0, -16
    lla     t0, .Lentry
    addi    t1, a0, -FRAME
1:  addi    a0, a0, -8
    sd      zero, 0(a0)
    bne     a0, t1, 1b
    sd      t0, 0(a0)               /* ra */
    sd      a2, 16(a0)              /* s1: the entry function */
    ret
    .cfi_endproc
    .size   switch_init, . - switch_init

    .section .note.GNU-stack, "", @progbits
