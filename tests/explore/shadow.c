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

/* What a thread has done to a word while others run. */
typedef struct Cell {
    uint32_t run;          /* what follows is of this one */
    uint8_t writer;        /* thread */
    uint8_t written;       /* which bytes: a mask; 0: none */
    uint8_t atomic;        /* which bytes atomic accesses have used */
    uint8_t read[THREADS]; /* which bytes each thread has read */
    int16_t write_clock;
    int16_t read_clock[THREADS];
    int16_t atomic_clock[THREADS]; /* of the last atomic access; 0: none */
} Cell;

/*
 * Of each 16 bytes, which no two blocks share: most are only ever used in turn,
 * where what costs time is how many there are.
 */
#define PIECE 16
typedef struct Piece {
    uint32_t freed_in; /* a run; in any other the memory is there */
    uint32_t used_in;  /* a run; in any other its cells are as new */
    uint8_t freed_by;  /* thread */
} Piece;

typedef struct Shadow {
    Piece *pieces;
    Cell *cells;
    uintptr_t begin;
} Shadow;

OWN static Shadow arena_shadow;
OWN static Shadow data_shadow;
OWN static uint32_t freed_in; /* the last run that has freed anything, ... */
OWN static uintptr_t freed_begin, freed_end; /* and between what it has */

static void *map(size_t size)
{
    return mmap(NULL, size, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static void shadow_map(Shadow *shadow, uintptr_t begin, uintptr_t end)
{
    shadow->begin = begin & ~(uintptr_t)(PIECE - 1);
    shadow->pieces = map(((end - shadow->begin) / PIECE + 1) * sizeof(Piece));
    shadow->cells = map(((end - shadow->begin) / 4 + 1) * sizeof(Cell));
}

void shadow_init(void)
{
    shadow_map(&arena_shadow, arena_begin, arena_end);
    shadow_map(&data_shadow, data_begin, data_end);
}

/* Of an address, or NULL if it is not of simulated memory. */
static inline const Shadow *shadow_of(uintptr_t address)
{
    if (address - arena_begin < arena_end - arena_begin) {
        return &arena_shadow;
    }
    if (address - data_begin < data_end - data_begin) {
        return &data_shadow;
    }
    return NULL;
}

static inline Piece *piece_at(const Shadow *shadow, uintptr_t address)
{
    return &shadow->pieces[(address - shadow->begin) / PIECE];
}

static inline bool may_be_freed(uintptr_t address, size_t size)
{
    return freed_in == machine->run && address < freed_end &&
           address + size > freed_begin;
}

static void note_freed(uintptr_t begin, uintptr_t end)
{
    bool first = freed_in != machine->run;

    freed_in = machine->run;
    freed_begin = first || begin < freed_begin ? begin : freed_begin;
    freed_end = first || end > freed_end ? end : freed_end;
}

/* The cell of a word, as it is in this run. */
static inline Cell *cell_at(const Shadow *shadow, uintptr_t address)
{
    Cell *cell = &shadow->cells[(address - shadow->begin) / 4];

    if (cell->run == machine->run) {
        return cell;
    }
    piece_at(shadow, address)->used_in = machine->run;
    cell->run = machine->run;
    cell->written = 0;
    cell->atomic = 0;
    memset(cell->read, 0, sizeof(cell->read));
    memset(cell->read_clock, 0, sizeof(cell->read_clock));
    memset(cell->atomic_clock, 0, sizeof(cell->atomic_clock));
    return cell;
}

static __attribute__((cold, noreturn)) void
fail_at(const char *kind, const char *what, uintptr_t address, unsigned other,
        uintptr_t pc)
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

/* What is there must not have been freed. */
static inline void check_there(const Shadow *shadow, uintptr_t address,
                               size_t size, const char *what, uintptr_t pc)
{
    const Piece *piece = piece_at(shadow, address);
    const Piece *last = piece_at(shadow, address + size - 1);
    const uint32_t run = machine->run;

    for (; piece <= last; piece++) {
        if (piece->freed_in == run) {
            fail_at("use after free", what, address, piece->freed_by, pc);
        }
    }
}

static __attribute__((noinline)) void
look_closely(uintptr_t address, size_t size, bool write, uintptr_t pc)
{
    const Shadow *shadow = shadow_of(address);
    uintptr_t end = address + size;

    if (!shadow) {
        return;
    }
    check_there(shadow, address, size, write ? "write to" : "read of", pc);
    if (machine->phase != PHASE_AT_ONCE) {
        return;
    }
    while (address < end) {
        uintptr_t next = (address & ~(uintptr_t)3) + 4;
        unsigned first = address & 3;
        unsigned last = next <= end ? 4 : (unsigned)(end & 3);

        access_cell(cell_at(shadow, address),
                    (uint8_t)((1u << last) - (1u << first)), write, address,
                    pc);
        address = next;
    }
}

void shadow_access(uintptr_t address, size_t size, bool write, uintptr_t pc)
{
    if (!machine || machine->phase == PHASE_OUTSIDE || size == 0) {
        return;
    }
    /* Of most accesses, those of setting up, there is nothing to tell. */
    if (machine->phase == PHASE_AT_ONCE || may_be_freed(address, size)) {
        look_closely(address, size, write, pc);
    }
    if (write) {
        arena_note_write(address);
    }
}

/* What is written plainly, or ends, conflicts with atomic accesses. */
void shadow_access_atomic(uintptr_t address, size_t size)
{
    const Shadow *shadow = shadow_of(address);
    Cell *cell;

    if (!shadow) {
        return;
    }
    check_there(shadow, address, size, "atomic access to", 0);
    if (machine->phase != PHASE_AT_ONCE) {
        return;
    }
    cell = cell_at(shadow, address);
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

static void check_all_before(const Shadow *shadow, uintptr_t piece,
                             uintptr_t pc)
{
    const Cell *cell = &shadow->cells[(piece - shadow->begin) / 4];
    unsigned other;

    for (unsigned i = 0; i < PIECE / 4; i++) {
        if (cell[i].run == machine->run && !all_before(&cell[i], &other)) {
            fail_at("use after free", "free of", piece + 4 * i, other, pc);
        }
    }
}

/*
 * Freeing conflicts with every access that is not ordered before it.  Blocks
 * begin where a piece does.
 */
void shadow_free(uintptr_t address, size_t size, uintptr_t pc)
{
    const uint32_t run = machine->run;
    const uint8_t me = (uint8_t)machine->current;
    const uintptr_t end = address + size;
    const Shadow *shadow = shadow_of(address);
    Piece *piece = piece_at(shadow, address);

    note_freed(address, end);
    for (; address < end; address += PIECE, piece++) {
        if (piece->used_in == run) {
            check_all_before(shadow, address, pc);
        }
        piece->freed_in = run;
        piece->freed_by = me;
    }
}

void shadow_renew(uintptr_t address, size_t size)
{
    const Shadow *shadow = shadow_of(address);
    uintptr_t end = address + size;

    for (; address < end; address += 4) {
        piece_at(shadow, address)->freed_in = 0;
        shadow->cells[(address - shadow->begin) / 4].run = 0;
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
