/* SPDX-License-Identifier: MIT */
static _Thread_local int a;
static __thread int b;
static thread_local int c;
