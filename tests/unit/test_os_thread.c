/* SPDX-License-Identifier: MIT */
/*
 * Threads: what is local to one, what runs at its end, how one starts, the
 * checks for forked children and shadow stacks, futexes, locks.
 */
#include "base/atomic.h"
#include "harness.h"
#include "nth.h"
#include "os/clock.h"
#include "os/fault.h"
#include "os/memory.h"
#include "os/misc.h"
#include "os/thread.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#if COAIO_TSAN
/* It would end the process before the library can say what is wrong. */
const char *__tsan_default_options(void);

const char *__tsan_default_options(void)
{
    return "report_mutex_bugs=0";
}
#endif

static void run_thread(void (*run)(void *), void *arg)
{
    OsThreadStart start = {.run = run, .arg = arg};
    OsThreadHandle thread;

    CHECK_EQ(os_thread_start(&thread, &start), 0);
    os_thread_join(&thread);
}

static void check_own(void *other)
{
    OsThread *own = os_thread();

    CHECK(own != other);
    CHECK_EQ(own, os_thread());
    CHECK(own->current == NULL && own->context == NULL && !own->prepared);
}

TEST(each_thread_has_its_own)
{
    os_thread()->context = (void *)os_thread();
    run_thread(check_own, os_thread());
}

TEST(errno_of_this_thread)
{
    errno = 42;
    CHECK_EQ(os_errno(), 42);
    errno = 0;
    CHECK_EQ(os_errno(), 0);
}

/* --- the end of a thread -------------------------------------------------- */

static char trail[16];

static void add_trail(char c)
{
    size_t length = strlen(trail);

    CHECK(length + 1 < sizeof(trail));
    trail[length] = c;
}

static void hook_a(OsThread *thread)
{
    CHECK_EQ(thread, os_thread());
    add_trail('a');
}

static void hook_b(OsThread *thread)
{
    CHECK_EQ(thread, os_thread());
    add_trail('b');
}

static void hook_c(OsThread *thread)
{
    (void)thread;
    add_trail('c');
}

static void prepare(void *arg)
{
    (void)arg;
    os_thread_prepare(os_thread());
    os_thread_prepare(os_thread());
    CHECK(os_thread()->prepared);
}

static void end_at_once(void *arg)
{
    (void)arg;
}

TEST(hooks_run_newest_first_in_prepared_threads)
{
    os_thread_on_exit(hook_a);
    os_thread_on_exit(hook_b);
    os_thread_on_exit(hook_a); /* is there already */
    os_thread_on_exit(hook_c);
    run_thread(end_at_once, NULL);
    CHECK_STR(trail, "");
    run_thread(prepare, NULL);
    CHECK_STR(trail, "cba");
    run_thread(prepare, NULL);
    CHECK_STR(trail, "cbacba");
}

TEST(a_hook_may_come_after_the_thread)
{
    os_thread_prepare(os_thread());
    os_thread_on_exit(hook_a);
    run_thread(prepare, NULL);
    CHECK_STR(trail, "a");
}

static pthread_key_t late_key;

/* The destructor of some other library, which calls this one. */
static void call_late(void *arg)
{
    (void)arg;
    add_trail('l');
    os_thread_prepare(os_thread());
}

static void prepare_with_late_caller(void *arg)
{
    pthread_setspecific(late_key, arg);
    prepare(NULL);
}

TEST(a_thread_used_after_its_hooks_runs_them_again)
{
    os_thread_on_exit(hook_a);
    os_thread_prepare(os_thread()); /* so the other key comes later */
    CHECK(pthread_key_create(&late_key, call_late) == 0);
    run_thread(prepare_with_late_caller, trail);
    CHECK_STR(trail, "ala");
}

static void prepare_twice(void *arg)
{
    (void)arg;
    os_fault_arm(1, ENOMEM, "pthread_setspecific");
    CHECK(!os_thread_prepare(os_thread()));
    CHECK(os_fault_fired());
    CHECK(!os_thread()->prepared);
    prepare(NULL);
}

TEST(a_thread_that_could_not_be_prepared_is_later)
{
    os_thread_on_exit(hook_a);
    run_thread(prepare_twice, NULL);
    CHECK_STR(trail, "a");
}

static void prepare_in_vain(void *arg)
{
    (void)arg;
    CHECK(os_thread_prepare(os_thread()));
    CHECK(os_thread_prepare(os_thread()));
    CHECK(!os_thread()->prepared);
}

/* The line must be there once, so look for it and end by a signal. */
TEST_ABORTS(without_a_key_threads_go_on_and_it_is_said,
            "^coaio: no thread-specific key is left: what threads keep is not "
            "given back when they end$")
{
    os_thread_on_exit(hook_a);
    os_fault_arm(1, EAGAIN, "pthread_key_create");
    run_thread(prepare_in_vain, NULL);
    CHECK(os_fault_fired());
    CHECK_STR(trail, "");
    abort();
}

/* --- shadow stacks -------------------------------------------------------- */

static const char *without_shadow_stack;

/* In place of the one that asks the processor. */
const char *os_shadow_stack(void)
{
    return without_shadow_stack;
}

TEST_ABORTS(a_shadow_stack_is_refused,
            "^coaio: this thread runs with a shadow stack, and coroutines "
            "cannot switch that yet: start the program with "
            "GLIBC_TUNABLES=glibc\\.cpu\\.x86_shstk=off$")
{
    without_shadow_stack = "glibc.cpu.x86_shstk=off";
    os_thread_prepare(os_thread());
}

TEST_ABORTS(children_that_will_not_be_recognised_are_said,
            "^coaio: no memory for pthread_atfork\\(\\): calls in forked "
            "children are not recognised$")
{
    os_fault_arm(1, ENOMEM, "pthread_atfork");
    run_thread(prepare, NULL);
    CHECK(os_fault_fired());
    abort();
}

/* --- fork ----------------------------------------------------------------- */

TEST_ABORTS(a_forked_child_is_told, "^coaio: aio_poll called in a forked "
                                    "child: only exec or _exit may follow "
                                    "fork$")
{
    int status;
    pid_t pid;

    os_thread_prepare(os_thread());
    os_check_fork("aio_poll");
    pid = fork();
    if (pid == 0) {
        os_check_fork("aio_poll");
        _exit(0);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    os_check_fork("aio_notify"); /* the parent goes on */
    abort();
}

TEST(a_child_forked_before_the_first_use_may_go_on)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        os_check_fork("aio_poll");
        os_thread_prepare(os_thread());
        _exit(7);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

/* --- starting ------------------------------------------------------------- */

static void check_signals(void *arg)
{
    sigset_t mask;
    int i;

    (void)arg;
    CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &mask), 0);
    for (i = 1; i < 32; i++) {
        bool fault = i == SIGSEGV || i == SIGBUS || i == SIGILL ||
                     i == SIGFPE || i == SIGTRAP || i == SIGSYS;

        if (i != SIGKILL && i != SIGSTOP) {
            CHECK_EQ(sigismember(&mask, i), !fault);
        }
    }
}

TEST(signals_are_blocked_except_faults)
{
    sigset_t before, after;

    CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &before), 0);
    run_thread(check_signals, NULL);
    CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &after), 0);
    CHECK_EQ(sigismember(&after, SIGTERM), sigismember(&before, SIGTERM));
}

static void get_name(void *arg)
{
    CHECK_EQ(pthread_getname_np(pthread_self(), arg, 16), 0);
}

TEST(a_name_is_cut_to_what_the_kernel_takes)
{
    char name[16];
    OsThreadStart start = {
        .name = "a rather long name",
        .run = get_name,
        .arg = name,
    };
    OsThreadHandle thread;

    CHECK_EQ(os_thread_start(&thread, &start), 0);
    os_thread_join(&thread);
    CHECK_STR(name, "a rather long n");
}

static void get_cpus(void *arg)
{
    CHECK_EQ(sched_getaffinity(0, sizeof(cpu_set_t), arg), 0);
}

/* The lowest CPU that this thread may use. */
static unsigned some_cpu(void)
{
    cpu_set_t cpus;
    unsigned cpu = 0;

    CHECK_EQ(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
    while (!CPU_ISSET(cpu, &cpus)) {
        cpu++;
    }
    return cpu;
}

TEST(a_thread_runs_on_the_cpus_that_it_is_given)
{
    unsigned cpu = some_cpu();
    cpu_set_t got;
    OsThreadStart start = {
        .run = get_cpus, .arg = &got, .cpus = &cpu, .n_cpus = 1};
    OsThreadHandle thread;

    CHECK_EQ(os_thread_start(&thread, &start), 0);
    os_thread_join(&thread);
    CHECK_EQ(CPU_COUNT(&got), 1);
    CHECK(CPU_ISSET(cpu, &got));
}

static void must_not_run(void *arg)
{
    (void)arg;
    CHECK(!"a thread on CPUs that do not exist has run");
}

TEST(cpus_that_do_not_exist_are_refused)
{
    static const unsigned missing[] = {1000, 9000, 70000, ~0u};
    unsigned i;

    for (i = 0; i < 4; i++) {
        unsigned cpus[2] = {some_cpu(), missing[i]};
        OsThreadStart start = {.run = must_not_run, .cpus = cpus, .n_cpus = 2};
        OsThreadHandle thread;

        CHECK_EQ(os_thread_start(&thread, &start), -EINVAL);
        start.cpus = cpus + 1;
        start.n_cpus = 1;
        CHECK_EQ(os_thread_start(&thread, &start), -EINVAL);
    }
}

static uint64_t live_blocks(void)
{
    return os_counter(OS_COUNT_ALLOCATIONS) - os_counter(OS_COUNT_FREES);
}

/* Returns how many failures of that call (NULL: of any) were errors. */
static unsigned start_whichever_fails(int error, const char *only)
{
    unsigned cpu = some_cpu();
    OsThreadStart start = {
        .name = "fails",
        .run = end_at_once,
        .cpus = &cpu,
        .n_cpus = 1,
    };
    unsigned errors = 0, nth = 0;
    bool fired;

    do {
        uint64_t blocks = live_blocks();
        OsThreadHandle thread;
        int result;

        os_fault_arm(++nth, error, only);
        result = os_thread_start(&thread, &start);
        if (result == 0) {
            os_thread_join(&thread);
        }
        fired = os_fault_fired();
        CHECK_EQ(result, fired && !nth_is_done_without() ? -error : 0);
        /* An allocation that was made to fail counts, without a free. */
        CHECK_EQ(live_blocks() - blocks,
                 fired && strcmp(os_fault_call(), "alloc") == 0);
        errors += result < 0;
        CHECK(nth < NTH_MOST);
    } while (fired);
    return errors;
}

TEST(each_failure_of_a_start_is_clean)
{
    CHECK_EQ(start_whichever_fails(ENOMEM, "alloc"), 3);
    CHECK_EQ(start_whichever_fails(EAGAIN, "thread"), 1);
    CHECK_EQ(start_whichever_fails(EPERM, "sched_setaffinity"), 1);
    CHECK_EQ(start_whichever_fails(EPERM, "sched_getaffinity"), 1);
    CHECK_EQ(start_whichever_fails(EINVAL, "sysconf"), 0);
    /* Two threads make calls, in an order that differs. */
    CHECK(start_whichever_fails(ENOMEM, NULL) >= 3);
}

static void check_bounds(void *arg)
{
    const void *bottom;
    size_t size;
    char here;

    (void)arg;
    os_thread_stack_bounds(&bottom, &size);
    CHECK((uintptr_t)&here > (uintptr_t)bottom);
    CHECK((uintptr_t)&here < (uintptr_t)bottom + size);
}

TEST(the_bounds_of_a_stack_hold_its_variables)
{
#if defined(__SANITIZE_ADDRESS__)
    SKIP("under ASan variables may live elsewhere");
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
    SKIP("under ASan variables may live elsewhere");
#endif
#endif
    check_bounds(NULL);
    run_thread(check_bounds, NULL);
}

TEST(bounds_that_are_not_told_are_none)
{
    const void *bottom = trail;
    size_t size = 1;

    os_fault_arm(1, ENOMEM, "pthread_getattr_np");
    os_thread_stack_bounds(&bottom, &size);
    CHECK(os_fault_fired());
    CHECK(bottom == NULL);
    CHECK_EQ(size, 0);
}

/* What is found out when the program begins.  It is called by its name, as
 * /proc/self/exe itself is an emulator or Valgrind. */
TEST(the_only_processor_is_known_as_such)
{
    char path[PATH_MAX] = "";
    int status;
    pid_t child;
    cpu_set_t one;

    if (getenv("COAIO_TEST_ON_ONE")) {
        CHECK(os_one_cpu);
        return;
    }
    CHECK(readlink("/proc/self/exe", path, sizeof(path) - 1) > 0);
    child = fork();
    if (child == 0) {
        CPU_ZERO(&one);
        CPU_SET(some_cpu(), &one);
        CHECK_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
        CHECK_EQ(setenv("COAIO_TEST_ON_ONE", "1", 1), 0);
        execl(path, path, "--no-fork", "the_only_processor_is_known_as_such",
              (char *)NULL);
        _exit(99);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    if (status == 99 << 8) {
        SKIP("this program cannot be run by its name");
    }
    CHECK_EQ(status, 0);
}

TEST(cpus_are_counted_as_far_as_they_may_be_used)
{
    unsigned all = os_cpu_count();
    cpu_set_t one;

    CHECK(all >= 1);
    CHECK_EQ(os_one_cpu, all == 1);
    CPU_ZERO(&one);
    CPU_SET(some_cpu(), &one);
    CHECK_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    CHECK_EQ(os_cpu_count(), 1);
    /* Else all that there are. */
    os_fault_arm(1, EINVAL, "sched_getaffinity");
    CHECK(os_cpu_count() >= 1);
    CHECK(os_fault_fired());
}

/* --- futexes and locks ---------------------------------------------------- */

static uint32_t word; /* atomic */

static void wake_word(void *arg)
{
    (void)arg;
    store_release(&word, 1);
    os_futex_wake(&word, 1);
}

TEST(a_futex_wakes)
{
    OsThreadStart start = {.run = wake_word};
    OsThreadHandle thread;

    CHECK_EQ(os_thread_start(&thread, &start), 0);
    while (load_acquire(&word) == 0) {
        os_futex_wait(&word, 0, -1);
    }
    os_thread_join(&thread);
    os_futex_wait(&word, 0, -1); /* has changed: returns at once */
}

TEST(a_futex_wait_ends)
{
    os_futex_wait(&word, 0, 0);
    os_futex_wait(&word, 0, 1000000);
    os_fault_arm(1, EINTR, "futex_wait");
    os_futex_wait(&word, 0, -1);
    CHECK(os_fault_fired());
}

static OsMutex lock = OS_MUTEX_INIT;
static OsCond cond;
static bool said;

static void say(void *arg)
{
    (void)arg;
    os_mutex_lock(&lock);
    said = true;
    os_cond_signal(&cond);
    os_cond_broadcast(&cond);
    os_mutex_unlock(&lock);
}

TEST(a_condition_is_signalled)
{
    OsThreadStart start = {.run = say};
    OsThreadHandle thread;
    OsMutex own;
    int64_t begin;

    os_mutex_init(&own);
    os_cond_init(&cond);
    os_mutex_lock(&own);
    begin = os_clock_monotonic_ns();
    CHECK(!os_cond_wait_ns(&cond, &own, 2000000));
    CHECK(os_clock_monotonic_ns() - begin >= 2000000);
    CHECK(!os_cond_wait_ns(&cond, &own, -5));
    os_mutex_unlock(&own);
    os_mutex_destroy(&own);

    os_mutex_lock(&lock);
    CHECK_EQ(os_thread_start(&thread, &start), 0);
    while (!said) {
        CHECK(os_cond_wait_ns(&cond, &lock, INT64_MAX));
    }
    os_mutex_unlock(&lock);
    os_thread_join(&thread);
    said = false;
    os_mutex_lock(&lock);
    CHECK_EQ(os_thread_start(&thread, &start), 0);
    while (!said) {
        os_cond_wait(&cond, &lock);
    }
    os_mutex_unlock(&lock);
    os_thread_join(&thread);
    os_cond_destroy(&cond);
}

/* One that finds out who uses it wrongly. */
static void make_checking(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t attr;

    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(mutex, &attr);
}

TEST_ABORTS(a_users_lock_that_cannot_be_locked,
            "^coaio: the pthread_mutex_t 0x[0-9a-f]+ that a queue was given "
            "cannot be locked: error 35$")
{
    pthread_mutex_t mutex;

    make_checking(&mutex);
    os_user_mutex_lock(&mutex);
    os_user_mutex_lock(&mutex); /* EDEADLK */
}

TEST_ABORTS(a_users_lock_that_cannot_be_unlocked,
            "^coaio: the pthread_mutex_t 0x[0-9a-f]+ that a queue was given "
            "cannot be unlocked: error 1$")
{
    pthread_mutex_t mutex;

    make_checking(&mutex);
    os_user_mutex_lock(&mutex);
    os_user_mutex_unlock(&mutex);
    os_user_mutex_unlock(&mutex); /* EPERM */
}

TEST_MAIN()
