/* SPDX-License-Identifier: MIT */
/*
 * Notification (loop/notify.c): nobody sleeps while there is something to do.
 */
#include "base/atomic.h"
#include "explore.h"
#include "loop/context.h"

#include <coaio/bh.h>
#include <coaio/context.h>

static AioContext *ctx;
static AioBHStorage storage[4];
static unsigned ran;

static void make_context(void)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
}

static void note(void *opaque)
{
    (void)opaque;
    ran++;
}

/* --- one poller, one worker -----------------------------------------------*/

static void poll_until_ran(void)
{
    aio_context_attach(ctx);
    explore_begin();
    while (ran == 0) {
        aio_poll(ctx, true);
    }
    explore_end();
    aio_context_unref(ctx);
}

static void post(void)
{
    explore_begin();
    aio_bh_schedule_oneshot_embedded(ctx, &storage[0], note, NULL);
    explore_end();
}

EXPLORE(one_poller_one_worker, .setup = make_context,
        .threads = {poll_until_ran, post},
        .mutants = {{MUTANT_NOTIFY_NO_FENCE_POLLER, "lost wake-up",
                     "notify_prepare_sleep", true},
                    {MUTANT_NOTIFY_NO_FENCE_NOTIFIER, "lost wake-up",
                     "context_notify_posted", true}})

EXPLORE_MAIN()
