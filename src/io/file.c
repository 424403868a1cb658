/* SPDX-License-Identifier: MIT */
/*
 * Files, which have no readiness, and whatever is read at an offset.
 *
 * A transfer takes the first of these ways that the file is not known to be
 * bad at:
 *
 *   at once     a file in memory (tmpfs, ramfs), up to DIRECT_MAX bytes
 *   the engine  small reads, many at once, where system calls are dear
 *   RWF_NOWAIT  what is in the page cache comes at once; -EAGAIN means that
 *               it is not there, -EOPNOTSUPP is remembered for the file
 *   the engine  everything else at an offset, if it can (io_uring)
 *   a worker    everything else
 *
 * Workers make the buffered writes of a descriptor one after the other, in the
 * order of the calls, as long as none of them hangs: the kernel would not let
 * two of them in at once.
 *
 * RWF_NOWAIT stops where the page cache ends, which is not the end of the
 * file: the rest of a short count is fetched, too, so that a short count means
 * the same as with pread(2).
 *
 * At the position of a file, such parts must be next to each other, and a block
 * device does not even keep two calls apart.  So a call there has the turn to
 * read, and a write is one call, and a worker's.  Only writes to what cannot be
 * read, and which exclude each other, need no turn.  The engine is of no use:
 * it looks up the position when it begins, and sets it when it has ended, for
 * two calls at once alike.
 *
 * Does not guarantee that if the open file is also used at the position through
 * another descriptor (dup(2), fork(2)), with read(2) or write(2), or by a
 * coroutine without a home.
 */
#include "io/io_int.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>

#define DIRECT_MAX ((size_t)256 << 10)

typedef struct FileCall {
    const IoTransfer *transfer;
    IoUse use;
    OsFileKind kind;
    size_t total; /* bytes */
} FileCall;

/* --- system calls ---------------------------------------------------------*/

static ssize_t transfer_once(const IoTransfer *t)
{
    if (t->direction == IO_READ) {
        return t->offset < 0 ? os_readv(t->fd, t->iov, t->iovcnt)
                             : os_preadv(t->fd, t->iov, t->iovcnt, t->offset);
    }
    return t->offset < 0 ? os_writev(t->fd, t->iov, t->iovcnt)
                         : os_pwritev(t->fd, t->iov, t->iovcnt, t->offset);
}

static ssize_t transfer_blocking(void *arg)
{
    ssize_t result;

    do {
        result = transfer_once(arg);
    } while (result == -EINTR);
    return result;
}

static ssize_t transfer_nowait(const IoTransfer *t)
{
    ssize_t result;

    do {
        result = t->direction == IO_READ
                     ? os_preadv_nowait(t->fd, t->iov, t->iovcnt, t->offset)
                     : os_pwritev_nowait(t->fd, t->iov, t->iovcnt, t->offset);
    } while (result == -EINTR);
    return result;
}

/* --- the ways -------------------------------------------------------------*/

/*
 * Whether fd is a file now, asked of the kernel: io_uring ignores the offset
 * where preadv(2) says ESPIPE, and would take from a pipe or a socket that has
 * got the number meanwhile.  Once in a pass will do.
 */
static bool is_file_still(int fd)
{
    const AioContext *ctx = os_thread()->context;
    OsFileKind kind;
    IoFd *entry = io_fd_find(fd);

    if (entry && ctx->depth > 0 && load_relaxed(&entry->seen) == ctx->pass) {
        return true;
    }
    if (io_fd_check(fd, &entry, &kind) < 0 || kind != OS_FILE_REGULAR) {
        return false;
    }
    store_relaxed(&entry->seen, ctx->pass);
    return true;
}

static ssize_t coroutine_fn transfer_by_engine(const FileCall *f,
                                               const IoTransfer *t)
{
    const OsUringRequest request = {
        .call = t->direction == IO_READ ? OS_URING_READ : OS_URING_WRITE,
        .fd = t->fd,
        .offset = t->offset,
        .iov = t->iov,
        .iovcnt = t->iovcnt,
    };

    if (t->offset < 0 || f->kind != OS_FILE_REGULAR ||
        !io_may_submit(request.call) || !is_file_still(t->fd)) {
        return IO_NEEDS_OTHER_WAY;
    }
    return io_submit(&f->use, &request, t->what);
}

static ssize_t coroutine_fn transfer_elsewhere(const FileCall *f, IoTransfer *t)
{
    ssize_t result = transfer_by_engine(f, t);

    if (result != IO_NEEDS_OTHER_WAY) {
        return result;
    }
    if (t->direction == IO_WRITE) {
        return io_write_in_worker(&f->use, transfer_blocking, t, t->what);
    }
    return io_run_in_worker(&f->use, transfer_blocking, t, t->what);
}

static bool may_try_nowait(const FileCall *f, IoDirection direction)
{
    uint32_t no_nowait =
        direction == IO_READ ? IO_NO_NOWAIT_READ : IO_NO_NOWAIT_WRITE;

    return f->kind != OS_FILE_MEMORY &&
           !(load_relaxed(&f->use.entry->facts) & no_nowait);
}

/* The first part of a transfer, without waiting, or IO_NEEDS_WORKER. */
static ssize_t transfer_at_once(const FileCall *f, IoTransfer *t)
{
    ssize_t result;

    if (f->kind == OS_FILE_MEMORY && f->total <= DIRECT_MAX) {
        /* The position is locked while a worker uses it. */
        if (t->offset < 0 && load_relaxed(&f->use.entry->running) > 0) {
            return IO_NEEDS_WORKER;
        }
        return transfer_blocking(t);
    }
    if (!may_try_nowait(f, t->direction)) {
        return IO_NEEDS_WORKER;
    }
    result = transfer_nowait(t);
    if (result == -EOPNOTSUPP) {
        io_fd_learn(f->use.entry, t->direction == IO_READ ? IO_NO_NOWAIT_READ
                                                      : IO_NO_NOWAIT_WRITE);
        return IO_NEEDS_WORKER;
    }
    return result == -EAGAIN ? IO_NEEDS_WORKER : result;
}

/* The same after the caller may have been suspended: the number may be closed
 * by another thread, which must then wait. */
static ssize_t transfer_at_once_held(const FileCall *f, IoTransfer *t)
{
    ssize_t result = io_fd_hold(&f->use);

    if (result == 0) {
        result = transfer_at_once(f, t);
        io_fd_release(f->use.entry);
    }
    return result;
}

/* RWF_NOWAIT made the first done bytes: make the others. */
static NOINLINE ssize_t coroutine_fn transfer_rest(const FileCall *f,
                                                   size_t done)
{
    struct iovec slice[IO_SLICE_MAX];
    IoTransfer part = *f->transfer;
    size_t bytes = 0;
    ssize_t n;

    part.iov = slice;
    while (done < f->total) {
        part.iovcnt = io_slice(f->transfer, done, SIZE_MAX, slice, &bytes);
        if (f->transfer->offset >= 0) {
            part.offset = f->transfer->offset + (off_t)done;
        }
        n = transfer_at_once_held(f, &part);
        if (n == IO_NEEDS_WORKER) {
            n = transfer_elsewhere(f, &part);
            done += n > 0 ? (size_t)n : 0;
            if (n < (ssize_t)bytes) {
                break; /* an error comes back next time */
            }
        } else if (n > 0) {
            done += (size_t)n;
        } else {
            break;
        }
    }
    return (ssize_t)done;
}

/* What transfer_at_once() gave, and whatever that leaves to do. */
static ssize_t coroutine_fn transfer_went(const FileCall *f, IoTransfer *t,
                                          ssize_t result)
{
    if (result == IO_NEEDS_WORKER) {
        return transfer_elsewhere(f, t);
    }
    if (result > 0 && (size_t)result < f->total && f->kind != OS_FILE_MEMORY) {
        return transfer_rest(f, (size_t)result);
    }
    return result;
}

/*
 * Whether nobody reads at the position, and writes have a lane.  Asked each
 * time: who closes a file with close(2) may open the same one again for more.
 */
static bool is_kept_apart(const FileCall *f, const IoTransfer *t)
{
    int flags = t->direction == IO_WRITE ? os_file_flags(t->fd) : -1;

    return flags >= 0 && (flags & O_ACCMODE) == O_WRONLY &&
           (load_relaxed(&f->use.entry->facts) & IO_WRITES_EXCLUDE);
}

/* At the position of a file that is not in memory. */
static NOINLINE ssize_t coroutine_fn transfer_here(const FileCall *f,
                                                   IoTransfer *t)
{
    IoTurn turn;
    ssize_t result;

    if (!io_has_home() || is_kept_apart(f, t)) {
        return transfer_elsewhere(f, t);
    }
    result = io_turn_take(&turn, f->use.entry, IO_READ, t->what);
    if (result < 0) {
        return result;
    }
    result = t->direction == IO_READ
                 ? transfer_went(f, t, transfer_at_once_held(f, t))
                 : transfer_elsewhere(f, t);
    io_turn_end(&turn);
    return result;
}

ssize_t io_file_transfer(const IoTransfer *transfer, IoFd *entry,
                         OsFileKind kind)
{
    FileCall f = {.transfer = transfer, .use = io_use(entry), .kind = kind};
    IoTransfer whole = *transfer;
    ssize_t result;

    for (int i = 0; i < transfer->iovcnt; i++) {
        f.total += transfer->iov[i].iov_len;
    }
    store_relaxed(&entry->transfers, load_relaxed(&entry->transfers) + 1);
    if (transfer->offset < 0 && kind != OS_FILE_MEMORY) {
        return transfer_here(&f, &whole);
    }
    if (transfer->direction == IO_READ && kind == OS_FILE_REGULAR &&
        f.total <= IO_DEAR_MAX && io_better_submit(OS_URING_READ)) {
        result = transfer_by_engine(&f, &whole);
        if (result != IO_NEEDS_OTHER_WAY) {
            return result;
        }
        return transfer_went(&f, &whole, transfer_at_once_held(&f, &whole));
    }
    return transfer_went(&f, &whole, transfer_at_once(&f, &whole));
}

int io_slice(const IoTransfer *transfer, size_t skip, size_t limit,
             struct iovec *slice, size_t *bytes)
{
    int n = 0;

    *bytes = 0;
    for (int i = 0; i < transfer->iovcnt && n < IO_SLICE_MAX; i++) {
        struct iovec piece = transfer->iov[i];
        size_t skipped = skip < piece.iov_len ? skip : piece.iov_len;

        skip -= skipped;
        piece.iov_base = (char *)piece.iov_base + skipped;
        piece.iov_len -= skipped;
        if (piece.iov_len > limit - *bytes) {
            piece.iov_len = limit - *bytes;
        }
        if (piece.iov_len > 0) {
            slice[n++] = piece;
            *bytes += piece.iov_len;
        }
    }
    return n;
}

/* --- what is not a transfer -----------------------------------------------*/

static int call_once(const OsUringRequest *job)
{
    switch (job->call) {
    case OS_URING_FSYNC:
        return os_fsync(job->fd);
    case OS_URING_FDATASYNC:
        return os_fdatasync(job->fd);
    default:
        return os_fallocate(job->fd, job->mode, job->offset, job->length);
    }
}

static ssize_t run_job(void *arg)
{
    const OsUringRequest *job = arg;
    int result;

    do {
        result = call_once(job);
    } while (result == -EINTR);
    return result;
}

static int coroutine_fn do_job(const char *what, OsUringRequest *job)
{
    ssize_t result = IO_NEEDS_OTHER_WAY;
    OsFileKind kind;
    IoFd *entry;
    IoUse use;
    int ret;

    if (!io_begin(what, job->fd)) {
        return (int)run_job(job);
    }
    ret = io_fd_check(job->fd, &entry, &kind);
    if (ret < 0) {
        return ret;
    }
    if (kind == OS_FILE_MEMORY && job->length <= (off_t)DIRECT_MAX) {
        return (int)run_job(job);
    }
    use = io_use(entry);
    if (kind == OS_FILE_REGULAR) {
        result = io_submit(&use, job, what);
    }
    if (result == IO_NEEDS_OTHER_WAY) {
        result = io_run_in_worker(&use, run_job, job, what);
    }
    return (int)result;
}

int co_fsync(int fd)
{
    OsUringRequest job = {.call = OS_URING_FSYNC, .fd = fd, .offset = -1};

    return do_job("co_fsync", &job);
}

int co_fdatasync(int fd)
{
    OsUringRequest job = {
        .call = OS_URING_FDATASYNC,
        .fd = fd,
        .offset = -1,
    };

    return do_job("co_fdatasync", &job);
}

int co_fallocate(int fd, int mode, off_t offset, off_t length)
{
    OsUringRequest job = {
        .call = OS_URING_FALLOCATE,
        .fd = fd,
        .mode = mode,
        .offset = offset,
        .length = length,
    };

    return do_job("co_fallocate", &job);
}
