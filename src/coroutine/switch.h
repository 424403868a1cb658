/* SPDX-License-Identifier: MIT */
/*
 * The switch from one stack to another.  One file a processor in switch/, and
 * switch/ucontext.c for all others.
 *
 * What is kept across a switch is what the platform's calling convention
 * makes the callee keep, except the floating-point control words, which belong
 * to the thread (coroutine.h says so to users).
 */
#ifndef COAIO_COROUTINE_SWITCH_H
#define COAIO_COROUTINE_SWITCH_H

#include <stddef.h>

/*
 * Save the running stack in *from and go on with the stack to, which a
 * switch had saved or switch_init() made.  Returns when somebody switches
 * back.  As the last call of a function it becomes a jump, and then the way
 * back leads straight to that function's caller.
 */
void switch_stack(void **from, void *to);

/*
 * The same, quicker if the running stack has come to this call by the same
 * calls as the stack to had come to its own: the processor foretells returns
 * from the calls that it has seen, and they are the ones that the stack to
 * returns from now.  Slower if not.
 */
void switch_stack_alike(void **from, void *to);

/*
 * The same as switch_stack(), and call fn(arg) on the stack to before it goes
 * on: then nobody uses the stack that was left.  fn must not switch.
 */
void switch_stack_call(void **from, void *to, void (*fn)(void *arg),
                       void *arg);

/*
 * Make a stack of size bytes, whose lowest address is bottom, ready to run
 * entry(), which never returns.  Returns what to switch to.
 */
void *switch_init(void *bottom, size_t size, void (*entry)(void));

#endif
