/* SPDX-License-Identifier: MIT */
/*
 * All of coaio.  Each header says what its noun is, how it lives and dies,
 * and which threads may call what.
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
