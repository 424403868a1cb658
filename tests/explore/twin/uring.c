/* SPDX-License-Identifier: MIT */
/*
 * os/uring.h as the explorer has it: a small ring.
 *
 * What is queued is taken in by os_uring_wait(), one request after the other,
 * with a scheduling point before each: that is when a descriptor comes to mean
 * a file, which the request holds until it completes.  What has become ready
 * completes when the thread is in the kernel.  Removals that work are silent.
 * The ring hands no views on: a system call is not a fence.
 *
 * Only calls on sockets: those on files complete by themselves, and nobody
 * closes what they name before.
 *
 * A context that names no engine is told that there are no rings, and takes
 * epoll: so do the explorations of everything else.  Where rings are to be
 * forbidden it is given one first.
 */
#include "../machine.h"

#include "os/file.h"
#include "os/memory.h"
#include "os/uring.h"

#include <errno.h>
#include <poll.h>

#define QUEUE  16 /* requests that are queued, ... */
#define HELD   16 /* under way, ... */
#define EVENTS 32 /* and have completed */
#define FILES  64

typedef enum RequestKind {
    REQUEST_NONE,
    REQUEST_NOP,
    REQUEST_POLL,
    REQUEST_CALL,
    REQUEST_REMOVAL,
    REQUEST_END_OF_ALL,
} RequestKind;

typedef struct Request {
    RequestKind kind;
    int fd;        /* until it is taken in, ... */
    uint32_t file; /* and from then on */
    uint32_t events;
    bool goes_on;
    uint32_t rises;  /* of the file, when it completed last */
    uint64_t data;   /* of a removal: what to ignore */
    uint64_t victim; /* of a removal */
} Request;

struct OsUring {
    unsigned user; /* its thread + 1; 0: is not enabled */
    Request queue[QUEUE];
    unsigned head; /* requests that were taken in, ... */
    unsigned tail; /* and that were queued, ever */
    Request held[HELD];
    OsUringEvent events[EVENTS];
    unsigned taken; /* completions that were taken, ... */
    unsigned done;  /* and that there were, ever */
};

static unsigned calls[FILES];
static unsigned holders[FILES];
static unsigned room = QUEUE;
static unsigned refusals;
static bool forbidden;

/* --- for tests ------------------------------------------------------------*/

unsigned explore_uring_calls(uint32_t file)
{
    return calls[file];
}

bool explore_uring_holds(uint32_t file)
{
    return holders[file] > 0;
}

void explore_uring_refuse(unsigned n)
{
    refusals = n;
}

void explore_uring_shrink(unsigned n)
{
    room = n;
}

void explore_uring_forbid(void)
{
    forbidden = true;
}

/* --- life -----------------------------------------------------------------*/

int os_uring_open(OsUring **ring, unsigned without)
{
    if ((without & OS_URING_BEST) && !forbidden) {
        return -ENOPKG;
    }
    *ring = os_alloc(sizeof(**ring));
    return 0;
}

static void release(Request *request)
{
    if (request->kind != REQUEST_NONE) {
        holders[request->file]--;
        request->kind = REQUEST_NONE;
    }
}

void os_uring_close(OsUring *ring)
{
    for (int i = 0; i < HELD; i++) {
        release(&ring->held[i]);
    }
    os_free(ring);
}

int os_uring_disabled(void)
{
    return -1;
}

int os_uring_enable(OsUring *ring)
{
    ring->user = machine->current + 1;
    return forbidden ? -EPERM : 0;
}

int os_uring_descriptor(const OsUring *ring)
{
    (void)ring;
    return -1;
}

int64_t os_uring_enter_ns(const OsUring *ring)
{
    (void)ring;
    return 0;
}

/* --- submission -----------------------------------------------------------*/

static void check_user(const OsUring *ring)
{
    if (ring->user != machine->current + 1) {
        explore_fail("failed check", "a ring is used by another thread");
    }
}

bool os_uring_full(const OsUring *ring)
{
    check_user(ring);
    return ring->tail - ring->head == room;
}

static int queue(OsUring *ring, const Request *request)
{
    if (os_uring_full(ring)) {
        return -EAGAIN;
    }
    ring->queue[ring->tail++ % QUEUE] = *request;
    return 0;
}

int os_uring_poll(OsUring *ring, int fd, uint32_t events, bool multishot,
                  uint64_t data)
{
    const Request request = {
        .kind = REQUEST_POLL,
        .fd = fd,
        .events = events | POLLERR | POLLHUP | POLLRDHUP,
        .goes_on = multishot,
        .data = data,
    };

    return queue(ring, &request);
}

int os_uring_cancel(OsUring *ring, uint64_t data, uint64_t ignore)
{
    const Request request = {
        .kind = REQUEST_REMOVAL,
        .victim = data,
        .data = ignore,
    };

    return queue(ring, &request);
}

int os_uring_cancel_all(OsUring *ring, uint64_t ignore)
{
    const Request request = {.kind = REQUEST_END_OF_ALL, .data = ignore};

    return queue(ring, &request);
}

bool os_uring_takes(const OsUring *ring, OsUringCall call)
{
    check_user(ring);
    return os_uring_call_of_socket(call);
}

int os_uring_request(OsUring *ring, const OsUringRequest *call, uint64_t data,
                     unsigned *slot)
{
    const Request request = {
        .kind = REQUEST_CALL,
        .fd = call->fd,
        .events = call->call == OS_URING_RECV ? POLLIN : POLLOUT,
        .data = data,
    };

    *slot = ring->tail;
    return queue(ring, &request);
}

void os_uring_finished(const OsUringRequest *request, ssize_t result)
{
    (void)request;
    (void)result;
}

bool os_uring_taken(const OsUring *ring, unsigned slot)
{
    check_user(ring);
    return (int)(ring->head - slot) > 0;
}

void os_uring_replace(OsUring *ring, unsigned slot)
{
    Request *request = &ring->queue[slot % QUEUE];

    if (os_uring_taken(ring, slot)) {
        explore_fail("failed check", "a request is replaced too late");
    }
    request->kind = REQUEST_NOP;
}

/* --- in the kernel --------------------------------------------------------*/

static void complete(OsUring *ring, uint64_t data, int32_t result, bool more)
{
    if (ring->done - ring->taken == EVENTS) {
        explore_fail("explorer", "too many completions");
    }
    ring->events[ring->done++ % EVENTS] = (OsUringEvent){data, result, more};
    if (machine->tracing) {
        trace("ring", "%#llx completes: %d", (unsigned long long)data, result);
    }
}

static Request *find_held(OsUring *ring, uint64_t data)
{
    for (int i = 0; i < HELD; i++) {
        if (ring->held[i].kind != REQUEST_NONE && ring->held[i].data == data) {
            return &ring->held[i];
        }
    }
    return NULL;
}

static void hold(OsUring *ring, const Request *request)
{
    uint32_t file = explore_fd_file(request->fd);

    if (file == 0) {
        complete(ring, request->data, -EBADF, false);
        return;
    }
    if (machine->tracing) {
        trace("ring", "%s of fd %d is one of file %u",
              request->kind == REQUEST_CALL ? "a call" : "a poll", request->fd,
              file);
    }
    for (int i = 0; i < HELD && file < FILES; i++) {
        if (ring->held[i].kind == REQUEST_NONE) {
            ring->held[i] = *request;
            ring->held[i].file = file;
            holders[file]++;
            calls[file] += request->kind == REQUEST_CALL;
            return;
        }
    }
    explore_fail("explorer", "too many requests");
}

static void remove_victim(OsUring *ring, const Request *request)
{
    Request *victim = find_held(ring, request->victim);

    if (victim) {
        complete(ring, victim->data, -ECANCELED, false);
        release(victim);
    } else {
        complete(ring, request->data, -ENOENT, false);
    }
}

static void end_all(OsUring *ring, const Request *request)
{
    for (int i = 0; i < HELD; i++) {
        if (ring->held[i].kind != REQUEST_NONE) {
            complete(ring, ring->held[i].data, -ECANCELED, false);
            release(&ring->held[i]);
        }
    }
    complete(ring, request->data, 0, false);
}

static void take_in(OsUring *ring, const Request *request)
{
    switch (request->kind) {
    case REQUEST_POLL:
    case REQUEST_CALL:
        hold(ring, request);
        break;
    case REQUEST_REMOVAL:
        remove_victim(ring, request);
        break;
    case REQUEST_END_OF_ALL:
        end_all(ring, request);
        break;
    default:
        complete(ring, request->data, 0, false);
        break;
    }
}

static void look_at(OsUring *ring, Request *request)
{
    uint32_t rises = 0;
    uint32_t events = twin_file_ready(request->file, &rises) & request->events;

    if (!events || (request->goes_on && rises == request->rises)) {
        return;
    }
    request->rises = rises;
    complete(ring, request->data,
             request->kind == REQUEST_CALL ? 1 : (int32_t)events,
             request->goes_on);
    if (!request->goes_on) {
        release(request);
    }
}

/* Returns whether there is something to be taken. */
static bool look(OsUring *ring)
{
    for (int i = 0; i < HELD; i++) {
        if (ring->held[i].kind != REQUEST_NONE) {
            look_at(ring, &ring->held[i]);
        }
    }
    return ring->done != ring->taken;
}

int os_uring_wait(OsUring *ring, int64_t timeout_ns)
{
    int64_t deadline_ns =
        timeout_ns < 0 ? INT64_MAX : machine->now_ns + timeout_ns;
    bool in_time = true;

    check_user(ring);
    AT_CALL("io_uring_enter");
    machine_step();
    look(ring); /* what is under way completes, whatever comes next */
    if (refusals > 0 && ring->head != ring->tail) {
        refusals--;
        return -EAGAIN;
    }
    while (ring->head != ring->tail) {
        take_in(ring, &ring->queue[ring->head++ % QUEUE]);
        machine_step();
    }
    while (!look(ring) && timeout_ns != 0 && in_time) {
        if (machine->tracing) {
            trace("io_uring_enter", "sleeps");
        }
        in_time = twin_wait_ready(deadline_ns);
    }
    return 0;
}

bool os_uring_due(const OsUring *ring)
{
    check_user(ring);
    return false;
}

bool os_uring_take(OsUring *ring, OsUringEvent *event)
{
    check_user(ring);
    if (ring->taken == ring->done) {
        return false;
    }
    *event = ring->events[ring->taken++ % EVENTS];
    return true;
}

/* --- os/file.h, as far as io/registry.c knows it --------------------------*/

int os_file_status(int fd, OsFileStatus *status)
{
    *status = (OsFileStatus){
        .kind = OS_FILE_SOCKET,
        .serial = explore_fd_file(fd),
    };
    return 0;
}

int os_file_flags(int fd)
{
    (void)fd;
    return 0;
}

int os_socket_type(int fd)
{
    (void)fd;
    return SOCK_STREAM;
}

bool os_file_in_memory(int fd)
{
    (void)fd;
    return false;
}

void os_shutdown(int fd)
{
    (void)fd;
}
