/* SPDX-License-Identifier: MIT */
/*
 * IOThread: a thread that polls a context of its own.
 *
 * Guarantees: when iothread_new() returns, the context is bound and polled;
 * when iothread_stop() returns, the thread has ended, and what was due when it
 * was called has run.  Does not guarantee that what keeps rescheduling itself
 * gets to an end: the last passes are at most LAST_PASSES.
 *
 * OWNERSHIP
 *
 *   The IOThread belongs to its references; the thread has none.  Whoever
 *   drops the last one has the thread stopped and joined first, so the thread
 *   may use it to its end.
 *
 * INVARIANTS
 *
 *   1. handle is joined once, by whoever finds `stopped` false under the lock.
 *   2. ctx->stopped is set before the thread ends, after its last pass.
 */
#include "base/assert.h"
#include "base/explore.h"
#include "loop/context.h"
#include "loop/fd_int.h"
#include "os/memory.h"

#include <coaio/iothread.h>
#include <errno.h>
#include <stdio.h>

/* To run what is due before the thread ends. */
#define LAST_PASSES  SCALED(1000, 3)
#define REPORT_LINES 20 /* coroutines that are named, of those left */

struct IOThread {
    unsigned long refs;    /* atomic */
    AioContext *ctx;       /* a reference; constant */
    OsThreadHandle handle; /* INVARIANTS 1 */
    uint32_t started;      /* atomic futex: STARTED_... */
    int result;            /* of starting; written before `started` */
    int stopping;          /* atomic; 1: the thread is to end */
    OsMutex lock;          /* held while the thread is stopped */
    bool stopped;          /* lock */
    size_t left;           /* lock; coroutines parked when it had stopped */
};

/* --- the thread -----------------------------------------------------------*/

static void tell_started(IOThread *iothread, int result)
{
    iothread->result = result;
    /* [iothread-start/A] pairs with [iothread-start/B] in await_start(). */
    if (MUTANT(IOTHREAD_STARTED_RELAXED)) {
        store_relaxed(&iothread->started, 1);
    } else {
        store_release(&iothread->started, 1);
    }
    os_futex_wake(&iothread->started, 1);
}

static void run_until_stopped(IOThread *iothread)
{
    AioContext *ctx = iothread->ctx;
    unsigned passes = 0;

    while (!load_acquire(&iothread->stopping)) {
        aio_poll(ctx, true);
    }
    if (MUTANT(IOTHREAD_NO_LAST_PASS)) {
        return;
    }
    while ((aio_poll(ctx, false) || context_prepare(ctx) == 0) &&
           passes < LAST_PASSES) {
        MARK("iothread: it runs what is due before it ends");
        passes++;
    }
}

static void iothread_main(void *arg)
{
    IOThread *iothread = arg;
    int result;

    aio_context_attach(iothread->ctx);
    result = aio_install_overflow_handler();
    tell_started(iothread, result);
    if (result == 0) {
        run_until_stopped(iothread);
    }
    context_stop(iothread->ctx); /* INVARIANTS 2 */
}

/* --- starting -------------------------------------------------------------*/

static int await_start(IOThread *iothread)
{
    /* [iothread-start/B] pairs with [iothread-start/A] in tell_started(). */
    while (!load_acquire(&iothread->started)) {
        os_futex_wait(&iothread->started, 0, -1);
    }
    if (iothread->result < 0) {
        os_thread_join(&iothread->handle);
    }
    return iothread->result;
}

static int make_context(IOThread *iothread, const char *name,
                        const IOThreadOptions *options)
{
    const AioContextOptions ctx_options = {
        .size = sizeof(ctx_options),
        .name = name,
        .engine = options->engine,
    };
    int ret = aio_context_new(&iothread->ctx, &ctx_options);

    if (ret < 0) {
        return ret;
    }
    ret = aio_context_set_poll_params(iothread->ctx, options->poll_max_ns,
                                      options->poll_grow, options->poll_shrink);
    if (ret < 0) {
        aio_context_unref(iothread->ctx);
    }
    return ret;
}

static int start_thread(IOThread *iothread, const char *name,
                        const IOThreadOptions *options)
{
    const OsThreadStart start = {
        .name = name,
        .run = iothread_main,
        .arg = iothread,
        .cpus = options->cpus,
        .n_cpus = options->n_cpus,
    };
    int ret = os_thread_start(&iothread->handle, &start);

    return ret < 0 ? ret : await_start(iothread);
}

static void iothread_free(IOThread *iothread)
{
    os_mutex_destroy(&iothread->lock);
    os_free(iothread);
}

int iothread_new(IOThread **out, const char *name,
                 const IOThreadOptions *options)
{
    static const IOThreadOptions defaults = {.size = sizeof(defaults)};
    IOThread *iothread;
    int ret;

    os_check_fork("iothread_new");
    if (!options) {
        options = &defaults;
    }
    if (options->size != sizeof(*options)) {
        return -EINVAL;
    }
    iothread = os_alloc(sizeof(*iothread));
    if (!iothread) {
        return -ENOMEM;
    }
    iothread->refs = 1;
    os_mutex_init(&iothread->lock);
    ret = make_context(iothread, name, options);
    if (ret < 0) {
        goto fail;
    }
    ret = start_thread(iothread, name, options);
    if (ret < 0) {
        aio_context_unref(iothread->ctx);
        goto fail;
    }
    *out = iothread;
    return 0;

fail:
    iothread_free(iothread);
    return ret;
}

/* --- stopping -------------------------------------------------------------*/

typedef struct Census {
    const AioContext *ctx;
    unsigned lines;
    char line[REPORT_LINES][160];
} Census;

/* What co, which is left, does; wait is what it waits for, or NULL. */
static void describe(const Coroutine *co, const CoWait *wait, char *line,
                     size_t size)
{
    CoroutineLabel label;

    coroutine_label(co, &label);
    if (wait && fd_of_wait(wait) >= 0) {
        snprintf(line, size, "%s is left: it waits for %s fd %d", label.text,
                 wait->what, fd_of_wait(wait));
    } else if (wait) {
        snprintf(line, size, "%s is left: it waits for %s %p", label.text,
                 wait->what, wait->object);
    } else if (load_relaxed(&co->state) == COROUTINE_NEW) {
        snprintf(line, size, "%s is left: it was never entered", label.text);
    } else {
        snprintf(line, size, "%s is left: it has yielded by itself",
                 label.text);
    }
}

/*
 * Those that wait for something stay as they are.  The others may be taken away
 * by another thread just now, and wait elsewhere, or come from there, in vain;
 * the home is read between two looks at the wait, so neither is missed.  They
 * may also end there, with their name: that is not seen.
 */
static void note_one(Coroutine *co, void *opaque)
{
    Census *census = opaque;
    /*
     * [iothread/A] Acquire: who sees a wait that began after a move sees the
     * home that it moved to, and who sees a home the end of waits before the
     * move.  Pairs with [iothread/B].
     */
    const CoWait *wait = load_acquire(&co->wait);
    bool lives_here = load_acquire(&co->home) == &census->ctx->home;

    if (MUTANT(IOTHREAD_HOME_FIRST)) {
        wait = load_acquire(&co->wait);
    }
    if (!lives_here || census->lines >= REPORT_LINES) {
        return;
    }
    if (load_relaxed(&co->wait) != wait && !MUTANT(IOTHREAD_ONE_LOOK)) {
        MARK("iothread: one has come while it was looked at");
        return;
    }
    describe(co, wait, census->line[census->lines], sizeof(census->line[0]));
    census->lines++;
}

/* The thread has ended.  Returns how many coroutines are left. */
static size_t report_left(AioContext *ctx)
{
    Census census = {.ctx = ctx};
    long left = ctx->home.population - load_acquire(&ctx->home.emigrated);
    CoroutineLabel label;

    if (left <= 0) {
        return 0;
    }
    warn_line("iothread_stop: %s has stopped while %ld coroutine%s parked in "
              "it, which will never go on",
              context_label(ctx, &label), left, left == 1 ? " was" : "s were");
    coroutine_for_each(note_one, &census);
    /* After that: it holds a lock, and stderr may be a full pipe. */
    for (unsigned i = 0; i < census.lines; i++) {
        warn_line("iothread_stop: %s", census.line[i]);
    }
    if ((size_t)left > census.lines) {
        warn_line("iothread_stop: and %zu more", (size_t)left - census.lines);
    }
    return (size_t)left;
}

static void check_may_block(const char *call, const IOThread *iothread)
{
    OsThread *thread = os_thread();
    CoroutineLabel label, ctx_label;

    if (context_is_home(iothread->ctx, thread)) {
        misuse("%s: the I/O thread of %s cannot stop itself: it would wait "
               "for its own end",
               call, context_label(iothread->ctx, &ctx_label));
    }
    if (thread->current) {
        misuse("%s for %s called in %s: it would block the thread, and all "
               "coroutines on it",
               call, context_label(iothread->ctx, &ctx_label),
               coroutine_label(thread->current, &label));
    }
}

static size_t stop_as(IOThread *iothread, const char *call)
{
    size_t left;

    check_may_block(call, iothread);
    os_mutex_lock(&iothread->lock);
    if (!iothread->stopped) {
        iothread->stopped = true;
        if (MUTANT(IOTHREAD_STOPPING_LATE)) {
            aio_notify(iothread->ctx);
        }
        store_release(&iothread->stopping, 1);
        if (!MUTANT(IOTHREAD_STOPPING_LATE)) {
            aio_notify(iothread->ctx);
        }
        if (MUTANT(IOTHREAD_STOP_UNLOCKED)) {
            os_mutex_unlock(&iothread->lock);
            os_thread_join(&iothread->handle);
            os_mutex_lock(&iothread->lock);
        }
        os_thread_join(&iothread->handle); /* INVARIANTS 1 */
        iothread->left = report_left(iothread->ctx);
    }
    if (iothread->left) {
        MARK("iothread: coroutines are left");
    }
    left = iothread->left;
    os_mutex_unlock(&iothread->lock);
    return left;
}

size_t iothread_stop(IOThread *iothread)
{
    os_check_fork("iothread_stop");
    return stop_as(iothread, "iothread_stop");
}

/* --- references -----------------------------------------------------------*/

IOThread *iothread_ref(IOThread *iothread)
{
    unsigned long refs;

    os_check_fork("iothread_ref");
    refs = fetch_add_relaxed(&iothread->refs, 1UL);
    if (refs == 0) {
        misuse("iothread_ref: the I/O thread %p has no references left: it is "
               "gone",
               (void *)iothread);
    }
    return iothread;
}

void iothread_unref(IOThread *iothread)
{
    unsigned long refs;
    AioContext *ctx;

    if (!iothread) {
        return;
    }
    os_check_fork("iothread_unref");
    refs = fetch_sub_acq_rel(&iothread->refs, 1UL);
    if (refs == 0) {
        misuse("iothread_unref: the I/O thread %p has no references left: it "
               "is gone",
               (void *)iothread);
    }
    if (refs != 1) {
        return;
    }
    ctx = iothread->ctx;
    if (!load_acquire(&ctx->stopped)) {
        stop_as(iothread, "iothread_unref");
    }
    iothread_free(iothread);
    aio_context_unref(ctx);
}

AioContext *iothread_context(IOThread *iothread)
{
    os_check_fork("iothread_context");
    return iothread->ctx;
}
