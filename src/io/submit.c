/* SPDX-License-Identifier: MIT */
/*
 * Operations that the engine of the context makes by itself, with the coroutine
 * parked meanwhile: on files, where io_uring is the engine.
 *
 * Guarantees that the coroutine goes on only when the kernel uses neither the
 * buffers nor the descriptor any more, cancelled or not; and that co_close()
 * waits for that, too.  So from here until the kernel has taken the request in
 * (in the next wait of the engine) the number means what it meant here, unless
 * somebody uses close(2).
 *
 * INVARIANTS
 *
 *   1. The completion alone ends the wait, once.  A cancel only makes it come
 *      earlier.
 */
#include "io/io_int.h"

#include "loop/context.h"

#include <errno.h>

typedef struct Submission {
    IoOp op; /* first */
    CoWait wait;
    int error; /* why it was cancelled, or 0; the home's */
} Submission;

bool io_may_submit(void)
{
    return io_has_home() && os_thread()->context->poller.ops->submit;
}

static void submission_done(void *owner, Post *post)
{
    Submission *s = (Submission *)container_of(post, IoOp, post);
    AioContext *ctx = owner;

    ctx->ran++;
    co_wait_settle(&s->wait, s->op.result); /* INVARIANTS 1 */
    co_wait_wake(&s->wait, "the kernel");
}

static void submission_cancel(CoWait *wait, int error)
{
    Submission *s = container_of(wait, Submission, wait);
    AioContext *ctx = (AioContext *)(void *)wait->co->home;

    if (s->error == 0) {
        s->error = error;
        ctx->poller.ops->cancel(ctx, &s->op);
    }
}

static bool was_interrupted(ssize_t result)
{
    return result == -ECANCELED || result == -EINTR;
}

static ssize_t coroutine_fn submit_once(AioContext *ctx, Submission *s,
                                        IoFd *entry, const char *what)
{
    co_wait_init(&s->wait, what, entry, submission_cancel);
    if (!ctx->poller.ops->submit(ctx, &s->op)) {
        return IO_NEEDS_OTHER_WAY;
    }
    return co_wait_park(&s->wait, -1);
}

ssize_t io_submit(IoFd *entry, const OsUringRequest *request, const char *what)
{
    Submission s = {.op = {.post.run = submission_done, .request = *request}};
    AioContext *ctx = os_thread()->context;
    ssize_t result;

    if (!io_may_submit()) {
        return IO_NEEDS_OTHER_WAY;
    }
    result = io_fd_hold(entry);
    if (result < 0) {
        return result;
    }
    do {
        result = submit_once(ctx, &s, entry, what);
    } while (result == -EINTR && s.error == 0);
    io_fd_release(entry);
    if (s.error != 0 && was_interrupted(result)) {
        return s.error;
    }
    /* It could not even be begun, for want of memory in the kernel. */
    return result == -EAGAIN ? IO_NEEDS_OTHER_WAY : result;
}
