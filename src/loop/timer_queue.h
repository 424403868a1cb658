/* SPDX-License-Identifier: MIT */
/*
 * The armed timers of one clock: lists of timers by when they expire.
 *
 * An expiry is read as a number of LEVELS digits.  A timer is in the list for
 * (level, digit), where level is that of the highest digit in which its expiry
 * differs from `base`, a time that has come, and digit is the expiry's digit
 * there.  So a low level holds what is near and holds it finely, a high one
 * what is far and coarsely, and the first list, that is, of the lowest level
 * and then the lowest digit in use, has what expires first.  When the time of
 * the first list comes, base moves into its range, and its timers go to lists
 * of lower levels.  A timer moves LEVELS times at the most; most move once or
 * twice, and one that is taken out before, as time-outs are, never does.
 *
 * Why not a heap: to take out of its middle is a walk through memory in which
 * each step hangs on a comparison that the processor can only guess, so that
 * it waits for each line of memory in turn.  Here the lines that a removal
 * touches are known at once, and removals in a row overlap.
 *
 * Guarantees: nothing is allocated; inserting and removing are O(1), expiring
 * is O(LEVELS), but for timers that are armed before base in disorder, which
 * are sorted.  Timers are taken in the order of expiry, those of equal expiry
 * in that of insertion.  A timer that was removed is nowhere any more; what
 * ahead_ of others says of it is never followed.
 *
 * Does not guarantee that looking for the earliest finds the exact time: where
 * it would have to look at many, it may name an earlier one.
 *
 * INVARIANTS
 *
 *   1. base is not after the last time that the queue was told, so that what
 *      is armed for the future is not before it, unless the clock is set back.
 *   2. A timer with an expiry before base is in `past`, any other in the list
 *      that base and its expiry name.  So timers of equal expiry are in one
 *      list, in the order of insertion, and stay so when it is distributed.
 *   3. No timer in a list expires before `earliest_ns` of that list or after
 *      its `latest_ns`.  All of them may do so later or earlier, since taking
 *      out does not look.
 *   4. The bit of a list that is not empty is set.  That of an empty one may
 *      be, for the same reason.
 *
 * Not safe for threads: the home thread's, as Timers in loop/timer_int.h is.
 */
#ifndef COAIO_LOOP_TIMER_QUEUE_H
#define COAIO_LOOP_TIMER_QUEUE_H

#include "base/compiler.h"
#include "base/explore.h"

#include <coaio/timer.h>
#include <stdbool.h>
#include <stdint.h>

/* --- lists of timers: rings with a head -----------------------------------*/

static inline void timer_list_init(AioTimerLink *list)
{
    list->next_ = list;
    list->prev_ = list;
}

static inline bool timer_list_empty(const AioTimerLink *list)
{
    return list->next_ == list;
}

static inline AioTimer *timer_of(AioTimerLink *link)
{
    return container_of(link, AioTimer, link_);
}

static inline void timer_list_append(AioTimerLink *list, AioTimer *timer)
{
    AioTimerLink *link = &timer->link_;

    link->next_ = list;
    link->prev_ = list->prev_;
    list->prev_->next_ = link;
    list->prev_ = link;
}

/* The same for all of from, which is empty then. */
static inline void timer_list_append_all(AioTimerLink *list,
                                         AioTimerLink *from)
{
    if (timer_list_empty(from)) {
        return;
    }
    from->next_->prev_ = list->prev_;
    from->prev_->next_ = list;
    list->prev_->next_ = from->next_;
    list->prev_ = from->prev_;
    timer_list_init(from);
}

/* Take timer out of the list that it is in, a queue's or another. */
static inline void timer_list_remove(AioTimer *timer)
{
    AioTimerLink *link = &timer->link_;

    link->prev_->next_ = link->next_;
    link->next_->prev_ = link->prev_;
}

/* --- the queue ------------------------------------------------------------*/

/*
 * With fewer bits the lists of a queue take less memory, with more a timer
 * moves less often: these are 13 KiB.  An explorer restores them for each
 * schedule.
 */
enum {
    TIMER_DIGIT_BITS = SCALED(5, 2),
    TIMER_DIGITS = 1 << TIMER_DIGIT_BITS,
    TIMER_LEVELS = (64 + TIMER_DIGIT_BITS - 1) / TIMER_DIGIT_BITS,
};

typedef struct TimerSlot {
    AioTimerLink timers;
    int64_t earliest_ns; /* INVARIANTS 3; valid while timers is not empty */
    int64_t latest_ns;   /* the same */
} TimerSlot;

typedef struct TimerQueue {
    uint64_t base;               /* INVARIANTS 1; as timer_key() has it */
    uint32_t levels;             /* bit by level: used[level] is not 0 */
    uint32_t used[TIMER_LEVELS]; /* bit by digit: INVARIANTS 4 */
    TimerSlot past;              /* INVARIANTS 2 */
    TimerSlot slots[TIMER_LEVELS][TIMER_DIGITS];
} TimerQueue;

/* Times as numbers without a sign, in the same order. */
static inline uint64_t timer_key(int64_t time_ns)
{
    return (uint64_t)time_ns ^ (UINT64_C(1) << 63);
}

/* For timer_queue_insert(): put timer into a slot that is empty, and see to it
 * that the slot is found. */
void timer_slot_first(TimerQueue *queue, TimerSlot *slot, AioTimer *timer);

/* Insert timer, which is in no list, to expire at expiry_ns. */
static inline void timer_queue_insert(TimerQueue *queue, AioTimer *timer,
                                      int64_t expiry_ns)
{
    uint64_t key = timer_key(expiry_ns);
    TimerSlot *slot = &queue->past;

    if (likely(key >= queue->base)) {
        unsigned bit = 63u ^ (unsigned)__builtin_clzll((key ^ queue->base) | 1);
        unsigned level = bit / TIMER_DIGIT_BITS;

        slot = &queue->slots[level][(key >> (level * TIMER_DIGIT_BITS)) %
                                    TIMER_DIGITS];
    }
    timer->expiry_ns_ = expiry_ns;
    if (timer_list_empty(&slot->timers)) {
        timer_slot_first(queue, slot, timer);
        return;
    }
    if (expiry_ns < slot->earliest_ns) {
        slot->earliest_ns = expiry_ns;
    }
    if (expiry_ns > slot->latest_ns) {
        slot->latest_ns = expiry_ns;
    }
    timer_list_append(&slot->timers, timer);
}

/* Whether the queue is empty; where it is not so easily seen, it says no. */
static inline bool timer_queue_unused(const TimerQueue *queue)
{
    return queue->levels == 0 && timer_list_empty(&queue->past.timers);
}

/* Make queue an empty one, whose clock shows now_ns. */
void timer_queue_init(TimerQueue *queue, int64_t now_ns);

/*
 * Returns whether there is any timer, and fills in when the first expires.  If
 * that one is in a list of many, earliest_ns may be a time before: that of one
 * which was removed.  Then timer_queue_take_due() at that time, which takes
 * nothing, makes sure that it is not named again.
 */
bool timer_queue_earliest_ns(TimerQueue *queue, int64_t *earliest_ns);

/* The clock shows now_ns, be it later or earlier than before: append to due
 * what has expired, in order. */
void timer_queue_take_due(TimerQueue *queue, int64_t now_ns,
                          AioTimerLink *due);

#endif
