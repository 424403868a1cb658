/* SPDX-License-Identifier: MIT */
/*
 * Misuse of qemu-compat.h, and what it cannot go on without: each case must
 * abort with a line that names the call.
 *
 * The header is compiled into its user, and so are its calls of the C library;
 * here they go through functions that fail when a case says so.
 */
#include "harness.h"
#include "os/fault.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>

static bool no_memory;

static void *calloc_or_not(size_t n, size_t size)
{
    return no_memory ? NULL : calloc(n, size);
}

static int mutex_init_or_not(pthread_mutex_t *mutex,
                             const pthread_mutexattr_t *attr)
{
    return no_memory ? ENOMEM : pthread_mutex_init(mutex, attr);
}

#define calloc             calloc_or_not
#define pthread_mutex_init mutex_init_or_not
#include <coaio/qemu-compat.h>
#undef calloc
#undef pthread_mutex_init

static AioContext *main_context(void)
{
    CHECK_EQ(qemu_init_main_loop(NULL), 0);
    return qemu_get_aio_context();
}

static void nothing(void *opaque)
{
    (void)opaque;
}

/* --- without memory -------------------------------------------------------*/

TEST_ABORTS(no_memory_for_a_timer, "^coaio: qemu-compat.h: out of memory$")
{
    AioContext *ctx = main_context();

    no_memory = true;
    aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, nothing, NULL);
}

TEST_ABORTS(no_memory_for_a_coroutine,
            "^coaio: qemu_coroutine_create: no memory for a stack$")
{
    main_context();
    os_fault_arm(1, ENOMEM, "alloc");
    qemu_coroutine_create(nothing, NULL);
}

TEST_ABORTS(no_memory_for_a_mutex, "^coaio: qemu_mutex_init: out of memory$")
{
    QemuMutex mutex;

    no_memory = true;
    qemu_mutex_init(&mutex);
}

/* --- what there is not ----------------------------------------------------*/

TEST_ABORTS(locking_what_is_no_lock,
            "^coaio: qemu_lockable_lock: neither CoMutex nor QemuMutex$")
{
    int what = 0;
    QemuLockable lock = co_lock_from_null(&what);

    qemu_lockable_lock(&lock);
}

TEST_ABORTS(a_bottom_half_with_a_guard,
            "^coaio: aio_bh_new_full: there are no reentrancy guards$")
{
    int guard = 0;

    aio_bh_new_full(main_context(), nothing, NULL, "nothing", &guard);
}

static int return_0(void *opaque)
{
    (void)opaque;
    return 0;
}

TEST_ABORTS(submitting_a_job_without_a_context,
            "^coaio: thread_pool_submit_aio: this thread has no context$")
{
    thread_pool_submit_aio(return_0, NULL, NULL, NULL);
}

/* --- what is pending, asleep or too short ---------------------------------*/

TEST_ABORTS(giving_up_a_timer_that_is_pending,
            "^coaio: timer_deinit: the timer is pending$")
{
    QEMUTimer timer;

    main_context();
    timer_init_ns(&timer, QEMU_CLOCK_REALTIME, nothing, NULL);
    timer_mod_ns(&timer, INT64_MAX);
    timer_deinit(&timer);
}

static void coroutine_fn sleep_for_ever(void *opaque)
{
    QemuCoSleep sleep = {NULL};

    (void)opaque;
    qemu_co_sleep(&sleep);
}

TEST_ABORTS(entering_one_that_sleeps,
            "^coaio: qemu_co_sleep: ended, but not by "
            "qemu_co_sleep_wake\\(\\)$")
{
    Coroutine *co;

    main_context();
    co = qemu_coroutine_create(sleep_for_ever, NULL);
    qemu_coroutine_enter(co);
    qemu_coroutine_enter(co);
}

static void coroutine_fn send_too_much(void *opaque)
{
    char data[10] = "too short";
    struct iovec iov = {data, sizeof(data)};

    qemu_co_sendv(*(int *)opaque, &iov, 1, 0, sizeof(data) + 1);
}

TEST_ABORTS(sending_more_than_a_vector_has,
            "^coaio: qemu_co_sendv_recvv: the vector is too short$")
{
    int fds[2];

    main_context();
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    qemu_coroutine_enter(qemu_coroutine_create(send_too_much, &fds[0]));
}

TEST_ABORTS(a_handler_that_cannot_be_had,
            "^coaio: no memory or no watch for a handler, or no such fd$")
{
    main_context();
    qemu_set_fd_handler(INT_MAX, nothing, NULL, NULL);
}

TEST_MAIN()
