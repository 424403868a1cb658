/* SPDX-License-Identifier: MIT */
/*
 * nbd_wire.h: the numbers of the NBD protocol that bench/ needs, and access to
 * big-endian fields at any alignment.  For the load generator and for the
 * stand-in servers in rivals/; coaio-nbd has its own.
 */
#ifndef BENCH_NBD_WIRE_H
#define BENCH_NBD_WIRE_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define NBD_MAGIC UINT64_C(0x4e42444d41474943)
#define NBD_IHAVEOPT UINT64_C(0x49484156454f5054)
#define NBD_OPTION_REPLY UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY UINT32_C(0x67446698)
#define NBD_CHUNK UINT32_C(0x668e33ef)

enum {
    REQUEST_BYTES = 28,
    SIMPLE_BYTES = 16,
    CHUNK_BYTES = 20,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED = 8,
    NBD_REP_ACK = 1,
    NBD_REP_INFO = 3,
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_CHUNK_DONE = 1 << 0,
    NBD_CHUNK_NONE = 0,
    NBD_CHUNK_DATA = 1,
    NBD_CHUNK_HOLE = 2,
    NBD_CHUNK_ERROR = 1 << 15,
};

static inline void nbd_put16(uint8_t *p, uint16_t v)
{
    v = htobe16(v);
    memcpy(p, &v, sizeof(v));
}

static inline void nbd_put32(uint8_t *p, uint32_t v)
{
    v = htobe32(v);
    memcpy(p, &v, sizeof(v));
}

static inline void nbd_put64(uint8_t *p, uint64_t v)
{
    v = htobe64(v);
    memcpy(p, &v, sizeof(v));
}

static inline uint16_t nbd_get16(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return be16toh(v);
}

static inline uint32_t nbd_get32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return be32toh(v);
}

static inline uint64_t nbd_get64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return be64toh(v);
}

#endif
