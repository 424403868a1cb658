/* SPDX-License-Identifier: MIT */
/*
 * The io_uring engine: the ways round what a kernel may lack, and what newer
 * kernels and versions of liburing do in another way.
 */
#include "engines.h"
#include "loop/context.h"
#include "os/fault.h"
#include "os/uring.h"

#include <coaio/bh.h>
#include <coaio/fd.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static AioContext *ctx;

static void nothing(void *opaque)
{
    (void)opaque;
}

static void set(void *opaque)
{
    *(bool *)opaque = true;
}

static void count(void *opaque)
{
    ++*(unsigned *)opaque;
}

static void watch(int fd, AioFdFunc *on_read, void *opaque)
{
    CHECK_EQ(aio_set_fd_handler(ctx, fd, on_read, NULL, NULL, NULL, opaque), 0);
}

/* More often than the ring has slots. */
static void check_handler(void)
{
    unsigned ran = 0;
    char text[8];
    int fds[2];

    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    watch(fds[0], count, &ran);
    for (unsigned i = 0; i < 300; i++) {
        CHECK_EQ(write(fds[1], "x", 1), 1);
        CHECK(aio_poll(ctx, true));
        CHECK_EQ(ran, 2 * i + 1);
        CHECK(aio_poll(ctx, true)); /* it is ready still */
        CHECK_EQ(ran, 2 * i + 2);
        CHECK_EQ(read(fds[0], text, sizeof(text)), 1);
        aio_poll(ctx, false);
        CHECK(!aio_poll(ctx, false));
    }
    watch(fds[0], NULL, NULL);
    close(fds[0]);
    close(fds[1]);
}

static void check_ring(void)
{
    AioBHStorage storage;
    bool done = false;

    ctx = context_on("uring");
    aio_context_attach(ctx);
    check_handler();
    aio_bh_schedule_oneshot_embedded(ctx, &storage, set, &done);
    CHECK(aio_poll(ctx, true));
    CHECK(done);
    aio_context_unref(ctx);
}

TEST(older_kernels_will_do)
{
    static const char *const kernels[] = {"", "skip", "defer", "defer,coop",
                                          "defer,coop,skip"};

    needs_uring();
    for (unsigned i = 0; i < sizeof(kernels) / sizeof(kernels[0]); i++) {
        CHECK_EQ(setenv("COAIO_URING_WITHOUT", kernels[i], 1), 0);
        check_ring();
    }
}

/* As a kernel answers that does not know a flag. */
TEST(what_the_kernel_does_not_know_is_left_out)
{
    static const char *const known[] = {"", "defer"};

    for (int i = 0; i < 2; i++) {
        CHECK_EQ(setenv("COAIO_URING_WITHOUT", known[i], 1), 0);
        needs_uring();
        os_fault_arm(1, EINVAL, "io_uring_setup");
        ctx = context_on("uring");
        CHECK(os_fault_fired());
        aio_context_attach(ctx);
        aio_bh_schedule_oneshot(ctx, nothing, NULL);
        CHECK(aio_poll(ctx, true));
        aio_context_unref(ctx);
    }
}

#ifdef COAIO_HAVE_URING
/*
 * From version 2.6 on liburing leaves out the array of indices where the kernel
 * can do without: it was written to all the same, through a null pointer.
 */
TEST(newer_versions_of_liburing_have_no_array)
{
    needs_uring();
    os_uring_set_no_array(true);
    check_ring();
    os_uring_set_no_array(false);
}
#endif

TEST_MAIN()
