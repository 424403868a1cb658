/* SPDX-License-Identifier: MIT */
/*
 * What a thread that has ended leaves behind holds no file: neither its
 * handlers, nor the coroutines that are parked in its context for good.
 */
#include "go.h"
#include "io/io_int.h"
#include "loopthread.h"

#include <coaio/fd.h>
#include <coaio/io.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define SIZE 65536

typedef struct Left {
    ssize_t (*call)(int fd);
    int fd;
    bool done;
} Left;

static void coroutine_fn make_call(void *opaque)
{
    Left *left = opaque;

    left->call(left->fd);
    left->done = true;
}

static void begin_call(void *opaque)
{
    coroutine_enter(coroutine_create(make_call, opaque));
}

static void nothing(void *opaque)
{
    (void)opaque;
}

/* Passes, one of which looks at the descriptors. */
static void let_pass(LoopThread *loop)
{
    for (int i = 0; i < 20; i++) {
        loop_call(loop->ctx, nothing, NULL);
    }
}

typedef struct Close {
    int fd;
    int result;
    bool done;
} Close;

static void coroutine_fn close_it(void *opaque)
{
    Close *close = opaque;

    close->result = co_close(close->fd);
    close->done = true;
}

static void check_closes(AioContext *ctx, int fd)
{
    Close close = {.fd = fd};

    go(close_it, &close);
    go_until(ctx, &close.done);
    CHECK_EQ(close.result, 0);
}

/* Nobody has the other end any more. */
static void check_end_of(int fd)
{
    char byte;

    CHECK_EQ(recv(fd, &byte, 1, MSG_DONTWAIT), 0);
    close(fd);
}

static void pair(int fds[2])
{
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
}

/* --- handlers -------------------------------------------------------------*/

typedef struct Watch {
    AioContext *ctx;
    int fd;
} Watch;

static void never(void *opaque)
{
    (void)opaque;
    CHECK(false);
}

static void watch(void *opaque)
{
    Watch *w = opaque;

    CHECK_EQ(aio_set_fd_handler(w->ctx, w->fd, never, NULL, NULL, NULL, NULL),
             0);
}

ON_EACH_ENGINE(a_handler)
{
    LoopThread loop;
    Watch w;
    int fds[2];

    CHECK_EQ(setenv("COAIO_ENGINE", engine, 1), 0);
    pair(fds);
    loop_thread_start(&loop, "loop");
    w = (Watch){loop.ctx, fds[0]};
    loop_call(loop.ctx, watch, &w);
    let_pass(&loop);
    loop_thread_join(&loop);
    CHECK_EQ(aio_set_fd_handler(loop.ctx, fds[0], NULL, NULL, NULL, NULL, NULL),
             0);
    close(fds[0]);
    check_end_of(fds[1]);
    aio_context_unref(loop.ctx);
}

/* --- coroutines -----------------------------------------------------------*/

/* A coroutine is left, and with it the context and its descriptors. */
static void end(AioContext *ctx)
{
    go_end(ctx);
    harness_allow_fds(3);
    _exit(0);
}

static ssize_t coroutine_fn receive(int fd)
{
    char byte;

    return co_recv(fd, &byte, 1, 0);
}

static ssize_t coroutine_fn wait_for(int fd)
{
    return co_poll_fd(fd, POLLIN, -1);
}

static void check_left_at_socket(const char *engine, ssize_t (*call)(int fd))
{
    AioContext *ctx;
    LoopThread loop;
    Left left;
    int fds[2];

    CHECK_EQ(setenv("COAIO_ENGINE", engine, 1), 0);
    ctx = go_begin(engine);
    pair(fds);
    left = (Left){call, fds[0], false};
    loop_thread_start(&loop, "loop");
    loop_call(loop.ctx, begin_call, &left);
    let_pass(&loop);
    loop_thread_join(&loop);
    CHECK(!left.done);
    check_closes(ctx, fds[0]);
    check_end_of(fds[1]);
    end(ctx);
}

ON_EACH_ENGINE(a_receive)
{
    check_left_at_socket(engine, receive);
}

ON_EACH_ENGINE(a_wait_for_readiness)
{
    check_left_at_socket(engine, wait_for);
}

static ssize_t coroutine_fn sync_it(int fd)
{
    return co_fsync(fd);
}

/* On disk, so that the engine, or a worker, has something to do. */
static int make_file(void)
{
    static const char bytes[SIZE];
    char path[] = "/var/tmp/coaio-test-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC);

    CHECK(fd >= 0);
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(write(fd, bytes, SIZE), SIZE);
    return fd;
}

/* co_close() waited for ever for a call that the ring had made, and of which
 * nobody was there to be told. */
ON_EACH_ENGINE(a_call_on_a_file)
{
    AioContext *ctx;
    LoopThread loop;
    Left left;

    as_usual_on_uring();
    CHECK_EQ(setenv("COAIO_ENGINE", engine, 1), 0);
    ctx = go_begin(engine);
    left = (Left){sync_it, make_file(), false};
    loop_thread_start(&loop, "loop");
    loop_call(loop.ctx, begin_call, &left);
    loop_thread_join(&loop);
    check_closes(ctx, left.fd);
    end(ctx);
}

/* --- who was left in co_close() ------------------------------------------*/

typedef struct Work {
    sem_t begun, may_end;
    int fd; /* -1: no descriptor */
} Work;

static ssize_t be_slow(void *opaque)
{
    Work *work = opaque;

    gate_open(&work->begun);
    gate_pass(&work->may_end);
    return 0;
}

static void coroutine_fn work_slowly(void *opaque)
{
    Work *work = opaque;
    const IoUse use = work->fd < 0 ? (IoUse){NULL, 0}
                                   : io_use(io_fd_get(work->fd));

    io_run_in_worker(work->fd < 0 ? NULL : &use, be_slow, work, "test");
}

/* In ctx; returns when a worker has begun. */
static void begin_work(Work *work, int fd)
{
    gate_init(&work->begun);
    gate_init(&work->may_end);
    work->fd = fd;
    go(work_slowly, work);
    gate_pass(&work->begun);
}

static ssize_t coroutine_fn close_number(int fd)
{
    return co_close(fd);
}

static void coroutine_fn receive_here(void *opaque)
{
    Left *left = opaque;

    CHECK_EQ(receive(left->fd), 1);
    left->done = true;
}

/* It is a number like any other. */
static void check_usable(AioContext *ctx, int fd)
{
    Left receiving = {.fd = fd};
    int fds[2];

    pair(fds);
    CHECK_EQ(fds[0], fd);
    go(receive_here, &receiving);
    CHECK(!receiving.done);
    CHECK_EQ(write(fds[1], "r", 1), 1);
    go_until(ctx, &receiving.done);
    check_closes(ctx, fd);
    check_end_of(fds[1]);
}

static int open_low(void)
{
    int fd = make_file(), low = dup(STDIN_FILENO);

    CHECK(low > fd); /* so nothing below is free */
    close(low);
    return fd;
}

/*
 * The number stayed one that is being closed: it could not be closed, and
 * nobody could wait on what came after.
 */
ON_EACH_ENGINE(a_close)
{
    AioContext *ctx;
    LoopThread loop;
    Left closing = {.call = close_number};
    Work work;

    CHECK_EQ(setenv("COAIO_ENGINE", engine, 1), 0);
    closing.fd = open_low();
    ctx = go_begin(engine);
    begin_work(&work, closing.fd);
    loop_thread_start(&loop, "loop");
    loop_call(loop.ctx, begin_call, &closing);
    loop_thread_join(&loop);
    CHECK(!closing.done);
    gate_open(&work.may_end);
    check_closes(ctx, closing.fd);
    check_usable(ctx, closing.fd);
    end(ctx);
}

/* What a worker has taken over it does, and nobody else does it again. */
ON_EACH_ENGINE(a_close_that_waits_for_a_worker)
{
    AioContext *ctx;
    LoopThread loop;
    Left closing = {.call = close_number};
    Close again;
    Work work[WORKER_MAX];

    CHECK_EQ(setenv("COAIO_ENGINE", engine, 1), 0);
    closing.fd = open_low();
    again = (Close){.fd = closing.fd};
    ctx = go_begin(engine);
    for (int i = 0; i < WORKER_MAX; i++) {
        begin_work(&work[i], -1);
    }
    loop_thread_start(&loop, "loop");
    loop_call(loop.ctx, begin_call, &closing);
    loop_thread_join(&loop);
    CHECK(!closing.done);
    go(close_it, &again);
    CHECK(again.done);
    CHECK_EQ(again.result, -EBADF);
    CHECK(fcntl(closing.fd, F_GETFD) >= 0);
    for (int i = 0; i < WORKER_MAX; i++) {
        gate_open(&work[i].may_end);
    }
    while (fcntl(closing.fd, F_GETFD) >= 0) {
        sched_yield();
    }
    check_usable(ctx, closing.fd);
    end(ctx);
}

TEST_MAIN()
