/* SPDX-License-Identifier: MIT */
/*
 * The pid file (pidfile.h).
 */
#include "pidfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"

/* Returns 0 or -errno; path is removed again after an error. */
static int write_pid(const char *path)
{
    char text[32];
    int n = snprintf(text, sizeof(text), "%ld\n", (long)getpid());
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
                  0644);
    int ret = 0;

    if (fd < 0) {
        return -errno;
    }
    errno = EIO; /* for a short write */
    if (write(fd, text, (size_t)n) != n) {
        ret = -errno;
    }
    if (close(fd) < 0 && ret == 0) {
        ret = -errno;
    }
    if (ret < 0) {
        unlink(path);
    }
    return ret;
}

bool pidfile_write(const char *path)
{
    char *fresh;
    int ret = -ENOMEM;

    if (asprintf(&fresh, "%s.%ld", path, (long)getpid()) >= 0) {
        ret = write_pid(fresh);
        if (ret == 0 && rename(fresh, path) < 0) {
            ret = -errno;
            unlink(fresh);
        }
        free(fresh);
    }
    if (ret < 0) {
        log_line(LOG_LEVEL_ERROR, "cannot write the pid file %s: %s", path,
                 strerror(-ret));
    }
    return ret == 0;
}

void pidfile_remove(const char *path)
{
    FILE *file = fopen(path, "re");
    long pid = 0;

    if (file) {
        if (fscanf(file, "%ld", &pid) == 1 && pid == (long)getpid()) {
            unlink(path);
        }
        fclose(file);
    }
}
