/* SPDX-License-Identifier: MIT */
/*
 * The io_uring engine (loop/poller/uring.c), a receive that is submitted to it
 * (io/submit.c), and the end of the descriptor that the receive names
 * (io/registry.c): the kernel never makes the call on the file that has the
 * number next.
 *
 * The threads that close have no context.  Their descriptor is closed, the
 * number is used for another file at once, and that has something to be
 * received: a receive that comes late would take it.
 */
#include "base/atomic.h"
#include "explore.h"
#include "io/io_int.h"
#include "loop/context.h"
#include "loop/fd_int.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <coaio/fd.h>
#include <errno.h>
#include <poll.h>

typedef struct Socket {
    IoFd entry;
    int fd;
    uint32_t file;  /* that fd named at first, ... */
    uint32_t other; /* and in the end, if it was used again; or 0 */
    Coroutine *co;  /* that receives */
    ssize_t result; /* like the next: the home thread's */
    bool received;
} Socket;

static AioContext *ctx;
static Socket sockets[2];

/* Of io/io.c, which is left out; nobody comes here. */
int coroutine_fn co_sleep_ns(int64_t ns)
{
    explore_fail("explorer", "a sleep of %lld ns", (long long)ns);
}

bool io_begin(const char *what, int fd)
{
    explore_fail("explorer", "%s of %d", what, fd);
}

static void make_context_with(AioContext **out, const char *engine)
{
    const AioContextOptions options = {
        .size = sizeof(options),
        .engine = engine,
    };

    CHECK_EQ(aio_context_new(out, &options), 0);
}

static void make_sockets(void)
{
    for (int i = 0; i < 2; i++) {
        sockets[i].fd = explore_fd_open();
        sockets[i].file = explore_fd_file(sockets[i].fd);
    }
}

static void make_context(void)
{
    make_context_with(&ctx, "uring");
    make_sockets();
}

/* --- who receives ---------------------------------------------------------*/

/*
 * Nothing is left of a wait's record, which lay in a frame: who still uses it
 * when its coroutine has gone on finds neither what it was, nor what happened
 * to be written there since.
 */
static __attribute__((noinline)) void forget_frames(void)
{
    volatile char frames[4096];

    for (size_t i = 0; i < sizeof(frames); i++) {
        frames[i] = (char)0xdd;
    }
}

static void coroutine_fn receive(void *opaque)
{
    Socket *s = opaque;
    char byte;
    struct iovec iov = {&byte, 1};
    const OsUringRequest request = {
        .call = OS_URING_RECV,
        .fd = s->fd,
        .iov = &iov,
        .iovcnt = 1,
    };
    IoTurn turn;

    CHECK_EQ(io_turn_take(&turn, &s->entry, IO_READ, "a test"), 0);
    coroutine_yield();
    s->result = io_submit_with_turn(&turn, &request, "a test");
    forget_frames();
    CHECK_EQ(os_thread()->context->poller.ops_taken, 0);
    io_turn_end(&turn);
    CHECK(!s->received);
    s->received = true;
    forget_frames();
}

/* It has the turn, and then it is about to submit. */
static void prepare_to_receive(Socket *s)
{
    s->co = coroutine_create(receive, s);
    coroutine_enter(s->co);
}

static void poll_until_received(void)
{
    while (!sockets[0].received) {
        aio_poll(ctx, true);
    }
}

/* All is over: nothing holds the files any more, and the number was not used
 * for what it means now. */
static void end_loop(void)
{
    explore_end();
    while (aio_poll(ctx, false)) {
    }
    CHECK_EQ(ctx->poller.ops_taken, 0);
    for (int i = 0; i < 2; i++) {
        CHECK(!explore_uring_holds(sockets[i].file));
        CHECK_EQ(explore_uring_calls(sockets[i].other), 0);
    }
    aio_context_unref(ctx);
}

static void receive_one(void)
{
    aio_context_attach(ctx);
    prepare_to_receive(&sockets[0]);
    explore_begin();
    coroutine_enter(sockets[0].co);
    poll_until_received();
    end_loop();
}

/* --- who closes -----------------------------------------------------------*/

/* As co_close() does. */
static void coroutine_fn close_socket(void *opaque)
{
    Socket *s = opaque;
    IoClosing closing;

    CHECK_EQ(io_fd_retire(&closing, &s->entry, s->fd), 0);
    CHECK_EQ(io_fd_close(&closing, s->fd), 0);
}

static void close_one(Socket *s)
{
    coroutine_enter(coroutine_create(close_socket, s));
}

static void use_again(Socket *s)
{
    CHECK_EQ(explore_fd_open(), s->fd);
    s->other = explore_fd_file(s->fd);
    explore_fd_set(s->fd, POLLIN);
}

static void close_and_use_again(Socket *s)
{
    close_one(s);
    use_again(s);
}

static void close_first(void)
{
    explore_begin();
    close_and_use_again(&sockets[0]);
    explore_end();
}

static void check_cancelled(void)
{
    CHECK_EQ(sockets[0].result, -ECANCELED);
}

EXPLORE(
    closed_as_it_is_submitted, .setup = make_context,
    .threads = {receive_one, close_first}, .finish = check_cancelled,
    .marks = {"uring: an operation is dropped before it is submitted",
              "uring: an operation is dropped before it enters",
              "uring: a drop waits for the home thread",
              "uring: droppers are woken",
              "submit: a call is ended before it has completed"},
    .mutants = {
        {MUTANT_URING_DROP_NO_WAIT, "failed check", "end_loop", false},
        {MUTANT_URING_DROP_QUIET, "lost wake-up", "drop_from_queue", false},
        {MUTANT_URING_DROP_UNCOUNTED, "lost wake-up", "drop_from_queue", false},
        {MUTANT_URING_DROPPED_ENTERS, "failed check", "end_loop", false},
        {MUTANT_URING_EXIT_UNCOUNTED, "lost wake-up", "drop_from_queue", false},
        {MUTANT_SUBMIT_NOT_AWAITED, "failed check", "receive()", false},
        {MUTANT_SUBMIT_STALE, "failed check", "end_loop", false},
    })

/* --- the kernel has no memory for it at first -----------------------------*/

static void make_context_without_memory(void)
{
    make_context();
    explore_uring_refuse(1);
}

EXPLORE(closed_as_it_was_not_taken_in, .setup = make_context_without_memory,
        .threads = {receive_one, close_first}, .finish = check_cancelled,
        .marks = {"uring: an operation was not taken in",
                  "uring: an operation is dropped before it enters",
                  "uring: a drop waits for the home thread"},
        .mutants = {
            {MUTANT_URING_LEFT_FORGOTTEN, "failed check", "end_loop", false}})

/* --- there is little room -------------------------------------------------*/

static void make_context_with_little_room(void)
{
    make_context();
    explore_uring_shrink(1);
}

EXPLORE(closed_where_there_is_little_room,
        .setup = make_context_with_little_room,
        .threads = {receive_one, close_first}, .finish = check_cancelled,
        .marks = {"uring: an operation is dropped before it enters",
                  "uring: a drop waits for the home thread"})

/* --- something is received ------------------------------------------------*/

enum {
    GOT_IT,
    CANCELLED,
    TIMED_OUT
};

static void note_outcome(void)
{
    switch (sockets[0].result) {
    case 1:
        explore_outcome(GOT_IT);
        break;
    case -ECANCELED:
        explore_outcome(CANCELLED);
        break;
    case -ETIMEDOUT:
        explore_outcome(TIMED_OUT);
        break;
    default:
        CHECK_EQ(sockets[0].result, 1);
    }
}

static void send_and_close(void)
{
    explore_begin();
    explore_fd_set(sockets[0].fd, POLLIN);
    close_and_use_again(&sockets[0]);
    explore_end();
}

EXPLORE(closed_as_it_completes, .setup = make_context,
        .threads = {receive_one, send_and_close}, .finish = note_outcome,
        .allowed = OUTCOME(GOT_IT) | OUTCOME(CANCELLED),
        .mutants = {{MUTANT_FD_WOKEN_BEFORE_DROP, "lost wake-up",
                     "drop_from_queue", false}})

/* --- its time is up -------------------------------------------------------*/

/* Once cancelled by its own thread, it lets go of the file there and then. */
static void receive_for_a_while(void)
{
    aio_context_attach(ctx);
    prepare_to_receive(&sockets[0]);
    explore_begin();
    coroutine_enter(sockets[0].co);
    aio_poll(ctx, false);
    if (!sockets[0].received && co_wait_cancel(sockets[0].co, -ETIMEDOUT)) {
        CHECK(!explore_uring_holds(sockets[0].file));
    }
    poll_until_received();
    end_loop();
}

EXPLORE(closed_as_its_time_is_up, .setup = make_context,
        .threads = {receive_for_a_while, close_first}, .finish = note_outcome,
        .allowed = OUTCOME(CANCELLED) | OUTCOME(TIMED_OUT),
        .marks = {"uring: the home thread has the kernel let go of a file"},
        .mutants = {{MUTANT_URING_DROP_NOT_ENTERED, "failed check",
                     "receive_for_a_while", false}})

/* --- two who close each other's -------------------------------------------*/

static AioContext *contexts[2];

static void make_two_contexts(void)
{
    make_context();
    contexts[0] = ctx;
    make_context_with(&contexts[1], "uring");
}

static void receive_and_close(int mine)
{
    aio_context_attach(contexts[mine]);
    prepare_to_receive(&sockets[mine]);
    explore_begin();
    coroutine_enter(sockets[mine].co);
    aio_poll(contexts[mine], false);
    close_one(&sockets[1 - mine]);
    while (!sockets[mine].received) {
        aio_poll(contexts[mine], true);
    }
    CHECK_EQ(sockets[mine].result, -ECANCELED);
    explore_end();
    aio_context_unref(contexts[mine]);
}

static void receive_first_and_close_second(void)
{
    receive_and_close(0);
}

static void receive_second_and_close_first(void)
{
    receive_and_close(1);
}

/* Nobody waits for one who waits. */
EXPLORE(two_close_each_others, .setup = make_two_contexts,
        .threads = {receive_first_and_close_second,
                    receive_second_and_close_first},
        .marks = {"uring: a drop waits for the home thread"})

/* --- two who drop ---------------------------------------------------------*/

static IoOp ops[2];
static unsigned completions;

static void count_completion(void *owner, Post *post)
{
    CHECK(owner == ctx);
    CHECK(container_of(post, IoOp, post)->result == -ECANCELED);
    completions++;
}

/* What they drop either has not entered, or is waited for: the thread does not
 * sleep over that. */
static void sleep_over_two(void)
{
    static char byte;
    static const struct iovec iov = {&byte, 1};

    aio_context_attach(ctx);
    for (int i = 0; i < 2; i++) {
        ops[i].post.run = count_completion;
        ops[i].request.call = OS_URING_RECV;
        ops[i].request.fd = sockets[i].fd;
        ops[i].request.iov = &iov;
        ops[i].request.iovcnt = 1;
        CHECK(ctx->poller.ops->submit(ctx, &ops[i]));
    }
    explore_begin();
    aio_poll(ctx, true);
    explore_end();
    for (int i = 0; i < 2; i++) {
        CHECK(ctx->poller.ops->cancel(ctx, &ops[i]));
    }
    while (completions < 2) {
        aio_poll(ctx, true);
    }
    aio_context_unref(ctx);
}

static void drop(IoOp *op)
{
    explore_begin();
    ctx->poller.ops->drop(ctx, op);
    explore_end();
}

static void drop_first(void)
{
    drop(&ops[0]);
}

static void drop_second(void)
{
    drop(&ops[1]);
}

EXPLORE(two_are_dropped, .setup = make_context,
        .threads = {sleep_over_two, drop_first, drop_second},
        .marks = {"uring: an operation is dropped before it enters",
                  "uring: a drop waits for the home thread"},
        .mutants = {
            {MUTANT_URING_WAKES_ONE, "lost wake-up", "drop_from_queue", false}})
EXPLORE(one_is_dropped_by_two, .setup = make_context,
        .threads = {sleep_over_two, drop_first, drop_first},
        .marks = {"uring: an operation is dropped before it enters",
                  "uring: a drop waits for the home thread"})

/* --- a poll that goes on --------------------------------------------------*/

static unsigned writable;

static void fill(void *opaque)
{
    const Socket *s = opaque;

    writable++;
    explore_fd_set(s->fd, POLLRDHUP);
}

/*
 * One that is made in place of another has a number of its own: the end of that
 * came before anything else under the same one, and counted as trouble.
 */
static void watch_half_closed(void)
{
    Socket *s = &sockets[0];

    aio_context_attach(ctx);
    explore_begin();
    explore_fd_set(s->fd, POLLRDHUP);
    CHECK_EQ(aio_set_fd_handler(ctx, s->fd, NULL, fill, NULL, NULL, s), 0);
    for (int i = 0; i < 3; i++) {
        aio_poll(ctx, false);
    }
    CHECK_EQ(writable, 0);
    explore_fd_set(s->fd, POLLRDHUP | POLLOUT);
    for (int i = 0; i < 3; i++) {
        aio_poll(ctx, false);
    }
    CHECK_EQ(writable, 1);
    CHECK_EQ(aio_set_fd_handler(ctx, s->fd, NULL, NULL, NULL, NULL, NULL), 0);
    end_loop();
}

EXPLORE(half_closed, .setup = make_context, .threads = {watch_half_closed})

/* --- the thread ends ------------------------------------------------------*/

/* Its coroutine is left, and nothing that it has submitted. */
static void submit_and_stop(void)
{
    aio_context_attach(ctx);
    prepare_to_receive(&sockets[0]);
    explore_begin();
    coroutine_enter(sockets[0].co);
    context_stop(ctx);
    explore_end();
}

/* It has been in the kernel. */
static void receive_and_stop(void)
{
    aio_context_attach(ctx);
    prepare_to_receive(&sockets[0]);
    explore_begin();
    coroutine_enter(sockets[0].co);
    aio_poll(ctx, false);
    context_stop(ctx);
    explore_end();
}

static void check_given_up(void)
{
    CHECK_EQ(explore_uring_calls(sockets[0].other), 0);
    CHECK(!explore_uring_holds(sockets[0].file));
}

EXPLORE(closed_as_its_thread_ends, .setup = make_context,
        .threads = {submit_and_stop, close_first}, .finish = check_given_up,
        .leaks = true)
EXPLORE(closed_as_its_thread_gives_it_up, .setup = make_context,
        .threads = {receive_and_stop, close_first}, .finish = check_given_up,
        .leaks = true)

/* --- another engine takes the place of this one ---------------------------*/

static void make_context_with_forbidden_ring(void)
{
    explore_uring_forbid();
    make_context_with(&ctx, "auto");
    make_sockets();
}

static void try_to_receive(void)
{
    aio_context_attach(ctx);
    prepare_to_receive(&sockets[0]);
    explore_begin();
    coroutine_enter(sockets[0].co);
    poll_until_received();
    end_loop();
}

static void check_other_way(void)
{
    CHECK(sockets[0].result == IO_NEEDS_OTHER_WAY ||
          sockets[0].result == -ECANCELED);
}

EXPLORE(closed_as_the_engine_gives_way,
        .setup = make_context_with_forbidden_ring,
        .threads = {try_to_receive, close_first}, .finish = check_other_way,
        .marks = {"uring: an operation that is known keeps the engine"},
        .mutants = {
            {MUTANT_URING_GIVES_WAY_EARLY, "data race", "poller.c", false}})

/* --- a wait, which the engine has a poll for ------------------------------*/

static AioBHStorage storage;

static void coroutine_fn wait_for_it(void *opaque)
{
    Socket *s = opaque;

    s->received = false;
    s->result = fd_wait(s->fd, POLLIN, -1, "a test");
    s->received = true;
}

static void begin_to_wait(void *opaque)
{
    coroutine_enter(coroutine_create(wait_for_it, opaque));
}

static void wait_for_one(void)
{
    aio_context_attach(ctx);
    begin_to_wait(&sockets[0]);
    explore_begin();
    poll_until_received();
    end_loop();
}

/* The file is let go of, if not now. */
EXPLORE(closed_as_it_is_waited_for, .setup = make_context,
        .threads = {wait_for_one, close_first}, .finish = check_cancelled,
        .mutants = {
            {MUTANT_URING_CHANGE_NOT_DUE, "failed check", "end_loop", false},
            {MUTANT_URING_DUE_LATE, "failed check", "end_loop", false},
        })

static void wait_for_both(void)
{
    aio_context_attach(ctx);
    begin_to_wait(&sockets[0]);
    explore_begin();
    while (!sockets[0].received || sockets[0].result < 0) {
        aio_poll(ctx, true);
    }
    end_loop();
}

static void close_and_wait_again(void)
{
    Socket *s = &sockets[0];

    explore_begin();
    close_one(s);
    CHECK_EQ(explore_fd_open(), s->fd);
    aio_bh_schedule_oneshot_embedded(ctx, &storage, begin_to_wait, s);
    explore_fd_set(s->fd, POLLIN);
    explore_end();
}

static void check_ready(void)
{
    CHECK_EQ(sockets[0].result, POLLIN);
}

EXPLORE(its_number_is_waited_for_again, .setup = make_context,
        .threads = {wait_for_both, close_and_wait_again}, .finish = check_ready,
        .marks = {"uring: what was wanted before is ignored",
                  "uring: the end of what was removed is ignored"})

/* --- a handler ------------------------------------------------------------*/

static bool stop;

static void handle(void *opaque)
{
    explore_fail("failed check", "nothing comes for %p", opaque);
}

static void set_handler(const Socket *s, AioFdFunc *handler)
{
    CHECK_EQ(aio_set_fd_handler(ctx, s->fd, handler, NULL, NULL, NULL, NULL),
             0);
}

static void set_stop(void *opaque)
{
    (void)opaque;
    stop = true;
}

static void poll_until_stop(void)
{
    aio_context_attach(ctx);
    set_handler(&sockets[0], handle);
    aio_poll(ctx, false);
    explore_begin();
    while (!stop) {
        aio_poll(ctx, true);
    }
    explore_end();
    set_handler(&sockets[0], NULL);
    CHECK(!explore_uring_holds(sockets[0].file));
    aio_context_unref(ctx);
}

static void replace_handler(void)
{
    explore_begin();
    set_handler(&sockets[0], NULL);
    set_handler(&sockets[0], handle);
    aio_bh_schedule_oneshot_embedded(ctx, &storage, set_stop, NULL);
    explore_end();
}

/* Once removed by the home thread, it lets go of the file there and then. */
EXPLORE(its_handler_is_replaced, .setup = make_context,
        .threads = {poll_until_stop, replace_handler},
        .marks = {"uring: the end of what was removed is ignored"},
        .mutants = {{MUTANT_URING_STALE_COMPLETION, "failed check",
                     "poll_completed", false}})

/* The kernel is entered for that, with the receive, and not to sleep. */
static void receive_and_remove(void)
{
    aio_context_attach(ctx);
    set_handler(&sockets[1], handle);
    aio_poll(ctx, false);
    prepare_to_receive(&sockets[0]);
    explore_begin();
    coroutine_enter(sockets[0].co);
    set_handler(&sockets[1], NULL);
    CHECK(!explore_uring_holds(sockets[1].file));
    poll_until_received();
    end_loop();
}

EXPLORE(closed_as_a_handler_is_removed, .setup = make_context,
        .threads = {receive_and_remove, close_first}, .finish = check_cancelled,
        .marks = {"uring: an operation is dropped before it enters"})

EXPLORE_MAIN()
