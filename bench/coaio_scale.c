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
 * Prints one JSON object: what it is, and its figures.  Of ns there are
 * several, after a measurement that does not count.  What threads do goes on
 * for a fixed time, since it may take a thousand times longer in one run than
 * in another.
 *
 * The threads are not bound to cores: where there are more of them than cores,
 * they stand for the contention of a larger machine, though not for its caches.
 */
#include <coaio/coaio.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "bench_memory.h"

enum { ROUNDS = 3, MAX_THREADS = 64, CREW_NS = 50000000 };

static AioContext *ctx;
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
    bench_check(!aio_context_new(&ctx, NULL), "a context is made");
    aio_context_attach(ctx);
}

static void print_head(size_t n)
{
    printf("{\"version\": \"%s\", \"settings\": \"%s, engine %s\", \"n\": %zu"
           ", \"figures\": {",
           BENCH_VERSION, BENCH_LINKAGE, aio_context_engine(ctx), n);
}

static double measure_turns(Coroutine **all, size_t n)
{
    uint64_t turns = 1 + 2000000 / n;
    uint64_t begin = bench_now();

    for (uint64_t i = 0; i < turns; i++) {
        for (size_t j = 0; j < n; j++) {
            coroutine_enter(all[j]);
        }
    }
    return (double)(bench_now() - begin) / (double)turns / (double)n;
}

static void print_switch(size_t n)
{
    Coroutine **all = park(n);

    measure_turns(all, n);
    print_head(n);
    printf("\"ns\": [");
    for (unsigned i = 0; i < ROUNDS; i++) {
        printf("%s%.2f", i ? ", " : "", measure_turns(all, n));
    }
    printf("]}}\n");
    finish(all, n);
    free(all);
}

static void print_parked(size_t n)
{
    BenchMemory before, parked, after;
    double resident, tables;
    Coroutine **all;

    finish(park(1), 1);
    before = bench_memory();
    all = park(n);
    parked = bench_memory();
    finish(all, n);
    after = bench_memory();
    /* The array of pointers is the program's own. */
    resident = (parked.resident - before.resident) / (double)n - sizeof(*all);
    tables = (parked.tables - before.tables) / (double)n;
    print_head(n);
    printf("\"bytes\": [%.1f], \"resident\": [%.1f], \"tables\": [%.1f]"
           ", \"mappings\": [%u], \"left\": [%.1f]}}\n",
           resident + tables, resident, tables, parked.mappings,
           (after.resident - before.resident) / (double)n - sizeof(*all));
    free(all);
}

/* --- threads --------------------------------------------------------------*/

static struct {
    IOThread *threads[MAX_THREADS];
    Coroutine *members[MAX_THREADS];
    unsigned n;
    unsigned left; /* ring: who has not seen the end */
    atomic_bool over;
    atomic_uint_fast64_t created;
    uint64_t count; /* the mutex's, or the ring's turn's */
    CoMutex mutex;
    sem_t done;
} crew;

static void crew_begin(unsigned n)
{
    crew.n = crew.left = n;
    crew.count = 0;
    atomic_store(&crew.created, 0);
    atomic_store(&crew.over, false);
    sem_init(&crew.done, 0, 0);
    for (unsigned i = 0; i < n; i++) {
        bench_check(!iothread_new(&crew.threads[i], "crew", NULL),
                    "an I/O thread starts");
    }
}

static void crew_await(void)
{
    for (unsigned i = 0; i < crew.n; i++) {
        while (sem_wait(&crew.done)) {
        }
    }
}

/* Returns the ns that have passed since begin, when all have stopped. */
static double crew_stop(uint64_t begin)
{
    struct timespec rest = {0, CREW_NS};

    while (nanosleep(&rest, &rest)) {
    }
    atomic_store(&crew.over, true);
    crew_await();
    begin = bench_now() - begin;
    for (unsigned i = 0; i < crew.n; i++) {
        iothread_unref(crew.threads[i]);
    }
    sem_destroy(&crew.done);
    return (double)begin;
}

static void coroutine_fn lock_often(void *opaque)
{
    (void)opaque;
    for (bool enough = false; !enough;) {
        co_mutex_lock(&crew.mutex);
        enough = atomic_load(&crew.over);
        crew.count += !enough;
        co_mutex_unlock(&crew.mutex);
    }
    sem_post(&crew.done);
}

static double measure_mutex(unsigned n)
{
    uint64_t begin;
    double ns;

    co_mutex_init(&crew.mutex);
    crew_begin(n);
    begin = bench_now();
    for (unsigned i = 0; i < n; i++) {
        aio_co_enter(iothread_context(crew.threads[i]),
                     coroutine_create(lock_often, NULL));
    }
    ns = crew_stop(begin);
    return ns / (double)crew.count;
}

static void coroutine_fn pass_on(void *opaque)
{
    unsigned index = (unsigned)(uintptr_t)opaque;

    sem_post(&crew.done);
    coroutine_yield();
    while (!atomic_load(&crew.over)) {
        crew.count++;
        aio_co_wake(crew.members[(index + 1) % crew.n]);
        coroutine_yield();
    }
    if (--crew.left > 0) {
        aio_co_wake(crew.members[(index + 1) % crew.n]); /* to end, too */
    }
    sem_post(&crew.done);
}

static double measure_ring(unsigned n)
{
    uint64_t begin;
    double ns;

    crew_begin(n);
    for (unsigned i = 0; i < n; i++) {
        crew.members[i] = coroutine_create(pass_on, (void *)(uintptr_t)i);
        aio_co_enter(iothread_context(crew.threads[i]), crew.members[i]);
    }
    crew_await();
    begin = bench_now();
    aio_co_wake(crew.members[0]);
    ns = crew_stop(begin);
    return ns / (double)crew.count;
}

static void coroutine_fn nothing(void *opaque)
{
    (void)opaque;
}

static void coroutine_fn create_often(void *opaque)
{
    uint64_t created = 0;

    (void)opaque;
    for (; !atomic_load(&crew.over); created++) {
        coroutine_enter(coroutine_create(nothing, NULL));
    }
    atomic_fetch_add(&crew.created, created);
    sem_post(&crew.done);
}

static double measure_apart(unsigned n)
{
    uint64_t begin;
    double ns;

    crew_begin(n);
    begin = bench_now();
    for (unsigned i = 0; i < n; i++) {
        aio_co_enter(iothread_context(crew.threads[i]),
                     coroutine_create(create_often, NULL));
    }
    ns = crew_stop(begin);
    return ns / (double)atomic_load(&crew.created);
}

static void print_crew(double (*measure)(unsigned n), unsigned n)
{
    measure(n);
    print_head(n);
    printf("\"ns\": [");
    for (unsigned i = 0; i < ROUNDS; i++) {
        printf("%s%.2f", i ? ", " : "", measure(n));
    }
    printf("]}}\n");
}

/* --- the program ----------------------------------------------------------*/

static const struct {
    const char *name;
    double (*measure)(unsigned n);
} crews[] = {
    {"mutex", measure_mutex},
    {"ring", measure_ring},
    {"apart", measure_apart},
};

static bool run(const char *what, unsigned long n)
{
    attach();
    if (!strcmp(what, "switch")) {
        print_switch(n);
        return true;
    }
    if (!strcmp(what, "parked")) {
        print_parked(n);
        return true;
    }
    for (size_t i = 0; i < sizeof(crews) / sizeof(*crews); i++) {
        if (!strcmp(what, crews[i].name) && n <= MAX_THREADS) {
            print_crew(crews[i].measure, (unsigned)n);
            return true;
        }
    }
    return false;
}

int main(int argc, char **argv)
{
    unsigned long n = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;

    if (n > 0 && n <= 1000000 && run(argv[1], n)) {
        return 0;
    }
    fprintf(stderr, "Usage: %s switch|parked|mutex|ring|apart N\n", argv[0]);
    return 2;
}
