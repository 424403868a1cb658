/* SPDX-License-Identifier: MIT */
/*
 * A context that is driven by a foreign loop: here a poll(2) on the descriptor
 * of the engine, between context_foreign_prepare() and _dispatch().  Whatever
 * makes work for the context has to end that sleep.
 */
#include "engines.h"
#include "harness.h"
#include "loop/context.h"
#include "os/fault.h"

#include <coaio/coaio.h>

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <unistd.h>

static AioContext *ctx;
static unsigned ran;

/* Cases that run on each engine that has a descriptor. */
#define ON_EACH_DRIVEN(name)                                                  \
    static void name(const char *engine);                                     \
    TEST(name##_on_epoll)                                                     \
    {                                                                         \
        name("epoll");                                                        \
    }                                                                         \
    TEST(name##_on_uring)                                                     \
    {                                                                         \
        needs_uring();                                                        \
        name("uring");                                                        \
    }                                                                         \
    static void name(const char *engine)

static void set_up(const char *engine)
{
    ctx = context_on(engine);
    aio_context_attach(ctx);
}

static void count(void *opaque)
{
    (void)opaque;
    ran++;
}

/* One turn of the foreign loop. */
static bool turn(void)
{
    struct pollfd pfd = {
        .fd = ctx->poller.ops->descriptor(ctx),
        .events = POLLIN,
    };
    int64_t timeout_ns = context_foreign_prepare(ctx);
    int timeout_ms = -1;

    if (timeout_ns >= 0) {
        timeout_ms = timeout_ns > (int64_t)INT_MAX * 1000000
                         ? INT_MAX
                         : (int)((timeout_ns + 999999) / 1000000);
    }
    poll(&pfd, 1, timeout_ms);
    return context_foreign_dispatch(ctx);
}

static void *schedule_when_asleep(void *opaque)
{
    while (load_acquire(&ctx->wake) != WAKE_SLEEPING) {
        spin_hint();
    }
    aio_bh_schedule(opaque);
    return NULL;
}

ON_EACH_DRIVEN(a_post_of_another_thread_ends_the_sleep)
{
    pthread_t thread;
    AioBH *bh;

    set_up(engine);
    bh = aio_bh_new(ctx, count, NULL);
    for (unsigned i = 1; i <= 100; i++) {
        CHECK_EQ(pthread_create(&thread, NULL, schedule_when_asleep, bh), 0);
        while (ran < i) {
            turn();
        }
        CHECK_EQ(pthread_join(thread, NULL), 0);
    }
    aio_bh_delete(bh);
    aio_context_unref(ctx);
}

ON_EACH_DRIVEN(work_that_is_there_does_not_let_it_sleep)
{
    set_up(engine);
    aio_bh_schedule_oneshot(ctx, count, NULL);
    CHECK_EQ(context_foreign_prepare(ctx), 0);
    CHECK(context_foreign_dispatch(ctx));
    CHECK_EQ(ran, 1);
    CHECK_EQ(context_foreign_prepare(ctx), -1);
    CHECK(!context_foreign_dispatch(ctx));
    aio_context_unref(ctx);
}

ON_EACH_DRIVEN(a_timer_limits_the_sleep)
{
    AioTimer timer;

    set_up(engine);
    aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, count, NULL);
    aio_timer_mod_ns(&timer, aio_clock_ns(AIO_CLOCK_MONOTONIC) + 1000000);
    while (ran == 0) {
        turn();
    }
    aio_context_unref(ctx);
}

ON_EACH_DRIVEN(a_ready_descriptor_ends_the_sleep)
{
    int fds[2];

    set_up(engine);
    CHECK_EQ(pipe(fds), 0);
    CHECK_EQ(aio_set_fd_handler(ctx, fds[0], count, NULL, NULL, NULL, NULL),
             0);
    CHECK_EQ(write(fds[1], "x", 1), 1);
    CHECK(turn());
    CHECK_EQ(ran, 1);
    aio_set_fd_handler(ctx, fds[0], NULL, NULL, NULL, NULL, NULL);
    close(fds[0]);
    close(fds[1]);
    aio_context_unref(ctx);
}

/* The kernel did not take in what ends its sleep. */
TEST(without_memory_in_the_kernel_it_does_not_sleep)
{
    needs_uring();
    set_up("uring");
    CHECK(ctx->poller.ops->descriptor(ctx) >= 0);
    os_fault_arm(1, EAGAIN, "io_uring_enter");
    CHECK_EQ(context_foreign_prepare(ctx), 0);
    CHECK(os_fault_fired());
    CHECK(!context_foreign_dispatch(ctx));
    CHECK_EQ(context_foreign_prepare(ctx), -1);
    CHECK(!context_foreign_dispatch(ctx));
    aio_context_unref(ctx);
}

TEST_MAIN()
