/* SPDX-License-Identifier: MIT */
/*
 * nbd_loop.c: NBD servers of the simplest kind, as yardsticks.
 *
 *     nbd_loop blocking SOCKET IMAGE     the blocking loop: one thread for each
 *                                        connection receives one request, calls
 *                                        pread or pwrite, sends one reply
 *     nbd_loop batching SOCKET IMAGE     receives as many requests as have
 *                                        arrived, calls pread or pwrite for
 *                                        each, answers them with one sendmsg():
 *                                        the bound for who calls once a request
 *     nbd_loop limit SOCKET SIZE         no disk: receives as many requests as
 *                                        have arrived and answers them with one
 *                                        sendmsg() out of one buffer
 *
 * SOCKET is the path of a UNIX socket, or a TCP port on 127.0.0.1.  Serves
 * until it is killed.  It speaks to nbdload: fixed newstyle, GO, simple
 * replies, READ, WRITE and DISC; anything else ends the connection.  It
 * trusts its client, which no server may: this is no program to deploy.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "../nbd_wire.h"

enum {
    MAX_PAYLOAD = 32 << 20,
    BATCH = 512,
    BATCH_PAYLOAD = 512 << 10,  /* then a batch leaves */
    INPUT_BYTES = 1 << 20,
    UNIX_SEND_BUFFER = 512 << 10, /* as coaio-nbd has it */
};

enum { MODE_BLOCKING, MODE_BATCHING, MODE_LIMIT };

static struct {
    int mode;
    int file;           /* not for the limit */
    uint64_t size;
} server;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static bool receive_all(int fd, void *data, size_t length)
{
    return recv(fd, data, length, MSG_WAITALL) == (ssize_t)length;
}

static bool send_all(int fd, struct iovec *iov, unsigned count, size_t total)
{
    while (total) {
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = count};
        ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL);

        if (n < 0) {
            return false;
        }
        total -= (size_t)n;
        while (count && (size_t)n >= iov->iov_len) {
            n -= (ssize_t)iov->iov_len;
            iov++;
            count--;
        }
        if (count) {
            iov->iov_base = (char *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
        }
    }
    return true;
}

static bool send_block(int fd, void *data, size_t length)
{
    struct iovec iov = {data, length};

    return send_all(fd, &iov, 1, length);
}

static bool send_option_reply(int fd, uint32_t option, uint32_t type,
                              const void *data, uint32_t length)
{
    uint8_t reply[64];

    nbd_put64(reply, NBD_OPTION_REPLY);
    nbd_put32(reply + 8, option);
    nbd_put32(reply + 12, type);
    nbd_put32(reply + 16, length);
    memcpy(reply + 20, data, length);
    return send_block(fd, reply, 20 + length);
}

/* Any name is served; an option other than GO ends the connection. */
static bool handshake(int fd)
{
    uint8_t greeting[18], flags[4], head[16], data[4096], info[12];
    uint32_t length;

    nbd_put64(greeting, NBD_MAGIC);
    nbd_put64(greeting + 8, NBD_IHAVEOPT);
    nbd_put16(greeting + 16, 3);
    if (!send_block(fd, greeting, sizeof(greeting))
        || !receive_all(fd, flags, sizeof(flags))
        || !receive_all(fd, head, sizeof(head))) {
        return false;
    }
    length = nbd_get32(head + 12);
    if (nbd_get32(head + 8) != NBD_OPT_GO || length > sizeof(data)
        || !receive_all(fd, data, length)) {
        return false;
    }
    nbd_put16(info, 0);
    nbd_put64(info + 2, server.size);
    nbd_put16(info + 10, 1);
    return send_option_reply(fd, NBD_OPT_GO, NBD_REP_INFO, info, sizeof(info))
           && send_option_reply(fd, NBD_OPT_GO, NBD_REP_ACK, "", 0);
}

static void put_reply(uint8_t *reply, const uint8_t *request, bool good)
{
    nbd_put32(reply, NBD_SIMPLE_REPLY);
    nbd_put32(reply + 4, good ? 0 : EIO);
    memcpy(reply + 8, request + 8, 8);
}

/* The blocking loop: two system calls for the socket, one for the file. */
static void serve_blocking(int fd, uint8_t *payload)
{
    uint8_t request[REQUEST_BYTES], reply[SIMPLE_BYTES];

    while (receive_all(fd, request, sizeof(request))) {
        uint16_t command = nbd_get16(request + 6);
        off_t offset = (off_t)nbd_get64(request + 16);
        size_t length = nbd_get32(request + 24);
        struct iovec iov[2] = {{reply, sizeof(reply)}, {payload, length}};
        bool good;

        if (length > MAX_PAYLOAD) {
            return;
        }
        if (command == NBD_CMD_READ) {
            good = pread(server.file, payload, length, offset)
                   == (ssize_t)length;
        } else if (command == NBD_CMD_WRITE) {
            if (!receive_all(fd, payload, length)) {
                return;
            }
            good = pwrite(server.file, payload, length, offset)
                   == (ssize_t)length;
            length = 0;
        } else {
            return;
        }
        put_reply(reply, request, good);
        if (!send_all(fd, iov, good && length ? 2 : 1,
                      sizeof(reply) + (good ? length : 0))) {
            return;
        }
    }
}

typedef struct Batch {
    uint8_t replies[BATCH][SIMPLE_BYTES];
    struct iovec iov[2 * BATCH];
    unsigned iov_count;
    unsigned count;
    size_t total;
    size_t used;        /* bytes of the payload buffer; stays 0 at the limit */
} Batch;

static bool batch_flush(int fd, Batch *b)
{
    bool good = send_all(fd, b->iov, b->iov_count, b->total);

    b->iov_count = b->count = 0;
    b->total = b->used = 0;
    return good;
}

static void batch_add(Batch *b, void *base, size_t length)
{
    b->iov[b->iov_count++] = (struct iovec){base, length};
    b->total += length;
}

/* Reads or writes what the request wants, and queues its reply. */
static bool answer(Batch *b, const uint8_t *request, uint8_t *payload)
{
    bool reads = nbd_get16(request + 6) == NBD_CMD_READ;
    off_t offset = (off_t)nbd_get64(request + 16);
    size_t length = nbd_get32(request + 24);
    ssize_t n = (ssize_t)length;

    payload += b->used;
    if (server.mode == MODE_BATCHING && reads) {
        n = pread(server.file, payload, length, offset);
        b->used += length;
    } else if (server.mode == MODE_BATCHING) {
        n = pwrite(server.file, request + REQUEST_BYTES, length, offset);
    }
    put_reply(b->replies[b->count], request, true);
    batch_add(b, b->replies[b->count++], SIMPLE_BYTES);
    if (reads) {
        batch_add(b, payload, length);
    }
    return n == (ssize_t)length;
}

/* Returns the bytes taken, or -1 when the connection is over. */
static ssize_t answer_all(int fd, Batch *b, const uint8_t *input, size_t have,
                          uint8_t *payload)
{
    size_t at = 0;

    while (have - at >= REQUEST_BYTES) {
        const uint8_t *request = input + at;
        uint16_t command = nbd_get16(request + 6);
        size_t length = nbd_get32(request + 24), extra = 0;

        if (command > NBD_CMD_WRITE || length > INPUT_BYTES / 2) {
            return -1;
        }
        extra = command == NBD_CMD_WRITE ? length : 0;
        if (have - at - REQUEST_BYTES < extra) {
            break;
        }
        at += REQUEST_BYTES + extra;
        if (b->used + length > BATCH_PAYLOAD && !batch_flush(fd, b)) {
            return -1;
        }
        if (!answer(b, request, payload)
            || (b->count == BATCH && !batch_flush(fd, b))) {
            return -1;
        }
    }
    return batch_flush(fd, b) ? (ssize_t)at : -1;
}

static void serve_batches(int fd, uint8_t *payload)
{
    Batch *batch = calloc(1, sizeof(*batch));
    uint8_t *input = malloc(INPUT_BYTES);
    size_t have = 0;

    for (;;) {
        ssize_t n = recv(fd, input + have, INPUT_BYTES - have, 0);

        if (n <= 0) {
            break;
        }
        have += (size_t)n;
        n = answer_all(fd, batch, input, have, payload);
        if (n < 0) {
            break;
        }
        have -= (size_t)n;
        memmove(input, input + n, have);
    }
    free(input);
    free(batch);
}

static void *serve(void *opaque)
{
    int fd = (int)(intptr_t)opaque, one = 1, room = UNIX_SEND_BUFFER;
    uint8_t *payload = calloc(1, MAX_PAYLOAD);

    /* Refused on a UNIX socket, which has no such delay. */
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))) {
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
    }
    if (payload && handshake(fd)) {
        if (server.mode == MODE_BLOCKING) {
            serve_blocking(fd, payload);
        } else {
            serve_batches(fd, payload);
        }
    }
    free(payload);
    close(fd);
    return NULL;
}

static int listen_on(const char *where)
{
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in inet = {.sin_family = AF_INET};
    bool tcp = !strchr(where, '/');
    int one = 1, fd = socket(tcp ? AF_INET : AF_UNIX,
                             SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (strlen(where) >= sizeof(local.sun_path)) {
        die(where);
    }
    memcpy(local.sun_path, where, strlen(where));
    inet.sin_port = htons((uint16_t)atoi(where));
    inet.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (fd < 0
        || bind(fd, tcp ? (struct sockaddr *)&inet : (struct sockaddr *)&local,
                tcp ? sizeof(inet) : sizeof(local))
        || listen(fd, 64)) {
        die(where);
    }
    return fd;
}

int main(int argc, char **argv)
{
    static const char *const modes[] = {"blocking", "batching", "limit"};
    struct stat status;
    int listener;

    while (argc == 4 && server.mode <= MODE_LIMIT
           && strcmp(argv[1], modes[server.mode])) {
        server.mode++;
    }
    if (argc != 4 || server.mode > MODE_LIMIT) {
        fprintf(stderr, "Usage: %s blocking|batching SOCKET IMAGE\n"
                "       %s limit SOCKET SIZE\n", argv[0], argv[0]);
        return 2;
    }
    if (server.mode != MODE_LIMIT) {
        server.file = open(argv[3], O_RDWR | O_CLOEXEC);
        if (server.file < 0 || fstat(server.file, &status)) {
            die(argv[3]);
        }
        server.size = (uint64_t)status.st_size;
    } else {
        server.size = strtoull(argv[3], NULL, 10);
    }
    listener = listen_on(argv[2]);
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        pthread_t thread;

        if (fd >= 0
            && pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd)) {
            die("thread");
        }
        if (fd >= 0) {
            pthread_detach(thread);
        }
    }
}
