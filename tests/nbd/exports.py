#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Exports: several at once, the default one, read-only ones, memory: and null:.
"""

import os
import re
import stat
import struct

import nbdclient as nbd
from nbdtest import (GIB, KIB, MIB, WRAPPER, Skip, case, eq, is_instrumented,
                     main, pattern, run)


def open_ready(box, server, name="", **options):
    return box.closing(nbd.Client(server.address()).ready(name, **options))


@case
def several_exports_keep_their_data_apart(box):
    names = ["a", "b", "c d", "naïve/ünïcode", "x" * 255, "-", "memory:1M"]
    server = box.server(
        *(f"{name}={box.image(f'{i}.img', size=MIB * (i + 1))}"
          for i, name in enumerate(names)))
    clients = [open_ready(box, server, name) for name in names]
    for i, client in enumerate(clients):
        eq(client.size, MIB * (i + 1), "size")
        eq(client.write(512, pattern(4096, names[i])), nbd.OK, "WRITE")
    for i, client in enumerate(clients):
        eq(client.read(512, 4096), pattern(4096, names[i]), "data")
        eq(client.flush(), nbd.OK, "FLUSH")
        with open(box.path(f"{i}.img"), "rb") as image:
            image.seek(512)
            eq(image.read(4096), pattern(4096, names[i]), "data in the file")
    listed = box.closing(nbd.Client(server.address()).hello()).list_exports()
    eq(sorted(listed), sorted(names), "names")


@case
def one_file_under_two_names(box):
    """Each with a description of its own, and the same bytes."""
    image = box.image(size=MIB)
    server = box.server(f"rw={image}", f"ro={image},ro")
    one, two = open_ready(box, server, "rw"), open_ready(box, server, "ro")
    eq(one.write(0, b"seen"), nbd.OK, "WRITE")
    eq(two.read(0, 4), b"seen", "data")
    eq(two.write(0, b"nope"), nbd.EPERM, "WRITE")


@case
def a_single_export_is_the_default(box):
    server = box.server("disk=memory:1M")
    eq(open_ready(box, server).size, MIB, "size")


@case
def the_default_export_is_the_one_named(box):
    server = box.server("a=memory:1M", "b=memory:2M", "c=memory:3M",
                        options=["--default-export", "b"])
    eq(open_ready(box, server).size, 2 * MIB, "size")
    eq(open_ready(box, server, "c").size, 3 * MIB, "size")


@case
def several_exports_have_no_default(box):
    server = box.server("a=memory:1M", "b=memory:2M")
    with nbd.Client(server.address()) as client:
        eq(client.hello().go(""), nbd.REP_ERR_UNKNOWN, "reply to GO")


@case
def nbdinfo_lists_them(box):
    server = box.server("first=memory:1M", "second=memory:2M,ro")
    text = run("nbdinfo", "--list", server.uri())
    for line in ('export="first":', 'export="second":', "1048576", "2097152"):
        assert line in text, f"{line} is not in\n{text}"


@case
def clients_list_many_exports(box):
    """
    They ask about each, two or three options an export, on one connection.
    The limit of options once had room for 42 exports.
    """
    names = [f"number {i}" for i in range(100)]
    server = box.server(*(f"{name}=memory:1M" for name in names),
                        options=["--handshake-timeout", 600])
    for command in (["nbdinfo", "--list", "--no-content", server.uri()],
                    ["qemu-nbd", "--list", "--socket", server.unix]):
        listed = re.findall(r"export(?:=|: )[\"'](number \d+)[\"']",
                            run(*command))
        eq(sorted(listed), sorted(names), f"names that {command[0]} lists")


@case
def a_read_only_export_refuses_writes(box):
    """With EPERM, payloads skipped, the file unchanged."""
    image = box.image(data=pattern(MIB))
    before = os.stat(image).st_mtime_ns
    server = box.server(f"disk={image},ro", "memory=memory:1M,ro")
    for name in "disk", "memory":
        for structured in False, True:
            client = open_ready(box, server, name, structured=structured)
            assert client.flags & nbd.READ_ONLY, "NBD_FLAG_READ_ONLY"
            for fua in 0, nbd.FLAG_FUA:
                eq(client.write(0, bytes(4096), fua), nbd.EPERM, "WRITE")
                eq(client.zero(0, 4096, fua), nbd.EPERM, "WRITE_ZEROES")
                eq(client.trim(0, 4096, fua), nbd.EPERM, "TRIM")
            eq(client.flush(), nbd.OK, "FLUSH")
            eq(client.cache(0, 4096), nbd.OK, "CACHE")
            expected = pattern(MIB)[:4096] if name == "disk" else bytes(4096)
            eq(client.read(0, 4096), expected, "data")
    eq(os.stat(image).st_mtime_ns, before, "time of the last change")


@case
def a_read_only_export_needs_no_permission_to_write(box):
    image = box.image(data=pattern(4096), size=4096)
    os.chmod(image, stat.S_IRUSR)
    server = box.server(f"disk={image},ro")
    eq(open_ready(box, server).read(0, 4096), pattern(4096), "data")


@case
def memory_is_as_large_as_what_was_written(box):
    if WRAPPER:
        raise Skip("Valgrind has no room for a mapping of 1 TiB")
    server = box.server("huge=memory:1T")
    client = open_ready(box, server)
    eq(client.size, 1024 * GIB, "size")
    before = server.rss()
    for i in range(64):
        eq(client.read(i * 16 * GIB, MIB), bytes(MIB), "data")
    eq(client.write(1024 * GIB - 4, b"tail"), nbd.OK, "WRITE")
    eq(client.read(1024 * GIB - 8, 8), bytes(4) + b"tail", "data")
    if not is_instrumented():
        grown = server.rss() - before
        assert grown < 32 * MIB, f"{grown // KIB} KiB more in use"


@case
def memory_gives_back_what_is_trimmed(box):
    if is_instrumented():
        raise Skip("the memory of an instrumented server says nothing")
    server = box.server("disk=memory:256M")
    client = open_ready(box, server)
    for i in range(8):
        eq(client.write(i * 16 * MIB, pattern(16 * MIB)), nbd.OK, "WRITE")
    full = server.rss()
    eq(client.trim(0, 128 * MIB), nbd.OK, "TRIM")
    given = full - server.rss()
    assert given > 96 * MIB, f"only {given // KIB} KiB were given back"
    eq(client.read(0, 4096), bytes(4096), "data")


@case
def memory_that_is_trimmed_from_anywhere_on_is_a_hole(box):
    """
    It is done piece by piece; when these did not end where chunks do, a chunk
    in each mebibyte stayed data.
    """
    server = box.server("disk=memory:16M")
    chunk = 64 * KIB
    for command in "trim", "zero":
        with nbd.Client(server.address()) as client:
            client.ready("disk")
            eq(client.write(0, pattern(16 * MIB)), nbd.OK, "WRITE")
            eq(getattr(client, command)(4 * KIB, 8 * MIB), nbd.OK, command)
            eq([(e.length, e.flags != 0) for e in client.status(0, 16 * MIB)],
               [(chunk, False), (8 * MIB - chunk, True),
                (8 * MIB, False)], "extents")
            client.disconnect()


@case
def memory_that_was_not_written_lies_beside_what_was(box):
    """Replies leave from the memory itself where all of it is in use."""
    server = box.server("disk=memory:1M")
    client = open_ready(box, server)
    expected = bytearray(MIB)
    for at, length in (64 * KIB, 64 * KIB), (200 * KIB, 3), (MIB - 1, 1):
        expected[at:at + length] = pattern(length, at)
        eq(client.write(at, pattern(length, at)), nbd.OK, "WRITE")
    for structured in False, True:
        with nbd.Client(server.address()) as reader:
            reader.ready(structured=structured)
            for at in 0, 1, 64 * KIB - 1, 64 * KIB, 128 * KIB - 1, 200 * KIB:
                for length in 1, 2, 4096, 64 * KIB, 65 * KIB, 192 * KIB:
                    eq(reader.read(at, length), bytes(expected[at:at + length]),
                       f"{length} bytes at {at}")
            eq(reader.read(0, MIB), bytes(expected), "all")


@case
def reads_of_memory_need_no_memory(box):
    """A client that takes no replies holds no copies of what it asked for."""
    if is_instrumented():
        raise Skip("the memory of an instrumented server says nothing")
    server = box.server("disk=memory:4M")
    client = open_ready(box, server)
    eq(client.write(0, pattern(4 * MIB)), nbd.OK, "WRITE")
    before = server.rss()
    posted = [client.post(nbd.CMD_READ, 0, 4 * MIB) for _ in range(15)]
    eq(open_ready(box, server).read(MIB, 8), pattern(4 * MIB)[MIB:MIB + 8],
       "data of another client")
    for cookie in posted:
        reply = client.reply()
        eq(reply.cookie, cookie, "cookie")
        eq(reply.data, pattern(4 * MIB), "data")
    grown = server.rss() - before
    assert grown < 4 * MIB, f"{grown // KIB} KiB more in use"


@case
def memory_is_shared_by_all_connections(box):
    server = box.server("disk=memory:1M")
    clients = [open_ready(box, server) for _ in range(8)]
    for i, client in enumerate(clients):
        eq(client.write(i, bytes([65 + i])), nbd.OK, "WRITE")
    for client in clients:
        eq(client.read(0, 8), b"ABCDEFGH", "data")


@case
def null_reads_zeroes_and_forgets_writes(box):
    server = box.server("null=null:7E")
    client = open_ready(box, server)
    eq(client.write(0, pattern(MIB)), nbd.OK, "WRITE")
    eq(client.read(0, MIB), bytes(MIB), "data")
    eq(client.read(client.size - MIB, MIB), bytes(MIB), "data")
    for length in 1, 128 * KIB, 128 * KIB + 1:
        eq(client.read(4096, length), bytes(length), f"{length} bytes")
    eq(client.call(nbd.CMD_READ, client.size, 1).error, nbd.EINVAL, "READ")
    eq(client.flush(), nbd.OK, "FLUSH")


@case
def sizes_have_suffixes(box):
    sizes = {"123": 123, "1k": KIB, "3K": 3 * KIB, "2M": 2 * MIB,
             "1g": GIB, "1T": 1024 * GIB, "1P": 1024 ** 5, "0": 0}
    server = box.server(*(f"{text}=null:{text}" for text in sizes))
    for text, size in sizes.items():
        eq(open_ready(box, server, text).size, size, f"size of {text}")


@case
def an_empty_file(box):
    server = box.server(f"disk={box.image(size=0)}")
    client = open_ready(box, server)
    eq(client.size, 0, "size")
    eq(client.call(nbd.CMD_READ, 0, 1).error, nbd.EINVAL, "READ")
    eq(client.write(0, b"x"), nbd.ENOSPC, "WRITE")
    eq(client.flush(), nbd.OK, "FLUSH")


@case
def a_file_that_shrinks(box):
    """Reads of what is gone fail; the rest goes on."""
    server = box.disk_server(size=MIB, data=pattern(MIB))
    client = open_ready(box, server)
    os.truncate(server.image, 64 * KIB)
    eq(client.call(nbd.CMD_READ, 128 * KIB, 4096).error, nbd.EIO, "READ")
    eq(client.call(nbd.CMD_READ, 63 * KIB, 4096).error, nbd.EIO, "READ")
    eq(client.read(0, 4096), pattern(MIB)[:4096], "data")
    eq(client.write(128 * KIB, b"grown again"), nbd.OK, "WRITE")
    eq(client.read(128 * KIB, 11), b"grown again", "data")


@case
def block_sizes(box):
    server = box.server(f"disk={box.image()}", "memory=memory:1M",
                        "null=null:1M")
    for name in "disk", "memory", "null":
        with nbd.Client(server.address()) as client:
            client.hello()
            eq(client.go(name, [nbd.INFO_BLOCK_SIZE]), nbd.REP_ACK, "GO")
            least, preferred, most = struct.unpack(
                ">III", client.infos[nbd.INFO_BLOCK_SIZE])
            eq((least, most), (1, 32 * MIB), "least and most")
            assert 512 <= preferred <= 64 * KIB, preferred


main()
