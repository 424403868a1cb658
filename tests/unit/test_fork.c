/* SPDX-License-Identifier: MIT */
/*
 * After fork() the child may only exec or _exit: the first call that does
 * something aborts with a line that names it.
 *
 * Each call is made in a child of its own, whose standard error is a pipe.
 * The children are forked before anything is shared that they could harm, and
 * leave by the abort.
 */
#include "harness.h"
#include "loopthread.h"

#include <coaio/coaio.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void nothing(void *opaque)
{
    (void)opaque;
}

static void park(void *opaque)
{
    (void)opaque;
    coroutine_yield();
}

/* --- a child, and what it says --------------------------------------------*/

typedef struct Child {
    int status;
    char said[512];
} Child;

static void run_child(void (*call)(void), int output)
{
    static const struct rlimit no_core = {0, 0};

    setrlimit(RLIMIT_CORE, &no_core);
    dup2(output, STDERR_FILENO);
    call();
    _exit(77);
}

/* What one writer writes until it ends. */
static void read_all(int fd, char *text, size_t size)
{
    size_t length = 0;
    ssize_t n;

    do {
        n = read(fd, text + length, size - 1 - length);
        length += n > 0 ? (size_t)n : 0;
    } while (n > 0 || (n < 0 && errno == EINTR));
    text[length] = '\0';
}

static Child fork_and(void (*call)(void))
{
    Child child;
    int ends[2];
    pid_t pid;

    CHECK_EQ(pipe(ends), 0);
    fflush(NULL);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        run_child(call, ends[1]);
    }
    close(ends[1]);
    read_all(ends[0], child.said, sizeof(child.said));
    close(ends[0]);
    CHECK_EQ(waitpid(pid, &child.status, 0), pid);
    return child;
}

static void check_refused(void (*call)(void), const char *name)
{
    Child child = fork_and(call);
    char expected[128];

    snprintf(expected, sizeof(expected),
             "coaio: %s called in a forked child: only exec or _exit may "
             "follow fork\n",
             name);
    if (!strstr(child.said, expected)) {
        harness_fail(__FILE__, __LINE__, "%s: status %#x, said: %s", name,
                     (unsigned)child.status, child.said);
    }
    CHECK(WIFSIGNALED(child.status));
    CHECK_EQ(WTERMSIG(child.status), SIGABRT);
}

/* --- the calls ------------------------------------------------------------*/

static AioContext *ctx;
static AioBH *bh;
static Coroutine *fresh;
static Coroutine *parked;
static AioBHStorage storage;

static void call_coroutine_self(void)
{
    coroutine_self();
}

static void call_coroutine_context(void)
{
    coroutine_context(parked);
}

static void call_aio_context_current(void)
{
    aio_context_current();
}

static void call_aio_context_ref(void)
{
    aio_context_ref(ctx);
}

static void call_coroutine_create(void)
{
    coroutine_create(nothing, NULL);
}

static void call_coroutine_create_full(void)
{
    Coroutine *co;

    coroutine_create_full(&co, nothing, NULL, NULL);
}

static void call_coroutine_delete(void)
{
    coroutine_delete(fresh);
}

static void call_coroutine_enter(void)
{
    coroutine_enter(parked);
}

static void call_enter_if_inactive(void)
{
    coroutine_enter_if_inactive(parked);
}

static void call_aio_co_wake(void)
{
    aio_co_wake(parked);
}

static void call_aio_co_schedule(void)
{
    aio_co_schedule(ctx, fresh);
}

static void call_aio_co_enter(void)
{
    aio_co_enter(ctx, fresh);
}

static void call_aio_context_new(void)
{
    AioContext *new;

    aio_context_new(&new, NULL);
}

static void call_aio_context_attach(void)
{
    aio_context_attach(ctx);
}

static void call_aio_context_main(void)
{
    aio_context_main();
}

static void call_aio_context_unref(void)
{
    aio_context_unref(ctx);
}

static void call_aio_poll(void)
{
    aio_poll(ctx, false);
}

static void call_aio_notify(void)
{
    aio_notify(ctx);
}

static void call_aio_bh_new(void)
{
    aio_bh_new(ctx, nothing, NULL);
}

static void call_aio_bh_schedule(void)
{
    aio_bh_schedule(bh);
}

static void call_aio_bh_schedule_idle(void)
{
    aio_bh_schedule_idle(bh);
}

static void call_aio_bh_cancel(void)
{
    aio_bh_cancel(bh);
}

static void call_aio_bh_delete(void)
{
    aio_bh_delete(bh);
}

static void call_aio_bh_schedule_oneshot(void)
{
    aio_bh_schedule_oneshot(ctx, nothing, NULL);
}

static void call_oneshot_embedded(void)
{
    aio_bh_schedule_oneshot_embedded(ctx, &storage, nothing, NULL);
}

static void call_iothread_new(void)
{
    IOThread *iothread;

    iothread_new(&iothread, "child", NULL);
}

static void call_semaphore_release(void)
{
    CoSemaphore semaphore = {0};

    co_semaphore_release(&semaphore, 1);
}

static void call_semaphore_try_acquire(void)
{
    CoSemaphore semaphore = {0};

    co_semaphore_try_acquire(&semaphore, 1);
}

static int end_at_once(void *opaque)
{
    (void)opaque;
    return 0;
}

static void call_group_run(void)
{
    CoGroup group = {0};

    co_group_run(&group, ctx, end_at_once, NULL);
}

static void call_queue_enter_next(void)
{
    CoQueue queue = {0};

    co_queue_enter_next(&queue, NULL);
}

static void call_install_overflow_handler(void)
{
    aio_install_overflow_handler();
}

static void call_set_fd_handler(void)
{
    aio_set_fd_handler(ctx, STDIN_FILENO, NULL, NULL, NULL, NULL, NULL);
}

static AioTimer timer;

static void call_timer_mod(void)
{
    aio_timer_mod_ns(&timer, INT64_MAX);
}

static void call_timer_del(void)
{
    aio_timer_del(&timer);
}

static void call_wait_while(void)
{
    aio_wait_while(ctx, false);
}

static void call_wait_kick(void)
{
    aio_wait_kick();
}

static void call_wait_bh_oneshot(void)
{
    aio_wait_bh_oneshot(ctx, nothing, NULL);
}

static void call_coroutine_entered(void)
{
    coroutine_entered(parked);
}

static void call_coroutine_name(void)
{
    coroutine_name(parked);
}

static IOThread *parents;

static void call_iothread_ref(void)
{
    iothread_ref(parents);
}

static void call_iothread_context(void)
{
    iothread_context(parents);
}

static void call_iothread_stop(void)
{
    iothread_stop(parents);
}

static void call_iothread_unref(void)
{
    iothread_unref(parents);
}

static const struct {
    void (*call)(void);
    const char *name;
} calls[] = {
    {call_set_fd_handler, "aio_set_fd_handler"},
    {call_timer_mod, "aio_timer_mod_ns"},
    {call_timer_del, "aio_timer_del"},
    {call_wait_while, "aio_wait_while"},
    {call_wait_kick, "aio_wait_kick"},
    {call_wait_bh_oneshot, "aio_wait_bh_oneshot"},
    {call_coroutine_entered, "coroutine_entered"},
    {call_coroutine_name, "coroutine_name"},
    {call_iothread_ref, "iothread_ref"},
    {call_iothread_context, "iothread_context"},
    {call_iothread_stop, "iothread_stop"},
    {call_iothread_unref, "iothread_unref"},
    {call_install_overflow_handler, "aio_install_overflow_handler"},
    {call_semaphore_release, "co_semaphore_release"},
    {call_semaphore_try_acquire, "co_semaphore_try_acquire"},
    {call_group_run, "co_group_run"},
    {call_queue_enter_next, "co_queue_enter_next"},
    {call_coroutine_self, "coroutine_self"},
    {call_coroutine_context, "coroutine_context"},
    {call_aio_context_current, "aio_context_current"},
    {call_aio_context_ref, "aio_context_ref"},
    {call_coroutine_create, "coroutine_create"},
    {call_coroutine_create_full, "coroutine_create_full"},
    {call_coroutine_delete, "coroutine_delete"},
    {call_coroutine_enter, "coroutine_enter"},
    {call_enter_if_inactive, "coroutine_enter"},
    {call_aio_co_wake, "aio_co_wake"},
    {call_aio_co_schedule, "aio_co_schedule"},
    {call_aio_co_enter, "aio_co_enter"},
    {call_aio_context_new, "aio_context_new"},
    {call_aio_context_attach, "aio_context_attach"},
    {call_aio_context_main, "aio_context_main"},
    {call_aio_context_unref, "aio_context_unref"},
    {call_aio_poll, "aio_poll"},
    {call_aio_notify, "aio_notify"},
    {call_aio_bh_new, "aio_bh_new"},
    {call_aio_bh_schedule, "aio_bh_schedule"},
    {call_aio_bh_schedule_idle, "aio_bh_schedule_idle"},
    {call_aio_bh_cancel, "aio_bh_cancel"},
    {call_aio_bh_delete, "aio_bh_delete"},
    {call_aio_bh_schedule_oneshot, "aio_bh_schedule_oneshot"},
    {call_oneshot_embedded, "aio_bh_schedule_oneshot_embedded"},
    {call_iothread_new, "iothread_new"},
};

TEST(every_call_in_a_child_is_refused)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    aio_context_attach(ctx);
    bh = aio_bh_new(ctx, nothing, NULL);
    fresh = coroutine_create(nothing, NULL);
    parked = coroutine_create(park, NULL);
    coroutine_enter(parked);
    aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, nothing, NULL);
    CHECK_EQ(iothread_new(&parents, "parent's", NULL), 0);
    CHECK_EQ(aio_install_overflow_handler(), 0); /* again is no exception */
    for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        check_refused(calls[i].call, calls[i].name);
    }
    /* The parent has not noticed anything. */
    coroutine_enter(parked);
    coroutine_delete(fresh);
    aio_bh_schedule(bh);
    CHECK(aio_poll(ctx, true));
    aio_bh_delete(bh);
    CHECK_EQ(iothread_stop(parents), 0);
    iothread_unref(parents);
    aio_context_unref(ctx);
}

/* --- forked in a coroutine ------------------------------------------------*/

static void call_coroutine_yield(void)
{
    coroutine_yield();
}

static void call_co_reschedule_self(void)
{
    AioContext *other = ctx;

    co_reschedule_self(other);
}

static CoMutex mutex;

static void call_co_mutex_lock(void)
{
    co_mutex_lock(&mutex);
}

static void call_co_mutex_trylock(void)
{
    co_mutex_trylock(&mutex);
}

static void call_co_rwlock_rdlock(void)
{
    CoRwlock rwlock = {0};

    co_rwlock_rdlock(&rwlock);
}

static void call_co_mutex_unlock(void)
{
    co_mutex_unlock(&mutex);
}

/* Each call of io.h begins in the same way. */

static void call_co_send(void)
{
    co_send(STDERR_FILENO, "", 0, 0);
}

static void call_co_close(void)
{
    co_close(STDIN_FILENO);
}

static void call_co_sleep_ns(void)
{
    co_sleep_ns(0);
}

static void fork_inside(void *opaque)
{
    (void)opaque;
    check_refused(call_co_mutex_unlock, "co_mutex_unlock");
    check_refused(call_co_send, "co_send");
    check_refused(call_co_close, "co_close");
    check_refused(call_co_sleep_ns, "co_sleep_ns");
    check_refused(call_co_mutex_lock, "co_mutex_lock");
    check_refused(call_co_mutex_trylock, "co_mutex_trylock");
    check_refused(call_co_rwlock_rdlock, "co_rwlock_rdlock");
    check_refused(call_coroutine_yield, "coroutine_yield");
    check_refused(call_co_reschedule_self, "co_reschedule_self");
    check_refused(call_coroutine_create, "coroutine_create");
}

TEST(a_child_forked_in_a_coroutine_is_refused)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    coroutine_enter(coroutine_create(fork_inside, NULL));
    aio_context_unref(ctx);
}

/* --- what makes a process a coaio process ---------------------------------*/

/*
 * Any first use counts.  That of a context which nobody had attached did not,
 * nor that of a coroutine whose size is not pooled.
 */
TEST(a_child_forked_after_the_first_context_is_refused)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    check_refused(call_aio_bh_schedule_oneshot, "aio_bh_schedule_oneshot");
    aio_context_unref(ctx);
}

TEST(a_child_forked_after_the_first_coroutine_is_refused)
{
    fresh = coroutine_create(nothing, NULL);
    check_refused(call_coroutine_create, "coroutine_create");
    coroutine_delete(fresh);
}

TEST(a_child_forked_after_the_first_large_coroutine_is_refused)
{
    CoroutineOptions options = {
        .size = sizeof(options),
        .stack_size = 1 << 20,
    };

    CHECK_EQ(coroutine_create_full(&fresh, nothing, NULL, &options), 0);
    check_refused(call_coroutine_delete, "coroutine_delete");
    coroutine_delete(fresh);
}

TEST(a_child_forked_after_the_first_iothread_is_refused)
{
    IOThread *iothread;

    CHECK_EQ(iothread_new(&iothread, "parent", NULL), 0);
    ctx = iothread_context(iothread);
    check_refused(call_aio_bh_schedule_oneshot, "aio_bh_schedule_oneshot");
    check_refused(call_aio_context_new, "aio_context_new");
    iothread_unref(iothread);
}

/* --- what is allowed ------------------------------------------------------*/

static void just_exit(void)
{
    _exit(5);
}

TEST(a_child_may_exit)
{
    Child child;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    aio_context_attach(ctx);
    child = fork_and(just_exit);
    CHECK(WIFEXITED(child.status));
    CHECK_EQ(WEXITSTATUS(child.status), 5);
    CHECK_STR(child.said, "");
    aio_context_unref(ctx);
}

static void exec_true(void)
{
    execl("/bin/sh", "sh", "-c", "exit 6", (char *)NULL);
}

TEST(a_child_may_exec)
{
    IOThread *iothread;
    Child child;

    CHECK_EQ(iothread_new(&iothread, "parent", NULL), 0);
    child = fork_and(exec_true);
    CHECK(WIFEXITED(child.status));
    CHECK_EQ(WEXITSTATUS(child.status), 6);
    CHECK_STR(child.said, "");
    iothread_unref(iothread);
}

static void use_everything(void)
{
    AioContext *own;

    if (aio_context_new(&own, NULL) == 0) {
        aio_bh_schedule_oneshot(own, nothing, NULL);
        if (aio_poll(own, true)) {
            coroutine_enter(coroutine_create(nothing, NULL));
            aio_context_unref(own);
            _exit(7);
        }
    }
}

TEST(a_child_forked_before_the_first_use_may_do_all)
{
    Child child = fork_and(use_everything);

    CHECK(WIFEXITED(child.status));
    CHECK_EQ(WEXITSTATUS(child.status), 7);
    CHECK_STR(child.said, "");
}

TEST_MAIN()
