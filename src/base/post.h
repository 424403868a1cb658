/* SPDX-License-Identifier: MIT */
/*
 * PostList: what other threads (and signal handlers) hand to a loop.  Any
 * thread pushes, lock-free and without allocating; the home thread takes all
 * at once, in the order in which the pushes took effect.
 *
 * The list is a stack that is only ever emptied as a whole, so a node that is
 * pushed again (ABA) does no harm: a push compares only with the newest.
 * Several may take at once (the graveyard of contexts, posts to a context that
 * has stopped): each node goes to one of them.
 *
 * PROTOCOL AND MEMORY ORDER
 *
 *   [post/A] push publishes the node, and what its thread wrote before, with a
 *   release compare-and-swap on head; [post/B] take-all acquires them with an
 *   exchange.  The linearisation point of both is the operation on head, which
 *   is also what orders the nodes.
 */
#ifndef COAIO_BASE_POST_H
#define COAIO_BASE_POST_H

#include "base/atomic.h"
#include "base/explore.h"
#include "base/list.h"

struct Post;

/* Runs on the home thread, outside coroutines; owner is the loop. */
typedef void PostFunc(void *owner, struct Post *post);

typedef struct Post {
    FifoNode node; /* valid while pushed or in a ready list */
    PostFunc *run; /* set before the push */
} Post;

typedef struct PostList {
    FifoNode *head; /* atomic; the newest, or NULL */
} PostList;

static inline bool post_try_push(PostList *list, FifoNode **head,
                                 FifoNode *node)
{
    if (MUTANT(POST_PUSH_RELAXED)) {
        return cas_relaxed(&list->head, head, node);
    }
    /* [post/A] pairs with [post/B] in post_take_all(). */
    return cas_release(&list->head, head, node);
}

static inline void post_push(PostList *list, Post *post)
{
    FifoNode *head = load_relaxed(&list->head);

    post->node.next = head;
    while (!post_try_push(list, &head, &post->node)) {
        MARK("post: another push came first");
        post->node.next = head;
    }
}

/* Whether something is there: a hint, unless a protocol makes it more. */
static inline bool post_pending(const PostList *list)
{
    return load_relaxed(&list->head) != NULL;
}

/* Append all that was pushed to fifo, oldest first. */
static inline void post_take_all(PostList *list, Fifo *fifo)
{
    FifoNode *node, *next, *first = NULL, *last;

    if (!post_pending(list)) {
        return;
    }
    /* [post/B] pairs with [post/A] in post_push(). */
    if (MUTANT(POST_TAKE_PLAIN)) {
        node = load_acquire(&list->head);
        store_relaxed(&list->head, NULL);
    } else {
        node = xchg_acquire(&list->head, NULL);
    }
    if (unlikely(!node) && !MUTANT(POST_TAKE_TWICE)) {
        MARK("post: another has taken all");
        return; /* since we looked */
    }
    last = node;
    for (; node; node = next) {
        next = node->next;
        node->next = first;
        first = node;
    }
    fifo_append_chain(fifo, first, last);
}

#endif
