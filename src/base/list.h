/* SPDX-License-Identifier: MIT */
/*
 * Intrusive lists.  An element embeds its links and is in one list at a time
 * for each link; lists allocate nothing and have no locks: who may touch one
 * is said where it is declared.
 *
 *   List    doubly linked ring with a head; O(1) removal from the middle
 *   Fifo    singly linked, append at the tail, take from the head
 */
#ifndef COAIO_BASE_LIST_H
#define COAIO_BASE_LIST_H

#include "base/compiler.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct List {
    struct List *next; /* both NULL: an element in no list, or a zeroed head, */
    struct List *prev; /* which counts as an empty list */
} List;

static inline void list_init(List *list)
{
    list->next = list;
    list->prev = list;
}

static inline bool list_empty(const List *list)
{
    return list->next == list || list->next == NULL;
}

/* Whether an element is in a list. */
static inline bool list_linked(const List *link)
{
    return link->next != NULL;
}

static inline void list_append(List *list, List *link)
{
    if (list->next == NULL) {
        list_init(list);
    }
    link->next = list;
    link->prev = list->prev;
    list->prev->next = link;
    list->prev = link;
}

static inline void list_remove(List *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    link->next = NULL;
    link->prev = NULL;
}

/* The first element's link, or NULL. */
static inline List *list_first(const List *list)
{
    return list_empty(list) ? NULL : list->next;
}

/* The element's link after link, or NULL. */
static inline List *list_next(const List *list, const List *link)
{
    return link->next == list ? NULL : link->next;
}

static inline List *list_take_first(List *list)
{
    List *link = list_first(list);

    if (link) {
        list_remove(link);
    }
    return link;
}

/* Move everything in from to the (empty) list to. */
static inline void list_move_all(List *from, List *to)
{
    list_init(to);
    if (list_empty(from)) {
        return;
    }
    to->next = from->next;
    to->prev = from->prev;
    to->next->prev = to;
    to->prev->next = to;
    list_init(from);
}

#define list_entry(link, type, member) container_of(link, type, member)

typedef struct FifoNode {
    struct FifoNode *next;
} FifoNode;

typedef struct Fifo {
    FifoNode *head; /* NULL: empty */
    FifoNode *tail; /* valid while head is not NULL */
} Fifo;

static inline void fifo_append(Fifo *fifo, FifoNode *node)
{
    node->next = NULL;
    if (fifo->head) {
        fifo->tail->next = node;
    } else {
        fifo->head = node;
    }
    fifo->tail = node;
}

static inline FifoNode *fifo_take(Fifo *fifo)
{
    FifoNode *node = fifo->head;

    if (node) {
        fifo->head = node->next;
    }
    return node;
}

/* Append a chain that ends in last. */
static inline void fifo_append_chain(Fifo *fifo, FifoNode *first,
                                     FifoNode *last)
{
    last->next = NULL;
    if (fifo->head) {
        fifo->tail->next = first;
    } else {
        fifo->head = first;
    }
    fifo->tail = last;
}

#endif
