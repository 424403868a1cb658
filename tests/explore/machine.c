/* SPDX-License-Identifier: MIT */
/*
 * The simulated machine: threads, scheduling points, choices, and the phases
 * of a run.
 *
 * A run goes through setup, then each thread in turn to explore_begin(), then
 * all at once, then each in turn from explore_end() to its end, the first one
 * last, and finish.  In turn means that a thread is left only when it waits.
 */
#include "machine.h"

#include "coroutine/switch.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

OWN Machine *machine;
OWN Mutant explore_mutant;

/* --- choices --------------------------------------------------------------*/

static uint64_t draw(void)
{
    Machine *m = machine;

    m->random ^= m->random << 13;
    m->random ^= m->random >> 7;
    m->random ^= m->random << 17;
    return m->random;
}

static unsigned first_way(unsigned ways, ChoiceKind kind)
{
    if (machine->strategy == STRATEGY_ALL) {
        return 0;
    }
    /* Old values are rare, or nothing would ever get anywhere. */
    if (kind == CHOOSE_MESSAGE && draw() % 4 != 0) {
        return 0;
    }
    return (unsigned)(draw() % ways);
}

unsigned machine_choose(unsigned ways, ChoiceKind kind)
{
    Machine *m = machine;
    Choice *choice = &m->choices[m->depth];

    if (ways <= 1) {
        return 0;
    }
    if (m->depth == CHOICES_MAX) {
        explore_fail("explorer", "a run makes too many choices");
    }
    if (m->depth < m->prefix) {
        if (choice->ways != ways && !m->lenient) {
            explore_fail("explorer",
                         "a run does not repeat itself: %u ways "
                         "at choice %u, where there were %u",
                         ways, m->depth, choice->ways);
        }
        if (choice->taken >= ways) {
            choice->taken = 0;
        }
    } else {
        choice->taken = (uint8_t)first_way(ways, kind);
    }
    choice->ways = (uint8_t)ways;
    choice->kind = (uint8_t)kind;
    m->depth++;
    return choice->taken;
}

unsigned explore_choose(unsigned n)
{
    unsigned way = machine_choose(n, CHOOSE_FREELY);

    if (machine->tracing) {
        at(EX_SITE(""));
        trace("choose", "%u of %u", way, n);
    }
    return way;
}

/* --- switching ------------------------------------------------------------*/

static void go_to(unsigned next)
{
    Machine *m = machine;
    Thread *from = self();

    if (next != m->current) {
        m->current = next;
        switch_stack(&from->sp, m->thread[next].sp);
    }
}

void machine_leave(void)
{
    void *gone;

    switch_stack(&gone, machine->main_sp);
    __builtin_unreachable();
}

void explore_fail(const char *kind, const char *format, ...)
{
    Machine *m = machine;
    int length = snprintf(m->failure, FAILURE_MAX, "%s: ", kind);
    va_list args;

    va_start(args, format);
    vsnprintf(m->failure + length, FAILURE_MAX - (size_t)length, format, args);
    va_end(args);
    if (m->phase == PHASE_OUTSIDE) {
        fprintf(stderr, "%s\n", m->failure);
        abort();
    }
    machine_leave();
}

/* --- who can go on --------------------------------------------------------*/

static bool is_ready(const Thread *thread)
{
    return thread->state == THREAD_READY;
}

/* May a wait end by its timeout, as a choice? */
static bool may_time_out(const Thread *thread)
{
    return machine->test->timeouts && machine->phase == PHASE_AT_ONCE &&
           thread->state == THREAD_BLOCKED && thread->deadline_ns != INT64_MAX;
}

static void time_out(Thread *thread)
{
    Machine *m = machine;

    if (m->now_ns < thread->deadline_ns) {
        m->now_ns = thread->deadline_ns;
    }
    thread->timed_out = true;
    thread->state = THREAD_READY;
}

/* Nobody can go on: let the time pass to where somebody's wait ends. */
static bool pass_time(void)
{
    Machine *m = machine;
    Thread *first = NULL;

    for (unsigned i = 0; i < m->threads; i++) {
        Thread *thread = &m->thread[i];

        if (thread->state == THREAD_BLOCKED && !thread->detached &&
            thread->deadline_ns != INT64_MAX &&
            (!first || thread->deadline_ns < first->deadline_ns)) {
            first = thread;
        }
    }
    if (first) {
        time_out(first);
    }
    return first != NULL;
}

/* Print a cycle of threads that wait for each other; returns its length. */
static unsigned find_cycle(char *text, size_t size)
{
    Machine *m = machine;

    for (unsigned first = 0; first < m->threads; first++) {
        unsigned t = first, length = 0;
        int n = 0;

        while (t < THREADS && m->thread[t].state == THREAD_BLOCKED &&
               length < m->threads) {
            n += snprintf(text + n, size - (size_t)n,
                          "\n    thread %u waits for %s of thread %u", t,
                          m->thread[t].why, m->thread[t].holder);
            length++;
            t = m->thread[t].holder;
            if (t == first) {
                return length;
            }
        }
    }
    return 0;
}

static void fail_stuck(void)
{
    static const char *const states[] = {"is not used",   "is ready",
                                         "waits",         "is at its begin",
                                         "is at its end", "has ended"};
    Machine *m = machine;
    char text[FAILURE_MAX / 2];
    char place[256];
    int n = 0;

    if (find_cycle(text, sizeof(text)) > 0) {
        explore_fail("deadlock", "a cycle%s", text);
    }
    for (unsigned i = 0; i < m->threads; i++) {
        const Thread *thread = &m->thread[i];

        n += snprintf(text + n, sizeof(text) - (size_t)n, "\n    thread %u %s",
                      i, states[thread->state]);
        if (thread->state == THREAD_BLOCKED) {
            report_thread(thread, place, sizeof(place));
            n += snprintf(text + n, sizeof(text) - (size_t)n, " for %s, at %s",
                          thread->why, place);
        }
    }
    explore_fail("lost wake-up", "nobody can go on%s", text);
}

/* --- scheduling -----------------------------------------------------------*/

/* Those who could go on instead of the current thread, from the next one. */
static unsigned list_others(unsigned *others, bool spinning)
{
    Machine *m = machine;
    unsigned t = m->current;
    unsigned n = 0;

    for (unsigned i = 1; i < m->threads; i++) {
        const Thread *thread;

        t = t + 1 < m->threads ? t + 1 : 0;
        thread = &m->thread[t];
        if ((is_ready(thread) && thread->spins == spinning) ||
            (!spinning && may_time_out(thread))) {
            others[n++] = t;
        }
    }
    return n;
}

static void count_step(void)
{
    Machine *m = machine;
    char place[256];

    if (++m->steps > STEPS_MAX) {
        report_thread(self(), place, sizeof(place));
        explore_fail("livelock", "%u steps, and no end, in %s", m->steps,
                     place);
    }
}

static void resume(unsigned t)
{
    Machine *m = machine;

    if (m->thread[t].state == THREAD_BLOCKED) {
        time_out(&m->thread[t]);
    }
    go_to(t);
}

/* PCT: the thread of the highest priority goes on. */
static unsigned by_priority(const unsigned *others, unsigned n, bool stay)
{
    Machine *m = machine;
    unsigned best = stay ? m->current : others[0];

    for (unsigned i = 0; i < 4; i++) {
        if (m->change_at[i] == m->steps) {
            m->priority[m->current] = i;
        }
    }
    for (unsigned i = 0; i < n; i++) {
        if (m->priority[others[i]] > m->priority[best]) {
            best = others[i];
        }
    }
    return best;
}

/* The others have waited for somebody to make a step. */
static void end_spinning(void)
{
    for (unsigned i = 0; i < machine->threads; i++) {
        machine->thread[i].spins = false;
    }
}

void machine_step(void)
{
    Machine *m = machine;
    unsigned others[THREADS];
    unsigned n, way;

    count_step();
    if (m->phase != PHASE_AT_ONCE) {
        return;
    }
    n = list_others(others, false);
    if (m->strategy == STRATEGY_PCT && n > 0) {
        unsigned best = by_priority(others, n, true);

        if (best != m->current) {
            resume(best);
        }
    } else if (n > 0 && m->preemptions > 0) {
        way = machine_choose(n + 1, CHOOSE_THREAD);
        if (way > 0) {
            m->preemptions--;
            resume(others[way - 1]);
        }
    }
    end_spinning();
}

/* The current thread cannot go on, or would rather not: somebody else does. */
static void give_way(void)
{
    Machine *m = machine;
    unsigned others[THREADS];
    unsigned n = list_others(others, false);

    if (n == 0) {
        n = list_others(others, true);
    }
    if (n == 0 && is_ready(self())) {
        return;
    }
    if (n == 0 && !pass_time()) {
        fail_stuck();
    }
    if (n == 0) {
        n = list_others(others, false);
        if (n == 0) {
            return; /* it is the current one whose time has come */
        }
    }
    if (m->phase != PHASE_AT_ONCE) {
        resume(others[0]);
    } else if (m->strategy == STRATEGY_PCT) {
        resume(by_priority(others, n, false));
    } else {
        resume(others[machine_choose(n, CHOOSE_THREAD)]);
    }
}

void ex_spin(void)
{
    Machine *m = machine;

    if (!m || m->phase == PHASE_OUTSIDE) {
        return;
    }
    count_step();
    m->now_ns += 1000;
    self()->spins = true;
    give_way();
    self()->spins = false;
}

static bool block(unsigned holder, const void *object, const char *why,
                  int64_t deadline_ns)
{
    Thread *thread = self();

    count_step();
    thread->state = THREAD_BLOCKED;
    thread->object = object;
    thread->why = why;
    thread->holder = (uint8_t)holder;
    thread->deadline_ns = deadline_ns;
    thread->timed_out = false;
    thread->since = machine->waits++;
    give_way();
    return !self()->timed_out;
}

bool machine_block(const void *object, const char *why, int64_t deadline_ns)
{
    return block(THREADS, object, why, deadline_ns);
}

void machine_block_for(unsigned holder, const void *object, const char *why)
{
    block(holder, object, why, INT64_MAX);
}

void machine_unblock(const void *object, unsigned n)
{
    Machine *m = machine;

    while (n-- > 0) {
        Thread *first = NULL;

        for (unsigned i = 0; i < m->threads; i++) {
            Thread *thread = &m->thread[i];

            if (thread->state == THREAD_BLOCKED && thread->object == object &&
                (!first || thread->since < first->since)) {
                first = thread;
            }
        }
        if (!first) {
            return;
        }
        first->state = THREAD_READY;
        first->spins = false;
    }
}

void explore_advance_ns(int64_t ns)
{
    Machine *m = machine;

    m->now_ns += ns;
    for (unsigned i = 0; i < m->threads; i++) {
        if (m->thread[i].state == THREAD_BLOCKED &&
            m->thread[i].deadline_ns <= m->now_ns) {
            time_out(&m->thread[i]);
        }
    }
}

/* --- phases ---------------------------------------------------------------*/

/* Whether each body is in that state, or has ended. */
static bool all_bodies(ThreadState state)
{
    Machine *m = machine;

    for (unsigned i = 0; i < m->bodies; i++) {
        if (m->thread[i].state != state && m->thread[i].state != THREAD_ENDED) {
            return false;
        }
    }
    return true;
}

/* All views become one: what was done in turn is known to all. */
static void share_views(void)
{
    Machine *m = machine;
    View all = m->thread[0].now;

    for (unsigned i = 1; i < m->threads; i++) {
        view_join(&all, &m->thread[i].now);
    }
    for (unsigned i = 0; i < m->threads; i++) {
        m->thread[i].now = all;
        m->thread[i].now.seen[i]++;
    }
}

void explore_begin(void)
{
    Machine *m = machine;

    self()->state = THREAD_AT_BEGIN;
    if (all_bodies(THREAD_AT_BEGIN)) {
        share_views();
        m->phase = PHASE_AT_ONCE;
        for (unsigned i = 0; i < m->bodies; i++) {
            if (m->thread[i].state == THREAD_AT_BEGIN) {
                m->thread[i].state = THREAD_READY;
            }
        }
        /* Who goes first is free, too. */
        give_way();
    } else if (m->phase == PHASE_AT_ONCE) {
        explore_fail("explorer", "explore_begin() is called twice");
    } else {
        /* The next body, or whoever it waits for. */
        give_way();
    }
}

static void thread_main(void);

/* The next body that waits at its end goes on, in turn; the first one last. */
static void next_in_turn(void)
{
    Machine *m = machine;

    for (unsigned i = 1; i <= m->bodies; i++) {
        Thread *thread = &m->thread[i % m->bodies];

        if (thread->state == THREAD_AT_END) {
            thread->state = THREAD_READY;
            return;
        }
    }
}

void explore_end(void)
{
    Machine *m = machine;

    self()->state = THREAD_AT_END;
    if (all_bodies(THREAD_AT_END)) {
        m->phase = PHASE_IN_TURN;
        share_views();
        next_in_turn();
        if (is_ready(self())) {
            return;
        }
    }
    give_way();
}

/* --- threads --------------------------------------------------------------*/

/* Threads that nobody joins come to their rest. */
static void wait_for_detached(void)
{
    unsigned others[THREADS];

    self()->spins = true;
    while (list_others(others, false) > 0) {
        give_way();
    }
    self()->spins = false;
}

static void end_run(void)
{
    Machine *m = machine;

    wait_for_detached();
    if (m->test->finish) {
        m->test->finish();
    }
    if (!m->test->leaks && arena_left() > 0) {
        explore_fail("leak", "%zu blocks of memory are left", arena_left());
    }
    machine_leave();
}

void twin_thread_exit(OsThread *thread);

static void thread_main(void)
{
    Thread *thread = self();

    thread->run(thread->arg);
    thread = self();
    if (machine->current == 0) {
        end_run(); /* the others have had their turn */
    }
    twin_thread_exit(&thread->os);
    thread->state = THREAD_ENDED;
    machine_unblock(thread, THREADS);
    if (machine->current < machine->bodies) {
        if (machine->phase == PHASE_AT_ONCE) {
            explore_fail("explorer", "a body ends without explore_end()");
        }
        next_in_turn();
    }
    give_way();
    __builtin_unreachable();
}

static void start_as(unsigned t, void (*run)(void *arg), void *arg)
{
    Machine *m = machine;
    Thread *thread = &m->thread[t];
    int16_t clock;

    thread->state = THREAD_READY;
    thread->run = run;
    thread->arg = arg;
    thread->sp = switch_init(arena_stack(t), arena_stack_size(), thread_main);
    clock = thread->now.seen[t];
    thread->now = self()->now;
    thread->now.seen[t] = clock;
    self()->now.seen[m->current]++;
}

unsigned machine_start(void (*run)(void *arg), void *arg)
{
    unsigned t = machine->threads++;

    if (t == THREADS) {
        explore_fail("explorer", "too many threads");
    }
    start_as(t, run, arg);
    return t;
}

static void run_body(void *arg)
{
    ((void (*)(void))(uintptr_t)arg)();
}

/* The first thread: makes everything, and is the first body, too. */
static void run_first(void *arg)
{
    Machine *m = machine;
    const ExploreCase *test = m->test;

    (void)arg;
    if (test->setup) {
        test->setup();
    }
    for (unsigned i = 1; i < m->bodies; i++) {
        start_as(i, run_body, (void *)(uintptr_t)test->threads[i]);
    }
    test->threads[0]();
}

static void begin_strategy(void)
{
    Machine *m = machine;

    if (m->strategy != STRATEGY_PCT) {
        return;
    }
    for (unsigned i = 0; i < THREADS; i++) {
        m->priority[i] = 100 + (uint32_t)(draw() % 1000);
    }
    for (unsigned i = 0; i < 4; i++) {
        m->change_at[i] = 1 + (unsigned)(draw() % (m->longest + 1));
    }
}

void machine_run(void)
{
    Machine *m = machine;

    arena_reset();
    m->run++;
    m->depth = 0;
    m->steps = 0;
    m->relearn = false;
    m->preemptions = m->strategy == STRATEGY_ALL ? m->bound : 1 << 20;
    m->stale = m->stale_bound;
    m->now_ns = 1000000000;
    m->waits = 0;
    m->failure[0] = '\0';
    m->failed_pc = 0;
    m->phase = PHASE_IN_TURN;
    m->current = 0;
    m->bodies = 0;
    while (m->bodies < EXPLORE_THREADS && m->test->threads[m->bodies]) {
        m->bodies++;
    }
    view_reset();
    begin_strategy();
    m->threads = m->bodies; /* theirs are the first */
    start_as(0, run_first, NULL);
    switch_stack(&m->main_sp, m->thread[0].sp);
    m->phase = PHASE_OUTSIDE;
    if (m->steps > m->longest) {
        m->longest = m->steps;
    }
}

/* --- what the code under test says ----------------------------------------*/

void explore_mark(const char *text)
{
    Machine *m = machine;

    if (!m || m->phase == PHASE_OUTSIDE) {
        return;
    }
    for (unsigned i = 0; i < MARKS_MAX; i++) {
        if (m->marks[i] == text) {
            return;
        }
        if (!m->marks[i]) {
            m->marks[i] = text;
            return;
        }
    }
    explore_fail("explorer", "too many marks");
}

void explore_outcome(unsigned number)
{
    machine->outcomes |= OUTCOME(number);
}
