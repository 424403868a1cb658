/* SPDX-License-Identifier: MIT */
/*
 * The system calls of I/O, one function each.
 *
 * Guarantees: the result or -errno; each call is made once (EINTR is the
 * caller's); sockets never raise SIGPIPE; what is opened is close-on-exec.
 * The *_nowait calls say by the result that they would have blocked, whatever
 * O_NONBLOCK says: a user's fd is never changed.
 *
 * The kernel's writes into the caller's buffers need no help here: the C
 * library's functions are known to the sanitizers and to Valgrind.
 */
#include "os/file.h"

#include "base/compiler.h"
#include "os/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

/*
 * The value of expression, a system call, or -errno.  In test builds it is
 * counted, recorded, and may be made to fail instead.
 */
#define IO_CALL(call, fd, offset, expression)         \
    ({                                                \
        ssize_t result_ = -os_fault(call);            \
                                                      \
        os_count(OS_COUNT_SYSCALLS);                  \
        os_record(call, fd, offset, 0, true);         \
        if (result_ == 0) {                           \
            result_ = (expression);                   \
            result_ = result_ < 0 ? -errno : result_; \
        }                                             \
        os_record(call, fd, offset, result_, false);  \
        result_;                                      \
    })

ssize_t os_read(int fd, void *buf, size_t count)
{
    return IO_CALL("read", fd, -1, read(fd, buf, count));
}

ssize_t os_write(int fd, const void *buf, size_t count)
{
    return IO_CALL("write", fd, -1, write(fd, buf, count));
}

ssize_t os_readv(int fd, const struct iovec *iov, int iovcnt)
{
    return IO_CALL("readv", fd, -1, readv(fd, iov, iovcnt));
}

ssize_t os_writev(int fd, const struct iovec *iov, int iovcnt)
{
    return IO_CALL("writev", fd, -1, writev(fd, iov, iovcnt));
}

ssize_t os_preadv(int fd, const struct iovec *iov, int iovcnt, off_t offset)
{
    return IO_CALL("preadv", fd, offset, preadv(fd, iov, iovcnt, offset));
}

ssize_t os_pwritev(int fd, const struct iovec *iov, int iovcnt, off_t offset)
{
    return IO_CALL("pwritev", fd, offset, pwritev(fd, iov, iovcnt, offset));
}

/* A kernel without preadv2(2) and pwritev2(2) does not support it either. */
static ssize_t nowait_result(ssize_t result)
{
    return result == -ENOSYS ? -EOPNOTSUPP : result;
}

ssize_t os_preadv_nowait(int fd, const struct iovec *iov, int iovcnt,
                         off_t offset)
{
    return nowait_result(IO_CALL("preadv", fd, offset,
                                 preadv2(fd, iov, iovcnt, offset, RWF_NOWAIT)));
}

ssize_t os_pwritev_nowait(int fd, const struct iovec *iov, int iovcnt,
                          off_t offset)
{
    return nowait_result(IO_CALL(
        "pwritev", fd, offset, pwritev2(fd, iov, iovcnt, offset, RWF_NOWAIT)));
}

ssize_t os_recvmsg_nowait(int fd, struct msghdr *msg, int flags)
{
    flags |= MSG_DONTWAIT | MSG_CMSG_CLOEXEC;
    return IO_CALL("recvmsg", fd, -1, recvmsg(fd, msg, flags));
}

ssize_t os_sendmsg_nowait(int fd, const struct msghdr *msg, int flags)
{
    flags |= MSG_DONTWAIT | MSG_NOSIGNAL;
    return IO_CALL("sendmsg", fd, -1, sendmsg(fd, msg, flags));
}

ssize_t os_recv_nowait(int fd, void *buf, size_t count, int flags)
{
    flags |= MSG_DONTWAIT;
    return IO_CALL("recv", fd, -1, recv(fd, buf, count, flags));
}

ssize_t os_send_nowait(int fd, const void *buf, size_t count, int flags)
{
    flags |= MSG_DONTWAIT | MSG_NOSIGNAL;
    return IO_CALL("send", fd, -1, send(fd, buf, count, flags));
}

ssize_t os_recvmsg(int fd, struct msghdr *msg, int flags)
{
    flags |= MSG_CMSG_CLOEXEC;
    return IO_CALL("recvmsg", fd, -1, recvmsg(fd, msg, flags));
}

ssize_t os_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    flags |= MSG_NOSIGNAL;
    return IO_CALL("sendmsg", fd, -1, sendmsg(fd, msg, flags));
}

int os_accept(int fd, struct sockaddr *addr, socklen_t *addrlen, int flags)
{
    flags |= SOCK_CLOEXEC;
    return (int)IO_CALL("accept", fd, -1, accept4(fd, addr, addrlen, flags));
}

int os_connect(int fd, const struct sockaddr *addr, socklen_t addrlen)
{
    return (int)IO_CALL("connect", fd, -1, connect(fd, addr, addrlen));
}

/* Returns 0 or -errno. */
static int get_option_of(int fd, int name, void *value, socklen_t size)
{
    int error = os_fault("getsockopt");

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return -error;
    }
    return getsockopt(fd, SOL_SOCKET, name, value, &size) ? -errno : 0;
}

static int get_option(int fd, int name, int *value)
{
    return get_option_of(fd, name, value, sizeof(*value));
}

int os_socket_error(int fd)
{
    int error = 0;
    int ret = get_option(fd, SO_ERROR, &error);

    return ret < 0 ? ret : -error;
}

int os_socket_type(int fd)
{
    int type = 0;
    int ret = get_option(fd, SO_TYPE, &type);

    return ret < 0 ? ret : type;
}

int os_socket_listens(int fd)
{
    int listens = 0, family = 0;
    int ret = get_option(fd, SO_ACCEPTCONN, &listens);

    if (ret < 0 || listens) {
        return ret < 0 ? ret : 1;
    }
    /* Of Bluetooth and AF_IUCV it is 0 always: they have states of their own
     * for what listens. */
    ret = get_option(fd, SO_DOMAIN, &family);
    if (ret < 0) {
        return ret;
    }
    return family != AF_UNIX && family != AF_INET && family != AF_INET6 &&
           family != AF_VSOCK;
}

int os_socket_lingers(int fd)
{
    struct linger linger = {.l_onoff = 0};
    int ret = get_option_of(fd, SO_LINGER, &linger, sizeof(linger));

    return ret < 0 ? ret : linger.l_onoff && linger.l_linger > 0;
}

void os_shutdown(int fd)
{
    os_count(OS_COUNT_SYSCALLS);
    if (!os_fault("shutdown")) {
        shutdown(fd, SHUT_RDWR);
    }
}

int os_fsync(int fd)
{
    return (int)IO_CALL("fsync", fd, -1, fsync(fd));
}

int os_fdatasync(int fd)
{
    return (int)IO_CALL("fdatasync", fd, -1, fdatasync(fd));
}

int os_fallocate(int fd, int mode, off_t offset, off_t length)
{
    return (int)IO_CALL("fallocate", fd, offset,
                        fallocate(fd, mode, offset, length));
}

int os_close(int fd)
{
    int error = os_fault("close");
    int result;

    os_count(OS_COUNT_SYSCALLS);
    os_record("close", fd, -1, 0, true);
    if (close(fd) && !error) {
        error = errno;
    }
    /* The number is free again afterwards, even if this says EINTR. */
    result = error == EINTR ? 0 : -error;
    os_record("close", fd, -1, result, false);
    return result;
}

int os_dup(int fd)
{
    int error = os_fault("dup");
    int other;

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return -error;
    }
    other = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return other < 0 ? -errno : other;
}

bool os_file_in_memory(int fd)
{
    struct statfs fs;

    os_count(OS_COUNT_SYSCALLS);
    if (os_fault("fstatfs") || fstatfs(fd, &fs)) {
        return false;
    }
    /* The type of f_type differs between machines, in sign and in size. */
    switch ((uint32_t)fs.f_type) {
    case TMPFS_MAGIC:
    case RAMFS_MAGIC:
    case HUGETLBFS_MAGIC:
        return true;
    default:
        return false;
    }
}

/*
 * None of it changes while the file is open: what was known then will do.
 * Without DONT_SYNC, NFS asks the server.
 */
static bool look_without_sync(int fd, struct stat *st)
{
    const unsigned wanted = STATX_TYPE | STATX_INO;
    struct statx stx;

    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, wanted, &stx) ||
        (stx.stx_mask & wanted) != wanted) {
        return false;
    }
    st->st_mode = stx.stx_mode;
    st->st_ino = stx.stx_ino;
    st->st_dev = makedev(stx.stx_dev_major, stx.stx_dev_minor);
    return true;
}

/* The type, the inode and the device of fd.  Returns 0 or -errno. */
static int look_at(int fd, struct stat *st)
{
    int error = os_fault("statx");

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return -error;
    }
    if (look_without_sync(fd, st)) {
        return 0;
    }
    /* Old kernels have no such call, and old sandboxes forbid it. */
    os_count(OS_COUNT_SYSCALLS);
    return fstat(fd, st) ? -errno : 0;
}

static OsFileKind kind_of(mode_t mode)
{
    if (S_ISREG(mode) || S_ISBLK(mode) || S_ISDIR(mode)) {
        return OS_FILE_REGULAR;
    }
    return S_ISSOCK(mode) ? OS_FILE_SOCKET : OS_FILE_STREAM;
}

int os_file_status(int fd, OsFileStatus *status)
{
    struct stat st;
    int ret = look_at(fd, &st);

    if (ret < 0) {
        return ret;
    }
    status->kind = kind_of(st.st_mode);
    status->may_be_memory = S_ISREG(st.st_mode) && major(st.st_dev) == 0;
    status->device = S_ISBLK(st.st_mode);
    status->character = S_ISCHR(st.st_mode);
    status->serial = ((uint64_t)st.st_dev << 32 | (uint64_t)st.st_dev >> 32) ^
                     (uint64_t)st.st_ino * UINT64_C(0x9e3779b97f4a7c15) ^
                     (st.st_mode & S_IFMT);
    return 0;
}

int os_file_flags(int fd)
{
    int error = os_fault("fcntl");
    int flags;

    os_count(OS_COUNT_SYSCALLS);
    if (error) {
        return -error;
    }
    flags = fcntl(fd, F_GETFL);
    return flags < 0 ? -errno : flags;
}

int os_file_nonblocking(int fd)
{
    int flags = os_file_flags(fd);

    return flags < 0 ? flags : (flags & O_NONBLOCK) != 0;
}
