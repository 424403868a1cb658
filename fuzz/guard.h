/* SPDX-License-Identifier: MIT */
/*
 * What happens on the way from handshake.c to handshake_option.c (guard.c).
 */
#ifndef FUZZ_GUARD_H
#define FUZZ_GUARD_H

#include "../nbd/handshake.h"

HandshakeNext coroutine_fn __real_handshake_option(Handshake *h);

/* The linker leads handshake.c here (--wrap). */
HandshakeNext coroutine_fn __wrap_handshake_option(Handshake *h);

/**
 * A bug, in the target fuzz_canary only (canary.c).  NULL in all others.
 */
__attribute__((weak)) void canary_sing(Handshake *h);

#endif
