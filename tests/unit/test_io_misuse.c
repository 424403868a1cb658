/* SPDX-License-Identifier: MIT */
/*
 * Misuse of io.h: outside coroutines, and on a descriptor that has handlers,
 * each call aborts with a line that names it.
 */
#include "go.h"

#include <coaio/fd.h>
#include <coaio/io.h>
#include <poll.h>
#include <sys/socket.h>

static char byte;
static struct iovec iov = {&byte, 1};
static struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

static int return_0(void *opaque)
{
    (void)opaque;
    return 0;
}

/* --- outside coroutines ---------------------------------------------------*/

#define OUTSIDE(call, ...)                                        \
    TEST_ABORTS(call##_outside_coroutines,                        \
                "^coaio: " #call ": called outside a coroutine$") \
    {                                                             \
        call(__VA_ARGS__);                                        \
    }

OUTSIDE(co_read, 0, &byte, 1)
OUTSIDE(co_write, 1, &byte, 1)
OUTSIDE(co_pread, 0, &byte, 1, 0)
OUTSIDE(co_pwrite, 1, &byte, 1, 0)
OUTSIDE(co_preadv, 0, &iov, 1, 0)
OUTSIDE(co_pwritev, 1, &iov, 1, 0)
OUTSIDE(co_recv, 0, &byte, 1, 0)
OUTSIDE(co_send, 1, &byte, 1, 0)
OUTSIDE(co_recvmsg, 0, &msg, 0)
OUTSIDE(co_sendmsg, 1, &msg, 0)
OUTSIDE(co_accept, 0, NULL, NULL, 0)
OUTSIDE(co_connect, 0, NULL, 0)
OUTSIDE(co_fsync, 1)
OUTSIDE(co_fdatasync, 1)
OUTSIDE(co_fallocate, 1, 0, 0, 1)
OUTSIDE(co_close, 0)
OUTSIDE(co_poll_fd, 0, POLLIN, 0)
OUTSIDE(co_sleep_ns, 0)
OUTSIDE(co_run_in_worker, return_0, NULL)

/* --- on a descriptor with handlers ----------------------------------------*/

static int fds[2];

static void handler(void *opaque)
{
    (void)opaque;
}

static void call_with_handler(CoroutineEntry *entry)
{
    CoroutineOptions options = {.size = sizeof(options), .name = "caller"};
    AioContext *ctx = go_begin(NULL);
    Coroutine *co;

    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    CHECK_EQ(aio_set_fd_handler(ctx, fds[0], handler, NULL, NULL, NULL, NULL),
             0);
    CHECK_EQ(coroutine_create_full(&co, entry, NULL, &options), 0);
    coroutine_enter(co);
}

#define WITH_HANDLER(call, ...)                                            \
    static void coroutine_fn call##_now(void *opaque)                      \
    {                                                                      \
        (void)opaque;                                                      \
        call(__VA_ARGS__);                                                 \
    }                                                                      \
    TEST_ABORTS(call##_with_a_handler,                                     \
                "^coaio: " #call " called by coroutine \"caller\" for fd " \
                "[0-9]+, which has a handler in context \"here\": remove " \
                "that first$")                                             \
    {                                                                      \
        call_with_handler(call##_now);                                     \
    }

WITH_HANDLER(co_read, fds[0], &byte, 1)
WITH_HANDLER(co_write, fds[0], &byte, 1)
WITH_HANDLER(co_pread, fds[0], &byte, 1, 0)
WITH_HANDLER(co_pwrite, fds[0], &byte, 1, 0)
WITH_HANDLER(co_preadv, fds[0], &iov, 1, 0)
WITH_HANDLER(co_pwritev, fds[0], &iov, 1, 0)
WITH_HANDLER(co_recv, fds[0], &byte, 1, 0)
WITH_HANDLER(co_send, fds[0], &byte, 1, 0)
WITH_HANDLER(co_recvmsg, fds[0], &msg, 0)
WITH_HANDLER(co_sendmsg, fds[0], &msg, 0)
WITH_HANDLER(co_accept, fds[0], NULL, NULL, 0)
WITH_HANDLER(co_connect, fds[0], NULL, 0)
WITH_HANDLER(co_fsync, fds[0])
WITH_HANDLER(co_fdatasync, fds[0])
WITH_HANDLER(co_fallocate, fds[0], 0, 0, 1)
WITH_HANDLER(co_close, fds[0])
WITH_HANDLER(co_poll_fd, fds[0], POLLIN, 0)

TEST_MAIN()
