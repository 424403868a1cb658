/* SPDX-License-Identifier: MIT */

/*
 * The part of the shim that sees what a ring does with files.  It stands
 * between the server and liburing, which must be a shared library, and does
 * with an operation on a file what shim.c does with a call: it records it and
 * injects errors; but it does not hold it.  Sockets are left to shim.c, so the
 * server has to be told not to use the ring for them.
 *
 * Before the kernel is entered, the queue is walked as far as the kernel is to
 * go.  That is safe without the kernel's leave: a ring belongs to one thread,
 * which fills the queue and enters.  After the entry, and whenever a call or an
 * operation is about to begin, the completions are walked that are new.
 *
 * WHICH WAY THE RECORDS ERR
 *
 * A checker concludes from "its end is placed before the other's beginning"
 * that the one was over when the other began.  So a beginning may be placed too
 * early and an end too late, but never the other way round:
 *
 *   1. A beginning is placed before io_uring_enter2() is called.  A ring from
 *      which the kernel takes requests at other times (SQPOLL) is refused.
 *   2. An end is placed after the completion was seen in the shared memory.
 *   3. What the kernel has not taken is forgotten, and put back as it was.  Its
 *      beginning stays without an end, and so counts for nothing; the next
 *      entry begins it anew.
 *
 * Neither errs so far that a server that is right could look wrong.  What it
 * does because it has seen a completion, on whichever thread, begins after
 * another look at all rings, which sees that completion, too.  (A look behind
 * each entry would not do.  Only a ring with DEFER_TASKRUN completes nothing
 * between two entries; and on Linux 6.1 not even that, as the kernel's own
 * threads complete there what they have done.)
 *
 * An injected error makes a request one that does nothing (NOP), and replaces
 * its result.  That completes in the entry that submits it, and the look behind
 * the entry comes before the server can see it.
 */

#include "shim.h"

#if __has_include(<liburing.h>)

#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_RINGS = 64
};

/* What the shim knows nothing of. */
#define STRANGE                                                        \
    (IORING_SETUP_SQPOLL | IORING_SETUP_IOPOLL | IORING_SETUP_SQE128 | \
     IORING_SETUP_CQE32)

/* An operation on a file, from its submission to its completion. */
typedef struct Op {
    struct Op *next;
    Call call;
    uint64_t data;  /* the server's, another for each that is in flight */
    unsigned place; /* in the submission queue */
    struct io_uring_sqe *sqe;   /* there, until the kernel has taken it */
    struct io_uring_sqe before; /* as the server has filled it in */
    int error;                  /* to end with, or 0 */
    bool in_silence;            /* without a record: interrupted */
    Buffers buffers;            /* the kernel may use them until the end */
} Op;

/* Filled and entered by one thread; looked at by all, under the lock. */
typedef struct Ring {
    struct io_uring *uring; /* the server's, or NULL: free */
    unsigned seen;          /* completions before that were looked at */
    Op *ops;
} Ring;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all here */
static Ring rings[MAX_RINGS];

static void __attribute__((noreturn)) die(const char *text)
{
    fprintf(stderr, "shim: %s\n", text);
    abort();
}

/* --- completions ----------------------------------------------------------*/

/* Takes it from the list, if it is there. */
static Op *find_op(Ring *ring, uint64_t data)
{
    for (Op **link = &ring->ops; *link; link = &(*link)->next) {
        Op *op = *link;

        if (op->data == data) {
            *link = op->next;
            return op;
        }
    }
    return NULL;
}

static void op_ends(Op *op, struct io_uring_cqe *cqe)
{
    if (op->error) {
        cqe->res = -op->error;
    }
    if (!op->in_silence) {
        record_end(&op->call, cqe->res);
    }
    free(op);
}

static void look_locked(Ring *ring)
{
    struct io_uring_cq *cq = &ring->uring->cq;
    unsigned tail = __atomic_load_n(cq->ktail, __ATOMIC_ACQUIRE);

    /* There they are overwritten. */
    if (tail - ring->seen > cq->ring_entries) {
        die("completions were missed");
    }
    for (; ring->seen != tail; ring->seen++) {
        struct io_uring_cqe *cqe = &cq->cqes[ring->seen & cq->ring_mask];
        Op *op = find_op(ring, cqe->user_data);

        if (op) {
            op_ends(op, cqe);
        }
    }
}

static void look_at_all_locked(void)
{
    for (int i = 0; i < MAX_RINGS; i++) {
        if (rings[i].uring) {
            look_locked(&rings[i]);
        }
    }
}

void look_at_rings(void)
{
    pthread_mutex_lock(&lock);
    look_at_all_locked();
    pthread_mutex_unlock(&lock);
}

/* --- submissions ----------------------------------------------------------*/

/* False if it is nothing that the shim records. */
static bool op_init(Op *op, const struct io_uring_sqe *sqe)
{
    const struct iovec *iov = (const struct iovec *)(uintptr_t)sqe->addr;
    bool reads = sqe->opcode == IORING_OP_READV;

    switch (sqe->opcode) {
    case IORING_OP_READV:
    case IORING_OP_WRITEV:
        buffers_init(&op->buffers, iov, (int)sqe->len,
                     atomic_load(&control->most_file));
        return call_init(&op->call, reads ? KIND_READ : KIND_WRITE, sqe->fd,
                         (off_t)sqe->off, op->buffers.length,
                         (uint32_t)sqe->rw_flags);
    case IORING_OP_FSYNC:
        return call_init(&op->call, KIND_SYNC, sqe->fd, -1, 0, 0);
    case IORING_OP_FALLOCATE:
        return call_init(&op->call, KIND_ALLOCATE, sqe->fd, (off_t)sqe->off,
                         (int64_t)sqe->addr, sqe->len);
    default:
        return false;
    }
}

/* Returns 0, or the errno value to fail with. */
static int op_begins(Op *op)
{
    op->call.by_ring = true;
    op->in_silence = interrupts();
    if (op->in_silence) {
        return EINTR;
    }
    record_begin(&op->call);
    atomic_fetch_add(&control->by_ring[op->call.class], 1);
    return file_call_enters(&op->call);
}

static void op_change(Op *op)
{
    struct io_uring_sqe *sqe = op->sqe;

    if (op->error) {
        *sqe = (struct io_uring_sqe){
            .opcode = IORING_OP_NOP,
            .fd = -1,
            .user_data = op->data,
        };
    } else if (op->buffers.iov == op->buffers.cut) {
        sqe->addr = (uintptr_t)op->buffers.cut;
        sqe->len = (unsigned)op->buffers.count;
    }
}

static void submit_one(Ring *ring, struct io_uring_sqe *sqe, unsigned place)
{
    Op *op = calloc(1, sizeof(*op));

    if (!op) {
        die("no memory");
    }
    if (!op_init(op, sqe)) {
        free(op);
        return;
    }
    op->data = sqe->user_data;
    op->place = place;
    op->sqe = sqe;
    op->before = *sqe;
    op->error = op_begins(op);
    op_change(op);
    op->next = ring->ops;
    ring->ops = op;
}

static void submit_locked(Ring *ring, unsigned count)
{
    struct io_uring_sq *sq = &ring->uring->sq;
    unsigned tail = *sq->ktail; /* written by this thread */
    unsigned place = __atomic_load_n(sq->khead, __ATOMIC_ACQUIRE);

    for (; place != tail && count > 0; place++, count--) {
        unsigned slot = place & sq->ring_mask;

        if (sq->array) { /* newer versions of the library have none */
            slot = sq->array[slot] & sq->ring_mask;
        }
        submit_one(ring, &sq->sqes[slot], place);
    }
}

/* Of what was to be submitted: what the kernel has not taken. */
static void put_back_locked(Ring *ring)
{
    unsigned head = __atomic_load_n(ring->uring->sq.khead, __ATOMIC_ACQUIRE);
    Op **link = &ring->ops;

    while (*link) {
        Op *op = *link;

        if ((int)(op->place - head) >= 0) {
            *op->sqe = op->before;
            *link = op->next;
            free(op);
        } else {
            link = &op->next;
        }
    }
}

/* --- what stands in the place of liburing's -------------------------------*/

static Ring *find_ring_locked(const struct io_uring *uring)
{
    for (int i = 0; i < MAX_RINGS; i++) {
        if (rings[i].uring == uring) {
            return &rings[i];
        }
    }
    return NULL;
}

static Ring *find_descriptor_locked(int fd)
{
    for (int i = 0; i < MAX_RINGS; i++) {
        if (rings[i].uring && rings[i].uring->ring_fd == fd) {
            return &rings[i];
        }
    }
    die("a ring is entered that the shim has not seen made");
}

EXPORT int io_uring_queue_init_params(unsigned entries, struct io_uring *uring,
                                      struct io_uring_params *params)
{
    int ret = REAL(io_uring_queue_init_params)(entries, uring, params);
    Ring *ring;

    if (ret < 0) {
        return ret;
    }
    if (params->flags & STRANGE) {
        die("a ring of a kind that the shim does not know");
    }
    pthread_mutex_lock(&lock);
    ring = find_ring_locked(NULL);
    if (!ring) {
        die("too many rings");
    }
    *ring = (Ring){.uring = uring};
    pthread_mutex_unlock(&lock);
    return ret;
}

EXPORT void io_uring_queue_exit(struct io_uring *uring)
{
    Ring *ring;

    pthread_mutex_lock(&lock);
    ring = find_ring_locked(uring);
    if (!ring) {
        die("a ring ends that the shim has not seen made");
    }
    look_locked(ring);
    while (ring->ops) {
        free(find_op(ring, ring->ops->data));
    }
    ring->uring = NULL;
    pthread_mutex_unlock(&lock);
    REAL(io_uring_queue_exit)(uring);
}

EXPORT int io_uring_enter2(unsigned fd, unsigned to_submit,
                           unsigned min_complete, unsigned flags, sigset_t *sig,
                           size_t size)
{
    Ring *ring;
    int ret;

    pthread_mutex_lock(&lock);
    ring = find_descriptor_locked((int)fd);
    look_at_all_locked();
    submit_locked(ring, to_submit);
    pthread_mutex_unlock(&lock);
    ret = REAL(io_uring_enter2)(fd, to_submit, min_complete, flags, sig, size);
    pthread_mutex_lock(&lock);
    put_back_locked(ring);
    look_locked(ring);
    pthread_mutex_unlock(&lock);
    return ret;
}

EXPORT int io_uring_enter(unsigned fd, unsigned to_submit,
                          unsigned min_complete, unsigned flags, sigset_t *sig)
{
    return io_uring_enter2(fd, to_submit, min_complete, flags, sig, _NSIG / 8);
}

#else

void look_at_rings(void)
{
}

#endif
