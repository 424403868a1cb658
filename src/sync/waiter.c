/* SPDX-License-Identifier: MIT */
/*
 * What the locks share; see waiter.h.
 */
#include "sync/waiter.h"

static COLD NORETURN void misuse_outside(const char *call, const char *kind,
                                         const void *object)
{
    misuse("%s: called outside a coroutine, on %s %p", call, kind, object);
}

Coroutine *sync_self(const char *call, const char *kind, const void *object)
{
    Coroutine *self = os_thread()->current;

    if (unlikely(!self)) {
        misuse_outside(call, kind, object);
    }
    return self;
}
