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

struct OsThread;

#if defined(__x86_64__) && defined(__LP64__)

/*
 * Inline, since each function of the hot paths begins with it.  The variable
 * itself, os_thread_self, is declared nowhere, so that nobody reads it in
 * another way.
 */
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

#else

#define OS_THREAD_IS_CALLED 1
struct OsThread *os_thread(void);

#endif

#endif
