/* SPDX-License-Identifier: MIT */
/*
 * The atomics of coaio: every access to memory that threads share without a
 * lock goes through here and names its order.  There is no default.
 *
 * A test build replaces this file (each operation is then a scheduling point
 * of an explorer), so nothing else in the tree may use the compiler's atomics.
 *
 * Rules (docs/memory-ordering.md): data travels by acquire and release
 * operations on the location itself; fences stand only where store-buffering
 * order is needed, and a location that takes part in such a protocol is never
 * accessed with seq_cst operations besides.
 *
 * In test builds (COAIO_TESTING) each read-modify-write and each fence counts
 * itself: "no locked operation here" is tested by count.  In a build for soak
 * (COAIO_DELAYS, src/os/delay.c) each access may, beside, hold its thread up
 * for a random while: before it, so that others come first; and after it, if
 * it writes, since that is when others may see, run and free what this thread
 * still has in its hands.
 */
#ifndef COAIO_BASE_ATOMIC_H
#define COAIO_BASE_ATOMIC_H

#include <stdbool.h>
#include <stdint.h>

#ifdef COAIO_TESTING
void os_count_locked(void);
#define BASE_COUNT_LOCKED() os_count_locked()
#else
#define BASE_COUNT_LOCKED() ((void)0)
#endif

#ifdef COAIO_DELAYS
extern bool os_delays; /* written while there is one thread */
void os_delay(void);
/* Here the thread may be held up.  For os/, too, before and after what makes
 * threads meet and is no access to memory. */
#define delay_point() (__builtin_expect(os_delays, 0) ? os_delay() : (void)0)
/* access is evaluated between two points.  It contains no read-modify-write of
 * its own: the name in there would hide this one. */
#define BASE_AROUND(access)                                                   \
    __extension__({                                                           \
        delay_point();                                                        \
        __auto_type base_found = (access);                                    \
        delay_point();                                                        \
        base_found;                                                           \
    })
#else
#define delay_point() ((void)0)
#define BASE_AROUND(access) (access)
#endif

#define BASE_LOAD(p, order) (delay_point(), __atomic_load_n((p), order))
#define BASE_STORE(p, v, order)                                               \
    (delay_point(), __atomic_store_n((p), (v), order), delay_point())
#define BASE_RMW(access) (BASE_COUNT_LOCKED(), BASE_AROUND(access))

#define load_relaxed(p) BASE_LOAD(p, __ATOMIC_RELAXED)
#define load_acquire(p) BASE_LOAD(p, __ATOMIC_ACQUIRE)
#define store_relaxed(p, v) BASE_STORE(p, v, __ATOMIC_RELAXED)
#define store_release(p, v) BASE_STORE(p, v, __ATOMIC_RELEASE)

#define xchg_relaxed(p, v)                                                    \
    BASE_RMW(__atomic_exchange_n((p), (v), __ATOMIC_RELAXED))
#define xchg_acquire(p, v)                                                    \
    BASE_RMW(__atomic_exchange_n((p), (v), __ATOMIC_ACQUIRE))
#define xchg_release(p, v)                                                    \
    BASE_RMW(__atomic_exchange_n((p), (v), __ATOMIC_RELEASE))
#define xchg_acq_rel(p, v)                                                    \
    BASE_RMW(__atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL))

/*
 * Compare and swap, strong.  Fills *expected with what was found on failure,
 * and then has the order that stands second.
 */
#define BASE_CAS(p, expected, v, order, failed)                               \
    BASE_RMW(__atomic_compare_exchange_n((p), (expected), (v), false, order,  \
                                         failed))
#define cas_relaxed(p, expected, v)                                           \
    BASE_CAS(p, expected, v, __ATOMIC_RELAXED, __ATOMIC_RELAXED)
#define cas_acquire(p, expected, v)                                           \
    BASE_CAS(p, expected, v, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)
#define cas_release(p, expected, v)                                           \
    BASE_CAS(p, expected, v, __ATOMIC_RELEASE, __ATOMIC_RELAXED)
#define cas_acq_rel(p, expected, v)                                           \
    BASE_CAS(p, expected, v, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)

#define fetch_add_relaxed(p, v)                                               \
    BASE_RMW(__atomic_fetch_add((p), (v), __ATOMIC_RELAXED))
#define fetch_add_release(p, v)                                               \
    BASE_RMW(__atomic_fetch_add((p), (v), __ATOMIC_RELEASE))
#define fetch_add_acq_rel(p, v)                                               \
    BASE_RMW(__atomic_fetch_add((p), (v), __ATOMIC_ACQ_REL))
#define fetch_sub_relaxed(p, v)                                               \
    BASE_RMW(__atomic_fetch_sub((p), (v), __ATOMIC_RELAXED))
#define fetch_sub_acq_rel(p, v)                                               \
    BASE_RMW(__atomic_fetch_sub((p), (v), __ATOMIC_ACQ_REL))
#define fetch_or_acq_rel(p, v)                                                \
    BASE_RMW(__atomic_fetch_or((p), (v), __ATOMIC_ACQ_REL))
#define fetch_and_acq_rel(p, v)                                               \
    BASE_RMW(__atomic_fetch_and((p), (v), __ATOMIC_ACQ_REL))

/* Order everything before against everything after, stores before loads too. */
#define fence_seq_cst()                                                       \
    (BASE_COUNT_LOCKED(), delay_point(),                                      \
     __atomic_thread_fence(__ATOMIC_SEQ_CST))

/*
 * The same, directly after a read-modify-write of this thread.  On x86 that
 * was a full barrier already, and only the compiler needs to be told.
 */
#if defined(__x86_64__) || defined(__i386__)
#define fence_seq_cst_after_rmw() __atomic_signal_fence(__ATOMIC_SEQ_CST)
#else
#define fence_seq_cst_after_rmw() fence_seq_cst()
#endif

/* Order against a signal handler of the same thread only. */
#define fence_signal() __atomic_signal_fence(__ATOMIC_SEQ_CST)

/* Tell the processor that this is a spinning loop. */
static inline void spin_hint(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#elif defined(__riscv)
    /* pause, by number for older assemblers; processors without it pass over
     * it. */
    __asm__ volatile(".4byte 0x0100000f" ::: "memory");
#else
    __asm__ volatile("" ::: "memory");
#endif
}

#endif
