/* SPDX-License-Identifier: MIT */
/*
 * Inside the explorer: the simulated machine and what its files share.
 *
 *   machine.c   threads, scheduling points, choices, phases of a run
 *   view.c      the memory of atomics: locations, messages, views
 *   shadow.c    plain accesses: races, lifetime
 *   arena.c     memory of the run, and how everything is as before again
 *   search.c    which schedule comes next; minimising; replay strings
 *   report.c    what is printed
 *   main.c      the command line, cases, mutants
 *   twin/       os/ as the library sees it
 *
 * The data segment of the process, in which the library and the tests have
 * their static variables, is put back to a copy before each run.  What is the
 * explorer's own is marked OWN, and kept.
 */
#ifndef COAIO_TESTS_EXPLORE_MACHINE_H
#define COAIO_TESTS_EXPLORE_MACHINE_H

#include "base/atomic.h"
#include "explore.h"
#include "os/thread.h"

#include <stddef.h>

#define OWN __attribute__((section("explorer_own")))

#define THREADS   8   /* simulated, at the most */
#define LOCATIONS 240 /* that take part in a run, at the most */
#define VIEW_SIZE (THREADS + LOCATIONS)

/*
 * How far somebody has seen: of each thread, its clock (for races), and of
 * each location, the number of the newest message that he knows of.
 */
typedef struct View {
    int16_t seen[VIEW_SIZE]; /* the threads first */
} View;

/* What was stored to a location, and what the one who stored it let see. */
typedef struct Message {
    uint64_t value;
    struct Message *before; /* the one that this has replaced */
    int16_t *view;          /* view_length numbers; those that follow are 0 */
    int16_t view_length;
    int16_t number;
} Message;

/* An address that atomic operations, or a lock, have used. */
typedef struct Location {
    uintptr_t address; /* 0: free */
    bool hot;          /* a scheduling point; for good */
    uint32_t run;      /* the rest is of this run */
    int16_t index;     /* in views; below 0: has none yet */
    int16_t oldest;    /* no message before this one can be read any more */
    uint8_t users;     /* a bit a thread */
    uint8_t writers;
    Message *newest;
    View *lock_view; /* of a lock: what its last holder knew; or NULL */
} Location;

typedef enum ThreadState {
    THREAD_UNUSED,
    THREAD_READY,
    THREAD_BLOCKED,
    THREAD_AT_BEGIN, /* waits for the others in explore_begin() */
    THREAD_AT_END,
    THREAD_ENDED,
} ThreadState;

typedef struct Thread {
    OsThread os;
    void *sp; /* while it does not run */
    ThreadState state;
    bool spins;          /* goes on only when another has made a step */
    bool detached;       /* may be left waiting at the end */
    bool timed_out;      /* how its wait ended */
    const void *object;  /* BLOCKED: what it waits for */
    const char *why;     /* BLOCKED: for reports */
    uint8_t holder;      /* BLOCKED: who alone can end it; THREADS: unknown */
    const ExSite *site;  /* its last operation ... */
    uintptr_t pc;        /* ... and who called it, if the site is in twin/ */
    int64_t deadline_ns; /* BLOCKED: or INT64_MAX */
    uint64_t since;      /* BLOCKED: order of waiting */
    void (*run)(void *arg);
    void *arg;
    View now;      /* what it has seen */
    View acquired; /* and will have seen after an acquire fence */
    View released; /* what its relaxed stores hand on */
} Thread;

/* A choice that a run has made. */
typedef enum ChoiceKind {
    CHOOSE_THREAD,
    CHOOSE_MESSAGE,
    CHOOSE_FREELY,
} ChoiceKind;

typedef struct Choice {
    uint8_t ways;
    uint8_t taken;
    uint8_t kind;
} Choice;

#define CHOICES_MAX 20000
#define STEPS_MAX   6000 /* of a run: more is a livelock */

typedef enum Phase {
    PHASE_OUTSIDE, /* no run */
    PHASE_IN_TURN, /* before explore_begin(), after explore_end() */
    PHASE_AT_ONCE,
} Phase;

typedef enum Strategy {
    STRATEGY_ALL,
    STRATEGY_RANDOM,
    STRATEGY_PCT,
} Strategy;

#define FAILURE_MAX 4096
#define MARKS_MAX   128

typedef struct Machine {
    const ExploreCase *test;

    /* How to search. */
    Strategy strategy;
    int bound;
    int stale_bound;
    bool consistent; /* sequentially: no stale reads */
    uint64_t random;
    bool lenient; /* a prefix that does not fit is bent, not an error */
    bool fixed;   /* no location becomes a scheduling point any more */
    double seconds_max;

    /* The choices: of this run, and those that it is to repeat. */
    Choice choices[CHOICES_MAX];
    unsigned depth;
    unsigned prefix;

    /* The run. */
    uint32_t run;
    Phase phase;
    bool relearn; /* a location became hot: begin anew */
    bool tracing;
    unsigned steps;
    int preemptions;
    int stale;
    int64_t now_ns;
    uint64_t waits;   /* counts waits, for their order */
    unsigned current; /* thread */
    unsigned threads;
    unsigned bodies; /* of the test; the first threads */
    Thread thread[THREADS];
    void *main_sp;
    View fences; /* the global view of seq_cst fences */
    uint16_t locations;
    int16_t view_length; /* of views, as of now */
    char failure[FAILURE_MAX];
    uintptr_t failed_pc; /* or 0 */

    /* PCT. */
    uint32_t priority[THREADS];
    unsigned change_at[4];

    /* Over all runs of a case. */
    uint64_t schedules;
    uint64_t outcomes;
    unsigned longest;
    const char *marks[MARKS_MAX];
} Machine;

extern Machine *machine;
extern Mutant explore_mutant;

static inline Thread *self(void)
{
    return &machine->thread[machine->current];
}

static inline void at(const ExSite *site)
{
    self()->site = site;
    self()->pc = 0;
}

/* In a function of a twin: its caller is the place. */
#define AT_CALL(operation)              \
    (self()->site = EX_SITE(operation), \
     self()->pc = (uintptr_t)__builtin_return_address(0))

/* --- machine.c ------------------------------------------------------------*/

/* One run of machine->test, with the choices of the prefix first. */
void machine_run(void);
/* One of ways, by the strategy. */
unsigned machine_choose(unsigned ways, ChoiceKind kind);
/* A scheduling point: somebody else may go on first. */
void machine_step(void);
/* Wait for object; returns false if deadline_ns came first. */
bool machine_block(const void *object, const char *why, int64_t deadline_ns);
/* The same, where only thread `holder` can end the wait. */
void machine_block_for(unsigned holder, const void *object, const char *why);
/* Let up to n who wait for object go on, in the order of their coming. */
void machine_unblock(const void *object, unsigned n);
/* Start a thread; returns its number. */
unsigned machine_start(void (*run)(void *arg), void *arg);
/* Leave the run: it has failed, or is to begin anew. */
void machine_leave(void) __attribute__((noreturn));

/* --- view.c ---------------------------------------------------------------*/

void view_init(void);
/* A run begins: nobody has seen anything. */
void view_reset(void);
void view_join(View *into, const View *from);
/* The location of a lock or another object; NULL if it is no scheduling
 * point (yet). */
Location *location_use(const void *address, bool write);
/* Take over what the last holder of a lock knew; hand on what I know. */
void location_acquire(Location *location);
void location_release(Location *location);
/* The memory is new, or was written to plainly: what it was before cannot be
 * read any more. */
void location_forget(const void *address, size_t size);
/* Numbers of the hot locations, for replays: add one; or name them all. */
void location_make_hot(uintptr_t address);
size_t location_list_hot(uintptr_t *addresses, size_t max);
void location_cool_all(void);

/* --- shadow.c -------------------------------------------------------------*/

void shadow_init(void);
/* A plain access of the current thread; pc is where. */
void shadow_access(uintptr_t address, size_t size, bool write, uintptr_t pc);
/* An atomic one, or of a lock: the memory must be there. */
void shadow_access_atomic(uintptr_t address, size_t size);
void shadow_free(uintptr_t address, size_t size, uintptr_t pc);
void shadow_renew(uintptr_t address, size_t size);

/* --- arena.c --------------------------------------------------------------*/

void arena_init(void);
/* Everything is as it was when arena_keep() was called. */
void arena_reset(void);
void arena_keep(void);
/* A page was written to. */
void arena_note_write(uintptr_t address);
void *arena_stack(unsigned thread);
size_t arena_stack_size(void);
/* Blocks that were not freed since arena_keep(). */
size_t arena_left(void);
/* Where simulated memory lies, and which number a word of it has. */
extern uintptr_t arena_begin, arena_end;
extern uintptr_t data_begin, data_end;

/* --- search.c -------------------------------------------------------------*/

/* Run all schedules of test up to bound.  Returns whether none failed. */
bool search(const ExploreCase *test, int bound);
/* Run one schedule, printed. */
void search_replay(const ExploreCase *test, const char *schedule);
bool search_random(const ExploreCase *test, Strategy strategy, uint64_t runs,
                   uint64_t seed);
/* The last schedule, to be replayed. */
const char *search_schedule(void);

/* --- report.c -------------------------------------------------------------*/

/* What the current thread does, at its site. */
void trace(const char *operation, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Run the schedule of the choices once more, and tell of each step. */
const char *report_failure(const char *program);
/* The function, file and line of an address of code. */
void report_place(uintptr_t pc, char *text, size_t size);
/* The place of a thread's last operation. */
void report_thread(const Thread *thread, char *text, size_t size);

/* --- twin/event.c ---------------------------------------------------------*/

/* What an open file is ready for, and how often it has become so; 0 if no
 * descriptor names it any more. */
uint32_t twin_file_ready(uint32_t file, uint32_t *rises);
/* Wait until some file becomes ready; returns false if deadline_ns came. */
bool twin_wait_ready(int64_t deadline_ns);

/* --- main.c ---------------------------------------------------------------*/

const char *mutant_name(Mutant mutant);

#endif
