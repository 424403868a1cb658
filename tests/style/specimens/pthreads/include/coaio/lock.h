/* SPDX-License-Identifier: MIT */
extern pthread_mutex_t lock;
