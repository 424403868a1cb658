/* SPDX-License-Identifier: MIT */
/*
 * Waiting for events of the kernel: the event fd that wakes a loop, epoll,
 * poll.  Errors are negative errno values; EINTR is one of them for waits.
 */
#ifndef COAIO_OS_EVENT_H
#define COAIO_OS_EVENT_H

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

struct epoll_event;

/* A nonblocking close-on-exec event fd (a pipe where there is none). */
int os_event_open(int fds[2]); /* fds[0]: to wait on; fds[1]: to set */
void os_event_close(int fds[2]);
/* Make fds[0] readable, or abort: else a loop would sleep for ever.
 * Signal-safe; keeps errno. */
void os_event_set(const int fds[2]);
/* Make it unreadable. */
void os_event_drain(const int fds[2]);

int os_epoll_create(void);
int os_epoll_ctl(int epfd, int op, int fd, uint32_t events, uint64_t data);
/* timeout_ns below 0: for ever.  Returns the number of events. */
int os_epoll_wait(int epfd, struct epoll_event *events, int max,
                  int64_t timeout_ns);
int os_poll(struct pollfd *fds, unsigned n, int64_t timeout_ns);

/* Whether fd is ever anything else than ready for reading and writing; also if
 * the kernel cannot be asked. */
bool os_has_readiness(int fd);

/* Ask the kernel whether fd is open.  Returns 0 or -EBADF. */
static inline int os_poll_open(int fd)
{
    struct pollfd probe = {.fd = fd};

    return os_poll(&probe, 1, 0) == 1 && (probe.revents & POLLNVAL) ? -EBADF
                                                                    : 0;
}

#endif
