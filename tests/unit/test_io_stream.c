/* SPDX-License-Identifier: MIT */

/*
 * co_read and co_write on pipes, terminals and other descriptors that have
 * readiness, blocking or not: the thread never blocks.
 */

#include "go.h"
#include "os/fault.h"
#include "os/file.h"
#include "seccomp.h"

#include <coaio/io.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

typedef struct Stream {
    int fd;
    char *buf;
    size_t count;
    ssize_t result;
    bool done;
} Stream;

static void coroutine_fn read_once(void *opaque)
{
    Stream *s = opaque;

    s->result = co_read(s->fd, s->buf, s->count);
    s->done = true;
}

static void coroutine_fn write_once(void *opaque)
{
    Stream *s = opaque;

    s->result = co_write(s->fd, s->buf, s->count);
    s->done = true;
}

/* All of it, in as many writes as it takes. */
static void coroutine_fn write_all(void *opaque)
{
    Stream *s = opaque;
    size_t done = 0;

    while (done < s->count) {
        ssize_t n = co_write(s->fd, s->buf + done, s->count - done);

        CHECK(n > 0);
        done += (size_t)n;
    }
    s->result = (ssize_t)done;
    s->done = true;
}

static void coroutine_fn read_all(void *opaque)
{
    Stream *s = opaque;
    size_t done = 0;
    ssize_t n;

    while ((n = co_read(s->fd, s->buf + done, s->count - done)) > 0) {
        done += (size_t)n;
    }
    CHECK_EQ(n, 0);
    s->result = (ssize_t)done;
    s->done = true;
}

#define BIG (1 << 20)

/* More than a pipe holds, through one loop thread. */
static void through(const char *engine, int fds[2])
{
    AioContext *ctx = go_begin(engine);
    char *out = malloc(BIG), *in = malloc(BIG + 1);
    Stream writer = {.fd = fds[1], .buf = out, .count = BIG};
    Stream reader = {.fd = fds[0], .buf = in, .count = BIG + 1};

    for (int i = 0; i < BIG; i++) {
        out[i] = (char)(i * 31 >> 3);
    }
    go(write_all, &writer);
    CHECK(!writer.done);
    go(read_all, &reader);
    go_until(ctx, &writer.done);
    close(fds[1]);
    go_until(ctx, &reader.done);
    CHECK_EQ(writer.result, BIG);
    CHECK_EQ(reader.result, BIG);
    CHECK_EQ(memcmp(in, out, BIG), 0);
    close(fds[0]);
    go_end(ctx);
    free(in);
    free(out);
}

ON_EACH_ENGINE(a_blocking_pipe_does_not_block)
{
    int fds[2];

    CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
    through(engine, fds);
}

ON_EACH_ENGINE(a_nonblocking_pipe_never_says_eagain)
{
    int fds[2];

    CHECK_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    through(engine, fds);
}

ON_EACH_ENGINE(a_fifo_is_a_pipe)
{
    char path[] = "/tmp/coaio-test-XXXXXX";
    char fifo[64];
    int fds[2];

    CHECK(mkdtemp(path) != NULL);
    snprintf(fifo, sizeof(fifo), "%s/fifo", path);
    CHECK_EQ(mkfifo(fifo, 0600), 0);
    fds[0] = open(fifo, O_RDWR | O_CLOEXEC);
    fds[1] = open(fifo, O_WRONLY | O_CLOEXEC);
    CHECK(fds[0] >= 0 && fds[1] >= 0);
    close(fds[0]);
    fds[0] = open(fifo, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    CHECK(fds[0] >= 0);
    unlink(fifo);
    rmdir(path);
    through(engine, fds);
}

/* Without, a worker reads what is there. */
static bool pipes_know_nowait(int fd)
{
    struct iovec iov = {NULL, 0};

    return os_preadv_nowait(fd, &iov, 1, -1) != -EOPNOTSUPP;
}

ON_EACH_ENGINE(short_counts_and_the_end)
{
    AioContext *ctx = go_begin(engine);
    char buf[16];
    Stream reader = {.buf = buf, .count = sizeof(buf)};
    int fds[2];

    CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
    reader.fd = fds[0];
    CHECK_EQ(write(fds[1], "abc", 3), 3);
    go(read_once, &reader);
    CHECK(reader.done || !pipes_know_nowait(fds[0]));
    go_until(ctx, &reader.done);
    CHECK_EQ(reader.result, 3);
    reader.done = false;
    go(read_once, &reader);
    CHECK(!reader.done);
    close(fds[1]);
    go_until(ctx, &reader.done);
    CHECK_EQ(reader.result, 0);
    close(fds[0]);
    go_end(ctx);
}

ON_EACH_ENGINE(writing_to_nobody_is_epipe)
{
    AioContext *ctx = go_begin(engine);
    Stream writer = {.buf = (char[]){"x"}, .count = 1};
    int fds[2];

    signal(SIGPIPE, SIG_IGN);
    CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
    close(fds[0]);
    writer.fd = fds[1];
    go(write_once, &writer);
    go_until(ctx, &writer.done);
    CHECK_EQ(writer.result, -EPIPE);
    close(fds[1]);
    go_end(ctx);
}

static void the_wrong_end(const char *engine)
{
    AioContext *ctx = go_begin(engine);
    char buf[4] = "abc";
    Stream s = {.buf = buf, .count = 3};
    int fds[2];

    CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
    s.fd = fds[1];
    go(read_once, &s);
    go_until(ctx, &s.done);
    CHECK_EQ(s.result, -EBADF);
    s.done = false;
    s.fd = fds[0];
    go(write_once, &s);
    go_until(ctx, &s.done);
    CHECK_EQ(s.result, -EBADF);
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

ON_EACH_ENGINE(the_wrong_end_is_ebadf)
{
    the_wrong_end(engine);
}

/* It waited for ever: the wrong end never becomes ready. */
ON_EACH_ENGINE(the_wrong_end_is_ebadf_where_nothing_knows_nowait)
{
    if (seccomp_refuse(SYS_preadv2, ENOSYS) ||
        seccomp_refuse(SYS_pwritev2, ENOSYS)) {
        SKIP("no seccomp here");
    }
    the_wrong_end(engine);
}

/* It was EBADF, as if the end had been the wrong one. */
ON_EACH_ENGINE(flags_that_are_not_told_are_an_error)
{
    AioContext *ctx;
    char buf[4] = "abc";
    Stream s = {.buf = buf, .count = 3};
    int fds[2];

    if (seccomp_refuse(SYS_pwritev2, ENOSYS)) {
        SKIP("no seccomp here");
    }
    ctx = go_begin(engine);
    CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
    s.fd = fds[1];
    os_fault_arm(1, EACCES, "fcntl");
    go(write_once, &s);
    go_until(ctx, &s.done);
    CHECK(os_fault_fired());
    CHECK_EQ(s.result, -EACCES);
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

static void coroutine_fn pread_once(void *opaque)
{
    Stream *s = opaque;

    s->result = co_pread(s->fd, s->buf, s->count, 0);
    s->done = true;
}

ON_EACH_ENGINE(a_pipe_has_no_offset)
{
    AioContext *ctx = go_begin(engine);
    char buf[4];
    Stream s = {.buf = buf, .count = 3};
    int fds[2];

    CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
    s.fd = fds[0];
    go(pread_once, &s);
    go_until(ctx, &s.done);
    CHECK_EQ(s.result, -ESPIPE);
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

/* --- other streams --------------------------------------------------------*/

ON_EACH_ENGINE(an_event_fd)
{
    AioContext *ctx = go_begin(engine);
    uint64_t value = 0;
    Stream s = {.buf = (char *)&value, .count = sizeof(value)};

    s.fd = eventfd(0, EFD_CLOEXEC);
    go(read_once, &s);
    CHECK(!s.done);
    CHECK_EQ(eventfd_write(s.fd, 42), 0);
    go_until(ctx, &s.done);
    CHECK_EQ(s.result, sizeof(value));
    CHECK_EQ(value, 42);
    close(s.fd);
    go_end(ctx);
}

ON_EACH_ENGINE(a_timer_fd)
{
    AioContext *ctx = go_begin(engine);
    struct itimerspec soon = {.it_value = {.tv_nsec = 1}};
    uint64_t value = 0;
    Stream s = {.buf = (char *)&value, .count = sizeof(value)};

    s.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    go(read_once, &s);
    CHECK(!s.done);
    CHECK_EQ(timerfd_settime(s.fd, 0, &soon, NULL), 0);
    go_until(ctx, &s.done);
    CHECK_EQ(s.result, sizeof(value));
    CHECK_EQ(value, 1);
    close(s.fd);
    go_end(ctx);
}

/* Terminals do not know RWF_NOWAIT. */
static void terminal(const char *engine, int flags)
{
    AioContext *ctx = go_begin(engine);
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | flags);
    char buf[16] = "";
    Stream s = {.buf = buf, .count = sizeof(buf)};
    Stream w = {.buf = (char[]){"hi\n"}, .count = 3};
    int slave;

    if (master < 0 || grantpt(master) || unlockpt(master)) {
        SKIP("no pseudo terminals here");
    }
    slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC | flags);
    CHECK(slave >= 0);
    s.fd = slave;
    go(read_once, &s);
    go_settle(ctx);
    CHECK(!s.done);
    w.fd = master;
    go(write_once, &w);
    go_until(ctx, &s.done);
    go_until(ctx, &w.done);
    CHECK_EQ(w.result, 3);
    CHECK_EQ(s.result, 3);
    CHECK_EQ(memcmp(buf, "hi\n", 3), 0);
    close(slave);
    close(master);
    go_end(ctx);
}

ON_EACH_ENGINE(a_blocking_terminal)
{
    terminal(engine, 0);
}

ON_EACH_ENGINE(a_nonblocking_terminal)
{
    terminal(engine, O_NONBLOCK);
}

ON_EACH_ENGINE(devices_without_readiness)
{
    AioContext *ctx = go_begin(engine);
    char buf[16];
    Stream s = {.buf = buf, .count = sizeof(buf)};

    memset(buf, 1, sizeof(buf));
    s.fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
    go(read_once, &s);
    go_until(ctx, &s.done);
    CHECK_EQ(s.result, sizeof(buf));
    CHECK_EQ(buf[15], 0);
    s.done = false;
    go(write_once, &s);
    go_until(ctx, &s.done);
    CHECK_EQ(s.result, sizeof(buf));
    close(s.fd);
    s.done = false;
    s.fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    go(read_once, &s);
    go_until(ctx, &s.done);
    CHECK_EQ(s.result, 0);
    close(s.fd);
    go_end(ctx);
}

/* --- without a home -------------------------------------------------------*/

TEST(without_a_home_the_thread_blocks)
{
    char buf[8] = "";
    Stream w = {.buf = (char[]){"abc"}, .count = 3};
    Stream r = {.buf = buf, .count = sizeof(buf)};
    int fds[2];

    CHECK_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    w.fd = fds[1];
    r.fd = fds[0];
    go(write_once, &w);
    CHECK_EQ(w.result, 3);
    go(read_once, &r);
    CHECK_EQ(r.result, 3);
    close(fds[0]);
    close(fds[1]);
}

TEST_MAIN()
