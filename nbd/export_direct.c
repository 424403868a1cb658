/* SPDX-License-Identifier: MIT */
/*
 * Files past the page cache (O_DIRECT), at any alignment.
 *
 * The kernel wants offsets, lengths and addresses in whole blocks.  What a
 * client sends aligned goes straight through.  The rest goes through a bounce
 * buffer, in pieces; a write that covers a block in part reads it, changes it
 * and writes it back.
 *
 * Two writes that share no byte may share a block, and the client may have
 * both in flight.  So who reads, changes and writes back excludes every other
 * writer (the lock of FileBlocks: whole blocks read-lock it, partial ones
 * write-lock it).  Neither does it matter through which export they come: those
 * of one file, known by its numbers and not by its path, have one lock.
 *
 * The last block of a file that does not end with one could not be written
 * back without making the file longer: such a file is not served directly.
 */
#include "export_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#define BOUNCE ((size_t)1 << 20)

/* What statx() says: 0 is "not at all", and -1 that it does not say. */
static int64_t statx_alignment(int fd)
{
#ifdef STATX_DIOALIGN
    struct statx stx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN)) {
        if (stx.stx_dio_offset_align > stx.stx_dio_mem_align) {
            return stx.stx_dio_offset_align;
        }
        return stx.stx_dio_mem_align;
    }
#else
    (void)fd;
#endif
    return -1;
}

uint32_t direct_alignment(int fd, bool is_device, uint64_t size)
{
    int64_t align = statx_alignment(fd);

    if (align < 0) {
        int sector;

        align = 4096;
        if (is_device && ioctl(fd, BLKSSZGET, &sector) == 0) {
            align = sector;
        }
    }
    if (align < 512 && align > 0) {
        align = 512;
    }
    if (align == 0 || align > (int64_t)BUFFER_ALIGN || (align & (align - 1)) ||
        size % (uint64_t)align) {
        return 0;
    }
    return (uint32_t)align;
}

/* Of the files that are open. */
static FileBlocks *all_blocks;

static bool is_of(const FileBlocks *blocks, const FileBlocks *key)
{
    return blocks->is_device == key->is_device &&
           blocks->device == key->device && blocks->inode == key->inode;
}

int direct_blocks_get(int fd, FileBlocks **result)
{
    FileBlocks key = { .users = 0 };
    FileBlocks *blocks = all_blocks;
    struct stat st;

    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    key.is_device = S_ISBLK(st.st_mode);
    key.device = key.is_device ? st.st_rdev : st.st_dev;
    key.inode = key.is_device ? 0 : st.st_ino;
    while (blocks && !is_of(blocks, &key)) {
        blocks = blocks->next;
    }
    if (!blocks) {
        blocks = malloc(sizeof(*blocks));
        if (!blocks) {
            return -ENOMEM;
        }
        *blocks = key;
        co_rwlock_init(&blocks->lock);
        blocks->next = all_blocks;
        all_blocks = blocks;
    }
    blocks->users++;
    *result = blocks;
    return 0;
}

void direct_blocks_put(FileBlocks *blocks)
{
    FileBlocks **p = &all_blocks;

    assert(blocks->users > 0);
    if (--blocks->users > 0) {
        return;
    }
    while (*p != blocks) {
        p = &(*p)->next;
    }
    *p = blocks->next;
    free(blocks);
}

static bool is_aligned(const FileExport *file, const void *data,
                       uint32_t length, uint64_t offset)
{
    return (((uintptr_t)data | length | offset) & (file->align - 1)) == 0;
}

/* The buffer that an unaligned transfer goes through: no larger than it has use
 * for. */
static size_t bounce_size(const FileExport *file, uint32_t length)
{
    size_t size = (size_t)length + 2 * (size_t)file->align;

    return buffer_capacity(size < BOUNCE ? size : BOUNCE);
}

size_t direct_needs(const FileExport *file, uint32_t length, uint64_t offset)
{
    return is_aligned(file, NULL, length, offset) ? 0
                                                  : bounce_size(file, length);
}

/* A piece of an unaligned transfer, and the whole blocks around it. */
typedef struct Bounce {
    uint64_t start;   /* of the blocks */
    size_t length;    /* of the blocks, at most BOUNCE */
    size_t skip;      /* where the piece begins in them */
    size_t piece;     /* length of the piece */
} Bounce;

static Bounce bounce_of(const FileExport *file, size_t length, uint64_t offset)
{
    uint64_t mask = file->align - 1;
    uint64_t end;
    Bounce b;

    b.start = offset & ~mask;
    b.skip = (size_t)(offset - b.start);
    b.piece = length < BOUNCE - b.skip ? length : BOUNCE - b.skip;
    end = (offset + b.piece + mask) & ~mask;
    b.length = (size_t)(end - b.start);
    assert(b.length <= BOUNCE && end <= file->export.size);
    return b;
}

int coroutine_fn direct_read(FileExport *file, BufferCache *buffers,
                             void *data, uint32_t length, uint64_t offset)
{
    size_t capacity = bounce_size(file, length);
    uint8_t *p = data;
    void *bounce;
    int ret = 0;

    if (is_aligned(file, data, length, offset)) {
        return file_read_fully(file->fd, data, length, offset);
    }
    bounce = buffer_get(buffers, capacity);
    if (!bounce) {
        return -ENOMEM;
    }
    while (length > 0 && ret == 0) {
        Bounce b = bounce_of(file, length, offset);

        ret = file_read_fully(file->fd, bounce, b.length, b.start);
        if (ret == 0) {
            memcpy(p, (uint8_t *)bounce + b.skip, b.piece);
        }
        p += b.piece;
        offset += b.piece;
        length -= (uint32_t)b.piece;
    }
    buffer_put(buffers, bounce, capacity);
    return ret;
}

/* Fills in what the first and the last block hold beside the piece. */
static int coroutine_fn read_edges(FileExport *file, uint8_t *bounce,
                                   const Bounce *b)
{
    size_t last = b->length - file->align;
    int ret = 0;

    if (b->skip > 0 || b->skip + b->piece < file->align) {
        ret = file_read_fully(file->fd, bounce, file->align, b->start);
    }
    if (ret == 0 && last > 0 && b->skip + b->piece < b->length) {
        ret = file_read_fully(file->fd, bounce + last, file->align,
                              b->start + last);
    }
    return ret;
}

static int coroutine_fn write_bounced(FileExport *file, void *bounce,
                                      const void *data, uint32_t length,
                                      uint64_t offset)
{
    const uint8_t *p = data;
    int ret = 0;

    while (length > 0 && ret == 0) {
        Bounce b = bounce_of(file, length, offset);

        ret = read_edges(file, bounce, &b);
        if (ret == 0) {
            memcpy((uint8_t *)bounce + b.skip, p, b.piece);
            ret = file_write_fully(file->fd, bounce, b.length, b.start);
        }
        p += b.piece;
        offset += b.piece;
        length -= (uint32_t)b.piece;
    }
    return ret;
}

int coroutine_fn direct_write(FileExport *file, BufferCache *buffers,
                              const void *data, uint32_t length,
                              uint64_t offset)
{
    size_t capacity = bounce_size(file, length);
    void *bounce;
    int ret = -ENOMEM;

    if (is_aligned(file, data, length, offset)) {
        co_rwlock_rdlock(&file->blocks->lock);
        ret = file_write_fully(file->fd, data, length, offset);
        co_rwlock_unlock(&file->blocks->lock);
        return ret;
    }
    co_rwlock_wrlock(&file->blocks->lock);
    bounce = buffer_get(buffers, capacity); /* now: so there is only one */
    if (bounce) {
        ret = write_bounced(file, bounce, data, length, offset);
        buffer_put(buffers, bounce, capacity);
    }
    co_rwlock_unlock(&file->blocks->lock);
    return ret;
}
