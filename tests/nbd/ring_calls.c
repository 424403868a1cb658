/* SPDX-License-Identifier: MIT */

/*
 * Uses a ring as its arguments say, so that what the shim records and injects
 * can be held against what is known to have happened:
 *
 *     ring_calls FILE STEP...
 *
 *     write    queue a WRITEV of "data" to the beginning of FILE
 *     sync     queue an FSYNC
 *     refused  queue what the kernel refuses; it takes nothing that is behind
 *     enter    enter the kernel with all that is queued, and take what has
 *              completed then, without waiting
 *     wait     wait, without entering the kernel for it, until all that it has
 *              taken has completed, and take that
 *     send     send a byte through a socket
 *
 * Prints the results in the order in which they were queued.  The ring is one
 * whose completions come at any time.  Ends with 77 if there is no io_uring.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    SLOTS = 16,
    NO_RING = 77
};

static struct io_uring ring;
static int file;
static int sockets[2];
static char data[] = "data";
static struct iovec iov = {data, 4};
static int results[SLOTS];
static unsigned queued, completed;

static void must(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static struct io_uring_sqe *queue(void)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

    must(sqe && queued < SLOTS, "room in the queue");
    memset(sqe, 0, sizeof(*sqe));
    return sqe;
}

static void queued_as(struct io_uring_sqe *sqe)
{
    io_uring_sqe_set_data64(sqe, queued++);
}

static void take(void)
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;

    io_uring_for_each_cqe(&ring, head, cqe)
    {
        results[cqe->user_data] = cqe->res;
        n++;
    }
    io_uring_cq_advance(&ring, n);
    completed += n;
}

static void enter(void)
{
    struct io_uring_sq *sq = &ring.sq;
    unsigned ready;

    for (unsigned i = sq->sqe_head; sq->array && i != sq->sqe_tail; i++) {
        sq->array[i & sq->ring_mask] = i & sq->ring_mask;
    }
    sq->sqe_head = sq->sqe_tail;
    io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
    ready = io_uring_sq_ready(&ring);
    must(io_uring_enter2((unsigned)ring.ring_fd, ready, 0, 0, NULL, 0) >= 0,
         "io_uring_enter");
    take();
}

static void await(void)
{
    while (completed < queued - io_uring_sq_ready(&ring)) {
        poll(NULL, 0, 1);
        take();
    }
}

static void step(const char *name)
{
    struct io_uring_sqe *sqe;

    if (strcmp(name, "write") == 0) {
        sqe = queue();
        io_uring_prep_writev(sqe, file, &iov, 1, 0);
        queued_as(sqe);
    } else if (strcmp(name, "sync") == 0) {
        sqe = queue();
        io_uring_prep_fsync(sqe, file, IORING_FSYNC_DATASYNC);
        queued_as(sqe);
    } else if (strcmp(name, "refused") == 0) {
        sqe = queue();
        sqe->opcode = 255;
        queued_as(sqe);
    } else if (strcmp(name, "enter") == 0) {
        enter();
    } else if (strcmp(name, "wait") == 0) {
        await();
    } else {
        must(strcmp(name, "send") == 0, name);
        must(send(sockets[0], data, 1, 0) == 1, "send");
    }
}

int main(int argc, char **argv)
{
    struct io_uring_params params = {0};
    int ret;

    must(argc > 1, "FILE");
    file = open(argv[1], O_RDWR);
    must(file >= 0, argv[1]);
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0, "socketpair");
    ret = io_uring_queue_init_params(SLOTS, &ring, &params);
    if (ret < 0) {
        printf("no io_uring: %s\n", strerror(-ret));
        return NO_RING;
    }
    for (int i = 2; i < argc; i++) {
        step(argv[i]);
    }
    io_uring_queue_exit(&ring);
    for (unsigned i = 0; i < queued; i++) {
        printf("%d\n", results[i]);
    }
    return 0;
}
