/* SPDX-License-Identifier: MIT */
/*
 * The registers that a call must keep, System V ABI: rbx rbp r12-r15.
 *
 * See test_coroutine_switch.c for what the functions do.
 */
    .text

    .macro LOOK register, number
    subq    %rdi, \register
    subq    $\number, \register
    orq     \register, %rax
    .endm

    .globl  call_keeps_registers
    .type   call_keeps_registers, @function
call_keeps_registers:
    pushq   %rbp
    pushq   %rbx
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    pushq   %rdi
    movq    %rsi, %rax
    leaq    1(%rdi), %rbx
    leaq    2(%rdi), %rbp
    leaq    3(%rdi), %r12
    leaq    4(%rdi), %r13
    leaq    5(%rdi), %r14
    leaq    6(%rdi), %r15
    movq    %rdx, %rdi
    call    *%rax
    popq    %rdi
    xorl    %eax, %eax
    LOOK    %rbx, 1
    LOOK    %rbp, 2
    LOOK    %r12, 3
    LOOK    %r13, 4
    LOOK    %r14, 5
    LOOK    %r15, 6
    popq    %r15
    popq    %r14
    popq    %r13
    popq    %r12
    popq    %rbx
    popq    %rbp
    ret
    .size   call_keeps_registers, . - call_keeps_registers

    .globl  stack_at_call
    .type   stack_at_call, @function
stack_at_call:
    leaq    8(%rsp), %rax
    ret
    .size   stack_at_call, . - stack_at_call

    .section .note.GNU-stack, "", @progbits
