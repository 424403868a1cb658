/* SPDX-License-Identifier: MIT */
extern _Thread_local int e;
