/* SPDX-License-Identifier: MIT */

/*
 * Stack overflows: the process dies of SIGSEGV with a line that names the
 * coroutine; every other fault arrives at the handler that was there before.
 */

#include "coroutine/coroutine_int.h"
#include "harness.h"
#include "loopthread.h"
#include "os/memory.h"

#include <coaio/iothread.h>
#include <coaio/wait.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef COAIO_HAVE_VALGRIND
#include <valgrind/valgrind.h>
#else
#define VALGRIND_DISABLE_ERROR_REPORTING ((void)0)
#define VALGRIND_ENABLE_ERROR_REPORTING  ((void)0)
#endif

static void install(void)
{
    CHECK_EQ(aio_install_overflow_handler(), 0);
}

/* Frames that no compiler folds into a loop; there is no way to the end. */
static NOINLINE int deeper(volatile char *below, int n)
{
    volatile char frame[512];

    if (n == 1 << 30) {
        return 0;
    }
    frame[0] = (char)n;
    frame[511] = below ? below[0] : 0;
    return deeper(frame, n + 1) + frame[0] + frame[511];
}

static void overflow(void *opaque)
{
    (void)opaque;
    deeper(NULL, 0);
}

static void enter_named(const char *name, size_t stack_size)
{
    CoroutineOptions options = {
        .size = sizeof(options),
        .name = name,
        .stack_size = stack_size,
    };
    Coroutine *co;

    CHECK_EQ(coroutine_create_full(&co, overflow, NULL, &options), 0);
    coroutine_enter(co);
}

TEST_DIES(the_coroutine_is_named, SIGSEGV,
          "stack overflow in coroutine \"greedy\": its stack of 64 KiB")
{
    install();
    enter_named("greedy", 0);
}

TEST_DIES(the_advice_is_given, SIGSEGV,
          "larger stack_size, and compile with -fstack-clash-protection")
{
    install();
    enter_named("greedy", 0);
}

TEST_DIES(one_without_a_name_has_its_address, SIGSEGV,
          "stack overflow in coroutine 0x[0-9a-f]+: its stack of 16 KiB")
{
    install();
    enter_named(NULL, 16 << 10);
}

TEST_DIES(large_stacks_are_named_too, SIGSEGV, "its stack of 1024 KiB")
{
    install();
    enter_named("large", 1 << 20);
}

TEST_DIES(a_name_cannot_break_the_line, SIGSEGV,
          "^coaio: stack overflow in coroutine \"two\\?lines\": its")
{
    install();
    enter_named("two\nlines", 0);
}

TEST_DIES(a_long_name_is_cut, SIGSEGV,
          "coroutine \"(0123456789){6}0123\": .* -fstack-clash-protection$")
{
    install();
    enter_named("0123456789012345678901234567890123456789"
                "0123456789012345678901234567890123456789",
                0);
}

static void enter_in_the_loop(void *opaque)
{
    (void)opaque;
    enter_named("in an I/O thread", 0);
}

TEST_DIES(io_threads_report_by_themselves, SIGSEGV,
          "stack overflow in coroutine \"in an I/O thread\"")
{
    IOThread *iothread;

    CHECK_EQ(iothread_new(&iothread, "io", NULL), 0);
    aio_wait_bh_oneshot(iothread_context(iothread), enter_in_the_loop, NULL);
}

static void overflow_nested(void *opaque)
{
    (void)opaque;
    enter_named("inner", 0);
}

TEST_DIES(the_inner_one_is_named, SIGSEGV, "in coroutine \"inner\"")
{
    install();
    coroutine_enter(coroutine_create(overflow_nested, NULL));
}

/* Which Valgrind takes for the error that it is. */
static void hit(void *opaque)
{
    VALGRIND_DISABLE_ERROR_REPORTING;
    *(volatile char *)opaque = 1;
}

/* One that is parked or free is not at fault, but its guard was hit. */
TEST_DIES(an_address_in_a_guard_belongs_to_its_stack, SIGSEGV,
          "stack overflow in coroutine \"victim\"")
{
    CoroutineOptions options = {.size = sizeof(options), .name = "victim"};
    Coroutine *victim;

    install();
    CHECK_EQ(coroutine_create_full(&victim, overflow, NULL, &options), 0);
    hit(victim->stack_bottom - 64);
}

/* --- faults of others -----------------------------------------------------*/

static sigjmp_buf recovery;
static volatile sig_atomic_t caught;
static void *volatile caught_at;

static void recover(int number, siginfo_t *info, void *context)
{
    (void)context;
    VALGRIND_ENABLE_ERROR_REPORTING;
    caught = number;
    caught_at = info->si_addr;
    siglongjmp(recovery, 1);
}

static void set_own_handler(void)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_sigaction = recover;
    action.sa_flags = SA_SIGINFO;
    CHECK_EQ(sigaction(SIGSEGV, &action, NULL), 0);
    CHECK_EQ(sigaction(SIGBUS, &action, NULL), 0);
}

/* A page that nothing else comes to lie on. */
static char *forbidden(void)
{
    char *page = mmap(NULL, os_page_size(), PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(page != MAP_FAILED);
    return page;
}

TEST(other_faults_go_to_the_handler_before)
{
    char *nowhere = forbidden();

    set_own_handler();
    install();
    if (sigsetjmp(recovery, 1) == 0) {
        hit(nowhere + 5);
        CHECK(false);
    }
    CHECK_EQ(caught, SIGSEGV);
    CHECK_EQ(caught_at, nowhere + 5);
}

static void hit_nowhere(void *opaque)
{
    if (sigsetjmp(recovery, 1) == 0) {
        hit(opaque);
        CHECK(false);
    }
}

TEST(also_from_a_coroutine)
{
    char *nowhere = forbidden();

    set_own_handler();
    install();
    install();
    coroutine_enter(coroutine_create(hit_nowhere, nowhere));
    CHECK_EQ(caught, SIGSEGV);
    CHECK_EQ(caught_at, nowhere);
}

TEST(a_signal_that_was_sent_goes_to_the_handler_before)
{
    set_own_handler();
    install();
    if (sigsetjmp(recovery, 1) == 0) {
        raise(SIGSEGV);
        CHECK(false);
    }
    CHECK_EQ(caught, SIGSEGV);
}

TEST(an_alternate_stack_is_not_replaced)
{
    static char own[64 << 10];
    stack_t stack = {.ss_sp = own, .ss_size = sizeof(own)};
    stack_t now;

    CHECK_EQ(sigaltstack(&stack, NULL), 0);
    install();
    CHECK_EQ(sigaltstack(NULL, &now), 0);
    CHECK_EQ(now.ss_sp, own);
}

TEST_MAIN()
