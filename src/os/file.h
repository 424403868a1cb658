/* SPDX-License-Identifier: MIT */
/*
 * The system calls of I/O.  Each returns the result or a negative errno value,
 * EINTR included.  None changes errno in a way that anybody may rely on.
 *
 * In test builds each can be made to fail, and is recorded (os/fault.h).
 */
#ifndef COAIO_OS_FILE_H
#define COAIO_OS_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

ssize_t os_read(int fd, void *buf, size_t count);
ssize_t os_write(int fd, const void *buf, size_t count);
ssize_t os_readv(int fd, const struct iovec *iov, int iovcnt);
ssize_t os_writev(int fd, const struct iovec *iov, int iovcnt);
ssize_t os_preadv(int fd, const struct iovec *iov, int iovcnt, off_t offset);
ssize_t os_pwritev(int fd, const struct iovec *iov, int iovcnt, off_t offset);
/* With RWF_NOWAIT: -EAGAIN if it would block, -EOPNOTSUPP if not supported.
 * offset -1: at the file's position. */
ssize_t os_preadv_nowait(int fd, const struct iovec *iov, int iovcnt,
                         off_t offset);
ssize_t os_pwritev_nowait(int fd, const struct iovec *iov, int iovcnt,
                          off_t offset);

/* Sockets: never block, never raise SIGPIPE. */
ssize_t os_recvmsg_nowait(int fd, struct msghdr *msg, int flags);
ssize_t os_sendmsg_nowait(int fd, const struct msghdr *msg, int flags);
ssize_t os_recv_nowait(int fd, void *buf, size_t count, int flags);
ssize_t os_send_nowait(int fd, const void *buf, size_t count, int flags);
/* The same, blocking: for coroutines without a home. */
ssize_t os_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t os_sendmsg(int fd, const struct msghdr *msg, int flags);

int os_accept(int fd, struct sockaddr *addr, socklen_t *addrlen, int flags);
int os_connect(int fd, const struct sockaddr *addr, socklen_t addrlen);
/* The pending error of a socket (SO_ERROR), negative, or 0. */
int os_socket_error(int fd);

int os_fsync(int fd);
int os_fdatasync(int fd);
int os_fallocate(int fd, int mode, off_t offset, off_t length);
int os_close(int fd);

/* Another descriptor of the open file, close-on-exec; or -errno. */
int os_dup(int fd);

typedef enum OsFileKind {
    OS_FILE_REGULAR, /* a file on a disk: can block, has no readiness */
    OS_FILE_MEMORY,  /* a file on tmpfs, ramfs or hugetlbfs */
    OS_FILE_SOCKET,
    OS_FILE_STREAM, /* a pipe, terminal, ...: has readiness */
} OsFileKind;

typedef struct OsFileStatus {
    OsFileKind kind;    /* OS_FILE_REGULAR if it is in memory, too */
    bool may_be_memory; /* ask os_file_in_memory(): its file system is on no
                           device */
    bool device;        /* a block device */
    bool character;     /* a terminal or another character device */
    uint64_t serial;    /* differs between files that the number fd stood for
                           at different times: device, inode, type, mixed */
} OsFileStatus;

/*
 * What fd is, by what this machine knows of it: no server is asked, and nothing
 * is written back.  (fstat(2) may do both, and is asked where statx(2) cannot
 * be.)  Returns 0 or -errno.
 */
int os_file_status(int fd, OsFileStatus *status);

/* Whether fd, a file, is known to be on tmpfs or the like.  A server may be
 * asked for that, which blocks until it answers. */
bool os_file_in_memory(int fd);

/* 1 if O_NONBLOCK is set on fd, 0 if it is not; or -errno. */
int os_file_nonblocking(int fd);

/* The flags of the open file (O_DIRECT, O_DSYNC, ...); or -errno. */
int os_file_flags(int fd);

/* SOCK_STREAM, ...; or -errno. */
int os_socket_type(int fd);
/* 1: listen(2) was called for it, or it is of a family that is not known to
 * tell; 0; or -errno. */
int os_socket_listens(int fd);
/* 1: closing it, as its last descriptor, may wait until the peer has all that
 * was sent (SO_LINGER); 0; or -errno (-ENOTSOCK). */
int os_socket_lingers(int fd);
/* Have calls that block on the socket return, or not: who waits for that asks
 * again and again. */
void os_shutdown(int fd);

#endif
