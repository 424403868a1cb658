/* SPDX-License-Identifier: MIT */
/*
 * Files on the io_uring engine: calls that could block are operations of the
 * ring and need no worker, however many they are; cancellation, closing,
 * errors, and the ways that are left where the ring cannot.
 */
#include "go.h"
#include "loop/fd_int.h"
#include "loop/wait.h"
#include "loop/worker.h"
#include "loopthread.h"
#include "os/clock.h"
#include "os/fault.h"
#include "os/valgrind.h"

#include <coaio/bh.h>
#include <coaio/fd.h>
#include <coaio/io.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    SIZE = 64 << 10
};

static AioContext *ctx;

static void begin(void)
{
    as_usual_on_uring();
    needs_uring();
    ctx = go_begin("uring");
}

static void end(void)
{
    go_end(ctx);
}

/* A file on disk, of SIZE bytes. */
static int make_file(int flags)
{
    char path[] = "/var/tmp/coaio-test-XXXXXX";
    int fd = mkostemp(path, flags | O_CLOEXEC);

    CHECK(fd >= 0);
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(ftruncate(fd, SIZE), 0);
    return fd;
}

typedef struct Call {
    ssize_t (*make)(int fd);
    int fd;
    ssize_t result;
    bool done;
    Coroutine *co;
} Call;

static unsigned calls_done;

static void coroutine_fn run(void *opaque)
{
    Call *call = opaque;

    call->result = call->make(call->fd);
    call->done = true;
    calls_done++;
}

static void start(Call *call, ssize_t (*make)(int fd), int fd)
{
    *call = (Call){.make = make, .fd = fd};
    call->co = coroutine_create(run, call);
    coroutine_enter(call->co);
}

static ssize_t finish(Call *call)
{
    go_until(ctx, &call->done);
    return call->result;
}

static ssize_t make(ssize_t (*make_it)(int fd), int fd)
{
    Call call;

    start(&call, make_it, fd);
    return finish(&call);
}

static ssize_t coroutine_fn sync_it(int fd)
{
    return co_fdatasync(fd);
}

static ssize_t coroutine_fn sync_all(int fd)
{
    return co_fsync(fd);
}

static ssize_t coroutine_fn enlarge(int fd)
{
    return co_fallocate(fd, 0, SIZE, SIZE);
}

static char page[4096] __attribute__((aligned(4096)));

static ssize_t coroutine_fn write_page(int fd)
{
    return co_pwrite(fd, page, sizeof(page), 4096);
}

static ssize_t coroutine_fn read_page(int fd)
{
    return co_pread(fd, page, sizeof(page), 4096);
}

/* Across the end. */
static ssize_t coroutine_fn read_last(int fd)
{
    return co_pread(fd, page, sizeof(page), SIZE - 100);
}

static ssize_t coroutine_fn close_it(int fd)
{
    return co_close(fd);
}

/* --- no workers -----------------------------------------------------------*/

TEST(what_could_block_needs_no_worker)
{
    int fd;

    begin();
    fd = make_file(O_DSYNC);
    memset(page, 'a', sizeof(page));
    CHECK_EQ(make(write_page, fd), 4096);
    CHECK_EQ(make(sync_it, fd), 0);
    CHECK_EQ(make(sync_all, fd), 0);
    CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    memset(page, 0, sizeof(page));
    CHECK_EQ(make(read_page, fd), 4096);
    for (size_t i = 0; i < sizeof(page); i++) {
        CHECK_EQ(page[i], 'a');
    }
    CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    CHECK_EQ(make(read_last, fd), 100);
    CHECK_EQ(make(enlarge, fd), 0);
    CHECK_EQ(lseek(fd, 0, SEEK_END), 2 * SIZE);
    CHECK_EQ(make(enlarge, -1), -EBADF);
    CHECK_EQ(worker_thread_count(), 0);
    close(fd);
    end();
}

TEST(direct_files_need_no_worker)
{
    int fd;

    begin();
    fd = make_file(0);
    if (fcntl(fd, F_SETFL, O_DIRECT)) {
        SKIP("/var/tmp has no O_DIRECT");
    }
    memset(page, 'b', sizeof(page));
    CHECK_EQ(make(write_page, fd), 4096);
    memset(page, 0, sizeof(page));
    CHECK_EQ(make(read_page, fd), 4096);
    CHECK_EQ(page[4095], 'b');
    CHECK_EQ(worker_thread_count(), 0);
    close(fd);
    end();
}

/* How many system calls a sync costs before it is submitted. */
static uint64_t cost_of_checks(int fd)
{
    uint64_t before = os_counter(OS_COUNT_SYSCALLS);
    uint64_t cost;
    Call call;

    start(&call, sync_it, fd);
    cost = os_counter(OS_COUNT_SYSCALLS) - before;
    finish(&call);
    return cost;
}

TEST(one_system_call_submits_all_of_a_pass)
{
    enum {
        N = 20
    };
    static Call calls[N];
    uint64_t before, checks;
    int fd;

    begin();
    fd = make_file(0);
    cost_of_checks(fd); /* and finds out what the number is */
    checks = cost_of_checks(fd);
    for (int round = 0; round < 2; round++) { /* the first makes stacks */
        before = os_counter(OS_COUNT_SYSCALLS);
        for (int i = 0; i < N; i++) {
            start(&calls[i], sync_it, fd);
        }
        aio_poll(ctx, false);
        if (round > 0) {
            CHECK_EQ(os_counter(OS_COUNT_SYSCALLS) - before, N * checks + 1);
        }
        for (int i = 0; i < N; i++) {
            CHECK_EQ(finish(&calls[i]), 0);
        }
    }
    close(fd);
    end();
}

static void again(void *bh)
{
    aio_bh_schedule(*(AioBH **)bh);
}

/* A loop that has work all the time does not keep operations waiting. */
TEST(a_busy_loop_submits_in_the_next_pass)
{
    uint64_t before;
    AioBH *bh;
    Call call;
    int fd;

    begin();
    fd = make_file(0);
    bh = aio_bh_new(ctx, again, &bh);
    aio_bh_schedule(bh);
    for (int i = 0; i < 40; i++) {
        CHECK(aio_poll(ctx, true));
    }
    for (int i = 0; i < 10; i++) {
        start(&call, sync_it, fd);
        before = os_counter(OS_COUNT_SYSCALLS);
        CHECK(aio_poll(ctx, true));
        CHECK_EQ(os_counter(OS_COUNT_SYSCALLS) - before, 1);
        CHECK_EQ(finish(&call), 0);
    }
    aio_bh_delete(bh);
    aio_poll(ctx, false);
    close(fd);
    end();
}

static void nothing(void *opaque)
{
    (void)opaque;
}

static bool always(void *opaque)
{
    (void)opaque;
    return true;
}

/* The pass ended where polling found something, and the wait was left out. */
TEST(an_operation_begins_though_busy_polling_finds_something)
{
    int64_t deadline = os_clock_monotonic_ns() + 10000000000;
    int pair[2], fd;
    Call call;

    begin();
    fd = make_file(0);
    CHECK_EQ(pipe2(pair, O_CLOEXEC | O_NONBLOCK), 0);
    CHECK_EQ(aio_context_set_poll_params(ctx, 1000000, 0, 0), 0);
    ctx->poll_ns = 1000;
    CHECK_EQ(aio_set_fd_handler(ctx, pair[0], nothing, NULL, always, nothing,
                                NULL),
             0);
    start(&call, sync_it, fd);
    while (!call.done && os_clock_monotonic_ns() < deadline) {
        aio_poll(ctx, true);
    }
    CHECK(call.done);
    CHECK_EQ(call.result, 0);
    aio_set_fd_handler(ctx, pair[0], NULL, NULL, NULL, NULL, NULL);
    close(pair[0]);
    close(pair[1]);
    close(fd);
    end();
}

/* --- cancellation, closing ------------------------------------------------*/

static bool was_cancelled(const Call *call)
{
    CHECK(call->result == 0 || call->result == -ETIMEDOUT);
    return call->result == -ETIMEDOUT;
}

/*
 * Before the kernel has taken them in, or after: each returns once, with its
 * result or with the error; and some are really cut short, since the kernel
 * makes but a few at a time.
 */
static unsigned cancel_all(bool in_kernel)
{
    enum {
        N = 60
    };
    static Call calls[N];
    unsigned cancelled = 0;
    int fd = make_file(0);

    CHECK_EQ(pwrite(fd, page, sizeof(page), 0), sizeof(page));
    calls_done = 0;
    for (int i = 0; i < N; i++) {
        start(&calls[i], sync_all, fd);
    }
    if (in_kernel) {
        aio_poll(ctx, false);
    }
    for (int i = 0; i < N; i++) {
        if (!calls[i].done) {
            co_wait_cancel(calls[i].co, -ETIMEDOUT);
            co_wait_cancel(calls[i].co, -ECANCELED); /* too late */
        }
    }
    for (int i = 0; i < N; i++) {
        finish(&calls[i]);
        cancelled += was_cancelled(&calls[i]);
    }
    CHECK_EQ(calls_done, N);
    close(fd);
    return cancelled;
}

TEST(cancellation_reaches_the_kernel)
{
    unsigned cancelled[2] = {0, 0};

    begin();
    for (int i = 0; i < 200 && !(cancelled[0] && cancelled[1]); i++) {
        cancelled[i % 2] += cancel_all(i % 2);
    }
    CHECK(cancelled[0] > 0);
    CHECK(cancelled[1] > 0);
    CHECK_EQ(worker_thread_count(), 0);
    end();
}

static ssize_t coroutine_fn receive_one(int fd)
{
    return co_recv(fd, page, 1, 0);
}

static void end_waits(void *fd)
{
    fd_cancel_all(*(int *)fd, -ECANCELED);
}

/* Ended by another thread, so that the coroutine itself has to cancel it. */
TEST(a_cancellation_that_finds_no_room_is_made_later)
{
    Call call;
    int fds[2];

    begin();
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    start(&call, receive_one, fds[0]);
    CHECK(!aio_poll(ctx, false));
    os_fault_arm(1, EAGAIN, "io_uring_sqe");
    run_in_thread(end_waits, &fds[0]);
    CHECK(!call.done);
    CHECK_EQ(finish(&call), -ECANCELED);
    CHECK(os_fault_fired());
    close(fds[0]);
    close(fds[1]);
    end();
}

/*
 * Even if the kernel has not taken the number in yet.  When all is done that
 * was submitted, the number may be another's at once, which is left alone: a
 * worker closes.  (The case expected of the other what it did not have, and
 * failed when the worker was that quick.)
 */
TEST(closing_waits_for_what_was_submitted)
{
    Call sync, closing;
    int fd, other;

    begin();
    for (int i = 0; i < 21; i++) {
        fd = make_file(0);
        start(&sync, sync_it, fd);
        if (i % 3 == 1) {
            aio_poll(ctx, false);
        } else if (i % 3 == 2) {
            finish(&sync);
        }
        start(&closing, close_it, fd);
        while (i % 3 == 2 && fcntl(fd, F_GETFD) >= 0) {
            sched_yield();
        }
        other = dup(STDIN_FILENO);
        CHECK(other != fd || sync.done);
        CHECK_EQ(finish(&closing), 0);
        CHECK(sync.done);
        CHECK_EQ(sync.result, 0);
        CHECK_EQ(fcntl(fd, F_GETFD), other == fd ? 0 : -1);
        close(other);
    }
    end();
}

/* --- errors, other ways ---------------------------------------------------*/

TEST(errors_are_those_of_the_calls)
{
    static const struct {
        const char *call;
        ssize_t (*make)(int fd);
    } calls[] = {
        {"pwritev", write_page},
        {"fsync", sync_all},
        {"fdatasync", sync_it},
        {"fallocate", enlarge},
    };
    int fd, reader;

    begin();
    fd = make_file(O_DSYNC);
    for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        os_fault_arm(1, EIO, calls[i].call);
        CHECK_EQ(make(calls[i].make, fd), -EIO);
        CHECK(os_fault_fired());
        CHECK(make(calls[i].make, fd) >= 0);
    }
    reader = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    CHECK_EQ(make(write_page, reader), -EBADF);
    CHECK_EQ(make(sync_it, -1), -EBADF);
    CHECK_EQ(worker_thread_count(), 0);
    close(reader);
    close(fd);
    end();
}

/* io_uring would not say so: it ignores the offset, and takes what is there. */
TEST(what_has_become_a_pipe_has_no_offset)
{
    int fd, ends[2];
    char c[2] = "";

    begin();
    fd = make_file(O_DSYNC);
    CHECK_EQ(make(write_page, fd), 4096);
    CHECK_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    CHECK_EQ(dup3(ends[1], fd, O_CLOEXEC), fd);
    CHECK_EQ(make(write_page, fd), -ESPIPE);
    CHECK_EQ(read(ends[0], c, 1), -1);
    close(ends[0]);
    close(ends[1]);
    close(fd);
    end();
}

/*
 * The kernel had no memory for it.  co_close(), which had waited for it, went
 * on first, and the worker's call was made on whatever had the number next.
 */
TEST(what_was_closed_meanwhile_goes_no_other_way)
{
    Call reading, closing;
    int fd;

    begin();
    fd = make_file(O_DIRECT);
    os_fault_arm(1, EAGAIN, "preadv");
    start(&reading, read_page, fd);
    CHECK(os_fault_fired() && !reading.done);
    start(&closing, close_it, fd);
    CHECK(!closing.done);
    CHECK_EQ(finish(&reading), -ECANCELED);
    CHECK_EQ(finish(&closing), 0);
    end();
}

static pid_t loop_thread;
static unsigned asked; /* the ring, to sync */
static int answer;

/* A file that answers so, to the ring, and to who asks next. */
static void answer_syncs(const OsRecord *r)
{
    if (strcmp(r->call, "fdatasync") == 0 && asked < 100 &&
        syscall(SYS_gettid) == loop_thread) {
        asked += r->begin;
        os_fault_arm(1, answer, r->call);
    }
}

/*
 * Files in user space can say so.  It was taken for what the kernel had broken
 * off, and made again for ever; and co_close() waited for the end of that.
 */
TEST(a_file_that_says_it_was_cancelled_is_asked_once_more)
{
    enum { INTERRUPTED_MOST = 8 }; /* the ring's calls, then it is a worker's */
    int fd;

    begin();
    fd = make_file(0);
    loop_thread = (pid_t)syscall(SYS_gettid);
    os_set_recorder(answer_syncs);
    answer = ECANCELED;
    CHECK_EQ(make(sync_it, fd), -ECANCELED);
    CHECK_EQ(asked, 1);
    CHECK_EQ(worker_thread_count(), 1); /* it was the next to ask */
    answer = EINTR;
    CHECK_EQ(make(sync_it, fd), 0);
    CHECK_EQ(asked, 1 + INTERRUPTED_MOST);
    os_set_recorder(NULL);
    CHECK_EQ(make(close_it, fd), 0);
    end();
}

TEST(without_room_a_worker_does_it)
{
    int fd;

    begin();
    fd = make_file(0);
    os_fault_arm(1, EAGAIN, "io_uring_sqe");
    CHECK_EQ(make(sync_it, fd), 0);
    CHECK(os_fault_fired());
    CHECK_EQ(worker_thread_count(), 1);
    close(fd);
    end();
}

TEST(where_the_kernel_cannot_a_worker_does_it)
{
    int fd;

    CHECK_EQ(setenv("COAIO_URING_WITHOUT", "files", 1), 0);
    needs_uring();
    ctx = go_begin("uring");
    fd = make_file(0);
    CHECK_EQ(make(sync_it, fd), 0);
    CHECK_EQ(make(read_last, fd), 100);
    CHECK_EQ(worker_thread_count(), 1);
    close(fd);
    end();
}

/* --- reads from the page cache --------------------------------------------*/

enum {
    READS = 20
};

static Call reads[READS];
static int read_fd;
static unsigned read_size, read_n;
static off_t read_at; /* of the first; the others each a page later */

static ssize_t coroutine_fn read_own(int i)
{
    static char bufs[READS][SIZE];
    const char *buf = bufs[i];
    off_t at = read_at + i % 8 * 4096;
    ssize_t n = co_pread(read_fd, bufs[i], read_size, at);

    for (ssize_t k = 0; k < n; k++) {
        CHECK_EQ(buf[k], 'a' + (at + k) / 4096);
    }
    return n;
}

static void start_reads(void *opaque)
{
    (void)opaque;
    for (unsigned i = 0; i < read_n; i++) {
        start(&reads[i], read_own, (int)i);
    }
}

/* Have n made in one pass.  Returns how many system calls that takes. */
static uint64_t calls_of_reads(unsigned n)
{
    uint64_t before = os_counter(OS_COUNT_SYSCALLS);

    read_n = n;
    memset(reads, 0, sizeof(reads));
    aio_bh_schedule_oneshot(ctx, start_reads, NULL);
    for (unsigned i = 0; i < n; i++) {
        go_until(ctx, &reads[i].done);
    }
    return os_counter(OS_COUNT_SYSCALLS) - before;
}

/* On a machine where a system call takes longer than dear_ns. */
static void begin_reads(int64_t dear_ns)
{
    if (os_in_valgrind()) {
        SKIP("in Valgrind a sleep takes two calls more");
    }
    needs_uring();
    uring_dear_from_ns(dear_ns);
    ctx = go_begin("uring");
    read_fd = make_file(0);
    for (int i = 0; i < SIZE / 4096; i++) {
        memset(page, 'a' + i, sizeof(page));
        CHECK_EQ(pwrite(read_fd, page, sizeof(page), i * 4096), sizeof(page));
    }
    read_size = 4096;
    read_at = 0;
    calls_of_reads(READS); /* shows how many they are */
    calls_of_reads(READS); /* makes stacks */
}

static void end_reads(void)
{
    CHECK_EQ(worker_thread_count(), 0);
    close(read_fd);
    end();
}

TEST(many_reads_of_a_pass_are_one_call_where_calls_are_dear)
{
    as_usual_on_uring();
    begin_reads(0);
    for (int round = 0; round < 3; round++) {
        CHECK(calls_of_reads(READS) <= 4); /* what the number is, and sleeps */
        for (int i = 0; i < READS; i++) {
            CHECK_EQ(reads[i].result, 4096);
        }
    }
    read_at = SIZE - 4096 - 100; /* and across the end, and behind it */
    CHECK(calls_of_reads(READS) <= 4);
    for (int i = 0; i < READS; i++) {
        CHECK_EQ(reads[i].result, i % 8 == 0 ? 4096 : i % 8 == 1 ? 100 : 0);
    }
    end_reads();
}

TEST(a_few_reads_are_calls_of_their_own)
{
    as_usual_on_uring();
    begin_reads(0);
    calls_of_reads(4);
    CHECK(calls_of_reads(4) >= 4);
    calls_of_reads(READS);
    CHECK(calls_of_reads(READS) < READS);
    read_size = SIZE; /* and long ones, how many they may be */
    CHECK(calls_of_reads(READS) >= READS);
    end_reads();
}

TEST(where_calls_are_cheap_each_read_is_one)
{
    as_usual_on_uring();
    begin_reads(INT64_MAX);
    CHECK(calls_of_reads(READS) >= READS);
    end_reads();
}

TEST(reads_are_left_to_system_calls_if_asked)
{
    CHECK_EQ(setenv("COAIO_URING_WITHOUT", "reads", 1), 0);
    begin_reads(0);
    CHECK(calls_of_reads(READS) >= READS);
    end_reads();
}

/* In the ring as in preadv(2): io_uring would read, whatever the offset. */
TEST(many_reads_of_what_has_become_a_pipe_fail)
{
    int ends[2];

    as_usual_on_uring();
    begin_reads(0);
    CHECK(calls_of_reads(READS) < READS);
    CHECK_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    CHECK_EQ(dup3(ends[0], read_fd, O_CLOEXEC), read_fd);
    calls_of_reads(READS);
    for (int i = 0; i < READS; i++) {
        CHECK_EQ(reads[i].result, -ESPIPE);
    }
    close(ends[0]);
    close(ends[1]);
    end_reads();
}

TEST_MAIN()
