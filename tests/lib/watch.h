/* SPDX-License-Identifier: MIT */
#ifndef COAIO_TESTS_WATCH_H
#define COAIO_TESTS_WATCH_H

/*
 * Handlers of descriptors, for tests that have one context: ctx.
 */
#include "harness.h"

#include <coaio/context.h>
#include <coaio/fd.h>
#include <sys/socket.h>
#include <unistd.h>

static AioContext *ctx;

static inline void open_pair(int fds[2])
{
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
}

static inline void close_pair(const int fds[2])
{
    close(fds[0]);
    close(fds[1]);
}

static inline void poke(int fd)
{
    CHECK_EQ(write(fd, "x", 1), 1);
}

/* A handler, of an unsigned. */
static inline void count(void *opaque)
{
    ++*(unsigned *)opaque;
}

static inline void watch(int fd, AioFdFunc *on_read, AioFdFunc *on_write,
                         void *opaque)
{
    CHECK_EQ(aio_set_fd_handler(ctx, fd, on_read, on_write, NULL, NULL, opaque),
             0);
}

static inline void unwatch(int fd)
{
    watch(fd, NULL, NULL, NULL);
}

#endif
