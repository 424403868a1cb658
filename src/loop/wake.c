/* SPDX-License-Identifier: MIT */
/*
 * Waking coroutines, and moving them from context to context.  All placement
 * decisions are made here.
 *
 * A waker first claims the coroutine (coroutine_claim()).  The claim makes it
 * the only one who may read and write home, and it is given back by the home
 * thread when the coroutine resumes.  Then:
 *
 *   home is this thread's    resume, or defer if a coroutine runs
 *   any other home           post to it; its thread resumes it outside any
 *                            coroutine, when it has surely yielded
 *
 * A coroutine may only be moved when its stack is quiet.  Who holds the claim
 * knows that it is if the coroutine was never entered, if this is its home's
 * thread (or it has no home: then its callers come one after the other) and it
 * is not entered, or if its home's thread has ended.  Otherwise it is moved
 * later: by its own yield (on_yield), if it is entered on this thread, or by
 * its home's thread, to which it is posted for that (forward()).
 *
 * A coroutine on its way to another context holds a reference on that
 * (REFERENCES in context.h), until it counts there.
 */
#include "loop/wake_int.h"

#include "base/explore.h"
#include "loop/context.h"

static inline AioContext *home_of(const Coroutine *co)
{
    return (AioContext *)(void *)co->home;
}

/* --- delivery ------------------------------------------------------------*/

/* Posted to its home, and home's thread has come to it. */
static void run_woken(void *owner, Post *post)
{
    Coroutine *co = container_of(post, Coroutine, post);
    AioContext *ctx = owner;

    ctx->ran++;
    coroutine_resume_claimed(os_thread(), co);
}

/* The same for one that has moved here. */
static void run_arrived(void *owner, Post *post)
{
    Coroutine *co = container_of(post, Coroutine, post);
    AioContext *ctx = owner;

    ctx->ran++;
    if (!co->counted) {
        coroutine_count_in(co);
    }
    aio_context_unref(ctx); /* what it held on its way */
    coroutine_resume_claimed(os_thread(), co);
}

/*
 * After a push to ctx, which is pinned.  A context whose thread has ended runs
 * nothing any more; then the push was in vain, and is taken back.
 */
static inline void sweep_if_stopped(AioContext *ctx)
{
    /*
     * [stop/B] The push comes before the look at stopped.  Pairs with [stop/A]
     * in context_stop(): either the thread's end finds what was pushed, or we
     * see that it has ended.
     */
    if (!MUTANT(STOP_NO_FENCE_WAKER)) {
        fence_seq_cst_after_rmw();
    }
    if (unlikely(load_acquire(&ctx->stopped))) {
        MARK("wake: a post to a thread that has ended is taken back");
        if (!MUTANT(WAKE_NOT_SWEPT)) {
            wake_sweep_stopped(ctx);
        }
    }
}

static NOINLINE void post_coroutine(AioContext *ctx, Coroutine *co,
                                    PostFunc *run)
{
    co->post.run = run;
    if (context_is_home(ctx, os_thread())) {
        context_post(ctx, &co->post);
        return;
    }
    if (MUTANT(WAKE_CONTEXT_FREED)) {
        context_post_pinned(ctx, &co->post.node, &co->post.node);
        sweep_if_stopped(ctx);
        return;
    }
    context_pin(ctx);
    context_post_pinned(ctx, &co->post.node, &co->post.node);
    sweep_if_stopped(ctx);
    context_unpin(ctx);
}

static COLD NORETURN void misuse_homeless(const Coroutine *co, const char *who)
{
    CoroutineLabel label;

    misuse("%s: %s has no home to resume in: give it one with aio_co_enter() "
           "or aio_co_schedule()",
           who, coroutine_label(co, &label));
}

static inline void wake_claim(Coroutine *co, const char *who)
{
    coroutine_check_live(co, who);
    coroutine_claim(co, who);
    if (unlikely(!co->home)) {
        misuse_homeless(co, who);
    }
}

static inline void wake_deliver(Coroutine *co)
{
    OsThread *thread = os_thread();
    AioContext *ctx = home_of(co);

    if (!context_is_home(ctx, thread)) {
        post_coroutine(ctx, co, run_woken);
    } else if (thread->current) {
        coroutine_defer_claimed(thread, co);
    } else {
        coroutine_resume_claimed(thread, co);
    }
}

void wake_as(Coroutine *co, const char *who)
{
    wake_claim(co, who);
    wake_deliver(co);
}

void aio_co_wake(Coroutine *co)
{
    os_check_fork("aio_co_wake");
    wake_as(co, "aio_co_wake");
}

/* --- delivery of many ----------------------------------------------------*/

/* Post those of chain that live in ctx, with one notification; the rest, in
 * order, stay in chain. */
static void deliver_to(AioContext *ctx, Fifo *chain)
{
    Fifo rest = { NULL, NULL };
    FifoNode *newest = NULL, *oldest = NULL;
    FifoNode *node;

    while ((node = fifo_take(chain))) {
        Coroutine *co = container_of(node, Coroutine, link);

        if (home_of(co) != ctx) {
            fifo_append(&rest, node);
        } else {
            co->post.run = run_woken;
            co->post.node.next = newest;
            newest = &co->post.node;
            oldest = oldest ? oldest : newest;
        }
    }
    context_pin(ctx);
    context_post_pinned(ctx, newest, oldest);
    if (MUTANT(QUEUE_RESTART_TOUCHES)) {
        Coroutine *co = container_of(newest, Coroutine, post.node);

        co->link.next = NULL; /* the list lives on in it */
    }
    sweep_if_stopped(ctx);
    context_unpin(ctx);
    *chain = rest;
}

void wake_claim_to(WakeChain *chain, Coroutine *co, const char *who)
{
    wake_claim(co, who);
    fifo_append(context_is_home(home_of(co), os_thread()) ? &chain->here
                                                          : &chain->away,
                &co->link);
}

void wake_deliver_chain(WakeChain *chain)
{
    OsThread *thread = os_thread();
    FifoNode *node;

    while (chain->away.head) {
        Coroutine *co = container_of(chain->away.head, Coroutine, link);

        deliver_to(home_of(co), &chain->away);
    }
    if (thread->current && chain->here.head) {
        coroutine_defer_claimed_chain(thread, &chain->here);
        return;
    }
    while ((node = fifo_take(&chain->here))) {
        coroutine_resume_claimed(thread, container_of(node, Coroutine, link));
    }
}

/* --- moving --------------------------------------------------------------*/

/* co, claimed and with a quiet stack, goes to ctx. */
static void move_and_post(Coroutine *co, AioContext *ctx)
{
    OsThread *thread = os_thread();

    if (co->home != &ctx->home) {
        coroutine_count_out(thread, co);
        /* [iothread/B] Release: that co waits for nothing now. */
        store_release(&co->home, &ctx->home);
    }
    if (co->counted) {
        post_coroutine(ctx, co, run_woken);
    } else {
        aio_context_ref(ctx);
        post_coroutine(ctx, co, run_arrived);
    }
}

/* co has yielded, and was to move then. */
static void move_now(Coroutine *co)
{
    AioContext *target = container_of(co->target, AioContext, home);
    AioContext *home = home_of(co);

    invariant(!home || context_is_home(home, os_thread()) ||
              load_acquire(&home->stopped));
    co->target = NULL;
    move_and_post(co, target);
    aio_context_unref(target); /* held for co->target */
}

/* Posted to its home in order to move on from there. */
static void forward(void *owner, Post *post)
{
    (void)owner;
    MARK("wake: forwarded from its home");
    move_now(container_of(post, Coroutine, post));
}

/* Taken out of ctx, which has stopped. */
static void resolve_late(AioContext *ctx, Post *post)
{
    if (post->run == forward) {
        MARK("wake: forwarded by another than its home");
        move_now(container_of(post, Coroutine, post));
        return;
    }
    fetch_add_relaxed(&ctx->lost_wakeups, (uint64_t)1);
    if (post->run == run_arrived) {
        Coroutine *co = container_of(post, Coroutine, post);

        MARK("wake: one on its way never arrives");
        store_relaxed(&co->home, NULL); /* it never came to live here */
        if (!MUTANT(WAKE_WAY_KEPT)) {
            aio_context_unref(ctx); /* what it held on its way */
        }
    }
}

/* With the lock of ctx: move the coroutines that were posted to late. */
static void take_late(AioContext *ctx, Fifo *late)
{
    Fifo others = { NULL, NULL };
    FifoNode *node;

    post_take_all(&ctx->posted, &ctx->ready);
    while ((node = fifo_take(&ctx->ready))) {
        PostFunc *run = container_of(node, Post, node)->run;
        bool resumes = run == run_woken || run == run_arrived || run == forward;

        fifo_append(resumes ? late : &others, node);
    }
    ctx->ready = others;
}

void wake_sweep_stopped(AioContext *ctx)
{
    Fifo late = { NULL, NULL };
    FifoNode *node;

    os_mutex_lock(&ctx->lock);
    take_late(ctx, &late);
    os_mutex_unlock(&ctx->lock);
    while ((node = fifo_take(&late))) {
        resolve_late(ctx, container_of(node, Post, node));
    }
}

/* Whether the one who holds the claim can be sure that co's stack is quiet. */
static bool quiet(const OsThread *thread, const Coroutine *co)
{
    AioContext *home = home_of(co);

    if (load_relaxed(&co->state) == COROUTINE_NEW || MUTANT(WAKE_NOT_QUIET)) {
        return true;
    }
    if (!home || context_is_home(home, thread)) {
        return load_relaxed(&co->state) != COROUTINE_ENTERED;
    }
    return load_acquire(&home->stopped);
}

/* Whether co is the coroutine that runs on this thread, or has entered it. */
static bool entered_here(const OsThread *thread, const Coroutine *co)
{
    const Coroutine *entered = thread->current;

    while (entered && entered != co) {
        entered = entered->caller;
    }
    return entered != NULL;
}

/*
 * Without a home there is no thread that could be asked to move co when it
 * has yielded; and to look from here whether it has is a race.
 */
static COLD NORETURN void misuse_runs_elsewhere(const Coroutine *co)
{
    CoroutineLabel label;

    misuse("%s: %s has no home and runs on another thread: it can only be "
           "moved when it has returned to the one who entered it",
           load_relaxed(&co->scheduled), coroutine_label(co, &label));
}

/* co is claimed. */
static void schedule_claimed(AioContext *ctx, Coroutine *co)
{
    OsThread *thread = os_thread();
    AioContext *home = home_of(co);

    if (home == ctx || quiet(thread, co)) {
        move_and_post(co, ctx);
        return;
    }
    if (unlikely(!home && !entered_here(thread, co))) {
        misuse_runs_elsewhere(co);
    }
    aio_context_ref(ctx);
    co->target = &ctx->home;
    if (!home || context_is_home(home, thread)) {
        MARK("wake: moves when it has yielded");
        co->on_yield = move_now;
    } else {
        post_coroutine(home, co, forward);
    }
}

static inline void check_target(const AioContext *ctx, const char *who)
{
    if (unlikely(!ctx)) {
        misuse("%s: the context is NULL", who);
    }
}

void schedule_as(AioContext *ctx, Coroutine *co, const char *who)
{
    check_target(ctx, who);
    coroutine_check_live(co, who);
    coroutine_claim(co, who);
    schedule_claimed(ctx, co);
}

void aio_co_schedule(AioContext *ctx, Coroutine *co)
{
    os_check_fork("aio_co_schedule");
    schedule_as(ctx, co, "aio_co_schedule");
}

void aio_co_enter(AioContext *ctx, Coroutine *co)
{
    OsThread *thread = os_thread();

    os_check_fork("aio_co_enter");
    check_target(ctx, "aio_co_enter");
    coroutine_check_live(co, "aio_co_enter");
    coroutine_claim(co, "aio_co_enter");
    if (!context_is_home(ctx, thread) ||
        (home_of(co) != ctx && !quiet(thread, co))) {
        schedule_claimed(ctx, co);
        return;
    }
    if (home_of(co) != ctx) {
        coroutine_count_out(thread, co);
        store_relaxed(&co->home, &ctx->home);
    }
    wake_deliver(co);
}

void co_reschedule_self(AioContext *ctx)
{
    Coroutine *co = os_thread()->current;

    os_check_fork("co_reschedule_self");
    if (!co) {
        misuse("co_reschedule_self: called outside a coroutine");
    }
    check_target(ctx, "co_reschedule_self");
    if (home_of(co) == ctx) {
        return;
    }
    coroutine_claim(co, "co_reschedule_self");
    schedule_claimed(ctx, co);
    coroutine_yield();
}
