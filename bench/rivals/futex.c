/* SPDX-License-Identifier: MIT */
/*
 * futex.c: round trips between two threads over futexes.
 *
 *   wake_busy      looks 2,000 times before it sleeps, so that between busy
 *                  threads no system call is made
 *   wake_asleep    sleeps at once
 *
 * PROTOCOL.  Each side owns a word: EMPTY, HIT, or SLEEPING.  The owner
 * changes HIT to EMPTY, or EMPTY to SLEEPING before it sleeps; the other
 * exchanges HIT into it and wakes only if it found SLEEPING.
 */
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../bench.h"

enum { SPINS = 2000 };
enum { EMPTY, HIT, SLEEPING };

static struct {
    _Alignas(64) _Atomic uint32_t word;
} sides[2];

static struct {
    uint64_t rounds;
    unsigned spins;
} court;

static inline void relax(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
}

static void hit(unsigned side)
{
    if (atomic_exchange(&sides[side].word, HIT) == SLEEPING) {
        syscall(SYS_futex, &sides[side].word, FUTEX_WAKE_PRIVATE, 1, NULL,
                NULL, 0);
    }
}

static void await(unsigned side)
{
    uint32_t seen = EMPTY;

    for (unsigned i = 0; i < court.spins; i++) {
        if (atomic_load_explicit(&sides[side].word, memory_order_acquire)
            == HIT) {
            atomic_store_explicit(&sides[side].word, EMPTY,
                                  memory_order_relaxed);
            return;
        }
        relax();
    }
    if (atomic_compare_exchange_strong(&sides[side].word, &seen, SLEEPING)) {
        while (atomic_load(&sides[side].word) == SLEEPING) {
            syscall(SYS_futex, &sides[side].word, FUTEX_WAIT_PRIVATE,
                    SLEEPING, NULL, NULL, 0);
        }
    }
    atomic_store_explicit(&sides[side].word, EMPTY, memory_order_relaxed);
}

static void body(unsigned index, void *opaque)
{
    (void)opaque;
    bench_pin(index);
    for (uint64_t i = 0; i < court.rounds; i++) {
        if (index == 0) {
            hit(1);
            await(0);
        } else {
            await(1);
            hit(0);
        }
    }
}

static double wake_work(uint64_t count, unsigned spins)
{
    court.rounds = count;
    court.spins = spins;
    atomic_store(&sides[0].word, EMPTY);
    atomic_store(&sides[1].word, EMPTY);
    return bench_parallel(2, body, NULL);
}

static double wake_busy_work(uint64_t count)
{
    return wake_work(count, SPINS);
}

static double wake_asleep_work(uint64_t count)
{
    return wake_work(count, 0);
}

static const BenchWorkload workloads[] = {
    {"wake_busy", wake_busy_work},
    {"wake_asleep", wake_asleep_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        "futex", "own", "wake_busy spins 2,000 times first", workloads,
    };

    return bench_main(argc, argv, &program);
}
