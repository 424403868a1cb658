/* SPDX-License-Identifier: MIT */
/*
 * CoRwlock: who is let in with whom and in which order, upgrade and downgrade
 * with others queued, on one context, where all is certain; then across
 * threads; then misuse.
 */
#include "loops.h"

#include "loop/wait.h"
#include "os/fault.h"
#include "os/thread.h"
#include "sync/brief.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MANY 100

/* The word then, and of it what says that somebody waits. */
#define ONE_READER (BRIEF_OWNERS << 2)
#define ONE_WAITS  (BRIEF_OWNERS << 1)

typedef struct Job {
    CoRwlock *lock;
    char kind;        /* 'r' or 'w', then what `then` says */
    const char *then; /* of each yield: 'd'owngrade, 'u'pgrade; then unlock */
    int number;
    bool has;   /* holds the lock */
    bool write; /* for writing */
    bool done;
    Coroutine *co;
} Job;

static CoRwlock rwlock;
static Job jobs[MANY];
static int n_jobs;
static int order[MANY * 2]; /* numbers, as they get the lock */
static int n_order;

static void note(Job *job, bool write)
{
    job->has = true;
    job->write = write;
    order[n_order++] = job->number;
}

/* Takes the lock, and goes one step on each time that it is entered. */
static void worker(void *opaque)
{
    Job *job = opaque;

    if (job->kind == 'w') {
        co_rwlock_wrlock(job->lock);
    } else {
        co_rwlock_rdlock(job->lock);
    }
    note(job, job->kind == 'w');
    for (const char *step = job->then; *step; step++) {
        coroutine_yield();
        job->has = false;
        if (*step == 'u') {
            co_rwlock_upgrade(job->lock);
        } else {
            co_rwlock_downgrade(job->lock);
        }
        note(job, *step == 'u');
    }
    coroutine_yield();
    job->has = false;
    co_rwlock_unlock(job->lock);
    job->done = true;
}

static Job *add(char kind, const char *then)
{
    Job *job = &jobs[n_jobs];

    *job = (Job){.lock = &rwlock, .kind = kind, .then = then, .number = n_jobs};
    n_jobs++;
    job->co = begin(worker, job);
    return job;
}

static void step(Job *job)
{
    coroutine_enter(job->co);
}

static void check_idle(void)
{
    CHECK_EQ(rwlock.word_, 0);
    CHECK(rwlock.writer_ == NULL);
    CHECK(rwlock.waiters_.head_ == NULL);
}

static void check_order(const char *expected)
{
    CHECK_EQ(n_order, (int)strlen(expected));
    for (int i = 0; i < n_order; i++) {
        CHECK_EQ(order[i], expected[i] - '0');
    }
}

TEST(init_makes_it_unlocked)
{
    here_open();
    memset(&rwlock, 0xa5, sizeof(rwlock));
    co_rwlock_init(&rwlock);
    step(add('w', ""));
    CHECK(jobs[0].done);
    check_idle();
    here_close();
}

static void count_operations(void *opaque)
{
    CoRwlock *lock = opaque;
    uint64_t before = os_locked_operations();

    co_rwlock_rdlock(lock);
    co_rwlock_unlock(lock);
    CHECK_EQ(os_locked_operations() - before, 2);
    before = os_locked_operations();
    co_rwlock_wrlock(lock);
    co_rwlock_downgrade(lock);
    co_rwlock_upgrade(lock);
    co_rwlock_unlock(lock);
    CHECK_EQ(os_locked_operations() - before, 4);
}

TEST(where_nobody_waits_each_call_is_one_locked_operation)
{
    here_open();
    begin(count_operations, &rwlock);
    check_idle();
    here_close();
}

TEST(readers_read_in_parallel)
{
    here_open();
    for (int i = 0; i < MANY; i++) {
        CHECK(add('r', "")->has);
    }
    for (int i = 0; i < MANY; i++) {
        step(&jobs[i]);
        CHECK(jobs[i].done);
    }
    check_idle();
    here_close();
}

TEST(a_writer_is_alone)
{
    Job *w, *r, *w2;

    here_open();
    w = add('w', "");
    r = add('r', "");
    w2 = add('w', "");
    CHECK(w->has && !r->has && !w2->has);
    step(w);
    CHECK(w->done && r->has && !w2->has);
    step(r);
    CHECK(r->done && w2->has);
    step(w2);
    check_idle();
    here_close();
}

/* No starvation of writers: a reader does not pass a writer that waits. */
TEST(a_reader_queues_behind_a_writer)
{
    Job *r, *w, *late;

    here_open();
    r = add('r', "");
    w = add('w', "");
    late = add('r', "");
    CHECK(r->has && !w->has && !late->has);
    step(r);
    CHECK(w->has && !late->has);
    step(w);
    CHECK(late->has);
    step(late);
    check_order("012");
    check_idle();
    here_close();
}

/* No starvation of readers: writers take their turns among them. */
TEST(first_come_first_served)
{
    here_open();
    add('w', "");
    add('r', "");
    add('r', "");
    add('w', "");
    add('w', "");
    add('r', "");
    add('r', "");
    add('r', "");
    CHECK_EQ(n_order, 1);
    step(&jobs[0]);
    CHECK_EQ(n_order, 3); /* both readers */
    step(&jobs[2]);
    CHECK_EQ(n_order, 3);
    step(&jobs[1]);
    CHECK_EQ(n_order, 4);
    CHECK(jobs[3].has && jobs[3].write);
    step(&jobs[3]);
    CHECK_EQ(n_order, 5);
    step(&jobs[4]);
    CHECK_EQ(n_order, 8); /* all three */
    for (int i = 5; i < 8; i++) {
        step(&jobs[i]);
    }
    check_order("01234567");
    check_idle();
    here_close();
}

static void unlock_with_a_waiter(void *opaque)
{
    Job *waiter = opaque;

    co_rwlock_wrlock(&rwlock);
    coroutine_yield();
    co_rwlock_unlock(&rwlock);
    CHECK(!waiter->has);         /* does not run within the unlock, */
    CHECK_EQ(rwlock.word_, ONE_READER); /* but has the lock already */
}

TEST(an_unlock_hands_over_and_runs_nobody)
{
    Coroutine *co;

    here_open();
    co = begin(unlock_with_a_waiter, &jobs[0]);
    add('r', "");
    coroutine_enter(co);
    CHECK(jobs[0].has);
    step(&jobs[0]);
    check_idle();
    here_close();
}

/* --- downgrade -----------------------------------------------------------*/

static void downgrade_in_one_go(void *opaque)
{
    bool *done = opaque;

    co_rwlock_wrlock(&rwlock);
    coroutine_yield();
    co_rwlock_downgrade(&rwlock); /* returns at once, whoever waits */
    *done = true;
    coroutine_yield();
    co_rwlock_unlock(&rwlock);
}

TEST(downgrade_never_waits)
{
    bool done = false;
    Coroutine *co;

    here_open();
    co = begin(downgrade_in_one_go, &done);
    add('w', "");
    add('r', "");
    add('w', "");
    coroutine_enter(co);
    CHECK(done);
    CHECK_EQ(n_order, 0); /* the writer is first, so nobody else is let in */
    coroutine_enter(co);
    for (int i = 0; i < 3; i++) {
        CHECK(jobs[i].has);
        step(&jobs[i]);
    }
    check_idle();
    here_close();
}

TEST(downgrade_lets_the_first_readers_in_and_no_writer)
{
    here_open();
    add('w', "d");
    add('r', "");
    add('r', "");
    add('w', "");
    add('r', "");
    CHECK_EQ(n_order, 1);
    step(&jobs[0]);
    CHECK(jobs[0].has && !jobs[0].write);
    CHECK(jobs[1].has && jobs[2].has);
    CHECK(!jobs[3].has && !jobs[4].has);
    step(&jobs[1]);
    step(&jobs[0]);
    CHECK(!jobs[3].has);
    step(&jobs[2]);
    CHECK(jobs[3].has && !jobs[4].has);
    step(&jobs[3]);
    CHECK(jobs[4].has);
    step(&jobs[4]);
    check_order("001234");
    check_idle();
    here_close();
}

/* --- upgrade -------------------------------------------------------------*/

static void upgrade_in_one_go(void *opaque)
{
    bool *done = opaque;

    co_rwlock_rdlock(&rwlock);
    co_rwlock_upgrade(&rwlock);
    *done = true;
    co_rwlock_unlock(&rwlock);
}

TEST(the_only_reader_upgrades_at_once)
{
    bool done = false;

    here_open();
    begin(upgrade_in_one_go, &done);
    CHECK(done);
    check_idle();
    here_close();
}

TEST(upgrade_waits_for_other_readers)
{
    Job *up, *r;

    here_open();
    up = add('r', "u");
    r = add('r', "");
    step(up);
    CHECK(!up->has);
    step(r);
    CHECK(up->has && up->write);
    step(up);
    check_idle();
    here_close();
}

/* It gives the read lock up, so a writer that came before runs before. */
TEST(upgrade_waits_its_turn_behind_a_writer)
{
    Job *up, *w;

    here_open();
    up = add('r', "u");
    w = add('w', "");
    CHECK(!w->has);
    step(up);
    CHECK(w->has && w->write && !up->has);
    step(w);
    CHECK(w->done && up->has && up->write);
    step(up);
    check_order("010");
    check_idle();
    here_close();
}

TEST(two_upgraders_do_not_deadlock)
{
    Job *a, *b;

    here_open();
    a = add('r', "u");
    b = add('r', "u");
    step(a);
    CHECK(!a->has);
    step(b);
    CHECK(a->has && a->write && !b->has);
    step(a);
    CHECK(a->done && b->has && b->write);
    step(b);
    check_order("0101");
    check_idle();
    here_close();
}

/* The queue is then: writer, reader, upgrader. */
TEST(upgrade_goes_to_the_end_and_lets_in_who_is_first)
{
    here_open();
    add('w', "du");
    add('w', "");
    add('r', "");
    step(&jobs[0]); /* downgrades: 1 is first, and waits */
    CHECK(!jobs[1].has && !jobs[2].has);
    step(&jobs[0]); /* upgrades: behind 2 */
    CHECK(jobs[1].has && !jobs[0].has);
    step(&jobs[1]);
    CHECK(jobs[2].has && !jobs[0].has);
    step(&jobs[2]);
    CHECK(jobs[0].has && jobs[0].write);
    step(&jobs[0]);
    check_order("00120");
    check_idle();
    here_close();
}

TEST(upgrade_and_downgrade_again_and_again)
{
    here_open();
    add('r', "udud");
    add('r', "ud");
    while (!jobs[0].done || !jobs[1].done) {
        for (int i = 0; i < 2; i++) {
            if (jobs[i].has) {
                step(&jobs[i]);
            }
        }
    }
    check_idle();
    here_close();
}

TEST(waiting_for_it_cannot_be_cancelled)
{
    Job *w, *r;

    here_open();
    w = add('w', "");
    r = add('r', "");
    CHECK(!co_wait_cancel(r->co, -ECANCELED));
    CHECK(!r->has);
    step(w);
    CHECK(r->has);
    step(r);
    check_idle();
    here_close();
}

/* --- across threads ------------------------------------------------------*/

typedef struct Table {
    CoRwlock lock;
    int64_t readers; /* atomic; in the lock now */
    int64_t writers;
    unsigned long sum[2]; /* plain; equal, except while a writer works */
    unsigned long rounds;
    unsigned long written; /* plain */
    unsigned write_percent;
    bool hop; /* suspend with the lock held, at times */
} Table;

static void pause_here(const Table *t, unsigned long i)
{
    if (t->hop && i % 8 == 0) {
        aio_co_schedule(aio_context_current(), coroutine_self());
        coroutine_yield();
    }
}

static void read_table(Table *t, unsigned long i)
{
    fetch_add_acq_rel(&t->readers, (int64_t)1);
    CHECK_EQ(load_acquire(&t->writers), 0);
    CHECK_EQ(t->sum[0], t->sum[1]);
    pause_here(t, i);
    CHECK_EQ(t->sum[0], t->sum[1]);
    fetch_sub_acq_rel(&t->readers, (int64_t)1);
}

static void write_table(Table *t, unsigned long i)
{
    CHECK_EQ(fetch_add_acq_rel(&t->writers, (int64_t)1), 0);
    CHECK_EQ(load_acquire(&t->readers), 0);
    t->sum[0]++;
    pause_here(t, i);
    t->sum[1]++;
    t->written++;
    CHECK_EQ(fetch_sub_acq_rel(&t->writers, (int64_t)1), 1);
}

static void use_table(void *opaque)
{
    Table *t = opaque;

    for (unsigned long i = 0; i < t->rounds; i++) {
        if (i * t->write_percent % 100 < t->write_percent) {
            co_rwlock_wrlock(&t->lock);
            write_table(t, i);
            if (i % 3 == 0) {
                co_rwlock_downgrade(&t->lock);
                read_table(t, i);
            }
        } else {
            co_rwlock_rdlock(&t->lock);
            read_table(t, i);
            if (t->write_percent > 10 && i % 7 == 0) {
                co_rwlock_upgrade(&t->lock);
                write_table(t, i);
            }
        }
        co_rwlock_unlock(&t->lock);
    }
    job_done();
}

static void use_on_five(Table *t)
{
    t->rounds = harness_load(t->rounds);
    loops_start(5);
    for (unsigned i = 0; i < 20; i++) {
        start(loop(i), use_table, t);
    }
    loops_join(20);
    loops_stop();
    CHECK_EQ(t->lock.word_, 0);
    CHECK(t->lock.waiters_.head_ == NULL);
    CHECK_EQ(t->sum[0], t->written);
    CHECK_EQ(t->sum[1], t->written);
}

TEST(five_threads_with_95_percent_readers)
{
    Table t = {.rounds = 1000, .write_percent = 5};

    use_on_five(&t);
}

TEST(five_threads_with_readers_that_suspend)
{
    Table t = {.rounds = 500, .write_percent = 5, .hop = true};

    use_on_five(&t);
}

TEST(five_threads_upgrade_and_downgrade)
{
    Table t = {.rounds = 300, .write_percent = 40, .hop = true};

    use_on_five(&t);
}

static bool held;
static bool let_go;

static void noisy_writer(void *opaque)
{
    unsigned contexts = *(unsigned *)opaque;
    uint64_t notifications, allocations;

    co_rwlock_wrlock(&rwlock);
    store_release(&held, true);
    until(load_acquire(&let_go));
    notifications = os_counter(OS_COUNT_NOTIFICATIONS);
    allocations = os_counter(OS_COUNT_ALLOCATIONS);
    co_rwlock_unlock(&rwlock);
    CHECK(os_counter(OS_COUNT_NOTIFICATIONS) - notifications <= contexts);
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS), allocations);
    fetch_add_acq_rel(&jobs_done, 1u);
}

static void *last_waiter(void)
{
    uint32_t bits = brief_lock_bits(&rwlock.word_);
    void *last = rwlock.waiters_.tail_;

    brief_unlock_bits(&rwlock.word_, bits);
    return last;
}

static void quiet_reader(void *opaque)
{
    AioContext *ctx = opaque;

    co_rwlock_rdlock(&rwlock);
    CHECK(aio_context_current() == ctx);
    co_rwlock_unlock(&rwlock);
    fetch_add_acq_rel(&jobs_done, 1u); /* without a kick, which may notify */
}

/* Neighbouring readers of five contexts: woken together. */
TEST(waking_a_hundred_readers_costs_a_notification_a_context)
{
    unsigned contexts = 5;

    loops_start(contexts + 1);
    start(loop(0), noisy_writer, &contexts);
    until(load_acquire(&held));
    for (unsigned i = 0; i < 100; i++) {
        void *last = last_waiter();

        start(loop(1 + i % contexts), quiet_reader, loop(1 + i % contexts));
        until(last_waiter() != last);
    }
    store_release(&let_go, true);
    until(load_acquire(&jobs_done) == 101);
    loops_stop();
}

static void writer_that_waits(void *opaque)
{
    CoRwlock *lock = opaque;

    co_rwlock_wrlock(lock);
    store_release(&held, true);
    coroutine_yield();
    co_rwlock_unlock(lock);
    job_done();
}

static void reader_behind(void *opaque)
{
    CoRwlock *lock = opaque;

    co_rwlock_rdlock(lock);
    co_rwlock_unlock(lock);
    job_done();
}

/* Somebody queues behind one on another thread. */
static void wait_behind(CoRwlock *lock)
{
    Coroutine *co;

    loops_start(2);
    co = start(loop(0), writer_that_waits, lock);
    until(load_acquire(&held));
    start(loop(1), reader_behind, lock);
    until(load_acquire(&lock->word_) & ONE_WAITS);
    aio_co_wake(co);
    loops_join(2);
    loops_stop();
}

TEST(spinning_in_vain_is_given_up)
{
    CoRwlock lock = {.spins_ = 40};

    os_one_cpu = false;
    wait_behind(&lock);
    CHECK_EQ(load_relaxed(&lock.spins_), 20);
}

/* It would keep the holder from running. */
TEST(nobody_spins_on_the_only_processor)
{
    CoRwlock lock = {.spins_ = 40};

    os_one_cpu = true;
    wait_behind(&lock);
    CHECK_EQ(load_relaxed(&lock.spins_), 40); /* neither paid nor failed */
}

typedef struct Dropped {
    CoRwlock lock;
    int users; /* atomic */
} Dropped;

/* The last user is found under the write lock, and frees it at once. */
static void use_and_drop(void *opaque)
{
    Dropped *d = opaque;
    bool last;

    co_rwlock_rdlock(&d->lock);
    co_rwlock_unlock(&d->lock);
    co_rwlock_wrlock(&d->lock);
    last = --d->users == 0;
    co_rwlock_unlock(&d->lock);
    if (last) {
        free(d);
    }
    job_done();
}

TEST(the_last_unlocker_frees_it)
{
    loops_start(3);
    for (unsigned long i = harness_load(2000); i > 0; i--) {
        Dropped *d = calloc(1, sizeof(*d));

        CHECK(d != NULL);
        d->users = 6;
        for (unsigned k = 0; k < 6; k++) {
            start(loop(k), use_and_drop, d);
        }
        loops_join(6);
    }
    loops_stop();
}

/* --- misuse --------------------------------------------------------------*/

static void unlock_only(void *opaque)
{
    co_rwlock_unlock(opaque);
}

TEST_ABORTS(unlock_of_a_free_one,
            "co_rwlock_unlock: coroutine \"stranger\" does not hold CoRwlock "
            "0x[0-9a-f]+; it has 0 readers")
{
    here_open();
    begin_named("stranger", unlock_only, &rwlock);
}

TEST_ABORTS(unlock_by_a_stranger_while_another_writes,
            "co_rwlock_unlock: coroutine \"stranger\" does not hold CoRwlock "
            "0x[0-9a-f]+; coroutine 0x[0-9a-f]+ has it for writing")
{
    here_open();
    add('w', "");
    begin_named("stranger", unlock_only, &rwlock);
}

TEST_ABORTS(unlock_by_a_stranger_while_others_read,
            "co_rwlock_unlock: coroutine \"stranger\" does not hold CoRwlock "
            "0x[0-9a-f]+; it has 2 readers")
{
    here_open();
    add('r', "");
    add('r', "");
    begin_named("stranger", unlock_only, &rwlock);
}

static void downgrade_reader(void *opaque)
{
    co_rwlock_rdlock(opaque);
    co_rwlock_downgrade(opaque);
}

TEST_ABORTS(downgrade_by_a_reader,
            "co_rwlock_downgrade: coroutine \"fool\" does not hold CoRwlock "
            "0x[0-9a-f]+; it has 1 readers")
{
    here_open();
    begin_named("fool", downgrade_reader, &rwlock);
}

static void upgrade_writer(void *opaque)
{
    co_rwlock_wrlock(opaque);
    co_rwlock_upgrade(opaque);
}

TEST_ABORTS(upgrade_by_the_writer,
            "co_rwlock_upgrade: coroutine \"fool\" has CoRwlock 0x[0-9a-f]+ "
            "for writing already")
{
    here_open();
    begin_named("fool", upgrade_writer, &rwlock);
}

static void upgrade_only(void *opaque)
{
    co_rwlock_upgrade(opaque);
}

TEST_ABORTS(upgrade_of_a_free_one,
            "co_rwlock_upgrade: coroutine \"stranger\" does not hold CoRwlock")
{
    here_open();
    begin_named("stranger", upgrade_only, &rwlock);
}

static void lock_both(void *opaque)
{
    co_rwlock_wrlock(opaque);
    co_rwlock_rdlock(opaque);
}

TEST_ABORTS(read_lock_by_the_writer,
            "co_rwlock_rdlock: coroutine \"fool\" has CoRwlock 0x[0-9a-f]+ "
            "for writing already")
{
    here_open();
    begin_named("fool", lock_both, &rwlock);
}

static void finish_reading(void *opaque)
{
    co_rwlock_rdlock(opaque);
}

static void lock_once_more(void *opaque)
{
    (void)opaque;
    rwlock.word_ = (UINT32_MAX / ONE_READER / 2) * ONE_READER;
    co_rwlock_rdlock(&rwlock);
}

TEST_ABORTS(more_readers_than_can_be_counted,
            "co_rwlock_rdlock: CoRwlock 0x[0-9a-f]+ has 134217727 readers")
{
    here_open();
    begin(lock_once_more, NULL);
}

TEST_ABORTS(finish_with_it,
            "coroutine \"greedy\" has finished with 1 lock held")
{
    here_open();
    begin_named("greedy", finish_reading, &rwlock);
}

TEST_ABORTS(waiting_without_a_home,
            "coroutine \"vagabond\" would have to wait for CoRwlock "
            "0x[0-9a-f]+, but has no home .*aio_co_enter\\(\\)")
{
    add('w', "");
    begin_named("vagabond", finish_reading, &rwlock);
}

TEST_ABORTS(lock_outside_coroutines,
            "co_rwlock_wrlock: called outside a coroutine, on CoRwlock 0x")
{
    here_open();
    co_rwlock_wrlock(&rwlock);
}

TEST_MAIN()
