/* SPDX-License-Identifier: MIT */
/*
 * os/event.h as the explorer has it: event descriptors, epoll and poll, and
 * descriptors of the tests.  What a ring needs to know of them, too.
 *
 * An event is one location with acquire and release operations: setting it
 * hands a view on, and a wait that reports it takes the view over.  A level is
 * what a descriptor is ready for; an edge is kept for each registration that
 * asked for edges.
 */
#include "../machine.h"

#include "os/event.h"
#include "os/file.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#define FIRST_FD 100
#define FDS      24
#define WATCHES  8

typedef struct Watch {
    int fd;
    uint32_t events; /* 0: unused */
    uint64_t data;
    bool edge;   /* one has come since the last report */
    bool silent; /* one-shot, and reported */
} Watch;

typedef struct Fd {
    bool open;
    uint32_t file;          /* the open file: no two have the same number */
    uint32_t ready;         /* POLLIN, ... */
    uint32_t rises;         /* how often it has become ready */
    Watch watches[WATCHES]; /* of an epoll descriptor */
} Fd;

static Fd fds[FDS];
static uint32_t files;

static Fd *fd_at(int fd)
{
    int i = fd - FIRST_FD;

    return i >= 0 && i < FDS && fds[i].open ? &fds[i] : NULL;
}

static int open_fd(void)
{
    for (int i = 0; i < FDS; i++) {
        if (!fds[i].open) {
            memset(&fds[i], 0, sizeof(fds[i]));
            fds[i].open = true;
            fds[i].file = ++files;
            return FIRST_FD + i;
        }
    }
    explore_fail("explorer", "too many descriptors");
}

static void hand_view_on(const Fd *fd)
{
    Location *location;

    if (machine->phase != PHASE_AT_ONCE) {
        return;
    }
    location = location_use(fd, true);
    if (location) {
        location_release(location);
    }
}

static void take_view_over(const Fd *fd)
{
    Location *location;

    if (machine->phase != PHASE_AT_ONCE) {
        return;
    }
    location = location_use(fd, true);
    if (location) {
        location_acquire(location);
    }
}

/* fd has become ready for events: who watches it hears of that. */
static void make_ready(int fd, uint32_t events)
{
    fd_at(fd)->ready |= events;
    fd_at(fd)->rises++;
    for (int i = 0; i < FDS; i++) {
        for (int w = 0; fds[i].open && w < WATCHES; w++) {
            Watch *watch = &fds[i].watches[w];

            if (watch->events && watch->fd == fd) {
                watch->edge = true;
                machine_unblock(&fds[i], THREADS);
            }
        }
    }
    machine_unblock(fds, THREADS); /* poll(2), rings */
}

/* --- events and other descriptors -----------------------------------------*/

int os_event_open(int pair[2])
{
    pair[0] = pair[1] = open_fd();
    return 0;
}

void os_event_close(int pair[2])
{
    Fd *fd = fd_at(pair[0]);

    if (!fd) {
        explore_fail("use after free", "an event is closed twice");
    }
    fd->open = false;
}

void os_event_set(const int pair[2])
{
    AT_CALL("event set");
    machine_step();
    if (!fd_at(pair[1])) {
        explore_fail("use after free", "an event is set that is closed");
    }
    if (machine->tracing) {
        trace("event set", "fd %d", pair[1]);
    }
    hand_view_on(fd_at(pair[1]));
    make_ready(pair[1], POLLIN);
}

void os_event_drain(const int pair[2])
{
    AT_CALL("event drain");
    machine_step();
    take_view_over(fd_at(pair[0]));
    fd_at(pair[0])->ready = 0;
    if (machine->tracing) {
        trace("event drain", "fd %d", pair[0]);
    }
}

int os_close(int fd)
{
    Fd *closed = fd_at(fd);

    if (!closed) {
        return -EBADF;
    }
    closed->open = false;
    return 0;
}

int explore_fd_open(void)
{
    return open_fd();
}

uint32_t explore_fd_file(int fd)
{
    const Fd *sim = fd_at(fd);

    return sim ? sim->file : 0;
}

void explore_fd_set(int fd, uint32_t events)
{
    Fd *sim = fd_at(fd);

    AT_CALL("fd set");
    machine_step();
    if (machine->tracing) {
        trace("fd set", "fd %d: %#x", fd, events);
    }
    hand_view_on(sim);
    sim->ready = 0;
    if (events) {
        make_ready(fd, events);
    }
}

/* --- epoll ----------------------------------------------------------------*/

int os_epoll_create(void)
{
    return open_fd();
}

static Watch *find_watch(Fd *set, int fd)
{
    for (int w = 0; w < WATCHES; w++) {
        if (set->watches[w].events && set->watches[w].fd == fd) {
            return &set->watches[w];
        }
    }
    return NULL;
}

static Watch *new_watch(Fd *set)
{
    for (int w = 0; w < WATCHES; w++) {
        if (!set->watches[w].events) {
            return &set->watches[w];
        }
    }
    explore_fail("explorer", "too many descriptors are watched");
}

int os_epoll_ctl(int epfd, int op, int fd, uint32_t events, uint64_t data)
{
    Fd *set = fd_at(epfd);
    Watch *watch;

    AT_CALL("epoll_ctl");
    machine_step();
    watch = find_watch(set, fd);
    if (!fd_at(fd)) {
        return -EBADF;
    }
    if ((op == EPOLL_CTL_ADD) == (watch != NULL)) {
        return watch ? -EEXIST : -ENOENT;
    }
    if (machine->tracing) {
        trace("epoll_ctl", "fd %d: %#x", fd, events);
    }
    if (op == EPOLL_CTL_DEL) {
        watch->events = 0;
        return 0;
    }
    if (!watch) {
        watch = new_watch(set);
    }
    *watch = (Watch){
        .fd = fd,
        .events = events,
        .data = data,
        .edge = fd_at(fd)->ready != 0,
    };
    if (fd_at(fd)->ready & events) {
        machine_unblock(set, THREADS);
    }
    return 0;
}

/* What a watch reports now. */
static uint32_t report(Watch *watch)
{
    const Fd *fd = fd_at(watch->fd);
    uint32_t events;

    if (!watch->events || watch->silent || !fd) {
        return 0;
    }
    events = fd->ready & (watch->events | EPOLLERR | EPOLLHUP);
    if ((watch->events & EPOLLET) && !watch->edge) {
        events = 0;
    }
    if (events) {
        watch->edge = false;
        watch->silent = watch->events & EPOLLONESHOT;
        take_view_over(fd);
    }
    return events;
}

static int collect(Fd *set, struct epoll_event *events, int max)
{
    int n = 0;

    for (int w = 0; w < WATCHES && n < max; w++) {
        uint32_t ready = report(&set->watches[w]);

        if (ready) {
            events[n].events = ready;
            events[n].data.u64 = set->watches[w].data;
            n++;
        }
    }
    return n;
}

int os_epoll_wait(int epfd, struct epoll_event *events, int max,
                  int64_t timeout_ns)
{
    int64_t deadline_ns =
        timeout_ns < 0 ? INT64_MAX : machine->now_ns + timeout_ns;
    Fd *set = fd_at(epfd);
    bool in_time = true;
    int n;

    AT_CALL("epoll_wait");
    machine_step();
    while ((n = collect(set, events, max)) == 0 && timeout_ns != 0 && in_time) {
        if (machine->tracing) {
            trace("epoll_wait", "sleeps");
        }
        in_time = machine_block(set, "an event", deadline_ns);
    }
    if (machine->tracing) {
        trace("epoll_wait", "%d events", n);
    }
    return n;
}

/* --- poll -----------------------------------------------------------------*/

static int look(struct pollfd *pollfds, unsigned n)
{
    int ready = 0;

    for (unsigned i = 0; i < n; i++) {
        const Fd *fd = fd_at(pollfds[i].fd);

        pollfds[i].revents =
            !fd ? POLLNVAL
                : (short)(fd->ready &
                          ((uint32_t)pollfds[i].events | POLLERR | POLLHUP));
        if (pollfds[i].revents) {
            ready++;
            take_view_over(fd);
        }
    }
    return ready;
}

int os_poll(struct pollfd *pollfds, unsigned n, int64_t timeout_ns)
{
    int64_t deadline_ns =
        timeout_ns < 0 ? INT64_MAX : machine->now_ns + timeout_ns;
    bool in_time = true;
    int ready;

    AT_CALL("poll");
    machine_step();
    while ((ready = look(pollfds, n)) == 0 && timeout_ns != 0 && in_time) {
        in_time = machine_block(fds, "an event", deadline_ns);
    }
    if (machine->tracing) {
        trace("poll", "%d events", ready);
    }
    return ready;
}

/* --- rings ----------------------------------------------------------------*/

uint32_t twin_file_ready(uint32_t file, uint32_t *rises)
{
    for (int i = 0; i < FDS; i++) {
        if (fds[i].open && fds[i].file == file) {
            *rises = fds[i].rises;
            return fds[i].ready;
        }
    }
    return 0;
}

bool twin_wait_ready(int64_t deadline_ns)
{
    return machine_block(fds, "an event", deadline_ns);
}
