/* SPDX-License-Identifier: MIT */
/*
 * The handler for faults on guards, and the alternate stacks that it runs on.
 *
 * Guarantees: a fault that is not ours arrives at the previous handler as if
 * this one were not there, but for the stack that it runs on, which is the
 * alternate one.  No alternate stack is replaced.  Coroutines do not matter
 * here: an alternate stack belongs to the kernel's thread, and is the same
 * whatever stack is current.
 *
 * INVARIANTS
 *
 *   1. claimer is written before any handler is set, and previous before that
 *      of its signal is; only previous changes afterwards, by SA_RESETHAND.
 *      It is never our own handler, which would pass a fault on to itself.
 *   2. OsThread.signal_stack is NULL or a mapping of stack_mapping_size()
 *      bytes, whose lowest page is a guard.
 */
#include "os/overflow.h"

#include "base/assert.h"
#include "base/atomic.h"
#include "os/fault.h"
#include "os/memory.h"
#include "os/thread.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LINE_SIZE          256
#define SIGNAL_STACK_LEAST (64 * 1024)

/* Linux's, which some C libraries do not have. */
#ifndef SEGV_MTEAERR
#define SEGV_MTEAERR 8
#endif
#ifndef BUS_MCEERR_AO
#define BUS_MCEERR_AO 5
#endif

static OsMutex install_lock = OS_MUTEX_INIT;
static OsFaultClaims *claimer;

/* A signal that is handled. */
typedef struct Handled {
    bool installed; /* install_lock */
    struct sigaction previous;
} Handled;

static Handled handled_segv;
static Handled handled_bus;

static Handled *handled_of(int signal_number)
{
    return signal_number == SIGBUS ? &handled_bus : &handled_segv;
}

/* sigaction(2).  Returns 0 or -errno. */
static int act(int signal_number, const struct sigaction *action,
               struct sigaction *previous)
{
    int error = os_fault("sigaction");

    if (error) {
        return -error;
    }
    return sigaction(signal_number, action, previous) ? -errno : 0;
}

/*
 * Whether a faulting instruction runs again when the handler returns, and
 * faults again.  None does for a signal that was sent, as two are that have the
 * code of a fault: a tag was found wrong after the access (arm64), or memory
 * went bad that nobody has read yet.
 */
static bool comes_again(int signal_number, const siginfo_t *info)
{
    int sent = signal_number == SIGBUS ? BUS_MCEERR_AO : SEGV_MTEAERR;

    return info->si_code > 0 && info->si_code != sent;
}

/*
 * Let the signal have its default action.  A faulting instruction dies in its
 * own place when it runs again, which is what a core dump should show.  A
 * signal that was sent must be sent again: it stays pending until the handler
 * has returned.
 *
 * Where that cannot be had (a sandbox forbids it), the fault would come again
 * and again: then the process aborts.
 */
static void die(int signal_number, const siginfo_t *info)
{
    struct sigaction action = {.sa_handler = SIG_DFL};

    if (act(signal_number, &action, NULL) < 0) {
        abort();
    }
    if (!comes_again(signal_number, info)) {
        raise(signal_number);
    }
}

/* Call the handler that was there before, in the circumstances it asked for. */
static void call_previous(const struct sigaction *action, int signal_number,
                          siginfo_t *info, void *context)
{
    sigset_t own;

    /* The kernel puts the mask back when our handler returns. */
    pthread_sigmask(SIG_BLOCK, &action->sa_mask, NULL);
    if (action->sa_flags & SA_NODEFER) {
        sigemptyset(&own);
        sigaddset(&own, signal_number);
        pthread_sigmask(SIG_UNBLOCK, &own, NULL);
    }
    if (action->sa_flags & SA_SIGINFO) {
        action->sa_sigaction(signal_number, info, context);
    } else {
        action->sa_handler(signal_number);
    }
}

static void pass_on(int signal_number, siginfo_t *info, void *context)
{
    struct sigaction *previous = &handled_of(signal_number)->previous;
    struct sigaction action = *previous;

    if (!(action.sa_flags & SA_SIGINFO)) {
        if (action.sa_handler == SIG_IGN && !comes_again(signal_number, info)) {
            return;
        }
        /* The kernel does not let a fault be ignored: it would come again. */
        if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN) {
            die(signal_number, info);
            return;
        }
    }
    if (action.sa_flags & SA_RESETHAND) {
        previous->sa_flags &= ~SA_SIGINFO;
        previous->sa_handler = SIG_DFL;
    }
    call_previous(&action, signal_number, info, context);
}

static void on_fault(int signal_number, siginfo_t *info, void *context)
{
    char line[LINE_SIZE];
    int saved = errno;

    /* A signal that was sent, not raised by a fault, is about no access. */
    if (comes_again(signal_number, info) &&
        claimer(info->si_addr, line, sizeof(line))) {
        ssize_t n = write(STDERR_FILENO, line, strnlen(line, sizeof(line)));

        (void)n; /* there is nobody left to tell */
        die(signal_number, info);
    } else {
        pass_on(signal_number, info, context);
    }
    errno = saved;
}

/* Unless it was done before.  Returns 0 or -errno. */
static int set_handler(int signal_number)
{
    Handled *handled = handled_of(signal_number);
    struct sigaction action = {
        .sa_sigaction = on_fault,
        .sa_flags = SA_SIGINFO | SA_ONSTACK,
    };
    int result;

    if (handled->installed) {
        return 0; /* INVARIANTS 1 */
    }
    sigemptyset(&action.sa_mask);
    result = act(signal_number, NULL, &handled->previous);
    if (result == 0) {
        result = act(signal_number, &action, NULL);
    }
    handled->installed = result == 0;
    return result;
}

int os_install_fault_handler(OsFaultClaims *claims)
{
    int result;

    os_mutex_lock(&install_lock);
    if (!claimer) {
        claimer = claims;
    }
    result = set_handler(SIGSEGV);
    if (result == 0) {
        result = set_handler(SIGBUS);
    }
    os_mutex_unlock(&install_lock);
    return result;
}

/* --- alternate stacks ----------------------------------------------------- */

static size_t stack_mapping_size(void)
{
    /* What this processor's registers need; can be far above SIGSTKSZ. */
    long size = sysconf(_SC_SIGSTKSZ);
    size_t page = os_page_size();

    if (size < SIGNAL_STACK_LEAST) {
        size = SIGNAL_STACK_LEAST;
    }
    return (((size_t)size + page - 1) & ~(page - 1)) + page;
}

/* sigaltstack(2).  Returns 0 or -errno. */
static int exchange_stack(const stack_t *stack, stack_t *previous)
{
    int error = os_fault("sigaltstack");

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return -error;
    }
    return sigaltstack(stack, previous) ? -errno : 0;
}

/*
 * Take ours away, unless somebody has replaced it meanwhile: theirs stays.
 * Returns 0, or -errno: it may be in use.
 */
static int take_away(const char *mapping)
{
    stack_t stack;
    int result = exchange_stack(NULL, &stack);

    if (result < 0 || (stack.ss_flags & SS_DISABLE) ||
        stack.ss_sp != (void *)(mapping + os_page_size())) {
        return result;
    }
    stack.ss_flags = SS_DISABLE;
    return exchange_stack(&stack, NULL);
}

static void free_signal_stack(OsThread *thread)
{
    char *mapping = thread->signal_stack;

    if (!mapping) {
        return;
    }
    /* Better lost than taken from under a handler. */
    if (take_away(mapping) == 0) {
        os_unmap(mapping, stack_mapping_size());
    }
    thread->signal_stack = NULL;
    thread->overflow_ready = false;
}

/* A mapping with a guard below, or NULL. */
static char *make_stack(size_t size)
{
    size_t page = os_page_size();
    char *mapping = os_fault("signal_stack") ? NULL : os_map(size, page);

    /* Fails at the limit of mappings only; then it goes unguarded. */
    if (mapping && !os_fault("mprotect")) {
        mprotect(mapping, page, PROT_NONE);
    }
    return mapping;
}

int os_signal_stack_install(void)
{
    OsThread *thread = os_thread();
    size_t size = stack_mapping_size();
    size_t page = os_page_size();
    stack_t stack;
    char *mapping;
    int result;

    if (thread->overflow_ready) {
        return 0;
    }
    result = exchange_stack(NULL, &stack);
    if (result < 0) {
        return result; /* there may be one */
    }
    if (!(stack.ss_flags & SS_DISABLE)) {
        thread->overflow_ready = true;
        return 0;
    }
    os_thread_on_exit(free_signal_stack);
    if (!os_thread_prepare(thread)) {
        return -ENOMEM; /* nobody would give it back */
    }
    mapping = make_stack(size);
    if (!mapping) {
        return -ENOMEM;
    }
    stack.ss_sp = mapping + page;
    stack.ss_size = size - page;
    stack.ss_flags = 0;
    result = exchange_stack(&stack, NULL);
    if (result < 0) {
        os_unmap(mapping, size);
        return result;
    }
    thread->signal_stack = mapping;
    thread->overflow_ready = true;
    return 0;
}
