/* SPDX-License-Identifier: MIT */
/*
 * File descriptors: handlers (aio_set_fd_handler) and the waits of coroutines
 * (fd_wait), over the table of functions of an engine.
 *
 * Guarantees: a handler that was removed on the home thread does not run
 * again, wherever it was removed from; handlers run in the order in which the
 * engine reported, each with what it was set with, never half-changed.  A wait
 * ends once.  Does not guarantee anything for a descriptor that is closed
 * while it is watched, except that nothing crashes and the loop does not spin.
 *
 * Each context has a table of records, one for each descriptor that was ever
 * watched in it.  A record belongs to a handler or to waits, never to both.
 * Handlers are watched level-triggered.  Waits are watched one-shot, for the
 * events of all of them together: so a descriptor on which nobody waits any
 * more costs no pass, whatever happens to it.
 *
 * The wait of the engine only marks records as ready (fd_ready); fd_dispatch
 * runs them, so no callback runs in the midst of the engine's work.
 *
 * OWNERSHIP
 *
 *   table->lock protects all of a table but the list `ready`, which is the
 *   home thread's.  It is never held while a callback or a coroutine runs.
 *   Records live as long as the table.  FdWaits live on their coroutines'
 *   stacks; who takes one out of its record's list, under the lock, is the one
 *   who ends it.
 *   `tables` lists those of all contexts, for fd_cancel_all(); its lock is
 *   taken before that of a table.
 *
 * INVARIANTS
 *
 *   1. A record has a handler or waits or neither.
 *   2. A report whose serial is not the record's is stale: serial changes with
 *      each change of what the engine watches, also when that is stopped.
 *   3. todo of a record is changed under the lock; it is 0 unless the record is
 *      in the list ready, but for what a handler that runs has left.
 */
#include "loop/fd_int.h"

#include "base/assert.h"
#include "base/explore.h"
#include "loop/context.h"
#include "os/event.h"
#include "os/memory.h"

#include <errno.h>
#include <poll.h>

#define TROUBLE ((uint32_t)(POLLERR | POLLHUP | POLLNVAL))
#define READING ((uint32_t)(POLLIN | POLLPRI | POLLRDHUP | POLLERR | POLLHUP))
#define WRITING ((uint32_t)(POLLOUT | POLLERR | POLLHUP))

/* FdRecord.todo, for handlers: what is to be called. */
enum { TODO_POLLED = 1, TODO_READ = 2, TODO_WRITE = 4 };

typedef struct FdHandler {
    AioFdFunc *read;
    AioFdFunc *write;
    AioFdPollFunc *poll;
    AioFdFunc *poll_ready;
    void *opaque;
} FdHandler;

typedef struct FdRecord {
    List ready_link;      /* in FdTable.ready; the home thread's */
    List polled_link;     /* in FdTable.polled, if handler.poll is set */
    List always_link;     /* in FdTable.always, if a handler is set on fd, and
                             fd has no readiness */
    List waits;           /* of FdWait.link: whose events have not come */
    List due;             /* of FdWait.link: whose have; to be woken one after
                             the other, and still cancelled meanwhile */
    FdHandler handler;
    int fd;               /* constant */
    uint32_t serial;      /* INVARIANTS 2 */
    uint32_t registered;  /* what the engine was asked for last; after a
                             one-shot has been reported still that */
    uint32_t watched;     /* what it reports: registered, or 0 */
    uint32_t happened;    /* events for the waits, to be dispatched */
    uint32_t todo;        /* TODO_... of the handler, to be dispatched */
} FdRecord;

typedef struct FdTable {
    AioContext *ctx;      /* constant */
    List link;            /* in tables; tables_lock */
    List ready;           /* of FdRecord.ready_link; the home thread's */
    List ended;           /* of FdWait.link: has ended outside dispatch, and is
                             to be woken there; the home thread's */

    OsMutex lock;
    FdRecord **records;   /* by descriptor; NULL where there is none */
    unsigned size;
    List polled;
    List always;
    unsigned n_handlers;  /* atomic; written under the lock, like these: */
    unsigned n_polled;
    unsigned n_always;
    unsigned n_watched;
} FdTable;

static OsMutex tables_lock = OS_MUTEX_INIT;
static List tables; /* of FdTable.link */

/* --- tables and records ---------------------------------------------------*/

int fd_table_new(AioContext *ctx)
{
    FdTable *table = os_alloc(sizeof(*table));

    if (!table) {
        return -ENOMEM;
    }
    table->ctx = ctx;
    os_mutex_init(&table->lock);
    list_init(&table->ready);
    list_init(&table->ended);
    list_init(&table->polled);
    list_init(&table->always);
    ctx->fds = table;
    os_mutex_lock(&tables_lock);
    list_append(&tables, &table->link);
    os_mutex_unlock(&tables_lock);
    return 0;
}

void fd_table_free(AioContext *ctx)
{
    FdTable *table = ctx->fds;

    if (!table) {
        return;
    }
    os_mutex_lock(&tables_lock);
    list_remove(&table->link);
    os_mutex_unlock(&tables_lock);
    for (unsigned fd = 0; fd < table->size; fd++) {
        os_free(table->records[fd]);
    }
    os_free(table->records);
    os_mutex_destroy(&table->lock);
    os_free(table);
    ctx->fds = NULL;
}

static FdRecord *record_find(const FdTable *table, int fd)
{
    return fd >= 0 && (unsigned)fd < table->size ? table->records[fd] : NULL;
}

static int table_grow(FdTable *table, unsigned least)
{
    unsigned size = table->size ? table->size : 64;
    FdRecord **records;

    while (size < least) {
        size *= 2;
    }
    records = os_realloc(table->records, size * sizeof(*records));
    if (!records) {
        return -ENOMEM;
    }
    for (unsigned fd = table->size; fd < size; fd++) {
        records[fd] = NULL;
    }
    table->records = records;
    table->size = size;
    return 0;
}

/* The record of fd, made if need be.  Returns -EBADF or -ENOMEM. */
static int record_get(FdTable *table, int fd, FdRecord **out)
{
    FdRecord *rec = record_find(table, fd);

    if (!rec) {
        /* More than a process can have: spare us the table. */
        if (fd < 0 || fd >= 1 << 28) {
            return -EBADF;
        }
        if ((unsigned)fd >= table->size &&
            table_grow(table, (unsigned)fd + 1) < 0) {
            return -ENOMEM;
        }
        rec = os_alloc(sizeof(*rec));
        if (!rec) {
            return -ENOMEM;
        }
        rec->fd = fd;
        list_init(&rec->waits);
        list_init(&rec->due);
        table->records[fd] = rec;
    }
    *out = rec;
    return 0;
}

static bool has_waits(const FdRecord *rec)
{
    return !list_empty(&rec->waits) || !list_empty(&rec->due);
}

static bool has_handler(const FdRecord *rec)
{
    const FdHandler *handler = &rec->handler;

    return handler->read || handler->write || handler->poll ||
           handler->poll_ready;
}

/* --- what the engine watches ----------------------------------------------*/

static void count(unsigned *counter, bool before, bool after)
{
    store_relaxed(counter, *counter + after - before);
}

static void set_watched(FdTable *table, FdRecord *rec, uint32_t watched)
{
    count(&table->n_watched, rec->watched != 0, watched != 0);
    rec->watched = watched;
}

/* Have the engine watch events, in place of what it watches. */
static int watch(FdTable *table, FdRecord *rec, uint32_t events)
{
    AioContext *ctx = table->ctx;
    int ret;

    if (events == 0 && rec->registered == 0) {
        return 0;
    }
    ret = ctx->poller.ops->update(ctx, rec->fd, rec->serial + 1,
                                  rec->registered, events);
    if (ret < 0 && ret != -EPERM && ret != -EBADF) {
        return ret; /* what was watched before still is, under its serial */
    }
    /* Else fd is another file by now, or none, and what was is gone. */
    rec->serial++; /* INVARIANTS 2 */
    rec->registered = ret < 0 ? 0 : events;
    set_watched(table, rec, rec->registered);
    return ret;
}

/* The events that the waits on rec wait for. */
static uint32_t waited_for(const FdRecord *rec)
{
    uint32_t events = 0;

    for (List *link = list_first(&rec->waits); link;
         link = list_next(&rec->waits, link)) {
        events |= list_entry(link, FdWait, link)->events;
    }
    return events;
}

static int watch_waits(FdTable *table, FdRecord *rec)
{
    uint32_t events = waited_for(rec);

    return watch(table, rec, events ? events | POLLER_ONESHOT : 0);
}

static void mark_ready(FdTable *table, FdRecord *rec)
{
    if (!list_linked(&rec->ready_link)) {
        list_append(&table->ready, &rec->ready_link);
    }
}

static uint32_t todo_for(const FdHandler *handler, uint32_t events)
{
    uint32_t todo = 0;

    if (handler->read && (events & READING)) {
        todo |= TODO_READ;
    }
    if (handler->write && (events & WRITING)) {
        todo |= TODO_WRITE;
    }
    return todo;
}

/* The descriptor was closed under its handler. */
static COLD void closed_under_handler(FdTable *table, FdRecord *rec)
{
    CoroutineLabel label;

    warn_line("fd %d was closed while %s has a handler for it, which does not "
              "run any more: remove handlers before closing",
              rec->fd, context_label(table->ctx, &label));
    watch(table, rec, 0);
}

static void note_events(FdTable *table, FdRecord *rec, uint32_t events)
{
    if (!has_handler(rec)) {
        rec->happened |= events;
    } else if (events & POLLNVAL) {
        closed_under_handler(table, rec);
    } else {
        rec->todo |= todo_for(&rec->handler, events);
    }
    mark_ready(table, rec);
}

bool fd_ready(AioContext *ctx, int fd, uint32_t serial, uint32_t events)
{
    FdTable *table = ctx->fds;
    FdRecord *rec;
    bool current;

    os_mutex_lock(&table->lock);
    rec = record_find(table, fd);
    current = rec && rec->registered != 0 &&
              (rec->serial == serial || MUTANT(FD_STALE_REPORT));
    if (!current) {
        MARK("fd: a stale report is ignored");
    } else {
        if (rec->watched & POLLER_ONESHOT) {
            set_watched(table, rec, 0);
        }
        note_events(table, rec, events);
    }
    os_mutex_unlock(&table->lock);
    return current;
}

/* --- ending waits ---------------------------------------------------------*/

/*
 * Take a wait out of its record and decide its result; the wake follows when
 * the lock is free.  It can be ended by nobody else then.
 */
static void settle(FdWait *wait, int64_t result)
{
    bool first;

    list_remove(&wait->link);
    first = co_wait_claim_end(&wait->wait, result);
    invariant(first); /* see OWNERSHIP */
}

/* End all waits in list with error; they are to be woken from ended. */
static void settle_all(List *list, int error, List *ended)
{
    List *link;

    while ((link = list_first(list))) {
        settle(list_entry(link, FdWait, link), error);
        list_append(ended, link);
    }
}

/* Wake those that were settled, in order.  Without the lock. */
static void wake_ended(List *ended, const char *who)
{
    List *link;

    while ((link = list_take_first(ended))) {
        co_wait_wake(&list_entry(link, FdWait, link)->wait, who);
    }
}

/* What a wait is to hear of events: those that it asked for, and trouble. */
static uint32_t matching(const FdWait *wait, uint32_t events)
{
    return wait->op ? 0 : events & (wait->events | TROUBLE);
}

/* Move the waits that events are for to those that are due. */
static void take_due(FdRecord *rec, uint32_t events)
{
    List *link, *next;

    for (link = list_first(&rec->waits); link; link = next) {
        next = list_next(&rec->waits, link);
        if (matching(list_entry(link, FdWait, link), events)) {
            list_remove(link);
            list_append(&rec->due, link);
        }
    }
}

/* --- dispatch -------------------------------------------------------------*/

/*
 * Run one thing that is to be done for a handler.  What is left of it is at
 * the front of the list again before the call, where a nested pass finds it.
 */
static void run_handler(FdTable *table, FdRecord *rec)
{
    FdHandler handler = rec->handler; /* may be changed as soon as we unlock */
    AioFdFunc *call;

    if (rec->todo & TODO_POLLED) {
        rec->todo &= ~(uint32_t)TODO_POLLED;
        call = handler.poll_ready ? handler.poll_ready : handler.read;
    } else if (rec->todo & TODO_READ) {
        rec->todo &= ~(uint32_t)TODO_READ;
        call = handler.read;
    } else {
        rec->todo &= ~(uint32_t)TODO_WRITE;
        call = handler.write;
    }
    if (rec->todo) {
        List *first = list_first(&table->ready);

        list_append(first ? first : &table->ready, &rec->ready_link);
    }
    if (call) {
        os_mutex_unlock(&table->lock);
        call(handler.opaque);
        os_mutex_lock(&table->lock);
    }
}

/* The report has silenced the descriptor: watch for the waits that are left,
 * or end them if that fails. */
static void watch_rest(FdTable *table, FdRecord *rec)
{
    List ended;
    int ret = 0;

    if (!list_empty(&rec->waits) && rec->watched == 0) {
        ret = watch_waits(table, rec);
    }
    if (ret < 0) {
        list_init(&ended);
        settle_all(&rec->waits, ret, &ended);
        os_mutex_unlock(&table->lock);
        wake_ended(&ended, "the event loop");
        os_mutex_lock(&table->lock);
    }
}

static void run_waits(FdTable *table, FdRecord *rec)
{
    uint32_t happened = rec->happened;
    List *link;

    rec->happened = 0;
    take_due(rec, happened);
    watch_rest(table, rec);
    /*
     * One by one: who wakes may close the descriptor, which cancels the rest.
     * None is added meanwhile, since no other pass runs in a coroutine.
     */
    while ((link = list_first(&rec->due))) {
        FdWait *wait = list_entry(link, FdWait, link);

        settle(wait, happened & POLLNVAL ? -EBADF
                                         : (int)matching(wait, happened));
        os_mutex_unlock(&table->lock);
        co_wait_wake(&wait->wait, "the event loop");
        os_mutex_lock(&table->lock);
    }
}

/* Returns whether there was something to do. */
static bool run_record(FdTable *table, FdRecord *rec)
{
    if (has_handler(rec)) {
        if (!rec->todo) {
            MARK("fd: a handler was changed before it could run");
            return false;
        }
        run_handler(table, rec);
        return true;
    }
    if (list_empty(&rec->waits)) {
        rec->happened = 0; /* a report that came after a timeout */
        return false;
    }
    run_waits(table, rec);
    return true;
}

static void mark_always_ready(FdTable *table)
{
    for (List *link = list_first(&table->always); link;
         link = list_next(&table->always, link)) {
        note_events(table, list_entry(link, FdRecord, always_link),
                    POLLIN | POLLOUT);
    }
}

bool fd_dispatch(AioContext *ctx)
{
    FdTable *table = ctx->fds;
    bool progress = false;
    List *link;

    if (!fd_always_ready(ctx)) {
        return false;
    }
    if (!list_empty(&table->ended)) {
        progress = true;
        wake_ended(&table->ended, "the event loop");
    }
    os_mutex_lock(&table->lock);
    mark_always_ready(table);
    /*
     * Only a pass adds to the list, and a nested one empties it: so this ends.
     */
    while ((link = list_take_first(&table->ready))) {
        progress |= run_record(table,
                               list_entry(link, FdRecord, ready_link));
    }
    os_mutex_unlock(&table->lock);
    return progress;
}

bool fd_always_ready(const AioContext *ctx)
{
    const FdTable *table = ctx->fds;

    return !list_empty(&table->ready) || !list_empty(&table->ended) ||
           load_relaxed(&table->n_always) > 0;
}

bool fd_watching(const AioContext *ctx)
{
    return load_relaxed(&ctx->fds->n_watched) > 0;
}

/* Ask rec's poll callback, without the lock.  Who has taken its place meanwhile
 * has not answered. */
static bool ask_handler(FdTable *table, const FdRecord *rec)
{
    FdHandler asked = rec->handler;
    bool ready;

    os_mutex_unlock(&table->lock);
    if (MUTANT(FD_BUSY_READS_LATE)) {
        asked.opaque = rec->handler.opaque;
    }
    ready = asked.poll(asked.opaque);
    os_mutex_lock(&table->lock);
    return ready && rec->handler.poll == asked.poll &&
           rec->handler.opaque == asked.opaque;
}

bool fd_busy_poll(AioContext *ctx)
{
    FdTable *table = ctx->fds;
    bool progress = false;
    List *link, *next;

    if (load_relaxed(&table->n_polled) == 0) {
        return false;
    }
    os_mutex_lock(&table->lock);
    for (link = list_first(&table->polled); link; link = next) {
        FdRecord *rec = list_entry(link, FdRecord, polled_link);

        if (ask_handler(table, rec)) {
            rec->todo |= TODO_POLLED;
            mark_ready(table, rec);
            progress = true;
        }
        /* Another thread may have removed it meanwhile: next time, then. */
        next = NULL;
        if (list_linked(link)) {
            next = list_next(&table->polled, link);
        } else {
            MARK("fd: a handler goes while it is asked");
        }
    }
    os_mutex_unlock(&table->lock);
    return progress;
}

/* Membership of a list that a count goes with. */
static void set_member(List *list, List *link, unsigned *counter, bool member)
{
    bool before = list_linked(link);

    if (before && !member) {
        list_remove(link);
    } else if (!before && member) {
        list_append(list, link);
    }
    count(counter, before, member);
}

/* Watch rec again, in a new set that knows nothing. */
static void watch_again(FdTable *table, FdRecord *rec, List *ended)
{
    uint32_t events = rec->watched;
    int ret = 0;

    rec->registered = 0;
    set_watched(table, rec, 0);
    if (events) {
        ret = watch(table, rec, events);
    }
    if (ret == -EPERM && has_handler(rec)) {
        /* The engine before watched what this one says is always ready. */
        set_member(&table->always, &rec->always_link, &table->n_always, true);
    } else if (ret < 0 && has_handler(rec)) {
        closed_under_handler(table, rec);
    } else if (ret < 0) {
        settle_all(&rec->waits, ret, ended);
    }
}

int fd_rewatch(AioContext *ctx, int (*reset)(AioContext *ctx))
{
    FdTable *table = ctx->fds;
    int ret;

    os_mutex_lock(&table->lock);
    ret = reset(ctx);
    for (unsigned fd = 0; ret == 0 && fd < table->size; fd++) {
        FdRecord *rec = table->records[fd];

        if (rec && rec->registered) {
            watch_again(table, rec, &table->ended);
        }
    }
    os_mutex_unlock(&table->lock);
    return ret;
}

/* --- handlers -------------------------------------------------------------*/

static COLD NORETURN void misuse_handler_and_wait(const FdTable *table,
                                                  const FdRecord *rec,
                                                  const char *call)
{
    List *first = list_first(list_empty(&rec->waits) ? &rec->due : &rec->waits);
    const FdWait *wait = list_entry(first, FdWait, link);
    CoroutineLabel label, ctx_label;

    misuse("%s: fd %d has a handler or is to get one in %s, and %s waits for "
           "it there: a descriptor belongs to handlers or to coroutines",
           call, rec->fd, context_label(table->ctx, &ctx_label),
           coroutine_label(wait->wait.co, &label));
}

static int watch_for(FdTable *table, FdRecord *rec, const FdHandler *handler)
{
    uint32_t events = (handler->read ? POLLIN : 0) |
                      (handler->write ? POLLOUT : 0);
    /* The engine, which would know, is not asked to watch nothing. */
    int ret = events == 0 && (handler->poll || handler->poll_ready)
                  ? os_poll_open(rec->fd)
                  : 0;

    return ret < 0 ? ret : watch(table, rec, events);
}

static int set_handler_locked(FdTable *table, FdRecord *rec,
                              const FdHandler *handler)
{
    bool had_one = has_handler(rec);
    int ret = watch_for(table, rec, handler);

    if (ret < 0 && ret != -EPERM) {
        return ret;
    }
    rec->handler = *handler;
    if (!MUTANT(FD_TODO_KEPT)) {
        rec->todo = 0; /* of the handler before */
    }
    rec->happened = 0;
    count(&table->n_handlers, had_one, has_handler(rec));
    set_member(&table->polled, &rec->polled_link, &table->n_polled,
               handler->poll != NULL);
    set_member(&table->always, &rec->always_link, &table->n_always,
               ret == -EPERM);
    return 0;
}

int aio_set_fd_handler(AioContext *ctx, int fd, AioFdFunc *on_read,
                       AioFdFunc *on_write, AioFdPollFunc *on_poll,
                       AioFdFunc *on_polled, void *opaque)
{
    const FdHandler handler = {on_read, on_write, on_poll, on_polled, opaque};
    bool removal = !on_read && !on_write && !on_poll && !on_polled;
    FdTable *table = ctx->fds;
    FdRecord *rec;
    int ret = 0;

    os_check_fork("aio_set_fd_handler");
    if (MUTANT(HANDLER_EDIT_IN_PLACE) && record_find(table, fd)) {
        record_find(table, fd)->handler = handler;
    }
    os_mutex_lock(&table->lock);
    if (removal) {
        rec = record_find(table, fd);
    } else {
        rec = NULL;
        ret = record_get(table, fd, &rec);
    }
    if (rec && has_waits(rec)) {
        misuse_handler_and_wait(table, rec, "aio_set_fd_handler");
    }
    if (rec) {
        ret = set_handler_locked(table, rec, &handler);
    }
    os_mutex_unlock(&table->lock);
    if (ret == 0 && !context_is_home(ctx, os_thread()) &&
        !MUTANT(FD_CHANGE_QUIET)) {
        aio_notify(ctx); /* engines without the kernel's help look anew */
    }
    return ret;
}

size_t fd_check_none_left(AioContext *ctx)
{
    FdTable *table = ctx->fds;
    CoroutineLabel label;
    size_t left = 0;

    os_mutex_lock(&table->lock);
    for (unsigned fd = 0; fd < table->size; fd++) {
        const FdRecord *rec = table->records[fd];

        if (rec && has_handler(rec)) {
            warn_line("%s ends with a handler for fd %u left: opaque %p",
                      context_label(ctx, &label), fd, rec->handler.opaque);
            left++;
        }
    }
    os_mutex_unlock(&table->lock);
    return left;
}

static COLD NORETURN void misuse_has_handler(const FdTable *table, int fd,
                                             const char *call)
{
    CoroutineLabel label, ctx_label;

    misuse("%s called by %s for fd %d, which has a handler in %s: remove that "
           "first",
           call, coroutine_label(os_thread()->current, &label), fd,
           context_label(table->ctx, &ctx_label));
}

void fd_check_no_handler(AioContext *ctx, int fd, const char *call)
{
    FdTable *table = ctx->fds;
    const FdRecord *rec;

    if (load_relaxed(&table->n_handlers) == 0) {
        return;
    }
    os_mutex_lock(&table->lock);
    rec = record_find(table, fd);
    if (rec && has_handler(rec)) {
        misuse_has_handler(table, fd, call);
    }
    os_mutex_unlock(&table->lock);
}

/* --- waits ----------------------------------------------------------------*/

/* A wait has ended before its events came. */
static void leave_watched(FdTable *table, FdRecord *rec)
{
    /*
     * The engine goes on watching: at the worst it reports once, to nobody.
     * Most likely the coroutine waits again.  But it may close the file.
     */
    if (table->ctx->poller.ops->holds_files && !has_waits(rec)) {
        watch(table, rec, 0);
    }
}

static void end_early(FdWait *wait, int result, const char *who)
{
    AioContext *ctx = (AioContext *)(void *)wait->wait.co->home;
    FdTable *table = ctx->fds;
    bool ours;

    os_mutex_lock(&table->lock);
    if (MUTANT(FD_WAIT_LINK_FIRST) && !list_linked(&wait->link)) {
        os_mutex_unlock(&table->lock);
        return;
    }
    /* Once it has ended, the link belongs to who ended it. */
    ours = !co_wait_ended(&wait->wait) && list_linked(&wait->link);
    if (ours) {
        list_remove(&wait->link);
        leave_watched(table, record_find(table, wait->fd));
    }
    os_mutex_unlock(&table->lock);
    if (ours) {
        co_wait_end(&wait->wait, result, who);
    }
}

/* Have the engine let go of the file that the wait is for. */
static void drop_op(const FdWait *wait)
{
    AioContext *ctx = (AioContext *)(void *)wait->wait.co->home;

    if (wait->op) {
        ctx->poller.ops->drop(ctx, wait->op);
    }
}

/*
 * On the home thread, outside the waiter.  Until the engine has dropped the
 * operation the wait is in the table, for co_close() to find.
 */
static void fd_wait_cancel(CoWait *wait, int error)
{
    FdWait *fd_wait = container_of(wait, FdWait, wait);

    drop_op(fd_wait);
    end_early(fd_wait, error, "its timeout");
}

void fd_wait_end_op(FdWait *wait)
{
    end_early(wait, 0, "the kernel");
}

/*
 * fd is no descriptor, or not one of those that the others wait for: nothing
 * will ever come for them.
 */
static bool is_gone(int error)
{
    return error == -EBADF || error == -EPERM;
}

static int add_wait(FdTable *table, FdWait *wait, const char *what)
{
    FdRecord *rec = NULL;
    List ended;
    int ret;

    list_init(&ended);
    os_mutex_lock(&table->lock);
    ret = record_get(table, wait->fd, &rec);
    if (rec && has_handler(rec)) {
        misuse_has_handler(table, wait->fd, what);
    }
    if (rec) {
        list_append(&rec->waits, &wait->link);
    }
    /* An operation watches nothing, and takes no report from the others. */
    if (rec && !wait->op) {
        rec->happened = 0; /* before this wait */
        /*
         * Always, even if this is watched already: the number may stand for
         * another file by now, which the engine does not know.
         */
        ret = watch_waits(table, rec);
    }
    if (rec && ret < 0) {
        list_remove(&wait->link);
        if (is_gone(ret)) {
            settle_all(&rec->waits, -EBADF, &ended);
        }
    }
    os_mutex_unlock(&table->lock);
    wake_ended(&ended, "the event loop");
    return ret;
}

static int begin(FdWait *wait, const char *what)
{
    AioContext *ctx;

    wait->link.next = NULL;
    wait->link.prev = NULL;
    co_wait_init(&wait->wait, what, (const void *)(intptr_t)wait->fd,
                 fd_wait_cancel);
    ctx = (AioContext *)(void *)wait->wait.co->home;
    return add_wait(ctx->fds, wait, what);
}

int fd_wait_begin_op(FdWait *wait, int fd, struct IoOp *op, const char *what)
{
    wait->fd = fd;
    wait->events = 0;
    wait->op = op;
    return begin(wait, what);
}

int fd_wait_begin(FdWait *wait, int fd, uint32_t events, const char *what)
{
    int ret;

    wait->fd = fd;
    wait->events = events & ~TROUBLE;
    if (wait->events == 0) {
        wait->events = POLLHUP; /* trouble is reported unasked, but 0 is none */
    }
    wait->op = NULL;
    ret = begin(wait, what);
    if (ret == -EPERM && (events & (POLLIN | POLLOUT))) {
        return (int)(events & (POLLIN | POLLOUT)); /* always ready */
    }
    return ret;
}

int fd_wait_park(FdWait *wait, int64_t timeout_ns)
{
    return (int)co_wait_park(&wait->wait, timeout_ns);
}

int fd_wait(int fd, uint32_t events, int64_t timeout_ns, const char *what)
{
    FdWait wait;
    int ret = fd_wait_begin(&wait, fd, events, what);

    return ret == 0 ? fd_wait_park(&wait, timeout_ns) : ret;
}

int fd_of_wait(const CoWait *wait)
{
    return wait->cancel == fd_wait_cancel
               ? container_of(wait, const FdWait, wait)->fd
               : -1;
}

static void cancel_in_table(FdTable *table, int fd, int error, List *ended)
{
    bool registered = false;
    FdRecord *rec;

    os_mutex_lock(&table->lock);
    rec = record_find(table, fd);
    if (rec && has_handler(rec)) {
        misuse_has_handler(table, fd, "co_close");
    }
    if (rec) {
        settle_all(&rec->due, error, ended);
        settle_all(&rec->waits, error, ended);
        rec->happened = 0;
        registered = rec->registered != 0;
        watch(table, rec, 0);
    }
    os_mutex_unlock(&table->lock);
    if (registered && !context_is_home(table->ctx, os_thread())) {
        aio_notify(table->ctx); /* an engine may hold the file while it waits */
    }
}

/* Before their coroutines are woken, and may go on. */
static void drop_ops(List *ended)
{
    for (List *link = list_first(ended); link; link = list_next(ended, link)) {
        drop_op(list_entry(link, FdWait, link));
    }
}

void fd_cancel_all(int fd, int error)
{
    List ended;

    list_init(&ended);
    os_mutex_lock(&tables_lock);
    for (List *link = list_first(&tables); link;
         link = list_next(&tables, link)) {
        cancel_in_table(list_entry(link, FdTable, link), fd, error, &ended);
    }
    os_mutex_unlock(&tables_lock);
    if (MUTANT(FD_WOKEN_BEFORE_DROP) && !list_empty(&ended)) {
        const FdWait *first = list_entry(list_first(&ended), FdWait, link);

        wake_ended(&ended, "co_close");
        drop_op(first);
    }
    drop_ops(&ended);
    wake_ended(&ended, "co_close");
}
