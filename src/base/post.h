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
 * A taker that is about to sleep leaves POST_SLEEPER in place of the newest
 * node, if the list is empty; whoever pushes over it has to wake the taker.  So
 * a push and the question whether anybody is to be woken are one operation on
 * one location.
 *
 * PROTOCOL AND MEMORY ORDER
 *
 *   [post/A] push publishes the node, and what its thread wrote before, with a
 *   release compare-and-swap on head; [post/B] take-all acquires them with an
 *   exchange.  The linearisation point of both is the operation on head, which
 *   is also what orders the nodes.
 *
 *   [sleeper/A] the taker leaves POST_SLEEPER by a release compare-and-swap
 *   from NULL, and [sleeper/B] one who pushes acquires it with the
 *   compare-and-swap that takes its place: see loop/notify.c.
 */
#ifndef COAIO_BASE_POST_H
#define COAIO_BASE_POST_H

#include "base/atomic.h"
#include "base/compiler.h"
#include "base/explore.h"
#include "base/list.h"

#include <stdint.h>

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

/* In place of the newest node: the list is empty, and its taker sleeps. */
#define POST_SLEEPER ((FifoNode *)(uintptr_t)1)

static inline bool post_is_node(const FifoNode *head)
{
    return (uintptr_t)head > (uintptr_t)POST_SLEEPER;
}

static inline bool post_try_push(PostList *list, FifoNode **head,
                                 FifoNode *node)
{
    if (MUTANT(POST_PUSH_RELAXED)) {
        return cas_relaxed(&list->head, head, node);
    }
    /* [post/A] pairs with [post/B] in post_take_all(). */
    return cas_release(&list->head, head, node);
}

/* Push, unless the taker sleeps.  Returns whether it has pushed. */
static inline bool post_push_awake(PostList *list, FifoNode *node)
{
    FifoNode *head = load_relaxed(&list->head);

    while (likely(head != POST_SLEEPER)) {
        node->next = head;
        if (likely(post_try_push(list, &head, node))) {
            return true;
        }
        MARK("post: another push came first");
    }
    return false;
}

/*
 * Push the nodes from oldest to newest, which are linked the other way round,
 * each to the one before it.  Returns whether the taker is to be woken by the
 * caller.  head is what he thinks is there: a look at it would bring the
 * line of memory here twice, first to be read and then to be written to.
 */
static inline bool post_push_waking(PostList *list, FifoNode *head,
                                    FifoNode *newest, FifoNode *oldest)
{
    do {
        oldest->next = post_is_node(head) ? head : NULL;
        /* [sleeper/B] pairs with [sleeper/A] in post_sleep(); and this is
         * [post/A], too. */
    } while (!cas_acq_rel(&list->head, &head, newest));
    return head == POST_SLEEPER;
}

/* Push to a list whose taker never calls post_sleep(). */
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
    return post_is_node(load_relaxed(&list->head));
}

/*
 * The taker is about to sleep: have itself woken by the next push.  Returns
 * false if something is there.  The next post_take_all() takes it back.
 */
static inline bool post_sleep(PostList *list)
{
    FifoNode *head = NULL;

    if (MUTANT(POST_SLEEP_PLAIN)) {
        if (post_pending(list)) {
            return false;
        }
        store_release(&list->head, POST_SLEEPER);
        return true;
    }
    /* [sleeper/A] pairs with [sleeper/B] in post_push_waking(). */
    return cas_release(&list->head, &head, POST_SLEEPER) ||
           head == POST_SLEEPER;
}

/* Append all that was pushed to fifo, oldest first. */
static inline void post_take_all(PostList *list, Fifo *fifo)
{
    FifoNode *node, *next, *first = NULL, *last;

    if (!load_relaxed(&list->head)) {
        return;
    }
    /* [post/B] pairs with [post/A] in post_push(). */
    if (MUTANT(POST_TAKE_PLAIN)) {
        node = load_acquire(&list->head);
        store_relaxed(&list->head, NULL);
    } else {
        node = xchg_acquire(&list->head, NULL);
    }
    if (unlikely(!post_is_node(node)) && !MUTANT(POST_TAKE_TWICE)) {
        MARK("post: another has taken all");
        return; /* since we looked; or it was the taker's own sign */
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
