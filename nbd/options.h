/* SPDX-License-Identifier: MIT */
/*
 * The command line of coaio-nbd.
 */
#ifndef NBD_OPTIONS_H
#define NBD_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "log.h"

typedef enum ExportKind {
    EXPORT_FILE,    /* a regular file or a block device */
    EXPORT_MEMORY,  /* memory:SIZE */
    EXPORT_NULL,    /* null:SIZE */
} ExportKind;

/* One --export NAME=SOURCE[,ro]. */
typedef struct ExportSpec {
    char *name;
    char *source;      /* as given, without ",ro" */
    ExportKind kind;
    uint64_t size;     /* for memory: and null: */
    bool read_only;
} ExportSpec;

/* One --tcp ADDRESS:PORT; brackets of IPv6 addresses are taken off. */
typedef struct TcpSpec {
    char *address;  /* "" for all addresses of this machine */
    char *port;
} TcpSpec;

typedef struct Options {
    char **unix_paths;
    size_t n_unix_paths;
    TcpSpec *tcp;
    size_t n_tcp;
    ExportSpec *exports;
    size_t n_exports;
    const char *default_export;   /* NULL: none was named */
    const char *pid_file;         /* NULL: none */
    unsigned threads;
    int64_t busy_poll_ns;         /* at most, of a thread before it sleeps */
    size_t max_connections;
    uint64_t max_inflight;        /* bytes a connection */
    int64_t handshake_timeout_ns;
    int64_t stop_timeout_ns;      /* for the last replies */
    LogLevel log_level;
    bool direct;
} Options;

/* What parsing a command line comes to. */
typedef enum OptionsResult {
    OPTIONS_RUN,    /* options are complete: serve */
    OPTIONS_EXIT,   /* --help or --version has been answered */
    OPTIONS_USAGE,  /* a line on stderr says what is wrong */
} OptionsResult;

/**
 * Parse the command line.  sockets_given says that the caller has listening
 * sockets from socket activation, so that none need be named.  The strings in
 * *options point into argv or belong to it.
 */
OptionsResult options_parse(Options *options, int argc, char **argv,
                            bool sockets_given);

/**
 * Free what options_parse() allocated, whatever it returned.
 */
void options_clear(Options *options);

#endif
