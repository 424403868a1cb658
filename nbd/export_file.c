/* SPDX-License-Identifier: MIT */
/*
 * Regular files and block devices.
 *
 * An export has one open file description, which all connections share.  So a
 * sync covers what any of them has written, and an error of writing back,
 * which the kernel reports once for each open file description, cannot slip
 * past through another: that is what multi-conn rests on.
 *
 * The size is taken when the export is opened, and stays.  If the file shrinks
 * under the server, reads behind its end give EIO, and what was there is not
 * called a hole.  A write makes it longer again; punching zeroes does not, nor
 * does a write of a part of a block with O_DIRECT, whose other part is gone.
 */
#include "export_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <coaio/io.h>

int coroutine_fn file_read_fully(int fd, void *data, size_t length,
                                 uint64_t offset)
{
    uint8_t *p = data;

    while (length > 0) {
        ssize_t n = co_pread(fd, p, length, (off_t)offset);

        if (n <= 0) {
            return n < 0 ? (int)n : -EIO;
        }
        p += n;
        offset += (uint64_t)n;
        length -= (size_t)n;
    }
    return 0;
}

int coroutine_fn file_write_fully(int fd, const void *data, size_t length,
                                  uint64_t offset)
{
    const uint8_t *p = data;

    while (length > 0) {
        ssize_t n = co_pwrite(fd, p, length, (off_t)offset);

        if (n <= 0) {
            return n < 0 ? (int)n : -EIO;
        }
        p += n;
        offset += (uint64_t)n;
        length -= (size_t)n;
    }
    return 0;
}

static void file_close(Export *export)
{
    FileExport *file = file_of(export);

    if (file->blocks) {
        direct_blocks_put(file->blocks);
    }
    close(file->fd);
    free(file);
}

static int coroutine_fn file_read(Export *export, BufferCache *buffers,
                                  void *data, uint32_t length, uint64_t offset)
{
    FileExport *file = file_of(export);

    if (file->align > 1) {
        return direct_read(file, buffers, data, length, offset);
    }
    return file_read_fully(file->fd, data, length, offset);
}

static size_t file_read_needs(Export *export, uint32_t length,
                              uint64_t offset)
{
    FileExport *file = file_of(export);

    return file->align > 1 ? direct_needs(file, length, offset) : 0;
}

static int coroutine_fn file_write(Export *export, BufferCache *buffers,
                                   const void *data, uint32_t length,
                                   uint64_t offset)
{
    FileExport *file = file_of(export);

    if (file->align > 1) {
        return direct_write(file, buffers, data, length, offset);
    }
    return file_write_fully(file->fd, data, length, offset);
}

#ifdef COAIO_NBD_MUTANT_NO_SYNC
/* For the tests, which must notice. */
static int coroutine_fn file_sync(Export *export, bool *begun)
{
    (void)export;
    *begun = true;
    return 0;
}
#else
typedef struct SyncJob {
    int fd;
    bool begun;
} SyncJob;

static int sync_job(void *arg)
{
    SyncJob *job = arg;
    int ret;

    job->begun = true;
    do {
        ret = fdatasync(job->fd) < 0 ? -errno : 0;
    } while (ret == -EINTR);
    return ret;
}

/* By a worker: co_fdatasync() does not tell whether what has failed is the
 * sync, or to find somebody who would make it. */
static int coroutine_fn file_sync(Export *export, bool *begun)
{
    SyncJob job = { .fd = file_of(export)->fd };
    int ret = co_run_in_worker(sync_job, &job);

    *begun = job.begun;
    return ret;
}
#endif

typedef struct CacheJob {
    int fd;
    off_t offset;
    off_t length;
} CacheJob;

static int cache_job(void *arg)
{
    CacheJob *job = arg;

    return -posix_fadvise(job->fd, job->offset, job->length,
                          POSIX_FADV_WILLNEED);
}

/* A hint that cannot be followed is no error. */
static int coroutine_fn file_cache(Export *export, uint32_t length,
                                   uint64_t offset)
{
    FileExport *file = file_of(export);
    CacheJob job = { file->fd, (off_t)offset, (off_t)length };

    if (file->align == 1) {
        co_run_in_worker(cache_job, &job);
    }
    return 0;
}

static const ExportOps file_ops = {
    .close = file_close,
    .read = file_read,
    .read_needs = file_read_needs,
    .write = file_write,
    .sync = file_sync,
    .trim = file_trim,
    .zero = file_zero,
    .cache = file_cache,
    .extents = file_extents,
};

/* Learns size and kind of what fd is.  Returns 0 or -errno. */
static int file_examine(FileExport *file)
{
    struct stat st;

    if (fstat(file->fd, &st) < 0) {
        return -errno;
    }
    if (S_ISBLK(st.st_mode)) {
        file->is_device = true;
        return ioctl(file->fd, BLKGETSIZE64, &file->export.size) < 0 ? -errno
                                                                     : 0;
    }
    if (!S_ISREG(st.st_mode)) {
        return -EINVAL;
    }
    file->export.size = (uint64_t)st.st_size;
    return 0;
}

/*
 * Opens path once, with O_DIRECT if wanted and possible.  Opening a FIFO or
 * a terminal could block or do harm, so it is not even tried.
 */
static int file_open_fd(const ExportSpec *spec, bool *direct)
{
    int flags = O_CLOEXEC | O_NOCTTY | (spec->read_only ? O_RDONLY : O_RDWR);
    struct stat st;
    int fd;

    if (stat(spec->source, &st) < 0) {
        return -errno;
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        return -EINVAL;
    }
    if (*direct) {
        fd = open(spec->source, flags | O_DIRECT);
        if (fd >= 0 || errno != EINVAL) {
            return fd >= 0 ? fd : -errno;
        }
        *direct = false;
    }
    fd = open(spec->source, flags);
    return fd >= 0 ? fd : -errno;
}

/* Finds alignment and lock, or goes back to the page cache with a warning. */
static int file_setup_direct(FileExport *file, const ExportSpec *spec,
                             bool opened_direct)
{
    int flags;

    if (opened_direct) {
        file->align = direct_alignment(file->fd, file->is_device,
                                       file->export.size);
        if (file->align > 0) {
            return direct_blocks_get(file->fd, &file->blocks);
        }
        flags = fcntl(file->fd, F_GETFL);
        if (flags < 0 || fcntl(file->fd, F_SETFL, flags & ~O_DIRECT) < 0) {
            return -errno;
        }
    }
    file->align = 1;
    log_line(LOG_LEVEL_WARNING,
             "export %s: no direct I/O on %s; using the page cache",
             spec->name, spec->source);
    return 0;
}

Export *export_file_open(const ExportSpec *spec, bool direct)
{
    FileExport *file = calloc(1, sizeof(*file));
    bool opened_direct = direct;
    int ret = -ENOMEM;

    if (!file) {
        goto fail;
    }
    file->align = 1;
    ret = file->fd = file_open_fd(spec, &opened_direct);
    if (ret < 0) {
        goto fail;
    }
    ret = file_examine(file);
    if (ret == 0 && direct) {
        ret = file_setup_direct(file, spec, opened_direct);
    }
    if (ret < 0) {
        close(file->fd);
        goto fail;
    }
    file->export.ops = &file_ops;
    file->export.preferred_block = 4096;
    file->export.multi_conn = true;
    return &file->export;

fail:
    free(file);
    log_line(LOG_LEVEL_ERROR, "export %s: cannot open %s: %s", spec->name,
             spec->source,
             ret == -EINVAL ? "not a regular file or a block device"
                            : strerror(-ret));
    return NULL;
}
