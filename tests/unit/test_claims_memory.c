/* SPDX-License-Identifier: MIT */

/*
 * When memory runs out, the calls of io.h return -ENOMEM or do their work, and
 * no wait is lost: whichever allocation of theirs fails, until none does.
 * Contexts, coroutines and bottom halves: test_fault_core.
 */

#include "harness.h"

#include "os/fault.h"

#include <coaio/coaio.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#define FD_FIRST 300 /* numbers of which nothing is known yet */
#define FD_STEP 64

static AioContext *ctx;

static void nothing(void *opaque)
{
    (void)opaque;
}

static void set_up(void)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    aio_context_attach(ctx);
}

/* A call on fd, whose peer is the other end; both are closed by the case. */
typedef struct Io {
    ssize_t (*call)(int fd);
    bool file;     /* fd is a file in memory, else a socket */
    int fd, peer;
    ssize_t result;
    bool done;
} Io;

static void coroutine_fn make_call(void *opaque)
{
    Io *io = opaque;

    io->result = io->call(io->fd);
    io->done = true;
}

static int at_number(int fd, int number)
{
    CHECK_EQ(fcntl(fd, F_DUPFD_CLOEXEC, number), number);
    close(fd);
    return number;
}

static void open_io(Io *io, int number)
{
    int fds[2];

    if (io->file) {
        io->fd = at_number(open("/tmp", O_TMPFILE | O_RDWR, 0600), number);
        io->peer = -1;
        return;
    }
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    io->fd = at_number(fds[0], number);
    io->peer = fds[1];
}

/* Returns whether the fault has happened. */
static bool call_with_fault(Io *io, uint64_t nth, const char *only)
{
    static int number = FD_FIRST;
    bool fired;

    number += FD_STEP;
    open_io(io, number);
    io->done = false;
    os_fault_arm(nth, ENOMEM, only);
    coroutine_enter(coroutine_create(make_call, io));
    if (!io->done && io->peer >= 0) {
        CHECK_EQ(write(io->peer, "x", 1), 1);
    }
    while (!io->done) {
        aio_poll(ctx, true);
    }
    fired = os_fault_fired();
    CHECK(io->result >= 0 || (fired && io->result == -ENOMEM));
    close(io->fd);
    if (io->peer >= 0) {
        close(io->peer);
    }
    return fired;
}

static void check_call(ssize_t (*call)(int fd), bool file)
{
    Io io = { .call = call, .file = file };
    uint64_t nth = 1;

    /* A worker lets go of the context a little after its job is done. */
    harness_allow_fds(file ? 3 : 0);
    set_up();
    coroutine_enter(coroutine_create(nothing, NULL)); /* the pool has some */
    while (call_with_fault(&io, nth, "alloc")) {
        nth++;
    }
    CHECK(io.result >= 0);
    aio_context_unref(ctx);
}

static ssize_t coroutine_fn recv_one(int fd)
{
    char c;

    return co_recv(fd, &c, 1, 0);
}

static ssize_t coroutine_fn read_one(int fd)
{
    char c;

    return co_read(fd, &c, 1);
}

static ssize_t coroutine_fn poll_in(int fd)
{
    return co_poll_fd(fd, POLLIN, -1);
}

static ssize_t coroutine_fn pread_one(int fd)
{
    char c;

    return co_pread(fd, &c, 1, 0);
}

static ssize_t coroutine_fn sync_it(int fd)
{
    return co_fsync(fd);
}

TEST(receiving_without_memory)
{
    check_call(recv_one, false);
}

TEST(reading_a_socket_without_memory)
{
    check_call(read_one, false);
}

TEST(looking_without_memory)
{
    check_call(poll_in, false);
}

TEST(reading_a_file_without_memory)
{
    check_call(pread_one, true);
}

TEST(syncing_without_memory)
{
    check_call(sync_it, true);
}

TEST_MAIN()
