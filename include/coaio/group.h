/* SPDX-License-Identifier: MIT */
/*
 * CoGroup: run some coroutines, wait for all of them, learn the first error.
 *
 *     CoGroup group = { 0 };
 *
 *     co_group_run(&group, NULL, copy_part, &part[0]);
 *     co_group_run(&group, NULL, copy_part, &part[1]);
 *     ret = co_group_wait(&group);
 *
 * Usable when zeroed; no destroy function; may be freed when co_group_wait()
 * has returned and nothing was run since.
 *
 * Thread table
 *
 *                     outside      inside a    signal
 *                     coroutines   coroutine   handler
 *   co_group_init         yes         yes        no
 *   co_group_run          yes         yes        no
 *   co_group_wait         no          yes        no
 */
#ifndef COAIO_GROUP_H
#define COAIO_GROUP_H

#include <coaio/types.h>

COAIO_BEGIN_DECLS

/* The fields are the library's own. */
struct CoGroup {
    uint32_t lock_;
    int32_t error_;
    uint64_t running_;
    CoWaiterList waiters_;
};

typedef int coroutine_fn CoGroupFunc(void *opaque);

/**
 * Make group empty.  The same as filling it with zeroes.
 */
COAIO_API void co_group_init(CoGroup *group);

/**
 * Start fn(opaque) in a coroutine of its own, in ctx (NULL: the caller's
 * current context; aborts if there is none).  It begins as aio_co_enter() says.
 * A negative result is an error of the group; the first one counts.
 *
 * Returns 0, or -ENOMEM, and then nothing was started.
 */
COAIO_API int co_group_run(CoGroup *group, AioContext *ctx, CoGroupFunc *fn,
                           void *opaque);

/**
 * Wait until all that was run has ended.
 *
 * Barriers: acquire; what they wrote is visible.
 * Returns the first error, or 0, and forgets it.  Several may wait at once, and
 * learn the same.
 */
COAIO_API int coroutine_fn co_group_wait(CoGroup *group);

COAIO_END_DECLS

#endif
