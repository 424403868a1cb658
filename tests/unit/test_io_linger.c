/* SPDX-License-Identifier: MIT */

/*
 * co_close() of what waits when it is closed: a socket with SO_LINGER until the
 * peer has what was sent, a terminal until that has left.  The loop does not.
 */

#include "go.h"
#include "loop/worker.h"
#include "os/fault.h"
#include "os/valgrind.h"

#include <coaio/io.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Longer than any machine stalls; nobody waits for so long. */
#define LINGER_S 60

static AioContext *ctx;

typedef struct Pair {
    int ours;
    int peer;
} Pair;

static void linger(int fd, int onoff, int seconds)
{
    struct linger value = {.l_onoff = onoff, .l_linger = seconds};

    CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &value, sizeof(value)), 0);
}

/* While one thread is in close(2), Valgrind lets no other run. */
static void need_threads(void)
{
    if (os_in_valgrind()) {
        SKIP("Valgrind stops all threads in close(2)");
    }
}

/* Over TCP; ours lingers. */
static Pair connect_pair(void)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    Pair pair = {.ours = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};

    if (listener < 0 || pair.ours < 0 ||
        bind(listener, (struct sockaddr *)&address, length) < 0) {
        SKIP("no TCP here");
    }
    CHECK_EQ(listen(listener, 1), 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    CHECK_EQ(connect(pair.ours, (struct sockaddr *)&address, length), 0);
    pair.peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(pair.peer >= 0);
    close(listener);
    linger(pair.ours, 1, LINGER_S);
    return pair;
}

/* The peer does not read it. */
static void fill(int fd)
{
    static char block[65536];

    while (send(fd, block, sizeof(block), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
        /* more */
    }
    CHECK_EQ(errno, EAGAIN);
}

typedef struct Call {
    int fd;
    ssize_t result;
    bool done;
} Call;

static void coroutine_fn close_it(void *opaque)
{
    Call *call = opaque;

    call->result = co_close(call->fd);
    call->done = true;
}

static int do_close(int fd)
{
    Call call = {.fd = fd};

    go(close_it, &call);
    go_until(ctx, &call.done);
    CHECK_EQ(fcntl(fd, F_GETFD), -1);
    return (int)call.result;
}

static void coroutine_fn receive(void *opaque)
{
    Call *call = opaque;
    char byte;

    call->result = co_recv(call->fd, &byte, 1, 0);
    call->done = true;
}

static void coroutine_fn transmit(void *opaque)
{
    Call *call = opaque;
    char byte = 0;

    call->result = co_send(call->fd, &byte, 1, 0);
    call->done = true;
}

static void coroutine_fn sleep_often(void *opaque)
{
    Call *call = opaque;

    for (int i = 0; i < 20; i++) {
        CHECK_EQ(co_sleep_ns(1000000), 0);
    }
    call->done = true;
}

/*
 * Make a writer wait.  What has left may arrive, and make room for it, long
 * after the socket was full: then fill it again.
 */
static void have_wait(int fd, Call *writer)
{
    do {
        Call sleeping = {.done = false};

        fill(fd);
        *writer = (Call){.fd = fd};
        go(transmit, writer);
        go(sleep_often, &sleeping);
        go_until(ctx, &sleeping.done);
    } while (writer->done);
}

/* Close it, and see others run meanwhile; then the peer goes, too. */
static void close_beside_others(Pair pair)
{
    Call closing = {.fd = pair.ours}, sleeping = {.done = false};

    go(sleep_often, &sleeping);
    go(close_it, &closing);
    go_until(ctx, &sleeping.done);
    CHECK(!closing.done);
    CHECK_EQ(fcntl(pair.ours, F_GETFD), -1); /* the number is free */
    close(pair.peer);
    go_until(ctx, &closing.done);
    CHECK_EQ(closing.result, 0);
}

/* The whole loop stood still, for as long as SO_LINGER said. */
ON_EACH_ENGINE(others_run_while_a_close_lingers)
{
    Pair pair;

    need_threads();
    ctx = go_begin(engine);
    pair = connect_pair();
    fill(pair.ours);
    close_beside_others(pair);
    go_end(ctx);
}

/* The engine may have the socket open for them: it is not to be the last. */
ON_EACH_ENGINE(others_run_while_what_was_waited_on_lingers)
{
    Call reader, writer;
    Pair pair;

    need_threads();
    ctx = go_begin(engine);
    pair = connect_pair();
    reader = (Call){.fd = pair.ours};
    go(receive, &reader);
    have_wait(pair.ours, &writer);
    CHECK(!reader.done);
    close_beside_others(pair);
    CHECK_EQ(reader.result, -ECANCELED);
    CHECK_EQ(writer.result, -ECANCELED);
    go_end(ctx);
}

/* Without another number, or a worker, it is closed as any socket is. */
ON_EACH_ENGINE(what_cannot_linger_elsewhere_is_closed_here)
{
    static const char *const calls[] = {"dup", "thread", "getsockopt"};

    ctx = go_begin(engine);
    for (unsigned i = 0; i < ARRAY_SIZE(calls); i++) {
        Pair pair = connect_pair();

        os_fault_arm(1, EAGAIN, calls[i]);
        CHECK_EQ(do_close(pair.ours), 0);
        CHECK(os_fault_fired());
        CHECK_EQ(worker_thread_count(), 0);
        close(pair.peer);
    }
    go_end(ctx);
}

/* What either of the two has to say. */
ON_EACH_ENGINE(a_close_that_fails_says_so)
{
    ctx = go_begin(engine);
    for (unsigned nth = 1; nth <= 2; nth++) {
        Pair pair = connect_pair();

        os_fault_arm(nth, EIO, "close");
        CHECK_EQ(do_close(pair.ours), -EIO);
        CHECK(os_fault_fired());
        close(pair.peer);
    }
    go_end(ctx);
}

ON_EACH_ENGINE(what_does_not_linger_needs_no_worker)
{
    ctx = go_begin(engine);
    for (int onoff = 0; onoff < 2; onoff++) {
        Pair pair = connect_pair();

        linger(pair.ours, onoff, onoff ? 0 : LINGER_S);
        fill(pair.ours);
        CHECK_EQ(do_close(pair.ours), 0);
        CHECK_EQ(worker_thread_count(), 0);
        close(pair.peer);
    }
    go_end(ctx);
}

static pid_t loop_thread;
static unsigned closes[2]; /* by the loop's thread, by workers */

static void record_closes(const OsRecord *r)
{
    if (r->begin && strcmp(r->call, "close") == 0) {
        closes[syscall(SYS_gettid) != loop_thread]++;
    }
}

/* It cannot be told by its kind which of them waits. */
ON_EACH_ENGINE(a_worker_closes_a_character_device_last)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    CHECK(fd >= 0);
    ctx = go_begin(engine);
    loop_thread = (pid_t)syscall(SYS_gettid);
    os_set_recorder(record_closes);
    CHECK_EQ(do_close(fd), 0);
    os_set_recorder(NULL);
    CHECK_EQ(closes[0], 1);
    CHECK_EQ(closes[1], 1);
    go_end(ctx);
}

TEST_MAIN()
