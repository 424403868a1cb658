/* SPDX-License-Identifier: MIT */
/*
 * All of coaio.  Each header says what its noun is, how it lives and dies,
 * and which threads may call what.
 *
 * What it takes from the environment (but not in a program that runs with more
 * rights than its caller has):
 *
 *   COAIO_ENGINE   the engine of contexts whose options name none: context.h
 *   COAIO_DEBUG    1: the memory of a coroutine that has finished is not used
 *                  again for a while, so that one who uses it still is found
 *   COAIO_GUARD    how stacks are guarded: "mprotect", which takes a mapping
 *                  for each, or "none", for which no coroutine can be created;
 *                  anything else is the best that the kernel has
 */
#ifndef COAIO_COAIO_H
#define COAIO_COAIO_H

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <coaio/fd.h>
#include <coaio/group.h>
#include <coaio/io.h>
#include <coaio/iothread.h>
#include <coaio/lock.h>
#include <coaio/mutex.h>
#include <coaio/queue.h>
#include <coaio/rwlock.h>
#include <coaio/semaphore.h>
#include <coaio/timer.h>
#include <coaio/tls.h>
#include <coaio/types.h>
#include <coaio/wait.h>
#include <coaio/wake.h>

#endif
