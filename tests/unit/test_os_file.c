/* SPDX-License-Identifier: MIT */
/*
 * The system calls of I/O: results, what never blocks, what is never raised or
 * changed, what a file is, and that each call fails and is recorded on demand.
 */
#include "base/compiler.h"
#include "harness.h"
#include "os/fault.h"
#include "os/file.h"
#include "os/memory.h"
#include "seccomp.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

/* A file without a name on the disk that the tests run on. */
static int disk_file(void)
{
    char name[] = "os_file_XXXXXX";
    int fd = mkostemp(name, O_CLOEXEC);

    CHECK(fd >= 0);
    unlink(name);
    return fd;
}

static int memory_file(void)
{
    int fd = memfd_create("test", MFD_CLOEXEC);

    CHECK(fd >= 0);
    return fd;
}

static void stream_pair(int fds[2])
{
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
}

static void close_pair(int fds[2])
{
    CHECK_EQ(os_close(fds[0]), 0);
    CHECK_EQ(os_close(fds[1]), 0);
}

TEST(reads_and_writes)
{
    char in[8] = "", first[4], second[4];
    struct iovec out[2] = {{(void *)"abc", 3}, {(void *)"def", 3}};
    struct iovec back[2] = {{first, 3}, {second, 3}};
    int fd = disk_file();

    CHECK_EQ(os_writev(fd, out, 2), 6);
    CHECK_EQ(os_write(fd, "gh", 2), 2);
    CHECK_EQ(os_read(fd, in, 8), 0);
    CHECK_EQ(os_pwritev(fd, out + 1, 1, 0), 3);
    CHECK_EQ(os_preadv(fd, back, 2, 0), 6);
    CHECK(memcmp(first, "def", 3) == 0 && memcmp(second, "def", 3) == 0);
    CHECK_EQ(lseek(fd, 1, SEEK_SET), 1);
    CHECK_EQ(os_readv(fd, back, 2), 6);
    CHECK(memcmp(first, "efd", 3) == 0 && memcmp(second, "efg", 3) == 0);
    CHECK_EQ(os_fsync(fd), 0);
    CHECK_EQ(os_fdatasync(fd), 0);
    CHECK_EQ(os_close(fd), 0);
}

/* A kernel, or an emulator, without preadv2(2) supports no RWF_NOWAIT. */
static int refusal_of_nowait(void)
{
    return syscall(SYS_preadv2, -1, NULL, 0, 0, 0, 0) < 0 && errno == ENOSYS
               ? -EOPNOTSUPP
               : -EBADF;
}

TEST(errors_are_negative)
{
    struct iovec iov = {NULL, 0};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    struct sockaddr address = {.sa_family = AF_UNIX};
    OsFileStatus status;

    CHECK_EQ(os_read(-1, NULL, 0), -EBADF);
    CHECK_EQ(os_write(-1, "", 1), -EBADF);
    CHECK_EQ(os_readv(-1, &iov, 1), -EBADF);
    CHECK_EQ(os_writev(-1, &iov, 1), -EBADF);
    CHECK_EQ(os_preadv(-1, &iov, 1, 0), -EBADF);
    CHECK_EQ(os_pwritev(-1, &iov, 1, 0), -EBADF);
    CHECK_EQ(os_preadv_nowait(-1, &iov, 1, 0), refusal_of_nowait());
    CHECK_EQ(os_pwritev_nowait(-1, &iov, 1, 0), refusal_of_nowait());
    CHECK_EQ(os_recvmsg(-1, &msg, 0), -EBADF);
    CHECK_EQ(os_sendmsg(-1, &msg, 0), -EBADF);
    CHECK_EQ(os_recvmsg_nowait(-1, &msg, 0), -EBADF);
    CHECK_EQ(os_sendmsg_nowait(-1, &msg, 0), -EBADF);
    CHECK_EQ(os_recv_nowait(-1, NULL, 0, 0), -EBADF);
    CHECK_EQ(os_send_nowait(-1, "", 1, 0), -EBADF);
    CHECK_EQ(os_accept(-1, NULL, NULL, 0), -EBADF);
    CHECK_EQ(os_connect(-1, &address, sizeof(address)), -EBADF);
    CHECK_EQ(os_socket_error(-1), -EBADF);
    CHECK_EQ(os_fsync(-1), -EBADF);
    CHECK_EQ(os_fdatasync(-1), -EBADF);
    CHECK_EQ(os_fallocate(-1, 0, 0, 1), -EBADF);
    CHECK_EQ(os_close(-1), -EBADF);
    CHECK_EQ(os_file_status(-1, &status), -EBADF);
    CHECK_EQ(os_file_flags(-1), -EBADF);
    CHECK_EQ(os_file_nonblocking(-1), -EBADF);
    CHECK_EQ(os_socket_type(-1), -EBADF);
}

/*
 * What a file system says to RWF_NOWAIT differs; what must hold is that it is
 * one of three things, and that the data is right where it did something.
 */
static void check_nowait(int fd)
{
    char data[512], back[512] = "";
    struct iovec out = {data, sizeof(data)}, in = {back, sizeof(back)};
    ssize_t n;

    memset(data, 'x', sizeof(data));
    n = os_pwritev_nowait(fd, &out, 1, 4096);
    CHECK(n == sizeof(data) || n == -EAGAIN || n == -EOPNOTSUPP);
    CHECK_EQ(os_pwritev(fd, &out, 1, 4096), sizeof(data));
    n = os_preadv_nowait(fd, &in, 1, 4096);
    CHECK(n == sizeof(back) || n == -EAGAIN || n == -EOPNOTSUPP);
    CHECK(n < 0 || memcmp(back, data, sizeof(back)) == 0);

    /* At the file's position, which moves by what was done. */
    CHECK_EQ(lseek(fd, 4000, SEEK_SET), 4000);
    n = os_preadv_nowait(fd, &in, 1, -1);
    CHECK(n == sizeof(back) || n == -EAGAIN || n == -EOPNOTSUPP);
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), n > 0 ? 4000 + n : 4000);
    CHECK_EQ(os_close(fd), 0);
}

TEST(nowait_on_a_disk)
{
    check_nowait(disk_file());
}

TEST(nowait_in_memory)
{
    check_nowait(memory_file());
}

TEST(sockets_do_not_block)
{
    char byte = 'x', block[4096] = "";
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    int fds[2];
    ssize_t n;

    stream_pair(fds);
    CHECK_EQ(os_file_nonblocking(fds[0]), 0);
    CHECK_EQ(os_recv_nowait(fds[0], &byte, 1, 0), -EAGAIN);
    CHECK_EQ(os_recvmsg_nowait(fds[0], &msg, 0), -EAGAIN);
    do {
        n = os_send_nowait(fds[0], block, sizeof(block), 0);
    } while (n > 0);
    CHECK_EQ(n, -EAGAIN);
    while (os_sendmsg_nowait(fds[0], &msg, 0) > 0) {
    }
    CHECK_EQ(os_sendmsg_nowait(fds[0], &msg, 0), -EAGAIN);
    CHECK_EQ(os_recv_nowait(fds[1], &byte, 1, 0), 1);
    CHECK_EQ(os_file_nonblocking(fds[0]), 0);
    close_pair(fds);
}

TEST(sends_raise_no_signal)
{
    struct iovec iov = {(void *)"x", 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    int fds[2];

    stream_pair(fds);
    CHECK_EQ(os_close(fds[1]), 0);
    CHECK_EQ(os_send_nowait(fds[0], "x", 1, 0), -EPIPE);
    CHECK_EQ(os_sendmsg_nowait(fds[0], &msg, 0), -EPIPE);
    CHECK_EQ(os_sendmsg(fds[0], &msg, 0), -EPIPE);
    CHECK_EQ(os_close(fds[0]), 0);
}

TEST(accepted_sockets_are_closed_on_exec)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t size = sizeof(address.sun_family);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fd;

    /* Without a path the kernel makes up a name in no file system. */
    CHECK(bind(listener, (struct sockaddr *)&address, size) == 0);
    CHECK(listen(listener, 1) == 0);
    size = sizeof(address);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    CHECK_EQ(os_connect(client, (struct sockaddr *)&address, size), 0);
    CHECK_EQ(os_socket_error(client), 0);
    fd = os_accept(listener, NULL, NULL, 0);
    CHECK(fd >= 0);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    CHECK_EQ(os_file_nonblocking(fd), 0);
    CHECK_EQ(os_close(fd), 0);
    CHECK_EQ(os_close(client), 0);
    CHECK_EQ(os_close(listener), 0);
}

TEST(received_descriptors_are_closed_on_exec)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {.bytes = ""};
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    struct cmsghdr *header = CMSG_FIRSTHDR(&msg);
    int fds[2], fd = 0;

    stream_pair(fds);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(fd));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    CHECK_EQ(os_sendmsg(fds[0], &msg, 0), 1);
    memset(&control, 0, sizeof(control));
    CHECK_EQ(os_recvmsg_nowait(fds[1], &msg, 0), 1);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    CHECK_EQ(os_close(fd), 0);
    close_pair(fds);
}

static OsFileStatus status_of(int fd)
{
    OsFileStatus status;

    CHECK_EQ(os_file_status(fd, &status), 0);
    return status;
}

static OsFileKind kind_of(int fd)
{
    return status_of(fd).kind;
}

static uint64_t serial_of(int fd)
{
    return status_of(fd).serial;
}

TEST(what_a_file_is)
{
    int fd = memory_file(), fds[2];

    CHECK_EQ(kind_of(fd), OS_FILE_REGULAR);
    CHECK(status_of(fd).may_be_memory);
    CHECK(os_file_in_memory(fd));
    CHECK_EQ(os_close(fd), 0);
    stream_pair(fds);
    CHECK_EQ(kind_of(fds[0]), OS_FILE_SOCKET);
    CHECK(!status_of(fds[0]).may_be_memory);
    close_pair(fds);
    CHECK(pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0);
    CHECK_EQ(kind_of(fds[0]), OS_FILE_STREAM);
    CHECK_EQ(os_file_nonblocking(fds[0]), 1);
    close_pair(fds);
    fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK_EQ(kind_of(fd), OS_FILE_STREAM);
    CHECK_EQ(os_close(fd), 0);
    fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    CHECK_EQ(kind_of(fd), OS_FILE_REGULAR);
    CHECK(status_of(fd).may_be_memory);
    CHECK(!os_file_in_memory(fd));
    CHECK_EQ(os_close(fd), 0);
    fd = open("/", O_RDONLY | O_CLOEXEC);
    CHECK_EQ(kind_of(fd), OS_FILE_REGULAR);
    CHECK(!status_of(fd).may_be_memory);
    CHECK(!status_of(fd).device);
    CHECK_EQ(os_close(fd), 0);
}

/* fstat(2) would have NFS write back what is dirty of the file. */
TEST(what_a_file_is_is_asked_without_fstat)
{
    int fd = memory_file();
    struct statx stx;
    uint64_t calls;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_TYPE, &stx)) {
        SKIP("no statx here");
    }
    calls = os_counter(OS_COUNT_SYSCALLS);
    CHECK_EQ(kind_of(fd), OS_FILE_REGULAR);
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS) - calls, 1);
    CHECK_EQ(os_close(fd), 0);
}

/* As on an old kernel, and in an old sandbox: fstat(2) says the same. */
static void what_a_file_is_without_statx(int error)
{
    int fds[] = {memory_file(), disk_file(),
                 open("/dev/null", O_RDWR | O_CLOEXEC)};
    OsFileStatus before[ARRAY_SIZE(fds)], after;
    uint64_t calls;

    for (unsigned i = 0; i < ARRAY_SIZE(fds); i++) {
        before[i] = status_of(fds[i]);
    }
    if (seccomp_refuse(SYS_statx, error)) {
        SKIP("no seccomp here");
    }
    for (unsigned i = 0; i < ARRAY_SIZE(fds); i++) {
        after = status_of(fds[i]);
        CHECK_EQ(after.kind, before[i].kind);
        CHECK_EQ(after.may_be_memory, before[i].may_be_memory);
        CHECK_EQ(after.device, before[i].device);
        CHECK_EQ(after.serial, before[i].serial);
        CHECK_EQ(os_close(fds[i]), 0);
    }
    calls = os_counter(OS_COUNT_SYSCALLS);
    CHECK_EQ(os_file_status(-1, &after), -EBADF);
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS) - calls, 2);
}

TEST(what_a_file_is_where_statx_is_forbidden)
{
    what_a_file_is_without_statx(EPERM);
}

TEST(what_a_file_is_where_statx_is_not_known)
{
    what_a_file_is_without_statx(ENOSYS);
}

TEST(flags_and_types)
{
    int fd = open("/dev/null", O_WRONLY | O_APPEND | O_CLOEXEC), fds[2];
    char byte;

    CHECK_EQ(os_file_flags(fd) & (O_ACCMODE | O_APPEND), O_WRONLY | O_APPEND);
    CHECK_EQ(os_socket_type(fd), -ENOTSOCK);
    CHECK_EQ(os_close(fd), 0);
    stream_pair(fds);
    CHECK_EQ(os_socket_type(fds[0]), SOCK_STREAM);
    os_shutdown(fds[0]);
    CHECK_EQ(os_recv_nowait(fds[0], &byte, 1, 0), 0);
    CHECK_EQ(os_recv_nowait(fds[1], &byte, 1, 0), 0);
    close_pair(fds);
}

TEST(a_number_that_stands_for_another_file_is_noticed)
{
    uint64_t first, second, other;
    int fds[2], fd = memory_file(), number = fd;

    first = serial_of(fd);
    CHECK_EQ(first, serial_of(fd));
    CHECK_EQ(os_close(fd), 0);
    stream_pair(fds);
    CHECK_EQ(fds[0], number);
    second = serial_of(fds[0]);
    other = serial_of(fds[1]);
    CHECK(second != first);
    CHECK(other != second);
    close_pair(fds);
}

TEST(holes_can_be_punched)
{
    char data[8192], byte = 'y';
    struct iovec iov = {&byte, 1};
    int fd = memory_file();

    memset(data, 'x', sizeof(data));
    CHECK_EQ(os_write(fd, data, sizeof(data)), sizeof(data));
    CHECK_EQ(
        os_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096),
        0);
    CHECK_EQ(os_preadv(fd, &iov, 1, 0), 1);
    CHECK_EQ(byte, 0);
    CHECK_EQ(os_close(fd), 0);
}

TEST(a_call_that_is_made_to_fail_does_nothing)
{
    struct iovec iov = {(void *)"x", 1};
    int fd = memory_file();

    os_fault_arm(1, ENOSPC, "pwritev");
    CHECK_EQ(os_pwritev(fd, &iov, 1, 0), -ENOSPC);
    CHECK(os_fault_fired());
    CHECK_EQ(lseek(fd, 0, SEEK_END), 0);
    os_fault_arm(1, EIO, "write");
    CHECK_EQ(os_write(fd, "x", 1), -EIO);
    CHECK_EQ(lseek(fd, 0, SEEK_END), 0);
    os_fault_arm(1, EIO, "pwritev");
    CHECK_EQ(os_pwritev_nowait(fd, &iov, 1, 0), -EIO);
    os_fault_arm(1, EIO, "fsync");
    CHECK_EQ(os_fsync(fd), -EIO);
    os_fault_arm(1, EIO, "fdatasync");
    CHECK_EQ(os_fdatasync(fd), -EIO);
    CHECK_EQ(os_close(fd), 0);
}

TEST(a_close_that_fails_has_closed)
{
    int fd = memory_file();

    os_fault_arm(1, EIO, "close");
    CHECK_EQ(os_close(fd), -EIO);
    CHECK_EQ(os_close(fd), -EBADF);
    fd = memory_file();
    os_fault_arm(1, EINTR, "close");
    CHECK_EQ(os_close(fd), 0);
    CHECK_EQ(os_close(fd), -EBADF);
}

TEST(what_a_file_is_may_fail)
{
    OsFileStatus status = {.kind = OS_FILE_SOCKET};
    int fd = memory_file();

    os_fault_arm(1, EIO, "statx");
    CHECK_EQ(os_file_status(fd, &status), -EIO);
    CHECK_EQ(status.kind, OS_FILE_SOCKET);
    /* Then it counts as one that may block, which is slower. */
    os_fault_arm(1, EIO, "fstatfs");
    CHECK(!os_file_in_memory(fd));
    CHECK(os_fault_fired());
    CHECK(os_file_in_memory(fd));
    os_fault_arm(1, EACCES, "fcntl");
    CHECK_EQ(os_file_flags(fd), -EACCES);
    os_fault_arm(1, EACCES, "fcntl");
    CHECK_EQ(os_file_nonblocking(fd), -EACCES);
    CHECK_EQ(os_file_nonblocking(fd), 0);
    CHECK_EQ(os_close(fd), 0);
}

TEST(what_a_socket_is_may_fail)
{
    char byte;
    int fds[2];

    stream_pair(fds);
    os_fault_arm(1, EACCES, "getsockopt");
    CHECK_EQ(os_socket_type(fds[0]), -EACCES);
    os_fault_arm(1, EACCES, "getsockopt");
    CHECK_EQ(os_socket_listens(fds[0]), -EACCES);
    CHECK_EQ(os_socket_listens(fds[0]), 0);
    os_fault_arm(1, EACCES, "getsockopt");
    CHECK_EQ(os_socket_error(fds[0]), -EACCES);
    CHECK_EQ(os_socket_error(fds[0]), 0);
    os_fault_arm(1, EACCES, "shutdown");
    os_shutdown(fds[0]);
    CHECK(os_fault_fired());
    CHECK_EQ(os_recv_nowait(fds[1], &byte, 1, 0), -EAGAIN);
    os_shutdown(fds[0]);
    CHECK_EQ(os_recv_nowait(fds[1], &byte, 1, 0), 0);
    close_pair(fds);
}

static OsRecord records[8];
static unsigned record_count;

static void keep_record(const OsRecord *record)
{
    CHECK(record_count < 8);
    records[record_count++] = *record;
}

TEST(calls_are_recorded_at_both_ends)
{
    struct iovec iov = {(void *)"xyz", 3};
    int fd = memory_file();

    os_set_recorder(keep_record);
    os_pwritev(fd, &iov, 1, 100);
    os_fault_arm(1, EIO, "fdatasync");
    os_fdatasync(fd);
    os_set_recorder(NULL);
    CHECK_EQ(os_close(fd), 0);

    CHECK_EQ(record_count, 4);
    CHECK_STR(records[0].call, "pwritev");
    CHECK(records[0].begin && records[0].fd == fd);
    CHECK_EQ(records[0].offset, 100);
    CHECK_STR(records[1].call, "pwritev");
    CHECK(!records[1].begin);
    CHECK_EQ(records[1].result, 3);
    CHECK_STR(records[2].call, "fdatasync");
    CHECK(records[2].begin);
    CHECK(!records[3].begin);
    CHECK_EQ(records[3].result, -EIO);
}

TEST(calls_are_counted)
{
    uint64_t before = os_counter(OS_COUNT_SYSCALLS);
    int fd = memory_file();

    os_write(fd, "x", 1);
    os_fsync(fd);
    os_close(fd);
    CHECK_EQ(os_counter(OS_COUNT_SYSCALLS) - before, 3);
}

TEST_MAIN()
