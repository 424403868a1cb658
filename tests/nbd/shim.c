/* SPDX-License-Identifier: MIT */

/*
 * A library to preload into an NBD server.  It stands between the server and
 * the C library's calls on files and sockets, and does three things:
 *
 * - record: with COAIO_SHIM_LOG naming a file of the wanted size, each call is
 *   logged when it begins and when it has returned, in one order for all
 *   threads; recorder.py reads it.  One fetch-and-add on the log's cursor both
 *   makes room for a record and gives it its place in that order: the record
 *   of a beginning is placed before the call, that of the end after it.  (So
 *   what the recording says has ended before something else began, has.)
 * - inject: the file that COAIO_SHIM_CONTROL names is a Control, shared with
 *   the test.  Calls on files fail, or transfer little, as it says.
 * - hold: calls on files wait while a gate in the Control is shut, so that a
 *   test can have a request in flight for as long as it likes.
 *
 * A transfer that asks not to block (RWF_NOWAIT) gets EAGAIN at a shut gate,
 * as it would for data that is not in the page cache; or always, if the Control
 * says that nothing is.
 *
 * What io_uring does with files by itself, shim_uring.c records and injects.
 */

#undef _FILE_OFFSET_BITS

#include "shim.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef struct Log {
    atomic_ullong cursor; /* the next record's place; may pass the end */
    uint64_t size;
} Log;

typedef struct Record {
    uint32_t size; /* of the whole record, data and padding included;
                          stored last, so that 0 means "not complete" */
    uint16_t kind;
    uint8_t is_end;
    uint8_t by_ring;
    int32_t thread;
    int32_t fd;
    uint64_t file;  /* inode number of the file or socket */
    int64_t offset; /* -1: none */
    int64_t result; /* bytes asked for at the beginning; at the end the
                          result, or a negative errno value */
    uint64_t begin; /* place of the record of the beginning */
    uint32_t flags; /* of the call: RWF_..., fallocate's mode */
    uint32_t data;  /* bytes that follow */
} Record;

static Control no_control;
Control *control = &no_control;
static Log *the_log;

static void *map_file(const char *variable, size_t *size)
{
    const char *path = getenv(variable);
    struct stat st;
    void *map;
    int fd;

    if (!path) {
        return NULL;
    }
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        perror(path);
        abort();
    }
    *size = (size_t)st.st_size;
    map = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        perror(path);
        abort();
    }
    close(fd);
    return map;
}

__attribute__((constructor)) static void shim_start(void)
{
    size_t size;
    void *map = map_file("COAIO_SHIM_CONTROL", &size);

    if (map) {
        control = map;
    }
    the_log = map_file("COAIO_SHIM_LOG", &size);
    if (the_log) {
        the_log->size = size;
    }
}

void *next(const char *name)
{
    void *function = dlsym(RTLD_NEXT, name);

    if (!function) {
        fprintf(stderr, "shim: no library has %s\n", name);
        abort();
    }
    return function;
}

/*
 * Recording.
 */

static void copy_iov(char *to, const struct iovec *iov, int count,
                     size_t length)
{
    for (int i = 0; i < count && length > 0; i++) {
        size_t part = iov[i].iov_len < length ? iov[i].iov_len : length;

        memcpy(to, iov[i].iov_base, part);
        to += part;
        length -= part;
    }
}

static uint64_t record(const Call *call, bool is_end, int64_t result,
                       const struct iovec *iov, int count, size_t length)
{
    size_t size = (sizeof(Record) + length + 7) & ~(size_t)7;
    uint64_t place = atomic_fetch_add(&the_log->cursor, size);
    Record *r;

    if (sizeof(Log) + place + size > the_log->size) {
        return place; /* the reader sees the cursor and complains */
    }
    r = (Record *)((char *)(the_log + 1) + place);
    r->kind = (uint16_t)call->kind;
    r->is_end = is_end;
    r->by_ring = call->by_ring;
    r->thread = (int32_t)syscall(SYS_gettid);
    r->fd = call->fd;
    r->file = call->file;
    r->offset = call->offset;
    r->result = result;
    r->begin = is_end ? call->begin : place;
    r->flags = call->flags;
    r->data = (uint32_t)length;
    copy_iov((char *)(r + 1), iov, count, length);
    atomic_store((_Atomic uint32_t *)&r->size, (uint32_t)size);
    return place;
}

static void call_begins(Call *call, const struct iovec *iov, int count)
{
    size_t length = call->kind == KIND_SEND ? (size_t)call->length : 0;

    look_at_rings();
    if (the_log) {
        call->begin = record(call, false, call->length, iov, count, length);
    }
}

/* Keeps errno, which carries the error of the call. */
static void call_ends(Call *call, int64_t result, const struct iovec *iov,
                      int count)
{
    int error = errno;
    size_t length = 0;

    if (the_log) {
        if (call->kind == KIND_RECEIVE && result > 0) {
            length = (size_t)result;
        }
        record(call, true, result < 0 ? -error : result, iov, count, length);
    }
    errno = error;
}

void record_begin(Call *call)
{
    if (the_log) {
        call->begin = record(call, false, call->length, NULL, 0, 0);
    }
}

void record_end(const Call *call, int64_t result)
{
    if (the_log) {
        record(call, true, result, NULL, 0, 0);
    }
}

/*
 * Injecting and holding.
 */

static bool call_concerned(const Call *call)
{
    uint64_t low = atomic_load(&control->low);
    uint64_t high = atomic_load(&control->high);

    if (call->class == CLASS_SYNC || call->offset < 0) {
        return true;
    }
    return (uint64_t)call->offset < high &&
           (uint64_t)call->offset + (uint64_t)call->length > low;
}

static bool asks_not_to_block(const Call *call)
{
#ifdef RWF_NOWAIT
    return !call->by_ring && call->class <= CLASS_WRITE &&
           (call->flags & RWF_NOWAIT);
#else
    (void)call;
    return false;
#endif
}

/* Returns 0, or the errno value to fail with. */
static int wait_at_gate(const Call *call)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    atomic_uint *held = &control->held[call->class];

    /* A ring that is held would hold all that its thread has to do. */
    if (!atomic_load(&control->shut[call->class]) || call->by_ring) {
        return 0;
    }
    if (asks_not_to_block(call)) {
        return EAGAIN;
    }
    atomic_fetch_add(held, 1);
    while (atomic_load(&control->shut[call->class])) {
        nanosleep(&pause, NULL);
    }
    atomic_fetch_sub(held, 1);
    return 0;
}

bool interrupts(void)
{
    unsigned every = atomic_load(&control->interrupt);

    return every && atomic_fetch_add(&control->countdown, 1) % every == 0;
}

int file_call_enters(const Call *call)
{
    int error;

    if (asks_not_to_block(call) && atomic_load(&control->no_cache)) {
        return EAGAIN;
    }
    atomic_fetch_add(&control->calls[call->class], 1);
    if (!call_concerned(call)) {
        return 0;
    }
    error = wait_at_gate(call);
    if (!error) {
        error = (int)atomic_load(&control->error[call->class]);
    }
    return error;
}

bool call_init(Call *call, Kind kind, int fd, off_t offset, int64_t length,
               uint32_t flags)
{
    static const Class classes[KIND_MAX] = {
        [KIND_READ] = CLASS_READ,
        [KIND_WRITE] = CLASS_WRITE,
        [KIND_SYNC] = CLASS_SYNC,
        [KIND_ALLOCATE] = CLASS_ALLOCATE,
    };
    bool is_socket = kind == KIND_RECEIVE || kind == KIND_SEND;
    int error = errno;
    struct stat st;

    if (fstat(fd, &st) < 0) {
        errno = error;
        return false;
    }
    *call = (Call){
        .kind = kind,
        .class = classes[kind],
        .fd = fd,
        .type = st.st_mode & S_IFMT,
        .file = st.st_ino,
        .offset = offset,
        .length = length,
        .flags = flags,
    };
    if (is_socket) {
        return call->type == S_IFSOCK;
    }
    return call->type == S_IFREG || call->type == S_IFBLK;
}

void buffers_init(Buffers *b, const struct iovec *iov, int count, size_t most)
{
    size_t left = most;

    b->iov = most ? b->cut : iov;
    b->count = 0;
    b->length = 0;
    for (int i = 0; i < count; i++) {
        if (most) {
            if (left == 0 || i == MAX_IOV) {
                return;
            }
            b->cut[i] = iov[i];
            if (b->cut[i].iov_len > left) {
                b->cut[i].iov_len = left;
            }
            left -= b->cut[i].iov_len;
        }
        b->length += (int64_t)b->iov[i].iov_len;
        b->count++;
    }
}

/*
 * Files.
 */

typedef ssize_t TransferFunction(int, const struct iovec *, int, off_t, int);

static ssize_t transfer(TransferFunction *real, Kind kind, int fd,
                        const struct iovec *iov, int count, off_t offset,
                        int flags)
{
    Buffers b;
    int error;
    ssize_t result;
    Call call;

    buffers_init(&b, iov, count, atomic_load(&control->most_file));
    if (!call_init(&call, kind, fd, offset, b.length, (uint32_t)flags)) {
        return real(fd, iov, count, offset, flags);
    }
    if (interrupts()) {
        errno = EINTR;
        return -1;
    }
    call_begins(&call, b.iov, b.count);
    error = file_call_enters(&call);
    if (error) {
        errno = error;
        result = -1;
    } else {
        result = real(fd, b.iov, b.count, offset, flags);
    }
    call_ends(&call, result, b.iov, b.count);
    return result;
}

static ssize_t real_readv(int fd, const struct iovec *iov, int count,
                          off_t offset, int flags)
{
    return REAL(preadv2)(fd, iov, count, offset, flags);
}

static ssize_t real_writev(int fd, const struct iovec *iov, int count,
                           off_t offset, int flags)
{
    return REAL(pwritev2)(fd, iov, count, offset, flags);
}

EXPORT ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t offset,
                       int flags)
{
    return transfer(real_readv, KIND_READ, fd, iov, count, offset, flags);
}

EXPORT ssize_t pwritev2(int fd, const struct iovec *iov, int count,
                        off_t offset, int flags)
{
    return transfer(real_writev, KIND_WRITE, fd, iov, count, offset, flags);
}

EXPORT ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    return preadv2(fd, iov, count, offset, 0);
}

EXPORT ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    return pwritev2(fd, iov, count, offset, 0);
}

EXPORT ssize_t pread(int fd, void *buffer, size_t length, off_t offset)
{
    struct iovec iov = {buffer, length};

    return preadv2(fd, &iov, 1, offset, 0);
}

EXPORT ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset)
{
    struct iovec iov = {(void *)buffer, length};

    return pwritev2(fd, &iov, 1, offset, 0);
}

static int sync_file(int (*real)(int), int fd)
{
    int error = 0;
    int result;
    Call call;

    if (!call_init(&call, KIND_SYNC, fd, -1, 0, 0)) {
        return real(fd);
    }
    call_begins(&call, NULL, 0);
    error = file_call_enters(&call);
    if (error) {
        errno = error;
        result = -1;
    } else {
        result = real(fd);
    }
    call_ends(&call, result, NULL, 0);
    return result;
}

EXPORT int fsync(int fd)
{
    return sync_file(REAL(fsync), fd);
}

EXPORT int fdatasync(int fd)
{
    return sync_file(REAL(fdatasync), fd);
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t length)
{
    int error;
    int result;
    Call call;

    if (!call_init(&call, KIND_ALLOCATE, fd, offset, length, (uint32_t)mode)) {
        return REAL(fallocate)(fd, mode, offset, length);
    }
    call_begins(&call, NULL, 0);
    error = file_call_enters(&call);
    if (error) {
        errno = error;
        result = -1;
    } else {
        result = REAL(fallocate)(fd, mode, offset, length);
    }
    call_ends(&call, result, NULL, 0);
    return result;
}

/* Where off_t has 64 bits these are the same functions under another name. */
_Static_assert(sizeof(off_t) == 8, "the shim needs an off_t of 64 bits");

#define ALIAS(name) __attribute__((alias(#name), visibility("default")))

ssize_t preadv64v2(int, const struct iovec *, int, off64_t, int) ALIAS(preadv2);
ssize_t pwritev64v2(int, const struct iovec *, int, off64_t, int)
    ALIAS(pwritev2);
ssize_t preadv64(int, const struct iovec *, int, off64_t) ALIAS(preadv);
ssize_t pwritev64(int, const struct iovec *, int, off64_t) ALIAS(pwritev);
ssize_t pread64(int, void *, size_t, off64_t) ALIAS(pread);
ssize_t pwrite64(int, const void *, size_t, off64_t) ALIAS(pwrite);
int fallocate64(int, int, off64_t, off64_t) ALIAS(fallocate);

/*
 * Sockets.
 */

typedef ssize_t MessageFunction(int, struct msghdr *, int);

static ssize_t message(MessageFunction *real, Kind kind, int fd,
                       struct msghdr *msg, int flags)
{
    struct iovec *iov = msg->msg_iov;
    size_t count = msg->msg_iovlen;
    Buffers b;
    ssize_t result;
    Call call;

    buffers_init(&b, iov, (int)count, atomic_load(&control->most_socket));
    if ((flags & MSG_PEEK) ||
        !call_init(&call, kind, fd, -1, b.length, (uint32_t)flags)) {
        return real(fd, msg, flags);
    }
    if (interrupts()) {
        errno = EINTR;
        return -1;
    }
    call_begins(&call, b.iov, b.count);
    msg->msg_iov = (struct iovec *)b.iov;
    msg->msg_iovlen = (size_t)b.count;
    result = real(fd, msg, flags);
    msg->msg_iov = iov;
    msg->msg_iovlen = count;
    call_ends(&call, result, b.iov, b.count);
    return result;
}

static ssize_t real_sendmsg(int fd, struct msghdr *msg, int flags)
{
    return REAL(sendmsg)(fd, msg, flags);
}

static ssize_t real_recvmsg(int fd, struct msghdr *msg, int flags)
{
    return REAL(recvmsg)(fd, msg, flags);
}

/* Plain reads and writes, which the shim knows on sockets only. */
static ssize_t real_write(int fd, struct msghdr *msg, int flags)
{
    (void)flags;
    return REAL(writev)(fd, msg->msg_iov, (int)msg->msg_iovlen);
}

static ssize_t real_read(int fd, struct msghdr *msg, int flags)
{
    (void)flags;
    return REAL(readv)(fd, msg->msg_iov, (int)msg->msg_iovlen);
}

static ssize_t plain(MessageFunction *real, Kind kind, int fd,
                     const struct iovec *iov, int count, int flags)
{
    struct msghdr msg = {
        .msg_iov = (struct iovec *)iov,
        .msg_iovlen = (size_t)count,
    };

    return message(real, kind, fd, &msg, flags);
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
    struct msghdr copy = *msg;

    return message(real_sendmsg, KIND_SEND, fd, &copy, flags);
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *msg, int flags)
{
    return message(real_recvmsg, KIND_RECEIVE, fd, msg, flags);
}

EXPORT ssize_t send(int fd, const void *buffer, size_t length, int flags)
{
    struct iovec iov = {(void *)buffer, length};

    return plain(real_sendmsg, KIND_SEND, fd, &iov, 1, flags);
}

EXPORT ssize_t recv(int fd, void *buffer, size_t length, int flags)
{
    struct iovec iov = {buffer, length};

    return plain(real_recvmsg, KIND_RECEIVE, fd, &iov, 1, flags);
}

EXPORT ssize_t write(int fd, const void *buffer, size_t length)
{
    struct iovec iov = {(void *)buffer, length};

    return plain(real_write, KIND_SEND, fd, &iov, 1, 0);
}

EXPORT ssize_t read(int fd, void *buffer, size_t length)
{
    struct iovec iov = {buffer, length};

    return plain(real_read, KIND_RECEIVE, fd, &iov, 1, 0);
}

EXPORT ssize_t writev(int fd, const struct iovec *iov, int count)
{
    return plain(real_write, KIND_SEND, fd, iov, count, 0);
}

EXPORT ssize_t readv(int fd, const struct iovec *iov, int count)
{
    return plain(real_read, KIND_RECEIVE, fd, iov, count, 0);
}

/*
 * Threads.
 */

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attr,
                          void *(*run)(void *), void *arg)
{
    unsigned error = atomic_load(&control->no_threads);

    return error ? (int)error : REAL(pthread_create)(thread, attr, run, arg);
}

EXPORT int pthread_join(pthread_t thread, void **result)
{
    int error = REAL(pthread_join)(thread, result);
    int number = (int)atomic_exchange(&control->signal_at_join, 0);

    if (number) {
        raise(number);
    }
    return error;
}
