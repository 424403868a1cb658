/* SPDX-License-Identifier: MIT */
/*
 * null:SIZE: reads as zeroes and swallows what is written, for measurements.
 */
#include "export.h"

#include <stdlib.h>
#include <string.h>

#include "protocol.h"

static void null_close(Export *export)
{
    free(export);
}

/* What most reads are answered from; longer ones get buffers. */
static const uint8_t zeroes[128 << 10];

static const void *null_lend(Export *export, uint32_t length, uint64_t offset)
{
    (void)export;
    (void)offset;
    return length <= sizeof(zeroes) ? zeroes : NULL;
}

static int coroutine_fn null_read(Export *export, BufferCache *buffers,
                                  void *data, uint32_t length, uint64_t offset)
{
    (void)export;
    (void)buffers;
    (void)offset;
    memset(data, 0, length);
    return 0;
}

static int coroutine_fn null_write(Export *export, BufferCache *buffers,
                                   const void *data, uint32_t length,
                                   uint64_t offset)
{
    (void)export;
    (void)buffers;
    (void)data;
    (void)length;
    (void)offset;
    return 0;
}

static int coroutine_fn null_trim(Export *export, BufferCache *buffers,
                                  uint32_t length, uint64_t offset)
{
    (void)export;
    (void)buffers;
    (void)length;
    (void)offset;
    return 0;
}

static int coroutine_fn null_zero(Export *export, BufferCache *buffers,
                                  uint32_t length, uint64_t offset,
                                  unsigned flags)
{
    (void)flags;
    return null_trim(export, buffers, length, offset);
}

static int coroutine_fn null_cache(Export *export, uint32_t length,
                                   uint64_t offset)
{
    (void)export;
    (void)length;
    (void)offset;
    return 0;
}

static int coroutine_fn null_extents(Export *export, uint32_t length,
                                     uint64_t offset, Extent *extents, int max)
{
    (void)export;
    (void)offset;
    (void)max;
    extents[0].length = length;
    extents[0].state = NBD_STATE_HOLE | NBD_STATE_ZERO;
    return 1;
}

static const ExportOps null_ops = {
    .busy = EXPORT_BUSY(NBD_CMD_READ),
    .close = null_close,
    .lend = null_lend,
    .read = null_read,
    .write = null_write,
    .trim = null_trim,
    .zero = null_zero,
    .cache = null_cache,
    .extents = null_extents,
};

Export *export_null_open(const ExportSpec *spec)
{
    Export *export = calloc(1, sizeof(*export));

    if (!export) {
        log_line(LOG_LEVEL_ERROR, "export %s: out of memory", spec->name);
        return NULL;
    }
    export->ops = &null_ops;
    export->size = spec->size;
    export->preferred_block = 4096;
    export->multi_conn = true;
    return export;
}
