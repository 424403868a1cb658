/* SPDX-License-Identifier: MIT */

/*
 * The test harness: runs each registered case in a child of its own.
 *
 * The parent has one thread, opens nothing that a child could lose, and
 * learns of a child's end through SIGCHLD, which it keeps blocked and takes
 * with sigtimedwait(); so neither the watchdog nor an interrupt needs a
 * handler.  A child's output goes to a memory file, never to a pipe: a case
 * that writes much cannot block, and a stray grandchild that keeps the file
 * open cannot hold up the parent.
 *
 * INVARIANTS
 *  1. A child is reaped only after its process group has been killed, so
 *     that the group's number cannot have been given to somebody else.
 *  2. What a child tells the parent beside its status (the reason for a
 *     skip) lies in one shared page that the parent clears before the fork.
 */

#include "harness.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <regex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    STATUS_SKIPPED = 77,
    FDS_MAX = 4096,
    TIMEOUT_SECONDS = 60,
};

typedef struct Shared {
    char skip_reason[256];
} Shared;

typedef struct Outcome {
    bool ok;
    bool skipped;
    char why[512]; /* for a case that is not ok */
} Outcome;

typedef struct FdSet {
    unsigned count;
    int fd[FDS_MAX];
} FdSet;

static struct {
    HarnessCase *first;
    HarnessCase **end; /* the pointer that the next case goes into */
    Shared *shared;    /* NULL in a process without a parent to tell */
    unsigned allowed_fds;
    bool verbose;
    sigset_t wait_set;     /* what the parent blocks and waits for */
    sigset_t initial_mask; /* what it was started with; the child's mask */
} harness;

void harness_register(HarnessCase *c)
{
    if (!harness.end) {
        harness.end = &harness.first;
    }
    *harness.end = c;
    harness.end = &c->next;
}

/* --- Called by a case ---------------------------------------------------- */

void harness_fail(const char *file, int line, const char *format, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    dprintf(STDERR_FILENO, "%s:%d: %s\n", file, line, text);
    _exit(1);
}

void harness_check_eq(const char *file, int line, const char *text, intmax_t a,
                      intmax_t b)
{
    if (a != b) {
        harness_fail(file, line, "CHECK_EQ(%s): %jd (%#jx) is not %jd (%#jx)",
                     text, a, (uintmax_t)a, b, (uintmax_t)b);
    }
}

void harness_check_str(const char *file, int line, const char *text,
                       const char *a, const char *b)
{
    bool same = a && b ? strcmp(a, b) == 0 : a == b;

    if (!same) {
        harness_fail(file, line, "CHECK_STR(%s): \"%s\" is not \"%s\"", text,
                     a ? a : "(null)", b ? b : "(null)");
    }
}

void harness_skip(const char *reason)
{
    if (harness.shared) {
        snprintf(harness.shared->skip_reason,
                 sizeof harness.shared->skip_reason, "%s", reason);
    } else {
        dprintf(STDERR_FILENO, "skipped: %s\n", reason);
    }
    _exit(STATUS_SKIPPED);
}

void harness_allow_fds(unsigned n)
{
    harness.allowed_fds = n;
}

static unsigned long number_from_env(const char *name, unsigned long fallback)
{
    const char *text = getenv(name);
    char *end;
    unsigned long value;

    if (!text || !*text) {
        return fallback;
    }
    errno = 0;
    value = strtoul(text, &end, 0);
    if (errno || *end) {
        fprintf(stderr, "%s: not a number: %s\n", name, text);
        exit(2);
    }
    return value;
}

unsigned long harness_load(unsigned long rounds)
{
    unsigned long percent = number_from_env("COAIO_TEST_LOAD", 100);
    unsigned long scaled = rounds * percent / 100;

    return scaled ? scaled : 1;
}

uint64_t harness_seed(void)
{
    struct timespec now;
    uint64_t seed;

    clock_gettime(CLOCK_REALTIME, &now);
    seed = (uint64_t)now.tv_nsec * 2654435761u ^ (uint64_t)getpid();
    seed = number_from_env("COAIO_TEST_SEED", seed & UINT32_MAX);
    dprintf(STDERR_FILENO, "seed: COAIO_TEST_SEED=%ju\n", (uintmax_t)seed);
    return seed;
}

/* --- The child ----------------------------------------------------------- */

static void list_fds(FdSet *set)
{
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;

    set->count = 0;
    if (!dir) {
        return;
    }
    while ((entry = readdir(dir))) {
        int fd = atoi(entry->d_name);

        if (entry->d_name[0] == '.' || fd == dirfd(dir)) {
            continue;
        }
        assert(set->count < FDS_MAX);
        set->fd[set->count++] = fd;
    }
    closedir(dir);
}

static bool has_fd(const FdSet *set, int fd)
{
    for (unsigned i = 0; i < set->count; i++) {
        if (set->fd[i] == fd) {
            return true;
        }
    }
    return false;
}

static void describe_fd(int fd)
{
    char path[64];
    char target[256];
    ssize_t length;

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    length = readlink(path, target, sizeof target - 1);
    target[length < 0 ? 0 : length] = '\0';
    dprintf(STDERR_FILENO, "leaked file descriptor %d: %s\n", fd, target);
}

/* Returns false where more descriptors than allowed have been left open. */
static bool check_fds(const FdSet *before)
{
    static FdSet after;
    unsigned leaked = 0;

    list_fds(&after);
    for (unsigned i = 0; i < after.count; i++) {
        leaked += !has_fd(before, after.fd[i]);
    }
    if (leaked <= harness.allowed_fds) {
        return true;
    }
    for (unsigned i = 0; i < after.count; i++) {
        if (!has_fd(before, after.fd[i])) {
            describe_fd(after.fd[i]);
        }
    }
    return false;
}

static void run_body(const HarnessCase *c) __attribute__((noreturn));

static void run_body(const HarnessCase *c)
{
    static FdSet before;

    list_fds(&before);
    c->body();
    if (!check_fds(&before)) {
        _exit(1);
    }
    exit(0);
}

/*
 * A limit of 0 keeps the kernel from writing a core file; one of 1 keeps it
 * from starting a core collector as well, which ignores 0.
 */
static void disable_core_dumps(void)
{
    struct rlimit limit = {0, 0};
    char first = 0;
    int fd = open("/proc/sys/kernel/core_pattern", O_RDONLY | O_CLOEXEC);

    if (fd >= 0) {
        if (read(fd, &first, 1) == 1 && first == '|') {
            limit.rlim_cur = 1;
            limit.rlim_max = 1;
        }
        close(fd);
    }
    setrlimit(RLIMIT_CORE, &limit);
}

static void be_child(const HarnessCase *c, int output, pid_t parent)
    __attribute__((noreturn));

static void be_child(const HarnessCase *c, int output, pid_t parent)
{
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(1);
    }
    dup2(null, STDIN_FILENO);
    dup2(output, STDOUT_FILENO);
    dup2(output, STDERR_FILENO);
    close(null);
    close(output);
    if (c->signal) {
        disable_core_dumps();
    }
    sigprocmask(SIG_SETMASK, &harness.initial_mask, NULL);
    run_body(c);
}

/* --- The parent ---------------------------------------------------------- */

static void die(const char *what)
{
    perror(what);
    exit(2);
}

static void kill_group_and_reap(pid_t child, int *status)
{
    kill(-child, SIGKILL);
    kill(child, SIGKILL);
    while (waitpid(child, status, 0) < 0) {
        if (errno != EINTR) {
            die("waitpid");
        }
    }
}

static double now_seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Returns whether @child has ended; it stays a zombie (invariant 1). */
static bool has_ended(pid_t child)
{
    siginfo_t info;

    info.si_pid = 0;
    if (waitid(P_PID, (id_t)child, &info, WEXITED | WNOHANG | WNOWAIT) < 0) {
        die("waitid");
    }
    return info.si_pid == child;
}

/* Waits for the end of @child; returns false if the watchdog ended it. */
static bool wait_for_child(pid_t child, unsigned long seconds, int *status)
{
    double deadline = now_seconds() + (double)seconds;
    double left = (double)seconds;

    while (!has_ended(child)) {
        struct timespec timeout = {(time_t)left + 1, 0};
        int sig = sigtimedwait(&harness.wait_set, NULL, &timeout);

        if (sig > 0 && sig != SIGCHLD) {
            kill_group_and_reap(child, status);
            sigprocmask(SIG_SETMASK, &harness.initial_mask, NULL);
            raise(sig);
            exit(2);
        }
        left = deadline - now_seconds();
        if (left <= 0 && !has_ended(child)) {
            kill_group_and_reap(child, status);
            return false;
        }
    }
    kill_group_and_reap(child, status);
    return true;
}

/* Returns the file's contents as a string; the caller frees it. */
static char *read_output(int fd)
{
    off_t size = lseek(fd, 0, SEEK_END);
    char *text = malloc((size_t)size + 1);
    size_t got = 0;

    if (!text) {
        die("malloc");
    }
    while (got < (size_t)size) {
        ssize_t n = pread(fd, text + got, (size_t)size - got, (off_t)got);

        if (n <= 0) {
            break;
        }
        got += (size_t)n;
    }
    text[got] = '\0';
    return text;
}

static bool line_matches(const char *text, const char *pattern)
{
    regex_t regex;
    bool found;

    if (regcomp(&regex, pattern, REG_EXTENDED | REG_NEWLINE | REG_NOSUB)) {
        fprintf(stderr, "not a regular expression: %s\n", pattern);
        exit(2);
    }
    found = regexec(&regex, text, 0, NULL, 0) == 0;
    regfree(&regex);
    return found;
}

static void describe_status(char *to, size_t size, int status)
{
    if (WIFSIGNALED(status)) {
        snprintf(to, size, "killed by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    } else {
        snprintf(to, size, "exit status %d", WEXITSTATUS(status));
    }
}

static Outcome judge(const HarnessCase *c, int status, const char *output)
{
    Outcome o = {.ok = false};
    bool died =
        c->signal && WIFSIGNALED(status) && WTERMSIG(status) == c->signal;

    describe_status(o.why, sizeof o.why, status);
    if (WIFEXITED(status) && WEXITSTATUS(status) == STATUS_SKIPPED) {
        o.ok = true;
        o.skipped = true;
    } else if (!c->signal) {
        o.ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    } else if (!died) {
        size_t length = strlen(o.why);

        snprintf(o.why + length, sizeof o.why - length,
                 " where signal %d (%s) was expected", c->signal,
                 strsignal(c->signal));
    } else if (c->pattern && !line_matches(output, c->pattern)) {
        snprintf(o.why, sizeof o.why, "no line matches: %s", c->pattern);
    } else {
        o.ok = true;
    }
    return o;
}

static void print_diagnostics(const char *output)
{
    while (*output) {
        int length = (int)strcspn(output, "\n");

        printf("# %.*s\n", length, output);
        output += length;
        output += *output == '\n';
    }
}

static Outcome run_forked(const HarnessCase *c, char **output)
{
    unsigned long seconds =
        TIMEOUT_SECONDS * number_from_env("COAIO_TEST_TIMEOUT_SCALE", 1);
    int file = memfd_create("harness-output", MFD_CLOEXEC);
    pid_t parent = getpid();
    pid_t child;
    int status = 0;
    Outcome o = {.ok = false};

    if (file < 0) {
        die("memfd_create");
    }
    memset(harness.shared, 0, sizeof *harness.shared);
    fflush(NULL);
    child = fork();
    if (child < 0) {
        die("fork");
    } else if (child == 0) {
        be_child(c, file, parent);
    }
    setpgid(child, child);
    if (wait_for_child(child, seconds, &status)) {
        *output = read_output(file);
        o = judge(c, status, *output);
    } else {
        *output = read_output(file);
        snprintf(o.why, sizeof o.why, "hung: killed after %lu s", seconds);
    }
    close(file);
    return o;
}

/* Runs and reports one case; returns whether it is ok. */
static bool run_case(const HarnessCase *c, unsigned number)
{
    char *output = NULL;
    Outcome o = run_forked(c, &output);

    if (!o.ok || harness.verbose) {
        print_diagnostics(output);
    }
    if (!o.ok) {
        printf("# %s: %s\n", c->name, o.why);
    }
    printf("%s %u - %s", o.ok ? "ok" : "not ok", number, c->name);
    if (o.skipped) {
        printf(" # SKIP %s", harness.shared->skip_reason);
    }
    printf("\n");
    free(output);
    return o.ok;
}

/* Whether COAIO_TEST_EXCEPT has it: patterns, with colons in between. */
static bool is_excepted(const HarnessCase *c)
{
    const char *list = getenv("COAIO_TEST_EXCEPT");
    char pattern[128];
    size_t length;

    while (list && *list) {
        length = strcspn(list, ":");
        snprintf(pattern, sizeof pattern, "%.*s", (int)length, list);
        if (fnmatch(pattern, c->name, 0) == 0) {
            return true;
        }
        list += length + (list[length] == ':');
    }
    return false;
}

static bool is_chosen(const HarnessCase *c, char **patterns)
{
    if (!*patterns) {
        return !is_excepted(c);
    }
    for (; *patterns; patterns++) {
        if (fnmatch(*patterns, c->name, 0) == 0) {
            return true;
        }
    }
    return false;
}

static int run_chosen(char **patterns)
{
    unsigned chosen = 0;
    unsigned number = 0;
    bool ok = true;

    for (const HarnessCase *c = harness.first; c; c = c->next) {
        chosen += is_chosen(c, patterns);
    }
    if (chosen == 0 && !*patterns) {
        printf("1..0 # SKIP COAIO_TEST_EXCEPT has all of them\n");
        return 0;
    }
    if (chosen == 0) {
        fprintf(stderr, "no such case\n");
        return 2;
    }
    printf("1..%u\n", chosen);
    for (const HarnessCase *c = harness.first; c; c = c->next) {
        if (is_chosen(c, patterns)) {
            ok &= run_case(c, ++number);
        }
    }
    fflush(stdout);
    return ok ? 0 : 1;
}

static void prepare_parent(void)
{
    sigemptyset(&harness.wait_set);
    sigaddset(&harness.wait_set, SIGCHLD);
    sigaddset(&harness.wait_set, SIGHUP);
    sigaddset(&harness.wait_set, SIGINT);
    sigaddset(&harness.wait_set, SIGTERM);
    sigprocmask(SIG_BLOCK, &harness.wait_set, &harness.initial_mask);
    signal(SIGCHLD, SIG_DFL);

    harness.shared = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (harness.shared == MAP_FAILED) {
        die("mmap");
    }
}

static int run_in_this_process(const char *name)
{
    for (const HarnessCase *c = harness.first; c; c = c->next) {
        if (strcmp(c->name, name) == 0) {
            run_body(c);
        }
    }
    fprintf(stderr, "no such case: %s\n", name);
    return 2;
}

int harness_main(int argc, char **argv)
{
    char **patterns = argv + (argc > 0);

    /* Before any output, or it has no effect; a child leaves by _exit(). */
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (*patterns && strcmp(*patterns, "--list") == 0) {
        for (const HarnessCase *c = harness.first; c; c = c->next) {
            printf("%s\n", c->name);
        }
        return 0;
    }
    if (*patterns && strcmp(*patterns, "--no-fork") == 0 && patterns[1]) {
        return run_in_this_process(patterns[1]);
    }
    if (*patterns && strcmp(*patterns, "--verbose") == 0) {
        harness.verbose = true;
        patterns++;
    }
    prepare_parent();
    return run_chosen(patterns);
}
