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
#include <sys/mman.h>

#include "../bench.h"

namespace ctx = boost::context::detail;

namespace {

enum { ROUNDS = 5 };

const std::size_t STACK_BYTES = 64 << 10;

void bounce(ctx::transfer_t from)
{
    for (;;) {
        from = ctx::jump_fcontext(from.fctx, nullptr);
    }
}

char *map_slab(std::size_t n)
{
    void *slab = mmap(nullptr, n * STACK_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    bench_check(slab != MAP_FAILED, "a slab is mapped");
    /* As coaio does: huge pages would be resident as a whole. */
    madvise(slab, n * STACK_BYTES, MADV_NOHUGEPAGE);
    return static_cast<char *>(slab);
}

ctx::fcontext_t *park(std::size_t n)
{
    auto *all = static_cast<ctx::fcontext_t *>(
        bench_allocate(n, sizeof(ctx::fcontext_t)));
    char *slab = map_slab(n);

    for (std::size_t i = 0; i < n; i++) {
        all[i] = ctx::make_fcontext(slab + (i + 1) * STACK_BYTES, STACK_BYTES,
                                    bounce);
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

double resident()
{
    char line[512];
    double bytes = 0;
    FILE *file = fopen("/proc/self/status", "r");

    bench_check(file != nullptr, "the kernel tells what is resident");
    while (fgets(line, sizeof(line), file)) {
        if (!strncmp(line, "VmRSS:", 6)) {
            bytes = 1024 * strtod(line + 6, nullptr);
        }
    }
    fclose(file);
    return bytes;
}

void print_switch(std::size_t n)
{
    ctx::fcontext_t *all = park(n);

    printf("{\"n\": %zu, \"ns\": [", n);
    for (unsigned i = 0; i < ROUNDS; i++) {
        printf("%s%.2f", i ? ", " : "", measure_switch(all, n));
    }
    printf("]}\n");
}

void print_parked(std::size_t n)
{
    double before;

    park(1);
    before = resident();
    park(n);
    printf("{\"n\": %zu, \"resident\": %.0f}\n", n,
           (resident() - before) / double(n) - sizeof(ctx::fcontext_t));
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
