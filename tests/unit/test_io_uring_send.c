/* SPDX-License-Identifier: MIT */
/*
 * Sends on the io_uring engine, where system calls are dear: many of a pass are
 * one call; and they are what a send is: in order, as much as there is room
 * for, ended by co_close(), with the errors of send(2).
 */
#include "go.h"
#include "io/io_int.h"
#include "os/fault.h"
#include "os/valgrind.h"

#include <coaio/bh.h>
#include <coaio/io.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    SENDS = 20,
    SIZE = 1000,
};

static AioContext *ctx;

typedef struct Send {
    int fd;   /* of a pair */
    int peer; /* the other end; nonblocking */
    size_t before; /* bytes that lie between the ends */
    ssize_t result;
    bool done;
} Send;

static Send sends[SENDS];
static unsigned send_n;
static ssize_t (*send_way)(int fd, char *buf);
static unsigned order[SENDS], order_n; /* in which they returned */

static ssize_t coroutine_fn by_send(int fd, char *buf)
{
    return co_send(fd, buf, SIZE, 0);
}

static ssize_t coroutine_fn by_write(int fd, char *buf)
{
    return co_write(fd, buf, SIZE);
}

static ssize_t coroutine_fn by_sendmsg(int fd, char *buf)
{
    struct iovec iov[] = {{buf, 10}, {buf + 10, SIZE - 10}};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};

    return co_sendmsg(fd, &msg, 0);
}

static void coroutine_fn send_one(void *opaque)
{
    Send *s = opaque;
    char buf[SIZE];

    memset(buf, 'a' + (int)(s - sends), sizeof(buf));
    s->result = send_way(s->fd, buf);
    s->done = true;
    order[order_n++] = (unsigned)(s - sends);
}

static void start_sends(void *opaque)
{
    (void)opaque;
    for (unsigned i = 0; i < send_n; i++) {
        coroutine_enter(coroutine_create(send_one, &sends[i]));
    }
}

static void reset_sends(unsigned n)
{
    send_n = n;
    order_n = 0;
    for (unsigned i = 0; i < n; i++) {
        sends[i].done = false;
    }
}

/* Begin n in one pass. */
static void begin_sends(unsigned n)
{
    reset_sends(n);
    aio_bh_schedule_oneshot(ctx, start_sends, NULL);
}

static void finish_sends(void)
{
    for (unsigned i = 0; i < send_n; i++) {
        go_until(ctx, &sends[i].done);
    }
}

/* The same, to the end.  Returns how many system calls that takes. */
static uint64_t calls_of_sends(unsigned n)
{
    uint64_t before = os_counter(OS_COUNT_SYSCALLS);

    begin_sends(n);
    finish_sends();
    return os_counter(OS_COUNT_SYSCALLS) - before;
}

/* Take what has arrived.  Returns how much; all of it is c. */
static size_t drain(int fd, int c)
{
    char buf[4 * SIZE];
    size_t all = 0;
    ssize_t n;

    while ((n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT)) > 0) {
        for (ssize_t i = 0; i < n; i++) {
            CHECK_EQ(buf[i], c);
        }
        all += (size_t)n;
    }
    return all;
}

static void drain_all(void)
{
    for (int i = 0; i < SENDS; i++) {
        drain(sends[i].peer, 'a' + i);
    }
}

/* On a machine where a system call takes longer than dear_ns. */
static void begin(int64_t dear_ns)
{
    needs_uring();
    uring_dear_from_ns(dear_ns);
    ctx = go_begin("uring");
    send_way = by_send;
    for (int i = 0; i < SENDS; i++) {
        int fds[2];

        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        sends[i].fd = fds[0];
        sends[i].peer = fds[1];
    }
    calls_of_sends(SENDS); /* shows how many they are */
    calls_of_sends(SENDS); /* makes stacks */
    drain_all();
}

static void end(void)
{
    for (int i = 0; i < SENDS; i++) {
        close(sends[i].fd);
        close(sends[i].peer);
    }
    go_end(ctx);
}

static void needs_counts(void)
{
    if (os_in_valgrind()) {
        SKIP("in Valgrind a sleep takes two calls more");
    }
    as_usual_on_uring();
}

static void check_few_calls(ssize_t (*way)(int fd, char *buf))
{
    send_way = way;
    calls_of_sends(SENDS); /* finds out that these are sockets */
    drain_all();
    for (int round = 0; round < 3; round++) {
        CHECK(calls_of_sends(SENDS) <= 4);
        for (int i = 0; i < SENDS; i++) {
            CHECK_EQ(sends[i].result, SIZE);
            CHECK_EQ(drain(sends[i].peer, 'a' + i), SIZE);
        }
    }
}

TEST(many_of_a_pass_are_one_call_where_calls_are_dear)
{
    needs_counts();
    begin(0);
    check_few_calls(by_send);
    check_few_calls(by_write);
    check_few_calls(by_sendmsg);
    end();
}

TEST(a_few_are_calls_of_their_own)
{
    needs_counts();
    begin(0);
    calls_of_sends(4);
    CHECK(calls_of_sends(4) >= 4); /* the ring needs two */
    calls_of_sends(SENDS);
    CHECK(calls_of_sends(SENDS) < SENDS);
    end();
}

static ssize_t coroutine_fn much(int fd, char *buf)
{
    static char bytes[33 << 10];
    struct iovec iov[] = {{buf, 1}, {bytes, sizeof(bytes)}};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};

    return co_sendmsg(fd, &msg, 0);
}

TEST(large_ones_are_calls_of_their_own)
{
    needs_counts();
    begin(0);
    send_way = much;
    CHECK(calls_of_sends(SENDS) >= SENDS);
    for (int i = 0; i < SENDS; i++) {
        CHECK_EQ(sends[i].result, (33 << 10) + 1);
    }
    end();
}

TEST(where_calls_are_cheap_each_is_one)
{
    needs_counts();
    begin(INT64_MAX);
    CHECK(calls_of_sends(SENDS) >= SENDS);
    end();
}

TEST(they_are_left_to_system_calls_if_asked)
{
    needs_counts();
    CHECK_EQ(setenv("COAIO_URING_WITHOUT", "sends", 1), 0);
    begin(0);
    CHECK(calls_of_sends(SENDS) >= SENDS);
    end();
}

/* Fill what lies between the ends. */
static void fill(Send *s)
{
    char buf[SIZE];
    ssize_t n;

    memset(buf, 'a' + (int)(s - sends), sizeof(buf));
    while ((n = send(s->fd, buf, sizeof(buf), MSG_DONTWAIT)) > 0) {
        s->before += (size_t)n;
    }
    CHECK_EQ(errno, EAGAIN);
}

static void begin_full(void)
{
    begin(0);
    for (int i = 0; i < SENDS; i++) {
        fill(&sends[i]);
    }
    begin_sends(SENDS);
    for (int i = 0; i < 10; i++) {
        aio_poll(ctx, false);
    }
    for (int i = 0; i < SENDS; i++) {
        CHECK(!sends[i].done);
    }
    /* The kernel would try again and again, if the peer were half closed. */
    CHECK_EQ(ctx->poller.ops_taken, 0);
}

TEST(without_room_they_wait_for_it)
{
    size_t got[SENDS];

    begin_full();
    for (int i = 0; i < SENDS; i++) {
        got[i] = drain(sends[i].peer, 'a' + i);
    }
    finish_sends();
    for (int i = 0; i < SENDS; i++) {
        got[i] += drain(sends[i].peer, 'a' + i);
        CHECK(sends[i].result > 0);
        CHECK_EQ(got[i], sends[i].before + (size_t)sends[i].result);
    }
    end();
}

static bool closed;

static void coroutine_fn close_all(void *opaque)
{
    for (int i = 0; i < SENDS; i++) {
        CHECK_EQ(co_close(sends[i].fd), 0);
    }
    closed = true;
    (void)opaque;
}

/* Nobody holds the other ends any more. */
static void check_closed(void)
{
    char byte;

    for (int i = 0; i < SENDS; i++) {
        CHECK_EQ(sends[i].result, -ECANCELED);
        drain(sends[i].peer, 'a' + i);
        CHECK_EQ(recv(sends[i].peer, &byte, 1, MSG_DONTWAIT), 0);
        sends[i].fd = dup(sends[i].peer); /* for end() */
    }
}

TEST(co_close_ends_those_that_wait)
{
    begin_full();
    coroutine_enter(coroutine_create(close_all, NULL));
    go_until(ctx, &closed);
    finish_sends();
    check_closed();
    end();
}

static void close_in_the_same_pass(void *opaque)
{
    start_sends(opaque);
    CHECK_EQ(ctx->poller.ops_taken, SENDS);
    coroutine_enter(coroutine_create(close_all, NULL));
    CHECK(closed);
}

/* The number is somebody else's when the kernel is asked. */
TEST(co_close_takes_back_what_has_not_been_sent)
{
    int fds[2 * SENDS];

    as_usual_on_uring();
    begin(0);
    reset_sends(SENDS);
    aio_bh_schedule_oneshot(ctx, close_in_the_same_pass, fds);
    while (!closed) {
        aio_poll(ctx, true);
    }
    for (int i = 0; i < 2 * SENDS; i += 2) {
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, &fds[i]), 0);
    }
    finish_sends();
    for (int i = 0; i < 2 * SENDS; i++) {
        CHECK_EQ(recv(fds[i], &closed, 1, MSG_DONTWAIT), -1);
    }
    for (int i = 0; i < 2 * SENDS; i++) {
        close(fds[i]);
    }
    check_closed();
    end();
}

static ssize_t coroutine_fn to_nobody(int fd, char *buf)
{
    (void)fd;
    return co_send(-1, buf, SIZE, 0);
}

TEST(a_number_that_is_none_is_an_error)
{
    begin(0);
    send_way = to_nobody;
    calls_of_sends(SENDS);
    for (int i = 0; i < SENDS; i++) {
        CHECK_EQ(sends[i].result, -EBADF);
    }
    end();
}

TEST(a_peer_that_has_gone_is_an_error_and_no_signal)
{
    begin(0);
    for (int i = 0; i < SENDS; i++) {
        CHECK_EQ(shutdown(sends[i].peer, SHUT_RD), 0);
    }
    calls_of_sends(SENDS);
    for (int i = 0; i < SENDS; i++) {
        CHECK_EQ(sends[i].result, -EPIPE);
    }
    end();
}

TEST(on_one_socket_they_keep_their_order)
{
    char buf[2 * SENDS * SIZE];
    int fds[SENDS];

    as_usual_on_uring();
    begin(0);
    for (int i = 1; i < SENDS; i++) {
        fds[i] = sends[i].fd;
        sends[i].fd = sends[0].fd;
    }
    calls_of_sends(SENDS);
    CHECK_EQ(recv(sends[0].peer, buf, sizeof(buf), MSG_DONTWAIT),
             SENDS * SIZE);
    CHECK_EQ(io_fd_find(sends[0].fd)->sides[IO_WRITE].bets, 1000);
    for (int i = 0; i < SENDS; i++) {
        CHECK_EQ(order[i], i);
        CHECK_EQ(sends[i].result, SIZE);
        CHECK_EQ(buf[i * SIZE], 'a' + i);
        CHECK_EQ(buf[(i + 1) * SIZE - 1], 'a' + i);
    }
    /* They have waited for each other, and do so no more. */
    reset_sends(SENDS);
    start_sends(NULL);
    for (int i = 0; i < SENDS; i++) {
        CHECK(sends[i].done);
        CHECK_EQ(order[i], i);
    }
    for (int i = 1; i < SENDS; i++) {
        sends[i].fd = fds[i];
    }
    end();
}

/* The caller's descriptor, not what has its number when the ring is asked. */
static ssize_t coroutine_fn with_descriptor(int fd, char *buf)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.header = {.cmsg_level = SOL_SOCKET,
                            .cmsg_type = SCM_RIGHTS,
                            .cmsg_len = CMSG_LEN(sizeof(int))}};
    struct iovec iov = {buf, 1};
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof(control),
    };
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    ssize_t n;

    memcpy(CMSG_DATA(&control.header), &null, sizeof(null));
    n = co_sendmsg(fd, &msg, 0);
    close(null);
    return n;
}

TEST(descriptors_are_sent_by_calls)
{
    needs_counts();
    begin(0);
    send_way = with_descriptor;
    CHECK(calls_of_sends(SENDS) >= SENDS);
    for (int i = 0; i < SENDS; i++) {
        CHECK_EQ(sends[i].result, 1);
    }
    end();
}

TEST_MAIN()
