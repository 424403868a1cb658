/* SPDX-License-Identifier: MIT */
/*
 * os/ as the explorer has it: threads, locks, futexes, clocks; and what the
 * rest of os/ comes down to.
 *
 * Locks and conditions are scheduling points where threads share them.  A lock
 * hands views on like a release and an acquire; a futex call hands on nothing:
 * a system call is not a fence.
 */
#include "../machine.h"

#include "base/assert.h"
#include "os/clock.h"
#include "os/file.h"
#include "os/misc.h"
#include "os/overflow.h"
#include "os/thread.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#define HOOKS_MAX 4

bool os_forked;

/* --- the thread -----------------------------------------------------------*/

OsThread *os_thread(void)
{
    return &self()->os;
}

int os_errno(void)
{
    return errno;
}

static void (*hooks[HOOKS_MAX])(OsThread *thread);
static unsigned hook_count;

bool os_thread_prepare(OsThread *thread)
{
    thread->prepared = true;
    return true;
}

void os_thread_on_exit(void (*hook)(OsThread *thread))
{
    for (unsigned i = 0; i < hook_count; i++) {
        if (hooks[i] == hook) {
            return;
        }
    }
    hooks[hook_count++] = hook;
}

void twin_thread_exit(OsThread *thread);

void twin_thread_exit(OsThread *thread)
{
    if (!thread->prepared) {
        return;
    }
    thread->prepared = false;
    for (unsigned n = hook_count; n > 0; n--) {
        hooks[n - 1](thread);
    }
}

void os_misuse_forked(const char *call)
{
    misuse("%s called in a forked child", call);
}

void os_thread_stack_bounds(const void **bottom, size_t *size)
{
    *bottom = arena_stack(machine->current);
    *size = arena_stack_size();
}

int os_thread_start(OsThreadHandle *handle, const OsThreadStart *start)
{
    unsigned t;

    AT_CALL("thread start");
    machine_step();
    t = machine_start(start->run, start->arg);
    handle->thread = t;
    if (machine->tracing) {
        trace("thread", "%s is thread %u", start->name ? start->name : "it", t);
    }
    machine_step(); /* it may run before anything else does */
    return 0;
}

void os_thread_join(OsThreadHandle *handle)
{
    Thread *thread = &machine->thread[handle->thread];

    AT_CALL("join");
    machine_step();
    while (thread->state != THREAD_ENDED) {
        machine_block_for(handle->thread, thread, "the end");
    }
    view_join(&self()->now, &thread->now);
    if (machine->tracing) {
        trace("join", "thread %u", (unsigned)handle->thread);
    }
}

void os_thread_detach(OsThreadHandle *handle)
{
    machine->thread[handle->thread].detached = true;
}

/* Whoever calls it spins, too, which lets all others run. */
void os_thread_yield(void)
{
}

/* --- locks ----------------------------------------------------------------*/

/* In the memory of a pthread_mutex_t; zeroed: free. */
typedef struct Lock {
    uint32_t holder; /* its number + 1, or 0 */
} Lock;

static bool at_once(void)
{
    return machine->phase == PHASE_AT_ONCE;
}

static void lock(Lock *lock, const char *why)
{
    Location *location;
    char place[256];

    shadow_access_atomic((uintptr_t)lock, 4);
    location = at_once() ? location_use(lock, true) : NULL;
    if (location) {
        machine_step();
        shadow_access_atomic((uintptr_t)lock, 4);
    }
    if (lock->holder == machine->current + 1) {
        report_thread(self(), place, sizeof(place));
        explore_fail("deadlock", "thread %u takes a lock twice, in %s",
                     machine->current, place);
    }
    while (lock->holder != 0) {
        machine_block_for(lock->holder - 1, lock, why);
        shadow_access_atomic((uintptr_t)lock, 4);
    }
    lock->holder = machine->current + 1;
    arena_note_write((uintptr_t)lock);
    if (location) {
        location_acquire(location);
        if (machine->tracing) {
            trace("lock", "%p", (void *)lock);
        }
    }
}

static void unlock(Lock *lock)
{
    Location *location;

    shadow_access_atomic((uintptr_t)lock, 4);
    if (lock->holder != machine->current + 1) {
        explore_fail("failed check", "a lock is unlocked by a stranger");
    }
    location = at_once() ? location_use(lock, true) : NULL;
    if (location) {
        location_release(location);
    }
    lock->holder = 0;
    machine_unblock(lock, 1);
    if (location && machine->tracing) {
        trace("unlock", "%p", (void *)lock);
    }
}

void os_mutex_init(OsMutex *mutex)
{
    ((Lock *)mutex)->holder = 0;
}

void os_mutex_destroy(OsMutex *mutex)
{
    shadow_access_atomic((uintptr_t)mutex, 4);
    if (((Lock *)mutex)->holder != 0) {
        explore_fail("failed check", "a lock is destroyed while it is held");
    }
}

void os_mutex_lock(OsMutex *mutex)
{
    AT_CALL("os_mutex");
    lock((Lock *)mutex, "a lock");
}

void os_mutex_unlock(OsMutex *mutex)
{
    AT_CALL("os_mutex");
    unlock((Lock *)mutex);
}

void os_user_mutex_lock(pthread_mutex_t *mutex)
{
    AT_CALL("pthread_mutex_t");
    lock((Lock *)mutex, "the user's lock");
}

void os_user_mutex_unlock(pthread_mutex_t *mutex)
{
    AT_CALL("pthread_mutex_t");
    unlock((Lock *)mutex);
}

/* --- conditions -----------------------------------------------------------*/

void os_cond_init(OsCond *cond)
{
    (void)cond;
}

void os_cond_destroy(OsCond *cond)
{
    (void)cond;
}

static bool wait_until(OsCond *cond, OsMutex *mutex, int64_t deadline_ns)
{
    bool woken;

    unlock((Lock *)mutex);
    woken = machine_block(cond, "a condition", deadline_ns);
    lock((Lock *)mutex, "a lock");
    return woken;
}

void os_cond_wait(OsCond *cond, OsMutex *mutex)
{
    AT_CALL("os_cond");
    wait_until(cond, mutex, INT64_MAX);
}

bool os_cond_wait_ns(OsCond *cond, OsMutex *mutex, int64_t timeout_ns)
{
    AT_CALL("os_cond");
    return wait_until(cond, mutex, machine->now_ns + timeout_ns);
}

void os_cond_signal(OsCond *cond)
{
    machine_unblock(cond, 1);
}

void os_cond_broadcast(OsCond *cond)
{
    machine_unblock(cond, THREADS);
}

/* --- futexes --------------------------------------------------------------*/

void os_futex_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    AT_CALL("futex wait");
    machine_step();
    shadow_access_atomic((uintptr_t)word, 4);
    if (machine->tracing) {
        trace("futex wait", "%u, expected %u", *(volatile uint32_t *)word,
              expected);
    }
    if (*(volatile uint32_t *)word != expected) {
        return;
    }
    machine_block(word, "a futex",
                  timeout_ns < 0 ? INT64_MAX : machine->now_ns + timeout_ns);
}

/* The memory may be gone by now: an address is all that is used. */
void os_futex_wake(uint32_t *word, int n)
{
    AT_CALL("futex wake");
    machine_step();
    machine_unblock(word, n > THREADS ? THREADS : (unsigned)n);
    if (machine->tracing) {
        trace("futex wake", "%d", n);
    }
}

/* --- all else -------------------------------------------------------------*/

bool os_one_cpu;

unsigned os_cpu_count(void)
{
    return 2;
}

int64_t os_clock_monotonic_ns(void)
{
    return machine->now_ns;
}

int64_t os_clock_realtime_ns(void)
{
    return machine->now_ns;
}

const char *os_getenv(const char *name)
{
    (void)name;
    return NULL;
}

bool os_debug(void)
{
    return false;
}

uint64_t os_random(void)
{
    return 4; /* no test depends on it */
}

const char *os_shadow_stack(void)
{
    return NULL;
}

int os_install_fault_handler(OsFaultClaims *claims)
{
    (void)claims;
    return 0;
}

int os_signal_stack_install(void)
{
    return 0;
}

/* --- base/assert.h --------------------------------------------------------*/

void misuse(const char *format, ...)
{
    char line[512];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    explore_fail("misuse", "%s", line);
}

void invariant_failed(const char *condition, const char *file, int line)
{
    explore_fail("failed check", "invariant %s at %s:%d", condition, file,
                 line);
}

/* Warnings are for people. */
void warn_line(const char *format, ...)
{
    (void)format;
}
