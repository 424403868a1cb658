/* SPDX-License-Identifier: MIT */
/*
 * Bottom halves and signal handlers, with signals that come at any moment: a
 * second thread sends them in a loop that is bounded by count.  What the
 * handler schedules must run, whatever it has interrupted: the home thread in
 * its calls, in its sleep or on its way there, or another thread that is about
 * to schedule.  test_bh_step does the same for every single instruction.
 */
#include "base/atomic.h"
#include "harness.h"
#include "loop/context.h"
#include "loopthread.h"
#include "os/fault.h"

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>

static AioContext *ctx;
static AioBH *handler_bh;  /* what the handler schedules */
static unsigned long sent; /* atomic; written before it is scheduled */
static unsigned long seen; /* atomic; what its callback read of sent */
static unsigned handled;   /* atomic */
static bool errno_lost;    /* atomic */

static void on_signal(int number)
{
    int before = errno;

    (void)number;
    errno = 1234;
    fetch_add_relaxed(&sent, 1UL);
    aio_bh_schedule(handler_bh);
    if (errno != 1234) {
        store_relaxed(&errno_lost, true);
    }
    fetch_add_relaxed(&handled, 1u);
    errno = before;
}

static void see(void *opaque)
{
    (void)opaque;
    store_relaxed(&seen, load_relaxed(&sent));
}

static void install_handler(void)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_handler = on_signal;
    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
}

static void begin(void)
{
    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    aio_context_attach(ctx);
    handler_bh = aio_bh_new(ctx, see, NULL);
    install_handler();
}

static void end(void)
{
    CHECK(!load_relaxed(&errno_lost));
    aio_bh_delete(handler_bh);
    aio_poll(ctx, false);
    aio_context_unref(ctx);
}

/* --- the sender -----------------------------------------------------------*/

typedef struct Sender {
    pthread_t target;
    unsigned long signals;
    bool wait_for_each; /* until what it scheduled has run */
    bool done;          /* atomic */
    BareThread thread;
} Sender;

static void send_signals(void *opaque)
{
    Sender *sender = opaque;

    for (unsigned long i = 0; i < sender->signals; i++) {
        unsigned long before = load_relaxed(&sent);

        CHECK_EQ(pthread_kill(sender->target, SIGUSR1), 0);
        while (sender->wait_for_each && load_relaxed(&seen) <= before) {
            sched_yield();
        }
    }
    store_release(&sender->done, true);
    if (sender->wait_for_each) {
        aio_notify(ctx);
    }
}

static void start_sending(Sender *sender, unsigned long signals)
{
    sigset_t set, before;

    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sender->target = pthread_self();
    sender->signals = harness_load(signals);
    sender->done = false;
    /*
     * No signal, but TSan makes what it keeps of this thread's signals.  It
     * does so when that is first needed, and a signal that comes in the middle
     * would be kept in a copy that nobody looks at again: it is lost.
     */
    CHECK_EQ(pthread_kill(sender->target, 0), 0);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, &before), 0);
    bare_thread_start(&sender->thread, send_signals, sender);
    CHECK_EQ(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
}

/* --- the home thread ------------------------------------------------------*/

/* It does little but sleep: each signal finds it asleep or falling asleep. */
TEST(a_handler_wakes_the_thread_that_it_interrupts)
{
    Sender sender = {.wait_for_each = true};

    begin();
    start_sending(&sender, 5000);
    while (!load_acquire(&sender.done)) {
        aio_poll(ctx, true);
    }
    bare_thread_join(&sender.thread);
    CHECK(load_relaxed(&handled) > 0);
    end();
}

static void yield_until(void *opaque)
{
    while (!*(bool *)opaque) {
        coroutine_yield();
    }
}

/* The same where a signal finds it in a coroutine, or in a switch. */
TEST(a_handler_wakes_the_thread_whose_coroutine_it_interrupts)
{
    Sender sender = {.wait_for_each = true};
    bool enough = false;
    Coroutine *co;

    begin();
    co = coroutine_create(yield_until, &enough);
    start_sending(&sender, 5000);
    for (unsigned round = 0; !load_acquire(&sender.done); round++) {
        for (unsigned i = 0; i < round % 64; i++) {
            coroutine_enter(co);
        }
        aio_poll(ctx, true);
    }
    bare_thread_join(&sender.thread);
    enough = true;
    coroutine_enter(co);
    CHECK(load_relaxed(&handled) > 0);
    end();
}

static void nothing(void *opaque)
{
    (void)opaque;
}

/* The handler schedules the very bottom half that the thread schedules. */
TEST(a_handler_interrupts_the_scheduling_itself)
{
    Sender sender = {.wait_for_each = false};
    AioBHStorage storage;
    AioBH *own;

    begin();
    own = aio_bh_new(ctx, nothing, NULL);
    start_sending(&sender, 20000);
    while (!load_acquire(&sender.done)) {
        aio_bh_schedule(own);
        aio_bh_schedule(handler_bh);
        aio_bh_schedule_oneshot_embedded(ctx, &storage, nothing, NULL);
        aio_bh_cancel(own);
        aio_bh_schedule_idle(own);
        CHECK(aio_poll(ctx, false));
    }
    bare_thread_join(&sender.thread);
    sched_yield(); /* the last signal */
    aio_poll(ctx, false);
    CHECK_EQ(load_relaxed(&seen), load_relaxed(&sent));
    aio_bh_delete(own);
    end();
}

/* --- another thread -------------------------------------------------------*/

TEST(a_handler_interrupts_the_scheduling_in_another_thread)
{
    Sender sender = {.wait_for_each = false};
    LoopThread loop;
    AioBH *own;

    loop_thread_start(&loop, "loop");
    handler_bh = aio_bh_new(loop.ctx, see, NULL);
    own = aio_bh_new(loop.ctx, nothing, NULL);
    install_handler();
    start_sending(&sender, 20000);
    while (!load_acquire(&sender.done)) {
        aio_bh_schedule(handler_bh);
        aio_bh_schedule(own);
    }
    bare_thread_join(&sender.thread);
    sched_yield();
    loop_flush(loop.ctx);
    CHECK_EQ(load_relaxed(&seen), load_relaxed(&sent));
    CHECK(!load_relaxed(&errno_lost));
    aio_bh_delete(handler_bh);
    aio_bh_delete(own);
    loop_thread_stop(&loop);
}

/* The loop sleeps each time, so each signal takes a system call to wake it. */
TEST(a_handler_wakes_a_loop_that_sleeps)
{
    unsigned long rounds = harness_load(500);
    LoopThread loop;
    uint64_t allocations;

    loop_thread_start(&loop, "loop");
    handler_bh = aio_bh_new(loop.ctx, see, NULL);
    install_handler();
    /* The engine has made its first wait, for which it may allocate. */
    while (load_acquire(&loop.ctx->wake) != WAKE_SLEEPING) {
        sched_yield();
    }
    allocations = 0;
    for (unsigned long i = 1; i <= rounds + 1; i++) {
        CHECK_EQ(raise(SIGUSR1), 0);
        while (load_relaxed(&seen) < i) {
            sched_yield();
        }
        if (i == 1) {
            allocations = os_counter(OS_COUNT_ALLOCATIONS);
        }
    }
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS), allocations);
    CHECK(!load_relaxed(&errno_lost));
    aio_bh_delete(handler_bh);
    loop_thread_stop(&loop);
}

TEST_MAIN()
