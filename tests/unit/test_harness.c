/* SPDX-License-Identifier: MIT */

/*
 * The harness itself: a failing case must be reported as failing.  Each case
 * runs one of harness_specimen's and reads its report and exit status.
 */

#include "../lib/harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

typedef struct Report {
    int status;
    char text[8192];
} Report;

static void run_specimen(Report *r, const char *arguments)
{
    const char *program = getenv("HARNESS_SPECIMEN");
    const char *wrapper = getenv("MESON_EXE_WRAPPER"); /* an emulator */
    char command[1024];
    size_t length;
    FILE *stream;

    if (!program) {
        SKIP("HARNESS_SPECIMEN does not name the specimen program");
    }
    snprintf(command, sizeof command, "exec %s '%s' %s 2>&1",
             wrapper ? wrapper : "", program, arguments);
    stream = popen(command, "re");
    CHECK(stream != NULL);
    length = fread(r->text, 1, sizeof r->text - 1, stream);
    r->text[length] = '\0';
    r->status = pclose(stream);
    printf("%s", r->text);
    CHECK(WIFEXITED(r->status));
    r->status = WEXITSTATUS(r->status);
}

static void expect(const char *arguments, int status, const char *text)
{
    Report r;

    run_specimen(&r, arguments);
    CHECK_EQ(r.status, status);
    CHECK(strstr(r.text, text) != NULL);
}

static void expect_failure(const char *name, const char *why)
{
    char line[128];

    expect(name, 1, why);
    snprintf(line, sizeof line, "not ok 1 - %s\n", name);
    expect(name, 1, line);
}

TEST(a_passing_case_is_ok)
{
    Report r;

    run_specimen(&r, "passes");
    CHECK_EQ(r.status, 0);
    CHECK_STR(r.text, "1..1\nok 1 - passes\n");
}

TEST(a_failed_check_names_file_line_and_values)
{
    expect_failure("fails_check", "harness_specimen.c:");
    expect("fails_check", 1, "CHECK(1 + 1 == 3)");
    expect("fails_check", 1, "# said before failing\n");
    expect_failure("fails_check_eq", "CHECK_EQ(6 * 7 == 54): 42");
    expect("fails_check_eq", 1, "is not 54");
    expect_failure("fails_check_str", "\"left\" is not \"(null)\"");
}

TEST(a_skip_carries_its_reason)
{
    expect("skips", 0, "ok 1 - skips # SKIP no such device\n");
    expect("skips_instead_of_abort", 0, "# SKIP cannot abort here\n");
}

TEST(a_crash_fails)
{
    expect_failure("crashes", "killed by signal 9");
    expect_failure("aborts_unexpectedly", "killed by signal 6");
    expect_failure("exits_early", "exit status 3");
}

TEST(a_leaked_fd_fails)
{
    expect_failure("leaks_fd", "/dev/null");
    expect_failure("keeps_more_than_allowed", "/dev/zero");
    expect("keeps_allowed_fd", 0, "ok 1");
    expect("reuses_fd_number", 0, "ok 1");
}

#if defined(__SANITIZE_ADDRESS__)
#define HAS_LEAK_CHECK 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_LEAK_CHECK 1
#endif
#endif

#ifdef HAS_LEAK_CHECK
TEST(leaked_memory_fails)
{
    expect_failure("leaks_memory", "LeakSanitizer");
}
#endif

TEST(an_expected_abort_must_come_with_its_line)
{
    expect("aborts", 0, "ok 1 - aborts\n");
    expect_failure("aborts_with_other_line", "no line matches");
    expect_failure("aborts_over_two_lines", "no line matches");
    expect_failure("does_not_abort", "exit status 0");
    expect_failure("fails_before_abort", "exit status 1");
    expect("dies", 0, "ok 1 - dies\n");
}

TEST(excepted_cases_do_not_run)
{
    Report r;

    CHECK_EQ(setenv("COAIO_TEST_EXCEPT", "[a-o]*:[q-z]*", 1), 0);
    run_specimen(&r, "");
    CHECK_EQ(r.status, 0);
    CHECK_STR(r.text, "1..1\nok 1 - passes\n");
    expect("skips", 0, "ok 1 - skips"); /* it was asked for */
    CHECK_EQ(setenv("COAIO_TEST_EXCEPT", "nothing:*", 1), 0);
    expect("", 0, "1..0 # SKIP");
}

/* The clock of this case is the watchdog's: a scale of 0 makes it 0 s. */
TEST(a_hung_case_is_killed)
{
    CHECK_EQ(setenv("COAIO_TEST_TIMEOUT_SCALE", "0", 1), 0);
    expect_failure("hangs", "hung: killed after 0 s");
}

/* This process adopts the orphan, so it can wait for its end. */
TEST(a_grandchild_does_not_outlive_its_case)
{
    Report r;
    char *group;
    pid_t pgid;
    int status;

    if (prctl(PR_SET_CHILD_SUBREAPER, 1)) {
        SKIP("this kernel, or emulator, lets no process adopt orphans");
    }
    run_specimen(&r, "--verbose leaves_grandchild");
    CHECK_EQ(r.status, 0);
    group = strstr(r.text, "# group ");
    CHECK(group != NULL);
    pgid = atoi(group + strlen("# group "));
    CHECK(pgid > 1);
    CHECK(waitpid(-pgid, &status, 0) > 0);
    CHECK(WIFSIGNALED(status));
    CHECK_EQ(WTERMSIG(status), SIGKILL);
}

TEST(a_filter_takes_names_and_globs)
{
    expect("'pass*' skips", 0, "1..2\n");
    expect("no_such_case", 2, "no such case");
    expect("--list", 0, "aborts_with_other_line\n");
}

TEST(one_case_runs_in_the_process_itself)
{
    Report r;

    run_specimen(&r, "--no-fork passes");
    CHECK_EQ(r.status, 0);
    CHECK_STR(r.text, "said while passing\n");
    expect("--no-fork skips", 77, "skipped: no such device");
}

TEST(load_and_seed_come_from_the_environment)
{
    CHECK_EQ(setenv("COAIO_TEST_LOAD", "10", 1), 0);
    CHECK_EQ(harness_load(1000), 100);
    CHECK_EQ(harness_load(1), 1);
    CHECK_EQ(setenv("COAIO_TEST_SEED", "0x2a", 1), 0);
    CHECK_EQ(harness_seed(), 42);
}

TEST_MAIN()
