/* SPDX-License-Identifier: MIT */
#define CO_TLS(x) _Thread_local x
