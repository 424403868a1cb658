/* SPDX-License-Identifier: MIT */
/*
 * The server (server.h): threads, accepting, stopping.
 *
 * STOPPING
 *
 *   1. In the main thread, a coroutine removes and closes the listening
 *      sockets, so that nothing is accepted any more.
 *   2. It posts a bottom half to every I/O thread, which stops the
 *      connections there.  What was accepted before was posted before, so no
 *      connection is missed.
 *   3. Each connection ends by itself, and says so to the main thread, which
 *      leaves server_run() after the last one.
 */
#include "server.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <coaio/bh.h>
#include <coaio/coroutine.h>
#include <coaio/io.h>
#include <coaio/wait.h>
#include <coaio/wake.h>

#include "log.h"
#include "must.h"
#include "request.h"

/* Pauses after an error that is not the fault of one client. */
#define PAUSE_MIN_NS INT64_C(10000000)
#define PAUSE_MAX_NS INT64_C(1000000000)

/* Room for a batch of replies in a UNIX socket, whose buffer does not grow by
 * itself as a TCP one's does; the system's limit may allow for less. */
#define UNIX_SEND_BUFFER (512 << 10)

/* Connections that one listener accepts before others have a turn. */
#define ACCEPT_BURST 16

typedef struct Acceptor {
    Server *server;
    Listener *listener;
} Acceptor;

Request *server_request_get(ServerThread *thread)
{
    Request *req = thread->free_requests;

    if (!req) {
        return malloc(sizeof(*req));
    }
    thread->free_requests = req->next;
    thread->n_free_requests--;
    return req;
}

void server_request_put(ServerThread *thread, Request *req)
{
    if (thread->n_free_requests >= REQUESTS_KEPT) {
        free(req);
        return;
    }
    req->next = thread->free_requests;
    thread->free_requests = req;
    thread->n_free_requests++;
}

Export *server_find_export(Server *server, const void *name, size_t length)
{
    if (length == 0) {
        return server->default_export;
    }
    for (size_t i = 0; i < server->n_exports; i++) {
        Export *export = server->exports[i];

        if (strlen(export->name) == length &&
            memcmp(export->name, name, length) == 0) {
            return export;
        }
    }
    return NULL;
}

static bool open_exports(Server *server)
{
    const Options *options = server->options;

    server->exports = calloc(options->n_exports, sizeof(*server->exports));
    if (!server->exports) {
        log_line(LOG_LEVEL_ERROR, "out of memory");
        return false;
    }
    for (size_t i = 0; i < options->n_exports; i++) {
        Export *export = export_open(&options->exports[i], options->direct);

        if (!export) {
            return false;
        }
        server->exports[server->n_exports++] = export;
    }
    if (options->default_export) {
        server->default_export = server_find_export(
            server, options->default_export, strlen(options->default_export));
    } else if (server->n_exports == 1) {
        server->default_export = server->exports[0];
    }
    return true;
}

void server_thread_init(ServerThread *thread, Server *server,
                        AioContext *context)
{
    thread->server = server;
    thread->context = context;
    buffer_cache_init(&thread->buffers, context);
}

static bool start_threads(Server *server)
{
    server->threads = calloc(server->options->threads,
                             sizeof(*server->threads));
    if (!server->threads) {
        log_line(LOG_LEVEL_ERROR, "out of memory");
        return false;
    }
    const IOThreadOptions options = {
        .size = sizeof(options),
        .poll_max_ns = server->options->busy_poll_ns,
    };

    for (unsigned i = 0; i < server->options->threads; i++) {
        ServerThread *thread = &server->threads[i];
        char name[16];
        int ret;

        snprintf(name, sizeof(name), "nbd-%u", i);
        ret = iothread_new(&thread->iothread, name, &options);
        if (ret < 0) {
            log_line(LOG_LEVEL_ERROR, "cannot start an I/O thread: %s",
                     strerror(-ret));
            return false;
        }
        server_thread_init(thread, server, iothread_context(thread->iothread));
        server->n_threads++;
    }
    return true;
}

bool server_init(Server *server, const Options *options, AioContext *context)
{
    memset(server, 0, sizeof(*server));
    server->options = options;
    server->context = context;
    return open_exports(server) && start_threads(server);
}

/* The thread with the fewest connections; among equals, the next in turn. */
static ServerThread *choose_thread(Server *server)
{
    size_t best = (server->last_thread + 1) % server->n_threads;

    for (size_t i = 1; i < server->n_threads; i++) {
        size_t other = (server->last_thread + 1 + i) % server->n_threads;

        if (server->threads[other].n_connections <
            server->threads[best].n_connections) {
            best = other;
        }
    }
    server->last_thread = best;
    return &server->threads[best];
}

static void set_socket_options(int fd, bool is_tcp)
{
    int one = 1;
    int size = UNIX_SEND_BUFFER;

    if (is_tcp) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    } else {
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    }
}

/* Gives a new connection to a thread, or turns it away. */
static void take_connection(Server *server, int fd, int family)
{
    ServerThread *thread;
    bool is_tcp = family == AF_INET || family == AF_INET6;

    if (server->n_connections >= server->options->max_connections) {
        log_client(LOG_LEVEL_WARNING, "%zu connections already; turning one "
                   "away", server->n_connections);
        close(fd);
        return;
    }
    set_socket_options(fd, is_tcp);
    thread = choose_thread(server);
    server->last_id++;
    if (connection_start(thread, fd, is_tcp, server->last_id) < 0) {
        log_client(LOG_LEVEL_ERROR, "out of memory; turning a client away");
        close(fd);
        return;
    }
    server->n_connections++;
    thread->n_connections++;
    if (log_enabled(LOG_LEVEL_DEBUG)) {
        log_client(LOG_LEVEL_DEBUG, "client %llu: connected, thread %zu",
                   (unsigned long long)server->last_id,
                   (size_t)(thread - server->threads));
    }
}

void server_connection_gone(ServerThread *thread)
{
    assert(thread->n_connections > 0 && thread->server->n_connections > 0);
    thread->n_connections--;
    thread->server->n_connections--;
}

/* Waits after an error, longer each time; for one that only the client is to
 * blame for, not at all. */
static void coroutine_fn accept_pause(int error, int64_t *pause_ns)
{
    if (error == -ECONNABORTED || error == -EPROTO) {
        return;
    }
    log_client(LOG_LEVEL_WARNING, "cannot accept: %s", strerror(-error));
    *pause_ns = *pause_ns ? 2 * *pause_ns : PAUSE_MIN_NS;
    if (*pause_ns > PAUSE_MAX_NS) {
        *pause_ns = PAUSE_MAX_NS;
    }
    co_sleep_ns(*pause_ns);
}

static void coroutine_fn accept_run(void *opaque)
{
    Acceptor acceptor = *(Acceptor *)opaque;
    Server *server = acceptor.server;
    int64_t pause_ns = 0;
    unsigned burst = 0;

    free(opaque);
    while (!server->stopping) {
        struct sockaddr_storage ss = { .ss_family = AF_UNSPEC };
        socklen_t length = sizeof(ss);
        int fd = co_accept(acceptor.listener->fd, (struct sockaddr *)&ss,
                           &length, SOCK_NONBLOCK);

        if (server->stopping) {
            if (fd >= 0) {
                close(fd);
            }
        } else if (fd >= 0) {
            pause_ns = 0;
            take_connection(server, fd, ss.ss_family);
        } else {
            accept_pause(fd, &pause_ns);
        }
        if (++burst % ACCEPT_BURST == 0 && !server->stopping) {
            co_sleep_ns(0);
        }
    }
}

/* In an I/O thread. */
static void thread_stop(void *opaque)
{
    ServerThread *thread = opaque;

    for (Connection *conn = thread->connections; conn; conn = conn->next) {
        connection_stop(conn);
    }
}

static void coroutine_fn stop_run(void *opaque)
{
    Server *server = opaque;

    listeners_unlink(&server->listeners);
    for (size_t i = 0; i < server->listeners.count; i++) {
        int fd = server->listeners.items[i].fd;

        server->listeners.items[i].fd = -1;
        co_close(fd);
    }
    for (size_t i = 0; i < server->n_threads; i++) {
        ServerThread *thread = &server->threads[i];

        aio_bh_schedule_oneshot_embedded(thread->context, &thread->stop_bh,
                                         thread_stop, thread);
    }
    server->closed = true;
}

void server_run(Server *server)
{
    /* To stop must not need memory that there may not be by then. */
    server->stopper = coroutine_create(stop_run, server);
    for (size_t i = 0; i < server->listeners.count; i++) {
        Acceptor *acceptor = must(malloc(sizeof(*acceptor)));

        acceptor->server = server;
        acceptor->listener = &server->listeners.items[i];
        coroutine_enter(coroutine_create(accept_run, acceptor));
    }
    while (!server->closed || server->n_connections > 0) {
        aio_poll(server->context, true);
    }
}

void server_stop(Server *server)
{
    if (!server->stopping) {
        server->stopping = true;
        log_line(LOG_LEVEL_INFO, "stopping, with %zu connections",
                 server->n_connections);
        coroutine_enter(server->stopper);
    }
}

void server_thread_clear(ServerThread *thread)
{
    assert(!thread->connections);
    buffer_cache_clear(&thread->buffers);
    while (thread->free_requests) {
        Request *req = thread->free_requests;

        thread->free_requests = req->next;
        free(req);
    }
}

/* In an I/O thread. */
static void thread_clear(void *opaque)
{
    server_thread_clear(opaque);
}

void server_clear(Server *server)
{
    assert(server->n_connections == 0);
    /* If it never ran, a signal may still come, and the loop be polled below
     * when some of the threads that are to be told of it are gone. */
    server->stopping = true;
    listeners_clear(&server->listeners);
    for (size_t i = 0; i < server->n_threads; i++) {
        ServerThread *thread = &server->threads[i];

        aio_wait_bh_oneshot(thread->context, thread_clear, thread);
        iothread_stop(thread->iothread);
        iothread_unref(thread->iothread);
    }
    free(server->threads);
    for (size_t i = 0; i < server->n_exports; i++) {
        export_close(server->exports[i]);
    }
    free(server->exports);
}
