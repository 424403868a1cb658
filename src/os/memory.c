/* SPDX-License-Identifier: MIT */
/*
 * The heap and mappings.
 *
 * Mappings for stacks are reserved and not backed (MAP_NORESERVE), and kept
 * from transparent huge pages: a parked coroutine touches one page of its
 * stack, and a huge page would back thirty stacks for it.
 */
#include "os/memory.h"

#include "base/assert.h"
#include "base/atomic.h"
#include "os/fault.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CACHE_LINE 64

void *os_alloc(size_t size)
{
    void *block;

    os_count(OS_COUNT_ALLOCATIONS);
    if (os_fault("alloc")) {
        return NULL;
    }
    if (size < CACHE_LINE) {
        return calloc(1, size);
    }
    /* Structures keep apart what different threads write, by alignment. */
    if (posix_memalign(&block, CACHE_LINE, size)) {
        return NULL;
    }
    return memset(block, 0, size);
}

void *os_realloc(void *block, size_t size)
{
    os_count(OS_COUNT_ALLOCATIONS);
    if (os_fault("alloc")) {
        return NULL;
    }
    if (block) {
        /* The new block replaces it: for each allocation there is a free. */
        os_count(OS_COUNT_FREES);
    }
    return realloc(block, size);
}

void os_free(void *block)
{
    if (block) {
        os_count(OS_COUNT_FREES);
        free(block);
    }
}

char *os_strndup(const char *string, size_t max)
{
    size_t length = strnlen(string, max);
    char *copy = os_alloc(length + 1);

    if (copy) {
        memcpy(copy, string, length);
    }
    return copy;
}

size_t os_page_size(void)
{
    static size_t known; /* atomic; 0: not asked yet */
    size_t size = load_relaxed(&known);

    if (unlikely(size == 0)) {
        size = (size_t)sysconf(_SC_PAGESIZE);
        store_relaxed(&known, size);
    }
    return size;
}

/* Returns whether the advice was taken. */
static bool advise(void *address, size_t size, int advice)
{
    return !os_fault("madvise") && madvise(address, size, advice) == 0;
}

/* Returns whether there is no mapping any more. */
static bool unmap(void *address, size_t size)
{
    return !os_fault("munmap") && munmap(address, size) == 0;
}

/* Cut a mapping of size + slack bytes down to size bytes aligned to align. */
static char *trim(char *mapping, size_t size, size_t align, size_t slack)
{
    size_t before = -(uintptr_t)mapping & (align - 1);

    /* What cannot be cut off stays, as addresses without memory. */
    if (before > 0) {
        unmap(mapping, before);
    }
    if (slack > before) {
        unmap(mapping + before + size, slack - before);
    }
    return mapping + before;
}

void *os_map(size_t size, size_t align)
{
    size_t slack = align - os_page_size();
    char *mapping;

    invariant(align >= os_page_size() && (align & (align - 1)) == 0);
    size = (size + os_page_size() - 1) & ~(os_page_size() - 1);
    os_count(OS_COUNT_ALLOCATIONS);
    os_count(OS_COUNT_SYSCALLS);
    if (os_fault("map") || size == 0 || size > SIZE_MAX - slack) {
        return NULL;
    }
    mapping =
        mmap(NULL, size + slack, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (mapping == MAP_FAILED) {
        return NULL;
    }
    mapping = trim(mapping, size, align, slack);
    /* Fails on kernels that have no huge pages, which is as good. */
    advise(mapping, size, MADV_NOHUGEPAGE);
    return mapping;
}

void os_unmap(void *address, size_t size)
{
    os_count(OS_COUNT_FREES);
    os_count(OS_COUNT_SYSCALLS);
    /*
     * This can fail only at the limit of mappings, for a part of a mapping.
     * Then the address space is lost, but the memory need not be.
     */
    if (!unmap(address, size)) {
        advise(address, size, MADV_DONTNEED);
    }
}

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24 /* Linux 5.18 */
#endif

void os_discard(void *address, size_t size)
{
    os_count(OS_COUNT_SYSCALLS);
    if (advise(address, size, MADV_DONTNEED)) {
        return;
    }
    /* After mlockall(): the pages stay, or are locked again when touched. */
    os_count(OS_COUNT_SYSCALLS);
    if (!advise(address, size, MADV_DONTNEED_LOCKED)) {
        memset(address, 0, size);
    }
}
