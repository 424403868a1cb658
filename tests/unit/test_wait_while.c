/* SPDX-License-Identifier: MIT */
/*
 * aio_wait_while(): from plain threads, from the home thread of the context
 * that is waited for, from another's, nested; what a kick costs; misuse.
 */
#include "loopthread.h"

#include "base/atomic.h"
#include "loop/context.h"
#include "os/fault.h"

#include <coaio/coroutine.h>
#include <coaio/iothread.h>
#include <coaio/wait.h>
#include <sched.h>

static LoopThread loop;
static unsigned counter; /* atomic */

static void set_and_kick(void *opaque)
{
    store_release((unsigned *)opaque, 1);
    aio_wait_kick();
}

static void count_run(void *opaque)
{
    fetch_add_acq_rel((unsigned *)opaque, 1u);
}

static void plain_wait(void *opaque)
{
    unsigned done;

    for (unsigned long i = 0; i < harness_load(500); i++) {
        store_release(&done, 0);
        aio_bh_schedule_oneshot(loop.ctx, set_and_kick, &done);
        aio_wait_while(loop.ctx, !load_acquire(&done));
    }
    fetch_add_acq_rel((unsigned *)opaque, 1u);
}

TEST(a_plain_thread_waits)
{
    loop_thread_start(&loop, "loop");
    plain_wait(&counter);
    CHECK_EQ(load_acquire(&counter), 1);
    loop_thread_stop(&loop);
}

TEST(several_plain_threads_wait_at_once)
{
    BareThread threads[4];

    loop_thread_start(&loop, "loop");
    for (int i = 0; i < 4; i++) {
        bare_thread_start(&threads[i], plain_wait, &counter);
    }
    for (int i = 0; i < 4; i++) {
        bare_thread_join(&threads[i]);
    }
    CHECK_EQ(load_acquire(&counter), 4);
    loop_thread_stop(&loop);
}

TEST(a_thread_with_a_context_polls_it_meanwhile)
{
    AioContext *own;
    unsigned done = 0;

    loop_thread_start(&loop, "loop");
    CHECK_EQ(aio_context_new(&own, NULL), 0);
    aio_context_attach(own);
    plain_wait(&counter);
    aio_bh_schedule_oneshot(own, count_run, &counter);
    aio_bh_schedule_oneshot(loop.ctx, set_and_kick, &done);
    aio_wait_while(loop.ctx,
                   !load_acquire(&done) || load_acquire(&counter) < 2);
    aio_context_unref(own);
    loop_thread_stop(&loop);
}

TEST(the_home_thread_waits_for_its_own_context)
{
    AioContext *own;
    unsigned done = 0;

    CHECK_EQ(aio_context_new(&own, NULL), 0);
    aio_context_attach(own);
    aio_bh_schedule_oneshot(own, set_and_kick, &done);
    aio_wait_while(own, !load_acquire(&done));
    aio_wait_bh_oneshot(own, count_run, &counter);
    CHECK_EQ(load_acquire(&counter), 1);
    aio_context_unref(own);
}

typedef struct Hold {
    sem_t held;
    sem_t release;
} Hold;

static void hold(void *opaque)
{
    Hold *gates = opaque;

    gate_open(&gates->held);
    gate_pass(&gates->release);
}

/* The loop is held meanwhile: calls are counted, and it would go to sleep. */
TEST(one_that_need_not_wait_does_not)
{
    uint64_t before;
    Hold gates;

    gate_init(&gates.held);
    gate_init(&gates.release);
    loop_thread_start(&loop, "loop");
    aio_bh_schedule_oneshot(loop.ctx, hold, &gates);
    gate_pass(&gates.held);
    before = os_counter(OS_COUNT_SYSCALLS);
    aio_wait_while(loop.ctx, false);
    aio_wait_while(NULL, false);
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS), before);
    gate_open(&gates.release);
    loop_thread_stop(&loop);
}

TEST(a_kick_costs_a_fence_when_nobody_waits)
{
    uint64_t before, locked;

    aio_wait_kick();
    before = os_counter(OS_COUNT_SYSCALLS);
    locked = os_locked_operations();
    aio_wait_kick();
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS), before);
    CHECK_EQ(os_locked_operations() - locked, 1);
}

TEST(a_bottom_half_has_run_when_the_call_returns)
{
    loop_thread_start(&loop, "loop");
    for (unsigned i = 1; i <= harness_load(500); i++) {
        aio_wait_bh_oneshot(loop.ctx, count_run, &counter);
        CHECK_EQ(load_acquire(&counter), i);
    }
    loop_thread_stop(&loop);
}

/* --- nested, and two that wait for each other -----------------------------*/

static LoopThread other;

static void wait_for_other(void *opaque)
{
    aio_wait_bh_oneshot(other.ctx, count_run, opaque);
    count_run(opaque);
}

TEST(a_callback_waits_for_another_context)
{
    loop_thread_start(&loop, "loop");
    loop_thread_start(&other, "other");
    aio_wait_bh_oneshot(loop.ctx, wait_for_other, &counter);
    CHECK_EQ(load_acquire(&counter), 2);
    loop_thread_stop(&loop);
    loop_thread_stop(&other);
}

static void wait_for_first(void *opaque)
{
    aio_wait_bh_oneshot(loop.ctx, count_run, opaque);
    count_run(opaque);
}

static void wait_for_each_other(void *opaque)
{
    aio_wait_bh_oneshot(other.ctx, wait_for_first, opaque);
    count_run(opaque);
}

TEST(two_contexts_wait_for_each_other)
{
    loop_thread_start(&loop, "loop");
    loop_thread_start(&other, "other");
    for (unsigned i = 1; i <= harness_load(200); i++) {
        aio_wait_bh_oneshot(loop.ctx, wait_for_each_other, &counter);
        CHECK_EQ(load_acquire(&counter), 3 * i);
    }
    loop_thread_stop(&loop);
    loop_thread_stop(&other);
}

static unsigned inner_done, outer_done; /* atomic */

/* Consumes, while nested, the notification that the outer one waits for. */
static void wait_nested(void *opaque)
{
    (void)opaque;
    aio_bh_schedule_oneshot(loop.ctx, set_and_kick, &outer_done);
    aio_bh_schedule_oneshot(loop.ctx, set_and_kick, &inner_done);
    aio_wait_while(loop.ctx, !load_acquire(&inner_done));
}

TEST(a_nested_wait_does_not_keep_what_is_for_the_outer_one)
{
    AioContext *own;

    loop_thread_start(&loop, "loop");
    CHECK_EQ(aio_context_new(&own, NULL), 0);
    aio_context_attach(own);
    for (unsigned long i = 0; i < harness_load(500); i++) {
        store_release(&inner_done, 0);
        store_release(&outer_done, 0);
        aio_bh_schedule_oneshot(own, wait_nested, NULL);
        aio_wait_while(loop.ctx, !load_acquire(&outer_done));
        /* wait_nested has run, or it would not be done. */
    }
    aio_context_unref(own);
    loop_thread_stop(&loop);
}

/* --- misuse ---------------------------------------------------------------*/

static void wait_in_coroutine(void *opaque)
{
    (void)opaque;
    aio_wait_while(loop.ctx, true);
}

static void wait_bh_in_coroutine(void *opaque)
{
    aio_wait_bh_oneshot(loop.ctx, count_run, opaque);
}

TEST_ABORTS(waiting_in_a_coroutine_aborts,
            "aio_wait_while for context \"loop\" called in coroutine 0x")
{
    loop_thread_start(&loop, "loop");
    coroutine_enter(coroutine_create(wait_in_coroutine, NULL));
}

TEST_ABORTS(waiting_for_a_bottom_half_in_a_coroutine_aborts,
            "aio_wait_bh_oneshot for context \"loop\" called in coroutine 0x")
{
    loop_thread_start(&loop, "loop");
    coroutine_enter(coroutine_create(wait_bh_in_coroutine, &counter));
}

TEST_ABORTS(waiting_for_a_bottom_half_of_a_stopped_context_aborts,
            "aio_wait_bh_oneshot for context \"loop\", which has stopped")
{
    loop_thread_start(&loop, "loop");
    loop_thread_join(&loop);
    aio_wait_bh_oneshot(loop.ctx, count_run, &counter);
}

static sem_t runs;

/* No pass comes after the one in which something was posted. */
static void stop_when_posted(void *opaque)
{
    (void)opaque;
    gate_open(&runs);
    while (!post_pending(&loop.ctx->posted)) {
        sched_yield();
    }
    loop.stop = true;
}

TEST_ABORTS(waiting_for_a_bottom_half_that_comes_too_late_aborts,
            "^coaio: aio_wait_bh_oneshot for context \"loop\", which has "
            "stopped: the callback 0x[0-9a-f]+ would never run$")
{
    gate_init(&runs);
    loop_thread_start(&loop, "loop");
    aio_bh_schedule_oneshot(loop.ctx, stop_when_posted, NULL);
    gate_pass(&runs);
    aio_wait_bh_oneshot(loop.ctx, count_run, &counter);
}

TEST_MAIN()
