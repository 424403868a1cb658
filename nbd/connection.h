/* SPDX-License-Identifier: MIT */
/*
 * Connection: one client, from accept(2) to close(2), on one I/O thread.
 *
 * Life cycle
 *
 *   connection_start() --> handshake --> transmission --> finishing --> closed
 *   (main thread)          (handshake.c)  (transmission.c)             (main)
 *
 *   A receiver coroutine lives as long as the connection and runs through all
 *   of that (connection.c).  Each request is a coroutine of its own, unless it
 *   is answered at once (request.c); replies that are ready queue up and leave
 *   together, sent by a sender coroutine that exists only while there is
 *   something to send (reply.c).
 *
 * Batching
 *
 *   While the receiver takes requests out of what one receive has brought, the
 *   connection is corked: replies queue.  Before the receiver waits for
 *   anything it uncorks, and what is ready leaves in one send.  Replies that
 *   become ready later, when requests come back from worker threads, are
 *   collected for one pass of the event loop, or until they are half (below).
 *
 *   A client that has many requests in flight gets the first half of the
 *   replies when they are ready: it works on them while the server makes the
 *   others.  All of them in one send would let either side sleep while the
 *   other works, and to wake up costs more than a second send.  So that there
 *   is a first half where no request is done at once (io_uring makes the reads
 *   of a pass at its end), the receiver gives way when it has begun one, if
 *   either half is large enough (BEGIN_LEAST in transmission.c).
 *
 * Turns
 *
 *   A client that sends as fast as it is answered could keep its receiver from
 *   ever waiting, and the other connections of the thread, timers and the end
 *   of the server with it.  So the receiver gives way to them after TURN bytes,
 *   counting what comes, and for each request its length and REQUEST_COST.  The
 *   sender gives way after TURN bytes, too: to a client that takes them as fast
 *   as they come, it could send all that is ready and never wait.
 *
 *   A request that keeps the thread busy (ExportOps.busy) and is long is done a
 *   mebibyte at a time (request.c), with a pass of the loop in between.  Those
 *   without payload cost the client nothing, and there may be REQUESTS_MAX of
 *   them, of 4 GiB each: so a thread does one piece of them a pass.  Those of a
 *   connection are done one after the other, and the connections take turns.
 *   How many there are with payload is bounded by the bytes in flight; to wait
 *   for one another would only let what was received grow cold.
 *
 * Bounds
 *
 *   inflight counts the buffers of requests that are not answered (a reply
 *   counts until the kernel has taken it) and REQUEST_COST for each.  The
 *   receiver takes in no request that would lift it over the limit, unless
 *   it is the only one.  Besides, a connection has one receive buffer.
 *
 * Everything here belongs to the I/O thread; no other thread is kept out.  Its
 * server thread's list and counters are in server.h.
 */
#ifndef NBD_CONNECTION_H
#define NBD_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include <coaio/bh.h>
#include <coaio/mutex.h>
#include <coaio/queue.h>
#include <coaio/timer.h>

#include "buffer.h"
#include "export.h"

/* What is kept for each connection to receive into: enough for 290 requests
 * without payload.  Payloads that are many and small get LARGE instead. */
#define INPUT_SMALL ((size_t)8 << 10)
#define INPUT_LARGE ((size_t)256 << 10)

/* What a request costs besides its buffer: mostly the pages of its stack. */
#define REQUEST_COST ((size_t)8 << 10)

/* How much a connection takes in before it gives way, where it receives... */
#define TURN ((uint64_t)1 << 20)
/* ... and out of what one receive has brought. */
#define TURN_MOST (4 * TURN)

/* Requests that one connection may have in flight. */
#define REQUESTS_MAX 1024

/* The largest READ or WRITE. */
#define PAYLOAD_MAX ((uint32_t)BUFFER_MAX)

typedef struct Server Server;
typedef struct ServerThread ServerThread;
typedef struct Connection Connection;
typedef struct Request Request;

/* The bytes that have been received and not been used. */
typedef struct Input {
    uint8_t *data;      /* small, or a buffer of INPUT_LARGE from the cache */
    size_t size;
    size_t start, end;  /* the bytes; start <= end <= size */
    bool large;         /* data came from the cache */
    bool want_large;    /* to be changed when there is room to be made next */
    unsigned quiet;     /* receives in a row that small would have held */
} Input;

struct Connection {
    ServerThread *thread;
    Connection *next, *prev;  /* in the thread's list */
    uint64_t id;              /* for the log */
    int fd;

    bool is_tcp;

    /* What the handshake has come to. */
    Export *export;
    bool structured;          /* READ gets structured replies */
    bool block_status;        /* base:allocation was selected, as context 1 */

    /* Requests that are not answered. */
    unsigned n_requests;
    uint64_t inflight;        /* bytes */
    uint64_t turn;            /* bytes since it last gave way */
    CoQueue room;             /* the receiver, waiting for fewer of them */
    CoMutex long_lock;        /* of long requests without payload */

    /* Replies that are ready. */
    Request *ready_head;
    Request **ready_tail;
    size_t ready_bytes;       /* queued since the last send */
    unsigned n_ready;         /* replies, likewise */
    uint64_t n_made;          /* replies, ever */
    unsigned taken;           /* requests since the last receive */
    unsigned begun;           /* requests that were not done at once, since the
                                 last receive, or since it gave way */
    unsigned deepest;         /* the most that were seen in flight */
    size_t sent;              /* bytes of the first one that are sent */
    uint64_t progress;        /* grows with every send */
    bool corked;              /* the receiver will flush */
    bool sending;             /* there is a sender coroutine */
    bool flush_posted;        /* flush_bh is pending */
    AioBHStorage flush_bh;

    /* The end. */
    bool handshaking;         /* the timer ends the connection */
    bool stopping;            /* the server stops: receive no more */
    bool mute;                /* sending has failed: replies are dropped */
    bool dead;                /* given up: receive no more, either */
    AioTimer timer;           /* handshake first, then a stuck client */
    uint64_t timer_progress;  /* progress when it was armed... */
    int timer_untaken;        /* ... and the bytes that the socket held */
    int64_t stop_deadline_ns; /* for the last replies, once it is stopping */
    AioBHStorage gone_bh;     /* tells the main thread */

    Input in;
    uint8_t small[INPUT_SMALL];
};

/*
 * connection.c
 */

/**
 * Begin to serve the socket fd on thread.  Main thread.
 *
 * Returns 0, and then fd belongs to the connection, or -ENOMEM.
 */
int connection_start(ServerThread *thread, int fd, bool is_tcp, uint64_t id);

/**
 * Receive no more, answer what has been received, and close.
 */
void connection_stop(Connection *conn);

/**
 * Whether n of the requests that came together are half of what the client has
 * in flight ("Batching").
 */
bool connection_is_half(const Connection *conn, unsigned n);

/**
 * Let the loop make a pass, in which the others have their turn; what is ready
 * leaves.  The receiver.
 */
void coroutine_fn connection_give_way(Connection *conn);

/**
 * Sending makes no sense any more: drop replies, those to come, too.  What the
 * client has sent is received and done to its end.
 */
void connection_mute(Connection *conn);

/**
 * The client is given up: drop replies, and receive no more.
 */
void connection_kill(Connection *conn);

/*
 * receive.c.  The functions that return bool return false when there is
 * nothing more to be had: end of file, error, or the server stops.
 */

void input_init(Connection *conn);
void input_clear(Connection *conn);

/**
 * Have at least n <= INPUT_SMALL bytes together.  Returns where they are: they
 * stay until the next call, and are used by input_take(); or NULL.
 */
const uint8_t *coroutine_fn input_need(Connection *conn, size_t n);
void input_take(Connection *conn, size_t n);

/**
 * How many requests, at the most, were received and not used: a payload among
 * them counts as if it was requests, too.
 */
size_t input_waiting(const Connection *conn);

/**
 * Read n bytes to data, or read and forget them.
 */
bool coroutine_fn input_read(Connection *conn, void *data, size_t n);
bool coroutine_fn input_skip(Connection *conn, uint64_t n);

/*
 * handshake.c
 */

/**
 * Negotiate.  Returns whether the client wants to go on to transmission; then
 * export, structured and block_status are set.
 */
bool coroutine_fn handshake_run(Connection *conn);

/*
 * transmission.c
 */

/**
 * Take in requests and start them until there are no more.
 */
void coroutine_fn transmission_run(Connection *conn);

#endif
