/* SPDX-License-Identifier: MIT */
/*
 * AioContext: an event loop.  It runs bottom halves (bh.h), file descriptor
 * handlers (fd.h), timers (timer.h) and coroutines (wake.h), all on one
 * thread, its home thread.
 *
 * Life cycle
 *
 *   aio_context_new() makes an unbound context: bottom halves, handlers and
 *   coroutines may be given to it already, and run when somebody polls.
 *   aio_context_attach() or the first aio_poll() binds it to the calling
 *   thread, for good.  A thread has at most one context.  An IOThread
 *   (iothread.h) is a thread that polls a context of its own.
 *
 *   Contexts are reference-counted.  A coroutine holds a reference on its home
 *   until it finishes, moves or is deleted; where it finishes outside a pass,
 *   the thread lets go when it next asks for its context or ends.  When the
 *   last reference goes, bottom halves, fd handlers or armed timers that are
 *   left are misuse: each is named, and the process aborts.
 *
 * One pass of aio_poll()
 *
 *   wait for events (if blocking and nothing is due) / completions / what was
 *   posted: bottom halves and woken coroutines, in the order of posting /
 *   ready fd handlers / timers that are due.
 *
 *   Each part runs what was there when the pass began and leaves what comes
 *   after to the next pass, so that none starves the others; but coroutines
 *   that are woken by coroutines of their own context run at once (wake.h), so
 *   some that do nothing but wake each other keep all else waiting: let one
 *   co_sleep_ns(0) now and then.  A callback may call aio_poll() again (a
 *   nested pass): that runs first what the outer pass has left.
 *
 * Thread table
 *
 *                                home thread   coroutine  other thread  signal
 *                                                                       handler
 *   aio_context_new                  yes          yes         yes         no
 *   aio_context_ref/unref            yes          yes         yes         no
 *   aio_context_attach               yes          no          (1)         no
 *   aio_context_current              yes          yes         yes         no
 *   aio_context_main                 yes          yes (2)     yes         (2)
 *   aio_context_engine               yes          yes         yes         no
 *   aio_context_set_poll_params      yes          yes         yes         no
 *   aio_poll                         yes          no          (1)         no
 *   aio_notify                       yes          yes         yes         yes
 *
 *   (1) only while the context is unbound, and this binds it
 *   (2) not for the first call, which makes it and binds it to the thread
 */
#ifndef COAIO_CONTEXT_H
#define COAIO_CONTEXT_H

#include <coaio/types.h>

COAIO_BEGIN_DECLS

typedef struct AioContextOptions {
    size_t size;         /* sizeof(AioContextOptions) */
    const char *name;    /* for reports; copied, at most 31 bytes are kept */
    const char *engine;  /* "epoll", "poll" or "uring" (or "io_uring", which is
                            the same); NULL: the environment's COAIO_ENGINE,
                            or else "auto": io_uring if the kernel (6.1 or
                            later) lets this process use it, or else the better
                            of the other two that works here, and then one line
                            on standard error says why.  The same holds where
                            the environment asks for io_uring by name.  A
                            process that forbids itself io_uring (seccomp) does
                            so before there are contexts, or asks for another:
                            aborts if it finds operations under way */
} AioContextOptions;

/**
 * Make an unbound context, with one reference that belongs to the caller.
 * options may be NULL.
 *
 * Returns 0 and fills *ctx, or leaves it alone and returns
 *   -ENOMEM           no memory
 *   -EMFILE, -ENFILE  no file descriptors left
 *   -EINVAL           no engine of that name; options->size is not known
 *   -ENOSYS           the engine of that name does not work on this machine
 */
COAIO_API int aio_context_new(AioContext **ctx,
                              const AioContextOptions *options);

/**
 * Take a reference.  Returns ctx.
 *
 * Barriers: none.
 */
COAIO_API AioContext *aio_context_ref(AioContext *ctx);

/**
 * Drop a reference; NULL is ignored.  Whoever drops the last one destroys
 * the context: see "Life cycle".
 *
 * Barriers: release; the one who destroys it sees what was written before.
 */
COAIO_API void aio_context_unref(AioContext *ctx);

/**
 * Bind ctx to the calling thread.  Nothing happens if it is bound to it
 * already.  Aborts if it is bound to another thread, or if this thread has
 * another context, or is in a pass of one whose last reference has gone.
 */
COAIO_API void aio_context_attach(AioContext *ctx);

/**
 * The context that is bound to the calling thread, or NULL; also NULL when the
 * last reference to it has gone, be it in a pass that is on.  Borrowed.
 */
COAIO_API AioContext *aio_context_current(void);

/**
 * The main context, made by the first call and bound to the thread that makes
 * it, which must not have another context.  It lives as long as the process.
 *
 * Returns it, borrowed; or NULL if memory or file descriptors ran out, or the
 * environment's COAIO_ENGINE names none that works here.
 */
COAIO_API AioContext *aio_context_main(void);

/**
 * The name of the engine that ctx runs on, a constant string.
 */
COAIO_API const char *aio_context_engine(const AioContext *ctx);

/**
 * Busy polling: before it sleeps, a blocking pass may look for events for a
 * while, which makes wake-ups cheaper and burns CPU.  Between two looks it lets
 * other threads have the CPU (sched_yield(), which before Linux 6.18 gives
 * little away).  The while adapts: it grows by the factor grow, up to max_ns,
 * when an event came soon after falling asleep, and shrinks by the factor
 * shrink (0: to nothing) when none came during it, so that an idle context
 * sleeps.
 *
 * It pays where threads hand work or locks to each other all the time, or
 * clients ask again as soon as they are answered.  100,000 is what coaio-nbd
 * uses: twice what it takes a thread to wake up where that takes long, as on
 * some virtual machines.
 *
 * max_ns 0 switches it off, which is the default.  grow 0 means 2.
 * Returns 0, or -EINVAL for negative values.
 */
COAIO_API int aio_context_set_poll_params(AioContext *ctx, int64_t max_ns,
                                          int64_t grow, int64_t shrink);

/**
 * Make one pass; the caller holds a reference.  With blocking, wait until
 * there is something to do or aio_notify() is called.
 *
 * Returns whether any callback, coroutine or handler ran; idle bottom halves
 * do not count.  A blocking pass that was notified may have found nothing, and
 * returns false.
 */
COAIO_API bool aio_poll(AioContext *ctx, bool blocking);

/**
 * Make the pass that blocks now return, or if none does, the next one that
 * would block.  Costs a system call only if the home thread sleeps.  Not
 * needed after calls that hand work to a context: those notify by themselves.
 *
 * Barriers: a full barrier; what the caller wrote before is visible to the
 * home thread when the pass has returned.
 */
COAIO_API void aio_notify(AioContext *ctx);

COAIO_END_DECLS

#endif
