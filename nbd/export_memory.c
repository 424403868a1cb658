/* SPDX-License-Identifier: MIT */
/*
 * memory:SIZE: a disk in anonymous memory, which takes up what was written and
 * no more, and is gone with the process.
 *
 * The mapping is divided into chunks of 64 KiB, with one bit each that says
 * "may hold something else than zeroes".  Reads of a chunk without it do not
 * touch the mapping, so they allocate nothing; replies to reads that touch only
 * others leave from the mapping, without a copy; trimming gives pages back and
 * takes the bit away from chunks that are covered wholly.
 *
 * INVARIANT
 *
 *   1. While no operation on a chunk is under way, a chunk whose bit is clear
 *      holds only zeroes.
 *
 * Writers set the bit after they have copied; a trim clears it before it
 * empties the pages.  So when the two overlap, which has no defined order for
 * the client, either the pages are emptied after the copy, or the bit is set
 * after it was cleared; never does data stay behind a clear bit, from where
 * it would reappear with the next write to the chunk.
 */
#include "export.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "protocol.h"

#define CHUNK_SHIFT 16
#define CHUNK_SIZE  ((uint64_t)1 << CHUNK_SHIFT)
#define WORD_BITS   64

typedef struct MemoryExport {
    Export export;
    uint8_t *data;           /* the mapping */
    size_t mapped;           /* its length: whole pages, one at least */
    _Atomic uint64_t *used;  /* a bit for each chunk */
    size_t page;
} MemoryExport;

/*
 * Clients may have requests in flight that overlap, and then the bytes of the
 * mapping are written while others read or write them.  What comes of that is
 * the clients' affair, as on any disk; ThreadSanitizer is told so.
 */
#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#define BYTES_MAY_RACE 1
#endif
#endif
#ifdef __SANITIZE_THREAD__
#define BYTES_MAY_RACE 1
#endif

#ifdef BYTES_MAY_RACE
void AnnotateIgnoreReadsBegin(const char *file, int line);
void AnnotateIgnoreReadsEnd(const char *file, int line);
void AnnotateIgnoreWritesBegin(const char *file, int line);
void AnnotateIgnoreWritesEnd(const char *file, int line);
#endif

static void race_begin(void)
{
#ifdef BYTES_MAY_RACE
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
}

static void race_end(void)
{
#ifdef BYTES_MAY_RACE
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
}

static void bytes_copy(void *to, const void *from, size_t length)
{
    race_begin();
    memcpy(to, from, length);
    race_end();
}

static void bytes_clear(void *to, size_t length)
{
    race_begin();
    memset(to, 0, length);
    race_end();
}

static MemoryExport *memory_of(Export *export)
{
    return (MemoryExport *)export;
}

/* Release, for the acquire of chunk_is_used(): who sees the bit sees the
 * data that was copied before. */
static void chunk_set_used(MemoryExport *m, uint64_t chunk)
{
    _Atomic uint64_t *word = &m->used[chunk / WORD_BITS];
    uint64_t bit = (uint64_t)1 << (chunk % WORD_BITS);

    if (!(atomic_load_explicit(word, memory_order_relaxed) & bit)) {
        atomic_fetch_or_explicit(word, bit, memory_order_release);
    }
}

static void chunk_clear_used(MemoryExport *m, uint64_t chunk)
{
    _Atomic uint64_t *word = &m->used[chunk / WORD_BITS];
    uint64_t bit = (uint64_t)1 << (chunk % WORD_BITS);

    atomic_fetch_and_explicit(word, ~bit, memory_order_acq_rel);
}

static bool chunk_is_used(MemoryExport *m, uint64_t chunk)
{
    uint64_t word = atomic_load_explicit(&m->used[chunk / WORD_BITS],
                                         memory_order_acquire);

    return word >> (chunk % WORD_BITS) & 1;
}

/* How many of length bytes from offset lie in the chunk of offset. */
static size_t chunk_part(uint64_t offset, size_t length)
{
    uint64_t rest = CHUNK_SIZE - (offset & (CHUNK_SIZE - 1));

    return length < rest ? length : (size_t)rest;
}

static void memory_close(Export *export)
{
    MemoryExport *m = memory_of(export);

    munmap(m->data, m->mapped);
    free(m->used);
    free(m);
}

static void copy_out(MemoryExport *m, uint8_t *data, size_t length,
                     uint64_t offset)
{
    while (length > 0) {
        size_t part = chunk_part(offset, length);

        if (chunk_is_used(m, offset >> CHUNK_SHIFT)) {
            bytes_copy(data, m->data + offset, part);
        } else {
            memset(data, 0, part);
        }
        data += part;
        offset += part;
        length -= part;
    }
}

/* data NULL stands for zeroes. */
static void copy_in(MemoryExport *m, const uint8_t *data, size_t length,
                    uint64_t offset)
{
    while (length > 0) {
        size_t part = chunk_part(offset, length);

        if (data) {
            bytes_copy(m->data + offset, data, part);
            data += part;
        } else {
            bytes_clear(m->data + offset, part);
        }
        chunk_set_used(m, offset >> CHUNK_SHIFT);
        offset += part;
        length -= part;
    }
}

/*
 * Makes the range zeroes, and gives back what memory it can.  The tail of the
 * last page of the export belongs to nobody, so it is emptied with the rest.
 */
static void punch(MemoryExport *m, size_t length, uint64_t offset)
{
    while (length > 0) {
        size_t part = chunk_part(offset, length);
        uint64_t end = offset + part;
        uint64_t chunk = offset >> CHUNK_SHIFT;
        uint64_t first = (offset + m->page - 1) & ~(uint64_t)(m->page - 1);
        uint64_t last = end & ~(uint64_t)(m->page - 1);
        bool to_end = end == m->export.size;

        if (chunk_is_used(m, chunk)) {
            if ((offset & (CHUNK_SIZE - 1)) == 0 &&
                (part == CHUNK_SIZE || to_end)) {
                chunk_clear_used(m, chunk);
            }
            last = to_end ? m->mapped : last;
            if (first < last &&
                madvise(m->data + first, last - first, MADV_DONTNEED) == 0) {
                bytes_clear(m->data + offset, first - offset);
                bytes_clear(m->data + last, end > last ? end - last : 0);
            } else {
                bytes_clear(m->data + offset, part);
            }
        }
        offset = end;
        length -= part;
    }
}

/*
 * Only from chunks that are in use: a read of the others must not touch the
 * mapping.  If a trim takes them out of use before the reply is sent, the
 * bytes are zeroes, as after the trim.
 */
static const void *memory_lend(Export *export, uint32_t length,
                               uint64_t offset)
{
    MemoryExport *m = memory_of(export);
    uint64_t last = (offset + length - 1) >> CHUNK_SHIFT;

    for (uint64_t chunk = offset >> CHUNK_SHIFT; chunk <= last; chunk++) {
        if (!chunk_is_used(m, chunk)) {
            return NULL;
        }
    }
    return m->data + offset;
}

static int coroutine_fn memory_read(Export *export, BufferCache *buffers,
                                    void *data, uint32_t length,
                                    uint64_t offset)
{
    (void)buffers;
    copy_out(memory_of(export), data, length, offset);
    return 0;
}

static int coroutine_fn memory_write(Export *export, BufferCache *buffers,
                                     const void *data, uint32_t length,
                                     uint64_t offset)
{
    (void)buffers;
    copy_in(memory_of(export), data, length, offset);
    return 0;
}

static int coroutine_fn memory_trim(Export *export, BufferCache *buffers,
                                    uint32_t length, uint64_t offset)
{
    (void)buffers;
    punch(memory_of(export), length, offset);
    return 0;
}

static int coroutine_fn memory_zero(Export *export, BufferCache *buffers,
                                    uint32_t length, uint64_t offset,
                                    unsigned flags)
{
    if (!(flags & EXPORT_ZERO_NO_HOLE)) {
        return memory_trim(export, buffers, length, offset);
    }
    if (flags & EXPORT_ZERO_FAST) {
        return -ENOTSUP;
    }
    copy_in(memory_of(export), NULL, length, offset);
    return 0;
}

static int coroutine_fn memory_cache(Export *export, uint32_t length,
                                     uint64_t offset)
{
    (void)export;
    (void)length;
    (void)offset;
    return 0;
}

static int coroutine_fn memory_extents(Export *export, uint32_t length,
                                       uint64_t offset, Extent *extents,
                                       int max)
{
    MemoryExport *m = memory_of(export);
    int n = 0;

    while (length > 0) {
        uint32_t part = (uint32_t)chunk_part(offset, length);
        uint32_t state = chunk_is_used(m, offset >> CHUNK_SHIFT)
                             ? 0
                             : NBD_STATE_HOLE | NBD_STATE_ZERO;

        if (n > 0 && extents[n - 1].state == state) {
            extents[n - 1].length += part;
        } else if (n == max) {
            break;
        } else {
            extents[n].length = part;
            extents[n].state = state;
            n++;
        }
        offset += part;
        length -= part;
    }
    return n;
}

static const ExportOps memory_ops = {
    .busy = EXPORT_BUSY(NBD_CMD_READ) | EXPORT_BUSY(NBD_CMD_WRITE) |
            EXPORT_BUSY(NBD_CMD_TRIM) | EXPORT_BUSY(NBD_CMD_WRITE_ZEROES),
    .close = memory_close,
    .lend = memory_lend,
    .read = memory_read,
    .write = memory_write,
    .trim = memory_trim,
    .zero = memory_zero,
    .cache = memory_cache,
    .extents = memory_extents,
};

/* Returns whether there was room for the mapping and the bits. */
static bool memory_map(MemoryExport *m, uint64_t size)
{
    uint64_t chunks = (size >> CHUNK_SHIFT) + 1;

    m->page = (size_t)sysconf(_SC_PAGESIZE);
    if (size > SIZE_MAX - m->page) {
        return false;
    }
    m->mapped = (size + m->page) & ~(m->page - 1); /* a page at least */
    m->used = calloc(chunks / WORD_BITS + 1, sizeof(*m->used));
    m->data = mmap(NULL, m->mapped, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m->data == MAP_FAILED || !m->used) {
        return false;
    }
    /* A huge page for a small write would not be sparse. */
    madvise(m->data, m->mapped, MADV_NOHUGEPAGE);
    madvise(m->data, m->mapped, MADV_DONTDUMP);
    return true;
}

Export *export_memory_open(const ExportSpec *spec)
{
    MemoryExport *m = calloc(1, sizeof(*m));

    if (!m || !memory_map(m, spec->size)) {
        log_line(LOG_LEVEL_ERROR, "export %s: no memory for %s", spec->name,
                 spec->source);
        if (m) {
            free(m->used);
            if (m->data && m->data != MAP_FAILED) {
                munmap(m->data, m->mapped);
            }
            free(m);
        }
        return NULL;
    }
    m->export.ops = &memory_ops;
    m->export.size = spec->size;
    m->export.preferred_block = 4096;
    m->export.multi_conn = true;
    return &m->export;
}
