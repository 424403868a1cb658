#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
A full disk: ENOSPC for the request that met it, and everything goes on.
"""

import os
import subprocess

import nbdclient as nbd
from nbdtest import (KIB, MIB, Skip, case, case_on_uring_too, eq, main, need,
                     pattern, run)


def small_disk(box, size):
    """A folder on a tmpfs of that size, which only root can have."""
    if os.getuid() != 0:
        raise Skip("only root can mount a tmpfs")
    path = box.path("small")
    os.mkdir(path)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}",
                           "none", path], stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Skip(f"no tmpfs: {done.stderr.strip()}")
    box.stack.callback(subprocess.run, ["umount", "-l", path], check=True)
    return path


def small_file_system(box, size):
    """The same of a file system that is not in memory."""
    if os.getuid() != 0:
        raise Skip("only root can mount a file system")
    need("mkfs.ext4")
    image, path = box.image("small.img", size=size), box.path("small")
    run("mkfs.ext4", "-q", "-m", 0, "-O", "^has_journal", image)
    os.mkdir(path)
    done = subprocess.run(["mount", "-o", "loop", image, path],
                          stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Skip(f"no loop device: {done.stderr.strip()}")
    box.stack.callback(subprocess.run, ["umount", "-l", path], check=True)
    return path


def fill(client, size):
    """Writes block after block; returns the numbers of those that fitted."""
    good = []
    for i in range(size // (64 * KIB)):
        error = client.write(i * 64 * KIB, pattern(64 * KIB, i))
        assert error in (nbd.OK, nbd.ENOSPC), error
        if error == nbd.OK:
            good.append(i)
    return good


def check_goes_on(client, good):
    for i in good:
        eq(client.read(i * 64 * KIB, 64 * KIB), pattern(64 * KIB, i), "data")
        eq(client.write(i * 64 * KIB, pattern(64 * KIB, i)), nbd.OK, "WRITE")
    eq(client.flush(), nbd.OK, "FLUSH")


def full(box, disk, **options):
    server = box.server(f"disk={box.image(size=16 * MIB, at=disk)}", **options)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        good = fill(client, 16 * MIB)
        assert 32 <= len(good) <= 64, f"{len(good)} blocks fitted"
        check_goes_on(client, good)
        # Room is made, and used.
        eq(client.trim(good[0] * 64 * KIB, 64 * KIB), nbd.OK, "TRIM")
        eq(client.write(8 * MIB, pattern(4096)), nbd.OK, "WRITE")
        eq(client.read(8 * MIB, 4096), pattern(4096), "data")


def full_with_many_in_flight(box, disk, **options):
    server = box.server(f"disk={box.image(size=16 * MIB, at=disk)}", **options)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        for i in range(256):
            client.post_write(i * 64 * KIB, pattern(64 * KIB, i))
        good = []
        for reply in client.collect().values():
            assert reply.error in (nbd.OK, nbd.ENOSPC), reply.error
            if reply.error == nbd.OK:
                good.append(reply.offset // (64 * KIB))
        assert 0 < len(good) <= 64, f"{len(good)} blocks fitted"
        check_goes_on(client, good)


@case
def a_full_tmpfs(box):
    full(box, small_disk(box, 4 * MIB))


@case
def a_full_tmpfs_and_many_requests_in_flight(box):
    full_with_many_in_flight(box, small_disk(box, 4 * MIB))


@case_on_uring_too
def a_full_file_system(box):
    """Where transfers are made elsewhere: by a worker, or by the ring."""
    full(box, small_file_system(box, 4 * MIB), shim=box.shim())


@case_on_uring_too
def a_full_file_system_and_many_requests_in_flight(box):
    full_with_many_in_flight(box, small_file_system(box, 4 * MIB),
                             shim=box.shim())


@case
def a_full_tmpfs_and_zeroes_without_a_hole(box):
    disk = small_disk(box, 4 * MIB)
    server = box.server(f"disk={box.image(size=16 * MIB, at=disk)}")
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        eq(client.zero(0, 16 * MIB, nbd.FLAG_NO_HOLE), nbd.ENOSPC,
           "WRITE_ZEROES with NO_HOLE")
        eq(client.zero(0, 16 * MIB), nbd.OK, "WRITE_ZEROES")
        eq(client.read(0, MIB), bytes(MIB), "data")


@case_on_uring_too
def a_limit_of_file_size(box):
    """EFBIG is ENOSPC to a client, and the signal with it no end."""
    limited(box, box.image(size=16 * MIB), shim=box.shim())


@case
def a_limit_of_file_size_in_memory(box):
    """Where transfers are made on the loop's thread."""
    limited(box, box.image(size=16 * MIB, at=box.memory_dir()))


def limited(box, image, **options):
    server = box.server(f"disk={image}", limits={"fsize": 4 * MIB}, **options)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        good = fill(client, 16 * MIB)
        eq(good, list(range(64)), "blocks that fitted")
        # Half of it fits; the request as a whole fails.
        eq(client.write(4 * MIB - 4096, bytes(8192)), nbd.ENOSPC, "WRITE")
        eq(client.write(63 * 64 * KIB, pattern(64 * KIB, 63)), nbd.OK, "WRITE")
        check_goes_on(client, good)


main()
