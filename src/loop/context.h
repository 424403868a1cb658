/* SPDX-License-Identifier: MIT */
/*
 * struct AioContext, for the files of this layer.
 *
 * Ownership: fields are the home thread's (the thread that the context is
 * bound to) unless they say otherwise.  Before it is bound they belong to
 * whoever made it.  `lock` protects what says so, and is never held while a
 * callback runs.
 *
 * REFERENCES
 *
 *   handles  what users hold, plus one for as long as started coroutines have
 *            their home here (home.held), one for each coroutine that is on
 *            its way here, and one for each aio_wait_while() of its thread.
 *            When it falls to 0, the context is closed: leftovers are
 *            misuse, and nothing runs any more.
 *   pins     what keeps the memory and the event fd: one for the handles
 *            together, one for the thread that it is bound to, and one for
 *            each waker that has to look at it after it has published: see
 *            LIFETIME in loop/notify.c.
 *
 * One pass, in the order of its parts: context_prepare() says how long may be
 * slept / the poller waits / context_dispatch() runs what was posted, fds,
 * timers.  A foreign loop waits by itself, between context_foreign_prepare()
 * and context_foreign_dispatch().
 */
#ifndef COAIO_LOOP_CONTEXT_H
#define COAIO_LOOP_CONTEXT_H

#include "base/explore.h"
#include "base/list.h"
#include "base/post.h"
#include "coroutine/coroutine_int.h"
#include "loop/poller/poller.h"
#include "loop/timer_int.h"
#include "loop/worker.h"
#include "os/thread.h"

#include <coaio/context.h>

/* AioContext.wake: see the protocol [notify] in loop/notify.c. */
enum { WAKE_AWAKE = 0, WAKE_SLEEPING, WAKE_NOTIFIED };

/* What is to be done for a coroutine that is left when the home thread ends. */
typedef struct ContextFarewell ContextFarewell;
struct ContextFarewell {
    List link; /* in AioContext.farewells */
    void (*say)(ContextFarewell *farewell); /* on the home thread, once */
};

struct AioContext {
    CoHome home;             /* first: what coroutine/ sees */

    unsigned long handles;   /* atomic; see REFERENCES */
    int stopped;             /* atomic; its I/O thread has ended */
    uint64_t lost_wakeups;   /* atomic; wake-ups that came after stopped */
    OsThread *thread;        /* atomic; bound to it, or NULL; never followed
                                from another thread */
    int event[2];            /* os_event_open(); written once */
    Post grave;              /* in the list of those to be freed */

    /* What other threads write to with each post. */
    CACHE_ALIGNED PostList posted;

    /* What they write to seldom, and the home thread reads in each pass. */
    CACHE_ALIGNED PostList idle; /* idle bottom halves */
    uint32_t hurry;          /* atomic; changes: an idle one is urgent after
                                all; see [hurry] in loop/bh.c */
    uint32_t wake;           /* atomic; WAKE_... */

    /* What they write to, and the home thread does not look at. */
    CACHE_ALIGNED unsigned long pins; /* atomic; see REFERENCES */

    /* The home thread's. */
    CACHE_ALIGNED Fifo ready; /* of Post.node: taken over, to run in this pass;
                                 empty between passes; when the thread has
                                 ended, lock's: what will never run */
    uint32_t hurry_seen;     /* hurry, when idle was taken last */
    unsigned depth;          /* of nested passes */
    uint64_t pass;           /* the last that has begun; above 0, and of
                                4,294,967,296 passes none has that of another
                                context */
    uint64_t ran;            /* callbacks and coroutines that made progress */
    unsigned skipped;        /* passes in a row that did not look at fds */
    Timers timers;
    WorkerWatch workers;
    List farewells;          /* of ContextFarewell.link */

    /* Busy polling. */
    int64_t poll_max_ns;     /* atomic */
    int64_t poll_grow;       /* atomic */
    int64_t poll_shrink;     /* atomic */
    int64_t poll_ns;         /* how long now */

    Poller poller;
    OsMutex lock;
    List bhs;                /* AioBH.link; lock: to name those that are left */
    struct FdTable *fds;     /* loop/fd.c; its fields say which lock */
};

/* --- loop/context.c -------------------------------------------------------*/

/* Nobody pins ctx any more: it is to be freed. */
void context_bury(AioContext *ctx);

/* Pin, around publish-and-notify by a thread that holds no handle. */
static inline void context_pin(AioContext *ctx)
{
    unsigned long pins = fetch_add_relaxed(&ctx->pins, 1UL);

    invariant(pins > 0);
}

static inline void context_unpin(AioContext *ctx)
{
    unsigned long pins =
        MUTANT(CONTEXT_UNPIN_RELAXED)
            ? fetch_sub_relaxed(&ctx->pins, 1UL)
            : fetch_sub_acq_rel(&ctx->pins, 1UL);

    if (unlikely(pins == 1)) {
        context_bury(ctx);
    }
}

/* Free the contexts that nobody pins any more: for threads that may have been
 * the last to unpin.  Not in signal handlers. */
void context_reap(void);

/* Whether the calling thread is the home thread. */
static inline bool context_is_home(const AioContext *ctx,
                                   const OsThread *thread)
{
    return thread->context == ctx;
}

/* Whether some idle bottom half has become urgent.  Home thread. */
static inline bool context_hurried(const AioContext *ctx)
{
    return load_relaxed(&ctx->hurry) != ctx->hurry_seen;
}

/*
 * Take a handle, unless none is left, and another thread closes ctx or has.
 * For the home thread, which somebody else's last handle may leave without
 * its context at any time.
 */
bool context_try_ref(AioContext *ctx);

/* Drop the handle of the coroutines if there are none.  Home thread, or any
 * when the context is stopped. */
void context_release_population(AioContext *ctx);

/* A pass of ctx begins, on this thread. */
static inline void context_enter_pass(AioContext *ctx)
{
    OsThread *thread = os_thread();

    if (unlikely(!thread->prepared)) {
        os_thread_prepare(thread); /* there was no memory when it attached */
    }
    ctx->depth++;
    ctx->pass++;
}

/* A pass ends: ctx may have been closed in it, and goes then. */
void context_leave_pass(AioContext *ctx);

/* Its thread ends: nothing runs in it any more, and the thread lets go of it.
 * Home thread, outside passes. */
void context_stop(AioContext *ctx);

/* "name" or "context 0x..." for messages. */
const char *context_label(AioContext *ctx, CoroutineLabel *label);

/* --- loop/poll.c ----------------------------------------------------------*/

/* How long the poller may sleep: 0 if something is due, < 0 for ever. */
int64_t context_prepare(AioContext *ctx);
/* Run what is due.  Returns whether something ran. */
bool context_dispatch(AioContext *ctx);

/*
 * The same for a foreign loop that does the waiting itself, on the home thread:
 * prepare returns how long it may sleep on poller.ops->descriptor() (as
 * context_prepare() does), and dispatch must follow each prepare, however the
 * sleep ended.  Returns whether something ran.
 */
int64_t context_foreign_prepare(AioContext *ctx);
bool context_foreign_dispatch(AioContext *ctx);

/* --- loop/notify.c --------------------------------------------------------*/

/*
 * Hand post to the home thread and wake it if it sleeps.  Any thread, any
 * signal handler.  ctx must live until the push.  The caller touches neither
 * post nor ctx afterwards.
 */
static inline void context_post(AioContext *ctx, Post *post);

/* The rest of it: the home thread sleeps, or did so a moment ago. */
void context_post_waking(AioContext *ctx, Post *post);

static inline void context_post(AioContext *ctx, Post *post)
{
    if (likely(post_push_awake(&ctx->posted, &post->node))) {
        MARK("notify: the system call is saved");
    } else {
        context_post_waking(ctx, post);
    }
}

/* The same for several, linked as post_push_waking() wants them, with one
 * notification; the caller has pinned ctx. */
void context_post_pinned(AioContext *ctx, FifoNode *newest, FifoNode *oldest);

/* The same for an idle bottom half; the caller has pinned ctx, or is on its
 * home thread. */
void context_post_idle_pinned(AioContext *ctx, Post *post);

/* After a push to idle, or a change of hurry: wake the thread if it sleeps.
 * The caller has pinned ctx, or is on its home thread. */
void context_notify_posted(AioContext *ctx);

/*
 * About to sleep: returns whether the home thread may.  If so, notify_woken()
 * must follow the sleep, before dispatch.  saw_idle: the sleep is short since
 * idle bottom halves are pending.
 */
bool notify_prepare_sleep(AioContext *ctx, bool saw_idle);
void notify_woken(AioContext *ctx);

/* Whether aio_notify() was called since the last sleep. */
bool notify_requested(AioContext *ctx);

/* --- loop/bh.c ------------------------------------------------------------*/

/* At the end: free what was deleted; warn_line() for each that was not.
 * Returns how many are left. */
size_t bh_check_none_left(AioContext *ctx);

/* --- loop/fd.c ------------------------------------------------------------*/

int fd_table_new(AioContext *ctx);
void fd_table_free(AioContext *ctx);
/* Run the handlers of what the poller found ready.  Returns whether any. */
bool fd_dispatch(AioContext *ctx);
/* Whether some handler's poll callback says that there is work; and mark it
 * ready for fd_dispatch().  For busy polling. */
bool fd_busy_poll(AioContext *ctx);
/* Whether a descriptor that is always ready is watched (never sleep then). */
bool fd_always_ready(const AioContext *ctx);
/* warn_line() for each handler that is left; returns how many. */
size_t fd_check_none_left(AioContext *ctx);
/* Whether any descriptor is watched: else there is nothing to look at. */
bool fd_watching(const AioContext *ctx);

/* --- loop/timer.c: see timer_int.h ----------------------------------------*/

#endif
