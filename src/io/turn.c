/* SPDX-License-Identifier: MIT */
/*
 * Turns: of all coroutines that have to wait on one direction of a descriptor,
 * one waits for readiness, and the others for their turn, in the order of
 * their coming.  A call that need not wait takes no turn, but goes behind
 * those who wait.
 *
 * A turn is handed on, never put up for grabs: so nobody overtakes.
 *
 * INVARIANTS
 *
 *   1. waiters is empty while held is 0.
 *   2. A record in waiters has not ended; who takes it out, under the lock,
 *      ends it.
 */
#include "io/io_int.h"

#include <errno.h>

/* On the home thread, outside the waiter. */
static void turn_cancel(CoWait *wait, int error)
{
    IoTurn *turn = container_of(wait, IoTurn, wait);
    bool ours;

    os_mutex_lock(&turn->side->lock);
    ours = !co_wait_ended(wait); /* else the link is no longer the side's */
    if (ours) {
        list_remove(&turn->link);
        co_wait_settle(wait, error); /* INVARIANTS 2 */
    }
    os_mutex_unlock(&turn->side->lock);
    if (ours) {
        co_wait_wake(wait, "its timeout");
    }
}

int io_turn_take(IoTurn *turn, IoFd *entry, IoDirection direction,
                 const char *what)
{
    IoSide *side = &entry->sides[direction];
    bool closing, queued;

    turn->entry = entry;
    turn->side = side;
    turn->link.next = NULL;
    turn->link.prev = NULL;
    co_wait_init(&turn->wait, what, entry, turn_cancel);

    os_mutex_lock(&side->lock);
    closing = entry->closing;
    queued = load_relaxed(&side->held);
    turn->generation = entry->generation;
    if (closing) {
        queued = false;
    } else if (queued) {
        list_append(&side->waiters, &turn->link);
    } else {
        invariant(list_empty(&side->waiters)); /* INVARIANTS 1 */
        store_relaxed(&side->held, 1);
    }
    os_mutex_unlock(&side->lock);

    if (closing) {
        return -ECANCELED;
    }
    return queued ? (int)co_wait_park(&turn->wait, -1) : 0;
}

void io_turn_end(IoTurn *turn)
{
    IoSide *side = turn->side;
    IoTurn *next = NULL;
    List *link;

    os_mutex_lock(&side->lock);
    if (turn->entry->generation == turn->generation) {
        link = list_take_first(&side->waiters);
        if (link) {
            next = list_entry(link, IoTurn, link);
            co_wait_settle(&next->wait, 0); /* INVARIANTS 2 */
        } else {
            store_relaxed(&side->held, 0);
        }
    }
    os_mutex_unlock(&side->lock);
    if (next) {
        co_wait_wake(&next->wait, "the one before it in the queue");
    }
}

void io_turn_end_all_locked(IoSide *side, int error, List *ended)
{
    List *link;

    while ((link = list_take_first(&side->waiters))) {
        co_wait_settle(&list_entry(link, IoTurn, link)->wait, error);
        list_append(ended, link);
    }
}

void io_turn_wake_all(List *ended)
{
    List *link;

    while ((link = list_take_first(ended))) {
        co_wait_wake(&list_entry(link, IoTurn, link)->wait, "co_close");
    }
}
