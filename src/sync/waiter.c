/* SPDX-License-Identifier: MIT */
/*
 * What the locks share; see waiter.h.
 */
#include "sync/waiter.h"

void sync_misuse_outside(const char *call, const char *kind, const void *object)
{
    misuse("%s: called outside a coroutine, on %s %p", call, kind, object);
}
