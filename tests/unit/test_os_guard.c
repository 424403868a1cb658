/* SPDX-License-Identifier: MIT */
/*
 * Mappings and guards: that a guard refuses the kernel and kills whoever
 * touches it, that it survives giving pages back, that the good kind does not
 * split mappings and the other stays within its limit.  Kinds are chosen by
 * COAIO_GUARD, which is read once, so each case is a process of its own.
 */
#include "guards.h"
#include "harness.h"
#include "nth.h"
#include "os/fault.h"
#include "os/memory.h"
#include "os/valgrind.h"
#include "seccomp.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define REGIONS 200 /* more than one batch */
#define SOME    70  /* likewise, where each call fails in turn */

static void want(const char *kind)
{
    setenv("COAIO_GUARD", kind, 1);
}

static unsigned count_mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    unsigned n = 0;
    int c;

    CHECK(maps != NULL);
    while ((c = getc(maps)) != EOF) {
        n += c == '\n';
    }
    fclose(maps);
    return n;
}

/* Guards every second of so many pages, and looks at all of them. */
static char *guard_pages(size_t regions, OsGuardKind *kind)
{
    size_t page = os_page_size();
    char *map = os_map(regions * 2 * page, page);
    size_t done, i;

    CHECK(map != NULL);
    *kind = os_guard(map, page, 2 * page, regions, &done);
    CHECK_EQ(done, *kind == OS_GUARD_NONE ? 0 : regions);
    for (i = 0; i < regions; i++) {
        char *region = map + i * 2 * page;

        CHECK_EQ(os_address_guarded(region), *kind != OS_GUARD_NONE);
        CHECK_EQ(os_address_guarded(region + page - 1), *kind != OS_GUARD_NONE);
        memset(region + page, 0x55, page);
    }
    return map;
}

static void check_guards(void)
{
    size_t page = os_page_size();
    OsGuardKind kind;
    char *map = guard_pages(REGIONS, &kind);
    size_t i;

    CHECK_EQ(kind, os_guard_kind());
    os_discard(map, REGIONS * 2 * page);
    for (i = 0; i < REGIONS; i++) {
        CHECK_EQ(os_address_guarded(map + i * 2 * page), kind != OS_GUARD_NONE);
        CHECK_EQ(map[(i * 2 + 1) * page], 0);
    }
    os_unmap(map, REGIONS * 2 * page);
    os_unguard(kind, REGIONS);
}

TEST(guards_of_the_default_kind)
{
    check_guards();
    CHECK(os_guard_kind() != OS_GUARD_NONE);
}

TEST(guards_by_mprotect)
{
    want("mprotect");
    check_guards();
    CHECK_EQ(os_guard_kind(), OS_GUARD_MPROTECT);
}

TEST(no_guards_where_none_are_wanted)
{
    want("none");
    check_guards();
    CHECK_EQ(os_guard_kind(), OS_GUARD_NONE);
}

TEST(a_good_guard_does_not_split_the_mapping)
{
    size_t page = os_page_size();
    char *map = os_map(REGIONS * 2 * page, page);
    unsigned before;
    size_t done;

    needs_madvise_guards();
    before = count_mappings();
    os_guard(map, page, 2 * page, REGIONS, &done);
    CHECK_EQ(done, REGIONS);
    CHECK(count_mappings() < before + REGIONS / 10);
}

/* Emulators have a kernel that is younger than what they know. */
static bool has_process_madvise(void)
{
    struct iovec region = {
        .iov_base = os_map(os_page_size(), os_page_size()),
        .iov_len = os_page_size(),
    };
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    long n = syscall(SYS_process_madvise, self, &region, 1, 102, 0);

    close(self);
    return n == (long)region.iov_len;
}

TEST(many_guards_are_few_system_calls)
{
    size_t page = os_page_size();
    char *map = os_map(REGIONS * 2 * page, page);
    uint64_t before;
    size_t done;

    needs_madvise_guards();
    if (!has_process_madvise()) {
        SKIP("no process_madvise here");
    }
    before = os_counter(OS_COUNT_SYSCALLS);
    os_guard(map, page, 2 * page, REGIONS, &done);
    CHECK_EQ(done, REGIONS);
    CHECK(os_counter(OS_COUNT_SYSCALLS) - before <= REGIONS / 64 + 3);
}

TEST(guards_without_process_madvise)
{
    if (seccomp_refuse(SYS_process_madvise, EPERM)) {
        SKIP("no seccomp here");
    }
    check_guards();
    check_guards();
}

TEST(guards_without_a_descriptor_to_spare)
{
    struct rlimit usual, none;

    CHECK(getrlimit(RLIMIT_NOFILE, &usual) == 0);
    none = usual;
    none.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    check_guards();
    CHECK(os_guard_kind() != OS_GUARD_NONE);
    CHECK(setrlimit(RLIMIT_NOFILE, &usual) == 0);
}

TEST(guards_in_locked_memory)
{
    size_t page = os_page_size();
    char *map = os_map(4 * page, page);
    size_t done;

    if (mlock(map, 4 * page)) {
        CHECK(errno == EPERM || errno == ENOMEM); /* RLIMIT_MEMLOCK */
        SKIP("no memory may be locked here");
    }
    CHECK(os_guard(map, page, 2 * page, 2, &done) != OS_GUARD_NONE);
    CHECK_EQ(done, 2);
    CHECK(os_address_guarded(map + 2 * page));
}

static void touch_guard(int write)
{
    OsGuardKind kind;
    volatile char *map = guard_pages(1, &kind);

    if (kind == OS_GUARD_NONE) {
        SKIP("no guard works here");
    }
    signal(SIGSEGV, SIG_DFL); /* sanitizers have a handler */
    if (write) {
        map[os_page_size() - 1] = 1;
    } else {
        (void)map[0];
    }
}

TEST_DIES(reading_a_guard_kills, SIGSEGV, 0)
{
    touch_guard(0);
}

TEST_DIES(writing_to_a_guard_kills, SIGSEGV, 0)
{
    touch_guard(1);
}

TEST_DIES(writing_to_an_mprotect_guard_kills, SIGSEGV, 0)
{
    want("mprotect");
    touch_guard(1);
}

/* Whether Valgrind, which runs this process, lets the byte be accessed. */
static bool valgrind_allows(const void *address)
{
    unsigned char bits = 0;
    unsigned result = 1;

    (void)address, (void)bits;
#ifdef COAIO_HAVE_VALGRIND
    result = VALGRIND_GET_VBITS(address, &bits, 1);
#endif
    return result == 1;
}

/* Its search for leaks had a signal for each word of a guard. */
TEST(valgrind_is_told_of_guards)
{
    size_t page = os_page_size();
    char *map = os_map(4 * page, page);
    size_t done;

    if (!os_in_valgrind()) {
        SKIP("a test for Valgrind");
    }
    CHECK(os_guard(map, page, 2 * page, 2, &done) != OS_GUARD_NONE);
    CHECK_EQ(done, 2);
    CHECK(!valgrind_allows(map));
    CHECK(!valgrind_allows(map + 3 * page - 1));
    CHECK(valgrind_allows(map + page));
    CHECK(valgrind_allows(map + 3 * page));
    os_unmap(map, 4 * page);
}

TEST(mprotect_guards_stop_at_the_limit)
{
    size_t page = os_page_size();
    size_t limit = 65530, done, again;
    FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
    char *map;

    if (file) {
        CHECK_EQ(fscanf(file, "%zu", &limit), 1);
        fclose(file);
    }
    if (os_in_valgrind()) {
        SKIP("Valgrind has room for fewer mappings");
    }
    if (limit > 1000000) {
        SKIP("vm.max_map_count is too large to reach");
    }
    want("mprotect");
    map = os_map((limit / 4 + 10) * 2 * page, page);
    CHECK(map != NULL);
    CHECK_EQ(os_guard(map, page, 2 * page, limit / 4 + 10, &done),
             OS_GUARD_MPROTECT);
    CHECK_EQ(done, limit / 4);
    CHECK(!os_address_guarded(map + done * 2 * page));
    CHECK(count_mappings() < limit / 2 + 200);
    /* The program's half is there. */
    CHECK(mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
          MAP_FAILED);

    CHECK_EQ(os_guard(map, page, 2 * page, 1, &again), OS_GUARD_NONE);
    CHECK_EQ(again, 0);
    os_unmap(map, (limit / 4 + 10) * 2 * page);
    os_unguard(OS_GUARD_MPROTECT, done);
    map = os_map(2 * page, page);
    CHECK_EQ(os_guard(map, page, 2 * page, 1, &again), OS_GUARD_MPROTECT);
    CHECK_EQ(again, 1);
}

TEST(a_guard_that_fails_leaves_none)
{
    size_t page = os_page_size();
    char *map = os_map(2 * page, page);
    size_t done = 7;

    os_fault_arm(1, ENOMEM, "guard");
    CHECK_EQ(os_guard(map, page, page, 1, &done), OS_GUARD_NONE);
    CHECK(os_fault_fired());
    CHECK_EQ(done, 0);
    CHECK(!os_address_guarded(map));
}

/* Of guards that were asked for while a call failed, those that are said to
 * be there are; and the others can be had afterwards. */
static void check_some(char *map, OsGuardKind kind, size_t done)
{
    size_t page = os_page_size();
    size_t more;

    CHECK_EQ(kind == OS_GUARD_NONE, done == 0);
    for (size_t i = 0; i < SOME; i++) {
        CHECK_EQ(os_address_guarded(map + i * 2 * page), i < done);
    }
    os_unguard(kind, done);
    if (done < SOME) {
        kind =
            os_guard(map + done * 2 * page, page, 2 * page, SOME - done, &more);
        CHECK(kind != OS_GUARD_NONE);
        CHECK_EQ(done + more, SOME);
        os_unguard(kind, more);
    }
    os_unmap(map, SOME * 2 * page);
}

static void guard_whatever_fails(int error)
{
    size_t page = os_page_size();
    unsigned nth = 0;
    bool fired;

    CHECK(os_guard_kind() != OS_GUARD_NONE);
    do {
        char *map = os_map(SOME * 2 * page, page);
        OsGuardKind kind;
        size_t done;

        CHECK(map != NULL);
        os_fault_arm(++nth, error, NULL);
        kind = os_guard(map, page, 2 * page, SOME, &done);
        fired = os_fault_fired();
        check_some(map, kind, done);
        CHECK(fired || done == SOME);
        CHECK(nth < 1000);
    } while (fired);
    CHECK(nth > SOME / 64); /* batches, and what comes before them */
}

TEST(guards_whichever_call_fails)
{
    guard_whatever_fails(ENOMEM);
}

TEST(guards_whichever_call_is_not_known)
{
    guard_whatever_fails(EINVAL);
}

TEST(mprotect_guards_whichever_call_fails)
{
    want("mprotect");
    guard_whatever_fails(ENOMEM);
}

/*
 * To find out which guards work takes memory and descriptors.  That there were
 * none once was taken for an answer: no coroutine could be made any more.
 */
static void find_out(void)
{
    OsGuardKind kind = os_guard_kind();

    CHECK(kind != OS_GUARD_NONE || strcmp(os_fault_call(), "map") == 0 ||
          strcmp(os_fault_call(), "madvise") == 0 ||
          strcmp(os_fault_call(), "mprotect") == 0);
    kind = os_guard_kind();
    os_fault_fired();
    CHECK(kind != OS_GUARD_NONE);
    check_guards();
    CHECK_EQ(os_guard_kind(), kind);
}

TEST(want_of_memory_is_not_taken_for_want_of_guards)
{
    CHECK(nth_alone(find_out, ENOMEM, NULL) >= 4);
}

TEST(want_of_memory_is_not_taken_for_want_of_mprotect_guards)
{
    want("mprotect");
    CHECK(nth_alone(find_out, ENOMEM, NULL) >= 4);
}

TEST(a_limit_that_is_not_told_is_the_usual_one)
{
    want("mprotect");
    os_fault_arm(1, EMFILE, "open");
    check_guards();
    CHECK(os_fault_fired());
}

/* Returns how many calls could be made to fail. */
static unsigned discard_whatever_fails(char *map, size_t size)
{
    unsigned nth = 0;

    do {
        memset(map, 1, size);
        os_fault_arm(++nth, ENOMEM, "madvise");
        os_discard(map, size);
        for (size_t i = 0; i < size; i++) {
            CHECK_EQ(map[i], 0);
        }
    } while (os_fault_fired());
    return nth - 1;
}

TEST(pages_are_given_back_whichever_call_fails)
{
    size_t page = os_page_size();
    char *map = os_map(page, page);

    map[0] = 1;
    if (madvise(map, page, 24) == 0 && map[0]) {
        SKIP("MADV_DONTNEED_LOCKED succeeds and does nothing here");
    }
    CHECK_EQ(discard_whatever_fails(map, page), 1);
    /* The first fails by itself where memory is locked: then the second. */
    if (mlock(map, page) == 0) {
        CHECK(discard_whatever_fails(map, page) >= 1);
    }
    os_unmap(map, page);
}

TEST(a_mapping_that_cannot_be_unmapped_keeps_no_memory)
{
    size_t page = os_page_size();
    char *map = os_map(page, page);

    map[0] = 1;
    os_fault_arm(1, ENOMEM, "munmap");
    os_unmap(map, page);
    CHECK(os_fault_fired());
    CHECK_EQ(map[0], 0);
    os_unmap(map, page);
    /* What is too much of it is not cut off. */
    for (unsigned nth = 1; nth <= 2; nth++) {
        os_fault_arm(nth, ENOMEM, "munmap");
        map = os_map(3 * page, 4 << 20);
        os_fault_fired();
        CHECK(map != NULL);
        CHECK_EQ((uintptr_t)map % (4 << 20), 0);
        memset(map, 1, 3 * page);
        os_unmap(map, 3 * page);
    }
}

TEST(mappings_are_aligned_and_zeroed)
{
    unsigned char present;
    size_t align;

    for (align = os_page_size(); align <= 4 << 20; align *= 2) {
        char *map = os_map(3 * os_page_size(), align);

        CHECK(map != NULL);
        CHECK_EQ((uintptr_t)map % align, 0);
        CHECK_EQ(map[0] + map[3 * os_page_size() - 1], 0);
        memset(map, 1, 3 * os_page_size());
        os_unmap(map, 3 * os_page_size());
        /* Nothing is left of it. */
        CHECK(mincore(map, os_page_size(), &present) < 0 && errno == ENOMEM);
    }
}

/* The flags of the mapping at address, from smaps, or false. */
static bool mapping_flags(const void *address, char *flags, size_t size)
{
    FILE *smaps = fopen("/proc/self/smaps", "re");
    char line[512];
    bool inside = false, found = false;

    while (smaps && !found && fgets(line, sizeof(line), smaps)) {
        unsigned long from, to;

        if (sscanf(line, "%lx-%lx ", &from, &to) == 2) {
            inside = from <= (uintptr_t)address && (uintptr_t)address < to;
        } else if (inside && strncmp(line, "VmFlags:", 8) == 0) {
            snprintf(flags, size, "%s", line);
            found = true;
        }
    }
    if (smaps) {
        fclose(smaps);
    }
    return found;
}

/* Emulators may say yes to advice and not pass it on. */
static bool advice_is_taken(void)
{
    char *map = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char flags[512] = "";
    bool taken;

    CHECK(map != MAP_FAILED);
    taken = madvise(map, 4 << 20, MADV_NOHUGEPAGE) != 0 ||
            !mapping_flags(map, flags, sizeof(flags)) ||
            strstr(flags, " nh") != NULL;
    CHECK_EQ(munmap(map, 4 << 20), 0);
    return taken;
}

TEST(mappings_get_no_huge_pages)
{
    char *map = os_map(4 << 20, 2 << 20);
    char flags[512];

    if (!mapping_flags(map, flags, sizeof(flags))) {
        SKIP("/proc/self/smaps says nothing here");
    }
    if (!advice_is_taken()) {
        SKIP("MADV_NOHUGEPAGE succeeds and does nothing here");
    }
    /* nh: no huge pages; kernels without them do not know it. */
    CHECK(strstr(flags, " nh") ||
          access("/sys/kernel/mm/transparent_hugepage", F_OK));
}

TEST(a_mapping_too_large_is_null)
{
    CHECK(os_map(SIZE_MAX / 2, os_page_size()) == NULL);
    CHECK(os_map(SIZE_MAX - (1 << 20), 4 << 20) == NULL);
    os_fault_arm(1, ENOMEM, "map");
    CHECK(os_map(4096, os_page_size()) == NULL);
    CHECK(os_fault_fired());
}

TEST_MAIN()
