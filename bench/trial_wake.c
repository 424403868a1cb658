/* SPDX-License-Identifier: MIT */
/*
 * trial_wake.c: two threads with a ring each wake one another in turn; the
 * other one sleeps in io_uring_enter().
 */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "trial.h"

/* Younger than Debian 12's liburing; Linux 6.7. */
#ifndef FUTEX2_SIZE_U32
#define FUTEX2_SIZE_U32 2
#define FUTEX2_PRIVATE  128
#endif
#define OP_FUTEX_WAIT 51

enum { WAKE_EVENT, WAKE_FUTEX, WAKE_MSG, WAKE_MSG_LATE };

typedef struct Sleeper {
    struct io_uring ring;
    int event;
    atomic_uint word;
    bool watched;
    pthread_barrier_t *ready;
    struct Sleeper *peer;
    const Way *way;
    atomic_bool *stop;
    bool failed;
} Sleeper;

/* Once: each write completes the poll anew, and nobody needs to read. */
static void await_event(Sleeper *s)
{
    if (!s->watched) {
        io_uring_prep_poll_multishot(ring_sqe(&s->ring), s->event, POLLIN);
    }
    s->watched = true;
}

static void await_futex(Sleeper *s, unsigned seen)
{
    struct io_uring_sqe *sqe = ring_sqe(&s->ring);

    memset(sqe, 0, sizeof(*sqe));
    sqe->opcode = OP_FUTEX_WAIT;
    sqe->fd = FUTEX2_SIZE_U32 | FUTEX2_PRIVATE;
    sqe->addr = (uintptr_t)&s->word;
    sqe->off = seen;
    sqe->addr3 = UINT32_MAX; /* the mask */
}

/* What is to be woken by comes with the next wait. */
static void prepare(Sleeper *s)
{
    if (s->way->how == WAKE_EVENT) {
        await_event(s);
    } else if (s->way->how == WAKE_FUTEX) {
        await_futex(s, atomic_load(&s->word));
    }
}

static void wake(Sleeper *from, Sleeper *to)
{
    struct io_uring_sqe *sqe;
    uint64_t one = 1;

    switch (from->way->how) {
    case WAKE_EVENT:
        bench_check(write(to->event, &one, sizeof(one)) == sizeof(one),
                    "the event is written");
        break;
    case WAKE_FUTEX:
        atomic_fetch_add(&to->word, 1);
        syscall(SYS_futex, &to->word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
        break;
    default:
        sqe = ring_sqe(&from->ring);
        io_uring_prep_msg_ring(sqe, to->ring.ring_fd, 0, 1, 0);
        io_uring_sqe_set_data64(sqe, 0);
        if (from->way->how == WAKE_MSG) {
            io_uring_submit(&from->ring);
        }
        break;
    }
}

/* Sleep until woken.  Returns false where the kernel refuses. */
static bool await_wake(Sleeper *s)
{
    bool message = s->way->how >= WAKE_MSG;
    bool woken = false;

    while (!woken) {
        struct io_uring_cqe *cqe;
        unsigned head, n = 0;

        io_uring_submit_and_wait(&s->ring, 1);
        io_uring_for_each_cqe(&s->ring, head, cqe)
        {
            n++;
            if (cqe->res < 0 && cqe->res != -EAGAIN) {
                return false;
            }
            /* The sender of a message has a completion, too. */
            woken |= !message || cqe->user_data == 1;
            s->watched &= (cqe->flags & IORING_CQE_F_MORE) != 0;
        }
        io_uring_cq_advance(&s->ring, n);
    }
    return true;
}

static void sleeper_open(Sleeper *s, const Way *way, Sleeper *peer,
                         atomic_bool *stop, pthread_barrier_t *ready)
{
    s->way = way;
    s->peer = peer;
    s->stop = stop;
    s->ready = ready;
    s->event = eventfd(0, EFD_CLOEXEC);
    bench_check(s->event >= 0, "there is an eventfd");
}

static void *answer(void *opaque)
{
    Sleeper *s = opaque;

    bench_pin(1);
    ring_open(&s->ring);
    prepare(s);
    pthread_barrier_wait(s->ready);
    while (!s->failed) {
        s->failed = !await_wake(s);
        if (atomic_load(s->stop)) {
            break;
        }
        prepare(s);
        wake(s, s->peer);
    }
    if (s->way->how == WAKE_MSG_LATE) {
        io_uring_submit(&s->ring);
    }
    pthread_barrier_wait(s->ready);
    io_uring_queue_exit(&s->ring);
    close(s->event);
    return NULL;
}

static bool run_wake(const Way *way, uint64_t ns, Cost *cost)
{
    static Sleeper here, there;
    pthread_barrier_t ready;
    atomic_bool stop = false;
    uint64_t begin, cpu, count = 0;
    pthread_t thread;

    memset(&here, 0, sizeof(here));
    memset(&there, 0, sizeof(there));
    bench_pin(0);
    pthread_barrier_init(&ready, NULL, 2);
    sleeper_open(&here, way, &there, &stop, &ready);
    sleeper_open(&there, way, &here, &stop, &ready);
    ring_open(&here.ring);
    pthread_create(&thread, NULL, answer, &there);
    pthread_barrier_wait(&ready);
    begin = bench_now();
    cpu = cpu_now();
    while (bench_now() - begin < ns && !here.failed) {
        prepare(&here);
        wake(&here, &there);
        here.failed = !await_wake(&here);
        count++;
    }
    cost->wall_ns = (double)(bench_now() - begin) / (double)(2 * count);
    cost->cpu_ns = (double)(cpu_now() - cpu) / (double)count;
    atomic_store(&stop, true);
    if (!here.failed) {
        wake(&here, &there);
        io_uring_submit(&here.ring);
    }
    pthread_barrier_wait(&ready);
    pthread_join(thread, NULL);
    io_uring_queue_exit(&here.ring);
    close(here.event);
    pthread_barrier_destroy(&ready);
    return !here.failed && !there.failed;
}

const Way wake_ways[] = {
    {"wake", "eventfd, polled by the ring", run_wake, WAKE_EVENT, 0, 0},
    {"wake", "futex, waited for by the ring", run_wake, WAKE_FUTEX, 0, 0},
    {"wake", "MSG_RING at once", run_wake, WAKE_MSG, 0, 0},
    {"wake", "MSG_RING with one's own next wait", run_wake, WAKE_MSG_LATE, 0,
     0},
    {NULL, NULL, NULL, 0, 0, 0},
};
