#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
--direct: past the page cache where that can be had, at any alignment that
clients may use, and without where it cannot.
"""

import os
import random
import re

import nbdclient as nbd
from nbdtest import (KIB, MIB, Shim, case, eq, main, need_direct, need_disk,
                     pattern, rounds, run, seed)


def direct_server(box, **options):
    need_direct(box)
    return box.disk_server(options=["--direct"], **options)


def open_flags(server, path):
    """The flags of the server's descriptor of that file."""
    folder = f"/proc/{server.process.pid}/fd"
    for fd in os.listdir(folder):
        if os.readlink(f"{folder}/{fd}") == path:
            with open(f"/proc/{server.process.pid}/fdinfo/{fd}") as info:
                return int(re.search(r"flags:\s+(\d+)", info.read())[1], 8)
    raise AssertionError(f"{path} is not open")


@case
def the_file_is_open_for_direct_io(box):
    server = direct_server(box)
    assert open_flags(server, server.image) & os.O_DIRECT, "no O_DIRECT"
    plain = box.server(f"disk={box.image('plain.img')}")
    assert not open_flags(plain, box.path("plain.img")) & os.O_DIRECT


@case
def long_commands_let_others_in(box):
    """
    A write of a part of a block waits for the command that is on, and all
    other writes wait behind it; so one of 4 GiB would hold up everybody.
    """
    shim = box.shim()
    server = direct_server(box, size=512 * MIB, shim=shim)
    with nbd.Client(server.address()) as client:
        client.ready()
        for command, offset, length, pieces in (
                (nbd.CMD_TRIM, 0, 300 * MIB, 5),
                (nbd.CMD_WRITE_ZEROES, 512, 64 * MIB, 2)):
            before = shim.calls(Shim.ALLOCATE)
            reply = client.call(command, offset, length)
            eq(reply.error, nbd.OK, "command")
            eq(shim.calls(Shim.ALLOCATE) - before, pieces, "pieces")
        # One that comes during the first piece is done before the next.
        shim.shut_gate(Shim.ALLOCATE)
        trim = client.post(nbd.CMD_TRIM, 0, 300 * MIB)
        shim.wait_held(Shim.ALLOCATE)
        write = client.post_write(400 * MIB + 5, pattern(1000))
        client.read(0, 512)   # by now it waits
        shim.open_gate(Shim.ALLOCATE)
        eq([client.reply().cookie for _ in range(2)], [write, trim],
           "the order of the replies")


@case
def a_memory_file_system_does_without(box):
    image = box.image(at=box.memory_dir())
    server = box.server(f"disk={image}", options=["--direct"])
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        eq(client.write(5, pattern(5000)), nbd.OK, "WRITE")
        eq(client.read(5, 5000), pattern(5000), "data")


@case
def a_size_that_no_block_divides(box):
    """The tail is served, too."""
    size = 4 * MIB + 100
    server = direct_server(box, size=size, data=pattern(size))
    with nbd.Client(server.address()) as client:
        client.ready()
        eq(client.size, size, "size")
        eq(client.read(size - 4196, 4196), pattern(size)[-4196:], "data")
        eq(client.write(size - 50, b"x" * 50), nbd.OK, "WRITE")
        eq(client.read(size - 100, 100), pattern(size)[-100:-50] + b"x" * 50,
           "data")
        eq(client.flush(), nbd.OK, "FLUSH")
    server.stop()
    with open(server.image, "rb") as image:
        eq(len(image.read()), size, "size of the file")


@case
def any_alignment(box):
    server = direct_server(box, size=4 * MIB, data=pattern(4 * MIB))
    model = bytearray(pattern(4 * MIB))
    random_ = random.Random(seed())
    with nbd.Client(server.address()) as client:
        client.ready()
        for _ in range(rounds(300)):
            step(client, random_, model)
        eq(client.flush(), nbd.OK, "FLUSH")
        eq(client.read(0, 4 * MIB), bytes(model), "data")
    server.stop()
    with open(server.image, "rb") as image:
        eq(image.read(), bytes(model), "the file")


def step(client, random_, model):
    grain = random_.choice([1, 512, 4096])
    length = random_.choice([1, 511, 512, 4096, 5000, 65536, 300000])
    at = random_.randrange(len(model) - length) // grain * grain
    kind = random_.randrange(3)
    if kind == 0:
        data = random_.randbytes(length)
        eq(client.write(at, data), nbd.OK, "WRITE")
        model[at:at + length] = data
    elif kind == 1:
        eq(client.zero(at, length), nbd.OK, "WRITE_ZEROES")
        model[at:at + length] = bytes(length)
    else:
        eq(client.read(at, length), bytes(model[at:at + length]), "data")


@case
def neighbours_in_one_block_written_at_once(box):
    """
    Each write must read the block, change its part and write it back; none
    may undo another, on whichever connection.
    """
    server = direct_server(box, size=MIB)
    clients = [box.closing(nbd.Client(server.address()).ready())
               for _ in range(4)]
    piece = 64
    for round_ in range(rounds(10)):
        for i in range(512):
            clients[i % 4].post_write(i * piece, pattern(piece, (round_, i)))
        for client in clients:
            for reply in client.collect().values():
                eq(reply.error, nbd.OK, "WRITE")
        expected = b"".join(pattern(piece, (round_, i)) for i in range(512))
        eq(clients[0].read(0, 512 * piece), expected, "data")


@case
def neighbours_in_one_block_of_a_file_with_several_exports(box):
    """Each export once had a lock of its own, whatever file it was of."""
    need_direct(box)
    need_disk()
    image, link = box.image(size=4 * MIB), box.path("link.img")
    os.link(image, link)
    for other in image, link:
        shim = box.shim()
        server = box.server(f"one={image}", f"two={other}", shim=shim,
                            options=["--direct", "--threads", 2])
        clients = [box.closing(nbd.Client(server.address()).ready(name))
                   for name in ("one", "two")]
        nbd.check_neighbours_in_one_block(shim, *clients)
        server.stop()


@case
def large_requests(box):
    server = direct_server(box)
    data = pattern(32 * MIB)
    with nbd.Client(server.address()) as client:
        client.ready()
        for offset in 0, 12345:
            eq(client.write(offset, data, nbd.FLAG_FUA), nbd.OK, "WRITE")
            assert client.read(offset, 32 * MIB) == data, "data differ"


@case
def clients_agree(box):
    server = direct_server(box)
    source = box.image("source", data=pattern(16 * MIB), size=64 * MIB)
    run("nbdcopy", "--request-size", 256 * KIB, source, server.uri("disk"))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source,
        server.uri("disk"))


main()
