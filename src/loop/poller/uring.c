/* SPDX-License-Identifier: MIT */
/*
 * The io_uring engine.
 *
 * Guarantees: a wait is one system call, in which all changes of what is
 * watched since the last one are submitted, too; a look that finds nothing is
 * none.  Interest that another thread changes takes effect in the next wait:
 * fd.c notifies the home thread.  Does not guarantee that a descriptor that is
 * not open is found out when it is watched: the report says so (POLLNVAL).
 *
 * Each descriptor that is watched has one request in the kernel, a poll that
 * completes once.  For a handler, which is watched level-triggered, the next
 * wait makes a new one, which completes at once while the descriptor is ready.
 * update() writes down what is wanted; wait() compares that with what the
 * kernel has, since only the home thread may use the ring.
 *
 * The event fd is watched by a poll that goes on and on, and is never read:
 * each time that it is set completes it.  (If it is a pipe, it is drained.)
 *
 * WHAT THE KERNEL IS LIKE
 *
 *   A request holds its open file.  So descriptors on which nobody waits must
 *   not be watched, or closing one would not close the file (holds_files).
 *   When the home thread stops watching, the request is ended there and then,
 *   since close(2) may be next.  Other threads cannot do that: for them the
 *   file is let go when the home thread, which they have woken, next looks at
 *   its descriptors.  A request that it has queued, and not submitted yet, may
 *   even come to watch what the number names next, until then; what that
 *   reports is nobody's.
 *
 *   A poll is for POLLRDHUP, too, always.  Where the peer has shut down its
 *   side, one for POLLOUT completes at once, again and again.  From the first
 *   such report on the descriptor is watched by a poll that goes on, which
 *   completes with each change only, until something comes that was asked for.
 *
 *   There is a request for the removal of polls.  It fails, and the poll stays,
 *   if that is about to report something; then one that goes on goes on.  So
 *   polls are cancelled as all else is.
 *
 * INVARIANTS
 *
 *   1. A watch whose request is not what is wanted is in the list `changed`,
 *      once.
 *   2. A completion is that of the request that the kernel has if it has the
 *      number `armed`, which no other has had; else that has been removed, and
 *      it is ignored.
 */
#include "base/assert.h"
#include "base/explore.h"
#include "loop/context.h"
#include "loop/poller/poller.h"
#include "os/clock.h"
#include "os/event.h"
#include "os/memory.h"
#include "os/misc.h"
#include "os/uring.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

/*
 * A call on a socket names its descriptor by number, which must not be closed,
 * and stand for another file, between its submission and the moment in which
 * the kernel takes it in and holds the file.  So it is in the list `queued`
 * until then, and whoever closes the descriptor drops it from there; or waits
 * until the home thread has come out of the kernel, if that has gone in with
 * it: [uring-drop] in docs/memory-ordering.md.
 */

/* So often the kernel is entered at once for something that must be done. */
#define ENTRIES_MOST 100

/* Completions that one wait takes. */
#define BATCH 256

#define TROUBLE ((uint32_t)(POLLERR | POLLHUP | POLLNVAL))

/*
 * What the kernel hands back: a descriptor (28 bits are enough: fd.c) and the
 * number of its request, or an operation, or one of the others.
 */
enum {
    DATA_OP = 0, /* and the address of the IoOp */
    DATA_POLL,
    DATA_EVENT,
    DATA_IGNORE
};
#define DATA_KIND  7u
#define DATA_SHIFT 3

#define NONE (-1)

/*
 * From so many reports in one wait() on receives are taken.  Alone a receive
 * costs more than a poll and a call: the thread that waits is woken to make it.
 */
static unsigned crowd = 2; /* atomic, for tests */

/*
 * Where a system call costs so much, it is better to make many reads from the
 * page cache, or many sends, by one than each by its own: for those the ring
 * costs more than a cheap call, and the coroutines wait.
 */
static int64_t dear_ns = 400; /* atomic, for tests */

/* So many calls in a pass are many. */
#define MANY_CALLS 8
#define NEVER_MANY UINT_MAX

/* A descriptor. */
typedef struct Watch {
    uint32_t events; /* wanted, with POLLER_ONESHOT; 0: nothing */
    uint32_t serial; /* of what is wanted */
    uint32_t armed;  /* which request the kernel has, if: */
    bool in_kernel;  /* there is one, ... */
    uint32_t armed_for; /* ... made for that serial */
    bool goes_on;    /* to be watched by one that goes on */
    bool listed;     /* in changed */
    int next;        /* in changed, or NONE */
} Watch;

/* How many calls of a kind are made in a pass. */
typedef struct Demand {
    uint64_t pass;   /* AioContext.pass of the last one */
    unsigned calls;  /* in that pass */
    unsigned before; /* and in the last one before it with any */
    unsigned many;   /* from so many on the ring makes them; constant */
} Demand;

typedef struct UringState {
    OsUring *ring; /* the home thread's; NULL: that has ended */
    bool enabled;  /* likewise */
    bool hears;    /* likewise: the event fd is watched */
    bool polled;   /* likewise: a foreign loop may poll the ring */
    bool leaving;  /* likewise: another engine is to take its place */
    int reported;  /* likewise: by the last wait() that reported something */
    Demand reads;  /* likewise: for which prefers() was asked */
    Demand sends;  /* likewise */
    unsigned files; /* likewise: operations on files; not completed */
    bool receives; /* constant: always, not only in a crowd */

    OsMutex lock;   /* of all below; taken after that of the fd table */
    uint32_t armings; /* polls of descriptors that were made, ever */
    Watch *watches; /* by descriptor */
    unsigned n;
    int first; /* changed: descriptors, in order; or NONE */
    int last;
    IoOp *queued;  /* calls on sockets that the kernel has not taken in; written
                      by the home thread */
    uint32_t exits; /* futex: how often it came back with some */
    unsigned droppers; /* threads that wait for that */
} UringState;

static bool is_pipe(const AioContext *ctx)
{
    return ctx->event[0] != ctx->event[1];
}

static uint64_t poll_data(int fd, uint32_t number)
{
    return (uint64_t)number << 32 | (uint32_t)fd << DATA_SHIFT | DATA_POLL;
}

/* --- life -----------------------------------------------------------------*/

static bool named(const char *variable, const char *feature)
{
    const char *names = os_getenv(variable);

    return names && strstr(names, feature);
}

static bool to_be_avoided(const char *feature)
{
    return named("COAIO_URING_WITHOUT", feature);
}

/* From how many calls in a pass on the ring makes those of a kind, given
 * whether system calls are dear. */
static unsigned many_of(const char *feature, bool dear)
{
    if (to_be_avoided(feature)) {
        return NEVER_MANY;
    }
    if (named("COAIO_URING_WITH", feature)) {
        return 0;
    }
    return dear ? MANY_CALLS : NEVER_MANY;
}

static unsigned features_to_avoid(void)
{
    return (to_be_avoided("defer") ? OS_URING_NO_DEFER : 0) |
           (to_be_avoided("coop") ? OS_URING_NO_COOP : 0) |
           (to_be_avoided("skip") ? OS_URING_NO_SKIP : 0) |
           (to_be_avoided("files") ? OS_URING_NO_FILES : 0) |
           (to_be_avoided("sockets") ? OS_URING_NO_SOCKETS : 0);
}

static int open_uring(AioContext *ctx)
{
    UringState *state = os_alloc(sizeof(*state));
    bool dear;
    int ret;

    if (!state) {
        return -ENOMEM;
    }
    ret = os_uring_open(&state->ring,
                        features_to_avoid() |
                            (ctx->poller.best ? OS_URING_BEST : 0));
    if (ret < 0) {
        os_free(state);
        return ret;
    }
    dear = os_uring_enter_ns(state->ring) >= load_relaxed(&dear_ns);
    state->reads.many = many_of("reads", dear);
    state->sends.many = many_of("sends", dear);
    state->receives = named("COAIO_URING_WITH", "sockets");
    os_mutex_init(&state->lock);
    state->first = NONE;
    ctx->poller.state = state;
    return 0;
}

static void close_uring(AioContext *ctx)
{
    UringState *state = ctx->poller.state;

    if (state->ring) {
        os_uring_close(state->ring);
    }
    os_mutex_destroy(&state->lock);
    os_free(state->watches);
    os_free(state);
}

/*
 * The kernel took the ring, but does not let this thread use it any more: a
 * sandbox was closed meanwhile.  The state is gone afterwards, and ctx has
 * another engine; or it is still there, no more operations are begun, and the
 * next pass tries again.
 */
static COLD void give_way(AioContext *ctx, int error)
{
    UringState *state = ctx->poller.state;
    CoroutineLabel label;

    /*
     * Another thread may be about to drop one, or be in drop_uring() with it:
     * it wakes the coroutine when it has come out.  There will be no more.
     */
    state->leaving = true;
    if (ctx->poller.ops_known > 0 && ctx->poller.ops_taken == 0 &&
        ctx->poller.replaceable && !MUTANT(URING_GIVES_WAY_EARLY)) {
        MARK("uring: an operation that is known keeps the engine");
        spin_hint();
        return;
    }
    if (ctx->poller.ops_taken > 0 || poller_replace(ctx, error) < 0) {
        misuse("aio_poll: the ring of %s was made, but may not be used by "
               "this thread (error %d): forbid io_uring before contexts are "
               "made, not after",
               context_label(ctx, &label), -error);
    }
}

/* The home thread uses the ring from now on, if it may.  Returns 0 or
 * -errno. */
static COLD int enable(UringState *state)
{
    int ret = os_uring_enable(state->ring);

    state->enabled = ret == 0;
    return ret;
}

/* --- entering the kernel --------------------------------------------------*/

/* The kernel may take in what is queued from now on. */
static void enter_queued(UringState *state)
{
    os_mutex_lock(&state->lock);
    for (IoOp *op = state->queued; op; op = op->next) {
        if (op->dropped && !MUTANT(URING_DROPPED_ENTERS)) {
            MARK("uring: an operation is dropped before it enters");
            os_uring_replace(state->ring, op->slot);
            op->result = -ECANCELED;
        }
        op->entering = true;
    }
    os_mutex_unlock(&state->lock);
}

/* It has; but for what it had no memory for. */
static void exit_queued(UringState *state)
{
    IoOp *op, *next, *left = NULL;
    unsigned droppers;

    os_mutex_lock(&state->lock);
    for (op = state->queued; op; op = next) {
        next = op->next;
        op->entering = false;
        op->queued = !os_uring_taken(state->ring, op->slot) &&
                     !MUTANT(URING_LEFT_FORGOTTEN);
        if (op->queued) {
            MARK("uring: an operation was not taken in");
            op->next = left;
            left = op;
        }
    }
    state->queued = left;
    /*
     * [uring-drop/A] exits changes, and droppers is read, under the lock under
     * which entering has ended.  Pairs with [uring-drop/B] in
     * drop_from_queue(): who saw it entering is counted, and sleeps only while
     * exits is what it was.
     */
    if (!MUTANT(URING_EXIT_UNCOUNTED)) {
        store_relaxed(&state->exits, state->exits + 1);
    }
    droppers = state->droppers;
    os_mutex_unlock(&state->lock);
    if (droppers > 0) {
        MARK("uring: droppers are woken");
        os_futex_wake(&state->exits, MUTANT(URING_WAKES_ONE) ? 1 : INT_MAX);
    }
}

/* Submit, and wait as os_uring_wait() does. */
static int enter_ring(UringState *state, int64_t timeout_ns)
{
    int ret;

    if (!state->queued) {
        return os_uring_wait(state->ring, timeout_ns);
    }
    enter_queued(state);
    ret = os_uring_wait(state->ring, timeout_ns);
    exit_queued(state);
    return ret;
}

/* The end of a poll, or of a call, has been queued: have the kernel let go of
 * the file now.  What completes is taken later. */
static void enter_until_done(UringState *state)
{
    unsigned entries = 0;

    do {
        enter_ring(state, 0);
    } while (os_uring_due(state->ring) && ++entries < ENTRIES_MOST);
}

/* --- what is wanted -------------------------------------------------------*/

static int reserve_locked(UringState *state, int fd)
{
    unsigned n = state->n ? state->n : 64;
    Watch *watches;

    if ((unsigned)fd < state->n) {
        return 0;
    }
    while (n <= (unsigned)fd) {
        n *= 2;
    }
    watches = os_realloc(state->watches, n * sizeof(*watches));
    if (!watches) {
        return -ENOMEM;
    }
    memset(watches + state->n, 0, (n - state->n) * sizeof(*watches));
    state->watches = watches;
    state->n = n;
    return 0;
}

static void list_changed_locked(UringState *state, int fd)
{
    Watch *watch = &state->watches[fd];

    if (watch->listed) {
        return;
    }
    watch->listed = true; /* INVARIANTS 1 */
    watch->next = NONE;
    if (state->first == NONE) {
        state->first = fd;
    } else {
        state->watches[state->last].next = fd;
    }
    state->last = fd;
}

static int want_locked(UringState *state, int fd, uint32_t serial,
                       uint32_t events)
{
    Watch *watch;

    if (events == 0 && (unsigned)fd >= state->n) {
        return 0;
    }
    if (reserve_locked(state, fd) < 0) {
        return -ENOMEM;
    }
    watch = &state->watches[fd];
    watch->events = events;
    watch->serial = serial;
    watch->goes_on = false;
    if (events || watch->in_kernel) {
        list_changed_locked(state, fd);
    }
    return 0;
}

/* --- what the kernel has --------------------------------------------------*/

/* Returns 0, or -EAGAIN: later. */
static int arm_locked(UringState *state, int fd, Watch *watch)
{
    int ret = 0;

    if (watch->in_kernel) {
        ret = os_uring_cancel(state->ring, poll_data(fd, watch->armed),
                              DATA_IGNORE);
    }
    if (ret < 0) {
        return ret;
    }
    watch->in_kernel = false;
    if (watch->events) {
        watch->armed = ++state->armings;
        watch->armed_for = watch->serial;
        ret = os_uring_poll(state->ring, fd, watch->events & ~POLLER_ONESHOT,
                            watch->goes_on, poll_data(fd, watch->armed));
        watch->in_kernel = ret == 0;
    }
    return ret;
}

/* Queue all changes.  Returns 0, or -EAGAIN: some are left. */
static int arm_all_locked(UringState *state)
{
    while (state->first != NONE) {
        Watch *watch = &state->watches[state->first];
        int ret = arm_locked(state, state->first, watch);

        if (ret < 0) {
            return ret;
        }
        watch->listed = false;
        state->first = watch->next;
    }
    return 0;
}

static int queue_wanted(AioContext *ctx, UringState *state)
{
    bool due;
    int ret = 0;

    if (unlikely(!state->hears)) {
        ret =
            os_uring_poll(state->ring, ctx->event[0], POLLIN, true, DATA_EVENT);
        state->hears = ret == 0;
    }
    os_mutex_lock(&state->lock);
    if (arm_all_locked(state) < 0) {
        ret = -EAGAIN;
    }
    due = state->first != NONE;
    if (!MUTANT(URING_DUE_LATE)) {
        store_relaxed(&ctx->poller.due, due);
    }
    os_mutex_unlock(&state->lock);
    if (MUTANT(URING_DUE_LATE)) {
        store_relaxed(&ctx->poller.due, due);
    }
    return ret;
}

/*
 * Queue what the kernel is to know before the next wait; a queue that is full
 * meanwhile is submitted.  The ring is enabled.  Returns 0, or -EAGAIN: there
 * was not room for all.
 */
static int prepare(AioContext *ctx, UringState *state)
{
    int ret = queue_wanted(ctx, state);

    while (ret < 0 && os_uring_full(state->ring) && enter_ring(state, 0) == 0) {
        ret = queue_wanted(ctx, state);
    }
    return ret;
}

static int update_uring(AioContext *ctx, int fd, uint32_t serial, uint32_t old,
                        uint32_t events)
{
    UringState *state = ctx->poller.state;
    bool held;
    int ret;

    (void)old;
    /* Who waits has just tried, and found it open; a handler may be new. */
    if (events && !(events & POLLER_ONESHOT)) {
        ret = os_poll_open(fd);
        if (ret < 0) {
            events = 0;
        }
    } else {
        ret = 0;
    }
    os_mutex_lock(&state->lock);
    if (want_locked(state, fd, serial, events) < 0) {
        ret = -ENOMEM;
    }
    if (!MUTANT(URING_CHANGE_NOT_DUE)) {
        store_relaxed(&ctx->poller.due, state->first != NONE);
    }
    held =
        events == 0 && (unsigned)fd < state->n && state->watches[fd].in_kernel;
    os_mutex_unlock(&state->lock);
    if (held && context_is_home(ctx, os_thread())) {
        prepare(ctx, state);
        enter_until_done(state);
    }
    return ret;
}

/* --- waiting --------------------------------------------------------------*/

/* Returns what fd_ready() is to be told, or 0: nothing. */
static uint32_t poll_completed_locked(UringState *state, int fd,
                                      const OsUringEvent *event)
{
    Watch *watch = &state->watches[fd];
    uint32_t number = (uint32_t)(event->data >> 32);
    uint32_t happened, wanted = watch->events | TROUBLE;

    if ((!watch->in_kernel || watch->armed != number) &&
        !MUTANT(URING_STALE_COMPLETION)) {
        MARK("uring: the end of what was removed is ignored");
        return 0; /* INVARIANTS 2 */
    }
    watch->in_kernel = event->more;
    if (watch->serial != watch->armed_for || !watch->events) {
        MARK("uring: what was wanted before is ignored");
        return 0;
    }
    happened = event->result == -EBADF ? POLLNVAL
               : event->result < 0     ? POLLERR
                                       : (uint32_t)event->result & wanted;
    if (happened == 0) {
        watch->goes_on = true;
        if (!event->more) {
            list_changed_locked(state, fd);
        }
        return 0;
    }
    watch->goes_on = false;
    if (watch->events & POLLER_ONESHOT) {
        watch->events = 0;
    }
    if (watch->events || watch->in_kernel) {
        list_changed_locked(state, fd);
    }
    return happened;
}

static int poll_completed(AioContext *ctx, UringState *state,
                          const OsUringEvent *event)
{
    int fd = (int)((uint32_t)event->data >> DATA_SHIFT);
    uint32_t serial, happened;

    os_mutex_lock(&state->lock);
    happened = poll_completed_locked(state, fd, event);
    serial = state->watches[fd].armed_for;
    os_mutex_unlock(&state->lock);
    return happened && fd_ready(ctx, fd, serial, happened);
}

static void event_completed(AioContext *ctx, UringState *state,
                            const OsUringEvent *event)
{
    state->hears = event->more;
    if (is_pipe(ctx)) {
        os_event_drain(ctx->event);
    }
}

static void op_leaves(AioContext *ctx, const IoOp *op)
{
    UringState *state = ctx->poller.state;

    ctx->poller.ops_taken--;
    state->files -= op->left != NULL;
}

/* To run in this pass, with what was posted. */
static void op_completed(AioContext *ctx, const OsUringEvent *event)
{
    IoOp *op = (IoOp *)(uintptr_t)event->data;

    /* An error was decided before: by a test that wants the call to fail. */
    if (op->result == 0) {
        op->result = event->result;
    }
    os_uring_finished(&op->request, op->result);
    op_leaves(ctx, op);
    fifo_append(&ctx->ready, &op->post.node);
}

/* Take what has completed.  Returns how many descriptors and operations were
 * reported, and whether any of it was to end the sleep. */
static int take_completed(AioContext *ctx, UringState *state, bool *awake)
{
    OsUringEvent event;
    int reported = 0;

    for (int i = 0; i < BATCH && os_uring_take(state->ring, &event); i++) {
        switch (event.data & DATA_KIND) {
        case DATA_OP:
            op_completed(ctx, &event);
            reported++;
            break;
        case DATA_POLL:
            reported += poll_completed(ctx, state, &event);
            break;
        case DATA_EVENT:
            event_completed(ctx, state, &event);
            *awake = true;
            break;
        default:
            invariant((event.data & DATA_KIND) == DATA_IGNORE);
            break;
        }
    }
    if (reported > 0) {
        state->reported = reported;
        *awake = true;
    }
    return reported;
}

static bool is_forbidden(int error)
{
    return error == -EPERM || error == -EACCES || error == -ENOSYS;
}

static int await_uring(AioContext *ctx, int64_t timeout_ns)
{
    UringState *state = ctx->poller.state;
    int64_t deadline = os_deadline_ns(timeout_ns);
    int ret = state->enabled ? 0 : enable(state);
    bool awake = false;
    int reported;

    for (;;) {
        if (unlikely(is_forbidden(ret))) {
            give_way(ctx, ret);
            return 0; /* the next pass waits */
        }
        /* Without room for what is wanted, look, but do not sleep. */
        if (prepare(ctx, state) < 0) {
            timeout_ns = 0;
        }
        ctx->poller.ops_waiting = false;
        ret = enter_ring(state, timeout_ns);
        reported = take_completed(ctx, state, &awake);
        if (!is_forbidden(ret) && (awake || ret < 0 || timeout_ns == 0)) {
            return reported ? reported : ret;
        }
        /* Only the ends of what was removed, or the time has passed. */
        timeout_ns = os_remaining_ns(timeout_ns, deadline);
    }
}

/* --- operations -----------------------------------------------------------*/

static bool takes_uring(AioContext *ctx, OsUringCall call)
{
    const UringState *state = ctx->poller.state;

    if (unlikely(state->leaving)) {
        return false;
    }
    if (os_uring_call_of_socket(call) && !state->receives &&
        (unsigned)state->reported < load_relaxed(&crowd)) {
        return false;
    }
    return os_uring_takes(state->ring, call);
}

static bool prefers_uring(AioContext *ctx, OsUringCall call)
{
    UringState *state = ctx->poller.state;
    Demand *demand =
        os_uring_call_of_socket(call) ? &state->sends : &state->reads;

    if (demand->pass != ctx->pass) {
        demand->pass = ctx->pass;
        demand->before = demand->calls;
        demand->calls = 0;
    }
    demand->calls++;
    return demand->before >= demand->many && takes_uring(ctx, call);
}

#ifdef COAIO_TESTING
void poller_uring_set_dear_ns(int64_t ns)
{
    store_relaxed(&dear_ns, ns);
}

void poller_uring_set_crowd(unsigned n)
{
    store_relaxed(&crowd, n);
}
#endif

/* Under the lock, so that drop_uring() finds it queued, or keeps it away. */
static int queue_locked(UringState *state, IoOp *op)
{
    int ret;

    if (op->dropped) {
        MARK("uring: an operation is dropped before it is submitted");
        return -ECANCELED;
    }
    ret =
        os_uring_request(state->ring, &op->request, (uintptr_t)op, &op->slot);
    if (ret >= 0 && os_uring_call_of_socket(op->request.call)) {
        op->queued = true;
        op->next = state->queued;
        state->queued = op;
    }
    return ret;
}

static int queue(UringState *state, IoOp *op)
{
    int ret;

    os_mutex_lock(&state->lock);
    ret = queue_locked(state, op);
    os_mutex_unlock(&state->lock);
    return ret;
}

static bool submit_uring(AioContext *ctx, IoOp *op)
{
    UringState *state = ctx->poller.state;
    int ret;

    invariant(((uintptr_t)op & DATA_KIND) == DATA_OP);
    /* If it may not be: the next wait gives way. */
    if (unlikely(!state->enabled) && enable(state) < 0) {
        return false;
    }
    ret = queue(state, op);
    if (ret == -EAGAIN && os_uring_full(state->ring)) {
        enter_ring(state, 0);
        ret = queue(state, op);
    }
    if (ret < 0) {
        return false;
    }
    op->result = -ret;
    ctx->poller.ops_taken++;
    state->files += op->left != NULL;
    ctx->poller.ops_waiting = true;
    return true;
}

static bool cancel_uring(AioContext *ctx, IoOp *op)
{
    UringState *state = ctx->poller.state;

    if (os_uring_full(state->ring)) {
        enter_ring(state, 0);
    }
    if (os_uring_cancel(state->ring, (uintptr_t)op, DATA_IGNORE) < 0) {
        return false;
    }
    ctx->poller.ops_waiting = true;
    return true;
}

/* Returns whether the kernel has it, or has had it. */
static bool drop_from_queue(AioContext *ctx, UringState *state, IoOp *op)
{
    uint32_t exits;
    bool queued;

    os_mutex_lock(&state->lock);
    op->dropped = true;
    while (op->entering && !MUTANT(URING_DROP_NO_WAIT)) {
        MARK("uring: a drop waits for the home thread");
        /*
         * [uring-drop/B] exits is read, and we are counted, under the lock
         * under which we saw it entering.  Pairs with [uring-drop/A] in
         * exit_queued(): that wakes us, or comes before we sleep, and then we
         * do not.
         */
        exits = state->exits;
        state->droppers += !MUTANT(URING_DROP_UNCOUNTED);
        os_mutex_unlock(&state->lock);
        if (!MUTANT(URING_DROP_QUIET)) {
            aio_notify(ctx); /* it may sleep there */
        }
        os_futex_wait(&state->exits, exits, -1);
        os_mutex_lock(&state->lock);
        state->droppers -= !MUTANT(URING_DROP_UNCOUNTED);
    }
    queued = op->queued;
    os_mutex_unlock(&state->lock);
    return !queued;
}

static void drop_uring(AioContext *ctx, IoOp *op)
{
    UringState *state = ctx->poller.state;

    /* Let go of the file there and then. */
    if (drop_from_queue(ctx, state, op) && context_is_home(ctx, os_thread()) &&
        cancel_uring(ctx, op) && !MUTANT(URING_DROP_NOT_ENTERED)) {
        MARK("uring: the home thread has the kernel let go of a file");
        enter_until_done(state);
    }
}

/* --- the end of the thread ------------------------------------------------*/

/* Take what has completed, for those who will not go on.  Returns whether there
 * was anything. */
static bool take_left(AioContext *ctx, UringState *state)
{
    OsUringEvent event;
    bool any = false;

    while (os_uring_take(state->ring, &event)) {
        IoOp *op = (IoOp *)(uintptr_t)event.data;

        any = true;
        if ((event.data & DATA_KIND) == DATA_OP) {
            os_uring_finished(&op->request, event.result);
            op_leaves(ctx, op);
            if (op->left) {
                op->left(op);
            }
        }
    }
    return any;
}

static void end_all(AioContext *ctx, UringState *state)
{
    int ret;

    if (os_uring_full(state->ring)) {
        enter_ring(state, 0);
    }
    /* Else the kernel does so when the ring has been closed, if not at once. */
    os_uring_cancel_all(state->ring, DATA_IGNORE);
    do {
        ret = enter_ring(state, state->files > 0 ? -1 : 0);
    } while ((take_left(ctx, state) || state->files > 0 ||
              os_uring_due(state->ring)) &&
             !is_forbidden(ret));
}

/* The end of a thread is not the end of its requests, which hold files. */
static void stop_uring(AioContext *ctx)
{
    UringState *state = ctx->poller.state;

    if (state->enabled) {
        end_all(ctx, state);
    }
    os_uring_close(state->ring);
    state->ring = NULL;
}

/* --- a foreign loop -------------------------------------------------------*/

/* The kernel has forgotten all. */
static void forget_locked(UringState *state)
{
    for (unsigned fd = 0; fd < state->n; fd++) {
        Watch *watch = &state->watches[fd];

        watch->in_kernel = false;
        if (watch->events) {
            list_changed_locked(state, (int)fd);
        }
    }
}

/* Take a ring that can be polled in place of the one that cannot.  Returns
 * whether there is one. */
static COLD bool make_pollable(AioContext *ctx, UringState *state)
{
    OsUring *ring;

    if (ctx->poller.ops_taken > 0 ||
        os_uring_open(&ring, features_to_avoid() | OS_URING_NO_DEFER) < 0) {
        return false;
    }
    os_uring_close(state->ring);
    state->ring = ring;
    state->enabled = false;
    state->hears = false;
    state->polled = true;
    os_mutex_lock(&state->lock);
    forget_locked(state);
    os_mutex_unlock(&state->lock);
    return true;
}

static int describe_uring(AioContext *ctx)
{
    UringState *state = ctx->poller.state;

    return state->polled || make_pollable(ctx, state)
               ? os_uring_descriptor(state->ring)
               : -1;
}

static bool prepare_uring(AioContext *ctx)
{
    UringState *state = ctx->poller.state;
    int ret = state->enabled ? 0 : enable(state);

    if (ret < 0) {
        ctx->poller.replaceable = false; /* the descriptor is in use */
        give_way(ctx, ret);
    }
    ret = prepare(ctx, state);
    return enter_ring(state, 0) == 0 && ret == 0;
}

const PollerOps poller_uring = {
    .name = "uring",
    .holds_files = true,
    .open = open_uring,
    .close = close_uring,
    .update = update_uring,
    .wait = await_uring,
    .takes = takes_uring,
    .prefers = prefers_uring,
    .submit = submit_uring,
    .cancel = cancel_uring,
    .drop = drop_uring,
    .stop = stop_uring,
    .descriptor = describe_uring,
    .prepare = prepare_uring,
};
