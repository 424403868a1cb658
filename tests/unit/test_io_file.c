/* SPDX-License-Identifier: MIT */

/*
 * Files, on disk and in memory: results, short counts, which way a transfer
 * takes (seen by the recorder of os/), and numbers that stand for something
 * else than before.
 */

#include "go.h"
#include "io/io_int.h"
#include "loopthread.h"
#include "os/fault.h"
#include "os/file.h"

#include <coaio/io.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define HALF_COLD (2 << 20)

typedef enum Op {
    PREAD,
    PWRITE,
    READ,
    WRITE,
    FSYNC,
    FDATASYNC,
    FALLOCATE
} Op;

typedef struct File {
    int fd;
    Op op;
    char *buf;
    size_t count;
    off_t offset;
    int mode;
    ssize_t result;
    bool done;
} File;

static void coroutine_fn operate(void *opaque)
{
    File *f = opaque;

    switch (f->op) {
    case PREAD:
        f->result = co_pread(f->fd, f->buf, f->count, f->offset);
        break;
    case PWRITE:
        f->result = co_pwrite(f->fd, f->buf, f->count, f->offset);
        break;
    case READ:
        f->result = co_read(f->fd, f->buf, f->count);
        break;
    case WRITE:
        f->result = co_write(f->fd, f->buf, f->count);
        break;
    case FSYNC:
        f->result = co_fsync(f->fd);
        break;
    case FDATASYNC:
        f->result = co_fdatasync(f->fd);
        break;
    case FALLOCATE:
        f->result = co_fallocate(f->fd, f->mode, f->offset, (off_t)f->count);
        break;
    }
    f->done = true;
}

static ssize_t do_op(AioContext *ctx, Op op, int fd, char *buf, size_t count,
                     off_t offset)
{
    File f = {.op = op, .fd = fd, .buf = buf, .count = count, .offset = offset};

    go(operate, &f);
    go_until(ctx, &f.done);
    return f.result;
}

static int temporary(const char *folder, int flags)
{
    char path[64];
    int fd;

    snprintf(path, sizeof(path), "%s/coaio-test-XXXXXX", folder);
    fd = mkostemp(path, O_CLOEXEC | flags);
    if (fd < 0) {
        int error = errno;

        unlink(path); /* it is made before O_DIRECT is refused */
        CHECK(error == ENOENT || error == EACCES || error == EROFS ||
              ((flags & O_DIRECT) && error == EINVAL));
        SKIP("no such temporary file there");
    }
    unlink(path);
    return fd;
}

static int on_disk(void)
{
    int fd = temporary("/var/tmp", 0);

    if (os_file_in_memory(fd)) {
        SKIP("/var/tmp is in memory");
    }
    return fd;
}

static int in_memory(void)
{
    int fd = (int)syscall(SYS_memfd_create, "coaio-test", 1u /* cloexec */);

    CHECK(fd >= 0);
    return fd;
}

/* --- results --------------------------------------------------------------*/

static void results(const char *engine, int fd)
{
    AioContext *ctx = go_begin(engine);
    size_t size = 1 << 20;
    char *out = malloc(size), *in = malloc(size);

    for (size_t i = 0; i < size; i++) {
        out[i] = (char)(i * 7 >> 4);
    }
    /* Small, large, and across. */
    CHECK_EQ(do_op(ctx, PWRITE, fd, out, 100, 0), 100);
    CHECK_EQ(do_op(ctx, PWRITE, fd, out, size, 0), size);
    CHECK_EQ(do_op(ctx, PREAD, fd, in, 100, 50), 100);
    CHECK_EQ(memcmp(in, out + 50, 100), 0);
    memset(in, 0, size);
    CHECK_EQ(do_op(ctx, PREAD, fd, in, size, 0), size);
    CHECK_EQ(memcmp(in, out, size), 0);

    /* Short at the end, nothing behind it. */
    CHECK_EQ(do_op(ctx, PREAD, fd, in, 100, (off_t)size - 60), 60);
    CHECK_EQ(do_op(ctx, PREAD, fd, in, 100, (off_t)size), 0);
    CHECK_EQ(do_op(ctx, PREAD, fd, in, 0, 0), 0);
    CHECK_EQ(do_op(ctx, PREAD, fd, in, 1, -1), -EINVAL);
    CHECK_EQ(do_op(ctx, PWRITE, fd, in, 1, -1), -EINVAL);

    /* The position. */
    CHECK_EQ(do_op(ctx, READ, fd, in, 70, 0), 70);
    CHECK_EQ(do_op(ctx, READ, fd, in, 70, 0), 70);
    CHECK_EQ(memcmp(in, out + 70, 70), 0);
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 140);
    CHECK_EQ(do_op(ctx, WRITE, fd, out, 10, 0), 10);
    CHECK_EQ(do_op(ctx, PREAD, fd, in, 10, 140), 10);
    CHECK_EQ(memcmp(in, out, 10), 0);

    CHECK_EQ(do_op(ctx, FSYNC, fd, NULL, 0, 0), 0);
    CHECK_EQ(do_op(ctx, FDATASYNC, fd, NULL, 0, 0), 0);
    CHECK_EQ(do_op(ctx, FALLOCATE, fd, NULL, 2 * size, 0), 0);
    CHECK_EQ(lseek(fd, 0, SEEK_END), 2 * size);
    CHECK_EQ(do_op(ctx, FALLOCATE, fd, NULL, 0, 0), -EINVAL);
    close(fd);
    CHECK_EQ(do_op(ctx, PREAD, fd, in, 1, 0), -EBADF);
    CHECK_EQ(do_op(ctx, FSYNC, fd, NULL, 0, 0), -EBADF);
    free(in);
    free(out);
    go_end(ctx);
}

ON_EACH_ENGINE(results_on_disk)
{
    results(engine, on_disk());
}

ON_EACH_ENGINE(results_in_memory)
{
    results(engine, in_memory());
}

typedef struct Vector {
    int fd;
    bool write;
    const struct iovec *iov;
    int iovcnt;
    off_t offset;
    ssize_t result;
    bool done;
} Vector;

static void coroutine_fn operate_vector(void *opaque)
{
    Vector *v = opaque;

    v->result = v->write ? co_pwritev(v->fd, v->iov, v->iovcnt, v->offset)
                         : co_preadv(v->fd, v->iov, v->iovcnt, v->offset);
    v->done = true;
}

static ssize_t do_vector(AioContext *ctx, Vector v)
{
    go(operate_vector, &v);
    go_until(ctx, &v.done);
    return v.result;
}

#define PIECES 100

static void vectors(const char *engine, int fd)
{
    AioContext *ctx = go_begin(engine);
    static char bytes[PIECES * 100], again[PIECES * 100];
    struct iovec iov[PIECES];
    size_t at = 0;

    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (char)(i * 13 >> 2);
    }
    /* Pieces of 0 to 99 bytes. */
    for (size_t i = 0; i < PIECES; i++) {
        iov[i].iov_base = bytes + at;
        iov[i].iov_len = i;
        at += i;
    }
    CHECK_EQ(do_vector(ctx, (Vector){.fd = fd,
                                     .write = true,
                                     .iov = iov,
                                     .iovcnt = PIECES,
                                     .offset = 5}),
             at);
    for (size_t i = 0; i < PIECES; i++) {
        iov[i].iov_base = again + ((char *)iov[i].iov_base - bytes);
    }
    CHECK_EQ(
        do_vector(
            ctx, (Vector){.fd = fd, .iov = iov, .iovcnt = PIECES, .offset = 5}),
        at);
    CHECK_EQ(memcmp(bytes, again, at), 0);
    /* The end comes in the midst of a piece. */
    CHECK_EQ(
        do_vector(
            ctx,
            (Vector){.fd = fd, .iov = iov, .iovcnt = PIECES, .offset = 55}),
        at - 50);
    CHECK_EQ(do_vector(ctx, (Vector){.fd = fd, .iov = iov, .iovcnt = 0}), 0);
    CHECK_EQ(do_vector(ctx, (Vector){.fd = fd, .iov = iov, .iovcnt = -1}),
             -EINVAL);
    CHECK_EQ(
        do_vector(ctx, (Vector){.fd = fd, .iov = iov, .iovcnt = IOV_MAX + 1}),
        -EINVAL);
    close(fd);
    go_end(ctx);
}

ON_EACH_ENGINE(vectors_on_disk)
{
    vectors(engine, on_disk());
}

ON_EACH_ENGINE(vectors_in_memory)
{
    vectors(engine, in_memory());
}

/* --- the way it takes -----------------------------------------------------*/

static unsigned own_calls, other_calls; /* atomic */
static pid_t own;

static void record(const OsRecord *r)
{
    if (r->begin && strncmp(r->call, "p", 1) == 0) {
        unsigned *calls =
            syscall(SYS_gettid) == own ? &own_calls : &other_calls;

        fetch_add_relaxed(calls, 1);
    }
}

static void watch_calls(void)
{
    own = (pid_t)syscall(SYS_gettid);
    os_set_recorder(record);
    store_relaxed(&own_calls, 0);
    store_relaxed(&other_calls, 0);
}

TEST(small_transfers_in_memory_are_made_here)
{
    AioContext *ctx = go_begin(NULL);
    size_t limit = 256 << 10;
    char *buf = calloc(1, limit + 1);
    int fd = in_memory();

    watch_calls();
    CHECK_EQ(do_op(ctx, PWRITE, fd, buf, limit, 0), limit);
    CHECK_EQ(do_op(ctx, PREAD, fd, buf, limit, 0), limit);
    CHECK_EQ(own_calls, 2);
    CHECK_EQ(load_relaxed(&other_calls), 0);
    CHECK_EQ(worker_thread_count(), 0);

    CHECK_EQ(do_op(ctx, PWRITE, fd, buf, limit + 1, 0), limit + 1);
    CHECK_EQ(do_op(ctx, PREAD, fd, buf, limit + 1, 0), limit + 1);
    CHECK_EQ(own_calls, 2);
    CHECK_EQ(load_relaxed(&other_calls), 2);
    close(fd);
    free(buf);
    go_end(ctx);
}

TEST(what_a_file_cannot_do_is_tried_once)
{
    AioContext *ctx = go_begin("epoll");
    char buf[512] = "";
    int fd = on_disk();

    os_fault_arm(1, EOPNOTSUPP, "preadv");
    CHECK_EQ(write(fd, buf, sizeof(buf)), sizeof(buf));
    watch_calls();
    for (int i = 0; i < 10; i++) {
        CHECK_EQ(do_op(ctx, PREAD, fd, buf, sizeof(buf), 0), sizeof(buf));
    }
    CHECK(os_fault_fired());
    CHECK_EQ(own_calls, 1);
    CHECK_EQ(load_relaxed(&other_calls), 10);

    /* Or rather, seldom: what is learned wrongly is not kept for ever. */
    for (int i = 0; i < IO_CHECK_INTERVAL; i++) {
        CHECK_EQ(do_op(ctx, PREAD, fd, buf, sizeof(buf), 0), sizeof(buf));
    }
    CHECK(own_calls > 1);
    close(fd);
    go_end(ctx);
}

/* It might be open for direct access, say, and then block this thread. */
TEST(what_is_not_known_of_a_file_is_left_to_others)
{
    AioContext *ctx = go_begin("epoll");
    char buf[512] = "";
    int fd = on_disk();

    CHECK_EQ(write(fd, buf, sizeof(buf)), sizeof(buf));
    watch_calls();
    os_fault_arm(1, EACCES, "fcntl");
    CHECK_EQ(do_op(ctx, PREAD, fd, buf, sizeof(buf), 0), sizeof(buf));
    CHECK(os_fault_fired());
    CHECK_EQ(do_op(ctx, PWRITE, fd, buf, sizeof(buf), 0), sizeof(buf));
    CHECK_EQ(own_calls, 0);
    CHECK_EQ(load_relaxed(&other_calls), 2);
    close(fd);
    go_end(ctx);
}

/* As a file system in user space may do. */
TEST(asking_what_a_file_is_may_be_interrupted)
{
    AioContext *ctx = go_begin(NULL);
    char buf[64] = "";
    int fd = on_disk();

    os_fault_arm(1, EINTR, "statx");
    CHECK_EQ(do_op(ctx, PWRITE, fd, buf, sizeof(buf), 0), sizeof(buf));
    CHECK(os_fault_fired());
    close(fd);
    go_end(ctx);
}

/* --- buffered writes of one file ------------------------------------------*/

#define WRITES 32
#define NEVER_NS (INT64_C(1000000000000))

static unsigned writing, writing_most, written; /* atomic */
static int written_to;
static char write_bytes[WRITES]; /* the first byte of each, in order */

/* How many are within pwritev(2) at once. */
static void record_writes(const OsRecord *r)
{
    if (strcmp(r->call, "pwritev") != 0 || r->fd != written_to) {
        return;
    }
    if (r->begin) {
        unsigned now = fetch_add_acq_rel(&writing, 1u) + 1;

        if (now > load_relaxed(&writing_most)) {
            store_relaxed(&writing_most, now);
        }
        sched_yield(); /* time for another to come in */
    } else {
        fetch_add_acq_rel(&writing, -1u);
        fetch_add_acq_rel(&written, 1u);
    }
}

static void write_many(AioContext *ctx, int fd)
{
    static File writes[WRITES];

    written_to = fd;
    os_set_recorder(record_writes);
    for (int i = 0; i < WRITES; i++) {
        write_bytes[i] = (char)i;
        writes[i] = (File){.fd = fd,
                           .op = PWRITE,
                           .buf = &write_bytes[i],
                           .count = 1,
                           .offset = i};
        go(operate, &writes[i]);
    }
    for (int i = 0; i < WRITES; i++) {
        go_until(ctx, &writes[i].done);
        CHECK_EQ(writes[i].result, 1);
    }
}

TEST(buffered_writes_of_a_file_are_made_by_one_worker)
{
    AioContext *ctx = go_begin("epoll");
    int fd = on_disk();
    char buf[WRITES];
    IoFd *entry;
    OsFileKind kind;

    CHECK_EQ(io_fd_check(fd, &entry, &kind), 0);
    io_fd_learn(entry, IO_NO_NOWAIT_WRITE); /* as on ext4 */
    worker_set_look_ns(NEVER_NS);
    write_many(ctx, fd);
    CHECK_EQ(load_acquire(&written), WRITES);
    CHECK_EQ(load_acquire(&writing_most), 1);
    CHECK_EQ(worker_thread_count(), 1);
    CHECK_EQ(pread(fd, buf, WRITES, 0), WRITES);
    CHECK_EQ(memcmp(buf, write_bytes, WRITES), 0);
    close(fd);
    go_end(ctx);
}

static bool writes_exclude(int fd)
{
    OsFileKind kind;
    IoFd *entry;
    bool exclude;

    CHECK_EQ(io_fd_check(fd, &entry, &kind), 0);
    exclude = load_relaxed(&entry->facts) & IO_WRITES_EXCLUDE;
    return exclude;
}

/* What waits for the device does so beside others. */
TEST(only_buffered_writes_of_files_wait_for_each_other)
{
    AioContext *ctx = go_begin("epoll");
    const int fds[] = {
        on_disk(),
        temporary("/var/tmp", O_DSYNC),
        temporary("/var/tmp", O_SYNC),
        temporary("/var/tmp", O_DIRECT),
        in_memory(),
        open("/proc/self/exe", O_RDONLY | O_CLOEXEC),
    };

    /* All open at once: no number and no inode is used again. */
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        CHECK_EQ(writes_exclude(fds[i]), i == 0);
    }
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        close(fds[i]);
    }
    go_end(ctx);
}

typedef struct Held {
    IoFd *entry;
    sem_t begun;
    sem_t go_on;
    bool done;
} Held;

static ssize_t hold(void *opaque)
{
    Held *held = opaque;

    gate_open(&held->begun);
    gate_pass(&held->go_on);
    return 0;
}

static void coroutine_fn hold_writes(void *opaque)
{
    Held *held = opaque;

    IoUse use = io_use(held->entry);

    CHECK_EQ(io_write_in_worker(&use, hold, held, "test"), 0);
    held->done = true;
}

/* A write of the file takes its time; others wait behind it. */
TEST(syncs_and_other_files_do_not_wait_for_writes)
{
    AioContext *ctx = go_begin("epoll");
    int fd = on_disk(), other = on_disk();
    OsFileKind kind;
    Held held = {.done = false};
    File behind = {.fd = fd, .op = PWRITE, .buf = write_bytes, .count = 1};

    CHECK_EQ(pwrite(fd, "x", 1, 0), 1);
    CHECK_EQ(io_fd_check(fd, &held.entry, &kind), 0);
    io_fd_learn(held.entry, IO_NO_NOWAIT_READ | IO_NO_NOWAIT_WRITE);
    worker_set_look_ns(NEVER_NS);
    gate_init(&held.begun);
    gate_init(&held.go_on);
    go(hold_writes, &held);
    gate_pass(&held.begun);
    go(operate, &behind);

    CHECK_EQ(do_op(ctx, PREAD, fd, write_bytes, 1, 0), 1);
    CHECK_EQ(do_op(ctx, FALLOCATE, fd, NULL, 4096, 0), 0);
    CHECK_EQ(do_op(ctx, FSYNC, fd, NULL, 0, 0), 0);
    CHECK_EQ(do_op(ctx, FDATASYNC, fd, NULL, 0, 0), 0);
    CHECK_EQ(do_op(ctx, PWRITE, other, write_bytes, 1, 0), 1);
    CHECK(!held.done);
    CHECK(!behind.done);
    gate_open(&held.go_on);
    go_until(ctx, &held.done);
    go_until(ctx, &behind.done);
    CHECK_EQ(behind.result, 1);
    close(fd);
    close(other);
    go_end(ctx);
}

/* The others do not know that it would not let them in, either. */
TEST(a_write_that_hangs_holds_up_no_others)
{
    AioContext *ctx = go_begin("epoll");
    int fd = on_disk();
    OsFileKind kind;
    Held held = {.done = false};
    File behind[2];

    CHECK_EQ(io_fd_check(fd, &held.entry, &kind), 0);
    io_fd_learn(held.entry, IO_NO_NOWAIT_WRITE);
    gate_init(&held.begun);
    gate_init(&held.go_on);
    go(hold_writes, &held);
    gate_pass(&held.begun);
    for (int i = 0; i < 2; i++) {
        behind[i] = (File){.fd = fd,
                           .op = PWRITE,
                           .buf = write_bytes,
                           .count = 1,
                           .offset = i};
        go(operate, &behind[i]);
    }
    for (int i = 0; i < 2; i++) {
        go_until(ctx, &behind[i].done);
        CHECK_EQ(behind[i].result, 1);
    }
    CHECK(!held.done);
    gate_open(&held.go_on);
    go_until(ctx, &held.done);
    close(fd);
    go_end(ctx);
}

/* RWF_NOWAIT on such a file would still wait for the device. */
TEST(synchronous_files_are_left_to_workers)
{
    AioContext *ctx = go_begin("epoll");
    char buf[512] = "";
    int fd = temporary("/var/tmp", O_DSYNC);

    watch_calls();
    CHECK_EQ(do_op(ctx, PWRITE, fd, buf, sizeof(buf), 0), sizeof(buf));
    CHECK_EQ(own_calls, 0);
    CHECK_EQ(load_relaxed(&other_calls), 1);
    close(fd);
    go_end(ctx);
}

static bool saw_short; /* a call of this thread returned less than all */

static void record_short(const OsRecord *r)
{
    if (!r->begin && syscall(SYS_gettid) == own && r->result > 0 &&
        r->result < HALF_COLD) {
        saw_short = true;
    }
}

/*
 * Half of the file is in the page cache, the other half is not: RWF_NOWAIT
 * gives the first half, and the caller is to get all.
 */
ON_EACH_ENGINE(a_cold_half_is_fetched)
{
    AioContext *ctx = go_begin(engine);
    char *bytes = malloc(HALF_COLD), *again = malloc(HALF_COLD);
    struct iovec iov[40];
    int fd = on_disk();

    own = (pid_t)syscall(SYS_gettid);
    for (size_t i = 0; i < HALF_COLD; i++) {
        bytes[i] = (char)(i * 11 >> 5);
    }
    /* In small pieces, which the cache then drops one by one. */
    for (size_t at = 0; at < HALF_COLD; at += 4096) {
        CHECK_EQ(write(fd, bytes + at, 4096), 4096);
    }
    CHECK_EQ(fdatasync(fd), 0);
    for (size_t i = 0; i < 40; i++) {
        iov[i].iov_base = again + i * (HALF_COLD / 40);
        iov[i].iov_len = HALF_COLD / 40;
    }
    iov[39].iov_len += HALF_COLD % 40;
    os_set_recorder(record_short);
    for (int round = 0; round < 3; round++) {
        CHECK_EQ(posix_fadvise(fd, HALF_COLD / 2, 0, POSIX_FADV_DONTNEED), 0);
        memset(again, 0, HALF_COLD);
        CHECK_EQ(do_vector(ctx, (Vector){.fd = fd, .iov = iov, .iovcnt = 40}),
                 HALF_COLD);
        CHECK_EQ(memcmp(bytes, again, HALF_COLD), 0);
    }
    os_set_recorder(NULL);
    close(fd);
    free(bytes);
    free(again);
    go_end(ctx);
    if (!saw_short) {
        SKIP("the page cache of /var/tmp cannot be emptied by half");
    }
}

/* --- numbers that change their meaning ------------------------------------*/

/* Put something else under the number. */
static void replace(int fd, int by)
{
    CHECK_EQ(dup3(by, fd, O_CLOEXEC), fd);
    close(by);
}

static void coroutine_fn read_here(void *opaque)
{
    File *f = opaque;

    f->result = co_read(f->fd, f->buf, f->count);
    f->done = true;
}

/* Whatever was learned of it, a number works as what it is. */
ON_EACH_ENGINE(a_number_that_is_reused)
{
    AioContext *ctx = go_begin(engine);
    char buf[16] = "";
    int fd = in_memory();

    for (int round = 0; round < 3; round++) {
        File f = {.fd = fd, .buf = buf, .count = sizeof(buf)};
        int pair[2];

        /* A file: learn that. */
        CHECK_EQ(do_op(ctx, WRITE, fd, buf, 4, 0), 4);
        CHECK_EQ(do_op(ctx, PREAD, fd, buf, 4, 0), 4);

        /* A pipe: a read must not block the thread. */
        CHECK_EQ(pipe2(pair, O_CLOEXEC), 0);
        replace(fd, pair[0]);
        CHECK_EQ(do_op(ctx, PREAD, fd, buf, 4, 0), -ESPIPE);
        go(read_here, &f);
        CHECK(!f.done);
        CHECK_EQ(write(pair[1], "pipe", 4), 4);
        go_until(ctx, &f.done);
        CHECK_EQ(f.result, 4);
        close(pair[1]);

        /* A socket. */
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        replace(fd, pair[0]);
        f.done = false;
        go(read_here, &f);
        CHECK(!f.done);
        CHECK_EQ(write(pair[1], "sock", 4), 4);
        go_until(ctx, &f.done);
        CHECK_EQ(f.result, 4);
        close(pair[1]);
        CHECK_EQ(do_op(ctx, WRITE, fd, buf, 4, 0), -EPIPE);

        /* A file on disk. */
        replace(fd, temporary("/var/tmp", 0));
        CHECK_EQ(do_op(ctx, WRITE, fd, buf, 8, 0), 8);
        CHECK_EQ(do_op(ctx, PREAD, fd, buf, 16, 0), 8);
        CHECK_EQ(do_op(ctx, READ, fd, buf, 16, 0), 0);
        replace(fd, in_memory());
    }
    close(fd);
    go_end(ctx);
}

/* Facts are checked again after a while, also if only offsets are used. */
TEST(facts_do_not_stay_wrong_for_ever)
{
    AioContext *ctx = go_begin(NULL);
    char buf[16] = "";
    int fd = on_disk();

    CHECK_EQ(do_op(ctx, PWRITE, fd, buf, 16, 0), 16);
    CHECK_EQ(io_fd_kind(io_fd_find(fd)), IO_KIND(OS_FILE_REGULAR));
    replace(fd, in_memory());
    for (int i = 0; i < 2 * IO_CHECK_INTERVAL; i++) {
        CHECK_EQ(do_op(ctx, PWRITE, fd, buf, 16, 0), 16);
    }
    CHECK_EQ(io_fd_kind(io_fd_find(fd)), IO_KIND(OS_FILE_MEMORY));
    close(fd);
    go_end(ctx);
}

/* Whether a look at what fd is asks its file system, and what comes of it. */
static bool asks_file_system(int fd, OsFileKind *kind)
{
    IoFd *entry;

    os_fault_arm(1, EIO, "fstatfs");
    CHECK_EQ(io_fd_check(fd, &entry, kind), 0);
    return os_fault_fired();
}

/*
 * That is a request to the server, of some: it was made once in a pass, and
 * with each fsync.
 */
TEST(a_file_system_is_asked_once)
{
    AioContext *ctx = go_begin(NULL);
    int unknown = in_memory(), fd = in_memory();
    char buf[16] = "";
    OsFileKind kind;
    IoFd *entry;

    /* What is not known may block. */
    CHECK(asks_file_system(unknown, &kind));
    CHECK_EQ(kind, OS_FILE_REGULAR);
    CHECK(!asks_file_system(unknown, &kind));
    CHECK_EQ(kind, OS_FILE_REGULAR);

    CHECK_EQ(io_fd_check(fd, &entry, &kind), 0);
    CHECK_EQ(kind, OS_FILE_MEMORY);
    CHECK(!asks_file_system(fd, &kind));
    CHECK_EQ(kind, OS_FILE_MEMORY);

    /* Nor when the facts are checked again. */
    os_fault_arm(1, EIO, "fstatfs");
    for (int i = 0; i < 2 * IO_CHECK_INTERVAL; i++) {
        CHECK_EQ(do_op(ctx, PWRITE, fd, buf, 16, 0), 16);
    }
    CHECK_EQ(do_op(ctx, FSYNC, fd, NULL, 0, 0), 0);
    CHECK(!os_fault_fired());
    CHECK_EQ(io_fd_kind(entry), IO_KIND(OS_FILE_MEMORY));

    /* Another file is asked about, also if it gets the number of one. */
    replace(fd, in_memory());
    CHECK(asks_file_system(fd, &kind));
    close(unknown);
    close(fd);
    go_end(ctx);
}

/* What is on a device is not in memory: that need not be asked. */
TEST(a_file_system_on_a_device_is_not_asked)
{
    int fd = temporary("/var/tmp", 0);
    struct stat st;
    OsFileKind kind;

    CHECK_EQ(fstat(fd, &st), 0);
    if (major(st.st_dev) == 0) {
        SKIP("/var/tmp is on no device");
    }
    CHECK(!asks_file_system(fd, &kind));
    CHECK_EQ(kind, OS_FILE_REGULAR);
    close(fd);
}

/* --- many, failures, no home ----------------------------------------------*/

#define MANY 100

ON_EACH_ENGINE(a_hundred_at_once)
{
    AioContext *ctx = go_begin(engine);
    static char bufs[MANY][4096];
    File files[MANY];
    int fd = on_disk();

    for (int i = 0; i < MANY; i++) {
        memset(bufs[i], i, sizeof(bufs[i]));
        files[i] = (File){.op = PWRITE,
                          .fd = fd,
                          .buf = bufs[i],
                          .count = sizeof(bufs[i]),
                          .offset = i * (off_t)sizeof(bufs[i])};
        go(operate, &files[i]);
    }
    for (int i = 0; i < MANY; i++) {
        go_until(ctx, &files[i].done);
        CHECK_EQ(files[i].result, sizeof(bufs[i]));
    }
    for (int i = 0; i < MANY; i++) {
        char back[4096];

        CHECK_EQ(
            do_op(ctx, PREAD, fd, back, sizeof(back), i * (off_t)sizeof(back)),
            sizeof(back));
        CHECK_EQ(back[0], i);
        CHECK_EQ(back[4095], i);
    }
    close(fd);
    go_end(ctx);
}

TEST(failures_of_the_kernel_are_passed_on)
{
    AioContext *ctx = go_begin(NULL);
    static const struct {
        Op op;
        const char *call;
    } cases[] = {
        {PREAD, "preadv"},        {PWRITE, "pwritev"},      {FSYNC, "fsync"},
        {FDATASYNC, "fdatasync"}, {FALLOCATE, "fallocate"},
    };
    char buf[64] = "";

    for (int disk = 0; disk < 2; disk++) {
        int fd = disk ? on_disk() : in_memory();

        CHECK_EQ(write(fd, buf, sizeof(buf)), sizeof(buf));
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
            os_fault_arm(1, EIO, cases[i].call);
            CHECK_EQ(do_op(ctx, cases[i].op, fd, buf, sizeof(buf), 0), -EIO);
            CHECK(os_fault_fired());
            /* Interrupted, it is done again. */
            os_fault_arm(1, EINTR, cases[i].call);
            CHECK(do_op(ctx, cases[i].op, fd, buf, sizeof(buf), 0) >= 0);
            CHECK(os_fault_fired());
        }
        close(fd);
    }
    go_end(ctx);
}

/* It was taken for the want of a worker, and called ENOMEM. */
TEST(what_a_file_says_in_a_worker_is_passed_on)
{
    AioContext *ctx = go_begin("epoll");
    char buf[64] = "";
    int fd = on_disk();
    OsFileKind kind;
    IoFd *entry;

    CHECK_EQ(write(fd, buf, sizeof(buf)), sizeof(buf));
    CHECK_EQ(io_fd_check(fd, &entry, &kind), 0);
    io_fd_learn(entry, IO_NO_NOWAIT_READ | IO_NO_NOWAIT_WRITE);
    os_fault_arm(1, EAGAIN, "preadv");
    CHECK_EQ(do_op(ctx, PREAD, fd, buf, sizeof(buf), 0), -EAGAIN);
    os_fault_arm(1, EAGAIN, "pwritev");
    CHECK_EQ(do_op(ctx, PWRITE, fd, buf, sizeof(buf), 0), -EAGAIN);
    os_fault_arm(1, EAGAIN, "fsync");
    CHECK_EQ(do_op(ctx, FSYNC, fd, NULL, 0, 0), -EAGAIN);
    close(fd);
    go_end(ctx);
}

TEST(no_worker_is_no_memory)
{
    AioContext *ctx = go_begin("epoll");
    int fd = on_disk();

    os_fault_arm(1, EAGAIN, "thread");
    CHECK_EQ(do_op(ctx, FSYNC, fd, NULL, 0, 0), -ENOMEM);
    CHECK(os_fault_fired());
    CHECK_EQ(do_op(ctx, FSYNC, fd, NULL, 0, 0), 0);
    close(fd);
    go_end(ctx);
}

TEST(without_a_home_the_thread_does_it)
{
    char buf[16] = "homeless";
    File f = {.op = PWRITE, .buf = buf, .count = 8};

    f.fd = on_disk();
    go(operate, &f);
    CHECK_EQ(f.result, 8);
    f.op = PREAD;
    go(operate, &f);
    CHECK_EQ(f.result, 8);
    f.op = FSYNC;
    go(operate, &f);
    CHECK_EQ(f.result, 0);
    CHECK_EQ(worker_thread_count(), 0);
    close(f.fd);
}

TEST_MAIN()
