/* SPDX-License-Identifier: MIT */
/*
 * The io_uring engine: what it costs, a full queue, files that are let go,
 * peers that have shut down their side.
 */
#include "engines.h"
#include "go.h"
#include "loop/context.h"
#include "loop/fd_int.h"
#include "os/fault.h"
#include "os/valgrind.h"
#include "watch.h"

#include <coaio/fd.h>
#include <coaio/io.h>
#include <coaio/timer.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static void nothing(void *opaque)
{
    (void)opaque;
}

static uint64_t calls_since(uint64_t before)
{
    return os_counter(OS_COUNT_SYSCALLS) - before;
}

static void begin(void)
{
    needs_uring();
    ctx = context_on("uring");
    aio_context_attach(ctx);
}

static void end(void)
{
    aio_context_unref(ctx);
}

/* --- what it costs --------------------------------------------------------*/

typedef struct Reader {
    int fd;
    unsigned times; /* how often it reads */
    unsigned ends;
} Reader;

static void coroutine_fn read_often(void *opaque)
{
    Reader *r = opaque;
    char c;

    for (unsigned i = 0; i < r->times; i++) {
        CHECK_EQ(co_recv(r->fd, &c, 1, 0), 1);
        r->ends++;
    }
}

static unsigned ended(const Reader *readers, unsigned n)
{
    unsigned sum = 0;

    for (unsigned i = 0; i < n; i++) {
        sum += readers[i].ends;
    }
    return sum;
}

/*
 * The waits that end in a pass, and those that have begun in the one before,
 * cost one system call, however many they are (the kernel ends 20 at a time);
 * and each receive calls more besides.
 */
static void check_one_call_a_pass(unsigned calls)
{
    enum {
        N = 100,
        TIMES = 5
    };
    static Reader readers[N];
    static int fds[N][2];
    uint64_t before;
    unsigned passes;

    if (os_in_valgrind()) {
        SKIP("in Valgrind a sleep takes two calls more");
    }
    begin();
    for (int i = 0; i < N; i++) {
        open_pair(fds[i]);
        readers[i] = (Reader){.fd = fds[i][0], .times = TIMES + 1};
        go(read_often, &readers[i]);
    }
    CHECK(!aio_poll(ctx, false));
    for (unsigned k = 1; k <= TIMES; k++) {
        for (int i = 0; i < N; i++) {
            poke(fds[i][1]);
        }
        before = os_counter(OS_COUNT_SYSCALLS);
        for (passes = 0; ended(readers, N) < N * k; passes++) {
            CHECK(aio_poll(ctx, true));
        }
        CHECK(passes <= N / 20);
        /* In the first round descriptors are not known yet. */
        CHECK(k == 1 || calls_since(before) == passes + calls * N);
    }
    for (int i = 0; i < N; i++) {
        poke(fds[i][1]);
    }
    while (ended(readers, N) < N * (TIMES + 1)) {
        aio_poll(ctx, true);
    }
    for (int i = 0; i < N; i++) {
        close_pair(fds[i]);
    }
    end();
}

TEST(one_pass_is_one_system_call_however_many_receive)
{
    as_usual_on_uring();
    check_one_call_a_pass(0);
}

/* Write to the first n; returns the calls that their readers make apart from
 * one a pass, until each has read and waits again. */
static unsigned calls_of_readers(Reader *readers, int (*fds)[2], int n)
{
    unsigned all = ended(readers, 2) + (unsigned)n;
    unsigned passes;
    uint64_t before;

    for (int i = 0; i < n; i++) {
        poke(fds[i][1]);
    }
    before = os_counter(OS_COUNT_SYSCALLS);
    for (passes = 0; ended(readers, 2) < all; passes++) {
        CHECK(aio_poll(ctx, true));
    }
    return calls_since(before) - passes;
}

TEST(it_receives_where_more_than_one_has_something)
{
    static Reader readers[2];
    int fds[2][2];

    if (os_in_valgrind()) {
        SKIP("in Valgrind a sleep takes two calls more");
    }
    as_usual_on_uring();
    begin();
    uring_receives_from(2);
    for (int i = 0; i < 2; i++) {
        open_pair(fds[i]);
        readers[i] = (Reader){.fd = fds[i][0], .times = 5 - (unsigned)i};
        go(read_often, &readers[i]);
    }
    CHECK(!aio_poll(ctx, false));
    calls_of_readers(readers, fds, 2); /* the descriptors are not known yet */
    CHECK_EQ(calls_of_readers(readers, fds, 2), 0); /* in the same call */
    CHECK_EQ(calls_of_readers(readers, fds, 1), 1); /* a try in vain */
    CHECK_EQ(calls_of_readers(readers, fds, 1), 2); /* a read, and that */
    poke(fds[0][1]);
    poke(fds[1][1]);
    poke(fds[1][1]);
    while (ended(readers, 2) < 9) {
        aio_poll(ctx, true);
    }
    for (int i = 0; i < 2; i++) {
        close_pair(fds[i]);
    }
    end();
}

/* Each reads, and then finds nothing. */
TEST(one_pass_is_one_system_call_however_many_wait)
{
    CHECK_EQ(setenv("COAIO_URING_WITHOUT", "sockets", 1), 0);
    check_one_call_a_pass(2);
}

TEST(looking_in_vain_costs_no_system_call)
{
    uint64_t before;
    int fds[2];

    as_usual_on_uring();
    begin();
    open_pair(fds);
    watch(fds[0], nothing, NULL, NULL);
    CHECK(!aio_poll(ctx, false));
    before = os_counter(OS_COUNT_SYSCALLS);
    for (int i = 0; i < 100; i++) {
        CHECK(!aio_poll(ctx, false));
    }
    CHECK_EQ(calls_since(before), 0);
    poke(fds[1]);
    CHECK(aio_poll(ctx, false));
    unwatch(fds[0]);
    close_pair(fds);
    end();
}

/* --- what it is like ------------------------------------------------------*/

/* The request of a watch holds the file; it must not do so for longer. */
TEST(a_removed_handler_lets_go_of_the_file_at_once)
{
    unsigned ran = 0;
    int fds[2];
    char c;

    begin();
    open_pair(fds);
    watch(fds[0], count, NULL, &ran);
    CHECK(!aio_poll(ctx, false));
    unwatch(fds[0]);
    close(fds[0]);
    CHECK_EQ(read(fds[1], &c, 1), 0); /* the end: else EAGAIN */
    CHECK(!aio_poll(ctx, false));
    CHECK_EQ(ran, 0);
    close(fds[1]);
    end();
}

typedef struct Looker {
    int fd;
    int result;
    bool done;
} Looker;

static void coroutine_fn look_for_a_while(void *opaque)
{
    Looker *looker = opaque;

    looker->result = co_poll_fd(looker->fd, POLLIN, 1000);
    close(looker->fd);
    looker->done = true;
}

/*
 * Newer kernels do 20 of the things that are due each time that they are
 * entered, so that the end of a poll may have to wait for others.
 */
TEST(a_removed_handler_lets_go_of_the_file_though_much_is_due)
{
    enum { MANY = 200 };
    int fds[2], many[MANY][2];
    char byte;

    begin();
    open_pair(fds);
    watch(fds[0], nothing, NULL, NULL);
    for (int i = 0; i < MANY; i++) {
        open_pair(many[i]);
        watch(many[i][0], nothing, NULL, NULL);
    }
    aio_poll(ctx, false);
    for (int i = 0; i < MANY; i++) {
        poke(many[i][1]);
    }
    unwatch(fds[0]);
    close(fds[0]);
    CHECK_EQ(recv(fds[1], &byte, 1, MSG_DONTWAIT), 0);
    close(fds[1]);
    for (int i = 0; i < MANY; i++) {
        unwatch(many[i][0]);
        close_pair(many[i]);
    }
    end();
}

/* A removal of polls does not find one that goes on and reports just then. */
TEST(a_removed_handler_lets_go_of_the_file_though_it_has_become_ready)
{
    char bytes[4096] = {0};
    int fds[2];

    begin();
    open_pair(fds);
    while (write(fds[0], bytes, sizeof(bytes)) > 0) {
    }
    CHECK_EQ(shutdown(fds[1], SHUT_WR), 0);
    watch(fds[0], NULL, nothing, NULL);
    for (int i = 0; i < 3; i++) {
        aio_poll(ctx, false); /* from now on it is one that goes on */
    }
    while (recv(fds[1], bytes, sizeof(bytes), MSG_DONTWAIT) > 0) {
    }
    unwatch(fds[0]);
    close(fds[0]);
    CHECK_EQ(recv(fds[1], bytes, 1, MSG_DONTWAIT), 0);
    close(fds[1]);
    end();
}

TEST(a_wait_that_has_timed_out_lets_go_of_the_file)
{
    Looker looker = {0};
    int fds[2];
    char c;

    begin();
    open_pair(fds);
    looker.fd = fds[0];
    go(look_for_a_while, &looker);
    go_until(ctx, &looker.done);
    CHECK_EQ(looker.result, -ETIMEDOUT);
    CHECK_EQ(read(fds[1], &c, 1), 0);
    close(fds[1]);
    end();
}

static void coroutine_fn receive_until_closed(void *opaque)
{
    Looker *looker = opaque;
    char c;

    looker->result = (int)co_recv(looker->fd, &c, 1, 0);
    looker->done = true;
}

static void coroutine_fn close_it(void *opaque)
{
    Looker *looker = opaque;

    CHECK_EQ(co_close(looker->fd), 0);
}

TEST(co_close_lets_go_of_the_file)
{
    Looker looker = {0};
    int fds[2];
    char c;

    begin();
    open_pair(fds);
    looker.fd = fds[0];
    go(receive_until_closed, &looker);
    CHECK(!aio_poll(ctx, false));
    go(close_it, &looker);
    CHECK_EQ(read(fds[1], &c, 1), 0);
    go_until(ctx, &looker.done);
    CHECK_EQ(looker.result, -ECANCELED);
    close(fds[1]);
    end();
}

static void set(void *opaque)
{
    *(bool *)opaque = true;
}

static void fill(int fd)
{
    char junk[4096] = "";

    while (write(fd, junk, sizeof(junk)) > 0) {
    }
}

static void drain(int fd)
{
    char junk[4096];

    while (read(fd, junk, sizeof(junk)) > 0) {
    }
}

/*
 * io_uring reports POLLRDHUP to who asked for POLLOUT only.  Watched all the
 * same, a socket that cannot be written to does not keep the loop awake.
 */
static void check_half_closed(const char *engine)
{
    unsigned passes = 0, ran = 0;
    bool expired = false;
    AioTimer timer;
    int fds[2];

    ctx = context_on(engine);
    aio_context_attach(ctx);
    open_pair(fds);
    fill(fds[0]);
    CHECK_EQ(shutdown(fds[1], SHUT_WR), 0);
    watch(fds[0], NULL, count, &ran);
    aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, set, &expired);
    aio_timer_mod_ns(&timer, aio_clock_ns(AIO_CLOCK_MONOTONIC) + 20000000);
    while (!expired) {
        aio_poll(ctx, true);
        passes++;
    }
    CHECK(passes < 10);
    CHECK_EQ(ran, 0);
    for (unsigned i = 1; i < 4; i++) {
        drain(fds[1]);
        while (ran < i) {
            aio_poll(ctx, true);
        }
        fill(fds[0]);
        aio_poll(ctx, false);
        ran = i;
        CHECK(!aio_poll(ctx, false));
    }
    unwatch(fds[0]);
    close_pair(fds);
    aio_context_unref(ctx);
}

ON_EACH_ENGINE(a_peer_that_has_shut_down_its_side_does_no_harm)
{
    check_half_closed(engine);
}

static void coroutine_fn send_when_possible(void *opaque)
{
    Looker *looker = opaque;

    looker->result = (int)co_send(looker->fd, "x", 1, 0);
    looker->done = true;
}

ON_EACH_ENGINE(a_send_waits_for_a_peer_that_has_shut_down_its_side)
{
    Looker looker = {0};
    int fds[2];

    ctx = context_on(engine);
    aio_context_attach(ctx);
    open_pair(fds);
    fill(fds[0]);
    CHECK_EQ(shutdown(fds[1], SHUT_WR), 0);
    looker.fd = fds[0];
    go(send_when_possible, &looker);
    for (int i = 0; i < 10; i++) {
        CHECK(!aio_poll(ctx, false));
    }
    drain(fds[1]);
    go_until(ctx, &looker.done);
    CHECK_EQ(looker.result, 1);
    close_pair(fds);
    aio_context_unref(ctx);
}

/* More than the queue has room for, in one pass; and more completions than the
 * other queue has. */
TEST(a_full_queue_is_emptied)
{
    enum {
        N = 3000
    };
    static unsigned ran[N];
    static int copies[N];
    struct rlimit limit;
    int fds[2];

    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    begin();
    open_pair(fds);
    poke(fds[1]);
    for (int i = 0; i < N; i++) {
        copies[i] = fcntl(fds[0], F_DUPFD_CLOEXEC, 0);
        if (copies[i] < 0) {
            SKIP("too few descriptors may be open");
        }
        watch(copies[i], count, NULL, &ran[i]);
    }
    for (int i = 0; i < N; i++) {
        while (ran[i] == 0) {
            CHECK(aio_poll(ctx, true));
        }
    }
    for (int i = 0; i < N; i++) {
        unwatch(copies[i]);
        close(copies[i]);
    }
    CHECK(!aio_poll(ctx, false));
    close_pair(fds);
    end();
}

/* Without room in the queue, and with calls that fail, nothing is lost. */
TEST(what_found_no_room_is_done_later)
{
    static const char *const calls[] = {"io_uring_sqe", "io_uring_enter"};
    static const int errors[] = {EAGAIN, EBUSY, EINTR};
    unsigned before, ran = 0;
    int fds[2];

    begin();
    open_pair(fds);
    for (unsigned i = 0; i < 2 * 3 * 4; i++) {
        poke(fds[1]);
        watch(fds[0], count, NULL, &ran);
        os_fault_arm(1 + i / 6, errors[i % 3], calls[i / 3 % 2]);
        before = ran;
        while (ran == before) {
            aio_poll(ctx, true);
        }
        drain(fds[0]);
        aio_poll(ctx, false);
        unwatch(fds[0]);
        os_fault_arm(0, 0, NULL);
    }
    close_pair(fds);
    end();
}

TEST_MAIN()
