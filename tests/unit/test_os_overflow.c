/* SPDX-License-Identifier: MIT */
/*
 * Faults: one on a guard is reported and kills; every other arrives where it
 * would have arrived without us; alternate stacks are given where there is
 * none, and taken back.
 */
#include "harness.h"
#include "nth.h"
#include "os/fault.h"
#include "os/memory.h"
#include "os/overflow.h"
#include "os/thread.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#ifdef COAIO_HAVE_VALGRIND
#include <valgrind/valgrind.h>
#else
#define RUNNING_ON_VALGRIND              0
#define VALGRIND_DISABLE_ERROR_REPORTING ((void)0)
#define VALGRIND_ENABLE_ERROR_REPORTING  ((void)0)
#endif

static char *guard;   /* a page; the handler claims it */
static char *foreign; /* a page that nobody can touch, and nobody claims */

static bool claims(const void *address, char *line, size_t size)
{
    if ((const char *)address < guard ||
        (const char *)address >= guard + os_page_size()) {
        return false;
    }
    snprintf(line, size, "coaio: guard hit\n");
    return true;
}

static void map_pages(void)
{
    size_t done;

    guard = os_map(2 * os_page_size(), os_page_size());
    os_guard(guard, os_page_size(), os_page_size(), 1, &done);
    CHECK_EQ(done, 1);
    foreign = mmap(NULL, os_page_size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
    CHECK(foreign != MAP_FAILED);
}

static void install(void)
{
    map_pages();
    CHECK_EQ(os_signal_stack_install(), 0);
    CHECK_EQ(os_install_fault_handler(claims), 0);
    CHECK_EQ(os_install_fault_handler(claims), 0);
}

/* Stores where no sanitizer looks first, and Valgrind not at all. */
static __attribute__((noinline)) void touch(char *address)
{
    VALGRIND_DISABLE_ERROR_REPORTING;
    *(volatile char *)address = 1;
    VALGRIND_ENABLE_ERROR_REPORTING;
}

TEST_DIES(a_guard_is_reported, SIGSEGV, "^coaio: guard hit$")
{
    signal(SIGSEGV, SIG_DFL);
    install();
    touch(guard);
}

TEST_DIES(a_guard_is_reported_whoever_was_there_before, SIGSEGV,
          "^coaio: guard hit$")
{
    signal(SIGSEGV, SIG_IGN);
    install();
    touch(guard + os_page_size() - 1);
}

static void touch_guard(void *arg)
{
    (void)arg;
    CHECK_EQ(os_signal_stack_install(), 0);
    touch(guard);
}

TEST_DIES(a_guard_is_reported_from_a_started_thread, SIGSEGV,
          "^coaio: guard hit$")
{
    OsThreadStart start = {.run = touch_guard};
    OsThreadHandle thread;

    signal(SIGSEGV, SIG_DFL);
    install();
    CHECK_EQ(os_thread_start(&thread, &start), 0);
    os_thread_join(&thread);
}

static volatile int endless = 1;

/* Uses up whatever stack there is. */
static __attribute__((noinline)) int descend(int depth)
{
    volatile char frame[512];

    frame[0] = (char)depth;
    return endless ? descend(depth + 1) + frame[0] : 0;
}

static void descend_for_ever(void)
{
    descend(0);
}

TEST_DIES(an_overflow_of_a_small_stack_is_reported, SIGSEGV,
          "^coaio: guard hit$")
{
    ucontext_t here, there;
    size_t page = os_page_size();
    char *stack = os_map(16 * page, page);
    size_t done;

    signal(SIGSEGV, SIG_DFL);
    install();
    os_guard(stack, page, page, 1, &done);
    guard = stack;
    getcontext(&there);
    there.uc_stack.ss_sp = stack + page;
    there.uc_stack.ss_size = 15 * page;
    there.uc_link = NULL;
    makecontext(&there, descend_for_ever, 0);
    swapcontext(&here, &there);
}

/* --- what is not ours ----------------------------------------------------- */

TEST_DIES(a_foreign_fault_kills_by_default, SIGSEGV, 0)
{
    signal(SIGSEGV, SIG_DFL);
    install();
    touch(foreign);
}

TEST_DIES(a_foreign_fault_that_is_ignored_kills_as_ever, SIGSEGV, 0)
{
    signal(SIGSEGV, SIG_IGN);
    install();
    touch(foreign);
}

TEST_DIES(a_signal_that_is_sent_kills_by_default, SIGSEGV, 0)
{
    signal(SIGSEGV, SIG_DFL);
    install();
    raise(SIGSEGV);
}

TEST_DIES(a_bus_error_that_is_sent_kills_by_default, SIGBUS, 0)
{
    signal(SIGBUS, SIG_DFL);
    install();
    raise(SIGBUS);
}

TEST(a_signal_that_is_sent_and_ignored_is_ignored)
{
    signal(SIGSEGV, SIG_IGN);
    install();
    raise(SIGSEGV);
}

#ifndef SEGV_MTEAERR
#define SEGV_MTEAERR 8
#endif
#ifndef BUS_MCEERR_AO
#define BUS_MCEERR_AO 5
#endif

static siginfo_t late;

static void hand_over(int number, siginfo_t *info, void *context)
{
    struct sigaction action;

    (void)number;
    *info = late;
    CHECK(sigaction(late.si_signo, NULL, &action) == 0);
    action.sa_sigaction(late.si_signo, info, context);
}

/*
 * Have our handler called as the kernel calls it.  A thread may also send
 * itself what it likes, by rt_tgsigqueueinfo(2), but neither Valgrind nor the
 * emulators survive a fault that is none.
 */
static void send_with_code(int number, int code)
{
    struct sigaction action = {.sa_sigaction = hand_over,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK};

    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, number);
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    late.si_signo = number;
    late.si_code = code;
    raise(SIGUSR1);
}

/*
 * The kernel sends these, and no instruction runs again: the process went on,
 * and without our handler.
 */
TEST_DIES(memory_that_went_bad_unread_kills_by_default, SIGBUS, 0)
{
    signal(SIGBUS, SIG_DFL);
    install();
    send_with_code(SIGBUS, BUS_MCEERR_AO);
}

TEST_DIES(a_tag_that_is_checked_late_kills_by_default, SIGSEGV, 0)
{
    signal(SIGSEGV, SIG_DFL);
    install();
    send_with_code(SIGSEGV, SEGV_MTEAERR);
}

/* It killed. */
TEST(what_the_kernel_sends_and_is_ignored_is_ignored)
{
    signal(SIGBUS, SIG_IGN);
    signal(SIGSEGV, SIG_IGN);
    install();
    send_with_code(SIGBUS, BUS_MCEERR_AO);
    send_with_code(SIGSEGV, SEGV_MTEAERR);
    raise(SIGBUS);
    raise(SIGSEGV);
}

static sigjmp_buf way_out;
static siginfo_t seen;
static sigset_t seen_mask;
static volatile int calls;

static void jump_out(int number, siginfo_t *info, void *context)
{
    (void)number;
    CHECK(context != NULL);
    seen = *info;
    sigprocmask(SIG_SETMASK, NULL, &seen_mask);
    calls++;
    siglongjmp(way_out, 1);
}

static void set_previous(int flags, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = flags};

    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGUSR2);
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
}

TEST(a_foreign_fault_arrives_at_the_previous_handler)
{
    volatile int i;

    set_previous(SA_SIGINFO, jump_out);
    install();
    for (i = 0; i < 3; i++) {
        if (sigsetjmp(way_out, 1) == 0) {
            touch(foreign + 8);
            CHECK(!"the fault did not arrive");
        }
    }
    CHECK_EQ(calls, 3);
    CHECK_EQ(seen.si_signo, SIGSEGV);
    CHECK_EQ(seen.si_addr, foreign + 8);
    CHECK(sigismember(&seen_mask, SIGSEGV));
    CHECK(sigismember(&seen_mask, SIGUSR2));
}

TEST(a_previous_handler_that_wants_no_deferral_has_none)
{
    set_previous(SA_SIGINFO | SA_NODEFER, jump_out);
    install();
    if (sigsetjmp(way_out, 1) == 0) {
        touch(foreign);
    }
    CHECK_EQ(calls, 1);
    CHECK(!sigismember(&seen_mask, SIGSEGV));
    CHECK(sigismember(&seen_mask, SIGUSR2));
}

static void mend(int number)
{
    CHECK_EQ(number, SIGSEGV);
    calls++;
    mprotect(foreign, os_page_size(), PROT_READ | PROT_WRITE);
    errno = 99;
}

TEST(a_previous_handler_that_mends_the_page_goes_on)
{
    struct sigaction action = {.sa_handler = mend};
    sigset_t mask;

    if (RUNNING_ON_VALGRIND) {
        SKIP("Valgrind faults for ever after such a handler has returned");
    }
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
    install();
    errno = 5;
    touch(foreign + 3);
    CHECK_EQ(errno, 5);
    CHECK_EQ(calls, 1);
    CHECK_EQ(foreign[3], 1);
    sigprocmask(SIG_SETMASK, NULL, &mask);
    CHECK(!sigismember(&mask, SIGSEGV));
}

TEST_DIES(a_previous_handler_for_one_fault_gets_one, SIGSEGV, "^first$")
{
    set_previous(SA_SIGINFO | (int)SA_RESETHAND, jump_out);
    install();
    if (sigsetjmp(way_out, 1) == 0) {
        touch(foreign);
    }
    CHECK_EQ(calls, 1);
    puts("first");
    fflush(stdout);
    touch(foreign);
    puts("second");
}

/* --- calls that fail ------------------------------------------------------ */

/*
 * The handler of SIGSEGV was set, that of SIGBUS could not be.  A second call
 * took ours for the one before it, which it called for ever.
 */
static void install_twice(void)
{
    struct sigaction previous = {.sa_sigaction = jump_out,
                                 .sa_flags = SA_SIGINFO};
    int result;

    CHECK_EQ(sigaction(SIGSEGV, &previous, NULL), 0);
    CHECK_EQ(sigaction(SIGBUS, &previous, NULL), 0);
    result = os_install_fault_handler(claims);
    CHECK_EQ(result, os_fault_fired() ? -EPERM : 0);
    CHECK_EQ(os_install_fault_handler(claims), 0);
    map_pages();
    if (sigsetjmp(way_out, 1) == 0) {
        touch(foreign);
        CHECK(!"the fault did not arrive");
    }
    if (sigsetjmp(way_out, 1) == 0) {
        raise(SIGBUS);
        CHECK(!"the signal did not arrive");
    }
    CHECK_EQ(calls, 2);
    CHECK_EQ(seen.si_signo, SIGBUS);
}

TEST(a_handler_that_could_not_be_set_is_set_by_the_next_call)
{
    CHECK_EQ(nth_alone(install_twice, EPERM, "sigaction"), 4);
}

TEST_DIES(what_is_claimed_is_reported_after_half_of_a_failure, SIGSEGV,
          "^coaio: guard hit$")
{
    signal(SIGSEGV, SIG_DFL);
    os_fault_arm(4, EPERM, "sigaction");
    CHECK_EQ(os_install_fault_handler(claims), -EPERM);
    map_pages();
    touch(guard);
}

/* It would be reported for ever. */
TEST_ABORTS(a_fault_whose_default_cannot_be_had_aborts, "^coaio: guard hit$")
{
    install();
    os_fault_arm(1, EPERM, "sigaction");
    touch(guard);
}

/* --- alternate stacks ----------------------------------------------------- */

static void *alternate_stack(void)
{
    stack_t stack;

    CHECK(sigaltstack(NULL, &stack) == 0);
    return stack.ss_flags & SS_DISABLE ? NULL : stack.ss_sp;
}

static void without_alternate_stack(void)
{
    stack_t none = {.ss_flags = SS_DISABLE};

    CHECK(sigaltstack(&none, NULL) == 0);
}

static void *given; /* what a thread was given */

static void get_stack(void *arg)
{
    stack_t stack;

    (void)arg;
    without_alternate_stack();
    CHECK_EQ(os_signal_stack_install(), 0);
    given = alternate_stack();
    CHECK(given != NULL);
    CHECK_EQ(os_signal_stack_install(), 0);
    CHECK_EQ(alternate_stack(), given);
    CHECK(sigaltstack(NULL, &stack) == 0);
    CHECK(stack.ss_size >= 64 * 1024);
    CHECK(os_address_guarded((char *)given - 1));
    CHECK(!os_address_guarded(given));
}

static void run_thread(void (*run)(void *))
{
    OsThreadStart start = {.run = run};
    OsThreadHandle thread;

    CHECK_EQ(os_thread_start(&thread, &start), 0);
    os_thread_join(&thread);
}

TEST(an_alternate_stack_goes_with_its_thread)
{
    uint64_t made = os_counter(OS_COUNT_ALLOCATIONS);
    uint64_t freed = os_counter(OS_COUNT_FREES);

    run_thread(get_stack);
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS) - made,
             os_counter(OS_COUNT_FREES) - freed);
    CHECK(os_counter(OS_COUNT_ALLOCATIONS) - made >= 2);
}

static char own_stack[256 * 1024];

static void keep_own_stack(void *arg)
{
    stack_t own = {.ss_sp = own_stack, .ss_size = sizeof(own_stack)};

    (void)arg;
    CHECK(sigaltstack(&own, NULL) == 0);
    CHECK_EQ(os_signal_stack_install(), 0);
    CHECK_EQ(alternate_stack(), own_stack);
    CHECK(os_thread()->signal_stack == NULL);
    CHECK(os_thread()->overflow_ready);
    without_alternate_stack();
}

TEST(an_alternate_stack_that_is_there_stays)
{
    run_thread(keep_own_stack);
}

static void replace_stack(void *arg)
{
    stack_t own = {.ss_sp = own_stack, .ss_size = sizeof(own_stack)};

    get_stack(arg);
    CHECK(sigaltstack(&own, NULL) == 0);
}

static void check_not_disabled(OsThread *thread)
{
    (void)thread;
    CHECK_EQ(alternate_stack(), own_stack);
    without_alternate_stack();
}

TEST(an_alternate_stack_that_took_its_place_stays_too)
{
    os_thread_on_exit(check_not_disabled); /* runs after the stack's hook */
    run_thread(replace_stack);
}

static void on_which_stack(int number)
{
    char here;

    (void)number;
    calls = (uintptr_t)&here > (uintptr_t)given &&
            (uintptr_t)&here < (uintptr_t)given + 256 * 1024;
    mprotect(foreign, os_page_size(), PROT_READ | PROT_WRITE);
}

TEST(the_handler_runs_on_the_alternate_stack)
{
    struct sigaction action = {.sa_handler = on_which_stack};

#if defined(__SANITIZE_ADDRESS__)
    SKIP("under ASan variables may live elsewhere");
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
    SKIP("under ASan variables may live elsewhere");
#endif
#endif
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
    install();
    given = alternate_stack();
    touch(foreign);
    CHECK_EQ(calls, 1);
}

/* What became of the alternate stack of a thread that has ended. */
static bool taken_away, unmapped;

static void look_at_stack(OsThread *thread)
{
    unsigned char present;

    CHECK(thread->signal_stack == NULL);
    taken_away = alternate_stack() == NULL;
    unmapped = given && mincore(given, 1, &present) < 0 && errno == ENOMEM;
    without_alternate_stack();
}

static int stack_result;

static void try_to_get_stack(void *arg)
{
    (void)arg;
    without_alternate_stack();
    os_thread_prepare(os_thread()); /* for look_at_stack() */
    os_fault_arm((uint64_t)(uintptr_t)arg, EPERM, "sigaltstack");
    stack_result = os_signal_stack_install();
    given = alternate_stack();
    CHECK_EQ(given == NULL, stack_result < 0);
}

/*
 * Asking for it and setting it may fail; so may asking and taking it away when
 * the thread ends: then it is in use, perhaps, and must not be unmapped.
 */
TEST(an_alternate_stack_whichever_call_fails)
{
    uint64_t blocks =
        os_counter(OS_COUNT_ALLOCATIONS) - os_counter(OS_COUNT_FREES);

    os_thread_on_exit(look_at_stack); /* runs after the stack's hook */
    for (uintptr_t nth = 1; nth <= 5; nth++) {
        OsThreadStart start = {.run = try_to_get_stack, .arg = (void *)nth};
        OsThreadHandle thread;

        CHECK_EQ(os_thread_start(&thread, &start), 0);
        os_thread_join(&thread);
        CHECK_EQ(os_fault_fired(), nth < 5);
        CHECK_EQ(stack_result, nth <= 2 ? -EPERM : 0);
        CHECK_EQ(taken_away, nth <= 2 || nth == 5);
        CHECK_EQ(unmapped, nth == 5);
        blocks += nth == 3 || nth == 4;
        CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS) - os_counter(OS_COUNT_FREES),
                 blocks);
    }
}

static void get_stack_later(void *arg)
{
    without_alternate_stack();
    os_fault_arm(1, ENOMEM, "pthread_setspecific");
    CHECK_EQ(os_signal_stack_install(), -ENOMEM);
    CHECK(os_fault_fired());
    CHECK(alternate_stack() == NULL);
    get_stack(arg);
}

/* One that is not noticed when it ends gives nothing back. */
TEST(an_alternate_stack_is_for_a_thread_whose_end_is_noticed)
{
    uint64_t made = os_counter(OS_COUNT_ALLOCATIONS);
    uint64_t freed = os_counter(OS_COUNT_FREES);

    run_thread(get_stack_later);
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS) - made,
             os_counter(OS_COUNT_FREES) - freed);
}

/* Whether there is one could not be found out: it was replaced. */
static void keep_own_stack_unseen(void *arg)
{
    stack_t own = {.ss_sp = own_stack, .ss_size = sizeof(own_stack)};

    (void)arg;
    CHECK(sigaltstack(&own, NULL) == 0);
    os_fault_arm(1, EPERM, "sigaltstack");
    CHECK_EQ(os_signal_stack_install(), -EPERM);
    CHECK_EQ(alternate_stack(), own_stack);
    CHECK_EQ(os_signal_stack_install(), 0);
    CHECK_EQ(alternate_stack(), own_stack);
    without_alternate_stack();
}

TEST(an_alternate_stack_that_is_not_seen_stays)
{
    run_thread(keep_own_stack_unseen);
}

TEST(an_alternate_stack_may_go_without_a_guard)
{
    without_alternate_stack();
    os_fault_arm(1, ENOMEM, "mprotect");
    CHECK_EQ(os_signal_stack_install(), 0);
    CHECK(os_fault_fired());
    CHECK(!os_address_guarded((char *)alternate_stack() - 1));
    memset((char *)alternate_stack() - os_page_size(), 1, os_page_size());
}

TEST(without_memory_there_is_no_alternate_stack)
{
    without_alternate_stack();
    os_fault_arm(1, ENOMEM, "signal_stack");
    CHECK_EQ(os_signal_stack_install(), -ENOMEM);
    CHECK(os_fault_fired());
    os_fault_arm(1, ENOMEM, "map");
    CHECK_EQ(os_signal_stack_install(), -ENOMEM);
    CHECK(alternate_stack() == NULL);
    CHECK_EQ(os_signal_stack_install(), 0);
}

TEST_MAIN()
