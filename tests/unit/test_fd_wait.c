/* SPDX-License-Identifier: MIT */
/*
 * Coroutines that wait for file descriptors, on each engine: both directions
 * at once, several for one, timeouts, cancellation in all contexts, closed and
 * reused descriptors, files, errors of the engine, misuse.
 */
#include "loopthread.h"

#include "base/atomic.h"
#include "engines.h"
#include "loop/context.h"
#include "loop/fd_int.h"
#include "os/fault.h"

#include <coaio/coroutine.h>
#include <coaio/fd.h>
#include <coaio/wait.h>
#include <coaio/wake.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MILLISECOND INT64_C(1000000)
#define MINUTE      INT64_C(60000000000)

static AioContext *ctx;

static void open_context(const char *engine)
{
    ctx = context_on(engine);
    aio_context_attach(ctx);
}

static void close_context(void)
{
    aio_context_unref(ctx);
}

static void open_pair(int fds[2])
{
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
}

static void close_pair(int fds[2])
{
    close(fds[0]);
    close(fds[1]);
}

static void poke(int fd)
{
    CHECK_EQ(write(fd, "x", 1), 1);
}

static void drain(int fd)
{
    char junk[4096];

    while (read(fd, junk, sizeof(junk)) > 0) {
    }
}

static void fill(int fd)
{
    char junk[4096] = "";

    while (write(fd, junk, sizeof(junk)) > 0) {
    }
}

static int open_regular(void)
{
    char path[] = "/tmp/coaio-test-XXXXXX";
    int fd = mkstemp(path);

    CHECK(fd >= 0);
    unlink(path);
    return fd;
}

typedef struct Waiter {
    int fd;
    uint32_t events;
    int64_t timeout_ns;
    bool eat;      /* read what came */
    unsigned more; /* how often to wait again */
    unsigned ends; /* atomic */
    int result;
    unsigned turn; /* which of all ended so-and-so-manieth */
} Waiter;

static unsigned turns; /* atomic */

static void wait_for_fd(void *opaque)
{
    Waiter *w = opaque;

    do {
        w->result = fd_wait(w->fd, w->events, w->timeout_ns, "test");
        if (w->eat) {
            drain(w->fd);
        }
        w->turn = fetch_add_acq_rel(&turns, 1u);
        fetch_add_acq_rel(&w->ends, 1u);
        aio_wait_kick();
    } while (w->more-- > 0);
}

static Waiter waiter(int fd, uint32_t events)
{
    return (Waiter){.fd = fd, .events = events, .timeout_ns = -1};
}

static void begin(Waiter *w)
{
    CoroutineOptions options = {.size = sizeof(options), .name = "waiter"};
    Coroutine *co;

    CHECK_EQ(coroutine_create_full(&co, wait_for_fd, w, &options), 0);
    coroutine_enter(co);
}

ON_EACH_ENGINE(ends_when_ready)
{
    int fds[2];
    Waiter w;

    open_context(engine);
    open_pair(fds);
    w = waiter(fds[0], POLLIN);
    begin(&w);
    CHECK(!aio_poll(ctx, false));
    CHECK_EQ(w.ends, 0);
    poke(fds[1]);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(w.ends, 1);
    CHECK_EQ(w.result, POLLIN);
    CHECK(!aio_poll(ctx, false)); /* readable still, but nobody cares */
    close_pair(fds);
    close_context();
}

ON_EACH_ENGINE(ends_in_the_next_pass_if_ready_before)
{
    int fds[2];
    Waiter w;

    open_context(engine);
    open_pair(fds);
    poke(fds[1]);
    w = waiter(fds[0], POLLIN);
    w.more = 4; /* level-triggered for each */
    begin(&w);
    for (unsigned i = 1; i <= 5; i++) {
        CHECK(aio_poll(ctx, true));
        CHECK_EQ(w.ends, i);
    }
    close_pair(fds);
    close_context();
}

ON_EACH_ENGINE(both_directions_are_waited_for_at_once)
{
    Waiter reader, writer;
    int fds[2];

    open_context(engine);
    open_pair(fds);
    fill(fds[0]);
    reader = waiter(fds[0], POLLIN);
    writer = waiter(fds[0], POLLOUT);
    reader.eat = true;
    reader.more = 2;
    begin(&reader);
    begin(&writer);
    poke(fds[1]);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(reader.ends, 1);
    CHECK_EQ(writer.ends, 0); /* and is waited for still: */
    drain(fds[1]);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(writer.ends, 1);
    CHECK_EQ(writer.result, POLLOUT);
    CHECK_EQ(reader.ends, 1); /* so is this: */
    poke(fds[1]);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(reader.ends, 2);
    poke(fds[1]);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(reader.ends, 3);
    close_pair(fds);
    close_context();
}

ON_EACH_ENGINE(several_wait_and_wake_in_order)
{
    enum { N = 5 };
    Waiter w[N];
    int fds[2];

    open_context(engine);
    open_pair(fds);
    for (unsigned i = 0; i < N; i++) {
        w[i] = waiter(fds[0], POLLIN);
        begin(&w[i]);
    }
    poke(fds[1]);
    CHECK(aio_poll(ctx, true));
    for (unsigned i = 0; i < N; i++) {
        CHECK_EQ(w[i].ends, 1);
        CHECK_EQ(w[i].turn, i);
    }
    close_pair(fds);
    close_context();
}

ON_EACH_ENGINE(reports_only_what_was_asked_for_and_trouble)
{
    Waiter w, out;
    int fds[2];

    open_context(engine);
    open_pair(fds);
    poke(fds[1]);
    out = waiter(fds[0], POLLOUT);
    begin(&out);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(out.result, POLLOUT);
    w = waiter(fds[0], POLLIN | POLLOUT);
    begin(&w);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(w.result, POLLIN | POLLOUT);
    drain(fds[0]);
    w = waiter(fds[0], POLLRDHUP);
    begin(&w);
    CHECK(!aio_poll(ctx, false));
    shutdown(fds[1], SHUT_WR);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(w.result, POLLRDHUP);
    w = waiter(fds[0], POLLPRI);
    begin(&w);
    CHECK(!aio_poll(ctx, false));
    close(fds[1]);
    CHECK(aio_poll(ctx, true));
    CHECK(w.result > 0 && (w.result & POLLHUP));
    close(fds[0]);
    close_context();
}

ON_EACH_ENGINE(a_hangup_without_waiters_costs_no_pass)
{
    int fds[2];
    Waiter w;

    open_context(engine);
    open_pair(fds);
    w = waiter(fds[0], POLLIN);
    begin(&w);
    poke(fds[1]);
    CHECK(aio_poll(ctx, true));
    close(fds[1]);
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(ctx->poller.ops->wait(ctx, 0), 0);
    }
    close(fds[0]);
    close_context();
}

typedef struct Blocking {
    int fd;
    unsigned runs;
} Blocking;

static void drain_and_block(void *opaque)
{
    Blocking *blocking = opaque;

    drain(blocking->fd);
    blocking->runs++;
    aio_poll(ctx, true);
}

ON_EACH_ENGINE(a_nested_blocking_pass_wakes_what_is_due)
{
    Blocking blocking = {0};
    int a[2], b[2];
    Waiter w;

    open_context(engine);
    open_pair(a);
    open_pair(b);
    blocking.fd = a[0];
    CHECK_EQ(aio_set_fd_handler(ctx, a[0], drain_and_block, NULL, NULL, NULL,
                                &blocking),
             0);
    w = waiter(b[0], POLLIN);
    begin(&w);
    /* The handler runs first; nothing else would end its pass. */
    poke(a[1]);
    poke(b[1]);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(blocking.runs, 1);
    CHECK_EQ(w.result, POLLIN);
    CHECK_EQ(aio_set_fd_handler(ctx, a[0], NULL, NULL, NULL, NULL, NULL), 0);
    close_pair(a);
    close_pair(b);
    close_context();
}

/* --- timeouts -------------------------------------------------------------*/

ON_EACH_ENGINE(times_out)
{
    Waiter w, other;
    int fds[2];

    open_context(engine);
    open_pair(fds);
    w = waiter(fds[0], POLLIN);
    w.timeout_ns = 1000000;
    other = waiter(fds[0], POLLIN);
    begin(&w);
    begin(&other);
    while (!w.ends) {
        aio_poll(ctx, true);
    }
    CHECK_EQ(w.result, -ETIMEDOUT);
    CHECK_EQ(other.ends, 0);
    poke(fds[1]);
    while (!other.ends) {
        aio_poll(ctx, true);
    }
    CHECK_EQ(other.result, POLLIN);
    CHECK_EQ(w.ends, 1);
    close_pair(fds);
    close_context();
}

ON_EACH_ENGINE(an_event_after_a_timeout_goes_to_nobody)
{
    int fds[2];
    Waiter w;

    open_context(engine);
    open_pair(fds);
    w = waiter(fds[0], POLLIN);
    w.timeout_ns = 0;
    begin(&w);
    while (!w.ends) {
        aio_poll(ctx, true);
    }
    CHECK_EQ(w.result, -ETIMEDOUT);
    poke(fds[1]);
    CHECK(!aio_poll(ctx, false));
    CHECK(!aio_poll(ctx, false));
    w = waiter(fds[0], POLLIN);
    begin(&w);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(w.result, POLLIN);
    close_pair(fds);
    close_context();
}

static void expect_event_or_timeout(void *opaque)
{
    Waiter *w = opaque;

    CHECK(w->result == POLLIN || w->result == -ETIMEDOUT);
}

ON_EACH_ENGINE(a_timeout_may_come_with_the_event)
{
    open_context(engine);
    for (unsigned long i = 0; i < harness_load(200); i++) {
        int fds[2];
        Waiter w;

        open_pair(fds);
        w = waiter(fds[0], POLLIN);
        w.timeout_ns = (int64_t)(i % 3) * 20000;
        begin(&w);
        poke(fds[1]);
        while (!w.ends) {
            aio_poll(ctx, true);
        }
        expect_event_or_timeout(&w);
        CHECK_EQ(w.ends, 1);
        close_pair(fds);
    }
    close_context();
}

/* --- cancellation ---------------------------------------------------------*/

ON_EACH_ENGINE(all_waits_can_be_cancelled)
{
    enum { N = 4 };
    Waiter w[N];
    int fds[2];

    open_context(engine);
    open_pair(fds);
    for (unsigned i = 0; i < N; i++) {
        w[i] = waiter(fds[0], i % 2 ? POLLIN : POLLPRI);
        begin(&w[i]);
    }
    fd_cancel_all(fds[0], -ECANCELED);
    for (unsigned i = 0; i < N; i++) {
        CHECK_EQ(w[i].ends, 1);
        CHECK_EQ(w[i].result, -ECANCELED);
        CHECK_EQ(w[i].turn, i);
    }
    poke(fds[1]);
    CHECK(!aio_poll(ctx, false));
    CHECK(!fd_watching(ctx));
    fd_cancel_all(fds[0], -ECANCELED); /* nothing any more */
    fd_cancel_all(-1, -ECANCELED);
    fd_cancel_all(100000, -ECANCELED);
    close_pair(fds);
    close_context();
}

static void cancel_twice(void *opaque)
{
    int *fd = opaque;

    fd_cancel_all(*fd, -ECANCELED);
    fd_cancel_all(*fd, -ECANCELED);
}

ON_EACH_ENGINE(a_coroutine_may_cancel_others)
{
    Waiter w[2];
    int fds[2];

    open_context(engine);
    open_pair(fds);
    w[0] = waiter(fds[0], POLLIN);
    w[1] = waiter(fds[0], POLLIN);
    begin(&w[0]);
    begin(&w[1]);
    coroutine_enter(coroutine_create(cancel_twice, &fds[0]));
    CHECK_EQ(w[0].result, -ECANCELED);
    CHECK_EQ(w[1].result, -ECANCELED);
    close_pair(fds);
    close_context();
}

ON_EACH_ENGINE(cancellation_reaches_every_context)
{
    enum { LOOPS = 3, PER_LOOP = 4 };
    static Waiter w[LOOPS][PER_LOOP];
    LoopThread loops[LOOPS];
    unsigned ended = 0;
    int fds[2];

    setenv("COAIO_ENGINE", engine, 1);
    open_pair(fds);
    for (unsigned i = 0; i < LOOPS; i++) {
        loop_thread_start(&loops[i], "loop");
        for (unsigned k = 0; k < PER_LOOP; k++) {
            w[i][k] = waiter(fds[0], POLLIN);
            aio_co_enter(loops[i].ctx, coroutine_create(wait_for_fd, &w[i][k]));
        }
        loop_flush(loops[i].ctx); /* they wait */
    }
    fd_cancel_all(fds[0], -ECANCELED);
    close_pair(fds);
    for (unsigned i = 0; i < LOOPS; i++) {
        loop_flush(loops[i].ctx);
        for (unsigned k = 0; k < PER_LOOP; k++) {
            CHECK_EQ(w[i][k].result, -ECANCELED);
            ended += w[i][k].ends;
        }
        loop_thread_stop(&loops[i]);
    }
    CHECK_EQ(ended, LOOPS * PER_LOOP);
}

/* Woken first, cancels those that are due after it. */
static void wait_then_cancel(void *opaque)
{
    Waiter *w = opaque;

    w->result = fd_wait(w->fd, w->events, -1, "test");
    fd_cancel_all(w->fd, -ECANCELED);
    w->ends++;
}

ON_EACH_ENGINE(one_that_is_due_can_be_cancelled_before_it_runs)
{
    Waiter first, second;
    int fds[2];

    open_context(engine);
    open_pair(fds);
    first = waiter(fds[0], POLLIN);
    second = waiter(fds[0], POLLIN);
    coroutine_enter(coroutine_create(wait_then_cancel, &first));
    begin(&second);
    poke(fds[1]);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(first.result, POLLIN);
    CHECK_EQ(second.result, -ECANCELED);
    CHECK_EQ(second.ends, 1);
    close_pair(fds);
    close_context();
}

/* --- closed, reused -------------------------------------------------------*/

ON_EACH_ENGINE(a_closed_one_is_an_error)
{
    int fds[2];
    Waiter w;

    open_context(engine);
    open_pair(fds);
    w = waiter(fds[0], POLLIN);
    begin(&w);
    poke(fds[1]);
    CHECK(aio_poll(ctx, true));
    close(fds[0]);
    w = waiter(fds[0], POLLIN);
    begin(&w);
    if (!w.ends) { /* io_uring says so in the next pass */
        CHECK(aio_poll(ctx, true));
    }
    CHECK_EQ(w.result, -EBADF);
    w = waiter(-1, POLLIN);
    begin(&w);
    CHECK_EQ(w.result, -EBADF);
    CHECK(!fd_watching(ctx));
    close(fds[1]);
    close_context();
}

ON_EACH_ENGINE(a_reused_number_is_waited_for_anew)
{
    open_context(engine);
    for (int i = 0; i < 10; i++) {
        int fds[2];
        Waiter w;

        open_pair(fds); /* the same numbers each time */
        w = waiter(fds[0], POLLIN);
        w.timeout_ns = 0; /* leaves the engine watching */
        begin(&w);
        while (!w.ends) {
            aio_poll(ctx, true);
        }
        w = waiter(fds[0], POLLIN);
        begin(&w);
        CHECK_EQ(w.ends, 0);
        poke(fds[1]);
        CHECK(aio_poll(ctx, true));
        CHECK_EQ(w.result, POLLIN);
        close_pair(fds);
    }
    close_context();
}

TEST(a_wait_that_finds_it_closed_ends_those_before)
{
    Waiter first, second, third;
    int fds[2], fd;

    open_context("epoll");
    open_pair(fds);
    first = waiter(fds[0], POLLIN);
    second = waiter(fds[0], POLLOUT);
    begin(&first);
    close(fds[0]);
    begin(&second);
    CHECK_EQ(second.result, -EBADF);
    CHECK_EQ(first.result, -EBADF);
    CHECK_EQ(first.ends, 1);
    close(fds[1]);

    /* The number becomes that of a file. */
    open_pair(fds);
    first = waiter(fds[0], POLLIN);
    begin(&first);
    fd = open_regular();
    CHECK_EQ(dup2(fd, fds[0]), fds[0]);
    third = waiter(fds[0], POLLIN);
    begin(&third);
    CHECK_EQ(third.result, POLLIN);
    CHECK_EQ(first.result, -EBADF);
    close(fd);
    close_pair(fds);
    close_context();
}

TEST(closing_under_a_wait_is_noticed_by_poll)
{
    int fds[2];
    Waiter w;

    open_context("poll");
    open_pair(fds);
    w = waiter(fds[0], POLLIN);
    begin(&w);
    close(fds[0]);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(w.result, -EBADF);
    close(fds[1]);
    close_context();
}

ON_EACH_ENGINE(reports_of_a_duplicate_go_to_nobody)
{
    int old[2], new[2], copy;
    Waiter w;

    open_context(engine);
    open_pair(old);
    w = waiter(old[0], POLLIN);
    w.timeout_ns = 0;
    begin(&w);
    while (!w.ends) {
        aio_poll(ctx, true);
    }
    copy = dup(old[0]); /* keeps what epoll watches under the number */
    CHECK(copy >= 0);
    close(old[0]);
    open_pair(new);
    CHECK_EQ(new[0], old[0]);
    w = waiter(new[0], POLLIN);
    begin(&w);
    poke(old[1]);
    CHECK(!aio_poll(ctx, false));
    CHECK(!aio_poll(ctx, false));
    CHECK_EQ(w.ends, 0);
    poke(new[1]);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(w.result, POLLIN);
    close(copy);
    close(old[1]);
    close_pair(new);
    close_context();
}

static void never(void *opaque)
{
    (void)opaque;
    CHECK(false);
}

/*
 * When reports of a duplicate do not end, epoll goes on with a new set.  A wait
 * that cannot be taken over ends then, without a report; and the loop, which
 * had looked for one busily, went to sleep over it.
 */
TEST(a_wait_that_ends_while_the_loop_looks_busily_is_seen)
{
    int old[2], fds[2], copy;
    Waiter w;

    open_context("epoll");
    open_pair(old);
    open_pair(fds);
    CHECK_EQ(aio_set_fd_handler(ctx, old[0], never, NULL, NULL, NULL, NULL), 0);
    copy = dup(old[0]);
    CHECK(copy >= 0);
    close(old[0]);
    CHECK_EQ(aio_set_fd_handler(ctx, old[0], NULL, NULL, NULL, NULL, NULL), 0);
    w = waiter(fds[0], POLLIN);
    begin(&w);
    CHECK_EQ(aio_context_set_poll_params(ctx, MINUTE, 2, 2), 0);
    aio_poll(ctx, false);
    ctx->poll_ns = 50 * MILLISECOND;
    poke(old[1]);
    os_fault_arm(2, ENOSPC, "epoll_ctl"); /* the first is of the notification */
    while (!w.ends) {
        aio_poll(ctx, true);
    }
    CHECK(os_fault_fired());
    CHECK_EQ(w.result, -ENOSPC);
    close(copy);
    close(old[1]);
    close_pair(fds);
    close_context();
}

ON_EACH_ENGINE(cancelling_ends_the_interest_in_duplicates)
{
    int fds[2], copy;
    Waiter w;

    open_context(engine);
    open_pair(fds);
    w = waiter(fds[0], POLLIN);
    begin(&w);
    copy = dup(fds[0]);
    CHECK(copy >= 0);
    fd_cancel_all(fds[0], -ECANCELED);
    close(fds[0]);
    poke(fds[1]);
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(ctx->poller.ops->wait(ctx, 0), 0);
        CHECK(!aio_poll(ctx, false));
    }
    close(copy);
    close(fds[1]);
    close_context();
}

ON_EACH_ENGINE(a_file_is_always_ready)
{
    int fd = open_regular();
    Waiter w;

    open_context(engine);
    w = waiter(fd, POLLIN | POLLOUT);
    w.more = 3;
    begin(&w);
    while (w.ends < 4) {
        aio_poll(ctx, true);
    }
    CHECK_EQ(w.result, POLLIN | POLLOUT);
    CHECK(!aio_poll(ctx, false));
    close(fd);
    close_context();
}

/* --- errors, costs --------------------------------------------------------*/

TEST(errors_of_the_engine_reach_the_waiter)
{
    static const int errors[] = {ENOMEM, ENOSPC, EINVAL, ELOOP};
    int fds[2];
    Waiter w;

    open_context("epoll");
    open_pair(fds);
    for (unsigned i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        os_fault_arm(1, errors[i], "epoll_ctl");
        w = waiter(fds[0], POLLIN);
        begin(&w);
        CHECK(os_fault_fired());
        CHECK_EQ(w.result, -errors[i]);
    }
    w = waiter(fds[0], POLLIN);
    begin(&w);
    poke(fds[1]);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(w.result, POLLIN);
    close_pair(fds);
    close_context();
}

TEST(an_error_when_the_other_direction_is_armed_again_reaches_it)
{
    Waiter reader, writer;
    int fds[2];

    open_context("epoll");
    open_pair(fds);
    fill(fds[0]);
    reader = waiter(fds[0], POLLIN);
    writer = waiter(fds[0], POLLOUT);
    begin(&reader);
    begin(&writer);
    poke(fds[1]);
    os_fault_arm(1, ENOMEM, "epoll_ctl");
    CHECK(aio_poll(ctx, true));
    CHECK(os_fault_fired());
    CHECK_EQ(reader.result, POLLIN);
    CHECK_EQ(writer.result, -ENOMEM);
    close_pair(fds);
    close_context();
}

TEST(a_wait_costs_two_system_calls)
{
    uint64_t before;
    int fds[2];
    Waiter w;

    open_context("epoll");
    open_pair(fds);
    poke(fds[1]);
    w = waiter(fds[0], POLLIN);
    w.more = 11;
    begin(&w);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(w.ends, 1); /* and has begun the second */
    before = os_counter(OS_COUNT_SYSCALLS);
    for (int i = 0; i < 10; i++) {
        CHECK(aio_poll(ctx, true));
    }
    CHECK_EQ(w.ends, 11);
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS) - before, 20);
    CHECK_EQ(os_counter(OS_COUNT_NOTIFICATIONS), 0);
    fd_cancel_all(fds[0], -ECANCELED);
    close_pair(fds);
    close_context();
}

/* --- misuse ---------------------------------------------------------------*/

static void nothing(void *opaque)
{
    (void)opaque;
}

TEST_ABORTS(a_handler_on_a_descriptor_that_is_waited_for_aborts,
            "aio_set_fd_handler: fd [0-9]+ .*coroutine \"waiter\" waits")
{
    int fds[2];
    Waiter w;

    open_context(NULL);
    open_pair(fds);
    w = waiter(fds[0], POLLIN);
    begin(&w);
    aio_set_fd_handler(ctx, fds[0], nothing, NULL, NULL, NULL, NULL);
}

TEST_ABORTS(a_wait_on_a_descriptor_with_a_handler_aborts,
            "test called by coroutine \"waiter\" for fd [0-9]+, which has a "
            "handler")
{
    int fds[2];
    Waiter w;

    open_context(NULL);
    open_pair(fds);
    aio_set_fd_handler(ctx, fds[0], nothing, NULL, NULL, NULL, NULL);
    w = waiter(fds[0], POLLIN);
    begin(&w);
}

TEST_ABORTS(cancelling_a_handler_aborts, "co_close called by nobody for fd "
                                         "[0-9]+, which has a handler")
{
    int fds[2];

    open_context(NULL);
    open_pair(fds);
    aio_set_fd_handler(ctx, fds[0], nothing, NULL, NULL, NULL, NULL);
    fd_cancel_all(fds[0], -ECANCELED);
}

TEST_ABORTS(checking_for_a_handler_names_the_call,
            "co_thing called by nobody for fd [0-9]+, which has a handler")
{
    int fds[2];

    open_context(NULL);
    open_pair(fds);
    fd_check_no_handler(ctx, fds[0], "co_thing");
    aio_set_fd_handler(ctx, fds[0], nothing, NULL, NULL, NULL, NULL);
    fd_check_no_handler(ctx, fds[1], "co_thing");
    fd_check_no_handler(ctx, fds[0], "co_thing");
}

/* poll(2) sees it in each pass. */
TEST_ABORTS(closing_under_a_handler_is_said,
            "^coaio: fd [0-9]+ was closed while context \"here\" has a handler "
            "for it, which does not run any more: remove handlers before "
            "closing$")
{
    int fds[2];

    open_context("poll");
    open_pair(fds);
    aio_set_fd_handler(ctx, fds[0], nothing, NULL, NULL, NULL, NULL);
    close(fds[0]);
    aio_poll(ctx, false);
    abort();
}

TEST_MAIN()
