/* SPDX-License-Identifier: MIT */
/*
 * What all exports share (export.h): opening by kind, flags, flushing.
 *
 * DURABILITY
 *
 * export_flush() promises that a sync has begun after the call and ended well
 * before the return.  Flushes that come while a sync runs share the next one:
 *
 *   - A flush notes ticket = started + 1 under the lock: the sync of that
 *     number has not begun yet, so it covers every write that returned before
 *     the flush came.
 *   - The sync of number n begins only after started = n was set under the
 *     lock, so nobody takes ticket n after sync n has begun.  If it could not
 *     begin at all, its number is that of the next one.
 *   - Syncs run one at a time, so finished >= ticket means that sync ticket,
 *     or a later one, has succeeded, and it began after the flush came.
 *
 * INVARIANTS, under the lock
 *
 *   1. finished <= started, and started - finished <= 1 unless failed.
 *   2. failed is never unset.
 */
#include "export.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "log.h"
#include "protocol.h"

Export *export_open(const ExportSpec *spec, bool direct)
{
    Export *export = NULL;

    switch (spec->kind) {
    case EXPORT_FILE:
        export = export_file_open(spec, direct);
        break;
    case EXPORT_MEMORY:
        export = export_memory_open(spec);
        break;
    case EXPORT_NULL:
        export = export_null_open(spec);
        break;
    }
    if (export) {
        export->name = spec->name;
        export->read_only = spec->read_only;
        co_mutex_init(&export->sync.lock);
        co_queue_init(&export->sync.changed);
    }
    return export;
}

void export_close(Export *export)
{
    if (export) {
        assert(!export->sync.running);
        export->ops->close(export);
    }
}

uint16_t export_flags(const Export *export, bool structured)
{
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH |
                     NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

    if (export->read_only) {
        flags |= NBD_FLAG_READ_ONLY;
    } else {
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                 NBD_FLAG_SEND_FAST_ZERO;
    }
    if (export->multi_conn) {
        flags |= NBD_FLAG_CAN_MULTI_CONN;
    }
    if (structured) {
        flags |= NBD_FLAG_SEND_DF;
    }
    return (uint16_t)flags;
}

/*
 * Makes the next sync, with the lock held before and after.  Returns what it
 * returned.
 */
static int coroutine_fn export_sync_once(Export *export)
{
    ExportSync *sync = &export->sync;
    uint64_t number = ++sync->started;
    bool begun = false;
    int ret;

    assert(!sync->running && !sync->failed);
    sync->running = true;
    co_mutex_unlock(&sync->lock);

    ret = export->ops->sync(export, &begun);

    co_mutex_lock(&sync->lock);
    sync->running = false;
    if (!begun) {
        sync->started--; /* nothing is lost: whoever comes next may try */
    } else if (ret < 0) {
        sync->failed = true;
        log_line(LOG_LEVEL_ERROR,
                 "export %s: sync failed: %s; writes may be lost, and every "
                 "later flush will fail", export->name, strerror(-ret));
    } else {
        assert(sync->finished < number && number == sync->started);
        sync->finished = number;
    }
    co_queue_restart_all(&sync->changed);
    return ret;
}

int coroutine_fn export_flush(Export *export)
{
    ExportSync *sync = &export->sync;
    uint64_t ticket;
    int ret = 0;

    if (!export->ops->sync || export->read_only) {
        return 0;
    }
    co_mutex_lock(&sync->lock);
    ticket = sync->started + 1;
    while (ret == 0 && sync->finished < ticket) {
        if (sync->failed) {
            ret = -EIO;
        } else if (sync->running) {
            co_queue_wait(&sync->changed, &sync->lock);
        } else {
            ret = export_sync_once(export);
        }
    }
    co_mutex_unlock(&sync->lock);
    return ret;
}
