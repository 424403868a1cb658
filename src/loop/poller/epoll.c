/* SPDX-License-Identifier: MIT */
/*
 * The epoll engine.
 *
 * Guarantees: interest lives in the kernel, so changing it from another thread
 * takes effect while the home thread sleeps.  A wait is one system call
 * however many descriptors there are, and reports at most BATCH of them.
 *
 * Handlers are watched level-triggered.  A coroutine's wait is one-shot: after
 * its report the kernel keeps the registration, silent even for errors, and
 * the next wait costs one call to arm it again.
 *
 * The event fd is registered edge-triggered and is never read: each time that
 * it is set is an edge.  (If it is a pipe, it is drained like any other.)
 *
 * WHAT THE KERNEL DOES NOT TELL
 *
 *   A registration belongs to an open file description and a number.  When
 *   the last descriptor of the description is closed, it vanishes; so MOD may
 *   find nothing (ENOENT), and ADD something (EEXIST).  Both are tried.
 *   While another descriptor (a dup, another process's) keeps the description
 *   open, the registration stays although the number means something else or
 *   nothing, and there is no way to remove it: DEL would want the number.  Its
 *   reports carry a serial that is not in use any more, and are ignored.  If
 *   such reports come STALE_MAX waits in a row, the loop would never sleep
 *   again: then a new set takes the place of the old one.
 */
#include "loop/context.h"
#include "loop/poller/poller.h"
#include "os/event.h"
#include "os/file.h"
#include "os/memory.h"

#include <errno.h>
#include <sys/epoll.h>

#define BATCH 64
#define STALE_MAX 4

/* What the kernel hands back for the event fd; no descriptor has it. */
#define EVENT_DATA UINT64_MAX

_Static_assert(POLLER_ONESHOT == EPOLLONESHOT, "passed on as it is");
_Static_assert(POLLIN == EPOLLIN && POLLOUT == EPOLLOUT &&
                   POLLPRI == EPOLLPRI && POLLERR == EPOLLERR &&
                   POLLHUP == EPOLLHUP && POLLRDHUP == EPOLLRDHUP,
               "passed on as they are");

typedef struct EpollState {
    int epfd;        /* changes under the lock of the fd table */
    unsigned stale;  /* waits in a row with stale reports */
    struct epoll_event events[BATCH]; /* of the wait that reports now */
} EpollState;

static bool is_pipe(const AioContext *ctx)
{
    return ctx->event[0] != ctx->event[1];
}

/* A new set with nothing in it but the event fd, or -errno. */
static int make_set(const AioContext *ctx)
{
    uint32_t edge = is_pipe(ctx) ? 0 : EPOLLET;
    int epfd = os_epoll_create();
    int ret;

    if (epfd < 0) {
        return epfd;
    }
    ret = os_epoll_ctl(epfd, EPOLL_CTL_ADD, ctx->event[0], EPOLLIN | edge,
                       EVENT_DATA);
    if (ret < 0) {
        os_close(epfd);
        return ret;
    }
    return epfd;
}

static int open_epoll(AioContext *ctx)
{
    EpollState *state = os_alloc(sizeof(*state));

    if (!state) {
        return -ENOMEM;
    }
    state->epfd = make_set(ctx);
    if (state->epfd < 0) {
        int ret = state->epfd;

        os_free(state);
        return ret;
    }
    ctx->poller.state = state;
    return 0;
}

static void close_epoll(AioContext *ctx)
{
    EpollState *state = ctx->poller.state;

    os_close(state->epfd);
    os_free(state);
}

static int update_epoll(AioContext *ctx, int fd, uint32_t serial, uint32_t old,
                        uint32_t events)
{
    const EpollState *state = ctx->poller.state;
    uint64_t data = (uint64_t)serial << 32 | (uint32_t)fd;
    int ret;

    if (events == 0) {
        os_epoll_ctl(state->epfd, EPOLL_CTL_DEL, fd, 0, data);
        return 0;
    }
    if (old != 0) {
        ret = os_epoll_ctl(state->epfd, EPOLL_CTL_MOD, fd, events, data);
        if (ret != -ENOENT) {
            return ret;
        }
    }
    ret = os_epoll_ctl(state->epfd, EPOLL_CTL_ADD, fd, events, data);
    if (ret == -EEXIST) {
        ret = os_epoll_ctl(state->epfd, EPOLL_CTL_MOD, fd, events, data);
    }
    return ret;
}

/* For fd_rewatch(), which holds the lock of the fd table. */
static int replace_set(AioContext *ctx)
{
    EpollState *state = ctx->poller.state;
    int epfd = make_set(ctx);

    if (epfd < 0) {
        return epfd;
    }
    os_close(state->epfd);
    state->epfd = epfd;
    return 0;
}

static void count_stale(AioContext *ctx, EpollState *state, bool saw_stale)
{
    state->stale = saw_stale ? state->stale + 1 : 0;
    if (state->stale >= STALE_MAX) {
        state->stale = 0;
        fd_rewatch(ctx, replace_set); /* or later, when that works */
    }
}

static int await_epoll(AioContext *ctx, int64_t timeout_ns)
{
    EpollState *state = ctx->poller.state;
    bool saw_stale = false;
    int reported = 0;
    int n = os_epoll_wait(state->epfd, state->events, BATCH, timeout_ns);

    for (int i = 0; i < n; i++) {
        const struct epoll_event *event = &state->events[i];
        uint64_t data = event->data.u64;

        if (data == EVENT_DATA) {
            if (is_pipe(ctx)) {
                os_event_drain(ctx->event);
            }
        } else if (fd_ready(ctx, (int)(uint32_t)data, (uint32_t)(data >> 32),
                            event->events)) {
            reported++;
        } else {
            saw_stale = true;
        }
    }
    if (n >= 0) {
        count_stale(ctx, state, saw_stale);
    }
    return n < 0 ? n : reported;
}

static int describe_epoll(AioContext *ctx)
{
    const EpollState *state = ctx->poller.state;

    return state->epfd;
}

const PollerOps poller_epoll = {
    .name = "epoll",
    .open = open_epoll,
    .close = close_epoll,
    .update = update_epoll,
    .wait = await_epoll,
    .descriptor = describe_epoll,
};
