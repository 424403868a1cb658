#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Byte streams at random: garbage, and conversations that were right until a
few bytes of them were changed, cut, repeated or moved.

Whatever arrives, the server lives, a sane client is served all along, and in
the end neither memory nor file descriptors have been left behind.  A failure
is repeated with the COAIO_TEST_SEED that is printed.
"""

import contextlib
import random
import struct

import nbdclient as nbd
from nbdtest import (KIB, MIB, case, connect, eq, is_instrumented, main,
                     pattern, rounds, seed, short_handshake)

SIZE = 4 * MIB
# Numbers at the edges of their fields, where mistakes live.
EDGES = [0, 1, 2, 7, 8, 27, 28, 512, 4095, 4096, 4097, 65535, 65536, SIZE - 1,
         SIZE, SIZE + 1, 32 * MIB, 32 * MIB + 1, 2 ** 31 - 1, 2 ** 31,
         2 ** 32 - 1, 2 ** 63 - 1, 2 ** 63, 2 ** 64 - 1]


def edge(random_, bits):
    return random_.choice(EDGES) & (2 ** bits - 1)


def options_at_random(random_):
    """Client flags and options, most of them well formed."""
    parts = [struct.pack(">I", random_.choice([0, 1, 2, 3, 3, 3, 3, 7]))]
    for _ in range(random_.randrange(5)):
        option = random_.choice([3, 5, 6, 8, 9, 10, 11, 99, 2 ** 32 - 1])
        parts.append(nbd.pack_option(option, option_data(random_, option)))
    return b"".join(parts)


def option_data(random_, option):
    name = random_.choice(["disk", "memory", "", "nobody", "x" * 5000])
    if option in (nbd.OPT_INFO, nbd.OPT_GO):
        return nbd.pack_name_and_infos(name, random_.choices(
            [0, 1, 2, 3, 4, 65535], k=random_.randrange(5)))
    if option in (nbd.OPT_LIST_META_CONTEXT, nbd.OPT_SET_META_CONTEXT):
        return nbd.pack_contexts(name, random_.choices(
            ["base:allocation", "base:", "", ":", "x-y:z", "q" * 4000],
            k=random_.randrange(4)))
    return random_.choice([b"", b"", b"", random_.randbytes(40)])


def entry_at_random(random_):
    """The way into transmission, or not."""
    name = random_.choice(["disk", "disk", "memory"])
    if random_.random() < 0.2:
        return nbd.pack_option(nbd.OPT_EXPORT_NAME, name.encode())
    return nbd.pack_option(nbd.OPT_GO, nbd.pack_name_and_infos(name, [3]))


def requests_at_random(random_):
    parts = []
    for cookie in range(random_.randrange(30)):
        command = random_.choice([0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 65535])
        flags = random_.choice([0, 0, 0, 1, 2, 4, 8, 16, 31, 32, 65535])
        offset = random_.choice([random_.randrange(SIZE), edge(random_, 64)])
        length = random_.choice([random_.randrange(70000),
                                 random_.randrange(600), edge(random_, 32)])
        data = b""
        if command == nbd.CMD_WRITE:
            # Of the greatest payloads only the beginning is sent.
            data = bytes(min(length, 100000))
        parts.append(nbd.pack_request(command, cookie, offset, length, flags,
                                      data))
    return b"".join(parts)


def conversation(random_):
    return (options_at_random(random_) + entry_at_random(random_) +
            requests_at_random(random_))


def mutated(random_, data):
    """The same with a few changes."""
    data = bytearray(data)
    for _ in range(random_.randrange(1, 6)):
        at = random_.randrange(len(data))
        # Most of the interesting bytes are among the first.
        at = min(at, random_.randrange(400))
        kind = random_.randrange(6)
        if kind == 0:
            data[at:at + 1] = bytes([random_.randrange(256)])
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << random_.randrange(8)
        elif kind == 2:
            del data[at:at + random_.randrange(1, 30)]
        elif kind == 3:
            data[at:at] = random_.randbytes(random_.randrange(1, 30))
        elif kind == 4:
            data[at:at] = data[at:at + random_.randrange(1, 60)]
        else:
            width, layout = random_.choice([(2, ">H"), (4, ">I"), (8, ">Q")])
            data[at:at + width] = struct.pack(layout,
                                              edge(random_, 8 * width))
        data = data or bytearray(b"\0")
    return bytes(data)


def garbage(random_):
    start = random_.choice([b"", struct.pack(">I", 3),
                            struct.pack(">IQ", 3, nbd.IHAVEOPT),
                            struct.pack(">I", 3) + entry_at_random(random_),
                            struct.pack(">I", 3) + entry_at_random(random_) +
                            struct.pack(">I", nbd.REQUEST_MAGIC)])
    return start + random_.randbytes(random_.randrange(2000))


def throw(server, random_, data):
    """Sends the bytes in one of several ways and goes away in another."""
    with connect(server.address()) as sock:
        sock.settimeout(0.02)
        with contextlib.suppress(OSError):
            if random_.random() < 0.1:
                cut = random_.randrange(len(data) + 1)
                sock.sendall(data[:cut])
                sock.sendall(data[cut:])
            else:
                sock.sendall(data)
        manner = random_.randrange(4)
        with contextlib.suppress(OSError):
            if manner == 0:
                while sock.recv(1 << 16):
                    pass
            elif manner == 1:
                sock.shutdown(1)
                while sock.recv(1 << 16):
                    pass


class Sane:
    """A client that must not notice anything."""

    def __init__(self, box, server):
        self.client = box.closing(nbd.Client(server.address()).ready("calm"))
        self.count = 0

    def check(self):
        self.count += 1
        data = pattern(512, self.count)
        at = self.count % 1000 * 512
        eq(self.client.write(at, data), nbd.OK, "WRITE of a sane client")
        eq(self.client.read(at, 512), data, "data of a sane client")


def fuzz(box, make, count):
    random_ = random.Random(seed())
    server = box.server(f"disk={box.image(size=SIZE)}",
                        f"memory=memory:{SIZE}", "calm=memory:1M",
                        options=["--threads", 2, "--max-inflight", 4 * MIB,
                                 "--log-level", "error",
                                 "--handshake-timeout", short_handshake()])
    sane = Sane(box, server)
    warm_up = count // 4
    for i in range(count):
        throw(server, random_, make(random_))
        if i % 20 == 0:
            sane.check()
        if i == warm_up:
            fds, rss = server.fds(), server.rss()
    server.wait_fds(fds)
    sane.check()
    if not is_instrumented():
        grown = server.rss() - rss
        assert grown < 16 * MIB, f"{grown // KIB} KiB of memory left behind"
    server.stop()
    eq(server.lines(), [], "errors of the server's own")


@case
def garbage_at_random(box):
    fuzz(box, garbage, rounds(1500))


@case
def conversations_at_random(box):
    fuzz(box, conversation, rounds(1500))


@case
def conversations_with_mistakes(box):
    fuzz(box, lambda r: mutated(r, conversation(r)), rounds(2500))


main()
