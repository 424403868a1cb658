#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Requests in flight: replies in any order, all of them before the end, however
the client takes its leave; and no effect of its death on what it has sent.

A gate in the preloaded shim holds calls on the file back for as long as a
case needs them to be in flight.
"""

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import termios

import nbdclient as nbd
from nbdtest import (KIB, MIB, Expired, Shim, case, case_on_uring_too, eq,
                     main, need, need_disk, pattern, rounds, seed, spawn,
                     wait_until)


def gated_server(box, low=MIB, high=2 * MIB, **options):
    """A server whose writes to [low, high) are held back."""
    need_disk()
    shim = box.shim()
    shim.concern(low, high)
    shim.shut_gate(Shim.WRITE)
    return box.disk_server(shim=shim, **options), shim


@case
def replies_leave_in_any_order(box):
    """A write is held; what came later overtakes it."""
    for structured in False, True:
        server, shim = gated_server(box)
        with nbd.Client(server.address()) as client:
            client.ready(structured=structured)
            held = client.post_write(MIB, pattern(4096))
            shim.wait_held(Shim.WRITE)
            later = [client.post_write(0, pattern(4096, 1)),
                     client.post(nbd.CMD_READ, 4 * MIB, 4096),
                     client.post(nbd.CMD_TRIM, 5 * MIB, 4096)]
            eq(sorted(client.reply().cookie for _ in later), sorted(later),
               "cookies of the replies that overtake")
            eq(client.read(0, 4096), pattern(4096, 1), "data")
            shim.open_gate(Shim.WRITE)
            eq(client.reply().cookie, held, "cookie of the last reply")
            eq(client.read(MIB, 4096), pattern(4096), "data")


@case
def a_slow_request_holds_up_no_other_connection(box):
    server, shim = gated_server(box, options=["--threads", 1])
    slow = box.closing(nbd.Client(server.address()).ready())
    slow.post_write(MIB, pattern(4096))
    shim.wait_held(Shim.WRITE)
    with nbd.Client(server.address()) as client:
        client.ready()
        for i in range(200):
            eq(client.write(i, b"x"), nbd.OK, "WRITE")
        eq(client.flush(), nbd.OK, "FLUSH")
        client.disconnect()
    shim.open_gate(Shim.WRITE)
    eq(slow.reply().error, nbd.OK, "WRITE")


@case
def everything_before_disc_is_answered(box):
    server = box.disk_server(data=pattern(MIB))
    with nbd.Client(server.address()) as client:
        client.ready()
        post_mix(client, 200)
        client.send(nbd.pack_request(nbd.CMD_DISC, 0))
        check_mix(client, 200)
        client.expect_eof()


@case
def everything_before_half_close_is_answered(box):
    for transport in {}, {"unix": False, "tcp": ["127.0.0.1"]}:
        server = box.disk_server(data=pattern(MIB), **transport)
        with nbd.Client(server.address()) as client:
            client.ready()
            post_mix(client, 200)
            client.half_close()
            check_mix(client, 200)
            client.expect_eof()


def post_mix(client, count):
    """Reads of the image's first MiB and writes behind it, in one send."""
    requests = []
    for i in range(count):
        if i % 2:
            requests.append(client.pack(nbd.CMD_READ, i * KIB, KIB))
        else:
            requests.append(client.pack(nbd.CMD_WRITE, MIB + i * KIB, KIB,
                                        data=pattern(KIB, i)))
    client.send(b"".join(requests))


def check_mix(client, count):
    image = pattern(MIB)
    replies = client.collect(count)
    eq(len(replies), count, "different cookies")
    for reply in replies.values():
        eq(reply.error, nbd.OK, "error of a reply")
        if reply.command == nbd.CMD_READ:
            expected = image[reply.offset:reply.offset + KIB]
            eq(reply.data, expected, f"data at {reply.offset}")


def held_then(box, leave):
    """What is in flight when the client says that it leaves is answered."""
    server, shim = gated_server(box)
    with nbd.Client(server.address()) as client:
        client.ready()
        client.post_write(MIB, pattern(4096))
        client.post(nbd.CMD_READ, 0, 4096)
        shim.wait_held(Shim.WRITE)
        leave(client)
        eq(client.reply().command, nbd.CMD_READ, "first reply")
        shim.open_gate(Shim.WRITE)
        eq(client.reply().error, nbd.OK, "second reply")
        client.expect_eof()
    with nbd.Client(server.address()) as client:
        client.ready()
        eq(client.read(MIB, 4096), pattern(4096), "data")


@case
def disc_waits_for_what_is_in_flight(box):
    held_then(box, lambda c: c.send(nbd.pack_request(nbd.CMD_DISC, 0)))


@case
def half_close_waits_for_what_is_in_flight(box):
    held_then(box, lambda c: c.half_close())


@case
def garbage_waits_for_what_is_in_flight(box):
    held_then(box, lambda c: c.send(b"garbage" * 100))


@case
def what_arrived_before_a_client_closed_is_done(box):
    """
    The first reply finds the client gone.  Then the server dropped what it had
    not received yet, although all of it had arrived, DISC included.
    """
    data = pattern(120 * KIB)
    for transport in {}, {"unix": False, "tcp": ["127.0.0.1"]}:
        server = box.server("disk=memory:1M", **transport)
        with nbd.Client(server.address()) as client:
            client.ready("disk")
            client.sock.setblocking(False)   # all of it, or an error
            with server.asleep():
                for i in range(0, len(data), 40 * KIB):
                    client.sock.sendall(client.pack(
                        nbd.CMD_WRITE, i, 40 * KIB, data=data[i:i + 40 * KIB]))
                client.sock.sendall(nbd.pack_request(nbd.CMD_DISC, 0))
                if not has_arrived(client.sock):
                    continue   # the kernel's window is smaller here
                client.close()
        wait_until(lambda server=server: not has_sockets(server), "the end")
        with nbd.Client(server.address()) as client:
            client.ready("disk")
            assert client.read(0, len(data)) == data, "data differ"


def has_arrived(sock):
    """Whether the other side's kernel has taken all that was sent.  Over a UNIX
    socket what was sent has arrived; it counts until it is read."""
    if sock.family == socket.AF_UNIX:
        return True
    with contextlib.suppress(Expired):
        wait_until(lambda: fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)) ==
                   bytes(4), "", limit=0.5)
        return True
    return False


@case
def replies_that_have_left_make_room(box):
    """
    A request that found no room had the replies leave that were ready; and
    waited all the same, until another request was done, for the room that they
    had left.  Here that one is held until all else is answered.
    """
    shim = box.shim()
    shim.shut_gate(Shim.SYNC)
    server = box.disk_server(shim=shim, data=pattern(MIB),
                             options=["--max-inflight", 64 * KIB])
    with nbd.Client(server.address()) as client:
        client.ready()
        held = client.post(nbd.CMD_FLUSH)
        shim.wait_held(Shim.SYNC)
        client.send(b"".join(client.pack(nbd.CMD_READ, i * 4096, 4096)
                             for i in range(20)))
        for reply in client.collect(20).values():
            eq(reply.error, nbd.OK, "READ")
        shim.open_gate(Shim.SYNC)
        eq(client.reply().cookie, held, "cookie of the last reply")


@case
def what_follows_disc_is_ignored(box):
    server = box.disk_server()
    with nbd.Client(server.address()) as client:
        client.ready()
        client.send(nbd.pack_request(nbd.CMD_DISC, 0) +
                    nbd.pack_request(nbd.CMD_WRITE, 1, 0, 4, data=b"nope"))
        client.expect_eof()
    with nbd.Client(server.address()) as client:
        client.ready()
        eq(client.read(0, 4), bytes(4), "data")


@case
def replies_survive_bytes_that_nobody_wants(box):
    """
    Closing a TCP socket with bytes in it that were not received resets the
    connection, and the replies that were on their way are lost.
    """
    server = box.disk_server(unix=False, tcp=["127.0.0.1"],
                             data=pattern(4 * MIB))
    for end in nbd.pack_request(nbd.CMD_DISC, 0), b"":
        for _ in range(5):
            with nbd.Client(server.address()) as client:
                client.ready()
                requests = [client.pack(nbd.CMD_READ, i * 64 * KIB, 64 * KIB)
                            for i in range(32)]
                client.sock.sendall(b"".join(requests) + end + bytes(100000))
                # Most of the replies are still in the server's socket when
                # it has no more to do.
                with contextlib.suppress(Expired):
                    wait_until(lambda: not has_sockets(server), "", limit=0.2)
                for reply in client.collect().values():
                    eq(reply.error, nbd.OK, "READ")


def has_sockets(server):
    """Whether it has more than the one that listens."""
    folder = f"/proc/{server.process.pid}/fd"
    links = []
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(os.path.join(folder, fd)))
    return sum(link.startswith("socket:") for link in links) > 1


@case
def half_closed_in_the_middle_of_a_request(box):
    """The whole ones are answered; of the piece nothing is done."""
    server = box.disk_server()
    whole = nbd.pack_request(nbd.CMD_WRITE, 1, 0, 4096, data=pattern(4096))
    for length in 1, 27, 28, 29, 28 + 4095:
        with nbd.Client(server.address()) as client:
            client.ready()
            read = client.pack(nbd.CMD_READ, 8192, 512)
            client.send(read + whole[:length])
            client.half_close()
            eq(client.reply().error, nbd.OK, "READ")
            client.expect_eof()
    with nbd.Client(server.address()) as client:
        client.ready()
        eq(client.read(0, 4096), bytes(4096), "data")


@case
def a_client_that_dies_cancels_nothing(box):
    """Its write is held in the file system while it goes; it lands."""
    server, shim = gated_server(box)
    client = nbd.Client(server.address()).ready()
    client.post_write(MIB, pattern(64 * KIB))
    shim.wait_held(Shim.WRITE)
    client.close()
    with nbd.Client(server.address()) as other:
        other.ready()
        eq(other.write(0, pattern(512)), nbd.OK, "WRITE")
        shim.open_gate(Shim.WRITE)
        wait_until(lambda: other.read(MIB, 64 * KIB) == pattern(64 * KIB),
                   "the write to land")


@case
def clients_killed_in_the_middle_of_writes(box):
    """
    Connections that break at any byte of a stream of writes: each block is
    the old one or the new one, and other clients notice nothing.
    """
    random_ = random.Random(seed())
    server = box.disk_server(size=MIB)
    fds = None
    bystander = box.closing(nbd.Client(server.address()).ready())
    for i in range(rounds(200)):
        requests = [nbd.pack_request(nbd.CMD_WRITE, block, block * 4096, 4096,
                                     data=bytes([i % 255 + 1]) * 4096)
                    for block in range(64)]
        stream = b"".join(requests)
        with nbd.Client(server.address()) as client:
            client.ready()
            client.sock.settimeout(0.5)
            client.sock.send(stream[:random_.randrange(len(stream))])
        eq(bystander.write(MIB // 2, pattern(4096, i)), nbd.OK, "WRITE")
        eq(bystander.read(MIB // 2, 4096), pattern(4096, i), "data")
        fds = fds or server.fds() + 1
    server.wait_fds(fds)
    for block in range(64):
        data = bystander.read(block * 4096, 4096)
        eq(data, data[:1] * 4096, f"block {block}, which must be of one piece")


@case
def the_client_is_a_process_that_is_killed(box):
    """As above with a real client: nbdcopy, killed while it writes."""
    need("nbdcopy")
    shim = box.shim()
    server = box.disk_server(size=256 * MIB, shim=shim)
    source = box.image("source", size=64 * MIB, data=pattern(64 * MIB))
    for _ in range(3):
        before = shim.calls(Shim.WRITE)
        copy = spawn("nbdcopy", source, server.uri(),
                     stderr=subprocess.DEVNULL)
        wait_until(lambda: shim.calls(Shim.WRITE) > before + 10, "writes")
        copy.send_signal(signal.SIGKILL)
        copy.wait()
        with nbd.Client(server.address()) as client:
            client.ready()
            eq(client.flush(), nbd.OK, "FLUSH")
            eq(client.write(200 * MIB, b"alive"), nbd.OK, "WRITE")
            eq(client.read(200 * MIB, 5), b"alive", "data")


@case
def a_thousand_requests_in_one_send(box):
    server = box.disk_server(data=pattern(MIB))
    with nbd.Client(server.address()) as client:
        client.ready()
        post_mix(client, 1000)
        check_mix(client, 1000)


@case
def overlapping_writes_in_flight(box):
    """No order is promised, but each byte comes from one of them."""
    server = box.disk_server()
    with nbd.Client(server.address()) as client:
        client.ready()
        for round_ in range(rounds(50)):
            keys = [bytes([round_ * 5 + i]) * 8192 for i in range(4)]
            client.send(b"".join(
                client.pack(nbd.CMD_WRITE, i * 2048, 8192, data=key)
                for i, key in enumerate(keys)))
            client.collect()
            data = client.read(0, 8192 + 3 * 2048)
            for i, byte in enumerate(data):
                around = [k[0] for n, k in enumerate(keys)
                          if n * 2048 <= i < n * 2048 + 8192]
                assert byte in around, f"byte {i} is of nobody"


@case_on_uring_too
def short_transfers_and_interruptions(box):
    """
    Every system call moves a few bytes only, and each third is interrupted;
    nobody may notice.
    """
    shim = box.shim()
    server = box.disk_server(shim=shim)
    for limits in ({"file": 1000}, {"sock": 7}, {"interrupt": 3},
                   {"file": 777, "sock": 1001, "interrupt": 3}):
        shim.limit(**limits)
        with nbd.Client(server.address()) as client:
            client.ready()
            for i in range(4):
                data = pattern(20 * KIB, i)
                eq(client.write(i * MIB, data, nbd.FLAG_FUA), nbd.OK, "WRITE")
                eq(client.read(i * MIB, 20 * KIB), data, f"data, {limits}")
            post_mix(client, 50)
            for reply in client.collect().values():
                eq(reply.error, nbd.OK, "error of a reply")
            client.disconnect()
        shim.limit()


main()
