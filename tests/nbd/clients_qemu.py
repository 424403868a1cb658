#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
QEMU's clients: qemu-img convert, compare and bench, qemu-io patterns.
"""

import os
import subprocess

from nbdtest import (KIB, MIB, Skip, allocated, case, main, need, need_holes,
                     pattern, rounds, run, seconds, spawn)


def qemu_io(server, *commands, read_only=False):
    """Runs the commands; qemu-io says on its output what went wrong."""
    arguments = [word for c in commands for word in ("-c", c)]
    text = run("qemu-io", *(["-r"] if read_only else []), "-f", "raw",
               server.uri("disk"), *arguments)
    for bad in "failed", "verification", "error":
        assert bad not in text.lower(), text
    return text


@case
def convert_in_compare_and_convert_out(box):
    need_holes(box)
    source = box.image("source", data=pattern(16 * MIB), size=64 * MIB)
    server = box.disk_server()
    uri = server.uri("disk")
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, box.path("out"))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", "-s", source,
        box.path("out"))
    assert allocated(server.image) <= 17 * MIB, "holes were filled"


@case
def convert_with_many_coroutines_and_out_of_order(box):
    source = box.image("source", data=pattern(32 * MIB), size=64 * MIB)
    server = box.disk_server(options=["--threads", 2])
    uri = server.uri("disk")
    run("qemu-img", "convert", "-n", "-W", "-m", 16, "-f", "raw", "-O", "raw",
        "-t", "none", "-T", "none", source, uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri)


@case
def a_qcow2_image_inside(box):
    """Metadata and data of another format, with flushes between them."""
    server = box.disk_server()
    uri = server.uri("disk")
    run("qemu-img", "create", "-f", "qcow2", uri, "32M")
    run("qemu-io", "-f", "qcow2", uri, "-c", "write -P 0x5a 1M 5M",
        "-c", "write -z 3M 64k", "-c", "discard 4M 64k", "-c", "flush")
    run("qemu-img", "check", "-f", "qcow2", uri)
    text = run("qemu-io", "-f", "qcow2", uri, "-c", "read -P 0x5a 1M 2M",
               "-c", "read -P 0 3M 64k")
    assert "failed" not in text, text


@case
def compare_finds_a_difference(box):
    """Lest the cases above pass whatever is there."""
    source = box.image("source", data=pattern(MIB), size=64 * MIB)
    server = box.disk_server(data=pattern(MIB, 1))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source,
        server.uri("disk"), status=1)


@case
def patterns(box):
    server = box.disk_server()
    qemu_io(server,
            "write -P 0xaa 0 64k", "write -P 0xbb 64k 64k",
            "read -P 0xaa 0 64k", "read -P 0xbb 64k 64k",
            "write -P 0xcc 1000 3000", "read -P 0xaa 512 488",
            "read -P 0xcc 1000 3000", "read -P 0xaa 4000 1000",
            "write -z 4k 4k", "read -P 0 4k 4k",
            "write -z -u 8k 8k", "read -P 0 8k 8k",
            "write -f -P 0xdd 1M 1M", "read -P 0xdd 1M 1M",
            "discard 1M 512k", "flush",
            "read -P 0xdd 1536k 512k")


@case
def patterns_survive_the_server(box):
    server = box.disk_server()
    qemu_io(server, "write -P 0x11 0 1M", "write -f -P 0x22 1M 1M", "flush")
    server.stop()
    server.start()
    qemu_io(server, "read -P 0x11 0 1M", "read -P 0x22 1M 1M", read_only=True)


@case
def a_wrong_pattern_is_found_out(box):
    server = box.disk_server()
    text = run("qemu-io", "-f", "raw", server.uri("disk"),
               "-c", "read -P 1 0 4k", status=None)
    assert "verification failed" in text, text


@case
def asynchronous_patterns(box):
    server = box.disk_server()
    writes = [f"aio_write -P {i + 1} {i * 64}k 64k" for i in range(64)]
    reads = [f"aio_read -P {i + 1} {i * 64}k 64k" for i in range(64)]
    qemu_io(server, *writes, "aio_flush", *reads, "aio_flush")


@case
def the_largest_request_that_qemu_makes(box):
    server = box.disk_server(size=128 * MIB)
    qemu_io(server, "write -P 7 1k 100M", "read -P 7 1k 100M",
            "write -z 0 128M", "read -P 0 0 128M")


def bench(server, *options):
    return run("qemu-img", "bench", "-f", "raw", "-c", rounds(5000),
               "-d", 32, *options, server.uri("disk"))


@case
def bench_reads_and_writes(box):
    server = box.disk_server(data=pattern(16 * MIB))
    bench(server, "-s", 4096)
    bench(server, "-s", 4096, "-w")
    bench(server, "-s", 4096, "-w", "--flush-interval=64")
    bench(server, "-s", 65536, "-S", 65536)


@case
def bench_in_several_processes_at_once(box):
    need("qemu-img")
    server = box.disk_server(options=["--threads", 2])
    crowd = [spawn("qemu-img", "bench", "-f", "raw", "-c", rounds(3000),
                   "-d", 16, "-w", "-o", i * 8 * MIB, server.uri("disk"),
                   stdout=subprocess.DEVNULL)
             for i in range(4)]
    for process in crowd:
        process.wait(seconds(60))
        assert process.returncode == 0, process.returncode


@case
def an_ext4_file_system_inside(box):
    """Made by mke2fs, copied in and out, and checked there."""
    if not os.path.exists("/sbin/mke2fs"):
        raise Skip("no mke2fs")
    source = box.image("source", size=32 * MIB)
    folder = box.path("tree")
    os.makedirs(folder)
    for i in range(100):
        with open(os.path.join(folder, f"f{i}"), "wb") as file:
            file.write(pattern(i * KIB, i))
    run("/sbin/mke2fs", "-q", "-t", "ext4", "-d", folder, source)
    server = box.disk_server(size=32 * MIB, data=pattern(32 * MIB))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source,
        server.uri("disk"))
    server.stop()
    run("/sbin/e2fsck", "-fn", server.image)


main()
