/* SPDX-License-Identifier: MIT */
/*
 * Coroutines on several loops that hand tokens round through sockets, with
 * timeouts that race with the data; waits that another thread cancels all the
 * time, while numbers are closed and used again; and handlers that come and
 * go from another thread.
 */
#include "harness.h"

#include "base/atomic.h"
#include "engines.h"
#include "loop/fd_int.h"

#include <coaio/coroutine.h>
#include <coaio/fd.h>
#include <coaio/iothread.h>
#include <coaio/wait.h>
#include <coaio/wake.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOOPS 3
#define RING 9
#define TOKENS 4

static IOThread *loops[LOOPS];
static unsigned running; /* atomic; coroutines that have not finished */

static void start_loops(const char *engine)
{
    IOThreadOptions options = {.size = sizeof(options), .engine = engine};

    for (int i = 0; i < LOOPS; i++) {
        CHECK_EQ(iothread_new(&loops[i], "loop", &options), 0);
    }
}

static void stop_loops(void)
{
    for (int i = 0; i < LOOPS; i++) {
        CHECK_EQ(iothread_stop(loops[i]), 0);
        iothread_unref(loops[i]);
    }
}

static void start(int loop, CoroutineEntry *entry, void *opaque)
{
    fetch_add_acq_rel(&running, 1u);
    aio_co_enter(iothread_context(loops[loop % LOOPS]),
                 coroutine_create(entry, opaque));
}

static void finish(void)
{
    fetch_sub_acq_rel(&running, 1u);
    aio_wait_kick();
}

static void await_all(void)
{
    aio_wait_while(iothread_context(loops[0]), load_acquire(&running) > 0);
}

/* --- a ring ---------------------------------------------------------------*/

typedef struct Station {
    int in;
    int out;
    unsigned long left; /* tokens to pass on */
} Station;

static int64_t some_timeout(unsigned long n)
{
    return n % 3 == 0 ? -1 : (int64_t)(n % 7) * 1000;
}

static void pass_on(void *opaque)
{
    Station *station = opaque;
    unsigned long tries = 0;
    char token;

    while (station->left > 0) {
        ssize_t n = read(station->in, &token, 1);

        if (n == 1) {
            station->left--;
            CHECK_EQ(write(station->out, &token, 1), 1);
            continue;
        }
        n = fd_wait(station->in, POLLIN, some_timeout(tries++), "ring");
        CHECK(n == POLLIN || n == -ETIMEDOUT);
    }
    finish();
}

ON_EACH_ENGINE(tokens_go_round)
{
    static Station stations[RING];
    unsigned long rounds = harness_load(1000);
    int pairs[RING][2];

    start_loops(engine);
    for (int i = 0; i < RING; i++) {
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pairs[i]),
                 0);
    }
    for (int i = 0; i < TOKENS; i++) {
        CHECK_EQ(write(pairs[0][1], "t", 1), 1);
    }
    for (int i = 0; i < RING; i++) {
        stations[i].in = pairs[i][0];
        stations[i].out = pairs[(i + 1) % RING][1];
        stations[i].left = rounds * TOKENS;
        start(i, pass_on, &stations[i]);
    }
    await_all();
    for (int i = 0; i < RING; i++) {
        close(pairs[i][0]);
        close(pairs[i][1]);
    }
    stop_loops();
}

/* --- cancelling -----------------------------------------------------------*/

typedef struct Victim {
    int fd;          /* atomic; to wait for, or -1 */
    unsigned gone;   /* atomic; waits that have ended on it */
} Victim;

static void be_cancelled(void *opaque)
{
    Victim *victim = opaque;
    int ret = fd_wait(load_acquire(&victim->fd), POLLIN, -1, "victim");

    CHECK(ret == -ECANCELED || ret == POLLIN);
    fetch_add_acq_rel(&victim->gone, 1u);
    finish();
}

ON_EACH_ENGINE(cancelled_from_elsewhere)
{
    start_loops(engine);
    for (unsigned long i = 0; i < harness_load(1000); i++) {
        Victim victim = {0};
        int pair[2];

        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
        victim.fd = pair[0];
        for (int k = 0; k < LOOPS; k++) {
            start(k, be_cancelled, &victim);
        }
        if (i % 2) {
            CHECK_EQ(write(pair[1], "x", 1), 1);
        }
        /* Some may not wait yet: cancel until all have gone. */
        while (load_acquire(&victim.gone) < LOOPS) {
            fd_cancel_all(pair[0], -ECANCELED);
            sched_yield();
        }
        await_all();
        close(pair[0]);
        close(pair[1]);
    }
    stop_loops();
}

/* --- handlers -------------------------------------------------------------*/

static unsigned runs; /* atomic */

static void on_read(void *opaque)
{
    char junk[64];
    int *fd = opaque;

    while (read(*fd, junk, sizeof(junk)) > 0) {
    }
    fetch_add_acq_rel(&runs, 1u);
}

ON_EACH_ENGINE(handlers_come_and_go)
{
    AioContext *ctx;
    int pair[2];

    start_loops(engine);
    ctx = iothread_context(loops[0]);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    for (unsigned long i = 0; i < harness_load(5000); i++) {
        unsigned before = load_acquire(&runs);

        CHECK_EQ(aio_set_fd_handler(ctx, pair[0], on_read, NULL, NULL, NULL,
                                    &pair[0]),
                 0);
        CHECK_EQ(write(pair[1], "x", 1), 1);
        while (i % 2 && load_acquire(&runs) == before) {
            sched_yield();
        }
        CHECK_EQ(aio_set_fd_handler(ctx, pair[0], NULL, NULL, NULL, NULL,
                                    NULL),
                 0);
    }
    stop_loops();
    close(pair[0]);
    close(pair[1]);
}

TEST_MAIN()
