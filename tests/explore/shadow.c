/* SPDX-License-Identifier: MIT */
/*
 * Plain accesses: for each four bytes of simulated memory and of the data
 * segment, who wrote last and who has read since, by the clocks of the
 * threads.  Two accesses of which one writes must be ordered: the view of the
 * later one must have seen the clock of the earlier one.
 *
 * Library and tests are compiled with -fsanitize=thread; the calls that this
 * puts before each access that is not to a register come here, and not to the
 * sanitizer's own library.
 *
 * Of bytes within a word only the last access of each kind is remembered, so a
 * race may be missed there; none is reported that is not one.
 */
#include "machine.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

typedef struct Cell {
    uint32_t freed_in;     /* a run; in any other the memory is there */
    uint32_t run;          /* what follows is of this one */
    uint8_t freed_by;      /* thread */
    uint8_t writer;        /* thread */
    uint8_t written;       /* which bytes: a mask; 0: none */
    uint8_t atomic;        /* which bytes atomic accesses have used */
    uint8_t read[THREADS]; /* which bytes each thread has read */
    int16_t write_clock;
    int16_t read_clock[THREADS];
    int16_t atomic_clock[THREADS]; /* of the last atomic access; 0: none */
} Cell;

OWN static Cell *arena_cells;
OWN static Cell *data_cells;

static Cell *map_cells(uintptr_t begin, uintptr_t end)
{
    return mmap(NULL, ((end - begin) / 4 + 1) * sizeof(Cell),
                PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

void shadow_init(void)
{
    arena_cells = map_cells(arena_begin, arena_end);
    data_cells = map_cells(data_begin, data_end);
}

/* The cell of a word, or NULL for memory that is not simulated. */
static inline Cell *cell_at(uintptr_t address)
{
    if (address - arena_begin < arena_end - arena_begin) {
        return &arena_cells[(address - arena_begin) / 4];
    }
    if (address - data_begin < data_end - data_begin) {
        return &data_cells[(address - data_begin) / 4];
    }
    return NULL;
}

static void renew(Cell *cell)
{
    cell->run = machine->run;
    cell->written = 0;
    cell->atomic = 0;
    memset(cell->read, 0, sizeof(cell->read));
    memset(cell->read_clock, 0, sizeof(cell->read_clock));
    memset(cell->atomic_clock, 0, sizeof(cell->atomic_clock));
}

static void fail_at(const char *kind, const char *what, uintptr_t address,
                    unsigned other, uintptr_t pc)
{
    char place[512];

    if (pc) {
        report_place(pc, place, sizeof(place));
    } else {
        report_thread(self(), place, sizeof(place));
    }
    machine->failed_pc = pc;
    explore_fail(kind, "%s %#lx by thread %u, in %s; before it, thread %u",
                 what, (unsigned long)address, machine->current, place, other);
}

/* Whether the current thread has seen what thread did at clock. */
static inline bool ordered(unsigned thread, int16_t clock)
{
    return thread == machine->current || self()->now.seen[thread] >= clock;
}

static void check_write(const Cell *cell, uint8_t mask, uintptr_t address,
                        const char *what, uintptr_t pc)
{
    for (unsigned t = 0; t < machine->threads; t++) {
        if ((cell->read[t] & mask) && !ordered(t, cell->read_clock[t])) {
            fail_at("data race", what, address, t, pc);
        }
        if ((cell->atomic & mask) && !ordered(t, cell->atomic_clock[t])) {
            fail_at("data race", what, address, t, pc);
        }
    }
}

static void write_cell(Cell *cell, uint8_t mask, uintptr_t address,
                       uintptr_t pc)
{
    unsigned me = machine->current;
    int16_t clock = self()->now.seen[me];

    if (cell->writer == me && cell->written == mask &&
        cell->write_clock == clock) {
        return; /* who has come in between has been told */
    }
    check_write(cell, mask, address, "write to", pc);
    if (cell->atomic & mask) {
        location_forget((void *)(address & ~(uintptr_t)3), 4);
    }
    cell->writer = (uint8_t)me;
    cell->written = mask;
    cell->write_clock = clock;
}

static void read_cell(Cell *cell, uint8_t mask)
{
    unsigned me = machine->current;
    int16_t clock = self()->now.seen[me];

    if (cell->read_clock[me] != clock) {
        cell->read_clock[me] = clock;
        cell->read[me] = 0;
    }
    cell->read[me] |= mask;
}

static inline void access_cell(Cell *cell, uint8_t mask, bool write,
                               uintptr_t address, uintptr_t pc)
{
    const Machine *m = machine;

    if (cell->freed_in == m->run) {
        fail_at("use after free", write ? "write to" : "read of", address,
                cell->freed_by, pc);
    }
    if (m->phase != PHASE_AT_ONCE) {
        return;
    }
    if (cell->run != m->run) {
        renew(cell);
    }
    if ((cell->written & mask) && !ordered(cell->writer, cell->write_clock)) {
        fail_at("data race", write ? "write to" : "read of", address,
                cell->writer, pc);
    }
    if (write) {
        write_cell(cell, mask, address, pc);
    } else {
        read_cell(cell, mask);
    }
}

void shadow_access(uintptr_t address, size_t size, bool write, uintptr_t pc)
{
    uintptr_t end = address + size;
    Cell *cell;

    if (!machine || machine->phase == PHASE_OUTSIDE) {
        return;
    }
    cell = cell_at(address);
    if (!cell) {
        return;
    }
    if (write) {
        arena_note_write(address);
    }
    for (; address < end; cell++) {
        uintptr_t next = (address & ~(uintptr_t)3) + 4;
        unsigned first = address & 3;
        unsigned last = next <= end ? 4 : (unsigned)(end & 3);

        access_cell(cell, (uint8_t)((1u << last) - (1u << first)), write,
                    address, pc);
        address = next;
    }
}

/* What is written plainly, or ends, conflicts with atomic accesses. */
void shadow_access_atomic(uintptr_t address, size_t size)
{
    Cell *cell = cell_at(address);

    if (!cell) {
        return;
    }
    if (cell->freed_in == machine->run) {
        fail_at("use after free", "atomic access to", address, cell->freed_by,
                0);
    }
    if (machine->phase != PHASE_AT_ONCE) {
        return;
    }
    if (cell->run != machine->run) {
        renew(cell);
    }
    cell->atomic |=
        (uint8_t)(size < 4 ? ((1u << size) - 1) << (address & 3) : 15);
    cell->atomic_clock[machine->current] = self()->now.seen[machine->current];
}

/* Whether all accesses come before now; if not, *other is whose does not. */
static bool all_before(const Cell *cell, unsigned *other)
{
    for (unsigned t = 0; t < machine->threads; t++) {
        *other = t;
        if ((cell->read[t] && !ordered(t, cell->read_clock[t])) ||
            !ordered(t, cell->atomic_clock[t])) {
            return false;
        }
    }
    *other = cell->writer;
    return !cell->written || ordered(cell->writer, cell->write_clock);
}

/* Freeing conflicts with every access that is not ordered before it. */
void shadow_free(uintptr_t address, size_t size, uintptr_t pc)
{
    uintptr_t end = address + size;
    unsigned other;

    for (Cell *cell = cell_at(address); address < end; cell++, address += 4) {
        if (cell->run == machine->run && !all_before(cell, &other)) {
            fail_at("use after free", "free of", address, other, pc);
        }
        cell->freed_in = machine->run;
        cell->freed_by = (uint8_t)machine->current;
    }
}

void shadow_renew(uintptr_t address, size_t size)
{
    uintptr_t end = address + size;

    for (Cell *cell = cell_at(address); address < end; cell++, address += 4) {
        cell->freed_in = 0;
        cell->run = 0;
    }
}

/* --- what the compiler calls ----------------------------------------------*/

#define HOOK(name, size, write)                                \
    void name(void *address);                                  \
    void name(void *address)                                   \
    {                                                          \
        shadow_access((uintptr_t)address, size, write,         \
                      (uintptr_t)__builtin_return_address(0)); \
    }

HOOK(__tsan_read1, 1, false)
HOOK(__tsan_read2, 2, false)
HOOK(__tsan_read4, 4, false)
HOOK(__tsan_read8, 8, false)
HOOK(__tsan_read16, 16, false)
HOOK(__tsan_write1, 1, true)
HOOK(__tsan_write2, 2, true)
HOOK(__tsan_write4, 4, true)
HOOK(__tsan_write8, 8, true)
HOOK(__tsan_write16, 16, true)
HOOK(__tsan_unaligned_read2, 2, false)
HOOK(__tsan_unaligned_read4, 4, false)
HOOK(__tsan_unaligned_read8, 8, false)
HOOK(__tsan_unaligned_read16, 16, false)
HOOK(__tsan_unaligned_write2, 2, true)
HOOK(__tsan_unaligned_write4, 4, true)
HOOK(__tsan_unaligned_write8, 8, true)
HOOK(__tsan_unaligned_write16, 16, true)

#define RANGE_HOOK(name, write)                                \
    void name(void *address, unsigned long size);              \
    void name(void *address, unsigned long size)               \
    {                                                          \
        shadow_access((uintptr_t)address, size, write,         \
                      (uintptr_t)__builtin_return_address(0)); \
    }

RANGE_HOOK(__tsan_read_range, false)
RANGE_HOOK(__tsan_write_range, true)

void __tsan_init(void);

void __tsan_init(void)
{
}

/* What gcc does not see: what is explored calls these (meson.build). */
void *explore_memset(void *to, int byte, size_t size);
void *explore_memcpy(void *to, const void *from, size_t size);
void *explore_memmove(void *to, const void *from, size_t size);

#define CALLER ((uintptr_t)__builtin_return_address(0))

void *explore_memset(void *to, int byte, size_t size)
{
    shadow_access((uintptr_t)to, size, true, CALLER);
    return memset(to, byte, size);
}

void *explore_memcpy(void *to, const void *from, size_t size)
{
    shadow_access((uintptr_t)from, size, false, CALLER);
    shadow_access((uintptr_t)to, size, true, CALLER);
    return memcpy(to, from, size);
}

void *explore_memmove(void *to, const void *from, size_t size)
{
    shadow_access((uintptr_t)from, size, false, CALLER);
    shadow_access((uintptr_t)to, size, true, CALLER);
    return memmove(to, from, size);
}
