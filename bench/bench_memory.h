/* SPDX-License-Identifier: MIT */
/*
 * bench_memory.h: how much memory the process has, as the kernel counts it.
 *
 * Page tables are no resident memory, and yet memory: a runtime that leaves
 * much room between its stacks pays for it there.
 *
 * The workload `parked` of all rivals is in bytes, compared with the process
 * before it had made any.  Those of the unmeasured round stay, since it takes
 * long to make them, and are what the measured one finds.
 */
#ifndef BENCH_MEMORY_H
#define BENCH_MEMORY_H

#include "bench.h"

typedef struct BenchMemory {
    double resident, tables; /* bytes */
    unsigned mappings;
} BenchMemory;

static inline BenchMemory bench_memory(void)
{
    BenchMemory m = {0, 0, 0};
    char line[512];
    FILE *file = fopen("/proc/self/status", "r");

    bench_check(file != NULL, "the kernel tells what is resident");
    while (fgets(line, sizeof(line), file)) {
        if (!strncmp(line, "VmRSS:", 6)) {
            m.resident = 1024 * strtod(line + 6, NULL);
        } else if (!strncmp(line, "VmPTE:", 6)) {
            m.tables = 1024 * strtod(line + 6, NULL);
        }
    }
    fclose(file);
    file = fopen("/proc/self/maps", "r");
    bench_check(file != NULL, "the kernel tells what is mapped");
    while (fgets(line, sizeof(line), file)) {
        m.mappings += strchr(line, '\n') != NULL;
    }
    fclose(file);
    return m;
}

/* The bytes that have come to be since, page tables included. */
static inline double bench_memory_since(const BenchMemory *before)
{
    BenchMemory m = bench_memory();

    return m.resident + m.tables - before->resident - before->tables;
}

#endif
