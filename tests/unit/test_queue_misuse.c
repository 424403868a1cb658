/* SPDX-License-Identifier: MIT */
/*
 * CoQueue: every misuse aborts with a line that names the call and the parties.
 */
#include "queue_cases.h"

static Shared shared;
static QueueJob job;

static void open_with_waiter(CoLockKind kind)
{
    here_open();
    shared_open(&shared, kind);
    job = queue_job(&shared, 0);
    begin_named("sleeper", queue_waiter, &job);
}

static void wait_without_the_mutex(void *opaque)
{
    (void)opaque;
    co_queue_wait(shared.queue, &shared.mutex);
}

TEST_ABORTS(wait_without_holding_the_mutex,
            "co_queue_wait: coroutine \"fool\" does not hold CoMutex "
            "0x[0-9a-f]+; it is held by nobody")
{
    here_open();
    shared_open(&shared, CO_LOCK_MUTEX);
    begin_named("fool", wait_without_the_mutex, NULL);
}

static void wait_with_void_pointer(void *opaque)
{
    co_queue_wait_timeout_ns(shared.queue, opaque, 0);
}

TEST_ABORTS(wait_with_a_void_pointer,
            "co_queue_wait_timeout_ns: the lock 0x[0-9a-f]+ is a void pointer")
{
    here_open();
    shared_open(&shared, CO_LOCK_MUTEX);
    begin(wait_with_void_pointer, &shared.mutex);
}

TEST_ABORTS(wait_outside_coroutines,
            "co_queue_wait: called outside a coroutine, on CoQueue 0x")
{
    here_open();
    shared_open(&shared, CO_LOCK_NONE);
    co_queue_wait(shared.queue, NULL);
}

TEST_ABORTS(wait_without_a_home,
            "coroutine \"vagabond\" would have to wait for CoQueue "
            "0x[0-9a-f]+, but has no home .*aio_co_enter\\(\\)")
{
    shared_open(&shared, CO_LOCK_NONE);
    job = queue_job(&shared, 0);
    begin_named("vagabond", queue_waiter, &job);
}

static void next_only(void *opaque)
{
    (void)opaque;
    co_queue_next(shared.queue);
}

static void restart_only(void *opaque)
{
    (void)opaque;
    co_queue_restart_all(shared.queue);
}

TEST_ABORTS(next_without_holding_the_mutex,
            "co_queue_next: coroutine \"fool\" does not hold CoMutex "
            "0x[0-9a-f]+; it is held by nobody")
{
    open_with_waiter(CO_LOCK_MUTEX);
    begin_named("fool", next_only, NULL);
}

TEST_ABORTS(restart_all_without_holding_the_mutex,
            "co_queue_restart_all: coroutine \"fool\" does not hold CoMutex "
            "0x[0-9a-f]+; it is held by nobody")
{
    open_with_waiter(CO_LOCK_MUTEX);
    begin_named("fool", restart_only, NULL);
}

TEST_ABORTS(next_outside_coroutines,
            "co_queue_next: called outside a coroutine, on CoQueue 0x")
{
    here_open();
    shared_open(&shared, CO_LOCK_NONE);
    co_queue_next(shared.queue);
}

TEST_ABORTS(restart_all_outside_coroutines,
            "co_queue_restart_all: called outside a coroutine, on CoQueue 0x")
{
    here_open();
    shared_open(&shared, CO_LOCK_NONE);
    co_queue_restart_all(shared.queue);
}

static void enter_next_only(void *opaque)
{
    (void)opaque;
    co_queue_enter_next(shared.queue, NULL);
}

static void enter_all_only(void *opaque)
{
    (void)opaque;
    co_queue_enter_all(shared.queue, NULL);
}

TEST_ABORTS(enter_next_in_a_coroutine,
            "co_queue_enter_next: called in coroutine \"fool\", on CoQueue "
            "0x[0-9a-f]+: in coroutines use co_queue_next\\(\\)")
{
    open_with_waiter(CO_LOCK_NONE);
    begin_named("fool", enter_next_only, NULL);
}

TEST_ABORTS(enter_all_in_a_coroutine,
            "co_queue_enter_all: called in coroutine \"fool\", on CoQueue "
            "0x[0-9a-f]+: .*co_queue_restart_all\\(\\)")
{
    open_with_waiter(CO_LOCK_NONE);
    begin_named("fool", enter_all_only, NULL);
}

TEST_ABORTS(enter_with_a_mutex,
            "co_queue_enter_all: CoMutex 0x[0-9a-f]+ cannot be held outside")
{
    open_with_waiter(CO_LOCK_MUTEX);
    co_queue_enter_all(shared.queue, &shared.mutex);
}

TEST_ABORTS(enter_with_a_void_pointer,
            "co_queue_enter_next: the lock 0x[0-9a-f]+ is a void pointer")
{
    void *pointer = &shared.pthread;

    open_with_waiter(CO_LOCK_PTHREAD);
    co_queue_enter_next(shared.queue, pointer);
}

TEST_ABORTS(enter_one_who_waits_with_a_mutex,
            "co_queue_enter_next: coroutine \"sleeper\" waits in CoQueue "
            "0x[0-9a-f]+ with CoMutex 0x[0-9a-f]+, and the call was made with "
            "no lock")
{
    open_with_waiter(CO_LOCK_MUTEX);
    co_queue_enter_next(shared.queue, NULL);
}

TEST_ABORTS(enter_with_another_lock,
            "co_queue_enter_all: coroutine \"sleeper\" waits in CoQueue "
            "0x[0-9a-f]+ with pthread_mutex_t 0x[0-9a-f]+, and the call was "
            "made with pthread_mutex_t 0x[0-9a-f]+")
{
    pthread_mutex_t other = PTHREAD_MUTEX_INITIALIZER;

    open_with_waiter(CO_LOCK_PTHREAD);
    pthread_mutex_lock(&other);
    co_queue_enter_all(shared.queue, &other);
}

static void next_from_afar(void *opaque)
{
    co_queue_next(shared.queue);
    (void)opaque;
}

/* Without a lock, one thread is all there may be. */
TEST_ABORTS(next_from_another_thread_without_a_lock,
            "co_queue_next: coroutine \"sleeper\" waits in CoQueue "
            "0x[0-9a-f]+ without a lock, and its home is not")
{
    open_with_waiter(CO_LOCK_NONE);
    loops_start(1);
    start(loop(0), next_from_afar, NULL);
    loops_join(1);
}

TEST_ABORTS(woken_by_a_stranger,
            "coroutine \"sleeper\" waits for CoQueue 0x[0-9a-f]+, and was "
            "resumed by somebody else")
{
    here_open();
    shared_open(&shared, CO_LOCK_NONE);
    job = queue_job(&shared, 0);
    aio_co_wake(begin_named("sleeper", queue_waiter, &job));
}

static void holder(void *opaque)
{
    (void)opaque;
    co_mutex_lock(&shared.mutex);
    CHECK(co_queue_next(shared.queue));
    coroutine_yield();
}

/* It has been moved to the mutex, which another holds. */
TEST_ABORTS(woken_by_a_stranger_when_moved_to_the_mutex,
            "coroutine \"sleeper\" waits for CoMutex 0x[0-9a-f]+, and was "
            "resumed by somebody else")
{
    Coroutine *co;

    here_open();
    shared_open(&shared, CO_LOCK_MUTEX);
    job = queue_job(&shared, 0);
    co = begin_named("sleeper", queue_waiter, &job);
    begin(holder, NULL);
    aio_co_wake(co);
}

TEST_MAIN()
