/* SPDX-License-Identifier: MIT */
/*
 * The delays of a build for soak (os/delay.c) find what they are for: an update
 * that is lost between a load and a store, a window of two instructions; and
 * they disturb neither errno nor the counters.  Nothing here can be tested
 * while they are off.
 */
#include "harness.h"

#include "base/atomic.h"
#include "os/fault.h"
#include "os/thread.h"

#include <errno.h>

#define UPDATES 20000

static uint32_t counter; /* atomic */

static void need_delays(void)
{
    if (!os_delays) {
        SKIP("COAIO_TEST_DELAYS is not set");
    }
}

static void update_badly(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < UPDATES; i++) {
        uint32_t seen = load_relaxed(&counter);

        store_relaxed(&counter, seen + 1);
    }
}

/* Whether two threads at once have lost an update. */
static bool lose_updates(void)
{
    OsThreadStart start = {.run = update_badly};
    OsThreadHandle threads[2];

    store_relaxed(&counter, 0);
    for (unsigned i = 0; i < 2; i++) {
        CHECK_EQ(os_thread_start(&threads[i], &start), 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        os_thread_join(&threads[i]);
    }
    return load_relaxed(&counter) < 2 * UPDATES;
}

/* Also where the threads have one core between them.  A temper of few delays
 * may need some rounds. */
TEST(a_lost_update_is_found)
{
    need_delays();
    while (!lose_updates()) {
        /* again */
    }
}

TEST(errno_and_counters_stay)
{
    uint64_t locked = os_locked_operations();
    uint64_t calls = os_counter(OS_COUNT_SYSCALLS);

    need_delays();
    errno = ENOTTY;
    for (unsigned i = 0; i < UPDATES; i++) {
        load_relaxed(&counter);
        CHECK_EQ(errno, ENOTTY);
    }
    CHECK_EQ(os_locked_operations(), locked);
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS), calls);
}

TEST_MAIN()
