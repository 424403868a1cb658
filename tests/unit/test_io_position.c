/* SPDX-License-Identifier: MIT */

/*
 * Reads and writes at the position of a file on a disk: each is one piece,
 * whoever else reads or writes there at the same time, and reads of what is in
 * the page cache need no worker.
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
static Call long_read, short_read;

/* Half of the file is not in the page cache: the long one is on its way to
 * fetch that when the short one begins. */
static void begin_two(const char *engine)
{
    begin(engine, O_RDONLY);
    own = (pid_t)syscall(SYS_gettid);
    gate_init(&go_on);
    CHECK_EQ(posix_fadvise(fd, SIZE / 2, 0, POSIX_FADV_DONTNEED), 0);
    os_set_recorder(hold_the_first);
    long_read = (Call){.buf = long_buf, .count = SIZE - PAGE};
    short_read = (Call){.buf = short_buf, .count = PAGE};
    go(make, &long_read);
    while (!long_read.done && !load_acquire(&long_is_held)) {
        sched_yield();
    }
    in_parts = saw_short && !long_read.done;
    go(make, &short_read);
}

static void end_two(void)
{
    os_set_recorder(NULL);
    go_end(ctx);
    if (!in_parts) {
        SKIP("the page cache of /var/tmp cannot be emptied by half");
    }
}

/*
 * RWF_NOWAIT gave the first half of a long read; and a short one, made while a
 * worker was on its way to fetch the rest, took what came next.  So the long
 * one returned, as one piece, what was none.
 */
ON_EACH_ENGINE(a_read_takes_nothing_from_the_midst_of_another)
{
    List *waiters;

    begin_two(engine);
    waiters = &io_fd_find(fd)->sides[IO_READ].waiters;
    while (!long_read.done && list_empty(waiters) &&
           load_acquire(&worker_ends) == 0) {
        sched_yield();
    }
    gate_open(&go_on);
    go_until(ctx, &long_read.done);
    go_until(ctx, &short_read.done);
    CHECK_EQ(long_read.result, SIZE - PAGE);
    CHECK_EQ(short_read.result, PAGE);
    CHECK_EQ(memcmp(long_buf, bytes, SIZE - PAGE), 0);
    CHECK_EQ(memcmp(short_buf, bytes + SIZE - PAGE, PAGE), 0);
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

    begin_two(engine);
    go(close_it, &closing);
    if (in_parts) {
        CHECK(!closing.done);
        go_until(ctx, &short_read.done);
        CHECK_EQ(short_read.result, -ECANCELED);
    }
    gate_open(&go_on);
    go_until(ctx, &closing.done);
    CHECK_EQ(closing.result, 0);
    go_until(ctx, &long_read.done);
    CHECK_EQ(long_read.result, SIZE - PAGE);
    CHECK_EQ(memcmp(long_buf, bytes, SIZE - PAGE), 0);
    end_two();
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
ON_EACH_ENGINE(what_the_page_cache_has_needs_no_worker)
{
    static char buf[PAGE];
    IoFd *entry;
    unsigned n = 0;

    begin(engine, O_RDONLY);
    watch_calls();
    for (size_t at = 0; at < SIZE; at += PAGE, n++) {
        Call read = {.buf = buf, .count = PAGE};

        go(make, &read);
        go_until(ctx, &read.done);
        CHECK_EQ(read.result, PAGE);
        CHECK_EQ(memcmp(buf, bytes + at, PAGE), 0);
    }
    entry = io_fd_find(fd);
    if (load_relaxed(&entry->facts) & IO_NO_NOWAIT_READ) {
        SKIP("/var/tmp does not say what is in its page cache");
    }
    CHECK_EQ(own_calls, n);
    CHECK(load_relaxed(&worker_calls) < n / 10);
    end();
}

/*
 * Parts of it might be another's, in another process too: a record of a log is
 * not torn.
 */
ON_EACH_ENGINE(a_write_is_one_call)
{
    Call write = {.writes = true, .buf = bytes, .count = SIZE};

    begin(engine, O_WRONLY | O_APPEND);
    watch_calls();
    go(make, &write);
    go_until(ctx, &write.done);
    CHECK_EQ(write.result, SIZE);
    CHECK_EQ(own_calls, 0);
    CHECK_EQ(load_relaxed(&worker_calls), 1);
    end();
}

/* A write at the position might come between the parts. */
ON_EACH_ENGINE(a_read_of_what_can_be_written_is_one_call)
{
    static char buf[SIZE];
    Call read = {.buf = buf, .count = SIZE};

    begin(engine, O_RDWR);
    watch_calls();
    go(make, &read);
    go_until(ctx, &read.done);
    CHECK_EQ(read.result, SIZE);
    CHECK_EQ(memcmp(buf, bytes, SIZE), 0);
    CHECK_EQ(own_calls, 0);
    CHECK_EQ(load_relaxed(&worker_calls), 1);
    end();
}

TEST_MAIN()
