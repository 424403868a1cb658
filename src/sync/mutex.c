/* SPDX-License-Identifier: MIT */
/*
 * CoMutex: one atomic word, a list that belongs to the holder, and hand-over
 * from unlocker to waiter.
 *
 * The word says FREE, HELD, or, while the mutex is held, which waiter was
 * pushed last; pushed waiters are chained by next, newest first.  A locker
 * takes the mutex or pushes itself by one compare-and-swap.  The holder takes
 * over what was pushed, turns it round and keeps it in head_/tail_, the order
 * of service.  Unlocking hands the mutex to the oldest waiter: it never becomes
 * free while somebody waits, and nobody overtakes him.
 *
 * What it guarantees is said in coaio/mutex.h.  What it does not: that a lock
 * which is handed over is in use.  From the hand-over until the new holder's
 * thread has come to it nobody can have it; that is the price of order.
 *
 * LIFETIME
 *
 * The last access of an unlock to the mutex is the compare-and-swap that frees
 * it, or, if it hands over, a store before the new holder is woken.  Either
 * way nobody else can find the mutex his own before that; so whoever unlocks
 * last may free it, whatever earlier unlockers still do on their way out.
 *
 * INVARIANTS
 *
 *   1. While the word is FREE the list is empty and holder_ is NULL.
 *   2. head_ and tail_ belong to the holder.  Others may read whether head_ is
 *      NULL, as a hint.
 *   3. Everyone in the list arrived before everyone who is pushed.
 *   4. holder_ is a coroutine only from when it has the mutex until it lets go:
 *      so "holder_ is me" is true exactly when I hold it, whoever else reads
 *      or writes holder_ at the time.
 *   5. A waiter in the list is woken once, by the unlock that hands over to it.
 *
 * PROTOCOL AND MEMORY ORDER: [mutex-free], [mutex-push], [mutex-hand] in
 * docs/memory-ordering.md.
 */
#include "sync/mutex_int.h"

#include "base/explore.h"

#include <string.h>

enum {
    MUTEX_FREE = 0,
    MUTEX_HELD = 1
};

/*
 * A locker looks at a mutex that another thread holds once in so many pauses:
 * each look takes the line of memory from the holder, whom it slows down.
 */
#define PAUSES SCALED(8, 1)

/*
 * How many looks it takes before it queues: a microsecond, when that has been
 * in vain of late, up to some ten, which is less than what queueing costs the
 * two threads.
 */
#define SPIN_MIN SCALED(8, 1)
#define SPIN_MAX SCALED(96, 1)

/*
 * And how many at one that was handed to a waiter of another thread, who has
 * not come to it yet: some tens of microseconds, as long as a wake-up takes.
 * One that queues meanwhile would be handed the mutex in the same way, and so
 * would the next, each waking up for a few instructions: two threads get out
 * of that only if one of them is awake, and not in the queue, when the other
 * lets go.  Halved each time that it was in vain, VAIN_MAX times at most.
 */
#define ARRIVAL_MAX SCALED(250, 1)
#define VAIN_MAX    5

static COLD NORETURN void misuse_relock(const CoMutex *mutex,
                                        const Coroutine *self)
{
    CoroutineLabel label;

    misuse("co_mutex_lock: %s holds CoMutex %p already, and would wait for "
           "itself",
           coroutine_label(self, &label), (const void *)mutex);
}

static COLD NORETURN void misuse_resumed(CoMutex *mutex, const Coroutine *self)
{
    CoroutineLabel label;

    misuse("%s waits for CoMutex %p, and was resumed by somebody else: only "
           "what it waits for may wake it",
           coroutine_label(self, &label), (void *)mutex);
}

void mutex_misuse_not_holder(const char *call, CoMutex *mutex)
{
    const Coroutine *holder = load_relaxed(&mutex->holder_);
    CoroutineLabel self, other;

    misuse("%s: %s does not hold CoMutex %p; it is held by %s", call,
           coroutine_label(os_thread()->current, &self), (void *)mutex,
           coroutine_label(holder, &other));
}

void co_mutex_init(CoMutex *mutex)
{
    memset(mutex, 0, sizeof(*mutex));
}

/* --- taking it -----------------------------------------------------------*/

/*
 * self has the mutex, and runs.  thread_ comes first: who sees holder_ should
 * see it, too.  If compiler or processor turn them round, that costs a wake-up,
 * and no more: see prospect().
 */
static inline void settle_in(CoMutex *mutex, const OsThread *thread,
                             Coroutine *self)
{
    store_relaxed(&mutex->thread_, (void *)thread);
    store_relaxed(&mutex->holder_, self);
    self->locks_held++;
}

static inline bool try_take(CoMutex *mutex, uintptr_t *word)
{
    if (MUTANT(MUTEX_NO_FENCE_LOCK)) {
        return cas_relaxed(&mutex->word_, word, (uintptr_t)MUTEX_HELD);
    }
    /*
     * [mutex-free/B] Acquire: what the last holder wrote is visible, also in
     * the mutex itself.  Pairs with [mutex-free/A] in co_mutex_unlock().  The
     * linearisation point of a lock that does not wait.
     */
    return cas_acquire(&mutex->word_, word, (uintptr_t)MUTEX_HELD);
}

/* What thread_ says of a mutex that was handed to co, which is on its way to
 * it, or to another one of that home: no thread has an odd address. */
static inline void *arriving_like(Coroutine *co)
{
    return (void *)((uintptr_t)load_relaxed(&co->home) | 1);
}

/*
 * Whether it makes sense to look again soon.  All of this are hints: the
 * holder may be gone, so only the mutex can be asked.
 *
 * No, if somebody queues already, as then the unlocker will hand over to him;
 * and if the holder is of this thread, and so cannot run now.  That it took
 * the mutex on another thread does not tell whether it runs still, or has
 * suspended itself meanwhile: hence the bounds, which shrink where spinning
 * fails.
 *
 * While there is no holder, thread_ is still the one before, perhaps this one:
 * who has just taken it, on another thread, is about to say so; or he who has
 * had it is letting go.
 */
typedef enum Prospect {
    HOPELESS,
    RUNNING,  /* the holder, on another thread */
    ARRIVING, /* likewise */
} Prospect;

static inline Prospect prospect(CoMutex *mutex, const OsThread *thread,
                                uintptr_t word)
{
    void *other;

    if (word != MUTEX_HELD || load_relaxed(&mutex->head_)) {
        return HOPELESS;
    }
    other = load_relaxed(&mutex->thread_);
    if (!load_relaxed(&mutex->holder_)) {
        if (other == thread) {
            MARK("mutex: just taken, by another thread than it says");
        }
        return RUNNING;
    }
    if (!other || other == thread || other == arriving_like(thread->current)) {
        return HOPELESS;
    }
    if ((uintptr_t)other & 1) {
        MARK("mutex: an arrival is waited for");
        return ARRIVING;
    }
    return RUNNING;
}

/* How often a locker may look at a mutex in either case. */
typedef struct SpinBounds {
    uint32_t running;
    uint32_t arriving;
} SpinBounds;

static SpinBounds spin_bounds(CoMutex *mutex)
{
    return (SpinBounds){
        .running = load_relaxed(&mutex->spins_) + SPIN_MIN,
        .arriving = (uint32_t)ARRIVAL_MAX >> load_relaxed(&mutex->vain_),
    };
}

/* Learn that it was taken, after so many looks at one who ran. */
static void spun_well(CoMutex *mutex, uint32_t looks)
{
    uint32_t spins = load_relaxed(&mutex->spins_);

    MARK("mutex: taken while spinning");
    if (looks > 0 && spins + SPIN_MIN < SPIN_MAX) {
        store_relaxed(&mutex->spins_, spins + 1);
    }
    if (load_relaxed(&mutex->vain_)) {
        store_relaxed(&mutex->vain_, 0);
    }
}

/* Learn that the one or the other bound was reached. */
static void spun_in_vain(CoMutex *mutex, Prospect last)
{
    uint32_t vain = load_relaxed(&mutex->vain_);

    if (last == RUNNING) {
        store_relaxed(&mutex->spins_, load_relaxed(&mutex->spins_) / 2);
    } else if (vain < VAIN_MAX) {
        store_relaxed(&mutex->vain_, vain + 1);
    }
}

static inline void pause_between_looks(void)
{
    for (unsigned i = 0; i < PAUSES; i++) {
        spin_hint();
    }
}

/* Try to take it for a while.  Returns whether that went well. */
static bool spin(CoMutex *mutex, const OsThread *thread)
{
    uint32_t looks[] = {[RUNNING] = 0, [ARRIVING] = 0};
    SpinBounds most = spin_bounds(mutex);
    Prospect now = RUNNING;

    while (looks[RUNNING] < most.running && looks[ARRIVING] < most.arriving) {
        uintptr_t word = load_relaxed(&mutex->word_);

        if (word == MUTEX_FREE && try_take(mutex, &word)) {
            spun_well(mutex, looks[RUNNING]);
            return true;
        }
        if (word != MUTEX_FREE) {
            now = prospect(mutex, thread, word);
        }
        if (now == HOPELESS) {
            return false;
        }
        looks[now]++;
        pause_between_looks();
    }
    spun_in_vain(mutex, now);
    return false;
}

/* Queue, unless it becomes free first.  Returns whether it did. */
static bool take_or_push(CoMutex *mutex, Waiter *waiter)
{
    uintptr_t word = load_relaxed(&mutex->word_);

    for (;;) {
        if (word == MUTEX_FREE) {
            if (try_take(mutex, &word)) {
                return true;
            }
            continue;
        }
        waiter->next = word == MUTEX_HELD ? NULL : (Waiter *)word;
        if (MUTANT(MUTEX_PUSH_RELAXED)) {
            if (cas_relaxed(&mutex->word_, &word, (uintptr_t)waiter)) {
                return false;
            }
            continue;
        }
        /*
         * [mutex-push/A] Release: the holder finds the waiter complete.  The
         * linearisation point of arriving: it is what "first come" means.
         * Comparing with the newest only is enough, also if that has left and
         * come back at the same address (ABA): it is the newest nevertheless.
         * Pairs with [mutex-push/B] in mutex_take_over_pushed().
         */
        if (cas_release(&mutex->word_, &word, (uintptr_t)waiter)) {
            return false;
        }
    }
}

/* One who has queued holds it now. */
static inline void arrive(CoMutex *mutex)
{
    OsThread *thread = os_thread();

    /*
     * [mutex-hand/B] The wake-up has made visible what the holder before wrote,
     * in the list of the mutex, too.  Pairs with [mutex-hand/A] in
     * hand_over().
     */
    if (unlikely(!mutex_held_by(mutex, thread->current))) {
        misuse_resumed(mutex, thread->current);
    }
    settle_in(mutex, thread, thread->current);
}

/* Whether to try at all; where many wait, the answer is no. */
static inline bool may_spin(CoMutex *mutex)
{
    return load_relaxed(&mutex->word_) <= MUTEX_HELD && !os_one_cpu;
}

static NOINLINE void coroutine_fn queue_up(CoMutex *mutex)
{
    Waiter waiter;

    co_wait_init(&waiter.wait, "CoMutex", mutex, NULL);
    if (take_or_push(mutex, &waiter)) {
        settle_in(mutex, os_thread(), waiter.wait.co);
        return;
    }
    co_wait_park(&waiter.wait, -1);
    arrive(mutex);
}

static NOINLINE void coroutine_fn spin_or_queue_up(CoMutex *mutex)
{
    OsThread *thread = os_thread();

    if (spin(mutex, thread)) {
        settle_in(mutex, thread, thread->current);
        return;
    }
    queue_up(mutex);
}

static NOINLINE void coroutine_fn lock_slow(CoMutex *mutex)
{
    Coroutine *self = os_thread()->current;

    if (unlikely(mutex_held_by(mutex, self))) { /* INVARIANTS 4 */
        misuse_relock(mutex, self);
    }
    if (may_spin(mutex)) {
        spin_or_queue_up(mutex);
        return;
    }
    queue_up(mutex);
}

void co_mutex_lock(CoMutex *mutex)
{
    OsThread *thread = os_thread();
    Coroutine *self = thread->current;
    uintptr_t word = MUTEX_FREE;

    os_check_fork("co_mutex_lock");
    if (unlikely(!self)) {
        sync_misuse_outside("co_mutex_lock", "CoMutex", mutex);
    }
    if (likely(load_relaxed(&mutex->word_) == MUTEX_FREE &&
               try_take(mutex, &word))) {
        settle_in(mutex, thread, self);
        return;
    }
    lock_slow(mutex);
}

bool co_mutex_trylock(CoMutex *mutex)
{
    Coroutine *self = sync_self("co_mutex_trylock", "CoMutex", mutex);
    uintptr_t word = load_relaxed(&mutex->word_);

    if (word != MUTEX_FREE || !try_take(mutex, &word)) {
        return false;
    }
    settle_in(mutex, os_thread(), self);
    return true;
}

void mutex_arrive(CoMutex *mutex)
{
    arrive(mutex);
}

/* --- the holder's list ---------------------------------------------------*/

static inline void append_chain(CoMutex *mutex, Waiter *first, Waiter *last)
{
    last->next = NULL;
    if (load_relaxed(&mutex->head_)) {
        ((Waiter *)mutex->tail_)->next = first;
    } else {
        store_relaxed(&mutex->head_, (void *)first);
    }
    mutex->tail_ = last;
}

void mutex_take_over_pushed(CoMutex *mutex)
{
    Waiter *waiter, *next, *first = NULL, *last;

    if (load_relaxed(&mutex->word_) == MUTEX_HELD) {
        return;
    }
    /*
     * [mutex-push/B] Acquire: all who were pushed, not only the newest, since
     * each push is a read-modify-write and carries on the release of those
     * before.  Pairs with [mutex-push/A] in take_or_push().
     */
    last = (Waiter *)xchg_acquire(&mutex->word_, (uintptr_t)MUTEX_HELD);
    invariant((uintptr_t)last > MUTEX_HELD); /* INVARIANTS 2: we hold it */
    if (last->next) {
        MARK("mutex: several were pushed");
    }
    if (MUTANT(MUTEX_NOT_TURNED) && last->next && !last->next->next) {
        append_chain(mutex, last, last->next);
        return;
    }
    for (waiter = last; waiter; waiter = next) {
        next = waiter->next;
        waiter->next = first;
        first = waiter;
    }
    append_chain(mutex, first, last); /* INVARIANTS 3 */
}

void mutex_append(CoMutex *mutex, Waiter *waiter)
{
    append_chain(mutex, waiter, waiter);
}

/* --- letting go ----------------------------------------------------------*/

/* Give the mutex to the oldest in the list, which is not empty. */
static NOINLINE void hand_over(CoMutex *mutex)
{
    Waiter *waiter = load_relaxed(&mutex->head_);

    store_relaxed(&mutex->head_, (void *)waiter->next);
    store_relaxed(&mutex->thread_, arriving_like(waiter->wait.co));
    if (!MUTANT(MUTEX_HOLDER_LATE)) {
        store_relaxed(&mutex->holder_, waiter->wait.co); /* INVARIANTS 4 */
    }
    MARK("mutex: handed over");
    if (!co_wait_ended(&waiter->wait)) {
        co_wait_settle(&waiter->wait, 0);
    }
    /*
     * [mutex-hand/A] The list is settled, and the mutex is not touched again:
     * from here on the new holder may unlock and free it.  Waking has release
     * semantics (coaio/wake.h), so the new holder sees the list as it was
     * left here.  Pairs with [mutex-hand/B] in arrive().
     *
     * A simpler unlock would free the mutex and wake the waiter to try again;
     * then a locker that comes in between overtakes him.  Or it would offer
     * the mutex and look again whether somebody took it; then it looks at a
     * mutex that may be gone.
     */
    wake_as(waiter->wait.co, "co_mutex_unlock"); /* INVARIANTS 5 */
    if (MUTANT(MUTEX_TOUCH_AFTER_HAND_OVER)) {
        store_relaxed(&mutex->thread_, NULL);
    }
}

void co_mutex_unlock(CoMutex *mutex)
{
    Coroutine *self = os_thread()->current;
    uintptr_t held = MUTEX_HELD;

    os_check_fork("co_mutex_unlock");
    if (unlikely(!self)) {
        sync_misuse_outside("co_mutex_unlock", "CoMutex", mutex);
    }
    if (unlikely(!mutex_held_by(mutex, self))) {
        mutex_misuse_not_holder("co_mutex_unlock", mutex);
    }
    self->locks_held--;
    if (likely(!load_relaxed(&mutex->head_))) {
        store_relaxed(&mutex->holder_, NULL); /* INVARIANTS 1 and 4 */
        if (MUTANT(MUTEX_NO_RETAKE)) {
            xchg_release(&mutex->word_, (uintptr_t)MUTEX_FREE);
            return;
        }
        if (MUTANT(MUTEX_NO_FENCE_UNLOCK) &&
            cas_relaxed(&mutex->word_, &held, (uintptr_t)MUTEX_FREE)) {
            return;
        }
        while (MUTANT(MUTEX_WAITERS_INVERTED) &&
               load_relaxed(&mutex->word_) == MUTEX_HELD) {
            spin_hint(); /* "somebody waits" */
        }
        /*
         * [mutex-free/A] Release: the next holder sees what this one wrote.
         * The linearisation point of an unlock that finds nobody, and its last
         * access to the mutex.  If a waiter is pushed before it, it fails, and
         * the mutex is still ours to hand over.  Pairs with [mutex-free/B] in
         * try_take().
         */
        if (likely(cas_release(&mutex->word_, &held, (uintptr_t)MUTEX_FREE))) {
            if (MUTANT(MUTEX_TOUCH_AFTER_UNLOCK)) {
                store_relaxed(&mutex->thread_, NULL);
            }
            return;
        }
        MARK("mutex: somebody was pushed before it was freed");
        mutex_take_over_pushed(mutex);
    }
    hand_over(mutex);
}

void co_mutex_assert_locked(CoMutex *mutex)
{
    Coroutine *self = sync_self("co_mutex_assert_locked", "CoMutex", mutex);

    if (unlikely(!mutex_held_by(mutex, self))) {
        mutex_misuse_not_holder("co_mutex_assert_locked", mutex);
    }
}
