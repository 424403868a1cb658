/* SPDX-License-Identifier: MIT */
/*
 * QEMU's names for coaio, by macros and inline functions only: the names of
 * QEMU 9, in C11 and C++17.  A file that was lifted from QEMU's block layer
 * needs its includes changed, to this one; it may use coaio's own names
 * besides.
 *
 * Differences that remain
 *
 *   Coroutines
 *   - qemu_coroutine_self() is NULL outside a coroutine, where QEMU returns an
 *     object that stands for the thread.
 *   - A coroutine resumes on the thread of its home only.  Entering a parked
 *     one on a thread with another context moves it there, as in QEMU; on a
 *     thread without a context that aborts, unless it has no home.
 *   - qemu_aio_coroutine_enter(ctx, co) enters at once if ctx is the calling
 *     thread's, as in QEMU; if not, it is aio_co_enter(), and co runs there.
 *   - Stacks are 1 MiB, as QEMU's; they take up memory as they are touched.
 *   - The pool of coroutines adapts by itself: the calls that change its size
 *     do nothing.
 *   - What a coroutine wakes runs when the outermost coroutine of the thread
 *     has yielded, not before an inner qemu_coroutine_enter() returns.
 *   Locks
 *   - CO_QUEUE_WAIT_FRONT has no effect: one that waits again waits behind
 *     the others, and wakes in the order of waiting.
 *   - Waking the waiters of a CoQueue whose lock is a CoMutex aborts unless the
 *     waker holds that.  The queue's waiters must all have passed one lock.
 *   - qemu_co_queue_wait() returns int, qemu_co_mutex_assert_locked() aborts
 *     also with NDEBUG.
 *   - Of the threads' locks there is QemuMutex only, a pthread_mutex_t; no
 *     QemuRecMutex, no QemuSpin.
 *   Loops
 *   - Bottom halves run first in, first out; QEMU's last in, first out.  One
 *     that a bottom half schedules runs in the next pass.
 *   - A thread's context is the one that is bound to it, also in the main
 *     thread: qemu_get_current_aio_context() is NULL in a thread without one.
 *     qemu_init_main_loop() or qemu_get_aio_context() binds the main context
 *     to the calling thread.
 *   - qemu_notify_event() in a signal handler needs a main context: before
 *     there is one, do not call it.
 *   - There are no handlers that only main_loop_wait() runs.  Those of
 *     qemu_set_fd_handler() and event_notifier_set_handler(), and the timers of
 *     timer_new() and timer_init(), are the main context's: aio_poll() and
 *     AIO_WAIT_WHILE() in its thread run them, too.  They must expect that,
 *     and one that waits like that itself, to be entered again meanwhile.
 *     What cannot goes into a context that nothing polls but its own loop.
 *   - Error objects do not exist.  What takes an errp ignores it: functions
 *     that return a pointer return NULL on failure.
 *   - aio_context_new(), aio_context_set_poll_params() and aio_timer_init() are
 *     told from coaio's own functions by their number of arguments.
 *   - aio_set_fd_handler() returns int, and is coaio's own.
 *   - A context that is destroyed with bottom halves, fd handlers or armed
 *     timers left aborts.
 *   - There is no AioContext lock: aio_context_acquire() and
 *     aio_context_release() do nothing.
 *   - AIO_WAIT_WHILE() may be used by any thread outside coroutines, for any
 *     context or NULL.
 *   Timers
 *   - QEMU_CLOCK_REALTIME, _VIRTUAL and _VIRTUAL_RT are the monotonic clock,
 *     QEMU_CLOCK_HOST is the real-time clock.  There is no virtual time, and
 *     no record and replay: timer attributes are ignored.
 *   - Calls on one timer from several threads at once are the user's to order.
 *     timer_del() of one that is armed or has fired waits, on another thread,
 *     for the timer's: hold no lock that its callbacks take.
 *   Sockets
 *   - yield_until_fd_readable() aborts, rather than clobber them, if the file
 *     descriptor has handlers.
 *   - qemu_co_send(), qemu_co_recv() and their like yield where the socket
 *     would block, and whoever called set a handler that enters the coroutine
 *     again: as in QEMU.  The socket need not be non-blocking.  New code calls
 *     co_send() and co_recv(), which need no handlers and allow none.
 *
 * Missing, as it could not be mapped honestly
 *
 *   aio.h          BlockAIOCB and AIOCBInfo; aio_bh_new_guarded();
 *                  aio_bh_call(), aio_bh_poll(); aio_set_event_notifier_poll();
 *                  aio_get_g_source(), aio_prepare(), aio_pending(),
 *                  aio_dispatch() and aio_notify_accept();
 *                  aio_compute_timeout(), aio_poll_disabled(), FDMonOps;
 *                  aio_add_sqe(), and what is about Linux AIO or io_uring;
 *                  aio_context_set_aio_params() and _thread_pool_params()
 *   aio-wait.h     AioWait and global_aio_wait
 *   thread-pool.h  pools of one's own.  thread_pool_submit_aio() returns
 *                  nothing, as it cannot be cancelled.
 *   timer.h        timer lists and their groups; enabling clocks; ticks
 *   iothread.h     iothread_find(), iothread_by_id(), iothread_get_id()
 */
#ifndef COAIO_QEMU_COMPAT_H
#define COAIO_QEMU_COMPAT_H

#include <coaio/coaio.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

COAIO_BEGIN_DECLS

static inline void coaio_qemu_die(const char *line)
{
    fprintf(stderr, "coaio: %s\n", line);
    abort();
}

static inline void *coaio_qemu_alloc(size_t size)
{
    void *memory = calloc(1, size);

    if (!memory) {
        coaio_qemu_die("qemu-compat.h: out of memory");
    }
    return memory;
}

/* --- coroutine-core.h ----------------------------------------------------*/

#define no_coroutine_fn
#define coroutine_mixed_fn

#define COAIO_QEMU_STACK_SIZE ((size_t)1 << 20)

static inline Coroutine *qemu_coroutine_create(CoroutineEntry *entry,
                                               void *opaque)
{
    CoroutineOptions options = { sizeof(options), NULL, COAIO_QEMU_STACK_SIZE,
                                 COROUTINE_GUARD_PREFERRED };
    Coroutine *co = NULL;

    if (coroutine_create_full(&co, entry, opaque, &options) < 0) {
        coaio_qemu_die("qemu_coroutine_create: no memory for a stack");
    }
    return co;
}

#define qemu_coroutine_enter coroutine_enter
#define qemu_coroutine_enter_if_inactive coroutine_enter_if_inactive
#define qemu_coroutine_yield coroutine_yield
#define qemu_coroutine_get_aio_context coroutine_context
#define qemu_coroutine_self coroutine_self
#define qemu_in_coroutine in_coroutine
#define qemu_coroutine_entered coroutine_entered

static inline void qemu_aio_coroutine_enter(AioContext *ctx, Coroutine *co)
{
    if (ctx == aio_context_current()) {
        coroutine_enter(co);
    } else {
        aio_co_enter(ctx, co);
    }
}

#define qemu_co_mutex_init co_mutex_init
#define qemu_co_mutex_lock co_mutex_lock
#define qemu_co_mutex_unlock co_mutex_unlock

/* --- thread.h: the lock that a CoQueue may be used under -----------------*/

typedef pthread_mutex_t QemuMutex;

static inline void qemu_mutex_init(QemuMutex *mutex)
{
    if (pthread_mutex_init(mutex, NULL) != 0) {
        coaio_qemu_die("qemu_mutex_init: out of memory");
    }
}

#define qemu_mutex_destroy(mutex) ((void)pthread_mutex_destroy(mutex))
#define qemu_mutex_lock(mutex) ((void)pthread_mutex_lock(mutex))
#define qemu_mutex_trylock(mutex) (-pthread_mutex_trylock(mutex))
#define qemu_mutex_unlock(mutex) ((void)pthread_mutex_unlock(mutex))

/* --- lockable.h ----------------------------------------------------------*/

/* A CoMutex or a QemuMutex. */
typedef CoLock QemuLockable;

static inline CoLock coaio_qemu_lock_at(QemuLockable *lock)
{
    return lock ? *lock : co_lock_from_null(NULL);
}

static inline QemuLockable *coaio_qemu_lockable(CoLock *lock)
{
    return lock->lock ? lock : NULL;
}

COAIO_END_DECLS

#ifdef __cplusplus

static inline CoLock coaio_qemu_lock(QemuLockable *lock)
{
    return coaio_qemu_lock_at(lock);
}

template <typename Lock> static inline CoLock coaio_qemu_lock(Lock lock)
{
    return co_lock_from(lock);
}

struct CoaioQemuLockable {
    CoLock lock;
    QemuLockable *get() { return coaio_qemu_lockable(&lock); }
};

#define COAIO_QEMU_LOCK(x) coaio_qemu_lock(x)

/* Valid until the end of the full expression; in C, of the block. */
#define QEMU_MAKE_LOCKABLE(x) (CoaioQemuLockable{ coaio_qemu_lock(x) }.get())

#else

#define COAIO_QEMU_LOCK(x)                                                    \
    _Generic((x), QemuLockable *: coaio_qemu_lock_at,                         \
             CoMutex *: co_lock_from_mutex,                                   \
             QemuMutex *: co_lock_from_pthread,                               \
             void *: co_lock_from_null)(x)

#define QEMU_MAKE_LOCKABLE(x)                                                 \
    coaio_qemu_lockable((CoLock[1]){ COAIO_QEMU_LOCK(x) })

#endif

#define QEMU_MAKE_LOCKABLE_NONNULL(x) QEMU_MAKE_LOCKABLE(x)

COAIO_BEGIN_DECLS

/* Suspends if it is a CoMutex. */
static inline void qemu_lockable_lock(QemuLockable *lock)
{
    if (lock->kind == CO_LOCK_MUTEX) {
        co_mutex_lock((CoMutex *)lock->lock);
    } else if (lock->kind == CO_LOCK_PTHREAD) {
        qemu_mutex_lock((QemuMutex *)lock->lock);
    } else {
        coaio_qemu_die("qemu_lockable_lock: neither CoMutex nor QemuMutex");
    }
}

static inline void qemu_lockable_unlock(QemuLockable *lock)
{
    if (lock->kind == CO_LOCK_MUTEX) {
        co_mutex_unlock((CoMutex *)lock->lock);
    } else {
        qemu_mutex_unlock((QemuMutex *)lock->lock);
    }
}

/* What holds a lock as long as a scope lasts. */
typedef struct CoaioQemuGuard {
    CoLock lock;
    bool held;
} CoaioQemuGuard;

static inline CoaioQemuGuard coaio_qemu_guard_begin(CoLock lock)
{
    CoaioQemuGuard guard = { lock, true };

    qemu_lockable_lock(&guard.lock);
    return guard;
}

static inline void coaio_qemu_guard_end(CoaioQemuGuard *guard)
{
    if (guard->held) {
        guard->held = false;
        qemu_lockable_unlock(&guard->lock);
    }
}

#define COAIO_QEMU_GUARD_2_(x, guard)                                         \
    CoaioQemuGuard guard                                                      \
        __attribute__((cleanup(coaio_qemu_guard_end), unused)) =              \
            coaio_qemu_guard_begin(COAIO_QEMU_LOCK(x))
#define COAIO_QEMU_GUARD_1_(x, number)                                        \
    COAIO_QEMU_GUARD_2_(x, coaio_qemu_guard_##number)
#define COAIO_QEMU_GUARD_(x, number) COAIO_QEMU_GUARD_1_(x, number)

#define COAIO_QEMU_WITH_1_(x, number)                                         \
    for (COAIO_QEMU_GUARD_1_(x, number); coaio_qemu_guard_##number.held;      \
         coaio_qemu_guard_end(&coaio_qemu_guard_##number))
#define COAIO_QEMU_WITH_(x, number) COAIO_QEMU_WITH_1_(x, number)

/* Hold a lock until the end of the scope, or in the block that follows. */
#define QEMU_LOCK_GUARD(x) COAIO_QEMU_GUARD_(x, __COUNTER__)
#define WITH_QEMU_LOCK_GUARD(x) COAIO_QEMU_WITH_(x, __COUNTER__)

/* --- coroutine.h: locks --------------------------------------------------*/

#define qemu_co_mutex_assert_locked co_mutex_assert_locked

#define qemu_co_queue_init co_queue_init
#define qemu_co_queue_next co_queue_next
#define qemu_co_queue_restart_all co_queue_restart_all
#define qemu_co_queue_empty co_queue_empty

/* Without effect. */
typedef enum { CO_QUEUE_WAIT_FRONT = 0x1 } CoQueueWaitFlags;

static inline int coroutine_fn qemu_co_queue_wait_impl(CoQueue *queue,
                                                       QemuLockable *lock,
                                                       CoQueueWaitFlags flags)
{
    (void)flags;
    return co_queue_wait_lock(queue, coaio_qemu_lock_at(lock));
}

#define qemu_co_queue_wait(queue, lock) qemu_co_queue_wait_flags(queue, lock, 0)
#define qemu_co_queue_wait_flags(queue, lock, flags)                          \
    qemu_co_queue_wait_impl((queue), QEMU_MAKE_LOCKABLE(lock),                \
                            (CoQueueWaitFlags)(flags))

static inline bool qemu_co_enter_next_impl(CoQueue *queue, QemuLockable *lock)
{
    if (in_coroutine()) {
        return co_queue_next(queue);
    }
    return co_queue_enter_next_lock(queue, coaio_qemu_lock_at(lock));
}

static inline void qemu_co_enter_all_impl(CoQueue *queue, QemuLockable *lock)
{
    if (in_coroutine()) {
        co_queue_restart_all(queue);
    } else {
        co_queue_enter_all_lock(queue, coaio_qemu_lock_at(lock));
    }
}

#define qemu_co_enter_next(queue, lock)                                       \
    qemu_co_enter_next_impl((queue), QEMU_MAKE_LOCKABLE(lock))
#define qemu_co_enter_all(queue, lock)                                        \
    qemu_co_enter_all_impl((queue), QEMU_MAKE_LOCKABLE(lock))

#define qemu_co_rwlock_init co_rwlock_init
#define qemu_co_rwlock_rdlock co_rwlock_rdlock
#define qemu_co_rwlock_wrlock co_rwlock_wrlock
#define qemu_co_rwlock_upgrade co_rwlock_upgrade
#define qemu_co_rwlock_downgrade co_rwlock_downgrade
#define qemu_co_rwlock_unlock co_rwlock_unlock

static inline void qemu_coroutine_inc_pool_size(unsigned additional_pool_size)
{
    (void)additional_pool_size;
}

static inline void qemu_coroutine_dec_pool_size(unsigned removing_pool_size)
{
    (void)removing_pool_size;
}

/* --- coroutine-tls.h -----------------------------------------------------*/

#define QEMU_DECLARE_CO_TLS(type, var) CO_TLS_DECLARE(type, var)
#define QEMU_DEFINE_CO_TLS(type, var) CO_TLS_DEFINE(type, var)
#define QEMU_DEFINE_STATIC_CO_TLS(type, var) CO_TLS_DEFINE_STATIC(type, var)

/* --- aio.h, main-loop.h: contexts ----------------------------------------*/

#define qemu_get_aio_context aio_context_main
#define qemu_get_current_aio_context aio_context_current
#define qemu_set_current_aio_context aio_context_attach
#define aio_co_reschedule_self co_reschedule_self

#define aio_context_acquire(ctx) ((void)(ctx))
#define aio_context_release(ctx) ((void)(ctx))

#define in_aio_context_home_thread(ctx) ((ctx) == aio_context_current())

/* The value is 0, or -1 on failure. */
#define qemu_init_main_loop(errp) (aio_context_main() ? 0 : -1)
#define main_loop_wait(nonblocking)                                           \
    ((void)aio_poll(aio_context_main(), !(nonblocking)))
#define qemu_notify_event() aio_notify(aio_context_main())

static inline AioContext *coaio_qemu_context_new(void *errp)
{
    AioContext *ctx = NULL;

    (void)errp;
    return aio_context_new(&ctx, NULL) < 0 ? NULL : ctx;
}

static inline void coaio_qemu_set_poll_params(AioContext *ctx, int64_t max_ns,
                                              int64_t grow, int64_t shrink,
                                              void *errp)
{
    (void)errp;
    aio_context_set_poll_params(ctx, max_ns, grow, shrink);
}

/* coaio's function or the one for QEMU's, by the number of arguments; a macro
 * is not expanded within itself. */
#define COAIO_PICK_2_(a, b, name, ...) name
#define aio_context_new(...)                                                  \
    COAIO_PICK_2_(__VA_ARGS__, aio_context_new, coaio_qemu_context_new, _)    \
    (__VA_ARGS__)

#define COAIO_PICK_5_(a, b, c, d, e, name, ...) name
#define aio_context_set_poll_params(...)                                      \
    COAIO_PICK_5_(__VA_ARGS__, coaio_qemu_set_poll_params,                    \
                  aio_context_set_poll_params, _)(__VA_ARGS__)

/* --- aio.h, main-loop.h: bottom halves -----------------------------------*/

typedef AioBH QEMUBH;
typedef AioBHFunc QEMUBHFunc;

#define qemu_bh_new aio_bh_new_main
#define qemu_bh_schedule aio_bh_schedule
#define qemu_bh_schedule_idle aio_bh_schedule_idle
#define qemu_bh_cancel aio_bh_cancel
#define qemu_bh_delete aio_bh_delete

/* Names of bottom halves are ignored. */
#define aio_bh_schedule_oneshot_full(ctx, cb, opaque, name)                   \
    aio_bh_schedule_oneshot((ctx), (cb), (opaque))

/* There are no devices, and no guards against entering them again. */
static inline QEMUBH *aio_bh_new_full(AioContext *ctx, QEMUBHFunc *cb,
                                      void *opaque, const char *name,
                                      void *reentrancy_guard)
{
    (void)name;
    if (reentrancy_guard) {
        coaio_qemu_die("aio_bh_new_full: there are no reentrancy guards");
    }
    return aio_bh_new(ctx, cb, opaque);
}

/* --- aio.h, main-loop.h: descriptors (event_notifier.h: qemu-notifier.h) --*/

typedef AioFdFunc IOHandler;
typedef AioFdPollFunc AioPollFn;

static inline void coaio_qemu_must_set(int error)
{
    if (error < 0) {
        coaio_qemu_die("no memory or no watch for a handler, or no such fd");
    }
}

#define qemu_set_fd_handler(fd, fd_read, fd_write, opaque)                    \
    coaio_qemu_must_set(aio_set_fd_handler(                                   \
        aio_context_main(), (fd), (fd_read), (fd_write), NULL, NULL, (opaque)))

/* --- timer.h, and what aio.h has of timers -------------------------------*/

typedef enum {
    QEMU_CLOCK_REALTIME = 0,
    QEMU_CLOCK_VIRTUAL = 1,
    QEMU_CLOCK_HOST = 2,
    QEMU_CLOCK_VIRTUAL_RT = 3,
    QEMU_CLOCK_MAX
} QEMUClockType;

#define SCALE_MS 1000000
#define SCALE_US 1000
#define SCALE_NS 1
#define NANOSECONDS_PER_SECOND 1000000000LL

#define QEMU_TIMER_ATTR_EXTERNAL 1
#define QEMU_TIMER_ATTR_ALL 0xffffffff

typedef AioTimerFunc QEMUTimerCB;

typedef struct QEMUTimer {
    AioTimer timer;
    int64_t expire_time; /* in ns, when it was armed last */
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

#define qemu_clock_get_us(type) (qemu_clock_get_ns(type) / SCALE_US)
#define qemu_clock_get_ms(type) (qemu_clock_get_ns(type) / SCALE_MS)
#define get_clock() aio_clock_ns(AIO_CLOCK_MONOTONIC)
#define get_clock_realtime() aio_clock_ns(AIO_CLOCK_REALTIME)

/* Of two timeouts, of which a negative one never ends. */
static inline int64_t qemu_soonest_timeout(int64_t timeout1, int64_t timeout2)
{
    if (timeout1 < 0 || timeout2 < 0) {
        return timeout1 < 0 ? timeout2 : timeout1;
    }
    return timeout1 < timeout2 ? timeout1 : timeout2;
}

static inline void aio_timer_init_with_attrs(AioContext *ctx, QEMUTimer *ts,
                                             QEMUClockType type, int scale,
                                             int attributes, QEMUTimerCB *cb,
                                             void *opaque)
{
    (void)attributes;
    ts->scale = scale;
    ts->expire_time = -1;
    aio_timer_init(&ts->timer, ctx, coaio_qemu_clock(type), cb, opaque);
}

static inline QEMUTimer *aio_timer_new_with_attrs(AioContext *ctx,
                                                  QEMUClockType type,
                                                  int scale, int attributes,
                                                  QEMUTimerCB *cb,
                                                  void *opaque)
{
    QEMUTimer *ts = (QEMUTimer *)coaio_qemu_alloc(sizeof(*ts));

    aio_timer_init_with_attrs(ctx, ts, type, scale, attributes, cb, opaque);
    return ts;
}

#define aio_timer_new(ctx, type, scale, cb, opaque)                           \
    aio_timer_new_with_attrs((ctx), (type), (scale), 0, (cb), (opaque))

#define coaio_qemu_timer_init(ctx, ts, type, scale, cb, opaque)               \
    aio_timer_init_with_attrs((ctx), (ts), (type), (scale), 0, (cb), (opaque))

#define COAIO_PICK_6_(a, b, c, d, e, f, name, ...) name
#define aio_timer_init(...)                                                   \
    COAIO_PICK_6_(__VA_ARGS__, coaio_qemu_timer_init, aio_timer_init, _)      \
    (__VA_ARGS__)

/* Timers of the main context. */
#define timer_init(ts, type, scale, cb, opaque)                               \
    coaio_qemu_timer_init(aio_context_main(), ts, type, scale, cb, opaque)
#define timer_new(type, scale, cb, opaque)                                    \
    aio_timer_new(aio_context_main(), (type), (scale), (cb), (opaque))
#define timer_init_ns(ts, type, cb, arg) timer_init(ts, type, SCALE_NS, cb, arg)
#define timer_init_us(ts, type, cb, arg) timer_init(ts, type, SCALE_US, cb, arg)
#define timer_init_ms(ts, type, cb, arg) timer_init(ts, type, SCALE_MS, cb, arg)
#define timer_new_ns(type, cb, arg) timer_new(type, SCALE_NS, cb, arg)
#define timer_new_us(type, cb, arg) timer_new(type, SCALE_US, cb, arg)
#define timer_new_ms(type, cb, arg) timer_new(type, SCALE_MS, cb, arg)

#define timer_pending(ts) aio_timer_pending(&(ts)->timer)

/* In ns; as -1 if it is not pending. */
static inline uint64_t timer_expire_time_ns(QEMUTimer *ts)
{
    return timer_pending(ts) ? (uint64_t)ts->expire_time : UINT64_MAX;
}

/* current_time is in the timer's unit.  One that is not pending has expired. */
static inline bool timer_expired(QEMUTimer *ts, int64_t current_time)
{
    return ts && (int64_t)timer_expire_time_ns(ts) <= current_time * ts->scale;
}

static inline void timer_mod_ns(QEMUTimer *ts, int64_t expire_time)
{
    ts->expire_time = expire_time;
    aio_timer_mod_ns(&ts->timer, expire_time);
}

static inline void timer_mod_anticipate_ns(QEMUTimer *ts, int64_t expire_time)
{
    if (!timer_pending(ts) || expire_time < ts->expire_time) {
        timer_mod_ns(ts, expire_time);
    }
}

static inline void timer_mod(QEMUTimer *ts, int64_t expire_time)
{
    timer_mod_ns(ts, expire_time * ts->scale);
}

static inline void timer_mod_anticipate(QEMUTimer *ts, int64_t expire_time)
{
    timer_mod_anticipate_ns(ts, expire_time * ts->scale);
}

/* Nothing, for one that is zeroed, or was given up by timer_deinit(). */
static inline void timer_del(QEMUTimer *ts)
{
    if (ts->timer.context_) {
        aio_timer_del(&ts->timer);
    }
}

static inline void timer_deinit(QEMUTimer *ts)
{
    if (timer_pending(ts)) {
        coaio_qemu_die("timer_deinit: the timer is pending");
    }
    ts->timer.context_ = NULL;
}

static inline void timer_free(QEMUTimer *ts)
{
    if (ts) {
        timer_del(ts);
        free(ts);
    }
}

/* --- coroutine.h: sleeping -----------------------------------------------*/

/* A sleep that somebody may end early; zeroed where nobody sleeps. */
typedef struct QemuCoSleep {
    Coroutine *to_wake;
} QemuCoSleep;

/* Any thread; of two that come at once, or as the time is up, one wakes. */
static inline void qemu_co_sleep_wake(QemuCoSleep *w)
{
    Coroutine *co = __atomic_exchange_n(&w->to_wake, NULL, __ATOMIC_ACQ_REL);

    if (co) {
        aio_co_wake(co);
    }
}

static inline void coroutine_fn qemu_co_sleep(QemuCoSleep *w)
{
    __atomic_store_n(&w->to_wake, coroutine_self(), __ATOMIC_RELEASE);
    coroutine_yield();
    if (__atomic_load_n(&w->to_wake, __ATOMIC_ACQUIRE)) {
        coaio_qemu_die("qemu_co_sleep: ended, but not by qemu_co_sleep_wake()");
    }
}

static inline void coaio_qemu_sleep_expired(void *opaque)
{
    qemu_co_sleep_wake((QemuCoSleep *)opaque);
}

static inline void coroutine_fn qemu_co_sleep_ns_wakeable(QemuCoSleep *w,
                                                          QEMUClockType type,
                                                          int64_t ns)
{
    AioContext *ctx = aio_context_current();
    int64_t now = qemu_clock_get_ns(type);
    QEMUTimer ts;

    if (!ctx) {
        coaio_qemu_die("qemu_co_sleep_ns_wakeable: this thread has no context "
                       "that could wake it");
    }
    coaio_qemu_timer_init(ctx, &ts, type, SCALE_NS,
                          coaio_qemu_sleep_expired, w);
    timer_mod(&ts, ns > INT64_MAX - now ? INT64_MAX : now + ns);
    qemu_co_sleep(w);
    timer_del(&ts);
}

/* Without a context, it is the thread that sleeps. */
static inline void coroutine_fn qemu_co_sleep_ns(QEMUClockType type,
                                                 int64_t ns)
{
    QemuCoSleep w = { NULL };

    if (!aio_context_current()) {
        co_sleep_ns(ns);
        return;
    }
    qemu_co_sleep_ns_wakeable(&w, type, ns);
}

typedef void CleanupFunc(void *opaque);

/* Shared by the caller and the coroutine; who comes last frees it. */
typedef struct CoaioQemuTimeout {
    CoroutineEntry *entry;
    void *opaque;
    CleanupFunc *clean;
    QemuCoSleep sleep;
    bool one_left; /* the entry has returned, or its time was up */
} CoaioQemuTimeout;

static inline void coroutine_fn coaio_qemu_timeout_run(void *opaque)
{
    CoaioQemuTimeout *t = (CoaioQemuTimeout *)opaque;

    t->entry(t->opaque);
    if (!t->one_left) {
        t->one_left = true;
        qemu_co_sleep_wake(&t->sleep);
        return;
    }
    if (t->clean) {
        t->clean(t->opaque);
    }
    free(t);
}

/*
 * Run entry(opaque) in a coroutine, and wait for it for at most timeout_ns; 0:
 * run it here, without a limit.  Returns 0 when it has returned, or
 * -ETIMEDOUT: then it goes on, and clean(opaque) is called when it returns.
 * It must return in the context where it began.
 */
static inline int coroutine_fn qemu_co_timeout(CoroutineEntry *entry,
                                               void *opaque,
                                               uint64_t timeout_ns,
                                               CleanupFunc *clean)
{
    CoaioQemuTimeout *t;

    if (timeout_ns == 0) {
        entry(opaque);
        return 0;
    }
    if (!aio_context_current()) {
        coaio_qemu_die("qemu_co_timeout: this thread has no context that could "
                       "end it");
    }
    t = (CoaioQemuTimeout *)coaio_qemu_alloc(sizeof(*t));
    t->entry = entry;
    t->opaque = opaque;
    t->clean = clean;
    aio_co_enter(aio_context_current(),
                 qemu_coroutine_create(coaio_qemu_timeout_run, t));
    qemu_co_sleep_ns_wakeable(&t->sleep, QEMU_CLOCK_REALTIME,
                              timeout_ns > (uint64_t)INT64_MAX
                                  ? INT64_MAX
                                  : (int64_t)timeout_ns);
    if (t->one_left) {
        free(t);
        return 0;
    }
    t->one_left = true;
    return -ETIMEDOUT;
}

/* --- coroutine.h: sockets ------------------------------------------------*/

static inline void coroutine_fn yield_until_fd_readable(int fd)
{
    co_poll_fd(fd, POLLIN, -1);
}

#define COAIO_QEMU_PARTS 16

/* Fill msg with the first of the parts that iov has from offset on. */
static inline void coaio_qemu_slice(struct msghdr *msg, struct iovec *parts,
                                    const struct iovec *iov, unsigned iov_cnt,
                                    size_t offset, size_t bytes)
{
    unsigned n = 0;

    for (unsigned i = 0; i < iov_cnt && bytes && n < COAIO_QEMU_PARTS; i++) {
        size_t length = iov[i].iov_len;

        if (offset >= length) {
            offset -= length;
            continue;
        }
        length -= offset;
        length = length < bytes ? length : bytes;
        parts[n].iov_base = (char *)iov[i].iov_base + offset;
        parts[n].iov_len = length;
        n++;
        bytes -= length;
        offset = 0;
    }
    if (n == 0) {
        coaio_qemu_die("qemu_co_sendv_recvv: the vector is too short");
    }
    memset(msg, 0, sizeof(*msg));
    msg->msg_iov = parts;
    msg->msg_iovlen = n;
}

/*
 * Returns the number of bytes, which is short at the end of the stream or after
 * an error; or, if there were none, 0 or the negative errno value.
 */
static inline ssize_t coroutine_fn qemu_co_sendv_recvv(int sockfd,
                                                       struct iovec *iov,
                                                       unsigned iov_cnt,
                                                       size_t offset,
                                                       size_t bytes,
                                                       bool do_send)
{
    size_t done = 0;

    while (done < bytes) {
        struct iovec parts[COAIO_QEMU_PARTS];
        struct msghdr msg;
        ssize_t n;

        coaio_qemu_slice(&msg, parts, iov, iov_cnt, offset + done,
                         bytes - done);
        n = do_send ? sendmsg(sockfd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL)
                    : recvmsg(sockfd, &msg, MSG_DONTWAIT);
        if (n < 0 && co_errno() == EAGAIN) {
            coroutine_yield();
        } else if (n < 0 && co_errno() != EINTR) {
            return done ? (ssize_t)done : -co_errno();
        } else if (n == 0 && !do_send) {
            break;
        } else if (n > 0) {
            done += (size_t)n;
        }
    }
    return (ssize_t)done;
}

static inline ssize_t coroutine_fn qemu_co_send_recv(int sockfd, void *buf,
                                                     size_t bytes,
                                                     bool do_send)
{
    struct iovec iov = { buf, bytes };

    return qemu_co_sendv_recvv(sockfd, &iov, 1, 0, bytes, do_send);
}

#define qemu_co_recvv(sockfd, iov, iov_cnt, offset, bytes)                    \
    qemu_co_sendv_recvv(sockfd, iov, iov_cnt, offset, bytes, false)
#define qemu_co_sendv(sockfd, iov, iov_cnt, offset, bytes)                    \
    qemu_co_sendv_recvv(sockfd, iov, iov_cnt, offset, bytes, true)
#define qemu_co_recv(fd, buf, bytes) qemu_co_send_recv(fd, buf, bytes, false)
#define qemu_co_send(fd, buf, bytes) qemu_co_send_recv(fd, buf, bytes, true)

/* --- aio-wait.h ----------------------------------------------------------*/

/* Wait while cond is true.  The value is whether that took a pass at least. */
#define AIO_WAIT_WHILE(ctx, cond)                                             \
    __extension__({                                                           \
        bool coaio_waited_ = false;                                           \
        AioWaiter coaio_waiter_;                                              \
        aio_wait_begin(&coaio_waiter_, (ctx));                                \
        while (aio_wait_prepare(&coaio_waiter_), (cond)) {                    \
            aio_wait_step(&coaio_waiter_);                                    \
            coaio_waited_ = true;                                             \
        }                                                                     \
        aio_wait_end(&coaio_waiter_);                                         \
        coaio_waited_;                                                        \
    })
#define AIO_WAIT_WHILE_UNLOCKED(ctx, cond) AIO_WAIT_WHILE(ctx, cond)
#define AIO_WAIT_WHILE_INTERNAL(ctx, cond) AIO_WAIT_WHILE(ctx, cond)

/* --- thread-pool.h -------------------------------------------------------*/

typedef int ThreadPoolFunc(void *opaque);
typedef void BlockCompletionFunc(void *opaque, int ret);

#define thread_pool_submit_co(func, arg) co_run_in_worker((func), (arg))

typedef struct CoaioQemuJob {
    ThreadPoolFunc *func;
    void *arg;
    BlockCompletionFunc *cb;
    void *opaque;
    int ret;
    AioBHStorage storage;
} CoaioQemuJob;

static inline void coaio_qemu_job_done(void *opaque)
{
    CoaioQemuJob job = *(CoaioQemuJob *)opaque;

    free(opaque);
    if (job.cb) {
        job.cb(job.opaque, job.ret);
    }
}

static inline void coroutine_fn coaio_qemu_job_run(void *opaque)
{
    CoaioQemuJob *job = (CoaioQemuJob *)opaque;

    job->ret = co_run_in_worker(job->func, job->arg);
    aio_bh_schedule_oneshot_embedded(coroutine_context(coroutine_self()),
                                     &job->storage, coaio_qemu_job_done, job);
}

/*
 * Call func(arg) in a worker thread, then cb(opaque, its result) in this
 * thread's context, outside coroutines.
 */
static inline void thread_pool_submit_aio(ThreadPoolFunc *func, void *arg,
                                          BlockCompletionFunc *cb,
                                          void *opaque)
{
    CoaioQemuJob *job = (CoaioQemuJob *)coaio_qemu_alloc(sizeof(*job));

    if (!aio_context_current()) {
        coaio_qemu_die("thread_pool_submit_aio: this thread has no context");
    }
    job->func = func;
    job->arg = arg;
    job->cb = cb;
    job->opaque = opaque;
    aio_co_enter(aio_context_current(),
                 coroutine_create(coaio_qemu_job_run, job));
}

/* --- iothread.h ----------------------------------------------------------*/

static inline IOThread *iothread_create(const char *id, void *errp)
{
    IOThread *iothread = NULL;

    (void)errp;
    return iothread_new(&iothread, id, NULL) < 0 ? NULL : iothread;
}

#define iothread_get_aio_context iothread_context

static inline void iothread_destroy(IOThread *iothread)
{
    iothread_stop(iothread);
    iothread_unref(iothread);
}

COAIO_END_DECLS

#include <coaio/qemu-notifier.h>

#endif
