/* SPDX-License-Identifier: MIT */
/*
 * QEMU's names for coaio, by macros and inline functions only.  A file that
 * was lifted from QEMU's block layer needs its includes changed, to this.
 *
 * The differences that remain
 *
 *   - qemu_coroutine_self() is NULL outside a coroutine, where QEMU returns an
 *     object that stands for the thread.
 *   - Bottom halves run first in, first out; QEMU's last in, first out.
 *   - qemu_co_queue_wait() returns int; QEMU's returns nothing.
 *     CO_QUEUE_WAIT_FRONT does not exist: waiters wake in order.
 *   - A coroutine resumes in its home context only, and entering it from a
 *     thread with another context moves it there; QEMU sets the context at
 *     each entry.
 *   - qemu_co_enter_next() and qemu_co_enter_all() take a QemuMutex or NULL,
 *     and are for code outside coroutines.
 *   - qemu_co_rwlock_upgrade() lets another writer run first if one has
 *     queued, as QEMU's does.
 *   - QEMU_CLOCK_REALTIME and QEMU_CLOCK_VIRTUAL are the monotonic clock,
 *     QEMU_CLOCK_HOST is the real-time clock.  There is no virtual time.
 *   - Stacks are 1 MiB, as QEMU's; qemu_coroutine_create() asks for it.
 *   - Error objects do not exist: aio_context_new(errp) and
 *     iothread_create(id, errp) return NULL on failure and ignore errp.
 *   - aio_timer_init() and aio_context_new() are told from coaio's own
 *     functions of these names by their number of arguments.
 *   - aio_set_fd_handler() returns int, and is coaio's own.
 *   - There is no global AioContext lock: aio_context_acquire() and
 *     aio_context_release() do nothing, as in QEMU since 8.2.
 */
#ifndef COAIO_QEMU_COMPAT_H
#define COAIO_QEMU_COMPAT_H

#include <coaio/coaio.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

COAIO_BEGIN_DECLS

/* --- coroutine-core.h, coroutine.h ---------------------------------------*/

#define no_coroutine_fn
#define coroutine_mixed_fn

#define COAIO_QEMU_STACK_SIZE ((size_t)1 << 20)

static inline Coroutine *qemu_coroutine_create(CoroutineEntry *entry,
                                               void *opaque)
{
    CoroutineOptions options = { sizeof(options), NULL, COAIO_QEMU_STACK_SIZE,
                                 COROUTINE_GUARD_PREFERRED };
    Coroutine *co;

    if (coroutine_create_full(&co, entry, opaque, &options) < 0) {
        fprintf(stderr, "qemu_coroutine_create: no memory for a stack\n");
        abort();
    }
    return co;
}

#define qemu_coroutine_enter coroutine_enter
#define qemu_coroutine_enter_if_inactive coroutine_enter_if_inactive
#define qemu_aio_coroutine_enter aio_co_enter
#define qemu_coroutine_yield coroutine_yield
#define qemu_coroutine_self coroutine_self
#define qemu_in_coroutine in_coroutine
#define qemu_coroutine_entered coroutine_entered
#define qemu_coroutine_get_aio_context coroutine_context

/* The pool adapts by itself. */
static inline void qemu_coroutine_inc_pool_size(unsigned additional)
{
    (void)additional;
}

static inline void qemu_coroutine_dec_pool_size(unsigned removing)
{
    (void)removing;
}

#define qemu_co_mutex_init co_mutex_init
#define qemu_co_mutex_lock co_mutex_lock
#define qemu_co_mutex_unlock co_mutex_unlock
#define qemu_co_mutex_assert_locked co_mutex_assert_locked

/* A lock of threads. */
typedef pthread_mutex_t QemuMutex;

static inline void qemu_mutex_init(QemuMutex *mutex)
{
    pthread_mutex_init(mutex, NULL);
}

static inline void qemu_mutex_destroy(QemuMutex *mutex)
{
    pthread_mutex_destroy(mutex);
}

static inline void qemu_mutex_lock(QemuMutex *mutex)
{
    pthread_mutex_lock(mutex);
}

static inline int qemu_mutex_trylock(QemuMutex *mutex)
{
    return pthread_mutex_trylock(mutex) == 0 ? 0 : -1;
}

static inline void qemu_mutex_unlock(QemuMutex *mutex)
{
    pthread_mutex_unlock(mutex);
}

#define qemu_co_queue_init co_queue_init
#define qemu_co_queue_wait(queue, lock) co_queue_wait(queue, lock)
#define qemu_co_queue_next co_queue_next
#define qemu_co_queue_restart_all co_queue_restart_all
#define qemu_co_queue_empty co_queue_empty
#define qemu_co_enter_next(queue, lock) co_queue_enter_next(queue, lock)
#define qemu_co_enter_all(queue, lock) co_queue_enter_all(queue, lock)

#define qemu_co_rwlock_init co_rwlock_init
#define qemu_co_rwlock_rdlock co_rwlock_rdlock
#define qemu_co_rwlock_wrlock co_rwlock_wrlock
#define qemu_co_rwlock_upgrade co_rwlock_upgrade
#define qemu_co_rwlock_downgrade co_rwlock_downgrade
#define qemu_co_rwlock_unlock co_rwlock_unlock

/* --- coroutine-tls.h -----------------------------------------------------*/

#define QEMU_DECLARE_CO_TLS(type, var) CO_TLS_DECLARE(type, var)
#define QEMU_DEFINE_CO_TLS(type, var) CO_TLS_DEFINE(type, var)
#define QEMU_DEFINE_STATIC_CO_TLS(type, var) CO_TLS_DEFINE_STATIC(type, var)

/* --- timer.h -------------------------------------------------------------*/

typedef enum QEMUClockType {
    QEMU_CLOCK_REALTIME,
    QEMU_CLOCK_VIRTUAL,
    QEMU_CLOCK_HOST,
} QEMUClockType;

#define SCALE_MS 1000000
#define SCALE_US 1000
#define SCALE_NS 1
#define NANOSECONDS_PER_SECOND 1000000000LL

typedef AioTimerFunc QEMUTimerCB;

/* Initialised by the functions below; deleted before it is freed. */
typedef struct QEMUTimer {
    AioTimer timer;
    int scale;
} QEMUTimer;

static inline AioClock coaio_qemu_clock(QEMUClockType type)
{
    return type == QEMU_CLOCK_HOST ? AIO_CLOCK_REALTIME : AIO_CLOCK_MONOTONIC;
}

static inline int64_t qemu_clock_get_ns(QEMUClockType type)
{
    return aio_clock_ns(coaio_qemu_clock(type));
}

static inline int64_t qemu_clock_get_us(QEMUClockType type)
{
    return qemu_clock_get_ns(type) / SCALE_US;
}

static inline int64_t qemu_clock_get_ms(QEMUClockType type)
{
    return qemu_clock_get_ns(type) / SCALE_MS;
}

static inline void coaio_qemu_timer_init(AioContext *ctx, QEMUTimer *timer,
                                         QEMUClockType type, int scale,
                                         QEMUTimerCB *cb, void *opaque)
{
    timer->scale = scale;
    aio_timer_init(&timer->timer, ctx, coaio_qemu_clock(type), cb, opaque);
}

static inline QEMUTimer *aio_timer_new(AioContext *ctx, QEMUClockType type,
                                       int scale, QEMUTimerCB *cb,
                                       void *opaque)
{
    QEMUTimer *timer = (QEMUTimer *)calloc(1, sizeof(*timer));

    if (!timer) {
        fprintf(stderr, "aio_timer_new: no memory\n");
        abort();
    }
    coaio_qemu_timer_init(ctx, timer, type, scale, cb, opaque);
    return timer;
}

static inline void timer_mod_ns(QEMUTimer *timer, int64_t expiry_ns)
{
    aio_timer_mod_ns(&timer->timer, expiry_ns);
}

static inline void timer_mod(QEMUTimer *timer, int64_t expiry)
{
    aio_timer_mod_ns(&timer->timer, expiry * timer->scale);
}

static inline void timer_del(QEMUTimer *timer)
{
    aio_timer_del(&timer->timer);
}

static inline void timer_free(QEMUTimer *timer)
{
    if (timer) {
        aio_timer_del(&timer->timer);
        free(timer);
    }
}

static inline bool timer_pending(QEMUTimer *timer)
{
    return aio_timer_pending(&timer->timer);
}

/* --- sleeping ------------------------------------------------------------*/

static inline void coroutine_fn qemu_co_sleep_ns(QEMUClockType type,
                                                 int64_t ns)
{
    (void)type;
    co_sleep_ns(ns);
}

/* A sleep that somebody may end early; zeroed when nobody sleeps. */
typedef struct QemuCoSleep {
    Coroutine *to_wake;
} QemuCoSleep;

/* On the sleeper's home thread. */
static inline void qemu_co_sleep_wake(QemuCoSleep *sleep)
{
    Coroutine *co = sleep->to_wake;

    sleep->to_wake = NULL;
    if (co) {
        aio_co_wake(co);
    }
}

/* Sleep until woken. */
static inline void coroutine_fn qemu_co_sleep(QemuCoSleep *sleep)
{
    sleep->to_wake = coroutine_self();
    coroutine_yield();
}

static inline void coaio_qemu_sleep_cb(void *opaque)
{
    qemu_co_sleep_wake((QemuCoSleep *)opaque);
}

static inline void coroutine_fn qemu_co_sleep_ns_wakeable(QemuCoSleep *sleep,
                                                          QEMUClockType type,
                                                          int64_t ns)
{
    AioClock clock = coaio_qemu_clock(type);
    AioTimer timer;

    aio_timer_init(&timer, coroutine_context(coroutine_self()), clock,
                   coaio_qemu_sleep_cb, sleep);
    aio_timer_mod_ns(&timer, aio_clock_ns(clock) + ns);
    qemu_co_sleep(sleep);
    aio_timer_del(&timer);
}

/* --- aio.h ---------------------------------------------------------------*/

typedef AioBH QEMUBH;
typedef AioBHFunc QEMUBHFunc;
typedef AioFdFunc IOHandler;
typedef AioFdPollFunc AioPollFn;

#define qemu_bh_new aio_bh_new_main
#define qemu_bh_schedule aio_bh_schedule
#define qemu_bh_schedule_idle aio_bh_schedule_idle
#define qemu_bh_cancel aio_bh_cancel
#define qemu_bh_delete aio_bh_delete

#define qemu_get_aio_context aio_context_main
#define qemu_get_current_aio_context aio_context_current
#define aio_co_reschedule_self co_reschedule_self

#define aio_context_acquire(ctx) ((void)(ctx))
#define aio_context_release(ctx) ((void)(ctx))

static inline bool in_aio_context_home_thread(AioContext *ctx)
{
    return ctx == aio_context_current();
}

static inline AioContext *coaio_qemu_context_new(void *errp)
{
    AioContext *ctx;

    (void)errp;
    return aio_context_new(&ctx, NULL) < 0 ? NULL : ctx;
}

static inline int coaio_native_context_new(AioContext **ctx,
                                           const AioContextOptions *options)
{
    return aio_context_new(ctx, options);
}

static inline void coaio_native_timer_init(AioTimer *timer, AioContext *ctx,
                                           AioClock clock, AioTimerFunc *cb,
                                           void *opaque)
{
    aio_timer_init(timer, ctx, clock, cb, opaque);
}

#define COAIO_PICK_2_(a, b, name, ...) name
#define aio_context_new(...)                                                  \
    COAIO_PICK_2_(__VA_ARGS__, coaio_native_context_new,                      \
                  coaio_qemu_context_new, _)(__VA_ARGS__)

#define COAIO_PICK_6_(a, b, c, d, e, f, name, ...) name
#define aio_timer_init(...)                                                   \
    COAIO_PICK_6_(__VA_ARGS__, coaio_qemu_timer_init,                         \
                  coaio_native_timer_init, _)(__VA_ARGS__)

#define AIO_WAIT_WHILE(ctx, cond) aio_wait_while(ctx, cond)
#define AIO_WAIT_WHILE_UNLOCKED(ctx, cond) aio_wait_while(ctx, cond)

/* --- thread-pool.h, iothread.h -------------------------------------------*/

typedef int ThreadPoolFunc(void *opaque);

static inline int coroutine_fn thread_pool_submit_co(ThreadPoolFunc *func,
                                                     void *arg)
{
    return co_run_in_worker(func, arg);
}

static inline IOThread *iothread_create(const char *id, void *errp)
{
    IOThread *iothread;

    (void)errp;
    return iothread_new(&iothread, id, NULL) < 0 ? NULL : iothread;
}

#define iothread_get_aio_context iothread_context

static inline void iothread_destroy(IOThread *iothread)
{
    iothread_stop(iothread);
    iothread_unref(iothread);
}

/* --- what waits on descriptors -------------------------------------------*/

static inline void coroutine_fn yield_until_fd_readable(int fd)
{
    co_poll_fd(fd, 1 /* POLLIN */, -1);
}

COAIO_END_DECLS

#endif
