/* SPDX-License-Identifier: MIT */
/*
 * Handing work to a context, and waking its thread if it sleeps.
 *
 * What it guarantees: a post that has been pushed is dispatched, without
 * anybody's further help; and the system call that wakes the thread is made
 * only when the thread sleeps or is about to.
 *
 * PROTOCOL AND MEMORY ORDER
 *
 * A post is one compare-and-swap of posted.head (base/post.h), which also tells
 * whether the home thread sleeps: before it sleeps, it leaves POST_SLEEPER
 * there, if nothing is there.  Whoever pushes over that sets the event.
 *
 *      waker                               home thread
 *
 *                                          wake: AWAKE -> SLEEPING
 *      posted: -> post       [sleeper/B]   posted: NULL -> SLEEPER [sleeper/A]
 *      if it was SLEEPER:                  if it was not NULL: do not sleep
 *          wake: SLEEPING -> NOTIFIED,     sleep on the event
 *          and set the event               wake -> AWAKE
 *                                          posted: -> NULL, take all
 *
 * All is decided on one location, by read-modify-writes, of which one comes
 * before the other: no fence is needed, and who posts to a thread that is awake
 * looks at nothing of the context but posted, and at nothing after the push.
 *
 * `wake` is AWAKE, SLEEPING or NOTIFIED.  The home thread alone moves it from
 * AWAKE to SLEEPING and back to AWAKE; anybody moves it from SLEEPING to
 * NOTIFIED, and who does so sets the event.  So the event is set once a sleep,
 * however many ways lead to it.  Who takes SLEEPER away has acquired it, and
 * sees SLEEPING or what came after it; if that is AWAKE, then the home thread
 * is on its way to take all.
 *
 * Idle bottom halves, and those that become urgent, have `wake` alone:
 *
 *      waker                               home thread
 *
 *      push to idle, or hurry++            wake: AWAKE -> SLEEPING
 *      full fence            [notify/A]    full fence            [notify/B]
 *      read wake                           read idle and hurry
 *      if SLEEPING: -> NOTIFIED,           if nothing: sleep on the event
 *          set the event                   wake -> AWAKE
 *
 * This is store buffering: each side writes one location and then reads the
 * other.  The fences make it impossible that both read the old values, so
 * either the home thread finds the work and does not sleep, or the waker finds
 * SLEEPING and sets the event.  Without either fence both may miss, and the
 * home thread sleeps with work to do, for ever.
 *
 * The data of a post travels by the release and acquire on posted.head
 * (base/post.h), never by the event: a system call is not a fence.
 *
 * The event may arrive late, when the home thread has been woken by something
 * else and is awake; then a later sleep ends early, which is harmless.  It is
 * never lost: nested passes look at posted and at wake themselves, so an event
 * that a nested pass has taken was not needed by the outer one.
 *
 * aio_notify() has no post: it leaves NOTIFIED behind, which keeps the next
 * sleep from happening.  The exchange carries what its caller wrote before
 * ([notify/C]) to the home thread ([notify/D]).
 *
 * LIFETIME
 *
 * From the push on, what was posted may run, and may drop the last reference
 * to the context.  So a waker that finds SLEEPER pins ctx before it pushes, and
 * lets go when it has notified; and so does one that posts to idle.
 */
#include "base/explore.h"
#include "loop/context.h"
#include "os/event.h"

/* The thread sleeps, or is about to: whoever gets here first sets the event. */
static COLD void wake_sleeper(AioContext *ctx)
{
    uint32_t sleeping = WAKE_SLEEPING;

    if (cas_relaxed(&ctx->wake, &sleeping, WAKE_NOTIFIED)) {
        MARK("notify: the event is set");
        os_event_set(ctx->event);
    } else {
        MARK("notify: somebody else was first");
    }
}

void context_notify_posted(AioContext *ctx)
{
    /*
     * [notify/A] The push to idle, or the change of hurry, comes before this,
     * the look at wake after it.  Pairs with [notify/B] in
     * notify_prepare_sleep(): either it sees that, or we see that it is about
     * to sleep.
     */
    if (!MUTANT(NOTIFY_NO_FENCE_NOTIFIER)) {
        fence_seq_cst_after_rmw();
    }
    if (load_relaxed(&ctx->wake) == WAKE_SLEEPING) {
        wake_sleeper(ctx);
    } else {
        MARK("notify: the thread is awake");
    }
}

void context_post_pinned(AioContext *ctx, FifoNode *newest, FifoNode *oldest)
{
    if (post_push_waking(&ctx->posted, NULL, newest, oldest)) {
        wake_sleeper(ctx);
    }
}

COLD void context_post_waking(AioContext *ctx, Post *post)
{
    bool pin = !MUTANT(NOTIFY_UNPINNED);

    if (pin) {
        context_pin(ctx);
    }
    if (post_push_waking(&ctx->posted, POST_SLEEPER, &post->node,
                         &post->node)) {
        wake_sleeper(ctx);
    } else {
        MARK("notify: another has found the sleeper");
    }
    if (pin) {
        context_unpin(ctx);
    }
}

void context_post_idle_pinned(AioContext *ctx, Post *post)
{
    post_push(&ctx->idle, post);
    context_notify_posted(ctx);
}

void aio_notify(AioContext *ctx)
{
    os_check_fork("aio_notify");
    /* [notify/C] pairs with [notify/D] in notify_requested(). */
    if (MUTANT(NOTIFY_RELAXED)) {
        if (xchg_relaxed(&ctx->wake, WAKE_NOTIFIED) == WAKE_SLEEPING) {
            os_event_set(ctx->event);
        }
        return;
    }
    if (xchg_acq_rel(&ctx->wake, WAKE_NOTIFIED) == WAKE_SLEEPING) {
        MARK("notify: a call without a post sets the event");
        os_event_set(ctx->event);
    }
    fence_seq_cst_after_rmw();
}

bool notify_requested(AioContext *ctx)
{
    if (load_relaxed(&ctx->wake) == WAKE_AWAKE) {
        return false;
    }
    /* [notify/D] pairs with [notify/C] in aio_notify(). */
    xchg_acq_rel(&ctx->wake, WAKE_AWAKE);
    return true;
}

bool notify_prepare_sleep(AioContext *ctx, bool saw_idle)
{
    uint32_t awake = WAKE_AWAKE;

    if (MUTANT(NOTIFY_CLEAR_LATE)) {
        notify_requested(ctx); /* what the last pass has left */
    }
    if (MUTANT(NOTIFY_DISPATCHING) && ctx->depth > 1) {
        return !post_pending(&ctx->posted); /* a pass is on: we are awake */
    }
    if (!cas_relaxed(&ctx->wake, &awake, WAKE_SLEEPING)) {
        MARK("notify: a request keeps it from sleeping");
        notify_requested(ctx);
        return false;
    }
    /*
     * [notify/B] SLEEPING comes before this, the look at idle and hurry after
     * it.  Pairs with [notify/A] in context_notify_posted().
     */
    if (!MUTANT(NOTIFY_NO_FENCE_POLLER)) {
        fence_seq_cst_after_rmw();
    }
    if (context_hurried(ctx) || (!saw_idle && post_pending(&ctx->idle)) ||
        !post_sleep(&ctx->posted)) {
        MARK("notify: it finds a post on its way to sleep");
        notify_woken(ctx);
        return false;
    }
    return true;
}

void notify_woken(AioContext *ctx)
{
    if (!MUTANT(NOTIFY_CLEAR_LATE)) {
        notify_requested(ctx);
    }
}
