/* SPDX-License-Identifier: MIT */
/*
 * The command line of coaio-nbd (options.h).
 *
 * Every mistake gives exactly one line on stderr, which quotes what is wrong.
 * Nothing outside the command line is looked at: whether files exist and
 * addresses resolve is for those who open them.
 */
#include "options.h"

#include <getopt.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "must.h"
#include "protocol.h"
#include "size.h"

#define DEFAULT_CONNECTIONS 1024
#define DEFAULT_INFLIGHT    (UINT64_C(64) << 20)
#define DEFAULT_HANDSHAKE   10
#define DEFAULT_STOP        30
#define MAX_THREADS         256
#define MAX_CONNECTIONS     1000000
#define MAX_HANDSHAKE       86400
#define MAX_STOP            86400
#define DEFAULT_BUSY_POLL   100
#define MAX_BUSY_POLL       1000000
#define NS_PER_US           INT64_C(1000)
#define NS_PER_SECOND       INT64_C(1000000000)

enum {
    OPT_UNIX = 256,
    OPT_TCP,
    OPT_EXPORT,
    OPT_DEFAULT_EXPORT,
    OPT_THREADS,
    OPT_BUSY_POLL,
    OPT_MAX_CONNECTIONS,
    OPT_MAX_INFLIGHT,
    OPT_HANDSHAKE_TIMEOUT,
    OPT_STOP_TIMEOUT,
    OPT_PID_FILE,
    OPT_LOG_LEVEL,
    OPT_DIRECT,
    OPT_HELP,
    OPT_VERSION,
};

static const struct option long_options[] = {
    { "unix", required_argument, NULL, OPT_UNIX },
    { "tcp", required_argument, NULL, OPT_TCP },
    { "export", required_argument, NULL, OPT_EXPORT },
    { "default-export", required_argument, NULL, OPT_DEFAULT_EXPORT },
    { "threads", required_argument, NULL, OPT_THREADS },
    { "busy-poll", required_argument, NULL, OPT_BUSY_POLL },
    { "max-connections", required_argument, NULL, OPT_MAX_CONNECTIONS },
    { "max-inflight", required_argument, NULL, OPT_MAX_INFLIGHT },
    { "handshake-timeout", required_argument, NULL, OPT_HANDSHAKE_TIMEOUT },
    { "stop-timeout", required_argument, NULL, OPT_STOP_TIMEOUT },
    { "pid-file", required_argument, NULL, OPT_PID_FILE },
    { "log-level", required_argument, NULL, OPT_LOG_LEVEL },
    { "direct", no_argument, NULL, OPT_DIRECT },
    { "help", no_argument, NULL, OPT_HELP },
    { "version", no_argument, NULL, OPT_VERSION },
    { NULL, 0, NULL, 0 },
};

static const char help_text[] =
    "Usage: coaio-nbd [OPTION]...\n"
    "Serve files, block devices and memory as network block devices (NBD).\n"
    "\n"
    "  --unix PATH               listen on a UNIX socket (repeatable)\n"
    "  --tcp ADDRESS:PORT        listen on a TCP address (repeatable), IPv6\n"
    "                            as [::1]:10809; port 0 picks a free one\n"
    "  --export NAME=SOURCE[,ro] serve SOURCE under NAME (repeatable); SOURCE\n"
    "                            is a file, a block device, memory:SIZE or\n"
    "                            null:SIZE; sizes may end in K M G T P E\n"
    "  --default-export NAME     serve NAME to clients that name no export;\n"
    "                            a single export is the default by itself\n"
    "  --threads N               I/O threads (default: the number of cores)\n"
    "  --busy-poll MICROSECONDS  before it sleeps, a thread looks so long for\n"
    "                            requests, if they came as soon lately; 0 is\n"
    "                            never (default: 100, or 0 on one core)\n"
    "  --max-connections N       turn away clients beyond these (1024)\n"
    "  --max-inflight BYTES      memory for the requests of one connection\n"
    "                            that are not answered yet (64M)\n"
    "  --handshake-timeout SECS  drop clients that negotiate for longer (10)\n"
    "  --stop-timeout SECS       drop clients that take longer for their last\n"
    "                            replies when the server stops (30)\n"
    "  --pid-file PATH           write the process number there when ready\n"
    "  --log-level LEVEL         error, warning, info (default) or debug\n"
    "  --direct                  bypass the page cache where that can be had\n"
    "  --help, --version         print this, or the version\n"
    "\n"
    "With LISTEN_FDS and LISTEN_PID in the environment the sockets that the\n"
    "service manager has opened are served, too.\n"
    "\n"
    "Example:\n"
    "  coaio-nbd --unix /run/disk.sock --export disk=disk.img\n"
    "  nbdinfo 'nbd+unix:///disk?socket=/run/disk.sock'\n";

/* Prints the one line.  Returns what the parser then returns. */
__attribute__((format(printf, 1, 2))) static OptionsResult
usage(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fputs("coaio-nbd: ", stderr);
    vfprintf(stderr, fmt, args);
    fputs(" (see coaio-nbd --help)\n", stderr);
    va_end(args);
    return OPTIONS_USAGE;
}

/* Makes room for one more element behind the n that are there. */
static void *grown(void *array, size_t n, size_t element)
{
    return must(reallocarray(array, n + 1, element));
}

static OptionsResult parse_tcp(Options *options, const char *arg)
{
    const char *colon = strrchr(arg, ':');
    size_t length = colon ? (size_t)(colon - arg) : 0;
    uint64_t port;
    TcpSpec *spec;

    if (!colon || !number_parse(colon + 1, 0, 65535, &port)) {
        return usage("--tcp %s: not of the form ADDRESS:PORT", arg);
    }
    if (length > 0 && arg[0] == '[') {
        if (length < 2 || arg[length - 1] != ']') {
            return usage("--tcp %s: bracket without a partner", arg);
        }
        arg++;
        length -= 2;
    } else if (memchr(arg, ':', length)) {
        return usage("--tcp %s: put the IPv6 address in brackets", arg);
    }
    options->tcp = grown(options->tcp, options->n_tcp, sizeof(*spec));
    spec = &options->tcp[options->n_tcp++];
    spec->address = must(strndup(arg, length));
    spec->port = must(strdup(colon + 1));
    return OPTIONS_RUN;
}

/* The protocol wants names in UTF-8.  mbstowcs() would depend on the locale. */
static bool is_utf8(const char *text, size_t length)
{
    const unsigned char *p = (const unsigned char *)text;
    const unsigned char *end = p + length;

    while (p < end) {
        uint32_t code = *p++;
        int more = code < 0x80 ? 0 : code < 0xe0 ? 1 : code < 0xf0 ? 2 : 3;
        static const uint32_t least[] = { 0, 0x80, 0x800, 0x10000 };

        if ((code >= 0x80 && code < 0xc2) || code > 0xf4 || end - p < more) {
            return false;
        }
        code &= 0x7f >> more;
        for (int i = 0; i < more; i++) {
            if ((*p & 0xc0) != 0x80) {
                return false;
            }
            code = code << 6 | (*p++ & 0x3f);
        }
        if (code < least[more] || code > 0x10ffff ||
            (code >= 0xd800 && code < 0xe000)) {
            return false;
        }
    }
    return true;
}

/* Takes ",ro" off the source, and the size out of it where it has one. */
static OptionsResult parse_source(ExportSpec *spec)
{
    size_t length = strlen(spec->source);
    const char *size;

    if (length > 3 && strcmp(spec->source + length - 3, ",ro") == 0) {
        spec->read_only = true;
        spec->source[length - 3] = '\0';
    }
    if (strncmp(spec->source, "memory:", 7) == 0) {
        spec->kind = EXPORT_MEMORY;
        size = spec->source + 7;
    } else if (strncmp(spec->source, "null:", 5) == 0) {
        spec->kind = EXPORT_NULL;
        size = spec->source + 5;
    } else {
        spec->kind = EXPORT_FILE;
        return OPTIONS_RUN;
    }
    if (!size_parse(size, &spec->size)) {
        return usage("--export %s=%s: %s is not a size", spec->name,
                     spec->source, *size ? size : "nothing");
    }
    return OPTIONS_RUN;
}

static OptionsResult parse_export(Options *options, const char *arg)
{
    const char *equals = strchr(arg, '=');
    size_t name_length;
    ExportSpec *spec;

    if (!equals || equals == arg || !equals[1]) {
        return usage("--export %s: not of the form NAME=SOURCE[,ro]", arg);
    }
    name_length = (size_t)(equals - arg);
    if (name_length > NBD_STRING_MAX) {
        return usage("--export: the name has %zu bytes, more than %d",
                     name_length, NBD_STRING_MAX);
    }
    if (!is_utf8(arg, name_length)) {
        return usage("--export: the name is not valid UTF-8");
    }
    for (size_t i = 0; i < options->n_exports; i++) {
        const char *other = options->exports[i].name;

        if (strlen(other) == name_length &&
            memcmp(other, arg, name_length) == 0) {
            return usage("--export %s: two exports of that name", arg);
        }
    }
    options->exports = grown(options->exports, options->n_exports,
                             sizeof(*spec));
    spec = &options->exports[options->n_exports++];
    memset(spec, 0, sizeof(*spec));
    spec->name = must(strndup(arg, name_length));
    spec->source = must(strdup(equals + 1));
    return parse_source(spec);
}

static OptionsResult parse_number(const char *option, const char *arg,
                                  uint64_t min, uint64_t max, uint64_t *number)
{
    if (!number_parse(arg, min, max, number)) {
        return usage("--%s %s: not a number from %llu to %llu", option, arg,
                     (unsigned long long)min, (unsigned long long)max);
    }
    return OPTIONS_RUN;
}

/* The options whose argument is a number. */
static OptionsResult parse_limit(Options *options, int c, const char *arg)
{
    OptionsResult result;
    uint64_t n = 0;

    switch (c) {
    case OPT_THREADS:
        result = parse_number("threads", arg, 1, MAX_THREADS, &n);
        options->threads = (unsigned)n;
        return result;
    case OPT_BUSY_POLL:
        result = parse_number("busy-poll", arg, 0, MAX_BUSY_POLL, &n);
        options->busy_poll_ns = (int64_t)n * NS_PER_US;
        return result;
    case OPT_MAX_CONNECTIONS:
        result = parse_number("max-connections", arg, 1, MAX_CONNECTIONS, &n);
        options->max_connections = (size_t)n;
        return result;
    case OPT_HANDSHAKE_TIMEOUT:
        result = parse_number("handshake-timeout", arg, 1, MAX_HANDSHAKE, &n);
        options->handshake_timeout_ns = (int64_t)n * NS_PER_SECOND;
        return result;
    case OPT_STOP_TIMEOUT:
        result = parse_number("stop-timeout", arg, 1, MAX_STOP, &n);
        options->stop_timeout_ns = (int64_t)n * NS_PER_SECOND;
        return result;
    default:
        if (!size_parse(arg, &options->max_inflight) ||
            options->max_inflight == 0) {
            return usage("--max-inflight %s: not a size", arg);
        }
        return OPTIONS_RUN;
    }
}

static OptionsResult parse_one(Options *options, int c, char *arg)
{
    switch (c) {
    case OPT_UNIX:
        if (!*arg) {
            return usage("--unix: the path is empty");
        }
        options->unix_paths = grown(options->unix_paths, options->n_unix_paths,
                                    sizeof(*options->unix_paths));
        options->unix_paths[options->n_unix_paths++] = arg;
        return OPTIONS_RUN;
    case OPT_TCP:
        return parse_tcp(options, arg);
    case OPT_EXPORT:
        return parse_export(options, arg);
    case OPT_DEFAULT_EXPORT:
        options->default_export = arg;
        return OPTIONS_RUN;
    case OPT_PID_FILE:
        options->pid_file = arg;
        return OPTIONS_RUN;
    case OPT_LOG_LEVEL:
        if (!log_level_parse(arg, &options->log_level)) {
            return usage("--log-level %s: not one of error, warning, info, "
                         "debug", arg);
        }
        return OPTIONS_RUN;
    case OPT_DIRECT:
        options->direct = true;
        return OPTIONS_RUN;
    default:
        return parse_limit(options, c, arg);
    }
}

static unsigned count_cores(void)
{
    cpu_set_t set;
    int n;

    if (sched_getaffinity(0, sizeof(set), &set) < 0) {
        return 1;
    }
    n = CPU_COUNT(&set);
    return n > MAX_THREADS ? MAX_THREADS : (unsigned)n;
}

/* What one option alone does not show. */
static OptionsResult check_whole(const Options *options, bool sockets_given)
{
    if (options->n_exports == 0) {
        return usage("nothing to serve: give at least one --export");
    }
    if (options->n_unix_paths + options->n_tcp == 0 && !sockets_given) {
        return usage("nowhere to listen: give --unix or --tcp");
    }
    if (options->default_export) {
        for (size_t i = 0; i < options->n_exports; i++) {
            if (!strcmp(options->exports[i].name, options->default_export)) {
                return OPTIONS_RUN;
            }
        }
        return usage("--default-export %s: no export of that name",
                     options->default_export);
    }
    return OPTIONS_RUN;
}

OptionsResult options_parse(Options *options, int argc, char **argv,
                            bool sockets_given)
{
    OptionsResult result;
    int c;

    memset(options, 0, sizeof(*options));
    options->threads = count_cores();
    /* On one core the client would have to wait for the end of it. */
    options->busy_poll_ns =
        count_cores() > 1 ? DEFAULT_BUSY_POLL * NS_PER_US : 0;
    options->max_connections = DEFAULT_CONNECTIONS;
    options->max_inflight = DEFAULT_INFLIGHT;
    options->handshake_timeout_ns = DEFAULT_HANDSHAKE * NS_PER_SECOND;
    options->stop_timeout_ns = DEFAULT_STOP * NS_PER_SECOND;
    options->log_level = LOG_LEVEL_INFO;

    while ((c = getopt_long(argc, argv, ":", long_options, NULL)) != -1) {
        const char *culprit = argv[optind - 1];

        switch (c) {
        case OPT_HELP:
            fputs(help_text, stdout);
            return OPTIONS_EXIT;
        case OPT_VERSION:
            puts("coaio-nbd " COAIO_NBD_VERSION);
            return OPTIONS_EXIT;
        case ':':
            return usage("%s: the argument is missing", culprit);
        case '?':
            if (optopt > 0 && optopt < OPT_UNIX) {
                return usage("-%c: no such option", optopt);
            }
            return usage("%s: no such option, or not of this form", culprit);
        default:
            result = parse_one(options, c, optarg);
            if (result != OPTIONS_RUN) {
                return result;
            }
        }
    }
    if (optind < argc) {
        return usage("%s: not an option", argv[optind]);
    }
    return check_whole(options, sockets_given);
}

void options_clear(Options *options)
{
    for (size_t i = 0; i < options->n_tcp; i++) {
        free(options->tcp[i].address);
        free(options->tcp[i].port);
    }
    for (size_t i = 0; i < options->n_exports; i++) {
        free(options->exports[i].name);
        free(options->exports[i].source);
    }
    free(options->unix_paths);
    free(options->tcp);
    free(options->exports);
}
