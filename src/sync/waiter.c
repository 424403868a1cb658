/* SPDX-License-Identifier: MIT */
/*
 * What the locks share; see waiter.h.
 */
#include "sync/waiter.h"

#include "loop/wake_int.h"

void waiters_wake(CoWaiterList *list, const char *who)
{
    Fifo chain = { NULL, NULL };
    Waiter *waiter;

    while ((waiter = waiters_take(list))) {
        invariant(co_wait_ended(&waiter->wait));
        wake_claim(waiter->wait.co, who);
        fifo_append(&chain, &waiter->wait.co->link);
    }
    wake_deliver_chain(&chain);
}

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
