/* SPDX-License-Identifier: MIT */
/*
 * The cache of payload buffers (buffer.h).
 *
 * Idle buffers are used last in, first out, while their bytes are still in
 * the processor's caches.  What was never needed between two ticks of the
 * timer (the low-water mark of each class) is given back at the second.
 *
 * INVARIANTS
 *
 *   1. idle_bytes is the sum over all classes of count times capacity, and
 *      at most BUFFER_CACHE_LIMIT.
 *   2. low <= count in each class.
 */
#include "buffer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define TICK_NS INT64_C(1000000000)

/* From here on a buffer is a mapping of its own, which unmapping gives back
 * for certain; smaller ones come from malloc. */
#define MAPPED_MIN ((size_t)64 << 10)

static_assert(BUFFER_MIN << (BUFFER_CLASSES - 1) == BUFFER_MAX,
              "the classes reach from BUFFER_MIN to BUFFER_MAX");

static unsigned class_of(size_t capacity)
{
    return (unsigned)(__builtin_ctzll(capacity) - __builtin_ctzll(BUFFER_MIN));
}

size_t buffer_capacity(size_t size)
{
    assert(size <= BUFFER_MAX);
    if (size <= BUFFER_MIN) {
        return BUFFER_MIN;
    }
    return (size_t)1 << (64 - __builtin_clzll(size - 1));
}

static void *memory_get(size_t capacity)
{
    void *p;

    if (capacity < MAPPED_MIN) {
        return aligned_alloc(BUFFER_ALIGN, capacity);
    }
    p = mmap(NULL, capacity, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void memory_put(void *p, size_t capacity)
{
    if (capacity < MAPPED_MIN) {
        free(p);
    } else {
        munmap(p, capacity);
    }
}

static void *class_pop(BufferCache *cache, unsigned index)
{
    BufferClass *class = &cache->classes[index];
    void *buffer = class->head;

    assert(buffer && class->count > 0);
    memcpy(&class->head, buffer, sizeof(class->head));
    class->count--;
    if (class->low > class->count) {
        class->low = class->count;
    }
    cache->idle_bytes -= BUFFER_MIN << index;
    return buffer;
}

static void buffer_cache_tick(void *opaque)
{
    BufferCache *cache = opaque;

    for (unsigned i = 0; i < BUFFER_CLASSES; i++) {
        BufferClass *class = &cache->classes[i];

        for (size_t n = class->low; n > 0; n--) {
            memory_put(class_pop(cache, i), BUFFER_MIN << i);
        }
        class->low = class->count;
    }
    if (cache->idle_bytes > 0) {
        aio_timer_mod_ns(&cache->timer,
                         aio_clock_ns(AIO_CLOCK_MONOTONIC) + TICK_NS);
    }
}

void buffer_cache_init(BufferCache *cache, AioContext *ctx)
{
    memset(cache, 0, sizeof(*cache));
    aio_timer_init(&cache->timer, ctx, AIO_CLOCK_MONOTONIC, buffer_cache_tick,
                   cache);
}

void buffer_cache_clear(BufferCache *cache)
{
    aio_timer_del(&cache->timer);
    for (unsigned i = 0; i < BUFFER_CLASSES; i++) {
        while (cache->classes[i].count > 0) {
            memory_put(class_pop(cache, i), BUFFER_MIN << i);
        }
    }
    assert(cache->idle_bytes == 0); /* invariant 1 */
}

void *buffer_get(BufferCache *cache, size_t capacity)
{
    unsigned index = class_of(capacity);

    assert(capacity == buffer_capacity(capacity));
    if (cache->classes[index].head) {
        return class_pop(cache, index);
    }
    return memory_get(capacity);
}

void buffer_put(BufferCache *cache, void *buffer, size_t capacity)
{
    BufferClass *class = &cache->classes[class_of(capacity)];

    assert(capacity == buffer_capacity(capacity));
    if (cache->idle_bytes + capacity > BUFFER_CACHE_LIMIT) {
        memory_put(buffer, capacity);
        return;
    }
    if (!aio_timer_pending(&cache->timer)) {
        aio_timer_mod_ns(&cache->timer,
                         aio_clock_ns(AIO_CLOCK_MONOTONIC) + TICK_NS);
    }
    memcpy(buffer, &class->head, sizeof(class->head));
    class->head = buffer;
    class->count++;
    cache->idle_bytes += capacity;
}
