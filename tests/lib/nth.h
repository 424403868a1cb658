/* SPDX-License-Identifier: MIT */
#ifndef COAIO_TESTS_NTH_H
#define COAIO_TESTS_NTH_H

/*
 * Cases in which the nth call fails, for each n until none does.
 */

#include "harness.h"
#include "os/fault.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define NTH_MOST 500

/*
 * Whether the fault, if one has happened, hit a call that the library goes on
 * without: nobody sees an error then.  All others must be reported.
 */
static inline bool nth_is_done_without(void)
{
    static const char *const calls[] = {
        "pthread_key_create",  /* with a warning */
        "pthread_atfork",      /* likewise */
        "pthread_setspecific", /* tried again */
        "pthread_setname_np",  /* nobody asks */
        "sysconf",             /* one processor is what there is at least */
        "io_uring_enter",      /* one of a few that are made for a try */
        "futex_wait",          /* it returns early */
        "event_set",           /* tried again */
        "event_drain",         /* likewise */
        "munmap",              /* addresses are lost, not memory */
        "madvise",             /* of huge pages, or there is another way */
        "mprotect",            /* a signal stack goes unguarded */
    };
    const char *hit = os_fault_call();
    unsigned i;

    for (i = 0; hit && i < sizeof(calls) / sizeof(calls[0]); i++) {
        if (strcmp(hit, calls[i]) == 0) {
            return true;
        }
    }
    return false;
}

/*
 * Call body in a process of its own for each n: for what happens once in a
 * process.  The caller has not used the library yet.  Returns how many faults
 * there were.
 */
static inline unsigned nth_alone(void (*body)(void), int error,
                                 const char *only)
{
    enum {
        FIRED = 42
    };
    unsigned nth = 0;
    int status;

    do {
        pid_t child;

        fflush(NULL);
        child = fork();
        CHECK(child >= 0);
        nth++;
        if (child == 0) {
            os_fault_arm(nth, error, only);
            body();
            exit(os_fault_call() ? FIRED : 0);
        }
        CHECK_EQ(waitpid(child, &status, 0), child);
        if (status != 0 && status != FIRED << 8) {
            harness_fail(__FILE__, __LINE__, "status %#x, call %u of %s failed",
                         (unsigned)status, nth, only ? only : "all");
        }
        CHECK(nth < NTH_MOST);
    } while (status != 0);
    return nth - 1;
}

#endif
