/* SPDX-License-Identifier: MIT */
/*
 * Stacks: the slabs of each size class, and when memory goes back.
 *
 * Where a slot comes from, in this order: one that still has its pages, the
 * newest of the lowest slab that has any; one without pages of the lowest slab
 * with room; a new slab, twice as large as all before together up to a limit.
 * So load gathers in the low slabs, and the high ones fall empty.
 *
 * What is kept when load falls: at most WARM_MIN free slots with their pages,
 * plus a quarter of the number in use; of large stacks all but a few keep only
 * their topmost 64 KiB.  The rest goes back to the kernel, from the highest
 * slab down, and of the slabs in which nothing is used or warm, all but one
 * are unmapped.
 *
 * Guarantees: no lock is held while pages are given back or touched.  A stale
 * pointer to a coroutine that has ended reads as COROUTINE_FREE (0), until the
 * slot is used again or the slab unmapped.
 *
 * Not: that a thread never waits for another one that installs guards or maps
 * a slab; that happens under the class's lock.
 *
 * INVARIANTS
 *
 *   1. used, warm of a class are the sums over its slabs.
 *   2. idle is the number of slabs for which slab_idle() holds, at most 1
 *      while the lock is free.
 */
#include "coroutine/stack.h"

#include "base/assert.h"
#include "base/explore.h"
#include "coroutine/slab.h"
#include "coroutine/switch.h"
#include "os/memory.h"

#include <errno.h>

#ifdef COAIO_HAVE_VALGRIND
#include <valgrind/valgrind.h>
#else
#define VALGRIND_STACK_REGISTER(start, end) 0
#define VALGRIND_STACK_DEREGISTER(id)       ((void)(id))
#endif

#if COAIO_ASAN
#include <sanitizer/asan_interface.h>
#endif
#if COAIO_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#define SMALLEST ((size_t)16 << 10)
#define LARGEST  (SMALLEST << (STACK_CLASS_COUNT - 1))

#define CHUNK         64 /* slabs whose descriptors are allocated at once */
#define CHUNK_COUNT   16
#define FIRST_SLAB    ((size_t)5 << 20) /* bytes, about; but at least */
#define FIRST_SLOTS   4                 /* so many slots */
#define LARGEST_SLAB  ((size_t)1536 << 20)
#define LARGEST_SLOTS 16384

#define WARM_MIN     SCALED(1024, 2)    /* slots */
#define WHOLE_BYTES  ((size_t)64 << 20) /* in warm slots that keep all pages */
#define KEPT_BYTES   ((size_t)64 << 10) /* what the others keep */
#define RETIRE_BATCH SCALED(16, 2)

typedef struct StackClass {
    OsMutex lock;
    Slab *chunks[CHUNK_COUNT]; /* atomic; owned; never freed */
    unsigned n_slabs;          /* atomic; descriptors ever used */

    /* The lock's. */
    size_t slots; /* in all mappings */
    size_t used;
    size_t warm;
    unsigned mapped; /* slabs that have a mapping */
    unsigned idle;
    unsigned first_warm; /* no slab below it has warm slots */
    unsigned last_warm;  /* none above it */
    unsigned first_room; /* no slab below it has room */
} StackClass;

static StackClass classes[STACK_CLASS_COUNT];
static bool warned; /* atomic; about stacks without guards */

int stack_class_for(size_t size)
{
    int size_class = 0;

    if (size == 0) {
        return STACK_CLASS_DEFAULT;
    }
    if (size > LARGEST) {
        return -EINVAL;
    }
    while (SMALLEST << size_class < size) {
        size_class++;
    }
    return size_class;
}

static Slab *class_slab(const StackClass *class, unsigned i)
{
    Slab *chunk = load_acquire(&class->chunks[i / CHUNK]);

    return &chunk[i % CHUNK];
}

/* The number of a slab of the class. */
static unsigned slab_number(const StackClass *class, const Slab *slab)
{
    unsigned chunk = 0;

    while (slab < class->chunks[chunk] ||
           slab >= class->chunks[chunk] + CHUNK) {
        chunk++;
    }
    return chunk * CHUNK + (slab - class->chunks[chunk]);
}

/* --- tools ----------------------------------------------------------------*/

/* Memory of a stack that was left for good carries ASan's marks of it. */
static void unpoison(const Coroutine *co)
{
#if COAIO_ASAN
    ASAN_UNPOISON_MEMORY_REGION(co->stack_bottom, co->stack_size);
#else
    (void)co;
#endif
}

static void register_with_tools(Coroutine *co)
{
    unpoison(co);
    co->valgrind_id = VALGRIND_STACK_REGISTER(
        co->stack_bottom, co->stack_bottom + co->stack_size);
#if COAIO_TSAN
    co->fiber = __tsan_create_fiber(0);
#endif
}

static void deregister_from_tools(Coroutine *co)
{
    (void)co; /* Valgrind's requests are nothing where it has no port */
    VALGRIND_STACK_DEREGISTER(co->valgrind_id);
#if COAIO_TSAN
    __tsan_destroy_fiber(co->fiber);
#endif
}

/* --- slots of no slab yet, or with no pages -------------------------------*/

/* Fill in the Coroutine of a slot that had no pages. */
static Coroutine *slot_begin(const Slot *slot)
{
    Coroutine *co = slab_coroutine(slot->slab, slot->index);

    invariant(co->state == COROUTINE_FREE && co->slab == NULL);
    co->slab = slot->slab;
    co->size_class = slot->slab->size_class;
    co->unguarded = slot->naked;
    co->poolable = !slot->naked && co->size_class == STACK_CLASS_DEFAULT;
    co->stack_bottom = slab_bottom(slot->slab, slot->index);
    co->stack_size = (char *)co - co->stack_bottom;
    register_with_tools(co);
    co->sp = switch_init(co->stack_bottom, co->stack_size, coroutine_main);
    return co;
}

/* Give all pages of a slot back. */
static void slot_end(Coroutine *co)
{
    Slab *slab = co->slab;
    char *bottom = co->stack_bottom;
    size_t size = slab->stride - slab->guard;

    unpoison(co);
    deregister_from_tools(co);
    os_discard(bottom, size);
}

static void warn_unguarded(void)
{
    if (!xchg_relaxed(&warned, true)) {
        warn_line("stacks cannot be given guards any more; going on without");
    }
}

/* --- slabs of a class; with the lock --------------------------------------*/

/* A descriptor without a mapping, or NULL. */
static Slab *class_free_descriptor(StackClass *class, unsigned *number)
{
    unsigned n = class->n_slabs;
    Slab *chunk;

    for (unsigned i = 0; i < n; i++) {
        if (!class_slab(class, i)->base) {
            *number = i;
            return class_slab(class, i);
        }
    }
    if (n == CHUNK * CHUNK_COUNT) {
        return NULL;
    }
    if (n % CHUNK == 0 && !class->chunks[n / CHUNK]) {
        chunk = os_alloc(CHUNK * sizeof(*chunk));
        if (!chunk) {
            return NULL;
        }
        /* [slab/C] The chunk before the count: pairs with [slab/D]. */
        store_release(&class->chunks[n / CHUNK], chunk);
    }
    store_release(&class->n_slabs, n + 1);
    *number = n;
    return class_slab(class, n);
}

static unsigned next_slab_slots(const StackClass *class, int size_class)
{
    size_t stride = slab_stride(size_class);
    size_t first = FIRST_SLAB / stride;
    size_t last = LARGEST_SLAB / stride;
    size_t n = class->slots;

    first = first < FIRST_SLOTS ? FIRST_SLOTS : first;
    last = last > LARGEST_SLOTS ? LARGEST_SLOTS : last;
    n = n < first ? first : n;
    return n > last ? last : n;
}

static int class_add_slab(StackClass *class, int size_class)
{
    unsigned number;
    Slab *slab = class_free_descriptor(class, &number);
    int result;

    if (!slab) {
        return -ENOMEM;
    }
    result = slab_map(slab, size_class, next_slab_slots(class, size_class));
    if (result < 0) {
        return result;
    }
    class->slots += slab->slots;
    class->mapped++;
    class->idle++;
    if (number < class->first_room) {
        class->first_room = number;
    }
    return 0;
}

/* A slab has become idle: the first stays as a spare, the others go. */
static bool class_drop_slab(StackClass *class, Slab *slab, SlabMapping *mapping)
{
    if (class->idle == 0) {
        class->idle++;
        return false;
    }
    class->slots -= slab->slots;
    class->mapped--;
    slab_unmap(slab, mapping);
    return true;
}

static Coroutine *class_take_warm(StackClass *class)
{
    Slab *slab;

    if (class->warm == 0) {
        return NULL;
    }
    slab = class_slab(class, class->first_warm);
    while (slab->n_warm == 0) {
        slab = class_slab(class, ++class->first_warm);
    }
    class->warm--;
    class->used++;
    return slab_take_warm(slab);
}

/* A warm slot that is to lose its pages, from the highest slab. */
static Coroutine *class_take_surplus(StackClass *class)
{
    Slab *slab;

    if (class->warm <= WARM_MIN + class->used / 4) {
        return NULL;
    }
    slab = class_slab(class, class->last_warm);
    while (slab->n_warm == 0) {
        slab = class_slab(class, --class->last_warm);
    }
    class->warm--;
    class->used++;
    return slab_take_warm(slab);
}

static void class_put_warm(StackClass *class, Coroutine *co)
{
    unsigned number = slab_number(class, co->slab);

    slab_put_warm(co->slab, co);
    class->used--;
    class->warm++;
    if (number < class->first_warm || class->warm == 1) {
        class->first_warm = number;
    }
    if (number > class->last_warm || class->warm == 1) {
        class->last_warm = number;
    }
}

static bool class_take_from(StackClass *class, Slab *slab, bool need_guard,
                            Slot *slot, bool *unguarded)
{
    bool idle = slab_idle(slab);

    if (!slab_take_room(slab, need_guard, slot, unguarded)) {
        return false;
    }
    class->used++;
    class->idle -= idle;
    return true;
}

static bool class_take_room(StackClass *class, int size_class, bool need_guard,
                            Slot *slot, bool *unguarded)
{
    bool full = true; /* no slab so far has room */

    for (unsigned i = class->first_room; i < class->n_slabs; i++) {
        Slab *slab = class_slab(class, i);

        if (!slab->base || !slab_has_room(slab)) {
            class->first_room += full;
            continue;
        }
        full = false;
        if (class_take_from(class, slab, need_guard, slot, unguarded)) {
            return true;
        }
    }
    if ((*unguarded && need_guard) || class_add_slab(class, size_class) < 0) {
        return false;
    }
    for (unsigned i = class->first_room; i < class->n_slabs; i++) {
        Slab *slab = class_slab(class, i);

        if (slab->base && slab_has_room(slab)) {
            return class_take_from(class, slab, need_guard, slot, unguarded);
        }
    }
    return false;
}

/* --- getting --------------------------------------------------------------*/

int stack_get(int size_class, bool need_guard, Coroutine **co)
{
    StackClass *class = &classes[size_class];
    bool unguarded = false;
    bool found;
    Slot slot;

    os_mutex_lock(&class->lock);
    *co = class_take_warm(class);
    found = *co ||
            class_take_room(class, size_class, need_guard, &slot, &unguarded);
    os_mutex_unlock(&class->lock);
    if (!found) {
        return -ENOMEM;
    }
    if (!*co) {
        *co = slot_begin(&slot);
        if (slot.naked) {
            warn_unguarded();
        }
    }
    return 0;
}

/*
 * Slots without pages come one at a time: a page fault for each that may never
 * be needed costs more than the lock.
 */
unsigned stack_get_batch(int size_class, unsigned n, Coroutine **chain)
{
    StackClass *class = &classes[size_class];
    Coroutine *co;
    FifoNode **end;
    unsigned count = 0;
    FifoNode *first = NULL;

    end = &first;
    os_mutex_lock(&class->lock);
    while (count < n && (co = class_take_warm(class))) {
        *end = &co->link;
        end = &co->link.next;
        count++;
    }
    os_mutex_unlock(&class->lock);
    *end = NULL;
    if (count > 0) {
        MARK("stack: a batch is taken");
        *chain = container_of(first, Coroutine, link);
        return count;
    }
    if (stack_get(size_class, true, &co) < 0) {
        return 0;
    }
    co->link.next = NULL;
    *chain = co;
    return 1;
}

/* --- giving back ----------------------------------------------------------*/

/* Give back the pages of used slots, and the slots after that. */
static void retire(StackClass *class, Coroutine **slots, unsigned n)
{
    struct {
        Slab *slab;
        unsigned index;
    } place[RETIRE_BATCH];
    SlabMapping dropped[RETIRE_BATCH];
    unsigned n_dropped = 0;

    for (unsigned i = 0; i < n; i++) {
        place[i].slab = slots[i]->slab;
        place[i].index = slab_index(slots[i]->slab, slots[i]);
        slot_end(slots[i]);
    }
    if (!MUTANT(STACK_RETIRE_UNLOCKED)) {
        os_mutex_lock(&class->lock);
    }
    for (unsigned i = 0; i < n; i++) {
        Slab *slab = place[i].slab;
        unsigned number = slab_number(class, slab);

        slab_put_cold(slab, place[i].index);
        class->used--;
        if (number < class->first_room) {
            class->first_room = number;
        }
        if (slab_idle(slab)) {
            n_dropped += class_drop_slab(class, slab, &dropped[n_dropped]);
        }
    }
    invariant(class->idle <= 1); /* INVARIANTS 2 */
    if (!MUTANT(STACK_RETIRE_UNLOCKED)) {
        os_mutex_unlock(&class->lock);
    }
    for (unsigned i = 0; i < n_dropped; i++) {
        slab_unmap_done(&dropped[i]);
    }
}

/* Bring the number of warm slots down to what it may be. */
static void retire_surplus(StackClass *class)
{
    Coroutine *slots[RETIRE_BATCH];
    unsigned n;

    do {
        os_mutex_lock(&class->lock);
        for (n = 0; n < RETIRE_BATCH; n++) {
            slots[n] = class_take_surplus(class);
            if (!slots[n]) {
                break;
            }
        }
        os_mutex_unlock(&class->lock);
        if (n > 0) {
            MARK("stack: surplus slots lose their pages");
            retire(class, slots, n);
        }
    } while (n == RETIRE_BATCH);
}

/*
 * Of large stacks, few keep all their pages.  Slots that keep more than their
 * top come back only while warm is below the limit, so they are never more.
 */
static void trim(StackClass *class, Coroutine *co)
{
    size_t whole;
    bool keep;

    if (co->size_class <= STACK_CLASS_DEFAULT) {
        return;
    }
    whole = WHOLE_BYTES / (SMALLEST << co->size_class);
    os_mutex_lock(&class->lock);
    keep = class->warm < whole;
    os_mutex_unlock(&class->lock);
    if (!keep) {
        os_discard(co->stack_bottom, (SMALLEST << co->size_class) - KEPT_BYTES);
    }
}

void stack_put(Coroutine *co)
{
    StackClass *class = &classes[co->size_class];

    invariant(co->state == COROUTINE_FREE);
    if (co->unguarded) {
        retire(class, &co, 1);
        return;
    }
    unpoison(co);
    co->link.next = NULL;
    trim(class, co);
    stack_put_batch(co);
}

void stack_put_batch(Coroutine *chain)
{
    StackClass *class = &classes[chain->size_class];
    Coroutine *co, *next;
    bool surplus;

    os_mutex_lock(&class->lock);
    for (co = chain; co; co = next) {
        next =
            co->link.next ? container_of(co->link.next, Coroutine, link) : NULL;
        class_put_warm(class, co);
    }
    surplus = class->warm > WARM_MIN + class->used / 4;
    os_mutex_unlock(&class->lock);
    if (surplus) {
        retire_surplus(class);
    }
}

void stack_recycle(Coroutine *co)
{
    unpoison(co);
}

/* --- looking --------------------------------------------------------------*/

Coroutine *stack_guard_owner(const void *address)
{
    for (int c = 0; c < STACK_CLASS_COUNT; c++) {
        /* [slab/D] The count before the chunk: pairs with [slab/C]. */
        unsigned n = load_acquire(&classes[c].n_slabs);

        for (unsigned i = 0; i < n; i++) {
            const Slab *slab = class_slab(&classes[c], i);
            Coroutine *co;

            if (!slab_contains(slab, address)) {
                continue;
            }
            co = slab_owner(slab, address);
            return co && co->state != COROUTINE_FREE ? co : NULL;
        }
    }
    return NULL;
}

static void slab_for_each(const Slab *slab,
                          void (*fn)(Coroutine *co, void *opaque), void *opaque)
{
    for (unsigned i = 0; slab->base && i < slab->fresh; i++) {
        Coroutine *co;

        if (slab_is_cold(slab, i)) {
            continue;
        }
        co = slab_coroutine(slab, i);
        if (load_relaxed(&co->state) != COROUTINE_FREE) {
            fn(co, opaque);
        }
    }
}

void stack_for_each(void (*fn)(Coroutine *co, void *opaque), void *opaque)
{
    for (int c = 0; c < STACK_CLASS_COUNT; c++) {
        StackClass *class = &classes[c];

        os_mutex_lock(&class->lock);
        for (unsigned i = 0; i < class->n_slabs; i++) {
            slab_for_each(class_slab(class, i), fn, opaque);
        }
        os_mutex_unlock(&class->lock);
    }
}

void stack_stats(int size_class, StackStats *stats)
{
    StackClass *class = &classes[size_class];
    size_t cold = 0;

    os_mutex_lock(&class->lock);
    for (unsigned i = 0; i < class->n_slabs; i++) {
        cold += class_slab(class, i)->n_cold;
    }
    stats->slabs = class->mapped;
    stats->used = class->used;
    stats->free_slots = class->warm + cold;
    stats->free_backed = class->warm;
    os_mutex_unlock(&class->lock);
}
