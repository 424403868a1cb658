/* SPDX-License-Identifier: MIT */
/*
 * trial_files.c: reads and writes of 4 KiB of a file, 16 at a time.
 *
 * There are two files, since direct writes take pages out of the cache.  They
 * have no name, and end with the program.  Each block begins with its offset,
 * which every read is checked by, and with the number of the batch that wrote
 * it, which the last batch is checked by.
 */
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "trial.h"

enum { BLOCK = 4096, BLOCKS = 16384, BATCH = 16 };

/* In Way.how, a call or the ring, and how. */
enum {
    NOWAIT = 1, /* preadv2(RWF_NOWAIT) in place of pread() */
    RING = 2,
    FILE_KNOWN = 4,    /* registered */
    BUFFERS_KNOWN = 8, /* likewise */
    WRITE = 16,
    DIRECT = 32,
};

typedef struct Block {
    uint64_t offset;
    uint64_t batch;
    char rest[BLOCK - 16];
} Block;

typedef struct Batch {
    Block blocks[BATCH];
    off_t offsets[BATCH];
    struct io_uring ring;
    int fd;
    int how;
    uint64_t number;
    uint64_t random;
} Batch;

static Batch batch __attribute__((aligned(BLOCK)));

static int make_file(void)
{
    const char *folder = getenv("TMPDIR");
    char path[4096];
    int fd;

    snprintf(path, sizeof(path), "%s/coaio-trial-XXXXXX",
             folder && *folder ? folder : "/var/tmp");
    fd = mkstemp(path);
    bench_check(fd >= 0 && !unlink(path), "there is a folder for files");
    for (unsigned i = 0; i < BLOCKS; i++) {
        Block block = {.offset = (uint64_t)i * BLOCK};

        bench_check(write(fd, &block, BLOCK) == BLOCK, "there is room in it");
    }
    bench_check(!fsync(fd), "it is kept");
    return fd;
}

/* Whether the file system has direct I/O. */
static bool open_direct(int *fd)
{
    char path[64];

    if (*fd < 0) {
        int plain = make_file();

        snprintf(path, sizeof(path), "/proc/self/fd/%d", plain);
        *fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
        close(plain);
    }
    return *fd >= 0;
}

/* It was written, but memory may have become scarce. */
static void open_cached(int *fd)
{
    Block block;

    if (*fd < 0) {
        *fd = make_file();
    }
    for (unsigned i = 0; i < BLOCKS; i++) {
        bench_check(pread(*fd, &block, BLOCK, (off_t)i * BLOCK) == BLOCK,
                    "the file can be read");
    }
}

static void choose_blocks(Batch *b)
{
    b->number++;
    for (unsigned i = 0; i < BATCH; i++) {
        b->offsets[i] = (off_t)(bench_random(&b->random) % BLOCKS) * BLOCK;
        if (b->how & WRITE) {
            b->blocks[i].offset = (uint64_t)b->offsets[i];
            b->blocks[i].batch = b->number;
        }
    }
}

/* Returns false where the kernel refuses. */
static bool read_by_calls(Batch *b)
{
    for (unsigned i = 0; i < BATCH; i++) {
        struct iovec room = {&b->blocks[i], BLOCK};
        ssize_t n = b->how & NOWAIT
                        ? preadv2(b->fd, &room, 1, b->offsets[i], RWF_NOWAIT)
                        : pread(b->fd, &b->blocks[i], BLOCK, b->offsets[i]);

        if (n != BLOCK) {
            return false;
        }
    }
    return true;
}

static void submit_block(Batch *b, unsigned i)
{
    struct io_uring_sqe *sqe = ring_sqe(&b->ring);
    int fd = b->how & FILE_KNOWN ? 0 : b->fd;
    uint64_t offset = (uint64_t)b->offsets[i];
    Block *block = &b->blocks[i];

    switch (b->how & (WRITE | BUFFERS_KNOWN)) {
    case WRITE | BUFFERS_KNOWN:
        io_uring_prep_write_fixed(sqe, fd, block, BLOCK, offset, 0);
        break;
    case WRITE:
        io_uring_prep_write(sqe, fd, block, BLOCK, offset);
        break;
    case BUFFERS_KNOWN:
        io_uring_prep_read_fixed(sqe, fd, block, BLOCK, offset, 0);
        break;
    default:
        io_uring_prep_read(sqe, fd, block, BLOCK, offset);
        break;
    }
    if (b->how & FILE_KNOWN) {
        sqe->flags |= IOSQE_FIXED_FILE;
    }
}

/* Returns false where the kernel refuses. */
static bool move_by_ring(Batch *b)
{
    struct io_uring_cqe *cqe;
    unsigned due = BATCH;
    bool good = true;

    for (unsigned i = 0; i < BATCH; i++) {
        submit_block(b, i);
    }
    while (due > 0) {
        io_uring_submit_and_wait(&b->ring, due);
        while (due > 0 && io_uring_peek_cqe(&b->ring, &cqe) == 0) {
            good = good && cqe->res == BLOCK;
            io_uring_cqe_seen(&b->ring, cqe);
            due--;
        }
    }
    return good;
}

static bool move_blocks(Batch *b)
{
    bool good;

    choose_blocks(b);
    good = b->how & RING ? move_by_ring(b) : read_by_calls(b);
    for (unsigned i = 0; good && i < BATCH; i++) {
        bench_check(b->blocks[i].offset == (uint64_t)b->offsets[i],
                    "a block has its own offset");
    }
    return good;
}

/* What was written last is there. */
static void check_written(Batch *b)
{
    static Block block __attribute__((aligned(BLOCK)));

    for (unsigned i = 0; i < BATCH; i++) {
        bench_check(pread(b->fd, &block, BLOCK, b->offsets[i]) == BLOCK &&
                        block.batch == b->number,
                    "what was written is there");
    }
}

/* Returns false where the kernel refuses. */
static bool batch_open(Batch *b, int how)
{
    static int cached = -1, direct = -1;
    struct iovec blocks = {b->blocks, sizeof(b->blocks)};

    b->how = how;
    b->random = 1;
    if (!(how & DIRECT)) {
        open_cached(&cached);
    } else if (!open_direct(&direct)) {
        return false;
    }
    b->fd = how & DIRECT ? direct : cached;
    ring_open(&b->ring);
    if ((!(how & FILE_KNOWN) ||
         io_uring_register_files(&b->ring, &b->fd, 1) == 0) &&
        (!(how & BUFFERS_KNOWN) ||
         io_uring_register_buffers(&b->ring, &blocks, 1) == 0)) {
        return true;
    }
    io_uring_queue_exit(&b->ring);
    return false;
}

static bool run_file(const Way *way, uint64_t ns, Cost *cost)
{
    uint64_t begin, cpu, count = 0;
    bool good = true;

    bench_pin(0);
    if (!batch_open(&batch, way->how)) {
        return false;
    }
    begin = bench_now();
    cpu = cpu_now();
    while (good && bench_now() - begin < ns) {
        good = move_blocks(&batch);
        count += BATCH;
    }
    cost->wall_ns = (double)(bench_now() - begin) / (double)count;
    cost->cpu_ns = (double)(cpu_now() - cpu) / (double)count;
    if (good && way->how & WRITE) {
        check_written(&batch);
    }
    io_uring_queue_exit(&batch.ring);
    return good;
}

#define BY_RING(task, call, how)                                               \
    {task, "the ring's " call, run_file, RING | (how), 0, 0},                  \
        {task, "the ring's " call ", registered file", run_file,               \
         RING | FILE_KNOWN | (how), 0, 0},                                     \
    {                                                                          \
        task, "the ring's " call "_FIXED, both registered", run_file,          \
            RING | FILE_KNOWN | BUFFERS_KNOWN | (how), 0, 0                    \
    }

const Way file_ways[] = {
    {"read, page cache", "pread()", run_file, 0, 0, 0},
    {"read, page cache", "preadv2(RWF_NOWAIT)", run_file, NOWAIT, 0, 0},
    BY_RING("read, page cache", "READ", 0),
    BY_RING("read, O_DIRECT", "READ", DIRECT),
    BY_RING("write, O_DIRECT", "WRITE", DIRECT | WRITE),
    {NULL, NULL, NULL, 0, 0, 0},
};
