/* SPDX-License-Identifier: MIT */
/*
 * Requests (request.h): checked against the protocol and the export, then run.
 *
 * What reaches the back end is within the export, writable if it writes, of a
 * length that is not 0, and has only flags that mean something for its
 * command.  An answer that promises durability (FUA, FLUSH) is given after
 * export_flush() has said so, and that is called after what it covers has
 * returned.
 */
#include "request.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include <coaio/coroutine.h>
#include <coaio/io.h>

#include "log.h"
#include "protocol.h"
#include "server.h"
#include "wire.h"

/* A BLOCK_STATUS reply is built in a buffer of this size. */
#define EXTENTS_BYTES BUFFER_MIN

/* Extents that are looked up at once: those that fit in behind the context's
 * number, and a stack. */
#define EXTENTS_MAX 256

/* So much a long operation does on the loop's thread between two passes. */
#define PIECE_MAX ((uint32_t)1 << 20)

Request *request_new(Connection *conn, const uint8_t *header)
{
    Request *req = server_request_get(conn->thread);

    if (!req) {
        return NULL;
    }
    memset(req, 0, sizeof(*req));
    req->conn = conn;
    req->flags = wire_get16(header + 4);
    req->type = wire_get16(header + 6);
    req->cookie = wire_get64(header + 8);
    req->offset = wire_get64(header + 16);
    req->length = wire_get32(header + 24);
    return req;
}

static void discharge(Request *req, size_t bytes)
{
    assert(bytes <= req->charge && req->charge <= req->conn->inflight);
    req->charge -= bytes;
    req->conn->inflight -= bytes;
}

void request_drop_buffer(Request *req)
{
    if (req->buffer) {
        buffer_put(&req->conn->thread->buffers, req->buffer, req->capacity);
        req->buffer = NULL;
        discharge(req, req->capacity);
    }
}

void request_free(Request *req)
{
    Connection *conn = req->conn;

    request_drop_buffer(req);
    if (req->charge > 0) { /* it was admitted */
        discharge(req, req->charge);
        assert(conn->n_requests > 0);
        conn->n_requests--;
        co_queue_next(&conn->room);
    }
    server_request_put(conn->thread, req);
}

/* The flags that a command may have; FUA goes with all of them. */
static uint16_t flags_allowed(const Request *req)
{
    switch (req->type) {
    case NBD_CMD_READ:
        return NBD_CMD_FLAG_FUA |
               (req->conn->structured ? NBD_CMD_FLAG_DF : 0);
    case NBD_CMD_WRITE_ZEROES:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE |
               NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
    default:
        return NBD_CMD_FLAG_FUA;
    }
}

static bool is_writing(const Request *req)
{
    return req->type == NBD_CMD_WRITE || req->type == NBD_CMD_TRIM ||
           req->type == NBD_CMD_WRITE_ZEROES;
}

static uint32_t check_range(const Request *req, const char **why)
{
    const Export *export = req->conn->export;

    if ((req->type == NBD_CMD_READ || req->type == NBD_CMD_WRITE) &&
        req->length > PAYLOAD_MAX) {
        *why = "longer than 32 MiB";
        return NBD_EINVAL;
    }
    if (req->offset > export->size ||
        req->length > export->size - req->offset) {
        *why = "beyond the end of the export";
        return req->type == NBD_CMD_WRITE || req->type == NBD_CMD_WRITE_ZEROES
                   ? NBD_ENOSPC
                   : NBD_EINVAL;
    }
    return NBD_SUCCESS;
}

uint32_t request_check(const Request *req, const char **why)
{
    if (req->type > NBD_CMD_BLOCK_STATUS || req->type == NBD_CMD_DISC) {
        *why = "unknown command";
        return NBD_EINVAL;
    }
    if (req->flags & ~flags_allowed(req)) {
        *why = "flag that is unknown or not for this command";
        return NBD_EINVAL;
    }
    if (is_writing(req) && req->conn->export->read_only) {
        *why = "the export is read-only";
        return NBD_EPERM;
    }
    if (req->type == NBD_CMD_FLUSH) {
        if (req->offset != 0 || req->length != 0) {
            *why = "a flush has neither offset nor length";
            return NBD_EINVAL;
        }
        return NBD_SUCCESS;
    }
    if (req->type == NBD_CMD_BLOCK_STATUS) {
        if (!req->conn->block_status) {
            *why = "no metadata context was selected";
            return NBD_EINVAL;
        }
        if (req->length == 0) {
            *why = "no range was given";
            return NBD_EINVAL;
        }
    }
    return check_range(req, why);
}

bool request_borrow(Request *req)
{
    Export *export = req->conn->export;

    if (req->type == NBD_CMD_READ && req->length > 0 && export->ops->lend) {
        req->payload = export->ops->lend(export, req->length, req->offset);
    }
    return req->payload != NULL;
}

size_t request_buffer_size(const Request *req)
{
    switch (req->type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return req->length;
    case NBD_CMD_BLOCK_STATUS:
        return EXTENTS_BYTES;
    default:
        return 0;
    }
}

size_t request_charge(const Request *req)
{
    Export *export = req->conn->export;
    size_t charge = REQUEST_COST + req->capacity;

    if (req->type == NBD_CMD_READ && req->capacity > 0 &&
        export->ops->read_needs) {
        charge += export->ops->read_needs(export, req->length, req->offset);
    }
    return charge;
}

/* What an errno value is called on the wire. */
static uint32_t wire_error(int ret)
{
    switch (-ret) {
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
    case EAGAIN: /* no worker to be had */
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    default:
        return NBD_EIO;
    }
}

static const char *command_name(uint16_t type)
{
    static const char *const names[] = {
        [NBD_CMD_READ] = "read",
        [NBD_CMD_WRITE] = "write",
        [NBD_CMD_DISC] = "disconnect",
        [NBD_CMD_FLUSH] = "flush",
        [NBD_CMD_TRIM] = "trim",
        [NBD_CMD_CACHE] = "cache",
        [NBD_CMD_WRITE_ZEROES] = "write zeroes",
        [NBD_CMD_BLOCK_STATUS] = "block status",
    };

    return type < sizeof(names) / sizeof(*names) ? names[type] : "command";
}

void request_log(const Request *req, LogLevel level, const char *why)
{
    log_client(level,
               "client %llu: export %s: %s (type %u, flags 0x%x, offset %llu, "
               "length %u): %s",
               (unsigned long long)req->conn->id, req->conn->export->name,
               command_name(req->type), req->type, req->flags,
               (unsigned long long)req->offset, req->length, why);
}

static int coroutine_fn run_zero(Request *req, uint32_t length,
                                 uint64_t offset)
{
    Export *export = req->conn->export;
    unsigned flags = 0;

    if (req->flags & NBD_CMD_FLAG_NO_HOLE) {
        flags |= EXPORT_ZERO_NO_HOLE;
    }
    if (req->flags & NBD_CMD_FLAG_FAST_ZERO) {
        flags |= EXPORT_ZERO_FAST;
    }
    return export->ops->zero(export, &req->conn->thread->buffers, length,
                             offset, flags);
}

/* Asks the back end for length bytes of it, from start on.  Returns 0 or
 * -errno. */
static int coroutine_fn run_part(Request *req, uint32_t start, uint32_t length)
{
    Export *export = req->conn->export;
    BufferCache *buffers = &req->conn->thread->buffers;
    uint64_t offset = req->offset + start;

    switch (req->type) {
    case NBD_CMD_READ:
        return export->ops->read(export, buffers, req->buffer + start, length,
                                 offset);
    case NBD_CMD_WRITE:
        return export->ops->write(export, buffers, req->buffer + start, length,
                                  offset);
    case NBD_CMD_TRIM:
        return export->ops->trim(export, buffers, length, offset);
    case NBD_CMD_CACHE:
        return export->ops->cache(export, length, offset);
    default:
        assert(req->type == NBD_CMD_WRITE_ZEROES);
        return run_zero(req, length, offset);
    }
}

/*
 * Piece by piece, with a pass of the loop in between.  The pieces end at
 * multiples, lest they cut what the back end has or frees as a whole.  With a
 * lock, it is held over the pass, too: unlocked before, it would go on in the
 * same pass to the next who waits, and so to all of them.
 */
static int coroutine_fn run_in_pieces(Request *req, CoMutex *lock)
{
    uint32_t done = 0;
    int ret = 0;

    while (ret == 0 && done < req->length) {
        uint64_t offset = req->offset + done;
        uint32_t left = req->length - done;
        uint32_t room = PIECE_MAX - (uint32_t)(offset % PIECE_MAX);
        uint32_t piece = left < room ? left : room;

        if (lock) {
            co_mutex_lock(lock);
        }
        ret = run_part(req, done, piece);
        done += piece;
        if (lock) {
            co_sleep_ns(0);
            co_mutex_unlock(lock);
        } else if (done < req->length) {
            co_sleep_ns(0);
        }
    }
    return ret;
}

/* On the loop's own thread (connection.h, "Turns"). */
static int coroutine_fn run_long(Request *req)
{
    Connection *conn = req->conn;
    int ret;

    if (req->capacity > 0) {
        return run_in_pieces(req, NULL);
    }
    co_mutex_lock(&conn->long_lock);
    ret = run_in_pieces(req, &conn->thread->piece_lock);
    co_mutex_unlock(&conn->long_lock);
    return ret;
}

static int coroutine_fn run_operation(Request *req)
{
    unsigned busy = req->conn->export->ops->busy;

    if (req->length > PIECE_MAX && busy & EXPORT_BUSY(req->type)) {
        return run_long(req);
    }
    return req->length > 0 ? run_part(req, 0, req->length) : 0;
}

static void coroutine_fn run_block_status(Request *req)
{
    Export *export = req->conn->export;
    Extent extents[EXTENTS_MAX];
    int max = req->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : EXTENTS_MAX;
    int n;

    static_assert(4 + 8 * EXTENTS_MAX <= EXTENTS_BYTES, "they fit in");
    n = export->ops->extents(export, req->length, req->offset, extents, max);
    assert(n >= 1 && n <= max);
    reply_extents(req, extents, n);
}

static void coroutine_fn run(void *opaque)
{
    Request *req = opaque;
    int ret = 0;

    if (req->type == NBD_CMD_BLOCK_STATUS) {
        run_block_status(req);
        return;
    }
    if (req->type != NBD_CMD_FLUSH) {
        ret = run_operation(req);
    }
    if (ret == 0 && (req->type == NBD_CMD_FLUSH ||
                     (is_writing(req) && req->flags & NBD_CMD_FLAG_FUA))) {
        ret = export_flush(req->conn->export);
    }
    if (ret == -ENOTSUP && req->flags & NBD_CMD_FLAG_FAST_ZERO) {
        reply_status(req, NBD_ENOTSUP, NULL);
    } else if (ret < 0) {
        request_log(req, LOG_LEVEL_WARNING, strerror(-ret));
        reply_status(req, wire_error(ret), NULL);
    } else if (req->type == NBD_CMD_READ && req->length > 0) {
        reply_data(req);
    } else {
        reply_status(req, NBD_SUCCESS, NULL);
    }
}

void coroutine_fn request_start(Request *req)
{
    static const CoroutineOptions options = {
        .size = sizeof(options),
        .name = "nbd request",
    };
    Coroutine *co;

    if (coroutine_create_full(&co, run, req, &options) == 0) {
        coroutine_enter(co);
        return;
    }
    /* No memory for a stack: run it on this one, which makes the client wait,
     * with what is ready on its way to it (connection.h, "Batching"). */
    req->conn->corked = false;
    reply_flush(req->conn);
    run(req);
}
