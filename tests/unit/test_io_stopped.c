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
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
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

static sem_t worker_begun, worker_may_end;

static ssize_t be_slow(void *arg)
{
    (void)arg;
    gate_open(&worker_begun);
    gate_pass(&worker_may_end);
    return 0;
}

static ssize_t coroutine_fn work_slowly(int fd)
{
    const IoUse use = io_use(io_fd_get(fd));

    return io_run_in_worker(&use, be_slow, NULL, "test");
}

static ssize_t coroutine_fn close_number(int fd)
{
    return co_close(fd);
}

typedef struct Accept {
    int listener;
    int fd;
    bool done;
} Accept;

static void coroutine_fn accept_one(void *opaque)
{
    Accept *a = opaque;

    a->fd = co_accept(a->listener, NULL, NULL, 0);
    a->done = true;
}

/* A listening socket, and one that is connected to it. */
static int listen_and_connect(int *client)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = sizeof(address.sun_family);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    /* An address of the kernel's choice. */
    CHECK_EQ(bind(listener, (struct sockaddr *)&address, length), 0);
    CHECK_EQ(listen(listener, 1), 0);
    length = sizeof(address);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    *client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(*client, (struct sockaddr *)&address, length), 0);
    return listener;
}

static void coroutine_fn receive_here(void *opaque)
{
    Left *left = opaque;
    char byte;

    CHECK_EQ(co_recv(left->fd, &byte, 1, 0), 1);
    left->done = true;
}

/*
 * The number stayed one that is being closed: whatever co_accept() gave it to
 * could neither wait nor be closed.
 */
ON_EACH_ENGINE(a_close)
{
    AioContext *ctx;
    LoopThread loop;
    Left work = {.call = work_slowly}, closing = {.call = close_number};
    Left receiving = {.done = false};
    Accept accepted = {.done = false};
    int client;

    CHECK_EQ(setenv("COAIO_ENGINE", engine, 1), 0);
    ctx = go_begin(engine);
    accepted.listener = listen_and_connect(&client);
    work.fd = closing.fd = make_file();
    gate_init(&worker_begun);
    gate_init(&worker_may_end);
    loop_thread_start(&loop, "loop");
    loop_call(loop.ctx, begin_call, &work);
    gate_pass(&worker_begun);
    loop_call(loop.ctx, begin_call, &closing);
    loop_thread_join(&loop);
    gate_open(&worker_may_end);
    CHECK(!closing.done);
    CHECK_EQ(close(closing.fd), 0);

    go(accept_one, &accepted);
    go_until(ctx, &accepted.done);
    CHECK_EQ(accepted.fd, closing.fd);
    receiving.fd = accepted.fd;
    go(receive_here, &receiving);
    CHECK(!receiving.done);
    CHECK_EQ(write(client, "r", 1), 1);
    go_until(ctx, &receiving.done);
    check_closes(ctx, accepted.fd);
    check_end_of(client);
    close(accepted.listener);
    end(ctx);
}

TEST_MAIN()
