/* SPDX-License-Identifier: MIT */
/*
 * What the explorer (tests/explore) asks of the code that it explores.  In all
 * other builds these are constants, and nothing is left of them.
 *
 *   MUTANT(NAME)      true where the bug NAME is to be put back: the explorer
 *                     must find it again, or it could not have found it
 *   MARK(text)        a branch that explorations must reach
 *   SCALED(n, small)  n, or small where each turn of a loop would multiply the
 *                     number of schedules
 *
 * The bugs are told in docs/verification.md.
 */
#ifndef COAIO_BASE_EXPLORE_H
#define COAIO_BASE_EXPLORE_H

#ifdef COAIO_EXPLORE

/* clang-format off */
#define MUTANTS(each)                                                         \
    each(BH_CANCEL_PLAIN, "bh-cancel-plain")                                  \
    each(BH_CLEAR_PLAIN, "bh-clear-plain")                                    \
    each(BH_CONTEXT_AFTER_PUBLISH, "bh-context-after-publish")                \
    each(BH_EARLY_RETURN, "bh-early-return")                                  \
    each(BH_FREED_TWICE, "bh-freed-twice")                                    \
    each(BH_HURRY_MISSED, "bh-hurry-missed")                                  \
    each(BH_HURRY_NO_FENCE, "bh-hurry-no-fence")                              \
    each(BH_HURRY_QUIET, "bh-hurry-quiet")                                    \
    each(BH_HURRY_UNPINNED, "bh-hurry-unpinned")                              \
    each(BH_RUN_READS_LATE, "bh-run-reads-late")                              \
    each(BRIEF_NO_WAKE, "brief-no-wake")                                      \
    each(CONTEXT_CLOSED_IN_PASS, "context-closed-in-pass")                    \
    each(CONTEXT_HELD_PLAIN, "context-held-plain")                            \
    each(CONTEXT_REF_BLIND, "context-ref-blind")                              \
    each(CONTEXT_UNPIN_RELAXED, "context-unpin-relaxed")                      \
    each(FD_BUSY_READS_LATE, "fd-busy-reads-late")                            \
    each(FD_CHANGE_QUIET, "fd-change-quiet")                                  \
    each(FD_STALE_REPORT, "fd-stale-report")                                  \
    each(FD_TODO_KEPT, "fd-todo-kept")                                        \
    each(FD_WAIT_LINK_FIRST, "fd-wait-link-first")                            \
    each(FD_WOKEN_BEFORE_DROP, "fd-woken-before-drop")                        \
    each(HANDLER_EDIT_IN_PLACE, "handler-edit-in-place")                      \
    each(IOTHREAD_HOME_FIRST, "iothread-home-first")                          \
    each(IOTHREAD_NO_LAST_PASS, "iothread-no-last-pass")                      \
    each(IOTHREAD_ONE_LOOK, "iothread-one-look")                              \
    each(IOTHREAD_STARTED_RELAXED, "iothread-started-relaxed")                \
    each(IOTHREAD_STOP_UNLOCKED, "iothread-stop-unlocked")                    \
    each(IOTHREAD_STOPPING_LATE, "iothread-stopping-late")                    \
    each(MUTEX_HOLDER_LATE, "mutex-holder-late")                              \
    each(MUTEX_NO_FENCE_LOCK, "mutex-no-fence-lock")                          \
    each(MUTEX_NO_FENCE_UNLOCK, "mutex-no-fence-unlock")                      \
    each(MUTEX_NO_RETAKE, "mutex-no-retake")                                  \
    each(MUTEX_NOT_TURNED, "mutex-not-turned")                                \
    each(MUTEX_PUSH_RELAXED, "mutex-push-relaxed")                            \
    each(MUTEX_TOUCH_AFTER_HAND_OVER, "mutex-touch-after-hand-over")          \
    each(MUTEX_TOUCH_AFTER_UNLOCK, "mutex-touch-after-unlock")                \
    each(MUTEX_WAITERS_INVERTED, "mutex-waiters-inverted")                    \
    each(NOTIFY_CLEAR_LATE, "notify-clear-late")                              \
    each(NOTIFY_DISPATCHING, "notify-dispatching")                            \
    each(NOTIFY_NO_FENCE_NOTIFIER, "notify-no-fence-notifier")                \
    each(NOTIFY_NO_FENCE_POLLER, "notify-no-fence-poller")                    \
    each(NOTIFY_NONBLOCKING_EATS, "notify-nonblocking-eats")                  \
    each(NOTIFY_RELAXED, "notify-relaxed")                                    \
    each(POOL_KEPT_AT_END, "pool-kept-at-end")                                \
    each(POOL_POP_ONE, "pool-pop-one")                                        \
    each(NOTIFY_UNPINNED, "notify-unpinned")                                  \
    each(POST_PUSH_RELAXED, "post-push-relaxed")                              \
    each(POST_SLEEP_PLAIN, "post-sleep-plain")                                \
    each(POST_TAKE_PLAIN, "post-take-plain")                                  \
    each(POST_TAKE_TWICE, "post-take-twice")                                  \
    each(QUEUE_FREED, "queue-freed")                                          \
    each(QUEUE_RESTART_TOUCHES, "queue-restart-touches")                      \
    each(QUEUE_REWAIT, "queue-rewait")                                        \
    each(RWLOCK_DOWNGRADE, "rwlock-downgrade")                                \
    each(RWLOCK_NO_FENCE_LOCK, "rwlock-no-fence-lock")                        \
    each(RWLOCK_NO_FENCE_UNLOCK, "rwlock-no-fence-unlock")                    \
    each(RWLOCK_UNLOCK_FORGETS, "rwlock-unlock-forgets")                      \
    each(RWLOCK_UNLOCK_TOUCHES, "rwlock-unlock-touches")                      \
    each(STACK_RETIRE_UNLOCKED, "stack-retire-unlocked")                      \
    each(STOP_NO_FENCE, "stop-no-fence")                                      \
    each(STOP_NO_FENCE_LEAVER, "stop-no-fence-leaver")                        \
    each(STOP_NO_FENCE_WAKER, "stop-no-fence-waker")                          \
    each(SUBMIT_NOT_AWAITED, "submit-not-awaited")                            \
    each(SUBMIT_STALE, "submit-stale")                                        \
    each(TIMER_DEL_NO_LOCK, "timer-del-no-lock")                              \
    each(TIMER_FIRED_AS_IDLE, "timer-fired-as-idle")                          \
    each(TIMER_FRAME_MISSED, "timer-frame-missed")                            \
    each(TIMER_NO_POKE, "timer-no-poke")                                      \
    each(TIMER_NOT_STOPPED, "timer-not-stopped")                              \
    each(TIMER_POSTED_LATE, "timer-posted-late")                              \
    each(URING_CHANGE_NOT_DUE, "uring-change-not-due")                        \
    each(URING_DROP_NO_WAIT, "uring-drop-no-wait")                            \
    each(URING_DROP_NOT_ENTERED, "uring-drop-not-entered")                    \
    each(URING_DROP_QUIET, "uring-drop-quiet")                                \
    each(URING_DROP_UNCOUNTED, "uring-drop-uncounted")                        \
    each(URING_DROPPED_ENTERS, "uring-dropped-enters")                        \
    each(URING_DUE_LATE, "uring-due-late")                                    \
    each(URING_EXIT_UNCOUNTED, "uring-exit-uncounted")                        \
    each(URING_GIVES_WAY_EARLY, "uring-gives-way-early")                      \
    each(URING_LEFT_FORGOTTEN, "uring-left-forgotten")                        \
    each(URING_STALE_COMPLETION, "uring-stale-completion")                    \
    each(URING_WAKES_ONE, "uring-wakes-one")                                  \
    each(WAIT_KICK_EPOCH_LATE, "wait-kick-epoch-late")                        \
    each(WAIT_KICK_NO_FENCE_KICKER, "wait-kick-no-fence-kicker")              \
    each(WAIT_KICK_NO_FENCE_WAITER, "wait-kick-no-fence-waiter")              \
    each(WAIT_KICK_POLLERS_MISSED, "wait-kick-pollers-missed")                \
    each(WAIT_KICK_WAKES_ONE, "wait-kick-wakes-one")                          \
    each(WAIT_OUTCOME_PLAIN, "wait-outcome-plain")                            \
    each(WAKE_CONTEXT_FREED, "wake-context-freed")                            \
    each(WAKE_NOT_QUIET, "wake-not-quiet")                                    \
    each(WAKE_NOT_SWEPT, "wake-not-swept")                                    \
    each(WAKE_TWICE, "wake-twice")                                            \
    each(WAKE_UNCLAIM_RELAXED, "wake-unclaim-relaxed")                        \
    each(WAKE_WAY_KEPT, "wake-way-kept")                                      \
    each(WORKER_CANCEL, "worker-cancel")                                      \
    each(WORKER_GIVES_UP, "worker-gives-up")                                  \
    each(WORKER_LANE_KEPT, "worker-lane-kept")                                \
    each(WORKER_LANE_LEFT, "worker-lane-left")                                \
    each(WORKER_LANE_STUCK, "worker-lane-stuck")                              \
    each(WORKER_MISCOUNTS, "worker-miscounts")                                \
    each(WORKER_NESTED, "worker-nested")                                      \
    each(WORKER_NOT_CALLED, "worker-not-called")                              \
    each(WORKER_UNPINNED, "worker-unpinned")
/* clang-format on */

#define MUTANT_OF(name, text) MUTANT_##name,

typedef enum Mutant {
    MUTANT_NONE = 0,
    MUTANTS(MUTANT_OF) MUTANT_COUNT,
} Mutant;

extern Mutant explore_mutant;
void explore_mark(const char *text);

#define MUTANT(name)     (explore_mutant == MUTANT_##name)
#define MARK(text)       explore_mark(text)
#define SCALED(n, small) (small)

#else

#define MUTANT(name)     0
#define MARK(text)       ((void)0)
#define SCALED(n, small) (n)

#endif

#endif
