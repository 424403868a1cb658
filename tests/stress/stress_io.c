/* SPDX-License-Identifier: MIT */

/*
 * Transfers on several I/O threads at once: echoes over many sockets, a file
 * that many write and read, and descriptors that are closed under readers and
 * come back as something else.  Every byte is accounted for.
 */

#include "engines.h"
#include "harness.h"
#include "io/io_int.h"
#include "loopthread.h"
#include "os/thread.h"
#include "workers.h"

#include <coaio/coaio.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define THREADS 3

static IOThread *threads[THREADS];
static unsigned running; /* atomic; coroutines that have not ended */
static sem_t all_ended;

static void start_threads(const char *engine)
{
    IOThreadOptions options = {.size = sizeof(options), .engine = engine};

    uring_dear_from_ns(0); /* it sends, and reads from the page cache, too */
    gate_init(&all_ended);
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(iothread_new(&threads[i], "stress", &options), 0);
    }
    store_relaxed(&running, 1);
}

static void start(unsigned thread, CoroutineEntry *entry, void *opaque)
{
    fetch_add_relaxed(&running, 1u);
    aio_co_schedule(iothread_context(threads[thread % THREADS]),
                    coroutine_create(entry, opaque));
}

static void one_ended(void)
{
    if (fetch_sub_acq_rel(&running, 1u) == 1) {
        gate_open(&all_ended);
    }
}

static void await_all(void)
{
    one_ended();
    gate_pass(&all_ended);
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(iothread_stop(threads[i]), 0);
        iothread_unref(threads[i]);
    }
}

/* --- echoes ---------------------------------------------------------------*/

#define PAIRS 24

typedef struct Echo {
    int fds[2];
    unsigned long bytes;
    unsigned seed;
} Echo;

static void coroutine_fn echo_serve(void *opaque)
{
    Echo *echo = opaque;
    char buf[512];
    ssize_t n;

    while ((n = co_read(echo->fds[1], buf, sizeof(buf))) > 0) {
        for (ssize_t done = 0; done < n;) {
            ssize_t sent =
                co_send(echo->fds[1], buf + done, (size_t)(n - done), 0);

            CHECK(sent > 0);
            done += sent;
        }
    }
    CHECK_EQ(n, 0);
    CHECK_EQ(co_close(echo->fds[1]), 0);
    one_ended();
}

static char nth_byte(const Echo *echo, unsigned long i)
{
    return (char)(i * 7 + (i >> 8) + (unsigned long)echo->fds[0]);
}

static void coroutine_fn echo_write(void *opaque)
{
    Echo *echo = opaque;
    unsigned seed = echo->seed;
    char buf[700];

    for (unsigned long done = 0; done < echo->bytes;) {
        size_t count = 1 + (size_t)rand_r(&seed) % sizeof(buf);
        ssize_t n;

        if (count > echo->bytes - done) {
            count = echo->bytes - done;
        }
        for (size_t i = 0; i < count; i++) {
            buf[i] = nth_byte(echo, done + i);
        }
        n = co_write(echo->fds[0], buf, count);
        CHECK(n > 0);
        done += (unsigned long)n;
        if (rand_r(&seed) % 64 == 0) {
            co_sleep_ns(0);
        }
    }
    one_ended();
}

static void coroutine_fn echo_read(void *opaque)
{
    Echo *echo = opaque;
    char buf[600];
    unsigned long done = 0;

    while (done < echo->bytes) {
        ssize_t n = co_recv(echo->fds[0], buf, sizeof(buf), 0);

        CHECK(n > 0);
        for (ssize_t i = 0; i < n; i++) {
            CHECK_EQ(buf[i], nth_byte(echo, done + (unsigned long)i));
        }
        done += (unsigned long)n;
    }
    CHECK_EQ(co_close(echo->fds[0]), 0);
    one_ended();
}

static void echoes(const char *engine)
{
    static Echo echo[PAIRS];
    unsigned seed = (unsigned)harness_seed();

    start_threads(engine);
    for (unsigned i = 0; i < PAIRS; i++) {
        echo[i].bytes = harness_load(100000);
        echo[i].seed = seed + i;
        CHECK_EQ(
            socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, echo[i].fds), 0);
        start(i, echo_serve, &echo[i]);
        start(i + 1, echo_write, &echo[i]);
        start(i + 2, echo_read, &echo[i]);
    }
    await_all();
}

TEST(echoes_on_epoll)
{
    echoes("epoll");
}

TEST(echoes_on_poll)
{
    echoes("poll");
}

TEST(echoes_on_uring)
{
    needs_uring();
    echoes("uring");
}

/* --- closing under readers ------------------------------------------------*/

typedef struct Cut {
    int fds[2];
    unsigned long rounds;
    unsigned seed;
} Cut;

typedef struct CutReader {
    int fd;
    unsigned *left;    /* atomic */
    unsigned *unread;  /* atomic; bytes that are under way */
    Coroutine *closer; /* woken by the last */
} CutReader;

/* All that it reads was written to this incarnation of the number. */
static void coroutine_fn read_until_cut(void *opaque)
{
    CutReader *reader = opaque;
    Coroutine *closer = reader->closer;
    unsigned *left = reader->left;
    ssize_t n;
    char byte;

    do {
        n = co_recv(reader->fd, &byte, 1, 0);
        CHECK(n == 1 || n == -ECANCELED || n == -EBADF);
        CHECK(n != 1 || byte == 'd');
        if (n == 1) {
            fetch_sub_acq_rel(reader->unread, 1u);
        }
        /* As one that is not sure whether it is closed must not go on. */
    } while (n == 1);
    if (fetch_sub_acq_rel(left, 1u) == 1) {
        aio_co_wake(closer);
    }
    one_ended();
}

#define CUT_READERS 3

/* Whether all of them wait: one for readiness, the others for their turn. */
static bool all_wait(int fd)
{
    IoSide *side = &io_fd_get(fd)->sides[IO_READ];
    unsigned n;

    os_mutex_lock(&side->lock);
    n = side->held;
    for (List *link = list_first(&side->waiters); link;
         link = list_next(&side->waiters, link)) {
        n++;
    }
    os_mutex_unlock(&side->lock);
    return n == CUT_READERS;
}

/*
 * One that begins to read at the moment of co_close() has no order with it, as
 * with read(2) and close(2), and TSan says so; it gets to see only those who
 * wait, and have no byte left that would set them going again.  (Here the
 * number is not used again while somebody may come late.)
 */
static void coroutine_fn let_them_wait(int fd, const unsigned *unread)
{
    while (COAIO_TSAN && (load_acquire(unread) > 0 || !all_wait(fd))) {
        co_sleep_ns(0);
    }
}

static void coroutine_fn cut(void *opaque)
{
    Cut *c = opaque;

    for (unsigned long r = 0; r < c->rounds; r++) {
        CutReader readers[CUT_READERS];
        unsigned left = CUT_READERS, unread = 0;

        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, c->fds), 0);
        for (unsigned i = 0; i < CUT_READERS; i++) {
            readers[i] =
                (CutReader){c->fds[0], &left, &unread, coroutine_self()};
            start(c->seed + i, read_until_cut, &readers[i]);
        }
        for (int i = rand_r(&c->seed) % 4; i > 0; i--) {
            fetch_add_relaxed(&unread, 1u);
            CHECK_EQ(co_send(c->fds[1], "d", 1, 0), 1);
            co_sleep_ns(rand_r(&c->seed) % 2 * 20000);
        }
        /*
         * A reader between two calls may come to the number too late, which
         * no library can help; so the number stays closed until they ended.
         */
        let_them_wait(c->fds[0], &unread);
        CHECK_EQ(co_close(c->fds[0]), 0);
        coroutine_yield();
        CHECK_EQ(co_close(c->fds[1]), 0);
    }
    one_ended();
}

static void cuts(const char *engine)
{
    static Cut c;

    c.rounds = harness_load(2000);
    c.seed = (unsigned)harness_seed();
    start_threads(engine);
    start(0, cut, &c);
    await_all();
}

TEST(closed_under_readers_on_epoll)
{
    cuts("epoll");
}

TEST(closed_under_readers_on_poll)
{
    cuts("poll");
}

TEST(closed_under_readers_on_uring)
{
    needs_uring();
    cuts("uring");
}

/* --- one file -------------------------------------------------------------*/

#define WRITERS 12
#define BLOCK   4096

typedef struct Writer {
    int fd;
    unsigned number;
    unsigned long rounds;
    unsigned seed;
} Writer;

static void coroutine_fn write_and_check(void *opaque)
{
    Writer *w = opaque;
    char *out = malloc(BLOCK), *in = malloc(BLOCK);
    off_t at = (off_t)w->number * BLOCK;

    for (unsigned long r = 0; r < w->rounds; r++) {
        memset(out, (int)(r + w->number), BLOCK);
        CHECK_EQ(co_pwrite(w->fd, out, BLOCK, at), BLOCK);
        CHECK_EQ(co_pread(w->fd, in, BLOCK, at), BLOCK);
        CHECK_EQ(memcmp(in, out, BLOCK), 0);
        if (rand_r(&w->seed) % 32 == 0) {
            CHECK_EQ(co_fdatasync(w->fd), 0);
        }
    }
    free(out);
    free(in);
    one_ended();
}

static void files(const char *engine)
{
    static Writer writers[WRITERS];
    char path[] = "/var/tmp/coaio-stress-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC);
    unsigned seed = (unsigned)harness_seed();

    CHECK(fd >= 0);
    unlink(path);
    start_threads(engine);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (Writer){fd, i, harness_load(300), seed + i};
        start(i, write_and_check, &writers[i]);
    }
    await_all();
    end_workers();
    close(fd);
}

TEST(one_file_on_epoll)
{
    files("epoll");
}

TEST(one_file_on_poll)
{
    files("poll");
}

TEST(one_file_on_uring)
{
    needs_uring();
    files("uring");
}

/* --- cancelling -----------------------------------------------------------*/

typedef struct Timed {
    int fds[2];
    unsigned long rounds;
    unsigned seed;
} Timed;

static void coroutine_fn look_for_a_while(void *opaque)
{
    Timed *t = opaque;
    unsigned seed = t->seed;

    for (unsigned long r = 0; r < t->rounds; r++) {
        int events = co_poll_fd(t->fds[0], POLLIN, rand_r(&seed) % 50000);
        char byte;

        CHECK(events == POLLIN || events == -ETIMEDOUT);
        if (events == POLLIN) {
            ssize_t n = recv(t->fds[0], &byte, 1, MSG_DONTWAIT);

            CHECK(n == 1 || (n == -1 && errno == EAGAIN));
        }
    }
    one_ended();
}

static void coroutine_fn feed(void *opaque)
{
    Timed *t = opaque;
    unsigned seed = t->seed * 3;

    for (unsigned long r = 0; r < t->rounds; r++) {
        /* May find it full, when those who look have ended. */
        CHECK(send(t->fds[1], "f", 1, MSG_DONTWAIT) == 1 || errno == EAGAIN);
        co_sleep_ns(rand_r(&seed) % 50000);
    }
    one_ended();
}

static void timeouts(const char *engine)
{
    static Timed timed;

    timed.rounds = harness_load(2000);
    timed.seed = (unsigned)harness_seed();
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, timed.fds), 0);
    start_threads(engine);
    for (unsigned i = 0; i < 4; i++) {
        start(i, look_for_a_while, &timed);
    }
    start(4, feed, &timed);
    await_all();
    close(timed.fds[0]);
    close(timed.fds[1]);
}

TEST(timeouts_that_race_on_epoll)
{
    timeouts("epoll");
}

TEST(timeouts_that_race_on_poll)
{
    timeouts("poll");
}

TEST(timeouts_that_race_on_uring)
{
    needs_uring();
    timeouts("uring");
}

/* --- numbers that come back -----------------------------------------------*/

typedef struct Taker {
    int fd;
    char byte;
    ssize_t result;
    sem_t parked, ended;
} Taker;

static void coroutine_fn take(void *opaque)
{
    Taker *t = opaque;

    t->result = co_recv(t->fd, &t->byte, 1, 0);
    gate_open(&t->ended);
}

static void start_taker(void *opaque)
{
    Taker *t = opaque;

    coroutine_enter(coroutine_create(take, t));
    gate_open(&t->parked);
}

static void coroutine_fn close_now(void *opaque)
{
    int *fd = opaque;

    CHECK_EQ(co_close(*fd), 0);
}

/*
 * A receive that has begun in another thread, somewhere on its way to the
 * kernel, takes nothing from what the number of its descriptor stands for after
 * co_close().
 */
static void numbers_come_back(const char *engine)
{
    unsigned seed = (unsigned)harness_seed();
    Taker t;
    int old[2], new[2];
    char byte;

    start_threads(engine);
    gate_init(&t.parked);
    gate_init(&t.ended);
    for (unsigned long r = 0; r < harness_load(20000); r++) {
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, old), 0);
        t.fd = old[0];
        aio_bh_schedule_oneshot(iothread_context(threads[0]), start_taker, &t);
        gate_pass(&t.parked);
        for (int spins = rand_r(&seed) % 1000; spins > 0; spins--) {
            spin_hint();
        }
        /* Without a home it is done here and now. */
        coroutine_enter(coroutine_create(close_now, &old[0]));
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, new), 0);
        CHECK_EQ(send(new[1], "n", 1, MSG_DONTWAIT), 1);
        gate_pass(&t.ended);
        CHECK_EQ(recv(new[0], &byte, 1, MSG_DONTWAIT), 1);
        CHECK_EQ(byte, 'n');
        CHECK_EQ(t.result, -ECANCELED);
        close(old[1]);
        close(new[0]);
        close(new[1]);
    }
    await_all();
}

TEST(numbers_come_back_on_epoll)
{
    numbers_come_back("epoll");
}

TEST(numbers_come_back_on_poll)
{
    numbers_come_back("poll");
}

TEST(numbers_come_back_on_uring)
{
    needs_uring();
    numbers_come_back("uring");
}

TEST_MAIN()
