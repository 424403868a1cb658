/* SPDX-License-Identifier: MIT */
/*
 * The io_uring engine: choosing it, and what takes its place where it is
 * refused, at once or later.
 */
#include "engines.h"
#include "go.h"
#include "loop/context.h"
#include "loop/fd_int.h"
#include "os/fault.h"
#include "os/valgrind.h"
#include "seccomp.h"
#include "watch.h"

#include <coaio/bh.h>
#include <coaio/fd.h>
#include <coaio/io.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void nothing(void *opaque)
{
    (void)opaque;
}

/* Skip the case where io_uring is not what nobody's wish means. */
static void needs_best_uring(void)
{
    needs_uring();
#ifdef COAIO_HAVE_URING
    OsUring *ring;
    int ret = os_uring_open(&ring, OS_URING_BEST);

    if (ret == -EOPNOTSUPP) {
        SKIP("the kernel has not all of io_uring that the default asks for");
    }
    CHECK_EQ(ret, 0);
    os_uring_close(ring);
#endif
}

/* --- choosing it ----------------------------------------------------------*/

TEST(it_goes_by_two_names)
{
    static const char *const names[] = {"uring", "io_uring"};

    needs_uring();
    for (int i = 0; i < 2; i++) {
        AioContextOptions options = {
            .size = sizeof(options),
            .engine = names[i],
        };

        CHECK_EQ(aio_context_new(&ctx, &options), 0);
        CHECK_STR(aio_context_engine(ctx), "uring");
        aio_context_unref(ctx);
        CHECK_EQ(setenv("COAIO_ENGINE", names[i], 1), 0);
        ctx = context_on(NULL);
        CHECK_STR(aio_context_engine(ctx), "uring");
        aio_context_unref(ctx);
    }
}

/* No wish means "auto". */
TEST(it_is_the_default)
{
    AioContextOptions options = {.size = sizeof(options), .engine = "auto"};
    AioContext *best;

    needs_uring();
    CHECK_EQ(aio_context_new(&best, &options), 0);
    unsetenv("COAIO_ENGINE");
    ctx = context_on(NULL);
    CHECK_STR(aio_context_engine(ctx), aio_context_engine(best));
    aio_context_unref(ctx);
    CHECK_EQ(setenv("COAIO_ENGINE", "", 1), 0);
    ctx = context_on(NULL);
    CHECK_STR(aio_context_engine(ctx), aio_context_engine(best));
    aio_context_unref(ctx);
    aio_context_unref(best);
}

/* What is printed while standard error goes to a pipe. */
static void capture(int saved[2])
{
    int fds[2];

    CHECK_EQ(pipe2(fds, O_NONBLOCK), 0);
    saved[0] = fds[0];
    saved[1] = dup(STDERR_FILENO);
    CHECK(dup2(fds[1], STDERR_FILENO) >= 0);
    close(fds[1]);
}

static void release(const int saved[2], char *text, size_t size)
{
    ssize_t n = read(saved[0], text, size - 1);

    CHECK(dup2(saved[1], STDERR_FILENO) >= 0);
    close(saved[0]);
    close(saved[1]);
    text[n > 0 ? n : 0] = '\0';
}

static unsigned lines(const char *text)
{
    unsigned n = 0;

    for (; *text; text++) {
        n += *text == '\n';
    }
    return n;
}

/* In place of it there is another engine, and one line that says why. */
static void check_replaced(const char *why)
{
    AioContextOptions options = {.size = sizeof(options), .engine = "uring"};
    char text[1000];
    int saved[2];

    CHECK_EQ(setenv("COAIO_ENGINE", "uring", 1), 0);
    capture(saved);
    for (int i = 0; i < 3; i++) {
        ctx = context_on(NULL);
        CHECK_STR(aio_context_engine(ctx), "epoll");
        aio_bh_schedule_oneshot(ctx, nothing, NULL);
        CHECK(aio_poll(ctx, true));
        aio_context_unref(ctx);
    }
    release(saved, text, sizeof(text));
    CHECK_EQ(lines(text), 1);
    CHECK(strstr(text, "io_uring") != NULL);
    CHECK(strstr(text, why) != NULL);
    CHECK_EQ(aio_context_new(&ctx, &options), -ENOSYS);
}

static void refuse(int call, int error)
{
    if (seccomp_refuse(call, error)) {
        SKIP("no seccomp filters here");
    }
}

#ifdef COAIO_HAVE_URING
#define FORBIDDEN "forbids it"
#define MISSING   "the kernel has none"
#else
#define FORBIDDEN "built without it"
#define MISSING   "built without it"
#endif

TEST(where_it_is_forbidden_another_takes_its_place)
{
    refuse(SYS_io_uring_setup, EPERM);
    check_replaced(FORBIDDEN);
}

TEST(where_the_kernel_has_none_another_takes_its_place)
{
    refuse(SYS_io_uring_setup, ENOSYS);
    check_replaced(MISSING);
}

TEST(where_half_of_it_is_forbidden_another_takes_its_place)
{
    needs_uring();
    refuse(SYS_io_uring_register, EACCES);
    check_replaced(FORBIDDEN);
}

/* As where RLIMIT_MEMLOCK is too low, on kernels that go by it. */
TEST(where_there_is_no_memory_for_it_another_takes_its_place)
{
    AioContextOptions options = {.size = sizeof(options), .engine = "uring"};

    needs_uring();
    CHECK_EQ(setenv("COAIO_ENGINE", "uring", 1), 0);
    os_fault_arm(1, ENOMEM, "io_uring_setup");
    ctx = context_on(NULL);
    CHECK(os_fault_fired());
    CHECK_STR(aio_context_engine(ctx), "epoll");
    aio_context_unref(ctx);
    os_fault_arm(1, ENOMEM, "io_uring_setup");
    CHECK_EQ(aio_context_new(&ctx, &options), -ENOMEM);
    CHECK(os_fault_fired());
    os_fault_arm(1, EMFILE, "io_uring_setup");
    CHECK_EQ(aio_context_new(&ctx, NULL), -EMFILE);
    CHECK(os_fault_fired());
}

#ifdef COAIO_HAVE_URING
TEST(a_setting_that_is_not_told_is_not_there)
{
    int setting = os_uring_disabled();

    CHECK(setting >= -1 && setting <= 2);
    os_fault_arm(1, EMFILE, "open");
    CHECK_EQ(os_uring_disabled(), -1);
    CHECK(os_fault_fired());
    CHECK_EQ(os_uring_disabled(), setting);
}
#endif

/* --- the best that works ---------------------------------------------------*/

static void check_works(const char *engine)
{
    unsigned ran = 0;
    int fds[2];

    CHECK_STR(aio_context_engine(ctx), engine);
    open_pair(fds);
    watch(fds[0], count, NULL, &ran);
    poke(fds[1]);
    while (ran == 0) {
        aio_poll(ctx, true);
    }
    unwatch(fds[0]);
    close_pair(fds);
}

TEST(auto_is_io_uring_where_that_works)
{
    AioContextOptions options = {.size = sizeof(options), .engine = "auto"};

    needs_best_uring();
    as_usual_on_uring();
    unsetenv("COAIO_ENGINE");
    ctx = context_on(NULL);
    CHECK_STR(aio_context_engine(ctx), "uring");
    aio_context_unref(ctx);
    CHECK_EQ(setenv("COAIO_ENGINE", "auto", 1), 0);
    ctx = context_on(NULL);
    aio_context_attach(ctx);
    check_works("uring");
    aio_context_unref(ctx);
    CHECK_EQ(setenv("COAIO_ENGINE", "poll", 1), 0);
    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    CHECK_STR(aio_context_engine(ctx), "uring");
    aio_context_unref(ctx);
    if (os_in_valgrind()) {
        return; /* where the half of it is what works */
    }
    /* As on a kernel that has half of it. */
    CHECK_EQ(setenv("COAIO_URING_WITHOUT", "defer", 1), 0);
    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    CHECK_STR(aio_context_engine(ctx), "epoll");
    aio_context_unref(ctx);
}

static void check_auto_refused(const char *wish, int call, int error,
                               const char *why)
{
    char text[1000];
    int saved[2];

    needs_uring();
    as_usual_on_uring();
    CHECK_EQ(setenv("COAIO_ENGINE", wish, 1), 0);
    refuse(call, error);
    capture(saved);
    for (int i = 0; i < 3; i++) {
        ctx = context_on(NULL);
        aio_context_attach(ctx);
        check_works("epoll");
        aio_context_unref(ctx);
    }
    release(saved, text, sizeof(text));
    CHECK_EQ(lines(text), 1);
    CHECK(strstr(text, why) != NULL);
    CHECK(strstr(text, "COAIO_ENGINE=epoll") != NULL);
}

TEST(auto_says_that_it_is_forbidden)
{
    check_auto_refused("auto", SYS_io_uring_setup, EPERM, "forbids it");
}

TEST(the_default_says_that_it_is_forbidden)
{
    check_auto_refused("", SYS_io_uring_setup, EPERM, "forbids it");
}

TEST(auto_says_that_there_is_none)
{
    check_auto_refused("auto", SYS_io_uring_setup, ENOSYS,
                       "the kernel has none");
}

TEST(auto_finds_that_it_may_not_enter)
{
    check_auto_refused("auto", SYS_io_uring_enter, EPERM, "forbids it");
}

/* One context that gets no ring does without; those beside it have theirs. */
TEST(one_ring_that_fails_concerns_one_context)
{
    static const char *const expected[] = {"uring", "epoll", "uring"};
    char text[1000];
    int saved[2];

    needs_best_uring();
    as_usual_on_uring();
    CHECK_EQ(setenv("COAIO_ENGINE", "auto", 1), 0);
    os_fault_arm(2, ENOMEM, "io_uring_setup");
    capture(saved);
    for (int i = 0; i < 3; i++) {
        ctx = context_on(NULL);
        CHECK_STR(aio_context_engine(ctx), expected[i]);
        aio_context_unref(ctx);
    }
    release(saved, text, sizeof(text));
    CHECK(os_fault_fired());
    CHECK_EQ(lines(text), 1);
    CHECK(strstr(text, "RLIMIT_MEMLOCK") != NULL);
}

/* A sandbox that is closed when the context is there, before it is used and
 * while it is. */
TEST(where_it_is_forbidden_later_another_takes_its_place)
{
    /* In Valgrind completions come without a call for them. */
    int n = os_in_valgrind() ? 1 : 2;
    unsigned ran = 0;
    int fds[2];

    for (int used = 0; used < n; used++) {
        needs_best_uring();
        as_usual_on_uring();
        CHECK_EQ(setenv("COAIO_ENGINE", "auto", 1), 0);
        ctx = context_on(NULL);
        CHECK_STR(aio_context_engine(ctx), "uring");
        open_pair(fds);
        watch(fds[0], count, NULL, &ran);
        if (used) {
            aio_context_attach(ctx);
            aio_poll(ctx, false);
        }
        os_fault_arm(1, EPERM, "io_uring_enter");
        poke(fds[1]);
        ran = 0;
        while (ran == 0) {
            aio_poll(ctx, true);
        }
        CHECK(os_fault_fired());
        check_works("epoll");
        unwatch(fds[0]);
        close_pair(fds);
        aio_context_unref(ctx);
    }
}

/* io_uring watches a file like anything else, epoll says that it cannot. */
TEST(where_it_is_forbidden_later_a_file_is_still_ready)
{
    unsigned ran = 0;
    int fd = (int)syscall(SYS_memfd_create, "coaio-test", 1u);
    char text[1000];
    int saved[2];

    needs_best_uring();
    as_usual_on_uring();
    CHECK_EQ(setenv("COAIO_ENGINE", "auto", 1), 0);
    ctx = context_on(NULL);
    watch(fd, count, NULL, &ran);
    capture(saved);
    os_fault_arm(1, EPERM, "io_uring_enter");
    for (int i = 0; i < 20; i++) {
        aio_poll(ctx, true);
    }
    CHECK(os_fault_fired());
    CHECK_STR(aio_context_engine(ctx), "epoll");
    CHECK(ran > 10);
    release(saved, text, sizeof(text));
    CHECK_EQ(lines(text), 1); /* which says that */
    unwatch(fd);
    close(fd);
    aio_context_unref(ctx);
}

#define UNUSABLE                                                             \
    "^coaio: aio_poll: the ring of context \"here\" was made, but may not "  \
    "be used by this thread \\(error 1\\): forbid io_uring before contexts " \
    "are made, not after$"

static void begin_with_best(void)
{
    needs_best_uring();
    as_usual_on_uring();
    CHECK_EQ(setenv("COAIO_ENGINE", "auto", 1), 0);
    ctx = context_on(NULL);
    CHECK_STR(aio_context_engine(ctx), "uring");
    aio_context_attach(ctx);
}

TEST_ABORTS(what_was_asked_for_by_name_is_not_replaced_later, UNUSABLE)
{
    needs_uring();
    ctx = context_on("uring");
    aio_context_attach(ctx);
    aio_poll(ctx, false);
    refuse(SYS_io_uring_enter, EPERM);
    aio_poll(ctx, true);
}

TEST_ABORTS(where_it_may_not_be_enabled_later_that_is_said, UNUSABLE)
{
    needs_uring();
    ctx = context_on("uring");
    aio_context_attach(ctx);
    refuse(SYS_io_uring_register, EPERM);
    aio_poll(ctx, true);
}

TEST_ABORTS(where_no_other_can_take_its_place_later_that_is_said, UNUSABLE)
{
    begin_with_best();
    refuse(SYS_io_uring_enter, EPERM);
    os_fault_arm(1, EMFILE, "epoll_create");
    aio_poll(ctx, true);
}

/* A foreign loop sleeps on its descriptor. */
TEST_ABORTS(a_ring_that_a_foreign_loop_waits_for_is_not_replaced_later,
            UNUSABLE)
{
    begin_with_best();
    refuse(SYS_io_uring_register, EPERM);
    context_foreign_prepare(ctx);
}

static void coroutine_fn receive_one(void *opaque)
{
    char c;

    co_recv(*(int *)opaque, &c, 1, 0);
}

/* Nobody could tell what has become of it. */
TEST_ABORTS(a_ring_with_an_operation_is_not_replaced_later, UNUSABLE)
{
    int fds[2];

    begin_with_best();
    open_pair(fds);
    go(receive_one, &fds[0]);
    aio_poll(ctx, false);
    CHECK_EQ(ctx->poller.ops_taken, 1);
    refuse(SYS_io_uring_enter, EPERM);
    aio_poll(ctx, true);
}

/* Few descriptors and no memory that may be locked are enough. */
TEST(tight_limits_are_enough)
{
    const struct rlimit files = {16, 16}, memory = {0, 0};

    if (os_in_valgrind()) {
        SKIP("Valgrind does not let its own limit be lowered");
    }
    CHECK_EQ(setenv("COAIO_ENGINE", "auto", 1), 0);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &files), 0);
    CHECK_EQ(setrlimit(RLIMIT_MEMLOCK, &memory), 0);
    ctx = context_on(NULL);
    aio_context_attach(ctx);
    check_works(aio_context_engine(ctx));
    aio_context_unref(ctx);
}

/* The end of a child, which had the ring open, does not end the watch. */
TEST(a_fork_does_the_parent_no_harm)
{
    unsigned ran = 0;
    int fds[2], status;
    pid_t child;

    needs_uring();
    ctx = context_on("uring");
    aio_context_attach(ctx);
    open_pair(fds);
    watch(fds[0], count, NULL, &ran);
    aio_poll(ctx, false);
    child = fork();
    if (child == 0) {
        _exit(0);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    poke(fds[1]);
    CHECK(aio_poll(ctx, true));
    CHECK_EQ(ran, 1);
    unwatch(fds[0]);
    close_pair(fds);
    aio_context_unref(ctx);
}

TEST_MAIN()
