/* SPDX-License-Identifier: MIT */
/*
 * The poll engine: for systems without epoll, and to hold the others against.
 *
 * Guarantees: works wherever poll(2) does.  A wait costs time in proportion to
 * the descriptors that are watched.  Interest that another thread changes
 * takes effect in the next wait: fd.c notifies the home thread.
 *
 * update() edits one array, under the lock; wait() hands the kernel a copy,
 * made anew when the array has changed.  So the array that the kernel looks at
 * is never edited.
 *
 * INVARIANTS
 *
 *   1. fds[0] and active[0] are the event fd.
 *   2. slots[fd] is the index in fds of a watched descriptor, or 0; serials[i]
 *      and oneshot[i] belong to fds[i].
 */
#include "base/assert.h"
#include "loop/context.h"
#include "loop/poller/poller.h"
#include "os/event.h"
#include "os/memory.h"

#include <errno.h>
#include <string.h>

typedef struct Watch {
    uint32_t serial;
    bool oneshot;
} Watch;

typedef struct PollState {
    OsMutex lock;         /* taken after that of the fd table */

    /* Under the lock. */
    struct pollfd *fds;
    Watch *watches;       /* of the same index */
    unsigned n;
    unsigned capacity;
    unsigned *slots;      /* by descriptor */
    unsigned n_slots;
    bool changed;         /* since active was made */

    /* The home thread's. */
    struct pollfd *active;
    Watch *active_watches;
    unsigned n_active;
    unsigned active_capacity;
} PollState;

static unsigned grown(unsigned capacity, unsigned least)
{
    capacity = capacity ? capacity : 16;
    while (capacity < least) {
        capacity *= 2;
    }
    return capacity;
}

/* Resize both arrays.  On failure one of them may be larger than needed. */
static int resize_pair(struct pollfd **fds, Watch **watches,
                       unsigned capacity)
{
    void *block = os_realloc(*fds, capacity * sizeof(**fds));

    if (!block) {
        return -ENOMEM;
    }
    *fds = block;
    block = os_realloc(*watches, capacity * sizeof(**watches));
    if (!block) {
        return -ENOMEM;
    }
    *watches = block;
    return 0;
}

static int reserve_locked(PollState *state, unsigned n)
{
    unsigned capacity = grown(state->capacity, n);

    if (n <= state->capacity) {
        return 0;
    }
    if (resize_pair(&state->fds, &state->watches, capacity) < 0) {
        return -ENOMEM;
    }
    state->capacity = capacity;
    return 0;
}

static int reserve_slot_locked(PollState *state, int fd)
{
    unsigned n = grown(state->n_slots, (unsigned)fd + 1);
    unsigned *slots;

    if ((unsigned)fd < state->n_slots) {
        return 0;
    }
    slots = os_realloc(state->slots, n * sizeof(*slots));
    if (!slots) {
        return -ENOMEM;
    }
    memset(slots + state->n_slots, 0, (n - state->n_slots) * sizeof(*slots));
    state->slots = slots;
    state->n_slots = n;
    return 0;
}

static void poll_free(PollState *state)
{
    os_free(state->fds);
    os_free(state->watches);
    os_free(state->slots);
    os_free(state->active);
    os_free(state->active_watches);
    os_mutex_destroy(&state->lock);
    os_free(state);
}

static int poll_open(AioContext *ctx)
{
    PollState *state = os_alloc(sizeof(*state));

    if (!state) {
        return -ENOMEM;
    }
    os_mutex_init(&state->lock);
    if (reserve_locked(state, 1) < 0) {
        poll_free(state);
        return -ENOMEM;
    }
    state->fds[0] = (struct pollfd){.fd = ctx->event[0], .events = POLLIN};
    state->watches[0] = (Watch){0};
    state->n = 1;
    state->changed = true;
    ctx->poller.state = state;
    return 0;
}

static void poll_close(AioContext *ctx)
{
    poll_free(ctx->poller.state);
}

/* --- changing what is watched ---------------------------------------------*/

/* Move the last one to the place of the one that goes. */
static void drop_locked(PollState *state, unsigned slot)
{
    unsigned last = --state->n;

    invariant(slot > 0 && slot <= last); /* INVARIANTS 1 */
    state->slots[state->fds[slot].fd] = 0;
    if (slot != last) {
        state->fds[slot] = state->fds[last];
        state->watches[slot] = state->watches[last];
        state->slots[state->fds[slot].fd] = slot;
    }
    state->changed = true;
}

static int put_locked(PollState *state, int fd, uint32_t serial,
                      uint32_t events)
{
    unsigned slot;

    if (reserve_slot_locked(state, fd) < 0 ||
        reserve_locked(state, state->n + 1) < 0) {
        return -ENOMEM;
    }
    slot = state->slots[fd];
    if (slot == 0) {
        slot = state->n++;
        state->slots[fd] = slot; /* INVARIANTS 2 */
    }
    state->fds[slot] = (struct pollfd){
        .fd = fd,
        .events = (short)(events & ~POLLER_ONESHOT),
    };
    state->watches[slot] = (Watch){
        .serial = serial,
        .oneshot = events & POLLER_ONESHOT,
    };
    state->changed = true;
    return 0;
}

static int poll_update(AioContext *ctx, int fd, uint32_t serial, uint32_t old,
                       uint32_t events)
{
    PollState *state = ctx->poller.state;
    int ret = events ? os_poll_open(fd) : 0;

    (void)old;
    if (ret < 0) {
        return ret;
    }
    os_mutex_lock(&state->lock);
    if (events) {
        ret = put_locked(state, fd, serial, events);
    } else if ((unsigned)fd < state->n_slots && state->slots[fd]) {
        drop_locked(state, state->slots[fd]);
    }
    os_mutex_unlock(&state->lock);
    return ret;
}

/* --- waiting --------------------------------------------------------------*/

static int refresh_locked(PollState *state)
{
    if (!state->changed) {
        return 0;
    }
    if (state->active_capacity < state->n) {
        if (resize_pair(&state->active, &state->active_watches,
                        state->capacity) < 0) {
            return -ENOMEM;
        }
        state->active_capacity = state->capacity;
    }
    memcpy(state->active, state->fds, state->n * sizeof(*state->fds));
    memcpy(state->active_watches, state->watches,
           state->n * sizeof(*state->watches));
    state->n_active = state->n;
    state->changed = false;
    return 0;
}

static int refresh(PollState *state)
{
    int ret;

    os_mutex_lock(&state->lock);
    ret = refresh_locked(state);
    os_mutex_unlock(&state->lock);
    return ret;
}

/* The report that a one-shot watch was for has come. */
static void disarm(PollState *state, int fd, uint32_t serial)
{
    unsigned slot;

    os_mutex_lock(&state->lock);
    slot = state->slots[fd];
    if (slot && state->watches[slot].serial == serial) {
        drop_locked(state, slot);
    }
    os_mutex_unlock(&state->lock);
}

static bool report(AioContext *ctx, PollState *state, unsigned i)
{
    const struct pollfd *pfd = &state->active[i];
    const Watch *watch = &state->active_watches[i];

    if (watch->oneshot) {
        disarm(state, pfd->fd, watch->serial);
    }
    return fd_ready(ctx, pfd->fd, watch->serial, (uint16_t)pfd->revents);
}

static int poll_await(AioContext *ctx, int64_t timeout_ns)
{
    PollState *state = ctx->poller.state;
    int ret = refresh(state);
    int reported = 0;
    int n;

    if (ret < 0 && !state->active) {
        return ret;
    }
    /* Without memory for a new copy, look at the old one, but do not sleep. */
    n = os_poll(state->active, state->n_active, ret < 0 ? 0 : timeout_ns);
    if (n < 0) {
        return n;
    }
    for (unsigned i = 1; i < state->n_active && n > 0; i++) {
        reported += state->active[i].revents && report(ctx, state, i);
    }
    if (n > 0 && state->active[0].revents) {
        os_event_drain(ctx->event); /* after what it announced was looked at */
    }
    return reported;
}

static int poll_descriptor(AioContext *ctx)
{
    (void)ctx;
    return -1;
}

const PollerOps poller_poll = {
    .name = "poll",
    .open = poll_open,
    .close = poll_close,
    .update = poll_update,
    .wait = poll_await,
    .descriptor = poll_descriptor,
};
