/* SPDX-License-Identifier: MIT */
/*
 * Guards: regions that no access gets past.
 *
 * MADV_GUARD_INSTALL (Linux 6.13) marks the page table and leaves the mapping
 * in one piece.  mprotect() splits it: a guard between two stacks costs two
 * mappings, of which a process has vm.max_map_count.
 *
 * Which of them works is found out once, by its effect: some emulators accept
 * any advice and do nothing.  What counts is that the kernel itself refuses
 * to read a byte of the page.
 *
 * INVARIANTS
 *
 *   1. split_guards is at most split_limit().
 */
#include "os/memory.h"

#include "base/assert.h"
#include "base/atomic.h"
#include "os/fault.h"
#include "os/misc.h"
#include "os/valgrind.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define GUARD_INSTALL 102 /* MADV_GUARD_INSTALL, younger than the headers */
#define BATCH         64  /* regions in one process_madvise(2) */

static size_t split_guards; /* atomic; made by mprotect and not given back */

/*
 * Half of all mappings, at two for each guard.  The other half is the
 * program's.
 */
static size_t split_limit(void)
{
    static size_t known; /* atomic; 0: not read yet */
    size_t limit = load_relaxed(&known);
    char text[32] = "";
    ssize_t n = -1;
    int fd;

    if (limit > 0) {
        return limit;
    }
    fd = open("/proc/sys/vm/max_map_count", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        n = read(fd, text, sizeof(text) - 1);
        close(fd);
    }
    limit = n > 0 ? strtoul(text, NULL, 10) / 4 : 0;
    if (limit == 0) {
        limit = 65530 / 4;
    }
    store_relaxed(&known, limit);
    return limit;
}

/*
 * Whether the kernel cannot read at address, without a file descriptor: it
 * copies a signal set before it finds that it was not told what to do with it.
 */
static bool refuses_signal_set(const void *address)
{
    uintptr_t aligned = (uintptr_t)address & ~(uintptr_t)7;

    return syscall(SYS_rt_sigprocmask, -1, aligned, NULL, 8) < 0 &&
           errno == EFAULT;
}

/* The same with two file descriptors, where there are any. */
static bool refuses_write(const void *address)
{
    int fds[2];
    bool guarded;

    os_count(OS_COUNT_SYSCALLS);
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK)) {
        return refuses_signal_set(address);
    }
    os_count(OS_COUNT_SYSCALLS);
    /* The system call itself: sanitizers look at what write() is given. */
    guarded =
        syscall(SYS_write, fds[1], address, (size_t)1) < 0 && errno == EFAULT;
    close(fds[0]);
    close(fds[1]);
    return guarded;
}

bool os_address_guarded(const void *address)
{
    bool guarded;

    /* It would say that the byte is not accessible: that is the question. */
    os_valgrind_hush();
    guarded = refuses_write(address);
    os_valgrind_unhush();
    return guarded;
}

/* Whether a guard of this kind has an effect on a page that was in use. */
static bool works(OsGuardKind kind)
{
    size_t page = os_page_size();
    char *map = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bool guarded;

    if (map == MAP_FAILED) {
        return false;
    }
    map[page] = 1;
    if (kind == OS_GUARD_MADVISE) {
        guarded = madvise(map + page, page, GUARD_INSTALL) == 0;
    } else {
        guarded = mprotect(map + page, page, PROT_NONE) == 0;
    }
    guarded = guarded && os_address_guarded(map + page) &&
              !os_address_guarded(map) && !os_address_guarded(map + 2 * page);
    munmap(map, 3 * page);
    return guarded;
}

static OsGuardKind probe(void)
{
    const char *wanted = os_getenv("COAIO_GUARD");

    if (wanted && strcmp(wanted, "none") == 0) {
        return OS_GUARD_NONE;
    }
    if ((!wanted || strcmp(wanted, "mprotect") != 0) &&
        works(OS_GUARD_MADVISE)) {
        return OS_GUARD_MADVISE;
    }
    return works(OS_GUARD_MPROTECT) ? OS_GUARD_MPROTECT : OS_GUARD_NONE;
}

OsGuardKind os_guard_kind(void)
{
    static int known; /* atomic; 0: not probed yet, else 1 + OsGuardKind */
    int kind = load_relaxed(&known);

    if (unlikely(kind == 0)) {
        /* Threads that come at once find the same. */
        kind = 1 + (int)probe();
        store_relaxed(&known, kind);
    }
    return (OsGuardKind)(kind - 1);
}

#if defined(SYS_process_madvise) && defined(SYS_pidfd_open)
/*
 * Guard up to BATCH regions by one call on this process itself.  Returns how
 * many have a guard, perhaps none: kernels before 6.13 allow this advice on
 * nobody.
 */
static size_t install_batch(int self, char *first, size_t size, size_t stride,
                            size_t n)
{
    struct iovec regions[BATCH];
    long bytes;
    size_t i;

    n = n < BATCH ? n : BATCH;
    for (i = 0; i < n; i++) {
        regions[i].iov_base = first + i * stride;
        regions[i].iov_len = size;
    }
    os_count(OS_COUNT_SYSCALLS);
    bytes = syscall(SYS_process_madvise, self, regions, n, GUARD_INSTALL, 0);
    return bytes < 0 ? 0 : (size_t)bytes / size;
}

/* Guard as many regions as that gets done; see install_batch(). */
static size_t install_batches(char *first, size_t size, size_t stride, size_t n)
{
    static int useless; /* atomic; it never worked, so do not ask again */
    size_t done = 0;
    size_t got;
    int self;

    /* Valgrind (3.19) has not heard of pidfd_open(), and says so each time. */
    if (n < 2 || load_relaxed(&useless) || os_in_valgrind()) {
        return 0;
    }
    os_count(OS_COUNT_SYSCALLS);
    self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (self < 0) {
        return 0;
    }
    do {
        got =
            install_batch(self, first + done * stride, size, stride, n - done);
        done += got;
    } while (got > 0 && done < n);
    close(self);
    if (done == 0) {
        store_relaxed(&useless, 1);
    }
    return done;
}
#else
static size_t install_batches(char *first, size_t size, size_t stride, size_t n)
{
    (void)first;
    (void)size;
    (void)stride;
    (void)n;
    return 0;
}
#endif

/* Returns how many regions have a guard; errno says why not all. */
static size_t install(char *first, size_t size, size_t stride, size_t n)
{
    size_t done = install_batches(first, size, stride, n);

    for (; done < n; done++) {
        os_count(OS_COUNT_SYSCALLS);
        if (madvise(first + done * stride, size, GUARD_INSTALL)) {
            break;
        }
    }
    for (size_t i = 0; i < done; i++) {
        os_valgrind_guarded(first + i * stride, size);
    }
    return done;
}

/* The same by splitting, within the limit. */
static size_t split(char *first, size_t size, size_t stride, size_t n)
{
    size_t limit = split_limit();
    size_t done;

    for (done = 0; done < n; done++) {
        /* INVARIANTS 1: count it before it is there. */
        if (fetch_add_relaxed(&split_guards, 1) >= limit) {
            fetch_sub_relaxed(&split_guards, 1);
            break;
        }
        os_count(OS_COUNT_SYSCALLS);
        if (mprotect(first + done * stride, size, PROT_NONE)) {
            fetch_sub_relaxed(&split_guards, 1);
            break;
        }
    }
    return done;
}

OsGuardKind os_guard(char *first, size_t size, size_t stride, size_t n,
                     size_t *done)
{
    OsGuardKind kind = os_guard_kind();

    *done = 0;
    if (os_fault("guard")) {
        return OS_GUARD_NONE;
    }
    if (kind == OS_GUARD_MADVISE) {
        *done = install(first, size, stride, n);
        /* Kernels before 6.15 refuse locked memory (mlockall(2)). */
        if (*done == 0 && errno == EINVAL) {
            kind = OS_GUARD_MPROTECT;
        }
    }
    if (kind == OS_GUARD_MPROTECT) {
        *done = split(first, size, stride, n);
    }
    return *done > 0 ? kind : OS_GUARD_NONE;
}

void os_unguard(OsGuardKind kind, size_t n)
{
    if (kind == OS_GUARD_MPROTECT) {
        size_t before = fetch_sub_relaxed(&split_guards, n);

        invariant(before >= n);
    }
}
