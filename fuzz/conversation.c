/* SPDX-License-Identifier: MIT */
/*
 * Conversations (conversation.h).
 */
#include "conversation.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <coaio/context.h>

#include "../nbd/protocol.h"
#include "../nbd/server.h"
#include "../nbd/wire.h"
#include "fuzz.h"
#include "oracle.h"

#define MANNER_PIECE 0x3f
#define MANNER_TCP   0x40
#define MANNER_LEAVE 0x80

/* Pieces that a client sends before the rest follows at once. */
#define PIECES_MAX 64

/* One conversation reads so much in all: the largest request and some small
 * ones.  More shows nothing new, and takes seconds. */
#define READS_MAX    ((uint64_t)PAYLOAD_MAX + (256 << 10))
#define RECEIVED_MAX ((size_t)READS_MAX + (8 << 20))

/* Far more than a conversation needs whose bytes each make a pass. */
#define PASSES_MAX 1000000

/* Not a whole number of pages or of chunks (export_memory.c); two chunks and
 * a bit, so that extents differ. */
#define DISK_SIZE ((128 << 10) + 1)

ExportSpec conversation_exports[CONVERSATION_EXPORTS] = {
    { .name = "disk", .source = "memory:", .kind = EXPORT_MEMORY,
      .size = DISK_SIZE },
    { .name = "void", .source = "null:", .kind = EXPORT_NULL,
      .size = INT64_MAX },
    { .name = "blank", .source = "memory:", .kind = EXPORT_MEMORY,
      .size = DISK_SIZE, .read_only = true },
};

/* No I/O threads; little in flight, so that requests wait for room; and no
 * limit of time that a slow machine could come to. */
static const Options options = {
    .exports = conversation_exports,
    .n_exports = CONVERSATION_EXPORTS,
    .default_export = "disk",
    .threads = 0,
    .max_inflight = 256 << 10,
    .handshake_timeout_ns = INT64_C(86400000000000),
    .stop_timeout_ns = INT64_C(86400000000000),
};

typedef struct Client {
    int fd;
    const uint8_t *bytes;
    size_t n;
    size_t sent;
    unsigned pieces;  /* sent so far */
    unsigned manner;
    bool silent;      /* there is no more to send */
    size_t received;
} Client;

static AioContext *context;
static uint8_t received[RECEIVED_MAX];

/* Bytes of buffers that the server has taken from its cache. */
static size_t buffers_out;

void *__real_buffer_get(BufferCache *cache, size_t capacity);
void *__wrap_buffer_get(BufferCache *cache, size_t capacity);
void __real_buffer_put(BufferCache *cache, void *buffer, size_t capacity);
void __wrap_buffer_put(BufferCache *cache, void *buffer, size_t capacity);

/* The linker leads the server here (--wrap). */
void *__wrap_buffer_get(BufferCache *cache, size_t capacity)
{
    void *buffer = __real_buffer_get(cache, capacity);

    buffers_out += buffer ? capacity : 0;
    return buffer;
}

void __wrap_buffer_put(BufferCache *cache, void *buffer, size_t capacity)
{
    buffers_out -= capacity;
    __real_buffer_put(cache, buffer, capacity);
}

/* Marks the requests.  What looks like one inside another shares no byte of
 * that half of the cookie with it, because the magic does not overlap itself.
 */
static void number_requests(uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i + NBD_REQUEST_SIZE <= n; i++) {
        if (wire_get32(bytes + i) == NBD_MAGIC_REQUEST) {
            wire_put32(bytes + i + 8, (uint32_t)i);
        }
    }
}

/* How much these bytes read at the most, wherever transmission begins. */
static uint64_t sum_of_reads(const uint8_t *bytes, size_t n)
{
    uint64_t sum = 0;

    for (size_t i = 0; i + NBD_REQUEST_SIZE <= n; i++) {
        uint32_t length = wire_get32(bytes + i + 24);

        if (wire_get32(bytes + i) == NBD_MAGIC_REQUEST &&
            wire_get16(bytes + i + 6) == NBD_CMD_READ &&
            length <= PAYLOAD_MAX) {
            sum += length;
        }
    }
    return sum;
}

static void client_leave(Client *client)
{
    if (client->fd >= 0) {
        close(client->fd);
        client->fd = -1;
    }
}

/* Has no more to say. */
static void client_finish(Client *client)
{
    client->silent = true;
    if (client->manner & MANNER_LEAVE) {
        client_leave(client);
    } else {
        shutdown(client->fd, SHUT_WR);
    }
}

/* Sends what the socket takes, but no more than one piece. */
static void client_send(Client *client)
{
    size_t piece = client->manner & MANNER_PIECE;

    if (client->silent) {
        return;
    }
    if (piece == 0 || client->pieces++ >= PIECES_MAX) {
        piece = client->n;
    }
    while (client->sent < client->n && piece > 0) {
        size_t left = client->n - client->sent;
        ssize_t n = send(client->fd, client->bytes + client->sent,
                         left < piece ? left : piece,
                         MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0 && errno == EAGAIN && !(client->manner & MANNER_LEAVE)) {
            return;
        }
        if (n < 0) {
            break; /* the server is gone, or waits for its replies to be read */
        }
        client->sent += (size_t)n;
        piece -= (size_t)n < piece ? (size_t)n : piece;
        if (piece == 0 && client->sent < client->n) {
            return;
        }
    }
    client_finish(client);
}

static void client_receive(Client *client)
{
    while (client->fd >= 0 && !(client->manner & MANNER_LEAVE)) {
        ssize_t n = recv(client->fd, received + client->received,
                         RECEIVED_MAX - client->received, MSG_DONTWAIT);

        if (n <= 0) {
            return; /* nothing at the moment, or ever */
        }
        client->received += (size_t)n;
        EXPECT(client->received < RECEIVED_MAX, "the server answers more "
               "than it was asked");
    }
}

/* Until the server has closed the connection. */
static void talk(Client *client, const ServerThread *thread)
{
    for (unsigned passes = 0; thread->n_connections > 0; passes++) {
        EXPECT(passes < PASSES_MAX, "the connection does not end");
        client_send(client);
        client_receive(client);
        aio_poll(context, false);
    }
    client_receive(client);
}

/* The number that the next file descriptor will have. */
static int next_fd(void)
{
    int fd = dup(STDERR_FILENO);

    EXPECT(fd >= 0, "no file descriptor: %s", strerror(errno));
    close(fd);
    return fd;
}

static void connect_to(ServerThread *thread, Client *client)
{
    int fds[2];

    EXPECT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
                      fds) == 0, "socketpair: %s", strerror(errno));
    client->fd = fds[0];
    EXPECT(connection_start(thread, fds[1], client->manner & MANNER_TCP,
                            1) == 0, "no memory for a connection");
    thread->n_connections++;
    thread->server->n_connections++;
}

static void serve(Client *client)
{
    ServerThread thread = { 0 };
    Server server;

    EXPECT(server_init(&server, &options, context), "no server");
    server_thread_init(&thread, &server, context);
    connect_to(&thread, client);
    talk(client, &thread);
    EXPECT(buffers_out == 0, "%zu bytes of buffers are lost", buffers_out);
    EXPECT(server.n_connections == 0 && !thread.connections,
           "a connection is gone and counted");
    server_thread_clear(&thread);
    server_clear(&server);
    client_leave(client);
}

/* Makes the event loop, with whatever descriptors it makes when first used. */
static void begin(void)
{
    Client client = { .manner = MANNER_LEAVE };

    log_set_level(LOG_LEVEL_ERROR);
    EXPECT(aio_context_new(&context, NULL) == 0, "no event loop");
    aio_context_attach(context);
    serve(&client);
}

void converse(unsigned manner, uint8_t *bytes, size_t n)
{
    Client client = { .bytes = bytes, .n = n, .manner = manner };
    int fd;

    if (!context) {
        begin();
    }
    number_requests(bytes, n);
    if (n > SENT_MAX || sum_of_reads(bytes, n) > READS_MAX) {
        return;
    }
    fd = next_fd();
    serve(&client);
    EXPECT(next_fd() == fd, "a file descriptor was left open");
    if (!(manner & MANNER_LEAVE)) {
        oracle_check(bytes, n, received, client.received);
    }
}
