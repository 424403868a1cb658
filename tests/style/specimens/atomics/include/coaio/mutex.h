/* SPDX-License-Identifier: MIT */
#define GET(p) __atomic_load_n(p, 0)
