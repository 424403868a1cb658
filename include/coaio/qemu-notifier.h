/* SPDX-License-Identifier: MIT */
/*
 * QEMU's EventNotifier, by an eventfd: a part of qemu-compat.h, which includes
 * it.  Linux only.
 */
#ifndef COAIO_QEMU_NOTIFIER_H
#define COAIO_QEMU_NOTIFIER_H

#include <coaio/qemu-compat.h>

#ifdef __linux__

#include <sys/eventfd.h>
#include <unistd.h>

COAIO_BEGIN_DECLS

typedef struct EventNotifier EventNotifier;
typedef void EventNotifierHandler(EventNotifier *notifier);

struct EventNotifier {
    int fd1; /* the descriptor and 1: a zeroed one has none */
    EventNotifierHandler *read;
    EventNotifierHandler *poll_ready;
};

/* Returns 0 or a negative errno value. */
static inline int event_notifier_init(EventNotifier *e, int active)
{
    memset(e, 0, sizeof(*e));
    e->fd1 = eventfd(active ? 1 : 0, EFD_CLOEXEC | EFD_NONBLOCK) + 1;
    return e->fd1 == 0 ? -co_errno() : 0;
}

static inline int event_notifier_get_fd(const EventNotifier *e)
{
    return e->fd1 - 1;
}

static inline void event_notifier_cleanup(EventNotifier *e)
{
    if (e->fd1) {
        close(event_notifier_get_fd(e));
    }
    e->fd1 = 0;
}

static inline int event_notifier_set(EventNotifier *e)
{
    if (e->fd1 == 0) {
        return -1;
    }
    eventfd_write(event_notifier_get_fd(e), 1); /* fails if full: it is set */
    return 0;
}

static inline int event_notifier_test_and_clear(EventNotifier *e)
{
    eventfd_t value;

    return e->fd1 && eventfd_read(event_notifier_get_fd(e), &value) == 0;
}

static inline void coaio_qemu_notifier_read(void *opaque)
{
    EventNotifier *e = (EventNotifier *)opaque;

    e->read(e);
}

static inline void coaio_qemu_notifier_poll_ready(void *opaque)
{
    EventNotifier *e = (EventNotifier *)opaque;

    e->poll_ready(e);
}

/* io_poll is called with the notifier. */
static inline void aio_set_event_notifier(AioContext *ctx, EventNotifier *e,
                                          EventNotifierHandler *io_read,
                                          AioPollFn *io_poll,
                                          EventNotifierHandler *io_poll_ready)
{
    int fd = event_notifier_get_fd(e);

    if (!io_read) {
        aio_set_fd_handler(ctx, fd, NULL, NULL, NULL, NULL, NULL);
        return;
    }
    e->read = io_read;
    e->poll_ready = io_poll_ready;
    coaio_qemu_must_set(aio_set_fd_handler(
        ctx, fd, coaio_qemu_notifier_read, NULL, io_poll,
        io_poll_ready ? coaio_qemu_notifier_poll_ready : NULL, e));
}

static inline void event_notifier_set_handler(EventNotifier *e,
                                              EventNotifierHandler *handler)
{
    aio_set_event_notifier(aio_context_main(), e, handler, NULL, NULL);
}

COAIO_END_DECLS

#endif

#endif
