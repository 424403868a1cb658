/* SPDX-License-Identifier: MIT */
/*
 * Stack switch for every POSIX system that has <ucontext.h>.  Correct, and
 * slow: getcontext() and setcontext() save and set the signal mask with a
 * system call each.
 *
 * A saved stack is represented by the address of the ucontext_t that lies on
 * it.  All switches go through the wrapper in coroutine.c, which also does what
 * is to be called after one: so there is no switch_stack_call() here, and no
 * switch_stack_alike().
 */
#include "base/assert.h"
#include "coroutine/switch.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

/*
 * Not swapcontext(): in a program with ASan that prints a warning of its own,
 * for those who do not tell it where they go.
 */
void switch_stack(void **from, void *to)
{
    ucontext_t here;
    ucontext_t *there = to;
    volatile bool gone = false;

    if (getcontext(&here) < 0) {
        misuse("getcontext failed: this system cannot switch stacks");
    }
    if (gone) {
        return; /* somebody has switched back */
    }
    gone = true;
    /*
     * A saved context carries the signal mask of the thread that it was saved
     * on, and would impose it on this one, where signals are blocked, or are
     * not, for reasons of its own.
     */
    there->uc_sigmask = here.uc_sigmask;
    *from = &here;
    setcontext(there);
    misuse("setcontext failed: this system cannot switch stacks");
}

void *switch_init(void *bottom, size_t size, void (*entry)(void))
{
    /* The record lies at the top of the stack that it describes. */
    uintptr_t top = ((uintptr_t)bottom + size - sizeof(ucontext_t)) &
                    ~(uintptr_t)63;
    ucontext_t *context = (ucontext_t *)top;

    memset(context, 0, sizeof(*context));
    if (getcontext(context) < 0) {
        misuse("getcontext failed: this system cannot switch stacks");
    }
    context->uc_stack.ss_sp = bottom;
    context->uc_stack.ss_size = top - (uintptr_t)bottom;
    context->uc_link = NULL;
    makecontext(context, entry, 0);
    return context;
}
