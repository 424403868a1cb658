/* SPDX-License-Identifier: MIT */

/*
 * co_recv, co_send and their kin: what they return, who waits for whom, and
 * that the O_NONBLOCK of a socket neither matters nor changes.
 */

#include "go.h"
#include "loop/wait.h"
#include "loopthread.h"
#include "os/fault.h"

#include <coaio/fd.h>
#include <coaio/io.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct Peer {
    int fd;
    char buf[64];
    size_t count;
    int flags;
    ssize_t result;
    bool done;
    unsigned *order; /* shared: the next place */
    unsigned place;
    Coroutine *co;
} Peer;

static void pair(int fds[2], int type)
{
    CHECK_EQ(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds), 0);
}

static void close_pair(int fds[2])
{
    close(fds[0]);
    close(fds[1]);
}

static void set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    CHECK_EQ(fcntl(fd, F_SETFL, flags | O_NONBLOCK), 0);
}

static void finish(Peer *peer)
{
    if (peer->order) {
        peer->place = (*peer->order)++;
    }
    peer->done = true;
}

static void coroutine_fn receive(void *opaque)
{
    Peer *peer = opaque;

    peer->result = co_recv(peer->fd, peer->buf, peer->count, peer->flags);
    finish(peer);
}

static void coroutine_fn read_once(void *opaque)
{
    Peer *peer = opaque;

    peer->result = co_read(peer->fd, peer->buf, peer->count);
    finish(peer);
}

static void coroutine_fn send_once(void *opaque)
{
    Peer *peer = opaque;

    peer->result = co_send(peer->fd, peer->buf, peer->count, peer->flags);
    finish(peer);
}

static void coroutine_fn write_once(void *opaque)
{
    Peer *peer = opaque;

    peer->result = co_write(peer->fd, peer->buf, peer->count);
    finish(peer);
}

static Peer peer_of(int fd)
{
    Peer peer = {.fd = fd, .count = sizeof(peer.buf)};

    return peer;
}

static void put(int fd, const char *text)
{
    CHECK_EQ(write(fd, text, strlen(text)), strlen(text));
}

/* --- results --------------------------------------------------------------*/

ON_EACH_ENGINE(what_is_there_comes_at_once)
{
    AioContext *ctx = go_begin(engine);
    int fds[2];

    pair(fds, SOCK_STREAM);
    for (int i = 0; i < 2; i++) {
        Peer peer = peer_of(fds[0]);

        put(fds[1], "abc");
        go(i ? read_once : receive, &peer);
        CHECK(peer.done);
        CHECK_EQ(peer.result, 3); /* a short count */
        CHECK_EQ(memcmp(peer.buf, "abc", 3), 0);
    }
    close_pair(fds);
    go_end(ctx);
}

ON_EACH_ENGINE(a_reader_waits_for_what_comes)
{
    AioContext *ctx = go_begin(engine);
    int fds[2];

    pair(fds, SOCK_STREAM);
    for (int i = 0; i < 4; i++) {
        Peer peer = peer_of(fds[0]);

        if (i == 2) {
            set_nonblocking(fds[0]);
        }
        go(i % 2 ? read_once : receive, &peer);
        CHECK(!peer.done);
        put(fds[1], "hello");
        go_until(ctx, &peer.done);
        CHECK_EQ(peer.result, 5);
        CHECK_EQ(!!(fcntl(fds[0], F_GETFL) & O_NONBLOCK), i >= 2);
    }
    close_pair(fds);
    go_end(ctx);
}

ON_EACH_ENGINE(the_end_of_a_stream_is_zero)
{
    AioContext *ctx = go_begin(engine);
    Peer early, late;
    int fds[2];

    pair(fds, SOCK_STREAM);
    early = peer_of(fds[0]);
    late = peer_of(fds[0]);
    go(receive, &early);
    CHECK(!early.done);
    close(fds[1]);
    go_until(ctx, &early.done);
    CHECK_EQ(early.result, 0);
    go(read_once, &late);
    CHECK(late.done);
    CHECK_EQ(late.result, 0);
    close(fds[0]);
    go_end(ctx);
}

/* SIGPIPE would kill the case. */
ON_EACH_ENGINE(sending_to_nobody_is_epipe)
{
    AioContext *ctx = go_begin(engine);
    Peer peer;
    int fds[2];

    pair(fds, SOCK_STREAM);
    close(fds[1]);
    peer = peer_of(fds[0]);
    go(send_once, &peer);
    go_until(ctx, &peer.done);
    CHECK_EQ(peer.result, -EPIPE);
    peer = peer_of(fds[0]);
    go(write_once, &peer);
    go_until(ctx, &peer.done);
    CHECK_EQ(peer.result, -EPIPE);
    close(fds[0]);
    go_end(ctx);
}

ON_EACH_ENGINE(nothing_to_transfer_is_not_waited_for)
{
    AioContext *ctx = go_begin(engine);
    Peer peer;
    int fds[2];

    pair(fds, SOCK_STREAM);
    peer = peer_of(fds[0]);
    peer.count = 0;
    go(read_once, &peer);
    CHECK(peer.done);
    CHECK_EQ(peer.result, 0);
    peer.done = false;
    go(write_once, &peer);
    go_until(ctx, &peer.done);
    CHECK_EQ(peer.result, 0);
    close_pair(fds);
    go_end(ctx);
}

ON_EACH_ENGINE(bad_descriptors_are_errors)
{
    AioContext *ctx = go_begin(engine);
    int numbers[] = {-1, 999, 1 << 20, 0x7fffffff};

    for (unsigned i = 0; i < 4; i++) {
        Peer peer = peer_of(numbers[i]);

        go(receive, &peer);
        CHECK_EQ(peer.result, -EBADF);
        go(read_once, &peer);
        CHECK_EQ(peer.result, -EBADF);
        go(send_once, &peer);
        CHECK_EQ(peer.result, -EBADF);
        go(write_once, &peer);
        CHECK_EQ(peer.result, -EBADF);
    }
    go_end(ctx);
}

static void coroutine_fn receive_from_file(void *opaque)
{
    Peer *peer = opaque;

    peer->result = co_recv(peer->fd, peer->buf, 1, 0);
    peer->done = true;
}

ON_EACH_ENGINE(receiving_from_a_pipe_is_enotsock)
{
    AioContext *ctx = go_begin(engine);
    Peer peer;
    int fds[2];

    CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
    peer = peer_of(fds[0]);
    go(receive_from_file, &peer);
    CHECK_EQ(peer.result, -ENOTSOCK);
    close_pair(fds);
    go_end(ctx);
}

ON_EACH_ENGINE(flags_are_passed_on)
{
    AioContext *ctx = go_begin(engine);
    Peer peer;
    int fds[2];

    pair(fds, SOCK_STREAM);
    put(fds[1], "peek");
    peer = peer_of(fds[0]);
    peer.flags = MSG_PEEK;
    go(receive, &peer);
    CHECK_EQ(peer.result, 4);
    peer.flags = MSG_DONTWAIT;
    go(receive, &peer);
    CHECK_EQ(peer.result, 4);
    /* It is empty now: MSG_DONTWAIT does not mean -EAGAIN. */
    peer.done = false;
    go(receive, &peer);
    CHECK(!peer.done);
    put(fds[1], "x");
    go_until(ctx, &peer.done);
    CHECK_EQ(peer.result, 1);
    close_pair(fds);
    go_end(ctx);
}

ON_EACH_ENGINE(waitall_waits_for_all)
{
    AioContext *ctx = go_begin(engine);
    Peer peer;
    int fds[2];

    pair(fds, SOCK_STREAM);
    peer = peer_of(fds[0]);
    peer.flags = MSG_WAITALL;
    peer.count = 20;
    go(receive, &peer);
    for (int i = 0; i < 19; i++) {
        put(fds[1], "a");
        go_settle(ctx);
        CHECK(!peer.done);
    }
    put(fds[1], "b");
    go_until(ctx, &peer.done);
    CHECK_EQ(peer.result, 20);
    CHECK_EQ(memcmp(peer.buf, "aaaaaaaaaaaaaaaaaaab", 20), 0);

    /* The end of the stream ends it. */
    peer.done = false;
    go(receive, &peer);
    put(fds[1], "xyz");
    go_settle(ctx);
    CHECK(!peer.done);
    close(fds[1]);
    go_until(ctx, &peer.done);
    CHECK_EQ(peer.result, 3);
    close(fds[0]);
    go_end(ctx);
}

ON_EACH_ENGINE(waitall_of_datagrams_takes_one)
{
    AioContext *ctx = go_begin(engine);
    Peer peer;
    int fds[2];

    pair(fds, SOCK_DGRAM);
    peer = peer_of(fds[0]);
    peer.flags = MSG_WAITALL;
    go(receive, &peer);
    put(fds[1], "one");
    go_until(ctx, &peer.done);
    CHECK_EQ(peer.result, 3);
    close_pair(fds);
    go_end(ctx);
}

/* It was taken for no stream, and a part of the bytes for all of them. */
ON_EACH_ENGINE(waitall_of_what_cannot_be_asked_is_an_error)
{
    AioContext *ctx = go_begin(engine);
    Peer peer;
    int fds[2];

    pair(fds, SOCK_STREAM);
    peer = peer_of(fds[0]);
    peer.flags = MSG_WAITALL;
    peer.count = 4;
    put(fds[1], "ab");
    os_fault_arm(1, EACCES, "getsockopt");
    go(receive, &peer);
    CHECK(os_fault_fired());
    CHECK(peer.done);
    CHECK_EQ(peer.result, -EACCES);
    peer.done = false;
    os_fault_arm(1, EINTR, "getsockopt");
    go(receive, &peer);
    CHECK(!peer.done);
    put(fds[1], "cd");
    go_until(ctx, &peer.done);
    CHECK_EQ(peer.result, 4);
    close_pair(fds);
    go_end(ctx);
}

typedef struct Message {
    int fd;
    struct msghdr msg;
    ssize_t result;
    bool done;
} Message;

static void coroutine_fn receive_message(void *opaque)
{
    Message *m = opaque;

    m->result = co_recvmsg(m->fd, &m->msg, 0);
    m->done = true;
}

static void coroutine_fn send_message(void *opaque)
{
    Message *m = opaque;

    m->result = co_sendmsg(m->fd, &m->msg, 0);
    m->done = true;
}

ON_EACH_ENGINE(messages_carry_descriptors_that_are_close_on_exec)
{
    AioContext *ctx = go_begin(engine);
    char byte = 'd', control[CMSG_SPACE(sizeof(int))] = {0}, got = 0;
    char got_control[CMSG_SPACE(sizeof(int))];
    struct iovec out = {&byte, 1}, in = {&got, 1};
    Message sender = {.msg = {.msg_iov = &out, .msg_iovlen = 1}};
    Message receiver = {.msg = {.msg_iov = &in, .msg_iovlen = 1}};
    struct cmsghdr *header;
    int fds[2], passed;

    pair(fds, SOCK_STREAM);
    sender.fd = fds[1];
    sender.msg.msg_control = control;
    sender.msg.msg_controllen = sizeof(control);
    header = CMSG_FIRSTHDR(&sender.msg);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fds[1], sizeof(int));
    receiver.fd = fds[0];
    receiver.msg.msg_control = got_control;
    receiver.msg.msg_controllen = sizeof(got_control);

    go(receive_message, &receiver);
    CHECK(!receiver.done);
    go(send_message, &sender);
    CHECK_EQ(sender.result, 1);
    go_until(ctx, &receiver.done);
    CHECK_EQ(receiver.result, 1);
    CHECK_EQ(got, 'd');
    header = CMSG_FIRSTHDR(&receiver.msg);
    CHECK(header != NULL);
    memcpy(&passed, CMSG_DATA(header), sizeof(int));
    CHECK(fcntl(passed, F_GETFD) & FD_CLOEXEC);
    close(passed);
    close_pair(fds);
    go_end(ctx);
}

/* --- who waits ------------------------------------------------------------*/

ON_EACH_ENGINE(both_directions_at_once)
{
    AioContext *ctx = go_begin(engine);
    static char block[65536];
    Peer reader, writer;
    int fds[2];

    pair(fds, SOCK_STREAM);
    while (send(fds[0], block, sizeof(block), MSG_DONTWAIT) > 0) {
        /* until it is full */
    }
    reader = peer_of(fds[0]);
    writer = peer_of(fds[0]);
    go(receive, &reader);
    go(send_once, &writer);
    go_settle(ctx);
    CHECK(!reader.done && !writer.done);

    put(fds[1], "in");
    go_until(ctx, &reader.done);
    CHECK_EQ(reader.result, 2);
    CHECK(!writer.done);
    while (recv(fds[1], block, sizeof(block), MSG_DONTWAIT) > 0) {
        /* until it is empty */
    }
    go_until(ctx, &writer.done);
    CHECK_EQ(writer.result, 64);
    close_pair(fds);
    go_end(ctx);
}

#define READERS 10

ON_EACH_ENGINE(readers_take_their_turns_in_order)
{
    AioContext *ctx = go_begin(engine);
    Peer peers[READERS];
    unsigned order = 0;
    int fds[2];

    pair(fds, SOCK_STREAM);
    for (int i = 0; i < READERS; i++) {
        peers[i] = peer_of(fds[0]);
        peers[i].count = 1;
        peers[i].order = &order;
        go(i % 2 ? read_once : receive, &peers[i]);
    }
    for (int i = 0; i < READERS; i++) {
        go_settle(ctx);
        CHECK_EQ(order, i);
        put(fds[1], (char[]){(char)('a' + i), 0});
        go_until(ctx, &peers[i].done);
        CHECK_EQ(peers[i].place, i);
        CHECK_EQ(peers[i].buf[0], 'a' + i);
    }
    close_pair(fds);
    go_end(ctx);
}

/* What comes while others wait is theirs, also for one that would not wait. */
ON_EACH_ENGINE(a_late_reader_overtakes_nobody)
{
    AioContext *ctx = go_begin(engine);
    Peer first, second;
    int fds[2];

    pair(fds, SOCK_STREAM);
    first = peer_of(fds[0]);
    second = peer_of(fds[0]);
    first.count = second.count = 1;
    go(receive, &first);
    put(fds[1], "12");
    go(receive, &second);
    CHECK(!second.done);
    go_until(ctx, &second.done);
    CHECK(first.done);
    CHECK_EQ(first.buf[0], '1');
    CHECK_EQ(second.buf[0], '2');
    close_pair(fds);
    go_end(ctx);
}

ON_EACH_ENGINE(a_burst_serves_all_who_wait)
{
    AioContext *ctx = go_begin(engine);
    Peer peers[READERS];
    unsigned order = 0;
    int fds[2];

    pair(fds, SOCK_STREAM);
    for (int i = 0; i < READERS; i++) {
        peers[i] = peer_of(fds[0]);
        peers[i].count = 1;
        peers[i].order = &order;
        go(receive, &peers[i]);
    }
    put(fds[1], "0123456789");
    go_until(ctx, &peers[READERS - 1].done);
    for (int i = 0; i < READERS; i++) {
        CHECK_EQ(peers[i].place, i);
        CHECK_EQ(peers[i].buf[0], '0' + i);
    }
    close_pair(fds);
    go_end(ctx);
}

/* A call that need not wait costs its system call, and no lock. */
ON_EACH_ENGINE(no_more_system_calls_than_needed)
{
    AioContext *ctx = go_begin(engine);
    uint64_t calls, locked;
    Peer peer;
    int fds[2];

    pair(fds, SOCK_STREAM);
    peer = peer_of(fds[0]);
    put(fds[1], "warm");
    go(receive, &peer);
    put(fds[1], "x");
    calls = os_counter(OS_COUNT_SYSCALLS);
    locked = os_locked_operations();
    go(receive, &peer);
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS) - calls, 1);
    CHECK_EQ(os_locked_operations(), locked);
    CHECK_EQ(peer.result, 1);

    /* Nor does one that had to find out what the descriptor is, once. */
    put(fds[1], "x");
    go(read_once, &peer);
    put(fds[1], "x");
    calls = os_counter(OS_COUNT_SYSCALLS);
    go(read_once, &peer);
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS) - calls, 1);
    close_pair(fds);
    go_end(ctx);
}

/* --- without a home -------------------------------------------------------*/

TEST(without_a_home_the_thread_blocks)
{
    Peer reader, writer;
    int fds[2];

    pair(fds, SOCK_STREAM);
    writer = peer_of(fds[1]);
    writer.count = 4;
    memcpy(writer.buf, "home", 4);
    go(write_once, &writer);
    CHECK(writer.done);
    CHECK_EQ(writer.result, 4);
    reader = peer_of(fds[0]);
    set_nonblocking(fds[0]);
    go(read_once, &reader);
    CHECK(reader.done);
    CHECK_EQ(reader.result, 4);
    close_pair(fds);
}

/* Whether thread tid of this process sleeps. */
static bool sleeps(pid_t tid)
{
    char name[64], state = 0;
    FILE *stat;

    snprintf(name, sizeof(name), "/proc/self/task/%d/stat", (int)tid);
    stat = fopen(name, "re");
    CHECK(stat != NULL);
    CHECK_EQ(fscanf(stat, "%*d (%*[^)]) %c", &state), 1);
    fclose(stat);
    return state == 'S';
}

typedef struct Late {
    pid_t reader;
    int fd;
} Late;

static void write_when_it_sleeps(void *opaque)
{
    Late *late = opaque;

    while (!sleeps(late->reader)) {
        sched_yield();
    }
    put(late->fd, "late");
}

/* Until there is something. */
TEST(without_a_home_the_thread_waits)
{
    BareThread writer;
    Peer reader;
    Late late;
    int fds[2];

    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        pair(fds, SOCK_STREAM);
        if (nonblocking) {
            set_nonblocking(fds[0]);
        }
        late = (Late){(pid_t)syscall(SYS_gettid), fds[1]};
        reader = peer_of(fds[0]);
        bare_thread_start(&writer, write_when_it_sleeps, &late);
        go(read_once, &reader);
        CHECK(reader.done);
        CHECK_EQ(reader.result, 4);
        bare_thread_join(&writer);
        close_pair(fds);
    }
}

/* --- misuse ---------------------------------------------------------------*/

TEST_ABORTS(outside_a_coroutine_is_misuse, "co_recv: called outside a corout")
{
    char byte;

    co_recv(0, &byte, 1, 0);
}

static void handler(void *opaque)
{
    (void)opaque;
}

TEST_ABORTS(a_descriptor_with_handlers_is_misuse,
            "co_recv called by coroutine .* for fd [0-9]+, which has a handler")
{
    AioContext *ctx = go_begin(NULL);
    Peer peer;
    int fds[2];

    pair(fds, SOCK_STREAM);
    CHECK_EQ(aio_set_fd_handler(ctx, fds[0], handler, NULL, NULL, NULL, NULL),
             0);
    peer = peer_of(fds[0]);
    go(receive, &peer);
}

TEST_ABORTS(a_handler_where_a_coroutine_waits_is_misuse, "aio_set_fd_handler")
{
    AioContext *ctx = go_begin(NULL);
    Peer peer;
    int fds[2];

    pair(fds, SOCK_STREAM);
    peer = peer_of(fds[0]);
    go(receive, &peer);
    aio_set_fd_handler(ctx, fds[0], handler, NULL, NULL, NULL, NULL);
}

TEST_MAIN()
