/* SPDX-License-Identifier: MIT */
/*
 * What a file keeps space for: zeroes, trimming, extents.
 *
 * File systems and devices differ in what they know; that is tried once, and
 * remembered in the no_... flags of the export.  Writing zeroes always works,
 * by writing them if nothing else does, unless the client would rather be told
 * (EXPORT_ZERO_FAST).  Trimming never fails because it is not known.
 *
 * For a device, the kernel drops a range's pages from the page cache first, and
 * then has the device zero it.  In between, a write beside the range may read
 * a page that is in it in part, and sooner or later write it back: with what
 * was there before, instead of the zeroes.  So only whole pages are left to
 * the device; what is beside them at the ends is written, as any data is.
 *
 * With O_DIRECT all of this counts as a writer of whole blocks (FileBlocks,
 * in export_file.h): the kernel takes care of the partial ones at the ends.
 */
#include "export_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <coaio/io.h>

#include "protocol.h"

#define ZERO_PIECE ((uint32_t)1 << 20)

/* Never written to, and so without memory of its own: the kernel has one page
 * of zeroes for all that is like this. */
static _Alignas(BUFFER_ALIGN) uint8_t zeroes[ZERO_PIECE];

/* What a discard is rounded to, inwards; no device has larger sectors. */
#define DISCARD_ALIGN ((uint64_t)4096)

/* So much at a time is done with blocks->lock held: a write of a part of a
 * block waits for it, and all who come after that one wait, too. */
#define LOCKED_PIECE (UINT64_C(64) << 20)

typedef int coroutine_fn RangeFunc(FileExport *file, int mode,
                                   uint64_t length, uint64_t offset);

/* fn for the whole range; past the page cache locked, and by pieces that end
 * where blocks do. */
static int coroutine_fn by_pieces(FileExport *file, RangeFunc *fn, int mode,
                                  uint64_t length, uint64_t offset)
{
    int ret;

    if (file->align == 1) {
        return fn(file, mode, length, offset);
    }
    do {
        uint64_t piece = LOCKED_PIECE - offset % LOCKED_PIECE;

        piece = length < piece ? length : piece;
        co_rwlock_rdlock(&file->blocks->lock);
        ret = fn(file, mode, piece, offset);
        co_rwlock_unlock(&file->blocks->lock);
        offset += piece;
        length -= piece;
    } while (ret == 0 && length > 0);
    return ret;
}

static int coroutine_fn allocate(FileExport *file, int mode, uint64_t length,
                                 uint64_t offset)
{
    return co_fallocate(file->fd, mode, (off_t)offset, (off_t)length);
}

/*
 * fallocate(2).  -EOPNOTSUPP means that it does not work here, for the file or
 * for this range of it; unknown remembers the former.
 */
static int coroutine_fn try_fallocate(FileExport *file, int mode,
                                      uint32_t length, uint64_t offset,
                                      atomic_bool *unknown)
{
    int ret;

    if (atomic_load_explicit(unknown, memory_order_relaxed)) {
        return -EOPNOTSUPP;
    }
    ret = by_pieces(file, allocate, mode, length, offset);
    if (ret == -EOPNOTSUPP || ret == -ENOSYS) {
        atomic_store_explicit(unknown, true, memory_order_relaxed);
        return -EOPNOTSUPP;
    }
    if (ret == -EINVAL && file->is_device) {
        return -EOPNOTSUPP; /* sectors that are larger than a page */
    }
    return ret;
}

static int coroutine_fn write_zeroes(FileExport *file, BufferCache *buffers,
                                     uint32_t length, uint64_t offset)
{
    int ret = 0;

    while (length > 0 && ret == 0) {
        uint32_t n = length < ZERO_PIECE ? length : ZERO_PIECE;

        ret = file->export.ops->write(&file->export, buffers, zeroes, n,
                                      offset);
        length -= n;
        offset += n;
    }
    return ret;
}

/*
 * A device that has no command for zeroes says so when the kernel has dropped
 * the pages of the range, and with them writes that were answered.  Where
 * zeroes are then written in another way, that does no harm; a client who would
 * rather be told is told before, until a hole was punched for others.
 */
static bool may_drop_without_zeroing(const FileExport *file)
{
    return file->align == 1 &&
           !atomic_load_explicit(&file->punches, memory_order_relaxed);
}

/* By a command of the file system or the device, or -EOPNOTSUPP. */
static int coroutine_fn zero_by_command(FileExport *file, uint32_t length,
                                        uint64_t offset, unsigned flags)
{
    bool asks = file->is_device && (flags & EXPORT_ZERO_FAST);
    int ret = -EOPNOTSUPP;

    if (!(flags & EXPORT_ZERO_NO_HOLE) &&
        !(asks && may_drop_without_zeroing(file))) {
        ret = try_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                            length, offset, &file->no_punch);
        if (ret == 0) {
            atomic_store_explicit(&file->punches, true, memory_order_relaxed);
        }
    }
    /* A device without a command for it writes them, one by one. */
    if (ret == -EOPNOTSUPP && !asks) {
        ret = try_fallocate(file, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                            length, offset, &file->no_zero_range);
    }
    return ret;
}

/* A page of the page cache, which a command for a device must not share. */
static uint64_t page_size(void)
{
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

int coroutine_fn file_zero(Export *export, BufferCache *buffers,
                           uint32_t length, uint64_t offset, unsigned flags)
{
    FileExport *file = file_of(export);
    uint64_t align = file->is_device ? page_size() : 1;
    uint64_t end = offset + length;
    uint64_t first = (offset + align - 1) & ~(align - 1);
    uint64_t last = end & ~(align - 1);
    int ret = -EOPNOTSUPP;

    if (first < last) {
        ret = zero_by_command(file, (uint32_t)(last - first), first, flags);
    }
    if (ret == -EOPNOTSUPP) {
        return flags & EXPORT_ZERO_FAST
                   ? -ENOTSUP
                   : write_zeroes(file, buffers, length, offset);
    }
    if (ret == 0) {
        ret = write_zeroes(file, buffers, (uint32_t)(first - offset), offset);
    }
    if (ret == 0) {
        ret = write_zeroes(file, buffers, (uint32_t)(end - last), last);
    }
    return ret;
}

typedef struct DiscardJob {
    int fd;
    uint64_t range[2]; /* offset, length */
} DiscardJob;

static int discard_job(void *arg)
{
    DiscardJob *job = arg;

    return ioctl(job->fd, BLKDISCARD, job->range) < 0 ? -errno : 0;
}

static int coroutine_fn discard(FileExport *file, int mode, uint64_t length,
                                uint64_t offset)
{
    DiscardJob job = { file->fd, { offset, length } };

    (void)mode;
    return co_run_in_worker(discard_job, &job);
}

/*
 * Not by fallocate(2): to punch a hole into a device, the kernel needs a
 * command that writes zeroes; and some have none, but one that discards (LVM's
 * thin volumes).
 */
static int coroutine_fn device_discard(FileExport *file, uint32_t length,
                                       uint64_t offset)
{
    uint64_t start = (offset + DISCARD_ALIGN - 1) & ~(DISCARD_ALIGN - 1);
    uint64_t end = (offset + length) & ~(DISCARD_ALIGN - 1);
    int ret;

    if (start >= end ||
        atomic_load_explicit(&file->no_discard, memory_order_relaxed)) {
        return 0;
    }
    ret = by_pieces(file, discard, 0, end - start, start);
    if (ret == -EOPNOTSUPP) {
        atomic_store_explicit(&file->no_discard, true, memory_order_relaxed);
    }
    return ret;
}

int coroutine_fn file_trim(Export *export, BufferCache *buffers,
                           uint32_t length, uint64_t offset)
{
    FileExport *file = file_of(export);
    int ret;

    (void)buffers;
    if (file->is_device) {
        ret = device_discard(file, length, offset);
    } else {
        ret = try_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                            length, offset, &file->no_punch);
    }
    switch (ret) {
    case -EOPNOTSUPP:
    case -ENOSYS:
    case -ENOTTY:
    case -EINVAL:
    case -EAGAIN: /* no worker to be had */
        return 0;
    default:
        return ret;
    }
}

typedef struct ExtentsJob {
    int fd;
    uint64_t offset;
    uint64_t end;
    Extent *extents;
    int max;
} ExtentsJob;

/*
 * One run of data or hole from pos on.  Others change the file meanwhile, so
 * that the two seeks may contradict each other: then the answer is data, which
 * is never wrong.  Returns its state and where it ends, in (pos, end], or
 * -errno.
 */
static int next_extent(int fd, uint64_t pos, uint64_t end, uint64_t *run_end)
{
    off_t data = lseek(fd, (off_t)pos, SEEK_DATA);
    off_t hole;

    *run_end = end;
    if (data < 0) {
        return errno == ENXIO ? NBD_STATE_HOLE | NBD_STATE_ZERO : -errno;
    }
    if ((uint64_t)data > pos) {
        *run_end = (uint64_t)data < end ? (uint64_t)data : end;
        return NBD_STATE_HOLE | NBD_STATE_ZERO;
    }
    hole = lseek(fd, (off_t)pos, SEEK_HOLE);
    if (hole > 0 && (uint64_t)hole > pos && (uint64_t)hole < end) {
        *run_end = (uint64_t)hole;
    }
    return 0;
}

/*
 * What a file has lost that was made shorter is no hole: a client would not
 * read it, and take for zeroes what it could not have.  The first hole that
 * reaches behind the end is cut there, or called data if it begins there, and
 * is the last extent.  Returns how many there are, or -errno.
 */
static int cut_behind_the_end(ExtentsJob *job, int n)
{
    uint64_t pos = job->offset;
    struct stat st;

    /* After the seeks, lest it shrinks in between. */
    if (fstat(job->fd, &st) < 0) {
        return -errno;
    }
    for (int i = 0; i < n; i++) {
        Extent *extent = &job->extents[i];

        if (extent->state != 0 && pos + extent->length > (uint64_t)st.st_size) {
            if (pos < (uint64_t)st.st_size) {
                extent->length = (uint32_t)((uint64_t)st.st_size - pos);
            } else {
                extent->state = 0;
            }
            return i + 1;
        }
        pos += extent->length;
    }
    return n;
}

/* Moves the file position, which nothing else uses. */
static int extents_job(void *arg)
{
    ExtentsJob *job = arg;
    uint64_t pos = job->offset;
    int n = 0;

    while (pos < job->end && n < job->max) {
        uint64_t run_end;
        int state = next_extent(job->fd, pos, job->end, &run_end);

        if (state < 0) {
            return state;
        }
        job->extents[n].length = (uint32_t)(run_end - pos);
        job->extents[n].state = (uint32_t)state;
        pos = run_end;
        n++;
    }
    return cut_behind_the_end(job, n);
}

int coroutine_fn file_extents(Export *export, uint32_t length, uint64_t offset,
                              Extent *extents, int max)
{
    FileExport *file = file_of(export);
    ExtentsJob job = { file->fd, offset, offset + length, extents, max };
    int ret = -EOPNOTSUPP;

    /* Devices have no holes that they would tell of. */
    if (!file->is_device &&
        !atomic_load_explicit(&file->no_extents, memory_order_relaxed)) {
        ret = co_run_in_worker(extents_job, &job);
        if (ret == -EINVAL || ret == -EOPNOTSUPP) {
            atomic_store_explicit(&file->no_extents, true,
                                  memory_order_relaxed);
        }
    }
    if (ret < 0) {
        extents[0].length = length; /* "allocated" is never wrong */
        extents[0].state = 0;
        ret = 1;
    }
    return ret;
}
