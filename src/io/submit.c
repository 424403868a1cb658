/* SPDX-License-Identifier: MIT */
/*
 * Operations that the engine of the context makes by itself, with the coroutine
 * parked meanwhile: on files, and on sockets, where io_uring is the engine.
 *
 * Guarantees that the coroutine goes on only when the kernel uses neither the
 * buffers nor the descriptor any more, cancelled or not; and, of files, that
 * co_close() waits for that, too.  So from here until the kernel has taken the
 * request in (in the next wait of the engine) the number means what it meant
 * here, unless somebody uses close(2).
 *
 * A file answers by itself some time: a thread that ends waits for that, and
 * lets go of it in the name of the coroutine, which is left.  A socket need not
 * answer, and is given up; co_close() does not wait for an operation on one.
 * That is also a wait for the descriptor in the fd table, which fd_cancel_all()
 * ends from any thread, and which keeps what has not reached the kernel from
 * doing so.  Only the home thread may use the ring: whoever ends a wait early
 * wakes the coroutine, which has the kernel end the operation, and waits for
 * that.
 *
 * INVARIANTS
 *
 *   1. The wait is ended once, by the completion or by a cancel.
 *   2. The coroutine goes on only after the completion.
 */
#include "io/io_int.h"

#include "base/explore.h"
#include "loop/fd_int.h"

#include <errno.h>

/* So often in a row a call on a file is made again that was interrupted. */
#define INTERRUPTED_MOST 8

typedef struct Submission {
    IoOp op;        /* first */
    FdWait wait;    /* of files the CoWait in it only */
    bool of_socket; /* the fd table knows it */
    IoFd *held;     /* of a file: until it has completed */
    bool completed; /* the home's */
    CoWait *rest;   /* who was cancelled, and waits for the completion; the
                       home's */
} Submission;

/* The context whose engine makes operations for the caller, or NULL. */
static AioContext *submitting_context(void)
{
    AioContext *ctx = io_has_home() ? os_thread()->context : NULL;

    return ctx && ctx->poller.ops->submit ? ctx : NULL;
}

bool io_may_submit(OsUringCall call)
{
    AioContext *ctx = submitting_context();

    return ctx && ctx->poller.ops->takes(ctx, call);
}

bool io_better_submit(OsUringCall call)
{
    AioContext *ctx = submitting_context();

    return ctx && ctx->poller.ops->prefers(ctx, call);
}

/* --- on the home thread, outside the coroutine ----------------------------*/

static bool was_interrupted(ssize_t result)
{
    return result == -ECANCELED || result == -EINTR;
}

/* The kernel uses the file no more. */
static void let_go(Submission *s)
{
    IoFd *entry = s->held;

    if (entry) {
        s->held = NULL;
        io_fd_release(entry);
    }
}

static void submission_done(void *owner, Post *post)
{
    Submission *s = (Submission *)container_of(post, IoOp, post);
    AioContext *ctx = owner;

    ctx->ran++;
    s->completed = true;
    let_go(s); /* not in the coroutine, which may have been left by then */
    if (s->rest) {
        co_wait_settle(s->rest, 0);
        co_wait_wake(s->rest, "the kernel");
    } else if (s->of_socket) {
        fd_wait_end_op(&s->wait);
    } else {
        co_wait_end(&s->wait.wait, 0, "the kernel");
    }
}

static void submission_left(IoOp *op)
{
    let_go((Submission *)op);
}

static void submission_cancel(CoWait *wait, int error)
{
    co_wait_end(wait, error, "its timeout");
}

/* --- the coroutine --------------------------------------------------------*/

/* The wait was ended; now end the operation. */
static void coroutine_fn await_completion(AioContext *ctx, Submission *s)
{
    CoWait rest;

    /* Without room for the cancel there is some in one of the next passes. */
    while (!s->completed && !ctx->poller.ops->cancel(ctx, &s->op)) {
        co_sleep_ns(0);
    }
    if (!s->completed) {
        co_wait_init(&rest, s->wait.wait.what, s->wait.wait.object, NULL);
        s->rest = &rest;
        co_wait_park(&rest, -1); /* INVARIANTS 2 */
    }
}

/*
 * Park until the operation has completed.  *error is set to why it was
 * cancelled, if it was.  Returns its result.
 */
static ssize_t coroutine_fn await(AioContext *ctx, Submission *s, int *error)
{
    *error = (int)co_wait_park(&s->wait.wait, -1);
    if (!s->completed && !MUTANT(SUBMIT_NOT_AWAITED)) {
        MARK("submit: a call is ended before it has completed");
        await_completion(ctx, s);
    }
    return s->op.result;
}

/* What the caller is told of it. */
static ssize_t outcome(ssize_t result, int error)
{
    if (was_interrupted(result)) {
        /* Not by us: who asks again in another way learns whether it was the
         * kernel, or is what the file says. */
        return error != 0 ? error : IO_NEEDS_OTHER_WAY;
    }
    /* It could not even be begun, for want of memory in the kernel. */
    return result == -EAGAIN ? IO_NEEDS_OTHER_WAY : result;
}

static ssize_t coroutine_fn submit_file_call(AioContext *ctx,
                                             const OsUringRequest *request,
                                             IoFd *entry, const char *what)
{
    Submission s = {
        .op = {.post.run = submission_done,
               .request = *request,
               .left = submission_left},
        .held = entry,
    };
    ssize_t result;
    int error;

    co_wait_init(&s.wait.wait, what, entry, submission_cancel);
    if (!ctx->poller.ops->submit(ctx, &s.op)) {
        let_go(&s);
        return IO_NEEDS_OTHER_WAY;
    }
    result = await(ctx, &s, &error);
    return result == -EINTR && error == 0 ? -EINTR : outcome(result, error);
}

ssize_t io_submit(const IoUse *use, const OsUringRequest *request,
                  const char *what)
{
    AioContext *ctx = os_thread()->context;
    unsigned tries = 0;
    ssize_t result;

    do {
        /* It may have given way to another one meanwhile. */
        if (!io_may_submit(request->call)) {
            return IO_NEEDS_OTHER_WAY;
        }
        result = io_fd_hold(use);
        if (result < 0) {
            return result;
        }
        result = submit_file_call(ctx, request, use->entry, what);
    } while (result == -EINTR && ++tries < INTERRUPTED_MOST);
    return result == -EINTR ? IO_NEEDS_OTHER_WAY : result;
}

/* Under the lock of the side, so that co_close() finds it or is found. */
static int begin_with_turn(Submission *s, const IoTurn *turn, const char *what)
{
    int ret = -ECANCELED;

    os_mutex_lock(&turn->side->lock);
    if (!io_fd_stale(turn->entry, turn->generation) || MUTANT(SUBMIT_STALE)) {
        ret = fd_wait_begin_op(&s->wait, s->op.request.fd, &s->op, what);
    }
    os_mutex_unlock(&turn->side->lock);
    return ret;
}

/* Its wait has begun, and others may end it. */
static ssize_t coroutine_fn submit_socket_call(AioContext *ctx, Submission *s)
{
    ssize_t result;
    int error;

    if (!ctx->poller.ops->submit(ctx, &s->op)) {
        fd_wait_end_op(&s->wait);
        error = fd_wait_park(&s->wait, -1);
        return error < 0 ? error : IO_NEEDS_OTHER_WAY;
    }
    result = await(ctx, s, &error);
    return outcome(result, error);
}

ssize_t io_submit_with_turn(const IoTurn *turn, const OsUringRequest *request,
                            const char *what)
{
    AioContext *ctx = os_thread()->context;
    Submission s = {
        .op = {.post.run = submission_done, .request = *request},
        .of_socket = true,
    };
    ssize_t result = begin_with_turn(&s, turn, what);

    if (result < 0) {
        return result;
    }
    ctx->poller.ops_known++;
    result = submit_socket_call(ctx, &s);
    ctx->poller.ops_known--;
    return result;
}
