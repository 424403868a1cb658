/* SPDX-License-Identifier: MIT */
/*
 * The list that posts go through, with several threads that push and several
 * that take, as the graveyard of contexts has them: each node goes to one
 * taker, in the order in which its own thread pushed.
 *
 * A regression: a taker that found the list pending, and empty when it took,
 * appended a chain of no nodes, and crashed.
 */
#include "base/post.h"
#include "harness.h"
#include "loopthread.h"

#include <sched.h>
#include <stdlib.h>

#define PUSHERS 2
#define TAKERS  3

typedef struct Numbered {
    Post post;
    unsigned pusher;
    unsigned long number;
} Numbered;

static PostList list;
static Numbered *nodes[PUSHERS];
static unsigned long rounds;
static unsigned long taken; /* atomic; by all takers */

static void push_all(void *opaque)
{
    unsigned pusher = *(unsigned *)opaque;

    for (unsigned long i = 0; i < rounds; i++) {
        nodes[pusher][i] = (Numbered){.pusher = pusher, .number = i + 1};
        post_push(&list, &nodes[pusher][i].post);
        if (i % 64 == 0) {
            sched_yield();
        }
    }
}

static void take_until_all_are_taken(void *opaque)
{
    unsigned long last[PUSHERS] = {0};

    (void)opaque;
    while (load_relaxed(&taken) < PUSHERS * rounds) {
        Fifo fifo = {NULL, NULL};
        FifoNode *link;

        post_take_all(&list, &fifo);
        while ((link = fifo_take(&fifo))) {
            Numbered *node = container_of(link, Numbered, post.node);

            CHECK(node->number > last[node->pusher]);
            last[node->pusher] = node->number;
            node->number = 0; /* taken twice, it would be out of order */
            fetch_add_relaxed(&taken, 1UL);
        }
    }
}

TEST(several_takers_share_the_nodes)
{
    static unsigned numbers[PUSHERS] = {0, 1};
    BareThread pushers[PUSHERS], takers[TAKERS];

    rounds = harness_load(300000);
    for (unsigned i = 0; i < PUSHERS; i++) {
        nodes[i] = calloc(rounds, sizeof(*nodes[i]));
        CHECK(nodes[i] != NULL);
    }
    for (unsigned i = 0; i < TAKERS; i++) {
        bare_thread_start(&takers[i], take_until_all_are_taken, NULL);
    }
    for (unsigned i = 0; i < PUSHERS; i++) {
        bare_thread_start(&pushers[i], push_all, &numbers[i]);
    }
    for (unsigned i = 0; i < PUSHERS; i++) {
        bare_thread_join(&pushers[i]);
    }
    for (unsigned i = 0; i < TAKERS; i++) {
        bare_thread_join(&takers[i]);
    }
    CHECK_EQ(load_relaxed(&taken), PUSHERS * rounds);
    for (unsigned i = 0; i < PUSHERS; i++) {
        free(nodes[i]);
    }
}

TEST_MAIN()
