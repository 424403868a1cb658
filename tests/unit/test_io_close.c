/* SPDX-License-Identifier: MIT */

/*
 * Ends of waits that are not what was waited for: co_close(), in one context
 * and in two, and cancellation of each kind of wait before, during and after
 * its completion.
 */

#include "go.h"
#include "io/io_int.h"
#include "loop/wait.h"
#include "loopthread.h"
#include "os/fault.h"

#include <coaio/io.h>
#include <coaio/wake.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct Call {
    int fd;
    char byte;
    ssize_t result;
    bool done;
    sem_t ended; /* for those that run elsewhere */
} Call;

static void coroutine_fn receive(void *opaque)
{
    Call *call = opaque;

    call->result = co_recv(call->fd, &call->byte, 1, 0);
    call->done = true;
}

static void coroutine_fn fill(void *opaque)
{
    static char block[65536];
    Call *call = opaque;

    do {
        call->result = co_send(call->fd, block, sizeof(block), 0);
    } while (call->result > 0);
    call->done = true;
}

static void coroutine_fn look(void *opaque)
{
    Call *call = opaque;

    call->result = co_poll_fd(call->fd, POLLIN, -1);
    call->done = true;
}

static void coroutine_fn close_it(void *opaque)
{
    Call *call = opaque;

    call->result = co_close(call->fd);
    call->done = true;
}

static int do_close(AioContext *ctx, int fd)
{
    Call call = {.fd = fd};

    go(close_it, &call);
    go_until(ctx, &call.done);
    return (int)call.result;
}

static void pair(int fds[2])
{
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
}

/* --- co_close -------------------------------------------------------------*/

ON_EACH_ENGINE(closing_closes)
{
    AioContext *ctx = go_begin(engine);
    int fd = (int)syscall(SYS_memfd_create, "coaio-test", 1u);
    int fds[2];

    pair(fds);
    CHECK_EQ(do_close(ctx, fds[0]), 0);
    CHECK_EQ(fcntl(fds[0], F_GETFD), -1);
    CHECK_EQ(do_close(ctx, fds[0]), -EBADF);
    CHECK_EQ(do_close(ctx, fds[1]), 0);
    CHECK_EQ(do_close(ctx, fd), 0);
    CHECK_EQ(do_close(ctx, -1), -EBADF);
    CHECK_EQ(do_close(ctx, 12345), -EBADF);
    go_end(ctx);
}

ON_EACH_ENGINE(closing_ends_every_wait)
{
    AioContext *ctx = go_begin(engine);
    Call readers[4], writers[4], looking[2];
    int fds[2];

    pair(fds);
    for (int i = 0; i < 4; i++) {
        readers[i] = (Call){.fd = fds[0]};
        writers[i] = (Call){.fd = fds[0]};
        go(receive, &readers[i]);
        go(fill, &writers[i]);
    }
    for (int i = 0; i < 2; i++) {
        looking[i] = (Call){.fd = fds[0]};
        go(look, &looking[i]);
    }
    go_settle(ctx);
    CHECK_EQ(do_close(ctx, fds[0]), 0);
    for (int i = 0; i < 4; i++) {
        go_until(ctx, &readers[i].done);
        go_until(ctx, &writers[i].done);
        CHECK_EQ(readers[i].result, -ECANCELED);
        CHECK_EQ(writers[i].result, -ECANCELED);
    }
    for (int i = 0; i < 2; i++) {
        go_until(ctx, &looking[i].done);
        CHECK_EQ(looking[i].result, -ECANCELED);
    }
    close(fds[1]);
    go_end(ctx);
}

/* The number starts afresh: nobody holds a turn on it. */
ON_EACH_ENGINE(a_closed_number_is_as_new)
{
    AioContext *ctx = go_begin(engine);
    Call old[2], new;
    int fds[2], again[2];

    pair(fds);
    for (int i = 0; i < 2; i++) {
        old[i] = (Call){.fd = fds[0]};
        go(receive, &old[i]);
    }
    CHECK_EQ(do_close(ctx, fds[0]), 0);
    pair(again);
    CHECK_EQ(again[0], fds[0]);
    new = (Call){.fd = again[0]};
    go(receive, &new);
    CHECK(!new.done);
    CHECK_EQ(write(again[1], "n", 1), 1);
    go_until(ctx, &new.done);
    CHECK_EQ(new.result, 1);
    CHECK_EQ(new.byte, 'n');
    for (int i = 0; i < 2; i++) {
        CHECK(old[i].done);
        CHECK_EQ(old[i].result, -ECANCELED);
    }
    close(fds[1]);
    close(again[0]);
    close(again[1]);
    go_end(ctx);
}

typedef struct Swap {
    int fd;
    int again[2];
    bool done;
} Swap;

/* Close it when it is readable, and put another one in its place. */
static void coroutine_fn swap(void *opaque)
{
    Swap *s = opaque;

    CHECK_EQ(co_poll_fd(s->fd, POLLIN, -1), POLLIN);
    CHECK_EQ(co_close(s->fd), 0);
    pair(s->again);
    CHECK_EQ(s->again[0], s->fd);
    CHECK_EQ(write(s->again[1], "x", 1), 1);
    s->done = true;
}

/*
 * One report ends both waits.  The one that runs first closes the descriptor,
 * and its number stands for something else when the reader runs, which must
 * not read from that.  (The kernel may have read for it from the old one.)
 */
ON_EACH_ENGINE(a_reader_that_was_woken_does_not_touch_the_new_file)
{
    AioContext *ctx = go_begin(engine);
    Call reader;
    Swap s;
    int fds[2];

    pair(fds);
    s = (Swap){.fd = fds[0]};
    reader = (Call){.fd = fds[0]};
    go(swap, &s);
    go(receive, &reader);
    CHECK_EQ(write(fds[1], "old", 3), 3);
    go_until(ctx, &s.done);
    go_until(ctx, &reader.done);
    CHECK(reader.result == -ECANCELED ||
          (reader.result == 1 && reader.byte == 'o'));
    CHECK_EQ(recv(s.again[0], &reader.byte, 1, MSG_DONTWAIT), 1);
    CHECK_EQ(reader.byte, 'x');
    close(fds[1]);
    close(s.again[0]);
    close(s.again[1]);
    go_end(ctx);
}

/* Take one byte, then do the same at once. */
static void coroutine_fn receive_and_swap(void *opaque)
{
    Swap *s = opaque;
    char byte;

    CHECK_EQ(co_recv(s->fd, &byte, 1, 0), 1);
    CHECK_EQ(co_close(s->fd), 0);
    pair(s->again);
    CHECK_EQ(s->again[0], s->fd);
    CHECK_EQ(write(s->again[1], "x", 1), 1);
    s->done = true;
}

/*
 * The second reader has been handed the turn, and has not run yet when the
 * first closes the descriptor.
 */
ON_EACH_ENGINE(a_reader_whose_turn_has_come_does_not_touch_the_new_file)
{
    AioContext *ctx = go_begin(engine);
    Call reader;
    Swap s;
    int fds[2];

    pair(fds);
    s = (Swap){.fd = fds[0]};
    reader = (Call){.fd = fds[0]};
    go(receive_and_swap, &s);
    go(receive, &reader);
    CHECK_EQ(write(fds[1], "o", 1), 1);
    go_until(ctx, &s.done);
    go_until(ctx, &reader.done);
    CHECK_EQ(reader.result, -ECANCELED);
    CHECK_EQ(recv(s.again[0], &reader.byte, 1, MSG_DONTWAIT), 1);
    CHECK_EQ(reader.byte, 'x');
    close(fds[1]);
    close(s.again[0]);
    close(s.again[1]);
    go_end(ctx);
}

static void coroutine_fn receive_elsewhere(void *opaque)
{
    Call *call = opaque;

    call->result = co_recv(call->fd, &call->byte, 1, 0);
    gate_open(&call->ended);
}

static void start_elsewhere(void *opaque)
{
    coroutine_enter(coroutine_create(receive_elsewhere, opaque));
}

ON_EACH_ENGINE(closing_ends_the_waits_of_two_contexts)
{
    AioContext *ctx;
    LoopThread loops[2];
    Call calls[4];
    int fds[2];

    CHECK_EQ(setenv("COAIO_ENGINE", engine, 1), 0);
    ctx = go_begin(engine);
    pair(fds);
    for (int i = 0; i < 2; i++) {
        loop_thread_start(&loops[i], "loop");
    }
    /* The first waits for readiness, the others for their turn. */
    for (int i = 0; i < 4; i++) {
        calls[i] = (Call){.fd = fds[0]};
        gate_init(&calls[i].ended);
        loop_call(loops[i % 2].ctx, start_elsewhere, &calls[i]);
    }
    CHECK_EQ(do_close(ctx, fds[0]), 0);
    for (int i = 0; i < 4; i++) {
        gate_pass(&calls[i].ended);
        CHECK_EQ(calls[i].result, -ECANCELED);
    }
    for (int i = 0; i < 2; i++) {
        loop_thread_stop(&loops[i]);
    }
    close(fds[1]);
    go_end(ctx);
}

/* Whose context has stopped never resumes, and holds nobody up. */
TEST(closing_does_not_wait_for_a_stopped_context)
{
    AioContext *ctx = go_begin(NULL);
    LoopThread loop;
    Call here, there;
    int fds[2];

    pair(fds);
    loop_thread_start(&loop, "loop");
    there = (Call){.fd = fds[0]};
    gate_init(&there.ended);
    loop_call(loop.ctx, start_elsewhere, &there);
    loop_thread_join(&loop);
    here = (Call){.fd = fds[0]};
    go(receive, &here);
    CHECK(!here.done);
    CHECK_EQ(do_close(ctx, fds[0]), 0);
    go_until(ctx, &here.done);
    CHECK_EQ(here.result, -ECANCELED);
    close(fds[1]);
    harness_allow_fds(2); /* of the context in which a coroutine was left */
    _exit(0);
}

/* --- what workers do ------------------------------------------------------*/

typedef struct Job {
    sem_t begun;
    sem_t go_on;
    ssize_t result;
    bool done;
    bool writes;
    IoFd *entry;
} Job;

static ssize_t block_until_told(void *opaque)
{
    Job *job = opaque;

    gate_open(&job->begun);
    gate_pass(&job->go_on);
    return 7;
}

static void coroutine_fn work(void *opaque)
{
    Job *job = opaque;

    IoUse use = job->entry ? io_use(job->entry) : (IoUse){NULL, 0};
    const IoUse *used = job->entry ? &use : NULL;

    job->result = job->writes
                      ? io_write_in_worker(used, block_until_told, job, "test")
                      : io_run_in_worker(used, block_until_told, job, "test");
    job->done = true;
}

static void job_init(Job *job, IoFd *entry)
{
    memset(job, 0, sizeof(*job));
    gate_init(&job->begun);
    gate_init(&job->go_on);
    job->entry = entry;
}

ON_EACH_ENGINE(closing_waits_for_what_a_worker_has_begun)
{
    AioContext *ctx = go_begin(engine);
    int fd = (int)syscall(SYS_memfd_create, "coaio-test", 1u);
    Call closer = {.fd = fd};
    Job job;

    job_init(&job, io_fd_get(fd));
    go(work, &job);
    gate_pass(&job.begun);
    go(close_it, &closer);
    go_settle(ctx);
    CHECK(!closer.done);
    CHECK(fcntl(fd, F_GETFD) >= 0);
    gate_open(&job.go_on);
    go_until(ctx, &closer.done);
    CHECK_EQ(closer.result, 0);
    go_until(ctx, &job.done);
    CHECK_EQ(job.result, 7);
    CHECK_EQ(fcntl(fd, F_GETFD), -1);
    go_end(ctx);
}

static int closes_of;   /* this number */
static unsigned closes; /* atomic */

static void record_closes(const OsRecord *r)
{
    if (r->begin && r->fd == closes_of && strcmp(r->call, "close") == 0) {
        fetch_add_relaxed(&closes, 1u);
    }
}

/* A file that a worker is to close. */
static int slow_file(void)
{
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);

    CHECK(fd >= 0);
    closes_of = fd;
    store_relaxed(&closes, 0);
    os_set_recorder(record_closes);
    return fd;
}

/*
 * What close(2) said was taken for the want of a worker, and the number closed
 * again, which another file may have by then.
 */
ON_EACH_ENGINE(a_close_that_fails_is_not_made_again)
{
    static const int errors[] = {ENOMEM, EAGAIN, EIO};
    AioContext *ctx = go_begin(engine);

    for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
        int fd = slow_file();

        os_fault_arm(1, errors[i], "close");
        CHECK_EQ(do_close(ctx, fd), -errors[i]);
        CHECK(os_fault_fired());
        CHECK_EQ(load_relaxed(&closes), 1);
        CHECK(worker_thread_count() > 0);
        CHECK_EQ(fcntl(fd, F_GETFD), -1);
    }
    os_set_recorder(NULL);
    go_end(ctx);
}

ON_EACH_ENGINE(without_a_worker_closing_closes)
{
    AioContext *ctx = go_begin(engine);
    int fd = slow_file();

    os_fault_arm(1, EAGAIN, "thread");
    CHECK_EQ(do_close(ctx, fd), 0);
    CHECK(os_fault_fired());
    CHECK_EQ(load_relaxed(&closes), 1);
    CHECK_EQ(fcntl(fd, F_GETFD), -1);
    os_set_recorder(NULL);
    go_end(ctx);
}

/* Whatever the number was when it was asked last. */
ON_EACH_ENGINE(a_number_that_became_a_file_is_closed_by_a_worker)
{
    AioContext *ctx = go_begin(engine);
    int fd = slow_file(), fds[2];
    OsFileKind kind;
    IoFd *entry;

    os_set_recorder(NULL);
    pair(fds);
    CHECK_EQ(io_fd_check(fds[0], &entry, &kind), 0);
    CHECK_EQ(io_fd_kind(entry), IO_KIND(OS_FILE_SOCKET));
    CHECK_EQ(dup3(fd, fds[0], O_CLOEXEC), fds[0]);
    CHECK_EQ(do_close(ctx, fds[0]), 0);
    CHECK_EQ(fcntl(fds[0], F_GETFD), -1);
    CHECK(worker_thread_count() > 0);
    close(fds[1]);
    close(fd);
    go_end(ctx);
}

static void coroutine_fn look_for_news(void *opaque)
{
    Call *call = opaque;

    call->result = co_poll_fd(call->fd, POLLPRI, -1);
    call->done = true;
}

/*
 * Until its close(2) has its worker a number is closing.  It was as new by
 * then: what began on it came after the close, when it may be another's.
 */
static void check_is_closing(AioContext *ctx, int fd)
{
    Call again = {.fd = fd}, looking = {.fd = fd};
    Job late;

    go(close_it, &again);
    CHECK(again.done);
    CHECK_EQ(again.result, -EBADF);
    job_init(&late, io_fd_get(fd));
    go(work, &late);
    go_until(ctx, &late.done);
    CHECK_EQ(late.result, -ECANCELED);
    go(look_for_news, &looking);
    CHECK(looking.done);
    CHECK_EQ(looking.result, -ECANCELED);
}

/* With all workers busy, what waits in the queue is taken back. */
ON_EACH_ENGINE(closing_takes_back_what_has_not_begun)
{
    AioContext *ctx = go_begin(engine);
    /* A file that has readiness, and never any news. */
    int fd = open("/proc/sys/kernel/hostname", O_RDONLY | O_CLOEXEC);
    int other = (int)syscall(SYS_memfd_create, "coaio-test", 1u);
    Call closing = {.fd = fd};
    Job busy[WORKER_MAX], queued;

    if (fd < 0) {
        SKIP("there is no /proc/sys");
    }
    for (int i = 0; i < WORKER_MAX; i++) {
        job_init(&busy[i], io_fd_get(other));
        go(work, &busy[i]);
        gate_pass(&busy[i].begun);
    }
    job_init(&queued, io_fd_get(fd));
    go(work, &queued);
    go(close_it, &closing);
    go_until(ctx, &queued.done);
    CHECK_EQ(queued.result, -ECANCELED);
    CHECK(!closing.done); /* it needs a worker for itself */
    check_is_closing(ctx, fd);
    for (int i = 0; i < WORKER_MAX; i++) {
        gate_open(&busy[i].go_on);
    }
    for (int i = 0; i < WORKER_MAX; i++) {
        go_until(ctx, &busy[i].done);
        CHECK_EQ(busy[i].result, 7);
    }
    go_until(ctx, &closing.done);
    CHECK_EQ(closing.result, 0);
    CHECK_EQ(do_close(ctx, other), 0);
    go_end(ctx);
}

/* What waits behind another write is, too, though there are idle workers. */
ON_EACH_ENGINE(closing_takes_back_writes_that_wait_for_another)
{
    AioContext *ctx = go_begin(engine);
    int fd = (int)syscall(SYS_memfd_create, "coaio-test", 1u);
    IoFd *entry = io_fd_get(fd);
    Call closer = {.fd = fd};
    Job first, queued[2];

    io_fd_learn(entry, IO_WRITES_EXCLUDE);
    worker_set_look_ns(INT64_C(1000000000000)); /* they do not leave */
    job_init(&first, entry);
    first.writes = true;
    go(work, &first);
    gate_pass(&first.begun);
    for (int i = 0; i < 2; i++) {
        job_init(&queued[i], entry);
        queued[i].writes = true;
        go(work, &queued[i]);
    }
    go(close_it, &closer);
    for (int i = 0; i < 2; i++) {
        go_until(ctx, &queued[i].done);
        CHECK_EQ(queued[i].result, -ECANCELED);
    }
    CHECK(!closer.done);
    gate_open(&first.go_on);
    go_until(ctx, &closer.done);
    CHECK_EQ(closer.result, 0);
    go_until(ctx, &first.done);
    CHECK_EQ(first.result, 7);
    go_end(ctx);
}

ON_EACH_ENGINE(two_who_close_at_once)
{
    AioContext *ctx = go_begin(engine);
    int fd = (int)syscall(SYS_memfd_create, "coaio-test", 1u);
    Call first = {.fd = fd}, second = {.fd = fd};
    Job job;

    job_init(&job, io_fd_get(fd));
    go(work, &job);
    gate_pass(&job.begun);
    go(close_it, &first);
    go(close_it, &second);
    CHECK(second.done);
    CHECK_EQ(second.result, -EBADF);
    gate_open(&job.go_on);
    go_until(ctx, &first.done);
    CHECK_EQ(first.result, 0);
    go_until(ctx, &job.done);
    go_end(ctx);
}

/* --- cancelling -----------------------------------------------------------*/

/* Before: it waits, and is told to stop. */
ON_EACH_ENGINE(a_wait_for_readiness_is_cancelled)
{
    AioContext *ctx = go_begin(engine);
    Call first, second;
    Coroutine *co;
    int fds[2];

    pair(fds);
    first = (Call){.fd = fds[0]};
    second = (Call){.fd = fds[0]};
    co = go(receive, &first);
    go(receive, &second);
    CHECK(co_wait_cancel(co, -ETIMEDOUT));
    go_until(ctx, &first.done);
    CHECK_EQ(first.result, -ETIMEDOUT);
    /* The turn went on to the second. */
    CHECK(!second.done);
    CHECK_EQ(write(fds[1], "2", 1), 1);
    go_until(ctx, &second.done);
    CHECK_EQ(second.byte, '2');
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

ON_EACH_ENGINE(a_wait_for_the_turn_is_cancelled)
{
    AioContext *ctx = go_begin(engine);
    Call calls[3];
    Coroutine *co[3];
    int fds[2];

    pair(fds);
    for (int i = 0; i < 3; i++) {
        calls[i] = (Call){.fd = fds[0]};
        co[i] = go(receive, &calls[i]);
    }
    CHECK(co_wait_cancel(co[1], -ECANCELED));
    CHECK(calls[1].done);
    CHECK_EQ(calls[1].result, -ECANCELED);
    CHECK_EQ(write(fds[1], "ab", 2), 2);
    go_until(ctx, &calls[2].done);
    CHECK_EQ(calls[0].byte, 'a');
    CHECK_EQ(calls[2].byte, 'b');
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

typedef struct Victim {
    Coroutine *co;
    bool cancelled;
} Victim;

static void cancel(void *opaque)
{
    Victim *victim = opaque;

    victim->cancelled = co_wait_cancel(victim->co, -ECANCELED);
}

/*
 * During: the completion is on its way when the cancellation comes.  Whichever
 * is first decides; no byte is lost.
 */
ON_EACH_ENGINE(cancelled_while_it_completes)
{
    AioContext *ctx = go_begin(engine);
    int fds[2];

    pair(fds);
    for (int i = 0; i < 20; i++) {
        Call call = {.fd = fds[0]};
        Victim victim;
        char byte;

        victim.co = go(receive, &call);
        CHECK_EQ(write(fds[1], "c", 1), 1);
        /* Posted work runs before what the descriptors report. */
        aio_bh_schedule_oneshot(ctx, cancel, &victim);
        go_until(ctx, &call.done);
        if (call.result == -ECANCELED) {
            CHECK(victim.cancelled);
            CHECK_EQ(recv(fds[0], &byte, 1, MSG_DONTWAIT), 1);
        } else {
            CHECK_EQ(call.result, 1);
        }
    }
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

static void coroutine_fn receive_then_yield(void *opaque)
{
    receive(opaque);
    coroutine_yield();
}

/* After: there is nothing to cancel. */
ON_EACH_ENGINE(cancelled_after_it_completed)
{
    AioContext *ctx = go_begin(engine);
    Call call;
    Coroutine *co;
    int fds[2];

    pair(fds);
    call = (Call){.fd = fds[0]};
    co = go(receive_then_yield, &call);
    CHECK_EQ(write(fds[1], "c", 1), 1);
    go_until(ctx, &call.done);
    CHECK_EQ(call.result, 1);
    CHECK(!co_wait_cancel(co, -ECANCELED));
    aio_co_wake(co);
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

/* A worker that uses the buffer is waited for, whoever cancels. */
ON_EACH_ENGINE(a_transfer_in_a_worker_ends_before_its_caller)
{
    AioContext *ctx = go_begin(engine);
    Coroutine *co;
    Job job;

    job_init(&job, NULL);
    co = go(work, &job);
    gate_pass(&job.begun);
    CHECK(co_wait_cancel(co, -ECANCELED));
    go_settle(ctx);
    CHECK(!job.done);
    gate_open(&job.go_on);
    go_until(ctx, &job.done);
    CHECK_EQ(job.result, 7);
    go_end(ctx);
}

ON_EACH_ENGINE(a_job_that_waits_for_a_worker_is_cancelled)
{
    AioContext *ctx = go_begin(engine);
    Job busy[WORKER_MAX], queued;
    Coroutine *co;

    for (int i = 0; i < WORKER_MAX; i++) {
        job_init(&busy[i], NULL);
        go(work, &busy[i]);
        gate_pass(&busy[i].begun);
    }
    job_init(&queued, NULL);
    co = go(work, &queued);
    CHECK(co_wait_cancel(co, -ETIMEDOUT));
    go_until(ctx, &queued.done);
    CHECK_EQ(queued.result, -ETIMEDOUT);
    for (int i = 0; i < WORKER_MAX; i++) {
        gate_open(&busy[i].go_on);
        go_until(ctx, &busy[i].done);
    }
    go_end(ctx);
}

static void coroutine_fn sleep_long(void *opaque)
{
    Call *call = opaque;

    call->result = co_sleep_ns(INT64_MAX);
    call->done = true;
}

static void coroutine_fn sleep_a_pass(void *opaque)
{
    Call *call = opaque;

    call->result = co_sleep_ns(0);
    call->done = true;
}

ON_EACH_ENGINE(a_sleep_is_cancelled)
{
    AioContext *ctx = go_begin(engine);
    Call call = {0};
    Coroutine *co = go(sleep_long, &call);

    CHECK(co_wait_cancel(co, -ECANCELED));
    CHECK(call.done);
    CHECK_EQ(call.result, -ECANCELED);
    CHECK(!aio_poll(ctx, false)); /* no timer is left */

    call = (Call){0};
    co = go(sleep_a_pass, &call);
    CHECK(co_wait_cancel(co, -ECANCELED));
    /* What was posted to the loop lies in its frame. */
    CHECK(!call.done);
    go_until(ctx, &call.done);
    CHECK_EQ(call.result, -ECANCELED);
    go_end(ctx);
}

ON_EACH_ENGINE(a_look_is_cancelled)
{
    AioContext *ctx = go_begin(engine);
    Call call;
    Coroutine *co;
    int fds[2];

    pair(fds);
    call = (Call){.fd = fds[0]};
    co = go(look, &call);
    CHECK(!call.done);
    CHECK(co_wait_cancel(co, -ECANCELED));
    CHECK_EQ(call.result, -ECANCELED);
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

TEST_MAIN()
