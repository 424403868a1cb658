/* SPDX-License-Identifier: MIT */
/*
 * A signal handler that schedules a bottom half, run after every single
 * instruction of the calls that it may interrupt, the way of a pass into its
 * sleep among them.
 *
 * The processor steps through the call (the trap flag), and SIGTRAP comes
 * after each instruction; in the nth try the handler acts at the nth of them.
 * So every place is tried, and none twice; with a COAIO_TEST_LOAD below 100,
 * one place in some.  Tools that translate or instrument code cannot do this.
 */
#include "base/compiler.h"
#include "engines.h"
#include "harness.h"
#include "loop/context.h"
#include "loopthread.h"
#include "os/fault.h"
#include "os/valgrind.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <coaio/fd.h>
#include <coaio/wake.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__) && !COAIO_ASAN && !COAIO_TSAN
#define CAN_STEP 1
#else
#define CAN_STEP 0
#endif

/* Whose number of instructions would be a surprise. */
enum {
    STEPS_MOST = 20000
};

static AioContext *ctx;
static AioBH *own;   /* what the call that is stepped through is about */
static AioBH *other; /* what the handler schedules; may be the same; NULL: it
                        notifies the main context */
static unsigned own_runs, other_runs;

static unsigned step;   /* instructions so far */
static unsigned act_at; /* when the handler schedules; 0: never */
static bool acted;
static unsigned kernel_at; /* the step before the first system call; or 0 */

static void count(void *opaque)
{
    ++*(unsigned *)opaque;
}

#define TRAP_FLAG 0x100

/* Whether the next instruction enters the kernel; and let it run freely from
 * here on if the handler has acted. */
static bool look_ahead(void *context)
{
#if CAN_STEP
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *next = (const unsigned char *)registers[REG_RIP];

    if (acted) {
        registers[REG_EFL] &= ~(greg_t)TRAP_FLAG;
    }
    return next[0] == 0x0f && next[1] == 0x05;
#else
    (void)context;
    return false;
#endif
}

static void on_trap(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    if (++step == act_at) {
        acted = true;
        if (other) {
            aio_bh_schedule(other);
        } else {
            aio_notify(aio_context_main());
        }
    }
    if (look_ahead(context) && !kernel_at) {
        kernel_at = step;
    }
}

/* Below the red zone, for the compiler may have something there. */
static inline void set_trap_flag(bool on)
{
#if CAN_STEP
    uint64_t flag = TRAP_FLAG;

    __asm__ volatile("leaq -128(%%rsp), %%rsp\n\t"
                     "pushfq\n\t"
                     "andq %1, (%%rsp)\n\t"
                     "orq %0, (%%rsp)\n\t"
                     "popfq\n\t"
                     "leaq 128(%%rsp), %%rsp"
                     :
                     : "r"(on ? flag : 0), "r"(~flag)
                     : "memory", "cc");
#else
    (void)on;
#endif
}

static void catch_traps(void)
{
    struct sigaction action;

    if (!CAN_STEP || os_in_valgrind()) {
        SKIP("code cannot be stepped through here");
    }
#ifdef COAIO_DELAYS
    os_delays = false; /* each try must take the same way */
#endif
    memset(&action, 0, sizeof(action));
    action.sa_sigaction = on_trap;
    action.sa_flags = SA_SIGINFO;
    CHECK_EQ(sigaction(SIGTRAP, &action, NULL), 0);
}

static void begin(bool same)
{
    catch_traps();
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    aio_context_attach(ctx);
    own = aio_bh_new(ctx, count, &own_runs);
    other = same ? own : aio_bh_new(ctx, count, &other_runs);
}

static void end(void)
{
    if (other != own) {
        aio_bh_delete(other);
    }
    aio_bh_delete(own);
    aio_poll(ctx, false);
    aio_context_unref(ctx);
}

/* Step through call, and let the handler act after the nth instruction. */
static void step_through(void (*call)(void), unsigned nth)
{
    step = 0;
    act_at = nth;
    acted = false;
    kernel_at = 0;
    own_runs = 0;
    other_runs = 0;
    set_trap_flag(true);
    call();
    set_trap_flag(false);
}

static void settle(void)
{
    while (aio_poll(ctx, false)) {
    }
}

/* All places, or one in some; then each time others. */
static unsigned stride(void)
{
    return (unsigned)(100 / harness_load(100));
}

static unsigned first_place(void)
{
    return 1 + (unsigned)(harness_seed() % stride());
}

/* How often own must have run when all has settled, at least and at most. */
typedef struct Bounds {
    unsigned least;
    unsigned most;
} Bounds;

static void try_all(void (*before)(void), void (*call)(void), bool same,
                    Bounds bounds)
{
    unsigned nth = first_place();

    begin(same);
    do {
        CHECK(nth < STEPS_MOST);
        if (before) {
            before();
        }
        step_through(call, nth);
        settle();
        CHECK(own_runs >= bounds.least && own_runs <= bounds.most);
        CHECK_EQ(other_runs, acted && !same ? 1 : 0);
        nth += stride();
    } while (acted);
    CHECK(step > 10);
    end();
}

/* --- the calls ------------------------------------------------------------*/

static void schedule_own(void)
{
    aio_bh_schedule(own);
}

static void schedule_own_idle(void)
{
    aio_bh_schedule_idle(own);
}

static void cancel_own(void)
{
    aio_bh_cancel(own);
}

static void poll_once(void)
{
    aio_poll(ctx, false);
}

static void notify(void)
{
    aio_notify(ctx);
}

TEST(in_schedule_another_is_scheduled)
{
    try_all(NULL, schedule_own, false, (Bounds){1, 1});
}

TEST(in_schedule_the_same_is_scheduled)
{
    try_all(NULL, schedule_own, true, (Bounds){1, 1});
}

TEST(in_schedule_of_a_pending_one_another_is_scheduled)
{
    try_all(schedule_own, schedule_own, false, (Bounds){1, 1});
}

TEST(in_schedule_idle_another_is_scheduled)
{
    try_all(NULL, schedule_own_idle, false, (Bounds){1, 1});
}

TEST(in_schedule_idle_the_same_is_scheduled)
{
    try_all(NULL, schedule_own_idle, true, (Bounds){1, 1});
}

TEST(in_schedule_of_an_idle_one_the_same_is_scheduled)
{
    try_all(schedule_own_idle, schedule_own, true, (Bounds){1, 1});
}

TEST(in_cancel_another_is_scheduled)
{
    try_all(schedule_own, cancel_own, false, (Bounds){0, 0});
}

/* It comes before the cancelling, or after it. */
TEST(in_cancel_the_same_is_scheduled)
{
    try_all(schedule_own, cancel_own, true, (Bounds){0, 1});
}

/* It is not pending, and cancelling it must not undo that it becomes so. */
TEST(in_cancel_of_one_that_is_not_pending_the_same_is_scheduled)
{
    try_all(NULL, cancel_own, true, (Bounds){0, 1});
}

TEST(in_notify_another_is_scheduled)
{
    try_all(NULL, notify, false, (Bounds){0, 0});
}

static void ask_for_main(void)
{
    aio_context_main();
}

/* A handler of SIGTERM does so (qemu_notify_event()); the call that it
 * interrupted held a lock that its own wanted. */
TEST(in_asking_for_the_main_context_it_is_notified)
{
    unsigned nth = first_place();

    catch_traps();
    CHECK(aio_context_main());
    do {
        step_through(ask_for_main, nth);
        nth += stride();
    } while (acted);
    CHECK(step > 2);
    harness_allow_fds(8); /* the main context lives as long as the process */
}

TEST(in_a_pass_another_is_scheduled)
{
    try_all(schedule_own, poll_once, false, (Bounds){1, 1});
}

/* Before the callback it makes no difference; after it, it runs again. */
TEST(in_a_pass_the_same_is_scheduled)
{
    try_all(schedule_own, poll_once, true, (Bounds){1, 2});
}

static void schedule_both(void)
{
    aio_bh_schedule(own);
    aio_bh_schedule(other);
}

/* other is pending: if it has run before, it runs twice. */
TEST(in_a_pass_one_that_is_to_run_in_it_is_scheduled)
{
    unsigned nth = first_place();

    begin(false);
    do {
        CHECK(nth < STEPS_MOST);
        schedule_both();
        step_through(poll_once, nth);
        settle();
        CHECK_EQ(own_runs, 1);
        CHECK(other_runs >= 1 && other_runs <= (acted ? 2u : 1u));
        nth += stride();
    } while (acted);
    end();
}

/* --- into the sleep -------------------------------------------------------*/

static bool progress;

static void poll_blocking(void)
{
    progress = aio_poll(ctx, true);
}

static void nothing(void *opaque)
{
    (void)opaque;
}

/*
 * How many instructions it takes to the system call that sleeps.  To measure
 * that, a descriptor that is ready ends the sleep at once; it is watched later
 * on, too, and the pass before has done what the engine has to do for that, so
 * that the way is the same.
 */
static unsigned steps_to_sleep(const int ends[2])
{
    uint64_t syscalls = os_counter(OS_COUNT_SYSCALLS);
    char c = 0;

    CHECK_EQ(write(ends[1], &c, 1), 1);
    step_through(poll_blocking, 0);
    CHECK(progress);
    CHECK(kernel_at > 0);
    CHECK(os_counter(OS_COUNT_SYSCALLS) > syscalls);
    CHECK_EQ(read(ends[0], &c, 1), 1);
    CHECK(!aio_poll(ctx, false));
    return kernel_at;
}

/*
 * Nothing is due and nobody else is there, so the pass sleeps for ever, unless
 * what the handler has scheduled on the way keeps it awake, or wakes it.
 */
TEST(on_the_way_into_the_sleep_another_is_scheduled)
{
    unsigned most;
    int ends[2];

    as_usual_on_uring(); /* else what is ready is seen before */
    begin(false);
    CHECK_EQ(pipe(ends), 0);
    CHECK_EQ(aio_set_fd_handler(ctx, ends[0], nothing, NULL, NULL, NULL, NULL),
             0);
    aio_poll(ctx, false);
    steps_to_sleep(ends);
    most = steps_to_sleep(ends); /* all has been used once */
    CHECK(most > 30);
    for (unsigned nth = first_place(); nth <= most; nth += stride()) {
        step_through(poll_blocking, nth);
        CHECK(acted);
        CHECK(progress || aio_poll(ctx, false));
        CHECK_EQ(other_runs, 1);
    }
    aio_set_fd_handler(ctx, ends[0], NULL, NULL, NULL, NULL, NULL);
    close(ends[0]);
    close(ends[1]);
    end();
}

/* --- the hold on the context ----------------------------------------------*/

static unsigned long pins_at_push; /* 0: it has not pushed yet */

static void on_trap_at_push(int number)
{
    (void)number;
    if (!pins_at_push &&
        (post_pending(&ctx->posted) || post_pending(&ctx->idle))) {
        pins_at_push = load_relaxed(&ctx->pins);
    }
}

static AioBHStorage storage;
static Coroutine *co;

static void shoot(void)
{
    aio_bh_schedule_oneshot_embedded(ctx, &storage, nothing, NULL);
}

static void schedule_co(void)
{
    aio_co_schedule(ctx, co);
}

static void poll_and_drop(void *arg)
{
    (void)arg;
    aio_poll(ctx, false);
    aio_bh_delete(own);
    aio_context_unref(ctx);
}

/*
 * What has been pushed may run and drop the last reference while its poster
 * is still to notify; so a poster that has to, or may have to, holds the
 * context before it pushes.
 */
TEST(whoever_posts_holds_the_context_before_the_push)
{
    static void (*const calls[])(void) = {
        schedule_own,
        schedule_own_idle,
        shoot,
        schedule_co,
    };

    catch_traps();
    signal(SIGTRAP, on_trap_at_push);
    for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        CHECK_EQ(aio_context_new(&ctx, NULL), 0);
        own = aio_bh_new(ctx, nothing, NULL);
        co = coroutine_create(nothing, NULL);
        pins_at_push = 0;
        CHECK(notify_prepare_sleep(ctx, false));
        set_trap_flag(true);
        calls[i]();
        set_trap_flag(false);
        CHECK(pins_at_push >= 2); /* one is that of the references */
        CHECK_EQ(load_relaxed(&ctx->pins), 1);
        run_in_thread(poll_and_drop, NULL);
    }
}

TEST_MAIN()
