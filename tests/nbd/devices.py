#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Block devices as exports: a loop device over a file, which only root can make.
"""

import errno
import os
import random
import stat
import subprocess

import nbdclient as nbd
import recorder
from nbdtest import (KIB, MIB, Shim, Skip, allocated, case, case_on_uring_too,
                     eq, main, need_holes, pattern, rounds, run, seed)

SIZE = 16 * MIB
PAGE = max(4 * KIB, os.sysconf("SC_PAGE_SIZE"))


def loop_device(box, read_only=False):
    """Returns (device, file behind it)."""
    if os.getuid() != 0:
        raise Skip("only root can make a loop device")
    image = box.image("behind.img", size=SIZE, data=pattern(MIB))
    options = ["--read-only"] if read_only else []
    try:
        done = subprocess.run(["losetup", "--find", "--show", *options, image],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True)
    except FileNotFoundError:
        raise Skip("losetup is not installed") from None
    if done.returncode != 0:
        raise Skip(f"no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()
    box.stack.callback(subprocess.run, ["losetup", "--detach", device],
                       check=True)
    return device, image


def check_all_commands(client):
    eq(client.size, SIZE, "size")
    eq(client.read(0, MIB), pattern(MIB), "data")
    for offset, length in ((MIB, MIB), (5 * MIB + 100, 70001), (SIZE - 1, 1)):
        data = pattern(length, offset)
        eq(client.write(offset, data, nbd.FLAG_FUA), nbd.OK, "WRITE")
        eq(client.read(offset, length), data, "data")
    for flags in 0, nbd.FLAG_NO_HOLE:
        eq(client.write(0, pattern(MIB)), nbd.OK, "WRITE")
        eq(client.zero(4096, 64 * KIB, flags), nbd.OK, "WRITE_ZEROES")
        eq(client.zero(512 * KIB + 7, 1000, flags), nbd.OK, "WRITE_ZEROES")
        expected = bytearray(pattern(MIB))
        expected[4096:4096 + 64 * KIB] = bytes(64 * KIB)
        expected[512 * KIB + 7:512 * KIB + 1007] = bytes(1000)
        eq(client.read(0, MIB), expected, "data")
    eq(client.trim(8 * MIB + 1, MIB), nbd.OK, "TRIM")
    eq(client.cache(0, MIB), nbd.OK, "CACHE")
    eq(client.flush(), nbd.OK, "FLUSH")
    eq(client.write(SIZE - 1, b"xy"), nbd.ENOSPC, "WRITE behind the end")
    eq(sum(e.length for e in client.status(0, SIZE)), SIZE, "extents")


@case_on_uring_too
def all_commands(box):
    device, _ = loop_device(box)
    shim = box.shim_of_ring()
    for options in [], ["--direct"]:
        server = box.server(f"disk={device}", options=options, shim=shim)
        with nbd.Client(server.address()) as client:
            client.ready("disk")
            check_all_commands(client)
            eq(client.write(0, pattern(MIB)), nbd.OK, "WRITE")
            client.disconnect()
        server.stop()


@case_on_uring_too
def trims_where_zeroes_cannot_be_written(box):
    """
    There are devices that discard, and have no command that writes zeroes.
    Once the server had learnt the latter, it did not discard any more.
    """
    need_holes(box)
    device, image = loop_device(box)
    shim = box.shim()
    server = box.server(f"disk={device}", shim=shim)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        eq(client.write(0, pattern(4 * MIB), nbd.FLAG_FUA), nbd.OK, "WRITE")
        shim.fail(Shim.ALLOCATE, errno.EOPNOTSUPP)
        eq(client.zero(0, 64 * KIB), nbd.OK, "WRITE_ZEROES")
        eq(client.read(0, 64 * KIB), bytes(64 * KIB), "data")
        eq(client.flush(), nbd.OK, "FLUSH")
        before = allocated(image)
        eq(client.trim(MIB, 2 * MIB), nbd.OK, "TRIM")
        eq(client.flush(), nbd.OK, "FLUSH")
        freed = before - allocated(image)
        assert freed >= 2 * MIB - 64 * KIB, f"{freed} bytes were discarded"
        eq(client.read(3 * MIB, MIB), pattern(4 * MIB)[3 * MIB:], "data")
        client.disconnect()


@case_on_uring_too
def zeroes_leave_the_pages_at_their_ends_to_the_page_cache(box):
    """
    The kernel drops the pages of a range, and then writes zeroes behind them.
    A page that is in the range in part only, it would let somebody else read
    and change in between, who writes back what was there before.
    """
    device, _ = loop_device(box)
    for options in [], ["--direct"]:
        shim = box.shim(record=True)
        server = box.server(f"disk={device}", options=options, shim=shim)
        with nbd.Client(server.address()) as client:
            client.ready("disk")
            for flags in 0, nbd.FLAG_NO_HOLE, nbd.FLAG_FAST_ZERO:
                check_zeroes_at_sectors(client, flags)
            client.disconnect()
        server.stop()
        recording = recorder.Recording.load(shim.log_path)
        ranges = [(c.offset, c.length) for c in
                  recording.of(recorder.ALLOCATE, os.stat(device).st_ino)]
        assert ranges, "nothing was left to the device"
        eq([r for r in ranges if r[0] % PAGE or r[1] % PAGE], [],
           "ranges that end within a page")


@case_on_uring_too
def a_fast_zero_drops_nothing_of_a_device_that_may_not_know_it(box):
    """
    The kernel drops a range's pages from its cache before it asks the device,
    which may have no command for zeroes: the client was told that nothing had
    changed, and the data was that of before the last writes.
    """
    need_holes(box)
    device, _ = loop_device(box)
    shim = box.shim(record=True)
    server = box.server(f"disk={device}", shim=shim)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        eq(client.write(2 * MIB, pattern(64 * KIB)), nbd.OK, "WRITE")
        eq(client.zero(2 * MIB, 64 * KIB, nbd.FLAG_FAST_ZERO), nbd.ENOTSUP,
           "WRITE_ZEROES with FAST_ZERO, of which nothing is known")
        eq(client.read(2 * MIB, 64 * KIB), pattern(64 * KIB), "data")
        eq(client.zero(4 * MIB, 64 * KIB), nbd.OK, "WRITE_ZEROES")
        eq(client.zero(2 * MIB, 64 * KIB, nbd.FLAG_FAST_ZERO), nbd.OK,
           "WRITE_ZEROES with FAST_ZERO, which a device of this kind has")
        eq(client.read(2 * MIB, 64 * KIB), bytes(64 * KIB), "data")
        client.disconnect()
    server.stop()
    recording = recorder.Recording.load(shim.log_path)
    eq([c.offset for c in
        recording.of(recorder.ALLOCATE, os.stat(device).st_ino)],
       [4 * MIB, 2 * MIB], "ranges that were left to the device")


def check_zeroes_at_sectors(client, flags):
    """In one page, over the edge of two, of whole ones, and of some more."""
    may_refuse = flags & nbd.FLAG_FAST_ZERO
    for start, length in ((512, 1024), (PAGE - 512, 1024), (PAGE, 4 * PAGE),
                          (512, PAGE), (PAGE + 512, 4 * PAGE),
                          (PAGE, 4 * PAGE + 512), (PAGE - 512, PAGE + 512)):
        expected = bytearray(pattern(8 * PAGE, (start, length)))
        eq(client.write(2 * MIB, expected), nbd.OK, "WRITE")
        error = client.zero(2 * MIB + start, length, flags)
        if error == nbd.OK:
            expected[start:start + length] = bytes(length)
        else:
            eq((error, bool(may_refuse)), (nbd.ENOTSUP, True), "WRITE_ZEROES")
        eq(client.read(2 * MIB, len(expected)), expected, "data")


@case_on_uring_too
def writes_of_any_alignment_past_the_page_cache(box):
    device, image = loop_device(box)
    server = box.server(f"disk={device}", options=["--direct"],
                        shim=box.shim_of_ring())
    random_ = random.Random(seed())
    model = bytearray(pattern(MIB) + bytes(MIB))
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        for _ in range(rounds(200)):
            length = random_.choice([1, 511, 512, 4096, 5000, 65536])
            at = random_.randrange(len(model) - length)
            data = random_.randbytes(length)
            eq(client.write(at, data), nbd.OK, "WRITE")
            model[at:at + length] = data
        eq(client.flush(), nbd.OK, "FLUSH")
        eq(client.read(0, len(model)), model, "data")
        client.disconnect()
    server.stop()
    with open(image, "rb") as file:
        eq(file.read(len(model)), bytes(model), "the file behind it")


@case
def neighbours_in_one_block_of_a_device_with_several_exports(box):
    """A device may have several nodes, in folders with numbers of their own."""
    device, _ = loop_device(box)
    node = box.path("node")
    try:
        os.mknod(node, 0o600 | stat.S_IFBLK, os.stat(device).st_rdev)
        os.close(os.open(node, os.O_RDWR))
    except OSError as error:
        raise Skip(f"no second node of the device: {error}") from None
    shim = box.shim()
    server = box.server(f"one={device}", f"two={node}", shim=shim,
                        options=["--direct", "--threads", 2])
    clients = [box.closing(nbd.Client(server.address()).ready(name))
               for name in ("one", "two")]
    nbd.check_neighbours_in_one_block(shim, *clients)
    for client in clients:
        client.disconnect()
    server.stop()


@case_on_uring_too
def a_device_that_is_read_only(box):
    """It can be served as such, and is refused otherwise."""
    device, _ = loop_device(box, read_only=True)
    server = box.server(f"disk={device},ro", shim=box.shim_of_ring())
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        eq(client.read(0, MIB), pattern(MIB), "data")
        eq(client.write(0, b"x"), nbd.EPERM, "WRITE")
        client.disconnect()


@case_on_uring_too
def durability(box):
    device, _ = loop_device(box)
    shim = box.shim(record=True)
    server = box.server(f"disk={device}", shim=shim)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        for i in range(20):
            eq(client.write(i * 4096, pattern(4096, i)), nbd.OK, "WRITE")
            eq(client.flush(), nbd.OK, "FLUSH")
            eq(client.write(MIB + i * 4096, pattern(4096, i), nbd.FLAG_FUA),
               nbd.OK, "WRITE with FUA")
        client.disconnect()
    server.stop()
    report = recorder.check_durability(recorder.Recording.load(shim.log_path),
                                       os.stat(device).st_ino)
    eq(report.violations, [], "violations")
    eq((report.flushes, report.fuas), (20, 20), "flushes and FUA")
    eq(report.by_ring, report.changes if box.ring else 0, "writes by the ring")


@case_on_uring_too
def qemu_img(box):
    device, _ = loop_device(box)
    server = box.server(f"disk={device}", shim=box.shim_of_ring())
    source = box.image("source", size=SIZE, data=pattern(4 * MIB, 1))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source,
        server.uri("disk"))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source,
        server.uri("disk"))


main()
