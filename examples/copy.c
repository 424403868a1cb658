/* SPDX-License-Identifier: MIT */
/* copy SOURCE TARGET: eight coroutines, each of which takes the next piece. */
#include <coaio/coaio.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define PIECE 32768 /* fits a stack of 64 KiB */

typedef struct Copy {
    int source, target;
    off_t next; /* where the next piece begins */
    int error;  /* negative; or 0; or 1 while it runs */
} Copy;

/* Returns the number of bytes, 0 at the end of the file, or the error. */
static ssize_t coroutine_fn copy_some(Copy *copy, off_t offset, size_t length)
{
    char data[PIECE];
    ssize_t n = co_pread(copy->source, data, length, offset), written;

    for (ssize_t done = 0; done < n; done += written) {
        written = co_pwrite(copy->target, data + done, (size_t)(n - done),
                            offset + done);
        if (written < 0) {
            return written;
        }
    }
    return n;
}

static int coroutine_fn copy_pieces(void *opaque)
{
    Copy *copy = opaque;
    ssize_t n;

    do {
        off_t offset = copy->next, end = offset + PIECE;

        copy->next = end; /* no other coroutine has run since it was read */
        do {
            n = copy_some(copy, offset, (size_t)(end - offset));
        } while (n > 0 && (offset += n) < end);
    } while (n > 0);
    return (int)n;
}

static void coroutine_fn run(void *opaque)
{
    Copy *copy = opaque;
    CoGroup group = { 0 };
    int ret = co_group_run(&group, NULL, copy_pieces, copy);

    for (int i = 1; i < 8 && ret == 0; i++) {
        co_group_run(&group, NULL, copy_pieces, copy); /* or without it */
    }
    copy->error = ret < 0 ? ret : co_group_wait(&group); /* the first, or 0 */
}

int main(int argc, char **argv)
{
    Copy copy = { .error = 1 };
    AioContext *ctx = aio_context_main();

    errno = EINVAL;
    if (argc != 3 || (copy.source = open(argv[1], O_RDONLY)) < 0 ||
        (copy.target = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0666)) < 0) {
        perror("copy SOURCE TARGET");
        return 2;
    }
    coroutine_enter(coroutine_create(run, &copy));
    while (copy.error > 0) {
        aio_poll(ctx, true);
    }
    printf("%s\n", strerror(-copy.error));
    return copy.error < 0;
}
