/* SPDX-License-Identifier: MIT */
/*
 * The explorer: runs code through every schedule of its threads, up to a
 * bound, under a memory model that is weaker than the machine's.
 *
 * WHAT IS EXPLORED is the library's own source, compiled against a twin of
 * base/atomic.h and of os/ (twin/).  Each simulated thread is a fiber; all of
 * them live in one thread of the process.  Every atomic operation and fence,
 * and every lock, futex, event, and start or end of a thread, is a scheduling
 * point: there the explorer decides who goes on.  A load that may see several
 * values is a choice, too.  All choices of a run are on one stack; the next run
 * takes the last choice that has another way to go, until there is none.
 *
 * THE MEMORY (view.c) is a view machine: each location keeps all messages that
 * were ever stored to it; each thread has a view, which says how far it has
 * seen of each location; release and acquire hand views on.  So a thread may
 * read what is old, unless something has told it better.  It shows store
 * buffering, message passing, IRIW and stale reads; it does not show load
 * buffering, nor a modification order that differs from the order of execution.
 *
 * THE PLAIN ACCESSES of the library and of the tests are seen as well, since
 * both are compiled with the compiler's instrumentation for data races and the
 * explorer takes its calls (shadow.c): two that conflict without order between
 * them are a data race, one to freed memory is a use after free.
 *
 * WHAT IS REPORTED: a lost wake-up or deadlock (nobody can go on), a livelock
 * (too many steps), a failed check, misuse, a data race, a use after free, a
 * double free, a leak, a crash; and a mark that no schedule has reached.
 *
 * BOUNDS: preemptions a schedule (0, 1, ... up to the bound, so that the first
 * failure has the fewest), and stale reads a schedule.  A thread that waits,
 * ends or spins is switched from for free.
 *
 * To keep the number of schedules down without leaving any out, a location is
 * a scheduling point only if two threads use it and one of them writes, which
 * the explorer finds out as it goes; each time it learns of one, it begins
 * anew.
 *
 * A test is a list of threads, each with a body:
 *
 *     static void poller(void)
 *     {
 *         aio_context_attach(ctx);
 *         explore_begin();             one after the other until here
 *         while (!load_relaxed(&woken)) {
 *             aio_poll(ctx, true);
 *         }
 *         explore_end();               and again from here, in order
 *         aio_context_unref(ctx);
 *     }
 *
 *     EXPLORE(one_waker,
 *             .setup = make_context,   in the first thread
 *             .threads = {poller, waker},
 *             .finish = check_all,     in the first thread, at the very end
 *             .marks = {"notify: set the event"})
 *
 *     EXPLORE_MAIN()
 *
 *                           setup   body, before begin   body   after end
 *     explore_begin           no           once            no        no
 *     explore_end             no            no            once       no
 *     explore_choose          no            no            yes        no
 *     CHECK                  yes           yes            yes       yes
 *
 * Memory of the tests is static (and as it was at the start in each run) or
 * from os_alloc().  Nothing in a body may use malloc() or real threads.
 */
#ifndef COAIO_TESTS_EXPLORE_H
#define COAIO_TESTS_EXPLORE_H

#include "base/explore.h"

#include <stdbool.h>
#include <stdint.h>

#define EXPLORE_THREADS 5
#define EXPLORE_LIST    10

/* A bug that the test must find again; see base/explore.h. */
typedef struct ExploreMutant {
    Mutant mutant;
    const char *kind;  /* the first words of the report */
    const char *place; /* a substring of the report: file, or function */
    bool weak;         /* sequential consistency alone does not show it */
} ExploreMutant;

typedef struct ExploreCase ExploreCase;

struct ExploreCase {
    const char *name;
    void (*setup)(void);
    void (*threads[EXPLORE_THREADS])(void);
    void (*finish)(void);
    const char *marks[EXPLORE_LIST];     /* each must be reached */
    ExploreMutant mutants[EXPLORE_LIST]; /* each must be found */
    const char *fails;  /* the explorer's own tests: this must be reported */
    uint64_t allowed;   /* outcomes: each must be seen, ... */
    uint64_t forbidden; /* ... and none of these; no others exist */
    int stale;     /* stale reads a schedule; 0: two, below 0: any number */
    int bound;     /* preemptions, if less than what was asked for; 0: that */
    bool timeouts; /* a wait with a timeout may time out at any time */
    bool reuse;    /* memory that was freed may be handed out again */
    bool leaks;    /* blocks may be left */
    ExploreCase *next;
};

void explore_register(ExploreCase *c);
int explore_main(int argc, char **argv);

/* Everything before is made in turn; from here on the threads run at once. */
void explore_begin(void);
/* This thread is done; waits for all others, which go on in turn then. */
void explore_end(void);

/* One of 0 to n - 1: all are tried. */
unsigned explore_choose(unsigned n);

/* Let time pass. */
void explore_advance_ns(int64_t ns);

/* A descriptor that is ready for these events (POLLIN, ...) from now on. */
int explore_fd_open(void);
void explore_fd_set(int fd, uint32_t events);
/* The open file that it names now, or 0: no two have the same number. */
uint32_t explore_fd_file(int fd);

/* Calls on that file that rings have taken in, and whether one holds it. */
unsigned explore_uring_calls(uint32_t file);
bool explore_uring_holds(uint32_t file);
/* The next n times that a thread enters the kernel with requests there is no
 * memory for them. */
void explore_uring_refuse(unsigned n);
/* A queue has room for n requests. */
void explore_uring_shrink(unsigned n);
/* A ring can be made, and not be used: a sandbox was closed meanwhile. */
void explore_uring_forbid(void);

/* Litmus tests: this run has come out so; a number below 64. */
void explore_outcome(unsigned number);
#define OUTCOME(number) (UINT64_C(1) << (number))

void explore_fail(const char *kind, const char *format, ...)
    __attribute__((noreturn, format(printf, 2, 3)));

#define CHECK(condition)                                                     \
    do {                                                                     \
        if (!(condition)) {                                                  \
            explore_fail("failed check", "%s, at %s:%d in %s()", #condition, \
                         __FILE__, __LINE__, __func__);                      \
        }                                                                    \
    } while (0)

#define CHECK_EQ(a, b)                                                         \
    do {                                                                       \
        int64_t a_ = (int64_t)(a), b_ = (int64_t)(b);                          \
                                                                               \
        if (a_ != b_) {                                                        \
            explore_fail("failed check",                                       \
                         "%s (%lld) is not %s (%lld), at %s:%d in %s()", #a,   \
                         (long long)a_, #b, (long long)b_, __FILE__, __LINE__, \
                         __func__);                                            \
        }                                                                      \
    } while (0)

#define EXPLORE(id, ...)                                                 \
    static ExploreCase explore_case_##id = {.name = #id, __VA_ARGS__};   \
    __attribute__((constructor)) static void explore_register_##id(void) \
    {                                                                    \
        explore_register(&explore_case_##id);                            \
    }

#define EXPLORE_MAIN()                   \
    int main(int argc, char **argv)      \
    {                                    \
        return explore_main(argc, argv); \
    }

#endif
