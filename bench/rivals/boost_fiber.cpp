// SPDX-License-Identifier: MIT
/*
 * boost_fiber.cpp: Boost.Fiber with its default round-robin scheduler, which
 * the documentation recommends for fibers that stay on their thread.
 *
 * A round trip of `switch` is a yield of the main fiber and a yield of the
 * other.  `mutex_wN`: its unlock does not hand the lock on, so each fiber
 * yields once with the lock held to let the others queue.  `mutex_t2`: one
 * fiber on each of two threads.  `wake_asleep`: two threads bounce a value over
 * buffered channels, and sleep in between.  `restart_all`: notify_all on a
 * condition variable with a lock that does nothing, to fibers that each count
 * it and wait again.
 */
#include <atomic>
#include <boost/fiber/all.hpp>
#include <boost/version.hpp>
#include <unistd.h>
#include <vector>

#include "../bench.h"

namespace fibers = boost::fibers;
namespace this_fiber = boost::this_fiber;

namespace {

uint64_t calls;
bool over;

double switch_over(uint64_t count, unsigned others)
{
    std::vector<fibers::fiber> all;

    over = false;
    for (unsigned i = 0; i < others; i++) {
        all.emplace_back(fibers::launch::dispatch, [] {
            while (!over) {
                calls++;
                this_fiber::yield();
            }
        });
    }
    calls = 0;
    uint64_t begin = bench_now();
    while (calls < count) {
        this_fiber::yield();
    }
    begin = bench_now() - begin;
    double scale = double(count) / double(calls);
    over = true;
    for (fibers::fiber &fiber : all) {
        fiber.join();
    }
    return double(begin) * scale;
}

double switch_work(uint64_t count)
{
    return switch_over(count, 1);
}

double switch_1000_work(uint64_t count)
{
    return switch_over(count, 1000);
}

double create_work(uint64_t count)
{
    static fibers::pooled_fixedsize_stack stacks;

    calls = 0;
    uint64_t begin = bench_now();
    for (uint64_t i = 0; i < count; i++) {
        fibers::fiber(fibers::launch::dispatch, std::allocator_arg, stacks,
                      [] { calls++; }).join();
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each fiber runs");
    return double(begin);
}

double mutex_work(uint64_t count)
{
    fibers::mutex mutex;
    uint64_t begin = bench_now();

    for (uint64_t i = 0; i < count; i++) {
        mutex.lock();
        mutex.unlock();
    }
    return double(bench_now() - begin);
}

double contend_work(uint64_t count, unsigned contenders)
{
    std::vector<fibers::fiber> all;
    fibers::mutex mutex;

    calls = 0;
    uint64_t begin = bench_now();
    for (unsigned i = 0; i < contenders; i++) {
        all.emplace_back(fibers::launch::post, [&mutex, count] {
            for (;;) {
                mutex.lock();
                bool enough = calls >= count;
                calls += !enough;
                this_fiber::yield();
                mutex.unlock();
                if (enough) {
                    return;
                }
            }
        });
    }
    for (fibers::fiber &fiber : all) {
        fiber.join();
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each acquisition is counted");
    return double(begin);
}

double contend_2_work(uint64_t count)
{
    return contend_work(count, 2);
}

double contend_10_work(uint64_t count)
{
    return contend_work(count, 10);
}

double contend_100_work(uint64_t count)
{
    return contend_work(count, 100);
}

struct Shared {
    fibers::mutex mutex;
    uint64_t made[2] = {};
};

void threads_body(unsigned index, void *opaque)
{
    Shared *shared = static_cast<Shared *>(opaque);

    uint64_t made = 0;

    bench_pin(index);
    while (bench_goes_on()) {
        shared->mutex.lock();
        calls++;
        shared->mutex.unlock();
        made++;
    }
    shared->made[index] = made;
}

double mutex_threads_work(uint64_t count)
{
    Shared shared;

    calls = 0;
    bench_contend();
    double elapsed = bench_parallel(2, threads_body, &shared);
    bench_check(calls == shared.made[0] + shared.made[1], "the lock excludes");
    return bench_contended(elapsed, calls, count);
}

struct Court {
    fibers::buffered_channel<uint64_t> there{4}, back{4};
    uint64_t rounds;
};

void wake_body(unsigned index, void *opaque)
{
    Court *court = static_cast<Court *>(opaque);
    uint64_t value = 0;

    bench_pin(index);
    for (uint64_t i = 0; i < court->rounds; i++) {
        if (index == 0) {
            court->there.push(i);
            court->back.pop(value);
            bench_check(value == i, "the value comes back");
        } else {
            court->there.pop(value);
            court->back.push(value);
        }
    }
}

double wake_work(uint64_t count)
{
    Court court;

    court.rounds = count;
    return bench_parallel(2, wake_body, &court);
}

struct NoLock {
    void lock() {}
    void unlock() {}
};

fibers::condition_variable_any gong;
uint64_t waiters, times;

void wait_on_and_on()
{
    NoLock lock;

    for (uint64_t mine = times + 1;; mine++) {
        gong.wait(lock);
        bench_check(mine == times, "a waiter runs once each time");
        calls++;
    }
}

double restart_all_work(uint64_t count)
{
    for (; waiters < count; waiters++) {
        fibers::fiber(fibers::launch::dispatch, wait_on_and_on).detach();
    }
    calls = 0;
    times++;
    uint64_t begin = bench_now();
    gong.notify_all();
    this_fiber::yield();
    begin = bench_now() - begin;
    bench_check(calls == count, "each waiter runs");
    return double(begin);
}

const BenchWorkload workloads[] = {
    {"switch", switch_work},
    {"switch_1000", switch_1000_work},
    {"create", create_work},
    {"mutex_1", mutex_work},
    {"mutex_w2", contend_2_work},
    {"mutex_w10", contend_10_work},
    {"mutex_w100", contend_100_work},
    {"mutex_t2", mutex_threads_work},
    {"restart_all", restart_all_work},
    {"wake_asleep", wake_work},
    {nullptr, nullptr},
};

} // namespace

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        "boost-fiber", BOOST_LIB_VERSION,
        "round_robin scheduler, pooled_fixedsize_stack; where waiters are "
        "wanted, a yield under the lock lets them queue",
        workloads,
    };

    int status = bench_main(argc, argv, &program);

    /* The scheduler's end would wait for those that wait for gong. */
    fflush(stdout);
    _exit(status);
}
