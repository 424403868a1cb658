/* SPDX-License-Identifier: MIT */
/*
 * Bottom halves.
 *
 * A bottom half that is QUEUED is in exactly one list of its context: posted
 * (or ready, when the home thread has taken it over), or idle.  It gets there
 * by the call that finds it not QUEUED, and leaves it when the home thread
 * runs it.  Whether the callback runs then is up to the other flags, so that
 * cancelling needs no list operation and keeps the place.
 *
 * INVARIANTS
 *
 *   1. QUEUED is set by the thread that pushes, before it pushes, and cleared
 *      by the home thread, after it has taken the node off its list.
 *   2. After clearing QUEUED the home thread does not touch the bottom half:
 *      it may be scheduled, or deleted, by anybody from then on.
 *   3. Who deletes one that is not QUEUED frees it; one that is QUEUED is freed
 *      by the home thread.
 *
 * PROTOCOL AND MEMORY ORDER
 *
 *   [bh/A] scheduling sets flags by a read-modify-write with release; [bh/B]
 *   running clears them by one with acquire.  All changes of flags are
 *   read-modify-writes, so they form one release sequence: what any scheduler
 *   wrote before is visible to the callback, also of one who found the bottom
 *   half QUEUED already and pushed nothing.
 *   A plain test of the flag before, or a plain store when clearing, loses the
 *   wake-up of the one who comes in between.  So who finds the flags set as he
 *   wants them swaps them for themselves.
 *
 *   [hurry] is store-buffering order between the idle list and `hurry`.  Who
 *   finds an idle bottom half QUEUED, and makes it urgent, cannot know whether
 *   it has been pushed yet; so who pushes it looks whether somebody was in a
 *   hurry meanwhile, and says so again.
 *
 *       schedules it idle               home thread
 *       before = hurry                  looks at hurry: it has changed
 *       QUEUED                          fence                            B
 *       push                            takes the idle list
 *       fence                  A
 *       if (hurry != before) hurry++
 *
 *   With both fences either the home thread finds it in the list, or who
 *   pushes finds that hurry has changed.  He who was in a hurry changed it
 *   after he had seen QUEUED, thus after `before` was read.
 */
#include "base/explore.h"
#include "loop/context.h"

#include "os/memory.h"

#include <coaio/bh.h>

enum {
    BH_QUEUED = 1,     /* in a list */
    BH_SCHEDULED = 2,  /* to run */
    BH_IDLE = 4,       /* to run, without hurry */
    BH_DELETED = 8,    /* to be freed by the home thread */
};

struct AioBH {
    Post post;         /* in the list that QUEUED speaks of */
    List link;         /* in ctx->bhs; ctx->lock */
    AioContext *ctx;   /* constant */
    AioBHFunc *cb;     /* constant */
    void *opaque;      /* constant */
    uint32_t flags;    /* atomic; BH_... */
};

/* What a one-shot needs; lives in an AioBHStorage or on the heap. */
typedef struct OneShot {
    Post post;
    AioBHFunc *cb;
    void *opaque;
    bool on_heap;
} OneShot;

_Static_assert(sizeof(OneShot) <= sizeof(AioBHStorage),
               "AioBHStorage is too small");

/* [bh/B] pairs with [bh/A] in bh_set() and in aio_bh_schedule().  Returns the
 * flags before.  DELETED goes, too: then bh is freed. */
static inline uint32_t bh_clear(AioBH *bh)
{
    if (MUTANT(BH_CLEAR_PLAIN)) {
        uint32_t old = load_acquire(&bh->flags);

        store_release(&bh->flags, 0u);
        return old;
    }
    return xchg_acq_rel(&bh->flags, 0u);
}

static void run_bh(void *owner, Post *post)
{
    AioBH *bh = container_of(post, AioBH, post);
    AioContext *ctx = owner;
    AioBHFunc *cb = bh->cb;
    void *opaque = bh->opaque;
    uint32_t flags;

    /* What is needed of bh was read before: see INVARIANTS 2. */
    flags = bh_clear(bh);
    invariant(flags & BH_QUEUED); /* INVARIANTS 1 */
    if (flags & BH_DELETED) {
        MARK("bh: the home thread frees it");
        os_free(bh);
        return;
    }
    if (MUTANT(BH_RUN_READS_LATE)) {
        opaque = bh->opaque;
    }
    if (flags & BH_SCHEDULED) {
        ctx->ran++;
    }
    if (flags & (BH_SCHEDULED | BH_IDLE)) {
        cb(opaque);
    } else {
        MARK("bh: it was cancelled in its place");
    }
}

AioBH *aio_bh_new(AioContext *ctx, AioBHFunc *cb, void *opaque)
{
    AioBH *bh;

    os_check_fork("aio_bh_new");
    bh = os_alloc(sizeof(*bh));
    if (!bh) {
        misuse("aio_bh_new: no memory for a bottom half");
    }
    bh->post.run = run_bh;
    bh->ctx = ctx;
    bh->cb = cb;
    bh->opaque = opaque;
    os_mutex_lock(&ctx->lock);
    list_append(&ctx->bhs, &bh->link);
    os_mutex_unlock(&ctx->lock);
    return bh;
}

AioBH *aio_bh_new_main(AioBHFunc *cb, void *opaque)
{
    AioContext *ctx = aio_context_main();

    if (!ctx) {
        misuse("aio_bh_new_main: there is no main context: no memory or "
               "descriptors, or COAIO_ENGINE names no engine that works here");
    }
    return aio_bh_new(ctx, cb, opaque);
}

/* [bh/A] pairs with [bh/B] in bh_clear().  Returns the flags before. */
static uint32_t bh_set(AioBH *bh, uint32_t flags)
{
    return fetch_or_acq_rel(&bh->flags, flags);
}

/*
 * An idle bottom half was scheduled after all (or a cancelled one, which is
 * not told apart): the idle list is to be taken at once.
 */
static COLD void hurry(AioContext *ctx)
{
    MARK("bh: an idle one is hurried");
    fetch_add_release(&ctx->hurry, 1u);
    if (!MUTANT(BH_HURRY_QUIET)) {
        context_notify_posted(ctx);
    }
}

/*
 * The flags of bh, as they were before, were old.  From the setting of the
 * flags on bh may be gone, and so may ctx: thus the pin, for those who find
 * that they have to be in a hurry.
 */
static NOINLINE void schedule_again(AioBH *bh, AioContext *ctx, uint32_t old)
{
    const uint32_t both = BH_QUEUED | BH_SCHEDULED;
    bool pin =
        !context_is_home(ctx, os_thread()) && !MUTANT(BH_HURRY_UNPINNED);

    /* [bh/A] pairs with [bh/B] in bh_clear(): to change nothing is to say what
     * was written, too. */
    if ((old & both) == both &&
        (MUTANT(BH_EARLY_RETURN) || cas_acq_rel(&bh->flags, &old, old))) {
        MARK("bh: it is on its way already");
        return;
    }
    if (pin) {
        context_pin(ctx);
    }
    old = bh_set(bh, BH_QUEUED | BH_SCHEDULED);
    if (!(old & BH_QUEUED)) {
        MARK("bh: it ran while it was scheduled again");
        context_post(ctx, &bh->post);
    } else if (!(old & BH_SCHEDULED)) {
        hurry(ctx);
    }
    if (pin) {
        context_unpin(ctx);
    }
}

void aio_bh_schedule(AioBH *bh)
{
    AioContext *ctx = bh->ctx;
    uint32_t none = 0;

    os_check_fork("aio_bh_schedule");
    /* [bh/A] pairs with [bh/B] in bh_clear().  Without a look at the flags
     * before: that would bring them here in vain, not to be changed yet. */
    if (unlikely(!cas_acq_rel(&bh->flags, &none, BH_QUEUED | BH_SCHEDULED))) {
        schedule_again(bh, ctx, none);
        return;
    }
    context_post(ctx, &bh->post);
    if (MUTANT(BH_CONTEXT_AFTER_PUBLISH)) {
        context_notify_posted(bh->ctx);
    }
}

void aio_bh_schedule_idle(AioBH *bh)
{
    AioContext *ctx = bh->ctx;
    bool away = !context_is_home(ctx, os_thread());
    uint32_t hurry_before;

    os_check_fork("aio_bh_schedule_idle");
    if (away) {
        context_pin(ctx);
    }
    hurry_before = load_relaxed(&ctx->hurry);
    if (!(bh_set(bh, BH_QUEUED | BH_IDLE) & BH_QUEUED)) {
        context_post_idle_pinned(ctx, &bh->post);
    }
    /* [hurry/A] is the fence of [notify/A], after the push.  Pairs with
     * [hurry/B] in context_dispatch(). */
    if (unlikely(load_relaxed(&ctx->hurry) != hurry_before) &&
        !MUTANT(BH_HURRY_MISSED)) {
        MARK("bh: it was hurried before it was pushed");
        hurry(ctx);
    }
    if (away) {
        context_unpin(ctx);
    }
}

void aio_bh_cancel(AioBH *bh)
{
    os_check_fork("aio_bh_cancel");
    if (MUTANT(BH_CANCEL_PLAIN)) {
        store_release(&bh->flags, load_acquire(&bh->flags) &
                                      ~(uint32_t)(BH_SCHEDULED | BH_IDLE));
        return;
    }
    fetch_and_acq_rel(&bh->flags, ~(uint32_t)(BH_SCHEDULED | BH_IDLE));
}

void aio_bh_delete(AioBH *bh)
{
    uint32_t old;

    if (!bh) {
        return;
    }
    os_check_fork("aio_bh_delete");
    os_mutex_lock(&bh->ctx->lock);
    list_remove(&bh->link);
    os_mutex_unlock(&bh->ctx->lock);
    old = fetch_or_acq_rel(&bh->flags, BH_DELETED);
    if (!(old & BH_QUEUED) || MUTANT(BH_FREED_TWICE)) {
        os_free(bh); /* INVARIANTS 3 */
    }
}

static void run_one_shot(void *owner, Post *post)
{
    OneShot *shot = container_of(post, OneShot, post);
    AioContext *ctx = owner;
    AioBHFunc *cb = shot->cb;
    void *opaque = shot->opaque;

    if (shot->on_heap) {
        os_free(shot);
    }
    ctx->ran++;
    cb(opaque);
}

static void post_one_shot(AioContext *ctx, OneShot *shot, AioBHFunc *cb,
                          void *opaque, bool on_heap)
{
    shot->post.run = run_one_shot;
    shot->cb = cb;
    shot->opaque = opaque;
    shot->on_heap = on_heap;
    context_post(ctx, &shot->post);
}

void aio_bh_schedule_oneshot(AioContext *ctx, AioBHFunc *cb, void *opaque)
{
    OneShot *shot;

    os_check_fork("aio_bh_schedule_oneshot");
    shot = os_alloc(sizeof(*shot));
    if (!shot) {
        misuse("aio_bh_schedule_oneshot: no memory; "
               "aio_bh_schedule_oneshot_embedded() needs none");
    }
    post_one_shot(ctx, shot, cb, opaque, true);
}

void aio_bh_schedule_oneshot_embedded(AioContext *ctx, AioBHStorage *storage,
                                      AioBHFunc *cb, void *opaque)
{
    os_check_fork("aio_bh_schedule_oneshot_embedded");
    post_one_shot(ctx, (OneShot *)(void *)storage, cb, opaque, false);
}

size_t bh_check_none_left(AioContext *ctx)
{
    CoroutineLabel label;
    FifoNode *node;
    size_t left = 0;

    /* A waker may still be in wake_sweep_stopped(). */
    os_mutex_lock(&ctx->lock);
    post_take_all(&ctx->posted, &ctx->ready);
    post_take_all(&ctx->idle, &ctx->ready);
    while ((node = fifo_take(&ctx->ready))) {
        Post *post = container_of(node, Post, node);

        if (post->run == run_bh) {
            AioBH *bh = container_of(post, AioBH, post);

            if (load_acquire(&bh->flags) & BH_DELETED) {
                os_free(bh);
            }
        } else if (post->run == run_one_shot) {
            OneShot *shot = container_of(post, OneShot, post);

            warn_line("%s ends with a one-shot bottom half pending: "
                      "callback %p, opaque %p",
                      context_label(ctx, &label), (void *)(uintptr_t)shot->cb,
                      shot->opaque);
            left++;
        }
    }
    for (List *link = list_first(&ctx->bhs); link;
         link = list_next(&ctx->bhs, link)) {
        AioBH *bh = list_entry(link, AioBH, link);

        warn_line("%s ends with a bottom half left: callback %p, opaque %p",
                  context_label(ctx, &label), (void *)(uintptr_t)bh->cb,
                  bh->opaque);
        left++;
    }
    os_mutex_unlock(&ctx->lock);
    return left;
}
