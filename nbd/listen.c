/* SPDX-License-Identifier: MIT */
/*
 * Listening sockets (listen.h).
 *
 * A UNIX socket whose file is there already belongs to a server that runs, if
 * somebody answers, and else to one that was killed: then it is replaced.  Two
 * servers that start at once could both find the old one dead and the second
 * remove the first one's new socket; so looking, replacing and listening are
 * done with the directory locked (flock(2), which leaves nothing behind).
 */
#include "listen.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "must.h"
#include "size.h"

/* For the lock of a directory, 10 ms each. */
#define LOCK_TRIES 100

#define PASSED_FIRST 3
#define PASSED_MAX   1024

/* Newer than the headers of Debian 12; sparc and parisc have other numbers. */
#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif

static Listener *add_listener(Listeners *listeners, int fd)
{
    Listener *l;

    listeners->items = must(reallocarray(listeners->items,
                                         listeners->count + 1, sizeof(*l)));
    l = &listeners->items[listeners->count++];
    memset(l, 0, sizeof(*l));
    l->fd = fd;
    return l;
}

/* "nbd+unix:///?socket=" and path, with what means something in a URI
 * written as %XX. */
static char *unix_uri(const char *path)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                "abcdefghijklmnopqrstuvwxyz"
                                "0123456789-._~/";
    static const char prefix[] = "nbd+unix:///?socket=";
    char *uri = must(malloc(sizeof(prefix) + 3 * strlen(path)));
    char *p = stpcpy(uri, prefix);

    for (; *path; path++) {
        if (strchr(plain, *path)) {
            *p++ = *path;
        } else {
            p += sprintf(p, "%%%02X", (unsigned char)*path);
        }
    }
    *p = '\0';
    return uri;
}

/* The URI of a listening socket that is bound already, or NULL. */
static char *uri_of(int fd)
{
    struct sockaddr_storage ss = { .ss_family = AF_UNSPEC };
    socklen_t length = sizeof(ss);
    char host[NI_MAXHOST], port[NI_MAXSERV];
    char *uri;
    int n;

    if (getsockname(fd, (struct sockaddr *)&ss, &length) < 0) {
        return NULL;
    }
    if (ss.ss_family == AF_UNIX) {
        struct sockaddr_un *sun = (struct sockaddr_un *)&ss;
        char path[sizeof(sun->sun_path) + 1] = "";

        if (length > offsetof(struct sockaddr_un, sun_path)) {
            memcpy(path, sun->sun_path,
                   length - offsetof(struct sockaddr_un, sun_path));
        }
        return unix_uri(path);
    }
    if (ss.ss_family != AF_INET && ss.ss_family != AF_INET6) {
        return NULL;
    }
    if (getnameinfo((struct sockaddr *)&ss, length, host, sizeof(host), port,
                    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        return NULL;
    }
    n = asprintf(&uri, ss.ss_family == AF_INET6 ? "nbd://[%s]:%s/"
                                                : "nbd://%s:%s/",
                 host, port);
    return n < 0 ? NULL : uri;
}

/*
 * An address is in use: whether to try again, after a while.  Of a server that
 * was killed just now, and had its sockets watched by io_uring, the kernel lets
 * go a moment after the process has ended.  Few tries, since each is a
 * connection to the server that has the socket, if there is one.
 */
static bool try_again(int ret, unsigned *tries)
{
    struct timespec pause = { .tv_nsec = 1000000L << 2 * *tries };

    if (ret != -EADDRINUSE || ++*tries > 5) {
        return false;
    }
    nanosleep(&pause, NULL);
    return true;
}

static const char *why_in_use(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode)
               ? "there is a file that is no socket"
               : "it is in use";
}

/* Whether the socket file of sun has no server any more. */
static bool is_stale(const struct sockaddr_un *sun)
{
    struct stat st;
    bool stale;
    int fd;

    if (lstat(sun->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode)) {
        return false;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return false;
    }
    stale = connect(fd, (const struct sockaddr *)sun, sizeof(*sun)) < 0 &&
            errno == ECONNREFUSED;
    close(fd);
    return stale;
}

/* Binds and listens, in place of a stale socket.  Returns 0 or -errno. */
static int bind_unix(int fd, const struct sockaddr_un *sun)
{
    const struct sockaddr *sa = (const struct sockaddr *)sun;

    if (bind(fd, sa, sizeof(*sun)) < 0) {
        if (errno != EADDRINUSE) {
            return -errno;
        }
        if (!is_stale(sun)) {
            return -EADDRINUSE;
        }
        log_line(LOG_LEVEL_INFO, "replacing the stale socket %s",
                 sun->sun_path);
        if (unlink(sun->sun_path) < 0 || bind(fd, sa, sizeof(*sun)) < 0) {
            return -errno;
        }
    }
    return listen(fd, SOMAXCONN) < 0 ? -errno : 0;
}

/*
 * Locks the directory of path against another server that replaces the same
 * stale socket.  Returns a descriptor to close, or -1.  Best effort: anybody
 * who may read the directory may hold its lock for as long as he likes.
 */
static int lock_directory(const char *path)
{
    struct timespec pause = { .tv_nsec = 10000000 };
    char *copy = must(strdup(path));
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    free(copy);
    for (int i = 0; fd >= 0 && i < LOCK_TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) {
            break;
        }
        nanosleep(&pause, NULL);
    }
    return fd;
}

/*
 * Let nobody pass descriptors to those who connect.  The kernel would close
 * them in the I/O thread, since that does not ask for them, and closing a
 * socket may take as long as whoever made it likes (SO_LINGER).  Accepted
 * sockets inherit it.  Linux 6.16 and later have it; before, there is no help.
 */
static void refuse_descriptors(int fd)
{
    int no = 0;

    setsockopt(fd, SOL_SOCKET, SO_PASSRIGHTS, &no, sizeof(no));
}

static bool open_unix(Listeners *listeners, const char *path)
{
    struct sockaddr_un sun = { .sun_family = AF_UNIX };
    struct stat st;
    unsigned tries = 0;
    Listener *l;
    int fd, lock, ret;

    if (strlen(path) >= sizeof(sun.sun_path)) {
        log_line(LOG_LEVEL_ERROR, "%s: longer than the %zu bytes that a "
                 "socket's path can have", path, sizeof(sun.sun_path) - 1);
        return false;
    }
    strcpy(sun.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        log_line(LOG_LEVEL_ERROR, "socket: %s", strerror(errno));
        return false;
    }
    refuse_descriptors(fd);
    lock = lock_directory(path);
    do {
        ret = bind_unix(fd, &sun);
    } while (try_again(ret, &tries));
    if (ret == 0) {
        l = add_listener(listeners, fd);
        l->uri = unix_uri(path);
        if (lstat(path, &st) == 0) {
            l->path = must(strdup(path));
            l->device = st.st_dev;
            l->inode = st.st_ino;
        }
    } else {
        log_line(LOG_LEVEL_ERROR, "cannot listen on %s: %s", path,
                 ret == -EADDRINUSE ? why_in_use(path) : strerror(-ret));
        close(fd);
    }
    if (lock >= 0) {
        close(lock);
    }
    return ret == 0;
}

/* Returns 0 or -errno. */
static int open_tcp_address(Listeners *listeners, const struct addrinfo *ai)
{
    int one = 1;
    int fd = socket(ai->ai_family,
                    ai->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
                    ai->ai_protocol);
    int ret;

    if (fd < 0) {
        return -errno;
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (ai->ai_family == AF_INET6) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
    }
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 ||
        listen(fd, SOMAXCONN) < 0) {
        ret = -errno;
        close(fd);
        return ret;
    }
    add_listener(listeners, fd)->uri = must(uri_of(fd));
    return 0;
}

/* Whether the list has the address of ai before ai, too: a name with two lines
 * in /etc/hosts stands for the same address twice. */
static bool is_repeated(const struct addrinfo *list, const struct addrinfo *ai)
{
    while (list != ai && (list->ai_addrlen != ai->ai_addrlen ||
                          memcmp(list->ai_addr, ai->ai_addr,
                                 ai->ai_addrlen) != 0)) {
        list = list->ai_next;
    }
    return list != ai;
}

/* Listens on every address that the name stands for. */
static bool open_tcp(Listeners *listeners, const TcpSpec *spec)
{
    struct addrinfo hints = {
        .ai_flags = AI_PASSIVE | AI_NUMERICSERV,
        .ai_socktype = SOCK_STREAM,
    };
    struct addrinfo *list;
    bool any = false;
    int ret = getaddrinfo(*spec->address ? spec->address : NULL, spec->port,
                          &hints, &list);

    if (ret != 0) {
        log_line(LOG_LEVEL_ERROR, "--tcp %s:%s: %s", spec->address, spec->port,
                 ret == EAI_SYSTEM ? strerror(errno) : gai_strerror(ret));
        return false;
    }
    ret = 0;
    for (struct addrinfo *ai = list; ai && ret == 0; ai = ai->ai_next) {
        unsigned tries = 0;

        if (is_repeated(list, ai)) {
            continue;
        }
        do {
            ret = open_tcp_address(listeners, ai);
        } while (try_again(ret, &tries));
        any |= ret == 0;
        /* A name may stand for addresses of a kind that is switched off. */
        if ((ret == -EAFNOSUPPORT || ret == -EADDRNOTAVAIL) &&
            (ai->ai_next || any)) {
            ret = 0;
        }
    }
    freeaddrinfo(list);
    if (ret < 0 || !any) {
        log_line(LOG_LEVEL_ERROR, "cannot listen on %s:%s: %s", spec->address,
                 spec->port, strerror(ret < 0 ? -ret : EADDRNOTAVAIL));
        return false;
    }
    return true;
}

unsigned listen_passed_count(void)
{
    const char *pid = getenv("LISTEN_PID");
    const char *fds = getenv("LISTEN_FDS");
    uint64_t wanted_pid, count;
    unsigned n = 0;

    if (pid && fds && number_parse(pid, 1, INT32_MAX, &wanted_pid) &&
        wanted_pid == (uint64_t)getpid() &&
        number_parse(fds, 1, PASSED_MAX, &count)) {
        n = (unsigned)count;
    }
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return n;
}

/* Takes over a socket that somebody else has bound. */
static bool open_passed(Listeners *listeners, int fd)
{
    int type = 0, listening = 0, flags;
    socklen_t length = sizeof(type);
    char *uri;

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) < 0 ||
        type != SOCK_STREAM || !listening || !(uri = uri_of(fd))) {
        log_line(LOG_LEVEL_ERROR, "LISTEN_FDS: descriptor %d is not a "
                 "listening stream socket", fd);
        return false;
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    refuse_descriptors(fd); /* where it is a UNIX socket */
    /* If another process accepts, too, ours must not block in accept(2). */
    flags = fcntl(fd, F_GETFL);
    if (flags >= 0) {
        fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    }
    add_listener(listeners, fd)->uri = uri;
    return true;
}

bool listeners_open(Listeners *listeners, const Options *options,
                    unsigned n_passed)
{
    bool ok = true;

    memset(listeners, 0, sizeof(*listeners));
    for (unsigned i = 0; ok && i < n_passed; i++) {
        ok = open_passed(listeners, PASSED_FIRST + (int)i);
    }
    for (size_t i = 0; ok && i < options->n_unix_paths; i++) {
        ok = open_unix(listeners, options->unix_paths[i]);
    }
    for (size_t i = 0; ok && i < options->n_tcp; i++) {
        ok = open_tcp(listeners, &options->tcp[i]);
    }
    if (!ok) {
        listeners_clear(listeners);
    }
    return ok;
}

void listeners_unlink(Listeners *listeners)
{
    for (size_t i = 0; i < listeners->count; i++) {
        Listener *l = &listeners->items[i];
        struct stat st;

        if (l->path && lstat(l->path, &st) == 0 &&
            st.st_dev == l->device && st.st_ino == l->inode) {
            unlink(l->path);
        }
        free(l->path);
        l->path = NULL;
    }
}

void listeners_clear(Listeners *listeners)
{
    listeners_unlink(listeners);
    for (size_t i = 0; i < listeners->count; i++) {
        if (listeners->items[i].fd >= 0) {
            close(listeners->items[i].fd);
        }
        free(listeners->items[i].uri);
    }
    free(listeners->items);
    memset(listeners, 0, sizeof(*listeners));
}
