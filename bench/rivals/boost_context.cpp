// SPDX-License-Identifier: MIT
/*
 * boost_context.cpp: Boost.Context's fcontext, the switch below its fibers
 * and coroutines, called directly: no bookkeeping, no threads.
 *
 * A context is named by a pointer that changes with each switch, so every
 * round trip stores it back.  Stacks of 64 KiB come from one mapping and, for
 * `create`, from a free list.  Huge pages, which would make the stacks of
 * `parked` resident as a whole, are kept off as coaio keeps them off.
 */
#include <boost/context/detail/fcontext.hpp>
#include <boost/version.hpp>
#include <sys/mman.h>

#include "../bench_memory.h"
#include "../bench_stacks.h"

namespace ctx = boost::context::detail;

namespace {

enum { MANY = 1000 };

struct Fiber {
    ctx::fcontext_t context;
    char *stack_top;
    Fiber *next;
};

Fiber fibers[MANY];
uint64_t calls;

char *map_stacks(std::size_t n)
{
    void *slab = mmap(nullptr, n * BENCH_STACK_STRIDE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    bench_check(slab != MAP_FAILED, "a slab is mapped");
    return static_cast<char *>(slab);
}

void make_fibers()
{
    static char *slab;

    if (slab) {
        return;
    }
    slab = map_stacks(MANY);
    for (unsigned i = 0; i < MANY; i++) {
        fibers[i].stack_top = bench_stack_top(slab, i);
    }
}

void start(Fiber &fiber, void (*entry)(ctx::transfer_t))
{
    fiber.context =
        ctx::make_fcontext(fiber.stack_top, BENCH_STACK_BYTES, entry);
}

void bounce(ctx::transfer_t from)
{
    for (;;) {
        calls++;
        from = ctx::jump_fcontext(from.fctx, nullptr);
    }
}

double switch_work(uint64_t count)
{
    make_fibers();
    start(fibers[0], bounce);
    calls = 0;
    ctx::fcontext_t context = fibers[0].context;
    uint64_t begin = bench_now();
    for (uint64_t i = 0; i < count; i++) {
        context = ctx::jump_fcontext(context, nullptr).fctx;
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each switch is made");
    return double(begin);
}

double switch_1000_work(uint64_t count)
{
    make_fibers();
    for (Fiber &fiber : fibers) {
        start(fiber, bounce);
    }
    calls = 0;
    uint64_t begin = bench_now();
    for (uint64_t i = 0; i < count;) {
        for (unsigned j = 0; j < MANY && i < count; j++, i++) {
            fibers[j].context =
                ctx::jump_fcontext(fibers[j].context, nullptr).fctx;
        }
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each switch is made");
    return double(begin);
}

void finish(ctx::transfer_t from)
{
    calls++;
    ctx::jump_fcontext(from.fctx, nullptr);
}

double create_work(uint64_t count)
{
    make_fibers();
    Fiber *pool = &fibers[0];
    calls = 0;
    uint64_t begin = bench_now();
    for (uint64_t i = 0; i < count; i++) {
        Fiber *fiber = pool;
        pool = fiber->next;
        start(*fiber, finish);
        ctx::jump_fcontext(fiber->context, nullptr);
        fiber->next = pool;
        pool = fiber;
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each fiber runs");
    return double(begin);
}

double parked_work(uint64_t count)
{
    static BenchMemory before;
    static uint64_t parked;
    static char *slab;

    if (!slab) {
        before = bench_memory();
        slab = map_stacks(count);
        madvise(slab, count * BENCH_STACK_STRIDE, MADV_NOHUGEPAGE);
    }
    calls = parked;
    for (; parked < count; parked++) {
        ctx::jump_fcontext(
            ctx::make_fcontext(bench_stack_top(slab, parked), BENCH_STACK_BYTES,
                               bounce),
            nullptr);
    }
    bench_check(calls == count, "each fiber runs");
    return bench_memory_since(&before);
}

const BenchWorkload workloads[] = {
    {"switch", switch_work},
    {"switch_1000", switch_1000_work},
    {"create", create_work},
    {"parked", parked_work},
    {nullptr, nullptr},
};

} // namespace

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        "boost-context", BOOST_LIB_VERSION,
        "fcontext, pooled stacks, laid out as coaio's", workloads,
    };

    return bench_main(argc, argv, &program);
}
