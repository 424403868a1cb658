/* SPDX-License-Identifier: MIT */
/*
 * The list that posts go through (base/post.h): each node goes to one taker,
 * with what its pusher wrote, in the order of the pushes.
 */
#include "base/post.h"
#include "explore.h"

#define NODES 3

typedef struct Item {
    Post post;
    unsigned plain;   /* what the pusher has to say */
    unsigned relaxed; /* atomic; the same */
    unsigned taken;   /* atomic; how often */
} Item;

static PostList list;
static Item items[NODES];
static unsigned last; /* of one taker: the number of the last that it took */
static unsigned again;

static void push(int i)
{
    items[i].plain = 1;
    store_relaxed(&items[i].relaxed, 1u);
    post_push(&list, &items[i].post);
}

/* Returns how many. */
static unsigned take(void)
{
    Fifo fifo = {NULL, NULL};
    FifoNode *node;
    unsigned n = 0;

    post_take_all(&list, &fifo);
    while ((node = fifo_take(&fifo))) {
        Item *item = container_of(node, Item, post.node);

        CHECK_EQ(load_relaxed(&item->relaxed), 1);
        CHECK_EQ(item->plain, 1);
        fetch_add_relaxed(&item->taken, 1u);
        n++;
    }
    return n;
}

static void take_once(void)
{
    explore_begin();
    take();
    explore_end();
}

static void push_first(void)
{
    explore_begin();
    push(0);
    explore_end();
}

static void push_second(void)
{
    explore_begin();
    push(1);
    explore_end();
}

static void check_two(void)
{
    take();
    CHECK_EQ(items[0].taken, 1);
    CHECK_EQ(items[1].taken, 1);
}

/* A push without release is a race for the node's own fields, which shows even
 * where nobody reads old values. */
EXPLORE(
    two_pushers_two_takers,
    .threads = {take_once, take_once, push_first, push_second},
    .finish = check_two,
    .marks = {"post: another push came first", "post: another has taken all"},
    .mutants = {
        {MUTANT_POST_TAKE_TWICE, "crash: signal 11", "post_take_all", false},
        {MUTANT_POST_TAKE_PLAIN, "failed check", "check_two", false},
        {MUTANT_POST_PUSH_RELAXED, "data race", "post_take_all", false},
    })

/* --- order ----------------------------------------------------------------*/

static void push_all(void)
{
    explore_begin();
    for (int i = 0; i < NODES; i++) {
        push(i);
    }
    explore_end();
}

static void take_in_order(void)
{
    explore_begin();
    while (last < NODES) {
        Fifo fifo = {NULL, NULL};
        FifoNode *node;

        post_take_all(&list, &fifo);
        while ((node = fifo_take(&fifo))) {
            CHECK(container_of(node, Item, post.node) == &items[last]);
            last++;
        }
        spin_hint();
    }
    explore_end();
}

EXPLORE(nodes_keep_their_order, .threads = {take_in_order, push_all})

/* --- pushed again ---------------------------------------------------------*/

static void take_and_push_again(void)
{
    explore_begin();
    if (take() > 0 && items[0].taken) {
        post_push(&list, &items[0].post);
        again = 1;
    }
    explore_end();
}

static void check_again(void)
{
    take();
    CHECK_EQ(items[0].taken, 1 + again);
    CHECK_EQ(items[1].taken, 1);
}

/* The head is the same as before, and the list is another: a push compares
 * with the head and does not follow it. */
EXPLORE(a_node_is_pushed_again,
        .threads = {take_and_push_again, push_first, push_second},
        .finish = check_again)

EXPLORE_MAIN()
