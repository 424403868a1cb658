/* SPDX-License-Identifier: MIT */
/*
 * Stack switch for arm64, AAPCS64.
 *
 *   register            across a call       here
 *   x19-x28 x29         kept by the callee  saved on the stack that is left
 *   d8-d15              kept by the callee  saved there, too
 *   sp                  kept                *from, and loaded from to
 *   x30                 return address      on the stack, and where it goes on
 *   x0-x17 v0-v7        the caller's        not saved
 *   v16-v31, the upper  the caller's        not saved
 *   halves of v8-v15
 *   x18                 the platform's      not touched
 *   fpcr, fpsr          control bits kept   the thread's; see coroutine.h
 *   tpidr_el0           the thread's        not touched
 *
 * A saved stack, from its stack pointer up:
 *
 *   x29 x30  x19 x20  x21 x22  x23 x24  x25 x26  x27 x28
 *   d8 d9  d10 d11  d12 d13  d14 d15
 *
 * It begins with a frame record, as those who walk x29 expect one.
 *
 * Pointer authentication: what lies in memory is signed, if the compiler signs
 * return addresses.  The modifier is the stack pointer at the call, which is
 * the same on the way back; all threads of a process have the same keys.  The
 * instructions are hints, which older processors pass over; they stand here by
 * number for older assemblers.
 *
 * The way out is a branch, not a ret, where that can be: the return predictor
 * has not seen the address, and a ret that it mispredicts costs more than all
 * the rest.  For the same reason the callers make the switch their last act,
 * so that the address is that of their own caller.
 *
 * It cannot be where the processor checks branch targets (BTI).  What follows
 * a call has no landing pad, a branch to it faults if its page is guarded, and
 * whether it is has been decided for the program, not for this library: a
 * branch from a page that is not guarded is checked, too.  Only ret is not.
 * So switch_by_branch says, once per process, whether the processor lacks BTI.
 * Between stacks that are alike it is a ret: the predictor is right about it,
 * and stays in step.
 */
    .text

#define FRAME 160

#define HINT_BTI_C 34
#if defined(__ARM_FEATURE_PAC_DEFAULT) && (__ARM_FEATURE_PAC_DEFAULT & 2)
#define HINT_SIGN      27 /* pacibsp, a landing pad as well */
#define HINT_CHECK     31 /* autibsp */
#define HINT_SIGN_1716 10 /* pacib1716 */
#elif defined(__ARM_FEATURE_PAC_DEFAULT)
#define HINT_SIGN      25 /* paciasp, a landing pad as well */
#define HINT_CHECK     29 /* autiasp */
#define HINT_SIGN_1716 8  /* pacia1716 */
#endif

/* Where a function begins that may be called through a pointer. */
    .macro LANDING
#if defined(__ARM_FEATURE_BTI_DEFAULT)
    hint    #HINT_BTI_C
#endif
    .endm

    .macro SIGN
#if defined(HINT_SIGN)
    hint    #HINT_SIGN
    .cfi_negate_ra_state
#else
    LANDING
#endif
    .endm

    .macro CHECK
#if defined(HINT_CHECK)
    hint    #HINT_CHECK
    .cfi_negate_ra_state
#endif
    .endm

    .macro BEGIN_FRAME
    .cfi_startproc
#if defined(HINT_SIGN) && HINT_SIGN == 27
    .cfi_b_key_frame
#endif
    .endm

    .macro SAVE_PAIR one, other, at
    stp     \one, \other, [sp, #\at]
    .cfi_rel_offset \one, \at
    .cfi_rel_offset \other, \at + 8
    .endm

    .macro LOAD_PAIR one, other, at
    ldp     \one, \other, [sp, #\at]
    .cfi_restore \one
    .cfi_restore \other
    .endm

    .macro SAVE_STACK
    SIGN
    sub     sp, sp, #FRAME
    .cfi_adjust_cfa_offset FRAME
    SAVE_PAIR x29, x30, 0
    SAVE_PAIR x19, x20, 16
    SAVE_PAIR x21, x22, 32
    SAVE_PAIR x23, x24, 48
    SAVE_PAIR x25, x26, 64
    SAVE_PAIR x27, x28, 80
    SAVE_PAIR d8, d9, 96
    SAVE_PAIR d10, d11, 112
    SAVE_PAIR d12, d13, 128
    SAVE_PAIR d14, d15, 144
    mov     x9, sp
    str     x9, [x0]
    mov     sp, x1
    .endm

    .macro LOAD_STACK
    LOAD_PAIR x29, x30, 0
    LOAD_PAIR x19, x20, 16
    LOAD_PAIR x21, x22, 32
    LOAD_PAIR x23, x24, 48
    LOAD_PAIR x25, x26, 64
    LOAD_PAIR x27, x28, 80
    LOAD_PAIR d8, d9, 96
    LOAD_PAIR d10, d11, 112
    LOAD_PAIR d12, d13, 128
    LOAD_PAIR d14, d15, 144
    add     sp, sp, #FRAME
    .cfi_adjust_cfa_offset -FRAME
    CHECK
    .endm

    .macro GO_ON
    adrp    x9, switch_by_branch
    ldrb    w9, [x9, #:lo12:switch_by_branch]
    LOAD_STACK
    cbz     w9, 1f
    br      x30
1:  ret
    .endm

/* void switch_stack(void **from, void *to) */
    .globl  switch_stack
    .hidden switch_stack
    .type   switch_stack, %function
    .p2align 4
switch_stack:
    BEGIN_FRAME
    SAVE_STACK
    GO_ON
    .cfi_endproc
    .size   switch_stack, . - switch_stack

/* void switch_stack_alike(void **from, void *to) */
    .globl  switch_stack_alike
    .hidden switch_stack_alike
    .type   switch_stack_alike, %function
    .p2align 4
switch_stack_alike:
    BEGIN_FRAME
    SAVE_STACK
    LOAD_STACK
    ret
    .cfi_endproc
    .size   switch_stack_alike, . - switch_stack_alike

/* void switch_stack_call(void **from, void *to, void (*)(void *), void *) */
    .globl  switch_stack_call
    .hidden switch_stack_call
    .type   switch_stack_call, %function
    .p2align 4
switch_stack_call:
    BEGIN_FRAME
    SAVE_STACK
    mov     x29, sp                 /* the frame record of this stack */
    mov     x0, x3
    blr     x2
    GO_ON
    .cfi_endproc
    .size   switch_stack_call, . - switch_stack_call

/*
 * Where a new stack begins: x19 is the entry function.  There is no frame
 * above, and unwinders are told so; who looks in the middle of the switch
 * finds this address as a return address, and looks up what is before it.  No
 * landing pad: who comes here by branch is not checked.
 */
    .type   switch_entry, %function
    .p2align 4
switch_entry:
    .cfi_startproc
    .cfi_undefined x30
    .cfi_undefined x29
    nop
.Lentry:
    blr     x19
    brk     #1
    .cfi_endproc
    .size   switch_entry, . - switch_entry

/* void *switch_init(void *bottom, size_t size, void (*entry)(void)) */
    .globl  switch_init
    .hidden switch_init
    .type   switch_init, %function
    .p2align 4
switch_init:
    .cfi_startproc
    LANDING
    add     x16, x0, x1
    and     x16, x16, #-16          /* the stack pointer in switch_entry */
    adrp    x17, .Lentry
    add     x17, x17, #:lo12:.Lentry
#if defined(HINT_SIGN_1716)
    hint    #HINT_SIGN_1716
#endif
    sub     x0, x16, #FRAME
    stp     xzr, x17, [x0]          /* x29: the last frame record; x30 */
    stp     x2, xzr, [x0, #16]      /* x19: the entry function */
    stp     xzr, xzr, [x0, #32]
    stp     xzr, xzr, [x0, #48]
    stp     xzr, xzr, [x0, #64]
    stp     xzr, xzr, [x0, #80]
    stp     xzr, xzr, [x0, #96]
    stp     xzr, xzr, [x0, #112]
    stp     xzr, xzr, [x0, #128]
    stp     xzr, xzr, [x0, #144]
    ret
    .cfi_endproc
    .size   switch_init, . - switch_init

#define AT_HWCAP2  26
#define HWCAP2_BTI 17 /* the number of the bit */

/* Run by the loader; a switch that comes before it takes the ret. */
    .type   switch_look, %function
    .p2align 4
switch_look:
    BEGIN_FRAME
    SIGN
    sub     sp, sp, #16
    .cfi_adjust_cfa_offset 16
    SAVE_PAIR x29, x30, 0
    mov     x29, sp
    mov     x0, #AT_HWCAP2
    bl      getauxval
    mvn     x0, x0
    ubfx    x0, x0, #HWCAP2_BTI, #1
    adrp    x9, switch_by_branch
    strb    w0, [x9, #:lo12:switch_by_branch]
    LOAD_PAIR x29, x30, 0
    add     sp, sp, #16
    .cfi_adjust_cfa_offset -16
    CHECK
    ret
    .cfi_endproc
    .size   switch_look, . - switch_look

    .section .init_array, "aw", %init_array
    .p2align 3
    .xword  switch_look

    .bss
    .type   switch_by_branch, %object
switch_by_branch:
    .zero   1
    .size   switch_by_branch, 1

/* Tells the linker that this file does its part, or all have it off. */
#if defined(__ARM_FEATURE_BTI_DEFAULT)
#define NOTE_BTI 1
#else
#define NOTE_BTI 0
#endif
#if defined(__ARM_FEATURE_PAC_DEFAULT)
#define NOTE_PAC 2
#else
#define NOTE_PAC 0
#endif
#if NOTE_BTI + NOTE_PAC > 0
    .section .note.gnu.property, "a", %note
    .p2align 3
    .word   4, 16, 5                /* sizes of name and content; the type */
    .asciz  "GNU"
    .word   0xc0000000, 4           /* the features that all files have */
    .word   NOTE_BTI + NOTE_PAC, 0
#endif

    .section .note.GNU-stack, "", %progbits
