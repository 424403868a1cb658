/* SPDX-License-Identifier: MIT */
/*
 * trial_uring: what a feature of io_uring is worth, without the library.
 *
 *     trial-uring [ROUNDS [MILLISECONDS [TASK]]]
 *
 * For each task that a loop has, the ways to do it, all in turn for so many
 * milliseconds, in so many rounds, each of which begins with another way.
 * Printed are, for one operation, median, minimum and maximum of the time that
 * passed and of the CPU time of the thread that does it.  docs/io_uring.md has
 * the results, and what follows from them.
 *
 *   wake     two threads with a ring each wake one another in turn; the other
 *            one sleeps in io_uring_enter()
 *   send     16 sockets get a message each; another thread receives
 *   receive  16 sockets bring a message each from another thread; all are taken
 *            in one pass, and are to lie where the receiver wants them
 *   accept   a thread connects 16 times, waits until all are closed, again
 *   read     16 reads of 4 KiB each, anywhere in a file of 64 MiB below TMPDIR
 *            (/var/tmp), which is to be on a disk: from the page cache, and
 *            past it
 *   write    the same with writes, past the page cache
 *
 * With TASK only those whose name begins so.  A way that fails in any round,
 * since the kernel or the file system does not know it, prints no figures.
 */
#include "trial.h"

enum { ROUNDS_MAX = 100, WAYS_MAX = 64 };

typedef struct Result {
    const Way *way;
    bool failed; /* in any round */
    double wall[ROUNDS_MAX], cpu[ROUNDS_MAX];
} Result;

static Result results[WAYS_MAX];
static unsigned n_results;

static void choose(const Way *ways, const char *task)
{
    for (; ways->task; ways++) {
        if (!strncmp(ways->task, task, strlen(task))) {
            bench_check(n_results < WAYS_MAX, "so many ways are foreseen");
            results[n_results++].way = ways;
        }
    }
}

/* Returns the number of the first result of another task than first's. */
static unsigned end_of_task(unsigned first)
{
    unsigned i = first;

    while (i < n_results &&
           !strcmp(results[i].way->task, results[first].way->task)) {
        i++;
    }
    return i;
}

static void run_round(unsigned round, uint64_t ns)
{
    for (unsigned first = 0, end; first < n_results; first = end) {
        end = end_of_task(first);
        for (unsigned i = 0; i < end - first; i++) {
            Result *r = &results[first + (i + round) % (end - first)];
            Cost cost = {0, 0};

            r->failed = r->failed || !r->way->run(r->way, ns, &cost);
            r->wall[round] = cost.wall_ns;
            r->cpu[round] = cost.cpu_ns;
        }
    }
}

static void print_spread(double *values, unsigned rounds)
{
    qsort(values, rounds, sizeof(*values), bench_compare);
    printf(" %9.0f %9.0f %9.0f",
           (values[(rounds - 1) / 2] + values[rounds / 2]) / 2, values[0],
           values[rounds - 1]);
}

static void print_result(Result *r, unsigned rounds)
{
    printf("%-20s %-38s", r->way->task, r->way->name);
    if (r->failed) {
        printf(" %9s", "-");
    } else {
        print_spread(r->wall, rounds);
        print_spread(r->cpu, rounds);
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 7;
    uint64_t ns = (argc > 2 ? strtoul(argv[2], NULL, 10) : 200) * 1000000;
    const char *task = argc > 3 ? argv[3] : "";

    bench_check(rounds >= 1 && rounds <= ROUNDS_MAX && ns > 0 && argc <= 4,
                "the arguments are ROUNDS (1 to 100), MILLISECONDS and TASK");
    choose(wake_ways, task);
    choose(socket_ways, task);
    choose(file_ways, task);
    for (unsigned round = 0; round < rounds; round++) {
        run_round(round, ns);
    }
    printf("%-59s %9s %9s %9s %9s %9s %9s\n", "ns for one", "passed", "least",
           "most", "CPU", "least", "most");
    for (unsigned i = 0; i < n_results; i++) {
        print_result(&results[i], (unsigned)rounds);
    }
    return 0;
}
