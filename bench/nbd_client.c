/* SPDX-License-Identifier: MIT */
/*
 * nbd_client.c: see nbd_client.h.
 */
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "nbd_client.h"
#include "nbd_wire.h"

void die(const char *format, ...)
{
    va_list args;

    fputs("nbdload: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

void nbd_send_all(int fd, const void *data, size_t length)
{
    const uint8_t *p = data;

    while (length) {
        ssize_t n = send(fd, p, length, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            die("send: %s", strerror(errno));
        }
        p += n;
        length -= (size_t)n;
    }
}

static void nbd_receive_all(int fd, void *data, size_t length)
{
    uint8_t *p = data;

    while (length) {
        ssize_t n = recv(fd, p, length, MSG_WAITALL);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            die("receive: %s", strerror(errno));
        }
        if (n == 0) {
            die("the server closed the connection during the handshake");
        }
        p += n;
        length -= (size_t)n;
    }
}

int nbd_connect_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (strlen(path) >= sizeof(address.sun_path)) {
        die("%s: the path is too long for a UNIX socket", path);
    }
    memcpy(address.sun_path, path, strlen(path));
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address))) {
        die("%s: %s", path, strerror(errno));
    }
    return fd;
}

int nbd_connect_tcp(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *list;
    int fd = -1, one = 1, error = getaddrinfo(host, port, &hints, &list);

    if (error) {
        die("%s:%s: %s", host, port, gai_strerror(error));
    }
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC,
                    a->ai_protocol);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen)) {
            error = errno;
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    if (fd < 0) {
        die("%s:%s: %s", host, port, strerror(error));
    }
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))) {
        die("TCP_NODELAY: %s", strerror(errno));
    }
    return fd;
}

static void send_option(int fd, uint32_t option, const void *data,
                        uint32_t length)
{
    uint8_t head[16];

    nbd_put64(head, NBD_IHAVEOPT);
    nbd_put32(head + 8, option);
    nbd_put32(head + 12, length);
    nbd_send_all(fd, head, sizeof(head));
    nbd_send_all(fd, data, length);
}

/* Returns the type of the reply; its data is in *data (NUL-terminated). */
static uint32_t receive_option(int fd, uint32_t option, uint8_t *data,
                               uint32_t capacity, uint32_t *length)
{
    uint8_t head[20];

    nbd_receive_all(fd, head, sizeof(head));
    if (nbd_get64(head) != NBD_OPTION_REPLY || nbd_get32(head + 8) != option) {
        die("not a reply to option %" PRIu32, option);
    }
    *length = nbd_get32(head + 16);
    if (*length >= capacity) {
        die("a reply to option %" PRIu32 " of %" PRIu32 " bytes", option,
            *length);
    }
    nbd_receive_all(fd, data, *length);
    data[*length] = 0;
    return nbd_get32(head + 12);
}

static void negotiate_go(int fd, const char *name, uint64_t *size,
                         uint16_t *export_flags)
{
    size_t name_length = strlen(name);
    uint8_t data[4096 + 6], reply[8192];
    uint32_t type, length;

    if (name_length > 4096) {
        die("an export's name has at most 4096 bytes");
    }
    *size = 0;
    nbd_put32(data, (uint32_t)name_length);
    memcpy(data + 4, name, name_length);
    nbd_put16(data + 4 + name_length, 0);
    send_option(fd, NBD_OPT_GO, data, (uint32_t)name_length + 6);
    for (;;) {
        type = receive_option(fd, NBD_OPT_GO, reply, sizeof(reply), &length);
        if (type == NBD_REP_ACK) {
            break;
        }
        if (type != NBD_REP_INFO) {
            die("export \"%s\": the server says %#" PRIx32 " %s", name, type,
                (const char *)reply);
        }
        if (length == 12 && nbd_get16(reply) == 0) {
            *size = nbd_get64(reply + 2);
            *export_flags = nbd_get16(reply + 10);
        }
    }
    if (!*size) {
        die("export \"%s\": no size given", name);
    }
}

void nbd_handshake(int fd, const char *name, bool structured, uint64_t *size,
                   uint16_t *export_flags)
{
    uint8_t greeting[18], flags[4], reply[8192];
    uint32_t length;

    nbd_receive_all(fd, greeting, sizeof(greeting));
    if (nbd_get64(greeting) != NBD_MAGIC
        || nbd_get64(greeting + 8) != NBD_IHAVEOPT) {
        die("not a newstyle NBD server");
    }
    if (!(nbd_get16(greeting + 16) & 1)) {
        die("the server lacks the fixed newstyle handshake");
    }
    nbd_put32(flags, nbd_get16(greeting + 16) & 3);
    nbd_send_all(fd, flags, sizeof(flags));
    if (structured) {
        send_option(fd, NBD_OPT_STRUCTURED, "", 0);
        if (receive_option(fd, NBD_OPT_STRUCTURED, reply, sizeof(reply),
                           &length) != NBD_REP_ACK) {
            die("the server has no structured replies");
        }
    }
    negotiate_go(fd, name, size, export_flags);
}
