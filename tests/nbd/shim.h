/* SPDX-License-Identifier: MIT */
/*
 * What the parts of the preloaded shim share: shim.c, which says what it is
 * for, and shim_uring.c, which sees what a ring does.
 *
 * Nothing here may be exported: the server's own names would be replaced.
 */
#ifndef COAIO_TESTS_SHIM_H
#define COAIO_TESTS_SHIM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#define EXPORT __attribute__((visibility("default")))

#pragma GCC visibility push(hidden)

enum {
    MAX_IOV = 64
};

/* Numbers that recorder.py knows, too. */
typedef enum Kind {
    KIND_READ = 1, /* from a file */
    KIND_WRITE,    /* to a file */
    KIND_SYNC,
    KIND_ALLOCATE,
    KIND_RECEIVE, /* from a socket */
    KIND_SEND,    /* to a socket */
    KIND_MAX,
} Kind;

/* The classes of calls that a Control treats alike. */
typedef enum Class {
    CLASS_READ,
    CLASS_WRITE,
    CLASS_SYNC,
    CLASS_ALLOCATE,
    CLASS_MAX,
} Class;

/*
 * Shared with the test; nbdtest.py has the same layout.  The test writes
 * everything but held, calls and by_ring.
 */
typedef struct Control {
    atomic_uint error[CLASS_MAX]; /* errno value to fail with; 0: none */
    atomic_uint shut[CLASS_MAX];  /* whether the gate is shut */
    atomic_uint held[CLASS_MAX];  /* calls that wait at the gate now */
    atomic_uint calls[CLASS_MAX]; /* calls made so far, failed ones too */
    atomic_ullong low;            /* error and shut concern transfers that */
    atomic_ullong high;           /* touch [low, high), and every sync */
    atomic_uint most_file;        /* most bytes a file transfer moves; 0: any */
    atomic_uint most_socket;      /* the same for sockets */
    atomic_uint interrupt;        /* each n-th call gives EINTR; 0: none */
    atomic_uint countdown;
    atomic_uint by_ring[CLASS_MAX]; /* of calls: those that a ring has made */
    atomic_uint no_cache;           /* nothing is found in the page cache */
    atomic_uint no_threads; /* errno value that starting one fails with */
    atomic_uint signal_at_join; /* raised once, when a thread was joined */
} Control;

/* One call under way. */
typedef struct Call {
    Kind kind;
    Class class;
    int fd;
    mode_t type;
    bool by_ring;
    uint64_t file;
    off_t offset;
    int64_t length;
    uint32_t flags;
    uint64_t begin;
} Call;

/* The buffers of a transfer, perhaps fewer than the caller has given. */
typedef struct Buffers {
    const struct iovec *iov;
    int count;
    int64_t length;
    struct iovec cut[MAX_IOV];
} Buffers;

extern Control *control;

/* The function of that name behind the shim; without one, the end. */
void *next(const char *name);

/* The function behind the one being defined, looked up once. */
#define REAL(name)                             \
    ({                                         \
        static _Atomic(void *) real_;          \
        void *function_ = atomic_load(&real_); \
        if (!function_) {                      \
            function_ = next(#name);           \
            atomic_store(&real_, function_);   \
        }                                      \
        (__typeof__(&name))function_;          \
    })

/* Describes a call; false if the shim has nothing to do with its fd. */
bool call_init(Call *call, Kind kind, int fd, off_t offset, int64_t length,
               uint32_t flags);

/* Shortens a transfer to @most bytes, if that is not 0. */
void buffers_init(Buffers *b, const struct iovec *iov, int count, size_t most);

/* Whether this call is one of those that are to be interrupted. */
bool interrupts(void);

/* Returns 0, or the errno value that a call on a file is to fail with. */
int file_call_enters(const Call *call);

/* The records of a call that has no data to keep; result may be -errno. */
void record_begin(Call *call);
void record_end(const Call *call, int64_t result);

/* Record the end of what the rings have done. */
void look_at_rings(void);

#pragma GCC visibility pop

#endif
