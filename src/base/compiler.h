/* SPDX-License-Identifier: MIT */
/*
 * What the compiler can be told.
 */
#ifndef COAIO_BASE_COMPILER_H
#define COAIO_BASE_COMPILER_H

#include <stddef.h>

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/*
 * Have the line of memory that p points to brought near.  p is not followed: it
 * may point to nothing.  A function that does only this must be ALWAYS_INLINE:
 * GCC takes it for one that does nothing, and leaves out the call.
 */
#define prefetch(p) __builtin_prefetch(p)

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define NORETURN __attribute__((noreturn))
#define COLD __attribute__((cold, noinline))
#define PRINTF_FORMAT(fmt, args) __attribute__((format(printf, fmt, args)))
#define CACHE_LINE    64
#define CACHE_ALIGNED __attribute__((aligned(CACHE_LINE)))

/* The object that holds, as its member, what ptr points to. */
#define container_of(ptr, type, member)                                       \
    ((type *)(void *)((char *)(ptr) - offsetof(type, member)))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#if defined(__SANITIZE_ADDRESS__)
#define COAIO_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define COAIO_ASAN 1
#endif
#endif
#ifndef COAIO_ASAN
#define COAIO_ASAN 0
#endif

#if defined(COAIO_EXPLORE)
#define COAIO_TSAN 0 /* instrumented for the explorer */
#elif defined(__SANITIZE_THREAD__)
#define COAIO_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define COAIO_TSAN 1
#endif
#endif
#ifndef COAIO_TSAN
#define COAIO_TSAN 0
#endif

#endif
