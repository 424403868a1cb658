/* SPDX-License-Identifier: MIT */
/*
 * One pass of a context.
 *
 * A pass takes over what was posted until then (posted, and what is idle, to
 * ready) and runs all of it; what is posted meanwhile waits for the next pass.
 * A nested pass appends what it takes over to the same list and runs it to the
 * end, so it runs first what the outer pass has left, and the outer one then
 * finds nothing more.  Between passes ready is empty.
 */
#include "loop/context.h"

#include "base/explore.h"
#include "os/clock.h"

#include <errno.h>

/* A pass that has other work looks at the descriptors at least so often. */
#define SKIP_MOST 16

/* Idle bottom halves wait so long at the most. */
#define IDLE_NS 10000000

/* The first stretch of busy polling, from which it grows. */
#define BUSY_FIRST_NS 4000

/* Look at the clock, and at descriptors, once in so many turns. */
#define BUSY_TURNS SCALED(64, 1)

/* Something is due that needs no waiting. */
static bool work_pending(const AioContext *ctx)
{
    return ctx->ready.head || post_pending(&ctx->posted) ||
           context_hurried(ctx) || fd_always_ready(ctx);
}

/* Else there is nothing for the engine to find. */
static bool worth_looking(const AioContext *ctx)
{
    return fd_watching(ctx) || load_relaxed(&ctx->poller.due) ||
           ctx->poller.ops_taken > 0;
}

int64_t context_prepare(AioContext *ctx)
{
    int64_t deadline, now;

    if (work_pending(ctx)) {
        return 0;
    }
    deadline = timer_deadline_ns(ctx);
    if (deadline == INT64_MAX && !post_pending(&ctx->idle)) {
        return -1;
    }
    now = os_clock_monotonic_ns();
    if (post_pending(&ctx->idle) && deadline > now + IDLE_NS) {
        deadline = now + IDLE_NS;
    }
    return deadline > now ? deadline - now : 0;
}

bool context_dispatch(AioContext *ctx)
{
    uint64_t before = ctx->ran;
    uint32_t hurry = load_relaxed(&ctx->hurry);
    FifoNode *node;

    if (hurry != ctx->hurry_seen) {
        ctx->hurry_seen = hurry;
        /*
         * [hurry/B] What is urgent is in the idle list, or will be, and then
         * hurry changes again.  Pairs with [hurry/A] in
         * aio_bh_schedule_idle().
         */
        if (!MUTANT(BH_HURRY_NO_FENCE)) {
            fence_seq_cst();
        }
    }
    post_take_all(&ctx->posted, &ctx->ready);
    post_take_all(&ctx->idle, &ctx->ready);
    if (MUTANT(WORKER_NESTED)) {
        Fifo mine = ctx->ready;

        ctx->ready = (Fifo){NULL, NULL};
        while ((node = fifo_take(&mine))) {
            Post *post = container_of(node, Post, node);

            post->run(ctx, post);
        }
    }
    while ((node = fifo_take(&ctx->ready))) {
        Post *post = container_of(node, Post, node);

        post->run(ctx, post);
    }
    if (fd_dispatch(ctx)) {
        ctx->ran++;
    }
    if (timer_dispatch(ctx)) {
        ctx->ran++;
    }
    return ctx->ran != before;
}

/*
 * Whether a sleep of timeout_ns is no longer than idle bottom halves may wait:
 * else one that is scheduled since context_prepare() must cut it short.
 */
static bool short_enough(int64_t timeout_ns)
{
    return timeout_ns >= 0 && timeout_ns <= IDLE_NS;
}

/* --- busy polling --------------------------------------------------------*/

/* Look at what other threads hand over, for BUSY_TURNS. */
static inline bool busy_turns(AioContext *ctx, bool saw_idle)
{
    for (unsigned turn = 0; turn < BUSY_TURNS; turn++) {
        if (post_pending(&ctx->posted) || context_hurried(ctx) ||
            (!saw_idle && post_pending(&ctx->idle)) ||
            load_relaxed(&ctx->wake) != WAKE_AWAKE) {
            return true;
        }
        spin_hint();
    }
    return false;
}

/*
 * Look for something to do for at most poll_ns from start, without sleeping.
 * Returns whether there is, or the time to wait is over; else what is left of
 * that is in *timeout_ns.
 */
static bool busy_poll(AioContext *ctx, int64_t start, int64_t *timeout_ns)
{
    bool watching = worth_looking(ctx);
    bool saw_idle = short_enough(*timeout_ns);
    int64_t spent;

    do {
        /* Waits may have ended without a report. */
        if (fd_busy_poll(ctx) ||
            (watching &&
             (ctx->poller.ops->wait(ctx, 0) > 0 || work_pending(ctx))) ||
            busy_turns(ctx, saw_idle)) {
            return true;
        }
        /* Who is waited for may want this CPU. */
        os_thread_yield();
        spent = os_clock_monotonic_ns() - start;
        if (*timeout_ns >= 0 && spent >= *timeout_ns) {
            return true;
        }
    } while (spent < ctx->poll_ns);
    if (*timeout_ns >= 0) {
        *timeout_ns -= spent;
    }
    return false;
}

/* Learn from how long it took until something came. */
static void busy_adapt(AioContext *ctx, int64_t took)
{
    int64_t max = load_relaxed(&ctx->poll_max_ns);
    int64_t grow = load_relaxed(&ctx->poll_grow);
    int64_t shrink = load_relaxed(&ctx->poll_shrink);

    if (took <= ctx->poll_ns && ctx->poll_ns <= max) {
        return;
    }
    if (took > max) {
        ctx->poll_ns = shrink ? ctx->poll_ns / shrink : 0;
    } else if (ctx->poll_ns == 0) {
        ctx->poll_ns = BUSY_FIRST_NS;
    } else {
        /* Compare first: the product may be beyond all numbers. */
        grow = grow ? grow : 2;
        ctx->poll_ns = ctx->poll_ns > max / grow ? max : ctx->poll_ns * grow;
    }
    if (ctx->poll_ns > max) {
        ctx->poll_ns = max;
    }
}

int aio_context_set_poll_params(AioContext *ctx, int64_t max_ns, int64_t grow,
                                int64_t shrink)
{
    if (max_ns < 0 || grow < 0 || shrink < 0) {
        return -EINVAL;
    }
    store_relaxed(&ctx->poll_grow, grow);
    store_relaxed(&ctx->poll_shrink, shrink);
    store_relaxed(&ctx->poll_max_ns, max_ns);
    aio_notify(ctx);
    return 0;
}

/* --- the pass ------------------------------------------------------------*/

static void wait_sleeping(AioContext *ctx, int64_t timeout_ns)
{
    bool sleep = notify_prepare_sleep(ctx, short_enough(timeout_ns));

    ctx->poller.ops->wait(ctx, sleep ? timeout_ns : 0);
    if (sleep) {
        notify_woken(ctx);
    }
}

/* Work is waiting: look at the descriptors, but not each time if the caller
 * would rather have blocked, unless operations have yet to begin. */
static void look(AioContext *ctx, bool blocking)
{
    bool skip = blocking && ctx->skipped < SKIP_MOST;

    if (!worth_looking(ctx) || (skip && !ctx->poller.ops_waiting)) {
        ctx->skipped++;
        return;
    }
    ctx->skipped = 0;
    ctx->poller.ops->wait(ctx, 0);
}

/* Something was found busily, or is due. */
static void wait_no_more(AioContext *ctx)
{
    notify_requested(ctx);
    look(ctx, true);
}

/* Wait for up to timeout_ns, some of it busily. */
static void wait_for_events(AioContext *ctx, int64_t timeout_ns)
{
    int64_t max = load_relaxed(&ctx->poll_max_ns);
    int64_t start;

    if (max == 0) {
        wait_sleeping(ctx, timeout_ns);
        return;
    }
    /*
     * What comes at once is found before the clock is asked, which takes as
     * long as the whole way of a wake-up between two threads; and it teaches
     * nothing, as it came in time.
     */
    if (ctx->poll_ns > 0 && ctx->poll_ns <= max &&
        busy_turns(ctx, short_enough(timeout_ns))) {
        wait_no_more(ctx);
        return;
    }
    start = os_clock_monotonic_ns();
    if (ctx->poll_ns == 0 || !busy_poll(ctx, start, &timeout_ns)) {
        wait_sleeping(ctx, timeout_ns);
    } else {
        wait_no_more(ctx);
    }
    busy_adapt(ctx, os_clock_monotonic_ns() - start);
}

/* --- a foreign loop ------------------------------------------------------*/

int64_t context_foreign_prepare(AioContext *ctx)
{
    int64_t timeout_ns = context_prepare(ctx);

    if (timeout_ns != 0 &&
        !notify_prepare_sleep(ctx, short_enough(timeout_ns))) {
        timeout_ns = 0;
    }
    if (ctx->poller.ops->prepare && !ctx->poller.ops->prepare(ctx)) {
        timeout_ns = 0;
    }
    return timeout_ns;
}

bool context_foreign_dispatch(AioContext *ctx)
{
    bool progress;

    notify_woken(ctx);
    context_enter_pass(ctx);
    ctx->poller.ops->wait(ctx, 0);
    progress = context_dispatch(ctx);
    context_release_population(ctx);
    context_leave_pass(ctx);
    return progress;
}

/* --- our own -------------------------------------------------------------*/

static COLD NORETURN void misuse_in_coroutine(AioContext *ctx)
{
    CoroutineLabel label, other;

    misuse("aio_poll: %s is polled from within %s; polling is for code "
           "outside coroutines",
           context_label(ctx, &label),
           coroutine_label(coroutine_self(), &other));
}

bool aio_poll(AioContext *ctx, bool blocking)
{
    OsThread *thread = os_thread();
    CoroutineLabel label;
    int64_t timeout_ns;
    bool progress;

    os_check_fork("aio_poll");
    if (unlikely(load_acquire(&ctx->home.closed))) {
        misuse("aio_poll: the last reference to %s has gone: keep one while "
               "you poll",
               context_label(ctx, &label));
    }
    if (unlikely(thread->current != NULL)) {
        misuse_in_coroutine(ctx);
    }
    if (unlikely(!context_is_home(ctx, thread))) {
        aio_context_attach(ctx);
    }
    context_enter_pass(ctx);
    timeout_ns = blocking ? context_prepare(ctx) : 0;
    if (MUTANT(NOTIFY_NONBLOCKING_EATS) && !blocking) {
        store_relaxed(&ctx->wake, WAKE_AWAKE);
    }
    if (timeout_ns == 0) {
        look(ctx, blocking);
    } else {
        wait_for_events(ctx, timeout_ns);
    }
    progress = context_dispatch(ctx);
    context_release_population(ctx);
    context_leave_pass(ctx);
    return progress;
}
