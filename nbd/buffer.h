/* SPDX-License-Identifier: MIT */
/*
 * BufferCache: payload buffers that are used again, so that no request pays
 * for fresh mappings and page faults.
 *
 * One cache belongs to one I/O thread; all calls are made there.  Buffers come
 * in powers of two from BUFFER_MIN to BUFFER_MAX and are aligned to
 * BUFFER_ALIGN, as direct I/O wants them.  Their contents are undefined.
 *
 * What is in use is bounded by whoever takes buffers (request.h); what lies
 * idle here is bounded by BUFFER_CACHE_LIMIT, and goes back to the system when
 * it has not been needed for one to two seconds.
 */
#ifndef NBD_BUFFER_H
#define NBD_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

#include <coaio/timer.h>

#define BUFFER_MIN         ((size_t)4096)
#define BUFFER_MAX         ((size_t)32 << 20)
#define BUFFER_ALIGN       ((size_t)4096)
#define BUFFER_CLASSES     14
#define BUFFER_CACHE_LIMIT ((size_t)128 << 20)

typedef struct BufferClass {
    void *head;    /* idle buffers, linked through their first word */
    size_t count;  /* of them */
    size_t low;    /* the least count since the last tick */
} BufferClass;

typedef struct BufferCache {
    BufferClass classes[BUFFER_CLASSES];
    size_t idle_bytes;  /* in all classes */
    AioTimer timer;     /* armed by the first put; goes on until all is gone */
} BufferCache;

/**
 * Make cache empty, for the thread that polls ctx.
 */
void buffer_cache_init(BufferCache *cache, AioContext *ctx);

/**
 * Give everything back; the timer is idle afterwards.
 */
void buffer_cache_clear(BufferCache *cache);

/**
 * The capacity that buffer_get() gives for size bytes, at most BUFFER_MAX.
 */
size_t buffer_capacity(size_t size);

/**
 * Take a buffer of capacity bytes, a value that buffer_capacity() gave.
 * Returns NULL if there is no memory.
 */
void *buffer_get(BufferCache *cache, size_t capacity);

/**
 * Put one back, or free it if the cache is full.
 */
void buffer_put(BufferCache *cache, void *buffer, size_t capacity);

#endif
