/* SPDX-License-Identifier: MIT */
/*
 * The armed timers of one clock: see timer_queue.h.
 */
#include "loop/timer_queue.h"

#include "base/assert.h"

/* How many timers timer_queue_earliest_ns() looks at. */
#define LOOK_MOST 8

/* How many places AioTimer.ahead_ is ahead: as many lines of memory may be on
 * their way at once.  A power of two. */
#define AHEAD 8u

/* How many runs sort() may have, of 2^n timers each: no memory holds more. */
#define RUNS_MOST 48

void timer_queue_init(TimerQueue *queue, int64_t now_ns)
{
    queue->base = timer_key(now_ns);
    queue->levels = 0;
    for (unsigned level = 0; level < TIMER_LEVELS; level++) {
        queue->used[level] = 0;
        for (unsigned digit = 0; digit < TIMER_DIGITS; digit++) {
            timer_list_init(&queue->slots[level][digit].timers);
        }
    }
    timer_list_init(&queue->past.timers);
}

void timer_slot_first(TimerQueue *queue, TimerSlot *slot, AioTimer *timer)
{
    slot->earliest_ns = timer->expiry_ns_;
    slot->latest_ns = timer->expiry_ns_;
    timer_list_append(&slot->timers, timer);
    if (slot != &queue->past) {
        size_t index = (size_t)(slot - queue->slots[0]);

        queue->levels |= UINT32_C(1) << index / TIMER_DIGITS;
        queue->used[index / TIMER_DIGITS] |= UINT32_C(1)
                                             << index % TIMER_DIGITS;
    }
}

/* The first list that is not empty, and its level, or NULL. */
static TimerSlot *first_slot(TimerQueue *queue, unsigned *level)
{
    while (queue->levels) {
        uint32_t *used;

        *level = (unsigned)__builtin_ctz(queue->levels);
        used = &queue->used[*level];
        while (*used) {
            TimerSlot *slot = &queue->slots[*level][__builtin_ctz(*used)];

            if (!timer_list_empty(&slot->timers)) {
                return slot;
            }
            *used &= *used - 1; /* INVARIANTS 4: forget it */
        }
        queue->levels &= queue->levels - 1;
    }
    return NULL;
}

/* --- the earliest ---------------------------------------------------------*/

/*
 * The exact time if the list is short, or one of its first has that expiry: so
 * a program with few timers does not wake up for one that it has deleted, and
 * no program looks at many each time that it sleeps.
 */
static int64_t slot_earliest_ns(TimerSlot *slot)
{
    AioTimerLink *link = slot->timers.next_;
    int64_t earliest_ns = INT64_MAX;

    for (unsigned n = 0; n < LOOK_MOST; n++) {
        int64_t expiry_ns = timer_of(link)->expiry_ns_;

        if (expiry_ns < earliest_ns) {
            earliest_ns = expiry_ns;
        }
        link = link->next_;
        if (link == &slot->timers) {
            slot->earliest_ns = earliest_ns;
        }
        if (earliest_ns == slot->earliest_ns) {
            break;
        }
    }
    return slot->earliest_ns;
}

bool timer_queue_earliest_ns(TimerQueue *queue, int64_t *earliest_ns)
{
    TimerSlot *slot = &queue->past;
    unsigned level;

    if (timer_list_empty(&slot->timers)) {
        slot = first_slot(queue, &level);
    }
    if (!slot) {
        return false;
    }
    *earliest_ns = slot_earliest_ns(slot);
    return true;
}

/* --- what has expired -----------------------------------------------------*/

/*
 * Distribute the timers of a list: those that expire at base to due, the rest
 * to lists of lower levels.
 *
 * Each is a line of memory that may be far away, and only the one before says
 * where.  So each gets to know which one will be AHEAD places behind it in its
 * new list, for whoever goes through that list.  The guess is by the digit of
 * the level below, where most of them go.
 */
static void distribute(TimerQueue *queue, TimerSlot *slot, unsigned level,
                       AioTimerLink *due)
{
    unsigned shift = (level - 1) * TIMER_DIGIT_BITS;
    AioTimer *recent[TIMER_DIGITS][AHEAD];
    unsigned count[TIMER_DIGITS] = {0};
    AioTimerLink *link = slot->timers.next_;

    while (link != &slot->timers) {
        AioTimer *timer = timer_of(link), **before;
        uint64_t key = timer_key(timer->expiry_ns_);
        unsigned digit = (unsigned)(key >> shift) % TIMER_DIGITS;

        prefetch(timer->ahead_);
        link = link->next_;
        if (key == queue->base) {
            timer_list_append(due, timer);
        } else {
            timer_queue_insert(queue, timer, timer->expiry_ns_);
        }
        before = &recent[digit][count[digit] % AHEAD];
        if (count[digit]++ >= AHEAD) {
            (*before)->ahead_ = timer;
        }
        *before = timer;
    }
    timer_list_init(&slot->timers);
}

/* The time of the first list has come: take it apart.  It is empty then, and
 * first_slot() finds another. */
static void take_apart(TimerQueue *queue, TimerSlot *slot, unsigned level,
                       AioTimerLink *due)
{
    uint64_t base = timer_key(slot->earliest_ns);

    invariant(base >= queue->base); /* INVARIANTS 2, 3 */
    queue->base = base;
    if (slot->earliest_ns == slot->latest_ns) {
        timer_list_append_all(due, &slot->timers);
        return;
    }
    invariant(level > 0); /* expiries in a list of level 0 are equal */
    distribute(queue, slot, level, due);
}

/*
 * Take what has expired, but for what is in past.  At the end base moves on to
 * now_ns if that leaves each timer in the list where it is, that is, if now_ns
 * is before the range of the first: what is armed next is near to it.
 */
static void take_slots(TimerQueue *queue, int64_t now_ns, AioTimerLink *due)
{
    uint64_t now = timer_key(now_ns);
    TimerSlot *slot;
    unsigned level;

    while ((slot = first_slot(queue, &level)) && slot->earliest_ns <= now_ns) {
        take_apart(queue, slot, level, due);
    }
    if (!slot || timer_key(slot->earliest_ns) >> level * TIMER_DIGIT_BITS >
                     now >> level * TIMER_DIGIT_BITS) {
        queue->base = now;
    }
}

/* Join two sorted chains that end in NULL; of equal expiry a's come first. */
static AioTimerLink *merge(AioTimerLink *a, AioTimerLink *b)
{
    AioTimerLink *merged = NULL, **last = &merged;

    while (a && b) {
        AioTimerLink **first =
            timer_of(b)->expiry_ns_ < timer_of(a)->expiry_ns_ ? &b : &a;

        *last = *first;
        last = &(*first)->next_;
        *first = (*first)->next_;
    }
    *last = a ? a : b;
    return merged;
}

/* Sort by expiry, equal ones as they are: runs[n] has 2^n timers or none, and
 * those of a higher n were before those of a lower one. */
static void sort(AioTimerLink *list)
{
    AioTimerLink *runs[RUNS_MOST] = {NULL}, *link = list->next_, *next;
    AioTimerLink *sorted = NULL;
    unsigned n;

    for (; link != list; link = next) {
        next = link->next_;
        link->next_ = NULL;
        for (n = 0; runs[n]; n++) {
            link = merge(runs[n], link);
            runs[n] = NULL;
        }
        runs[n] = link;
    }
    for (n = 0; n < RUNS_MOST; n++) {
        sorted = merge(runs[n], sorted);
    }
    timer_list_init(list);
    for (; sorted; sorted = next) {
        next = sorted->next_;
        timer_list_append(list, timer_of(sorted));
    }
}

/* All of past expires before base, that is, before all the rest. */
static void take_past(TimerQueue *queue, AioTimerLink *due)
{
    TimerSlot *past = &queue->past;

    if (past->earliest_ns != past->latest_ns) {
        sort(&past->timers);
    }
    timer_list_append_all(due, &past->timers);
}

/* The clock was set back: base follows it, and the timers base. */
static COLD void go_back(TimerQueue *queue, int64_t now_ns)
{
    AioTimerLink all, *link, *next;
    TimerSlot *slot;
    unsigned level;

    timer_list_init(&all);
    timer_list_append_all(&all, &queue->past.timers);
    while ((slot = first_slot(queue, &level))) {
        timer_list_append_all(&all, &slot->timers);
    }
    queue->base = timer_key(now_ns);
    for (link = all.next_; link != &all; link = next) {
        AioTimer *timer = timer_of(link);

        next = link->next_;
        timer_queue_insert(queue, timer, timer->expiry_ns_);
    }
}

void timer_queue_take_due(TimerQueue *queue, int64_t now_ns,
                          AioTimerLink *due)
{
    if (unlikely(timer_key(now_ns) < queue->base)) {
        go_back(queue, now_ns);
    }
    if (!timer_list_empty(&queue->past.timers)) {
        take_past(queue, due);
    }
    take_slots(queue, now_ns, due);
}
