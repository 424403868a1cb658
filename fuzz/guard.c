/* SPDX-License-Identifier: MIT */
/*
 * Makes AddressSanitizer see who reads behind an option's data, although the
 * buffer that it lies in is larger.
 */
#include "guard.h"

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define GUARD 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define GUARD 1
#endif

#ifdef GUARD
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

HandshakeNext coroutine_fn __wrap_handshake_option(Handshake *h)
{
    size_t slack = h->data ? buffer_capacity(h->length) - h->length : 0;
    HandshakeNext next;

    if (slack > 0) {
        ASAN_POISON_MEMORY_REGION(h->data + h->length, slack);
    }
    if (canary_sing) {
        canary_sing(h);
    }
    next = __real_handshake_option(h);
    if (slack > 0) {
        ASAN_UNPOISON_MEMORY_REGION(h->data + h->length, slack);
    }
    return next;
}
