/* SPDX-License-Identifier: MIT */
/*
 * state_threads.c: State Threads as Debian builds it: one thread, no checks,
 * no way to wake from another thread.
 *
 * It has no plain yield, so a round trip of `switch` is a signal and a wait on
 * two condition variables.  `mutex_wN`: its unlock hands the lock to the
 * first waiter, so threads that lock and unlock in turn always contend.
 * `restart_all`: a broadcast to threads that each count it and wait again.
 * `parked`: threads that wait on a condition variable, bytes each.
 */
#include <st.h>

#include "../bench_memory.h"

static uint64_t calls, wanted;
static st_cond_t ping, pong;
static st_mutex_t mutex;

static void start_once(void)
{
    static bool started;

    if (!started) {
        bench_check(!st_init(), "st_init() works");
        ping = st_cond_new();
        pong = st_cond_new();
        mutex = st_mutex_new();
        started = true;
    }
}

static void *bounce(void *opaque)
{
    (void)opaque;
    for (uint64_t i = 0; i < wanted; i++) {
        st_cond_wait(ping);
        calls++;
        st_cond_signal(pong);
    }
    return NULL;
}

static double switch_work(uint64_t count)
{
    st_thread_t thread;
    uint64_t begin;

    start_once();
    calls = 0;
    wanted = count;
    thread = st_thread_create(bounce, NULL, 1, 0);
    st_usleep(0);
    begin = bench_now();
    for (uint64_t i = 0; i < count; i++) {
        st_cond_signal(ping);
        st_cond_wait(pong);
    }
    begin = bench_now() - begin;
    st_thread_join(thread, NULL);
    bench_check(calls == count, "each switch is made");
    return (double)begin;
}

static void *finish(void *opaque)
{
    (void)opaque;
    calls++;
    return NULL;
}

static double create_work(uint64_t count)
{
    uint64_t begin;

    start_once();
    calls = 0;
    begin = bench_now();
    for (uint64_t i = 0; i < count; i++) {
        st_thread_join(st_thread_create(finish, NULL, 1, 0), NULL);
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each thread runs");
    return (double)begin;
}

static double mutex_work(uint64_t count)
{
    uint64_t begin;

    start_once();
    begin = bench_now();
    for (uint64_t i = 0; i < count; i++) {
        st_mutex_lock(mutex);
        st_mutex_unlock(mutex);
    }
    return (double)(bench_now() - begin);
}

static void *contend(void *opaque)
{
    (void)opaque;
    for (bool enough = false; !enough;) {
        st_mutex_lock(mutex);
        enough = calls >= wanted;
        calls += !enough;
        st_mutex_unlock(mutex);
    }
    return NULL;
}

static double contend_work(uint64_t count, unsigned contenders)
{
    st_thread_t all[100];
    uint64_t begin;

    start_once();
    calls = 0;
    wanted = count;
    st_mutex_lock(mutex);
    for (unsigned i = 0; i < contenders; i++) {
        all[i] = st_thread_create(contend, NULL, 1, 0);
    }
    st_usleep(0);               /* they queue */
    begin = bench_now();
    st_mutex_unlock(mutex);
    for (unsigned i = 0; i < contenders; i++) {
        st_thread_join(all[i], NULL);
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each acquisition is counted");
    return (double)begin;
}

static double contend_2_work(uint64_t count)
{
    return contend_work(count, 2);
}

static double contend_10_work(uint64_t count)
{
    return contend_work(count, 10);
}

static double contend_100_work(uint64_t count)
{
    return contend_work(count, 100);
}

static st_cond_t gong;
static uint64_t waiters, times;

static void *wait_on_and_on(void *opaque)
{
    (void)opaque;
    for (uint64_t mine = times + 1;; mine++) {
        st_cond_wait(gong);
        bench_check(mine == times, "a waiter runs once each time");
        calls++;
    }
    return NULL;
}

static double restart_all_work(uint64_t count)
{
    uint64_t begin;

    start_once();
    if (!gong) {
        gong = st_cond_new();
    }
    for (; waiters < count; waiters++) {
        st_thread_create(wait_on_and_on, NULL, 0, 0);
    }
    st_usleep(0);               /* they wait */
    calls = 0;
    times++;
    begin = bench_now();
    st_cond_broadcast(gong);
    st_usleep(0);               /* they run, and wait again */
    begin = bench_now() - begin;
    bench_check(calls == count, "each waiter runs");
    return (double)begin;
}

static void *wait_for_good(void *opaque)
{
    calls++;
    st_cond_wait(opaque);
    return NULL;
}

static double parked_work(uint64_t count)
{
    static BenchMemory before;
    static uint64_t parked;

    start_once();
    if (!parked) {
        before = bench_memory();
    }
    calls = parked;
    for (; parked < count; parked++) {
        bench_check(st_thread_create(wait_for_good, ping, 0, 0),
                    "a thread is made");
    }
    st_usleep(0);               /* they wait */
    bench_check(calls == count, "each thread runs");
    return bench_memory_since(&before);
}

static const BenchWorkload workloads[] = {
    {"switch", switch_work},
    {"create", create_work},
    {"mutex_1", mutex_work},
    {"mutex_w2", contend_2_work},
    {"mutex_w10", contend_10_work},
    {"mutex_w100", contend_100_work},
    {"restart_all", restart_all_work},
    {"parked", parked_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        "state-threads", "1.9", "Debian's build, default stacks",
        workloads,
    };

    return bench_main(argc, argv, &program);
}
