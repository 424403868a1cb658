/* SPDX-License-Identifier: MIT */
/*
 * The names that every other header of coaio shares: the types, forward
 * declared once, and the few attributes that declarations carry.
 *
 * Conventions that hold in all headers:
 *
 *   co_…         for code that runs in a coroutine; may suspend it where the
 *                declaration says coroutine_fn.
 *   aio_…        legal outside coroutines; never suspends.
 *   coroutine_…  handles Coroutine objects.
 *   iothread_…   handles IOThread objects.
 *
 *   Errors are returned as negative errno values.  errno itself is
 *   unspecified after a call that may suspend; see co_errno().
 *   Times are int64_t nanoseconds and their names end in _ns; sizes are bytes.
 *   Misuse (a call that the thread table forbids, a coroutine entered twice)
 *   prints one line that names the parties to stderr and aborts.  So does
 *   whoever has to wake a loop and cannot, since its event fd was closed, say:
 *   the loop would sleep for ever.
 *   After fork() the child may only exec or _exit: the first coaio call that
 *   it makes aborts, but for those that only read or fill in what they are
 *   given (co_errno(), the clocks, the ..._init() of locks and timers).
 */
#ifndef COAIO_TYPES_H
#define COAIO_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define COAIO_BEGIN_DECLS extern "C" {
#define COAIO_END_DECLS }
#else
#define COAIO_BEGIN_DECLS
#define COAIO_END_DECLS
#endif

/* What the shared library exports. */
#define COAIO_API __attribute__((visibility("default")))

/*
 * Stands on every function that may suspend the calling coroutine.  Such a
 * function may only be called from a coroutine, that is, from another
 * coroutine_fn or from the entry function of a coroutine.
 */
#ifdef __clang__
#define coroutine_fn __attribute__((annotate("coroutine_fn")))
#else
#define coroutine_fn
#endif

#define COAIO_VERSION_MAJOR 0
#define COAIO_VERSION_MINOR 1
#define COAIO_VERSION_PATCH 0

/* Opaque objects. */
typedef struct Coroutine Coroutine;
typedef struct AioContext AioContext;
typedef struct AioBH AioBH;
typedef struct IOThread IOThread;

/* Objects that live wherever their user puts them. */
typedef struct AioTimer AioTimer;
typedef struct CoQueue CoQueue;
typedef struct CoMutex CoMutex;
typedef struct CoRwlock CoRwlock;
typedef struct CoSemaphore CoSemaphore;
typedef struct CoGroup CoGroup;

/* A part of some of them; the fields are the library's own. */
typedef struct CoWaiterList {
    void *head_; /* who waits, oldest first */
    void *tail_;
} CoWaiterList;

#endif
