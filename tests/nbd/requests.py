#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Requests: what each command does and answers, and what is refused and how.

Each case runs on a file on a disk, a file in memory (which the server treats
differently), and on a memory: export, with simple and structured replies.
A refusal must leave the connection as usable as it was.
"""

import os
import random

import nbdclient as nbd
from nbdtest import (GIB, KIB, MIB, allocated, case, eq, is_instrumented, main,
                     need_holes, pattern, rounds, seed)

SIZE = 64 * MIB + 1536
MAX = 32 * MIB
U64 = 2 ** 64


def each_export(box):
    """Yields (client, name) for all kinds of exports and replies."""
    server = box.server(f"file={box.image(size=SIZE)}",
                        f"tmpfs={box.image(size=SIZE, at=box.memory_dir())}",
                        f"memory=memory:{SIZE}")
    for name in "file", "tmpfs", "memory":
        for structured in False, True:
            with nbd.Client(server.address()) as client:
                client.ready(name, structured)
                yield client, f"{name}, structured {structured}"
                # Whatever has been refused, this must still work.
                eq(client.write(77, b"still there"), nbd.OK, "WRITE")
                eq(client.read(77, 11), b"still there", "data")
                client.disconnect()


@case
def reads_see_writes(box):
    for client, name in each_export(box):
        for length in 1, 511, 512, 4096, 5000, 256 * KIB, 256 * KIB + 1, MIB:
            for offset in 0, 1, 511, 4096, SIZE - length:
                data = pattern(length, name)
                eq(client.write(offset, data), nbd.OK, "WRITE")
                eq(client.read(offset, length), data, f"{offset}+{length}")


@case
def neighbours_of_unaligned_writes_are_unharmed(box):
    for client, _ in each_export(box):
        base = pattern(16 * KIB)
        eq(client.write(0, base), nbd.OK, "WRITE")
        eq(client.write(4095, b"ab"), nbd.OK, "WRITE")
        eq(client.zero(8191, 2), nbd.OK, "WRITE_ZEROES")
        expected = bytearray(base)
        expected[4095:4097] = b"ab"
        expected[8191:8193] = bytes(2)
        eq(client.read(0, 16 * KIB), bytes(expected), "data")


@case
def requests_of_32_mib(box):
    for client, _ in each_export(box):
        data = pattern(MAX)
        offset = 12345 if client.structured else SIZE - MAX
        eq(client.write(offset, data), nbd.OK, "WRITE")
        assert client.read(offset, MAX) == data, "data differ"
        # Those that carry no payload may be larger.
        eq(client.zero(0, SIZE), nbd.OK, "WRITE_ZEROES")
        eq(client.read(SIZE - 4096, 4096), bytes(4096), "data")
        eq(client.trim(0, SIZE), nbd.OK, "TRIM")
        eq(client.cache(0, SIZE), nbd.OK, "CACHE")


@case
def one_byte_over_32_mib_is_refused(box):
    """The payload is skipped, and the next request understood."""
    for client, _ in each_export(box):
        eq(client.write(0, pattern(4096)), nbd.OK, "WRITE")
        eq(client.write(0, bytes(MAX + 1)), nbd.EINVAL, "WRITE")
        eq(client.call(nbd.CMD_READ, 0, MAX + 1).error, nbd.EINVAL, "READ")
        eq(client.read(0, 4096), pattern(4096), "data")


@case
def payload_over_32_mib_is_skipped_without_memory(box):
    server = box.disk_server(size=GIB, options=["--max-inflight", 4 * MIB])
    length = 256 * MIB
    with nbd.Client(server.address()) as client:
        client.ready()
        client.post(nbd.CMD_WRITE, 0, length)
        block = bytes(MIB)
        for _ in range(length // MIB):
            client.send(block)
        eq(client.reply().error, nbd.EINVAL, "WRITE")
        eq(client.read(0, 4096), bytes(4096), "data")
    if not is_instrumented():
        assert server.peak_rss() < 64 * MIB, "memory in use"


@case
def reads_behind_the_end_are_invalid(box):
    for client, name in each_export(box):
        for offset, length in ((SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1),
                               (U64 - 1, 1), (U64 - 512, 1024), (2 ** 63, 1)):
            for command in nbd.CMD_READ, nbd.CMD_TRIM, nbd.CMD_CACHE:
                eq(client.call(command, offset, length).error, nbd.EINVAL,
                   f"{name}: command {command} {offset}+{length}")


@case
def writes_behind_the_end_are_enospc(box):
    """And their payload is skipped; nothing of them is written."""
    for client, name in each_export(box):
        last = pattern(512, name)
        eq(client.write(SIZE - 512, last), nbd.OK, "WRITE")
        for offset, length in ((SIZE, 1), (SIZE - 1, 2), (SIZE - 512, 1024),
                               (U64 - 1, 1), (U64 - 512, 1024), (2 ** 63, 1)):
            what = f"{name}: {offset}+{length}"
            eq(client.write(offset, bytes(length)), nbd.ENOSPC, what)
            eq(client.zero(offset, length), nbd.ENOSPC, what)
        eq(client.read(SIZE - 512, 512), last, "data")


@case
def requests_of_no_length_are_answered(box):
    """What they mean is not specified; they must neither hang nor harm."""
    for client, _ in each_export(box):
        for command in (nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_TRIM,
                        nbd.CMD_WRITE_ZEROES, nbd.CMD_CACHE):
            for offset in 0, SIZE:
                error = client.call(command, offset, 0).error
                assert error in (nbd.OK, nbd.EINVAL, nbd.ENOSPC), error


@case
def unknown_commands_are_invalid(box):
    for client, _ in each_export(box):
        for command in 8, 9, 77, 0xffff:
            eq(client.call(command, 0, 512).error, nbd.EINVAL,
               f"command {command}")


@case
def unknown_command_flags_are_invalid(box):
    for client, name in each_export(box):
        for command in (nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_FLUSH,
                        nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES, nbd.CMD_CACHE):
            length = 0 if command == nbd.CMD_FLUSH else 512
            data = bytes(512) if command == nbd.CMD_WRITE else b""
            for flags in 1 << 5, 1 << 15, 0xffe0:
                error = client.call(command, 0, length, flags, data).error
                eq(error, nbd.EINVAL, f"{name}: {command}, flags {flags:#x}")


@case
def flags_of_other_commands_are_invalid(box):
    for client, name in each_export(box):
        for command, flags in ((nbd.CMD_READ, nbd.FLAG_NO_HOLE),
                               (nbd.CMD_READ, nbd.FLAG_REQ_ONE),
                               (nbd.CMD_WRITE, nbd.FLAG_DF),
                               (nbd.CMD_WRITE, nbd.FLAG_FAST_ZERO),
                               (nbd.CMD_TRIM, nbd.FLAG_NO_HOLE),
                               (nbd.CMD_TRIM, nbd.FLAG_FAST_ZERO),
                               (nbd.CMD_CACHE, nbd.FLAG_DF)):
            data = bytes(512) if command == nbd.CMD_WRITE else b""
            error = client.call(command, 0, 512, flags, data).error
            eq(error, nbd.EINVAL, f"{name}: {command}, flags {flags:#x}")


@case
def fua_is_accepted_on_every_command(box):
    """The protocol demands it; clients are known to do it."""
    for client, _ in each_export(box):
        fua = nbd.FLAG_FUA
        eq(client.write(0, pattern(512), fua), nbd.OK, "WRITE")
        eq(client.read(0, 512, fua), pattern(512), "data")
        eq(client.trim(4096, 4096, fua), nbd.OK, "TRIM")
        eq(client.zero(4096, 4096, fua), nbd.OK, "WRITE_ZEROES")
        eq(client.cache(0, 512, fua), nbd.OK, "CACHE")
        eq(client.flush(fua), nbd.OK, "FLUSH")


@case
def df_needs_structured_replies(box):
    for client, _ in each_export(box):
        reply = client.call(nbd.CMD_READ, 0, 65536, nbd.FLAG_DF)
        if client.structured:
            # The client checks that there is one chunk at the most.
            eq((reply.error, len(reply.data)), (nbd.OK, 65536), "READ")
        else:
            eq(reply.error, nbd.EINVAL, "READ with DF")


@case
def reads_over_a_hole_with_and_without_df(box):
    for client, _ in each_export(box):
        data = pattern(64 * KIB)
        eq(client.write(MIB, data), nbd.OK, "WRITE")
        expected = bytes(MIB - 4096) + data + bytes(MIB - 64 * KIB)
        length = len(expected)
        eq(client.read(4096, length), expected, "data")
        if client.structured:
            reply = client.call(nbd.CMD_READ, 4096, length, nbd.FLAG_DF)
            assert reply.error == nbd.EOVERFLOW or reply.data == expected
        eq(client.zero(MIB, 64 * KIB), nbd.OK, "WRITE_ZEROES")


@case
def errors_of_structured_reads_are_structured(box):
    server = box.disk_server()
    with nbd.Client(server.address()) as client:
        client.ready()
        reply = client.call(nbd.CMD_READ, client.size, 512)
        eq(reply.error, nbd.EINVAL, "READ")
        assert not reply.simple


def allocated_on_disk(path):
    """With what says where the blocks are, which comes when they have one."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return allocated(path)


@case
def write_zeroes_punches_and_no_hole_keeps(box):
    need_holes(box)
    image = box.image(data=pattern(4 * MIB))
    server = box.server(f"disk={image}")
    full = allocated_on_disk(image)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        eq(client.zero(0, MIB, nbd.FLAG_NO_HOLE), nbd.OK, "NO_HOLE")
        eq(client.flush(), nbd.OK, "FLUSH")
        assert allocated(image) >= full, "space was given back"
        eq(client.read(0, MIB), bytes(MIB), "data")
        eq(client.zero(0, MIB), nbd.OK, "WRITE_ZEROES")
        eq(client.flush(), nbd.OK, "FLUSH")
        assert allocated(image) <= full - MIB, "no space was given back"
        eq(client.read(0, MIB), bytes(MIB), "data")
        eq(client.read(MIB, MIB), pattern(4 * MIB)[MIB:2 * MIB], "data")


@case
def trim_punches(box):
    need_holes(box)
    image = box.image(data=pattern(4 * MIB))
    server = box.server(f"disk={image}")
    full = allocated_on_disk(image)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        eq(client.trim(MIB, 2 * MIB), nbd.OK, "TRIM")
        eq(client.flush(), nbd.OK, "FLUSH")
        assert allocated(image) <= full - 2 * MIB, "no space was given back"
        eq(client.read(0, MIB), pattern(4 * MIB)[:MIB], "data")
        eq(client.read(3 * MIB, MIB), pattern(4 * MIB)[3 * MIB:], "data")


@case
def fast_zero_is_fast_or_refused(box):
    """ENOTSUP, with nothing changed, or done.  Memory is given back."""
    for client, name in each_export(box):
        for flags in 0, nbd.FLAG_NO_HOLE:
            data = pattern(64 * KIB)
            eq(client.write(0, data), nbd.OK, "WRITE")
            error = client.zero(0, 64 * KIB, nbd.FLAG_FAST_ZERO | flags)
            assert error in (nbd.OK, nbd.ENOTSUP), error
            if name.startswith("memory"):
                eq(error, nbd.ENOTSUP if flags else nbd.OK, "error")
            expected = data if error else bytes(64 * KIB)
            eq(client.read(0, 64 * KIB), expected, "data")


@case
def cache_changes_nothing(box):
    for client, _ in each_export(box):
        eq(client.write(0, pattern(MIB)), nbd.OK, "WRITE")
        eq(client.cache(0, MIB), nbd.OK, "CACHE")
        eq(client.cache(SIZE - 1, 1), nbd.OK, "CACHE")
        eq(client.read(0, MIB), pattern(MIB), "data")


@case
def cookies_are_returned_as_they_are(box):
    for client, _ in each_export(box):
        cookies = [0, 1, 2 ** 32, 2 ** 63, U64 - 1, 0x2560951367446698]
        for cookie in cookies:
            client.post(nbd.CMD_READ, 0, 512, cookie=cookie)
        eq(sorted(client.collect()), sorted(cookies), "cookies")


@case
def one_cookie_for_all_requests(box):
    """Unwise, and allowed as long as no two are in flight."""
    for client, _ in each_export(box):
        for i in range(10):
            client.post_write(i, bytes([i]), 0)
            client.reply()
            client.post(nbd.CMD_READ, i, 1, cookie=5)
            eq(client.reply().data, bytes([i]), "data")


@case
def requests_at_random_agree_with_a_model(box):
    """Overlaps, odd sizes and all; one at a time, against an array."""
    for client, name in each_export(box):
        random_ = random.Random(f"{seed()} {name}")
        model = bytearray(client.read(0, MIB))
        for _ in range(rounds(300)):
            step(client, random_, model)
        eq(client.read(0, MIB), bytes(model), "data")
        eq(client.zero(0, MIB), nbd.OK, "WRITE_ZEROES")


def step(client, random_, model):
    at = random_.randrange(MIB)
    length = min(random_.choice([1, 7, 512, 4096, 5000, 70000, 300000]),
                 MIB - at)
    flags = random_.choice([0, 0, 0, nbd.FLAG_FUA])
    kind = random_.randrange(5)
    if kind <= 1:
        data = random_.randbytes(length)
        eq(client.write(at, data, flags), nbd.OK, "WRITE")
        model[at:at + length] = data
    elif kind == 2:
        flags |= random_.choice([0, nbd.FLAG_NO_HOLE])
        eq(client.zero(at, length, flags), nbd.OK, "WRITE_ZEROES")
        model[at:at + length] = bytes(length)
    elif kind == 3:
        eq(client.trim(at, length, flags), nbd.OK, "TRIM")
        new = client.read(at, length)
        assert all(n in (o, 0) for n, o in zip(new, model[at:at + length])), \
            "TRIM has made up data"
        model[at:at + length] = new
    else:
        eq(client.read(at, length), bytes(model[at:at + length]),
           f"{at}+{length}")


@case
def writes_where_there_is_no_memory_for_a_large_buffer(box):
    """
    A payload that its connection's buffer cuts makes the server try for a
    larger one.  Where it got none, an assertion ended it.
    """
    server = box.server("disk=memory:1M")
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        eq(client.write(0, b"warm"), nbd.OK, "WRITE")
        with server.without_mappings():
            for i in range(4):
                data = pattern(16 * KIB, i)
                error = client.write(i * 16 * KIB, data)
                assert error in (nbd.OK, nbd.ENOMEM), f"WRITE: {error}"
                if error == nbd.OK:
                    eq(client.read(i * 16 * KIB, 16 * KIB), data, "data")
        eq(client.write(0, pattern(128 * KIB)), nbd.OK, "WRITE")
        eq(client.read(0, 128 * KIB), pattern(128 * KIB), "data")
        client.disconnect()


@case
def bad_magic_drops_that_client_only(box):
    server = box.disk_server()
    bystander = box.closing(nbd.Client(server.address()).ready())
    eq(bystander.write(0, pattern(4096)), nbd.OK, "WRITE")
    for magic in 0, nbd.REQUEST_MAGIC + 1, nbd.SIMPLE_MAGIC, 0x21e41c71:
        with nbd.Client(server.address()) as client:
            client.ready()
            eq(client.read(0, 4096), pattern(4096), "data")
            client.send(nbd.pack_request(nbd.CMD_READ, 1, 0, 512,
                                         magic=magic))
            client.expect_eof()
        eq(bystander.read(0, 4096), pattern(4096), "data")


@case
def requests_before_bad_magic_are_answered(box):
    server = box.disk_server(data=pattern(MIB))
    with nbd.Client(server.address()) as client:
        client.ready()
        requests = [client.pack(nbd.CMD_READ, i * 512, 512) for i in range(50)]
        client.send(b"".join(requests) + b"garbage" * 10)
        for reply in client.collect().values():
            eq(reply.error, nbd.OK, "READ")
        client.expect_eof()


main()
