/* SPDX-License-Identifier: MIT */
/*
 * Threads: the one thread-local of the library, hooks at the end of a thread,
 * the check for forked children, starting and joining, locks, futexes.
 *
 * Guarantees: os_thread() and os_errno() answer for the thread that calls
 * them, at that moment, however the caller was compiled.  Exit hooks run once
 * for each time a thread was prepared, newest registration first; not for the
 * main thread when the process exits.
 *
 * INVARIANTS
 *
 *   1. OsThread.prepared is set exactly while the key holds the thread, so
 *      that its destructor will run.
 *   2. hooks[0] to hooks[hook_count - 1] are set and never change.
 */
#include "os/thread.h"

#include "base/assert.h"
#include "base/atomic.h"
#include "os/clock.h"
#include "os/fault.h"
#include "os/memory.h"
#include "os/misc.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifdef __clang__
#define OPAQUE NOINLINE
#else
#define OPAQUE NOINLINE __attribute__((noclone))
#endif

#define HOOKS_MAX 4
#define NS_PER_S  1000000000

/* Named by the assembly of os/self.h, which compilers do not look into. */
_Thread_local OsThread os_thread_self
    __attribute__((tls_model("initial-exec"), visibility("hidden"), used));

/* What a library may take of the static block without asking for it. */
_Static_assert(sizeof(OsThread) < 256, "thread-locals under 256 bytes");

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool key_usable; /* written under once */
bool os_forked;         /* set in a child, by its only thread */

static OsMutex hook_lock = OS_MUTEX_INIT;
static void (*hooks[HOOKS_MAX])(OsThread *thread);
static unsigned hook_count; /* atomic; grows under hook_lock */

#ifdef OS_THREAD_IS_CALLED

/*
 * The empty asm keeps compilers from finding out that the same thread gets
 * the same answer, which is true, and that a function runs on one thread,
 * which is not.
 */
OPAQUE OsThread *os_thread(void)
{
    OsThread *thread = &os_thread_self;

    __asm__ volatile("" : "+r"(thread) : : "memory");
    return thread;
}

#endif

/* errno is a thread-local, too: the same holds for its address. */
OPAQUE int os_errno(void)
{
    int value = errno;

    __asm__ volatile("" : "+r"(value) : : "memory");
    return value;
}

/* --- the end of a thread, and fork ---------------------------------------- */

static void run_hooks(void *arg)
{
    OsThread *thread = arg;
    unsigned n = load_acquire(&hook_count);

    /*
     * First, since the destructor of another key may call the library after
     * this, or a hook may: then the thread is prepared again, and this runs
     * again.
     */
    thread->prepared = false;
    while (n > 0) {
        hooks[--n](thread);
    }
}

static void note_fork(void)
{
    os_forked = true;
}

static void set_up(void)
{
    key_usable = !os_fault("pthread_key_create") &&
                 pthread_key_create(&key, run_hooks) == 0;
    if (!key_usable) {
        warn_line("no thread-specific key is left: what threads keep is not "
                  "given back when they end");
    }
    if (os_fault("pthread_atfork") || pthread_atfork(NULL, NULL, note_fork)) {
        warn_line("no memory for pthread_atfork(): calls in forked children "
                  "are not recognised");
    }
}

/* Returns false for want of memory. */
static bool set_key(OsThread *thread)
{
    return !os_fault("pthread_setspecific") &&
           pthread_setspecific(key, thread) == 0;
}

bool os_thread_prepare(OsThread *thread)
{
    const char *without;

    os_check_fork("coaio");
    if (likely(thread->prepared)) {
        return true;
    }
    without = os_shadow_stack();
    if (unlikely(without != NULL)) {
        misuse("this thread runs with a shadow stack, and coroutines cannot "
               "switch that yet: start the program with GLIBC_TUNABLES=%s",
               without);
    }
    pthread_once(&once, set_up);
    if (key_usable) {
        thread->prepared = set_key(thread);
    }
    return thread->prepared || !key_usable;
}

void os_thread_on_exit(void (*hook)(OsThread *thread))
{
    unsigned n, i;

    os_mutex_lock(&hook_lock);
    n = load_relaxed(&hook_count);
    for (i = 0; i < n && hooks[i] != hook; i++) {
    }
    if (i == n) {
        invariant(n < HOOKS_MAX);
        hooks[n] = hook;
        store_release(&hook_count, n + 1);
    }
    os_mutex_unlock(&hook_lock);
}

void os_misuse_forked(const char *call)
{
    misuse("%s called in a forked child: only exec or _exit may follow fork",
           call);
}

#if COAIO_TSAN

void os_signals_hold(OsSignals *before)
{
    sigset_t all;

    sigfillset(&all);
    /* On the way out of it TSan runs what it has put off. */
    pthread_sigmask(SIG_SETMASK, &all, &before->mask);
}

void os_signals_release(const OsSignals *before)
{
    pthread_sigmask(SIG_SETMASK, &before->mask, NULL);
}

#endif

void os_thread_stack_bounds(const void **bottom, size_t *size)
{
    pthread_attr_t attr;
    void *address;

    *bottom = NULL;
    *size = 0;
    if (os_fault("pthread_getattr_np") ||
        pthread_getattr_np(pthread_self(), &attr)) {
        return;
    }
    if (!pthread_attr_getstack(&attr, &address, size)) {
        *bottom = address;
    }
    pthread_attr_destroy(&attr);
}

/* --- starting ------------------------------------------------------------- */

/*
 * What a new thread is told.  Owner: the new thread, which frees it; but with
 * CPUs the starter waits for `placed` and frees it.
 */
typedef struct Starting {
    void (*run)(void *arg);
    void *arg;
    cpu_set_t *cpus; /* NULL: all */
    size_t cpus_size;
    uint32_t placed; /* atomic futex; 0, or 1 - (0 or -errno) */
    char name[16];
} Starting;

/* Returns 0 or -errno. */
static int set_cpus(const cpu_set_t *cpus, size_t size)
{
    int error = os_fault("sched_setaffinity");

    if (error) {
        return -error;
    }
    return sched_setaffinity(0, size, cpus) ? -errno : 0;
}

/* The same. */
static int get_cpus(cpu_set_t *cpus, size_t size)
{
    int error = os_fault("sched_getaffinity");

    if (error) {
        return -error;
    }
    return sched_getaffinity(0, size, cpus) ? -errno : 0;
}

/* Move the calling thread to exactly these CPUs.  Returns 0 or -errno. */
static int move_to(const cpu_set_t *cpus, size_t size)
{
    cpu_set_t *now;
    int result = set_cpus(cpus, size);

    if (result < 0) {
        return result;
    }
    now = os_alloc(size);
    if (!now) {
        return -ENOMEM;
    }
    result = get_cpus(now, size);
    /* The kernel passes over CPUs that it does not have, if it has others. */
    if (result == 0 && !CPU_EQUAL_S(size, now, cpus)) {
        result = -EINVAL;
    }
    os_free(now);
    return result;
}

static void *thread_main(void *opaque)
{
    Starting *starting = opaque;
    void (*run)(void *) = starting->run;
    void *arg = starting->arg;
    int result;

    if (starting->name[0] && !os_fault("pthread_setname_np")) {
        pthread_setname_np(pthread_self(), starting->name);
    }
    if (!starting->cpus) {
        os_free(starting);
        run(arg);
        return NULL;
    }
    result = move_to(starting->cpus, starting->cpus_size);
    /*
     * [thread-start/A] The starter frees the record, and the futex in it,
     * as soon as it sees this; waking an address that is gone is harmless.
     */
    store_release(&starting->placed, (uint32_t)(1 - result));
    os_futex_wake(&starting->placed, 1);
    if (result == 0) {
        run(arg);
    }
    return NULL;
}

/* One, if the system does not tell. */
static unsigned count_processors(int name)
{
    long n = os_fault("sysconf") ? -1 : sysconf(name);

    return n > 0 ? (unsigned)n : 1;
}

/* Fill in starting->cpus.  Returns 0 or -errno. */
static int describe_cpus(Starting *starting, const OsThreadStart *start)
{
    unsigned most = 0;
    unsigned all;
    size_t i;

    for (i = 0; i < start->n_cpus; i++) {
        most = start->cpus[i] > most ? start->cpus[i] : most;
    }
    /* No kernel has more; keeps the set small whatever the caller says. */
    if (most >= 1 << 16) {
        return -EINVAL;
    }
    /* The kernel wants room for all that it has, to answer with. */
    all = count_processors(_SC_NPROCESSORS_CONF);
    most = most < all ? all : most;
    most = most < CPU_SETSIZE ? CPU_SETSIZE - 1 : most;
    starting->cpus_size = CPU_ALLOC_SIZE(most + 1);
    starting->cpus = os_alloc(starting->cpus_size);
    if (!starting->cpus) {
        return -ENOMEM;
    }
    for (i = 0; i < start->n_cpus; i++) {
        CPU_SET_S(start->cpus[i], starting->cpus_size, starting->cpus);
    }
    return 0;
}

/* Create the thread with its signals blocked.  Returns 0 or -errno. */
static int create_blocked(OsThreadHandle *handle, Starting *starting)
{
    sigset_t all, before;
    int error = os_fault("thread");

    if (error) {
        return -error;
    }
    /*
     * Not those that a thread raises by a fault of its own: the kernel ends
     * the process when they are blocked, and no handler gets to report.
     */
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGILL);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGTRAP);
    sigdelset(&all, SIGSYS);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&handle->thread, NULL, thread_main, starting);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -error;
}

/* Wait until the new thread has moved.  Returns 0 or -errno. */
static int await_placed(OsThreadHandle *handle, Starting *starting)
{
    uint32_t placed;
    int result;

    /* [thread-start/B] pairs with [thread-start/A] in thread_main(). */
    while ((placed = load_acquire(&starting->placed)) == 0) {
        os_futex_wait(&starting->placed, 0, -1);
    }
    result = 1 - (int)placed;
    if (result < 0) {
        os_thread_join(handle);
    }
    return result;
}

int os_thread_start(OsThreadHandle *handle, const OsThreadStart *start)
{
    bool placing = start->cpus && start->n_cpus > 0;
    Starting *starting = os_alloc(sizeof(*starting));
    int result = 0;

    if (!starting) {
        return -ENOMEM;
    }
    starting->run = start->run;
    starting->arg = start->arg;
    if (start->name) {
        memcpy(starting->name, start->name,
               strnlen(start->name, sizeof(starting->name) - 1));
    }
    if (placing) {
        result = describe_cpus(starting, start);
    }
    if (result == 0) {
        result = create_blocked(handle, starting);
        if (result == 0 && !placing) {
            return 0; /* the thread frees it */
        }
    }
    if (result == 0) {
        result = await_placed(handle, starting);
    }
    os_free(starting->cpus);
    os_free(starting);
    return result;
}

void os_thread_join(OsThreadHandle *handle)
{
    int error = pthread_join(handle->thread, NULL);

    invariant(!error);
}

void os_thread_detach(OsThreadHandle *handle)
{
    int error = pthread_detach(handle->thread);

    invariant(!error);
}

void os_thread_yield(void)
{
    os_count(OS_COUNT_SYSCALLS);
    sched_yield();
}

/* --- locks ---------------------------------------------------------------- */

void os_mutex_init(OsMutex *mutex)
{
    int error = pthread_mutex_init(&mutex->mutex, NULL);

    invariant(!error);
}

void os_mutex_destroy(OsMutex *mutex)
{
    int error = pthread_mutex_destroy(&mutex->mutex);

    invariant(!error);
}

void os_mutex_lock(OsMutex *mutex)
{
    int error;

    delay_point();
    error = pthread_mutex_lock(&mutex->mutex);

    invariant(!error);
}

void os_mutex_unlock(OsMutex *mutex)
{
    int error = pthread_mutex_unlock(&mutex->mutex);

    invariant(!error);
    delay_point();
}

void os_cond_init(OsCond *cond)
{
    pthread_condattr_t attr;
    int error = pthread_condattr_init(&attr);

    invariant(!error);
    error = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    invariant(!error);
    error = pthread_cond_init(&cond->cond, &attr);
    invariant(!error);
    pthread_condattr_destroy(&attr);
}

void os_cond_destroy(OsCond *cond)
{
    int error = pthread_cond_destroy(&cond->cond);

    invariant(!error);
}

void os_cond_wait(OsCond *cond, OsMutex *mutex)
{
    int error = pthread_cond_wait(&cond->cond, &mutex->mutex);

    invariant(!error);
}

bool os_cond_wait_ns(OsCond *cond, OsMutex *mutex, int64_t timeout_ns)
{
    int64_t now = os_clock_monotonic_ns();
    struct timespec until;
    int error;

    if (timeout_ns < 0) {
        timeout_ns = 0;
    }
    if (timeout_ns > INT64_MAX - now) {
        timeout_ns = INT64_MAX - now;
    }
    until.tv_sec = (now + timeout_ns) / NS_PER_S;
    until.tv_nsec = (now + timeout_ns) % NS_PER_S;
    error = pthread_cond_timedwait(&cond->cond, &mutex->mutex, &until);
    invariant(error == 0 || error == ETIMEDOUT);
    return error == 0;
}

void os_cond_signal(OsCond *cond)
{
    delay_point();
    pthread_cond_signal(&cond->cond);
}

void os_cond_broadcast(OsCond *cond)
{
    delay_point();
    pthread_cond_broadcast(&cond->cond);
}

void os_user_mutex_lock(pthread_mutex_t *mutex)
{
    int error;

    delay_point();
    error = pthread_mutex_lock(mutex);

    /* A robust mutex whose owner has died is held all the same. */
    if (error && error != EOWNERDEAD) {
        misuse("the pthread_mutex_t %p that a queue was given cannot be "
               "locked: error %d",
               (void *)mutex, error);
    }
}

void os_user_mutex_unlock(pthread_mutex_t *mutex)
{
    int error = pthread_mutex_unlock(mutex);

    if (error) {
        misuse("the pthread_mutex_t %p that a queue was given cannot be "
               "unlocked: error %d",
               (void *)mutex, error);
    }
    delay_point();
}

/* --- futexes -------------------------------------------------------------- */

void os_futex_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
    struct timespec timeout;

    if (COAIO_TSAN && (timeout_ns < 0 || timeout_ns > 10000000)) {
        /* TSan does not know this call and may have put a signal off. */
        timeout_ns = 10000000;
    }
    timeout.tv_sec = timeout_ns / NS_PER_S;
    timeout.tv_nsec = timeout_ns % NS_PER_S;
    os_count(OS_COUNT_SYSCALLS);
    if (os_fault("futex_wait")) {
        return;
    }
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected,
            timeout_ns < 0 ? NULL : &timeout, NULL, 0);
}

/* Fails only where there is nothing at word, and nobody who waits there. */
void os_futex_wake(uint32_t *word, int n)
{
    os_count(OS_COUNT_SYSCALLS);
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* --- processors ----------------------------------------------------------- */

unsigned os_cpu_count(void)
{
    cpu_set_t cpus;

    /* A machine with more CPUs than fit says EINVAL; then count them all. */
    if (get_cpus(&cpus, sizeof(cpus)) == 0) {
        return (unsigned)CPU_COUNT(&cpus);
    }
    return count_processors(_SC_NPROCESSORS_ONLN);
}

bool os_one_cpu;

/* Before main() gives its threads places of their own. */
__attribute__((constructor)) static void count_cpus(void)
{
    os_one_cpu = os_cpu_count() == 1;
}
