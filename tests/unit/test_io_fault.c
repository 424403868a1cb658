/* SPDX-License-Identifier: MIT */

/*
 * Each system call, allocation and thread that a transfer needs fails in turn:
 * the first, then the second, until none is left to fail.  Each time the calls
 * return (an error, or a result, where there is another way), nothing hangs
 * and nothing is lost; the harness looks for descriptors, LeakSanitizer and
 * Valgrind for memory.
 *
 * Then those that a signal may interrupt are interrupted: nobody notices.
 */

#include "go.h"
#include "nth.h"
#include "seccomp.h"

#include <coaio/io.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

typedef struct Scene {
    int fds[2];
    int file;
    size_t bytes;  /* to go through the pipe */
    unsigned ends; /* coroutines that have ended */
    bool over;     /* all of them */
    unsigned errors;
} Scene;

static void end_one(Scene *scene, unsigned all)
{
    scene->over = ++scene->ends == all;
}

static void count(Scene *scene, ssize_t result)
{
    scene->errors += result < 0;
}

typedef struct Play {
    CoroutineEntry *entries[3];
    void (*open)(Scene *scene);
    void (*close)(Scene *scene);
} Play;

/* The nth call of that name (NULL: of any) fails.  Creating coroutines is not
 * part of it: see test_fault_core.c. */
static bool play_once(const Play *play, const char *engine, int error,
                      uint64_t nth, const char *only)
{
    AioContext *ctx = go_begin(engine);
    Scene scene = {.fds = {-1, -1}, .file = -1};
    Coroutine *co[3];
    unsigned all = 0;
    bool fired;

    play->open(&scene);
    for (; all < 3 && play->entries[all]; all++) {
        co[all] = coroutine_create(play->entries[all], &scene);
    }
    os_fault_arm(nth, error, only);
    for (unsigned i = 0; i < all; i++) {
        coroutine_enter(co[i]);
    }
    go_until(ctx, &scene.over);
    fired = os_fault_fired();
    if (!fired || error == EINTR) {
        CHECK_EQ(scene.errors, 0);
    }
    play->close(&scene);
    go_end(ctx);
    return fired;
}

/* Returns how many calls could be made to fail. */
static uint64_t play_each(const Play *play, const char *engine, int error,
                          const char *only)
{
    uint64_t nth = 1;

    while (play_once(play, engine, error, nth, only)) {
        nth++;
        CHECK(nth < NTH_MOST);
    }
    return nth - 1;
}

static void play_all(const Play *play, const char *engine)
{
    static const char *const interruptible[] = {
        "readv",          "writev",      "preadv",     "pwritev",
        "recv",           "send",        "recvmsg",    "sendmsg",
        "accept",         "connect",     "fsync",      "fdatasync",
        "fallocate",      "statx",       "close",      "poll",
        "event_set",      "event_drain", "futex_wait", "epoll_wait",
        "io_uring_enter",
    };

    CHECK(play_each(play, engine, ENOMEM, NULL) > 0);
    CHECK(play_each(play, engine, EIO, NULL) > 0);
    for (unsigned i = 0; i < ARRAY_SIZE(interruptible); i++) {
        play_each(play, engine, EINTR, interruptible[i]);
    }
}

static void open_pair(Scene *scene)
{
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, scene->fds), 0);
}

static void open_pipe(Scene *scene)
{
    CHECK_EQ(pipe2(scene->fds, O_CLOEXEC), 0);
}

static void close_both(Scene *scene)
{
    close(scene->fds[0]);
    close(scene->fds[1]);
}

/* --- sockets --------------------------------------------------------------*/

static void coroutine_fn receive_byte(void *opaque)
{
    Scene *scene = opaque;
    char byte;

    count(scene, co_recv(scene->fds[0], &byte, 1, 0));
    end_one(scene, 3);
}

/* Whatever happens, those who wait are not left to wait. */
static void coroutine_fn send_bytes(void *opaque)
{
    Scene *scene = opaque;
    ssize_t n = co_send(scene->fds[1], "ab", 2, 0);

    count(scene, n);
    if (n < 2) {
        shutdown(scene->fds[1], SHUT_RDWR);
    }
    end_one(scene, 3);
}

ON_EACH_ENGINE(sockets)
{
    const Play play = {
        {receive_byte, receive_byte, send_bytes},
        open_pair,
        close_both,
    };

    play_all(&play, engine);
}

/* Not less than all without an error. */
static void coroutine_fn receive_four(void *opaque)
{
    Scene *scene = opaque;
    char bytes[4];
    ssize_t n = co_recv(scene->fds[0], bytes, sizeof(bytes), MSG_WAITALL);

    scene->errors += n != sizeof(bytes);
    end_one(scene, 2);
}

static void coroutine_fn send_twice(void *opaque)
{
    Scene *scene = opaque;

    for (int i = 0; i < 2; i++) {
        if (co_send(scene->fds[1], "ab", 2, 0) != 2) {
            scene->errors++;
            shutdown(scene->fds[1], SHUT_RDWR);
        }
        count(scene, co_sleep_ns(1000));
    }
    end_one(scene, 2);
}

ON_EACH_ENGINE(waiting_for_all)
{
    const Play play = {
        {receive_four, send_twice, NULL},
        open_pair,
        close_both,
    };

    play_all(&play, engine);
}

static struct msghdr message_of(struct iovec *iov, char *byte)
{
    *iov = (struct iovec){byte, 1};
    return (struct msghdr){.msg_iov = iov, .msg_iovlen = 1};
}

static void coroutine_fn receive_message(void *opaque)
{
    Scene *scene = opaque;
    char byte;
    struct iovec iov;
    struct msghdr msg = message_of(&iov, &byte);

    count(scene, co_recvmsg(scene->fds[0], &msg, 0));
    end_one(scene, 2);
}

static void coroutine_fn send_message(void *opaque)
{
    Scene *scene = opaque;
    char byte = 'a';
    struct iovec iov;
    struct msghdr msg = message_of(&iov, &byte);
    ssize_t n = co_sendmsg(scene->fds[1], &msg, 0);

    count(scene, n);
    if (n < 1) {
        shutdown(scene->fds[1], SHUT_RDWR);
    }
    end_one(scene, 2);
}

ON_EACH_ENGINE(messages)
{
    const Play play = {
        {receive_message, send_message, NULL},
        open_pair,
        close_both,
    };

    play_all(&play, engine);
}

/* --- pipes ----------------------------------------------------------------*/

static void coroutine_fn read_to_the_end(void *opaque)
{
    Scene *scene = opaque;
    char buf[4096];
    ssize_t n;

    while ((n = co_read(scene->fds[0], buf, sizeof(buf))) > 0) {
        /* on */
    }
    count(scene, n);
    /* The writer must not wait for room for ever. */
    close(scene->fds[0]);
    scene->fds[0] = -1;
    end_one(scene, 2);
}

static void coroutine_fn write_and_close(void *opaque)
{
    static char block[100000]; /* more than the pipe holds */
    Scene *scene = opaque;
    size_t done = 0;

    CHECK(scene->bytes <= sizeof(block));
    while (done < scene->bytes) {
        ssize_t n = co_write(scene->fds[1], block + done, scene->bytes - done);

        count(scene, n);
        if (n < 0) {
            break;
        }
        done += (size_t)n;
    }
    close(scene->fds[1]);
    scene->fds[1] = -1;
    end_one(scene, 2);
}

static void ignore_sigpipe(Scene *scene)
{
    struct sigaction ignore = {.sa_handler = SIG_IGN};

    CHECK_EQ(sigaction(SIGPIPE, &ignore, NULL), 0);
    open_pipe(scene);
    scene->bytes = 100000;
}

static void open_small_pipe(Scene *scene)
{
    ignore_sigpipe(scene);
    fcntl(scene->fds[0], F_SETPIPE_SZ, 4096);
    scene->bytes = 3 * 4096;
}

static void close_left(Scene *scene)
{
    for (int i = 0; i < 2; i++) {
        if (scene->fds[i] >= 0) {
            close(scene->fds[i]);
        }
    }
}

ON_EACH_ENGINE(pipes)
{
    const Play play = {
        {write_and_close, read_to_the_end, NULL},
        ignore_sigpipe,
        close_left,
    };

    play_all(&play, engine);
}

/* As terminals do: transfers are made by workers, PIPE_BUF bytes at a time. */
ON_EACH_ENGINE(pipes_where_nothing_knows_nowait)
{
    const Play play = {
        {write_and_close, read_to_the_end, NULL},
        open_small_pipe,
        close_left,
    };

    if (seccomp_refuse(SYS_preadv2, ENOSYS) ||
        seccomp_refuse(SYS_pwritev2, ENOSYS)) {
        SKIP("no seccomp here");
    }
    play_all(&play, engine);
}

/* --- files ----------------------------------------------------------------*/

static void open_file(Scene *scene)
{
    char path[] = "/var/tmp/coaio-test-XXXXXX";

    scene->file = mkostemp(path, O_CLOEXEC);
    CHECK(scene->file >= 0);
    unlink(path);
}

static void close_file(Scene *scene)
{
    if (scene->file >= 0) {
        close(scene->file);
    }
}

static void coroutine_fn use_file(void *opaque)
{
    Scene *scene = opaque;
    char buf[512] = "";

    count(scene, co_pwrite(scene->file, buf, sizeof(buf), 0));
    count(scene, co_pread(scene->file, buf, sizeof(buf), 0));
    count(scene, co_write(scene->file, buf, sizeof(buf)));
    count(scene, co_fdatasync(scene->file));
    count(scene, co_fallocate(scene->file, 0, 0, 4096));
    count(scene, co_fsync(scene->file));
    /* Closed in any case. */
    count(scene, co_close(scene->file));
    CHECK_EQ(fcntl(scene->file, F_GETFD), -1);
    scene->file = -1;
    end_one(scene, 1);
}

ON_EACH_ENGINE(files)
{
    const Play play = {{use_file, NULL, NULL}, open_file, close_file};

    play_all(&play, engine);
}

/* The thread itself does it all. */
TEST(files_without_a_home)
{
    static const int errors[] = {ENOMEM, EIO};

    for (unsigned e = 0; e < ARRAY_SIZE(errors); e++) {
        unsigned nth = 0;
        bool fired;

        do {
            Scene scene = {.fds = {-1, -1}};
            Coroutine *co = coroutine_create(use_file, &scene);

            open_file(&scene);
            os_fault_arm(++nth, errors[e], NULL);
            coroutine_enter(co);
            fired = os_fault_fired();
            CHECK(scene.over);
            CHECK(fired || scene.errors == 0);
            close_file(&scene);
        } while (fired);
        CHECK(nth > 7);
    }
}

static void open_memory_file(Scene *scene)
{
    scene->file = memfd_create("coaio-test", MFD_CLOEXEC);
    CHECK(scene->file >= 0);
}

ON_EACH_ENGINE(files_in_memory)
{
    const Play play = {{use_file, NULL, NULL}, open_memory_file, close_file};

    play_all(&play, engine);
}

/* --- connections ----------------------------------------------------------*/

static void listen_somewhere(Scene *scene)
{
    struct sockaddr_un any = {.sun_family = AF_UNIX};

    scene->fds[0] =
        socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    scene->fds[1] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* The kernel chooses a name. */
    CHECK_EQ(
        bind(scene->fds[0], (struct sockaddr *)&any, sizeof(any.sun_family)),
        0);
    CHECK_EQ(listen(scene->fds[0], 1), 0);
}

static void coroutine_fn accept_one(void *opaque)
{
    Scene *scene = opaque;
    int fd = co_accept(scene->fds[0], NULL, NULL, 0);

    count(scene, fd);
    if (fd >= 0) {
        count(scene, co_close(fd));
    }
    end_one(scene, 2);
}

static void coroutine_fn connect_one(void *opaque)
{
    Scene *scene = opaque;
    struct sockaddr_un name;
    socklen_t length = sizeof(name);
    int result;

    CHECK_EQ(getsockname(scene->fds[0], (struct sockaddr *)&name, &length), 0);
    result = co_connect(scene->fds[1], (struct sockaddr *)&name, length);
    count(scene, result);
    if (result < 0) {
        CHECK_EQ(connect(scene->fds[1], (struct sockaddr *)&name, length), 0);
    }
    end_one(scene, 2);
}

ON_EACH_ENGINE(connections)
{
    const Play play = {
        {accept_one, connect_one, NULL},
        listen_somewhere,
        close_both,
    };

    play_all(&play, engine);
}

/* Without workers; and the one who accepts asks first. */
static void listen_blocking(Scene *scene)
{
    listen_somewhere(scene);
    CHECK_EQ(fcntl(scene->fds[0], F_SETFL, 0), 0);
    CHECK_EQ(fcntl(scene->fds[1], F_SETFL, O_NONBLOCK), 0);
}

ON_EACH_ENGINE(nonblocking_connections)
{
    const Play play = {
        {accept_one, connect_one, NULL},
        listen_blocking,
        close_both,
    };

    play_all(&play, engine);
}

/* --- waiting and closing --------------------------------------------------*/

static void coroutine_fn look_and_sleep(void *opaque)
{
    Scene *scene = opaque;
    int result = co_poll_fd(scene->fds[0], POLLIN, 1000);

    scene->errors += result != -ETIMEDOUT;
    count(scene, co_sleep_ns(1000));
    count(scene, co_sleep_ns(0));
    end_one(scene, 3);
}

static void coroutine_fn receive_until_closed(void *opaque)
{
    Scene *scene = opaque;
    char byte;

    scene->errors += co_recv(scene->fds[0], &byte, 1, 0) != -ECANCELED;
    end_one(scene, 3);
}

static void coroutine_fn close_later(void *opaque)
{
    Scene *scene = opaque;

    count(scene, co_sleep_ns(100000));
    count(scene, co_close(scene->fds[0]));
    CHECK_EQ(fcntl(scene->fds[0], F_GETFD), -1);
    scene->fds[0] = -1;
    end_one(scene, 3);
}

ON_EACH_ENGINE(waits)
{
    const Play play = {
        {receive_until_closed, look_and_sleep, close_later},
        open_pair,
        close_left,
    };

    play_all(&play, engine);
}

TEST_MAIN()
