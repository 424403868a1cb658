/* SPDX-License-Identifier: MIT */

/*
 * qemu-compat.h: code in QEMU's idiom, whose only change is what it includes.
 *
 * Each case is what a file of QEMU's block layer does with the names that it
 * finds in coroutine.h, aio.h, aio-wait.h, thread-pool.h and timer.h.  Where a
 * difference is listed at the head of qemu-compat.h, the case shows it.
 */

#include <coaio/qemu-compat.h>

#include "harness.h"

#include <fcntl.h>

/* As QEMU's tests set themselves up. */
static AioContext *ctx;

static void set_up(void)
{
    CHECK_EQ(qemu_init_main_loop(NULL), 0);
    ctx = qemu_get_aio_context();
    CHECK(ctx == qemu_get_current_aio_context());
    CHECK(in_aio_context_home_thread(ctx));
    harness_allow_fds(8); /* the main context lives as long as the process */
}

static void run_until(const bool *done)
{
    while (!*done) {
        main_loop_wait(false);
    }
}

/* Enter a coroutine, and run the loop until it says that it is done. */
typedef struct Job {
    bool done;
    int ret;
    int count;
} Job;

static void run_job(CoroutineEntry *entry, Job *job)
{
    qemu_coroutine_enter(qemu_coroutine_create(entry, job));
    run_until(&job->done);
}

/* --- coroutines ----------------------------------------------------------*/

static void coroutine_fn count_yields(void *opaque)
{
    Job *job = opaque;

    CHECK(qemu_in_coroutine());
    CHECK(qemu_coroutine_entered(qemu_coroutine_self()));
    CHECK(qemu_coroutine_get_aio_context(qemu_coroutine_self()) == ctx);
    for (int i = 0; i < 5; i++) {
        job->count++;
        qemu_coroutine_yield();
    }
    job->done = true;
}

TEST(coroutines)
{
    Job job = { 0 };
    Coroutine *co;

    set_up();
    CHECK(!qemu_in_coroutine());
    CHECK(!qemu_coroutine_self());
    co = qemu_coroutine_create(count_yields, &job);
    CHECK(!qemu_coroutine_entered(co));
    qemu_coroutine_enter(co);
    CHECK_EQ(job.count, 1);
    qemu_coroutine_enter_if_inactive(co);
    CHECK_EQ(job.count, 2);
    qemu_aio_coroutine_enter(ctx, co);
    CHECK_EQ(job.count, 3);
    aio_co_enter(ctx, co);
    CHECK_EQ(job.count, 4);
    aio_co_wake(co);
    CHECK_EQ(job.count, 5);
    aio_co_schedule(ctx, co);
    CHECK(!job.done);
    run_until(&job.done);
    qemu_coroutine_inc_pool_size(64);
    qemu_coroutine_dec_pool_size(64);
}

/* A frame that needs QEMU's stack of 1 MiB, and would not fit 64 KiB. */
static void coroutine_fn use_much_stack(void *opaque)
{
    volatile char frame[768 << 10];
    Job *job = opaque;

    for (size_t i = 0; i < sizeof(frame); i += 4096) {
        frame[i] = (char)i;
    }
    job->count = frame[4096];
    job->done = true;
}

TEST(stacks_have_the_size_of_qemus)
{
    Job job = { 0 };

    set_up();
    run_job(use_much_stack, &job);
}

static void coroutine_fn enter_other(void *opaque)
{
    Job *job = opaque;
    Job inner = { 0 };
    Coroutine *co = qemu_coroutine_create(count_yields, &inner);

    qemu_aio_coroutine_enter(qemu_get_current_aio_context(), co);
    CHECK_EQ(inner.count, 1); /* it has run within the call */
    while (!inner.done) {
        qemu_coroutine_enter(co);
    }
    job->done = true;
}

TEST(entering_from_a_coroutine_is_immediate)
{
    Job job = { 0 };

    set_up();
    run_job(enter_other, &job);
}

/* --- bottom halves -------------------------------------------------------*/

typedef struct BHTest {
    QEMUBH *bh;
    int n;
    int max;
} BHTest;

static void bh_cb(void *opaque)
{
    BHTest *t = opaque;

    if (++t->n < t->max) {
        qemu_bh_schedule(t->bh);
    }
}

static void bh_delete_cb(void *opaque)
{
    BHTest *t = opaque;

    t->n++;
    qemu_bh_delete(t->bh);
    t->bh = NULL;
}

TEST(bottom_halves)
{
    BHTest t = { .max = 10 };

    set_up();
    t.bh = aio_bh_new(ctx, bh_cb, &t);
    qemu_bh_schedule(t.bh);
    for (int i = 1; i <= 10; i++) {
        CHECK(aio_poll(ctx, false));
        CHECK_EQ(t.n, i);
    }
    CHECK(!aio_poll(ctx, false));
    qemu_bh_schedule(t.bh);
    qemu_bh_cancel(t.bh);
    CHECK(!aio_poll(ctx, false));
    qemu_bh_schedule_idle(t.bh);
    aio_poll(ctx, true); /* which idle ones do not count as progress for */
    CHECK_EQ(t.n, 11);
    qemu_bh_delete(t.bh);

    t.n = 0;
    t.bh = qemu_bh_new(bh_delete_cb, &t);
    qemu_bh_schedule(t.bh);
    CHECK(aio_poll(ctx, false));
    CHECK_EQ(t.n, 1);
    CHECK(!t.bh);
    t.bh = aio_bh_new_full(ctx, bh_cb, &t, "bh_cb", NULL);
    aio_bh_schedule_oneshot_full(ctx, bh_cb, &t, "bh_cb");
    CHECK(aio_poll(ctx, false));
    CHECK_EQ(t.n, 2);
    qemu_bh_delete(t.bh);
}

/* --- locks ---------------------------------------------------------------*/

typedef struct Counter {
    CoMutex lock;
    CoQueue room;
    int used;
    int max_used;
    int running;
    bool done;
} Counter;

#define ROOM 3

/* The shape of QEMU's bounce buffers, with its flag to keep one's place. */
static void coroutine_fn take_room(Counter *c)
{
    CoQueueWaitFlags flags = 0;

    QEMU_LOCK_GUARD(&c->lock);
    qemu_co_mutex_assert_locked(&c->lock);
    while (c->used == ROOM) {
        qemu_co_queue_wait_flags(&c->room, &c->lock, flags);
        flags = CO_QUEUE_WAIT_FRONT;
    }
    c->used++;
    if (c->used > c->max_used) {
        c->max_used = c->used;
    }
}

static void coroutine_fn room_entry(void *opaque)
{
    Counter *c = opaque;

    take_room(c);
    qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, 1000);
    WITH_QEMU_LOCK_GUARD(&c->lock) {
        c->used--;
        qemu_co_queue_next(&c->room);
    }
    qemu_co_mutex_lock(&c->lock);
    if (--c->running == 0) {
        c->done = true;
    }
    qemu_co_mutex_unlock(&c->lock);
}

TEST(mutex_and_queue)
{
    Counter c = { .running = 20 };

    set_up();
    qemu_co_mutex_init(&c.lock);
    qemu_co_queue_init(&c.room);
    for (int i = 0; i < 20; i++) {
        qemu_coroutine_enter(qemu_coroutine_create(room_entry, &c));
    }
    CHECK(!qemu_co_queue_empty(&c.room));
    run_until(&c.done);
    CHECK_EQ(c.max_used, ROOM);
    CHECK_EQ(c.used, 0);
    CHECK(qemu_co_queue_empty(&c.room));
}

static int lock_guard_returns(QemuMutex *mutex, int way)
{
    int passes = 0;

    for (int i = 0; i < 2; i++) {
        WITH_QEMU_LOCK_GUARD(mutex) {
            CHECK_EQ(qemu_mutex_trylock(mutex), -EBUSY);
            passes++;
            if (way == 1) {
                return passes;
            }
            if (way == 2) {
                break;
            }
            if (way == 3) {
                continue;
            }
        }
        CHECK_EQ(qemu_mutex_trylock(mutex), 0);
        qemu_mutex_unlock(mutex);
    }
    return passes;
}

TEST(lock_guards_release_on_every_way_out)
{
    QemuMutex mutex;

    qemu_mutex_init(&mutex);
    for (int way = 0; way < 4; way++) {
        CHECK_EQ(lock_guard_returns(&mutex, way), way == 1 ? 1 : 2);
        CHECK_EQ(qemu_mutex_trylock(&mutex), 0);
        qemu_mutex_unlock(&mutex);
    }
    {
        QEMU_LOCK_GUARD(&mutex);
        CHECK_EQ(qemu_mutex_trylock(&mutex), -EBUSY);
    }
    qemu_lockable_lock(QEMU_MAKE_LOCKABLE(&mutex));
    qemu_lockable_unlock(QEMU_MAKE_LOCKABLE_NONNULL(&mutex));
    CHECK(!QEMU_MAKE_LOCKABLE(NULL));
    qemu_mutex_destroy(&mutex);
}

typedef struct Plain {
    QemuMutex lock;
    CoQueue queue;
    QemuLockable *lockable;
    int waiting;
    int woken;
} Plain;

static void coroutine_fn wait_plain(void *opaque)
{
    Plain *p = opaque;

    qemu_mutex_lock(&p->lock);
    p->waiting++;
    qemu_co_queue_wait(&p->queue, &p->lock);
    p->woken++;
    qemu_mutex_unlock(&p->lock);
}

static void coroutine_fn wake_plain(void *opaque)
{
    Plain *p = opaque;

    qemu_mutex_lock(&p->lock);
    qemu_co_enter_next(&p->queue, &p->lock);
    CHECK_EQ(p->woken, 0); /* in a coroutine: when it gives up control */
    qemu_mutex_unlock(&p->lock);
}

TEST(queues_under_locks_of_threads)
{
    Plain p = { .waiting = 0 };

    set_up();
    qemu_mutex_init(&p.lock);
    qemu_co_queue_init(&p.queue);
    for (int i = 0; i < 4; i++) {
        qemu_coroutine_enter(qemu_coroutine_create(wait_plain, &p));
    }
    CHECK_EQ(p.waiting, 4);
    qemu_coroutine_enter(qemu_coroutine_create(wake_plain, &p));
    CHECK_EQ(p.woken, 1);
    qemu_mutex_lock(&p.lock);
    CHECK(qemu_co_enter_next(&p.queue, &p.lock));
    CHECK_EQ(p.woken, 2); /* outside: before the call returns */
    p.lockable = QEMU_MAKE_LOCKABLE(&p.lock);
    qemu_co_enter_all(&p.queue, p.lockable);
    CHECK_EQ(p.woken, 4);
    CHECK(!qemu_co_enter_next(&p.queue, &p.lock));
    qemu_mutex_unlock(&p.lock);
    qemu_mutex_destroy(&p.lock);
}

static void coroutine_fn wait_bare(void *opaque)
{
    Plain *p = opaque;

    qemu_co_queue_wait(&p->queue, NULL);
    p->woken++;
}

static void coroutine_fn wake_bare(void *opaque)
{
    Plain *p = opaque;

    qemu_co_queue_restart_all(&p->queue);
    CHECK_EQ(p->woken, 0);
}

TEST(queues_without_a_lock)
{
    Plain p = { .waiting = 0 };

    set_up();
    qemu_co_queue_init(&p.queue);
    qemu_coroutine_enter(qemu_coroutine_create(wait_bare, &p));
    qemu_coroutine_enter(qemu_coroutine_create(wait_bare, &p));
    qemu_coroutine_enter(qemu_coroutine_create(wake_bare, &p));
    CHECK_EQ(p.woken, 2);
}

typedef struct RwTest {
    CoRwlock lock;
    int readers;
    int steps;
} RwTest;

static void coroutine_fn rw_reader(void *opaque)
{
    RwTest *t = opaque;

    qemu_co_rwlock_rdlock(&t->lock);
    t->readers++;
    qemu_coroutine_yield();
    t->readers--;
    qemu_co_rwlock_upgrade(&t->lock);
    CHECK_EQ(t->readers, 0);
    t->steps++;
    qemu_co_rwlock_downgrade(&t->lock);
    qemu_co_rwlock_unlock(&t->lock);
}

static void coroutine_fn rw_writer(void *opaque)
{
    RwTest *t = opaque;

    qemu_co_rwlock_wrlock(&t->lock);
    CHECK_EQ(t->readers, 0);
    t->steps++;
    qemu_co_rwlock_unlock(&t->lock);
}

TEST(rwlock)
{
    RwTest t = { .readers = 0 };
    Coroutine *a, *b;

    set_up();
    qemu_co_rwlock_init(&t.lock);
    a = qemu_coroutine_create(rw_reader, &t);
    b = qemu_coroutine_create(rw_reader, &t);
    qemu_coroutine_enter(a);
    qemu_coroutine_enter(b);
    CHECK_EQ(t.readers, 2);
    qemu_coroutine_enter(qemu_coroutine_create(rw_writer, &t));
    CHECK_EQ(t.steps, 0);
    qemu_coroutine_enter(a);
    qemu_coroutine_enter(b);
    CHECK_EQ(t.steps, 3);
}

/* --- timers and sleeping -------------------------------------------------*/

typedef struct TimerTest {
    QEMUTimer timer;
    int n;
    bool done;
} TimerTest;

static void timer_cb(void *opaque)
{
    TimerTest *t = opaque;

    if (++t->n < 3) {
        timer_mod(&t->timer, qemu_clock_get_us(QEMU_CLOCK_VIRTUAL) + 100);
    } else {
        t->done = true;
    }
}

TEST(timers)
{
    TimerTest t = { .n = 0 };
    int64_t now;

    set_up();
    aio_timer_init(ctx, &t.timer, QEMU_CLOCK_VIRTUAL, SCALE_US, timer_cb, &t);
    CHECK(!timer_pending(&t.timer));
    CHECK_EQ(timer_expire_time_ns(&t.timer), UINT64_MAX);
    timer_mod(&t.timer, qemu_clock_get_us(QEMU_CLOCK_VIRTUAL) + 100);
    run_until(&t.done);
    CHECK_EQ(t.n, 3);

    now = qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL);
    timer_mod_ns(&t.timer, now + NANOSECONDS_PER_SECOND * 1000);
    CHECK_EQ(timer_expire_time_ns(&t.timer),
             now + NANOSECONDS_PER_SECOND * 1000);
    now /= SCALE_US; /* as the timer counts */
    timer_mod(&t.timer, now + 1000 * 1000000LL);
    timer_mod_anticipate_ns(&t.timer, INT64_MAX);
    CHECK(timer_expired(&t.timer, now + 1000 * 1000000LL));
    timer_mod_anticipate(&t.timer, now + 900 * 1000000LL);
    CHECK(timer_expired(&t.timer, now + 900 * 1000000LL));
    CHECK(!timer_expired(&t.timer, now));
    timer_del(&t.timer);
    CHECK(!timer_pending(&t.timer));
    timer_deinit(&t.timer);
}

static void set_done(void *opaque)
{
    *(bool *)opaque = true;
}

TEST(timers_of_the_main_loop)
{
    bool done = false;
    QEMUTimer *ts;
    QEMUTimer embedded;
    AioTimer native;

    set_up();
    ts = timer_new_ms(QEMU_CLOCK_REALTIME, set_done, &done);
    timer_mod(ts, qemu_clock_get_ms(QEMU_CLOCK_REALTIME));
    run_until(&done);
    timer_free(ts);
    timer_free(NULL);

    done = false;
    timer_init_us(&embedded, QEMU_CLOCK_HOST, set_done, &done);
    timer_mod(&embedded, qemu_clock_get_us(QEMU_CLOCK_HOST));
    run_until(&done);

    done = false;
    ts = aio_timer_new(ctx, QEMU_CLOCK_REALTIME, SCALE_NS, set_done, &done);
    timer_mod_ns(ts, get_clock());
    run_until(&done);
    timer_free(ts);

    /* coaio's own function of the same name. */
    done = false;
    aio_timer_init(&native, ctx, AIO_CLOCK_MONOTONIC, set_done, &done);
    aio_timer_mod_ns(&native, 0);
    run_until(&done);

    CHECK_EQ(qemu_soonest_timeout(-1, 5), 5);
    CHECK_EQ(qemu_soonest_timeout(7, 5), 5);
    CHECK_EQ(qemu_soonest_timeout(-1, -1), -1);
}

/* It took the time for nanoseconds, and an idle timer for one to come. */
TEST(a_timer_has_expired_by_its_own_unit_or_is_idle)
{
    bool done = false;
    QEMUTimer ts;
    int64_t now;

    set_up();
    timer_init_ms(&ts, QEMU_CLOCK_REALTIME, set_done, &done);
    CHECK(timer_expired(&ts, 0));
    now = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    timer_mod(&ts, now + 1000000);
    CHECK(!timer_expired(&ts, now + 999999));
    CHECK(timer_expired(&ts, now + 1000000));
    timer_mod(&ts, now);
    run_until(&done);
    CHECK(timer_expired(&ts, 0));
    CHECK(!timer_expired(NULL, now));
}

/* Deleting it crashed. */
TEST(a_timer_that_is_zeroed_may_be_deleted)
{
    QEMUTimer zeroed = { .scale = 0 };
    QEMUTimer *ts = calloc(1, sizeof(*ts));

    set_up();
    timer_del(&zeroed);
    timer_del(&zeroed);
    CHECK(!timer_pending(&zeroed));
    timer_free(ts);
}

/* It looked at the context that the timer had had, which may be gone. */
TEST(a_timer_that_was_given_up_may_be_deleted)
{
    AioContext *other = aio_context_new(NULL);
    QEMUTimer ts;

    set_up();
    aio_timer_init(other, &ts, QEMU_CLOCK_REALTIME, SCALE_NS, set_done, NULL);
    timer_deinit(&ts);
    aio_context_unref(other);
    timer_del(&ts);
    CHECK(!timer_pending(&ts));
}

static void coroutine_fn sleep_a_little(void *opaque)
{
    Job *job = opaque;
    int64_t begin = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, 100000);
    CHECK(qemu_clock_get_ns(QEMU_CLOCK_REALTIME) - begin >= 100000);
    job->done = true;
}

TEST(sleep_lasts)
{
    Job job = { 0 };

    set_up();
    run_job(sleep_a_little, &job);
}

static bool slept;

static void coroutine_fn sleep_briefly(void *opaque)
{
    (void)opaque;
    qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, 1000);
    slept = true;
}

/* It crashed. */
TEST(without_a_context_the_thread_sleeps)
{
    qemu_coroutine_enter(qemu_coroutine_create(sleep_briefly, NULL));
    CHECK(slept);
}

static void coroutine_fn sleep_to_be_woken(void *opaque)
{
    QemuCoSleep w = { NULL };

    (void)opaque;
    qemu_co_sleep_ns_wakeable(&w, QEMU_CLOCK_REALTIME, 1000);
}

TEST_ABORTS(a_sleep_that_nobody_can_end, "^coaio: qemu_co_sleep_ns_wakeable: "
                                         "this thread has no context")
{
    qemu_coroutine_enter(qemu_coroutine_create(sleep_to_be_woken, NULL));
}

static void coroutine_fn time_out(void *opaque)
{
    qemu_co_timeout(sleep_briefly, opaque, 1000, NULL);
}

TEST_ABORTS(a_timeout_without_a_context,
            "^coaio: qemu_co_timeout: this thread has no context")
{
    qemu_coroutine_enter(qemu_coroutine_create(time_out, NULL));
}

typedef struct Sleeper {
    QemuCoSleep sleep;
    int steps;
} Sleeper;

static void coroutine_fn sleep_long(void *opaque)
{
    Sleeper *s = opaque;

    qemu_co_sleep_ns_wakeable(&s->sleep, QEMU_CLOCK_REALTIME, INT64_MAX);
    s->steps++;
    qemu_co_sleep(&s->sleep);
    s->steps++;
}

TEST(sleep_is_ended_early)
{
    Sleeper s = { .steps = 0 };

    set_up();
    qemu_co_sleep_wake(&s.sleep); /* nobody sleeps */
    qemu_coroutine_enter(qemu_coroutine_create(sleep_long, &s));
    CHECK_EQ(s.steps, 0);
    qemu_co_sleep_wake(&s.sleep);
    CHECK_EQ(s.steps, 1);
    qemu_co_sleep_wake(&s.sleep);
    CHECK_EQ(s.steps, 2);
}

typedef struct Late {
    QemuCoSleep sleep;
    bool ran;
    bool cleaned;
    int ret;
    bool done;
} Late;

static void coroutine_fn run_late(void *opaque)
{
    Late *late = opaque;

    qemu_co_sleep(&late->sleep);
    late->ran = true;
}

static void coroutine_fn run_soon(void *opaque)
{
    Late *late = opaque;

    qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, 1000);
    late->ran = true;
}

static void clean_late(void *opaque)
{
    Late *late = opaque;

    late->cleaned = true;
}

static void coroutine_fn use_timeout(void *opaque)
{
    Late *late = opaque;

    CHECK_EQ(qemu_co_timeout(run_soon, late, UINT64_MAX, clean_late), 0);
    CHECK(late->ran);
    late->ran = false;
    CHECK_EQ(qemu_co_timeout(run_soon, late, 0, clean_late), 0);
    CHECK(late->ran && !late->cleaned);
    late->ran = false;
    CHECK_EQ(qemu_co_timeout(run_late, late, 1000, clean_late), -ETIMEDOUT);
    CHECK(!late->ran && !late->cleaned);
    late->done = true;
}

TEST(timeouts)
{
    Late late = { .ret = 0 };

    set_up();
    qemu_coroutine_enter(qemu_coroutine_create(use_timeout, &late));
    run_until(&late.done);
    qemu_co_sleep_wake(&late.sleep);
    CHECK(late.ran && late.cleaned);
}

/* --- threads -------------------------------------------------------------*/

static int double_it(void *opaque)
{
    int *value = opaque;

    CHECK(!qemu_in_coroutine());
    *value *= 2;
    return *value;
}

static void coroutine_fn submit_co(void *opaque)
{
    Job *job = opaque;

    job->count = 21;
    job->ret = thread_pool_submit_co(double_it, &job->count);
    job->done = true;
}

static void submit_done(void *opaque, int ret)
{
    Job *job = opaque;

    CHECK(!qemu_in_coroutine());
    job->ret = ret;
    job->done = true;
}

TEST(thread_pool)
{
    Job job = { 0 };

    set_up();
    run_job(submit_co, &job);
    CHECK_EQ(job.ret, 42);
    job.done = false;
    thread_pool_submit_aio(double_it, &job.count, submit_done, &job);
    CHECK(!job.done);
    run_until(&job.done);
    CHECK_EQ(job.ret, 84);
}

static IOThread *iothread;

static void in_iothread(void *opaque)
{
    Job *job = opaque;

    CHECK(qemu_get_current_aio_context() == iothread_get_aio_context(iothread));
    job->count++;
}

static void coroutine_fn hop(void *opaque)
{
    Job *job = opaque;
    AioContext *target = iothread_get_aio_context(iothread);

    for (int i = 0; i < 100; i++) {
        aio_co_reschedule_self(target);
        CHECK(in_aio_context_home_thread(target));
        aio_co_reschedule_self(ctx);
        CHECK(in_aio_context_home_thread(ctx));
        job->count++;
    }
    aio_co_reschedule_self(target);
    __atomic_store_n(&job->done, true, __ATOMIC_RELEASE);
    aio_wait_kick();
}

TEST(iothread_and_wait)
{
    Job job = { 0 };
    AioContext *target;

    set_up();
    iothread = iothread_create("io", NULL);
    CHECK(iothread != NULL);
    target = iothread_get_aio_context(iothread);
    aio_context_set_poll_params(target, 0, 0, 0, NULL);
    CHECK_EQ(aio_context_set_poll_params(target, 0, 0, 0), 0);
    aio_wait_bh_oneshot(target, in_iothread, &job);
    CHECK_EQ(job.count, 1);

    qemu_coroutine_enter(qemu_coroutine_create(hop, &job));
    CHECK(AIO_WAIT_WHILE_UNLOCKED(
        NULL, !__atomic_load_n(&job.done, __ATOMIC_ACQUIRE)));
    CHECK_EQ(job.count, 101);
    CHECK(!AIO_WAIT_WHILE(target, false));
    aio_context_acquire(target);
    aio_context_release(target);
    iothread_destroy(iothread);
}

TEST(contexts)
{
    AioContext *other, *native = NULL;

    other = aio_context_new(NULL);
    CHECK(other != NULL);
    aio_context_ref(other);
    aio_context_unref(other);
    qemu_set_current_aio_context(other);
    CHECK(qemu_get_current_aio_context() == other);
    aio_notify(other);
    CHECK(!aio_poll(other, true));
    aio_context_unref(other);
    CHECK_EQ(aio_context_new(&native, NULL), 0);
    aio_context_unref(native);
}

QEMU_DEFINE_STATIC_CO_TLS(int, depth)

TEST(thread_locals)
{
    set_depth(3);
    CHECK_EQ(get_depth(), 3);
    CHECK_EQ(*get_ptr_depth(), 3);
}

/* --- descriptors ---------------------------------------------------------*/

typedef struct Stream {
    int fd;
    Coroutine *co;
    char *data;
    ssize_t ret;
    bool done;
} Stream;

#define STREAM_BYTES (1 << 20)

/* QEMU's way: a handler enters the coroutine whenever there may be more. */
static void stream_ready(void *opaque)
{
    Stream *s = opaque;

    qemu_coroutine_enter(s->co);
}

static void coroutine_fn stream_send(void *opaque)
{
    Stream *s = opaque;
    struct iovec iov[3] = {
        { s->data, 1000 },
        { s->data + 1000, 0 },
        { s->data + 1000, STREAM_BYTES - 1000 },
    };

    s->ret = qemu_co_sendv(s->fd, iov, 3, 0, 500);
    CHECK_EQ(s->ret, 500);
    s->ret = qemu_co_sendv(s->fd, iov, 3, 500, STREAM_BYTES - 500);
    s->done = true;
}

static void coroutine_fn stream_recv(void *opaque)
{
    Stream *s = opaque;
    struct iovec iov = { s->data, STREAM_BYTES };

    s->ret = qemu_co_recv(s->fd, s->data, 100);
    CHECK_EQ(s->ret, 100);
    s->ret = qemu_co_recvv(s->fd, &iov, 1, 100, STREAM_BYTES - 100);
    s->done = true;
}

/* The peer has gone. */
static void coroutine_fn stream_ends(void *opaque)
{
    Stream *s = opaque;

    CHECK_EQ(qemu_co_recv(s->fd, s->data, 100), 0);
    CHECK_EQ(qemu_co_send(s->fd, s->data, 100), -EPIPE);
    s->done = true;
}

TEST(sockets)
{
    Stream out = { .data = malloc(STREAM_BYTES) };
    Stream in = { .data = calloc(1, STREAM_BYTES) };
    int fds[2];

    set_up();
    CHECK(out.data && in.data);
    for (size_t i = 0; i < STREAM_BYTES; i++) {
        out.data[i] = (char)(i * 7 + i / 251);
    }
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    out.fd = fds[0];
    in.fd = fds[1];
    out.co = qemu_coroutine_create(stream_send, &out);
    in.co = qemu_coroutine_create(stream_recv, &in);
    qemu_set_fd_handler(out.fd, NULL, stream_ready, &out);
    qemu_set_fd_handler(in.fd, stream_ready, NULL, &in);
    while (!out.done) {
        main_loop_wait(false);
    }
    qemu_set_fd_handler(out.fd, NULL, NULL, NULL);
    run_until(&in.done);
    CHECK_EQ(out.ret, STREAM_BYTES - 500);
    CHECK_EQ(in.ret, STREAM_BYTES - 100);
    CHECK_EQ(memcmp(in.data, out.data, STREAM_BYTES), 0);

    qemu_set_fd_handler(in.fd, NULL, NULL, NULL);
    close(out.fd);
    in.done = false;
    qemu_coroutine_enter(qemu_coroutine_create(stream_ends, &in));
    CHECK(in.done);
    close(in.fd);
    free(out.data);
    free(in.data);
}

static void coroutine_fn wait_readable(void *opaque)
{
    Stream *s = opaque;
    char c;

    yield_until_fd_readable(s->fd);
    CHECK_EQ(read(s->fd, &c, 1), 1);
    s->done = true;
}

TEST(readable)
{
    Stream s = { .done = false };
    int fds[2];

    set_up();
    CHECK_EQ(pipe(fds), 0);
    s.fd = fds[0];
    qemu_coroutine_enter(qemu_coroutine_create(wait_readable, &s));
    CHECK(!s.done);
    CHECK_EQ(write(fds[1], "x", 1), 1);
    run_until(&s.done);
    close(fds[0]);
    close(fds[1]);
}

typedef struct Notified {
    EventNotifier e;
    int n;
    bool done;
} Notified;

static void notified(EventNotifier *e)
{
    Notified *t = (Notified *)(void *)e; /* its first member */

    CHECK(event_notifier_test_and_clear(e));
    if (++t->n < 5) {
        event_notifier_set(e);
    } else {
        t->done = true;
    }
}

TEST(event_notifiers)
{
    Notified t = { .n = 0 };

    set_up();
    CHECK_EQ(event_notifier_init(&t.e, false), 0);
    CHECK(event_notifier_get_fd(&t.e) >= 0);
    CHECK(!event_notifier_test_and_clear(&t.e));
    aio_set_event_notifier(ctx, &t.e, notified, NULL, NULL);
    event_notifier_set(&t.e);
    run_until(&t.done);
    CHECK_EQ(t.n, 5);
    aio_set_event_notifier(ctx, &t.e, NULL, NULL, NULL);
    event_notifier_cleanup(&t.e);
}

TEST(a_zeroed_event_notifier_is_none)
{
    EventNotifier e = { 0 };

    set_up();
    aio_set_event_notifier(ctx, &e, NULL, NULL, NULL);
    CHECK(!event_notifier_test_and_clear(&e));
    CHECK_EQ(event_notifier_set(&e), -1);
    event_notifier_cleanup(&e);
    CHECK(fcntl(0, F_GETFD) >= 0);
}

TEST_MAIN()
