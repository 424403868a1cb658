/* SPDX-License-Identifier: MIT */
#include "base/list.h"

/*
 * malloc(1), pthread_create(), __atomic_load_n() and read() in a comment, and
 * an [index] and a [path/name] that are no labels.
 */
// epoll_wait() here
const char *text = "malloc(1) // \" _Thread_local";
const char quote = '"';
const char *more = "read(0)"; /* write(1) */

/* [wake/A] One end. */
/* [wake/B] The other. */

void f(struct Ops *ops)
{
    ops->read(ops);
    ops->table.write(ops);
    co_read(my_malloc(1), aio_time(0));
    reopen(0);
}
