/* SPDX-License-Identifier: MIT */
/*
 * eventfd.c: round trips between two threads that sleep in epoll_wait() on an
 * edge-triggered eventfd, which then needs no read: one write and one wait
 * for each direction.
 */
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../bench.h"

static struct {
    int event_fd[2];
    int epoll_fd[2];
    uint64_t rounds;
} court;

static void hit(unsigned side)
{
    uint64_t one = 1;

    bench_check(write(court.event_fd[side], &one, sizeof(one)) == sizeof(one),
                "the eventfd takes a one");
}

static void await(unsigned side)
{
    struct epoll_event event;

    bench_check(epoll_wait(court.epoll_fd[side], &event, 1, -1) == 1,
                "one event arrives");
}

static void body(unsigned index, void *opaque)
{
    (void)opaque;
    bench_pin(index);
    for (uint64_t i = 0; i < court.rounds; i++) {
        if (index == 0) {
            hit(1);
            await(0);
        } else {
            await(1);
            hit(0);
        }
    }
}

static double wake_work(uint64_t count)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    double elapsed;

    court.rounds = count;
    for (unsigned i = 0; i < 2; i++) {
        court.event_fd[i] = eventfd(0, EFD_CLOEXEC);
        court.epoll_fd[i] = epoll_create1(EPOLL_CLOEXEC);
        bench_check(!epoll_ctl(court.epoll_fd[i], EPOLL_CTL_ADD,
                               court.event_fd[i], &event),
                    "the eventfd is watched");
    }
    elapsed = bench_parallel(2, body, NULL);
    for (unsigned i = 0; i < 2; i++) {
        close(court.event_fd[i]);
        close(court.epoll_fd[i]);
    }
    return elapsed;
}

static const BenchWorkload workloads[] = {
    {"wake_asleep", wake_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        "eventfd", "own", "edge-triggered epoll, no read", workloads,
    };

    return bench_main(argc, argv, &program);
}
