/* SPDX-License-Identifier: MIT */
/*
 * Choosing the engine of a context.
 *
 * Guarantees: what somebody asked for by name, in the options or in the
 * environment, is used or refused; only without a name another engine takes
 * the place of one that does not work on this machine.  One exception: where
 * the environment asks for io_uring and this machine refuses it (containers
 * and administrators do so), the best engine besides takes its place.
 *
 * "auto", which is also what no wish means, is io_uring, but of a kernel that
 * has all that the engine makes use of.  Where that does not work, each context
 * by itself does without, and the first one says why in one line.  Contexts
 * made later do not try again what this process will never be allowed.
 */
#include "loop/poller/poller.h"

#include "base/assert.h"
#include "base/compiler.h"
#include "loop/context.h"
#include "os/misc.h"

#include <errno.h>
#include <string.h>

/* Best first, after io_uring. */
static const PollerOps *const engines[] = {
    &poller_epoll,
    &poller_poll,
};

/* The best that works here. */
#define AUTO "auto"

static int open_engine(AioContext *ctx, const PollerOps *ops)
{
    int ret;

    ctx->poller.state = NULL;
    ret = ops->open(ctx);
    if (ret == 0) {
        store_relaxed(&ctx->poller.ops, ops);
    }
    return ret;
}

/* The best but io_uring. */
static int open_other(AioContext *ctx)
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

/* --- where io_uring does not work -----------------------------------------*/

/* Why; or NULL, for a reason that would stop any engine. */
static const char *refusal(int error)
{
    switch (error) {
    case -ENOPKG:
        return "this library was built without it";
    case -ENOSYS:
        return "the kernel has none, or a seccomp filter hides it";
    case -EOPNOTSUPP:
        return "the kernel is too old";
    case -EPERM:
    case -EACCES:
        return "a seccomp filter or a security module forbids it";
    case -ENOBUFS:
        return "no memory for it, or RLIMIT_MEMLOCK is too low";
    default:
        return NULL;
    }
}

static const char *refusal_in_full(int error)
{
#ifdef COAIO_HAVE_URING
    if (error == -EPERM || error == -EACCES) {
        switch (os_uring_disabled()) {
        case 1:
            return "kernel.io_uring_disabled is 1: not without privileges";
        case 2:
            return "kernel.io_uring_disabled is 2";
        default:
            break;
        }
    }
#endif
    return refusal(error);
}

static COLD void say_why(const char *asked, int error)
{
    static int said; /* atomic */

    if (xchg_relaxed(&said, 1) == 0) {
        warn_line("%sio_uring does not work here (%s): another engine takes "
                  "its place; COAIO_ENGINE=epoll does not even try",
                  asked, refusal_in_full(error));
    }
}

static bool for_good(int error)
{
    return error == -EPERM || error == -EACCES || error == -ENOSYS ||
           error == -EOPNOTSUPP;
}

/* The environment asks for io_uring. */
static COLD int open_uring_or_other(AioContext *ctx)
{
    int ret = open_uring_engine(ctx);

    if (ret == 0 || !refusal(ret)) {
        return ret;
    }
    say_why("COAIO_ENGINE asks for io_uring; ", ret);
    return open_other(ctx);
}

/* Somebody asks for the best, or for nothing. */
static int open_best(AioContext *ctx)
{
    static int refused; /* atomic; -errno, for good */
    int ret = load_relaxed(&refused);

    ctx->poller.best = true;
    if (ret == 0) {
        ret = open_uring_engine(ctx);
    }
    if (ret == 0) {
        return 0;
    }
    if (for_good(ret)) {
        store_relaxed(&refused, ret);
    }
    /* Who has built it without it knows; other errors are epoll's, too. */
    if (ret != -ENOPKG && refusal(ret)) {
        say_why("", ret);
    }
    return open_other(ctx);
}

/* For fd_rewatch(), which holds the lock of the fd table. */
static int replace(AioContext *ctx)
{
    Poller before = ctx->poller;
    void *state;
    int ret = open_other(ctx);

    state = ctx->poller.state;
    ctx->poller.state = before.state;
    if (ret < 0) {
        return ret;
    }
    before.ops->close(ctx);
    ctx->poller.state = state;
    store_relaxed(&ctx->poller.due, 0);
    return 0;
}

int poller_replace(AioContext *ctx, int error)
{
    if (!ctx->poller.replaceable || !refusal(error) ||
        fd_rewatch(ctx, replace) < 0) {
        return error;
    }
    say_why("", error);
    return 0;
}

/* --- by name --------------------------------------------------------------*/

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

    if (name && strcmp(name, AUTO) == 0) {
        ctx->poller.replaceable = true;
        return open_best(ctx);
    }
    if (name && name[0]) {
        return open_named(ctx, name);
    }
    wish = name ? NULL : os_getenv("COAIO_ENGINE");
    ctx->poller.replaceable = true;
    if (!wish || !wish[0] || strcmp(wish, AUTO) == 0) {
        return open_best(ctx);
    }
    return is_uring(wish) ? open_uring_or_other(ctx) : open_named(ctx, wish);
}

void poller_close(AioContext *ctx)
{
    ctx->poller.ops->close(ctx);
    ctx->poller.ops = NULL;
    ctx->poller.state = NULL;
}
