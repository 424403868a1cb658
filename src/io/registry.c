/* SPDX-License-Identifier: MIT */
/*
 * The registry: what this process knows of each descriptor number, and the end
 * of a descriptor.
 *
 * What was learned may be out of date, when the user closed the number with
 * close(2) and opened something else under it.  Then results are right all the
 * same: a call that would block on a file of another kind either fails in a
 * way that tells (ENOTSOCK, ESPIPE), or asks first what it has before it.  Only
 * the way it takes may be slow, until the facts are checked again.  co_close(),
 * whose way may be a long one, goes by what the number is now.
 *
 * Does not guarantee anything for a number that is closed with close(2) while
 * a coroutine waits on it: that wait ends with co_close() of the number.
 *
 * INVARIANTS
 *
 *   1. Whoever has the turn of a side in a generation may leave a wait on the
 *      descriptor only while it holds the side's lock and the generation is
 *      still that; co_close() changes the generation under both locks first,
 *      then ends what waits.  So nobody waits on, or uses, a number after it
 *      was closed.
 *   2. Records are made once and live as long as the process.
 */
#include "io/io_int.h"

#include "loop/fd_int.h"
#include "os/memory.h"

#include <errno.h>
#include <fcntl.h>

/* Three levels: what a process can have, at the price of what it has. */
#define LEAF_BITS   6
#define MIDDLE_BITS 12
#define ROOT_BITS   13

/* Between two attempts to end a connect(2). */
#define PAUSE_NS      1000000
#define PAUSE_MOST_NS 50000000

typedef struct Leaf {
    IoFd entries[1 << LEAF_BITS];
} Leaf;

typedef struct Middle {
    Leaf *leaves[1 << MIDDLE_BITS]; /* atomic; set once, under grow_lock */
} Middle;

static Middle *root[1 << ROOT_BITS]; /* atomic; set once, under grow_lock */
static OsMutex grow_lock = OS_MUTEX_INIT;

/* --- records --------------------------------------------------------------*/

static unsigned root_index(int fd)
{
    return (unsigned)fd >> (LEAF_BITS + MIDDLE_BITS);
}

static unsigned middle_index(int fd)
{
    return (unsigned)fd >> LEAF_BITS & ((1 << MIDDLE_BITS) - 1);
}

static unsigned leaf_index(int fd)
{
    return (unsigned)fd & ((1 << LEAF_BITS) - 1);
}

IoFd *io_fd_find(int fd)
{
    Middle *middle;
    Leaf *leaf;

    if (fd < 0) {
        return NULL;
    }
    /* [io-fd/A] The pointer before what it points to: pairs with [io-fd/B]. */
    middle = load_acquire(&root[root_index(fd)]);
    leaf = middle ? load_acquire(&middle->leaves[middle_index(fd)]) : NULL;
    return leaf ? &leaf->entries[leaf_index(fd)] : NULL;
}

static IoFd *grow_locked(int fd)
{
    Middle **middle = &root[root_index(fd)];
    Leaf **leaf;

    if (!load_relaxed(middle)) {
        Middle *made = os_alloc(sizeof(*made));

        if (!made) {
            return NULL;
        }
        store_release(middle, made);
    }
    leaf = &load_relaxed(middle)->leaves[middle_index(fd)];
    if (!load_relaxed(leaf)) {
        Leaf *made = os_alloc(sizeof(*made));

        if (!made) {
            return NULL;
        }
        /* [io-fd/B] The zeroes before the pointer: pairs with [io-fd/A]. */
        store_release(leaf, made);
    }
    return &load_relaxed(leaf)->entries[leaf_index(fd)];
}

IoFd *io_fd_get(int fd)
{
    IoFd *entry = io_fd_find(fd);

    if (entry || fd < 0) {
        return entry;
    }
    os_mutex_lock(&grow_lock);
    entry = grow_locked(fd);
    os_mutex_unlock(&grow_lock);
    return entry;
}

/* --- facts ----------------------------------------------------------------*/

/*
 * What is true of an open file by its flags.
 *
 * A buffered write holds the lock of its inode from beginning to end, so that
 * two of one file at once would be one that waits for the other.  One with
 * O_DSYNC lets go of it before it waits for the device, and those of a block
 * device have no such lock.
 */
static uint32_t facts_of_open_file(int fd, bool device)
{
    int flags = os_file_flags(fd);
    uint32_t facts = 0;

    if (flags < 0) {
        /* Not known: what never blocks the caller, whatever the file is. */
        return IO_NO_NOWAIT_READ | IO_NO_NOWAIT_WRITE;
    }
    /* The call would return at once, but after the device. */
    if (flags & O_DIRECT) {
        facts |= IO_NO_NOWAIT_READ | IO_NO_NOWAIT_WRITE;
    }
    if (flags & (O_SYNC | O_DSYNC)) {
        facts |= IO_NO_NOWAIT_WRITE;
    }
    if (!(facts & IO_NO_NOWAIT_WRITE) && (flags & O_ACCMODE) != O_RDONLY &&
        !device) {
        facts |= IO_WRITES_EXCLUDE;
    }
    return facts;
}

/*
 * What no two serials differ by alone.  It is noted there, and not taken from
 * the kind in the facts, as those are stored apart: another thread, which
 * checks what the number was before, may leave its facts with our serial.
 */
#define SERIAL_IN_MEMORY (UINT64_C(1) << 63)

/*
 * The serial to note, with SERIAL_IN_MEMORY.  What that says is true as long as
 * the file is open: the kernel is not asked again about the same one.
 */
static uint64_t serial_of(const IoFd *entry, int fd, const OsFileStatus *status)
{
    uint64_t serial = status->serial & ~SERIAL_IN_MEMORY;
    uint64_t noted = load_relaxed(&entry->serial);
    uint32_t kind = io_fd_kind(entry);

    if (!status->may_be_memory) {
        return serial;
    }
    if ((kind == IO_KIND(OS_FILE_REGULAR) || kind == IO_KIND(OS_FILE_MEMORY)) &&
        (noted & ~SERIAL_IN_MEMORY) == serial) {
        return noted;
    }
    return os_file_in_memory(fd) ? serial | SERIAL_IN_MEMORY : serial;
}

int io_fd_check(int fd, IoFd **out, OsFileKind *kind)
{
    OsFileStatus status;
    IoFd *entry;
    uint64_t serial;
    uint32_t facts;
    int ret;

    do {
        ret = os_file_status(fd, &status);
    } while (ret == -EINTR); /* file systems in user space may say that */
    if (ret < 0) {
        return ret;
    }
    entry = io_fd_get(fd);
    if (!entry) {
        return -ENOMEM;
    }
    serial = serial_of(entry, fd, &status);
    *kind = serial & SERIAL_IN_MEMORY ? OS_FILE_MEMORY : status.kind;
    facts = load_relaxed(&entry->facts);
    if ((facts & IO_KIND_MASK) != IO_KIND(*kind) ||
        load_relaxed(&entry->serial) != serial ||
        load_relaxed(&entry->transfers) >= IO_CHECK_INTERVAL) {
        facts = IO_KIND(*kind);
        if (*kind == OS_FILE_REGULAR) {
            facts |= facts_of_open_file(fd, status.device);
        }
        store_relaxed(&entry->facts, facts);
        store_relaxed(&entry->serial, serial);
        store_relaxed(&entry->transfers, 0);
    }
    *out = entry;
    return 0;
}

/*
 * Several threads may do so at once, and one fact of them may get lost: it is
 * learned again.
 */
void io_fd_learn(IoFd *entry, uint32_t fact)
{
    store_relaxed(&entry->facts, load_relaxed(&entry->facts) | fact);
}

/* --- the end of a descriptor ----------------------------------------------*/

static void lock_both(IoFd *entry)
{
    os_mutex_lock(&entry->sides[IO_READ].lock);
    os_mutex_lock(&entry->sides[IO_WRITE].lock);
}

static void unlock_both(IoFd *entry)
{
    os_mutex_unlock(&entry->sides[IO_WRITE].lock);
    os_mutex_unlock(&entry->sides[IO_READ].lock);
}

/* All that was begun on the number before is over: with both locks. */
static void begin_generation(IoFd *entry, uint32_t facts, List *ended)
{
    store_relaxed(&entry->generation, entry->generation + 1);
    store_relaxed(&entry->facts, facts);
    store_relaxed(&entry->seen, (uint64_t)0);
    for (int d = 0; d < 2; d++) {
        io_turn_end_all_locked(&entry->sides[d], -ECANCELED, ended);
        store_relaxed(&entry->sides[d].held, 0);
        store_relaxed(&entry->sides[d].bets, 0);
    }
}

void io_fd_opened(int fd, OsFileKind kind)
{
    IoFd *entry = io_fd_find(fd);
    List ended;
    bool waited;

    if (!entry) {
        return;
    }
    list_init(&ended);
    lock_both(entry);
    waited = entry->sides[IO_READ].held || entry->sides[IO_WRITE].held;
    begin_generation(entry, IO_KIND(kind), &ended);
    unlock_both(entry);
    io_turn_wake_all(&ended);
    if (waited) {
        fd_cancel_all(fd, -ECANCELED); /* it was closed under them */
    }
}

/* Wait until no worker works on the descriptor any more; nobody can begin. */
static void coroutine_fn await_workers(IoFd *entry)
{
    IoSide *side = &entry->sides[IO_READ];
    bool home = io_has_home();
    CoWait wait;
    uint32_t running;

    if (home) {
        co_wait_init(&wait, "co_close", entry, NULL);
    }
    os_mutex_lock(&side->lock);
    running = load_relaxed(&entry->running);
    if (running > 0) {
        entry->closer = home ? &wait : NULL;
        entry->blocked = !home;
    }
    os_mutex_unlock(&side->lock);
    if (home && running > 0) {
        co_wait_park(&wait, -1);
    }
    while (!home && (running = load_acquire(&entry->running)) > 0) {
        os_futex_wait(&entry->running, running, -1);
    }
}

/*
 * A worker is in a connect(2), which can take minutes, or just about to call
 * it: then shutdown(2) does not help yet.
 */
static void coroutine_fn cut_connect(IoFd *entry, int fd)
{
    int64_t pause_ns = 0;

    while (load_acquire(&entry->running) > 0) {
        os_shutdown(fd);
        co_sleep_ns(pause_ns);
        pause_ns =
            pause_ns < PAUSE_MOST_NS ? pause_ns + PAUSE_NS : PAUSE_MOST_NS;
    }
}

/* It was left in co_close(): somebody else may close the number. */
static void closer_is_left(ContextFarewell *farewell)
{
    IoFd *entry = container_of(farewell, IoClosing, farewell)->entry;

    lock_both(entry);
    entry->closing = false;
    entry->closer = NULL;
    unlock_both(entry);
}

static void closing_begins(IoClosing *closing, IoFd *entry)
{
    closing->entry = entry;
    closing->farewell.link.next = NULL;
    closing->farewell.link.prev = NULL;
    closing->farewell.say = closer_is_left;
    if (io_has_home()) {
        list_append(&os_thread()->context->farewells, &closing->farewell.link);
    }
}

void io_fd_hand_over(IoClosing *closing)
{
    if (list_linked(&closing->farewell.link)) {
        list_remove(&closing->farewell.link);
    }
}

int io_fd_retire(IoClosing *closing, IoFd *entry, int fd)
{
    List ended;
    bool connecting;

    list_init(&ended);
    lock_both(entry);
    if (entry->closing) {
        unlock_both(entry);
        return -EBADF;
    }
    entry->closing = true;
    begin_generation(entry, 0, &ended); /* INVARIANTS 1 */
    io_jobs_cancel_locked(entry);
    /* Workers do nothing else with sockets. */
    connecting = load_relaxed(&entry->running) > 0 && os_socket_type(fd) >= 0;
    unlock_both(entry);
    closing_begins(closing, entry);
    io_turn_wake_all(&ended);
    fd_cancel_all(fd, -ECANCELED);
    if (connecting) {
        cut_connect(entry, fd);
    }
    await_workers(entry);
    return 0;
}

void io_fd_reopen(IoFd *entry)
{
    lock_both(entry);
    entry->closing = false;
    unlock_both(entry);
}

/*
 * Under the locks: between the end of closing and close(2) somebody could
 * begin to wait on the old file, for ever; between close(2) and the end of
 * closing, somebody who got the same number could be told that it is closing.
 */
int io_fd_close(IoClosing *closing, int fd)
{
    IoFd *entry = closing->entry;
    int ret;

    io_fd_hand_over(closing);
    lock_both(entry);
    ret = os_close(fd);
    entry->closing = false;
    unlock_both(entry);
    return ret;
}
