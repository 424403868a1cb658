#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
fio, with its own NBD client: random I/O whose contents it verifies.
"""

from nbdtest import (MIB, Skip, case, main, need, need_direct, rounds, run,
                     seed)


def need_fio():
    need("fio")
    if "uri" not in run("fio", "--enghelp=nbd", status=None):
        raise Skip("fio has no nbd engine")


def fio(box, uri, *options):
    """Fails if fio finds other data than it has written."""
    text = run("fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}",
               f"--randseed={seed()}", "--verify=crc32c",
               "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0",
               *options, cwd=box.dir, limit=80)
    assert "err= 0" in text, text


def size_per_job(mib):
    return rounds(mib) * MIB


@case
def random_writes_at_depth_32(box):
    need_fio()
    server = box.disk_server(size=64 * MIB)
    fio(box, server.uri("disk"), "--rw=randwrite", "--bs=4k", "--iodepth=32",
        f"--size={size_per_job(32)}")


@case
def mixed_sizes_at_depth_32(box):
    need_fio()
    server = box.disk_server(size=128 * MIB)
    fio(box, server.uri("disk"), "--rw=randwrite", "--bsrange=512-256k",
        "--bs_unaligned=1", "--iodepth=32", f"--size={size_per_job(64)}")


@case
def reads_and_writes_with_flushes(box):
    need_fio()
    server = box.disk_server(size=64 * MIB)
    fio(box, server.uri("disk"), "--rw=randrw", "--bs=4k", "--iodepth=32",
        "--fsync=64", f"--size={size_per_job(16)}")


@case
def four_jobs(box):
    """Each with a connection and a quarter of the disk to itself."""
    need_fio()
    server = box.disk_server(size=128 * MIB, options=["--threads", 2])
    fio(box, server.uri("disk"), "--rw=randwrite", "--bs=4k", "--iodepth=32",
        "--numjobs=4", "--group_reporting", f"--size={size_per_job(16)}",
        "--offset_increment=32m")


@case
def four_jobs_over_tcp(box):
    need_fio()
    server = box.disk_server(size=128 * MIB, unix=False, tcp=["127.0.0.1"],
                             options=["--threads", 2])
    fio(box, server.uri("disk"), "--rw=randwrite", "--bs=16k",
        "--iodepth=32", "--numjobs=4", "--group_reporting",
        f"--size={size_per_job(16)}", "--offset_increment=32m")


@case
def four_jobs_in_memory(box):
    need_fio()
    server = box.server("disk=memory:128M", options=["--threads", 2])
    fio(box, server.uri("disk"), "--rw=randwrite", "--bs=4k", "--iodepth=32",
        "--numjobs=4", "--group_reporting", f"--size={size_per_job(16)}",
        "--offset_increment=32m")


@case
def four_jobs_past_the_page_cache(box):
    need_fio()
    need_direct(box)
    server = box.disk_server(size=128 * MIB, options=["--threads", 2,
                                                      "--direct"])
    fio(box, server.uri("disk"), "--rw=randwrite", "--bs=4k", "--iodepth=32",
        "--numjobs=4", "--group_reporting", f"--size={size_per_job(4)}",
        "--offset_increment=32m")


main()
