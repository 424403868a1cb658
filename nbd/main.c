/* SPDX-License-Identifier: MIT */
/*
 * coaio-nbd, a network block device server: start and end of the program.
 *
 * Exit status: 0 after SIGTERM or SIGINT, 1 if something cannot be had, 2 if
 * the command line is wrong, with one line on stderr that says what; 128 and
 * the signal's number after a second one.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <coaio/bh.h>
#include <coaio/context.h>
#include <coaio/coroutine.h>
#include <coaio/timer.h>

#include "listen.h"
#include "log.h"
#include "options.h"
#include "pidfile.h"
#include "server.h"

#define EXIT_USAGE 2

/* Descriptors besides those of connections and exports: of each I/O thread's
 * event loop, whatever its engine... */
#define LOOP_FDS  3
/* ... and listening sockets, the main loop, the log. */
#define SPARE_FDS 64

/* Signals that come together, such as Ctrl-C at the terminal and SIGTERM from
 * whoever runs there, count as one. */
#define HURRY_NS INT64_C(1000000000)

/* What the signal handler asks for, and when it first did. */
static AioBH *stop_bh;
static int64_t stop_ns;

static void on_signal(int number)
{
    int64_t now = aio_clock_ns(AIO_CLOCK_MONOTONIC);

    if (stop_ns == 0) {
        stop_ns = now;
    } else if (now - stop_ns > HURRY_NS) {
        _exit(128 + number); /* somebody is in a hurry */
    }
    aio_bh_schedule(stop_bh);
}

static void on_stop(void *opaque)
{
    server_stop(opaque);
}

static bool install_signals(void)
{
    struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

    sigaddset(&sa.sa_mask, SIGTERM);
    sigaddset(&sa.sa_mask, SIGINT);
    return signal(SIGPIPE, SIG_IGN) != SIG_ERR &&
           sigaction(SIGTERM, &sa, NULL) == 0 &&
           sigaction(SIGINT, &sa, NULL) == 0;
}

/* A socket must not become descriptor 2, and log lines its payload. */
static bool open_standard_fds(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) {
            log_line(LOG_LEVEL_ERROR, "descriptor %d is closed, and /dev/null "
                     "cannot take its place", fd);
            return false;
        }
    }
    return true;
}

/* Makes sure that there may be as many descriptors as connections. */
static void raise_fd_limit(const Options *options)
{
    struct rlimit limit;
    rlim_t wanted = options->max_connections + options->n_exports +
                    (rlim_t)options->threads * LOOP_FDS + SPARE_FDS;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= wanted) {
        return;
    }
    limit.rlim_cur = wanted < limit.rlim_max ? wanted : limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur < wanted) {
        log_line(LOG_LEVEL_WARNING, "no more than %llu file descriptors are "
                 "allowed, too few for %zu connections",
                 (unsigned long long)limit.rlim_cur, options->max_connections);
    }
}

static void log_uris(const Listeners *listeners)
{
    for (size_t i = 0; i < listeners->count; i++) {
        log_line(LOG_LEVEL_INFO, "serving %s", listeners->items[i].uri);
    }
}

/* Returns the exit status. */
static int serve(const Options *options, unsigned n_passed)
{
    AioContext *context = aio_context_main();
    const char *engine = getenv("COAIO_ENGINE");
    Server server;
    int status = EXIT_FAILURE;

    if (!context) {
        log_line(LOG_LEVEL_ERROR, "cannot make an event loop%s%s",
                 engine ? " with COAIO_ENGINE=" : "", engine ? engine : "");
        return EXIT_FAILURE;
    }
    aio_install_overflow_handler();
    raise_fd_limit(options);
    stop_bh = aio_bh_new(context, on_stop, &server);
    if (!install_signals()) {
        log_line(LOG_LEVEL_ERROR, "cannot handle signals: %s",
                 strerror(errno));
        return EXIT_FAILURE;
    }
    /* A signal that comes from now on waits for the first pass of the loop. */
    if (server_init(&server, options, context) &&
        listeners_open(&server.listeners, options, n_passed) &&
        (!options->pid_file || pidfile_write(options->pid_file))) {
        log_uris(&server.listeners);
        server_run(&server);
        status = EXIT_SUCCESS;
    }
    server_clear(&server);
    if (status == EXIT_SUCCESS && options->pid_file) {
        pidfile_remove(options->pid_file);
    }
    return status;
}

int main(int argc, char **argv)
{
    Options options;
    unsigned n_passed;
    int status = EXIT_FAILURE;

    if (!open_standard_fds()) {
        return EXIT_FAILURE;
    }
    n_passed = listen_passed_count();
    switch (options_parse(&options, argc, argv, n_passed > 0)) {
    case OPTIONS_EXIT:
        status = EXIT_SUCCESS;
        break;
    case OPTIONS_USAGE:
        status = EXIT_USAGE;
        break;
    case OPTIONS_RUN:
        log_set_level(options.log_level);
        status = serve(&options, n_passed);
        break;
    }
    options_clear(&options);
    return status;
}
