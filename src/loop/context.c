/* SPDX-License-Identifier: MIT */
/*
 * Life and death of an AioContext: see REFERENCES in context.h.
 *
 * A context may be closed, and its memory go, on any thread: the user's last
 * reference, the end of a coroutine or the end of a waker's notification may
 * come last.  Two things make that simple:
 *
 *   - Leftovers are looked at when handles reaches 0, by whoever got it there;
 *     from then on nobody may hand work to the context.
 *   - Memory is freed when pins reaches 0.  As a signal handler may be the one
 *     who lets go last, that only puts the context on a list (the graveyard),
 *     from which the next call of this file outside signal handlers frees it.
 */
#include "base/explore.h"
#include "loop/context.h"

#include "loop/wake_int.h"
#include "os/event.h"
#include "os/memory.h"

#include <coaio/wait.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Contexts without pins, by grave. */
static PostList graveyard;

static OsMutex main_lock = OS_MUTEX_INIT;
static AioContext *main_context; /* atomic; set once, with main_lock */

static OsMutex setup_lock = OS_MUTEX_INIT;
static bool setup_done; /* setup_lock */

const char *context_label(AioContext *ctx, CoroutineLabel *label)
{
    snprintf(label->text, sizeof(label->text), "context \"%s\"",
             ctx->home.name);
    return label->text;
}

/* --- memory --------------------------------------------------------------*/

static void context_free(AioContext *ctx)
{
    fd_table_free(ctx); /* first: from then on fd_cancel_all() misses it */
    if (ctx->poller.ops) {
        poller_close(ctx);
    }
    os_event_close(ctx->event);
    os_mutex_destroy(&ctx->lock);
    os_free(ctx);
}

void context_reap(void)
{
    Fifo dead = { NULL, NULL };
    FifoNode *node;

    post_take_all(&graveyard, &dead);
    while ((node = fifo_take(&dead))) {
        context_free(container_of(node, AioContext, grave.node));
    }
}

void context_bury(AioContext *ctx)
{
    MARK("context: the last pin goes elsewhere");
    post_push(&graveyard, &ctx->grave);
}

/* --- references ----------------------------------------------------------*/

/* The calling thread has no context any more. */
static void unbind(OsThread *thread)
{
    AioContext *ctx = thread->context;

    thread->context = NULL;
    context_unpin(ctx);
}

/* No handle is left: nothing may be left in it, and nothing comes. */
static void context_close(AioContext *ctx)
{
    OsThread *thread = os_thread();
    CoroutineLabel label;
    size_t left = bh_check_none_left(ctx);

    left += fd_check_none_left(ctx);
    left += timer_check_none_left(ctx);
    if (left > 0) {
        misuse("aio_context_unref: the last reference to %s went while %zu "
               "bottom halves, fd handlers or timers were left (named above): "
               "delete them first",
               context_label(ctx, &label), left);
    }
    store_release(&ctx->home.closed, 1);
    if (context_is_home(ctx, thread) &&
        (ctx->depth == 0 || MUTANT(CONTEXT_CLOSED_IN_PASS))) {
        unbind(thread);
    }
    context_unpin(ctx);
}

void context_leave_pass(AioContext *ctx)
{
    if (--ctx->depth == 0 && unlikely(load_relaxed(&ctx->home.closed))) {
        MARK("context: it was closed in a pass");
        invariant(context_is_home(ctx, os_thread()));
        unbind(os_thread());
        context_reap();
    }
}

static void drop_handle(AioContext *ctx)
{
    unsigned long handles = fetch_sub_acq_rel(&ctx->handles, 1UL);

    if (unlikely(handles == 0)) {
        misuse("aio_context_unref: context %p has no references left: it is "
               "gone",
               (void *)ctx);
    }
    if (handles == 1) {
        context_close(ctx);
    }
}

AioContext *aio_context_ref(AioContext *ctx)
{
    unsigned long handles;

    os_check_fork("aio_context_ref");
    handles = fetch_add_relaxed(&ctx->handles, 1UL);
    if (handles == 0) {
        misuse("aio_context_ref: context %p has no references left: it is "
               "gone",
               (void *)ctx);
    }
    return ctx;
}

void aio_context_unref(AioContext *ctx)
{
    if (!ctx) {
        return;
    }
    os_check_fork("aio_context_unref");
    context_release_population(ctx);
    drop_handle(ctx);
    context_reap();
}

bool context_try_ref(AioContext *ctx)
{
    unsigned long handles = load_relaxed(&ctx->handles);

    if (MUTANT(CONTEXT_REF_BLIND)) {
        aio_context_ref(ctx);
        return true;
    }
    while (handles > 0) {
        if (cas_relaxed(&ctx->handles, &handles, handles + 1)) {
            return true;
        }
    }
    MARK("context: the last handle went just before it was wanted");
    return false;
}

/* For coroutine/: one that starts here wants the context to stay. */
static bool hold_home(CoHome *home)
{
    AioContext *ctx = container_of(home, AioContext, home);

    if (!context_try_ref(ctx)) {
        return false;
    }
    store_release(&home->held, 1);
    return true;
}

/*
 * The count of coroutines is kept without atomics, by the home thread; the
 * reference that it stands for is dropped only here, where the home thread
 * (or, when that has ended, anybody) looks whether it is 0.
 */
void context_release_population(AioContext *ctx)
{
    CoHome *home = &ctx->home;
    int held = 1;

    if (!load_relaxed(&home->held)) {
        return;
    }
    if (!context_is_home(ctx, os_thread()) && !load_acquire(&ctx->stopped)) {
        return;
    }
    if (home->population != load_acquire(&home->emigrated)) {
        return;
    }
    if (MUTANT(CONTEXT_HELD_PLAIN)) {
        store_relaxed(&home->held, 0); /* it was 1 above */
        drop_handle(ctx);
        return;
    }
    if (cas_acq_rel(&home->held, &held, 0)) {
        drop_handle(ctx);
    } else {
        MARK("context: another has let go for the coroutines");
    }
}

/*
 * For coroutine/: another thread than the home's has taken one away.  Usually
 * the home thread notices in its next pass.  If it has ended, this may be the
 * last chance to let go of the context: its users may have done so before.
 */
static void leave_home(CoHome *home)
{
    AioContext *ctx = container_of(home, AioContext, home);

    context_pin(ctx); /* the reference of the coroutine may go now */
    fetch_add_acq_rel(&home->emigrated, 1L);
    /*
     * [stop/C] Count it out, then look whether the home thread has ended.
     * Pairs with [stop/A] in context_stop(): either the thread's end sees that
     * it has left, or we see that the thread has ended.
     */
    if (!MUTANT(STOP_NO_FENCE_LEAVER)) {
        fence_seq_cst_after_rmw();
    }
    context_release_population(ctx);
    context_unpin(ctx);
    context_reap();
}

/* --- making one ----------------------------------------------------------*/

void context_stop(AioContext *ctx)
{
    List *link;

    context_pin(ctx);
    if (ctx->poller.ops->stop) {
        ctx->poller.ops->stop(ctx);
    }
    while ((link = list_take_first(&ctx->farewells))) {
        ContextFarewell *farewell = list_entry(link, ContextFarewell, link);

        farewell->say(farewell);
    }
    os_mutex_lock(&ctx->lock);
    /* Release: who finds it stopped may do what the home thread did. */
    store_release(&ctx->stopped, 1);
    os_mutex_unlock(&ctx->lock);
    timer_stopped(ctx);
    /*
     * From here on this thread is as any other to ctx: it resumes nothing
     * there, and counts out atomically.
     */
    unbind(os_thread());
    /*
     * [stop/A] Say that nothing runs here any more, then look at what was
     * posted, and at how many coroutines are left.  Pairs with [stop/B] in
     * sweep_if_stopped() and [stop/C] in leave_home().
     */
    if (!MUTANT(STOP_NO_FENCE)) {
        fence_seq_cst();
    }
    wake_sweep_stopped(ctx);
    aio_wait_kick(); /* who waits for something that will not come */
    context_release_population(ctx);
    context_unpin(ctx);
    context_reap();
}

/* A thread ends: its context, if any, stays without a thread. */
static void thread_exit(OsThread *thread)
{
    if (thread->context) {
        context_stop(thread->context);
    }
}

static void setup_once(void)
{
    os_mutex_lock(&setup_lock);
    if (!setup_done) {
        setup_done = true;
        coroutine_current_context = aio_context_current;
        coroutine_hold_home = hold_home;
        coroutine_leave_home = leave_home;
        os_thread_on_exit(thread_exit);
    }
    os_mutex_unlock(&setup_lock);
}

static void context_init(AioContext *ctx, const AioContextOptions *options)
{
    static uint32_t made; /* atomic */

    ctx->handles = 1;
    ctx->pass = (uint64_t)fetch_add_relaxed(&made, 1u) << 32;
    ctx->pins = 1;
    ctx->event[0] = -1;
    ctx->event[1] = -1;
    list_init(&ctx->bhs);
    list_init(&ctx->farewells);
    timer_init(ctx);
    worker_watch_init(ctx);
    os_mutex_init(&ctx->lock);
    if (options && options->name) {
        snprintf(ctx->home.name, sizeof(ctx->home.name), "%s", options->name);
    } else {
        snprintf(ctx->home.name, sizeof(ctx->home.name), "%p", (void *)ctx);
    }
}

int aio_context_new(AioContext **out, const AioContextOptions *options)
{
    AioContext *ctx;
    int ret;

    os_check_fork("aio_context_new");
    if (options && options->size != sizeof(*options)) {
        return -EINVAL;
    }
    setup_once();
    os_thread_prepare(os_thread()); /* children are recognised from now on */
    context_reap();
    ctx = os_alloc(sizeof(*ctx));
    if (!ctx) {
        return -ENOMEM;
    }
    context_init(ctx, options);
    ret = os_event_open(ctx->event);
    if (ret < 0) {
        goto fail;
    }
    ret = fd_table_new(ctx);
    if (ret < 0) {
        goto fail;
    }
    ret = poller_open(ctx, options ? options->engine : NULL);
    if (ret < 0) {
        goto fail;
    }
    *out = ctx;
    return 0;

fail:
    context_free(ctx);
    return ret;
}

const char *aio_context_engine(const AioContext *ctx)
{
    return load_relaxed(&ctx->poller.ops)->name;
}

/* --- binding to a thread -------------------------------------------------*/

static COLD void check_may_attach(AioContext *ctx, OsThread *thread)
{
    CoroutineLabel label, other;

    if (thread->current) {
        misuse("aio_context_attach: %s is attached in %s; do so outside "
               "coroutines",
               context_label(ctx, &label),
               coroutine_label(thread->current, &other));
    }
    if (thread->context && thread->context->depth > 0 &&
        load_relaxed(&thread->context->home.closed)) {
        misuse("aio_context_attach: the last reference to %s has gone, but a "
               "pass of it is on: attach %s when that is over",
               context_label(thread->context, &other),
               context_label(ctx, &label));
    }
    if (thread->context) {
        misuse("aio_context_attach: this thread has %s already, and cannot "
               "poll %s",
               context_label(thread->context, &other),
               context_label(ctx, &label));
    }
}

void aio_context_attach(AioContext *ctx)
{
    OsThread *thread = os_thread();
    OsThread *unbound = NULL;
    CoroutineLabel label;

    os_check_fork("aio_context_attach");
    if (context_is_home(ctx, thread)) {
        return;
    }
    aio_context_current(); /* lets go of one that was closed */
    check_may_attach(ctx, thread);
    os_thread_prepare(thread); /* else context_enter_pass() does */
    if (!cas_acq_rel(&ctx->thread, &unbound, thread)) {
        misuse("aio_context_attach: %s is bound to another thread for good; "
               "only that thread may poll it",
               context_label(ctx, &label));
    }
    context_pin(ctx);
    thread->context = ctx;
}

/*
 * The calling thread's context was closed, so it has none.  A pass that is on
 * needs the memory still, and lets go by itself: context_leave_pass().
 */
static COLD void forget_closed(OsThread *thread)
{
    if (thread->context->depth > 0) {
        MARK("context: a pass asks for its own, which was closed in it");
        return;
    }
    MARK("context: a thread finds that its own was closed elsewhere");
    unbind(thread);
    context_reap();
}

/* The last coroutine may have ended outside a pass, and have been the last that
 * kept the context. */
static inline void look_at_population(const OsThread *thread)
{
    AioContext *ctx = thread->context;

    if (ctx && ctx->depth == 0 && !thread->current) {
        context_release_population(ctx);
        if (!thread->context) {
            context_reap();
        }
    }
}

AioContext *aio_context_current(void)
{
    OsThread *thread = os_thread();
    AioContext *ctx;

    os_check_fork("aio_context_current");
    look_at_population(thread);
    ctx = thread->context;
    if (ctx && unlikely(load_acquire(&ctx->home.closed))) {
        forget_closed(thread);
        return NULL;
    }
    return ctx;
}

AioContext *aio_context_main(void)
{
    static const AioContextOptions options = {
        .size = sizeof(options),
        .name = "main",
    };
    AioContext *ctx = load_acquire(&main_context);

    os_check_fork("aio_context_main");
    if (likely(ctx)) {
        return ctx; /* signal handlers, too, come here: without the lock */
    }
    os_mutex_lock(&main_lock);
    ctx = load_relaxed(&main_context);
    if (!ctx && aio_context_new(&ctx, &options) == 0) {
        aio_context_attach(ctx);
        store_release(&main_context, ctx);
    }
    os_mutex_unlock(&main_lock);
    return ctx;
}
