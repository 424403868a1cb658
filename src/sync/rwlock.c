/* SPDX-License-Identifier: MIT */
/*
 * CoRwlock: one word that says who has it, and one queue for both sides.
 *
 * While nobody queues, a lock and an unlock are one compare-and-swap of the
 * word each.  The queue is under a brief lock, which is a part of the word: who
 * has that has the word to himself.  Ownership is passed by whoever lets go: a
 * waiter that runs again has the lock already, so nobody can come in between.
 *
 * What it guarantees is said in coaio/rwlock.h.  No call waits for the brief
 * lock longer than another thread takes for a few instructions, so downgrade
 * never waits.  Locking again by a coroutine that reads is not noticed: it
 * works unless a writer queues in between, and then both wait for ever.
 *
 * LIFETIME: the last access of an unlock is its compare-and-swap, or that of
 * brief_unlock_bits() (brief.h); those that it has let in are woken after that.
 *
 * INVARIANTS
 *
 *   1. The word counts the readers, or says WRITER, never both.  While it says
 *      QUEUED only the holder of the brief lock changes it.
 *   2. writer_ is a coroutine only from when it has the lock for writing until
 *      it lets go: so "writer_ is me" is true exactly when I have it, whoever
 *      else reads or writes it at the time.
 *   3. If somebody waits, the word says QUEUED, and the oldest cannot have the
 *      lock now.
 *   4. A waiter is taken off the queue, and counted as owner, in one critical
 *      section; whoever does so wakes it.
 *
 * PROTOCOL AND MEMORY ORDER: [rwlock], [brief] and [wait] in
 * docs/memory-ordering.md.
 */
#include "base/explore.h"
#include "sync/brief.h"
#include "sync/waiter.h"

#include <coaio/rwlock.h>

#include <string.h>

/* The word, without its brief lock. */
enum {
    WRITER = BRIEF_OWNERS,
    QUEUED = BRIEF_OWNERS << 1,
    READER = BRIEF_OWNERS << 2 /* the count, from here on */
};

/* Nobody gets there: it takes more coroutines than memory has room for, or one
 * that never unlocks. */
#define READERS_MAX (UINT32_MAX / READER / 2)

/*
 * How often one who finds the lock taken, and nobody queueing, looks again
 * before he queues, with a pause in between: from a fraction of a microsecond,
 * when that has never paid, to a few, which is less than what queueing costs.
 */
#define SPIN_MIN SCALED(10, 1)
#define SPIN_MAX SCALED(100, 1)

typedef struct RwlockWaiter {
    Waiter base; /* first */
    bool write;  /* constant */
} RwlockWaiter;

static COLD NORETURN void misuse_own(const char *call, CoRwlock *rwlock,
                                     const Coroutine *self)
{
    CoroutineLabel label;

    misuse("%s: %s has CoRwlock %p for writing already, and would wait for "
           "itself",
           call, coroutine_label(self, &label), (void *)rwlock);
}

static COLD NORETURN void misuse_not_owner(const char *call, CoRwlock *rwlock,
                                           const Coroutine *self)
{
    const Coroutine *writer = load_relaxed(&rwlock->writer_);
    CoroutineLabel label, other;

    if (load_relaxed(&rwlock->word_) & WRITER) {
        misuse("%s: %s does not hold CoRwlock %p; %s has it for writing", call,
               coroutine_label(self, &label), (void *)rwlock,
               coroutine_label(writer, &other));
    }
    misuse("%s: %s does not hold CoRwlock %p; it has %u readers", call,
           coroutine_label(self, &label), (void *)rwlock,
           load_relaxed(&rwlock->word_) / READER);
}

static COLD NORETURN void misuse_too_many(const char *call, CoRwlock *rwlock)
{
    misuse("%s: CoRwlock %p has %u readers, which is the limit: some coroutine "
           "locks it again and again, and does not unlock it",
           call, (void *)rwlock, READERS_MAX);
}

void co_rwlock_init(CoRwlock *rwlock)
{
    memset(rwlock, 0, sizeof(*rwlock));
}

/* --- the word -------------------------------------------------------------*/

/* What one owner is in it. */
static inline uint32_t share_of(bool write)
{
    return write ? WRITER : READER;
}

/* Whether one more can have the lock, if he does not mind who queues. */
static inline bool available(uint32_t word, bool write)
{
    return write ? (word & ~(uint32_t)QUEUED) == 0 : !(word & WRITER);
}

/* Whether he can have it by a compare-and-swap. */
static inline bool takeable(uint32_t word, bool write)
{
    return write ? word == 0
                 : (word & (READER - 1)) == 0 && word / READER < READERS_MAX;
}

/* Whether the word is only its owners', to be changed by a compare-and-swap. */
static inline bool unqueued(uint32_t word)
{
    return !(word & (BRIEF_STATE | QUEUED));
}

static inline bool change_acquire(CoRwlock *rwlock, uint32_t *word, uint32_t to)
{
    if (MUTANT(RWLOCK_NO_FENCE_LOCK)) {
        return cas_relaxed(&rwlock->word_, word, to);
    }
    /*
     * [rwlock/B] Acquire: what those wrote who had the lock before is visible.
     * Pairs with [rwlock/A] in change_release(), and with [brief/A].  The
     * linearisation point of a lock that does not wait.
     */
    return cas_acquire(&rwlock->word_, word, to);
}

static inline bool change_release(CoRwlock *rwlock, uint32_t *word, uint32_t to)
{
    if (MUTANT(RWLOCK_NO_FENCE_UNLOCK)) {
        return cas_relaxed(&rwlock->word_, word, to);
    }
    /*
     * [rwlock/A] Release: who has the lock next sees what was written, and
     * writes after what was read.  The last access of an unlock.  Pairs with
     * [rwlock/B] in change_acquire(), and with [brief/B].
     */
    return cas_release(&rwlock->word_, word, to);
}

/* --- under the brief lock ------------------------------------------------*/

/* Returns the word with co as an owner more. */
static uint32_t own(CoRwlock *rwlock, uint32_t word, bool write, Coroutine *co)
{
    invariant(available(word, write)); /* INVARIANTS 1 */
    if (write) {
        store_relaxed(&rwlock->writer_, co); /* INVARIANTS 2 */
    }
    return word + share_of(write);
}

/* Let in, in their order, all who can have the lock now, and put them into
 * granted: a writer, or neighbouring readers.  Returns the word. */
static uint32_t grant(CoRwlock *rwlock, uint32_t word, WakeChain *granted,
                      const char *call)
{
    Waiter *first;

    while ((first = waiters_first(&rwlock->waiters_))) {
        RwlockWaiter *waiter = container_of(first, RwlockWaiter, base);

        if (!available(word, waiter->write)) {
            return word | QUEUED; /* INVARIANTS 3 */
        }
        waiters_remove(&rwlock->waiters_, first);
        MARK("rwlock: granted to one who waits");
        word = own(rwlock, word, waiter->write, first->wait.co);
        store_relaxed(&rwlock->thread_, NULL); /* he is not there yet */
        co_wait_settle(&first->wait, 0);
        waiter_claim(first, granted, call); /* INVARIANTS 4 */
    }
    return word & ~(uint32_t)QUEUED;
}

static uint32_t enqueue(CoRwlock *rwlock, uint32_t word, RwlockWaiter *waiter,
                        bool write)
{
    waiter->write = write;
    co_wait_init(&waiter->base.wait, "CoRwlock", rwlock, NULL);
    waiters_append(&rwlock->waiters_, &waiter->base);
    return word | QUEUED;
}

/* --- taking it -----------------------------------------------------------*/

/* self has the lock, and runs. */
static inline void settle_in(CoRwlock *rwlock, const OsThread *thread,
                             Coroutine *self)
{
    store_relaxed(&rwlock->thread_, (void *)thread);
    self->locks_held++;
}

static inline bool try_take(CoRwlock *rwlock, bool write,
                            const OsThread *thread, Coroutine *self)
{
    uint32_t word = load_relaxed(&rwlock->word_);

    while (takeable(word, write)) {
        if (change_acquire(rwlock, &word, word + share_of(write))) {
            if (write) {
                store_relaxed(&rwlock->writer_, self);
            }
            settle_in(rwlock, thread, self);
            return true;
        }
    }
    return false;
}

/*
 * Look for a while whether it can be had.  Not if others queue: he is to come
 * after them.  Nor if the one who came in last did so on this thread, and so
 * cannot let go now; that he is of another does not tell whether he runs still,
 * hence the bound, which shrinks where looking fails.
 */
static bool spin(CoRwlock *rwlock, bool write, const OsThread *thread,
                 Coroutine *self)
{
    uint32_t usual = load_relaxed(&rwlock->spins_);
    uint32_t most = usual * 2 + SPIN_MIN;

    if (os_one_cpu) {
        return false;
    }
    for (uint32_t i = 0; i < most && i < SPIN_MAX; i++) {
        const void *other = load_relaxed(&rwlock->thread_);

        if (try_take(rwlock, write, thread, self)) {
            MARK("rwlock: taken while spinning");
            store_relaxed(&rwlock->spins_, usual - usual / 8 + i / 8);
            return true;
        }
        if ((load_relaxed(&rwlock->word_) & QUEUED) || !other ||
            other == thread) {
            return false;
        }
        spin_hint();
    }
    store_relaxed(&rwlock->spins_, usual / 2);
    return false;
}

/* Take it, or queue.  Returns whether the latter. */
static bool take_or_queue(CoRwlock *rwlock, RwlockWaiter *waiter, bool write,
                          Coroutine *self, const char *call)
{
    uint32_t word = brief_lock_bits(&rwlock->word_);
    bool wait = (word & QUEUED) || !available(word, write);

    if (unlikely(word / READER >= READERS_MAX)) {
        misuse_too_many(call, rwlock);
    }
    word = wait ? enqueue(rwlock, word, waiter, write)
                : own(rwlock, word, write, self);
    brief_unlock_bits(&rwlock->word_, word);
    return wait;
}

static NOINLINE void coroutine_fn lock_slow(CoRwlock *rwlock, bool write,
                                            const char *call)
{
    OsThread *thread = os_thread();
    Coroutine *self = thread->current;
    RwlockWaiter waiter;

    if (unlikely(load_relaxed(&rwlock->writer_) == self)) { /* INVARIANTS 2 */
        misuse_own(call, rwlock, self);
    }
    if (spin(rwlock, write, thread, self)) {
        return;
    }
    if (take_or_queue(rwlock, &waiter, write, self, call)) {
        co_wait_park(&waiter.base.wait, -1);
    }
    settle_in(rwlock, os_thread(), self);
}

static inline void coroutine_fn lock_as(CoRwlock *rwlock, bool write,
                                        const char *call)
{
    Coroutine *self = sync_self(call, "CoRwlock", rwlock);

    if (unlikely(!try_take(rwlock, write, os_thread(), self))) {
        lock_slow(rwlock, write, call);
    }
}

void co_rwlock_rdlock(CoRwlock *rwlock)
{
    lock_as(rwlock, false, "co_rwlock_rdlock");
}

void co_rwlock_wrlock(CoRwlock *rwlock)
{
    lock_as(rwlock, true, "co_rwlock_wrlock");
}

/* --- letting go, and changing sides ---------------------------------------*/

static inline void check_owner(const char *call, CoRwlock *rwlock,
                               const Coroutine *self, uint32_t word)
{
    if (unlikely(word < READER && !(word & WRITER)) ||
        unlikely(self->locks_held == 0) ||
        unlikely((word & WRITER) && load_relaxed(&rwlock->writer_) != self)) {
        misuse_not_owner(call, rwlock, self);
    }
}

static NOINLINE void unlock_slow(CoRwlock *rwlock, uint32_t share)
{
    uint32_t word = brief_lock_bits(&rwlock->word_) - share;
    WakeChain granted = {0};

    if (!MUTANT(RWLOCK_UNLOCK_FORGETS)) {
        word = grant(rwlock, word, &granted, "co_rwlock_unlock");
    }
    brief_unlock_bits(&rwlock->word_, word);
    waiters_deliver(&granted);
}

void co_rwlock_unlock(CoRwlock *rwlock)
{
    const char *call = "co_rwlock_unlock";
    Coroutine *self = sync_self(call, "CoRwlock", rwlock);
    uint32_t word = load_relaxed(&rwlock->word_);
    bool write = word & WRITER;

    check_owner(call, rwlock, self, word);
    self->locks_held--;
    if (write) {
        store_relaxed(&rwlock->writer_, NULL); /* INVARIANTS 2 */
    }
    while (likely(unqueued(word))) {
        if (likely(change_release(rwlock, &word, word - share_of(write)))) {
            if (MUTANT(RWLOCK_UNLOCK_TOUCHES)) {
                store_relaxed(&rwlock->spins_, 0);
            }
            return;
        }
    }
    unlock_slow(rwlock, share_of(write));
}

static NOINLINE void downgrade_slow(CoRwlock *rwlock)
{
    uint32_t word = brief_lock_bits(&rwlock->word_) - WRITER + READER;
    WakeChain granted = {0};

    if (!MUTANT(RWLOCK_DOWNGRADE)) {
        word = grant(rwlock, word, &granted, "co_rwlock_downgrade");
    }
    brief_unlock_bits(&rwlock->word_, word);
    waiters_deliver(&granted);
}

void co_rwlock_downgrade(CoRwlock *rwlock)
{
    const char *call = "co_rwlock_downgrade";
    Coroutine *self = sync_self(call, "CoRwlock", rwlock);
    uint32_t word = WRITER;

    if (unlikely(load_relaxed(&rwlock->writer_) != self)) {
        misuse_not_owner(call, rwlock, self);
    }
    store_relaxed(&rwlock->writer_, NULL); /* INVARIANTS 2 */
    if (!change_release(rwlock, &word, READER)) {
        downgrade_slow(rwlock);
    }
}

/* Others read, too, or somebody queues: go to the end of the queue. */
static NOINLINE void coroutine_fn upgrade_slow(CoRwlock *rwlock,
                                               Coroutine *self)
{
    uint32_t word = brief_lock_bits(&rwlock->word_) - READER;
    WakeChain granted = {0};
    RwlockWaiter waiter;
    bool wait = word != 0;

    if (wait) {
        word = enqueue(rwlock, word, &waiter, true);
        word = grant(rwlock, word, &granted, "co_rwlock_upgrade");
    } else {
        word = own(rwlock, word, true, self);
    }
    brief_unlock_bits(&rwlock->word_, word);
    if (wait) {
        waiters_deliver(&granted);
        co_wait_park(&waiter.base.wait, -1);
    }
    store_relaxed(&rwlock->thread_, (void *)os_thread());
}

void co_rwlock_upgrade(CoRwlock *rwlock)
{
    const char *call = "co_rwlock_upgrade";
    Coroutine *self = sync_self(call, "CoRwlock", rwlock);
    uint32_t word = load_relaxed(&rwlock->word_);

    if (unlikely(load_relaxed(&rwlock->writer_) == self)) {
        misuse_own(call, rwlock, self);
    }
    check_owner(call, rwlock, self, word);
    word = READER;
    /*
     * [rwlock/A] [rwlock/B] Both: what this one wrote as a reader is for others
     * to see as after an unlock, and the other way round.
     */
    if (cas_acq_rel(&rwlock->word_, &word, (uint32_t)WRITER)) {
        store_relaxed(&rwlock->writer_, self); /* INVARIANTS 2 */
    } else {
        upgrade_slow(rwlock, self);
    }
}
