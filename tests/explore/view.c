/* SPDX-License-Identifier: MIT */
/*
 * The memory of atomics: a view machine.
 *
 * Each location keeps the messages that were stored to it, in the order of
 * execution.  A thread's view says which message of each location is the
 * oldest that it may still read.  A message carries the view that its release
 * hands on; an acquire joins it into the reader's.  A relaxed load joins it
 * into `acquired`, from which a fence takes it; a relaxed store hands on
 * `released`, what a fence has put there.
 *
 * A read-modify-write reads the newest message, and its own message hands on
 * what the one that it replaces did: the release sequence.  A compare-and-swap
 * that fails reads the newest, too.
 *
 * A fence joins `acquired` and the global view of all fences, both ways.
 *
 * The newest value is always in the real memory, so code that runs in turn,
 * and locations that one thread alone uses, need none of this.  Where the
 * memory holds something else than the newest message, a plain store has made
 * it anew (a record on a stack, say): no older message can be read then.
 *
 * Only the first view_length numbers of a view can differ from 0: the clocks
 * of the threads, and the locations that have an index by now.
 */
#include "machine.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define TABLE_SIZE 8192 /* a power of two */
#define POOL_SIZE  ((size_t)16 << 20)

OWN static Location *table; /* all addresses that any run has used */
OWN static unsigned table_used;
OWN static char *pool; /* messages and their views, of this run */
OWN static size_t pool_used;

void view_init(void)
{
    const int protection = PROT_READ | PROT_WRITE;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

    table = mmap(NULL, TABLE_SIZE * sizeof(*table), protection, flags, -1, 0);
    pool = mmap(NULL, POOL_SIZE, protection, flags, -1, 0);
}

static void *take(size_t size)
{
    void *piece = pool + pool_used;

    pool_used += (size + 15) & ~(size_t)15;
    if (pool_used > POOL_SIZE) {
        explore_fail("explorer", "a run needs too much memory for messages");
    }
    return piece;
}

/* --- views ----------------------------------------------------------------*/

static void join(int16_t *restrict into, const int16_t *restrict from, int n)
{
    for (int i = 0; i < n; i++) {
        into[i] = into[i] > from[i] ? into[i] : from[i];
    }
}

void view_join(View *into, const View *from)
{
    join(into->seen, from->seen, machine->view_length);
}

void view_reset(void)
{
    Machine *m = machine;

    pool_used = 0;
    m->locations = 0;
    m->view_length = THREADS;
    memset(&m->fences, 0, sizeof(m->fences));
    for (unsigned i = 0; i < THREADS; i++) {
        Thread *thread = &m->thread[i];

        memset(&thread->now, 0, sizeof(thread->now));
        memset(&thread->acquired, 0, sizeof(thread->acquired));
        memset(&thread->released, 0, sizeof(thread->released));
        thread->now.seen[i] = 1;
    }
}

/* --- locations ------------------------------------------------------------*/

/* Where to look first; the same for all bytes of a word. */
static size_t slot_of(uintptr_t address)
{
    return (address >> 2) * 0x9e3779b97f4a7c15u >> 51;
}

static Location *location_at(uintptr_t address)
{
    size_t i = slot_of(address);

    while (table[i].address != address) {
        if (table[i].address == 0) {
            if (++table_used > TABLE_SIZE / 2) {
                explore_fail("explorer", "too many locations");
            }
            table[i].address = address;
            break;
        }
        i = (i + 1) % TABLE_SIZE;
    }
    return &table[i];
}

static uint64_t read_memory(const volatile void *p, unsigned size)
{
    switch (size) {
    case 1:
        return *(const volatile uint8_t *)p;
    case 2:
        return *(const volatile uint16_t *)p;
    case 4:
        return *(const volatile uint32_t *)p;
    default:
        return *(const volatile uint64_t *)p;
    }
}

static void write_memory(volatile void *p, unsigned size, uint64_t value)
{
    arena_note_write((uintptr_t)p);
    switch (size) {
    case 1:
        *(volatile uint8_t *)p = (uint8_t)value;
        break;
    case 2:
        *(volatile uint16_t *)p = (uint16_t)value;
        break;
    case 4:
        *(volatile uint32_t *)p = (uint32_t)value;
        break;
    default:
        *(volatile uint64_t *)p = value;
    }
}

static uint64_t cut(uint64_t value, unsigned size)
{
    return size == 8 ? value : value & ((UINT64_C(1) << size * 8) - 1);
}

/* For the first time in this run. */
static void location_renew(Location *location)
{
    location->run = machine->run;
    location->index = -1;
    location->oldest = 0;
    location->users = 0;
    location->writers = 0;
    location->newest = NULL;
    location->lock_view = NULL;
}

void location_make_hot(uintptr_t address)
{
    location_at(address)->hot = true;
}

size_t location_list_hot(uintptr_t *addresses, size_t max)
{
    size_t n = 0;

    for (size_t i = 0; i < TABLE_SIZE; i++) {
        if (table[i].address && table[i].hot && n < max) {
            addresses[n++] = table[i].address;
        }
    }
    return n;
}

void location_cool_all(void)
{
    memset(table, 0, TABLE_SIZE * sizeof(*table));
    table_used = 0;
}

/*
 * The current thread uses address.  Returns its location if it is a scheduling
 * point.  When it should have been one, this run has gone wrong.
 */
Location *location_use(const void *address, bool write)
{
    Location *location = location_at((uintptr_t)address);
    unsigned bit = 1u << machine->current;

    if (location->run != machine->run) {
        location_renew(location);
    }
    location->users |= bit;
    if (write) {
        location->writers |= bit;
    }
    if (location->hot) {
        return location;
    }
    if (!machine->fixed && location->writers &&
        (location->users & (location->users - 1))) {
        location->hot = true;
        machine->relearn = true;
        machine_leave();
    }
    return NULL;
}

static int16_t index_of(Location *location)
{
    Machine *m = machine;

    if (location->index < 0) {
        if (m->locations == LOCATIONS) {
            explore_fail("explorer", "too many locations that threads share");
        }
        location->index = (int16_t)(THREADS + m->locations++);
        m->view_length = (int16_t)(THREADS + m->locations);
    }
    return location->index;
}

/* --- messages -------------------------------------------------------------*/

/* With a copy of a view, which the caller may add to; or NULL. */
static Message *append(Location *location, uint64_t value, const View *view)
{
    Message *message = take(sizeof(*message));
    int16_t length = machine->view_length;
    int16_t *copy = NULL;

    if (view) {
        copy = take((size_t)length * sizeof(*copy));
        memcpy(copy, view->seen, (size_t)length * sizeof(*copy));
    }
    message->value = value;
    message->before = location->newest;
    message->number = location->newest ? location->newest->number + 1 : 0;
    message->view = copy;
    message->view_length = copy ? length : 0;
    location->newest = message;
    return message;
}

/* See that the newest message is what the memory holds. */
static void settle(Location *location, const volatile void *p, unsigned size)
{
    uint64_t value = read_memory(p, size);

    index_of(location);
    if (!location->newest || location->newest->value != value ||
        location->oldest > location->newest->number) {
        location->oldest = append(location, value, NULL)->number;
    }
}

void location_forget(const void *address, size_t size)
{
    uintptr_t begin = (uintptr_t)address;

    for (uintptr_t a = begin; a < begin + size; a += 4) {
        for (size_t i = slot_of(a); table[i].address;
             i = (i + 1) % TABLE_SIZE) {
            Location *location = &table[i];

            if (location->address - a < 4 && location->run == machine->run &&
                location->newest) {
                location->oldest = location->newest->number + 1;
            }
        }
    }
}

static void tick(Thread *thread)
{
    thread->now.seen[machine->current]++;
}

static void join_message(View *view, const Message *message)
{
    join(view->seen, message->view, message->view_length);
}

/* --- locks and other objects ----------------------------------------------*/

void location_acquire(Location *location)
{
    if (location->lock_view) {
        view_join(&self()->now, location->lock_view);
    }
}

void location_release(Location *location)
{
    Thread *thread = self();

    if (!location->lock_view) {
        location->lock_view = take(sizeof(View));
        memset(location->lock_view, 0, sizeof(View));
    }
    view_join(location->lock_view, &thread->now);
    tick(thread);
}

/* --- the operations -------------------------------------------------------*/

static bool outside(void)
{
    return !machine || machine->phase != PHASE_AT_ONCE;
}

static bool acquires(ExOrder order)
{
    return order & EX_ACQUIRE;
}

static bool releases(ExOrder order)
{
    return order & EX_RELEASE;
}

/* A scheduling point at p, which must be there. */
static void step_at(const volatile void *p, unsigned size)
{
    machine_step();
    shadow_access_atomic((uintptr_t)p, size);
}

/* The message that this load reads. */
static const Message *pick(const Location *location)
{
    Machine *m = machine;
    const Message *message = location->newest;
    int seen = self()->now.seen[location->index];
    int oldest = seen > location->oldest ? seen : location->oldest;
    int older = message->number - oldest;
    unsigned back;

    if (older <= 0 || m->consistent || m->stale == 0) {
        return message;
    }
    back = machine_choose((unsigned)older + 1, CHOOSE_MESSAGE);
    m->stale -= back > 0;
    while (back-- > 0) {
        message = message->before;
    }
    return message;
}

static void see(Thread *thread, const Location *location,
                const Message *message, ExOrder order)
{
    int16_t *seen = &thread->now.seen[location->index];

    if (*seen < message->number) {
        *seen = message->number;
    }
    join_message(acquires(order) ? &thread->now : &thread->acquired, message);
}

uint64_t ex_load(const volatile void *p, unsigned size, ExOrder order,
                 const ExSite *site)
{
    const Message *message;
    Location *location;

    if (outside()) {
        return read_memory(p, size);
    }
    at(site);
    location = location_use((const void *)(uintptr_t)p, false);
    if (!location) {
        shadow_access_atomic((uintptr_t)p, size);
        return read_memory(p, size);
    }
    step_at(p, size);
    settle(location, p, size);
    message = pick(location);
    see(self(), location, message, order);
    if (machine->tracing) {
        trace(acquires(order) ? "load_acquire" : "load_relaxed",
              message == location->newest ? "%#llx"
                                          : "%#llx, old: %#llx is the newest",
              (unsigned long long)message->value,
              (unsigned long long)location->newest->value);
    }
    return message->value;
}

/* Store value, handing on what order says, and more if it replaces, by a
 * read-modify-write, a message that did. */
static void put(Location *location, volatile void *p, unsigned size,
                uint64_t value, ExOrder order, const Message *replaced)
{
    Thread *thread = self();
    Message *message;

    write_memory(p, size, value);
    message = append(location, cut(value, size),
                     releases(order) ? &thread->now : &thread->released);
    if (replaced) {
        join(message->view, replaced->view, replaced->view_length);
    }
    message->view[location->index] = message->number;
    thread->now.seen[location->index] = message->number;
    tick(thread);
}

void ex_store(volatile void *p, unsigned size, uint64_t value, ExOrder order,
              const ExSite *site)
{
    Location *location;

    if (outside()) {
        write_memory(p, size, value);
        return;
    }
    at(site);
    location = location_use((const void *)(uintptr_t)p, true);
    if (!location) {
        shadow_access_atomic((uintptr_t)p, size);
        write_memory(p, size, value);
        return;
    }
    step_at(p, size);
    settle(location, p, size);
    put(location, p, size, value, order, NULL);
    if (machine->tracing) {
        trace(releases(order) ? "store_release" : "store_relaxed", "%#llx",
              (unsigned long long)cut(value, size));
    }
}

static uint64_t apply(ExOp op, uint64_t value, uint64_t operand)
{
    switch (op) {
    case EX_ADD:
        return value + operand;
    case EX_SUB:
        return value - operand;
    case EX_OR:
        return value | operand;
    case EX_AND:
        return value & operand;
    default:
        return operand;
    }
}

uint64_t ex_rmw(volatile void *p, unsigned size, ExOp op, uint64_t operand,
                ExOrder order, const ExSite *site)
{
    static const char *const names[] = {"fetch_add", "fetch_sub", "fetch_or",
                                        "fetch_and", "xchg"};
    uint64_t before = 0, after;
    const Message *replaced;
    Location *location;

    if (outside()) {
        before = read_memory(p, size);
        write_memory(p, size, apply(op, before, operand));
        return before;
    }
    at(site);
    location = location_use((const void *)(uintptr_t)p, true);
    if (!location) {
        shadow_access_atomic((uintptr_t)p, size);
        before = read_memory(p, size);
        write_memory(p, size, apply(op, before, operand));
        return before;
    }
    step_at(p, size);
    settle(location, p, size);
    replaced = location->newest;
    before = replaced->value;
    after = apply(op, before, operand);
    see(self(), location, replaced, order);
    put(location, p, size, after, order, replaced);
    if (machine->tracing) {
        trace(names[op], "%#llx -> %#llx", (unsigned long long)before,
              (unsigned long long)cut(after, size));
    }
    return before;
}

static bool cas_in_turn(volatile void *p, unsigned size, void *expected,
                        uint64_t value)
{
    uint64_t found = read_memory(p, size);

    if (found != read_memory(expected, size)) {
        write_memory(expected, size, found);
        return false;
    }
    write_memory(p, size, value);
    return true;
}

bool ex_cas(volatile void *p, unsigned size, void *expected, uint64_t value,
            ExOrder order, ExOrder failed, const ExSite *site)
{
    const Message *replaced;
    Location *location;
    bool swapped;

    if (outside()) {
        return cas_in_turn(p, size, expected, value);
    }
    at(site);
    location = location_use((const void *)(uintptr_t)p, true);
    if (!location) {
        shadow_access_atomic((uintptr_t)p, size);
        return cas_in_turn(p, size, expected, value);
    }
    step_at(p, size);
    settle(location, p, size);
    replaced = location->newest;
    swapped = replaced->value == read_memory(expected, size);
    see(self(), location, replaced, swapped ? order : failed);
    if (swapped) {
        put(location, p, size, value, order, replaced);
    } else {
        write_memory(expected, size, replaced->value);
    }
    if (machine->tracing) {
        trace("cas", swapped ? "%#llx -> %#llx" : "%#llx, not swapped",
              (unsigned long long)replaced->value,
              (unsigned long long)cut(value, size));
    }
    return swapped;
}

void ex_fence(const ExSite *site)
{
    Thread *thread;

    if (outside()) {
        return;
    }
    at(site);
    machine_step();
    thread = self();
    view_join(&thread->now, &thread->acquired);
    view_join(&thread->now, &machine->fences);
    view_join(&machine->fences, &thread->now);
    thread->released = thread->now;
    tick(thread);
    if (machine->tracing) {
        trace("fence", "seq_cst");
    }
}
