/* SPDX-License-Identifier: MIT */
/*
 * What an engine reports of descriptors whose handlers have gone, and of those
 * of which it has nothing to report but an end: the loop sleeps, or a handler
 * runs, on each engine.
 */
#include "engines.h"
#include "os/clock.h"
#include "watch.h"

#include <coaio/timer.h>
#include <fcntl.h>

static void begin(const char *engine)
{
    ctx = context_on(engine);
    aio_context_attach(ctx);
}

static void end(void)
{
    aio_context_unref(ctx);
}

/* Passes until a timer has fired: the loop sleeps that long. */
static void check_sleeps(void)
{
    unsigned fired = 0, passes = 0;
    AioTimer timer;

    aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, count, &fired);
    aio_timer_mod_ns(&timer, os_clock_monotonic_ns() + 20000000);
    while (fired == 0) {
        aio_poll(ctx, true);
        passes++;
    }
    CHECK(passes <= 10); /* epoll learns from four reports in vain */
}

/* --- handlers that have gone ----------------------------------------------*/

/*
 * There is another one, without which nobody would ask the engine.  Readable
 * afterwards, or closed; with or without a duplicate that keeps it open.
 */
static void check_removed(const char *engine, bool duplicate, bool closes_first,
                          bool closes)
{
    unsigned ran = 0;
    int fds[2], quiet[2], copy = -1;

    begin(engine);
    open_pair(fds);
    open_pair(quiet);
    watch(quiet[0], count, NULL, &ran);
    watch(fds[0], count, NULL, &ran);
    CHECK(!aio_poll(ctx, false)); /* now the engine has it */
    if (duplicate) {
        copy = dup(fds[0]);
        CHECK(copy >= 0);
    }
    if (closes_first) {
        close(fds[0]);
    }
    unwatch(fds[0]);
    if (closes && !closes_first) {
        close(fds[0]);
    }
    if (!closes || duplicate) {
        poke(fds[1]);
    }
    check_sleeps();
    CHECK_EQ(ran, 0);
    unwatch(quiet[0]);
    if (!closes) {
        close(fds[0]);
    }
    if (copy >= 0) {
        close(copy);
    }
    close(fds[1]);
    close_pair(quiet);
    end();
}

ON_EACH_ENGINE(one_that_was_removed)
{
    check_removed(engine, false, false, false);
}

ON_EACH_ENGINE(one_that_was_removed_and_its_descriptor_closed)
{
    check_removed(engine, false, false, true);
}

ON_EACH_ENGINE(one_that_was_removed_with_a_duplicate_left)
{
    check_removed(engine, true, false, true);
}

ON_EACH_ENGINE(one_that_was_removed_after_closing_with_a_duplicate_left)
{
    check_removed(engine, true, true, true);
}

/* Misuse, which is said once, and costs no pass after that. */
ON_EACH_ENGINE(one_whose_descriptor_is_closed_under_it)
{
    unsigned ran = 0;
    int fds[2], quiet[2];

    begin(engine);
    open_pair(fds);
    open_pair(quiet);
    watch(quiet[0], count, NULL, &ran);
    watch(fds[0], count, NULL, &ran);
    CHECK(!aio_poll(ctx, false));
    close(fds[0]);
    check_sleeps();
    CHECK_EQ(ran, 0);
    unwatch(fds[0]);
    unwatch(quiet[0]);
    close(fds[1]);
    close_pair(quiet);
    end();
}

/* --- nothing but an end ---------------------------------------------------*/

/* Of a pipe whose writers have gone poll(2) says POLLHUP alone. */
ON_EACH_ENGINE(a_hangup_alone_runs_the_reader)
{
    unsigned ran = 0;
    int fds[2];

    begin(engine);
    CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
    watch(fds[0], count, NULL, &ran);
    CHECK(!aio_poll(ctx, false));
    close(fds[1]);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(ran, 1);
    unwatch(fds[0]);
    close(fds[0]);
    end();
}

/* And of a full one whose readers have, POLLERR. */
ON_EACH_ENGINE(an_error_alone_runs_the_writer)
{
    static const char block[4096];
    unsigned ran = 0;
    int fds[2];

    begin(engine);
    CHECK_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    while (write(fds[1], block, sizeof(block)) > 0) {
    }
    watch(fds[1], NULL, count, &ran);
    CHECK(!aio_poll(ctx, false));
    close(fds[0]);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(ran, 1);
    unwatch(fds[1]);
    close(fds[1]);
    end();
}

TEST_MAIN()
