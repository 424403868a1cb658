/* SPDX-License-Identifier: MIT */
#include <stdatomic.h>
static _Atomic int a;
int b = __atomic_load_n(&a, 0);
int c = __sync_fetch_and_add(&a, 1);
