/* SPDX-License-Identifier: MIT */
typedef pthread_t Thread;
extern pthread_mutex_t lock;
