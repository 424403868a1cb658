/* SPDX-License-Identifier: MIT */
/*
 * The ring, through liburing.
 *
 * Guarantees: what was queued reaches the kernel in order; nothing is lost when
 * a system call fails, or when more completes than the ring has room for (the
 * kernel keeps it, and is asked).
 *
 * liburing sets up the memory that is shared with the kernel, finds slots and
 * fills them in.  Its calls that submit and wait are not used: with a timeout
 * they may wait twice as long if something was submitted besides.  So this file
 * publishes the tail itself, and enters the kernel by liburing's door.
 *
 * MEMORY ORDER: the kernel is the other party.  A slot is filled before the
 * tail is published (release), and a completion is read after the kernel's
 * tail (acquire, in liburing).  The flags are hints: what they announce is
 * fetched with a system call.
 *
 * WHAT THE KERNEL MAY LACK, newest first
 *
 *   NO_SQARRAY     6.6   slots are taken in their order.  liburing asks for it
 *                        from version 2.6 on, unasked, and has no array then
 *   DEFER_TASKRUN  6.1   completions come when we enter the kernel for them;
 *                        needs SINGLE_ISSUER.  From 6.13 on it does some 20 of
 *                        the things that are due each time
 *   COOP_TASKRUN   5.19  they come when we enter it for anything; came with
 *                        receives that begin by waiting, which are not used
 *                        without (they would try in vain first)
 *   otherwise            they interrupt the thread
 *   CQE_SKIP       5.17  cancels that work say nothing; else the engine is
 *                        told to ignore them
 *   RSRC_TAGS      5.13  needed: it came with multishot polls, which have no
 *                        flag of their own
 *   EXT_ARG        5.11  needed: waits with a timeout, and nothing besides
 */
#include "os/uring.h"

#include "base/atomic.h"
#include "base/compiler.h"
#include "os/clock.h"
#include "os/fault.h"
#include "os/memory.h"
#include "os/thread.h"
#include "os/valgrind.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define NS_PER_S 1000000000

/* Requests that are queued at once, and completions, at 64 and 16 bytes. */
#define SUBMISSIONS 128
#define COMPLETIONS 1024

#define TRIES_TO_ENTER 8

#define NEEDED \
    (IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG | IORING_FEAT_RSRC_TAGS)

struct OsUring {
    struct io_uring ring;
    bool flagged;   /* the kernel says when it wants to be entered */
    bool files;     /* may be used for calls on files */
    bool sockets;   /* and for calls on sockets */
    uint8_t skip;   /* IOSQE_... for a cancel */
    uint64_t known; /* bit by IORING_OP_...: the kernel has it */
    int64_t enter_ns;
};

/* --- life -----------------------------------------------------------------*/

void os_uring_close(OsUring *ring)
{
    os_count(OS_COUNT_SYSCALLS);
    io_uring_queue_exit(&ring->ring);
    os_free(ring);
}

#ifdef COAIO_TESTING
static bool no_array; /* atomic */

void os_uring_set_no_array(bool value)
{
    store_relaxed(&no_array, value);
}

static void forget_array(struct io_uring_sq *sq)
{
    for (unsigned i = 0; sq->array && i <= sq->ring_mask; i++) {
        sq->array[i] = i; /* this kernel may read it */
    }
    sq->array = NULL;
}
#endif

static int set_up(struct io_uring *ring, unsigned flags)
{
    struct io_uring_params params = {
        .flags = flags | IORING_SETUP_R_DISABLED | IORING_SETUP_CLAMP |
                 IORING_SETUP_CQSIZE,
        .cq_entries = COMPLETIONS,
    };
    int error = os_fault("io_uring_setup");
    int ret;

    os_count(OS_COUNT_SYSCALLS);
    ret =
        error ? -error : io_uring_queue_init_params(SUBMISSIONS, ring, &params);
#ifdef COAIO_TESTING
    if (ret == 0 && load_relaxed(&no_array)) {
        forget_array(&ring->sq);
    }
#endif
    return ret == -ENOMEM ? -ENOBUFS : ret;
}

/* The best that the kernel takes.  It answers EINVAL to what it does not
 * know. */
static int set_up_best(struct io_uring *ring, unsigned without)
{
    int ret = -EINVAL;

    if (!(without & OS_URING_NO_DEFER) && !os_in_valgrind()) {
        ret = set_up(ring,
                     IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER |
                         IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL);
    }
    if (ret == -EINVAL && (without & OS_URING_BEST) &&
        !os_in_valgrind()) {
        return -EOPNOTSUPP;
    }
    if (ret == -EINVAL && !(without & OS_URING_NO_COOP)) {
        ret =
            set_up(ring, IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
                             IORING_SETUP_SUBMIT_ALL);
    }
    if (ret == -EINVAL) {
        ret = set_up(ring, 0);
    }
    return ret == -EINVAL ? -EOPNOTSUPP : ret;
}

/*
 * Ask which requests the kernel has.  Also shows that io_uring_register(2) is
 * not forbidden, so that os_uring_enable() does not fail.
 */
static int look_at_requests(OsUring *ring)
{
    union {
        struct io_uring_probe probe;
        char room[sizeof(struct io_uring_probe) +
                  64 * sizeof(struct io_uring_probe_op)];
    } answer = {.room = {0}};
    int error = os_fault("io_uring_register");
    int ret;

    os_count(OS_COUNT_SYSCALLS);
    ret = error ? -error
                : io_uring_register_probe(&ring->ring, &answer.probe, 64);
    for (int op = 0; ret == 0 && op <= answer.probe.last_op && op < 64; op++) {
        if (io_uring_opcode_supported(&answer.probe, op)) {
            ring->known |= UINT64_C(1) << op;
        }
    }
    return ret;
}

/*
 * Whether io_uring_enter(2) is forbidden.  Else it finds the ring disabled, and
 * has nothing to do: so much a system call costs here.  The quickest of a few,
 * since others may be interrupted.
 */
static int try_to_enter(OsUring *ring)
{
    int64_t best_ns = INT64_MAX;
    int ret = 0;

    for (int i = 0; i < TRIES_TO_ENTER; i++) {
        int64_t begin_ns = os_clock_monotonic_ns(), ns;

        ret = -os_fault("io_uring_enter");
        os_count(OS_COUNT_SYSCALLS);
        if (ret == 0) {
            ret = io_uring_enter((unsigned)ring->ring.ring_fd, 0, 0, 0, NULL);
        }
        ns = os_clock_monotonic_ns() - begin_ns;
        best_ns = ns < best_ns ? ns : best_ns;
    }
    ring->enter_ns = best_ns;
    return ret == -EPERM || ret == -EACCES || ret == -ENOSYS ? ret : 0;
}

int os_uring_open(OsUring **out, unsigned without)
{
    OsUring *ring = os_alloc(sizeof(*ring));
    int ret;

    if (!ring) {
        return -ENOMEM;
    }
    ret = set_up_best(&ring->ring, without);
    if (ret < 0) {
        os_free(ring);
        return ret;
    }
    ret = look_at_requests(ring);
    if (ret == 0) {
        ret = try_to_enter(ring);
    }
    if (ret == 0 && (ring->ring.features & NEEDED) != NEEDED) {
        ret = -EOPNOTSUPP;
    }
    if (ret < 0) {
        os_uring_close(ring);
        return ret;
    }
    ring->flagged = ring->ring.flags & IORING_SETUP_TASKRUN_FLAG;
    ring->files = !(without & OS_URING_NO_FILES);
    ring->sockets = ring->flagged && !(without & OS_URING_NO_SOCKETS);
    if ((ring->ring.features & IORING_FEAT_CQE_SKIP) &&
        !(without & OS_URING_NO_SKIP)) {
        ring->skip = IOSQE_CQE_SKIP_SUCCESS;
    }
    *out = ring;
    return 0;
}

int os_uring_disabled(void)
{
    char digit;
    ssize_t n;
    int fd;

    if (os_fault("open")) {
        return -1;
    }
    fd = open("/proc/sys/kernel/io_uring_disabled", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    n = read(fd, &digit, 1);
    close(fd);
    return n == 1 ? digit - '0' : -1;
}

int os_uring_enable(OsUring *ring)
{
    int error = os_fault("io_uring_enable");

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return -error;
    }
    /* io_uring_enable_rings(), which the library does not export. */
    return io_uring_register((unsigned)ring->ring.ring_fd,
                             IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

int64_t os_uring_enter_ns(const OsUring *ring)
{
    return ring->enter_ns;
}

int os_uring_descriptor(const OsUring *ring)
{
    return ring->ring.ring_fd;
}

/* --- submission -----------------------------------------------------------*/

/* Show the kernel what is queued.  Returns how many it has not taken. */
static unsigned publish(OsUring *ring)
{
    struct io_uring_sq *sq = &ring->ring.sq;

    /* Newer ones have no array of indices: slots are taken in their order. */
    for (unsigned i = sq->sqe_head; sq->array && i != sq->sqe_tail; i++) {
        sq->array[i & sq->ring_mask] = i & sq->ring_mask;
    }
    sq->sqe_head = sq->sqe_tail;
    store_release(sq->ktail, sq->sqe_tail);
    return io_uring_sq_ready(&ring->ring);
}

/* One system call.  timeout_ns as in os_uring_wait(). */
static int enter(OsUring *ring, unsigned submit, int64_t timeout_ns)
{
    struct __kernel_timespec timeout = {
        .tv_sec = timeout_ns / NS_PER_S,
        .tv_nsec = timeout_ns % NS_PER_S,
    };
    struct io_uring_getevents_arg arg = {
        .ts = timeout_ns > 0 ? (uintptr_t)&timeout : 0,
    };
    int error = os_fault("io_uring_enter");
    int ret;

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return -error;
    }
#if COAIO_TSAN
    /*
     * TSan puts signals off in a call that it does not know, and would sleep
     * over one that came just before: let them come in the kernel only.
     */
    OsSignals before;

    os_signals_hold(&before);
    arg.sigmask = (uintptr_t)&before.mask;
    arg.sigmask_sz = _NSIG / 8;
#endif
    ret = io_uring_enter2((unsigned)ring->ring.ring_fd, submit, timeout_ns != 0,
                          IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG,
                          (void *)&arg, sizeof(arg));
#if COAIO_TSAN
    os_signals_release(&before);
#endif
    return ret < 0 && ret != -ETIME ? ret : 0;
}

/* A slot, or NULL. */
static struct io_uring_sqe *get_slot(OsUring *ring)
{
    return os_fault("io_uring_sqe") ? NULL : io_uring_get_sqe(&ring->ring);
}

bool os_uring_full(const OsUring *ring)
{
    return io_uring_sq_space_left(&ring->ring) == 0;
}

int os_uring_poll(OsUring *ring, int fd, uint32_t events, bool multishot,
                  uint64_t data)
{
    struct io_uring_sqe *sqe = get_slot(ring);

    if (!sqe) {
        return -EAGAIN;
    }
    if (multishot) {
        io_uring_prep_poll_multishot(sqe, fd, events);
    } else {
        io_uring_prep_poll_add(sqe, fd, events);
    }
    io_uring_sqe_set_data64(sqe, data);
    return 0;
}

/* --- calls on files and sockets -------------------------------------------*/

typedef struct CallKind {
    const char *name; /* the system call's, for faults and records */
    uint8_t op;
} CallKind;

static const CallKind call_kinds[] = {
    [OS_URING_READ] = {"preadv", IORING_OP_READV},
    [OS_URING_WRITE] = {"pwritev", IORING_OP_WRITEV},
    [OS_URING_FSYNC] = {"fsync", IORING_OP_FSYNC},
    [OS_URING_FDATASYNC] = {"fdatasync", IORING_OP_FSYNC},
    [OS_URING_FALLOCATE] = {"fallocate", IORING_OP_FALLOCATE},
    [OS_URING_RECV] = {"recv", IORING_OP_RECV},
    [OS_URING_SEND] = {"send", IORING_OP_SEND},
    [OS_URING_SENDMSG] = {"sendmsg", IORING_OP_SENDMSG},
};

static void fill_in(struct io_uring_sqe *sqe, const OsUringRequest *r)
{
    switch (r->call) {
    case OS_URING_READ:
        io_uring_prep_readv(sqe, r->fd, r->iov, (unsigned)r->iovcnt,
                            (uint64_t)r->offset);
        break;
    case OS_URING_WRITE:
        io_uring_prep_writev(sqe, r->fd, r->iov, (unsigned)r->iovcnt,
                             (uint64_t)r->offset);
        break;
    case OS_URING_FSYNC:
        io_uring_prep_fsync(sqe, r->fd, 0);
        break;
    case OS_URING_FDATASYNC:
        io_uring_prep_fsync(sqe, r->fd, IORING_FSYNC_DATASYNC);
        break;
    case OS_URING_FALLOCATE:
        io_uring_prep_fallocate(sqe, r->fd, r->mode, r->offset, r->length);
        break;
    case OS_URING_RECV:
        io_uring_prep_recv(sqe, r->fd, r->iov->iov_base, r->iov->iov_len,
                           r->mode);
        sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
        break;
    case OS_URING_SEND:
        io_uring_prep_send(sqe, r->fd, r->iov->iov_base, r->iov->iov_len,
                           r->mode | MSG_NOSIGNAL);
        break;
    case OS_URING_SENDMSG:
        io_uring_prep_sendmsg(sqe, r->fd, r->msg,
                              (unsigned)r->mode | MSG_NOSIGNAL);
        break;
    }
}

bool os_uring_takes(const OsUring *ring, OsUringCall call)
{
    return (os_uring_call_of_socket(call) ? ring->sockets : ring->files) &&
           (ring->known & UINT64_C(1) << call_kinds[call].op);
}

int os_uring_request(OsUring *ring, const OsUringRequest *request,
                     uint64_t data, unsigned *slot)
{
    struct io_uring_sqe *sqe = get_slot(ring);
    int error;

    if (!sqe) {
        return -EAGAIN;
    }
    *slot = ring->ring.sq.sqe_tail - 1;
    os_record(call_kinds[request->call].name, request->fd, request->offset, 0,
              true);
    error = os_fault(call_kinds[request->call].name);
    if (error) {
        io_uring_prep_nop(sqe);
        io_uring_sqe_set_data64(sqe, data);
        return error;
    }
    fill_in(sqe, request);
    io_uring_sqe_set_data64(sqe, data);
    return 0;
}

/* It has not seen the kernel write.  With MSG_TRUNC the result is more than
 * there was room for. */
static void tell_valgrind(const OsUringRequest *request, ssize_t left)
{
    for (int i = 0; i < request->iovcnt && left > 0; i++) {
        const struct iovec *iov = &request->iov[i];
        size_t n = (size_t)left < iov->iov_len ? (size_t)left : iov->iov_len;

        os_valgrind_defined(iov->iov_base, n);
        left -= (ssize_t)n;
    }
}

void os_uring_finished(const OsUringRequest *request, ssize_t result)
{
    os_record(call_kinds[request->call].name, request->fd, request->offset,
              result, false);
    if (request->call == OS_URING_READ || request->call == OS_URING_RECV) {
        tell_valgrind(request, result);
    }
}

bool os_uring_taken(const OsUring *ring, unsigned slot)
{
    return (int)(load_acquire(ring->ring.sq.khead) - slot) > 0;
}

void os_uring_replace(OsUring *ring, unsigned slot)
{
    struct io_uring_sq *sq = &ring->ring.sq;
    struct io_uring_sqe *sqe = &sq->sqes[slot & sq->ring_mask];
    uint64_t data = sqe->user_data;

    memset(sqe, 0, sizeof(*sqe)); /* newer versions of prep leave some of it */
    io_uring_prep_nop(sqe);
    io_uring_sqe_set_data64(sqe, data);
}

int os_uring_cancel(OsUring *ring, uint64_t data, uint64_t ignore)
{
    struct io_uring_sqe *sqe = get_slot(ring);

    if (!sqe) {
        return -EAGAIN;
    }
    io_uring_prep_cancel64(sqe, data, 0);
    io_uring_sqe_set_flags(sqe, ring->skip);
    io_uring_sqe_set_data64(sqe, ignore);
    return 0;
}

int os_uring_cancel_all(OsUring *ring, uint64_t ignore)
{
    struct io_uring_sqe *sqe = get_slot(ring);

    if (!sqe) {
        return -EAGAIN;
    }
    io_uring_prep_cancel(sqe, NULL, IORING_ASYNC_CANCEL_ANY);
    io_uring_sqe_set_data64(sqe, ignore);
    return 0;
}

/* --- completion -----------------------------------------------------------*/

/* Whether completions may wait in the kernel for us to come. */
static bool kernel_calls(const OsUring *ring)
{
    return !ring->flagged || (load_relaxed(ring->ring.sq.kflags) &
                              (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW));
}

/*
 * Valgrind (3.19) does not know that io_uring_enter() may sleep, and has all
 * other threads wait until it returns.  There, sleep where it lets them run;
 * which takes a ring that can be polled, one without DEFER_TASKRUN.
 */
static int sleep_for_valgrind(OsUring *ring, int64_t timeout_ns)
{
    struct pollfd pollfd = {.fd = ring->ring.ring_fd, .events = POLLIN};
    struct timespec timeout = {
        .tv_sec = timeout_ns / NS_PER_S,
        .tv_nsec = timeout_ns % NS_PER_S,
    };

    int ret = enter(ring, publish(ring), 0);

    if (ret == 0 && io_uring_cq_ready(&ring->ring) == 0) {
        os_count(OS_COUNT_SYSCALLS);
        if (!os_fault("poll")) {
            ppoll(&pollfd, 1, timeout_ns > 0 ? &timeout : NULL, NULL);
        }
    }
    return ret < 0 ? ret : enter(ring, 0, 0);
}

int os_uring_wait(OsUring *ring, int64_t timeout_ns)
{
    unsigned submit;

    if (timeout_ns != 0 && unlikely(os_in_valgrind())) {
        return sleep_for_valgrind(ring, timeout_ns);
    }
    submit = publish(ring);
    if (io_uring_cq_ready(&ring->ring) > 0) {
        timeout_ns = 0;
    }
    if (timeout_ns == 0 && submit == 0 && !kernel_calls(ring)) {
        return 0;
    }
    return enter(ring, submit, timeout_ns);
}

bool os_uring_due(const OsUring *ring)
{
    return ring->flagged &&
           (load_relaxed(ring->ring.sq.kflags) & IORING_SQ_TASKRUN);
}

bool os_uring_take(OsUring *ring, OsUringEvent *event)
{
    struct io_uring_cqe *cqe;
    unsigned head;

    io_uring_for_each_cqe(&ring->ring, head, cqe)
    {
        event->data = cqe->user_data;
        event->result = cqe->res;
        event->more = cqe->flags & IORING_CQE_F_MORE;
        io_uring_cq_advance(&ring->ring, 1);
        return true;
    }
    return false;
}
