/* SPDX-License-Identifier: MIT */
/*
 * The switch: what a coroutine holds in registers and on its stack is there
 * after a yield, and so is what its enterer holds; stacks are aligned; and
 * unwinding from within a coroutine ends at its entry.
 *
 * The registers that a callee must keep are filled and compared in assembly, on
 * both sides of the switch, for the processors in registers/.  Elsewhere the
 * compiler is left to use them for locals.
 */
#include "coroutine/coroutine_int.h"
#include "harness.h"
#include "os/valgrind.h"
#include "seccomp.h"

#include <coaio/coroutine.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>

enum {
    CROWD = 50
};

static uint64_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return *state >> 33;
}

/* Enter CROWD coroutines in random order until all have ended. */
static void enter_at_random(CoroutineEntry *entry, void *const opaque[CROWD],
                            int yields)
{
    uint64_t state = harness_seed();
    Coroutine *co[CROWD];
    int left[CROWD];
    int alive = CROWD;

    for (int i = 0; i < CROWD; i++) {
        co[i] = coroutine_create(entry, opaque[i]);
        left[i] = yields + 1;
    }
    while (alive > 0) {
        int i = (int)(next_random(&state) % CROWD);

        if (left[i] > 0) {
            coroutine_enter(co[i]);
            alive -= --left[i] == 0;
        }
    }
}

/* --- registers, in assembly -----------------------------------------------*/

#ifdef HAVE_REGISTERS

/*
 * Fill every register that a call must keep with numbers made from seed, call
 * fn(arg), and return 0 if they are as they were.
 */
uint64_t call_keeps_registers(uint64_t seed, void (*fn)(void *arg), void *arg);

/* The stack pointer at the call. */
uintptr_t stack_at_call(void);

static void yield_with_arg(void *arg)
{
    (void)arg;
    coroutine_yield();
}

static void do_nothing(void *arg)
{
    (void)arg;
}

static void enter_with_arg(void *arg)
{
    coroutine_enter(arg);
}

static void keep_registers(void *opaque)
{
    const uint64_t *seed = opaque;

    for (uint64_t i = 0; i < 20; i++) {
        CHECK_EQ(call_keeps_registers(*seed * 1000 + i, yield_with_arg, NULL),
                 0);
    }
}

TEST(registers_survive_on_both_sides)
{
    uint64_t seeds[CROWD];
    Coroutine *co[CROWD];

    for (int i = 0; i < CROWD; i++) {
        seeds[i] = UINT64_C(0x9e3779b97f4a7c15) * (unsigned)(i + 1);
        co[i] = coroutine_create(keep_registers, &seeds[i]);
    }
    for (unsigned round = 0; round < 21; round++) {
        for (unsigned i = 0; i < CROWD; i++) {
            CHECK_EQ(call_keeps_registers(~seeds[i], enter_with_arg, co[i]), 0);
        }
    }
}

static void enter_inner(void *opaque)
{
    uint64_t seed = 77;
    Coroutine *inner = coroutine_create(keep_registers, &seed);

    (void)opaque;
    for (unsigned i = 0; i < 21; i++) {
        CHECK_EQ(call_keeps_registers((uint64_t)i << 40, enter_with_arg, inner),
                 0);
    }
}

TEST(registers_survive_from_coroutine_to_coroutine)
{
    coroutine_enter(coroutine_create(enter_inner, NULL));
}

/* Coroutines in a ring, each of which wakes the next one and yields to it. */
static Coroutine *ring[CROWD];

static void wake_next(unsigned self)
{
    Coroutine *next = ring[(self + 1) % CROWD];

    coroutine_claim(next, "wake_next");
    coroutine_defer_claimed(os_thread(), next);
}

static void pass_on(void *arg)
{
    wake_next(*(unsigned *)arg);
    coroutine_yield();
}

static void keep_registers_in_ring(void *opaque)
{
    unsigned self = *(unsigned *)opaque;

    for (uint64_t i = 0; i < 20; i++) {
        CHECK_EQ(call_keeps_registers((self + 1) * 1000 + i, pass_on, opaque),
                 0);
    }
    if (self < CROWD - 1) {
        wake_next(self);
    }
}

TEST(registers_survive_from_waiter_to_waiter)
{
    unsigned number[CROWD];

    for (unsigned i = 0; i < CROWD; i++) {
        number[i] = i;
        ring[i] = coroutine_create(keep_registers_in_ring, &number[i]);
    }
    CHECK_EQ(call_keeps_registers(77, enter_with_arg, ring[0]), 0);
    for (unsigned i = 0; i < CROWD; i++) {
        CHECK(load_relaxed(&ring[i]->state) == COROUTINE_FREE);
    }
}

static uint64_t kept_in_calls; /* or of the registers that were not */

static void call_on_yield(Coroutine *co)
{
    kept_in_calls |= call_keeps_registers((uintptr_t)co, do_nothing, NULL);
}

static void yield_and_call(void *arg)
{
    coroutine_self()->on_yield = call_on_yield;
    yield_with_arg(arg);
}

static void keep_registers_with_calls(void *opaque)
{
    const uint64_t *seed = opaque;

    for (uint64_t i = 0; i < 20; i++) {
        CHECK_EQ(call_keeps_registers(*seed - i, yield_and_call, NULL), 0);
    }
}

/* What is called between leaving one stack and going on with the other. */
TEST(registers_survive_a_call_on_the_way)
{
    uint64_t seed = UINT64_C(0x9e3779b97f4a7c15);
    Coroutine *co = coroutine_create(keep_registers_with_calls, &seed);

    for (unsigned i = 0; i < 21; i++) {
        CHECK_EQ(call_keeps_registers(~seed + i, enter_with_arg, co), 0);
    }
    CHECK_EQ(kept_in_calls, 0);
}

static void check_aligned(void *opaque)
{
    unsigned *ran = opaque;

    CHECK_EQ(stack_at_call() % 16, 0);
    coroutine_yield();
    CHECK_EQ(stack_at_call() % 16, 0);
    ++*ran;
}

TEST(stacks_are_aligned)
{
    CoroutineOptions options = {.size = sizeof(options)};
    Coroutine *co[200];
    unsigned ran = 0;

    for (unsigned i = 0; i < 200; i++) {
        options.stack_size = (size_t)16384 << (i % 5);
        CHECK_EQ(coroutine_create_full(&co[i], check_aligned, &ran, &options),
                 0);
        coroutine_enter(co[i]);
    }
    for (unsigned i = 0; i < 200; i++) {
        coroutine_enter(co[i]);
    }
    CHECK_EQ(ran, 200);
}

#endif

/* --- locals, left to the compiler -----------------------------------------*/

/* The compiler must have the value in a register here, and forgets it. */
#define OPAQUE(x) __asm__ volatile("" : "+r"(x))

static void keep_integers(void *opaque)
{
    uint64_t s = *(const uint64_t *)opaque;
    uint64_t a = s, b = s * 3, c = s * 5, d = s * 7, e = s * 11;
    uint64_t f = s * 13, g = s * 17, h = s * 19;

    for (int i = 0; i < 20; i++) {
        OPAQUE(a);
        OPAQUE(b);
        OPAQUE(c);
        OPAQUE(d);
        OPAQUE(e);
        OPAQUE(f);
        OPAQUE(g);
        OPAQUE(h);
        coroutine_yield();
        CHECK(a == s && b == s * 3 && c == s * 5 && d == s * 7);
        CHECK(e == s * 11 && f == s * 13 && g == s * 17 && h == s * 19);
    }
}

TEST(integers_survive)
{
    uint64_t seeds[CROWD];
    void *opaque[CROWD];

    for (int i = 0; i < CROWD; i++) {
        seeds[i] = UINT64_C(0x9e3779b97f4a7c15) * (unsigned)(i + 1);
        opaque[i] = &seeds[i];
    }
    enter_at_random(keep_integers, opaque, 20);
}

static void keep_floats(void *opaque)
{
    double s = *(const double *)opaque;
    double a = s, b = s / 3, c = s / 7, d = s * s;
    long double e = (long double)s / 11;
    float f = (float)s / 13;

    for (int i = 1; i <= 20; i++) {
        coroutine_yield();
        CHECK(a == s * i && b == s / 3 && c == s / 7 && d == s * s);
        CHECK(e == (long double)s / 11 && f == (float)s / 13);
        a += s;
    }
}

TEST(floating_point_numbers_survive)
{
    double seeds[CROWD];
    void *opaque[CROWD];

    for (int i = 0; i < CROWD; i++) {
        /* A multiple of 1/8 below 2^10: sums and products are exact. */
        seeds[i] = 1.125 * (i + 1);
        opaque[i] = &seeds[i];
    }
    enter_at_random(keep_floats, opaque, 20);
}

static void look_at_rounding(void *opaque)
{
    int *seen = opaque;

    seen[0] = fegetround();
    CHECK_EQ(fesetround(FE_UPWARD), 0);
    coroutine_yield();
    seen[1] = fegetround();
}

/* coroutine.h says so.  The portable switch carries them along. */
TEST(the_control_words_belong_to_the_thread)
{
#ifdef COAIO_SWITCH_UCONTEXT
    SKIP("setcontext() sets them");
#endif
    int seen[2] = {-1, -1};
    Coroutine *co = coroutine_create(look_at_rounding, seen);

    CHECK_EQ(fesetround(FE_DOWNWARD), 0);
    coroutine_enter(co);
    CHECK_EQ(seen[0], FE_DOWNWARD);
    CHECK_EQ(fegetround(), FE_UPWARD);
    CHECK_EQ(fesetround(FE_TOWARDZERO), 0);
    coroutine_enter(co);
    CHECK_EQ(seen[1], FE_TOWARDZERO);
    CHECK_EQ(fegetround(), FE_TOWARDZERO);
}

static void keep_much(void *opaque)
{
    unsigned seed = *(unsigned *)opaque;
    unsigned char much[8192];

    memset(much, (int)seed, sizeof(much));
    for (unsigned i = 0; i < 20; i++) {
        coroutine_yield();
        for (size_t j = 0; j < sizeof(much); j++) {
            CHECK_EQ(much[j], (unsigned char)(seed + i));
            much[j]++;
        }
    }
}

TEST(stacks_keep_what_is_on_them)
{
    unsigned seeds[CROWD];
    void *opaque[CROWD];

    for (int i = 0; i < CROWD; i++) {
        seeds[i] = 5u * (unsigned)i;
        opaque[i] = &seeds[i];
    }
    enter_at_random(keep_much, opaque, 20);
}

/* --- unwinding ------------------------------------------------------------*/

typedef struct Trace {
    int depth; /* calls between the entry and the look */
    int count;
    void *frames[256];
} Trace;

static __attribute__((noinline)) void look_below(Trace *trace, int depth)
{
    if (depth > 0) {
        look_below(trace, depth - 1);
    } else {
        trace->count = backtrace(trace->frames, 256);
    }
    __asm__ volatile("" : : : "memory"); /* no tail call */
}

static void look(void *opaque)
{
    Trace *trace = opaque;

    look_below(trace, trace->depth);
    coroutine_yield();
    look_below(trace, trace->depth);
    __asm__ volatile("" : : : "memory");
}

static __attribute__((noinline)) void enter_below(Coroutine *co, int depth)
{
    if (depth > 0) {
        enter_below(co, depth - 1);
    } else {
        coroutine_enter(co);
    }
    __asm__ volatile("" : : : "memory");
}

/* How many frames a look from a coroutine sees, each of them real. */
static int frames_of(int depth, int depth_of_enterer)
{
    Trace trace = {.depth = depth};
    Coroutine *co = coroutine_create(look, &trace);
    int count;

    enter_below(co, depth_of_enterer);
    count = trace.count;
    for (int i = 0; i < count; i++) {
        Dl_info info;

        CHECK(dladdr(trace.frames[i], &info) != 0);
    }
    trace.count = 0;
    enter_below(co, depth_of_enterer + 1);
    CHECK_EQ(trace.count, count);
    return count;
}

/* The enterer is not seen: unwinding ends at the entry. */
TEST(unwinding_ends_at_the_entry)
{
    int count = frames_of(0, 0);

    CHECK(count >= 2);
    CHECK(count < 12);
    CHECK_EQ(frames_of(0, 20), count);
    CHECK_EQ(frames_of(10, 0), count + 10);
    CHECK_EQ(frames_of(30, 7), count + 30);
}

static Trace on_the_way;

static void look_on_yield(Coroutine *co)
{
    (void)co;
    look_below(&on_the_way, 3);
}

static void yield_and_look(void *opaque)
{
    (void)opaque;
    coroutine_self()->on_yield = look_on_yield;
    coroutine_yield();
}

static void enter_one_that_looks(void *opaque)
{
    Coroutine *co = coroutine_create(yield_and_look, NULL);

    enter_below(co, 20);
    on_the_way.depth = on_the_way.count;
    enter_below(co, *(int *)opaque);
    __asm__ volatile("" : : : "memory");
}

/* What is called on the stack that was gone to is seen to be called there. */
TEST(unwinding_sees_the_stack_that_was_gone_to)
{
    Trace trace = {.depth = 0};
    int depth = 0;

    coroutine_enter(coroutine_create(look, &trace));
    coroutine_enter(coroutine_create(enter_one_that_looks, &depth));
    /* Below the entry: one that looks, 20 that enter and a few on the way. */
    CHECK(on_the_way.depth > trace.count + 20);
    CHECK(on_the_way.depth < trace.count + 40);
}

/* --- signal masks ---------------------------------------------------------*/

static bool blocked(int sig)
{
    sigset_t mask;

    CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &mask), 0);
    return sigismember(&mask, sig);
}

static void look_at_mask(void *opaque)
{
    bool *seen = opaque;

    seen[0] = blocked(SIGUSR1);
    coroutine_yield();
    seen[1] = blocked(SIGUSR1);
}

static void *enter_with_blocked(void *opaque)
{
    sigset_t mask;

    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &mask, NULL), 0);
    coroutine_enter(opaque);
    CHECK(blocked(SIGUSR1));
    return NULL;
}

/* The portable switch brought the mask of the thread before along: I/O threads,
 * which block signals, were killed by a SIGXFSZ in a coroutine from outside. */
TEST(a_mask_belongs_to_the_thread)
{
    bool seen[2] = {true, false};
    Coroutine *co = coroutine_create(look_at_mask, seen);
    pthread_t thread;

    coroutine_enter(co);
    CHECK(!seen[0]);
    CHECK_EQ(pthread_create(&thread, NULL, enter_with_blocked, co), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK(seen[1]);
    CHECK(!blocked(SIGUSR1));
}

/* --- where the portable switch cannot switch ------------------------------*/

#ifdef COAIO_SWITCH_UCONTEXT

static void nothing(void *opaque)
{
    (void)opaque;
}

/* The C library asks for the mask, or sets it, on the way. */
static void forbid_mask_calls(int how)
{
    if (os_in_valgrind()) {
        SKIP("Valgrind has masks of its own, and needs these calls for them");
    }
    if (seccomp_refuse_with(SYS_rt_sigprocmask, (unsigned)how, EPERM)) {
        SKIP("no seccomp filters here");
    }
}

TEST_ABORTS(a_stack_that_cannot_be_prepared,
            "^coaio: getcontext failed: this system cannot switch stacks$")
{
    forbid_mask_calls(SIG_BLOCK);
    coroutine_create(nothing, NULL);
}

TEST_ABORTS(a_stack_that_cannot_be_left,
            "^coaio: getcontext failed: this system cannot switch stacks$")
{
    Coroutine *co = coroutine_create(nothing, NULL);

    forbid_mask_calls(SIG_BLOCK);
    coroutine_enter(co);
}

TEST_ABORTS(a_stack_that_cannot_be_gone_to,
            "^coaio: setcontext failed: this system cannot switch stacks$")
{
    Coroutine *co = coroutine_create(nothing, NULL);

    forbid_mask_calls(SIG_SETMASK);
    coroutine_enter(co);
}

#endif

TEST_MAIN()
