/* SPDX-License-Identifier: MIT */
/*
 * Threads, and all that is local to one.
 *
 * struct OsThread holds every thread-local of the library.  It is reached by
 * os_thread() alone, which no compiler sees through (os/self.h), so that none
 * can keep the address across a switch that moves a coroutine to another
 * thread.  Whoever calls os_thread() must not use the result after anything
 * that may suspend.
 */
#ifndef COAIO_OS_THREAD_H
#define COAIO_OS_THREAD_H

#include "base/atomic.h"
#include "base/compiler.h"
#include "base/list.h"
#include "os/self.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct Coroutine;
struct AioContext;

typedef struct OsThread {
    struct Coroutine *current;  /* the running coroutine; NULL outside */
    void *leader_sp;            /* the thread's own stack, while it enters */
    struct AioContext *context; /* bound to this thread, or NULL */
    Fifo deferred;              /* of Coroutine.link: woken by coroutines */

    FifoNode *pool; /* of Coroutine.link: free stacks of the default size */
    unsigned pool_size;
    unsigned pool_limit; /* how many it may hold; 0 until it is prepared */

    bool prepared;             /* os_thread_prepare() was here */
    bool overflow_ready;       /* has an alternate signal stack */
    void *signal_stack;        /* ours, or NULL */
    void *leader_fiber;        /* TSan's handle of the thread's own stack */
    const void *leader_bottom; /* ASan's idea of it */
    size_t leader_size;
    void (*after_switch)(void *); /* ucontext only: to call after a switch */
    void *after_switch_arg;
#ifdef COAIO_TESTING
    uint64_t locked_operations;
#endif
#ifdef COAIO_DELAYS
    uint64_t delay_random; /* its generator of os/delay.c; 0: not yet begun */
    uint32_t delay_left;   /* points until it is held up */
#endif
} OsThread;

/* errno of this thread now, for co_errno(). */
int os_errno(void);

/*
 * Called before a thread first does what must be undone when it ends: makes
 * the hooks below run at its end.  Also checks that the process did not fork.
 * Cheap once done.
 *
 * Returns whether that was done, or can never be (the process has no key left,
 * which is said once); if not, for want of memory, the next call tries again.
 */
bool os_thread_prepare(OsThread *thread);

/*
 * Have hook called in each prepared thread that ends; at most four of them,
 * set once, at the first use of the module that needs it.
 */
void os_thread_on_exit(void (*hook)(OsThread *thread));

/*
 * This process was forked off a coaio process.  Set before fork() returns in
 * the child, which has one thread then: no two threads ever meet here.
 */
extern bool os_forked;

COLD NORETURN void os_misuse_forked(const char *call);

/* Abort, naming the call, if so.  Cheap, and signal-safe. */
static inline void os_check_fork(const char *call)
{
    if (unlikely(os_forked)) {
        os_misuse_forked(call);
    }
}

#if COAIO_TSAN
typedef struct OsSignals {
    sigset_t mask;
} OsSignals;

/* Let no signal interrupt this thread, when the handlers of those that have,
 * and that TSan has put off, have run; and let them come again. */
void os_signals_hold(OsSignals *before);
void os_signals_release(const OsSignals *before);
#endif

/* Where the calling thread's own stack lies. */
void os_thread_stack_bounds(const void **bottom, size_t *size);

typedef struct OsThreadStart {
    const char *name; /* at most 15 bytes are used */
    void (*run)(void *arg);
    void *arg;
    const unsigned *cpus; /* NULL: all */
    size_t n_cpus;
} OsThreadStart;

typedef struct OsThreadHandle {
    pthread_t thread;
} OsThreadHandle;

/*
 * Start a thread with all signals blocked but those of its own faults (SIGSEGV,
 * SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS).  Returns 0, or -EAGAIN, -ENOMEM, or
 * -EINVAL for CPUs that do not exist.
 */
int os_thread_start(OsThreadHandle *handle, const OsThreadStart *start);
void os_thread_join(OsThreadHandle *handle);
/* Let it end by itself; it is not joined. */
void os_thread_detach(OsThreadHandle *handle);
/* Let others run that wait for this CPU. */
void os_thread_yield(void);

/* Mutual exclusion between threads, for what is not hot.  Zeroed: unlocked. */
typedef struct OsMutex {
    pthread_mutex_t mutex;
} OsMutex;

#define OS_MUTEX_INIT             \
    {                             \
        PTHREAD_MUTEX_INITIALIZER \
    }

void os_mutex_init(OsMutex *mutex);
void os_mutex_destroy(OsMutex *mutex);
void os_mutex_lock(OsMutex *mutex);
void os_mutex_unlock(OsMutex *mutex);

/* A condition variable on the monotonic clock. */
typedef struct OsCond {
    pthread_cond_t cond;
} OsCond;

void os_cond_init(OsCond *cond);
void os_cond_destroy(OsCond *cond);
void os_cond_wait(OsCond *cond, OsMutex *mutex);
/* Returns false if timeout_ns passed. */
bool os_cond_wait_ns(OsCond *cond, OsMutex *mutex, int64_t timeout_ns);
void os_cond_signal(OsCond *cond);
void os_cond_broadcast(OsCond *cond);

/* The user's own lock, that a CoQueue was given. */
void os_user_mutex_lock(pthread_mutex_t *mutex);
void os_user_mutex_unlock(pthread_mutex_t *mutex);

/*
 * Sleep while *word is expected, until os_futex_wake() or, with timeout_ns not
 * below 0, until it has passed.  May return early.
 */
void os_futex_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns);
void os_futex_wake(uint32_t *word, int n);

/* How many processors the calling thread may run on. */
unsigned os_cpu_count(void);

/*
 * The process had one processor when the library was loaded, and is taken to
 * have one still: who looks again and again there only keeps from running whom
 * it waits for.
 */
extern bool os_one_cpu;

#endif
