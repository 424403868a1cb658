/* SPDX-License-Identifier: MIT */
/*
 * Coroutine: a function with a stack of its own, which can stop in the middle
 * (yield) and go on later (be entered again).
 *
 * Coroutines are asymmetric: coroutine_enter() runs one until it yields or
 * ends, and coroutine_yield() returns to whoever entered.  They may nest.
 *
 * Life cycle
 *
 *   coroutine_create() ──enter──> running <──enter / yield──> parked
 *                                   │
 *                                   └── entry function returns: finished, the
 *                                       pointer is dead and the stack goes
 *                                       back to the pool
 *
 *   One that was never entered is given back by coroutine_delete().
 *
 * Home
 *
 *   The home of a coroutine is the AioContext in which it resumes.  At first
 *   it is the context of the thread that created it, possibly none.
 *   aio_co_schedule() and aio_co_enter() move it (wake.h), and so does
 *   coroutine_enter() on a thread that runs another context, while the
 *   coroutine is parked and nobody has woken it.
 *
 *   A coroutine with a home resumes only on the thread of its home.  One
 *   without a home may be entered from any thread that has no context (or has
 *   one whose last reference has gone); the callers see to it that they do so
 *   one after the other.  It may take free locks, but where it would have to
 *   wait for a lock, it aborts with a line that names the lock.
 *
 * Stacks
 *
 *   A stack is 64 KiB unless CoroutineOptions asks for another size, with at
 *   least 16 KiB below it that no access gets past.  Compile code that runs
 *   in coroutines with -fstack-clash-protection, so that no large frame can
 *   jump over the guard.  Variable-length arrays and alloca() do not belong in
 *   coroutines.
 *
 *   The floating-point control words (rounding mode, exception masks) belong
 *   to the thread, not to the coroutine: set them back before a yield.
 *
 * Thread-locals
 *
 *   A coroutine may change threads across a yield, and compilers keep the
 *   addresses of thread-locals in registers.  Use the macros of tls.h for
 *   thread-locals, and co_errno() for errno.
 *
 * Thread table
 *
 *                                 outside a    inside a    signal
 *                                 coroutine    coroutine   handler
 *   coroutine_create[_full]          yes          yes        no
 *   coroutine_delete                 yes          yes        no
 *   coroutine_enter                  yes (1)      yes (1)    no
 *   coroutine_enter_if_inactive      yes (1)      yes (1)    no
 *   coroutine_yield                  no           yes        no
 *   coroutine_self, in_coroutine     yes          yes        yes
 *   coroutine_entered                yes (2)      yes (2)    no
 *   coroutine_context, _name         yes          yes        no
 *   co_errno                         yes          yes        no
 *   aio_install_overflow_handler     yes          yes        no
 *
 *   (1) on the home thread, or as "Home" above says
 *   (2) an answer that stays true only on the home thread
 */
#ifndef COAIO_COROUTINE_H
#define COAIO_COROUTINE_H

#include <coaio/types.h>

COAIO_BEGIN_DECLS

/* The function that a coroutine runs. */
typedef void CoroutineEntry(void *opaque);

/* What to do where a stack cannot be given a guard (coroutine_create_full). */
typedef enum CoroutineGuard {
    COROUTINE_GUARD_REQUIRED = 0, /* creation fails with -ENOMEM */
    COROUTINE_GUARD_PREFERRED,    /* goes on without; one warning a process */
} CoroutineGuard;

typedef struct CoroutineOptions {
    size_t size;           /* sizeof(CoroutineOptions) */
    const char *name;      /* for reports; not copied, must outlive the
                              coroutine; NULL: named after its address */
    size_t stack_size;     /* bytes; 0: 64 KiB; rounded up to a size class of
                              16 KiB to 8 MiB, more gives -EINVAL */
    CoroutineGuard guard;  /* default: required */
} CoroutineOptions;

/**
 * Create a coroutine that will run entry(opaque) when it is entered first.
 * Its home is the calling thread's context, which stays as long as coroutines
 * live there.  Aborts when memory runs out.
 *
 * Returns a coroutine that belongs to the caller until it is entered or woken.
 */
COAIO_API Coroutine *coroutine_create(CoroutineEntry *entry, void *opaque);

/**
 * The same with options (NULL: the defaults), and with errors.
 *
 * Returns 0 and fills *co, or leaves *co alone and returns
 *   -ENOMEM  no memory, no mappings or no guards left
 *   -EINVAL  stack_size is over 8 MiB, or options->size is not known
 */
COAIO_API int coroutine_create_full(Coroutine **co, CoroutineEntry *entry,
                                    void *opaque,
                                    const CoroutineOptions *options);

/**
 * Give back a coroutine that was never entered.  Aborts for any other: one
 * that has begun can only end by returning from its entry function.
 */
COAIO_API void coroutine_delete(Coroutine *co);

/**
 * Run co until it yields or finishes.  When the caller is not itself in a
 * coroutine, the coroutines that co woke in this context have run, too, when
 * the call returns (wake.h).
 *
 * To move a parked coroutine here from another context (see "Home"), first make
 * sure that the call which entered it there last has returned.
 *
 * Aborts if co is entered already, is scheduled or woken and has not run yet,
 * has a home while the calling thread has no context, or has finished (as long
 * as its memory is not another coroutine's; COAIO_DEBUG=1 in the environment
 * puts that off, see coaio.h).
 *
 * Barriers: what the caller wrote before is visible to co; what co wrote
 * before it yielded is visible to the caller.  Nothing beyond that.
 */
COAIO_API void coroutine_enter(Coroutine *co);

/**
 * coroutine_enter(), unless co is entered already: then do nothing.
 */
COAIO_API void coroutine_enter_if_inactive(Coroutine *co);

/**
 * Suspend the calling coroutine and return to whoever entered it.  Returns
 * when somebody enters it again, possibly on another thread.
 */
COAIO_API void coroutine_fn coroutine_yield(void);

/**
 * The running coroutine, or NULL outside one.
 */
COAIO_API Coroutine *coroutine_self(void);

/**
 * Whether the caller runs in a coroutine.
 */
static inline bool in_coroutine(void)
{
    return coroutine_self() != NULL;
}

/**
 * Whether co is entered: it runs, or has entered another one that runs.
 */
COAIO_API bool coroutine_entered(const Coroutine *co);

/**
 * The home of co, or NULL.  Borrowed: valid while co is, and does not move.
 */
COAIO_API AioContext *coroutine_context(const Coroutine *co);

/**
 * The name that CoroutineOptions gave, or NULL.
 */
COAIO_API const char *coroutine_name(const Coroutine *co);

/**
 * errno of the thread that runs the caller now.  A plain errno after a yield
 * may read that of the thread which ran it before.
 */
COAIO_API int co_errno(void);

/**
 * Report stack overflows.  Sets, once a process, a SIGSEGV and SIGBUS handler
 * that names the coroutine whose guard was hit, on stderr, and lets the
 * process die of the signal; every other fault is passed on to the handler
 * that was there before.  Gives the calling thread an alternate signal stack,
 * unless it has one.  Call it in each thread that enters coroutines; I/O
 * threads do so by themselves.
 *
 * Returns 0, or -ENOMEM; or another -errno where a sandbox forbids signal
 * handlers.  After an error it may be called again.
 */
COAIO_API int aio_install_overflow_handler(void);

COAIO_END_DECLS

#endif
