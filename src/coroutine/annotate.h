/* SPDX-License-Identifier: MIT */
/*
 * Telling the sanitizers of a switch.  In builds without them, and with the
 * assembly switch, nothing of this is there and a switch is a jump.
 *
 * WRAPPED_SWITCH says that something has to happen on both sides of a switch:
 * leave before it, arrive after it on the other stack.
 */
#ifndef COAIO_COROUTINE_ANNOTATE_H
#define COAIO_COROUTINE_ANNOTATE_H

#include "coroutine/coroutine_int.h"

#if COAIO_ASAN || COAIO_TSAN || defined(COAIO_SWITCH_UCONTEXT)
#define WRAPPED_SWITCH 1
#else
#define WRAPPED_SWITCH 0
#endif

#if COAIO_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#if COAIO_TSAN
#include <sanitizer/tsan_interface.h>
#endif

/*
 * The running stack (of from, or the thread's own for NULL) is about to be
 * left for that of to.  Where *fake is to be kept until the way back; gone
 * says that there is no way back, since the coroutine has finished.
 */
static inline void annotate_leave(OsThread *thread, Coroutine *from,
                                  Coroutine *to, void **fake, bool gone)
{
    (void)thread, (void)from, (void)to, (void)fake, (void)gone;
#if COAIO_ASAN
    if (!thread->leader_bottom) {
        os_thread_stack_bounds(&thread->leader_bottom, &thread->leader_size);
    }
    __sanitizer_start_switch_fiber(
        gone ? NULL : fake, to ? to->stack_bottom : thread->leader_bottom,
        to ? to->stack_size : thread->leader_size);
#endif
#if COAIO_TSAN
    OsSignals before;

    if (!from) {
        thread->leader_fiber = __tsan_get_current_fiber();
    }
    /*
     * TSan puts signals off until the fiber that they interrupted calls it
     * again.  Left behind with this one, they would wait until it goes on,
     * and a loop would sleep over what their handlers schedule.
     */
    os_signals_hold(&before);
    __tsan_switch_to_fiber(to ? to->fiber : thread->leader_fiber, 0);
    os_signals_release(&before);
#endif
}

/* Arrived on a stack; fake is what leave kept for it, NULL for a new one. */
static inline void annotate_arrive(void *fake)
{
    (void)fake;
#if COAIO_ASAN
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
}

#endif
