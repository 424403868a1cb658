/* SPDX-License-Identifier: MIT */
/*
 * Timers: a queue (loop/timer_queue.h) for each clock of each context, and
 * what other threads ask of it.
 *
 * Guarantees: nothing is allocated; arming and deleting are O(1), and on the
 * home thread there is no lock and no locked operation.  Equal expiry fires in
 * the order of arming.  Does not guarantee an order between timers of different
 * clocks.
 *
 * The home thread alone touches the queues.  Another thread that arms a timer
 * puts it in the context's list of requests, and one that deletes puts a
 * record on its own stack in a second list; one post of the context, which is
 * on its way at most once, lets the home thread serve both.  So a timer is
 * never itself in a list of posts, and taking it out of all lists is O(1).
 *
 * A callback may free its timer.  So after calling it nothing looks at the
 * timer; that it runs is known by a frame on the stack of the home thread,
 * which also keeps those deletions that must wait for its end.
 *
 * STATES (AioTimer.state_; written by the home thread, under the lock if it
 * serves a request; read by others under the lock)
 *
 *   IDLE    not armed, and its callback is not running
 *   ARMED   in a queue, or in the list of timers that this pass runs
 *   FIRED   not armed; the callback was called, and may be running
 *
 * INVARIANTS
 *
 *   1. A timer is ARMED exactly while its link_ is in a list of a queue, or in
 *      that of due ones; `armed` counts both.
 *   2. requested_ is 1 exactly while the timer is in the list of requests;
 *      both change under the lock.
 *   3. Requests and deletions are in the lists only while a post is on its
 *      way, or the context has stopped and nobody will look.
 *   4. A timer that has expired is not IDLE until the home thread has deleted
 *      it outside its callback: FIRED is all that another thread can know.
 *
 * WHY A FOREIGN DELETION IS SAFE
 *
 *   Calls on one timer are ordered by the user, but for its own callback, which
 *   may run and arm the timer again meanwhile.  Under the lock the deleter
 *   takes the timer out of the requests.  If the timer is then IDLE, neither
 *   is a request being served (that happens under the lock) nor is it armed
 *   or running (4): done.  Else it leaves its record and sleeps.  The home
 *   thread takes the timer out of its list; if a frame shows that the callback
 *   runs, below a nested pass, the record moves to the frame, and the end of
 *   the callback serves it again, since the callback may have armed the timer.
 *   The record is done under the lock, and the deleter takes the lock once
 *   more before it leaves: nobody touches the record then.
 *
 *   When the home thread ends, it sets ctx->stopped under the lock, and then
 *   serves what is queued.  Whoever deletes later sees it, under the lock, and
 *   works on the lists directly, under the lock.
 */
#include "base/assert.h"
#include "base/explore.h"
#include "loop/context.h"
#include "os/clock.h"

#include <inttypes.h>

#define REALTIME_LOOK_NS 1000000000 /* a jump of the clock is seen so soon */

enum { TIMER_IDLE = 0, TIMER_ARMED, TIMER_FIRED };

/* A callback that runs; on the home thread's stack. */
typedef struct TimerFrame {
    struct TimerFrame *outer;
    AioTimer *timer;      /* may be gone: only compared */
    List deletions;       /* of Deletion.link: to serve when it has returned */
} TimerFrame;

/* Somebody who waits for the end of a timer; on the deleter's stack. */
typedef struct Deletion {
    List link;            /* in Timers.deletions (lock), or in a frame */
    AioTimer *timer;
    AioContext *from;     /* the deleter's own context, or NULL */
    uint32_t done;        /* atomic futex: DELETION_... */
    uint32_t behind;      /* atomic; 1: a callback has to return first */
} Deletion;

/*
 * WAITING, and POKED: the deleter is itself a home thread, and is to look at
 * what others ask of it, so that two who delete each other's timers both get
 * on; or DONE.
 */
enum { DELETION_WAITING = 0, DELETION_POKED, DELETION_DONE };

/* --- arming and disarming, by whoever owns the queues ---------------------*/

static TimerFrame *frame_of(const Timers *timers, const AioTimer *timer)
{
    TimerFrame *frame = timers->running;

    while (frame && frame->timer != timer) {
        frame = frame->outer;
    }
    return frame;
}

/* Leave state_ to the caller. */
static inline void take_out(Timers *timers, AioTimer *timer)
{
    if (load_relaxed(&timer->state_) == TIMER_ARMED) {
        invariant(timers->armed > 0); /* INVARIANTS 1 */
        timers->armed--;
        timer_list_remove(timer);
    }
}

/* A branch, which is guessed, where an index is a multiplication that all the
 * rest of arming waits for. */
static inline TimerQueue *queue_of(Timers *timers, const AioTimer *timer)
{
    return likely(timer->clock_ == AIO_CLOCK_MONOTONIC)
               ? &timers->queues[AIO_CLOCK_MONOTONIC]
               : &timers->queues[AIO_CLOCK_REALTIME];
}

static inline void arm(Timers *timers, AioTimer *timer, int64_t expiry_ns)
{
    take_out(timers, timer);
    timer->ahead_ = timer; /* nothing is known; itself costs no access */
    timers->armed++;
    store_relaxed(&timer->state_, TIMER_ARMED);
    timer_queue_insert(queue_of(timers, timer), timer, expiry_ns);
}

static inline void disarm(Timers *timers, AioTimer *timer)
{
    take_out(timers, timer);
    /* INVARIANTS 4 */
    store_relaxed(&timer->state_,
                  frame_of(timers, timer) ? TIMER_FIRED : TIMER_IDLE);
}

/* --- requests of other threads; under the lock ----------------------------*/

static void request_append(Timers *timers, AioTimer *timer)
{
    timer->request_next_ = NULL;
    timer->request_prev_ = timers->requested_last;
    if (timers->requested_last) {
        timers->requested_last->request_next_ = timer;
    } else {
        timers->requested_first = timer;
    }
    timers->requested_last = timer;
    store_relaxed(&timer->requested_, 1);
}

static void request_remove(Timers *timers, AioTimer *timer)
{
    invariant(load_relaxed(&timer->requested_)); /* INVARIANTS 2 */
    if (timer->request_prev_) {
        timer->request_prev_->request_next_ = timer->request_next_;
    } else {
        timers->requested_first = timer->request_next_;
    }
    if (timer->request_next_) {
        timer->request_next_->request_prev_ = timer->request_prev_;
    } else {
        timers->requested_last = timer->request_prev_;
    }
    store_relaxed(&timer->requested_, 0);
}

/* Have a deleter look around that may sleep. */
static void poke(Deletion *deletion)
{
    uint32_t waiting = DELETION_WAITING;

    if (cas_relaxed(&deletion->done, &waiting, DELETION_POKED)) {
        MARK("timer: a deleter looks around");
        os_futex_wake(&deletion->done, 1);
    }
}

/*
 * Delete for somebody who waits.  Under the lock: the deleter takes it before
 * it leaves, so the record lives until we drop it.
 */
static void serve_deletion(Timers *timers, Deletion *deletion)
{
    TimerFrame *frame = frame_of(timers, deletion->timer);

    disarm(timers, deletion->timer);
    if (frame && !MUTANT(TIMER_FRAME_MISSED)) {
        MARK("timer: a deletion waits for the callback");
        list_append(&frame->deletions, &deletion->link);
        store_relaxed(&deletion->behind, 1);
        poke(deletion);
        return;
    }
    /* The deleter's acquire is that of the lock. */
    store_relaxed(&deletion->done, DELETION_DONE);
    os_futex_wake(&deletion->done, 1);
}

static void serve_requests(Timers *timers)
{
    AioTimer *timer;
    List *link;

    while ((timer = timers->requested_first)) {
        request_remove(timers, timer);
        arm(timers, timer, timer->requested_ns_);
    }
    while ((link = list_take_first(&timers->deletions))) {
        serve_deletion(timers, list_entry(link, Deletion, link));
    }
}

static void requests_posted(void *owner, Post *post)
{
    AioContext *ctx = owner;

    (void)post;
    os_mutex_lock(&ctx->lock);
    if (MUTANT(TIMER_POSTED_LATE)) {
        serve_requests(&ctx->timers);
        os_mutex_unlock(&ctx->lock);
        os_mutex_lock(&ctx->lock);
    }
    ctx->timers.posted = false;
    if (!MUTANT(TIMER_POSTED_LATE)) {
        serve_requests(&ctx->timers);
    }
    os_mutex_unlock(&ctx->lock);
}

/* Drop the lock, and see to it that the home thread serves requests. */
static void unlock_and_post(AioContext *ctx)
{
    bool post = !ctx->timers.posted;

    if (!post) {
        MARK("timer: a request goes with the post of another");
    } else {
        ctx->timers.posted = true;
        ctx->timers.post.run = requests_posted;
    }
    if (ctx->timers.awaiting && !MUTANT(TIMER_NO_POKE)) {
        poke(ctx->timers.awaiting);
    }
    os_mutex_unlock(&ctx->lock);
    if (post) {
        context_post(ctx, &ctx->timers.post);
    }
}

static void request_arming(AioContext *ctx, AioTimer *timer,
                           int64_t expiry_ns)
{
    /* The callback may run, and ctx go, before we are through. */
    context_pin(ctx);
    os_mutex_lock(&ctx->lock);
    timer->requested_ns_ = expiry_ns;
    if (!load_relaxed(&timer->requested_)) {
        request_append(&ctx->timers, timer);
    }
    unlock_and_post(ctx); /* to nobody, if the context has stopped */
    context_unpin(ctx);
    context_reap();
}

/* The deleter is the home thread of own: serve others meanwhile. */
static void look_around(AioContext *own, AioContext *ctx, Deletion *deletion)
{
    uint32_t poked = DELETION_POKED;

    cas_relaxed(&deletion->done, &poked, DELETION_WAITING);
    os_mutex_lock(&own->lock);
    own->timers.awaiting = deletion;
    serve_requests(&own->timers);
    os_mutex_unlock(&own->lock);
    if (load_relaxed(&deletion->behind)) {
        timer_check_waiting(own, ctx);
    }
}

static void await_deletion(AioContext *ctx, Deletion *deletion)
{
    AioContext *own = deletion->from;

    if (own) {
        look_around(own, ctx, deletion);
    }
    for (;;) {
        uint32_t state = load_relaxed(&deletion->done);

        if (state == DELETION_DONE) {
            break;
        }
        if (state == DELETION_POKED && own) {
            look_around(own, ctx, deletion);
        } else {
            os_futex_wait(&deletion->done, state, -1);
        }
    }
    if (own) {
        os_mutex_lock(&own->lock);
        own->timers.awaiting = NULL;
        os_mutex_unlock(&own->lock);
    }
    if (!MUTANT(TIMER_DEL_NO_LOCK)) {
        os_mutex_lock(&ctx->lock); /* see serve_deletion() */
        os_mutex_unlock(&ctx->lock);
    }
}

static void request_deletion(AioContext *ctx, AioTimer *timer,
                             AioContext *from)
{
    Timers *timers = &ctx->timers;
    Deletion deletion = {.timer = timer, .from = from};

    context_pin(ctx);
    os_mutex_lock(&ctx->lock);
    if (load_relaxed(&timer->requested_)) {
        MARK("timer: a request is taken back");
        request_remove(timers, timer);
    }
    if (load_relaxed(&timer->state_) == TIMER_IDLE) {
        MARK("timer: deleted without the home thread");
        os_mutex_unlock(&ctx->lock);
    } else if (load_relaxed(&ctx->stopped)) {
        MARK("timer: deleted when the home thread has ended");
        disarm(timers, timer);
        os_mutex_unlock(&ctx->lock);
    } else {
        list_append(&timers->deletions, &deletion.link);
        unlock_and_post(ctx);
        await_deletion(ctx, &deletion);
    }
    context_unpin(ctx);
    context_reap();
}

/* On the home thread: forget what another thread had asked for. */
static void forget_request(AioContext *ctx, AioTimer *timer)
{
    os_mutex_lock(&ctx->lock);
    if (load_relaxed(&timer->requested_)) {
        request_remove(&ctx->timers, timer);
    }
    os_mutex_unlock(&ctx->lock);
}

/* --- for users ------------------------------------------------------------*/

int64_t aio_clock_ns(AioClock clock)
{
    return clock == AIO_CLOCK_REALTIME ? os_clock_realtime_ns()
                                       : os_clock_monotonic_ns();
}

void aio_timer_init(AioTimer *timer, AioContext *ctx, AioClock clock,
                    AioTimerFunc *cb, void *opaque)
{
    if (unlikely(!ctx)) {
        misuse("aio_timer_init: the context is NULL");
    }
    *timer = (AioTimer){
        .context_ = ctx,
        .callback_ = cb,
        .opaque_ = opaque,
        .clock_ = clock == AIO_CLOCK_REALTIME,
    };
}

/*
 * Whether a call is one of the many: on the home thread, when no other thread
 * has asked for anything.  The rest is in functions of its own, so that these
 * need no frame.
 */
static inline bool is_simple(const AioTimer *timer, const OsThread *thread)
{
    return likely(!os_forked) &&
           likely(context_is_home(timer->context_, thread)) &&
           likely(!load_relaxed(&timer->requested_));
}

static NOINLINE void mod_ns_slowly(AioTimer *timer, int64_t expiry_ns)
{
    AioContext *ctx = timer->context_;

    os_check_fork("aio_timer_mod_ns");
    if (!context_is_home(ctx, os_thread())) {
        request_arming(ctx, timer, expiry_ns);
        return;
    }
    /* The user has ordered this after the request. */
    forget_request(ctx, timer);
    arm(&ctx->timers, timer, expiry_ns);
}

void aio_timer_mod_ns(AioTimer *timer, int64_t expiry_ns)
{
    if (unlikely(!is_simple(timer, os_thread()))) {
        mod_ns_slowly(timer, expiry_ns);
        return;
    }
    arm(&timer->context_->timers, timer, expiry_ns);
}

static NOINLINE void del_slowly(AioTimer *timer)
{
    AioContext *ctx = timer->context_;
    OsThread *thread = os_thread();

    os_check_fork("aio_timer_del");
    if (!context_is_home(ctx, thread)) {
        request_deletion(ctx, timer, thread->context);
        return;
    }
    forget_request(ctx, timer);
    disarm(&ctx->timers, timer);
}

void aio_timer_del(AioTimer *timer)
{
    if (unlikely(!is_simple(timer, os_thread()))) {
        del_slowly(timer);
        return;
    }
    disarm(&timer->context_->timers, timer);
}

bool aio_timer_pending(const AioTimer *timer)
{
    uint8_t state = load_relaxed(&timer->state_);

    return state == TIMER_ARMED || load_relaxed(&timer->requested_);
}

/* --- for the loop ---------------------------------------------------------*/

void timer_init(AioContext *ctx)
{
    Timers *timers = &ctx->timers;

    timer_queue_init(&timers->queues[AIO_CLOCK_MONOTONIC],
                     os_clock_monotonic_ns());
    timer_queue_init(&timers->queues[AIO_CLOCK_REALTIME],
                     os_clock_realtime_ns());
    timer_list_init(&timers->due);
}

static int64_t realtime_deadline_ns(int64_t expiry_ns)
{
    int64_t left_ns = REALTIME_LOOK_NS;
    int64_t now_ns = os_clock_realtime_ns();

    if (expiry_ns <= now_ns) {
        return 0;
    }
    /* Written so that a time far away does not overflow. */
    if (expiry_ns < now_ns + left_ns) {
        left_ns = expiry_ns - now_ns;
    }
    return os_clock_monotonic_ns() + left_ns;
}

int64_t timer_deadline_ns(AioContext *ctx)
{
    Timers *timers = &ctx->timers;
    int64_t deadline_ns = INT64_MAX, expiry_ns;

    if (timers->armed == 0) {
        return INT64_MAX;
    }
    if (!timer_list_empty(&timers->due)) {
        return 0; /* left by the pass that called the callback that polls */
    }
    if (timer_queue_earliest_ns(&timers->queues[AIO_CLOCK_REALTIME],
                                &expiry_ns)) {
        deadline_ns = realtime_deadline_ns(expiry_ns);
    }
    if (timer_queue_earliest_ns(&timers->queues[AIO_CLOCK_MONOTONIC],
                                &expiry_ns) &&
        expiry_ns < deadline_ns) {
        deadline_ns = expiry_ns > 0 ? expiry_ns : 0;
    }
    return deadline_ns;
}

/* Serve, after the callback, the deletions that came meanwhile. */
static void serve_frame(AioContext *ctx, TimerFrame *frame)
{
    List *link;

    os_mutex_lock(&ctx->lock);
    while ((link = list_take_first(&frame->deletions))) {
        /* May move on to an outer frame of the same timer. */
        serve_deletion(&ctx->timers, list_entry(link, Deletion, link));
    }
    os_mutex_unlock(&ctx->lock);
}

static void run_timer(AioContext *ctx, AioTimer *timer)
{
    Timers *timers = &ctx->timers;
    TimerFrame frame = {
        .outer = timers->running,
        .timer = timer,
    };

    take_out(timers, timer);
    store_relaxed(&timer->state_,
                  MUTANT(TIMER_FIRED_AS_IDLE) ? TIMER_IDLE : TIMER_FIRED);
    timers->running = &frame;
    timer->callback_(timer->opaque_);
    invariant(timers->running == &frame);
    timers->running = frame.outer;
    if (unlikely(!list_empty(&frame.deletions))) {
        serve_frame(ctx, &frame);
    }
}

/* The clocks are read only where there is something to compare with. */
static void take_due(Timers *timers)
{
    TimerQueue *queue = &timers->queues[AIO_CLOCK_MONOTONIC];

    if (!timer_queue_unused(queue)) {
        timer_queue_take_due(queue, os_clock_monotonic_ns(), &timers->due);
    }
    queue = &timers->queues[AIO_CLOCK_REALTIME];
    if (!timer_queue_unused(queue)) {
        timer_queue_take_due(queue, os_clock_realtime_ns(), &timers->due);
    }
}

bool timer_dispatch(AioContext *ctx)
{
    Timers *timers = &ctx->timers;

    if (timers->armed == 0) {
        return false;
    }
    take_due(timers);
    if (timer_list_empty(&timers->due)) {
        return false;
    }
    /*
     * What the callbacks arm goes to the queues: the next pass.  A nested pass
     * appends what has become due, and leaves nothing to us.
     */
    while (!timer_list_empty(&timers->due)) {
        AioTimer *timer = timer_of(timers->due.next_);

        prefetch(timer->ahead_);
        prefetch((const char *)timer->ahead_ + offsetof(AioTimer, opaque_));
        run_timer(ctx, timer);
    }
    return true;
}

static COLD NORETURN void misuse_deadlock(const Deletion *deletion)
{
    CoroutineLabel label;

    misuse("aio_timer_del of timer %p in %s waits for the timer's callback, "
           "which waits for that context in turn",
           (void *)deletion->timer, context_label(deletion->from, &label));
}

void timer_check_waiting(AioContext *own, AioContext *target)
{
    const TimerFrame *frame;
    const List *link;

    for (frame = own->timers.running; frame; frame = frame->outer) {
        for (link = list_first(&frame->deletions); link;
             link = list_next(&frame->deletions, link)) {
            const Deletion *deletion = list_entry(link, Deletion, link);

            if (deletion->from && deletion->from == target) {
                misuse_deadlock(deletion);
            }
        }
    }
}

static void warn_left(const AioTimer *timer)
{
    CoroutineLabel label;

    warn_line("timer %p (callback %p, expiry %" PRId64 ") is armed while %s is "
              "destroyed",
              (const void *)timer, (void *)(uintptr_t)timer->callback_,
              timer->expiry_ns_, context_label(timer->context_, &label));
}

size_t timer_check_none_left(AioContext *ctx)
{
    Timers *timers = &ctx->timers;
    size_t left = 0;

    os_mutex_lock(&ctx->lock);
    serve_requests(timers);
    for (AioClock clock = AIO_CLOCK_MONOTONIC; clock <= AIO_CLOCK_REALTIME;
         clock++) {
        timer_queue_take_due(&timers->queues[clock], INT64_MAX, &timers->due);
    }
    for (AioTimerLink *link = timers->due.next_; link != &timers->due;
         link = link->next_) {
        if (timer_of(link) != &ctx->workers.timer) { /* not a user's */
            warn_left(timer_of(link));
            left++;
        }
    }
    os_mutex_unlock(&ctx->lock);
    return left;
}

void timer_stopped(AioContext *ctx)
{
    invariant(!ctx->timers.running);
    os_mutex_lock(&ctx->lock);
    invariant(load_relaxed(&ctx->stopped));
    if (!MUTANT(TIMER_NOT_STOPPED)) {
        serve_requests(&ctx->timers); /* INVARIANTS 3 */
    }
    os_mutex_unlock(&ctx->lock);
}
