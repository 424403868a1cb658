/* SPDX-License-Identifier: MIT */
/*
 * One slab: which of its slots are in which state.  Policy (how many slabs,
 * how many warm slots) is stack.c's.
 *
 * INVARIANTS
 *
 *   1. Each slot below fresh is either used, warm or cold; none from fresh on
 *      is.  used + n_warm + n_cold == fresh.
 *   2. A naked slot is never warm: so whoever takes a warm slot has a guard.
 *   3. fresh <= fenced <= slots.
 *   4. A cold slot has no pages: its Coroutine reads as zeroes.
 */
#include "coroutine/slab.h"

#include "os/memory.h"

#include <errno.h>

#define GUARD_SIZE        ((size_t)16 << 10)
#define SMALLEST_STACK    ((size_t)16 << 10)
#define COLOUR_STEP       64
#define GUARD_BATCH_FIRST 16
#define WORD_BITS         64

_Static_assert(sizeof(Coroutine) + SLAB_COLOURS * COLOUR_STEP <= 2048,
               "the Coroutine and its colour leave room in their page");

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static size_t guard_size(void)
{
    return round_up(GUARD_SIZE, os_page_size());
}

/* The page besides guard and stack holds Coroutine and colour. */
size_t slab_stride(int size_class)
{
    size_t page = os_page_size();

    return guard_size() + round_up(SMALLEST_STACK << size_class, page) + page;
}

/* --- bits -----------------------------------------------------------------*/

static bool bit_get(const uint64_t *bits, unsigned i)
{
    return bits[i / WORD_BITS] >> (i % WORD_BITS) & 1;
}

static void bit_set(uint64_t *bits, unsigned i)
{
    bits[i / WORD_BITS] |= (uint64_t)1 << (i % WORD_BITS);
}

static void bit_clear(uint64_t *bits, unsigned i)
{
    bits[i / WORD_BITS] &= ~((uint64_t)1 << (i % WORD_BITS));
}

static unsigned word_count(unsigned slots)
{
    return (slots + WORD_BITS - 1) / WORD_BITS;
}

/* --- geometry -------------------------------------------------------------*/

static char *slot_address(const Slab *slab, unsigned index)
{
    return load_relaxed(&slab->base) + (size_t)index * slab->stride;
}

Coroutine *slab_coroutine(const Slab *slab, unsigned index)
{
    size_t size = round_up(sizeof(Coroutine), COLOUR_STEP);
    size_t colour = index % SLAB_COLOURS * COLOUR_STEP;

    return (Coroutine *)(void *)(slot_address(slab, index) + slab->stride -
                                 size - colour);
}

char *slab_bottom(const Slab *slab, unsigned index)
{
    return slot_address(slab, index) + slab->guard;
}

unsigned slab_index(const Slab *slab, const Coroutine *co)
{
    return ((const char *)co - slab->base) / slab->stride;
}

bool slab_contains(const Slab *slab, const void *address)
{
    /* [slab/B] The base before the geometry: pairs with [slab/A]. */
    const char *base = load_acquire(&slab->base);
    const char *a = address;

    return base && a >= base && a < base + load_relaxed(&slab->size);
}

Coroutine *slab_owner(const Slab *slab, const void *address)
{
    size_t offset = (const char *)address - load_relaxed(&slab->base);
    unsigned index = offset / slab->stride;

    if (offset % slab->stride >= slab->guard ||
        index >= load_relaxed(&slab->fresh)) {
        return NULL;
    }
    return slab_coroutine(slab, index);
}

/* --- mapping --------------------------------------------------------------*/

int slab_map(Slab *slab, int size_class, unsigned slots)
{
    size_t stride = slab_stride(size_class);
    char *base = NULL;

    for (; slots > 0; slots /= 2) {
        base = os_map(slots * stride, os_page_size());
        if (base) {
            break;
        }
    }
    if (!base) {
        return -ENOMEM;
    }
    slab->cold = os_alloc(2 * word_count(slots) * sizeof(*slab->cold));
    if (!slab->cold) {
        os_unmap(base, slots * stride);
        return -ENOMEM;
    }
    slab->naked = slab->cold + word_count(slots);
    slab->cold_hint = word_count(slots);
    slab->stride = stride;
    slab->guard = guard_size();
    slab->size_class = size_class;
    slab->slots = slots;
    slab->fenced = 0;
    slab->splits = 0;
    store_relaxed(&slab->fresh, 0);
    store_relaxed(&slab->size, slots * stride);
    /* [slab/A] The geometry before the base: pairs with [slab/B]. */
    store_release(&slab->base, base);
    return 0;
}

void slab_unmap(Slab *slab, SlabMapping *mapping)
{
    invariant(slab_idle(slab));
    mapping->base = slab->base;
    mapping->size = slab->size;
    mapping->bits = slab->cold;
    mapping->splits = slab->splits;
    store_release(&slab->base, NULL);
    store_relaxed(&slab->fresh, 0);
    slab->slots = 0;
    slab->fenced = 0;
    slab->n_cold = 0;
    slab->cold = NULL;
    slab->naked = NULL;
}

void slab_unmap_done(SlabMapping *mapping)
{
    os_unmap(mapping->base, mapping->size);
    if (mapping->splits) {
        os_unguard(OS_GUARD_MPROTECT, mapping->splits);
    }
    os_free(mapping->bits);
}

/* --- slots that have pages ------------------------------------------------*/

Coroutine *slab_take_warm(Slab *slab)
{
    Coroutine *co = slab->warm;

    invariant(co && co->slab == slab);
    slab->warm =
        co->link.next ? container_of(co->link.next, Coroutine, link) : NULL;
    slab->n_warm--;
    slab->used++;
    return co;
}

void slab_put_warm(Slab *slab, Coroutine *co)
{
    invariant(slab->used > 0 && !co->unguarded); /* INVARIANTS 2 */
    co->link.next = slab->warm ? &slab->warm->link : NULL;
    slab->warm = co;
    slab->n_warm++;
    slab->used--;
}

/* --- slots that have none -------------------------------------------------*/

bool slab_is_cold(const Slab *slab, unsigned index)
{
    return bit_get(slab->cold, index);
}

bool slab_has_room(const Slab *slab)
{
    return slab->n_cold > 0 || slab->fresh < slab->slots;
}

void slab_put_cold(Slab *slab, unsigned index)
{
    invariant(slab->used > 0 && !bit_get(slab->cold, index));
    bit_set(slab->cold, index);
    if (index / WORD_BITS < slab->cold_hint) {
        slab->cold_hint = index / WORD_BITS;
    }
    slab->n_cold++;
    slab->used--;
    /* INVARIANTS 1 */
    invariant(slab->used + slab->n_warm + slab->n_cold == slab->fresh);
}

/* Install n guards from slot first on.  Returns how many there are. */
static unsigned install_guards(Slab *slab, unsigned first, unsigned n)
{
    size_t done = 0;
    OsGuardKind kind = os_guard(slot_address(slab, first), slab->guard,
                                slab->stride, n, &done);

    if (kind == OS_GUARD_MPROTECT) {
        slab->splits += done;
    }
    return done;
}

/* A slot with a bit in cold, guarded or naked; slots if there is none. */
static unsigned find_cold(Slab *slab, bool naked)
{
    unsigned words = word_count(slab->slots);

    while (slab->cold_hint < words && slab->cold[slab->cold_hint] == 0) {
        slab->cold_hint++;
    }
    for (unsigned w = slab->cold_hint; w < words; w++) {
        uint64_t bits =
            slab->cold[w] & (naked ? slab->naked[w] : ~slab->naked[w]);
        if (bits) {
            return w * WORD_BITS + __builtin_ctzll(bits);
        }
    }
    return slab->slots;
}

/* The naked slot index, which is about to be used, gets its guard if it can.
 * Returns whether it may be used. */
static bool cover(Slab *slab, unsigned index, bool need_guard, Slot *slot,
                  bool *unguarded)
{
    slot->naked = install_guards(slab, index, 1) == 0;
    if (slot->naked) {
        *unguarded = true;
        if (need_guard) {
            return false;
        }
        bit_set(slab->naked, index);
    } else {
        bit_clear(slab->naked, index);
    }
    return true;
}

static bool take_cold(Slab *slab, bool need_guard, Slot *slot, bool *unguarded)
{
    unsigned index = find_cold(slab, false);

    slot->naked = false;
    if (index == slab->slots) {
        index = find_cold(slab, true);
        if (index == slab->slots ||
            !cover(slab, index, need_guard, slot, unguarded)) {
            return false;
        }
    }
    bit_clear(slab->cold, index);
    slab->n_cold--;
    slot->index = index;
    return true;
}

static bool take_fresh(Slab *slab, bool need_guard, Slot *slot, bool *unguarded)
{
    unsigned index = slab->fresh;
    unsigned n = slab->slots - slab->fenced;
    unsigned batch =
        slab->fenced > GUARD_BATCH_FIRST ? slab->fenced : GUARD_BATCH_FIRST;

    slot->naked = false;
    if (index == slab->slots) {
        return false;
    }
    if (index == slab->fenced) {
        batch = batch > SLAB_GUARD_BATCH ? SLAB_GUARD_BATCH : batch;
        slab->fenced += install_guards(slab, index, n < batch ? n : batch);
    }
    if (index == slab->fenced) {
        if (!cover(slab, index, need_guard, slot, unguarded)) {
            return false;
        }
        slab->fenced++;
    }
    store_relaxed(&slab->fresh, index + 1);
    slot->index = index;
    return true;
}

bool slab_take_room(Slab *slab, bool need_guard, Slot *slot, bool *unguarded)
{
    slot->slab = slab;
    if (!take_cold(slab, need_guard, slot, unguarded) &&
        !take_fresh(slab, need_guard, slot, unguarded)) {
        return false;
    }
    slab->used++;
    invariant(slab->fresh <= slab->fenced && slab->fenced <= slab->slots);
    return true;
}
