/* SPDX-License-Identifier: MIT */
/*
 * struct Coroutine, and what the layers above may do with it.
 *
 * A Coroutine lives at the top of its own stack, so that a parked one touches
 * a single page.  It belongs to whoever holds the right to resume it: its
 * creator, then the thread that runs it, then, while parked, its home's
 * thread and at most one waker.
 *
 * INVARIANTS
 *
 *   1. A coroutine with a home runs only on the thread that is bound to it.
 *   2. scheduled is not NULL exactly while somebody has woken the coroutine
 *      and it has not been resumed yet; whoever set it (by compare-and-swap
 *      from NULL, the claim) is the only one who may move or resume it, or
 *      hand that right on through a list.
 *   3. caller is not NULL only while the coroutine is entered from another
 *      coroutine; state is ENTERED for each coroutine of that chain.
 *   4. Thread-private lists (OsThread.deferred) hold coroutines of the
 *      thread's own context only, each claimed.
 */
#ifndef COAIO_COROUTINE_INT_H
#define COAIO_COROUTINE_INT_H

#include "base/assert.h"
#include "base/atomic.h"
#include "base/explore.h"
#include "base/list.h"
#include "base/post.h"
#include "os/thread.h"

#include <coaio/coroutine.h>

struct Slab;

/*
 * What the coroutine layer knows of an AioContext: this is its first member.
 * population and emigrated together count the started coroutines whose home
 * it is; see loop/context.h for how that holds a reference.
 */
typedef struct CoHome {
    long population;   /* home thread only: came or started, minus ended */
    long emigrated;    /* atomic: left while another thread entered them */
    int held;          /* atomic; 1: the count holds a reference */
    int closed;        /* atomic; nothing lives here any more */
    char name[32];     /* for reports */
} CoHome;

typedef enum CoroutineState {
    COROUTINE_FREE = 0,  /* not a coroutine: a free slot, or given back */
    COROUTINE_NEW,       /* created, never entered */
    COROUTINE_PARKED,    /* has yielded */
    COROUTINE_ENTERED,   /* runs, or has entered one that runs */
} CoroutineState;

/*
 * Why a coroutine is parked, if a call of the library parked it.  Every kind
 * of waiting has one on the waiter's stack.  See loop/wait.h.
 */
struct CoWait;

/*
 * The first line of the cache is what a switch needs, the second what creating
 * and finishing need besides.
 */
struct Coroutine {
    void *sp;               /* saved stack, while not running */
    Coroutine *caller;      /* see INVARIANTS 3 */
    CoHome *home;           /* atomic; written by the holder of the right to
                               resume; reports look at any time */
    const char *scheduled;  /* atomic: who woke it; see INVARIANTS 2 */
    uint8_t state;          /* CoroutineState; the holder's */
    bool counted;           /* in home->population; false only on a move */
    bool poolable;          /* guarded, of the default size; never changes */
    unsigned locks_held;    /* its own */

    /*
     * To call with this coroutine when it has next yielded and its stack is
     * quiet; its own, or NULL.  Runs outside it, and must not suspend.
     */
    void (*on_yield)(Coroutine *co);

    Post post;              /* in the posted list of a context */

    CoroutineEntry *entry;
    void *opaque;
    FifoNode link;          /* in OsThread.deferred, or a free list */
    const char *name;       /* the user's, or NULL */
    struct CoWait *wait;    /* its own: what it waits for, or NULL */
    CoHome *target;         /* where the holder of the claim moves it */

    /* The stack and its bookkeeping; set when the slot is first used. */
    struct Slab *slab;
    uint8_t size_class;
    bool unguarded;         /* it has no guard */
    char *stack_bottom;     /* lowest usable address */
    size_t stack_size;      /* from there up to this struct */
    void *fiber;            /* TSan's, lives as long as the slot */
    unsigned valgrind_id;   /* Valgrind's handle of the stack; likewise */
};

/* --- for the loop: resuming, moving, waiting ---------------------------- */

COLD NORETURN void coroutine_misuse_dead(const Coroutine *co, const char *who);
COLD NORETURN void coroutine_misuse_claimed(const Coroutine *co,
                                            const char *who, const char *by);

/* Abort with a line if co is not a coroutine (finished, deleted, garbage). */
static inline void coroutine_check_live(const Coroutine *co, const char *who)
{
    if (unlikely(!co || load_relaxed(&co->state) == COROUTINE_FREE)) {
        coroutine_misuse_dead(co, who);
    }
}

/*
 * Claim the right to resume co (INVARIANTS 2), as who, a function's name.
 * Aborts if somebody has it, naming both.
 */
static inline void coroutine_claim(Coroutine *co, const char *who)
{
    const char *by = NULL;

    if (MUTANT(WAKE_TWICE)) {
        xchg_acq_rel(&co->scheduled, who);
        return;
    }
    if (unlikely(!cas_acq_rel(&co->scheduled, &by, who))) {
        coroutine_misuse_claimed(co, who, by);
    }
}

/*
 * Run a claimed coroutine of this thread's context, or without any home.
 * Outside coroutines only.
 */
void coroutine_resume_claimed(OsThread *thread, Coroutine *co);

/* Let a claimed coroutine of this thread run when control is back outside. */
static inline void coroutine_defer_claimed(OsThread *thread, Coroutine *co)
{
    invariant(co->home == (CoHome *)(void *)thread->context);
    fifo_append(&thread->deferred, &co->link);
}

/* The same for those of a chain (by Coroutine.link), which is not empty. */
void coroutine_defer_claimed_chain(OsThread *thread, const Fifo *chain);

/* "name" or "coroutine 0x..." for messages, in a buffer of the caller's. */
typedef struct CoroutineLabel {
    char text[64];
} CoroutineLabel;
const char *coroutine_label(const Coroutine *co, CoroutineLabel *label);

/*
 * Count co in or out of its home: in when it is created or arrives there, on
 * the home's thread; out when it ends or moves away, on any.  One that comes as
 * its home is closed has none then.
 */
void coroutine_count_in(Coroutine *co);
void coroutine_count_out(OsThread *thread, Coroutine *co);

/*
 * Set by the loop before any home exists: what is the thread's context, now
 * that the one which it had was closed.
 */
extern AioContext *(*coroutine_current_context)(void);

/*
 * Set by the loop before any home exists.  hold is called before a coroutine
 * counts in while home->held is 0, and returns false if home is just being
 * closed by another thread; leave when one counts out on a thread that
 * is not the home's, to count it in emigrated: home may be gone afterwards.
 */
extern bool (*coroutine_hold_home)(CoHome *home);
extern void (*coroutine_leave_home)(CoHome *home);

/*
 * Call fn for every coroutine that is not free, of all threads.  The answer
 * is a snapshot of moving things, unless the threads concerned stand still.
 * fn must not create or end coroutines.
 */
void coroutine_for_each(void (*fn)(Coroutine *co, void *opaque), void *opaque);

/* The entry of every coroutine; called by the switch on the new stack. */
NORETURN void coroutine_main(void);

#endif
