/* SPDX-License-Identifier: MIT */
/*
 * Failing system calls and allocations under the core: contexts, I/O threads,
 * coroutines, bottom halves.  The nth call fails, and n grows until none does;
 * for what happens once in a process, each n has a process of its own.  Each
 * failure must come back as the error that it was, change nothing, and leave
 * nothing behind; or the library goes on without (nth.h); or it is one of the
 * documented aborts.
 *
 * Blocks are counted: one that fails to be allocated counts as allocated, so
 * there is one more than before for each, and none for other calls that fail.
 */
#include "coroutine/coroutine_int.h"
#include "engines.h"
#include "harness.h"
#include "loopthread.h"
#include "nth.h"
#include "os/memory.h"
#include "seccomp.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <coaio/iothread.h>
#include <coaio/wake.h>
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

static void nothing(void *opaque)
{
    (void)opaque;
}

static uint64_t live_blocks(void)
{
    return os_counter(OS_COUNT_ALLOCATIONS) - os_counter(OS_COUNT_FREES);
}

static unsigned open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned n = 0;

    CHECK(dir != NULL);
    while (readdir(dir)) {
        n++;
    }
    closedir(dir);
    return n;
}

typedef int TryFn(void *out);

static bool is_allocation(const char *call)
{
    return strcmp(call, "alloc") == 0 || strcmp(call, "map") == 0;
}

/* One try, in which the nth call fails.  Returns whether that was an error. */
static bool fail_nth(const char *call, int error, unsigned nth, TryFn *try,
                     void (*undo)(void *out))
{
    void *const untouched = (void *)&fail_nth;
    uint64_t blocks = live_blocks();
    unsigned fds = open_fds();
    void *out = untouched;
    int ret;

    os_fault_arm(nth, error, call);
    ret = try(&out);
    if (ret == 0) {
        undo(out);
    } else {
        CHECK(os_fault_fired());
        CHECK_EQ(ret, -error);
        CHECK_EQ(out, untouched);
        CHECK_EQ(live_blocks(), blocks + is_allocation(call));
    }
    CHECK_EQ(open_fds(), fds);
    return ret < 0;
}

/*
 * Let the nth call of that name fail with error, for each n until none fails,
 * and look what try makes of it.  Returns how many were errors: a failure may
 * also be of no consequence.
 */
static unsigned fail_each(const char *call, int error, TryFn *try,
                          void (*undo)(void *out))
{
    unsigned nth = 0, failed = 0;

    do {
        failed += fail_nth(call, error, ++nth, try, undo);
        CHECK(nth < NTH_MOST);
    } while (os_fault_fired());
    return failed;
}

/* --- contexts -------------------------------------------------------------*/

static const char *engine;

static int try_context(void *out)
{
    AioContextOptions options = {.size = sizeof(options), .engine = engine};

    return aio_context_new(out, &options);
}

static void undo_context(void *ctx)
{
    aio_context_unref(ctx);
}

TEST(a_context_fails_cleanly)
{
    static const char *const engines[] = {"epoll", "poll", "uring"};

    for (int i = 0; i < (uring_works() ? 3 : 2); i++) {
        unsigned epoll = i == 0, uring = i == 2;

        engine = engines[i];
        CHECK(fail_each("alloc", ENOMEM, try_context, undo_context) >= 2);
        CHECK_EQ(fail_each("eventfd", EMFILE, try_context, undo_context), 1);
        CHECK_EQ(fail_each("epoll_create", ENFILE, try_context, undo_context),
                 epoll);
        CHECK_EQ(fail_each("epoll_ctl", ENOSPC, try_context, undo_context),
                 epoll);
        CHECK_EQ(fail_each("io_uring_setup", EMFILE, try_context,
                           undo_context),
                 uring);
        CHECK_EQ(fail_each("io_uring_register", EMFILE, try_context,
                           undo_context),
                 uring);
        /* The last of a few tells whether it is forbidden. */
        CHECK_EQ(fail_each("io_uring_enter", ENOSYS, try_context, undo_context),
                 uring);
        CHECK_EQ(fail_each("io_uring_enter", EIO, try_context, undo_context),
                 0);
    }
}

/* A pipe takes the place of the event fd. */
TEST(a_context_without_event_fds_fails_cleanly)
{
    static const char *const engines[] = {"epoll", "poll", "uring"};

    if (seccomp_refuse(SYS_eventfd2, ENOSYS)) {
        SKIP("no seccomp here");
    }
    for (int i = 0; i < (uring_works() ? 3 : 2); i++) {
        engine = engines[i];
        CHECK_EQ(fail_each("pipe2", EMFILE, try_context, undo_context), 1);
    }
}

static void set_flag(void *opaque)
{
    *(bool *)opaque = true;
}

typedef struct Posting {
    AioContext *ctx;
    AioBHStorage storage;
    bool done;
} Posting;

static void post(void *opaque)
{
    Posting *p = opaque;

    aio_bh_schedule_oneshot_embedded(p->ctx, &p->storage, set_flag, &p->done);
}

/* It works, whatever fails now. */
static void use_context(AioContext *ctx)
{
    Posting posting = {.ctx = ctx};

    aio_context_attach(ctx);
    run_in_thread(post, &posting);
    while (!posting.done) {
        aio_poll(ctx, true);
    }
    aio_notify(ctx);
    CHECK(!aio_poll(ctx, true));
}

/* Whatever fails, and with an error that is none of the expected ones; the
 * first time in the process that a context is made. */
static void make_and_use_context(void)
{
    AioContext *ctx = NULL;
    int ret = try_context(&ctx);

    if (ret == -ENOMEM) {
        CHECK(ctx == NULL);
        CHECK(os_fault_fired() && !nth_is_done_without());
        ret = try_context(&ctx);
    } else if (ret == 0) {
        CHECK(!os_fault_call() || nth_is_done_without());
    }
    if (ret == -ENOSYS) {
        return; /* no io_uring here */
    }
    CHECK_EQ(ret, 0);
    use_context(ctx);
    aio_context_unref(ctx);
}

TEST(a_context_fails_with_the_error_that_there_was)
{
    static const char *const engines[] = {"epoll", "poll", "uring"};

    for (int i = 0; i < 3; i++) {
        engine = engines[i];
        CHECK(nth_alone(make_and_use_context, ENOMEM, NULL) > 5);
    }
}

/* --- I/O threads ----------------------------------------------------------*/

static int try_iothread(void *out)
{
    return iothread_new(out, "fails", NULL);
}

static void undo_iothread(void *iothread)
{
    iothread_unref(iothread);
}

TEST(an_iothread_fails_cleanly)
{
    CHECK(fail_each("alloc", ENOMEM, try_iothread, undo_iothread) >= 4);
    CHECK_EQ(fail_each("eventfd", EMFILE, try_iothread, undo_iothread), 1);
    CHECK_EQ(fail_each("thread", EAGAIN, try_iothread, undo_iothread), 1);
    /* Its alternate signal stack: the failure happens in the new thread, or
     * not at all if a tool has given it one. */
    CHECK(fail_each("signal_stack", ENOMEM, try_iothread, undo_iothread) <= 1);
    CHECK(fail_each("map", ENOMEM, try_iothread, undo_iothread) <= 1);
    CHECK(fail_each("sigaltstack", EPERM, try_iothread, undo_iothread) >= 1);
}

TEST(an_iothread_fails_cleanly_for_want_of_a_handler)
{
    /* Of four calls; what one has done is not done again by the next. */
    CHECK_EQ(fail_each("sigaction", EPERM, try_iothread, undo_iothread), 3);
}

/* What it can do without, or try again, when it begins and when it ends. */
TEST(an_iothread_goes_on_without_what_it_does_not_need)
{
    static const char *const calls[] = {
        "pthread_setspecific", "pthread_setname_np", "futex_wait",
        "event_set",           "mprotect",           "munmap",
    };

    for (unsigned i = 0; i < ARRAY_SIZE(calls); i++) {
        CHECK_EQ(fail_each(calls[i], ENOMEM, try_iothread, undo_iothread), 0);
    }
}

static int try_iothread_on_a_cpu(void *out)
{
    IOThreadOptions options = {.size = sizeof(options), .n_cpus = 1};
    cpu_set_t cpus;
    unsigned cpu = 0;

    CHECK_EQ(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
    while (!CPU_ISSET(cpu, &cpus)) {
        cpu++;
    }
    options.cpus = &cpu;
    return iothread_new(out, "fails", &options);
}

TEST(an_iothread_that_cannot_be_placed_fails_cleanly)
{
    static const char *const calls[] = {"sched_setaffinity",
                                        "sched_getaffinity"};

    for (int i = 0; i < 2; i++) {
        CHECK_EQ(
            fail_each(calls[i], EPERM, try_iothread_on_a_cpu, undo_iothread),
            1);
    }
}

/* The first of the process, whatever fails, and stopping it. */
static void start_and_stop(void)
{
    IOThread *iothread = NULL;
    int ret = try_iothread_on_a_cpu(&iothread);

    if (ret < 0) {
        CHECK_EQ(ret, -ENOMEM);
        CHECK(iothread == NULL);
        CHECK(os_fault_fired() && !nth_is_done_without());
        CHECK_EQ(try_iothread(&iothread), 0);
    }
    iothread_unref(iothread);
}

TEST(a_first_iothread_fails_cleanly)
{
    CHECK(nth_alone(start_and_stop, ENOMEM, NULL) > 20);
}

/* --- coroutines -----------------------------------------------------------*/

static size_t stack_size;

static int try_coroutine(void *out)
{
    CoroutineOptions options = {
        .size = sizeof(options),
        .stack_size = stack_size,
    };

    return coroutine_create_full(out, nothing, NULL, &options);
}

/* Run it: a stack that was left half made would not do. */
static void undo_coroutine(void *co)
{
    coroutine_enter(co);
}

/* A mapping may be had that is smaller: then the failure is not seen. */
TEST(a_coroutine_survives_a_mapping_that_fails)
{
    for (size_t size = 16384; size <= 8388608; size *= 2) {
        Coroutine *co;

        stack_size = size;
        os_fault_arm(1, ENOMEM, "map");
        CHECK_EQ(try_coroutine(&co), 0);
        CHECK(os_fault_fired());
        coroutine_enter(co);
        /* From now on there is memory, and nothing can fail. */
        CHECK_EQ(fail_each("map", ENOMEM, try_coroutine, undo_coroutine), 0);
        CHECK_EQ(fail_each("alloc", ENOMEM, try_coroutine, undo_coroutine), 0);
    }
}

/* The slab's own memory; what it was to describe goes back. */
TEST(a_coroutine_fails_cleanly_for_want_of_a_slab)
{
    for (size_t size = 16384; size <= 8388608; size *= 2) {
        bool failed = false;

        stack_size = size;
        for (unsigned nth = 1; nth < NTH_MOST; nth++) {
            uint64_t blocks = live_blocks();
            Coroutine *co = NULL;

            os_fault_arm(nth, ENOMEM, "alloc");
            if (try_coroutine(&co) == 0) {
                coroutine_enter(co);
                CHECK(!os_fault_fired());
                break;
            }
            CHECK(os_fault_fired());
            CHECK(co == NULL);
            /* The one that failed is counted; and what describes slabs stays,
             * for the next. */
            CHECK(live_blocks() <= blocks + 1 + (nth > 1));
            failed = true;
        }
        CHECK(failed);
    }
}

/* The first of the process: what guards there are has to be found out. */
static void make_and_run_coroutine(void)
{
    Coroutine *co = NULL;
    int ret = try_coroutine(&co);

    if (ret < 0) {
        CHECK_EQ(ret, -ENOMEM);
        CHECK(co == NULL);
        CHECK(os_fault_fired());
        CHECK_EQ(try_coroutine(&co), 0);
    }
    os_fault_fired(); /* not in what follows */
    CHECK(os_address_guarded(co->stack_bottom - 1));
    coroutine_enter(co);
}

TEST(a_first_coroutine_fails_cleanly)
{
    for (stack_size = 16384; stack_size <= 8388608; stack_size *= 8) {
        CHECK(nth_alone(make_and_run_coroutine, ENOMEM, NULL) > 8);
    }
}

TEST_ABORTS(a_plain_coroutine_aborts_for_want_of_memory,
            "^coaio: coroutine_create: no memory or no guards for a stack; "
            "coroutine_create_full\\(\\) would have returned -ENOMEM$")
{
    os_fault_arm(1, ENOMEM, "alloc");
    coroutine_create(nothing, NULL);
}

/* --- bottom halves --------------------------------------------------------*/

static AioContext *attach_new(void)
{
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    aio_context_attach(ctx);
    return ctx;
}

TEST_ABORTS(a_bottom_half_aborts_for_want_of_memory,
            "^coaio: aio_bh_new: no memory for a bottom half$")
{
    AioContext *ctx = attach_new();

    os_fault_arm(1, ENOMEM, "alloc");
    aio_bh_new(ctx, nothing, NULL);
}

TEST_ABORTS(a_one_shot_aborts_for_want_of_memory,
            "^coaio: aio_bh_schedule_oneshot: no memory; "
            "aio_bh_schedule_oneshot_embedded\\(\\) needs none$")
{
    AioContext *ctx = attach_new();

    os_fault_arm(1, ENOMEM, "alloc");
    aio_bh_schedule_oneshot(ctx, nothing, NULL);
}

TEST_ABORTS(a_bottom_half_of_the_main_context_aborts_for_want_of_that,
            "^coaio: aio_bh_new_main: there is no main context: no memory or "
            "descriptors, or COAIO_ENGINE names no engine that works here$")
{
    os_fault_arm(1, EMFILE, "eventfd");
    aio_bh_new_main(nothing, NULL);
}

static void park(void *opaque)
{
    (void)opaque;
    coroutine_yield();
}

static void wake(void *co)
{
    aio_co_wake(co);
}

/* Scheduling, waking, moving, running: nothing of it can fail. */
TEST(the_paths_that_cannot_fail_ask_for_nothing)
{
    AioContext *ctx = attach_new();
    AioBH *bh = aio_bh_new(ctx, nothing, NULL);
    Coroutine *co = coroutine_create(park, NULL);
    AioBHStorage storage;

    os_fault_arm(1, ENOMEM, "alloc");
    aio_bh_schedule(bh);
    aio_bh_schedule_oneshot_embedded(ctx, &storage, nothing, NULL);
    aio_co_schedule(ctx, co);
    CHECK(aio_poll(ctx, true));
    run_in_thread(wake, co);
    aio_bh_schedule_idle(bh);
    CHECK(aio_poll(ctx, true));
    aio_bh_delete(bh);
    aio_context_unref(ctx);
    CHECK(!os_fault_fired());
}

/* --- waits ----------------------------------------------------------------*/

/* How the engine of ctx waits. */
static const char *wait_call(const AioContext *ctx)
{
    switch (aio_context_engine(ctx)[0]) {
    case 'e':
        return "epoll_wait";
    case 'u':
        return "io_uring_enter";
    default:
        return "poll";
    }
}

/* A wait that fails is one that found nothing; what is due runs all the same,
 * and the next pass waits again. */
TEST(a_wait_that_fails_does_not_stop_the_loop)
{
    static const int errors[] = {EINTR, ENOMEM};

    for (int i = 0; i < 2; i++) {
        AioContext *ctx = attach_new();
        AioBHStorage storage;
        bool done = false;

        os_fault_arm(1, errors[i], wait_call(ctx));
        CHECK(!aio_poll(ctx, true));
        CHECK(os_fault_fired());
        aio_bh_schedule_oneshot_embedded(ctx, &storage, set_flag, &done);
        CHECK(aio_poll(ctx, true));
        CHECK(done);
        aio_context_unref(ctx);
    }
}

static void post_flag(void *opaque)
{
    static AioBHStorage storage;

    (void)opaque;
    aio_bh_schedule_oneshot_embedded(opaque, &storage, nothing, NULL);
}

/* One that was posted while the wait failed is not forgotten. */
TEST(a_wait_that_fails_loses_no_notification)
{
    AioContext *ctx = attach_new();

    os_fault_arm(1, EINTR, wait_call(ctx));
    CHECK(!aio_poll(ctx, true));
    CHECK(os_fault_fired());
    run_in_thread(post_flag, ctx);
    CHECK(aio_poll(ctx, true));
    aio_notify(ctx);
    CHECK(!aio_poll(ctx, true));
    aio_context_unref(ctx);
}

TEST_MAIN()
