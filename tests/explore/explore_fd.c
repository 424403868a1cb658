/* SPDX-License-Identifier: MIT */
/*
 * Handlers of descriptors (loop/fd.c) that are set, replaced and removed while
 * the loop polls: each runs with what it was set with, for what it was told.
 */
#include "base/atomic.h"
#include "explore.h"
#include "loop/context.h"
#include "loop/fd_int.h"
#include "os/memory.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <coaio/fd.h>
#include <errno.h>
#include <poll.h>

typedef struct Source {
    int fd;
    unsigned seen; /* plain: the home thread's */
} Source;

static AioContext *ctx;
static int fd[2];
static Source *sources[2];
static unsigned old_runs, new_runs;
static bool stop;
static AioBHStorage storage;

static void make_context_with(const char *engine)
{
    const AioContextOptions options = {
        .size = sizeof(options),
        .engine = engine,
    };

    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    for (int i = 0; i < 2; i++) {
        fd[i] = explore_fd_open();
        sources[i] = os_alloc(sizeof(*sources[i]));
        sources[i]->fd = fd[i];
    }
}

static void make_context(void)
{
    make_context_with("epoll");
}

static void make_poll_context(void)
{
    make_context_with("poll");
}

static void make_uring_context(void)
{
    make_context_with("uring");
}

static void free_sources(void)
{
    os_free(sources[0]);
    os_free(sources[1]);
}

/* What a handler does: it reads all, and so its descriptor is not ready. */
static void consume(Source *source)
{
    source->seen++;
    explore_fd_set(source->fd, 0);
}

static void handle_old(void *opaque)
{
    CHECK(opaque == sources[0]);
    old_runs++;
    consume(opaque);
}

static void handle_new(void *opaque)
{
    CHECK(opaque == sources[1]);
    new_runs++;
    consume(sources[0]);
}

static void set(AioFdFunc *handler, Source *source)
{
    CHECK_EQ(aio_set_fd_handler(ctx, fd[0], handler, NULL, NULL, NULL, source),
             0);
}

static void set_stop(void *opaque)
{
    (void)opaque;
    stop = true;
}

static void tell_stop(void)
{
    aio_bh_schedule_oneshot_embedded(ctx, &storage, set_stop, NULL);
}

static void poll_until_stop(void)
{
    while (!stop) {
        aio_poll(ctx, true);
    }
}

static void close_loop(void)
{
    explore_end();
    set(NULL, NULL);
    aio_context_unref(ctx);
}

/* --- it becomes ready -----------------------------------------------------*/

static void poll_until_handled(void)
{
    aio_context_attach(ctx);
    set(handle_old, sources[0]);
    explore_begin();
    while (!old_runs) {
        aio_poll(ctx, true);
    }
    close_loop();
}

static void make_ready(void)
{
    explore_begin();
    explore_fd_set(fd[0], POLLIN);
    explore_end();
}

EXPLORE(becomes_ready, .setup = make_context,
        .threads = {poll_until_handled, make_ready}, .finish = free_sources)
EXPLORE(becomes_ready_for_poll, .setup = make_poll_context,
        .threads = {poll_until_handled, make_ready}, .finish = free_sources)
EXPLORE(becomes_ready_for_uring, .setup = make_uring_context,
        .threads = {poll_until_handled, make_ready}, .finish = free_sources)

/* --- set from elsewhere ---------------------------------------------------*/

static void poll_until_new_ran(void)
{
    aio_context_attach(ctx);
    explore_begin();
    while (!new_runs) {
        aio_poll(ctx, true);
    }
    close_loop();
}

static void set_and_make_ready(void)
{
    explore_begin();
    explore_fd_set(fd[0], POLLIN);
    set(handle_new, sources[1]);
    explore_end();
}

/* The kernel is told at once; but poll(2) has been told all when it was
 * called, and must be called anew, and so must io_uring_enter(2). */
EXPLORE(set_from_elsewhere, .setup = make_context,
        .threads = {poll_until_new_ran, set_and_make_ready},
        .finish = free_sources)
EXPLORE(set_from_elsewhere_for_poll, .setup = make_poll_context,
        .threads = {poll_until_new_ran, set_and_make_ready},
        .finish = free_sources,
        .mutants = {{MUTANT_FD_CHANGE_QUIET, "lost wake-up", "poll", false}})
EXPLORE(set_from_elsewhere_for_uring, .setup = make_uring_context,
        .threads = {poll_until_new_ran, set_and_make_ready},
        .finish = free_sources,
        .mutants = {
            {MUTANT_FD_CHANGE_QUIET, "lost wake-up", "uring", false}})

/* --- replaced from elsewhere ----------------------------------------------*/

static void poll_old_until_stop(void)
{
    aio_context_attach(ctx);
    set(handle_old, sources[0]);
    explore_fd_set(fd[0], POLLIN);
    explore_begin();
    poll_until_stop();
    close_loop();
}

/* Nothing comes any more when the new one is set. */
static void silence_and_replace(void)
{
    explore_begin();
    explore_fd_set(fd[0], 0);
    set(handle_new, sources[1]);
    tell_stop();
    explore_end();
}

static void check_new_never_ran(void)
{
    CHECK_EQ(new_runs, 0);
    free_sources();
}

EXPLORE(replaced_from_elsewhere, .setup = make_context,
        .threads = {poll_old_until_stop, silence_and_replace},
        .finish = check_new_never_ran,
        .marks = {"fd: a stale report is ignored",
                  "fd: a handler was changed before it could run"},
        .mutants = {
            {MUTANT_HANDLER_EDIT_IN_PLACE, "data race", "aio_set_fd_handler",
             false},
            {MUTANT_FD_STALE_REPORT, "failed check", "check_new_never_ran",
             false},
            {MUTANT_FD_TODO_KEPT, "failed check", "check_new_never_ran", false},
        })
EXPLORE(replaced_from_elsewhere_for_poll, .setup = make_poll_context,
        .threads = {poll_old_until_stop, silence_and_replace},
        .finish = check_new_never_ran)
EXPLORE(replaced_from_elsewhere_for_uring, .setup = make_uring_context,
        .threads = {poll_old_until_stop, silence_and_replace},
        .finish = check_new_never_ran)

/* --- removed from elsewhere -----------------------------------------------*/

static void remove_from_elsewhere(void)
{
    explore_begin();
    set(NULL, NULL);
    tell_stop();
    explore_end();
}

EXPLORE(removed_from_elsewhere, .setup = make_context,
        .threads = {poll_old_until_stop, remove_from_elsewhere},
        .finish = free_sources)
EXPLORE(removed_from_elsewhere_for_uring, .setup = make_uring_context,
        .threads = {poll_old_until_stop, remove_from_elsewhere},
        .finish = free_sources)

/* --- removed by another handler of the same pass --------------------------*/

/* From here on neither it nor what it was set with is needed. */
static void remove_both(void *opaque)
{
    (void)opaque;
    for (int i = 0; i < 2; i++) {
        aio_set_fd_handler(ctx, fd[i], NULL, NULL, NULL, NULL, NULL);
        os_free(sources[i]);
    }
    stop = true;
}

static void poll_until_both_removed(void)
{
    aio_context_attach(ctx);
    for (int i = 0; i < 2; i++) {
        aio_set_fd_handler(ctx, fd[i], remove_both, NULL, NULL, NULL,
                           sources[i]);
    }
    explore_begin();
    poll_until_stop();
    explore_end();
    aio_context_unref(ctx);
}

static void make_both_ready(void)
{
    explore_begin();
    explore_fd_set(fd[0], POLLIN);
    explore_fd_set(fd[1], POLLIN);
    explore_end();
}

EXPLORE(removed_by_its_neighbour, .setup = make_context,
        .threads = {poll_until_both_removed, make_both_ready})

/* --- removed while it is asked --------------------------------------------*/

static bool ask(void *opaque)
{
    ((Source *)opaque)->seen++;
    return false;
}

static void ask_until_stop(void)
{
    CHECK_EQ(aio_context_set_poll_params(ctx, 100000, 0, 0), 0);
    aio_context_attach(ctx);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(aio_set_fd_handler(ctx, fd[i], NULL, NULL, ask, handle_new,
                                    sources[i]),
                 0);
    }
    aio_poll(ctx, false);
    ctx->poll_ns = 1000;
    explore_begin();
    poll_until_stop();
    explore_end();
    aio_context_unref(ctx);
}

static void remove_those_asked(void)
{
    explore_begin();
    for (int i = 0; i < 2; i++) {
        aio_set_fd_handler(ctx, fd[i], NULL, NULL, NULL, NULL, NULL);
    }
    tell_stop();
    explore_end();
}

EXPLORE(removed_while_it_is_asked, .setup = make_context,
        .threads = {ask_until_stop, remove_those_asked}, .finish = free_sources,
        .marks = {"fd: a handler goes while it is asked"},
        .mutants = {
            {MUTANT_FD_BUSY_READS_LATE, "data race", "fd_busy_poll", false}})

/* --- a wait that is cancelled as its time is up ---------------------------*/

static int wait_result;
static bool waited;

static void coroutine_fn wait_for_a_while(void *opaque)
{
    (void)opaque;
    wait_result = fd_wait(fd[0], POLLIN, 1000, "a test");
    waited = true;
}

static void poll_until_waited(void)
{
    aio_context_attach(ctx);
    explore_begin();
    coroutine_enter(coroutine_create(wait_for_a_while, NULL));
    while (!waited) {
        aio_poll(ctx, true);
    }
    CHECK(wait_result == -ETIMEDOUT || wait_result == -ECANCELED);
    explore_end();
    aio_context_unref(ctx);
}

static void cancel_waits(void)
{
    explore_begin();
    fd_cancel_all(fd[0], -ECANCELED);
    explore_end();
}

EXPLORE(cancelled_as_its_time_is_up, .setup = make_context,
        .threads = {poll_until_waited, cancel_waits}, .finish = free_sources,
        .timeouts = true,
        .mutants = {
            {MUTANT_FD_WAIT_LINK_FIRST, "data race", "list_linked", false}})

EXPLORE_MAIN()
