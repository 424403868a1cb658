#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Files that fail: EIO and others, injected by the preloaded shim.

Above all: after a failed sync the kernel may have thrown away what it could
not write, and another sync would succeed falsely.  So the export is marked
failed, and every later FLUSH or FUA, on any connection, answers EIO.
"""

import errno

import nbdclient as nbd
from nbdtest import (KIB, MIB, Shim, case, case_on_uring_too, eq, main,
                     pattern)


def failing_server(box, **options):
    shim = box.shim()
    return box.disk_server(shim=shim, data=pattern(4 * MIB), **options), shim


def ready(box, server):
    return box.closing(nbd.Client(server.address()).ready())


def check_failed_for_good(client):
    """Nothing that promises durability succeeds; everything else does."""
    fua = nbd.FLAG_FUA
    for _ in range(3):
        eq(client.flush(), nbd.EIO, "FLUSH")
        eq(client.write(0, pattern(512), fua), nbd.EIO, "WRITE with FUA")
        eq(client.zero(4096, 512, fua), nbd.EIO, "WRITE_ZEROES with FUA")
        eq(client.trim(8192, 512, fua), nbd.EIO, "TRIM with FUA")
        eq(client.read(0, 512), pattern(512), "data")
        eq(client.write(0, pattern(512)), nbd.OK, "WRITE")


@case_on_uring_too
def a_failed_flush_fails_all_later_ones(box):
    for error in errno.EIO, errno.ENOSPC, errno.EDQUOT:
        server, shim = failing_server(box)
        one, two = ready(box, server), ready(box, server)
        eq(one.write(0, pattern(512)), nbd.OK, "WRITE")
        eq(one.flush(), nbd.OK, "FLUSH")
        shim.fail(Shim.SYNC, error)
        assert one.flush() != nbd.OK, "FLUSH"
        check_failed_for_good(two)
        # The injection ends; the mark stays.
        shim.fail(Shim.SYNC, 0)
        check_failed_for_good(one)
        check_failed_for_good(two)
        check_failed_for_good(ready(box, server))


@case_on_uring_too
def a_failed_fua_fails_all_later_ones(box):
    server, shim = failing_server(box)
    one, two = ready(box, server), ready(box, server)
    shim.fail(Shim.SYNC, errno.EIO)
    eq(one.write(0, pattern(512), nbd.FLAG_FUA), nbd.EIO, "WRITE with FUA")
    shim.fail(Shim.SYNC, 0)
    check_failed_for_good(one)
    check_failed_for_good(two)


@case
def flushes_that_wait_for_a_failing_sync_fail(box):
    """Several are in flight on two connections when the sync fails."""
    server, shim = failing_server(box)
    one, two = ready(box, server), ready(box, server)
    eq(one.write(0, pattern(512)), nbd.OK, "WRITE")
    shim.shut_gate(Shim.SYNC)
    for client in one, two:
        for _ in range(5):
            client.post(nbd.CMD_FLUSH)
    shim.wait_held(Shim.SYNC)
    shim.fail(Shim.SYNC, errno.EIO)
    shim.open_gate(Shim.SYNC)
    for client in one, two:
        for reply in client.collect().values():
            eq(reply.error, nbd.EIO, "FLUSH")


@case
def a_sync_that_could_not_begin_has_lost_nothing(box):
    """There is no thread to be had that would make it, for a while."""
    server, shim = failing_server(box)
    client = ready(box, server)
    shim.fail_threads(errno.EAGAIN)
    eq(client.flush(), nbd.ENOMEM, "FLUSH")
    eq(shim.calls(Shim.SYNC), 0, "syncs")
    shim.fail_threads(0)
    eq(client.flush(), nbd.OK, "FLUSH")
    eq(client.write(0, pattern(512), nbd.FLAG_FUA), nbd.OK, "WRITE with FUA")


@case_on_uring_too
def another_export_is_not_concerned(box):
    """The mark belongs to one export."""
    shim = box.shim()
    server = box.server(f"a={box.image('a.img')}", f"b={box.image('b.img')}",
                        shim=shim)
    one = box.closing(nbd.Client(server.address()).ready("a"))
    two = box.closing(nbd.Client(server.address()).ready("b"))
    shim.fail(Shim.SYNC, errno.EIO)
    eq(one.flush(), nbd.EIO, "FLUSH")
    shim.fail(Shim.SYNC, 0)
    eq(one.flush(), nbd.EIO, "FLUSH")
    eq(two.write(0, pattern(512), nbd.FLAG_FUA), nbd.OK, "WRITE")
    eq(two.flush(), nbd.OK, "FLUSH")


@case_on_uring_too
def a_restart_clears_the_mark(box):
    server, shim = failing_server(box)
    shim.fail(Shim.SYNC, errno.EIO)
    client = ready(box, server)
    eq(client.write(0, pattern(512)), nbd.OK, "WRITE")
    eq(client.flush(), nbd.EIO, "FLUSH")
    shim.fail(Shim.SYNC, 0)
    server.stop()
    server.start()
    eq(ready(box, server).flush(), nbd.OK, "FLUSH")


@case_on_uring_too
def an_interrupted_sync_is_no_failure(box):
    server, shim = failing_server(box)
    client = ready(box, server)
    shim.limit(interrupt=2)
    for i in range(5):
        eq(client.write(i, b"x", nbd.FLAG_FUA), nbd.OK, "WRITE with FUA")
        eq(client.flush(), nbd.OK, "FLUSH")
    shim.limit()


@case_on_uring_too
def failing_writes(box):
    """They fail alone; what is elsewhere, and comes later, goes well."""
    server, shim = failing_server(box)
    client = ready(box, server)
    shim.concern(MIB, MIB + 4096)
    for error, answer in ((errno.EIO, nbd.EIO), (errno.ENOSPC, nbd.ENOSPC),
                          (errno.EDQUOT, nbd.ENOSPC),
                          (errno.EFBIG, nbd.ENOSPC), (errno.EPERM, nbd.EPERM),
                          (errno.ESTALE, nbd.EIO)):
        shim.fail(Shim.WRITE, error)
        what = f"WRITE that fails with {errno.errorcode[error]}"
        eq(client.write(MIB, bytes(4096)), answer, what)
        eq(client.write(MIB - 4096, bytes(64 * KIB)), answer, what)
        eq(client.write(2 * MIB, pattern(4096)), nbd.OK, "WRITE elsewhere")
    shim.fail(Shim.WRITE, 0)
    eq(client.write(MIB, pattern(4096)), nbd.OK, "WRITE")
    eq(client.read(MIB, 4096), pattern(4096), "data")
    eq(client.flush(), nbd.OK, "FLUSH")


@case_on_uring_too
def failing_reads(box):
    server, shim = failing_server(box)
    for structured in False, True:
        with nbd.Client(server.address()) as client:
            client.ready(structured=structured)
            shim.concern(MIB, MIB + 4096)
            shim.fail(Shim.READ, errno.EIO)
            for offset, length in ((MIB, 4096), (MIB + 4095, 1), (0, 2 * MIB)):
                eq(client.call(nbd.CMD_READ, offset, length).error, nbd.EIO,
                   f"READ {offset}+{length}")
            eq(client.read(0, MIB), pattern(4 * MIB)[:MIB], "data elsewhere")
            shim.fail(Shim.READ, 0)
            eq(client.read(0, 4 * MIB), pattern(4 * MIB), "data")


@case_on_uring_too
def errors_without_a_number_in_the_protocol_are_eio(box):
    server, shim = failing_server(box)
    client = ready(box, server)
    for error in (errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.EBADF,
                  errno.ENOTCONN, errno.EACCES, errno.EFAULT):
        shim.fail(Shim.WRITE, error)
        answer = client.write(0, bytes(512))
        # The client knows what the protocol allows; success is not it.
        assert answer != nbd.OK, errno.errorcode[error]
    shim.fail(Shim.WRITE, 0)
    eq(client.write(0, bytes(512)), nbd.OK, "WRITE")


@case_on_uring_too
def a_file_system_that_cannot_punch(box):
    """TRIM does nothing then, and WRITE_ZEROES writes."""
    for error in errno.EOPNOTSUPP, errno.ENOSYS:
        server, shim = failing_server(box)
        client = ready(box, server)
        shim.fail(Shim.ALLOCATE, error)
        for _ in range(2):
            eq(client.trim(0, 64 * KIB), nbd.OK, "TRIM")
            for flags in 0, nbd.FLAG_NO_HOLE:
                eq(client.write(MIB, pattern(MIB)), nbd.OK, "WRITE")
                eq(client.zero(MIB + 100, MIB - 200, flags), nbd.OK,
                   "WRITE_ZEROES")
                expected = (pattern(MIB)[:100] + bytes(MIB - 200) +
                            pattern(MIB)[-100:])
                eq(client.read(MIB, MIB), expected, "data")
                eq(client.zero(MIB, MIB, flags | nbd.FLAG_FAST_ZERO),
                   nbd.ENOTSUP, "WRITE_ZEROES with FAST_ZERO")
                eq(client.read(MIB, MIB), expected, "data after FAST_ZERO")


@case_on_uring_too
def failing_zeroes(box):
    server, shim = failing_server(box)
    client = ready(box, server)
    for error, answer in ((errno.EIO, nbd.EIO), (errno.ENOSPC, nbd.ENOSPC)):
        shim.fail(Shim.ALLOCATE, error)
        shim.fail(Shim.WRITE, error)
        eq(client.zero(0, 4096), answer, "WRITE_ZEROES")
        eq(client.zero(0, 4096, nbd.FLAG_NO_HOLE), answer, "with NO_HOLE")
        shim.fail(Shim.ALLOCATE, 0)
        shim.fail(Shim.WRITE, 0)
    eq(client.zero(0, 4096), nbd.OK, "WRITE_ZEROES")


main()
