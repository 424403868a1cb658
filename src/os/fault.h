/* SPDX-License-Identifier: MIT */
/*
 * Test builds only (COAIO_TESTING): making system calls and allocations fail,
 * counting them, and recording them.  In other builds all of it is nothing.
 *
 * Each call of os/ that can fail, and whose failure matters to anybody, asks
 * os_fault() first, by its own name or by that of the function of os/ that it
 * is made for.  Not asked for are
 *
 *   - what cannot fail as it is called here: clocks, the sizes of pages and of
 *     signal stacks, signal masks, locks and condition variables, joining and
 *     detaching, raise(3); and waking on a futex, which fails only where nobody
 *     can wait.  What the library relies on there is an invariant.
 *   - what is done all the same, and has no result that anybody looks at:
 *     closing and unmapping what was for a probe, or is given up after an
 *     error; and the line of a report, when the process dies.
 *   - a second call for the same purpose, in a function that has asked:
 *     epoll_wait(2) in place of epoll_pwait2(2), read(2) after open(2), what
 *     liburing maps for a ring.  Tests refuse the first ones by seccomp.
 */
#ifndef COAIO_OS_FAULT_H
#define COAIO_OS_FAULT_H

#include <stdbool.h>
#include <stdint.h>

#ifdef COAIO_TESTING

typedef enum OsCount {
    OS_COUNT_SYSCALLS,      /* everything that enters the kernel from os/ */
    OS_COUNT_NOTIFICATIONS, /* os_event_set() */
    OS_COUNT_ALLOCATIONS,   /* os_alloc(), os_realloc(), os_map() */
    OS_COUNT_FREES,
    OS_COUNT_MAX,
} OsCount;

/*
 * Let the nth call from now (1: the next) that may fail, in any thread, fail
 * with error; 0 switches it off.  only, if not NULL, restricts it to the
 * calls of that name ("epoll_ctl", "alloc", ...).
 */
void os_fault_arm(uint64_t nth, int error, const char *only);
/* Whether the armed fault has happened; also switches it off. */
bool os_fault_fired(void);
/* The name of the call that it has made to fail, or NULL. */
const char *os_fault_call(void);
/* For os/ itself: 0, or the error (positive) that this call is to fail with. */
int os_fault(const char *call);

/* Process-wide counters. */
void os_count(OsCount what);
uint64_t os_counter(OsCount what);
/* Locked operations (read-modify-writes, fences) of the calling thread. */
uint64_t os_locked_operations(void);

/* Called by os/ around each I/O call; a test may set a recorder. */
typedef struct OsRecord {
    const char *call;
    int fd;
    int64_t offset;
    int64_t result;
    bool begin; /* before the call, else after it */
} OsRecord;
typedef void OsRecorder(const OsRecord *record);
void os_set_recorder(OsRecorder *recorder);
void os_record(const char *call, int fd, int64_t offset, int64_t result,
               bool begin);

#else

#define os_fault(call)                             0
#define os_count(what)                             ((void)0)
#define os_record(call, fd, offset, result, begin) ((void)0)

#endif

#endif
