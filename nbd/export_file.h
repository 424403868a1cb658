/* SPDX-License-Identifier: MIT */
/*
 * FileExport: what the two ways of reading and writing files share, through
 * the page cache (export_file.c) and past it (export_direct.c).
 */
#ifndef NBD_EXPORT_FILE_H
#define NBD_EXPORT_FILE_H

#include <stdatomic.h>
#include <sys/types.h>

#include <coaio/rwlock.h>

#include "export.h"

/*
 * O_DIRECT: the lock of one file's blocks, which all exports of that file
 * share.  Writes that cover whole blocks are readers, those that must read a
 * block, change it and write it back are writers.
 */
typedef struct FileBlocks FileBlocks;
struct FileBlocks {
    CoRwlock lock;
    FileBlocks *next;    /* of those in use; these are the main thread's */
    unsigned users;
    bool is_device;
    dev_t device;        /* the block device, or where the file lies */
    ino_t inode;         /* of the file; 0 for a device */
};

typedef struct FileExport {
    Export export;
    int fd;              /* the one open file description of the export */
    bool is_device;      /* a block device */
    uint32_t align;      /* O_DIRECT: of offsets and lengths; else 1 */

    /* What the file has turned out not to know, or to know; set once, by
     * anybody. */
    atomic_bool punches;
    atomic_bool no_punch;
    atomic_bool no_zero_range;
    atomic_bool no_discard;  /* a device; it may discard and yet not punch */
    atomic_bool no_extents;

    FileBlocks *blocks;      /* NULL if align is 1 */
} FileExport;

static inline FileExport *file_of(Export *export)
{
    return (FileExport *)export;
}

/**
 * Transfer exactly length bytes, in as many calls as it takes.  The end of the
 * file, which has shrunk then, is -EIO.
 */
int coroutine_fn file_read_fully(int fd, void *data, size_t length,
                                 uint64_t offset);
int coroutine_fn file_write_fully(int fd, const void *data, size_t length,
                                  uint64_t offset);

/**
 * Read and write past the page cache, at any alignment.
 */
int coroutine_fn direct_read(FileExport *file, BufferCache *buffers,
                             void *data, uint32_t length, uint64_t offset);
int coroutine_fn direct_write(FileExport *file, BufferCache *buffers,
                              const void *data, uint32_t length,
                              uint64_t offset);

/**
 * How many bytes of buffer direct_read() takes besides.
 */
size_t direct_needs(const FileExport *file, uint32_t length, uint64_t offset);

/**
 * The alignment that direct I/O on fd wants, at most BUFFER_ALIGN, or 0 if
 * there is none that would do for an export of size bytes.
 */
uint32_t direct_alignment(int fd, bool is_device, uint64_t size);

/**
 * The lock of the blocks of the file that fd is, the same for every descriptor
 * of it; each is put back when its export is closed.  Main thread, while there
 * are no others.  direct_blocks_get() returns 0 or -errno.
 */
int direct_blocks_get(int fd, FileBlocks **blocks);
void direct_blocks_put(FileBlocks *blocks);

/**
 * What the file system keeps of the range (SEEK_DATA, SEEK_HOLE).  As
 * ExportOps.extents.
 */
int coroutine_fn file_extents(Export *export, uint32_t length, uint64_t offset,
                              Extent *extents, int max);

/**
 * Zeroes and trimming.  As ExportOps.
 */
int coroutine_fn file_trim(Export *export, BufferCache *buffers,
                           uint32_t length, uint64_t offset);
int coroutine_fn file_zero(Export *export, BufferCache *buffers,
                           uint32_t length, uint64_t offset, unsigned flags);

#endif
