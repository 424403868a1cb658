/* SPDX-License-Identifier: MIT */
/*
 * trial_sockets.c: sends, receives and accepts, 16 at a time.
 */
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "trial.h"

enum { SOCKETS = 16, LARGEST = 1 << 20 };

/* --- send -----------------------------------------------------------------*/

enum { SEND_CALL, SEND_RING, SEND_RING_ZC };

typedef struct Drain {
    int fds[SOCKETS];
    int epoll;
    char room[LARGEST];
} Drain;

static void *drain(void *opaque)
{
    Drain *d = opaque;
    int open = SOCKETS;

    bench_pin(1);
    while (open > 0) {
        struct epoll_event events[SOCKETS];
        int n = epoll_wait(d->epoll, events, SOCKETS, -1);

        for (int i = 0; i < n; i++) {
            if (recv(events[i].data.fd, d->room, sizeof(d->room), 0) == 0) {
                epoll_ctl(d->epoll, EPOLL_CTL_DEL, events[i].data.fd, NULL);
                open--;
            }
        }
    }
    return NULL;
}

static void tcp_pair(int fds[2])
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    bench_check(!bind(listener, (struct sockaddr *)&address, length) &&
                    !listen(listener, 1) &&
                    !getsockname(listener, (struct sockaddr *)&address,
                                 &length),
                "a port of loopback can be listened at");
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    bench_check(!connect(fds[0], (struct sockaddr *)&address, length),
                "it can be connected to");
    fds[1] = accept(listener, NULL, NULL);
    bench_check(fds[1] >= 0, "and accepts");
    close(listener);
}

/* Send to all by the ring.  Returns false where the kernel refuses. */
static bool send_by_ring(struct io_uring *ring, const int *fds,
                         const char *message, const Way *way)
{
    unsigned due = SOCKETS; /* completions, with those of buffers */
    struct io_uring_cqe *cqe;

    for (int i = 0; i < SOCKETS; i++) {
        struct io_uring_sqe *sqe = ring_sqe(ring);

        if (way->how == SEND_RING_ZC) {
            io_uring_prep_send_zc(sqe, fds[i], message, way->size, MSG_WAITALL,
                                  0);
        } else {
            io_uring_prep_send(sqe, fds[i], message, way->size, MSG_WAITALL);
        }
    }
    io_uring_submit_and_wait(ring, SOCKETS);
    while (due > 0) {
        if (io_uring_wait_cqe(ring, &cqe) < 0 || cqe->res < 0) {
            return false;
        }
        if (!(cqe->flags & IORING_CQE_F_NOTIF)) {
            bench_check((size_t)cqe->res == way->size, "all has been sent");
        }
        due += (cqe->flags & IORING_CQE_F_MORE) != 0;
        due--;
        io_uring_cqe_seen(ring, cqe);
    }
    return true;
}

/* A ring that was closed just before may cut one short. */
static void send_by_calls(const int *fds, const char *message, size_t size)
{
    for (int i = 0; i < SOCKETS; i++) {
        ssize_t n;

        for (size_t done = 0; done < size; done += (size_t)n) {
            n = send(fds[i], message + done, size - done, 0);
            bench_check(n > 0, "something can be sent");
        }
    }
}

static void drain_open(Drain *d, int *fds, int domain)
{
    d->epoll = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < SOCKETS; i++) {
        struct epoll_event event = {.events = EPOLLIN};
        int pair[2];

        if (domain == AF_UNIX) {
            bench_check(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair),
                        "there are sockets");
        } else {
            tcp_pair(pair);
        }
        fds[i] = pair[0];
        event.data.fd = d->fds[i] = pair[1];
        epoll_ctl(d->epoll, EPOLL_CTL_ADD, pair[1], &event);
    }
}

static bool run_send(const Way *way, uint64_t ns, Cost *cost)
{
    static Drain d;
    static char message[LARGEST];
    struct io_uring ring;
    uint64_t begin, cpu, count = 0;
    int fds[SOCKETS];
    pthread_t thread;
    bool good = true;

    bench_pin(0);
    drain_open(&d, fds, way->domain);
    ring_open(&ring);
    pthread_create(&thread, NULL, drain, &d);
    begin = bench_now();
    cpu = cpu_now();
    while (bench_now() - begin < ns && good) {
        if (way->how == SEND_CALL) {
            send_by_calls(fds, message, way->size);
        } else {
            good = send_by_ring(&ring, fds, message, way);
        }
        count += SOCKETS;
    }
    cost->wall_ns = (double)(bench_now() - begin) / (double)count;
    cost->cpu_ns = (double)(cpu_now() - cpu) / (double)count;
    for (int i = 0; i < SOCKETS; i++) {
        shutdown(fds[i], SHUT_RDWR);
        close(fds[i]);
    }
    pthread_join(thread, NULL);
    for (int i = 0; i < SOCKETS; i++) {
        close(d.fds[i]);
    }
    close(d.epoll);
    io_uring_queue_exit(&ring);
    return good;
}

/* --- receive --------------------------------------------------------------*/

enum { RECV_POLL, RECV_RING, RECV_MULTISHOT, RECV_MULTISHOT_IN_PLACE };

enum {
    RECV_LARGEST = 4096,
    RECV_BUFFERS = 2 * SOCKETS, /* of the ring; a power of two */
    RECV_GROUP = 1,
};

typedef struct Feeder {
    int fds[SOCKETS];
    int wanted; /* an eventfd: all has come, send the next */
    size_t size;
    atomic_bool stop;
} Feeder;

/* Where the messages go, and what brings them there. */
typedef struct Receiver {
    const Way *way;
    struct io_uring ring;
    struct io_uring_buf_ring *buffers;
    int fds[SOCKETS];
    bool armed[SOCKETS];
    char places[SOCKETS][RECV_LARGEST];
    char room[RECV_BUFFERS][RECV_LARGEST];
} Receiver;

static void *feed(void *opaque)
{
    static const char message[RECV_LARGEST];
    Feeder *f = opaque;
    uint64_t n;

    bench_pin(1);
    while (read(f->wanted, &n, sizeof(n)) == (ssize_t)sizeof(n) &&
           !atomic_load(&f->stop)) {
        for (int i = 0; i < SOCKETS; i++) {
            bench_check(send(f->fds[i], message, f->size, 0) ==
                            (ssize_t)f->size,
                        "a message can be sent at once");
        }
    }
    return NULL;
}

static void want_more(const Feeder *f)
{
    uint64_t one = 1;

    bench_check(write(f->wanted, &one, sizeof(one)) == (ssize_t)sizeof(one),
                "more can be asked for");
}

static bool is_multishot(const Receiver *r)
{
    return r->way->how == RECV_MULTISHOT ||
           r->way->how == RECV_MULTISHOT_IN_PLACE;
}

static void lend_buffer(Receiver *r, unsigned id)
{
    io_uring_buf_ring_add(r->buffers, r->room[id], RECV_LARGEST,
                          (unsigned short)id,
                          io_uring_buf_ring_mask(RECV_BUFFERS), 0);
    io_uring_buf_ring_advance(r->buffers, 1);
}

/* Returns false if the kernel has no rings of buffers. */
static bool lend_buffers(Receiver *r)
{
    struct io_uring_buf_reg reg = {
        .ring_entries = RECV_BUFFERS,
        .bgid = RECV_GROUP,
    };
    void *memory;

    bench_check(!posix_memalign(&memory, 4096, 4096), "there is memory");
    r->buffers = memory;
    reg.ring_addr = (uintptr_t)memory;
    if (io_uring_register_buf_ring(&r->ring, &reg, 0) < 0) {
        return false;
    }
    io_uring_buf_ring_init(r->buffers);
    for (unsigned i = 0; i < RECV_BUFFERS; i++) {
        lend_buffer(r, i);
    }
    return true;
}

static void arm(Receiver *r, unsigned i)
{
    struct io_uring_sqe *sqe = ring_sqe(&r->ring);

    if (r->way->how == RECV_POLL) {
        io_uring_prep_poll_add(sqe, r->fds[i], POLLIN);
    } else if (r->way->how == RECV_RING) {
        io_uring_prep_recv(sqe, r->fds[i], r->places[i], r->way->size, 0);
        sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
    } else {
        io_uring_prep_recv_multishot(sqe, r->fds[i], NULL, 0, 0);
        sqe->flags |= IOSQE_BUFFER_SELECT;
        sqe->buf_group = RECV_GROUP;
    }
    io_uring_sqe_set_data64(sqe, i);
    r->armed[i] = true;
}

/* Returns how many bytes have come to their place. */
static ssize_t received(Receiver *r, unsigned i, const struct io_uring_cqe *cqe)
{
    unsigned id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;

    r->armed[i] = cqe->flags & IORING_CQE_F_MORE;
    if (r->way->how == RECV_POLL) {
        return recv(r->fds[i], r->places[i], r->way->size, MSG_DONTWAIT);
    }
    if (cqe->res > 0 && is_multishot(r)) {
        if (r->way->how == RECV_MULTISHOT) {
            memcpy(r->places[i], r->room[id], (size_t)cqe->res);
        }
        lend_buffer(r, id);
    }
    return cqe->res;
}

/* Receive one from each, all in one pass, as a server does that has much to do.
 * Returns false where the kernel refuses. */
static bool receive_all(Receiver *r)
{
    unsigned due = SOCKETS;
    struct io_uring_cqe *cqe;

    for (unsigned i = 0; i < SOCKETS; i++) {
        if (!r->armed[i]) {
            arm(r, i);
        }
    }
    while (due > 0) {
        io_uring_submit_and_wait(&r->ring, due);
        while (due > 0 && io_uring_peek_cqe(&r->ring, &cqe) == 0) {
            ssize_t n = received(r, (unsigned)cqe->user_data, cqe);

            io_uring_cqe_seen(&r->ring, cqe);
            if (n < 0) {
                return false;
            }
            bench_check((size_t)n == r->way->size, "a message comes whole");
            due--;
        }
    }
    return true;
}

static void receiver_open(Receiver *r, Feeder *f, const Way *way)
{
    r->way = way;
    r->buffers = NULL;
    f->size = way->size;
    atomic_store(&f->stop, false);
    f->wanted = eventfd(0, EFD_CLOEXEC);
    for (int i = 0; i < SOCKETS; i++) {
        int pair[2];

        bench_check(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair),
                    "there are sockets");
        f->fds[i] = pair[0];
        r->fds[i] = pair[1];
        r->armed[i] = false;
    }
    ring_open(&r->ring);
}

static void receiver_close(Receiver *r, Feeder *f)
{
    io_uring_queue_exit(&r->ring);
    free(r->buffers);
    for (int i = 0; i < SOCKETS; i++) {
        close(f->fds[i]);
        close(r->fds[i]);
    }
    close(f->wanted);
}

static bool run_receive(const Way *way, uint64_t ns, Cost *cost)
{
    static Receiver r;
    static Feeder f;
    uint64_t begin, cpu, count = 0;
    pthread_t thread;
    bool good;

    bench_pin(0);
    receiver_open(&r, &f, way);
    good = !is_multishot(&r) || lend_buffers(&r);
    pthread_create(&thread, NULL, feed, &f);
    begin = bench_now();
    cpu = cpu_now();
    while (good && bench_now() - begin < ns) {
        want_more(&f);
        good = receive_all(&r);
        count += SOCKETS;
    }
    cost->wall_ns = (double)(bench_now() - begin) / (double)count;
    cost->cpu_ns = (double)(cpu_now() - cpu) / (double)count;
    atomic_store(&f.stop, true);
    want_more(&f);
    pthread_join(thread, NULL);
    receiver_close(&r, &f);
    return good;
}

/* --- accept ---------------------------------------------------------------*/

enum { ACCEPT_CALL, ACCEPT_RING, ACCEPT_MULTISHOT };

typedef struct Knocker {
    struct sockaddr_un address;
    socklen_t length;
    atomic_bool stop;
    atomic_bool last; /* of the connections is the next one */
} Knocker;

static int knock_once(const Knocker *k)
{
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    bench_check(!connect(fd, (const struct sockaddr *)&k->address, k->length),
                "the listener takes connections");
    return fd;
}

static void *knock(void *opaque)
{
    Knocker *k = opaque;

    bench_pin(1);
    while (!atomic_load(&k->stop)) {
        int fds[SOCKETS];
        char byte;

        for (int i = 0; i < SOCKETS; i++) {
            fds[i] = knock_once(k);
        }
        for (int i = 0; i < SOCKETS; i++) {
            bench_check(recv(fds[i], &byte, 1, 0) == 0, "it closes them");
            close(fds[i]);
        }
    }
    atomic_store(&k->last, true);
    close(knock_once(k));
    return NULL;
}

/* Accept until nobody is there; then have the ring tell of the next. */
static unsigned accept_by_calls(struct io_uring *ring, int listener)
{
    unsigned n = 0;
    struct io_uring_cqe *cqe;
    int fd;

    while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
        close(fd);
        n++;
    }
    io_uring_prep_poll_add(ring_sqe(ring), listener, POLLIN);
    io_uring_submit_and_wait(ring, 1);
    if (io_uring_peek_cqe(ring, &cqe) == 0) {
        io_uring_cqe_seen(ring, cqe);
    }
    return n;
}

/* Completions are connections.  Returns how many. */
static unsigned accept_by_ring(struct io_uring *ring, int listener, int how)
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;
    bool again = false;

    io_uring_submit_and_wait(ring, 1);
    io_uring_for_each_cqe(ring, head, cqe)
    {
        n++;
        bench_check(cqe->res >= 0, "the ring accepts");
        close(cqe->res);
        again |= !(cqe->flags & IORING_CQE_F_MORE);
    }
    io_uring_cq_advance(ring, n);
    if (again && how == ACCEPT_MULTISHOT) {
        io_uring_prep_multishot_accept(ring_sqe(ring), listener, NULL, NULL,
                                       SOCK_CLOEXEC);
    } else if (again) {
        io_uring_prep_accept(ring_sqe(ring), listener, NULL, NULL,
                             SOCK_CLOEXEC);
    }
    return n;
}

static int listener_open(Knocker *k, int how)
{
    int flags = how == ACCEPT_CALL ? SOCK_NONBLOCK : 0;
    int listener = socket(AF_UNIX, SOCK_STREAM | flags, 0);

    /* The kernel chooses an abstract name. */
    k->address.sun_family = AF_UNIX;
    k->length = sizeof(k->address);
    bench_check(!bind(listener, (struct sockaddr *)&k->address,
                      sizeof(sa_family_t)) &&
                    !listen(listener, 2 * SOCKETS) &&
                    !getsockname(listener, (struct sockaddr *)&k->address,
                                 &k->length),
                "there is an address to listen at");
    return listener;
}

static bool run_accept(const Way *way, uint64_t ns, Cost *cost)
{
    Knocker k = {.stop = false};
    int listener = listener_open(&k, way->how);
    uint64_t begin, cpu, count = 0;
    struct io_uring ring;
    pthread_t thread;

    bench_pin(0);
    ring_open(&ring);
    if (way->how == ACCEPT_MULTISHOT) {
        io_uring_prep_multishot_accept(ring_sqe(&ring), listener, NULL, NULL,
                                       SOCK_CLOEXEC);
    } else if (way->how == ACCEPT_RING) {
        io_uring_prep_accept(ring_sqe(&ring), listener, NULL, NULL,
                             SOCK_CLOEXEC);
    }
    begin = bench_now();
    cpu = cpu_now();
    pthread_create(&thread, NULL, knock, &k);
    while (!atomic_load(&k.last)) {
        count += way->how == ACCEPT_CALL
                     ? accept_by_calls(&ring, listener)
                     : accept_by_ring(&ring, listener, way->how);
        atomic_store(&k.stop, bench_now() - begin > ns);
    }
    cost->wall_ns = (double)(bench_now() - begin) / (double)count;
    cost->cpu_ns = (double)(cpu_now() - cpu) / (double)count;
    pthread_join(thread, NULL);
    io_uring_queue_exit(&ring);
    close(listener);
    return true;
}

/* --- the ways -------------------------------------------------------------*/

#define SENDS(task, bytes, family)                                             \
    {task, "send()", run_send, SEND_CALL, bytes, family},                      \
        {task, "the ring's SEND", run_send, SEND_RING, bytes, family}

#define SENDS_ZC(task, bytes)                                                  \
    SENDS(task, bytes, AF_INET),                                               \
    {                                                                          \
        task, "the ring's SEND_ZC", run_send, SEND_RING_ZC, bytes, AF_INET     \
    }

#define RECEIVES(task, bytes)                                                  \
    {task, "poll by the ring, then recv()", run_receive, RECV_POLL, bytes, 0}, \
        {task, "the ring's RECV", run_receive, RECV_RING, bytes, 0},           \
        {task, "multishot, copied", run_receive, RECV_MULTISHOT, bytes, 0},    \
    {                                                                          \
        task, "multishot, left in the ring's buffer", run_receive,             \
            RECV_MULTISHOT_IN_PLACE, bytes, 0                                  \
    }

const Way socket_ways[] = {
    SENDS("send 64 B, UNIX", 64, AF_UNIX),
    SENDS("send 32 KiB, UNIX", 32 << 10, AF_UNIX),
    SENDS_ZC("send 64 B, TCP", 64),
    SENDS_ZC("send 32 KiB, TCP", 32 << 10),
    SENDS_ZC("send 1 MiB, TCP", 1 << 20),
    RECEIVES("receive 64 B, UNIX", 64),
    RECEIVES("receive 4 KiB, UNIX", 4096),
    {"accept", "accept4(), then poll by the ring", run_accept, ACCEPT_CALL, 0,
     0},
    {"accept", "the ring's ACCEPT", run_accept, ACCEPT_RING, 0, 0},
    {"accept", "the ring's ACCEPT, multishot", run_accept, ACCEPT_MULTISHOT, 0,
     0},
    {NULL, NULL, NULL, 0, 0, 0},
};
