/* SPDX-License-Identifier: MIT */
/*
 * CoGroup: a count of coroutines that run, the first error, and who waits for
 * the count to reach zero, under a brief lock.
 *
 * LIFETIME: the last access of a member that ends is that of brief_unlock()
 * (brief.h); the waiters get the error with their wake-up and do not look at
 * the group again.
 *
 * INVARIANTS
 *
 *   1. Somebody waits only while running_ is above zero.
 *   2. Whoever takes a waiter off the list ends its wait and wakes it: the
 *      last member, or a cancellation.
 *
 * PROTOCOL AND MEMORY ORDER: [brief] and [wait] in docs/memory-ordering.md.
 */
#include "sync/brief.h"
#include "sync/waiter.h"

#include "os/memory.h"

#include <coaio/coroutine.h>
#include <coaio/group.h>
#include <coaio/wake.h>

#include <errno.h>
#include <string.h>

/* One run, from co_group_run() until it starts. */
typedef struct GroupRun {
    CoGroup *group;
    CoGroupFunc *fn;
    void *opaque;
} GroupRun;

void co_group_init(CoGroup *group)
{
    memset(group, 0, sizeof(*group));
}

/* The error so far; it is reported once. */
static int forget_error(CoGroup *group)
{
    int error = group->error_;

    group->error_ = 0;
    return error;
}

static void member_ended(CoGroup *group, int result)
{
    WakeChain woken = {0};
    Waiter *waiter;
    int error;

    brief_lock(&group->lock_);
    invariant(group->running_ > 0);
    if (result < 0 && !group->error_) {
        group->error_ = result;
    }
    if (--group->running_ == 0 && !waiters_empty(&group->waiters_)) {
        error = forget_error(group);
        while ((waiter = waiters_take(&group->waiters_))) {
            co_wait_settle(&waiter->wait, error); /* INVARIANTS 2 */
            waiter_claim(waiter, &woken, "the last of a CoGroup");
        }
    }
    brief_unlock(&group->lock_);
    waiters_deliver(&woken);
}

static void coroutine_fn member_entry(void *opaque)
{
    GroupRun run = *(GroupRun *)opaque;

    os_free(opaque);
    member_ended(run.group, run.fn(run.opaque));
}

static int member_new(Coroutine **co, CoGroup *group, CoGroupFunc *fn,
                      void *opaque)
{
    GroupRun *run = os_alloc(sizeof(*run));
    int ret;

    if (!run) {
        return -ENOMEM;
    }
    run->group = group;
    run->fn = fn;
    run->opaque = opaque;
    ret = coroutine_create_full(co, member_entry, run, NULL);
    if (ret < 0) {
        os_free(run);
    }
    return ret;
}

int co_group_run(CoGroup *group, AioContext *ctx, CoGroupFunc *fn, void *opaque)
{
    Coroutine *co;
    int ret;

    os_check_fork("co_group_run");
    ret = member_new(&co, group, fn, opaque);
    if (ret < 0) {
        return ret;
    }
    if (!ctx) {
        /* Where it was born: asked for before, it might be gone by now. */
        ctx = coroutine_context(co);
    }
    if (!ctx) {
        misuse("co_group_run: CoGroup %p: this thread has no context, so one "
               "must be given",
               (void *)group);
    }
    brief_lock(&group->lock_);
    group->running_++;
    brief_unlock(&group->lock_);
    aio_co_enter(ctx, co);
    return 0;
}

static void cancel_wait(CoWait *wait, int error)
{
    CoGroup *group = (CoGroup *)wait->object;
    Waiter *waiter = waiter_of(wait);
    WakeChain woken = {0};

    brief_lock(&group->lock_);
    if (waiter->linked) {
        waiters_remove(&group->waiters_, waiter);
        co_wait_settle(wait, error); /* INVARIANTS 2 */
        waiter_claim(waiter, &woken, "a cancellation");
    }
    brief_unlock(&group->lock_);
    waiters_deliver(&woken);
}

int co_group_wait(CoGroup *group)
{
    Waiter waiter;
    int error;

    sync_self("co_group_wait", "CoGroup", group);
    brief_lock(&group->lock_);
    if (group->running_ == 0) {
        error = forget_error(group);
        brief_unlock(&group->lock_);
        return error;
    }
    co_wait_init(&waiter.wait, "CoGroup", group, cancel_wait);
    waiters_append(&group->waiters_, &waiter); /* INVARIANTS 1 */
    brief_unlock(&group->lock_);
    return (int)co_wait_park(&waiter.wait, -1);
}
