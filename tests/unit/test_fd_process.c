/* SPDX-License-Identifier: MIT */
/*
 * Descriptors of another process' making, on each engine: coroutines look at
 * them, read, write, and learn that the other process has ended.
 *
 * The other one is a child that is forked before anything of coaio runs.  It
 * makes two pipes and a pair of sockets, passes an end of each, and uses the
 * other ends as it is told.  What it has passed it keeps open, too.
 */
#include "go.h"

#include <coaio/io.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the receiver of an end can do with it. */
enum {
    IN,
    OUT,
    BOTH,
    ENDS
};

static int ends[ENDS]; /* of the process that looks at it */
static int commands;   /* likewise */
static pid_t child;

/* --- the other process ----------------------------------------------------*/

/* A message of one byte with room for the ends. */
typedef struct Parcel {
    char byte;
    struct iovec iov;
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(ends))];
    struct msghdr msg;
} Parcel;

static void parcel_init(Parcel *parcel)
{
    memset(parcel, 0, sizeof(*parcel));
    parcel->iov = (struct iovec){&parcel->byte, 1};
    parcel->msg.msg_iov = &parcel->iov;
    parcel->msg.msg_iovlen = 1;
    parcel->msg.msg_control = parcel->control;
    parcel->msg.msg_controllen = sizeof(parcel->control);
}

static void send_ends(const int *theirs)
{
    struct cmsghdr *header;
    Parcel parcel;

    parcel_init(&parcel);
    header = CMSG_FIRSTHDR(&parcel.msg);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(ends));
    memcpy(CMSG_DATA(header), theirs, sizeof(ends));
    CHECK_EQ(sendmsg(commands, &parcel.msg, 0), 1);
}

static void make_and_pass_ends(void)
{
    int in[2], out[2], both[2], theirs[ENDS];

    CHECK_EQ(pipe(in), 0);
    CHECK_EQ(pipe(out), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, both), 0);
    ends[IN] = in[1];
    ends[OUT] = out[0];
    ends[BOTH] = both[1];
    theirs[IN] = in[0];
    theirs[OUT] = out[1];
    theirs[BOTH] = both[0];
    send_ends(theirs);
}

static void read_to_the_mark(int fd)
{
    char buf[4096];
    ssize_t n;

    do {
        n = read(fd, buf, sizeof(buf));
        CHECK(n > 0);
    } while (buf[n - 1] != '!');
}

static void be_the_other(void)
{
    char command;

    make_and_pass_ends();
    while (read(commands, &command, 1) == 1) {
        if (command == 'w') {
            CHECK_EQ(write(ends[BOTH], "sock", 4), 4);
            CHECK_EQ(write(ends[IN], "pipe", 4), 4);
        } else {
            read_to_the_mark(ends[OUT]);
            read_to_the_mark(ends[BOTH]);
        }
    }
    _exit(0);
}

/* --- this process ---------------------------------------------------------*/

static void receive_ends(void)
{
    struct cmsghdr *header;
    Parcel parcel;

    parcel_init(&parcel);
    CHECK_EQ(recvmsg(commands, &parcel.msg, MSG_CMSG_CLOEXEC), 1);
    header = CMSG_FIRSTHDR(&parcel.msg);
    CHECK(header && header->cmsg_len == CMSG_LEN(sizeof(ends)));
    memcpy(ends, CMSG_DATA(header), sizeof(ends));
}

static void start_the_other(void)
{
    int fds[2];

    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    child = fork();
    CHECK(child >= 0);
    commands = fds[child == 0];
    close(fds[child != 0]);
    if (child == 0) {
        be_the_other();
    }
    receive_ends();
}

static void tell(char command)
{
    CHECK_EQ(write(commands, &command, 1), 1);
}

/* Until not a byte more has room. */
static void fill(int fd)
{
    static const char junk[4096];
    int flags = fcntl(fd, F_GETFL);

    CHECK_EQ(fcntl(fd, F_SETFL, flags | O_NONBLOCK), 0);
    for (size_t size = sizeof(junk); size > 0; size /= sizeof(junk)) {
        while (write(fd, junk, size) > 0) {
            /* and again */
        }
    }
    CHECK_EQ(fcntl(fd, F_SETFL, flags), 0);
}

typedef struct Op {
    int fd;
    int64_t timeout_ns;
    char buf[8];
    ssize_t result;
    bool done;
} Op;

static void coroutine_fn look(void *opaque)
{
    Op *op = opaque;

    op->result = co_poll_fd(op->fd, POLLIN, op->timeout_ns);
    op->done = true;
}

static void coroutine_fn read_it(void *opaque)
{
    Op *op = opaque;

    op->result = co_read(op->fd, op->buf, sizeof(op->buf));
    op->done = true;
}

static void coroutine_fn write_mark(void *opaque)
{
    Op *op = opaque;

    op->result = co_write(op->fd, "!", 1);
    op->done = true;
}

/* Both begin to wait. */
static void begin(AioContext *ctx, CoroutineEntry *entry, Op ops[2], int end)
{
    ops[0] = (Op){.fd = ends[end], .timeout_ns = -1};
    ops[1] = (Op){.fd = ends[BOTH], .timeout_ns = -1};
    go(entry, &ops[0]);
    go(entry, &ops[1]);
    go_settle(ctx);
    CHECK(!ops[0].done && !ops[1].done);
}

static void await(AioContext *ctx, const Op ops[2])
{
    go_until(ctx, &ops[0].done);
    go_until(ctx, &ops[1].done);
}

static void check_read(const Op ops[2])
{
    CHECK_EQ(ops[0].result, 4);
    CHECK_EQ(memcmp(ops[0].buf, "pipe", 4), 0);
    CHECK_EQ(ops[1].result, 4);
    CHECK_EQ(memcmp(ops[1].buf, "sock", 4), 0);
}

static void look_and_read(AioContext *ctx)
{
    Op lookers[2], readers[2];

    begin(ctx, look, lookers, IN);
    tell('w');
    await(ctx, lookers);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(lookers[i].result, POLLIN);
        readers[i] = (Op){.fd = lookers[i].fd};
        go(read_it, &readers[i]);
    }
    await(ctx, readers);
    check_read(readers);
    begin(ctx, read_it, readers, IN);
    tell('w');
    await(ctx, readers);
    check_read(readers);
}

static void write_where_there_was_no_room(AioContext *ctx)
{
    Op writers[2];

    fill(ends[OUT]);
    fill(ends[BOTH]);
    begin(ctx, write_mark, writers, OUT);
    tell('r');
    await(ctx, writers);
    CHECK_EQ(writers[0].result, 1);
    CHECK_EQ(writers[1].result, 1);
}

static void end_the_other(void)
{
    int status;

    close(commands);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
}

static void learn_of_the_end(AioContext *ctx)
{
    Op lookers[2], readers[2];

    begin(ctx, look, lookers, IN);
    begin(ctx, read_it, readers, IN);
    end_the_other();
    await(ctx, readers);
    await(ctx, lookers);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(readers[i].result, 0);
        CHECK(lookers[i].result > 0);
        CHECK(lookers[i].result & (POLLIN | POLLHUP));
    }
}

static void close_ends(void)
{
    for (int i = 0; i < ENDS; i++) {
        close(ends[i]);
    }
}

#define WITH_ANOTHER_ON_EACH_ENGINE(name) \
    static void name(const char *engine); \
    TEST(name##_on_epoll)                 \
    {                                     \
        start_the_other();                \
        name("epoll");                    \
    }                                     \
    TEST(name##_on_poll)                  \
    {                                     \
        start_the_other();                \
        name("poll");                     \
    }                                     \
    TEST(name##_on_uring)                 \
    {                                     \
        start_the_other();                \
        needs_uring();                    \
        name("uring");                    \
    }                                     \
    static void name(const char *engine)

WITH_ANOTHER_ON_EACH_ENGINE(what_another_process_made_is_as_ones_own)
{
    AioContext *ctx = go_begin(engine);

    look_and_read(ctx);
    write_where_there_was_no_room(ctx);
    look_and_read(ctx);
    learn_of_the_end(ctx);
    close_ends();
    go_end(ctx);
}

/* The other process has the file still that was watched under the number. */
WITH_ANOTHER_ON_EACH_ENGINE(what_another_process_keeps_open_is_not_mistaken)
{
    AioContext *ctx = go_begin(engine);
    Op looker = {.fd = ends[BOTH], .timeout_ns = 1000};
    char buf[8];
    int fds[2];

    go(look, &looker);
    go_until(ctx, &looker.done);
    CHECK_EQ(looker.result, -ETIMEDOUT);
    close(ends[BOTH]);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    CHECK_EQ(fds[0], ends[BOTH]);
    looker = (Op){.fd = fds[0], .timeout_ns = -1};
    go(look, &looker);
    tell('w');
    CHECK_EQ(read(ends[IN], buf, sizeof(buf)), 4); /* and so it has to both */
    go_settle(ctx);
    CHECK(!looker.done);
    CHECK_EQ(write(fds[1], "x", 1), 1);
    go_until(ctx, &looker.done);
    CHECK_EQ(looker.result, POLLIN);
    end_the_other();
    close_ends();
    close(fds[1]);
    go_end(ctx);
}

TEST_MAIN()
