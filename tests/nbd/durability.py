#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Durability: FLUSH and FUA, judged by a recording of the server's calls.

The server runs with shim.c preloaded; recorder.py says what must hold.  The
checker itself is held by specimens, recordings made up here that it must
reject, and by a build of the server without the sync ($COAIO_NBD_NO_SYNC);
what the shim records of a ring, by a program of which it is known what its ring
does ($COAIO_RING_CALLS).
"""

import errno
import os
import random

import nbdclient as nbd
import recorder
from nbdtest import (KIB, MIB, Shim, Skip, case, case_on_uring_too, eq, main,
                     need_disk, note, pattern, rounds, run, seed)

BLOCK = 4096


def recorded_server(box, **options):
    shim = box.shim(record=True)
    server = box.disk_server(shim=shim, options=["--threads", "2"], **options)
    return server, shim


def judge(server, shim):
    server.stop()
    recording = recorder.Recording.load(shim.log_path)
    report = recorder.check_durability(recording,
                                       os.stat(server.image).st_ino)
    note(f"{report.writes} writes, {report.flushes} flushes, "
         f"{report.fuas} with FUA")
    assert report.changes > 0, "no call has changed the image"
    eq(report.by_ring, report.changes if shim.ring else 0,
       "changes of the image by the ring")
    return report


def judge_well(server, shim, flushes=0, fuas=0):
    report = judge(server, shim)
    eq(report.violations, [], "violations")
    assert report.flushes >= flushes, "too few flushes were recorded"
    assert report.fuas >= fuas, "too few requests with FUA were recorded"


def write_and_flush(server, fua):
    """Writes, then a FLUSH, or the same with FUA instead."""
    with nbd.Client(server.address()) as client:
        client.ready()
        for i in range(20):
            flags = nbd.FLAG_FUA if fua else 0
            data = pattern(BLOCK, i)
            eq(client.write(i * BLOCK, data, flags), nbd.OK, "WRITE")
            if not fua:
                eq(client.flush(), nbd.OK, "FLUSH")
        client.disconnect()


@case_on_uring_too
def flush_syncs_what_was_answered(box):
    server, shim = recorded_server(box)
    write_and_flush(server, fua=False)
    judge_well(server, shim, flushes=20)


@case_on_uring_too
def fua_syncs_before_the_reply(box):
    server, shim = recorded_server(box)
    write_and_flush(server, fua=True)
    judge_well(server, shim, fuas=20)


@case_on_uring_too
def fua_on_write_zeroes_and_trim(box):
    server, shim = recorded_server(box, data=pattern(MIB))
    with nbd.Client(server.address()) as client:
        client.ready()
        for i in range(0, 100, 10):
            at = i * BLOCK
            eq(client.zero(at, BLOCK, nbd.FLAG_FUA), nbd.OK, "WRITE_ZEROES")
            eq(client.zero(at + BLOCK, BLOCK, nbd.FLAG_FUA | nbd.FLAG_NO_HOLE),
               nbd.OK, "WRITE_ZEROES with NO_HOLE")
            eq(client.trim(at + 2 * BLOCK, BLOCK, nbd.FLAG_FUA), nbd.OK,
               "TRIM")
            eq(client.zero(at + 3 * BLOCK + 5, 100, nbd.FLAG_FUA), nbd.OK,
               "unaligned WRITE_ZEROES")
            eq(client.write(at + 4 * BLOCK + 5, b"hello", nbd.FLAG_FUA),
               nbd.OK, "unaligned WRITE")
        client.disconnect()
    judge_well(server, shim, fuas=50)


@case_on_uring_too
def flush_covers_writes_answered_on_another_connection(box):
    server, shim = recorded_server(box)
    with nbd.Client(server.address()) as one, \
            nbd.Client(server.address()) as two:
        one.ready()
        two.ready()
        assert one.flags & nbd.CAN_MULTI_CONN, "multi-conn is not offered"
        for i in range(50):
            eq(one.write(i * BLOCK, pattern(BLOCK, i)), nbd.OK, "WRITE")
            eq(two.flush(), nbd.OK, "FLUSH")
            one, two = two, one
    judge_well(server, shim, flushes=50)


def post_at_random(client, random_, base, blocks):
    """Posts a write to a block not written before, or a FLUSH."""
    kind = random_.randrange(4)
    if kind == 0 or not blocks:
        client.post(nbd.CMD_FLUSH)
        return
    at = base + blocks.pop() * BLOCK
    flags = random_.choice([0, 0, nbd.FLAG_FUA])
    if kind == 1:
        client.post(nbd.CMD_WRITE_ZEROES, at, BLOCK, flags)
    else:
        client.post_write(at, pattern(BLOCK, at), flags)


@case_on_uring_too
def random_mixes_in_flight_on_four_connections(box):
    """Writes, flushes and FUA at depth 16 on each of four connections."""
    random_ = random.Random(seed())
    server, shim = recorded_server(box)
    clients = [box.closing(nbd.Client(server.address())).ready()
               for _ in range(4)]
    blocks = [list(range(1000)) for _ in clients]
    for list_ in blocks:
        random_.shuffle(list_)
    for _ in range(rounds(1500)):
        i = random_.randrange(4)
        client = clients[i]
        post_at_random(client, random_, i * 8 * MIB, blocks[i])
        if len(client.pending) >= 16:
            for _ in range(random_.randrange(1, 16)):
                eq(client.reply().error, nbd.OK, "error of a reply")
    for client in clients:
        for reply in client.collect().values():
            eq(reply.error, nbd.OK, "error of a reply")
        client.disconnect()
    judge_well(server, shim, flushes=1, fuas=1)


@case_on_uring_too
def nbdcopy_flush(box):
    """A client that knows nothing of us, with several connections."""
    server, shim = recorded_server(box)
    source = box.image("source", data=pattern(4 * MIB), size=4 * MIB)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-t",
        "writeback", source, server.uri())
    run("nbdcopy", "--flush", "-C", 2, "--request-size", 64 * KIB, source,
        server.uri("disk"))
    judge_well(server, shim, flushes=1)


@case
def flush_does_not_wait_for_writes_in_flight(box):
    """A write is held in the file system; a FLUSH overtakes it."""
    need_disk()
    shim = box.shim()
    server = box.disk_server(shim=shim)
    shim.concern(MIB, 2 * MIB)
    shim.shut_gate(Shim.WRITE)
    with nbd.Client(server.address()) as client:
        client.ready()
        held = client.post_write(MIB, pattern(BLOCK))
        shim.wait_held(Shim.WRITE)
        eq(client.write(0, pattern(BLOCK)), nbd.OK, "another WRITE")
        flush = client.post(nbd.CMD_FLUSH)
        eq(client.reply().cookie, flush, "first reply")
        shim.open_gate(Shim.WRITE)
        eq(client.reply().cookie, held, "second reply")


@case
def a_sync_that_began_before_does_not_serve(box):
    """
    While a sync is under way, a write is answered and another FLUSH arrives.
    That FLUSH needs a sync of its own.
    """
    need_disk()
    shim = box.shim(record=True)
    server = box.disk_server(shim=shim)
    with nbd.Client(server.address()) as client:
        client.ready()
        eq(client.write(0, pattern(BLOCK)), nbd.OK, "WRITE")
        shim.shut_gate(Shim.SYNC)
        client.post(nbd.CMD_FLUSH)
        shim.wait_held(Shim.SYNC)
        write = client.post_write(BLOCK, pattern(BLOCK))
        eq(client.reply().cookie, write, "first reply")
        client.post(nbd.CMD_FLUSH)
        # Answered when the FLUSH before it has been taken in.
        read = client.post(nbd.CMD_READ, 0, BLOCK)
        eq(client.reply().cookie, read, "second reply")
        shim.open_gate(Shim.SYNC)
        for reply in client.collect().values():
            eq(reply.error, nbd.OK, "FLUSH")
    judge_well(server, shim, flushes=2)


@case
def one_open_file_description_serves_all_connections(box):
    """What multi-conn rests on: an error of writing back is told to it once,
    and a sync through it covers what all have written."""
    server = box.disk_server(options=["--threads", 2])
    clients = [box.closing(nbd.Client(server.address()).ready())
               for _ in range(5)]
    for client in clients:
        assert client.flags & nbd.CAN_MULTI_CONN, "multi-conn is not offered"
        eq(client.write(0, pattern(BLOCK), nbd.FLAG_FUA), nbd.OK, "WRITE")
    folder = f"/proc/{server.process.pid}/fd"
    links = [os.readlink(os.path.join(folder, fd)) for fd in os.listdir(folder)]
    eq(links.count(server.image), 1, "descriptors of the image")


@case
def flush_on_a_read_only_export(box):
    image = box.image(data=pattern(MIB))
    server = box.server(f"disk={image},ro")
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        eq(client.flush(), nbd.OK, "FLUSH")


# The checker checked.

@case_on_uring_too
def the_build_without_sync_is_found_out(box):
    program = os.environ.get("COAIO_NBD_NO_SYNC")
    if not program:
        raise Skip("COAIO_NBD_NO_SYNC is not set")
    for fua in False, True:
        server, shim = recorded_server(box, program=program)
        write_and_flush(server, fua)
        report = judge(server, shim)
        eq(len(report.violations), 20, "violations")


FILE, SOCKET = 7, 8


def made_up_calls(order, changes=None):
    """
    The calls of a server that gets a WRITE and, when it is answered, a FLUSH,
    or a TRIM with FUA.  order lists their beginnings and ends as (name, is_end).
    As some clients do, this one has the same cookie for all.
    """
    option = nbd.pack_option(nbd.OPT_GO)
    write = nbd.pack_request(nbd.CMD_WRITE, 1, 0, 4, 0, b"data")
    flush = nbd.pack_request(nbd.CMD_FLUSH, 1)
    trim = nbd.pack_request(nbd.CMD_TRIM, 1, 0, 4, nbd.FLAG_FUA)
    reply = nbd.struct.pack(">IIQ", nbd.SIMPLE_MAGIC, 0, 1)
    calls = {
        "hello": (recorder.SEND, SOCKET, bytes(18)),
        "go": (recorder.RECEIVE, SOCKET, bytes(4) + option),
        "write": (recorder.RECEIVE, SOCKET, write),
        "pwrite": (recorder.WRITE, FILE, b"data"),
        "written": (recorder.SEND, SOCKET, reply),
        "flush": (recorder.RECEIVE, SOCKET, flush),
        "sync": (recorder.SYNC, FILE, b""),
        "flushed": (recorder.SEND, SOCKET, reply),
        "trim": (recorder.RECEIVE, SOCKET, trim),
        "punch": (recorder.ALLOCATE, FILE, bytes(4)),
        "trimmed": (recorder.SEND, SOCKET, reply),
    }
    made = {}
    for place, (name, is_end) in enumerate(order):
        kind, file, data = calls[name]
        if not is_end:
            made[name] = recorder.Call(kind, file, 1, place, 0, len(data))
            made[name].data = data
        else:
            made[name].finish(place, len(data))
    if changes:
        changes(made)
    return recorder.Recording(list(made.values()))


def one_after_another(*names):
    return [(name, is_end) for name in names for is_end in (False, True)]


HELLO = one_after_another("hello", "go")
START = HELLO + one_after_another("write")
GOOD = START + one_after_another("pwrite", "written", "flush", "sync",
                                 "flushed")


def violations(order, changes=None):
    recording = made_up_calls(order, changes)
    return len(recorder.check_durability(recording, FILE).violations)


@case
def the_checker_accepts_what_is_right(_box):
    eq(violations(GOOD), 0, "violations")
    for steps in (("trim", "punch", "sync", "trimmed"),
                  ("trim", "punch"), ("trim", "trimmed")):
        eq(violations(HELLO + one_after_another(*steps)), 0, str(steps))


@case
def the_checker_rejects_specimens(_box):
    def broken(sync):
        sync.result = -nbd.EIO

    def of_another_file(sync):
        sync.file = FILE + 1

    begin, end = ("sync", False), ("sync", True)
    tail = one_after_another("pwrite", "written", "flush")
    specimens = {
        "no sync": START + tail + one_after_another("flushed"),
        "a sync that ends after the reply":
            START + tail + [begin] + one_after_another("flushed") + [end],
        "a sync that began before the write had returned":
            START + [("pwrite", False), begin, ("pwrite", True), end] +
            one_after_another("written", "flush", "flushed"),
        "a reply before the write":
            START + one_after_another("written", "pwrite", "flush", "sync",
                                      "flushed"),
        "a TRIM with FUA without a sync":
            HELLO + one_after_another("trim", "punch", "trimmed", "sync"),
        "a TRIM after its reply":
            HELLO + one_after_another("trim", "sync", "trimmed", "punch"),
        "a TRIM that ends after its reply":
            HELLO + one_after_another("trim") + [("punch", False)] +
            one_after_another("sync", "trimmed") + [("punch", True)],
    }
    for name, order in specimens.items():
        assert violations(order) > 0, name
    assert violations(GOOD, lambda calls: broken(calls["sync"])) > 0
    assert violations(GOOD, lambda calls: of_another_file(calls["sync"])) > 0


# The shim checked, where it sees a ring.

def ring_calls(box, *steps, errors=(), **limits):
    """
    Returns the results of what was queued, and the recording.  errors are those
    to fail with, as (kind, error).
    """
    program = os.environ.get("COAIO_RING_CALLS")
    if not program:
        raise Skip("COAIO_RING_CALLS is not set")
    shim = box.shim(record=True, record_size=MIB)
    shim.limit(**limits)
    for kind, error in errors:
        shim.fail(kind, error)
    env = {**os.environ, **shim.environment()}
    text = run(program, box.image("calls.img", size=0), *steps, status=None,
               env=env)
    if text.startswith("no io_uring"):
        raise Skip(text.strip())
    results = [int(line) for line in text.split()]
    return results, recorder.Recording.load(shim.log_path)


def contents(box):
    with open(box.path("calls.img"), "rb") as file:
        return file.read()


@case
def what_a_ring_does_at_once_is_recorded_at_once(box):
    """Such a sync does not count: it began before the write had ended."""
    results, recording = ring_calls(box, "write", "sync", "enter", "wait")
    (write,) = recording.of(recorder.WRITE)
    (sync,) = recording.of(recorder.SYNC)
    eq(results, [4, 0], "results")
    eq((write.result, sync.result), (4, 0), "results in the recording")
    assert write.begin < sync.begin < min(write.end, sync.end)


@case
def what_a_ring_does_in_turn_is_recorded_in_turn(box):
    """Though the completions come while nobody is in the kernel for them."""
    _, recording = ring_calls(box, "write", "enter", "wait", "sync", "enter",
                              "wait", "send")
    (write,) = recording.of(recorder.WRITE)
    (sync,) = recording.of(recorder.SYNC)
    (send,) = recording.of(recorder.SEND)
    assert write.end < sync.begin < sync.end < send.begin < send.end
    assert write.by_ring and sync.by_ring and not send.by_ring


@case
def what_the_kernel_has_not_taken_has_not_begun(box):
    results, recording = ring_calls(box, "refused", "sync", "enter", "write",
                                    "enter", "wait")
    eq(results, [-errno.EINVAL, 0, 4], "results")
    first, second = recording.of(recorder.SYNC)
    (write,) = recording.of(recorder.WRITE)
    eq(first.end, recorder.NOT_YET, "end of the sync that was not taken")
    eq((second.result, write.result), (0, 4), "results in the recording")
    assert first.begin < second.begin < write.begin < second.end
    # And it is put back: what was to be cut short or interrupted, too.
    for limits, results in (({"interrupt": 2}, [-errno.EINVAL, 4]),
                            ({"file": 3}, [-errno.EINVAL, 3])):
        eq(ring_calls(box, "refused", "write", "enter", "enter", "wait",
                      **limits)[0], results, f"results with {limits}")
        eq(contents(box), b"data"[:results[1]], "contents")


@case
def what_is_to_fail_fails_on_a_ring_too(box):
    expected = [-errno.EIO, -errno.EDQUOT]
    results, recording = ring_calls(
        box, "write", "sync", "enter", "wait",
        errors=((Shim.WRITE, errno.EIO), (Shim.SYNC, errno.EDQUOT)))
    eq(results, expected, "results")
    eq([call.result for call in recording.calls if call.by_ring], expected,
       "results in the recording")
    eq(contents(box), b"", "contents")


main()
