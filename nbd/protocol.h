/* SPDX-License-Identifier: MIT */
/*
 * The constants of the NBD protocol that coaio-nbd speaks, as
 * doc/proto.md of the NetworkBlockDevice project gives them.  All numbers
 * travel in network byte order (wire.h).
 */
#ifndef NBD_PROTOCOL_H
#define NBD_PROTOCOL_H

#include <stdint.h>

/* Handshake. */
#define NBD_MAGIC_INIT   UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_MAGIC_OPTION UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_MAGIC_REPLY  UINT64_C(0x0003e889045565a9)

enum {
    NBD_GREETING_SIZE = 18,      /* two magics, handshake flags */
    NBD_OPTION_SIZE = 16,        /* magic, option, length */
    NBD_OPTION_REPLY_SIZE = 20,  /* magic, option, type, length */
    NBD_EXPORT_NAME_ZEROES = 124,
};

enum {
    NBD_FLAG_FIXED_NEWSTYLE = 1 << 0,
    NBD_FLAG_NO_ZEROES = 1 << 1,
};

enum {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
};

#define NBD_REP_ACK          UINT32_C(1)
#define NBD_REP_SERVER       UINT32_C(2)
#define NBD_REP_INFO         UINT32_C(3)
#define NBD_REP_META_CONTEXT UINT32_C(4)
#define NBD_REP_ERR_UNSUP    UINT32_C(0x80000001)
#define NBD_REP_ERR_INVALID  UINT32_C(0x80000003)
#define NBD_REP_ERR_UNKNOWN  UINT32_C(0x80000006)
#define NBD_REP_ERR_SHUTDOWN UINT32_C(0x80000007)
#define NBD_REP_ERR_TOO_BIG  UINT32_C(0x80000009)

enum {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_BLOCK_SIZE = 3,
};

/* The longest string that the protocol knows. */
#define NBD_STRING_MAX 4096

/* Transmission flags: what an export can do. */
enum {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
};

/* Requests: magic, flags, type, cookie, offset, length. */
#define NBD_MAGIC_REQUEST UINT32_C(0x25609513)
#define NBD_REQUEST_SIZE  28

enum {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

/* Simple replies: magic, error, cookie. */
#define NBD_MAGIC_SIMPLE_REPLY UINT32_C(0x67446698)
#define NBD_SIMPLE_REPLY_SIZE  16

/* Structured replies: magic, flags, type, cookie, length. */
#define NBD_MAGIC_STRUCTURED_REPLY UINT32_C(0x668e33ef)
#define NBD_STRUCTURED_REPLY_SIZE  20

#define NBD_REPLY_FLAG_DONE 1

enum {
    NBD_REPLY_TYPE_NONE = 0,
    NBD_REPLY_TYPE_OFFSET_DATA = 1,  /* offset, data */
    NBD_REPLY_TYPE_BLOCK_STATUS = 5, /* context, (length, state)... */
    NBD_REPLY_TYPE_ERROR = 32769,    /* error, message length, message */
};

enum {
    NBD_STATE_HOLE = 1 << 0,
    NBD_STATE_ZERO = 1 << 1,
};

/* Errors on the wire: the numbers are the protocol's, not this system's. */
enum {
    NBD_SUCCESS = 0,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

#endif
