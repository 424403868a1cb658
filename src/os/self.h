/* SPDX-License-Identifier: MIT */
/*
 * os_thread(): which OsThread is the calling thread's.
 *
 * A compiler takes it for granted that a function runs on one thread, and may
 * keep the address of a thread-local across a call.  A coroutine may change
 * threads in that call.  So the address is got in a way that no compiler sees
 * through: by a volatile asm that asks the processor anew each time, or, where
 * there is none for the processor, by a function that is never inlined.
 *
 * Effect: none.  Barriers: of the compiler, as any call is.  Signal-safe.
 */
#ifndef COAIO_OS_SELF_H
#define COAIO_OS_SELF_H

#include <stdint.h>

struct OsThread;

/*
 * Inline, since each function of the hot paths begins with it: where it is
 * not, each of them needs a frame.  The variable itself, os_thread_self, is
 * declared nowhere, so that nobody reads it in another way.
 */
#if defined(__x86_64__) && defined(__LP64__)

static inline struct OsThread *os_thread(void)
{
    struct OsThread *thread;

    __asm__ volatile("movq %%fs:0, %0\n\t"
                     "addq os_thread_self@gottpoff(%%rip), %0"
                     : "=r"(thread)
                     :
                     : "memory");
    return thread;
}

#elif defined(__aarch64__) && defined(__LP64__)

static inline struct OsThread *os_thread(void)
{
    struct OsThread *thread;
    uintptr_t offset;

    __asm__ volatile("mrs %0, tpidr_el0\n\t"
                     "adrp %1, :gottprel:os_thread_self\n\t"
                     "ldr %1, [%1, :gottprel_lo12:os_thread_self]\n\t"
                     "add %0, %0, %1"
                     : "=&r"(thread), "=&r"(offset)
                     :
                     : "memory");
    return thread;
}

#elif defined(__riscv) && defined(__LP64__)

static inline struct OsThread *os_thread(void)
{
    struct OsThread *thread;

    __asm__ volatile("la.tls.ie %0, os_thread_self\n\t"
                     "add %0, %0, tp"
                     : "=&r"(thread)
                     :
                     : "memory");
    return thread;
}

#else

#define OS_THREAD_IS_CALLED 1
struct OsThread *os_thread(void);

#endif

#endif
