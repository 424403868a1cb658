/* SPDX-License-Identifier: MIT */

/*
 * Reads and writes at the position of a file on a disk: each is one piece,
 * whoever else reads or writes there or closes it at the same time, and reads
 * of what is in the page cache need no worker.
 */

#include "go.h"
#include "io/io_int.h"
#include "loopthread.h"
#include "os/fault.h"
#include "os/file.h"

#include <coaio/io.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096
#define SIZE (2 << 20)

static char bytes[SIZE]; /* the file's */
static int fd;
static AioContext *ctx;

/* A file of SIZE bytes, open with flags, at its beginning. */
static void open_file(int flags)
{
    char path[] = "/var/tmp/coaio-test-XXXXXX";
    int made = mkostemp(path, O_CLOEXEC);

    CHECK(made >= 0);
    for (size_t i = 0; i < SIZE; i++) {
        bytes[i] = (char)(i * 11 >> 5);
    }
    /* In small pieces, which the cache then drops one by one. */
    for (size_t at = 0; at < SIZE; at += PAGE) {
        CHECK_EQ(write(made, bytes + at, PAGE), PAGE);
    }
    CHECK_EQ(fdatasync(made), 0);
    fd = open(path, flags | O_CLOEXEC);
    CHECK(fd >= 0);
    unlink(path);
    close(made);
    if (os_file_in_memory(fd)) {
        SKIP("/var/tmp is in memory");
    }
}

static void begin(const char *engine, int flags)
{
    ctx = go_begin(engine);
    open_file(flags);
}

static void end(void)
{
    os_set_recorder(NULL);
    close(fd);
    go_end(ctx);
}

typedef struct Call {
    bool writes;
    char *buf;
    size_t count;
    ssize_t result;
    bool done;
} Call;

static void coroutine_fn make(void *opaque)
{
    Call *call = opaque;

    call->result = call->writes ? co_write(fd, call->buf, call->count)
                                : co_read(fd, call->buf, call->count);
    call->done = true;
}

/* --- two at once ----------------------------------------------------------*/

static pid_t own;
static bool saw_short;       /* a call of this thread gave less than asked */
static bool in_parts;        /* the long one is */
static bool long_is_held;    /* atomic; a worker has been told of its rest */
static unsigned worker_ends; /* atomic; calls that workers have made */
static sem_t go_on;          /* the one who was told first */

static void hold_the_first(const OsRecord *r)
{
    if (r->fd != fd) {
        return;
    }
    if (syscall(SYS_gettid) == own) {
        saw_short |= !r->begin && r->result > 0 && r->result < SIZE - PAGE;
    } else if (!r->begin) {
        fetch_add_acq_rel(&worker_ends, 1u);
    } else if (!load_acquire(&long_is_held)) {
        store_release(&long_is_held, true);
        gate_pass(&go_on);
    }
}

static char long_buf[SIZE], short_buf[PAGE];
static Call long_read, short_call;

/* Half of the file is not in the page cache: the long one is on its way to
 * fetch that when the short one, of which writes is given, begins. */
static void begin_two(const char *engine, int flags, bool writes)
{
    begin(engine, flags);
    own = (pid_t)syscall(SYS_gettid);
    gate_init(&go_on);
    CHECK_EQ(posix_fadvise(fd, SIZE / 2, 0, POSIX_FADV_DONTNEED), 0);
    os_set_recorder(hold_the_first);
    long_read = (Call){.buf = long_buf, .count = SIZE - PAGE};
    short_call = (Call){.writes = writes, .buf = short_buf, .count = PAGE};
    go(make, &long_read);
    while (!long_read.done && !load_acquire(&long_is_held)) {
        sched_yield();
    }
    in_parts = saw_short && !long_read.done;
    go(make, &short_call);
}

static void end_two(void)
{
    os_set_recorder(NULL);
    go_end(ctx);
    if (!in_parts) {
        SKIP("the page cache of /var/tmp cannot be emptied by half");
    }
}

/* Let the short one take its place, or overtake, then the long one go on. */
static void await_short(void)
{
    List *waiters = &io_fd_find(fd)->sides[IO_READ].waiters;

    while (!long_read.done && list_empty(waiters) &&
           load_acquire(&worker_ends) == 0) {
        sched_yield();
    }
    gate_open(&go_on);
    go_until(ctx, &long_read.done);
    go_until(ctx, &short_call.done);
    CHECK_EQ(long_read.result, SIZE - PAGE);
    CHECK_EQ(short_call.result, PAGE);
    CHECK_EQ(memcmp(long_buf, bytes, SIZE - PAGE), 0);
}

/*
 * RWF_NOWAIT gave the first half of a long read; and a short one, made while a
 * worker was on its way to fetch the rest, took what came next.  So the long
 * one returned, as one piece, what was none.
 */
ON_EACH_ENGINE(a_read_takes_nothing_from_the_midst_of_another)
{
    begin_two(engine, O_RDONLY, false);
    await_short();
    CHECK_EQ(memcmp(short_buf, bytes + SIZE - PAGE, PAGE), 0);
    close(fd);
    end_two();
}

/* Nor does a write come in there, with which the long one went to a worker as a
 * whole, cached or not. */
ON_EACH_ENGINE(a_write_does_not_come_into_the_midst_of_a_read)
{
    char buf[PAGE];

    memset(short_buf, 'w', PAGE);
    begin_two(engine, O_RDWR, true);
    await_short();
    CHECK_EQ(pread(fd, buf, PAGE, SIZE - PAGE), PAGE);
    CHECK_EQ(memcmp(buf, short_buf, PAGE), 0);
    close(fd);
    end_two();
}

static void coroutine_fn close_it(void *opaque)
{
    Call *call = opaque;

    call->result = co_close(fd);
    call->done = true;
}

/* The short one waits for the long one, and that for its worker. */
ON_EACH_ENGINE(closing_ends_the_wait_for_another_read)
{
    Call closing = {.done = false};

    begin_two(engine, O_RDONLY, false);
    go(close_it, &closing);
    if (in_parts) {
        CHECK(!closing.done);
        go_until(ctx, &short_call.done);
        CHECK_EQ(short_call.result, -ECANCELED);
    }
    gate_open(&go_on);
    go_until(ctx, &closing.done);
    CHECK_EQ(closing.result, 0);
    go_until(ctx, &long_read.done);
    CHECK_EQ(long_read.result, SIZE - PAGE);
    CHECK_EQ(memcmp(long_buf, bytes, SIZE - PAGE), 0);
    end_two();
}

static void check_writes_in_turn(const char *engine, int flags)
{
    static char first[PAGE], second[PAGE], buf[2 * PAGE];
    Call writes[2] = {{.writes = true, .buf = first, .count = PAGE},
                      {.writes = true, .buf = second, .count = PAGE}};
    char path[64];
    int reader;

    memset(first, '1', PAGE);
    memset(second, '2', PAGE);
    begin(engine, flags);
    own = (pid_t)syscall(SYS_gettid);
    gate_init(&go_on);
    os_set_recorder(hold_the_first);
    go(make, &writes[0]);
    while (!load_acquire(&long_is_held)) {
        sched_yield();
    }
    go(make, &writes[1]);
    CHECK(!list_empty(&io_fd_find(fd)->sides[IO_READ].waiters));
    gate_open(&go_on);
    for (int i = 0; i < 2; i++) {
        go_until(ctx, &writes[i].done);
        CHECK_EQ(writes[i].result, PAGE);
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    reader = open(path, O_RDONLY | O_CLOEXEC);
    CHECK_EQ(pread(reader, buf, sizeof(buf), 0), sizeof(buf));
    close(reader);
    CHECK_EQ(memcmp(buf, first, PAGE), 0);
    CHECK_EQ(memcmp(buf + PAGE, second, PAGE), 0);
    end();
}

/*
 * Two writes are not on their way at once where no lock of the kernel's keeps
 * them apart, and both would write the same place: on a block device.  With
 * O_DSYNC a file is treated as that is, and needs no root.
 */
ON_EACH_ENGINE(writes_without_a_lane_wait_for_their_turn)
{
    check_writes_in_turn(engine, O_WRONLY | O_DSYNC);
}

ON_EACH_ENGINE(writes_of_what_can_be_read_wait_for_their_turn)
{
    check_writes_in_turn(engine, O_RDWR);
}

/* --- closing --------------------------------------------------------------*/

static sem_t inside;

static void hold_a_read(const OsRecord *r)
{
    if (r->fd == fd && r->begin && syscall(SYS_gettid) != own) {
        gate_open(&inside);
        gate_pass(&go_on);
    }
}

static void start(void *opaque)
{
    go(make, opaque);
}

/*
 * It is a system call that does not wait, in the loop of another thread; but
 * that may stand still, and then reads from what has got the number.
 */
ON_EACH_ENGINE(closing_waits_for_a_read_of_the_page_cache)
{
    static char buf[PAGE];
    Call read = {.buf = buf, .count = PAGE}, closing = {.done = false};
    LoopThread loop;

    CHECK_EQ(setenv("COAIO_ENGINE", engine, 1), 0);
    begin(engine, O_RDONLY);
    own = (pid_t)syscall(SYS_gettid);
    gate_init(&inside);
    gate_init(&go_on);
    loop_thread_start(&loop, "loop");
    os_set_recorder(hold_a_read);
    aio_bh_schedule_oneshot(loop.ctx, start, &read);
    gate_pass(&inside);
    os_set_recorder(NULL);
    go(close_it, &closing);
    CHECK(io_fd_find(fd)->closer); /* waits for whoever uses the file */
    gate_open(&go_on);
    go_until(ctx, &closing.done);
    CHECK_EQ(closing.result, 0);
    loop_thread_stop(&loop);
    CHECK(read.done);
    go_end(ctx);
}

/* --- the way --------------------------------------------------------------*/

static unsigned own_calls, worker_calls; /* atomic */

static void count_calls(const OsRecord *r)
{
    if (r->begin && r->fd == fd) {
        fetch_add_relaxed(
            syscall(SYS_gettid) == own ? &own_calls : &worker_calls, 1u);
    }
}

static void watch_calls(void)
{
    own = (pid_t)syscall(SYS_gettid);
    os_set_recorder(count_calls);
}

/* Nor twice as many calls as there are reads.  The kernel may have a page
 * locked for a moment, and then says that it would block. */
static void check_cached_reads(const char *engine, int flags)
{
    static char buf[PAGE];
    unsigned n = 0;

    begin(engine, flags);
    watch_calls();
    for (size_t at = 0; at < SIZE; at += PAGE, n++) {
        Call read = {.buf = buf, .count = PAGE};

        go(make, &read);
        go_until(ctx, &read.done);
        CHECK_EQ(read.result, PAGE);
        CHECK_EQ(memcmp(buf, bytes + at, PAGE), 0);
    }
    if (load_relaxed(&io_fd_find(fd)->facts) & IO_NO_NOWAIT_READ) {
        SKIP("/var/tmp does not say what is in its page cache");
    }
    CHECK_EQ(own_calls, n);
    CHECK(load_relaxed(&worker_calls) < n / 10);
    end();
}

ON_EACH_ENGINE(what_the_page_cache_has_needs_no_worker)
{
    check_cached_reads(engine, O_RDONLY);
}

/* Not even where a write at the position might come between its parts. */
ON_EACH_ENGINE(what_the_page_cache_has_of_a_writable_file_needs_no_worker)
{
    check_cached_reads(engine, O_RDWR);
}

/*
 * Parts of it might be another's, in another process too: a record of a log is
 * not torn.
 */
static void check_write(const char *engine, int flags)
{
    Call write = {.writes = true, .buf = bytes, .count = SIZE};

    begin(engine, flags);
    watch_calls();
    go(make, &write);
    go_until(ctx, &write.done);
    CHECK_EQ(write.result, SIZE);
    CHECK_EQ(own_calls, 0);
    CHECK_EQ(load_relaxed(&worker_calls), 1);
    end();
}

ON_EACH_ENGINE(a_write_is_one_call)
{
    check_write(engine, O_WRONLY | O_APPEND);
}

ON_EACH_ENGINE(a_write_of_what_can_be_read_is_one_call)
{
    check_write(engine, O_RDWR | O_APPEND);
}

TEST_MAIN()
