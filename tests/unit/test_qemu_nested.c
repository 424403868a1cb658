/* SPDX-License-Identifier: MIT */

/*
 * qemu-compat.h: what belongs to QEMU's main loop there, and to the main
 * context here, runs also where something waits.  In QEMU none of these waits
 * would end.
 */

#include <coaio/qemu-compat.h>

#include "harness.h"

static AioContext *ctx;

static void set_up(void)
{
    CHECK_EQ(qemu_init_main_loop(NULL), 0);
    ctx = qemu_get_aio_context();
    harness_allow_fds(8); /* the main context lives as long as the process */
}

static void set_done(void *opaque)
{
    *(bool *)opaque = true;
}

TEST(timers_of_the_main_loop_run_where_something_waits)
{
    bool done = false;
    QEMUTimer *ts;

    set_up();
    ts = timer_new_ns(QEMU_CLOCK_REALTIME, set_done, &done);
    timer_mod_ns(ts, 0);
    AIO_WAIT_WHILE(ctx, !done);
    timer_free(ts);
}

static int entered;

static void wait_for_another(void *opaque)
{
    (void)opaque;
    if (++entered == 1) {
        AIO_WAIT_WHILE(ctx, entered == 1);
    }
}

/* Nobody reads what it is told about, so that it is told again. */
TEST(a_handler_of_the_main_loop_that_waits_is_entered_again)
{
    EventNotifier e;

    set_up();
    CHECK_EQ(event_notifier_init(&e, true), 0);
    qemu_set_fd_handler(event_notifier_get_fd(&e), wait_for_another, NULL,
                        NULL);
    main_loop_wait(false);
    CHECK(entered > 1);
    qemu_set_fd_handler(event_notifier_get_fd(&e), NULL, NULL, NULL);
    event_notifier_cleanup(&e);
}

static void notified(EventNotifier *e)
{
    event_notifier_test_and_clear(e);
    entered++;
}

TEST(notifiers_of_the_main_loop_run_where_something_waits)
{
    EventNotifier e;

    set_up();
    CHECK_EQ(event_notifier_init(&e, true), 0);
    event_notifier_set_handler(&e, notified);
    AIO_WAIT_WHILE(ctx, entered == 0);
    CHECK_EQ(entered, 1);
    event_notifier_set_handler(&e, NULL);
    event_notifier_cleanup(&e);
}

TEST_MAIN()
