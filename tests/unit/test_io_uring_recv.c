/* SPDX-License-Identifier: MIT */
/*
 * Receives that the io_uring engine makes: counts that its requests have no
 * room for, messages that have none in the buffer, others that wait on the same
 * descriptor, and cancellation before the kernel has been asked.
 */
#include "go.h"
#include "loop/wait.h"

#include <coaio/io.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define GIB (UINT64_C(1) << 30)

static AioContext *ctx;

typedef struct Recv {
    ssize_t (*way)(int fd, char *buf, size_t count);
    int fd;
    char *buf;
    size_t count;
    ssize_t result;
    bool done;
} Recv;

static ssize_t coroutine_fn by_recv(int fd, char *buf, size_t count)
{
    return co_recv(fd, buf, count, 0);
}

static ssize_t coroutine_fn by_recv_all(int fd, char *buf, size_t count)
{
    return co_recv(fd, buf, count, MSG_WAITALL);
}

static ssize_t coroutine_fn by_recv_trunc(int fd, char *buf, size_t count)
{
    return co_recv(fd, buf, count, MSG_TRUNC);
}

static ssize_t coroutine_fn by_read(int fd, char *buf, size_t count)
{
    return co_read(fd, buf, count);
}

static void coroutine_fn receive(void *opaque)
{
    Recv *r = opaque;

    r->result = r->way(r->fd, r->buf, r->count);
    r->done = true;
}

static void coroutine_fn close_it(void *opaque)
{
    Recv *r = opaque;

    r->result = co_close(r->fd);
    r->done = true;
}

static void begin(void)
{
    as_usual_on_uring();
    needs_uring();
    ctx = go_begin("uring");
}

static void open_pair(int fds[2])
{
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
}

/* --- counts ---------------------------------------------------------------*/

static void check_count(ssize_t (*way)(int fd, char *buf, size_t count),
                        char *buf, size_t count)
{
    Recv r = {.way = way, .buf = buf, .count = count};
    int fds[2];

    open_pair(fds);
    r.fd = fds[0];
    go(receive, &r);
    go_settle(ctx);
    CHECK_EQ(ctx->poller.ops_taken, 1);
    CHECK_EQ(write(fds[1], "hello", 5), 5);
    CHECK_EQ(shutdown(fds[1], SHUT_WR), 0);
    go_until(ctx, &r.done);
    CHECK_EQ(r.result, 5);
    close(fds[0]);
    close(fds[1]);
}

/* It failed from 2 GiB on, and 4 GiB were none: the end of the stream. */
TEST(counts_of_gigabytes_are_those_of_recv)
{
    const size_t counts[] = {2 * GIB - 1, 2 * GIB, 4 * GIB, 4 * GIB + 1};
    char *buf = mmap(NULL, 4 * GIB + 1, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (buf == MAP_FAILED) {
        SKIP("there are no 4 GiB of addresses");
    }
    begin();
    for (int i = 0; i < 4; i++) {
        check_count(by_recv, buf, counts[i]);
        check_count(by_recv_all, buf, counts[i]);
        check_count(by_read, buf, counts[i]);
    }
    go_end(ctx);
    CHECK_EQ(munmap(buf, 4 * GIB + 1), 0);
}

/* What did not fit was looked for behind the buffer's description. */
TEST(a_datagram_that_is_cut_short_says_how_long_it_was)
{
    char buf[16], sent[1000] = {0};
    Recv r = {.way = by_recv_trunc, .buf = buf, .count = sizeof(buf)};
    int fds[2];

    begin();
    CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, fds), 0);
    r.fd = fds[0];
    go(receive, &r);
    go_settle(ctx);
    CHECK_EQ(ctx->poller.ops_taken, 1);
    CHECK_EQ(write(fds[1], sent, sizeof(sent)), sizeof(sent));
    go_until(ctx, &r.done);
    CHECK_EQ(r.result, sizeof(sent));
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

/* --- beside others --------------------------------------------------------*/

static void coroutine_fn receive_again_and_again(void *opaque)
{
    Recv *r = opaque;

    do {
        r->result = r->way(r->fd, r->buf, r->count);
    } while (r->result > 0);
    r->done = true;
}

static void coroutine_fn send_one(void *opaque)
{
    Recv *r = opaque;

    r->result = co_send(r->fd, "s", 1, 0);
    r->done = true;
}

static void drain(int fd)
{
    char buf[4096];

    while (recv(fd, buf, sizeof(buf), MSG_DONTWAIT) > 0) {
    }
}

/*
 * What the engine had reported of a descriptor was forgotten when a receive
 * began there.  One that had been told of what it received calls again before
 * the report is looked at: the sender could be kept waiting for ever.
 */
TEST(one_who_receives_does_not_keep_a_sender_waiting)
{
    static char block[4096];
    char byte;
    Recv r = {.way = by_recv, .buf = &byte, .count = 1}, sending = {0};
    int fds[2];

    begin();
    open_pair(fds);
    r.fd = sending.fd = fds[0];
    while (send(fds[0], block, sizeof(block), MSG_DONTWAIT) > 0) {
    }
    while (send(fds[0], block, 1, MSG_DONTWAIT) > 0) {
    }
    go(send_one, &sending);
    go(receive_again_and_again, &r);
    go_settle(ctx);
    CHECK(!sending.done);
    drain(fds[1]);
    for (int i = 0; i < 20; i++) {
        CHECK_EQ(write(fds[1], "r", 1), 1);
        aio_poll(ctx, false);
    }
    CHECK(sending.done);
    CHECK_EQ(sending.result, 1);
    CHECK_EQ(shutdown(fds[1], SHUT_WR), 0);
    go_until(ctx, &r.done);
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

/* --- cancellation ---------------------------------------------------------*/

/*
 * A receive that was cancelled before the kernel was asked, whose descriptor
 * is closed then, took from the next one of that number.
 */
TEST(a_cancelled_one_takes_nothing_from_the_next_of_its_number)
{
    char buf[16], left[16];
    Recv r = {.way = by_recv, .buf = buf, .count = sizeof(buf)};
    Recv closing = {.done = false};
    int fds[2], next[2];
    Coroutine *co;

    begin();
    open_pair(fds);
    r.fd = closing.fd = fds[0];
    co = go(receive, &r);
    CHECK_EQ(ctx->poller.ops_taken, 1);
    CHECK(co_wait_cancel(co, -ETIMEDOUT));
    go(close_it, &closing);
    CHECK(closing.done);
    open_pair(next);
    CHECK_EQ(next[0], fds[0]);
    CHECK_EQ(write(next[1], "theirs", 6), 6);
    go_until(ctx, &r.done);
    CHECK_EQ(r.result, -ETIMEDOUT);
    CHECK_EQ(recv(next[0], left, sizeof(left), MSG_DONTWAIT), 6);
    close(fds[1]);
    close(next[0]);
    close(next[1]);
    go_end(ctx);
}

/* Likewise, after the kernel was. */
TEST(a_cancelled_one_lets_go_of_the_file_at_once)
{
    char buf[16];
    Recv r = {.way = by_recv, .buf = buf, .count = sizeof(buf)};
    Recv closing = {.done = false};
    Coroutine *co;
    int fds[2];

    begin();
    open_pair(fds);
    r.fd = closing.fd = fds[0];
    co = go(receive, &r);
    go_settle(ctx);
    CHECK(co_wait_cancel(co, -ETIMEDOUT));
    go(close_it, &closing);
    CHECK(closing.done);
    CHECK_EQ(recv(fds[1], buf, sizeof(buf), MSG_DONTWAIT), 0);
    go_until(ctx, &r.done);
    CHECK_EQ(r.result, -ETIMEDOUT);
    close(fds[1]);
    go_end(ctx);
}

TEST_MAIN()
