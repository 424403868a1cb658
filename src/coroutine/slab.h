/* SPDX-License-Identifier: MIT */
/*
 * Slab: one mapping that holds many stacks of one size class, and what is
 * known of its slots.
 *
 *   slot:  | guard | stack ... grows down | struct Coroutine | colour |
 *          lowest address                                      highest
 *
 * A slot is in one of these states:
 *
 *   fresh   never handed out; costs no memory, and may have no guard yet
 *   used    handed out, or on its way from one state to another
 *   warm    given back, with its pages: a chain by Coroutine.link
 *   cold    given back, without its pages: a bit of Slab.cold; all that its
 *           Coroutine holds can be made again from the geometry
 *
 * The colour shifts the Coroutine by a multiple of a cache line that differs
 * between neighbours, and makes the distance between slots an odd number of
 * pages: otherwise the hot lines of all coroutines fell into the same few
 * sets of the caches and of the TLB.
 *
 * Slab structs are never freed, so that a signal handler may look at one
 * while another thread unmaps its slots.  All functions but slab_contains()
 * and slab_owner() are called with the lock of the size class held.
 */
#ifndef COAIO_COROUTINE_SLAB_H
#define COAIO_COROUTINE_SLAB_H

#include "coroutine/coroutine_int.h"

#define SLAB_GUARD_BATCH 512 /* guards installed at once, at most */
#define SLAB_COLOURS     16

typedef struct Slab {
    char *base;     /* atomic; NULL: no mapping */
    size_t size;    /* atomic; of the mapping */
    unsigned fresh; /* atomic; slots from here on are fresh */

    size_t stride;      /* of slots; set once */
    size_t guard;       /* bytes of a guard; set once */
    uint8_t size_class; /* set once */

    unsigned slots;  /* how many there are */
    unsigned fenced; /* slots below have a guard, or are naked */
    unsigned splits; /* guards that are mappings of their own */
    unsigned used;   /* how many are in that state */
    unsigned n_warm;
    unsigned n_cold;
    Coroutine *warm;
    uint64_t *cold;     /* owned; a bit a slot */
    uint64_t *naked;    /* a bit a slot: there is no guard; with cold */
    unsigned cold_hint; /* no word of cold below it has a bit set */
} Slab;

/* A slot that is used, but has no Coroutine yet. */
typedef struct Slot {
    Slab *slab;
    unsigned index;
    bool naked;
} Slot;

/* The distance between slots of the class. */
size_t slab_stride(int size_class);

/*
 * Map up to slots slots for slab, whose base is NULL; fewer, down to one, if
 * there is no address space for so many.  Returns 0 or -ENOMEM.
 */
int slab_map(Slab *slab, int size_class, unsigned slots);

/* A mapping that has left its slab, for slab_unmap_done() without the lock. */
typedef struct SlabMapping {
    char *base;
    size_t size;
    uint64_t *bits;
    unsigned splits;
} SlabMapping;

/* Take the mapping out of a slab of which no slot is used or warm. */
void slab_unmap(Slab *slab, SlabMapping *mapping);
void slab_unmap_done(SlabMapping *mapping);

/* No slot is used or warm: it could be unmapped. */
static inline bool slab_idle(const Slab *slab)
{
    return slab->base && slab->used == 0 && slab->n_warm == 0;
}

/* warm -> used; there is one. */
Coroutine *slab_take_warm(Slab *slab);
/* used -> warm. */
void slab_put_warm(Slab *slab, Coroutine *co);

/*
 * cold or fresh -> used.  Returns false if there is none, or, with need_guard,
 * none that can have a guard; then *unguarded is set.
 */
bool slab_take_room(Slab *slab, bool need_guard, Slot *slot, bool *unguarded);
bool slab_has_room(const Slab *slab);
/* used -> cold; the pages are gone. */
void slab_put_cold(Slab *slab, unsigned index);

/* Of a slot: where its Coroutine is, and the lowest usable address. */
Coroutine *slab_coroutine(const Slab *slab, unsigned index);
char *slab_bottom(const Slab *slab, unsigned index);
/* The slot that holds co. */
unsigned slab_index(const Slab *slab, const Coroutine *co);

bool slab_is_cold(const Slab *slab, unsigned index);

/* For the signal handler: without the lock. */
bool slab_contains(const Slab *slab, const void *address);
/* The coroutine whose guard holds address, which slab contains; or NULL. */
Coroutine *slab_owner(const Slab *slab, const void *address);

#endif
