/* SPDX-License-Identifier: MIT */
/*
 * qemu_like.c: a stand-in for the coroutines of QEMU 7.2, written from a
 * description of what they do on each operation; no line is QEMU's.
 *
 * What it keeps of theirs: swapcontext() to start a coroutine and sigsetjmp /
 * siglongjmp from then on; a 1 MiB stack with a guard page; functions that
 * are not inlined, with thread-locals behind functions of their own; on each
 * enter the current context, a queue of pending wake-ups, and the checks for
 * "scheduled elsewhere" and "entered already"; the caller chain; a pool per
 * thread that trades batches of at least 64 with a shared one.
 *
 * Ratios to QEMU itself are derived from this program and marked so.
 */
#include <setjmp.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "../bench.h"

enum { STACK_BYTES = 1 << 20, BATCH = 64, MANY = 1000 };

typedef enum Action { ACTION_ENTER = 1, ACTION_YIELD, ACTION_END } Action;

typedef struct Co {
    void (*entry)(void *);
    void *opaque;
    struct Co *caller;
    struct Co *next_free;
    struct Co *next_pending;
    struct Co *wakeup_first, **wakeup_last;
    void *context;
    const char *scheduled;
    size_t locks_held;
    void *stack;
    sigjmp_buf env;
} Co;

static __thread Co leader;
static __thread Co *current_co;
static __thread void *current_context;
static __thread Co *local_pool;
static __thread unsigned local_pool_size;
static Co *_Atomic shared_pool;
static _Atomic unsigned shared_pool_size;

static BENCH_NOINLINE Co *get_current(void)
{
    __asm__ volatile("");
    return current_co;
}

static BENCH_NOINLINE void set_current(Co *co)
{
    __asm__ volatile("");
    current_co = co;
}

static BENCH_NOINLINE void *get_context(void)
{
    __asm__ volatile("");
    return current_context;
}

static BENCH_NOINLINE Co *co_get_self(void)
{
    Co *self = get_current();

    if (!self) {
        self = &leader;
        set_current(self);
    }
    return self;
}

static BENCH_NOINLINE Action co_switch(Co *from, Co *to, Action action)
{
    int result;

    set_current(to);
    result = sigsetjmp(from->env, 0);
    if (result == 0) {
        siglongjmp(to->env, action);
    }
    return (Action)result;
}

static void trampoline(int low, int high)
{
    union {
        void *pointer;
        int half[2];
    } argument;
    Co *self;

    argument.half[0] = low;
    argument.half[1] = high;
    self = argument.pointer;
    if (!sigsetjmp(self->env, 0)) {
        siglongjmp(*(sigjmp_buf *)self->opaque, 1);
    }
    for (;;) {
        self->entry(self->opaque);
        co_switch(self, self->caller, ACTION_END);
    }
}

static Co *co_new(void)
{
    Co *co = bench_allocate(1, sizeof(*co));
    ucontext_t old, fresh;
    sigjmp_buf back;
    union {
        void *pointer;
        int half[2];
    } argument;
    long page = sysconf(_SC_PAGESIZE);

    co->stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    bench_check(co->stack != MAP_FAILED
                && !mprotect(co->stack, (size_t)page, PROT_NONE),
                "a stack is mapped");
    getcontext(&fresh);
    fresh.uc_link = NULL;
    fresh.uc_stack.ss_sp = co->stack;
    fresh.uc_stack.ss_size = STACK_BYTES;
    co->opaque = &back;
    argument.pointer = co;
    makecontext(&fresh, (void (*)(void))trampoline, 2, argument.half[0],
                argument.half[1]);
    if (!sigsetjmp(back, 0)) {
        swapcontext(&old, &fresh);
    }
    return co;
}

static void co_unmap(Co *co)
{
    munmap(co->stack, STACK_BYTES);
    free(co);
}

static BENCH_NOINLINE Co *co_create(void (*entry)(void *), void *opaque)
{
    Co *co = local_pool;

    if (!co && atomic_load(&shared_pool_size) > BATCH) {
        local_pool_size = atomic_exchange(&shared_pool_size, 0);
        local_pool = co = atomic_exchange(&shared_pool, NULL);
    }
    if (co) {
        local_pool = co->next_free;
        local_pool_size--;
    } else {
        co = co_new();
    }
    co->entry = entry;
    co->opaque = opaque;
    co->wakeup_first = NULL;
    co->wakeup_last = &co->wakeup_first;
    return co;
}

static BENCH_NOINLINE void co_delete(Co *co)
{
    co->caller = NULL;
    if (atomic_load(&shared_pool_size) < 2 * BATCH) {
        co->next_free = atomic_load(&shared_pool);
        while (!atomic_compare_exchange_weak(&shared_pool, &co->next_free,
                                             co)) {
        }
        atomic_fetch_add(&shared_pool_size, 1);
    } else if (local_pool_size < BATCH) {
        co->next_free = local_pool;
        local_pool = co;
        local_pool_size++;
    } else {
        co_unmap(co);
    }
}

static BENCH_NOINLINE void co_enter(void *context, Co *co)
{
    Co *from = get_current() ? get_current() : co_get_self();
    Co *pending = co;

    co->next_pending = NULL;
    while (pending) {
        Co *to = pending;
        const char *scheduled;

        scheduled = __atomic_load_n(&to->scheduled, __ATOMIC_ACQUIRE);
        pending = to->next_pending;
        bench_check(!scheduled, "it is not scheduled elsewhere");
        bench_check(!to->caller, "it is not entered");
        to->caller = from;
        to->context = context;
        __atomic_thread_fence(__ATOMIC_RELEASE);
        switch (co_switch(from, to, ACTION_ENTER)) {
        case ACTION_YIELD:
            break;
        case ACTION_END:
            bench_check(!to->locks_held, "it ends without locks");
            co_delete(to);
            continue;
        default:
            abort();
        }
        if (to->wakeup_first) {
            *to->wakeup_last = pending;
            pending = to->wakeup_first;
            to->wakeup_first = NULL;
            to->wakeup_last = &to->wakeup_first;
        }
    }
}

static BENCH_NOINLINE void co_yield_self(void)
{
    Co *self = co_get_self();
    Co *to = self->caller;

    bench_check(to != NULL, "a yield has somewhere to go");
    self->caller = NULL;
    co_switch(self, to, ACTION_YIELD);
}

static uint64_t calls;
static bool over;

static void bounce(void *opaque)
{
    (void)opaque;
    while (!over) {
        calls++;
        co_yield_self();
    }
}

static double switch_over(uint64_t count, unsigned coroutines)
{
    Co *all[MANY];
    uint64_t begin;

    over = false;
    calls = 0;
    for (unsigned i = 0; i < coroutines; i++) {
        all[i] = co_create(bounce, NULL);
    }
    begin = bench_now();
    for (uint64_t i = 0; i < count;) {
        for (unsigned j = 0; j < coroutines && i < count; j++, i++) {
            co_enter(get_context(), all[j]);
        }
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each switch is made");
    over = true;
    for (unsigned i = 0; i < coroutines; i++) {
        co_enter(get_context(), all[i]);
    }
    return (double)begin;
}

static double switch_work(uint64_t count)
{
    Co *co = co_create(bounce, NULL);
    uint64_t begin;

    over = false;
    calls = 0;
    begin = bench_now();
    for (uint64_t i = 0; i < count; i++) {
        co_enter(get_context(), co);
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each switch is made");
    over = true;
    co_enter(get_context(), co);
    return (double)begin;
}

static double switch_1000_work(uint64_t count)
{
    return switch_over(count, MANY);
}

static void finish(void *opaque)
{
    (void)opaque;
    calls++;
}

static double create_work(uint64_t count)
{
    uint64_t begin = bench_now();

    calls = 0;
    for (uint64_t i = 0; i < count; i++) {
        co_enter(get_context(), co_create(finish, NULL));
    }
    begin = bench_now() - begin;
    bench_check(calls == count, "each coroutine runs");
    return (double)begin;
}

static void nest(void *opaque)
{
    uintptr_t depth = (uintptr_t)opaque;

    calls++;
    if (depth > 1) {
        co_enter(get_context(), co_create(nest, (void *)(depth - 1)));
    }
}

static double burst_work(uint64_t count)
{
    uint64_t begin = bench_now();

    calls = 0;
    for (uint64_t i = 0; i < count; i += MANY) {
        co_enter(get_context(), co_create(nest, (void *)(uintptr_t)MANY));
    }
    begin = bench_now() - begin;
    return (double)begin * (double)count / (double)calls;
}

static const BenchWorkload workloads[] = {
    {"switch", switch_work},
    {"switch_1000", switch_1000_work},
    {"create", create_work},
    {"burst", burst_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        "qemu-like", "own", "sigsetjmp, 1 MiB stacks, pool of 64 to 128",
        workloads,
    };

    return bench_main(argc, argv, &program);
}
