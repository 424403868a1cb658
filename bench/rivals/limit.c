/* SPDX-License-Identifier: MIT */
/*
 * limit.c: what the machine can do at best, without checks, without
 * bookkeeping, without threads: a bound to measure against, nothing to use.
 *
 *   call           one indirect function call, for reference
 *   locked         one locked operation, for reference
 *   syscall        one system call that does nothing, for reference
 *   switch         inline assembly that saves three registers and tells the
 *                  compiler that all others are lost; one round trip
 *   switch_1000    the same over 1,000 coroutines in rotation
 *   create         take a stack from a free list, run, give it back
 *   mutex_1        two locked operations
 *   mutex_wN       N coroutines on one loop hand a lock on in order of
 *                  arrival, with plain loads and stores, and switch straight
 *                  to the next
 *   wake_busy      one cache line bounces between two spinning threads
 *
 * x86-64 only.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../bench.h"
#include "../bench_stacks.h"

enum { MANY = 1000 };

typedef struct Context {
    void *sp;
    void *bp;
    void *pc;
} Context;

typedef struct Raw {
    Context context;
    struct Raw *next;       /* free list, or the queue of the lock */
} Raw;

static Context loop;
static Raw *current;
static void (*entry)(void);

static inline __attribute__((always_inline)) void
raw_switch(Context *from, Context *to)
{
    __asm__ volatile("movq %%rsp, 0(%0)\n\t"
                     "movq %%rbp, 8(%0)\n\t"
                     "leaq 1f(%%rip), %%rax\n\t"
                     "movq %%rax, 16(%0)\n\t"
                     "movq 0(%1), %%rsp\n\t"
                     "movq 8(%1), %%rbp\n\t"
                     "jmpq *16(%1)\n"
                     "1:\n\t"
                     : "+D"(from), "+S"(to)
                     :
                     : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11",
                       "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2",
                       "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
                       "memory", "cc");
}

static inline __attribute__((always_inline)) void raw_enter(Raw *co)
{
    current = co;
    raw_switch(&loop, &co->context);
}

static inline __attribute__((always_inline)) void raw_yield(void)
{
    raw_switch(&current->context, &loop);
}

static BENCH_NOINLINE void raw_start(void)
{
    entry();
    __builtin_trap();
}

/* The object lies at the top of its stack; the stack begins below it. */
static inline void raw_reset(Raw *co)
{
    co->context.sp = (char *)co - 8;
    co->context.bp = NULL;
    co->context.pc = (void *)raw_start;
}

static Raw *raw_slab(unsigned count)
{
    static char *slab;
    Raw *list = NULL;

    if (!slab) {
        slab = mmap(NULL, (size_t)MANY * BENCH_STACK_STRIDE,
                    PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        bench_check(slab != MAP_FAILED, "a slab is mapped");
    }
    for (unsigned i = count; i-- > 0;) {
        Raw *co = (Raw *)(bench_stack_top(slab, i) - 64);

        raw_reset(co);
        co->next = list;
        list = co;
    }
    return list;
}

static uint64_t calls;

static BENCH_NOINLINE void callee(void)
{
    calls++;
}

static double call_work(uint64_t count)
{
    void (*volatile function)(void) = callee;
    uint64_t begin = bench_now();

    calls = 0;
    for (uint64_t i = 0; i < count; i++) {
        function();
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each call is made");
    return (double)begin;
}

static double locked_work(uint64_t count)
{
    static _Atomic uint64_t counter;
    uint64_t begin = bench_now();

    counter = 0;
    for (uint64_t i = 0; i < count; i++) {
        atomic_fetch_add(&counter, 1);
    }
    begin = bench_now() - begin;
    bench_check(counter == count, "each one counts");
    return (double)begin;
}

static double syscall_work(uint64_t count)
{
    long parent = syscall(SYS_getppid);
    uint64_t begin = bench_now();

    for (uint64_t i = 0; i < count; i++) {
        bench_check(syscall(SYS_getppid) == parent, "each call is made");
    }
    return (double)(bench_now() - begin);
}

static void bounce(void)
{
    for (;;) {
        calls++;
        raw_yield();
    }
}

static double switch_over(uint64_t count, unsigned coroutines)
{
    Raw *list = raw_slab(coroutines), *all[MANY];
    uint64_t begin;

    for (unsigned i = 0; i < coroutines; i++, list = list->next) {
        all[i] = list;
    }
    entry = bounce;
    calls = 0;
    begin = bench_now();
    for (uint64_t i = 0; i < count;) {
        for (unsigned j = 0; j < coroutines && i < count; j++, i++) {
            raw_enter(all[j]);
        }
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each switch is made");
    return (double)begin;
}

static double switch_work(uint64_t count)
{
    Raw *co = raw_slab(1);
    uint64_t begin;

    entry = bounce;
    calls = 0;
    begin = bench_now();
    for (uint64_t i = 0; i < count; i++) {
        raw_enter(co);
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each switch is made");
    return (double)begin;
}

static double switch_1000_work(uint64_t count)
{
    return switch_over(count, MANY);
}

static void finish(void)
{
    calls++;
    raw_yield();
}

static double create_work(uint64_t count)
{
    Raw *pool = raw_slab(1);
    uint64_t begin;

    entry = finish;
    calls = 0;
    begin = bench_now();
    for (uint64_t i = 0; i < count; i++) {
        Raw *co = pool;

        pool = co->next;
        raw_reset(co);
        raw_enter(co);
        co->next = pool;
        pool = co;
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each coroutine runs");
    return (double)begin;
}

static double mutex_work(uint64_t count)
{
    static _Atomic int lock;
    uint64_t begin = bench_now();

    for (uint64_t i = 0; i < count; i++) {
        int free_value = 0;

        atomic_compare_exchange_strong(&lock, &free_value, 1);
        atomic_exchange(&lock, 0);
    }
    return (double)(bench_now() - begin);
}

/*
 * The lock of one loop: the holder, and who waits for it in order.  Unlocking
 * hands it to the first waiter, which is `ready` to run from then on.
 */
static Raw *holder, *waiters, **waiters_end, *ready;
static uint64_t wanted;

/* Leaves for whoever is ready, for the loop if nobody is. */
static inline __attribute__((always_inline)) void raw_park(Raw *self)
{
    Raw *next = ready;

    if (next) {
        ready = NULL;
        current = next;
        raw_switch(&self->context, &next->context);
    } else {
        raw_switch(&self->context, &loop);
    }
}

static void contend(void)
{
    Raw *self = current;

    for (;;) {
        if (holder) {
            self->next = NULL;
            *waiters_end = self;
            waiters_end = &self->next;
            raw_park(self);
        } else {
            holder = self;
        }
        if (calls == wanted) {
            raw_switch(&self->context, &loop);
        }
        calls++;
        holder = ready = waiters;
        if (waiters) {
            waiters = waiters->next;
            if (!waiters) {
                waiters_end = &waiters;
            }
        }
    }
}

static double contend_work(uint64_t count, unsigned coroutines)
{
    Raw *list = raw_slab(coroutines);
    uint64_t begin;

    entry = contend;
    calls = wanted = 0;
    holder = waiters = ready = NULL;
    waiters_end = &waiters;
    for (unsigned i = 0; i < coroutines; i++) {
        Raw *next = list->next;

        raw_enter(list);        /* the first takes the lock, the rest queue */
        list = next;
    }
    wanted = count;
    begin = bench_now();
    raw_enter(holder);
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

static struct {
    _Alignas(64) _Atomic uint64_t ball;
    uint64_t rounds;
} court;

static void spin_body(unsigned index, void *opaque)
{
    (void)opaque;
    bench_pin(index);
    for (uint64_t i = index; i < 2 * court.rounds; i += 2) {
        while (atomic_load_explicit(&court.ball, memory_order_acquire) != i) {
            __builtin_ia32_pause();
        }
        atomic_store_explicit(&court.ball, i + 1, memory_order_release);
    }
}

static double spin_work(uint64_t count)
{
    court.rounds = count;
    atomic_store(&court.ball, 0);
    return bench_parallel(2, spin_body, NULL);
}

static const BenchWorkload workloads[] = {
    {"call", call_work},
    {"locked", locked_work},
    {"syscall", syscall_work},
    {"switch", switch_work},
    {"switch_1000", switch_1000_work},
    {"create", create_work},
    {"mutex_1", mutex_work},
    {"mutex_w2", contend_2_work},
    {"mutex_w10", contend_10_work},
    {"mutex_w100", contend_100_work},
    {"wake_busy", spin_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        "limit", "own",
        "no checks, no bookkeeping; stacks laid out as coaio's", workloads,
    };

    return bench_main(argc, argv, &program);
}
