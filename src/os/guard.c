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
 * to read a byte of the page.  If there is no memory to find out, the next one
 * who asks tries again.
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
    fd = os_fault("open")
             ? -1
             : open("/proc/sys/vm/max_map_count", O_RDONLY | O_CLOEXEC);
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

/* Returns what write(2) of the byte at address says, or -errno. */
static long write_byte(const void *address)
{
    int fds[2];
    long n;

    os_count(OS_COUNT_SYSCALLS);
    if (os_fault("pipe2") || pipe2(fds, O_CLOEXEC | O_NONBLOCK)) {
        return -EMFILE;
    }
    os_count(OS_COUNT_SYSCALLS);
    n = -os_fault("guard_write");
    if (n == 0) {
        /* The call itself: sanitizers look at what write() is given. */
        n = syscall(SYS_write, fds[1], address, (size_t)1);
        n = n < 0 ? -errno : n;
    }
    close(fds[0]);
    close(fds[1]);
    return n;
}

/* The same with two file descriptors and some memory, where there are. */
static bool refuses_write(const void *address)
{
    long n = write_byte(address);

    if (n != 1 && n != -EFAULT) {
        return refuses_signal_set(address);
    }
    return n < 0;
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

/* These return 0 or -errno. */

static int guard_by_madvise(char *address, size_t size)
{
    int error = os_fault("madvise");

    if (error) {
        return -error;
    }
    return madvise(address, size, GUARD_INSTALL) ? -errno : 0;
}

static int guard_by_mprotect(char *address, size_t size)
{
    int error = os_fault("mprotect");

    if (error) {
        return -error;
    }
    return mprotect(address, size, PROT_NONE) ? -errno : 0;
}

static char *map_for_probe(size_t size)
{
    void *map = MAP_FAILED;

    if (!os_fault("map")) {
        map = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    return map == MAP_FAILED ? NULL : map;
}

/*
 * 1 if a guard of this kind has an effect on a page that was in use, 0 if not,
 * -ENOMEM if that cannot be found out now.
 */
static int works(OsGuardKind kind)
{
    size_t page = os_page_size();
    char *map = map_for_probe(3 * page);
    bool guarded;
    int ret;

    if (!map) {
        return -ENOMEM;
    }
    map[page] = 1;
    ret = kind == OS_GUARD_MADVISE ? guard_by_madvise(map + page, page)
                                   : guard_by_mprotect(map + page, page);
    guarded = ret == 0 && os_address_guarded(map + page) &&
              !os_address_guarded(map) && !os_address_guarded(map + 2 * page);
    munmap(map, 3 * page);
    return ret == -ENOMEM ? ret : guarded;
}

/* Returns an OsGuardKind, or -ENOMEM. */
static int probe(void)
{
    const char *wanted = os_getenv("COAIO_GUARD");
    int found = 0;

    if (wanted && strcmp(wanted, "none") == 0) {
        return OS_GUARD_NONE;
    }
    if (!wanted || strcmp(wanted, "mprotect") != 0) {
        found = works(OS_GUARD_MADVISE);
    }
    if (found != 0) {
        return found < 0 ? found : OS_GUARD_MADVISE;
    }
    found = works(OS_GUARD_MPROTECT);
    if (found != 0) {
        return found < 0 ? found : OS_GUARD_MPROTECT;
    }
    return OS_GUARD_NONE;
}

OsGuardKind os_guard_kind(void)
{
    static int known; /* atomic; 0: not probed yet, else 1 + OsGuardKind */
    int kind = load_relaxed(&known);
    int found;

    if (unlikely(kind == 0)) {
        found = probe();
        if (found < 0) {
            return OS_GUARD_NONE; /* this time */
        }
        /* Threads that come at once find the same. */
        kind = 1 + found;
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
    long bytes = -1;
    size_t i;

    n = n < BATCH ? n : BATCH;
    for (i = 0; i < n; i++) {
        regions[i].iov_base = first + i * stride;
        regions[i].iov_len = size;
    }
    os_count(OS_COUNT_SYSCALLS);
    if (!os_fault("process_madvise")) {
        bytes =
            syscall(SYS_process_madvise, self, regions, n, GUARD_INSTALL, 0);
    }
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
    self =
        os_fault("pidfd_open") ? -1 : (int)syscall(SYS_pidfd_open, getpid(), 0);
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

/* Returns how many regions have a guard; *ret says why not all. */
static size_t install(char *first, size_t size, size_t stride, size_t n,
                      int *ret)
{
    size_t done = install_batches(first, size, stride, n);

    for (*ret = 0; done < n; done++) {
        os_count(OS_COUNT_SYSCALLS);
        *ret = guard_by_madvise(first + done * stride, size);
        if (*ret < 0) {
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
        if (guard_by_mprotect(first + done * stride, size) < 0) {
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
    int ret;

    *done = 0;
    if (os_fault("guard")) {
        return OS_GUARD_NONE;
    }
    if (kind == OS_GUARD_MADVISE) {
        *done = install(first, size, stride, n, &ret);
        /* Kernels before 6.15 refuse locked memory (mlockall(2)). */
        if (*done == 0 && ret == -EINVAL) {
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
