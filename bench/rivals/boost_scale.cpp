// SPDX-License-Identifier: MIT
/*
 * boost_scale.cpp: Boost.Context's fcontext as coaio_scale.c measures coaio.
 *
 *     rival-boost-scale switch N
 *     rival-boost-scale parked N
 *
 * Stacks of 64 KiB, without guards, come from one mapping.
 */
#include <boost/context/detail/fcontext.hpp>
#include <boost/version.hpp>
#include <sys/mman.h>

#include "../bench_memory.h"
#include "../bench_stacks.h"

namespace ctx = boost::context::detail;

namespace {

enum { ROUNDS = 3 };

void bounce(ctx::transfer_t from)
{
    for (;;) {
        from = ctx::jump_fcontext(from.fctx, nullptr);
    }
}

char *map_slab(std::size_t n)
{
    void *slab = mmap(nullptr, n * BENCH_STACK_STRIDE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    bench_check(slab != MAP_FAILED, "a slab is mapped");
    /* As coaio does: huge pages would be resident as a whole. */
    madvise(slab, n * BENCH_STACK_STRIDE, MADV_NOHUGEPAGE);
    return static_cast<char *>(slab);
}

ctx::fcontext_t *park(std::size_t n)
{
    auto *all = static_cast<ctx::fcontext_t *>(
        bench_allocate(n, sizeof(ctx::fcontext_t)));
    char *slab = map_slab(n);

    for (std::size_t i = 0; i < n; i++) {
        all[i] = ctx::make_fcontext(bench_stack_top(slab, i),
                                    BENCH_STACK_BYTES, bounce);
        all[i] = ctx::jump_fcontext(all[i], nullptr).fctx;
    }
    return all;
}

double measure_switch(ctx::fcontext_t *all, std::size_t n)
{
    uint64_t turns = 1 + 2000000 / n;
    uint64_t begin = bench_now();

    for (uint64_t i = 0; i < turns; i++) {
        for (std::size_t j = 0; j < n; j++) {
            all[j] = ctx::jump_fcontext(all[j], nullptr).fctx;
        }
    }
    return double(bench_now() - begin) / double(turns) / double(n);
}

void print_head(std::size_t n)
{
    printf("{\"version\": \"%s\", \"settings\": \"fcontext, stacks of 64 KiB "
           "without guards, laid out as coaio's\", \"n\": %zu, "
           "\"figures\": {",
           BOOST_LIB_VERSION, n);
}

void print_switch(std::size_t n)
{
    ctx::fcontext_t *all = park(n);

    measure_switch(all, n);
    print_head(n);
    printf("\"ns\": [");
    for (unsigned i = 0; i < ROUNDS; i++) {
        printf("%s%.2f", i ? ", " : "", measure_switch(all, n));
    }
    printf("]}}\n");
}

void print_parked(std::size_t n)
{
    BenchMemory before, parked;
    double resident, tables;

    park(1);
    before = bench_memory();
    park(n);
    parked = bench_memory();
    resident = (parked.resident - before.resident) / double(n) -
               sizeof(ctx::fcontext_t);
    tables = (parked.tables - before.tables) / double(n);
    print_head(n);
    printf("\"bytes\": [%.1f], \"resident\": [%.1f], \"tables\": [%.1f]"
           ", \"mappings\": [%u]}}\n",
           resident + tables, resident, tables, parked.mappings);
}

} // namespace

int main(int argc, char **argv)
{
    unsigned long n = argc == 3 ? strtoul(argv[2], nullptr, 10) : 0;

    if (n > 0 && n <= 1000000 && !strcmp(argv[1], "switch")) {
        print_switch(n);
    } else if (n > 0 && n <= 1000000 && !strcmp(argv[1], "parked")) {
        print_parked(n);
    } else {
        fprintf(stderr, "Usage: %s switch|parked N\n", argv[0]);
        return 2;
    }
    return 0;
}
