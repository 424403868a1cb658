/* SPDX-License-Identifier: MIT */
/*
 * The memory of a run: stacks of the threads, the heap, mappings.  And how all
 * of it, and the static variables of the library and the tests, are put back
 * to what they were.
 *
 * The heap has a part for each thread, so that an address does not depend on
 * the schedule.  Blocks are not reused within a run, so that a use after free
 * is seen; unless the test asks for it: then whether a block is reused is a
 * choice.
 *
 * Of the mappings (stacks of coroutines) only the pages are put back that an
 * instrumented or an atomic access has written to.  What lies on a stack
 * otherwise is dead at the start of a run.
 */
#include "machine.h"

#include "os/memory.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define STACK_SIZE ((size_t)128 << 10)
#define HEAP_SIZE  ((size_t)128 << 10) /* of a thread */
#define MAPS_SIZE  ((size_t)12 << 20)
#define PAGE       ((size_t)4096)
#define PAGES      (MAPS_SIZE / PAGE)
#define KEPT_PAGES 16
#define FREED_MAX  64

typedef struct Block {
    size_t size;
    uint32_t state;
    uint32_t owner; /* whose part of the heap */
} Block;

enum {
    BLOCK_ALIVE = 0xa11fe,
    BLOCK_FREED = 0xdead
};

uintptr_t arena_begin, arena_end;
uintptr_t data_begin, data_end;

OWN static char *stacks;
OWN static char *heap;
OWN static char *maps;

OWN static size_t heap_used[THREADS];
OWN static size_t maps_used;
OWN static size_t left;
OWN static Block *freed[FREED_MAX];
OWN static unsigned freed_count;

OWN static uint8_t page_dirty[PAGES];
OWN static uint16_t dirty[PAGES];
OWN static unsigned dirty_count;

/* What is kept: how it was after the start. */
OWN static char *kept_data;
OWN static char kept_pages[KEPT_PAGES][4096];
OWN static uint16_t kept_numbers[KEPT_PAGES];
OWN static unsigned kept_count;
OWN static char *kept_heap;
OWN static size_t kept_heap_used;
OWN static size_t kept_maps_used;
OWN static OsThread kept_thread;

/* By the linker. */
extern char __data_start, _end;
extern char __start_explorer_own, __stop_explorer_own;

void arena_init(void)
{
    size_t size = THREADS * (STACK_SIZE + HEAP_SIZE) + MAPS_SIZE;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    arena_begin = (uintptr_t)memory;
    arena_end = arena_begin + size;
    data_begin = (uintptr_t)&__data_start;
    data_end = (uintptr_t)&_end;
    stacks = memory;
    heap = memory + THREADS * STACK_SIZE;
    maps = heap + THREADS * HEAP_SIZE;
}

void *arena_stack(unsigned thread)
{
    return stacks + thread * STACK_SIZE;
}

size_t arena_stack_size(void)
{
    return STACK_SIZE;
}

/* --- putting everything back ----------------------------------------------*/

void arena_note_write(uintptr_t address)
{
    size_t page = (address - (uintptr_t)maps) / PAGE;

    if (page < PAGES && !page_dirty[page]) {
        page_dirty[page] = 1;
        dirty[dirty_count++] = (uint16_t)page;
    }
}

/* Copy the data segment to or from its copy, but for what is the explorer's. */
static void copy_data(bool back)
{
    char *own = &__start_explorer_own;
    char *after = &__stop_explorer_own;
    char *begin = &__data_start;
    size_t first = (size_t)(own - begin);
    size_t second = (size_t)(&_end - after);

    if (back) {
        memcpy(begin, kept_data, first);
        memcpy(after, kept_data + first, second);
    } else {
        memcpy(kept_data, begin, first);
        memcpy(kept_data + first, after, second);
    }
}

void arena_keep(void)
{
    size_t size = (size_t)(&_end - &__data_start);

    kept_data = mmap(NULL, size + HEAP_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    kept_heap = kept_data + size;
    memcpy(kept_heap, heap, heap_used[0]);
    kept_heap_used = heap_used[0];
    kept_maps_used = maps_used;
    kept_thread = machine->thread[0].os;
    for (unsigned i = 0; i < dirty_count && i < KEPT_PAGES; i++) {
        kept_numbers[i] = dirty[i];
        memcpy(kept_pages[i], maps + dirty[i] * PAGE, PAGE);
        page_dirty[dirty[i]] = 0;
    }
    kept_count = dirty_count;
    dirty_count = 0;
    left = 0;
    copy_data(false);
}

static void reset_threads(void)
{
    for (unsigned i = 0; i < THREADS; i++) {
        Thread *thread = &machine->thread[i];

        memset(thread, 0, offsetof(Thread, now));
    }
    if (kept_data) {
        machine->thread[0].os = kept_thread;
    }
}

void arena_reset(void)
{
    reset_threads();
    memset(heap_used, 0, sizeof(heap_used));
    freed_count = 0;
    left = 0;
    if (!kept_data) {
        return;
    }
    copy_data(true);
    memcpy(heap, kept_heap, kept_heap_used);
    heap_used[0] = kept_heap_used;
    maps_used = kept_maps_used;
    for (unsigned i = 0; i < dirty_count; i++) {
        memset(maps + dirty[i] * PAGE, 0, PAGE);
        page_dirty[dirty[i]] = 0;
    }
    dirty_count = 0;
    for (unsigned i = 0; i < kept_count; i++) {
        memcpy(maps + kept_numbers[i] * PAGE, kept_pages[i], PAGE);
        /* Its Coroutine will be written to behind our back: by the switch. */
        arena_note_write((uintptr_t)(maps + kept_numbers[i] * PAGE));
    }
}

size_t arena_left(void)
{
    return left;
}

/* --- the heap: os/memory.h ------------------------------------------------*/

static Block *block_of(const void *memory)
{
    return (Block *)((uintptr_t)memory - sizeof(Block));
}

/* A freed block of that size to use again, or NULL. */
static Block *reuse(size_t size)
{
    if (!machine->test->reuse || machine->phase != PHASE_AT_ONCE) {
        return NULL;
    }
    for (unsigned i = freed_count; i-- > 0;) {
        Block *block = freed[i];

        if (block && block->size == size) {
            if (machine_choose(2, CHOOSE_FREELY) == 0) {
                return NULL;
            }
            freed[i] = NULL;
            return block;
        }
    }
    return NULL;
}

static Block *fresh(size_t size)
{
    unsigned owner = machine->current;
    size_t align = size < 64 ? 16 : 64;
    size_t begin = heap_used[owner] + sizeof(Block);
    Block *block;

    begin = (begin + align - 1) & ~(align - 1);
    if (begin + size > HEAP_SIZE) {
        explore_fail("explorer", "a run allocates too much");
    }
    heap_used[owner] = (begin + size + 15) & ~(size_t)15;
    block = block_of(heap + owner * HEAP_SIZE + begin);
    block->size = size;
    block->owner = owner;
    return block;
}

void *os_alloc(size_t size)
{
    Block *block = reuse(size);

    if (block) {
        shadow_renew((uintptr_t)(block + 1), size);
        location_forget(block + 1, size);
    } else {
        block = fresh(size);
    }
    block->state = BLOCK_ALIVE;
    left++;
    return memset(block + 1, 0, size);
}

void os_free(void *memory)
{
    uintptr_t caller = (uintptr_t)__builtin_return_address(0);
    Block *block;

    if (!memory) {
        return;
    }
    block = block_of(memory);
    if (block->state != BLOCK_ALIVE) {
        char place[256];

        report_place(caller, place, sizeof(place));
        explore_fail("double free", "%p, in %s", memory, place);
    }
    shadow_free((uintptr_t)memory, block->size, caller);
    block->state = BLOCK_FREED;
    left--;
    if (machine->test->reuse && freed_count < FREED_MAX) {
        freed[freed_count++] = block;
    } else {
        memset(memory, 0xdd, block->size);
    }
}

void *os_realloc(void *memory, size_t size)
{
    void *larger = os_alloc(size);

    if (memory) {
        size_t old = block_of(memory)->size;

        memcpy(larger, memory, old < size ? old : size);
        os_free(memory);
    }
    return larger;
}

char *os_strndup(const char *string, size_t max)
{
    size_t length = strnlen(string, max);

    return memcpy(os_alloc(length + 1), string, length);
}

/* --- mappings and guards --------------------------------------------------*/

size_t os_page_size(void)
{
    return PAGE;
}

void *os_map(size_t size, size_t align)
{
    uintptr_t begin = ((uintptr_t)maps + maps_used + align - 1) & ~(align - 1);

    if (begin + size > (uintptr_t)maps + MAPS_SIZE) {
        return NULL;
    }
    maps_used = begin + size - (uintptr_t)maps;
    return (void *)begin;
}

void os_unmap(void *address, size_t size)
{
    os_discard(address, size);
}

void os_discard(void *address, size_t size)
{
    for (size_t i = 0; i < size; i += PAGE) {
        arena_note_write((uintptr_t)address + i);
    }
    memset(address, 0, size);
}

OsGuardKind os_guard(char *first, size_t size, size_t stride, size_t n,
                     size_t *done)
{
    (void)first;
    (void)size;
    (void)stride;
    *done = n;
    return OS_GUARD_MADVISE;
}

OsGuardKind os_guard_kind(void)
{
    return OS_GUARD_MADVISE;
}

void os_unguard(OsGuardKind kind, size_t n)
{
    (void)kind;
    (void)n;
}

bool os_address_guarded(const void *address)
{
    (void)address;
    return false;
}
