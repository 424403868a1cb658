#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Metadata contexts and BLOCK_STATUS.
"""

import os
import struct

import nbdclient as nbd
from nbdtest import (KIB, MIB, case, eq, main, need_holes, pattern, run)

ALLOCATION = "base:allocation"
HOLE = nbd.STATE_HOLE | nbd.STATE_ZERO


def serve(box, *more):
    """An image with 1 MiB of data at each end and a hole between them."""
    image = box.image(size=64 * MIB, data=pattern(MIB))
    with open(image, "r+b") as file:
        file.seek(63 * MIB)
        file.write(pattern(MIB))
    server = box.server(f"disk={image}", "memory=memory:1M", "null=null:1M",
                        *more, options=["--default-export", "disk"])
    server.image = image
    return server


def open_hello(box, structured=True):
    server = serve(box)
    client = box.closing(nbd.Client(server.address()).hello())
    if structured:
        client.use_structured()
    return client


def states(client, offset, length):
    """
    (length, state) pairs for the range, neighbours of one state made one.
    The last extent may say more than was asked for.
    """
    result = []
    left = length
    for extent in client.status(offset, length):
        part = min(extent.length, left)
        left -= part
        if result and result[-1][1] == extent.flags:
            part += result.pop()[0]
        result.append((part, extent.flags))
    return result


# Negotiation.

@case
def list_without_queries_gives_all(box):
    client = open_hello(box)
    status, contexts = client.meta_context(nbd.OPT_LIST_META_CONTEXT, "disk",
                                           [])
    eq(status, nbd.REP_ACK, "reply")
    eq([name for _, name in contexts], [ALLOCATION], "contexts")


@case
def list_with_queries(box):
    client = open_hello(box)
    for queries, found in (([ALLOCATION], [ALLOCATION]),
                           (["base:"], [ALLOCATION]),
                           (["base:none"], []), (["qemu:"], []),
                           (["x-y:z", ALLOCATION], [ALLOCATION])):
        status, contexts = client.meta_context(nbd.OPT_LIST_META_CONTEXT,
                                               "disk", queries)
        eq(status, nbd.REP_ACK, "reply")
        eq([name for _, name in contexts], found, f"contexts for {queries}")


@case
def set_selects_what_is_named_exactly(box):
    client = open_hello(box)
    for queries, found in (([], []), (["base:none"], []),
                           (["qemu:dirty-bitmap:x"], []),
                           ([ALLOCATION + "x"], []),
                           ([ALLOCATION], [ALLOCATION]),
                           (["x-y:z", ALLOCATION], [ALLOCATION]),
                           ([ALLOCATION] * 50, [ALLOCATION])):
        status, contexts = client.meta_context(nbd.OPT_SET_META_CONTEXT,
                                               "disk", queries)
        eq(status, nbd.REP_ACK, "reply")
        eq([name for _, name in contexts], found, f"contexts for {queries}")


@case
def the_last_set_counts(box):
    client = open_hello(box)
    client.meta_context(nbd.OPT_SET_META_CONTEXT, "disk", [ALLOCATION])
    client.meta_context(nbd.OPT_SET_META_CONTEXT, "disk", [])
    eq(client.go("disk"), nbd.REP_ACK, "reply to GO")
    eq(client.call(nbd.CMD_BLOCK_STATUS, 0, 512).error, nbd.EINVAL, "error")


@case
def a_set_that_fails_selects_nothing(box):
    client = open_hello(box)
    client.meta_context(nbd.OPT_SET_META_CONTEXT, "disk", [ALLOCATION])
    status, _ = client.meta_context(nbd.OPT_SET_META_CONTEXT, "nobody",
                                    [ALLOCATION])
    eq(status, nbd.REP_ERR_UNKNOWN, "reply")
    eq(client.go("disk"), nbd.REP_ACK, "reply to GO")
    eq(client.call(nbd.CMD_BLOCK_STATUS, 0, 512).error, nbd.EINVAL, "error")


@case
def a_set_that_is_too_long_selects_nothing(box):
    """It was refused before it was looked at, and what had been set stayed."""
    client = open_hello(box)
    client.meta_context(nbd.OPT_SET_META_CONTEXT, "disk", [ALLOCATION])
    eq(client.option_status(nbd.OPT_SET_META_CONTEXT, bytes(32 * KIB + 1)),
       nbd.REP_ERR_TOO_BIG, "reply")
    eq(client.go("disk"), nbd.REP_ACK, "reply to GO")
    eq(client.call(nbd.CMD_BLOCK_STATUS, 0, 512).error, nbd.EINVAL, "error")


@case
def contexts_are_those_of_one_export(box):
    """What was set for one export is void for another."""
    client = open_hello(box)
    client.meta_context(nbd.OPT_SET_META_CONTEXT, "memory", [ALLOCATION])
    eq(client.go("disk"), nbd.REP_ACK, "reply to GO")
    eq(client.call(nbd.CMD_BLOCK_STATUS, 0, 512).error, nbd.EINVAL, "error")
    eq(client.read(0, 512), pattern(MIB)[:512], "data")


@case
def set_needs_structured_replies(box):
    client = open_hello(box, structured=False)
    status, _ = client.meta_context(nbd.OPT_SET_META_CONTEXT, "disk",
                                    [ALLOCATION])
    eq(status, nbd.REP_ERR_INVALID, "reply")
    eq(client.go("disk"), nbd.REP_ACK, "reply to GO")
    eq(client.call(nbd.CMD_BLOCK_STATUS, 0, 512).error, nbd.EINVAL, "error")


@case
def unknown_export(box):
    client = open_hello(box)
    for option in nbd.OPT_LIST_META_CONTEXT, nbd.OPT_SET_META_CONTEXT:
        status, contexts = client.meta_context(option, "nobody", [ALLOCATION])
        eq((status, contexts), (nbd.REP_ERR_UNKNOWN, []), "reply")


@case
def malformed_queries_are_invalid(box):
    client = open_hello(box)
    name = struct.pack(">I4s", 4, b"disk")
    broken = {
        "nothing": b"",
        "no count": name,
        "half a count": name + b"\0\0",
        "a name that is too long": struct.pack(">I4sI", 9, b"disk", 0),
        "a query missing": name + struct.pack(">I", 1),
        "half a query": name + struct.pack(">II3s", 1, 5, b"bas"),
        "a huge query": name + struct.pack(">II5s", 1, 2 ** 32 - 1, b"base:"),
        "a huge count": name + struct.pack(">I", 2 ** 32 - 1),
        "bytes left over": name + struct.pack(">I", 0) + b"x",
    }
    for option in nbd.OPT_LIST_META_CONTEXT, nbd.OPT_SET_META_CONTEXT:
        for what, data in broken.items():
            eq(client.option_status(option, data), nbd.REP_ERR_INVALID,
               f"reply to option {option} with {what}")
    eq(client.go("disk"), nbd.REP_ACK, "reply to GO")


# BLOCK_STATUS.

@case
def without_a_context_it_is_invalid(box):
    server = serve(box)
    for structured in False, True:
        with nbd.Client(server.address()) as client:
            client.ready(structured=structured, contexts=[])
            eq(client.call(nbd.CMD_BLOCK_STATUS, 0, 512).error, nbd.EINVAL,
               "error")
            eq(client.read(0, 512), pattern(MIB)[:512], "data")


@case
def holes_and_data_of_a_file(box):
    need_holes(box)
    server = serve(box)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        expected = [(MIB, 0), (62 * MIB, HOLE), (MIB, 0)]
        eq(states(client, 0, 64 * MIB), expected, "extents")
        eq(states(client, 512 * KIB, MIB),
           [(512 * KIB, 0), (512 * KIB, HOLE)], "extents")
        eq(states(client, 2 * MIB, 4 * MIB), [(4 * MIB, HOLE)],
           "extents")
        eq(states(client, 64 * MIB - 1, 1), [(1, 0)], "extents")


@case
def req_one_gives_one_extent(box):
    need_holes(box)
    server = serve(box)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        # The client demands that there is one, within the request.
        extent, = client.status(0, 64 * MIB, nbd.FLAG_REQ_ONE)
        eq(extent, (MIB, 0), "extent")
        extent, = client.status(MIB - 512, 512, nbd.FLAG_REQ_ONE)
        eq(extent, (512, 0), "extent")
        extent, = client.status(MIB, 64 * KIB, nbd.FLAG_REQ_ONE)
        eq(extent, (64 * KIB, HOLE), "extent")


@case
def it_follows_writes_and_trims(box):
    need_holes(box)
    server = serve(box)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        eq(client.write(8 * MIB, pattern(MIB)), nbd.OK, "WRITE")
        eq(states(client, 7 * MIB, 3 * MIB),
           [(MIB, HOLE), (MIB, 0), (MIB, HOLE)], "extents")
        eq(client.trim(8 * MIB, MIB), nbd.OK, "TRIM")
        eq(states(client, 7 * MIB, 3 * MIB), [(3 * MIB, HOLE)],
           "extents")


@case
def what_a_file_has_lost_is_no_hole(box):
    """
    Behind the end of a file that was made shorter, reads fail.  What was lost
    was told to be a hole: clients that ask first did not read it, but wrote
    zeroes, and the copy had succeeded.
    """
    need_holes(box)
    server = serve(box)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        for end in 63 * MIB + 4096, 32 * MIB + 4096 + 1, 512 * KIB, 0:
            os.truncate(server.image, end)
            for at in 0, 512 * KIB - 1, 512 * KIB, 2 * MIB, 63 * MIB:
                check_holes(client, at, end)
            extent, = client.status(end, 4096, nbd.FLAG_REQ_ONE)
            eq(extent, (4096, 0), "extent")
            run("nbdcopy", server.uri("disk"), box.path("copy"), status=1)
        eq(client.write(60 * MIB, b"grown again"), nbd.OK, "WRITE")
        eq(states(client, 48 * MIB, 4 * MIB), [(4 * MIB, HOLE)], "extents")


def check_holes(client, at, end):
    """From at on, what was a hole is one up to the end of the file."""
    while at < 64 * MIB:
        for extent in client.status(at, 64 * MIB - at):
            if MIB <= at < min(end, 63 * MIB):
                eq(extent, (min(end, 63 * MIB) - at, HOLE), f"extent at {at}")
            else:
                eq(extent.flags, 0, f"state at {at} of a file of {end} bytes")
            at += extent.length


@case
def a_file_with_many_extents(box):
    """As many as fit may be told; the first must be right."""
    need_holes(box)
    server = serve(box)
    with open(server.image, "r+b") as file:
        for i in range(500):
            file.seek(8 * MIB + i * 64 * KIB)
            file.write(b"x" * 4096)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        at = 8 * MIB
        count = 0
        while at < 8 * MIB + 500 * 64 * KIB:
            for extent in client.status(at, 8 * MIB + 500 * 64 * KIB - at):
                inside = at % (64 * KIB)
                if not extent.flags:
                    eq(inside, 0, f"start of data at {at}")
                at += extent.length
                count += 1
        assert count >= 1000, f"only {count} extents"


@case
def memory_and_null(box):
    server = serve(box)
    with nbd.Client(server.address()) as client:
        client.ready("memory")
        eq(states(client, 0, MIB), [(MIB, HOLE)], "extents")
        eq(client.write(512 * KIB, b"x"), nbd.OK, "WRITE")
        extents = states(client, 0, MIB)
        eq(extents[0][1], HOLE, "state before the byte")
        at = 0
        for length, flags in extents:
            if at <= 512 * KIB < at + length:
                eq(flags, 0, "state of the byte")
            at += length
    with nbd.Client(server.address()) as client:
        client.ready("null")
        eq(sum(length for length, _ in states(client, 0, MIB)), MIB,
           "length")


@case
def a_read_only_export(box):
    need_holes(box)
    image = box.image(data=pattern(MIB))
    server = box.server(f"disk={image},ro")
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        eq(states(client, 0, 2 * MIB), [(MIB, 0), (MIB, HOLE)],
           "extents")


@case
def behind_the_end_it_is_invalid(box):
    server = serve(box)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        for offset, length in ((64 * MIB, 1), (64 * MIB - 1, 2),
                               (2 ** 64 - 1, 1), (2 ** 64 - 1, 2)):
            eq(client.call(nbd.CMD_BLOCK_STATUS, offset, length).error,
               nbd.EINVAL, f"{offset}+{length}")
        assert client.call(nbd.CMD_BLOCK_STATUS, 0, 0).error in (
            nbd.OK, nbd.EINVAL)
        eq(client.read(0, 512), pattern(MIB)[:512], "data")


@case
def unknown_flags_are_invalid(box):
    server = serve(box)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        for flags in nbd.FLAG_DF, nbd.FLAG_NO_HOLE, 1 << 9:
            eq(client.call(nbd.CMD_BLOCK_STATUS, 0, 512, flags).error,
               nbd.EINVAL, f"flags {flags:#x}")
        eq(client.call(nbd.CMD_BLOCK_STATUS, 0, 512, nbd.FLAG_FUA).error,
           nbd.OK, "FUA")


@case
def nbdinfo_map_agrees(box):
    need_holes(box)
    server = serve(box)
    lines = run("nbdinfo", "--map", server.uri("disk")).splitlines()
    found = [tuple(int(word) for word in line.split()[:3]) for line in lines]
    eq(found, [(0, MIB, 0), (MIB, 62 * MIB, 3), (63 * MIB, MIB, 0)], "map")


@case
def qemu_img_map_agrees(box):
    need_holes(box)
    server = serve(box)
    lines = run("qemu-img", "map", "-f", "raw", server.uri("disk"))
    data = [line.split()[:2] for line in lines.splitlines()[1:]]
    eq([[int(word, 16) for word in words] for words in data],
       [[0, MIB], [63 * MIB, MIB]], "map")


main()
