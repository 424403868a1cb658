/* SPDX-License-Identifier: MIT */
#ifndef COAIO_TESTS_ENGINES_H
#define COAIO_TESTS_ENGINES_H

/*
 * Cases that run once on each engine: in the body, `engine` is its name.
 *
 *     ON_EACH_ENGINE(something_holds)
 *     {
 *         AioContext *ctx = context_on(engine);
 *         ...
 *     }
 */

#include "harness.h"

#include "loop/poller/poller.h"

#include <coaio/context.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#define ON_EACH_ENGINE(name)                                                  \
    static void name(const char *engine);                                     \
    TEST(name##_on_epoll)                                                     \
    {                                                                         \
        name("epoll");                                                        \
    }                                                                         \
    TEST(name##_on_poll)                                                      \
    {                                                                         \
        name("poll");                                                         \
    }                                                                         \
    TEST(name##_on_uring)                                                     \
    {                                                                         \
        needs_uring();                                                        \
        name("uring");                                                        \
    }                                                                         \
    static void name(const char *engine)

static inline bool uring_works(void)
{
    AioContextOptions options = {.size = sizeof(options), .engine = "uring"};
    AioContext *ctx = NULL;
    int ret = aio_context_new(&ctx, &options);

    aio_context_unref(ctx);
    return ret != -ENOSYS;
}

/* The case is about what io_uring does unless told otherwise. */
static inline void as_usual_on_uring(void)
{
    unsetenv("COAIO_URING_WITHOUT");
    unsetenv("COAIO_URING_WITH");
}

/* From how many reports in a pass on io_uring receives (0: always). */
static inline void uring_receives_from(unsigned reports)
{
#ifdef COAIO_HAVE_URING
    poller_uring_set_crowd(reports);
#else
    (void)reports;
#endif
}

/* From what price of a system call on it sends, and reads from the page
 * cache. */
static inline void uring_dear_from_ns(int64_t ns)
{
#ifdef COAIO_HAVE_URING
    poller_uring_set_dear_ns(ns);
#else
    (void)ns;
#endif
}

/* Skip the case where io_uring does not work.  It receives as soon as it can,
 * not only where that pays, and leaves sends and the page cache to system
 * calls, whatever they cost here. */
static inline void needs_uring(void)
{
    if (!uring_works()) {
        SKIP("io_uring does not work here");
    }
    uring_receives_from(0);
    uring_dear_from_ns(INT64_MAX);
}

static inline AioContext *context_on(const char *engine)
{
    AioContextOptions options = {
        .size = sizeof(options),
        .name = "here",
        .engine = engine,
    };
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, &options), 0);
    if (engine) {
        CHECK_STR(aio_context_engine(ctx), engine);
    }
    return ctx;
}

#endif
