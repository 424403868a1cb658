/* SPDX-License-Identifier: MIT */
/*
 * Choosing the engine of a context.
 *
 * Guarantees: what somebody asked for by name, in the options or in the
 * environment, is used or refused; only without a name another engine takes
 * the place of one that does not work on this machine.  One exception: where
 * the environment asks for io_uring and this machine refuses it (containers
 * and administrators do so), the best engine besides takes its place, and one
 * line says why.
 */
#include "loop/poller/poller.h"

#include "base/assert.h"
#include "base/compiler.h"
#include "loop/context.h"
#include "os/misc.h"

#include <errno.h>
#include <string.h>

/* Best first, io_uring excepted: it is used where it is asked for. */
static const PollerOps *const engines[] = {
    &poller_epoll,
    &poller_poll,
};

static int open_engine(AioContext *ctx, const PollerOps *ops)
{
    int ret;

    ctx->poller.state = NULL;
    ret = ops->open(ctx);
    if (ret == 0) {
        ctx->poller.ops = ops;
    }
    return ret;
}

static int open_best(AioContext *ctx)
{
    int ret = -ENOSYS;

    for (size_t i = 0; i < ARRAY_SIZE(engines) && ret == -ENOSYS; i++) {
        ret = open_engine(ctx, engines[i]);
    }
    return ret;
}

static int open_uring_engine(AioContext *ctx)
{
#ifdef COAIO_HAVE_URING
    return open_engine(ctx, &poller_uring);
#else
    (void)ctx;
    return -ENOPKG;
#endif
}

/* Why io_uring does not work here, or NULL: for a reason that would stop any
 * engine. */
static const char *refusal(int error)
{
    switch (error) {
    case -ENOPKG:
        return "this library was built without it";
    case -ENOSYS:
        return "the kernel has none, or one that is too old";
    case -EPERM:
    case -EACCES:
        return "kernel.io_uring_disabled or a seccomp filter forbids it";
    case -ENOBUFS:
        return "no memory for it, or RLIMIT_MEMLOCK is too low";
    default:
        return NULL;
    }
}

/* The environment asks for io_uring. */
static COLD int open_uring_or_best(AioContext *ctx)
{
    static int said; /* atomic */
    int ret = open_uring_engine(ctx);

    if (ret == 0 || !refusal(ret)) {
        return ret;
    }
    if (xchg_relaxed(&said, 1) == 0) {
        warn_line("COAIO_ENGINE asks for io_uring, which does not work here "
                  "(%s): another engine takes its place",
                  refusal(ret));
    }
    return open_best(ctx);
}

static bool is_uring(const char *name)
{
    return strcmp(name, "uring") == 0 || strcmp(name, "io_uring") == 0;
}

static int open_named(AioContext *ctx, const char *name)
{
    int ret;

    if (is_uring(name)) {
        ret = open_uring_engine(ctx);
        if (ret == -ENOBUFS) {
            return -ENOMEM;
        }
        return ret < 0 && refusal(ret) ? -ENOSYS : ret;
    }
    for (size_t i = 0; i < ARRAY_SIZE(engines); i++) {
        if (strcmp(engines[i]->name, name) == 0) {
            return open_engine(ctx, engines[i]);
        }
    }
    return -EINVAL;
}

int poller_open(AioContext *ctx, const char *name)
{
    const char *wish;

    if (name && name[0]) {
        return open_named(ctx, name);
    }
    wish = name ? NULL : os_getenv("COAIO_ENGINE");
    if (!wish || !wish[0]) {
        return open_best(ctx);
    }
    return is_uring(wish) ? open_uring_or_best(ctx) : open_named(ctx, wish);
}

void poller_close(AioContext *ctx)
{
    ctx->poller.ops->close(ctx);
    ctx->poller.ops = NULL;
    ctx->poller.state = NULL;
}
