/* SPDX-License-Identifier: MIT */
/*
 * Which schedule comes next, and what is done with one that has failed.
 *
 * The search is depth first over the stack of choices, with 0 preemptions, then
 * 1, and so on: what is found first needs the fewest.  A location that turns
 * out to be shared makes the search begin anew (explore.h).
 *
 * A failed schedule is made smaller: each choice that is not the first way is
 * tried with that, and stays so if the run still fails in the same manner.
 *
 * A schedule is written down as
 *
 *     BOUND:LOCATIONS:CHOICES
 *
 * LOCATIONS are those that are scheduling points, as offsets into the memory
 * of runs (a) or the data segment (d); CHOICES are the ways taken, with zN for
 * N times the first.  It holds for the program that wrote it.
 */
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HOT_MAX      LOCATIONS
#define SMALLER_RUNS 2000

static void begin_case(const ExploreCase *test)
{
    Machine *m = machine;

    m->test = test;
    m->stale_bound = test->stale == 0 ? 2 : test->stale;
    if (m->stale_bound < 0) {
        m->stale_bound = 1 << 30;
    }
    m->schedules = 0;
    m->outcomes = 0;
    m->longest = 0;
    m->lenient = false;
    m->fixed = false;
    m->tracing = false;
    memset(m->marks, 0, sizeof(m->marks));
    location_cool_all();
}

/* Take the next way at the last choice that has one. */
static bool next_schedule(void)
{
    Machine *m = machine;

    while (m->depth > 0) {
        Choice *choice = &m->choices[m->depth - 1];

        if (choice->taken + 1 < choice->ways) {
            choice->taken++;
            m->prefix = m->depth;
            return true;
        }
        m->depth--;
    }
    return false;
}

static double now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* All schedules with so many preemptions.  Returns whether none failed. */
static bool search_bound(int bound)
{
    Machine *m = machine;
    double deadline = now_s() + m->seconds_max;

    m->bound = bound;
    m->schedules = 0;
    m->prefix = 0;
    for (;;) {
        machine_run();
        if (m->relearn) {
            m->schedules = 0;
            m->prefix = 0;
            continue;
        }
        m->schedules++;
        if (m->failure[0]) {
            return false;
        }
        if (!next_schedule()) {
            return true;
        }
        if (m->schedules % 4096 == 0 && now_s() > deadline) {
            snprintf(m->failure, FAILURE_MAX,
                     "explorer: no end after %.0f s, at %d preemptions",
                     m->seconds_max, bound);
            return false;
        }
    }
}

/* --- making a failed schedule smaller -------------------------------------*/

static bool fails_alike(const char *failure)
{
    size_t kind = strcspn(failure, ":");

    return !machine->relearn && strncmp(machine->failure, failure, kind) == 0;
}

static void make_smaller(void)
{
    Machine *m = machine;
    OWN static Choice best[CHOICES_MAX];
    OWN static char failure[FAILURE_MAX];
    unsigned length = m->depth;
    unsigned runs = 0;

    memcpy(best, m->choices, length * sizeof(*best));
    memcpy(failure, m->failure, sizeof(failure));
    m->lenient = true;
    m->fixed = true;
    for (unsigned i = length; i-- > 0 && runs < SMALLER_RUNS;) {
        if (i >= length || best[i].taken == 0) {
            continue;
        }
        memcpy(m->choices, best, length * sizeof(*best));
        m->choices[i].taken = 0;
        m->prefix = length;
        machine_run();
        runs++;
        if (fails_alike(failure)) {
            length = m->depth;
            memcpy(best, m->choices, length * sizeof(*best));
            memcpy(failure, m->failure, sizeof(failure));
        }
    }
    memcpy(m->choices, best, length * sizeof(*best));
    memcpy(m->failure, failure, sizeof(failure));
    m->prefix = length;
    m->depth = length;
}

/* --- writing it down, and reading it --------------------------------------*/

static int by_address(const void *a, const void *b)
{
    uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;

    return x < y ? -1 : x > y;
}

static void print_hot(FILE *out)
{
    uintptr_t hot[HOT_MAX];
    size_t n = location_list_hot(hot, HOT_MAX);

    qsort(hot, n, sizeof(*hot), by_address);
    for (size_t i = 0; i < n; i++) {
        bool data = hot[i] - data_begin < data_end - data_begin;

        fprintf(out, "%s%c%lx", i ? "." : "", data ? 'd' : 'a',
                (unsigned long)(hot[i] - (data ? data_begin : arena_begin)));
    }
}

const char *search_schedule(void)
{
    OWN static char *text;
    OWN static size_t size;
    Machine *m = machine;
    unsigned zeros = 0;
    FILE *out;

    free(text);
    out = open_memstream(&text, &size);
    fprintf(out, "%d:", m->bound);
    print_hot(out);
    fputc(':', out);
    for (unsigned i = 0; i < m->depth; i++) {
        if (m->choices[i].taken == 0) {
            zeros++;
            continue;
        }
        if (zeros > 0) {
            fprintf(out, "z%u.", zeros);
        }
        zeros = 0;
        fprintf(out, "%u.", m->choices[i].taken);
    }
    fclose(out);
    return text;
}

static void read_hot(char **text)
{
    while (**text && **text != ':') {
        uintptr_t base = **text == 'd' ? data_begin : arena_begin;

        location_make_hot(base + strtoul(*text + 1, text, 16));
        *text += **text == '.';
    }
    *text += **text == ':';
}

static void read_choices(char *text)
{
    Machine *m = machine;

    m->prefix = 0;
    while (*text) {
        bool zeros = *text == 'z';
        unsigned long n = strtoul(text + zeros, &text, 10);

        for (unsigned long i = 0; i < (zeros ? n : 1); i++) {
            m->choices[m->prefix++] = (Choice){.taken = zeros ? 0 : (uint8_t)n};
            if (m->prefix == CHOICES_MAX) {
                return;
            }
        }
        if (*text != '.') {
            return;
        }
        text++;
    }
}

void search_replay(const ExploreCase *test, const char *schedule)
{
    char *copy = strdup(schedule);
    char *text = copy;

    begin_case(test);
    machine->bound = (int)strtol(text, &text, 10);
    text += *text == ':';
    read_hot(&text);
    read_choices(text);
    machine->lenient = true;
    machine->fixed = true;
    machine_run();
    free(copy);
}

/* --- the search -----------------------------------------------------------*/

bool search(const ExploreCase *test, int bound)
{
    Machine *m = machine;

    begin_case(test);
    if (test->bound > 0 && bound > test->bound) {
        bound = test->bound;
    }
    for (int b = 0; b <= bound; b++) {
        if (!search_bound(b)) {
            break;
        }
    }
    if (!m->failure[0] || strncmp(m->failure, "explorer", 8) == 0) {
        return !m->failure[0];
    }
    make_smaller();
    return false;
}

bool search_random(const ExploreCase *test, Strategy strategy, uint64_t runs,
                   uint64_t seed)
{
    Machine *m = machine;

    begin_case(test);
    m->strategy = strategy;
    m->random = seed * 2 + 1;
    while (m->schedules < runs) {
        m->prefix = 0;
        machine_run();
        if (m->relearn) {
            continue;
        }
        m->schedules++;
        if (m->failure[0]) {
            break;
        }
    }
    m->strategy = STRATEGY_ALL;
    m->bound = 1 << 20;
    if (m->failure[0]) {
        make_smaller();
        return false;
    }
    return true;
}
