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
 * Where the engine receives by itself, it is asked to do so instead of watching
 * (submit.c); and soon without a try before.  Where it says that it is better
 * at sending, it tries to, in place of the first try; what then would block is
 * waited for as else.
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

/* After a try in vain so many reads go without. */
#define BETS 15

/* After one that found another under way so many writes are calls: where many
 * write to one socket, each would wait for the engine to have made the last. */
#define CROWDED 1000

static ssize_t attempt(IoCall *call)
{
    ssize_t result;

    do {
        result = call->attempt(call);
    } while (result == -EINTR);
    return result == -EWOULDBLOCK ? -EAGAIN : result;
}

/* Whether the engine is to make the call. */
static bool may_be_made(const IoCall *call)
{
    return call->describe && (call->direction == IO_READ || call->preferred) &&
           io_may_submit(call->described);
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

static ssize_t try_with_turn(IoCall *call, const IoTurn *turn)
{
    ssize_t result = -ECANCELED;

    os_mutex_lock(&turn->side->lock);
    if (!io_fd_stale(turn->entry, turn->generation)) {
        result = attempt(call);
    }
    os_mutex_unlock(&turn->side->lock);
    return result;
}

/* Have the engine make the call.  Returns its result, -EAGAIN if that was a
 * part of the work, or IO_NEEDS_OTHER_WAY. */
static ssize_t coroutine_fn have_it_made(IoCall *call, const IoTurn *turn)
{
    OsUringRequest request;
    struct iovec iov;
    ssize_t result;

    if (!may_be_made(call)) {
        return IO_NEEDS_OTHER_WAY;
    }
    call->describe(call, &request, &iov);
    call->preferred = false;
    result = io_submit_with_turn(turn, &request, call->what);
    if (result == IO_NEEDS_OTHER_WAY || !call->went) {
        return result;
    }
    return call->went(call, result);
}

/* Returns 0: the wait has begun; or the events that hold, or -errno. */
static int begin_to_wait(const IoCall *call, const IoTurn *turn, FdWait *wait)
{
    int events = -ECANCELED;

    os_mutex_lock(&turn->side->lock);
    if (!io_fd_stale(turn->entry, turn->generation)) {
        events =
            fd_wait_begin(wait, call->fd, (uint32_t)call->events, call->what);
    }
    os_mutex_unlock(&turn->side->lock);
    /* ENOSPC is the limit on what the kernel watches. */
    return events == -ENOSPC ? -ENOMEM : events;
}

static int coroutine_fn await_readiness(const IoCall *call, const IoTurn *turn)
{
    FdWait wait;
    int events = begin_to_wait(call, turn, &wait);

    return events == 0 ? fd_wait_park(&wait, -1) : events;
}

static int coroutine_fn pause_after(unsigned in_vain)
{
    unsigned doublings = in_vain - IN_VAIN_MAX - 1;

    if (doublings > PAUSE_DOUBLINGS_MAX) {
        doublings = PAUSE_DOUBLINGS_MAX;
    }
    return co_sleep_ns((int64_t)PAUSE_NS << doublings);
}

/* Without a home: block the thread. */
static ssize_t transfer_blocking(IoCall *call)
{
    struct pollfd pollfd = {.fd = call->fd, .events = call->events};
    unsigned in_vain = 0;
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
        in_vain = call->progress ? 0 : in_vain + 1;
        call->progress = false;
        ret = os_poll(&pollfd, 1, -1);
        if (ret < 0 && ret != -EINTR) {
            return ret;
        }
        if (in_vain > IN_VAIN_MAX) {
            pause_after(in_vain);
        }
    }
}

/* tried: that it would block was found out before. */
static ssize_t coroutine_fn transfer_with_turn(IoCall *call, IoTurn *turn,
                                               bool tried)
{
    unsigned in_vain = 0;
    ssize_t result;

    for (;; tried = false) {
        result = tried ? -EAGAIN : try_with_turn(call, turn);
        while (result == -EAGAIN) {
            result = have_it_made(call, turn);
        }
        if (result != IO_NEEDS_OTHER_WAY) {
            return result;
        }
        in_vain = call->progress ? 0 : in_vain + 1;
        call->progress = false;
        result = await_readiness(call, turn);
        if (result >= 0 && in_vain > IN_VAIN_MAX) {
            result = pause_after(in_vain);
        }
        if (result < 0) {
            return result;
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

/*
 * Whether to have the engine make the call without a try: where the last one
 * was in vain the next is, too, most of the time (a server has answered, and
 * waits for what its client says to that).
 */
static bool bets_on_nothing(const IoCall *call, IoSide *side)
{
    uint32_t bets = load_relaxed(&side->bets);

    if (bets == 0 || !may_be_made(call)) {
        return false;
    }
    store_relaxed(&side->bets, bets - 1);
    return true;
}

/* Whether the engine is better at the call, a write, than an attempt. */
static bool is_better_made(const IoCall *call, IoSide *side)
{
    uint32_t bets = side ? load_relaxed(&side->bets) : 0;

    if (!call->describe || !io_better_submit(call->described)) {
        return false;
    }
    if (bets > 0) {
        store_relaxed(&side->bets, bets - 1);
    }
    return bets == 0;
}

static void learn_bets(IoSide *side, uint32_t bets)
{
    if (load_relaxed(&side->bets) != bets) {
        store_relaxed(&side->bets, bets);
    }
}

/* Returns the result, IO_NEEDS_WORKER or -EAGAIN. */
static ssize_t try_to_write(IoCall *call, IoSide *side)
{
    ssize_t result;

    call->preferred = is_better_made(call, side);
    if (call->preferred && side) {
        return -EAGAIN;
    }
    result = attempt(call);
    if (call->preferred && result >= 0) {
        io_fd_get(call->fd); /* then the next one has a side */
    }
    call->preferred = false;
    return result;
}

/* The same. */
static ssize_t try_to_read(IoCall *call, IoSide *side)
{
    ssize_t result;

    if (side && bets_on_nothing(call, side)) {
        return -EAGAIN;
    }
    result = attempt(call);
    if (side) {
        learn_bets(side, result == -EAGAIN ? BETS : 0);
    }
    return result;
}

ssize_t io_transfer(IoCall *call)
{
    IoFd *entry = io_fd_find(call->fd);
    IoSide *side = entry ? &entry->sides[call->direction] : NULL;
    ssize_t result;

    if (side && load_acquire(&side->held)) {
        if (call->direction == IO_WRITE) {
            learn_bets(side, CROWDED);
        }
        return transfer_slow(call, false);
    }
    result = call->direction == IO_READ ? try_to_read(call, side)
                                        : try_to_write(call, side);
    if (result != -EAGAIN && result != IO_NEEDS_WORKER) {
        return result;
    }
    return transfer_slow(call, result == -EAGAIN);
}
