/* SPDX-License-Identifier: MIT */
/*
 * Coroutines: create, enter, yield, finish; and what the loop needs to wake
 * them.
 *
 * The fast paths here are straight: each fetches the thread once, checks, does
 * its bookkeeping and ends in the switch, which is then a jump (switch.h).  So
 * nothing happens after a switch on the way back; whatever has to happen when
 * control leaves a coroutine happens before the switch, on the side that
 * leaves, or, if the stack must be quiet for it, as a call on the stack that
 * is gone to (switch_stack_call()).
 *
 * Deferred wake-ups (OsThread.deferred) are run by the coroutine that was
 * entered from outside any coroutine, when it leaves: instead of going back,
 * it goes straight to the first of them, which takes over its place below the
 * thread's own stack.  So a chain of wake-ups of any length needs no stack.
 *
 * INVARIANTS: see coroutine_int.h.
 */
#include "base/explore.h"
#include "coroutine/coroutine_int.h"

#include "coroutine/annotate.h"
#include "coroutine/pool.h"
#include "coroutine/stack.h"
#include "coroutine/switch.h"
#include "os/misc.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

AioContext *(*coroutine_current_context)(void);
bool (*coroutine_hold_home)(CoHome *home);
void (*coroutine_leave_home)(CoHome *home);

/* --- switching -----------------------------------------------------------*/

/* Where the stack pointer of co, NULL for the thread itself, is kept. */
static inline void **sp_of(OsThread *thread, Coroutine *co)
{
    return co ? &co->sp : &thread->leader_sp;
}

/*
 * The same, read: in a branch, which is foretold, and not through sp_of(),
 * since all that follows the switch waits for the result, and that would wait
 * for co.
 */
static inline void *saved_sp(OsThread *thread, Coroutine *co)
{
    if (likely(!co)) {
        return thread->leader_sp;
    }
    return co->sp;
}

#if WRAPPED_SWITCH

/* On the stack that was gone to, first thing. */
static void arrive(void *fake)
{
    OsThread *thread = os_thread();
    void (*call)(void *) = thread->after_switch;

    annotate_arrive(fake);
    if (call) {
        thread->after_switch = NULL;
        call(thread->after_switch_arg);
    }
}

static NOINLINE void wrapped_switch(OsThread *thread, Coroutine *from,
                                    Coroutine *to, bool gone)
{
    void *fake = NULL;

    annotate_leave(thread, from, to, &fake, gone);
    switch_stack(sp_of(thread, from), saved_sp(thread, to));
    /* Perhaps on another thread now: `thread` is not to be used. */
    arrive(fake);
}

static inline void switch_to(OsThread *thread, Coroutine *from, Coroutine *to)
{
    wrapped_switch(thread, from, to, false);
}

static inline void switch_to_alike(OsThread *thread, Coroutine *from,
                                   Coroutine *to)
{
    wrapped_switch(thread, from, to, false);
}

static inline void switch_to_call(OsThread *thread, Coroutine *from,
                                  Coroutine *to, void (*call)(void *),
                                  void *arg, bool gone)
{
    thread->after_switch = call;
    thread->after_switch_arg = arg;
    wrapped_switch(thread, from, to, gone);
}

#else

static inline void arrive(void *fake)
{
    (void)fake;
}

static inline void switch_to(OsThread *thread, Coroutine *from, Coroutine *to)
{
    switch_stack(sp_of(thread, from), saved_sp(thread, to));
}

/* Between coroutines that are likely to wait in the same way: see switch.h. */
static inline void switch_to_alike(OsThread *thread, Coroutine *from,
                                   Coroutine *to)
{
    (void)thread;
    switch_stack_alike(&from->sp, to->sp);
}

static inline void switch_to_call(OsThread *thread, Coroutine *from,
                                  Coroutine *to, void (*call)(void *),
                                  void *arg, bool gone)
{
    (void)gone;
    switch_stack_call(sp_of(thread, from), saved_sp(thread, to), call, arg);
}

#endif

/* --- names, checks -------------------------------------------------------*/

const char *coroutine_label(const Coroutine *co, CoroutineLabel *label)
{
    if (!co) {
        snprintf(label->text, sizeof(label->text), "nobody");
    } else if (co->name) {
        snprintf(label->text, sizeof(label->text), "coroutine \"%.32s\"",
                 co->name);
    } else {
        snprintf(label->text, sizeof(label->text), "coroutine %p",
                 (const void *)co);
    }
    return label->text;
}

void coroutine_misuse_dead(const Coroutine *co, const char *who)
{
    if (!co) {
        misuse("%s: the coroutine is NULL", who);
    }
    misuse("%s: %p is not a live coroutine: it has finished or was deleted",
           who, (const void *)co);
}

void coroutine_misuse_claimed(const Coroutine *co, const char *who,
                              const char *by)
{
    CoroutineLabel label;

    misuse("%s: %s has been woken already by %s and has not run yet", who,
           coroutine_label(co, &label), by);
}

/* --- homes ---------------------------------------------------------------*/

static inline void count_in(Coroutine *co)
{
    CoHome *home = co->home;

    if (!home) {
        return;
    }
    if (unlikely(!load_relaxed(&home->held)) && !coroutine_hold_home(home)) {
        store_relaxed(&co->home, NULL);
        return;
    }
    home->population++;
    co->counted = true;
}

void coroutine_count_in(Coroutine *co)
{
    count_in(co);
}

static inline void count_out(OsThread *thread, Coroutine *co)
{
    if (!co->counted) {
        return;
    }
    co->counted = false;
    if (likely((CoHome *)(void *)thread->context == co->home)) {
        co->home->population--;
    } else {
        coroutine_leave_home(co->home);
    }
}

void coroutine_count_out(OsThread *thread, Coroutine *co)
{
    count_out(thread, co);
}

/* Where those who come to this thread live: nowhere if its context, that it
 * may not have asked for since, was closed. */
static CoHome *home_here(const OsThread *thread)
{
    CoHome *home = (CoHome *)(void *)thread->context;

    if (home && unlikely(load_acquire(&home->closed))) {
        home = (CoHome *)(void *)coroutine_current_context();
    }
    return home;
}

AioContext *coroutine_context(const Coroutine *co)
{
    os_check_fork("coroutine_context");
    coroutine_check_live(co, "coroutine_context");
    return (AioContext *)(void *)co->home;
}

/* --- create and delete ---------------------------------------------------*/

/* Make a free slot, whose home is set, a coroutine. */
static inline void setup(Coroutine *co, CoroutineEntry *entry, void *opaque)
{
    co->entry = entry;
    co->opaque = opaque;
    co->name = NULL;
    store_relaxed(&co->state, COROUTINE_NEW);
}

/* Make a free slot a new coroutine of this thread's context, if any. */
static void setup_slow(OsThread *thread, Coroutine *co, CoroutineEntry *entry,
                       void *opaque)
{
    store_relaxed(&co->home, home_here(thread));
    co->counted = false;
    count_in(co);
    setup(co, entry, opaque);
}

static int create_class(Coroutine **out, int size_class, bool need_guard)
{
    OsThread *thread = os_thread();

    if (size_class == STACK_CLASS_DEFAULT && need_guard) {
        *out = pool_take(thread);
        return *out ? 0 : -ENOMEM;
    }
    os_thread_prepare(thread); /* children are recognised from now on */
    return stack_get(size_class, need_guard, out);
}

/* The way round: it is a call of its own so that the straight way is short. */
static COLD Coroutine *create_slow(CoroutineEntry *entry, void *opaque)
{
    OsThread *thread = os_thread();
    Coroutine *co;

    os_check_fork("coroutine_create");
    co = pool_take(thread);
    if (unlikely(!co)) {
        misuse("coroutine_create: no memory or no guards for a stack; "
               "coroutine_create_full() would have returned -ENOMEM");
    }
    setup_slow(thread, co, entry, opaque);
    return co;
}

Coroutine *coroutine_create(CoroutineEntry *entry, void *opaque)
{
    OsThread *thread = os_thread();
    CoHome *home = (CoHome *)(void *)thread->context;
    Coroutine *co;

    /* While its coroutines hold a reference to it, home is not closed. */
    if (unlikely(!thread->pool || (home && !load_relaxed(&home->held)) ||
                 os_forked)) {
        return create_slow(entry, opaque);
    }
    co = pool_pop(thread);
    store_relaxed(&co->home, home);
    co->counted = home != NULL;
    if (likely(home != NULL)) {
        home->population++;
    }
    setup(co, entry, opaque);
    return co;
}

int coroutine_create_full(Coroutine **co, CoroutineEntry *entry, void *opaque,
                          const CoroutineOptions *options)
{
    static const CoroutineOptions defaults = { .size = sizeof(defaults) };
    Coroutine *slot;
    int size_class, ret;

    os_check_fork("coroutine_create_full");
    if (!options) {
        options = &defaults;
    }
    if (options->size != sizeof(*options)) {
        return -EINVAL;
    }
    size_class = stack_class_for(options->stack_size);
    if (size_class < 0) {
        return size_class;
    }
    ret = create_class(&slot, size_class,
                       options->guard == COROUTINE_GUARD_REQUIRED);
    if (ret < 0) {
        return ret;
    }
    setup_slow(os_thread(), slot, entry, opaque);
    slot->name = options->name;
    *co = slot;
    return 0;
}

/* The stack of co is quiet, and nobody has a right to it any more. */
static void recycle(void *opaque)
{
    pool_put(os_thread(), opaque);
}

void coroutine_delete(Coroutine *co)
{
    CoroutineLabel label;

    os_check_fork("coroutine_delete");
    coroutine_check_live(co, "coroutine_delete");
    if (load_relaxed(&co->state) != COROUTINE_NEW) {
        misuse("coroutine_delete: %s has begun, and ends only by returning "
               "from its entry function",
               coroutine_label(co, &label));
    }
    coroutine_claim(co, "coroutine_delete");
    if (co->counted) {
        co->counted = false;
        coroutine_leave_home(co->home); /* may be all that it waited for */
    }
    store_relaxed(&co->scheduled, NULL);
    store_relaxed(&co->state, COROUTINE_FREE);
    recycle(co);
}

/* --- enter ---------------------------------------------------------------*/

/* May the thread just go ahead? */
static inline bool can_enter(const OsThread *thread, const Coroutine *co)
{
    unsigned state = load_relaxed(&co->state);

    return (state == COROUTINE_NEW || state == COROUTINE_PARKED) &&
           co->home == (CoHome *)(void *)thread->context &&
           load_relaxed(&co->scheduled) == NULL;
}

/* Whether there is nothing to count: co is where it belongs. */
static inline bool is_home(const Coroutine *co)
{
    return co->counted || !co->home;
}

/* Make co, which is home, the running coroutine; the switch follows. */
static inline void begin_at_home(OsThread *thread, Coroutine *co,
                                 Coroutine *caller)
{
    store_relaxed(&co->state, COROUTINE_ENTERED);
    co->caller = caller;
    thread->current = co;
}

/* The same for one that may have to be counted first. */
static inline void begin(OsThread *thread, Coroutine *co, Coroutine *caller)
{
    if (unlikely(!is_home(co))) {
        coroutine_count_in(co);
    }
    begin_at_home(thread, co, caller);
}

/* It may not: abort with the reason, or bring co home to this thread first, if
 * that has a context still. */
static COLD void bring_here(OsThread *thread, Coroutine *co)
{
    CoroutineLabel label, other;
    const char *by;
    CoHome *here;

    coroutine_check_live(co, "coroutine_enter");
    if (load_relaxed(&co->state) == COROUTINE_ENTERED) {
        misuse("coroutine_enter: %s is entered already; the caller is %s",
               coroutine_label(co, &label),
               coroutine_label(thread->current, &other));
    }
    by = load_acquire(&co->scheduled);
    if (by) {
        coroutine_misuse_claimed(co, "coroutine_enter", by);
    }
    here = home_here(thread);
    if (!here && !co->home) {
        return; /* the thread's context, which it seemed to come to, has gone */
    }
    if (!here) {
        misuse("coroutine_enter: %s lives in context \"%s\" and this thread "
               "has no context: use aio_co_wake() or aio_co_enter()",
               coroutine_label(co, &label), co->home->name);
    }
    coroutine_claim(co, "coroutine_enter");
    coroutine_count_out(thread, co);
    store_relaxed(&co->home, here);
    store_release(&co->scheduled, NULL);
}

/* The way round: it is a call of its own so that the straight way is short. */
static COLD void enter_slow(Coroutine *co)
{
    OsThread *thread = os_thread();
    Coroutine *from = thread->current;

    os_check_fork("coroutine_enter");
    if (!co || !can_enter(thread, co)) {
        bring_here(thread, co);
    }
    begin(thread, co, from);
    switch_to(thread, from, co);
}

void coroutine_enter(Coroutine *co)
{
    OsThread *thread = os_thread();
    Coroutine *from = thread->current;

    if (unlikely(!co || !can_enter(thread, co) || !is_home(co) || os_forked)) {
        enter_slow(co);
        return;
    }
    begin_at_home(thread, co, from);
    switch_to(thread, from, co);
}

void coroutine_enter_if_inactive(Coroutine *co)
{
    coroutine_check_live(co, "coroutine_enter_if_inactive");
    if (load_relaxed(&co->state) != COROUTINE_ENTERED) {
        coroutine_enter(co);
    }
}

/* Give the claim back, since the one it was made for happens now. */
static inline void unclaim(Coroutine *co)
{
    invariant(load_relaxed(&co->scheduled) != NULL); /* INVARIANTS 2 */
    if (MUTANT(WAKE_UNCLAIM_RELAXED)) {
        store_relaxed(&co->scheduled, NULL);
        return;
    }
    store_release(&co->scheduled, NULL);
}

void coroutine_resume_claimed(OsThread *thread, Coroutine *co)
{
    CoroutineLabel label;

    invariant(!thread->current);
    invariant(co->home == (CoHome *)(void *)thread->context);
    if (unlikely(load_relaxed(&co->state) == COROUTINE_ENTERED)) {
        misuse("%s: %s is entered already", load_relaxed(&co->scheduled),
               coroutine_label(co, &label));
    }
    unclaim(co);
    begin(thread, co, NULL);
    switch_to(thread, NULL, co);
}

void coroutine_defer_claimed_chain(OsThread *thread, const Fifo *chain)
{
    fifo_append_chain(&thread->deferred, chain->head, chain->tail);
}

/* --- yield and finish ----------------------------------------------------*/

/*
 * Fetch from memory what the next of the deferred, and the one after it, are
 * going to need: of many, each would wait for that.
 */
static ALWAYS_INLINE void fetch_ahead(const Fifo *deferred)
{
    FifoNode *next = deferred->head;

    if (next) {
        const Coroutine *co = container_of(next, Coroutine, link);

        prefetch(co->sp);
        prefetch((const char *)co->sp + CACHE_LINE);
        if (next->next) {
            prefetch(container_of(next->next, Coroutine, link));
            prefetch(next->next);
        }
    }
}

/* The first of the deferred, of which there is one. */
static inline Coroutine *first_deferred(const OsThread *thread)
{
    return container_of(thread->deferred.head, Coroutine, link);
}

/* The same, taken off, and unclaimed: it takes over. */
static inline Coroutine *take_deferred(OsThread *thread)
{
    Coroutine *to = first_deferred(thread);

    fifo_take(&thread->deferred);
    fetch_ahead(&thread->deferred);
    unclaim(to);
    return to;
}

/*
 * Control leaves co: decide where it goes.  NULL is the thread's own stack.
 * If it is co itself, then it was woken before it yielded, and goes on.
 */
static inline Coroutine *leave(OsThread *thread, Coroutine *co)
{
    Coroutine *to = co->caller;

    co->caller = NULL;
    if (!to && thread->deferred.head) {
        to = take_deferred(thread);
        begin(thread, to, NULL);
        return to;
    }
    thread->current = to;
    return to;
}

static void call_on_yield(void *opaque)
{
    Coroutine *co = opaque;
    void (*call)(Coroutine *) = co->on_yield;

    co->on_yield = NULL;
    call(co);
}

/* The way round, with all that may have to be done. */
static COLD void yield_slow(void)
{
    OsThread *thread = os_thread();
    Coroutine *co = thread->current;
    Coroutine *to;

    os_check_fork("coroutine_yield");
    if (!co) {
        misuse("coroutine_yield: called outside a coroutine: there is nobody "
               "to yield to");
    }
    store_relaxed(&co->state, COROUTINE_PARKED);
    to = leave(thread, co);
    if (to == co) {
        return;
    }
    if (co->on_yield) {
        switch_to_call(thread, co, to, call_on_yield, co, false);
    } else {
        switch_to(thread, co, to);
    }
}

/* The way from one that waits to the next, as locks hand themselves on. */
static NOINLINE void yield_to_deferred(OsThread *thread, Coroutine *co)
{
    Coroutine *to;

    if (unlikely(!is_home(first_deferred(thread)))) {
        yield_slow();
        return;
    }
    store_relaxed(&co->state, COROUTINE_PARKED);
    to = take_deferred(thread);
    begin_at_home(thread, to, NULL);
    if (to != co) {
        switch_to_alike(thread, co, to);
    }
}

void coroutine_yield(void)
{
    OsThread *thread = os_thread();
    Coroutine *co = thread->current;
    Coroutine *to;

    if (unlikely(!co || co->on_yield || os_forked)) {
        yield_slow();
        return;
    }
    if (unlikely(thread->deferred.head && !co->caller)) {
        yield_to_deferred(thread, co);
        return;
    }
    store_relaxed(&co->state, COROUTINE_PARKED);
    to = co->caller;
    co->caller = NULL;
    thread->current = to;
    switch_to(thread, co, to);
}

static COLD void check_may_finish(Coroutine *co)
{
    CoroutineLabel label;
    const char *by = load_acquire(&co->scheduled);

    if (by) {
        misuse("%s has finished, but was woken by %s and would have to run "
               "again",
               coroutine_label(co, &label), by);
    }
    if (co->locks_held) {
        misuse("%s has finished with %u lock%s held",
               coroutine_label(co, &label), co->locks_held,
               co->locks_held == 1 ? "" : "s");
    }
}

/* The way round, with all that may have to be done. */
static COLD void finish_slow(Coroutine *co)
{
    OsThread *thread = os_thread();
    Coroutine *to;

    check_may_finish(co);
    count_out(thread, co);
    store_relaxed(&co->state, COROUTINE_FREE);
    to = leave(thread, co);
    switch_to_call(thread, co, to, recycle, co, true);
}

/* The running coroutine has ended; comes back when the slot is used again. */
static inline void finish(Coroutine *co)
{
    OsThread *thread = os_thread();
    CoHome *home = co->home;
    Coroutine *to = co->caller;

    if (unlikely(WRAPPED_SWITCH || co->locks_held ||
                 load_relaxed(&co->scheduled) ||
                 home != (CoHome *)(void *)thread->context ||
                 thread->deferred.head || !pool_put_early(thread, co))) {
        finish_slow(co);
        return;
    }
    if (likely(home != NULL)) {
        home->population--; /* it was counted in when it was entered */
    }
    store_relaxed(&co->state, COROUTINE_FREE);
    co->caller = NULL;
    thread->current = to;
    switch_to(thread, co, to);
}

/* A slot's stack stays in this loop from one coroutine to the next. */
void coroutine_main(void)
{
    Coroutine *co;

    arrive(NULL);
    co = os_thread()->current; /* the slot's own: always the same */
    for (;;) {
        co->entry(co->opaque);
        finish(co);
    }
}

/* --- queries -------------------------------------------------------------*/

Coroutine *coroutine_self(void)
{
    os_check_fork("coroutine_self");
    return os_thread()->current;
}

bool coroutine_entered(const Coroutine *co)
{
    os_check_fork("coroutine_entered");
    coroutine_check_live(co, "coroutine_entered");
    return load_relaxed(&co->state) == COROUTINE_ENTERED;
}

const char *coroutine_name(const Coroutine *co)
{
    os_check_fork("coroutine_name");
    coroutine_check_live(co, "coroutine_name");
    return co->name;
}

int co_errno(void)
{
    return os_errno();
}

typedef struct ForEach {
    void (*fn)(Coroutine *co, void *opaque);
    void *opaque;
} ForEach;

static void for_each_live(Coroutine *co, void *opaque)
{
    ForEach *each = opaque;

    if (load_relaxed(&co->state) != COROUTINE_FREE) {
        each->fn(co, each->opaque);
    }
}

void coroutine_for_each(void (*fn)(Coroutine *co, void *opaque), void *opaque)
{
    ForEach each = { fn, opaque };

    stack_for_each(for_each_live, &each);
}
