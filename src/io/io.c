/* SPDX-License-Identifier: MIT */
/*
 * The calls that work on any descriptor: which way a transfer takes, waiting
 * for readiness, closing, sleeping.
 *
 * What a descriptor is decides the way.  Asked for at an offset, a call cannot
 * block on a socket or a pipe (it fails with ESPIPE), so what was learned of
 * the number may be old.  At the position it can: there, the kernel is asked
 * each time, except about what was a socket, which says so itself (ENOTSOCK)
 * when it is none any more.
 */
#include "io/io_int.h"

#include "loop/fd_int.h"
#include "os/clock.h"
#include "os/event.h"

#include <coaio/bh.h>
#include <errno.h>
#include <limits.h>

static COLD NORETURN void misuse_outside(const char *what)
{
    misuse("%s: called outside a coroutine", what);
}

bool io_begin(const char *what, int fd)
{
    Coroutine *self = os_thread()->current;

    os_check_fork(what);
    if (unlikely(!self)) {
        misuse_outside(what);
    }
    if (!self->home) {
        return false;
    }
    if (fd >= 0) {
        fd_check_no_handler(container_of(self->home, AioContext, home), fd,
                            what);
    }
    return true;
}

/* --- transfers ------------------------------------------------------------*/

/* At the position of the file, if it has one. */
static ssize_t coroutine_fn transfer_here(const IoTransfer *transfer)
{
    OsFileKind kind;
    IoFd *entry = io_fd_find(transfer->fd);
    ssize_t result;

    io_begin(transfer->what, transfer->fd);
    if (entry && io_fd_kind(entry) == IO_KIND(OS_FILE_SOCKET)) {
        result = io_socket_transfer(transfer);
        if (result != -ENOTSOCK) {
            return result;
        }
    }
    result = io_fd_check(transfer->fd, &entry, &kind);
    if (result < 0) {
        return result;
    }
    switch (kind) {
    case OS_FILE_SOCKET:
        return io_socket_transfer(transfer);
    case OS_FILE_STREAM:
        return io_stream_transfer(transfer, entry);
    default:
        return io_file_transfer(transfer, entry, kind);
    }
}

/* At an offset. */
static ssize_t coroutine_fn transfer_there(const IoTransfer *transfer)
{
    OsFileKind kind;
    IoFd *entry = io_fd_find(transfer->fd);
    uint32_t known = entry ? io_fd_kind(entry) : 0;
    int ret;

    io_begin(transfer->what, transfer->fd);
    if (transfer->offset < 0 || transfer->iovcnt < 0 ||
        transfer->iovcnt > IOV_MAX) {
        return -EINVAL;
    }
    if (known == 0 || load_relaxed(&entry->transfers) >= IO_CHECK_INTERVAL) {
        ret = io_fd_check(transfer->fd, &entry, &kind);
        if (ret < 0) {
            return ret;
        }
        known = IO_KIND(kind);
    }
    return io_file_transfer(transfer, entry, (OsFileKind)(known - 1));
}

static ssize_t coroutine_fn transfer(const char *what, int fd,
                                     IoDirection direction, void *buf,
                                     size_t count, off_t offset, bool here)
{
    struct iovec iov = {.iov_base = buf, .iov_len = count};
    IoTransfer t = {
        .what = what,
        .fd = fd,
        .direction = direction,
        .iov = &iov,
        .iovcnt = 1,
        .offset = offset,
    };

    return here ? transfer_here(&t) : transfer_there(&t);
}

ssize_t co_read(int fd, void *buf, size_t count)
{
    return transfer("co_read", fd, IO_READ, buf, count, -1, true);
}

ssize_t co_write(int fd, const void *buf, size_t count)
{
    return transfer("co_write", fd, IO_WRITE, (void *)buf, count, -1, true);
}

ssize_t co_pread(int fd, void *buf, size_t count, off_t offset)
{
    return transfer("co_pread", fd, IO_READ, buf, count, offset, false);
}

ssize_t co_pwrite(int fd, const void *buf, size_t count, off_t offset)
{
    return transfer("co_pwrite", fd, IO_WRITE, (void *)buf, count, offset,
                    false);
}

ssize_t co_preadv(int fd, const struct iovec *iov, int iovcnt, off_t offset)
{
    IoTransfer t = {"co_preadv", fd, IO_READ, iov, iovcnt, offset};

    return transfer_there(&t);
}

ssize_t co_pwritev(int fd, const struct iovec *iov, int iovcnt, off_t offset)
{
    IoTransfer t = {"co_pwritev", fd, IO_WRITE, iov, iovcnt, offset};

    return transfer_there(&t);
}

/* --- closing --------------------------------------------------------------*/

typedef struct CloseCall {
    IoFd *entry; /* that is still closing, or NULL */
    int fd;
    bool called; /* the worker's, until it has ended */
} CloseCall;

static ssize_t call_close(void *arg)
{
    CloseCall *call = arg;

    call->called = true;
    if (call->entry) {
        io_fd_reopen(call->entry);
    }
    return os_close(call->fd);
}

/*
 * In a worker; without one, here.  Which of them it was is not to be seen from
 * an error: once close(2) was called, the number may be another's.
 */
static int coroutine_fn close_in_worker(IoFd *entry, int fd)
{
    CloseCall call = {.entry = entry, .fd = fd};
    ssize_t result = io_run_in_worker(NULL, call_close, &call, "co_close");

    return (int)(call.called ? result : call_close(&call));
}

/*
 * Under another number, so that nobody finds the old one open or closing for as
 * long as that takes; without one, here.
 */
static int coroutine_fn close_duplicate_in_worker(IoClosing *closing, int fd)
{
    int other, ret, result;

    /* The engine has the open file until it has ended what waited on it, in the
     * next pass: it is not to be the last to let go. */
    co_sleep_ns(0);
    other = os_dup(fd);
    ret = io_fd_close(closing, fd);
    result = other >= 0 ? close_in_worker(NULL, other) : 0;
    return ret < 0 ? ret : result;
}

typedef enum CloseWay {
    CLOSE_HERE,
    CLOSE_FILE,      /* writes back, whoever else has it open */
    CLOSE_DUPLICATE, /* what waits when it is the last to go: a socket for its
                        peer, a terminal for its line */
} CloseWay;

/*
 * Whether a file is in memory is not asked for that, which may block; and to
 * give back much of it takes a while, too.
 */
static CloseWay way_to_close(int fd)
{
    OsFileStatus status;
    int lingers = os_socket_lingers(fd);

    if (lingers >= 0) {
        return lingers ? CLOSE_DUPLICATE : CLOSE_HERE;
    }
    if (os_file_status(fd, &status) < 0) {
        return CLOSE_HERE;
    }
    if (status.kind == OS_FILE_REGULAR) {
        return CLOSE_FILE;
    }
    return status.character ? CLOSE_DUPLICATE : CLOSE_HERE;
}

int co_close(int fd)
{
    bool home = io_begin("co_close", fd);
    IoFd *entry = io_fd_get(fd);
    IoClosing closing;
    int ret;

    if (!entry) {
        /* No memory, or no descriptor: nothing can have waited here. */
        return os_close(fd);
    }
    ret = io_fd_retire(&closing, entry, fd);
    if (ret < 0) {
        return ret;
    }
    switch (home ? way_to_close(fd) : CLOSE_HERE) {
    case CLOSE_FILE:
        io_fd_hand_over(&closing);
        return close_in_worker(entry, fd);
    case CLOSE_DUPLICATE:
        return close_duplicate_in_worker(&closing, fd);
    default:
        return io_fd_close(&closing, fd);
    }
}

/* --- readiness ------------------------------------------------------------*/

/* What holds of fd now, or after at most timeout_ns of blocking the thread. */
static int poll_now(int fd, int events, int64_t timeout_ns)
{
    struct pollfd pollfd = {.fd = fd, .events = (short)events};
    int64_t deadline_ns = os_deadline_ns(timeout_ns);
    int ret = os_poll(&pollfd, 1, timeout_ns);

    /* Signals may come more often than every timeout_ns. */
    while (ret == -EINTR) {
        ret = os_poll(&pollfd, 1, os_remaining_ns(timeout_ns, deadline_ns));
    }
    if (ret <= 0) {
        return ret < 0 ? ret : -ETIMEDOUT;
    }
    return pollfd.revents & POLLNVAL ? -EBADF : pollfd.revents;
}

int co_poll_fd(int fd, int events, int64_t timeout_ns)
{
    bool home = io_begin("co_poll_fd", fd);
    FdWait wait;
    IoSide *side;
    IoFd *entry;
    int ret = fd < 0 ? -EBADF : poll_now(fd, events, 0);

    if (ret != -ETIMEDOUT) {
        return ret;
    }
    if (!(events & (POLLIN | POLLOUT)) && !os_has_readiness(fd)) {
        return -EPERM; /* nothing else ever holds of it */
    }
    if (timeout_ns == 0) {
        return -ETIMEDOUT;
    }
    if (!home) {
        return poll_now(fd, events, timeout_ns);
    }
    entry = io_fd_get(fd);
    if (!entry) {
        return -ENOMEM;
    }
    side = &entry->sides[IO_READ];
    os_mutex_lock(&side->lock);
    ret = entry->closing
              ? -ECANCELED
              : fd_wait_begin(&wait, fd, (uint32_t)events, "co_poll_fd");
    os_mutex_unlock(&side->lock);
    if (ret == 0) {
        ret = fd_wait_park(&wait, timeout_ns);
    }
    return ret == -ENOSPC ? -ENOMEM : ret;
}

/* --- time -----------------------------------------------------------------*/

typedef struct Sleep {
    CoWait wait; /* first */
    AioTimer timer;
    AioBHStorage storage;
    int64_t result; /* of a pass: the home thread's */
} Sleep;

static void slept(void *opaque)
{
    Sleep *sleep = opaque;

    co_wait_end(&sleep->wait, 0, "its timer");
}

static void sleep_cancel(CoWait *wait, int error)
{
    Sleep *sleep = container_of(wait, Sleep, wait);

    aio_timer_del(&sleep->timer);
    co_wait_end(wait, error, "a cancellation");
}

static void passed(void *opaque)
{
    Sleep *sleep = opaque;

    co_wait_end(&sleep->wait, sleep->result, "its bottom half");
}

/* The bottom half is sure to come, and uses the record. */
static void pass_cancel(CoWait *wait, int error)
{
    container_of(wait, Sleep, wait)->result = error;
}

static int coroutine_fn sleep_one_pass(AioContext *ctx)
{
    Sleep sleep = {.result = 0};

    co_wait_init(&sleep.wait, "co_sleep_ns", NULL, pass_cancel);
    aio_bh_schedule_oneshot_embedded(ctx, &sleep.storage, passed, &sleep);
    return (int)co_wait_park(&sleep.wait, -1);
}

int co_sleep_ns(int64_t ns)
{
    AioContext *ctx;
    Sleep sleep;

    if (!io_begin("co_sleep_ns", -1)) {
        poll_now(-1, 0, ns > 0 ? ns : 0);
        return 0;
    }
    ctx = container_of(os_thread()->current->home, AioContext, home);
    if (ns <= 0) {
        return sleep_one_pass(ctx);
    }
    co_wait_init(&sleep.wait, "co_sleep_ns", NULL, sleep_cancel);
    aio_timer_init(&sleep.timer, ctx, AIO_CLOCK_MONOTONIC, slept, &sleep);
    aio_timer_mod_ns(&sleep.timer, os_deadline_ns(ns));
    return (int)co_wait_park(&sleep.wait, -1);
}
