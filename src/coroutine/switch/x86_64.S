/* SPDX-License-Identifier: MIT */
/*
 * Stack switch for x86-64, System V ABI.
 *
 *   register            across a call       here
 *   rbx rbp r12-r15     kept by the callee  saved on the stack that is left
 *   rsp                 kept                *from, and loaded from to
 *   rip                 return address      on the stack, above the registers
 *   rax rcx rdx rsi     the caller's        not saved
 *   rdi r8-r11, xmm     the caller's        not saved
 *   mxcsr, x87 control  control bits kept   the thread's; see coroutine.h
 *
 * A saved stack, from its stack pointer up:
 *
 *   r15 r14 r13 r12 rbx rbp  return address
 *
 * The way out is a jump, not a ret: the return-stack predictor has not seen
 * the address, and a ret that it mispredicts costs more than all the rest.
 * For the same reason the callers make the switch their last act, so that the
 * address is that of their own caller.  Between stacks that are alike it is a
 * ret: the predictor is right about it, and stays in step.
 */
    .text

#if defined(__CET__) && (__CET__ & 1)
#define LANDING endbr64
#define JUMP notrack jmp
#else
#define LANDING
#define JUMP jmp
#endif

    .macro SAVE_STACK
    pushq   %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbp, 0
    pushq   %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbx, 0
    pushq   %r12
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset r12, 0
    pushq   %r13
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset r13, 0
    pushq   %r14
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset r14, 0
    pushq   %r15
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset r15, 0
    movq    %rsp, (%rdi)
    movq    %rsi, %rsp
    .endm

    .macro LOAD_STACK
    popq    %r15
    .cfi_adjust_cfa_offset -8
    .cfi_restore r15
    popq    %r14
    .cfi_adjust_cfa_offset -8
    .cfi_restore r14
    popq    %r13
    .cfi_adjust_cfa_offset -8
    .cfi_restore r13
    popq    %r12
    .cfi_adjust_cfa_offset -8
    .cfi_restore r12
    popq    %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_restore rbx
    popq    %rbp
    .cfi_adjust_cfa_offset -8
    .cfi_restore rbp
    .endm

    .macro GO_ON
    LOAD_STACK
    popq    %rcx
    .cfi_adjust_cfa_offset -8
    .cfi_register rip, rcx
    JUMP    *%rcx
    .endm

/* void switch_stack(void **from, void *to) */
    .globl  switch_stack
    .hidden switch_stack
    .type   switch_stack, @function
    .p2align 4
switch_stack:
    .cfi_startproc
    LANDING
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
    LANDING
    SAVE_STACK
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
    LANDING
    SAVE_STACK
    movq    %rcx, %rdi
    subq    $8, %rsp                /* six saved and one address: align */
    .cfi_adjust_cfa_offset 8
    call    *%rdx
    addq    $8, %rsp
    .cfi_adjust_cfa_offset -8
    GO_ON
    .cfi_endproc
    .size   switch_stack_call, . - switch_stack_call

/*
 * Where a new stack begins: rbx is the entry function.  There is no frame
 * above, and unwinders are told so; who looks in the middle of the switch
 * finds this address as a return address, and looks up what is before it.
 */
    .type   switch_entry, @function
    .p2align 4
switch_entry:
    .cfi_startproc
    .cfi_undefined rip
    .cfi_undefined rbp
    nop
.Lentry:
    LANDING
    xorl    %ebp, %ebp
    call    *%rbx
    ud2
    .cfi_endproc
    .size   switch_entry, . - switch_entry

/* void *switch_init(void *bottom, size_t size, void (*entry)(void)) */
    .globl  switch_init
    .hidden switch_init
    .type   switch_init, @function
    .p2align 4
switch_init:
    .cfi_startproc
    LANDING
    leaq    (%rdi,%rsi), %rax
    andq    $-16, %rax
    leaq    .Lentry(%rip), %rcx
    subq    $56, %rax               /* ends aligned when all is popped */
    xorl    %esi, %esi
    movq    %rsi, 0(%rax)           /* r15 */
    movq    %rsi, 8(%rax)           /* r14 */
    movq    %rsi, 16(%rax)          /* r13 */
    movq    %rsi, 24(%rax)          /* r12 */
    movq    %rdx, 32(%rax)          /* rbx: the entry function */
    movq    %rsi, 40(%rax)          /* rbp */
    movq    %rcx, 48(%rax)          /* return address */
    ret
    .cfi_endproc
    .size   switch_init, . - switch_init

/*
 * Tells the linker that this file does its part, or all have it off.  Not so
 * for shadow stacks (2): a switch leaves them behind.
 */
#if defined(__CET__) && (__CET__ & 1)
    .section .note.gnu.property, "a", @note
    .p2align 3
    .long   4, 16, 5                /* sizes of name and content; the type */
    .asciz  "GNU"
    .long   0xc0000002, 4           /* the features that all files have */
    .long   1, 0                    /* indirect branch tracking */
#endif

    .section .note.GNU-stack, "", @progbits
