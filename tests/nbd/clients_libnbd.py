#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
libnbd's clients: nbdcopy in and out, holes included, and nbdinfo.
"""

import filecmp
import json
import os

from nbdtest import (KIB, MIB, allocated, case, eq, main, need_holes, pattern,
                     run)


def sparse_source(box, size=64 * MIB):
    """Data of 1 MiB in four places; the rest is a hole."""
    source = box.image("source", size=size)
    with open(source, "r+b") as file:
        for i in range(4):
            file.seek(i * size // 4 + i * 4096)
            file.write(pattern(MIB, i))
    return source


def same(box, one, other):
    assert filecmp.cmp(box.path(one), box.path(other), shallow=False), \
        f"{one} and {other} differ"


def copy_in_and_out(box, server, *options):
    source = box.image("source", data=pattern(32 * MIB + 512), size=0)
    os.truncate(server.image, os.path.getsize(source))
    server.stop()
    server.start()
    run("nbdcopy", *options, source, server.uri("disk"))
    run("nbdcopy", *options, server.uri("disk"), box.path("out"))
    same(box, "source", "disk.img")
    same(box, "source", "out")


@case
def copy(box):
    copy_in_and_out(box, box.disk_server())


@case
def copy_synchronously(box):
    copy_in_and_out(box, box.disk_server(), "--synchronous")


@case
def copy_over_several_connections(box):
    copy_in_and_out(box, box.disk_server(options=["--threads", 2]),
                    "--connections", 4, "--requests", 16)


@case
def copy_in_small_pieces(box):
    copy_in_and_out(box, box.disk_server(), "--request-size", 4096,
                    "--requests", 64)


@case
def copy_in_the_largest_pieces(box):
    copy_in_and_out(box, box.disk_server(), "--request-size", 32 * MIB)


@case
def copy_over_tcp(box):
    copy_in_and_out(box, box.disk_server(unix=False, tcp=["127.0.0.1"]),
                    "--connections", 2)


@case
def copy_with_one_thread_and_little_room(box):
    copy_in_and_out(box, box.disk_server(
        options=["--threads", 1, "--max-inflight", 300 * KIB]))


@case
def holes_survive_on_the_way_in(box):
    """nbdcopy writes them as zeroes, which the server punches."""
    need_holes(box)
    source = sparse_source(box)
    server = box.disk_server(data=pattern(64 * MIB))
    assert allocated(server.image) >= 64 * MIB
    run("nbdcopy", source, server.uri("disk"))
    same(box, "source", "disk.img")
    assert allocated(server.image) <= 5 * MIB, "holes were filled"


@case
def holes_survive_on_the_way_out(box):
    """nbdcopy learns of them through BLOCK_STATUS."""
    need_holes(box)
    source = sparse_source(box)
    server = box.server(f"disk={source}")
    run("nbdcopy", server.uri("disk"), box.path("out"))
    same(box, "source", "out")
    assert allocated(box.path("out")) <= 5 * MIB, "holes were filled"
    assert allocated(source) <= 5 * MIB, "reading has filled holes"


@case
def holes_stay_in_an_empty_image(box):
    need_holes(box)
    source = sparse_source(box)
    server = box.disk_server()
    run("nbdcopy", "--destination-is-zero", source, server.uri("disk"))
    same(box, "source", "disk.img")
    assert allocated(server.image) <= 5 * MIB, "holes were filled"


@case
def allocated_fills_holes(box):
    """nbdcopy --allocated asks for NO_HOLE."""
    need_holes(box)
    source = sparse_source(box)
    server = box.disk_server()
    run("nbdcopy", "--allocated", source, server.uri("disk"))
    same(box, "source", "disk.img")
    assert allocated(server.image) >= 64 * MIB, "there are holes"


@case
def copy_from_server_to_server(box):
    source = sparse_source(box)
    one = box.server(f"disk={source}")
    two = box.disk_server()
    run("nbdcopy", one.uri("disk"), two.uri("disk"))
    same(box, "source", "disk.img")


@case
def copy_into_memory(box):
    source = sparse_source(box)
    server = box.server("ram=memory:64M")
    run("nbdcopy", source, server.uri("ram"))
    run("nbdcopy", server.uri("ram"), box.path("out"))
    same(box, "source", "out")


def nbdinfo_of(uri, *options, **more):
    """Without a look at the content, for which nbdinfo asks file(1): where
    that is not installed, libnbd 1.14 prints whatever its memory holds."""
    return run("nbdinfo", "--no-content", *options, uri, **more)


@case
def nbdinfo(box):
    image = box.image(size=MIB)
    server = box.server(f"disk={image}", f"safe={image},ro")
    for name in "disk", "safe":
        info, = json.loads(nbdinfo_of(server.uri(name), "--json"))["exports"]
        read_only = name == "safe"
        expected = {
            "export-name": name, "export-size": MIB,
            "contexts": ["base:allocation"], "is_read_only": read_only,
            "can_cache": True, "can_df": True, "can_flush": True,
            "can_fua": True, "can_multi_conn": True,
            "can_trim": not read_only, "can_zero": not read_only,
            "can_fast_zero": not read_only, "block_size_minimum": 1,
            "block_size_maximum": 32 * MIB,
        }
        eq({key: info.get(key) for key in expected}, expected, "information")


@case
def nbdinfo_of_nobody(box):
    """A clear error, and the server goes on."""
    server = box.server("disk=memory:1M")
    text = nbdinfo_of(server.uri("nobody"), status=1)
    assert "nobody" in text, text
    nbdinfo_of(server.uri("disk"))


main()
