/* SPDX-License-Identifier: MIT */
/*
 * Thread-locals that are safe in coroutines.
 *
 * A coroutine may change threads across a yield.  A compiler is free to compute
 * the address of a thread-local once and keep it, and then uses the variable
 * of the thread that the coroutine has left.  These macros reach the variable
 * through functions that are never inlined:
 *
 *     CO_TLS_DECLARE(int, depth)          in a header
 *     CO_TLS_DEFINE(int, depth)           in one source file, or
 *     CO_TLS_DEFINE_STATIC(int, depth)    in the only file that uses it
 *
 *     set_depth(get_depth() + 1);         int get_depth(void)
 *     int *p = get_ptr_depth();           void set_depth(int)
 *                                         int *get_ptr_depth(void): do not
 *                                         keep the pointer across a yield
 *
 * Each variable starts as all zeroes.
 */
#ifndef COAIO_TLS_H
#define COAIO_TLS_H

#ifdef __cplusplus
#define CO_TLS_STORAGE_ thread_local
#else
#define CO_TLS_STORAGE_ _Thread_local
#endif

/* The empty asm keeps link-time optimisers from seeing a pure function. */
#ifdef __clang__
#define CO_TLS_NOINLINE_ __attribute__((noinline, unused))
#else
#define CO_TLS_NOINLINE_ __attribute__((noinline, noclone, unused))
#endif

#define CO_TLS_DECLARE(type, var)                                             \
    type get_##var(void);                                                     \
    void set_##var(type value);                                               \
    type *get_ptr_##var(void);

#define CO_TLS_DEFINE_(linkage, type, var)                                    \
    static CO_TLS_STORAGE_ type co_tls_##var;                                 \
    CO_TLS_NOINLINE_ linkage type *get_ptr_##var(void) \
    {                                                                         \
        type *ptr = &co_tls_##var;                                            \
        __asm__ volatile("" : "+r"(ptr));                                     \
        return ptr;                                                           \
    }                                                                         \
    CO_TLS_NOINLINE_ linkage type get_##var(void)     \
    {                                                                         \
        return *get_ptr_##var();                                              \
    }                                                                         \
    CO_TLS_NOINLINE_ linkage void set_##var(type value) \
    {                                                                         \
        *get_ptr_##var() = value;                                             \
    }

#define CO_TLS_DEFINE(type, var)                                              \
    CO_TLS_DECLARE(type, var)                                                 \
    CO_TLS_DEFINE_(, type, var)

#define CO_TLS_DEFINE_STATIC(type, var) CO_TLS_DEFINE_(static, type, var)

#endif
