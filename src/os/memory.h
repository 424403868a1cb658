/* SPDX-License-Identifier: MIT */
/*
 * Memory: the heap, mappings, and guards.
 *
 * In test builds each of these can be made to fail (os/fault.h).
 */
#ifndef COAIO_OS_MEMORY_H
#define COAIO_OS_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Zeroed memory, or NULL.  Aligned to a cache line (64 bytes) if it is at
 * least as large, else as malloc() does it.
 */
void *os_alloc(size_t size);
/* Resize to size bytes; on NULL the old block stays.  What is added is not
 * zeroed, and the new block is aligned as malloc() does it. */
void *os_realloc(void *block, size_t size);
void os_free(void *block);

/* A copy of string, cut after max bytes, or NULL. */
char *os_strndup(const char *string, size_t max);

size_t os_page_size(void);

/*
 * A private mapping of size bytes, zeroed, aligned to align (a power of two of
 * at least a page), reserved but not backed until it is touched, without
 * transparent huge pages.  NULL if there is none.
 */
void *os_map(size_t size, size_t align);
void os_unmap(void *address, size_t size);

/* Give the pages back; they read as zeroes. */
void os_discard(void *address, size_t size);

typedef enum OsGuardKind {
    OS_GUARD_NONE,     /* nothing works, or the limit was reached */
    OS_GUARD_MADVISE,  /* does not split the mapping */
    OS_GUARD_MPROTECT, /* does: two mappings more for each */
} OsGuardKind;

/*
 * Make n regions of size bytes, at first, first + stride, ..., inaccessible.
 * Uses the first way that works on this machine, found out by its effect (a
 * write(2) of a byte of such a page gives EFAULT) and remembered; if there is
 * no memory to find out, there is none this time.  All or nothing is not
 * promised: *done says how many have a guard now.
 *
 * mprotect guards take at most half of vm.max_map_count, at two mappings for
 * each; the others are left to the program.
 */
OsGuardKind os_guard(char *first, size_t size, size_t stride, size_t n,
                     size_t *done);

/* What os_guard() would use; for tests and reports.  COAIO_GUARD in the
 * environment (madvise, mprotect or none) asks for one, for tests. */
OsGuardKind os_guard_kind(void);

/* A mapping with mprotect guards was unmapped: give n back to the limit. */
void os_unguard(OsGuardKind kind, size_t n);

/* Whether address cannot be read, asked of the kernel. */
bool os_address_guarded(const void *address);

#endif
