/* SPDX-License-Identifier: MIT */
/*
 * The life of a connection (connection.h): the receiver coroutine, and the
 * timer that ends what takes too long.
 *
 * A connection ends in one way only, whatever has happened: nothing more is
 * received; the requests that were received run to their end, and their
 * replies leave, if the client takes them; then the socket is closed.  When
 * the server stops, a TCP socket is only closed when they have arrived, too.
 * A client that has died cancels nothing, not even what has not begun: one that
 * sends DISC and closes its socket looks the same, and is owed its writes, also
 * those that are received after the first reply has found it gone.  As
 * long operations take turns (connection.h), that costs the others a share of
 * the thread, and the end of the server waits for it.
 *
 * INVARIANTS
 *
 *   1. A connection that is freed has no requests, no sender and no bottom
 *      half posted.
 *   2. The timer is idle unless the handshake runs, the receiver waits for
 *      the last replies, or the server stops.
 */
#include "connection.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include <coaio/coroutine.h>
#include <coaio/io.h>
#include <coaio/wake.h>

#include "log.h"
#include "request.h"
#include "server.h"

#define NS_PER_SECOND INT64_C(1000000000)

/* A client that has no more to say, but takes no replies, for so long... */
#define PATIENCE_NS      (30 * NS_PER_SECOND)
/* ... or for so long while the server stops, is given up. */
#define STOP_PATIENCE_NS (5 * NS_PER_SECOND)

/* The fewest requests that are worth a send of their own. */
#define HALF_LEAST 4U

/* How long, and for how many bytes, the end of a TCP stream is waited for. */
#define LINGER_NS    NS_PER_SECOND
#define LINGER_BYTES ((size_t)4 << 20)

/* How often it is looked whether the last replies have arrived; and how much
 * that came is received, and forgotten, each time. */
#define ARRIVAL_PAUSE_NS (NS_PER_SECOND / 100)
#define ARRIVAL_BYTES    ((size_t)1 << 20)

/* The bytes in the socket that the client's side has not taken. */
static int untaken(const Connection *conn)
{
    int bytes;

    return ioctl(conn->fd, SIOCOUTQ, &bytes) == 0 ? bytes : 0;
}

static void arm_timer(Connection *conn, int64_t ns)
{
    conn->timer_progress = conn->progress;
    conn->timer_untaken = untaken(conn);
    aio_timer_mod_ns(&conn->timer, aio_clock_ns(AIO_CLOCK_MONOTONIC) + ns);
}

/* Waits for replies to leave, for as long as the client takes some. */
static void arm_patience(Connection *conn)
{
    int64_t left;

    if (!conn->stopping) {
        arm_timer(conn, PATIENCE_NS);
        return;
    }
    left = conn->stop_deadline_ns - aio_clock_ns(AIO_CLOCK_MONOTONIC);
    arm_timer(conn, left < STOP_PATIENCE_NS ? left : STOP_PATIENCE_NS);
}

static bool too_late(const Connection *conn)
{
    return conn->stopping &&
           aio_clock_ns(AIO_CLOCK_MONOTONIC) >= conn->stop_deadline_ns;
}

/*
 * Whether the client has taken something since the timer was armed.  The sender
 * alone does not know: it waits until the socket has room again, which is when
 * a third of what it held is gone, or three quarters, and that may be a
 * megabyte.
 */
static bool takes_replies(const Connection *conn)
{
    return conn->progress != conn->timer_progress ||
           untaken(conn) < conn->timer_untaken;
}

static void connection_timer(void *opaque)
{
    Connection *conn = opaque;

    if (conn->handshaking) {
        log_client(LOG_LEVEL_INFO, "client %llu: the handshake takes too long",
                   (unsigned long long)conn->id);
        connection_kill(conn);
    } else if (conn->sending && !takes_replies(conn)) {
        log_client(LOG_LEVEL_INFO, "client %llu: takes no replies; dropping "
                   "it", (unsigned long long)conn->id);
        connection_kill(conn);
    } else if (conn->sending && too_late(conn)) {
        log_client(LOG_LEVEL_INFO, "client %llu: takes its last replies too "
                   "slowly; dropping it", (unsigned long long)conn->id);
        connection_kill(conn);
    } else if (too_late(conn)) {
        arm_timer(conn, STOP_PATIENCE_NS);
    } else {
        arm_patience(conn); /* the back end is slow, not the client */
    }
}

void connection_mute(Connection *conn)
{
    conn->mute = true;
    shutdown(conn->fd, SHUT_WR); /* a client that is there notices */
}

void connection_kill(Connection *conn)
{
    conn->mute = true;
    conn->dead = true;
    shutdown(conn->fd, SHUT_RDWR);
}

void connection_stop(Connection *conn)
{
    conn->stopping = true;
    conn->stop_deadline_ns = aio_clock_ns(AIO_CLOCK_MONOTONIC) +
                             conn->thread->server->options->stop_timeout_ns;
    arm_patience(conn);
    shutdown(conn->fd, SHUT_RD); /* wakes the receiver */
}

/* Where the end of a batch that is larger than all before is, is not known. */
bool connection_is_half(const Connection *conn, unsigned n)
{
    unsigned half = conn->deepest - conn->deepest / 2;

    return n >= HALF_LEAST && n >= half && conn->taken <= conn->deepest;
}

void coroutine_fn connection_give_way(Connection *conn)
{
    bool corked = conn->corked;

    conn->turn = 0;
    conn->begun = 0;
    conn->corked = false; /* receive.c, invariant 1 */
    reply_flush(conn);
    co_sleep_ns(0);
    conn->corked = corked;
}

static void list_add(Connection *conn)
{
    ServerThread *thread = conn->thread;

    conn->prev = NULL;
    conn->next = thread->connections;
    if (conn->next) {
        conn->next->prev = conn;
    }
    thread->connections = conn;
}

static void list_remove(Connection *conn)
{
    if (conn->prev) {
        conn->prev->next = conn->next;
    } else {
        conn->thread->connections = conn->next;
    }
    if (conn->next) {
        conn->next->prev = conn->prev;
    }
}

/* Waits until every request is answered and every reply has left. */
static void coroutine_fn come_to_rest(Connection *conn)
{
    conn->corked = false;
    reply_flush(conn);
    if (!conn->stopping) {
        arm_patience(conn);
    }
    while (conn->n_requests > 0 || conn->sending || conn->flush_posted) {
        co_queue_wait(&conn->room, NULL);
    }
    aio_timer_del(&conn->timer); /* invariant 2 */
    assert(conn->inflight == 0 && !conn->ready_head); /* invariant 1 */
}

/* Receives what there is, or a part of it, and forgets it. */
static void receive_away(Connection *conn)
{
    size_t total = 0;
    ssize_t n;

    do {
        n = recv(conn->fd, conn->small, sizeof(conn->small), MSG_DONTWAIT);
        total += n > 0 ? (size_t)n : 0;
    } while (n > 0 && total < ARRIVAL_BYTES);
}

/* Whether the client has reset the connection; there is no telling from what
 * recv() returns after SHUT_RD. */
static bool is_reset(const Connection *conn)
{
    struct pollfd pfd = { .fd = conn->fd }; /* POLLERR, POLLHUP */

    return poll(&pfd, 1, 0) > 0;
}

/*
 * After connection_stop(): waits until the client's side has acknowledged all
 * replies, for as long as it goes on to.
 *
 * Nothing can be received any more (SHUT_RD), although more may come; and when
 * the socket is shut down in the other direction, too, the kernel answers what
 * comes with a reset, and drops the replies that it has not sent yet.  Until
 * then it only queues what comes; which must not pile up, or the client might
 * wait for it to leave before it takes replies.
 */
static void coroutine_fn wait_for_arrival(Connection *conn)
{
    int64_t now = aio_clock_ns(AIO_CLOCK_MONOTONIC);
    int64_t given_up = now + STOP_PATIENCE_NS;
    /* If it is too late already, the back end was slow, not the client. */
    int64_t latest = too_late(conn) ? given_up : conn->stop_deadline_ns;
    int least = INT_MAX;
    int left;

    while ((left = untaken(conn)) > 0 && !is_reset(conn)) {
        if (left < least) {
            least = left;
            given_up = now + STOP_PATIENCE_NS;
        }
        if (now >= given_up || now >= latest) {
            log_client(LOG_LEVEL_INFO, "client %llu: has not taken its last "
                       "replies; dropping it", (unsigned long long)conn->id);
            return;
        }
        receive_away(conn);
        co_sleep_ns(ARRIVAL_PAUSE_NS);
        now = aio_clock_ns(AIO_CLOCK_MONOTONIC);
    }
}

/*
 * Closing a TCP socket with bytes in it that were not read resets the
 * connection, and the client could lose replies that are on their way.  So if
 * there are such bytes, take leave of the client first.
 */
static void coroutine_fn take_leave(Connection *conn)
{
    int64_t deadline;
    size_t total = 0;

    if (conn->stopping) {
        wait_for_arrival(conn);
    }
    deadline = aio_clock_ns(AIO_CLOCK_MONOTONIC) + LINGER_NS;
    shutdown(conn->fd, SHUT_WR);
    while (total < LINGER_BYTES) {
        ssize_t n = recv(conn->fd, conn->small, sizeof(conn->small),
                         MSG_DONTWAIT);
        int64_t left;

        if (n > 0) {
            total += (size_t)n;
            continue;
        }
        if (n == 0 || co_errno() != EAGAIN || total == 0) {
            return;
        }
        left = deadline - aio_clock_ns(AIO_CLOCK_MONOTONIC);
        if (left <= 0 || co_poll_fd(conn->fd, POLLIN, left) < 0) {
            return;
        }
    }
}

/* In the main thread: the coroutine has done with conn. */
static void connection_gone(void *opaque)
{
    Connection *conn = opaque;
    ServerThread *thread = conn->thread;

    free(conn);
    server_connection_gone(thread);
}

/* The receiver. */
static void coroutine_fn connection_run(void *opaque)
{
    Connection *conn = opaque;
    const Options *options = conn->thread->server->options;
    bool agreed;

    list_add(conn);
    input_init(conn);
    aio_timer_init(&conn->timer, conn->thread->context, AIO_CLOCK_MONOTONIC,
                   connection_timer, conn);
    conn->handshaking = true;
    arm_timer(conn, options->handshake_timeout_ns);
    agreed = handshake_run(conn);
    conn->handshaking = false;
    if (!conn->stopping) {
        aio_timer_del(&conn->timer);
    }
    if (agreed) {
        if (log_enabled(LOG_LEVEL_DEBUG)) {
            log_client(LOG_LEVEL_DEBUG, "client %llu: uses export %s",
                       (unsigned long long)conn->id, conn->export->name);
        }
        transmission_run(conn);
    }
    come_to_rest(conn);
    input_clear(conn);
    list_remove(conn);
    if (conn->is_tcp && !conn->mute) {
        take_leave(conn);
    }
    co_close(conn->fd);
    if (log_enabled(LOG_LEVEL_DEBUG)) {
        log_client(LOG_LEVEL_DEBUG, "client %llu: closed",
                   (unsigned long long)conn->id);
    }
    aio_bh_schedule_oneshot_embedded(conn->thread->server->context,
                                     &conn->gone_bh, connection_gone, conn);
}

int connection_start(ServerThread *thread, int fd, bool is_tcp, uint64_t id)
{
    static const CoroutineOptions options = {
        .size = sizeof(options),
        .name = "nbd connection",
    };
    Connection *conn = malloc(sizeof(*conn));
    Coroutine *co;

    if (!conn) {
        return -ENOMEM;
    }
    /* Not the pages of small, which take up no memory until they are used. */
    memset(conn, 0, offsetof(Connection, small));
    conn->thread = thread;
    conn->fd = fd;
    conn->is_tcp = is_tcp;
    conn->id = id;
    conn->ready_tail = &conn->ready_head;
    co_queue_init(&conn->room);
    if (coroutine_create_full(&co, connection_run, conn, &options) < 0) {
        free(conn);
        return -ENOMEM;
    }
    aio_co_schedule(thread->context, co);
    return 0;
}
