/* SPDX-License-Identifier: MIT */

/*
 * Cases that fail in every way that the harness must notice.  Not a test of
 * its own: test_harness.c runs it, one case at a time, and reads the report.
 */

#include "../lib/harness.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void abort_saying(const char *line)
{
    fprintf(stderr, "%s\n", line);
    abort();
}

TEST(passes)
{
    printf("said while passing\n");
    CHECK(1 + 1 == 2);
    CHECK_EQ(7, 7u);
    CHECK_STR("a", "a");
    CHECK_STR(NULL, NULL);
}

TEST(fails_check)
{
    printf("said before failing\n");
    CHECK(1 + 1 == 3);
}

TEST(fails_check_eq)
{
    CHECK_EQ(6 * 7, 54);
}

TEST(fails_check_str)
{
    CHECK_STR("left", NULL);
}

TEST(skips)
{
    SKIP("no such device");
}

TEST(crashes)
{
    raise(SIGKILL);
}

TEST(aborts_unexpectedly)
{
    abort();
}

TEST(exits_early)
{
    exit(3);
}

TEST(leaks_fd)
{
    CHECK(open("/dev/null", O_RDONLY) >= 0);
}

TEST(keeps_allowed_fd)
{
    harness_allow_fds(1);
    CHECK(open("/dev/null", O_RDONLY) >= 0);
}

TEST(keeps_more_than_allowed)
{
    harness_allow_fds(1);
    CHECK(open("/dev/null", O_RDONLY) >= 0);
    CHECK(open("/dev/zero", O_RDONLY) >= 0);
}

TEST(reuses_fd_number)
{
    close(STDIN_FILENO);
    CHECK_EQ(open("/dev/zero", O_RDONLY), STDIN_FILENO);
}

static void *volatile lost;

/* Only LeakSanitizer and Valgrind notice. */
TEST(leaks_memory)
{
    lost = malloc(100);
    lost = NULL;
}

TEST(hangs)
{
    for (;;) {
        pause();
    }
}

TEST(leaves_grandchild)
{
    printf("group %d\n", (int)getpgrp());
    if (fork() == 0) {
        for (;;) {
            pause();
        }
    }
}

TEST_ABORTS(aborts, "^first [a-z]+ last$")
{
    abort_saying("first and last");
}

TEST_ABORTS(aborts_with_other_line, "^first [a-z]+ last$")
{
    abort_saying("something else");
}

TEST_ABORTS(aborts_over_two_lines, "first.*last")
{
    abort_saying("first\nlast");
}

TEST_ABORTS(does_not_abort, ".")
{
    printf("survived\n");
}

TEST_ABORTS(fails_before_abort, ".")
{
    CHECK(0);
}

TEST_ABORTS(skips_instead_of_abort, ".")
{
    SKIP("cannot abort here");
}

TEST_DIES(dies, SIGTERM, "^bye$")
{
    fprintf(stderr, "bye\n");
    raise(SIGTERM);
}

TEST_MAIN()
