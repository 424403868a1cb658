/* SPDX-License-Identifier: MIT */

/*
 * In a forked child a call of coaio aborts, with a line that names the call,
 * and the parent goes on.  Each call is made in a child of its own, whose
 * report is read.
 */

#include "harness.h"

#include <coaio/coaio.h>

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the calls work on: made before the fork. */
static AioContext *ctx;
static Coroutine *parked;
static AioBH *bh;
static AioTimer timer;
static IOThread *iothread;
static AioBHStorage storage;

static void nothing(void *opaque)
{
    (void)opaque;
}

static void coroutine_fn park(void *opaque)
{
    (void)opaque;
    coroutine_yield();
}

static void call_create(void)
{
    coroutine_create(park, NULL);
}

static void call_create_full(void)
{
    Coroutine *co;

    coroutine_create_full(&co, park, NULL, NULL);
}

static void call_enter(void)
{
    coroutine_enter(parked);
}

static void call_context_new(void)
{
    AioContext *other;

    aio_context_new(&other, NULL);
}

static void call_context_unref(void)
{
    aio_context_unref(ctx);
}

static void call_attach(void)
{
    aio_context_attach(ctx);
}

static void call_main(void)
{
    aio_context_main();
}

static void call_poll(void)
{
    aio_poll(ctx, false);
}

static void call_notify(void)
{
    aio_notify(ctx);
}

static void call_bh_new(void)
{
    aio_bh_new(ctx, nothing, NULL);
}

static void call_bh_schedule(void)
{
    aio_bh_schedule(bh);
}

static void call_bh_schedule_idle(void)
{
    aio_bh_schedule_idle(bh);
}

static void call_bh_cancel(void)
{
    aio_bh_cancel(bh);
}

static void call_oneshot(void)
{
    aio_bh_schedule_oneshot(ctx, nothing, NULL);
}

static void call_embedded(void)
{
    aio_bh_schedule_oneshot_embedded(ctx, &storage, nothing, NULL);
}

static void call_fd_handler(void)
{
    aio_set_fd_handler(ctx, 0, nothing, NULL, NULL, NULL, NULL);
}

static void call_timer_mod(void)
{
    aio_timer_mod_ns(&timer, INT64_MAX);
}

static void call_timer_del(void)
{
    aio_timer_del(&timer);
}

static void call_wake(void)
{
    aio_co_wake(parked);
}

static void call_schedule(void)
{
    aio_co_schedule(ctx, parked);
}

static void call_co_enter(void)
{
    aio_co_enter(ctx, parked);
}

static void call_wait_while(void)
{
    aio_wait_while(ctx, false);
}

static void call_kick(void)
{
    aio_wait_kick();
}

static void call_iothread_new(void)
{
    IOThread *other;

    iothread_new(&other, "other", NULL);
}

static void call_iothread_stop(void)
{
    iothread_stop(iothread);
}

static void call_iothread_unref(void)
{
    iothread_unref(iothread);
}

/* Make the call in a child; it must abort with a line that begins so. */
static void check_aborts(const char *name, void (*call)(void))
{
    char text[512] = "", line[128];
    size_t length = 0;
    ssize_t n;
    int fds[2], status;
    pid_t pid;

    CHECK_EQ(pipe(fds), 0);
    pid = fork();
    if (pid == 0) {
        dup2(fds[1], STDERR_FILENO);
        call();
        _exit(0);
    }
    close(fds[1]);
    while ((n = read(fds[0], text + length, sizeof(text) - 1 - length)) > 0) {
        length += (size_t)n;
    }
    close(fds[0]);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    snprintf(line, sizeof(line), "coaio: %s called in a forked child", name);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT ||
        strncmp(text, line, strlen(line)) != 0) {
        harness_fail(__FILE__, __LINE__, "%s: status %#x, said \"%s\"", name,
                     (unsigned)status, text);
    }
}

static void set_up(void)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    aio_context_attach(ctx);
    CHECK_EQ(iothread_new(&iothread, "before", NULL), 0);
    bh = aio_bh_new(ctx, nothing, NULL);
    aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, nothing, NULL);
    parked = coroutine_create(park, NULL);
    coroutine_enter(parked);
}

static void tear_down(void)
{
    coroutine_enter(parked);
    aio_bh_delete(bh);
    iothread_unref(iothread);
    aio_context_unref(ctx);
}

TEST(calls_outside_coroutines_abort)
{
    static const struct {
        const char *name;
        void (*call)(void);
    } calls[] = {
        { "coroutine_create", call_create },
        { "coroutine_create_full", call_create_full },
        { "coroutine_enter", call_enter },
        { "aio_context_new", call_context_new },
        { "aio_context_unref", call_context_unref },
        { "aio_context_attach", call_attach },
        { "aio_context_main", call_main },
        { "aio_poll", call_poll },
        { "aio_notify", call_notify },
        { "aio_bh_new", call_bh_new },
        { "aio_bh_schedule", call_bh_schedule },
        { "aio_bh_schedule_idle", call_bh_schedule_idle },
        { "aio_bh_cancel", call_bh_cancel },
        { "aio_bh_schedule_oneshot", call_oneshot },
        { "aio_bh_schedule_oneshot_embedded", call_embedded },
        { "aio_set_fd_handler", call_fd_handler },
        { "aio_timer_mod_ns", call_timer_mod },
        { "aio_timer_del", call_timer_del },
        { "aio_co_wake", call_wake },
        { "aio_co_schedule", call_schedule },
        { "aio_co_enter", call_co_enter },
        { "aio_wait_while", call_wait_while },
        { "aio_wait_kick", call_kick },
        { "iothread_new", call_iothread_new },
        { "iothread_stop", call_iothread_stop },
        { "iothread_unref", call_iothread_unref },
    };

    set_up();
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        check_aborts(calls[i].name, calls[i].call);
    }
    tear_down(); /* the parent goes on */
}

/* --- in a coroutine -------------------------------------------------------*/

static void call_yield(void)
{
    coroutine_yield();
}

static void call_sleep(void)
{
    co_sleep_ns(0);
}

static void call_read(void)
{
    char c;

    co_read(0, &c, 1);
}

static int no_work(void *arg)
{
    (void)arg;
    return 0;
}

static void call_worker(void)
{
    co_run_in_worker(no_work, NULL);
}

static void coroutine_fn fork_inside(void *opaque)
{
    check_aborts("coroutine_yield", call_yield);
    check_aborts("co_sleep_ns", call_sleep);
    check_aborts("co_read", call_read);
    check_aborts("co_run_in_worker", call_worker);
    *(bool *)opaque = true;
}

TEST(calls_in_coroutines_abort)
{
    bool done = false;

    set_up();
    coroutine_enter(coroutine_create(fork_inside, &done));
    CHECK(done);
    tear_down();
}

TEST_MAIN()
