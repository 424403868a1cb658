/* SPDX-License-Identifier: MIT */
#ifndef COAIO_TESTS_HARNESS_H
#define COAIO_TESTS_HARNESS_H

/*
 * The test harness: one process a test.
 *
 * Each case runs in a forked child with a process group of its own, an empty
 * standard input and its output captured; the parent only forks, waits and
 * reports TAP.  It never calls the library, so a case starts from a process
 * in which nothing of coaio has run yet.  A watchdog (60 s, times
 * COAIO_TEST_TIMEOUT_SCALE) kills the whole group of a case that hangs.
 * After the body the child's open file descriptors are compared with those
 * before it, and the child leaves through exit(), so that LeakSanitizer and
 * Valgrind report what it has lost.
 *
 *     #include "harness.h"
 *
 *     TEST(two_and_two)
 *     {
 *         CHECK_EQ(2 + 2, 4);
 *     }
 *
 *     TEST_ABORTS(enter_twice, "coroutine .* is already entered")
 *     {
 *         misuse();
 *     }
 *
 *     TEST_MAIN()
 *
 * A test program takes:
 *
 *     --list          print the names of the cases
 *     --verbose       print what passing cases wrote, too
 *     --no-fork NAME  run one case in this process, for a debugger
 *     PATTERN...      run only the cases that match one of these globs
 *
 * Without patterns it leaves out the cases that match one of the globs in
 * COAIO_TEST_EXCEPT, which have colons in between.
 *
 *                          case body   coroutine   thread of a case
 *     CHECK, CHECK_EQ...      yes         yes            yes
 *     SKIP                    yes         yes            yes
 *     harness_allow_fds       yes         yes            no
 *     harness_load, _seed     yes         yes            yes
 */

#include <stdbool.h>
#include <stdint.h>

typedef struct HarnessCase HarnessCase;

struct HarnessCase {
    const char *name;
    void (*body)(void);
    int signal;          /* the case must die of this one; 0: must return */
    const char *pattern; /* extended regex for one line; NULL: none */
    HarnessCase *next;   /* in order of definition; owned by harness.c */
};

void harness_register(HarnessCase *c);

int harness_main(int argc, char **argv);

/*
 * Report a failed check and end the process with status 1.
 *
 * Uses little stack and takes no lock of the C library.
 */
void harness_fail(const char *file, int line, const char *format, ...)
    __attribute__((noreturn, format(printf, 3, 4)));

void harness_check_eq(const char *file, int line, const char *text, intmax_t a,
                      intmax_t b);

void harness_check_str(const char *file, int line, const char *text,
                       const char *a, const char *b);

void harness_skip(const char *reason) __attribute__((noreturn));

/*
 * Allow @n file descriptors to be open after the body that were not before,
 * for those that the library keeps until the process ends.
 */
void harness_allow_fds(unsigned n);

/*
 * Scale a number of rounds by COAIO_TEST_LOAD (per cent, default 100), so
 * that the slow tools need not run all of them.  Returns at least 1.
 */
unsigned long harness_load(unsigned long rounds);

/*
 * The seed for whatever a case draws at random: COAIO_TEST_SEED if it is
 * set, otherwise a new one.  It is printed with the output of a failed case.
 */
uint64_t harness_seed(void);

#define HARNESS_CASE_(name, signal, pattern)                                \
    static void name(void);                                                 \
    static HarnessCase harness_case_##name = {#name, name, signal, pattern, \
                                              0};                           \
    __attribute__((constructor)) static void harness_register_##name(void)  \
    {                                                                       \
        harness_register(&harness_case_##name);                             \
    }                                                                       \
    static void name(void)

/* A case that must return. */
#define TEST(name) HARNESS_CASE_(name, 0, 0)

/* A case that must die of SIGABRT with a line that matches @pattern. */
#define TEST_ABORTS(name, pattern) HARNESS_CASE_(name, 6, pattern)

/* A case that must die of @signal with a line that matches @pattern. */
#define TEST_DIES(name, signal, pattern) HARNESS_CASE_(name, signal, pattern)

#define CHECK(condition)                                               \
    do {                                                               \
        if (!(condition)) {                                            \
            harness_fail(__FILE__, __LINE__, "CHECK(%s)", #condition); \
        }                                                              \
    } while (0)

/* Compares integers or pointers. */
#define CHECK_EQ(a, b)                                 \
    harness_check_eq(__FILE__, __LINE__, #a " == " #b, \
                     (intmax_t)(intptr_t)(a), (intmax_t)(intptr_t)(b))

/* Compares strings; a null pointer equals only another. */
#define CHECK_STR(a, b) \
    harness_check_str(__FILE__, __LINE__, #a " == " #b, a, b)

#define SKIP(reason) harness_skip(reason)

#define TEST_MAIN()                      \
    int main(int argc, char **argv)      \
    {                                    \
        return harness_main(argc, argv); \
    }

#endif
