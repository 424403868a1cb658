/* SPDX-License-Identifier: MIT */
/*
 * Choosing the engine of a context.
 *
 * Guarantees: what somebody asked for by name, in the options or in the
 * environment, is used or refused; only without a name another engine takes
 * the place of one that does not work on this machine.
 */
#include "loop/poller/poller.h"

#include "base/compiler.h"
#include "loop/context.h"
#include "os/misc.h"

#include <errno.h>
#include <string.h>

/* Best first. */
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

int poller_open(AioContext *ctx, const char *name)
{
    if (!name) {
        name = os_getenv("COAIO_ENGINE");
    }
    if (!name || !name[0]) {
        return open_best(ctx);
    }
    for (size_t i = 0; i < ARRAY_SIZE(engines); i++) {
        if (strcmp(engines[i]->name, name) == 0) {
            return open_engine(ctx, engines[i]);
        }
    }
    /* An engine of this name is part of the design, not of this release. */
    return strcmp(name, "uring") == 0 ? -ENOSYS : -EINVAL;
}

void poller_close(AioContext *ctx)
{
    ctx->poller.ops->close(ctx);
    ctx->poller.ops = NULL;
    ctx->poller.state = NULL;
}
