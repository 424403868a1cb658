/* SPDX-License-Identifier: MIT */
/*
 * Server: the I/O threads, the exports, and the connections between them.
 *
 * The main thread accepts connections, gives each to the I/O thread that has
 * the fewest, and hears when it is gone; so all counting is done by one
 * thread.  An I/O thread has caches of its own for what requests need.
 */
#ifndef NBD_SERVER_H
#define NBD_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <coaio/context.h>
#include <coaio/iothread.h>
#include <coaio/mutex.h>

#include "buffer.h"
#include "connection.h"
#include "export.h"
#include "listen.h"
#include "options.h"

/* Requests without use that a thread keeps. */
#define REQUESTS_KEPT 256

struct ServerThread {
    Server *server;
    IOThread *iothread;
    AioContext *context;
    size_t n_connections;     /* the main thread's */
    AioBHStorage stop_bh;

    /* The I/O thread's own. */
    Connection *connections;
    BufferCache buffers;
    Request *free_requests;
    unsigned n_free_requests;
    CoMutex piece_lock;       /* of what has a long_lock */
};

struct Server {
    const Options *options;
    AioContext *context;      /* of the main thread */
    Listeners listeners;
    Export **exports;
    size_t n_exports;
    Export *default_export;   /* for clients that name none; may be NULL */
    ServerThread *threads;
    size_t n_threads;         /* that were started */

    /* The main thread's. */
    size_t n_connections;
    uint64_t last_id;
    size_t last_thread;
    bool stopping;            /* accept no more */
    Coroutine *stopper;       /* made for it while there is memory */
    bool closed;              /* the listening sockets are */
};

/**
 * Open the exports and start the threads.  Logs a line and returns false if
 * that fails; server_clear() is due in any case.
 */
bool server_init(Server *server, const Options *options, AioContext *context);

/**
 * Serve until server_stop() has been called and the last connection is gone.
 */
void server_run(Server *server);

/**
 * Accept no more, answer what has been received, and close all connections.
 * Main thread.
 */
void server_stop(Server *server);

/**
 * Stop the threads and close what is open.  From here on, server_stop() does
 * nothing.
 */
void server_clear(Server *server);

/**
 * Prepare *thread, all zeroes, to serve connections on the thread that polls
 * context; and undo that on the thread itself, after its last connection.
 */
void server_thread_init(ServerThread *thread, Server *server,
                        AioContext *context);
void server_thread_clear(ServerThread *thread);

/**
 * The export of that name, or NULL; the empty name is the default's.
 */
Export *server_find_export(Server *server, const void *name, size_t length);

/**
 * A connection that connection_start() has begun is closed.  Main thread.
 */
void server_connection_gone(ServerThread *thread);

/**
 * Memory for a request, from the I/O thread's own store, or NULL; and back.
 */
Request *server_request_get(ServerThread *thread);
void server_request_put(ServerThread *thread, Request *req);

#endif
