/* SPDX-License-Identifier: MIT */
/*
 * Handlers of file descriptors, on each engine: what runs when, removal from
 * everywhere, regular files, closed, reused and duplicated descriptors, busy
 * polling, misuse.
 */
#include "loopthread.h"

#include "engines.h"
#include "loop/context.h"
#include "nth.h"
#include "seccomp.h"

#include <coaio/coroutine.h>
#include <coaio/fd.h>
#include <coaio/timer.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static AioContext *ctx;

static void open_context(const char *engine)
{
    ctx = context_on(engine);
    aio_context_attach(ctx);
}

static void close_context(void)
{
    aio_context_unref(ctx);
}

typedef struct Pair {
    int fd;      /* what the test watches */
    int peer;
    unsigned reads;
    unsigned writes;
    unsigned polls;
    unsigned ready;
    bool eat;         /* read what made it readable */
    bool poll_says;
    struct Pair *kill; /* whose handlers to remove */
} Pair;

static void pair_open(Pair *pair)
{
    int fds[2];

    memset(pair, 0, sizeof(*pair));
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    pair->fd = fds[0];
    pair->peer = fds[1];
    pair->eat = true;
}

static void pair_close(Pair *pair)
{
    close(pair->fd);
    close(pair->peer);
}

static void poke(Pair *pair)
{
    CHECK_EQ(write(pair->peer, "x", 1), 1);
}

/* Fill the buffer of fd, so that it is not writable. */
static void fill(int fd)
{
    char junk[4096] = "";

    while (write(fd, junk, sizeof(junk)) > 0) {
    }
}

static void drain(int fd)
{
    char junk[4096];

    while (read(fd, junk, sizeof(junk)) > 0) {
    }
}

static void unset(Pair *pair)
{
    CHECK_EQ(aio_set_fd_handler(ctx, pair->fd, NULL, NULL, NULL, NULL, NULL),
             0);
}

static void on_read(void *opaque)
{
    Pair *pair = opaque;

    CHECK(!in_coroutine());
    pair->reads++;
    if (pair->eat) {
        drain(pair->fd);
    }
    if (pair->kill) {
        unset(pair->kill);
    }
}

static void on_write(void *opaque)
{
    Pair *pair = opaque;

    pair->writes++;
}

static bool on_poll(void *opaque)
{
    Pair *pair = opaque;

    pair->polls++;
    return pair->poll_says;
}

static void on_ready(void *opaque)
{
    Pair *pair = opaque;

    pair->ready++;
    pair->poll_says = false;
}

static void set_read(Pair *pair)
{
    CHECK_EQ(aio_set_fd_handler(ctx, pair->fd, on_read, NULL, NULL, NULL,
                                pair),
             0);
}

static void set_both(Pair *pair)
{
    CHECK_EQ(aio_set_fd_handler(ctx, pair->fd, on_read, on_write, NULL, NULL,
                                pair),
             0);
}

ON_EACH_ENGINE(runs_when_ready_and_not_else)
{
    Pair pair;

    open_context(engine);
    pair_open(&pair);
    set_read(&pair);
    CHECK(!aio_poll(ctx, false));
    CHECK_EQ(pair.reads, 0);
    poke(&pair);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(pair.reads, 1);
    CHECK(!aio_poll(ctx, false));
    unset(&pair);
    poke(&pair);
    CHECK(!aio_poll(ctx, false));
    CHECK_EQ(pair.reads, 1);
    pair_close(&pair);
    close_context();
}

ON_EACH_ENGINE(is_level_triggered)
{
    Pair pair;

    open_context(engine);
    pair_open(&pair);
    pair.eat = false;
    set_read(&pair);
    poke(&pair);
    for (unsigned i = 1; i <= 5; i++) {
        CHECK(aio_poll(ctx, true));
        CHECK_EQ(pair.reads, i);
    }
    unset(&pair);
    pair_close(&pair);
    close_context();
}

ON_EACH_ENGINE(reads_before_it_writes)
{
    Pair pair;

    open_context(engine);
    pair_open(&pair);
    fill(pair.fd);
    set_both(&pair);
    CHECK(!aio_poll(ctx, false));
    drain(pair.peer);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(pair.reads, 0);
    CHECK_EQ(pair.writes, 1);
    poke(&pair);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(pair.reads, 1);
    CHECK_EQ(pair.writes, 2);
    set_read(&pair); /* replaces both */
    CHECK(!aio_poll(ctx, false));
    unset(&pair);
    pair_close(&pair);
    close_context();
}

ON_EACH_ENGINE(a_hangup_runs_whichever_is_set)
{
    Pair reader, writer;

    open_context(engine);
    pair_open(&reader);
    pair_open(&writer);
    fill(writer.fd);
    set_read(&reader);
    CHECK_EQ(aio_set_fd_handler(ctx, writer.fd, NULL, on_write, NULL, NULL,
                                &writer),
             0);
    CHECK(!aio_poll(ctx, false));
    close(reader.peer);
    close(writer.peer);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(reader.reads, 1);
    CHECK_EQ(writer.writes, 1);
    unset(&reader);
    unset(&writer);
    close(reader.fd);
    close(writer.fd);
    close_context();
}

ON_EACH_ENGINE(does_not_run_after_another_removed_it)
{
    Pair a, b;

    open_context(engine);
    pair_open(&a);
    pair_open(&b);
    a.kill = &b;
    b.kill = &a;
    set_both(&a);
    set_both(&b);
    poke(&a);
    poke(&b);
    CHECK(aio_poll(ctx, true));
    /* One of them ran, and wrote; the other did neither. */
    CHECK_EQ(a.reads + b.reads, 1);
    CHECK_EQ(a.writes + b.writes, 1);
    CHECK_EQ(a.reads, a.writes);
    unset(&a);
    unset(&b);
    pair_close(&a);
    pair_close(&b);
    close_context();
}

ON_EACH_ENGINE(removing_itself_drops_the_write_that_was_due)
{
    Pair pair;

    open_context(engine);
    pair_open(&pair);
    pair.kill = &pair;
    set_both(&pair);
    poke(&pair);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(pair.reads, 1);
    CHECK_EQ(pair.writes, 0);
    pair_close(&pair);
    close_context();
}

static void replace_on_read(void *opaque)
{
    Pair *pair = opaque;

    pair->reads++;
    set_both(pair); /* the event that was due is not the new handler's */
    CHECK_EQ(pair->writes, 0);
}

ON_EACH_ENGINE(a_new_handler_waits_for_the_next_pass)
{
    Pair pair;

    open_context(engine);
    pair_open(&pair);
    CHECK_EQ(aio_set_fd_handler(ctx, pair.fd, replace_on_read, on_write, NULL,
                                NULL, &pair),
             0);
    poke(&pair);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(pair.reads, 1);
    CHECK_EQ(pair.writes, 0);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(pair.reads, 2);
    CHECK_EQ(pair.writes, 1);
    unset(&pair);
    pair_close(&pair);
    close_context();
}

static Pair nest[4]; /* the last comes when the others are due */
static char nest_trail[16];
static size_t nest_length;

/* In the first, what is due is not ready any more. */
static void poll_on_read(void *opaque)
{
    nest_trail[nest_length++] = (char)('0' + ((Pair *)opaque - nest));
    if (opaque == &nest[3]) {
        return;
    }
    if (nest_length == 1) {
        for (int i = 0; i < 3; i++) {
            drain(nest[i].fd);
        }
        poke(&nest[3]);
    }
    nest_trail[nest_length++] = '(';
    CHECK(aio_poll(ctx, false));
    nest_trail[nest_length++] = ')';
}

ON_EACH_ENGINE(a_nested_pass_runs_what_the_outer_one_has_left)
{
    open_context(engine);
    for (int i = 0; i < 4; i++) {
        pair_open(&nest[i]);
        CHECK_EQ(aio_set_fd_handler(ctx, nest[i].fd, poll_on_read, NULL, NULL,
                                    NULL, &nest[i]),
                 0);
    }
    for (int i = 0; i < 3; i++) {
        poke(&nest[i]);
    }
    CHECK(aio_poll(ctx, true));
    /* In any order, but the last; each before the pass around it goes on. */
    CHECK_EQ(fnmatch("?(?(?(3)))", nest_trail, 0), 0);
    for (int i = 0; i < 4; i++) {
        unset(&nest[i]);
        pair_close(&nest[i]);
    }
    close_context();
}

static void block_on_read(void *opaque)
{
    Pair *pair = opaque;

    on_read(pair);
    if (pair->reads == 1) {
        aio_poll(ctx, true); /* what the outer pass has left is there */
    }
}

ON_EACH_ENGINE(a_nested_blocking_pass_does_not_wait_for_what_is_left)
{
    AioTimer timer;
    Pair a, b;

    open_context(engine);
    pair_open(&a);
    pair_open(&b);
    CHECK_EQ(aio_set_fd_handler(ctx, a.fd, block_on_read, NULL, NULL, NULL,
                                &a),
             0);
    CHECK_EQ(aio_set_fd_handler(ctx, b.fd, block_on_read, NULL, NULL, NULL,
                                &b),
             0);
    poke(&a);
    poke(&b);
    aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, on_write, &a);
    aio_timer_mod_ns(&timer, 1); /* ends the pass nested in the nested one */
    CHECK(aio_poll(ctx, false));
    CHECK_EQ(a.writes, 1);
    CHECK_EQ(a.reads, 1);
    CHECK_EQ(b.reads, 1);
    unset(&a);
    unset(&b);
    pair_close(&a);
    pair_close(&b);
    close_context();
}

/* --- descriptors without readiness ----------------------------------------*/

static int open_regular(void)
{
    char path[] = "/tmp/coaio-test-XXXXXX";
    int fd = mkstemp(path);

    CHECK(fd >= 0);
    unlink(path);
    return fd;
}

static void count_read(void *opaque)
{
    Pair *pair = opaque;

    pair->reads++;
}

ON_EACH_ENGINE(a_regular_file_is_always_ready)
{
    Pair pair = {0};

    open_context(engine);
    pair.fd = open_regular();
    CHECK_EQ(aio_set_fd_handler(ctx, pair.fd, count_read, on_write, NULL, NULL,
                                &pair),
             0);
    for (unsigned i = 1; i <= 20; i++) {
        CHECK(aio_poll(ctx, true));
        CHECK_EQ(pair.reads, i);
        CHECK_EQ(pair.writes, i);
    }
    unset(&pair);
    CHECK(!aio_poll(ctx, false));
    close(pair.fd);
    close_context();
}

ON_EACH_ENGINE(a_regular_file_does_not_starve_the_others)
{
    Pair file = {0}, pair;

    open_context(engine);
    file.fd = open_regular();
    pair_open(&pair);
    CHECK_EQ(aio_set_fd_handler(ctx, file.fd, count_read, NULL, NULL, NULL,
                                &file),
             0);
    set_read(&pair);
    poke(&pair);
    while (!pair.reads) {
        CHECK(aio_poll(ctx, true));
        CHECK(file.reads < 1000);
    }
    unset(&file);
    unset(&pair);
    close(file.fd);
    pair_close(&pair);
    close_context();
}

ON_EACH_ENGINE(a_number_may_become_a_file_and_a_socket_again)
{
    Pair pair;
    int regular;

    open_context(engine);
    pair_open(&pair);
    regular = open_regular();
    for (int i = 0; i < 3; i++) {
        int socket = dup(pair.fd);

        set_read(&pair);
        poke(&pair);
        CHECK(aio_poll(ctx, true));
        unset(&pair);
        CHECK_EQ(dup2(regular, pair.fd), pair.fd);
        CHECK_EQ(aio_set_fd_handler(ctx, pair.fd, count_read, NULL, NULL, NULL,
                                    &pair),
                 0);
        CHECK(aio_poll(ctx, true));
        CHECK(aio_poll(ctx, true));
        unset(&pair);
        CHECK(!aio_poll(ctx, false));
        CHECK_EQ(dup2(socket, pair.fd), pair.fd);
        close(socket);
    }
    CHECK_EQ(pair.reads, 9);
    close(regular);
    pair_close(&pair);
    close_context();
}

/* --- closed, reused, duplicated -------------------------------------------*/

ON_EACH_ENGINE(errors_leave_what_was_set_before)
{
    Pair pair;

    open_context(engine);
    CHECK_EQ(aio_set_fd_handler(ctx, -1, on_read, NULL, NULL, NULL, &pair),
             -EBADF);
    CHECK_EQ(aio_set_fd_handler(ctx, 999, on_read, NULL, NULL, NULL, &pair),
             -EBADF);
    CHECK_EQ(aio_set_fd_handler(ctx, 999, NULL, NULL, on_poll, NULL, &pair),
             -EBADF);
    CHECK_EQ(aio_set_fd_handler(ctx, INT32_MAX, on_read, NULL, NULL, NULL,
                                &pair),
             -EBADF);
    CHECK_EQ(aio_set_fd_handler(ctx, -1, NULL, NULL, NULL, NULL, NULL), 0);
    CHECK_EQ(aio_set_fd_handler(ctx, 999, NULL, NULL, NULL, NULL, NULL), 0);
    pair_open(&pair);
    set_read(&pair);
    if (strcmp(engine, "epoll") == 0) {
        os_fault_arm(1, ENOSPC, "epoll_ctl");
        CHECK_EQ(aio_set_fd_handler(ctx, pair.fd, NULL, on_write, NULL, NULL,
                                    &pair),
                 -ENOSPC);
        CHECK(os_fault_fired());
    }
    poke(&pair);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(pair.reads, 1);
    CHECK_EQ(pair.writes, 0);
    unset(&pair);
    pair_close(&pair);
    close_context();
}

ON_EACH_ENGINE(no_memory_is_an_error)
{
    bool fired = true;

    open_context(engine);
    for (uint64_t nth = 1; fired; nth++) {
        Pair pair;
        int ret;

        pair_open(&pair);
        CHECK_EQ(dup2(pair.fd, 200 + (int)nth), 200 + (int)nth);
        close(pair.fd);
        pair.fd = 200 + (int)nth;
        os_fault_arm(nth, ENOMEM, "alloc");
        ret = aio_set_fd_handler(ctx, pair.fd, on_read, NULL, NULL, NULL,
                                 &pair);
        fired = os_fault_fired();
        CHECK_EQ(ret, fired ? -ENOMEM : 0);
        if (!fired) {
            poke(&pair);
            CHECK(aio_poll(ctx, true));
            CHECK_EQ(pair.reads, 1);
        }
        unset(&pair);
        pair_close(&pair);
    }
    close_context();
}

ON_EACH_ENGINE(may_be_removed_after_closing)
{
    Pair pair;
    int fd;

    open_context(engine);
    pair_open(&pair);
    set_read(&pair);
    fd = pair.fd;
    close(pair.fd);
    CHECK(!aio_poll(ctx, false)); /* misuse, but survived */
    CHECK(!aio_poll(ctx, false));
    CHECK_EQ(aio_set_fd_handler(ctx, fd, NULL, NULL, NULL, NULL, NULL), 0);
    CHECK_EQ(pair.reads, 0);
    close(pair.peer);
    close_context();
}

ON_EACH_ENGINE(a_reused_number_is_watched_anew)
{
    Pair old, new;

    open_context(engine);
    pair_open(&old);
    set_read(&old);
    close(old.fd);
    pair_open(&new); /* gets the number */
    CHECK_EQ(new.fd, old.fd);
    set_read(&new);
    poke(&new);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(new.reads, 1);
    CHECK_EQ(old.reads, 0);
    unset(&new);
    pair_close(&new);
    close(old.peer);
    close_context();
}

/*
 * The number is closed and reused while another descriptor keeps the old
 * socket open: epoll goes on reporting it, for ever, under the number.
 */
static void watch_orphan(const char *engine, bool reuse)
{
    Pair old, new;
    int copy;

    open_context(engine);
    pair_open(&old);
    old.eat = false;
    set_read(&old);
    copy = dup(old.fd);
    CHECK(copy >= 0);
    close(old.fd);
    CHECK_EQ(aio_set_fd_handler(ctx, old.fd, NULL, NULL, NULL, NULL, NULL),
             0);
    pair_open(&new);
    if (reuse) {
        CHECK_EQ(new.fd, old.fd);
        set_read(&new);
    }
    CHECK_EQ(write(old.peer, "x", 1), 1);
    for (int i = 0; i < 10; i++) {
        CHECK(!aio_poll(ctx, false));
    }
    CHECK_EQ(old.reads, 0);
    CHECK_EQ(new.reads, 0);
    if (reuse) {
        uint64_t before = os_counter(OS_COUNT_SYSCALLS);
        AioTimer timer;

        /* The loop can sleep again: the stale reports have an end. */
        aio_timer_init(&timer, ctx, AIO_CLOCK_MONOTONIC, count_read, &old);
        aio_timer_mod_ns(&timer,
                         aio_clock_ns(AIO_CLOCK_MONOTONIC) + 20000000);
        while (!old.reads) {
            aio_poll(ctx, true);
        }
        CHECK(os_counter(OS_COUNT_SYSCALLS) - before < 10);
        poke(&new);
        CHECK(aio_poll(ctx, true));
        CHECK_EQ(new.reads, 1);
        unset(&new);
    }
    close(copy);
    close(old.peer);
    pair_close(&new);
    close_context();
}

ON_EACH_ENGINE(a_duplicate_of_a_closed_one_is_ignored)
{
    watch_orphan(engine, false);
}

ON_EACH_ENGINE(a_duplicate_of_a_reused_one_is_ignored)
{
    watch_orphan(engine, true);
}

TEST(a_stale_registration_waits_until_a_new_set_can_be_had)
{
    Pair old, new;
    int copy;

    open_context("epoll");
    pair_open(&old);
    set_read(&old);
    copy = dup(old.fd);
    CHECK(copy >= 0);
    close(old.fd);
    CHECK_EQ(aio_set_fd_handler(ctx, old.fd, NULL, NULL, NULL, NULL, NULL),
             0);
    pair_open(&new);
    set_read(&new);
    CHECK_EQ(write(old.peer, "x", 1), 1);
    os_fault_arm(1, EMFILE, "epoll_create");
    for (int i = 0; i < 6; i++) {
        CHECK(!aio_poll(ctx, false));
    }
    CHECK(os_fault_fired());
    poke(&new);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(new.reads, 1);
    for (int i = 0; i < 10; i++) {
        CHECK(!aio_poll(ctx, false));
    }
    poke(&new);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(new.reads, 2);
    unset(&new);
    close(copy);
    close(old.peer);
    pair_close(&new);
    close_context();
}

ON_EACH_ENGINE(a_socket_may_come_back_under_its_number)
{
    Pair pair;
    int copy;

    open_context(engine);
    pair_open(&pair);
    set_read(&pair);
    copy = dup(pair.fd);
    CHECK(copy >= 0);
    close(pair.fd);
    unset(&pair); /* epoll does not let go of it: there is no number */
    CHECK_EQ(dup2(copy, pair.fd), pair.fd);
    set_read(&pair);
    poke(&pair);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(pair.reads, 1);
    unset(&pair);
    close(copy);
    pair_close(&pair);
    close_context();
}

ON_EACH_ENGINE(two_numbers_of_one_socket_have_handlers_each)
{
    Pair a, b;

    open_context(engine);
    pair_open(&a);
    b = a;
    b.fd = dup(a.fd);
    CHECK(b.fd >= 0);
    a.eat = false;
    b.eat = false;
    set_read(&a);
    set_read(&b);
    poke(&a);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(a.reads, 1);
    CHECK_EQ(b.reads, 1);
    unset(&a);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(a.reads, 1);
    CHECK_EQ(b.reads, 2);
    unset(&b);
    close(b.fd);
    pair_close(&a);
    close_context();
}

/* --- from other threads ---------------------------------------------------*/

typedef struct Shared {
    LoopThread loop;
    Pair pair;
    sem_t ran;
} Shared;

static void shared_read(void *opaque)
{
    Shared *shared = opaque;

    drain(shared->pair.fd);
    shared->pair.reads++;
    gate_open(&shared->ran);
}

static void shared_open(Shared *shared, const char *engine)
{
    setenv("COAIO_ENGINE", engine, 1);
    loop_thread_start(&shared->loop, "shared");
    CHECK_STR(aio_context_engine(shared->loop.ctx), engine);
    pair_open(&shared->pair);
    gate_init(&shared->ran);
}

ON_EACH_ENGINE(can_be_set_and_removed_while_the_loop_sleeps)
{
    Shared shared;

    shared_open(&shared, engine);
    for (unsigned i = 1; i <= harness_load(200); i++) {
        CHECK_EQ(aio_set_fd_handler(shared.loop.ctx, shared.pair.fd,
                                    shared_read, NULL, NULL, NULL, &shared),
                 0);
        poke(&shared.pair);
        gate_pass(&shared.ran);
        CHECK_EQ(aio_set_fd_handler(shared.loop.ctx, shared.pair.fd, NULL,
                                    NULL, NULL, NULL, NULL),
                 0);
        loop_flush(shared.loop.ctx);
        CHECK_EQ(shared.pair.reads, i);
        poke(&shared.pair);
        loop_flush(shared.loop.ctx);
        CHECK_EQ(shared.pair.reads, i);
        drain(shared.pair.fd);
    }
    loop_thread_stop(&shared.loop);
    pair_close(&shared.pair);
}

ON_EACH_ENGINE(a_file_that_is_set_from_elsewhere_wakes_the_loop)
{
    Shared shared;
    int fd = open_regular();

    shared_open(&shared, engine);
    CHECK_EQ(aio_set_fd_handler(shared.loop.ctx, fd, shared_read, NULL, NULL,
                                NULL, &shared),
             0);
    gate_pass(&shared.ran);
    gate_pass(&shared.ran);
    CHECK_EQ(aio_set_fd_handler(shared.loop.ctx, fd, NULL, NULL, NULL, NULL,
                                NULL),
             0);
    loop_thread_stop(&shared.loop);
    close(fd);
    pair_close(&shared.pair);
}

/* --- busy polling ---------------------------------------------------------*/

ON_EACH_ENGINE(busy_polling_asks_the_poll_callback)
{
    Pair pair;

    open_context(engine);
    pair_open(&pair);
    CHECK_EQ(aio_set_fd_handler(ctx, pair.fd, on_read, NULL, on_poll, on_ready,
                                &pair),
             0);
    CHECK(!fd_busy_poll(ctx));
    CHECK_EQ(pair.polls, 1);
    pair.poll_says = true;
    CHECK(fd_busy_poll(ctx));
    CHECK(fd_busy_poll(ctx)); /* runs once all the same */
    CHECK(fd_dispatch(ctx));
    CHECK_EQ(pair.ready, 1);
    CHECK_EQ(pair.reads, 0);
    CHECK(!fd_dispatch(ctx));
    unset(&pair);
    CHECK(!fd_busy_poll(ctx));
    CHECK_EQ(pair.polls, 3);
    pair_close(&pair);
    close_context();
}

ON_EACH_ENGINE(without_poll_ready_the_read_handler_runs)
{
    Pair pair;

    open_context(engine);
    pair_open(&pair);
    CHECK_EQ(aio_set_fd_handler(ctx, pair.fd, on_read, NULL, on_poll, NULL,
                                &pair),
             0);
    pair.poll_says = true;
    CHECK(fd_busy_poll(ctx));
    CHECK(fd_dispatch(ctx));
    CHECK_EQ(pair.reads, 1);
    unset(&pair);
    pair_close(&pair);
    close_context();
}

static void on_ready_poll(void *opaque)
{
    Pair *pair = opaque;

    pair->ready++;
    if (pair->ready == 1) {
        CHECK(aio_poll(ctx, true)); /* finds the work again, busily */
    }
    pair->poll_says = pair->ready < 2;
}

TEST(a_poll_callback_of_a_polled_context_may_poll)
{
    Pair pair;

    open_context("epoll");
    CHECK_EQ(aio_context_set_poll_params(ctx, 1000000000, 0, 0), 0);
    pair_open(&pair);
    CHECK_EQ(aio_set_fd_handler(ctx, pair.fd, on_read, NULL, on_poll,
                                on_ready_poll, &pair),
             0);
    pair.poll_says = true;
    CHECK(fd_busy_poll(ctx));
    CHECK(fd_busy_poll(ctx));
    poke(&pair);
    CHECK(fd_dispatch(ctx));
    CHECK(pair.ready + pair.reads >= 2);
    unset(&pair);
    pair_close(&pair);
    close_context();
}

static void *kill_on_poll;

static bool poll_and_remove(void *opaque)
{
    on_poll(opaque);
    unset(kill_on_poll);
    return true;
}

ON_EACH_ENGINE(a_poll_callback_may_be_removed_meanwhile)
{
    Pair a, b;

    open_context(engine);
    pair_open(&a);
    pair_open(&b);
    CHECK_EQ(aio_set_fd_handler(ctx, a.fd, on_read, NULL, poll_and_remove,
                                on_ready, &a),
             0);
    CHECK_EQ(aio_set_fd_handler(ctx, b.fd, on_read, NULL, on_poll, on_ready,
                                &b),
             0);
    kill_on_poll = &a;
    fd_busy_poll(ctx);
    CHECK(!fd_dispatch(ctx));
    CHECK_EQ(a.ready, 0);
    CHECK_EQ(a.polls, 1);
    unset(&b);
    pair_close(&a);
    pair_close(&b);
    close_context();
}

/* --- at the end -----------------------------------------------------------*/

TEST_ABORTS(destroying_the_context_under_a_handler_aborts,
            "last reference to .* 1 .*fd handlers")
{
    Pair pair;

    open_context("epoll");
    pair_open(&pair);
    set_read(&pair);
    close_context();
}

TEST(engines_are_chosen_by_name)
{
    AioContextOptions options = {.size = sizeof(options)};
    AioContext *other;

    options.engine = "nonsense";
    CHECK_EQ(aio_context_new(&other, &options), -EINVAL);
    setenv("COAIO_ENGINE", "nonsense", 1);
    CHECK_EQ(aio_context_new(&other, NULL), -EINVAL);
    options.engine = "poll";
    CHECK_EQ(aio_context_new(&other, &options), 0);
    CHECK_STR(aio_context_engine(other), "poll");
    aio_context_unref(other);
    setenv("COAIO_ENGINE", "", 1);
    CHECK_EQ(aio_context_new(&other, NULL), 0);
    aio_context_unref(other);
}

TEST(an_engine_that_does_not_work_is_replaced_unless_named)
{
    AioContextOptions options = {.size = sizeof(options), .engine = "epoll"};
    AioContext *other;

    if (uring_works() && seccomp_refuse(SYS_io_uring_setup, ENOSYS)) {
        SKIP("no seccomp here");
    }
    setenv("COAIO_ENGINE", "", 1);
    os_fault_arm(1, ENOSYS, "epoll_create");
    CHECK_EQ(aio_context_new(&other, &options), -ENOSYS);
    CHECK(os_fault_fired());
    os_fault_arm(1, ENOSYS, "epoll_create");
    CHECK_EQ(aio_context_new(&other, NULL), 0);
    CHECK(os_fault_fired());
    CHECK_STR(aio_context_engine(other), "poll");
    aio_context_unref(other);
    os_fault_arm(1, EMFILE, "epoll_create");
    CHECK_EQ(aio_context_new(&other, NULL), -EMFILE);
    CHECK(os_fault_fired());
}

ON_EACH_ENGINE(making_a_context_fails_cleanly)
{
    AioContextOptions options = {.size = sizeof(options), .engine = engine};
    AioContext *other;
    bool fired = true;

    for (uint64_t nth = 1; fired; nth++) {
        int ret;

        os_fault_arm(nth, ENOMEM, NULL);
        ret = aio_context_new(&other, &options);
        fired = os_fault_fired();
        CHECK_EQ(ret, fired && !nth_is_done_without() ? -ENOMEM : 0);
        if (ret == 0) {
            aio_context_unref(other);
        }
        CHECK(nth < NTH_MOST);
    }
}

TEST_MAIN()
