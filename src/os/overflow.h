/* SPDX-License-Identifier: MIT */
/*
 * Faults on guards: the machine's part of aio_install_overflow_handler().
 *
 *                               thread   signal handler
 *   os_install_fault_handler     yes          no
 *   os_signal_stack_install      yes          no
 */
#ifndef COAIO_OS_OVERFLOW_H
#define COAIO_OS_OVERFLOW_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Whether a fault at address is ours: then writes the report, one line of at
 * most size bytes with its newline and the terminating zero, to line.  Runs
 * in a signal handler, on the alternate stack.
 */
typedef bool OsFaultClaims(const void *address, char *line, size_t size);

/*
 * Handle SIGSEGV and SIGBUS, once a process.  A fault that claims says yes to
 * is reported on stderr, and ends the process by the signal, at the faulting
 * instruction.  Every other goes to the handler that was there before.
 * Further calls do nothing, or what one that failed has left to do: one signal
 * may be handled then, and the other not.
 *
 * Returns 0 or -errno.
 */
int os_install_fault_handler(OsFaultClaims *claims);

/*
 * Give the calling thread an alternate signal stack, unless it has one,
 * whoever made that.  Goes with the thread.
 *
 * Returns 0 or -errno (-ENOMEM).
 */
int os_signal_stack_install(void);

#endif
