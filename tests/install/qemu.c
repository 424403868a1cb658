/* SPDX-License-Identifier: MIT */

/*
 * The names of qemu-compat.h, in the language that C11 and C++17 have in
 * common.  The test `installed` compiles it as both against an installed
 * coaio: every name is there, and those that are made differently for the two
 * languages do the same.
 */

#include <coaio/qemu-compat.h>

typedef void AnyFunction(void);

#define NAME(function) (AnyFunction *)(function)

/* Whatever is a function, or stands for one. */
static AnyFunction *const functions[] = {
    NAME(qemu_coroutine_create), NAME(qemu_coroutine_enter),
    NAME(qemu_coroutine_enter_if_inactive), NAME(qemu_aio_coroutine_enter),
    NAME(qemu_coroutine_yield), NAME(qemu_coroutine_get_aio_context),
    NAME(qemu_coroutine_self), NAME(qemu_in_coroutine),
    NAME(qemu_coroutine_entered), NAME(qemu_co_mutex_init),
    NAME(qemu_co_mutex_lock), NAME(qemu_co_mutex_unlock),
    NAME(qemu_co_mutex_assert_locked), NAME(qemu_co_queue_init),
    NAME(qemu_co_queue_wait_impl), NAME(qemu_co_queue_next),
    NAME(qemu_co_queue_restart_all), NAME(qemu_co_enter_next_impl),
    NAME(qemu_co_enter_all_impl), NAME(qemu_co_queue_empty),
    NAME(qemu_co_rwlock_init), NAME(qemu_co_rwlock_rdlock),
    NAME(qemu_co_rwlock_upgrade), NAME(qemu_co_rwlock_downgrade),
    NAME(qemu_co_rwlock_wrlock), NAME(qemu_co_rwlock_unlock),
    NAME(qemu_co_sleep_ns_wakeable), NAME(qemu_co_sleep),
    NAME(qemu_co_sleep_ns), NAME(qemu_co_sleep_wake), NAME(qemu_co_timeout),
    NAME(yield_until_fd_readable), NAME(qemu_coroutine_inc_pool_size),
    NAME(qemu_coroutine_dec_pool_size), NAME(qemu_co_sendv_recvv),
    NAME(qemu_co_send_recv), NAME(qemu_lockable_lock),
    NAME(qemu_lockable_unlock), NAME(qemu_mutex_init),
    /* aio.h, aio-wait.h, thread-pool.h, iothread.h, timer.h */
    NAME(aio_context_ref), NAME(aio_context_unref), NAME(aio_bh_new_full),
    NAME(aio_notify), NAME(aio_bh_schedule_oneshot), NAME(aio_bh_new),
    NAME(qemu_bh_new), NAME(qemu_bh_schedule), NAME(qemu_bh_schedule_idle),
    NAME(qemu_bh_cancel), NAME(qemu_bh_delete), NAME(aio_poll),
    NAME(aio_set_fd_handler), NAME(aio_set_event_notifier),
    NAME(aio_timer_init_with_attrs), NAME(aio_timer_new_with_attrs),
    NAME(aio_co_schedule), NAME(aio_co_reschedule_self), NAME(aio_co_wake),
    NAME(aio_co_enter), NAME(qemu_get_current_aio_context),
    NAME(qemu_set_current_aio_context), NAME(qemu_get_aio_context),
    NAME(aio_wait_kick), NAME(aio_wait_bh_oneshot),
    NAME(thread_pool_submit_aio), NAME(iothread_create),
    NAME(iothread_get_aio_context), NAME(iothread_destroy),
    NAME(iothread_stop), NAME(qemu_clock_get_ns), NAME(qemu_soonest_timeout),
    NAME(timer_mod), NAME(timer_mod_ns), NAME(timer_mod_anticipate),
    NAME(timer_mod_anticipate_ns), NAME(timer_expired), NAME(timer_deinit),
    NAME(timer_expire_time_ns), NAME(timer_free), NAME(event_notifier_init),
    NAME(event_notifier_cleanup), NAME(event_notifier_get_fd),
    NAME(event_notifier_set), NAME(event_notifier_test_and_clear),
    NAME(event_notifier_set_handler),
};

QEMU_DECLARE_CO_TLS(int, shared_value)
QEMU_DEFINE_CO_TLS(int, shared_value)
QEMU_DEFINE_STATIC_CO_TLS(int, own_value)

static int calls;

static void no_coroutine_fn coroutine_mixed_fn count(void *opaque)
{
    (void)opaque;
    calls++;
}

static int count_in_worker(void *opaque)
{
    count(opaque);
    return 0;
}

/* Whatever is a macro with arguments, and does not suspend. */
static void use_macros(AioContext *ctx)
{
    QEMUTimer timer, main_timer;
    QEMUTimer *timers[4];
    AioContext *other = aio_context_new(NULL);
    QemuMutex mutex;
    int errp = 0;

    qemu_mutex_init(&mutex);
    qemu_mutex_lock(&mutex);
    calls += qemu_mutex_trylock(&mutex) ? 0 : 1000;
    qemu_mutex_unlock(&mutex);
    qemu_mutex_destroy(&mutex);

    aio_context_set_poll_params(ctx, 0, 0, 0, &errp);
    aio_context_set_poll_params(other, 0, 0, 0);
    aio_context_acquire(other);
    aio_context_release(other);
    aio_context_unref(other);
    aio_bh_schedule_oneshot_full(ctx, count, NULL, "count");
    qemu_notify_event();
    main_loop_wait(true);
    qemu_set_fd_handler(0, NULL, NULL, NULL);

    aio_timer_init(ctx, &timer, QEMU_CLOCK_VIRTUAL, SCALE_MS, count, NULL);
    timer_mod(&timer, qemu_clock_get_ms(QEMU_CLOCK_VIRTUAL) + 1000000);
    timer_mod_ns(&timer, get_clock() + 1000 * NANOSECONDS_PER_SECOND);
    calls += timer_pending(&timer) ? 0 : 1000;
    timer_del(&timer);
    timer_init(&main_timer, QEMU_CLOCK_HOST, SCALE_US, count, NULL);
    timer_init_ns(&main_timer, QEMU_CLOCK_HOST, count, NULL);
    timer_init_us(&main_timer, QEMU_CLOCK_HOST, count, NULL);
    timer_init_ms(&main_timer, QEMU_CLOCK_VIRTUAL_RT, count, NULL);
    timers[0] = aio_timer_new(ctx, QEMU_CLOCK_HOST, SCALE_US, count, NULL);
    timers[1] = timer_new_ns(QEMU_CLOCK_HOST, count, NULL);
    timers[2] = timer_new_us(QEMU_CLOCK_HOST, count, NULL);
    timers[3] = timer_new_ms(QEMU_CLOCK_HOST, count, NULL);
    for (int i = 0; i < 4; i++) {
        timer_free(timers[i]);
    }
    calls += get_clock_realtime() > 0 && qemu_clock_get_us(QEMU_CLOCK_HOST) > 0
                 ? 0
                 : 1000;
    calls += in_aio_context_home_thread(ctx) ? 0 : 1000;
    calls += AIO_WAIT_WHILE(ctx, calls > 1000) ? 1000 : 0;
    calls += AIO_WAIT_WHILE_UNLOCKED(NULL, false) ? 1000 : 0;
    calls += AIO_WAIT_WHILE_INTERNAL(NULL, false) ? 1000 : 0;
    set_shared_value(1);
    set_own_value(get_shared_value());
    calls += *get_ptr_own_value() == 1 ? 0 : 1000;
}

typedef struct Shared {
    CoMutex lock;
    CoQueue queue;
    int steps;
} Shared;

static void coroutine_fn waiter(void *opaque)
{
    Shared *shared = (Shared *)opaque;

    QEMU_LOCK_GUARD(&shared->lock);
    qemu_co_queue_wait(&shared->queue, &shared->lock);
    shared->steps++;
    qemu_co_queue_wait_flags(&shared->queue, QEMU_MAKE_LOCKABLE(&shared->lock),
                             CO_QUEUE_WAIT_FRONT);
    shared->steps++;
}

static void coroutine_fn waker(void *opaque)
{
    Shared *shared = (Shared *)opaque;

    WITH_QEMU_LOCK_GUARD(&shared->lock) {
        qemu_co_enter_next(&shared->queue, &shared->lock);
    }
    qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, 0);
    qemu_lockable_lock(QEMU_MAKE_LOCKABLE_NONNULL(&shared->lock));
    qemu_co_enter_all(&shared->queue, &shared->lock);
    qemu_lockable_unlock(QEMU_MAKE_LOCKABLE(&shared->lock));
    shared->steps += thread_pool_submit_co(count_in_worker, NULL) == 0;
    shared->steps++;
}

static void coroutine_fn exchange(void *opaque)
{
    int *fds = (int *)opaque;
    char out[2] = { 'o', 'k' }, in[2];
    struct iovec iov = { in, sizeof(in) };

    if (qemu_co_send(fds[0], out, 1) == 1 &&
        qemu_co_recv(fds[1], in, 1) == 1 &&
        qemu_co_sendv(fds[1], &iov, 1, 0, 1) == 1 &&
        qemu_co_recvv(fds[0], &iov, 1, 1, 1) == 1 && in[1] == 'o') {
        calls++;
    }
    co_close(fds[0]);
    co_close(fds[1]);
}

int main(void)
{
    size_t n = 0;
    Shared shared;
    int fds[2];

    memset(&shared, 0, sizeof shared);
    if (qemu_init_main_loop(NULL) != 0 ||
        socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) {
        return 1;
    }
    use_macros(qemu_get_aio_context());
    qemu_coroutine_enter(qemu_coroutine_create(waiter, &shared));
    qemu_coroutine_enter(qemu_coroutine_create(waker, &shared));
    qemu_coroutine_enter(qemu_coroutine_create(exchange, fds));
    while (shared.steps < 4) {
        main_loop_wait(false);
    }
    while (n < sizeof(functions) / sizeof(functions[0]) && functions[n]) {
        n++;
    }
    printf("%zu names, %d calls\n", n, calls);
    return calls == 3 ? 0 : 1;
}
