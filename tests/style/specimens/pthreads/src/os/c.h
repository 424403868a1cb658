/* SPDX-License-Identifier: MIT */
extern pthread_t self;
