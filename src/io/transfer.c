/* SPDX-License-Identifier: MIT */
/*
 * Transfers over descriptors that have readiness: try, and where that would
 * block, wait until the descriptor is ready and try again.
 *
 * The first try is made at once unless somebody waits already; if it would
 * block, the descriptor is watched without another, since what has come in
 * between is reported at once.  All further tries are made with the turn, under
 * the lock of the side, where co_close() cannot come in between (INVARIANTS 1
 * of registry.c); they do not block, so the lock is held for the time of one
 * system call, and only another one who would wait for the same direction, or
 * co_close(), waits for it.
 *
 * Some descriptors are ready and would block all the same (a datagram socket
 * whose peer's queue is full, a file that another process reads from): after a
 * few such tries the coroutine sleeps for a while between them.
 */
#include "io/io_int.h"

#include "loop/fd_int.h"
#include "os/event.h"

#include <errno.h>

/* After so many tries in a row that readiness was wrong, sleep before the
 * next, and twice as long each time. */
#define IN_VAIN_MAX         4
#define PAUSE_NS            1000000
#define PAUSE_DOUBLINGS_MAX 5

static ssize_t attempt(IoCall *call)
{
    ssize_t result;

    do {
        result = call->attempt(call);
    } while (result == -EINTR);
    return result == -EWOULDBLOCK ? -EAGAIN : result;
}

static ssize_t block(void *arg)
{
    IoCall *call = arg;
    ssize_t result;

    do {
        result = call->block(call);
    } while (result == -EINTR);
    return result;
}

/* Without a home: block the thread. */
static ssize_t transfer_blocking(IoCall *call)
{
    struct pollfd pollfd = {.fd = call->fd, .events = call->events};
    ssize_t result;
    int ret;

    for (;;) {
        result = attempt(call);
        if (result == IO_NEEDS_WORKER) {
            return block(call);
        }
        if (result != -EAGAIN) {
            return result;
        }
        ret = os_poll(&pollfd, 1, -1);
        if (ret < 0 && ret != -EINTR) {
            return ret;
        }
    }
}

/* The result, or -EAGAIN: then wait has begun, or *ready.  tried: that it
 * would block was found out before. */
static ssize_t try_or_wait_locked(IoCall *call, FdWait *wait, bool tried,
                                  bool *ready)
{
    ssize_t result = tried ? -EAGAIN : attempt(call);
    int events;

    if (result != -EAGAIN) {
        return result;
    }
    events = fd_wait_begin(wait, call->fd, (uint32_t)call->events, call->what);
    *ready = events > 0;
    if (events < 0) {
        /* ENOSPC is the limit on what the kernel watches. */
        return events == -ENOSPC ? -ENOMEM : events;
    }
    return -EAGAIN;
}

static ssize_t try_or_wait(IoCall *call, IoTurn *turn, FdWait *wait,
                           bool tried, bool *ready)
{
    ssize_t result = -ECANCELED;

    os_mutex_lock(&turn->side->lock);
    if (!io_fd_stale(turn->entry, turn->generation)) {
        result = try_or_wait_locked(call, wait, tried, ready);
    }
    os_mutex_unlock(&turn->side->lock);
    return result;
}

static int coroutine_fn pause_after(unsigned in_vain)
{
    unsigned doublings = in_vain - IN_VAIN_MAX - 1;

    if (doublings > PAUSE_DOUBLINGS_MAX) {
        doublings = PAUSE_DOUBLINGS_MAX;
    }
    return co_sleep_ns((int64_t)PAUSE_NS << doublings);
}

static ssize_t coroutine_fn transfer_with_turn(IoCall *call, IoTurn *turn,
                                               bool tried)
{
    unsigned in_vain = 0;
    FdWait wait;
    bool ready;
    ssize_t result;
    int error;

    for (;;) {
        result = try_or_wait(call, turn, &wait, tried, &ready);
        if (result != -EAGAIN) {
            return result;
        }
        tried = false;
        in_vain = call->progress ? 0 : in_vain + 1;
        call->progress = false;
        error = ready ? 0 : fd_wait_park(&wait, -1);
        if (error >= 0 && in_vain > IN_VAIN_MAX) {
            error = pause_after(in_vain);
        }
        if (error < 0) {
            return error;
        }
    }
}

/* What a worker fails with when co_close() has cut it short says nothing. */
static ssize_t coroutine_fn transfer_in_worker(IoCall *call, IoTurn *turn)
{
    ssize_t result = io_run_in_worker_turn(turn, block, call, call->what);

    if (result < 0) {
        os_mutex_lock(&turn->side->lock);
        if (io_fd_stale(turn->entry, turn->generation)) {
            result = -ECANCELED;
        }
        os_mutex_unlock(&turn->side->lock);
    }
    return result;
}

static NOINLINE ssize_t coroutine_fn transfer_slow(IoCall *call, bool tried)
{
    IoFd *entry;
    IoTurn turn;
    ssize_t result;

    if (!io_has_home()) {
        return transfer_blocking(call);
    }
    entry = io_fd_get(call->fd);
    if (!entry) {
        return -ENOMEM;
    }
    result = io_turn_take(&turn, entry, call->direction, call->what);
    if (result < 0) {
        return result;
    }
    result = transfer_with_turn(call, &turn, tried);
    if (result == IO_NEEDS_WORKER) {
        result = transfer_in_worker(call, &turn);
    }
    io_turn_end(&turn);
    return result;
}

ssize_t io_transfer(IoCall *call)
{
    const IoFd *entry = io_fd_find(call->fd);
    ssize_t result = IO_NEEDS_WORKER;

    if (!entry || !load_acquire(&entry->sides[call->direction].held)) {
        result = attempt(call);
        if (result != -EAGAIN && result != IO_NEEDS_WORKER) {
            return result;
        }
    }
    return transfer_slow(call, result == -EAGAIN);
}
