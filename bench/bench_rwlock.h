/* SPDX-License-Identifier: MIT */
/*
 * bench_rwlock.h: what a reader-writer lock guards in the rows rwlock_1 and
 * rwlock_t2, the same for every rival.
 *
 * One operation takes the lock, looks at or changes two counters, and lets go
 * of it; of each user's operations every twentieth writes.  A writer adds one
 * to both counters, a reader checks that they are equal: a reader let in
 * beside a writer, or two writers at once, do not stay unnoticed for long.
 */
#ifndef BENCH_RWLOCK_H
#define BENCH_RWLOCK_H

#include "bench.h"

enum {
    BENCH_WRITE_EVERY = 20
};

static struct {
    _Alignas(64) uint64_t first;
    uint64_t second;
    uint64_t per_user;
} bench_guarded;

static inline void bench_guarded_reset(uint64_t per_user)
{
    bench_guarded.first = 0;
    bench_guarded.second = 0;
    bench_guarded.per_user = per_user;
}

/* Whether a user's i-th operation writes. */
static inline bool bench_guarded_writes(uint64_t i)
{
    return i % BENCH_WRITE_EVERY == 0;
}

static inline void bench_guarded_write(void)
{
    bench_guarded.first++;
    bench_guarded.second++;
}

static inline void bench_guarded_read(void)
{
    bench_check(bench_guarded.first == bench_guarded.second,
                "no reader sees half a write");
}

static inline void bench_guarded_check(unsigned users)
{
    uint64_t writes = (bench_guarded.per_user + BENCH_WRITE_EVERY - 1) /
                      BENCH_WRITE_EVERY * users;

    bench_check(bench_guarded.first == writes && bench_guarded.second == writes,
                "each write is counted");
}

#endif
