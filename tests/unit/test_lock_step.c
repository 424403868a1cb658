/* SPDX-License-Identifier: MIT */
/*
 * Locks and waits at every single instruction of those who let go: the rarest
 * of interleavings, each tried once.
 *
 * The processor steps through the call (the trap flag), and SIGTRAP comes after
 * each instruction.  Then one of two things is done:
 *
 *   - As soon as another thread could have the lock, its memory is taken away,
 *     which is what that thread may do (free()).  An unlock that touches the
 *     lock once more dies of it.
 *   - In the nth try, another thread acts after the nth instruction (queues,
 *     cancels), until it has done so or is held up by the one that is stopped.
 *
 * Tools that translate or instrument code cannot do this.
 */
#include "loops.h"

#include "base/compiler.h"
#include "loop/context.h"
#include "loop/wait.h"
#include "os/valgrind.h"
#include "sync/brief.h"
#include "sync/waiter.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__) && !COAIO_ASAN && !COAIO_TSAN
#define CAN_STEP 1
#else
#define CAN_STEP 0
#endif

#define TRAP_FLAG  0x100
#define STEPS_MOST 20000

/* Below the red zone, for the compiler may have something there. */
static inline void set_trap_flag(bool on)
{
#if CAN_STEP
    uint64_t flag = TRAP_FLAG;

    __asm__ volatile("leaq -128(%%rsp), %%rsp\n\t"
                     "pushfq\n\t"
                     "andq %1, (%%rsp)\n\t"
                     "orq %0, (%%rsp)\n\t"
                     "popfq\n\t"
                     "leaq 128(%%rsp), %%rsp"
                     :
                     : "r"(on ? flag : 0), "r"(~flag)
                     : "memory", "cc");
#else
    (void)on;
#endif
}

/* --- what happens after an instruction -----------------------------------*/

/* The lock under test has a page of its own. */
typedef union Page {
    CoMutex mutex;
    CoRwlock rwlock;
    CoSemaphore semaphore;
    CoGroup group;
} Page;

static Page *page;
static bool (*gone)(void); /* whether another may have freed it; or NULL */
static bool taken_away;

static unsigned step;
static unsigned act_at; /* when the other thread acts; 0: never */
static bool acted;
static bool go;               /* atomic; it may */
static bool (*settled)(void); /* whether it has, or is held up */

static void take_away(void)
{
    taken_away = true;
    CHECK_EQ(mprotect(page, (size_t)sysconf(_SC_PAGESIZE), PROT_NONE), 0);
}

static void let_the_other_act(void)
{
    acted = true;
    store_release(&go, true);
    until(settled());
}

/* There is nothing more to try in this call: let it run freely. */
static void stop_stepping(void *context)
{
#if CAN_STEP
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;

    registers[REG_EFL] &= ~(greg_t)TRAP_FLAG;
#else
    (void)context;
#endif
}

static void on_trap(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    step++;
    if (gone && !taken_away && gone()) {
        take_away();
    }
    if (step == act_at) {
        let_the_other_act();
        stop_stepping(context);
    }
}

static void stepping_open(void)
{
    struct sigaction action;

    if (!CAN_STEP || os_in_valgrind()) {
        SKIP("code cannot be stepped through here");
    }
#ifdef COAIO_DELAYS
    os_delays = false; /* each try must take the same way */
#endif
    memset(&action, 0, sizeof(action));
    action.sa_sigaction = on_trap;
    action.sa_flags = SA_SIGINFO;
    CHECK_EQ(sigaction(SIGTRAP, &action, NULL), 0);
    page = mmap(NULL, (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    here_open();
}

static void stepping_close(void)
{
    here_close();
    CHECK_EQ(munmap(page, (size_t)sysconf(_SC_PAGESIZE)), 0);
}

#define STEP_THROUGH(call)        \
    do {                          \
        step = 0;                 \
        set_trap_flag(true);      \
        call;                     \
        set_trap_flag(false);     \
        CHECK(step > 0);          \
        CHECK(step < STEPS_MOST); \
    } while (0)

/* It was taken away, and nobody minded. */
static void check_taken_away(void)
{
    CHECK(taken_away);
    taken_away = false;
    gone = NULL;
    CHECK_EQ(
        mprotect(page, (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE),
        0);
}

/* --- a loop that is kept busy, so that what is posted to it stays --------*/

static bool busy;       /* atomic */
static bool idle_again; /* atomic */

static void keep_busy(void *opaque)
{
    (void)opaque;
    store_release(&busy, true);
    until(load_acquire(&idle_again));
    store_release(&busy, false);
}

static void busy_begin(void)
{
    store_release(&idle_again, false);
    aio_bh_schedule_oneshot(loop(0), keep_busy, NULL);
    until(load_acquire(&busy));
}

static void busy_end(void)
{
    store_release(&idle_again, true);
    until(!load_acquire(&busy));
}

static bool posted(void)
{
    return post_pending(&loop(0)->posted);
}

/* --- nobody waits: free to be freed as soon as it is unlocked ------------*/

static bool mutex_is_free(void)
{
    return load_relaxed(&page->mutex.word_) == 0;
}

static void unlock_mutex(void *opaque)
{
    (void)opaque;
    co_mutex_lock(&page->mutex);
    gone = mutex_is_free;
    STEP_THROUGH(co_mutex_unlock(&page->mutex));
}

TEST(a_mutex_that_is_free_is_not_touched)
{
    stepping_open();
    begin(unlock_mutex, NULL);
    check_taken_away();
    stepping_close();
}

static bool rwlock_is_free(void)
{
    return load_relaxed(&page->rwlock.word_) == 0;
}

static void unlock_rwlock(void *opaque)
{
    bool write = *(bool *)opaque;

    if (write) {
        co_rwlock_wrlock(&page->rwlock);
    } else {
        co_rwlock_rdlock(&page->rwlock);
    }
    gone = rwlock_is_free;
    STEP_THROUGH(co_rwlock_unlock(&page->rwlock));
}

TEST(a_rwlock_that_is_free_is_not_touched)
{
    bool write = false;

    stepping_open();
    begin(unlock_rwlock, &write);
    check_taken_away();
    write = true;
    begin(unlock_rwlock, &write);
    check_taken_away();
    stepping_close();
}

static bool semaphore_has_units(void)
{
    return load_relaxed(&page->semaphore.lock_) == BRIEF_FREE &&
           page->semaphore.units_ > 0;
}

TEST(a_semaphore_with_the_last_units_is_not_touched)
{
    stepping_open();
    gone = semaphore_has_units;
    STEP_THROUGH(co_semaphore_release(&page->semaphore, 1));
    check_taken_away();
    stepping_close();
}

/* --- somebody waits: not touched once he is woken ------------------------*/

static void lock_mutex(void *opaque)
{
    (void)opaque;
    co_mutex_lock(&page->mutex);
    co_mutex_unlock(&page->mutex);
    job_done();
}

static void hand_mutex_over(void *opaque)
{
    (void)opaque;
    co_mutex_lock(&page->mutex);
    start(loop(0), lock_mutex, NULL);
    until(load_acquire(&page->mutex.word_) > 1);
    busy_begin();
    gone = posted;
    STEP_THROUGH(co_mutex_unlock(&page->mutex));
}

TEST(a_mutex_that_was_handed_over_is_not_touched)
{
    stepping_open();
    loops_start(1);
    begin(hand_mutex_over, NULL);
    check_taken_away();
    busy_end();
    loops_join(1);
    loops_stop();
    stepping_close();
}

static void write_rwlock(void *opaque)
{
    (void)opaque;
    co_rwlock_wrlock(&page->rwlock);
    co_rwlock_unlock(&page->rwlock);
    job_done();
}

static bool somebody_waits(uint32_t *lock, CoWaiterList *list)
{
    uint32_t bits = brief_lock_bits(lock);
    bool waits = !waiters_empty(list);

    brief_unlock_bits(lock, bits);
    return waits;
}

static void hand_rwlock_over(void *opaque)
{
    (void)opaque;
    co_rwlock_rdlock(&page->rwlock);
    start(loop(0), write_rwlock, NULL);
    until(somebody_waits(&page->rwlock.word_, &page->rwlock.waiters_));
    busy_begin();
    gone = posted;
    STEP_THROUGH(co_rwlock_unlock(&page->rwlock));
}

TEST(a_rwlock_that_was_handed_over_is_not_touched)
{
    stepping_open();
    loops_start(1);
    begin(hand_rwlock_over, NULL);
    check_taken_away();
    busy_end();
    loops_join(1);
    loops_stop();
    stepping_close();
}

static void acquire_unit(void *opaque)
{
    int *result = opaque;

    *result = co_semaphore_acquire(&page->semaphore, 1);
    job_done();
}

TEST(a_semaphore_that_gave_its_units_away_is_not_touched)
{
    int result = 1;

    stepping_open();
    loops_start(1);
    start(loop(0), acquire_unit, &result);
    until(somebody_waits(&page->semaphore.lock_, &page->semaphore.waiters_));
    busy_begin();
    gone = posted;
    STEP_THROUGH(co_semaphore_release(&page->semaphore, 1));
    check_taken_away();
    busy_end();
    loops_join(1);
    CHECK_EQ(result, 0);
    loops_stop();
    stepping_close();
}

static int member(void *opaque)
{
    (void)opaque;
    coroutine_yield();
    set_trap_flag(true); /* steps through what comes after the member, too */
    return -EIO;
}

static void wait_for_group(void *opaque)
{
    int *result = opaque;

    *result = co_group_wait(&page->group);
    job_done();
}

static Coroutine *member_co;

static int member_first(void *opaque)
{
    member_co = coroutine_self();
    return member(opaque);
}

TEST(a_group_that_has_ended_is_not_touched)
{
    int result = 1;

    stepping_open();
    loops_start(1);
    CHECK_EQ(co_group_run(&page->group, here, member_first, NULL), 0);
    start(loop(0), wait_for_group, &result);
    until(somebody_waits(&page->group.lock_, &page->group.waiters_));
    busy_begin();
    gone = posted;
    step = 0;
    coroutine_enter(member_co); /* comes back with the trap flag as it was */
    set_trap_flag(false);
    check_taken_away();
    busy_end();
    loops_join(1);
    CHECK_EQ(result, -EIO);
    loops_stop();
    stepping_close();
}

/* --- another queues, at the nth instruction of an unlock -----------------*/

static unsigned stride(void)
{
    unsigned long load = harness_load(100);

    return load < 100 ? (unsigned)(100 / load) : 1;
}

static unsigned first_place(void)
{
    return 1 + (unsigned)(harness_seed() % stride());
}

static int served;    /* under the mutex */
static bool late_has; /* atomic */

static void lock_early(void *opaque)
{
    (void)opaque;
    co_mutex_lock(&page->mutex);
    served++;
    co_mutex_unlock(&page->mutex);
    job_done();
}

static void lock_late(void *opaque)
{
    (void)opaque;
    store_release(&busy, true);
    until(load_acquire(&go));
    co_mutex_lock(&page->mutex);
    served++;
    store_release(&late_has, true);
    co_mutex_unlock(&page->mutex);
    job_done();
}

static uintptr_t word_before;

/* It has the mutex or waits for it. */
static bool late_has_locked(void)
{
    uintptr_t word = load_acquire(&page->mutex.word_);

    return load_acquire(&late_has) || (word > 1 && word != word_before);
}

static void unlock_while_another_queues(void *opaque)
{
    int early = *(int *)opaque;

    co_mutex_lock(&page->mutex);
    word_before = 0;
    for (int i = 0; i < early; i++) {
        start(loop(0), lock_early, NULL);
        until(load_acquire(&page->mutex.word_) != word_before &&
              load_acquire(&page->mutex.word_) > 1);
        word_before = load_acquire(&page->mutex.word_);
    }
    start(loop(1), lock_late, NULL);
    until(load_acquire(&busy));
    STEP_THROUGH(co_mutex_unlock(&page->mutex));
    store_release(&go, true);
}

/* With so many in the queue already: nobody gets lost. */
static void queue_at_every_instruction(int early)
{
    unsigned nth = first_place();

    stepping_open();
    loops_start(2);
    settled = late_has_locked;
    do {
        store_release(&busy, false);
        store_release(&go, false);
        store_release(&late_has, false);
        acted = false;
        served = 0;
        act_at = nth;
        begin(unlock_while_another_queues, &early);
        loops_join((unsigned)early + 1);
        CHECK_EQ(served, early + 1);
        CHECK_EQ(page->mutex.word_, 0);
        nth += stride();
    } while (acted);
    loops_stop();
    stepping_close();
}

TEST(one_queues_at_every_instruction_of_an_unlock)
{
    queue_at_every_instruction(0);
}

TEST(one_queues_at_every_instruction_of_a_hand_over)
{
    queue_at_every_instruction(1);
}

TEST(one_queues_at_every_instruction_of_a_hand_over_that_leaves_others)
{
    queue_at_every_instruction(3);
}

/* --- a cancellation, at the nth instruction of a completion --------------*/

static Coroutine *waiter_co;
static CoWait *waiter_wait;
static int waiter_result;
static uint32_t *brief_word;
static bool cancel_called; /* atomic; and it has returned */

/* On the home thread of the waiter. */
static void cancel_it(void *opaque)
{
    (void)opaque;
    store_release(&busy, true);
    until(load_acquire(&go));
    if (!co_wait_ended(waiter_wait)) {
        co_wait_cancel(waiter_co, -ECANCELED);
    }
    store_release(&cancel_called, true);
}

/* Done, or held up by the brief lock. */
static bool cancel_settled(void)
{
    return load_acquire(&cancel_called) ||
           load_acquire(brief_word) == BRIEF_SLEEPERS;
}

static void acquire_or_be_cancelled(void *opaque)
{
    (void)opaque;
    waiter_co = coroutine_self();
    waiter_result = co_semaphore_acquire(&page->semaphore, 1);
    job_done();
}

static void cancel_prepare(unsigned nth)
{
    store_release(&busy, false);
    store_release(&go, false);
    store_release(&cancel_called, false);
    acted = false;
    act_at = nth;
    aio_bh_schedule_oneshot(loop(0), cancel_it, NULL);
    until(load_acquire(&busy));
}

static void wait_published(CoWaiterList *list)
{
    until(somebody_waits(brief_word, list));
    brief_lock(brief_word);
    waiter_wait = &waiters_first(list)->wait;
    brief_unlock(brief_word);
}

/* The record must outlive the look at it: the waiter is held up until then. */
TEST(a_cancellation_at_every_instruction_of_a_release)
{
    unsigned nth = first_place();
    bool completed = false, cancelled = false;

    stepping_open();
    loops_start(1);
    brief_word = &page->semaphore.lock_;
    settled = cancel_settled;
    do {
        start(loop(0), acquire_or_be_cancelled, NULL);
        wait_published(&page->semaphore.waiters_);
        cancel_prepare(nth);
        STEP_THROUGH(co_semaphore_release(&page->semaphore, 1));
        store_release(&go, true);
        loops_join(1);
        until(load_acquire(&cancel_called));
        CHECK(waiter_result == 0 || waiter_result == -ECANCELED);
        CHECK_EQ(page->semaphore.units_, waiter_result ? 1 : 0);
        CHECK(page->semaphore.waiters_.head_ == NULL);
        page->semaphore.units_ = 0;
        completed |= waiter_result == 0;
        cancelled |= waiter_result != 0;
        nth += stride();
    } while (acted);
    CHECK(completed);
    CHECK(cancelled || stride() > 1);
    loops_stop();
    stepping_close();
}

/* --- a timeout, at the nth instruction of a wake -------------------------*/

static CoQueue *queue;
static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;

static void wait_in_queue(void *opaque)
{
    (void)opaque;
    CHECK_EQ(pthread_mutex_lock(&queue_lock), 0);
    waiter_co = coroutine_self();
    waiter_result = co_queue_wait(queue, &queue_lock);
    CHECK_EQ(pthread_mutex_unlock(&queue_lock), 0);
    job_done();
}

/* The waiter is on its way, and may be held up by the lock of the queue. */
static bool wait_has_ended(void)
{
    return co_wait_ended(waiter_wait);
}

static void find_in_queue(void)
{
    Waiter *first = NULL;

    while (!first) {
        CHECK_EQ(pthread_mutex_lock(&queue_lock), 0);
        first = waiters_first(&queue->waiters_);
        CHECK_EQ(pthread_mutex_unlock(&queue_lock), 0);
        sched_yield();
    }
    waiter_wait = &first->wait;
}

static void wake_from_queue(void *opaque)
{
    bool *woken = opaque;

    CHECK_EQ(pthread_mutex_lock(&queue_lock), 0);
    STEP_THROUGH(*woken = co_queue_next(queue));
    CHECK(co_queue_empty(queue));
    memset(queue, 0xa5, sizeof(*queue)); /* gone */
    CHECK_EQ(pthread_mutex_unlock(&queue_lock), 0);
    if (*woken) {
        store_release(&go, true);
    }
}

TEST(a_timeout_at_every_instruction_of_a_wake)
{
    unsigned nth = first_place();
    bool completed = false, cancelled = false, woken = false;
    CoQueue storage;

    stepping_open();
    loops_start(1);
    queue = &storage;
    settled = wait_has_ended;
    do {
        co_queue_init(queue);
        start(loop(0), wait_in_queue, NULL);
        find_in_queue();
        cancel_prepare(nth);
        begin(wake_from_queue, &woken);
        store_release(&go, true);
        loops_join(1);
        until(load_acquire(&cancel_called));
        CHECK_EQ(waiter_result, woken ? 0 : -ECANCELED);
        completed |= woken;
        cancelled |= !woken;
        nth += stride();
    } while (acted);
    CHECK(completed);
    CHECK(cancelled || stride() > 1);
    loops_stop();
    stepping_close();
}

TEST_MAIN()
