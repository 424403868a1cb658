/* SPDX-License-Identifier: MIT */
/*
 * coaio_scale.c: how costs grow with what there is, for bench/scale.
 *
 *     coaio-scale switch N     N coroutines in rotation: ns for one enter and
 *                              one yield
 *     coaio-scale parked N     N parked coroutines: bytes each, of memory and
 *                              of page tables, and mappings in all; then the
 *                              bytes that are left when they have finished
 *     coaio-scale mutex N      a coroutine in each of N I/O threads wants one
 *                              CoMutex: ns an acquisition
 *     coaio-scale ring N       N I/O threads wake each other in a ring: ns for
 *                              one hop
 *     coaio-scale apart N      N I/O threads create and finish coroutines of
 *                              their own, sharing nothing: ns for one, of all
 *
 * Prints one JSON object.  The threads are not bound to cores: where there are
 * more of them than cores, they stand for the contention of a larger machine,
 * though not for its caches.
 */
#include <coaio/coaio.h>
#include <semaphore.h>

#include "bench.h"

enum { ROUNDS = 5, MAX_THREADS = 64 };

static bool over;

static void coroutine_fn bounce(void *opaque)
{
    (void)opaque;
    while (!over) {
        coroutine_yield();
    }
}

static Coroutine **park(size_t n)
{
    Coroutine **all = bench_allocate(n, sizeof(*all));

    over = false;
    for (size_t i = 0; i < n; i++) {
        all[i] = coroutine_create(bounce, NULL);
        coroutine_enter(all[i]);
    }
    return all;
}

static void finish(Coroutine **all, size_t n)
{
    over = true;
    for (size_t i = 0; i < n; i++) {
        coroutine_enter(all[i]);
    }
}

static void attach(void)
{
    AioContext *ctx;

    bench_check(!aio_context_new(&ctx, NULL), "a context is made");
    aio_context_attach(ctx);
}

static double measure_switch(unsigned n)
{
    uint64_t turns = 1 + 2000000 / n, begin;
    Coroutine **all = park(n);

    begin = bench_now();
    for (uint64_t i = 0; i < turns; i++) {
        for (unsigned j = 0; j < n; j++) {
            coroutine_enter(all[j]);
        }
    }
    begin = bench_now() - begin;
    finish(all, n);
    free(all);
    return (double)begin / (double)turns / n;
}

/* --- memory ---------------------------------------------------------------*/

typedef struct Memory {
    double resident, tables; /* bytes */
    unsigned mappings;
} Memory;

static Memory memory_now(void)
{
    Memory m = {0};
    char line[512];
    FILE *file = fopen("/proc/self/status", "r");

    bench_check(file != NULL, "the kernel tells what is resident");
    while (fgets(line, sizeof(line), file)) {
        if (!strncmp(line, "VmRSS:", 6)) {
            m.resident = 1024 * strtod(line + 6, NULL);
        } else if (!strncmp(line, "VmPTE:", 6)) {
            m.tables = 1024 * strtod(line + 6, NULL);
        }
    }
    fclose(file);
    file = fopen("/proc/self/maps", "r");
    bench_check(file != NULL, "the kernel tells what is mapped");
    while (fgets(line, sizeof(line), file)) {
        m.mappings += strchr(line, '\n') != NULL;
    }
    fclose(file);
    return m;
}

static void measure_parked(size_t n)
{
    Coroutine **all;
    Memory before, parked, after;

    finish(park(1), 1);
    before = memory_now();
    all = park(n);
    parked = memory_now();
    finish(all, n);
    after = memory_now();
    /* The array of pointers is the program's own. */
    printf("{\"n\": %zu, \"resident\": %.0f, \"tables\": %.0f"
           ", \"mappings\": %u, \"left\": %.0f}\n", n,
           (parked.resident - before.resident) / (double)n - sizeof(*all),
           (parked.tables - before.tables) / (double)n, parked.mappings,
           (after.resident - before.resident) / (double)n - sizeof(*all));
    free(all);
}

/* --- threads --------------------------------------------------------------*/

static struct {
    IOThread *threads[MAX_THREADS];
    Coroutine *members[MAX_THREADS];
    unsigned n;
    uint64_t wanted;
    uint64_t count;         /* the mutex's, or the ring's turn's */
    CoMutex mutex;
    sem_t done;
} crew;

static void crew_begin(unsigned n, uint64_t wanted)
{
    crew.n = n;
    crew.wanted = wanted;
    crew.count = 0;
    sem_init(&crew.done, 0, 0);
    for (unsigned i = 0; i < n; i++) {
        bench_check(!iothread_new(&crew.threads[i], "crew", NULL),
                    "an I/O thread starts");
    }
}

static void crew_await(unsigned members)
{
    for (unsigned i = 0; i < members; i++) {
        while (sem_wait(&crew.done)) {
        }
    }
}

static void crew_end(void)
{
    for (unsigned i = 0; i < crew.n; i++) {
        iothread_unref(crew.threads[i]);
    }
    sem_destroy(&crew.done);
}

static void coroutine_fn lock_often(void *opaque)
{
    (void)opaque;
    for (bool enough = false; !enough;) {
        co_mutex_lock(&crew.mutex);
        enough = crew.count >= crew.wanted;
        crew.count += !enough;
        co_mutex_unlock(&crew.mutex);
    }
    sem_post(&crew.done);
}

static double measure_mutex(unsigned n)
{
    uint64_t begin;

    co_mutex_init(&crew.mutex);
    crew_begin(n, 200000);
    begin = bench_now();
    for (unsigned i = 0; i < n; i++) {
        aio_co_enter(iothread_context(crew.threads[i]),
                     coroutine_create(lock_often, NULL));
    }
    crew_await(n);
    begin = bench_now() - begin;
    bench_check(crew.count == crew.wanted, "each acquisition is counted");
    crew_end();
    return (double)begin / (double)crew.wanted;
}

static void coroutine_fn pass_on(void *opaque)
{
    unsigned index = (unsigned)(uintptr_t)opaque;

    sem_post(&crew.done);
    coroutine_yield();
    while (crew.count < crew.wanted) {
        crew.count++;
        aio_co_wake(crew.members[(index + 1) % crew.n]);
        coroutine_yield();
    }
    if (crew.count++ < crew.wanted + crew.n - 1) {
        aio_co_wake(crew.members[(index + 1) % crew.n]); /* to end, too */
    }
    sem_post(&crew.done);
}

static double measure_ring(unsigned n)
{
    uint64_t begin;

    crew_begin(n, 20000);
    for (unsigned i = 0; i < n; i++) {
        crew.members[i] = coroutine_create(pass_on, (void *)(uintptr_t)i);
        aio_co_enter(iothread_context(crew.threads[i]), crew.members[i]);
    }
    crew_await(n);
    begin = bench_now();
    aio_co_wake(crew.members[0]);
    crew_await(n);
    begin = bench_now() - begin;
    crew_end();
    return (double)begin / (double)crew.wanted;
}

static void coroutine_fn nothing(void *opaque)
{
    (void)opaque;
}

static void coroutine_fn create_often(void *opaque)
{
    (void)opaque;
    for (uint64_t i = 0; i < crew.wanted / crew.n; i++) {
        coroutine_enter(coroutine_create(nothing, NULL));
    }
    sem_post(&crew.done);
}

static double measure_apart(unsigned n)
{
    uint64_t begin;

    crew_begin(n, 2000000);
    begin = bench_now();
    for (unsigned i = 0; i < n; i++) {
        aio_co_enter(iothread_context(crew.threads[i]),
                     coroutine_create(create_often, NULL));
    }
    crew_await(n);
    begin = bench_now() - begin;
    crew_end();
    return (double)begin / (double)crew.wanted;
}

/* --- the program ----------------------------------------------------------*/

static const struct {
    const char *name;
    double (*measure)(unsigned n);
    unsigned most;
} measures[] = {
    {"switch", measure_switch, 1000000},
    {"mutex", measure_mutex, MAX_THREADS},
    {"ring", measure_ring, MAX_THREADS},
    {"apart", measure_apart, MAX_THREADS},
};

static void print_rounds(double (*measure)(unsigned n), unsigned n)
{
    printf("{\"n\": %u, \"ns\": [", n);
    for (unsigned i = 0; i < ROUNDS; i++) {
        printf("%s%.2f", i ? ", " : "", measure(n));
    }
    printf("]}\n");
}

int main(int argc, char **argv)
{
    unsigned long n = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;

    if (n > 0 && n <= 1000000) {
        attach();
        if (!strcmp(argv[1], "parked")) {
            measure_parked(n);
            return 0;
        }
        for (size_t i = 0; i < sizeof(measures) / sizeof(*measures); i++) {
            if (!strcmp(argv[1], measures[i].name) && n <= measures[i].most) {
                print_rounds(measures[i].measure, (unsigned)n);
                return 0;
            }
        }
    }
    fprintf(stderr, "Usage: %s switch|parked|mutex|ring|apart N\n", argv[0]);
    return 2;
}
