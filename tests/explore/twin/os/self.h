/* SPDX-License-Identifier: MIT */
/*
 * os/self.h as the explorer has it: the simulated thread's own.
 */
#ifndef COAIO_OS_SELF_H
#define COAIO_OS_SELF_H

struct OsThread;
struct OsThread *os_thread(void);

#endif
