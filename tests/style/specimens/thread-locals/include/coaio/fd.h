/* SPDX-License-Identifier: MIT */
extern __thread int d;
