/* SPDX-License-Identifier: MIT */
/*
 * nbdload: a lean load generator for NBD servers.
 *
 * It keeps --depth requests in flight on each of --connections connections,
 * verifies every reply, and prints one JSON object: rate, latency
 * percentiles, and how many system calls the client itself needed.
 *
 * What it guarantees: a reply counts only if its handle names a request that
 * is in flight, its error is 0 and its payload has the length that was asked
 * for; with --stamped, the first eight bytes of each block read must be the
 * block's own offset (bench/run fills the image so, writes keep it so).
 * Anything else, and a server that is silent for 30 seconds, ends the run
 * with one line and exit status 1.
 *
 * What it does not do: TLS, extended headers, flush, trim.
 *
 * One thread serves all connections.  The client shares the machine with the
 * server, and on two cores the leanest client is one that occupies a single
 * core and switches least: while it works through one receive, replies pile
 * up and the next receive brings more of them.  A thread for each connection
 * would take the server's core away and batch less.  With one connection the
 * thread sleeps in recv() itself; only with several does it need epoll.
 *
 * LATENCY is the time from just before the sendmsg() that carried the request
 * to the return of the recv() that brought the last byte of its reply.  One
 * clock reading serves a whole batch.
 *
 * INVARIANTS
 *  1. A request is in flight exactly while its slot is not on the free list.
 *  2. Headers of a batch are not touched until the kernel has taken the
 *     whole batch (connection->unsent == 0).
 *  3. Sends never block, so client and server cannot wait for each other.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "histogram.h"
#include "nbd_client.h"
#include "nbd_wire.h"

enum {
    MAX_DEPTH = 4096,
    MAX_CONNECTIONS = 16384,
    MAX_EVENTS = 256,
    MAX_SIZE = 32 << 20,
    RECEIVE_BYTES = 256 << 10,
    STAMP_STRIDE = 4096,
    SILENCE_SECONDS = 30,
};

enum { OP_READ, OP_WRITE, OP_MIX };

typedef struct Options {
    const char *path;       /* UNIX socket, or NULL */
    char *host;             /* TCP, or NULL */
    char *port;
    const char *export_name;
    unsigned depth;
    unsigned connections;
    uint32_t size;
    int op;
    bool sequential;
    bool structured;
    bool stamped;
    bool step;
    double seconds;
    double warmup;
    uint64_t requests;      /* 0: until the time is over */
    uint64_t seed;
} Options;

/* One request in flight, or a free place for one. */
typedef struct Slot {
    uint64_t handle;        /* sequence << 16 | index, valid while busy */
    uint64_t offset;
    uint64_t sent_ns;
    uint32_t data_left;     /* bytes of payload still to come */
    bool busy;
    bool is_write;
    uint8_t *payload;       /* writes only, its own for each slot */
} Slot;

enum { STAGE_HEAD, STAGE_CHUNK, STAGE_PLACE, STAGE_STAMP, STAGE_SKIP };

typedef struct Connection {
    int fd;
    Slot *slots;
    uint16_t *free_slots;   /* a stack */
    unsigned free_count;
    uint64_t sequence;
    uint64_t random;
    uint64_t next_offset;   /* sequential pattern */

    /* The batch being sent (invariant 2). */
    uint8_t (*heads)[REQUEST_BYTES];
    struct iovec *iov;
    unsigned iov_first;
    unsigned iov_end;
    size_t unsent;
    uint32_t watched;       /* EPOLL..., what the kernel was told */

    /* The reply being received. */
    int stage;
    uint8_t head[32];
    unsigned have;
    unsigned need;
    uint64_t skip;
    uint16_t chunk_flags;
    uint16_t chunk_type;
    uint32_t chunk_length;
    Slot *slot;             /* whom the reply is for, after its header */
} Connection;

static struct {
    Options options;
    uint64_t export_size;
    uint64_t blocks;
    uint64_t issued;
    uint64_t completed;     /* all, the warm-up included */
    uint64_t sends;
    uint64_t receives;
    uint64_t polls;
    int epoll_fd;
    bool stopping;
    bool measuring;
    Histogram latency;      /* of the requests that ended while measuring */
    uint8_t *buffer;
} load;

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void *allocate(size_t count, size_t size)
{
    void *p = calloc(count, size);

    if (!p) {
        die("out of memory");
    }
    return p;
}

/* splitmix64: small, seeded, good enough for offsets. */
static uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void open_connection(Connection *c, unsigned index)
{
    const Options *o = &load.options;
    struct timeval silence = {.tv_sec = SILENCE_SECONDS};
    uint16_t flags;

    c->fd = o->path ? nbd_connect_unix(o->path)
                    : nbd_connect_tcp(o->host, o->port);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof(silence));
    nbd_handshake(c->fd, o->export_name, o->structured, &load.export_size,
                  &flags);
    if (o->op != OP_READ && (flags & NBD_FLAG_READ_ONLY)) {
        die("export \"%s\" is read-only", o->export_name);
    }
    load.blocks = load.export_size / o->size;
    if (!load.blocks) {
        die("the export has %" PRIu64 " bytes, less than one request",
            load.export_size);
    }
    c->slots = allocate(o->depth, sizeof(*c->slots));
    c->free_slots = allocate(o->depth, sizeof(*c->free_slots));
    c->heads = allocate(o->depth, REQUEST_BYTES);
    c->iov = allocate(2 * (size_t)o->depth, sizeof(*c->iov));
    for (unsigned i = 0; i < o->depth; i++) {
        c->free_slots[c->free_count++] = (uint16_t)i;
        if (o->op != OP_READ) {
            c->slots[i].payload = allocate(1, o->size);
        }
    }
    c->random = o->seed * 1000003 + index;
    c->next_offset = load.blocks / o->connections * index * o->size;
    c->stage = STAGE_HEAD;
    c->need = SIMPLE_BYTES;
}

/* Issuing */

static uint64_t choose_offset(Connection *c)
{
    uint64_t offset;

    if (!load.options.sequential) {
        /* The high half of a 128-bit product: no division, no bias. */
        return (uint64_t)(((unsigned __int128)random_next(&c->random)
                           * load.blocks) >> 64) * load.options.size;
    }
    offset = c->next_offset;
    c->next_offset += load.options.size;
    if (c->next_offset > load.export_size - load.options.size) {
        c->next_offset = 0;
    }
    return offset;
}

static void stamp_payload(uint8_t *payload, uint64_t offset, uint32_t size)
{
    for (uint32_t at = 0; at < size; at += STAMP_STRIDE) {
        nbd_put64(payload + at, offset + at);
    }
}

static void append_iov(Connection *c, void *base, size_t length)
{
    if (c->iov_end) {
        struct iovec *last = &c->iov[c->iov_end - 1];

        if ((uint8_t *)last->iov_base + last->iov_len == base) {
            last->iov_len += length;
            return;
        }
    }
    c->iov[c->iov_end++] = (struct iovec){base, length};
}

static void issue(Connection *c, unsigned position, uint64_t now)
{
    const Options *o = &load.options;
    uint8_t *head = c->heads[position];
    uint16_t index = c->free_slots[--c->free_count];
    Slot *slot = &c->slots[index];

    slot->handle = ++c->sequence << 16 | index;
    slot->offset = choose_offset(c);
    slot->sent_ns = now;
    slot->data_left = o->size;
    slot->busy = true;
    slot->is_write = o->op == OP_WRITE
                     || (o->op == OP_MIX && (random_next(&c->random) & 1));
    nbd_put32(head, NBD_REQUEST);
    nbd_put16(head + 4, 0);
    nbd_put16(head + 6, slot->is_write ? NBD_CMD_WRITE : NBD_CMD_READ);
    nbd_put64(head + 8, slot->handle);
    nbd_put64(head + 16, slot->offset);
    nbd_put32(head + 24, o->size);
    append_iov(c, head, REQUEST_BYTES);
    c->unsent += REQUEST_BYTES;
    if (slot->is_write) {
        if (o->stamped) {
            stamp_payload(slot->payload, slot->offset, o->size);
        }
        append_iov(c, slot->payload, o->size);
        c->unsent += o->size;
    }
    load.issued++;
}

/* Hands the kernel as much of the batch as it takes (invariant 3). */
static void flush(Connection *c)
{
    while (c->unsent) {
        unsigned count = c->iov_end - c->iov_first;
        struct msghdr message = {
            .msg_iov = c->iov + c->iov_first,
            .msg_iovlen = count < IOV_MAX ? count : IOV_MAX,
        };
        ssize_t n = sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        size_t left;

        load.sends++;
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            return;
        }
        if (n < 0) {
            die("send: %s", strerror(errno));
        }
        c->unsent -= (size_t)n;
        for (left = (size_t)n; left;) {
            struct iovec *v = &c->iov[c->iov_first];
            size_t step = left < v->iov_len ? left : v->iov_len;

            v->iov_base = (uint8_t *)v->iov_base + step;
            v->iov_len -= step;
            left -= step;
            c->iov_first += v->iov_len == 0;
        }
    }
}

/* Fills every free slot and sends the lot with one call. */
static void issue_batch(Connection *c, uint64_t now)
{
    const Options *o = &load.options;
    unsigned position = 0;

    if (c->unsent || load.stopping) {
        return;
    }
    c->iov_first = c->iov_end = 0;
    while (c->free_count && !(o->requests && load.issued >= o->requests)) {
        issue(c, position++, now);
    }
    flush(c);
}

/* Receiving */

static void expect(Connection *c, int stage, unsigned need)
{
    c->stage = stage;
    c->have = 0;
    c->need = need;
}

static void complete(Connection *c, uint64_t now)
{
    Slot *slot = c->slot;

    if (!slot->is_write && slot->data_left) {
        die("the reply to the read at %" PRIu64 " lacks %" PRIu32 " bytes",
            slot->offset, slot->data_left);
    }
    slot->busy = false;
    c->free_slots[c->free_count++] = (uint16_t)(slot - c->slots);
    c->slot = NULL;
    load.completed++;
    if (load.measuring) {
        histogram_add(&load.latency, now - slot->sent_ns);
    }
}

static Slot *find_slot(Connection *c, uint64_t handle)
{
    unsigned index = handle & 0xffff;

    if (index >= load.options.depth || !c->slots[index].busy
        || c->slots[index].handle != handle) {
        die("a reply with handle %#" PRIx64 ", which is not in flight",
            handle);
    }
    return &c->slots[index];
}

/* The reply, or the chunk, is over: complete it if it was the last. */
static void end_of_piece(Connection *c, bool last, uint64_t now)
{
    if (last) {
        complete(c, now);
    }
    expect(c, STAGE_HEAD, SIMPLE_BYTES);
}

/* What follows is `length` bytes of the file. */
static void begin_data(Connection *c, uint32_t length, bool starts_block)
{
    if (c->slot->is_write || length > c->slot->data_left) {
        die("%" PRIu32 " bytes of data that nobody asked for", length);
    }
    c->slot->data_left -= length;
    c->skip = length;
    if (load.options.stamped && starts_block && length >= 8) {
        expect(c, STAGE_STAMP, 8);
        c->skip -= 8;
    } else {
        expect(c, STAGE_SKIP, 0);
    }
}

static void parse_simple(Connection *c, uint64_t now)
{
    c->slot = find_slot(c, nbd_get64(c->head + 8));
    if (nbd_get32(c->head + 4)) {
        die("the %s at %" PRIu64 " failed with error %" PRIu32,
            c->slot->is_write ? "write" : "read", c->slot->offset,
            nbd_get32(c->head + 4));
    }
    c->chunk_flags = NBD_CHUNK_DONE;
    if (c->slot->is_write) {
        end_of_piece(c, true, now);
    } else {
        if (load.options.structured) {
            die("a simple reply to a read in spite of structured replies");
        }
        begin_data(c, load.options.size, true);
    }
}

static void parse_chunk(Connection *c, uint64_t now)
{
    c->chunk_flags = nbd_get16(c->head + 4);
    c->chunk_type = nbd_get16(c->head + 6);
    c->chunk_length = nbd_get32(c->head + 16);
    c->slot = find_slot(c, nbd_get64(c->head + 8));
    if (c->chunk_type & NBD_CHUNK_ERROR) {
        die("the %s at %" PRIu64 " failed (chunk type %#x)",
            c->slot->is_write ? "write" : "read", c->slot->offset,
            c->chunk_type);
    }
    if (c->chunk_type == NBD_CHUNK_NONE && c->chunk_length == 0) {
        end_of_piece(c, c->chunk_flags & NBD_CHUNK_DONE, now);
    } else if (c->chunk_type == NBD_CHUNK_DATA && c->chunk_length > 8) {
        expect(c, STAGE_PLACE, 8);
    } else if (c->chunk_type == NBD_CHUNK_HOLE && c->chunk_length == 12) {
        expect(c, STAGE_PLACE, 12);
    } else {
        die("a chunk of type %u with %" PRIu32 " bytes", c->chunk_type,
            c->chunk_length);
    }
}

/* The offset of a data chunk, or the offset and length of a hole. */
static void parse_place(Connection *c, uint64_t now)
{
    uint64_t offset = nbd_get64(c->head), from = c->slot->offset;
    uint32_t length = c->chunk_type == NBD_CHUNK_HOLE ? nbd_get32(c->head + 8)
                                                      : c->chunk_length - 8;

    if (offset < from || offset - from + length > load.options.size) {
        die("a chunk at %" PRIu64 " outside its request", offset);
    }
    begin_data(c, length, offset == from);
    if (c->chunk_type == NBD_CHUNK_HOLE) {
        if (load.options.stamped) {
            die("a hole at %" PRIu64 " in a stamped image", offset);
        }
        c->skip = 0;
        end_of_piece(c, c->chunk_flags & NBD_CHUNK_DONE, now);
    }
}

static void parse_stage(Connection *c, uint64_t now)
{
    switch (c->stage) {
    case STAGE_HEAD:
        if (nbd_get32(c->head) == NBD_SIMPLE_REPLY) {
            parse_simple(c, now);
        } else if (nbd_get32(c->head) == NBD_CHUNK && load.options.structured) {
            c->stage = STAGE_CHUNK;
            c->need = CHUNK_BYTES;
        } else {
            die("a reply with magic %#" PRIx32, nbd_get32(c->head));
        }
        break;
    case STAGE_CHUNK:
        parse_chunk(c, now);
        break;
    case STAGE_PLACE:
        parse_place(c, now);
        break;
    case STAGE_STAMP:
        if (nbd_get64(c->head) != c->slot->offset) {
            die("the read at %" PRIu64 " brought the block of %" PRIu64,
                c->slot->offset, nbd_get64(c->head));
        }
        expect(c, STAGE_SKIP, 0);
        break;
    default:
        break;
    }
}

/* Takes in `length` received bytes; each of them is looked at or counted. */
static void feed(Connection *c, const uint8_t *data, size_t length,
                 uint64_t now)
{
    for (;;) {
        if (c->stage == STAGE_SKIP) {
            size_t step = c->skip < length ? (size_t)c->skip : length;

            c->skip -= step;
            data += step;
            length -= step;
            if (c->skip) {
                return;
            }
            end_of_piece(c, c->chunk_flags & NBD_CHUNK_DONE, now);
        } else {
            size_t missing = c->need - c->have;
            size_t step = missing < length ? missing : length;

            memcpy(c->head + c->have, data, step);
            c->have += (unsigned)step;
            data += step;
            length -= step;
            if (c->have < c->need) {
                return;
            }
            parse_stage(c, now);
        }
    }
}

/* Returns the time after the receive. */
static uint64_t receive(Connection *c, int flags)
{
    ssize_t n = recv(c->fd, load.buffer, RECEIVE_BYTES, flags);
    uint64_t now = now_ns();

    load.receives++;
    if (n > 0) {
        feed(c, load.buffer, (size_t)n, now);
        return now;
    }
    if (n == 0) {
        die("the server closed the connection");
    }
    if (errno == EAGAIN && !(flags & MSG_DONTWAIT)) {
        die("the server was silent for %d seconds", SILENCE_SECONDS);
    }
    if (errno != EAGAIN && errno != EINTR) {
        die("receive: %s", strerror(errno));
    }
    return now;
}

/* The run */

/* Have epoll report what c waits for, if it does not yet. */
static void watch(Connection *c)
{
    struct epoll_event event = {
        .events = EPOLLIN | (c->unsent ? EPOLLOUT : 0),
        .data.ptr = c,
    };

    if (event.events == c->watched) {
        return;
    }
    if (epoll_ctl(load.epoll_fd, c->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD,
                  c->fd, &event)) {
        die("epoll_ctl: %s", strerror(errno));
    }
    c->watched = event.events;
}

static uint64_t turn(Connection *all, uint64_t now)
{
    struct epoll_event events[MAX_EVENTS];
    int n;

    if (load.options.connections == 1 && !all->unsent) {
        now = receive(all, 0);
        issue_batch(all, now);
        return now;
    }
    load.polls++;
    n = epoll_wait(load.epoll_fd, events, MAX_EVENTS, SILENCE_SECONDS * 1000);
    if (n == 0) {
        die("the server was silent for %d seconds", SILENCE_SECONDS);
    }
    for (int i = 0; i < n; i++) {
        Connection *c = events[i].data.ptr;

        if (events[i].events & EPOLLOUT) {
            flush(c);
        }
        if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
            now = receive(c, MSG_DONTWAIT);
        }
        issue_batch(c, now);
        watch(c);
    }
    return now;
}

/* Say where we are, and go on when stdin brings a line, or its end. */
static void step(const char *where)
{
    int c;

    if (load.options.step) {
        fprintf(stderr, "%s\n", where);
        do {
            c = getchar();
        } while (c != '\n' && c != EOF);
    }
}

/* Returns the measured time in nanoseconds. */
static uint64_t run(Connection *all)
{
    const Options *o = &load.options;
    uint64_t now = now_ns();
    uint64_t begin = now + (uint64_t)(o->warmup * 1e9);
    uint64_t end = begin + (uint64_t)(o->seconds * 1e9);

    for (unsigned i = 0; i < o->connections; i++) {
        issue_batch(&all[i], now);
        watch(&all[i]);
    }
    while (!load.stopping) {
        if (!load.measuring && now >= begin) {
            load.measuring = true;
            begin = now;
        }
        now = turn(all, now);
        load.stopping = (!o->requests && now >= end)
                        || (o->requests && load.completed >= o->requests);
    }
    end = now;
    load.measuring = false;
    while (load.completed < load.issued) {
        turn(all, now);
    }
    return end - begin;
}

static void close_connection(Connection *c)
{
    uint8_t head[REQUEST_BYTES] = {0};

    nbd_put32(head, NBD_REQUEST);
    nbd_put16(head + 6, NBD_CMD_DISC);
    nbd_send_all(c->fd, head, sizeof(head));
    close(c->fd);
    for (unsigned i = 0; i < load.options.depth; i++) {
        free(c->slots[i].payload);
    }
    free(c->slots);
    free(c->free_slots);
    free(c->heads);
    free(c->iov);
}

static void report(uint64_t elapsed_ns)
{
    static const char *const op_names[] = {"read", "write", "mix"};
    const Options *o = &load.options;
    double seconds = (double)elapsed_ns / 1e9;
    const Histogram *h = &load.latency;
    double n = (double)h->count;
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    printf("{\"op\": \"%s\", \"pattern\": \"%s\", \"size\": %" PRIu32
           ", \"depth\": %u, \"connections\": %u, \"transport\": \"%s\""
           ", \"structured\": %s",
           op_names[o->op], o->sequential ? "sequential" : "random", o->size,
           o->depth, o->connections, o->path ? "unix" : "tcp",
           o->structured ? "true" : "false");
    printf(", \"seconds\": %.6f, \"requests\": %" PRIu64
           ", \"total_requests\": %" PRIu64
           ", \"per_second\": %.1f, \"mb_per_second\": %.2f",
           seconds, h->count, load.completed, n / seconds,
           n * o->size / 1e6 / seconds);
    printf(", \"latency_us\": {\"mean\": %.2f, \"p50\": %.2f, \"p99\": %.2f"
           ", \"p99.9\": %.2f, \"max\": %.2f}",
           n > 0 ? (double)h->sum / n / 1e3 : 0.0,
           (double)histogram_quantile(h, 0.5) / 1e3,
           (double)histogram_quantile(h, 0.99) / 1e3,
           (double)histogram_quantile(h, 0.999) / 1e3, (double)h->max / 1e3);
    printf(", \"client\": {\"sends\": %" PRIu64 ", \"receives\": %" PRIu64
           ", \"polls\": %" PRIu64 ", \"cpu_seconds\": %.6f}}\n",
           load.sends, load.receives, load.polls,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
               + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec)
                     / 1e6);
}

/* Options */

static const char usage_text[] =
    "Usage: nbdload (--unix PATH | --tcp HOST:PORT) [options]\n"
    "  --export NAME           name of the export (default: the empty name)\n"
    "  --depth N               requests in flight per connection (16)\n"
    "  --connections N         (1)\n"
    "  --size BYTES            bytes per request (4096)\n"
    "  --op read|write|mix     (read)\n"
    "  --pattern random|sequential  (random)\n"
    "  --seconds S             time to measure (2)\n"
    "  --warmup S              time to run before measuring (0)\n"
    "  --requests N            end after N requests instead of after a time\n"
    "  --seed N                of the offsets (1)\n"
    "  --structured            negotiate structured replies\n"
    "  --stamped               each 4096 bytes of the image begin with their\n"
    "                          own offset (64 bits, big-endian): check it\n"
    "  --step                  say \"ready\" on stderr before the first\n"
    "                          request, \"done\" after the last reply; go on\n"
    "                          when stdin brings a line\n";

static void __attribute__((noreturn)) usage(const char *why)
{
    fprintf(stderr, "nbdload: %s\n%s", why, usage_text);
    exit(2);
}

static uint64_t number(const char *text, uint64_t low, uint64_t high)
{
    char *end;
    uint64_t value;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-' || value < low
        || value > high) {
        fprintf(stderr, "nbdload: not a number from %" PRIu64 " to %" PRIu64
                ": %s\n", low, high, text);
        exit(2);
    }
    return value;
}

static double seconds_of(const char *text)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end || !(value >= 0 && value <= 86400)) {
        usage("a time must be a number of seconds from 0 to 86400");
    }
    return value;
}

static int choice(const char *text, const char *const *names)
{
    for (int i = 0; names[i]; i++) {
        if (!strcmp(text, names[i])) {
            return i;
        }
    }
    usage("no such choice");
}

static void parse_tcp(Options *o, const char *text)
{
    char *colon;

    o->host = strdup(text);
    colon = o->host ? strrchr(o->host, ':') : NULL;
    if (!colon) {
        usage("--tcp wants HOST:PORT");
    }
    *colon = 0;
    o->port = colon + 1;
    if (o->host[0] == '[' && colon[-1] == ']') {
        colon[-1] = 0;
        memmove(o->host, o->host + 1, strlen(o->host));
    }
}

static void parse_option(Options *o, int option, const char *value)
{
    static const char *const ops[] = {"read", "write", "mix", NULL};
    static const char *const patterns[] = {"random", "sequential", NULL};

    switch (option) {
    case 'u': o->path = value; break;
    case 't': parse_tcp(o, value); break;
    case 'e': o->export_name = value; break;
    case 'd': o->depth = (unsigned)number(value, 1, MAX_DEPTH); break;
    case 'c':
        o->connections = (unsigned)number(value, 1, MAX_CONNECTIONS);
        break;
    case 's': o->size = (uint32_t)number(value, 1, MAX_SIZE); break;
    case 'o': o->op = choice(value, ops); break;
    case 'p': o->sequential = choice(value, patterns) == 1; break;
    case 'S': o->seconds = seconds_of(value); break;
    case 'w': o->warmup = seconds_of(value); break;
    case 'n': o->requests = number(value, 1, UINT64_MAX); break;
    case 'r': o->seed = number(value, 0, UINT64_MAX); break;
    case 'T': o->structured = true; break;
    case 'P': o->stamped = true; break;
    case 'W': o->step = true; break;
    case 'h':
        fputs(usage_text, stdout);
        exit(0);
    default: usage("no such option");
    }
}

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"unix", 1, NULL, 'u'},       {"tcp", 1, NULL, 't'},
        {"export", 1, NULL, 'e'},     {"depth", 1, NULL, 'd'},
        {"connections", 1, NULL, 'c'}, {"size", 1, NULL, 's'},
        {"op", 1, NULL, 'o'},         {"pattern", 1, NULL, 'p'},
        {"seconds", 1, NULL, 'S'},    {"warmup", 1, NULL, 'w'},
        {"requests", 1, NULL, 'n'},   {"seed", 1, NULL, 'r'},
        {"structured", 0, NULL, 'T'}, {"stamped", 0, NULL, 'P'},
        {"step", 0, NULL, 'W'},       {"help", 0, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    Options *o = &load.options;
    int option;

    *o = (Options){.export_name = "", .depth = 16, .connections = 1,
                   .size = 4096, .seconds = 2, .seed = 1};
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        parse_option(o, option, optarg);
    }
    if (optind < argc) {
        usage("nbdload takes no arguments, only options");
    }
    if (!o->path == !o->host) {
        usage("give one of --unix and --tcp");
    }
    if (o->stamped && o->size % STAMP_STRIDE) {
        usage("--stamped needs a --size that is a multiple of 4096");
    }
}

/* Let the process have a descriptor for each connection. */
static void allow_files(unsigned connections)
{
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < connections + 16) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int main(int argc, char **argv)
{
    Connection *all;
    uint64_t elapsed;

    parse_options(argc, argv);
    allow_files(load.options.connections);
    load.buffer = allocate(1, RECEIVE_BYTES);
    load.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (load.epoll_fd < 0) {
        die("epoll_create1: %s", strerror(errno));
    }
    all = allocate(load.options.connections, sizeof(*all));
    for (unsigned i = 0; i < load.options.connections; i++) {
        open_connection(&all[i], i);
    }
    step("ready");
    elapsed = run(all);
    step("done");
    for (unsigned i = 0; i < load.options.connections; i++) {
        close_connection(&all[i]);
    }
    report(elapsed);
    close(load.epoll_fd);
    free(all);
    free(load.buffer);
    free(load.options.host);
    return 0;
}
