/* SPDX-License-Identifier: MIT */
/*
 * coaio_core.c: coaio's coroutines by themselves.
 *
 *   switch         one enter and one yield
 *   switch_1000    the same over 1,000 coroutines in rotation
 *   create         create, run, finish
 *   burst          1,000 coroutines, each created and entered by the one
 *                  before, so that all are alive at once; for each of them
 *   parked         coroutines that have yielded: bytes each (bench_memory.h)
 *
 * The thread has a context, as it has in any real program.  The program is
 * built twice, on the static and on the shared library.
 */
#include <coaio/coaio.h>

#include "bench_memory.h"

enum { MANY = 1000 };

static uint64_t calls;
static bool over;

static void attach_once(void)
{
    static AioContext *ctx;

    if (!ctx) {
        bench_check(!aio_context_new(&ctx, NULL), "a context is made");
        aio_context_attach(ctx);
    }
}

static void coroutine_fn bounce(void *opaque)
{
    (void)opaque;
    while (!over) {
        calls++;
        coroutine_yield();
    }
}

static double switch_work(uint64_t count)
{
    Coroutine *co;
    uint64_t begin;

    attach_once();
    co = coroutine_create(bounce, NULL);
    over = false;
    calls = 0;
    begin = bench_now();
    for (uint64_t i = 0; i < count; i++) {
        coroutine_enter(co);
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each switch is made");
    over = true;
    coroutine_enter(co);
    return (double)begin;
}

static double switch_1000_work(uint64_t count)
{
    Coroutine *all[MANY];
    uint64_t begin;

    attach_once();
    for (unsigned i = 0; i < MANY; i++) {
        all[i] = coroutine_create(bounce, NULL);
    }
    over = false;
    calls = 0;
    begin = bench_now();
    for (uint64_t i = 0; i < count;) {
        for (unsigned j = 0; j < MANY && i < count; j++, i++) {
            coroutine_enter(all[j]);
        }
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each switch is made");
    over = true;
    for (unsigned i = 0; i < MANY; i++) {
        coroutine_enter(all[i]);
    }
    return (double)begin;
}

static void coroutine_fn finish(void *opaque)
{
    (void)opaque;
    calls++;
}

static double create_work(uint64_t count)
{
    uint64_t begin;

    attach_once();
    calls = 0;
    begin = bench_now();
    for (uint64_t i = 0; i < count; i++) {
        coroutine_enter(coroutine_create(finish, NULL));
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each coroutine runs");
    return (double)begin;
}

static void coroutine_fn nest(void *opaque)
{
    uintptr_t depth = (uintptr_t)opaque;

    calls++;
    if (depth > 1) {
        coroutine_enter(coroutine_create(nest, (void *)(depth - 1)));
    }
}

static double burst_work(uint64_t count)
{
    uint64_t begin;

    attach_once();
    calls = 0;
    begin = bench_now();
    for (uint64_t i = 0; i < count; i += MANY) {
        coroutine_enter(coroutine_create(nest, (void *)(uintptr_t)MANY));
    }
    begin = bench_now() - begin;
    return (double)begin * (double)count / (double)calls;
}

static double parked_work(uint64_t count)
{
    static BenchMemory before;
    static uint64_t parked;

    attach_once();
    if (!parked) {
        before = bench_memory();
    }
    over = false;
    calls = parked;
    for (; parked < count; parked++) {
        coroutine_enter(coroutine_create(bounce, NULL));
    }
    bench_check(calls == count, "each coroutine runs");
    return bench_memory_since(&before);
}

static const BenchWorkload workloads[] = {
    {"switch", switch_work},
    {"switch_1000", switch_1000_work},
    {"create", create_work},
    {"burst", burst_work},
    {"parked", parked_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        BENCH_RIVAL, BENCH_VERSION, BENCH_LINKAGE, workloads,
    };

    return bench_main(argc, argv, &program);
}
