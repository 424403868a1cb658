/* SPDX-License-Identifier: MIT */

/*
 * co_accept and co_connect: TCP and UNIX, blocking and not.
 */

#include "go.h"
#include "io/io_int.h"
#include "loopthread.h"
#include "loop/wait.h"
#include "loop/worker.h"
#include "os/clock.h"
#include "os/fault.h"

#include <coaio/io.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

typedef struct Address {
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_un un;
    };
    socklen_t length;
} Address;

typedef struct End {
    int fd;
    Address address;
    int flags;
    int result;
    bool done;
} End;

static void coroutine_fn take(void *opaque)
{
    End *end = opaque;

    end->address.length = sizeof(end->address);
    end->result =
        co_accept(end->fd, &end->address.any, &end->address.length, end->flags);
    end->done = true;
}

static void coroutine_fn reach(void *opaque)
{
    End *end = opaque;

    end->result = co_connect(end->fd, &end->address.any, end->address.length);
    end->done = true;
}

/* A socket that is bound; *address is where. */
static int bound(int family, int flags, Address *address)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

    memset(address, 0, sizeof(*address));
    address->any.sa_family = (sa_family_t)family;
    address->length = sizeof(address->in);
    if (family == AF_INET) {
        address->in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    } else if (family == AF_INET6) {
        address->in6.sin6_addr = in6addr_loopback;
        address->length = sizeof(address->in6);
    } else {
        /* In the abstract name space: nothing to remove. */
        snprintf(address->un.sun_path + 1, sizeof(address->un.sun_path) - 1,
                 "coaio-test-%d", getpid());
        address->length = sizeof(address->un);
    }
    if (fd < 0 || bind(fd, &address->any, address->length)) {
        SKIP("this family of sockets does not work here");
    }
    address->length = sizeof(*address);
    CHECK_EQ(getsockname(fd, &address->any, &address->length), 0);
    return fd;
}

static int listening(int family, int flags, int backlog, Address *address)
{
    int fd = bound(family, flags, address);

    CHECK_EQ(listen(fd, backlog), 0);
    return fd;
}

/* What was sent, or who has connected, has come: over TCP that may be later. */
static void await_arrival(int fd)
{
    struct pollfd pollfd = {.fd = fd, .events = POLLIN};

    CHECK_EQ(poll(&pollfd, 1, -1), 1);
}

static int client(const Address *address, int flags)
{
    int fd =
        socket(address->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

    CHECK(fd >= 0);
    return fd;
}

/* Connect before and after the accept, and talk. */
static void meet(const char *engine, int family, int flags)
{
    AioContext *ctx = go_begin(engine);
    Address address;
    int fd = listening(family, flags, 8, &address);

    for (int round = 0; round < 4; round++) {
        End server = {.fd = fd, .flags = round & 1 ? SOCK_NONBLOCK : 0};
        End caller = {.fd = client(&address, flags), .address = address};
        char byte = 0;

        if (round & 2) {
            go(take, &server);
            CHECK(!server.done);
        }
        go(reach, &caller);
        go_until(ctx, &caller.done);
        CHECK_EQ(caller.result, 0);
        if (!(round & 2)) {
            go(take, &server);
        }
        go_until(ctx, &server.done);
        CHECK(server.result >= 0);
        CHECK_EQ(server.address.any.sa_family, family);
        CHECK(fcntl(server.result, F_GETFD) & FD_CLOEXEC);
        CHECK_EQ(!!(fcntl(server.result, F_GETFL) & O_NONBLOCK), round & 1);
        CHECK_EQ(fcntl(caller.fd, F_GETFL) & O_NONBLOCK, flags & O_NONBLOCK);
        CHECK_EQ(fcntl(fd, F_GETFL) & O_NONBLOCK, flags & O_NONBLOCK);

        CHECK_EQ(write(caller.fd, "!", 1), 1);
        await_arrival(server.result);
        CHECK_EQ(recv(server.result, &byte, 1, MSG_WAITALL), 1);
        CHECK_EQ(byte, '!');
        close(caller.fd);
        close(server.result);
    }
    close(fd);
    go_end(ctx);
}

ON_EACH_ENGINE(over_tcp_blocking)
{
    meet(engine, AF_INET, 0);
}

ON_EACH_ENGINE(over_tcp_nonblocking)
{
    meet(engine, AF_INET, SOCK_NONBLOCK);
}

ON_EACH_ENGINE(over_ipv6)
{
    meet(engine, AF_INET6, SOCK_NONBLOCK);
}

ON_EACH_ENGINE(over_unix_blocking)
{
    meet(engine, AF_UNIX, 0);
}

ON_EACH_ENGINE(over_unix_nonblocking)
{
    meet(engine, AF_UNIX, SOCK_NONBLOCK);
}

/* --- what may go wrong ----------------------------------------------------*/

static void refused(const char *engine, int family, int flags)
{
    AioContext *ctx = go_begin(engine);
    End caller = {0};
    /* Kept, lest somebody else listens there. */
    int fd = bound(family, 0, &caller.address);

    caller.fd = client(&caller.address, flags);
    go(reach, &caller);
    go_until(ctx, &caller.done);
    CHECK_EQ(caller.result, -ECONNREFUSED);
    close(caller.fd);
    close(fd);
    go_end(ctx);
}

ON_EACH_ENGINE(a_refused_connection)
{
    refused(engine, AF_INET, 0);
}

ON_EACH_ENGINE(a_refused_nonblocking_connection)
{
    refused(engine, AF_INET, SOCK_NONBLOCK);
}

ON_EACH_ENGINE(a_refused_unix_connection)
{
    refused(engine, AF_UNIX, SOCK_NONBLOCK);
}

ON_EACH_ENGINE(connecting_twice_is_eisconn)
{
    AioContext *ctx = go_begin(engine);
    End caller = {0};
    int fd = listening(AF_INET, 0, 1, &caller.address);

    caller.fd = client(&caller.address, SOCK_NONBLOCK);
    go(reach, &caller);
    go_until(ctx, &caller.done);
    CHECK_EQ(caller.result, 0);
    caller.done = false;
    go(reach, &caller);
    go_until(ctx, &caller.done);
    CHECK_EQ(caller.result, -EISCONN);
    close(caller.fd);
    close(fd);
    go_end(ctx);
}

static int accept_from(AioContext *ctx, int fd)
{
    End server = {.fd = fd};

    go(take, &server);
    go_until(ctx, &server.done);
    return server.result;
}

/* With nothing to be read there, it waited for ever. */
ON_EACH_ENGINE(accepting_from_what_never_has_a_connection)
{
    AioContext *ctx = go_begin(engine);
    int fds[2];

    for (int flags = 0; flags <= O_NONBLOCK; flags += O_NONBLOCK) {
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | flags, 0, fds), 0);
        CHECK_EQ(accept_from(ctx, fds[0]), -EINVAL);
        close(fds[0]);
        close(fds[1]);
        CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM | flags, 0, fds), 0);
        CHECK_EQ(accept_from(ctx, fds[0]), -EOPNOTSUPP);
        close(fds[0]);
        close(fds[1]);
        fds[0] = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | flags, 0);
        if (fds[0] >= 0) { /* of which is not known who listens */
            CHECK_EQ(accept_from(ctx, fds[0]), -EOPNOTSUPP);
            close(fds[0]);
        }
        CHECK_EQ(pipe2(fds, flags), 0);
        CHECK_EQ(accept_from(ctx, fds[0]), -ENOTSOCK);
        close(fds[0]);
        close(fds[1]);
    }
    go_end(ctx);
}

ON_EACH_ENGINE(accepting_from_what_does_not_listen)
{
    AioContext *ctx = go_begin(engine);
    int fds[2];

    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_EQ(write(fds[1], "x", 1), 1);
    for (int i = 0; i < 2; i++) {
        End server = {.fd = fds[0]};

        if (i) {
            fcntl(fds[0], F_SETFL, O_NONBLOCK);
        }
        go(take, &server);
        go_until(ctx, &server.done);
        CHECK_EQ(server.result, -EINVAL);
    }
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

TEST(failures_of_accept_are_passed_on)
{
    AioContext *ctx = go_begin(NULL);
    Address address;
    int fd = listening(AF_UNIX, SOCK_NONBLOCK, 8, &address);
    End caller = {.fd = client(&address, 0), .address = address};
    End server = {.fd = fd};

    go(reach, &caller);
    go_until(ctx, &caller.done);
    os_fault_arm(1, EMFILE, "accept");
    go(take, &server);
    CHECK(server.done);
    CHECK_EQ(server.result, -EMFILE);
    CHECK(os_fault_fired());
    os_fault_arm(1, EINTR, "accept");
    go(take, &server);
    CHECK(server.result >= 0);
    CHECK(os_fault_fired());
    close(server.result);
    close(caller.fd);
    close(fd);
    go_end(ctx);
}

/*
 * A UNIX socket that is interrupted has begun nothing.  It was ready, and had
 * no error: that was taken for a connection.
 */
ON_EACH_ENGINE(an_interrupted_attempt_is_made_again)
{
    AioContext *ctx = go_begin(engine);
    Address address;
    int fd = listening(AF_UNIX, 0, 1, &address);
    End caller = {.fd = client(&address, 0), .address = address};

    os_fault_arm(1, EINTR, "connect");
    go(reach, &caller);
    go_until(ctx, &caller.done);
    CHECK(os_fault_fired());
    CHECK_EQ(caller.result, 0);
    address.length = sizeof(address);
    CHECK_EQ(getpeername(caller.fd, &address.any, &address.length), 0);
    close(caller.fd);
    close(fd);
    go_end(ctx);
}

/* The same of one that does not block: it was said to be connected. */
ON_EACH_ENGINE(an_interrupted_attempt_may_be_refused)
{
    AioContext *ctx = go_begin(engine);
    End caller = {0};

    close(listening(AF_UNIX, 0, 1, &caller.address));
    caller.fd = client(&caller.address, SOCK_NONBLOCK);
    os_fault_arm(1, EINTR, "connect");
    go(reach, &caller);
    go_until(ctx, &caller.done);
    CHECK(os_fault_fired());
    CHECK_EQ(caller.result, -ECONNREFUSED);
    close(caller.fd);
    go_end(ctx);
}

/* An interrupted attempt that has begun, or is done, is not another one. */
ON_EACH_ENGINE(an_interrupted_attempt_that_has_begun_goes_on)
{
    AioContext *ctx = go_begin(engine);
    End caller = {0};
    int fd = listening(AF_INET, 0, 1, &caller.address);

    for (int blocking = 0; blocking < 2; blocking++) {
        caller.fd = client(&caller.address, SOCK_NONBLOCK);
        CHECK_EQ(connect(caller.fd, &caller.address.any,
                         caller.address.length),
                 -1);
        CHECK_EQ(errno, EINPROGRESS);
        if (blocking) {
            CHECK_EQ(fcntl(caller.fd, F_SETFL, 0), 0);
        }
        caller.done = false;
        os_fault_arm(1, EINTR, "connect");
        go(reach, &caller);
        go_until(ctx, &caller.done);
        CHECK(os_fault_fired());
        CHECK_EQ(caller.result, 0);
        close(caller.fd);
    }
    close(fd);
    go_end(ctx);
}

/* Not EINPROGRESS, for one. */
ON_EACH_ENGINE(whether_it_blocks_cannot_be_found_out)
{
    AioContext *ctx = go_begin(engine);
    Address address;
    int fd = listening(AF_INET, SOCK_NONBLOCK, 8, &address);
    End caller = {.fd = client(&address, SOCK_NONBLOCK), .address = address};
    End server = {.fd = fd};

    os_fault_arm(1, EACCES, "fcntl");
    go(reach, &caller);
    CHECK(caller.done);
    CHECK_EQ(caller.result, -EACCES);
    os_fault_arm(1, EACCES, "fcntl");
    go(take, &server);
    CHECK(server.done);
    CHECK_EQ(server.result, -EACCES);
    CHECK(os_fault_fired());
    close(caller.fd);
    close(fd);
    go_end(ctx);
}

ON_EACH_ENGINE(whether_it_listens_cannot_be_found_out)
{
    AioContext *ctx = go_begin(engine);
    int fds[2];

    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    for (uint64_t nth = 1; nth <= 3; nth++) { /* type, listens, family */
        os_fault_arm(nth, EACCES, "getsockopt");
        CHECK_EQ(accept_from(ctx, fds[0]), -EACCES);
        CHECK(os_fault_fired());
    }
    close(fds[0]);
    close(fds[1]);
    go_end(ctx);
}

/* --- a peer that is slow to accept ----------------------------------------*/

/*
 * The queue of a UNIX socket is full: connect(2) says EAGAIN there, and
 * nothing tells when there is room.
 */
static void wait_for_room(const char *engine, int flags)
{
    enum {
        CALLERS = 5
    };
    AioContext *ctx = go_begin(engine);
    End callers[CALLERS];
    Address address;
    int fd = listening(AF_UNIX, SOCK_NONBLOCK, 0, &address);
    unsigned connected = 0;

    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (End){.fd = client(&address, flags), .address = address};
        go(reach, &callers[i]);
    }
    go_settle(ctx);
    for (int i = 0; i < CALLERS; i++) {
        connected += callers[i].done;
    }
    CHECK(connected < CALLERS);
    for (int i = 0; i < CALLERS; i++) {
        End server = {.fd = fd};

        go(take, &server);
        go_until(ctx, &server.done);
        CHECK(server.result >= 0);
        close(server.result);
    }
    for (int i = 0; i < CALLERS; i++) {
        go_until(ctx, &callers[i].done);
        CHECK_EQ(callers[i].result, 0);
        close(callers[i].fd);
    }
    close(fd);
    go_end(ctx);
}

ON_EACH_ENGINE(a_full_queue_is_waited_for)
{
    wait_for_room(engine, SOCK_NONBLOCK);
}

ON_EACH_ENGINE(a_full_queue_blocks_a_worker)
{
    wait_for_room(engine, 0);
}

static void *accept_after_a_while(void *arg)
{
    const struct timespec while_ns = {.tv_nsec = 50 * 1000 * 1000};
    int *fd = arg;

    nanosleep(&while_ns, NULL);
    close(accept(*fd, NULL, NULL));
    return NULL;
}

/* It tried again and again, as the socket is ready all the time. */
TEST(a_full_queue_is_not_spun_on_without_a_home)
{
    Address address;
    int fd = listening(AF_UNIX, 0, 0, &address);
    int first = client(&address, 0);
    End caller = {.fd = client(&address, SOCK_NONBLOCK), .address = address};
    uint64_t calls, most = 200;
    int64_t begin = os_clock_monotonic_ns();
    pthread_t thread;

    CHECK_EQ(connect(first, &address.any, address.length), 0);
    CHECK_EQ(pthread_create(&thread, NULL, accept_after_a_while, &fd), 0);
    calls = os_counter(OS_COUNT_SYSCALLS);
    go(reach, &caller);
    CHECK(caller.done);
    CHECK_EQ(caller.result, 0);
    /* And more if the other thread is late: four in 32 ms, at the end. */
    most += (uint64_t)(os_clock_monotonic_ns() - begin) / 4000000;
    CHECK(os_counter(OS_COUNT_SYSCALLS) - calls < most);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    close(first);
    close(caller.fd);
    close(fd);
}

ON_EACH_ENGINE(several_accept_in_order)
{
    enum {
        SERVERS = 5
    };
    AioContext *ctx = go_begin(engine);
    End servers[SERVERS];
    Address address;
    int fd = listening(AF_INET, 0, SERVERS, &address);

    for (int i = 0; i < SERVERS; i++) {
        servers[i] = (End){.fd = fd};
        go(take, &servers[i]);
    }
    for (int i = 0; i < SERVERS; i++) {
        End caller = {.fd = client(&address, SOCK_NONBLOCK),
                      .address = address};

        go(reach, &caller);
        go_until(ctx, &caller.done);
        go_until(ctx, &servers[i].done);
        for (int j = i + 1; j < SERVERS; j++) {
            CHECK(!servers[j].done);
        }
        close(servers[i].result);
        close(caller.fd);
    }
    close(fd);
    go_end(ctx);
}

static int accepting; /* atomic; threads that are about to call accept(2) */

/* Wait for the other one, if it comes. */
static void meet_at_accept(const OsRecord *r)
{
    const struct timespec ms = {.tv_nsec = 1000000};

    if (r->begin && strcmp(r->call, "accept") == 0) {
        fetch_add_relaxed(&accepting, 1);
        for (int i = 0; i < 300 && load_relaxed(&accepting) < 2; i++) {
            nanosleep(&ms, NULL);
        }
    }
}

static void take_there(void *end)
{
    go(take, end);
}

static void nothing(void *opaque)
{
    (void)opaque;
}

typedef struct Rescue {
    const Address *address;
    sem_t over;
    bool made;
} Rescue;

static void *connect_in_the_end(void *opaque)
{
    Rescue *rescue = opaque;
    struct timespec end;

    CHECK_EQ(clock_gettime(CLOCK_REALTIME, &end), 0);
    end.tv_sec += 20;
    while (sem_timedwait(&rescue->over, &end) < 0 && !rescue->made) {
        rescue->made = errno == ETIMEDOUT;
        if (rescue->made) {
            CHECK_EQ(connect(client(rescue->address, 0), &rescue->address->any,
                             rescue->address->length),
                     0);
        }
    }
    return NULL;
}

static void coroutine_fn shut(void *opaque)
{
    End *end = opaque;

    end->result = co_close(end->fd);
    end->done = true;
}

/* Both saw the one connection, and the second one blocked its whole loop. */
ON_EACH_ENGINE(two_contexts_accept_from_one_that_blocks)
{
    AioContext *ctx = go_begin(engine);
    LoopThread loop;
    Address address;
    Rescue rescue = {.address = &address};
    int fd = listening(AF_INET, 0, 5, &address);
    int caller = client(&address, 0);
    End here = {.fd = fd}, there = {.fd = fd}, closing = {.fd = fd};
    pthread_t thread;

    CHECK_EQ(sem_init(&rescue.over, 0, 0), 0);
    CHECK_EQ(setenv("COAIO_ENGINE", engine, 1), 0);
    loop_thread_start(&loop, "loop");
    CHECK_EQ(connect(caller, &address.any, address.length), 0);
    CHECK_EQ(pthread_create(&thread, NULL, connect_in_the_end, &rescue), 0);
    os_set_recorder(meet_at_accept);
    aio_bh_schedule_oneshot(loop.ctx, take_there, &there);
    go(take, &here);
    loop_call(loop.ctx, nothing, NULL);
    os_set_recorder(NULL);
    sem_post(&rescue.over);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK(!rescue.made);
    go(shut, &closing);
    go_until(ctx, &closing.done);
    loop_call(loop.ctx, nothing, NULL);
    go_settle(ctx);
    CHECK(here.done && there.done);
    CHECK_EQ(here.result < 0 ? here.result : there.result, -ECANCELED);
    close(here.result < 0 ? there.result : here.result);
    close(caller);
    loop_thread_stop(&loop);
    sem_destroy(&rescue.over);
    go_end(ctx);
}

typedef struct Reader {
    int fd;
    char byte;
    ssize_t result;
    bool done;
} Reader;

static void coroutine_fn receive(void *opaque)
{
    Reader *reader = opaque;

    reader->result = co_recv(reader->fd, &reader->byte, 1, 0);
    reader->done = true;
}

/* A number that was closed by other means, under one who waits on it. */
ON_EACH_ENGINE(an_accepted_number_starts_afresh)
{
    AioContext *ctx = go_begin(engine);
    Address address;
    int fd = listening(AF_UNIX, SOCK_NONBLOCK, 8, &address);
    End caller = {.fd = client(&address, 0), .address = address};
    End server = {.fd = fd};
    Reader old = {0}, new = {0};
    int fds[2];

    go(reach, &caller);
    go_until(ctx, &caller.done);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    old.fd = fds[0];
    go(receive, &old);
    CHECK(!old.done);
    close(fds[0]);

    go(take, &server);
    CHECK(server.done);
    CHECK_EQ(server.result, fds[0]);
    go_until(ctx, &old.done);
    CHECK_EQ(old.result, -ECANCELED);
    new.fd = server.result;
    go(receive, &new);
    CHECK(!new.done);
    CHECK_EQ(write(caller.fd, "n", 1), 1);
    go_until(ctx, &new.done);
    CHECK_EQ(new.byte, 'n');
    close(fds[1]);
    close(server.result);
    close(caller.fd);
    close(fd);
    go_end(ctx);
}

/* --- a peer that never answers --------------------------------------------*/

static void coroutine_fn close_it(void *opaque)
{
    Reader *closer = opaque;

    closer->result = co_close(closer->fd);
    closer->done = true;
}

/* Give a socket a number that is known to have been a file. */
static int renumber(int fd)
{
    int number = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    OsFileKind kind;
    IoFd *entry;

    CHECK_EQ(io_fd_check(number, &entry, &kind), 0);
    CHECK(kind == OS_FILE_REGULAR || kind == OS_FILE_MEMORY);
    CHECK_EQ(dup3(fd, number, O_CLOEXEC), number);
    close(fd);
    return number;
}

/*
 * The queue of a TCP listener is full, so that the kernel drops what asks to
 * be let in, and asks again for minutes.
 */
static void cut_short(const char *engine, int flags, const char *fails,
                      bool was_file)
{
    enum {
        MOST = 16
    };
    AioContext *ctx = go_begin(engine);
    Address address;
    int fd = listening(AF_INET, 0, 0, &address);
    int filling[MOST];
    End caller = {.address = address};
    Reader closer = {0};

    for (int i = 0; i < MOST; i++) {
        filling[i] = client(&address, SOCK_NONBLOCK);
        connect(filling[i], &address.any, address.length);
        if (i == 0) {
            await_arrival(fd); /* so the others find no room */
        }
    }
    caller.fd = client(&address, flags);
    if (was_file) {
        caller.fd = renumber(caller.fd);
    }
    go(reach, &caller);
    go_settle(ctx);
    if (caller.done) {
        SKIP("the queue of a listener has no end here");
    }
    closer.fd = caller.fd;
    while ((fails || was_file) &&
           load_acquire(&io_fd_find(caller.fd)->running) == 0) {
        sched_yield(); /* the worker has not begun */
    }
    os_fault_arm(fails != NULL, EACCES, fails);
    go(close_it, &closer);
    go_until(ctx, &closer.done);
    CHECK_EQ(os_fault_fired(), fails != NULL);
    CHECK_EQ(closer.result, 0);
    go_until(ctx, &caller.done);
    CHECK_EQ(caller.result, -ECANCELED);
    for (int i = 0; i < MOST; i++) {
        close(filling[i]);
    }
    close(fd);
    go_end(ctx);
}

ON_EACH_ENGINE(closing_ends_a_connection_attempt)
{
    cut_short(engine, SOCK_NONBLOCK, NULL, false);
}

ON_EACH_ENGINE(closing_ends_a_connection_attempt_in_a_worker)
{
    cut_short(engine, 0, NULL, false);
}

ON_EACH_ENGINE(closing_ends_it_though_a_shutdown_fails)
{
    cut_short(engine, 0, "shutdown", false);
}

/* What was known of the number was believed: there seemed to be no attempt that
 * could be cut short, and closing lasted as long as it did. */
ON_EACH_ENGINE(closing_ends_it_whatever_the_number_was_before)
{
    cut_short(engine, 0, NULL, true);
}

/* --- without a home -------------------------------------------------------*/

static End homeless_server, homeless_caller;

TEST(without_a_home_the_thread_blocks)
{
    homeless_server.fd =
        listening(AF_INET, SOCK_NONBLOCK, 8, &homeless_caller.address);
    homeless_caller.fd = client(&homeless_caller.address, 0);
    go(reach, &homeless_caller);
    CHECK(homeless_caller.done);
    CHECK_EQ(homeless_caller.result, 0);
    go(take, &homeless_server);
    CHECK(homeless_server.done);
    CHECK(homeless_server.result >= 0);
    close(homeless_server.result);
    close(homeless_server.fd);
    close(homeless_caller.fd);
    CHECK_EQ(worker_thread_count(), 0);
}

TEST_MAIN()
