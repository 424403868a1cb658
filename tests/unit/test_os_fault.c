/* SPDX-License-Identifier: MIT */
/*
 * The fault injector, the counters, the heap and the assertions: the tests of
 * everything else rest on these.
 */
#include "base/assert.h"
#include "base/atomic.h"
#include "harness.h"
#include "os/clock.h"
#include "os/fault.h"
#include "os/memory.h"
#include "os/misc.h"
#include "os/thread.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

TEST(nothing_fails_unless_armed)
{
    CHECK_EQ(os_fault("alloc"), 0);
    CHECK(!os_fault_fired());
}

TEST(the_nth_call_fails_and_no_other)
{
    unsigned nth, i;

    for (nth = 1; nth < 10; nth++) {
        os_fault_arm(nth, ENOMEM, NULL);
        for (i = 1; i < 20; i++) {
            CHECK_EQ(os_fault("alloc"), i == nth ? ENOMEM : 0);
        }
        CHECK(os_fault_fired());
    }
}

TEST(only_calls_of_that_name_count)
{
    os_fault_arm(2, EIO, "write");
    CHECK_EQ(os_fault("write"), 0);
    CHECK_EQ(os_fault("read"), 0);
    CHECK_EQ(os_fault("pwritev"), 0);
    CHECK_EQ(os_fault("write"), EIO);
    CHECK_EQ(os_fault("write"), 0);
    CHECK(os_fault_fired());
}

TEST(the_call_that_failed_has_a_name)
{
    os_fault_arm(2, EIO, NULL);
    CHECK_EQ(os_fault("read"), 0);
    CHECK(os_fault_call() == NULL);
    CHECK_EQ(os_fault("write"), EIO);
    CHECK_EQ(os_fault("read"), 0);
    CHECK_STR(os_fault_call(), "write");
    CHECK(os_fault_fired());
    CHECK_STR(os_fault_call(), "write");
    os_fault_arm(0, 0, NULL);
    CHECK(os_fault_call() == NULL);
}

TEST(a_fault_that_has_not_happened_goes_away)
{
    os_fault_arm(3, EIO, NULL);
    CHECK_EQ(os_fault("read"), 0);
    CHECK(!os_fault_fired());
    CHECK_EQ(os_fault("read"), 0);
    CHECK_EQ(os_fault("read"), 0);
    os_fault_arm(1, EIO, NULL);
    os_fault_arm(0, 0, NULL);
    CHECK_EQ(os_fault("read"), 0);
    CHECK(!os_fault_fired());
}

static unsigned failed; /* atomic */

static void make_calls(void *arg)
{
    int i;

    (void)arg;
    for (i = 0; i < 1000; i++) {
        if (os_fault("read")) {
            fetch_add_relaxed(&failed, 1);
        }
    }
}

TEST(of_many_threads_one_call_fails)
{
    OsThreadStart start = {.run = make_calls};
    OsThreadHandle threads[4];
    unsigned i;

    os_fault_arm(2500, EIO, "read");
    for (i = 0; i < 4; i++) {
        CHECK_EQ(os_thread_start(&threads[i], &start), 0);
    }
    for (i = 0; i < 4; i++) {
        os_thread_join(&threads[i]);
    }
    CHECK_EQ(load_relaxed(&failed), 1);
    CHECK(os_fault_fired());
}

TEST(locked_operations_are_counted_and_the_counters_are_not)
{
    uint64_t before = os_locked_operations();
    unsigned word = 0;

    os_count(OS_COUNT_SYSCALLS);
    os_fault_arm(5, EIO, NULL);
    os_fault("read");
    load_acquire(&word);
    store_release(&word, 1);
    CHECK_EQ(os_locked_operations(), before);
    fetch_add_relaxed(&word, 1);
    xchg_acq_rel(&word, 1);
    fence_seq_cst();
    CHECK_EQ(os_locked_operations(), before + 3);
}

TEST(allocations_are_zeroed_aligned_and_counted)
{
    uint64_t made = os_counter(OS_COUNT_ALLOCATIONS);
    uint64_t freed = os_counter(OS_COUNT_FREES);
    size_t size;

    for (size = 1; size < 5000; size += 61) {
        unsigned char *block = os_alloc(size);
        size_t i;

        CHECK(block != NULL);
        CHECK_EQ((uintptr_t)block % (size < 64 ? 16 : 64), 0);
        for (i = 0; i < size; i++) {
            CHECK_EQ(block[i], 0);
        }
        memset(block, 0xff, size);
        os_free(block);
    }
    os_free(NULL);
    CHECK_EQ(os_counter(OS_COUNT_ALLOCATIONS) - made,
             os_counter(OS_COUNT_FREES) - freed);
    CHECK(os_counter(OS_COUNT_ALLOCATIONS) > made);
}

TEST(a_block_that_cannot_grow_stays)
{
    char *block = os_realloc(NULL, 10);

    strcpy(block, "word");
    os_fault_arm(1, ENOMEM, "alloc");
    CHECK(os_realloc(block, 1000) == NULL);
    CHECK_STR(block, "word");
    block = os_realloc(block, 1000);
    CHECK_STR(block, "word");
    os_free(block);
    os_fault_arm(1, ENOMEM, "alloc");
    CHECK(os_alloc(10) == NULL);
}

TEST(copies_of_strings_are_cut)
{
    char *whole = os_strndup("abc", 5), *cut = os_strndup("abcdef", 5);

    CHECK_STR(whole, "abc");
    CHECK_STR(cut, "abcde");
    os_free(whole);
    os_free(cut);
    os_fault_arm(1, ENOMEM, NULL);
    CHECK(os_strndup("abc", 5) == NULL);
}

TEST(random_numbers_differ)
{
    uint64_t ones = 0, all = ~UINT64_C(0), last = os_random();
    int i;

    for (i = 0; i < 1000; i++) {
        uint64_t next = os_random();

        CHECK(next != last);
        ones |= next;
        all &= next;
        last = next;
    }
    CHECK(ones == ~UINT64_C(0));
    CHECK(all == 0);
}

TEST(without_random_bits_the_clock_is_the_seed)
{
    uint64_t first;

    os_fault_arm(1, ENOSYS, "getrandom");
    first = os_random();
    CHECK(os_fault_fired());
    CHECK(first != 0);
    CHECK(os_random() != first);
}

TEST(the_environment_is_read_once)
{
    setenv("COAIO_DEBUG", "1", 1);
    CHECK(os_debug());
    unsetenv("COAIO_DEBUG");
    CHECK(os_debug());
    CHECK(os_getenv("COAIO_DEBUG") == NULL);
}

TEST(debug_is_off_by_default)
{
    unsetenv("COAIO_DEBUG");
    CHECK(!os_debug());
}

TEST(clocks_go_on)
{
    int64_t mono = os_clock_monotonic_ns();

    CHECK(mono > 0);
    CHECK(os_clock_monotonic_ns() >= mono);
    /* Later than 2020. */
    CHECK(os_clock_realtime_ns() > INT64_C(1577836800) * 1000000000);
}

TEST(the_shadow_stack_can_be_asked_for)
{
    const char *without = os_shadow_stack();

    CHECK(!without || strchr(without, '='));
}

/* Not one of the library, which keeps its own. */
TEST_ABORTS(an_invariant_that_does_not_hold_is_named,
            "^coaio: internal error: two \\+ two == 5 does not hold at "
            ".*test_os_fault\\.c:[0-9]+$")
{
    int two = 2;

    invariant(two + two == 4);
    invariant(two + two == 5);
}

TEST_MAIN()
