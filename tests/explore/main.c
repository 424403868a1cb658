/* SPDX-License-Identifier: MIT */
/*
 * The command line of an exploration:
 *
 *     explore_NAME [--bound N] [CASE...]        all schedules; TAP
 *     explore_NAME --replay SCHEDULE CASE       one, printed step by step
 *     explore_NAME --random RUNS | --pct RUNS [--seed N] [CASE...]
 *     explore_NAME --list
 *
 * EXPLORE_BOUND in the environment is another way to say --bound (default 2).
 * COAIO_MUTANT=name puts a bug back (base/explore.h); without it, each case is
 * also run with each of its mutants, which it must find.
 */
#include "machine.h"

#include "coroutine/coroutine_int.h"

#include <coaio/context.h>

#include <fnmatch.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

OWN static ExploreCase *cases, **last_case = &cases;
OWN static const char *program;
OWN static unsigned tap_number, tap_failed;
OWN static int bound = 2;

void explore_register(ExploreCase *c)
{
    /* Constructors run before the explorer's own memory is of any use. */
    *last_case = c;
    last_case = &c->next;
}

static const char *const mutant_names[] = {"none",
#define NAME_OF(name, text) text,
                                           MUTANTS(NAME_OF)
#undef NAME_OF
};

const char *mutant_name(Mutant mutant)
{
    return mutant_names[mutant];
}

static Mutant mutant_by_name(const char *name)
{
    for (int i = 0; i < MUTANT_COUNT; i++) {
        if (strcmp(name, mutant_names[i]) == 0) {
            return (Mutant)i;
        }
    }
    fprintf(stderr, "%s: there is no mutant %s; there are:\n", program, name);
    for (int i = 1; i < MUTANT_COUNT; i++) {
        fprintf(stderr, "    %s\n", mutant_names[i]);
    }
    exit(2);
}

/* --- the start ------------------------------------------------------------*/

static void do_nothing(void *opaque)
{
    (void)opaque;
}

/* What the library makes once for a process is made before any run. */
static void warm_up(void)
{
    AioContext *ctx;

    CHECK_EQ(aio_context_new(&ctx, NULL), 0);
    aio_context_unref(ctx);
    coroutine_enter(coroutine_create(do_nothing, NULL));
}

static void on_crash(int signal, siginfo_t *info, void *context)
{
    char place[256];

    (void)context;
    report_thread(self(), place, sizeof(place));
    explore_fail("crash", "signal %d at address %p by thread %u, after %s",
                 signal, info->si_addr, machine->current, place);
}

static void catch_crashes(void)
{
    OWN static char stack[64 << 10];
    const stack_t alternate = {.ss_sp = stack, .ss_size = sizeof(stack)};
    struct sigaction action = {
        .sa_sigaction = on_crash,
        .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER,
    };

    sigaltstack(&alternate, NULL);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
}

static void start_machine(void)
{
    OWN static ExploreCase start = {
        .name = "start",
        .threads = {warm_up},
        .leaks = true,
    };

    machine = mmap(NULL, sizeof(*machine), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    arena_init();
    shadow_init();
    view_init();
    catch_crashes();
    machine->test = &start;
    machine->seconds_max = 3600;
    machine_run();
    if (machine->failure[0]) {
        fprintf(stderr, "%s: %s\n", program, machine->failure);
        exit(1);
    }
    arena_keep();
}

/* --- cases ----------------------------------------------------------------*/

static double now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void tap(bool ok, const char *format, const char *name, const char *what)
{
    printf("%sok %u - ", ok ? "" : "not ", ++tap_number);
    printf(format, name, what);
    printf("\n");
    fflush(stdout);
    tap_failed += !ok;
}

static bool reached(const char *mark)
{
    for (unsigned i = 0; i < MARKS_MAX && machine->marks[i]; i++) {
        if (strcmp(machine->marks[i], mark) == 0) {
            return true;
        }
    }
    return false;
}

static void note_failure(const char *kind, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* What is not the failure of one schedule. */
static void note_failure(const char *kind, const char *format, ...)
{
    int length = snprintf(machine->failure, FAILURE_MAX, "%s: ", kind);
    va_list args;

    va_start(args, format);
    vsnprintf(machine->failure + length, FAILURE_MAX - (size_t)length, format,
              args);
    va_end(args);
}

static bool check_marks(const ExploreCase *test)
{
    for (unsigned i = 0; i < EXPLORE_LIST && test->marks[i]; i++) {
        if (!reached(test->marks[i])) {
            note_failure("unreached mark", "no schedule came to \"%s\"",
                         test->marks[i]);
            return false;
        }
    }
    return true;
}

static bool check_outcomes(const ExploreCase *test)
{
    uint64_t differ = machine->outcomes ^ test->allowed;

    if (test->allowed == 0) {
        return true;
    }
    for (unsigned i = 0; i < 64; i++) {
        if (differ & OUTCOME(i)) {
            note_failure("outcome", "%u is %s, and %s", i,
                         test->allowed & OUTCOME(i)     ? "allowed"
                         : test->forbidden & OUTCOME(i) ? "forbidden"
                                                        : "not expected",
                         machine->outcomes & OUTCOME(i) ? "was seen"
                                                        : "was not seen");
            return false;
        }
    }
    return true;
}

/* A failure of one schedule, which can be shown step by step. */
static bool has_schedule(void)
{
    return strncmp(machine->failure, "explorer", 8) != 0 &&
           strncmp(machine->failure, "unreached", 9) != 0 &&
           strncmp(machine->failure, "outcome", 7) != 0;
}

static void print_failure(void)
{
    if (has_schedule()) {
        fputs(report_failure(program), stdout);
    } else {
        printf("# %s\n", machine->failure);
    }
}

static bool fails_as(const char *kind)
{
    return strncmp(machine->failure, kind, strlen(kind)) == 0;
}

/*
 * The explorer's own tests: the failure is found, its schedule fails alike when
 * it is replayed, and chance finds it, too.
 */
static bool fails_as_planted(const ExploreCase *test)
{
    const uint64_t runs = 100000;
    char *schedule;
    bool alike;

    if (!fails_as(test->fails)) {
        return false;
    }
    if (!has_schedule()) {
        return true;
    }
    schedule = strdup(search_schedule());
    search_replay(test, schedule);
    alike = fails_as(test->fails);
    free(schedule);
    if (!alike) {
        printf("# the replay does not fail\n");
        return false;
    }
    search_random(test, STRATEGY_RANDOM, runs, 1);
    if (!fails_as(test->fails)) {
        printf("# %llu random schedules do not find it\n",
               (unsigned long long)runs);
        return false;
    }
    search_random(test, STRATEGY_PCT, runs, 1);
    return fails_as(test->fails);
}

static void run_case(const ExploreCase *test)
{
    double begin = now_s();
    bool ok = search(test, bound) && check_marks(test) && check_outcomes(test);
    double took = now_s() - begin;

    printf("# %s: %llu schedules at %d preemptions, %u steps at most, "
           "%.2f s, %.0f a second\n",
           test->name, (unsigned long long)machine->schedules, machine->bound,
           machine->longest, took, (double)machine->schedules / took);
    if (test->fails) {
        ok = fails_as_planted(test);
        if (!ok) {
            printf("# expected: %s\n# found: %s\n", test->fails,
                   machine->failure[0] ? machine->failure : "nothing");
        }
    } else if (!ok) {
        print_failure();
    }
    tap(ok, "%s%s", test->name, "");
}

/* --- mutants --------------------------------------------------------------*/

/* Whether the report says what it should of the bug, and where it is. */
static bool names_it(const ExploreMutant *mutant, const char *report)
{
    bool kind = fails_as(mutant->kind);
    bool place = strstr(report, mutant->place) != NULL;

    if (!kind) {
        printf("# expected: %s\n", mutant->kind);
    }
    if (!place) {
        printf("# the report does not name %s\n", mutant->place);
    }
    if (!kind || !place) {
        fputs(report, stdout);
    }
    return kind && place;
}

static bool find_mutant(const ExploreCase *test, const ExploreMutant *mutant)
{
    double begin = now_s();
    uint64_t schedules;
    int preemptions;

    if (search(test, bound)) {
        printf("# %s was not found in %llu schedules\n",
               mutant_name(mutant->mutant),
               (unsigned long long)machine->schedules);
        return false;
    }
    schedules = machine->schedules;
    preemptions = machine->bound;
    if (!names_it(mutant, report_failure(program))) {
        return false;
    }
    printf("# mutant | %s | %s | %llu | %d | %.2f s",
           mutant_name(mutant->mutant), test->name,
           (unsigned long long)schedules, preemptions, now_s() - begin);
    return true;
}

/* Would sequential consistency alone show it? */
static bool check_weak(const ExploreCase *test, const ExploreMutant *mutant)
{
    bool missed;

    machine->consistent = true;
    missed = search(test, bound);
    machine->consistent = false;
    printf(" | %s\n", missed ? "missed" : "found");
    if (missed != mutant->weak) {
        printf("# sequential consistency %s it, which was not expected\n",
               missed ? "misses" : "finds");
    }
    return missed == mutant->weak;
}

static void run_mutant(const ExploreCase *test, const ExploreMutant *mutant)
{
    bool ok;

    explore_mutant = mutant->mutant;
    ok = find_mutant(test, mutant) && check_weak(test, mutant);
    explore_mutant = MUTANT_NONE;
    tap(ok, "%s finds %s", test->name, mutant_name(mutant->mutant));
}

/* --- the command line -----------------------------------------------------*/

typedef struct Arguments {
    const char *replay;
    Strategy strategy;
    uint64_t runs;
    uint64_t seed;
    char **patterns; /* up to a NULL */
    bool list;
} Arguments;

static bool chosen(const Arguments *arguments, const char *name)
{
    char **pattern = arguments->patterns;

    if (!*pattern) {
        return true;
    }
    for (; *pattern; pattern++) {
        if (fnmatch(*pattern, name, 0) == 0) {
            return true;
        }
    }
    return false;
}

static void run_random(const ExploreCase *test, const Arguments *arguments)
{
    bool ok = search_random(test, arguments->strategy, arguments->runs,
                            arguments->seed);

    printf("# %s: %llu random schedules, seed %llu\n", test->name,
           (unsigned long long)machine->schedules,
           (unsigned long long)arguments->seed);
    if (!ok) {
        fputs(report_failure(program), stdout);
    }
    tap(ok, "%s%s", test->name, "");
}

static void run_one(const ExploreCase *test, const Arguments *arguments)
{
    if (arguments->list) {
        printf("%s\n", test->name);
    } else if (arguments->replay) {
        search_replay(test, arguments->replay);
        fputs(report_failure(program), stdout);
        tap_failed += machine->failure[0] != '\0';
    } else if (arguments->strategy != STRATEGY_ALL) {
        run_random(test, arguments);
    } else {
        run_case(test);
        for (unsigned i = 0;
             i < EXPLORE_LIST && !explore_mutant && test->mutants[i].mutant;
             i++) {
            run_mutant(test, &test->mutants[i]);
        }
    }
}

static void usage(void)
{
    fprintf(stderr,
            "usage: %s [--bound N] [CASE...]\n"
            "       %s --replay SCHEDULE CASE\n"
            "       %s --random RUNS | --pct RUNS [--seed N] [CASE...]\n"
            "       %s --list\n",
            program, program, program, program);
    exit(2);
}

static const char *value_of(char ***argv)
{
    if (!(*argv)[1]) {
        usage();
    }
    return *++*argv;
}

static void read_arguments(Arguments *arguments, char **argv)
{
    for (argv++; *argv && (*argv)[0] == '-'; argv++) {
        if (strcmp(*argv, "--bound") == 0) {
            bound = atoi(value_of(&argv));
        } else if (strcmp(*argv, "--replay") == 0) {
            arguments->replay = value_of(&argv);
        } else if (strcmp(*argv, "--random") == 0) {
            arguments->strategy = STRATEGY_RANDOM;
            arguments->runs = strtoull(value_of(&argv), NULL, 10);
        } else if (strcmp(*argv, "--pct") == 0) {
            arguments->strategy = STRATEGY_PCT;
            arguments->runs = strtoull(value_of(&argv), NULL, 10);
        } else if (strcmp(*argv, "--seed") == 0) {
            arguments->seed = strtoull(value_of(&argv), NULL, 10);
        } else if (strcmp(*argv, "--list") == 0) {
            arguments->list = true;
        } else {
            usage();
        }
    }
    arguments->patterns = argv;
}

int explore_main(int argc, char **argv)
{
    Arguments arguments = {.seed = 1};
    const char *environment = getenv("EXPLORE_BOUND");

    (void)argc;
    program = argv[0];
    if (environment && *environment) {
        bound = atoi(environment);
    }
    read_arguments(&arguments, argv);
    start_machine();
    environment = getenv("COAIO_MUTANT");
    if (environment && *environment) {
        explore_mutant = mutant_by_name(environment);
    }
    for (const ExploreCase *test = cases; test; test = test->next) {
        if (chosen(&arguments, test->name)) {
            run_one(test, &arguments);
        }
    }
    if (!arguments.list && !arguments.replay) {
        printf("1..%u\n", tap_number);
    }
    return tap_failed ? 1 : 0;
}
