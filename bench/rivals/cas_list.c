/* SPDX-License-Identifier: MIT */
/*
 * cas_list.c: the limit for posts between threads: a list with one atomic
 * head, pushed with compare-and-swap, taken over whole, and an eventfd that
 * is written only when the consumer is about to sleep in epoll_wait().
 *
 * MEMORY ORDER.  The producer's push and its reading of `sleeping` are
 * sequentially consistent, and so are the consumer's writing of `sleeping`
 * and its looking at the head: one of the two sees the other.
 */
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../bench_posts.h"

static struct {
    _Alignas(64) _Atomic(BenchSlot *) head;
    _Alignas(64) _Atomic bool sleeping;
    int event_fd;
    int epoll_fd;
} list;

static void list_post(BenchSlot *slot)
{
    BenchSlot *head = atomic_load_explicit(&list.head, memory_order_relaxed);

    do {
        slot->next = head;
    } while (!atomic_compare_exchange_weak(&list.head, &head, slot));
    if (atomic_load(&list.sleeping)) {
        uint64_t one = 1;

        bench_check(write(list.event_fd, &one, sizeof(one)) == sizeof(one),
                    "the eventfd takes a one");
    }
}

static void list_wait(void)
{
    struct epoll_event event;

    atomic_store(&list.sleeping, true);
    if (!atomic_load(&list.head)) {
        epoll_wait(list.epoll_fd, &event, 1, -1);
    }
    atomic_store_explicit(&list.sleeping, false, memory_order_relaxed);
}

static void list_consume(void)
{
    while (!bench_posts_over()) {
        BenchSlot *newest = atomic_exchange(&list.head, NULL);
        BenchSlot *oldest = NULL;

        if (!newest) {
            list_wait();
        }
        while (newest) {        /* first in, first out */
            BenchSlot *next = newest->next;

            newest->next = oldest;
            oldest = newest;
            newest = next;
        }
        while (oldest) {
            BenchSlot *next = oldest->next;

            bench_post_run(oldest);
            oldest = next;
        }
    }
}

static double posts_work(uint64_t count, unsigned producers)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    double elapsed;

    list.event_fd = eventfd(0, EFD_CLOEXEC);
    list.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    bench_check(!epoll_ctl(list.epoll_fd, EPOLL_CTL_ADD, list.event_fd,
                           &event), "the eventfd is watched");
    elapsed = bench_posts_work(count, producers, list_post, list_consume);
    close(list.event_fd);
    close(list.epoll_fd);
    return elapsed;
}

static double post_1_work(uint64_t count)
{
    return posts_work(count, 1);
}

static double post_3_work(uint64_t count)
{
    return posts_work(count, 3);
}

static const BenchWorkload workloads[] = {
    {"post_1", post_1_work},
    {"post_3", post_3_work},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    static const BenchProgram program = {
        "cas-list", "own", "edge-triggered eventfd, only when asleep",
        workloads,
    };

    return bench_main(argc, argv, &program);
}
