/* SPDX-License-Identifier: MIT */
/*
 * replay DIRECTORY: gives each file of the corpus to the target that is linked
 * with this, in a process of its own; prints TAP.
 *
 * This is how the corpus is run without libFuzzer, by any compiler.
 */
#include "fuzz.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE_MAX_ ((size_t)1 << 20)

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

/* In the child.  The bytes lie at the end of a block, where a tool notices
 * who reads on. */
static void run(const char *directory, const char *name)
{
    static uint8_t bytes[SIZE_MAX_];
    char path[4096];
    size_t size;
    uint8_t *copy;
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    file = fopen(path, "rb");
    EXPECT(file, "%s cannot be opened", path);
    size = fread(bytes, 1, sizeof(bytes), file);
    EXPECT(!ferror(file) && feof(file), "%s cannot be read wholly", path);
    fclose(file);
    copy = malloc(size ? size : 1);
    EXPECT(copy, "no memory for %s", path);
    memcpy(copy, bytes, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
    exit(EXIT_SUCCESS);
}

static bool runs(const char *directory, const char *name)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        run(directory, name);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

int main(int argc, char **argv)
{
    struct dirent **entries;
    bool good = true;
    int n;

    if (argc != 2 || (n = scandir(argv[1], &entries, is_visible,
                                  alphasort)) < 0) {
        fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
        return 2;
    }
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("1..%d\n", n);
    for (int i = 0; i < n; i++) {
        bool ok = runs(argv[1], entries[i]->d_name);

        printf("%s %d - %s\n", ok ? "ok" : "not ok", i + 1,
               entries[i]->d_name);
        good &= ok;
        free(entries[i]);
    }
    free(entries);
    return good && n > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
