/* SPDX-License-Identifier: MIT */
/*
 * Test builds only: faults, counters and the recorder.  Nothing here is in
 * the library that is installed.
 *
 * Guarantees: one armed fault happens once at the most, in whichever thread
 * makes the nth call; counting and recording are signal-safe.
 *
 * INVARIANTS
 *
 *   1. The locked operations that this file makes are not counted: it takes
 *      its own back, so that a test sees those of the code that it tests.
 */
#ifdef COAIO_TESTING

#include "os/fault.h"

#include "base/atomic.h"
#include "os/thread.h"

#include <string.h>

static uint64_t remaining;     /* atomic; calls until the fault, 1: the next */
static int armed_error;        /* atomic; 0: not armed */
static const char *armed_only; /* written before armed_error is set */
static bool fired;             /* atomic */
static const char *hit;        /* written before fired is set */

static uint64_t counters[OS_COUNT_MAX]; /* atomic */
static OsRecorder *recorder;            /* atomic */

void os_count_locked(void)
{
    os_thread()->locked_operations++;
}

uint64_t os_locked_operations(void)
{
    return os_thread()->locked_operations;
}

void os_fault_arm(uint64_t nth, int error, const char *only)
{
    store_release(&armed_error, 0);
    store_relaxed(&fired, false);
    if (nth == 0) {
        return;
    }
    store_relaxed(&armed_only, only);
    store_relaxed(&remaining, nth);
    store_release(&armed_error, error);
}

bool os_fault_fired(void)
{
    store_release(&armed_error, 0);
    return load_acquire(&fired);
}

const char *os_fault_call(void)
{
    return load_acquire(&fired) ? load_relaxed(&hit) : NULL;
}

int os_fault(const char *call)
{
    int error = load_acquire(&armed_error);
    const char *only;
    uint64_t before;

    if (error == 0) {
        return 0;
    }
    only = load_relaxed(&armed_only);
    if (only && strcmp(only, call) != 0) {
        return 0;
    }
    before = fetch_sub_relaxed(&remaining, 1);
    os_thread()->locked_operations--; /* INVARIANTS 1 */
    if (before != 1) {
        return 0;
    }
    store_release(&armed_error, 0);
    store_relaxed(&hit, call);
    store_release(&fired, true);
    return error;
}

void os_count(OsCount what)
{
    fetch_add_relaxed(&counters[what], 1);
    os_thread()->locked_operations--; /* INVARIANTS 1 */
}

uint64_t os_counter(OsCount what)
{
    return load_relaxed(&counters[what]);
}

void os_set_recorder(OsRecorder *to)
{
    store_release(&recorder, to);
}

void os_record(const char *call, int fd, int64_t offset, int64_t result,
               bool begin)
{
    OsRecorder *to = load_acquire(&recorder);
    OsRecord record = {
        .call = call,
        .fd = fd,
        .offset = offset,
        .result = result,
        .begin = begin,
    };

    if (to) {
        to(&record);
    }
}

#endif
