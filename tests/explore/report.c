/* SPDX-License-Identifier: MIT */
/*
 * What is printed of a failed schedule: a line a step, with the place, the
 * operation and the value, and where a value was read that is not the newest.
 * All lines are comments of the TAP report.
 */
#include "machine.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PLACES 64

extern char __executable_start;

OWN static FILE *report;
OWN static char *text;
OWN static size_t text_size;
OWN static unsigned last_thread;

/* The part of a path that says something. */
static const char *shorten(const char *path)
{
    const char *src = strstr(path, "src/");
    const char *tests = strstr(path, "tests/");

    return src ? src : tests ? tests : path;
}

static void ask_addr2line(uintptr_t pc, char *place, size_t size)
{
    char command[256], function[128], line[256];
    FILE *answer;

    snprintf(place, size, "?");
    snprintf(command, sizeof(command), "addr2line -f -e /proc/%d/exe %#lx",
             (int)getpid(),
             (unsigned long)(pc - 1 - (uintptr_t)&__executable_start));
    answer = popen(command, "r");
    if (!answer) {
        return;
    }
    if (fgets(function, sizeof(function), answer) &&
        fgets(line, sizeof(line), answer)) {
        function[strcspn(function, "\n")] = '\0';
        line[strcspn(line, " \n")] = '\0';
        snprintf(place, size, "%s() at %s", function, shorten(line));
    }
    pclose(answer);
}

void report_place(uintptr_t pc, char *place, size_t size)
{
    OWN static struct {
        uintptr_t pc;
        char place[256];
    } known[PLACES];
    OWN static unsigned count;

    for (unsigned i = 0; i < count; i++) {
        if (known[i].pc == pc) {
            snprintf(place, size, "%s", known[i].place);
            return;
        }
    }
    ask_addr2line(pc, place, size);
    if (count < PLACES) {
        known[count].pc = pc;
        snprintf(known[count].place, sizeof(known[count].place), "%s", place);
        count++;
    }
}

void report_thread(const Thread *thread, char *place, size_t size)
{
    const ExSite *site = thread->site;

    if (!site) {
        snprintf(place, size, "?");
    } else if (thread->pc) {
        report_place(thread->pc, place, size);
    } else {
        snprintf(place, size, "%s() at %s:%d", site->function,
                 shorten(site->file), site->line);
    }
}

void trace(const char *operation, const char *format, ...)
{
    Machine *m = machine;
    char place[256];
    va_list args;

    report_thread(self(), place, sizeof(place));
    fprintf(report, "#   %4u  %s%u  %-56s %-14s %-24s ", m->steps,
            m->current == last_thread ? " " : ">", m->current, place, operation,
            self()->site ? self()->site->text : "");
    last_thread = m->current;
    va_start(args, format);
    vfprintf(report, format, args);
    va_end(args);
    fputc('\n', report);
}

/* Comment lines for what may have several. */
static void put_lines(const char *lines)
{
    while (*lines) {
        size_t length = strcspn(lines, "\n");

        fprintf(report, "# %.*s\n", (int)length, lines);
        lines += length + (lines[length] == '\n');
    }
}

const char *report_failure(const char *program)
{
    Machine *m = machine;
    char *schedule = strdup(search_schedule());

    free(text);
    report = open_memstream(&text, &text_size);
    fprintf(report, "# step thread\n");
    last_thread = THREADS;
    m->tracing = true;
    machine_run();
    m->tracing = false;
    put_lines(m->failure);
    fprintf(report, "# again: ");
    if (explore_mutant) {
        fprintf(report, "COAIO_MUTANT=%s ", mutant_name(explore_mutant));
    }
    fprintf(report, "%s --replay '%s' %s\n", program, schedule, m->test->name);
    fclose(report);
    free(schedule);
    return text;
}
