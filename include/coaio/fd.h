/* SPDX-License-Identifier: MIT */
/*
 * File descriptor handlers: callbacks that an AioContext runs when a file
 * descriptor is ready.  Coroutines rather wait with co_poll_fd() and the calls
 * of io.h; a descriptor belongs to handlers or to coroutines, not to both at
 * once.
 *
 * A handler may be changed or removed at any time: by itself, by another
 * handler of the same pass, in a nested pass, or from another thread.  After a
 * removal on the home thread it does not run again; after one from elsewhere
 * it may be running at this moment.  Remove a descriptor's handlers before you
 * close it.
 *
 * Readiness is level-triggered.  An error or a hang-up runs whichever of the
 * two handlers is set.  A descriptor without readiness (a regular file) is
 * always ready.
 *
 * Thread table
 *
 *                         home thread   coroutine   other thread   signal
 *                                                                  handler
 *   aio_set_fd_handler        yes          yes          yes          no
 */
#ifndef COAIO_FD_H
#define COAIO_FD_H

#include <coaio/types.h>

COAIO_BEGIN_DECLS

typedef void AioFdFunc(void *opaque);

/* Looks, without a system call, whether there is something to do. */
typedef bool AioFdPollFunc(void *opaque);

/**
 * Set the handlers of fd in ctx, in place of those that were set; with all of
 * them NULL, remove it.
 *
 *   read        runs when fd is readable or was closed by its peer
 *   write       runs when fd is writable
 *   poll        called again and again while the context polls busily
 *               (aio_context_set_poll_params()); must not have side effects
 *   poll_ready  runs when poll returned true; NULL: read runs instead
 *
 * Barriers: release; what was written before is visible to the handlers.
 *
 * Returns 0 (always, for a removal), or -ENOMEM, -EBADF, -ENOSPC (the limit of
 * the kernel on watched descriptors); what was set before then stays.
 * Aborts if a coroutine waits for fd in this context.
 */
COAIO_API int aio_set_fd_handler(AioContext *ctx, int fd, AioFdFunc *read,
                                 AioFdFunc *write, AioFdPollFunc *poll,
                                 AioFdFunc *poll_ready, void *opaque);

COAIO_END_DECLS

#endif
