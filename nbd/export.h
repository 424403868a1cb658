/* SPDX-License-Identifier: MIT */
/*
 * Export: a range of bytes that clients read and write, whatever keeps it: a
 * table of functions (ExportOps) for each kind of back end, and in front of it
 * the one way to make writes durable, export_flush().
 *
 * Exports are opened before there are threads and closed when there are none
 * any more; in between, all connections on all I/O threads share them.
 *
 * The caller has checked what it passes: ranges lie within the export, nothing
 * writes to a read-only one, lengths are not 0.  Operations on one export run
 * at the same time; those that overlap have no order.
 *
 * All operations return 0 or a negative errno value, and may suspend.
 */
#ifndef NBD_EXPORT_H
#define NBD_EXPORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <coaio/mutex.h>
#include <coaio/queue.h>

#include "buffer.h"
#include "options.h"

typedef struct Export Export;

/* A run of bytes in one state (NBD_STATE_HOLE, NBD_STATE_ZERO). */
typedef struct Extent {
    uint32_t length;
    uint32_t state;
} Extent;

/* How to write zeroes. */
enum {
    EXPORT_ZERO_NO_HOLE = 1 << 0, /* leave the range allocated */
    EXPORT_ZERO_FAST = 1 << 1,    /* -ENOTSUP if it costs as much as writing */
};

/* The bit of a command in ExportOps.busy. */
#define EXPORT_BUSY(command) (1U << (command))

typedef struct ExportOps {
    /* The commands that keep the calling thread busy for longer the longer
     * they are: they are asked for a piece at a time. */
    unsigned busy;
    void (*close)(Export *export);
    /* Where the bytes of the range lie, for a reply to be sent from there:
     * they stay as long as the export does, and what overlapping writes and
     * trims do to them meanwhile is what they may do to a read.  NULL where
     * they lie in no such place; and in place of the function, where they
     * never do. */
    const void *(*lend)(Export *export, uint32_t length, uint64_t offset);
    int coroutine_fn (*read)(Export *export, BufferCache *buffers, void *data,
                             uint32_t length, uint64_t offset);
    /* How many bytes of buffers read takes for itself; NULL: none, ever. */
    size_t (*read_needs)(Export *export, uint32_t length, uint64_t offset);
    int coroutine_fn (*write)(Export *export, BufferCache *buffers,
                              const void *data, uint32_t length,
                              uint64_t offset);
    /* Everything that was written before is on stable storage on return.
     * *begun is set once the kernel was asked: a failure before that has lost
     * nothing.  NULL where storage is no more stable than this process. */
    int coroutine_fn (*sync)(Export *export, bool *begun);
    /* A hint: may do nothing. */
    int coroutine_fn (*trim)(Export *export, BufferCache *buffers,
                             uint32_t length, uint64_t offset);
    int coroutine_fn (*zero)(Export *export, BufferCache *buffers,
                             uint32_t length, uint64_t offset, unsigned flags);
    /* A hint: will be read soon. */
    int coroutine_fn (*cache)(Export *export, uint32_t length,
                              uint64_t offset);
    /* Fill at most max extents, which follow one another from offset and
     * cover length at the most.  Returns their number, at least 1. */
    int coroutine_fn (*extents)(Export *export, uint32_t length,
                                uint64_t offset, Extent *extents, int max);
} ExportOps;

/*
 * The state of syncing.  Syncs are numbered; a flush is covered by a sync that
 * began after the flush came, whoever made it.
 */
typedef struct ExportSync {
    CoMutex lock;
    CoQueue changed;   /* finished went up, or failed was set; under lock */
    uint64_t started;  /* number of the newest sync that has begun */
    uint64_t finished; /* number of the newest that has succeeded */
    bool running;      /* started has neither succeeded nor failed */
    bool failed;       /* for good: what was lost cannot be known */
} ExportSync;

/* Back ends embed it as their first member. */
struct Export {
    const ExportOps *ops;
    const char *name;         /* belongs to the options */
    uint64_t size;
    uint32_t preferred_block; /* a power of two, at least 512 */
    bool read_only;
    bool multi_conn;          /* flushes on one connection cover all of them */
    ExportSync sync;
};

/**
 * Open what spec describes.  Logs a line and returns NULL if that fails.
 */
Export *export_open(const ExportSpec *spec, bool direct);

/**
 * Close it; NULL is ignored.
 */
void export_close(Export *export);

/**
 * The transmission flags (NBD_FLAG_...) that the export offers.
 */
uint16_t export_flags(const Export *export, bool structured);

/**
 * Make every write that has returned before the call durable.
 *
 * Returns 0, or a negative errno value; after the first failure -EIO for good:
 * the kernel forgets what it could not write, and a retry would succeed
 * falsely.
 */
int coroutine_fn export_flush(Export *export);

/* The back ends.  As export_open(). */
Export *export_file_open(const ExportSpec *spec, bool direct);
Export *export_memory_open(const ExportSpec *spec);
Export *export_null_open(const ExportSpec *spec);

#endif
