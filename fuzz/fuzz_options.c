/* SPDX-License-Identifier: MIT */
/*
 * The command line: options, sizes, addresses, the sources of exports.
 *
 * Input: the arguments, a line each.
 *
 * A command line is taken with all its values within their limits, or it gets
 * the one line on stderr; sizes and numbers are what a plain model of them
 * says.
 */
#include "fuzz.h"

#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../nbd/options.h"
#include "../nbd/protocol.h"
#include "../nbd/size.h"

#define ARGUMENTS_MAX 256
#define INPUT_MAX     ((size_t)16 << 10)

static const char prefix[] = "coaio-nbd: ";
static const char suffix[] = " (see coaio-nbd --help)\n";

/* Text that a parser writes to stdout or stderr. */
typedef struct Capture {
    FILE **stream;
    FILE *real;
    char *text;
    size_t length;
} Capture;

static void capture_begin(Capture *capture, FILE **stream)
{
    capture->stream = stream;
    capture->real = *stream;
    *stream = open_memstream(&capture->text, &capture->length);
    if (!*stream) {
        *stream = capture->real;
        EXPECT(false, "no memory for a stream");
    }
}

static void capture_end(Capture *capture)
{
    fclose(*capture->stream);
    *capture->stream = capture->real;
}

/* The number that the text begins with, or 2^64 if it is larger than all. */
static unsigned __int128 model_digits(const char *text, size_t *n)
{
    unsigned __int128 most = (unsigned __int128)1 << 64;
    unsigned __int128 value = 0;

    *n = strspn(text, "0123456789");
    for (size_t i = 0; i < *n; i++) {
        value = value * 10 + (unsigned)(text[i] - '0');
        value = value < most ? value : most;
    }
    return value;
}

static void check_number(const char *text, uint64_t min, uint64_t max)
{
    uint64_t number;
    size_t n;
    unsigned __int128 model = model_digits(text, &n);
    bool good = n > 0 && !text[n] && model >= min && model <= max;

    EXPECT(number_parse(text, min, max, &number) == good,
           "%s is taken for a number, or not", text);
    EXPECT(!good || number == model, "%s is not %llu", text,
           (unsigned long long)number);
}

static void check_size(const char *text)
{
    static const char units[] = "kmgtpeKMGTPE";
    uint64_t size;
    size_t n;
    unsigned __int128 model = model_digits(text, &n);
    const char *unit = text[n] ? strchr(units, text[n]) : NULL;
    bool good = n > 0 && (!text[n] || (unit && !text[n + 1]));

    if (unit) {
        model <<= 10 * ((unit - units) % 6 + 1);
    }
    good = good && model <= INT64_MAX;
    EXPECT(size_parse(text, &size) == good, "%s is taken for a size, or not",
           text);
    EXPECT(!good || size == model, "%s is not %llu", text,
           (unsigned long long)size);
}

/* In an argument: all of it, and what follows the source of an export. */
static void check_numbers(const char *argument)
{
    const char *colon = strrchr(argument, ':');

    check_size(argument);
    check_number(argument, 1, UINT64_MAX);
    if (colon) {
        check_size(colon + 1);
        check_number(colon + 1, 0, 65535);
    }
}

/* One line that quotes what is wrong. */
static void check_complaint(const Capture *capture)
{
    const char *newline = strchr(capture->text, '\n');
    size_t length = capture->length;

    EXPECT(newline == capture->text + length - 1, "not one line");
    EXPECT(length > strlen(prefix) + strlen(suffix) &&
           strncmp(capture->text, prefix, strlen(prefix)) == 0 &&
           strcmp(capture->text + length - strlen(suffix), suffix) == 0,
           "not as lines of the program are: %s", capture->text);
}

static void check_exports(const Options *options)
{
    bool has_default = !options->default_export;

    for (size_t i = 0; i < options->n_exports; i++) {
        const ExportSpec *export = &options->exports[i];

        EXPECT(*export->name && strlen(export->name) <= NBD_STRING_MAX,
               "an export of that name");
        EXPECT(export->size <= INT64_MAX, "an export of that size");
        EXPECT(*export->source, "an export of nothing");
        for (size_t j = 0; j < i; j++) {
            EXPECT(strcmp(options->exports[j].name, export->name) != 0,
                   "two exports with the name %s", export->name);
        }
        has_default |= options->default_export &&
                       strcmp(options->default_export, export->name) == 0;
    }
    EXPECT(options->n_exports > 0 && has_default, "no such export");
}

static void check_options(const Options *options)
{
    for (size_t i = 0; i < options->n_tcp; i++) {
        check_number(options->tcp[i].port, 0, 65535);
    }
    EXPECT(options->n_unix_paths + options->n_tcp > 0, "nowhere to listen");
    EXPECT(options->threads >= 1 && options->threads <= 256, "threads");
    EXPECT(options->busy_poll_ns >= 0 &&
           options->busy_poll_ns <= INT64_C(1000000000), "time of polling");
    EXPECT(options->max_connections >= 1 &&
           options->max_connections <= 1000000, "connections");
    EXPECT(options->max_inflight >= 1 && options->max_inflight <= INT64_MAX,
           "bytes in flight");
    EXPECT(options->handshake_timeout_ns >= INT64_C(1000000000) &&
           options->handshake_timeout_ns <= INT64_C(86400000000000),
           "time for a handshake");
    EXPECT(options->stop_timeout_ns >= INT64_C(1000000000) &&
           options->stop_timeout_ns <= INT64_C(86400000000000),
           "time for the last replies");
    check_exports(options);
}

static void parse(int argc, char **argv)
{
    Capture out, err;
    Options options;
    OptionsResult result;

    capture_begin(&out, &stdout);
    capture_begin(&err, &stderr);
    optind = 0; /* as in a process that has just begun */
    result = options_parse(&options, argc, argv, false);
    capture_end(&err);
    capture_end(&out);
    EXPECT((result == OPTIONS_EXIT) == (out.length > 0), "%s on stdout",
           out.text);
    if (result == OPTIONS_USAGE) {
        check_complaint(&err);
    } else {
        EXPECT(err.length == 0, "this is no mistake: %s", err.text);
    }
    if (result == OPTIONS_RUN) {
        check_options(&options);
    }
    options_clear(&options);
    free(out.text);
    free(err.text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char text[INPUT_MAX + 1];
    char *argv[ARGUMENTS_MAX + 2] = { (char *)"coaio-nbd" };
    char *rest = text;
    int argc = 1;

    if (size > INPUT_MAX) {
        return 0;
    }
    memcpy(text, data, size);
    text[size] = '\0';
    while (rest && *rest && argc <= ARGUMENTS_MAX) {
        argv[argc++] = strsep(&rest, "\n");
    }
    for (int i = 1; i < argc; i++) {
        check_numbers(argv[i]);
    }
    parse(argc, argv);
    return 0;
}
