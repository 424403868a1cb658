#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Clients that send and never read: the server stops to take in their requests,
its memory stays within --max-inflight and what a connection costs, and other
clients are served as before.
"""

import collections
import contextlib
import socket
import struct
import subprocess
import sys
import time

import nbdclient as nbd
from nbdtest import (KIB, MIB, Skip, case, eq, is_instrumented, main, note, pattern,
                     seconds)

RCVBUFFORCE = 33

INFLIGHT = 4 * MIB
# What the server may use besides, however many requests there are: caches,
# stacks of coroutines, the C library.
BESIDES = 32 * MIB


def serve(box, **options):
    options = ["--max-inflight", INFLIGHT, "--threads", 2]
    return box.disk_server(size=64 * MIB, data=pattern(4 * MIB),
                           options=options)


def stuff(client, requests, most=200):
    """
    Sends the same bytes again and again until the server takes no more.
    Returns whether that point has come.
    """
    client.sock.settimeout(0.5)
    try:
        for _ in range(most):
            client.sock.sendall(requests)
    except TimeoutError:
        return True
    return False


def packed(command, count, length, data=b""):
    return b"".join(nbd.pack_request(command, i, i % 64 * 4096, length,
                                     data=data) for i in range(count))


def check_bounded(box, requests, must_block=True, most=200):
    """One client sends and never reads; another one must not suffer."""
    server = serve(box)
    with nbd.Client(server.address()) as other:
        other.ready()
        eq(other.read(0, MIB), pattern(4 * MIB)[:MIB], "data")
        before = server.peak_rss()
        greedy = box.closing(nbd.Client(server.address()).ready())
        assert stuff(greedy, requests, most) or not must_block, \
            "everything was taken in"
        for i in range(200):
            eq(other.write(32 * MIB + i, bytes([i])), nbd.OK, "WRITE")
            eq(other.read(32 * MIB + i, 1), bytes([i]), "data")
        eq(other.flush(), nbd.OK, "FLUSH")
        if not is_instrumented():
            grown = server.peak_rss() - before
            assert grown < INFLIGHT + BESIDES, f"{grown // KIB} KiB more"
        other.disconnect()
        greedy.close()   # or the server waits for it to read


@case
def large_reads(box):
    check_bounded(box, packed(nbd.CMD_READ, 100, MIB))


@case
def reads_of_32_mib(box):
    """One is always admitted, beyond the limit as it is."""
    if is_instrumented():
        raise Skip("the memory of an instrumented server says nothing")
    server = serve(box)
    before = server.peak_rss()
    greedy = box.closing(nbd.Client(server.address()).ready())
    stuff(greedy, packed(nbd.CMD_READ, 1000, 32 * MIB))
    with nbd.Client(server.address()) as other:
        other.ready()
        eq(other.read(0, 512), pattern(4 * MIB)[:512], "data")
    greedy.close()
    grown = server.peak_rss() - before
    assert grown < 32 * MIB + BESIDES, f"{grown // KIB} KiB more"


@case
def small_reads(box):
    check_bounded(box, packed(nbd.CMD_READ, 5000, 512))


@case
def reads_of_one_byte(box):
    check_bounded(box, packed(nbd.CMD_READ, 5000, 1))


@case
def flushes(box):
    """Requests without any payload cost memory, too."""
    check_bounded(box, packed(nbd.CMD_FLUSH, 5000, 0))


@case
def writes(box):
    """Their replies are small, so many are answered before it blocks."""
    check_bounded(box, packed(nbd.CMD_WRITE, 64, 4096, bytes(4096)),
                  must_block=False)


@case
def block_status(box):
    check_bounded(box, packed(nbd.CMD_BLOCK_STATUS, 5000, 64 * MIB - MIB))


@case
def errors(box):
    """Refusals are replies, too."""
    check_bounded(box, packed(99, 5000, 0))


@case
def refused_writes(box):
    """The payload of each is skipped, not kept."""
    check_bounded(box, packed(nbd.CMD_WRITE, 1, 33 * MIB, bytes(33 * MIB)),
                  must_block=False, most=8)


@case
def zeroes_that_are_written(box):
    """A memory file system has no command for zeroes without a hole."""
    image = box.image(size=64 * MIB, at=box.memory_dir())
    server = box.server(f"disk={image}",
                        options=["--max-inflight", INFLIGHT])
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        before = server.peak_rss()
        client.send(b"".join(client.pack(nbd.CMD_WRITE_ZEROES, i % 32 * MIB,
                                         MIB, nbd.FLAG_NO_HOLE)
                             for i in range(500)))
        for reply in client.collect().values():
            eq(reply.error, nbd.OK, "WRITE_ZEROES")
        if not is_instrumented():
            grown = server.peak_rss() - before
            assert grown < INFLIGHT + BESIDES, f"{grown // KIB} KiB more"
        client.disconnect()


FLOOD = """
import contextlib, socket, sys, threading
sock = socket.socket(fileno=int(sys.argv[1]))
sock.setblocking(True)
requests = sys.stdin.buffer.read()
def take():
    with contextlib.suppress(OSError):
        while sock.recv(1 << 20):
            pass
threading.Thread(target=take, daemon=True).start()
with contextlib.suppress(OSError):   # the server has ended
    while True:
        sock.sendall(requests)
"""


def flood(box, client, requests):
    """A process that sends them again and again and reads what comes."""
    process = subprocess.Popen(
        [sys.executable, "-c", FLOOD, str(client.sock.fileno())],
        stdin=subprocess.PIPE, pass_fds=[client.sock.fileno()])

    def end():
        process.kill()
        process.wait()
    box.stack.callback(end)
    process.stdin.write(requests)
    process.stdin.close()


def check_flooded(box, export, times, command, length, flags=0):
    """
    A client that sends as fast as it is answered; another one of the same
    thread has its turn all the same, in a time that is long for that and short
    for waiting until the first has nothing more to say, once for each request.
    """
    server = box.server(f"disk={export}", options=["--threads", 1])
    greedy = box.closing(nbd.Client(server.address()).ready("disk", False))
    other = box.closing(nbd.Client(server.address()).ready("disk"))
    flood(box, greedy, b"".join(nbd.pack_request(
        command, i, 0, length, flags=flags) for i in range(4000)))
    deadline = time.monotonic() + seconds(30)
    for i in range(times):
        eq(len(other.read(i * 512, 512)), 512, "length")
        assert time.monotonic() < deadline, f"only {i} requests"
    server.stop()


@case
def a_flood_of_what_takes_long(box):
    check_flooded(box, "memory:1M", 200, nbd.CMD_WRITE_ZEROES, MIB,
                  nbd.FLAG_NO_HOLE)


def replies_before(client, cookie):
    """Takes them until that of cookie comes; returns how many came before."""
    for number in range(len(client.pending)):
        reply = client.reply()
        eq(reply.error, nbd.OK, f"request {reply.cookie:#x}")
        if reply.cookie == cookie:
            return number
    raise AssertionError(f"no reply to {cookie:#x}")


# The server takes in one such request in each pass of a thread's loop, since
# it counts as a whole turn; so requests of one connection are a clock.
LONG = 4 * MIB


def pack_long(client, count):
    return b"".join(client.pack(nbd.CMD_WRITE_ZEROES, 0, LONG,
                                nbd.FLAG_NO_HOLE) for _ in range(count))


@case
def long_operations_share_the_passes_of_a_thread(box):
    """
    A thread does one mebibyte of them a pass.  It did a mebibyte of each, so
    that a pass took as long as there were such operations, and whoever else
    wanted something had to wait for several passes.  The READ comes in the
    pass after the COUNT which it takes to take them in.
    """
    count = 48
    for number in 1, 8:
        server = box.server("disk=memory:4M", options=["--threads", 1])
        clients = [box.closing(nbd.Client(server.address()).ready("disk"))
                   for _ in range(number)]
        with server.asleep():
            for client in clients:
                client.send(pack_long(client, count) +
                            client.pack(nbd.CMD_READ, 0, 512, cookie=1))
        before = sum(replies_before(client, 1) for client in clients)
        assert before * LONG < count * 2 * MIB, \
            f"{before} of {number} x {count} came before"
        for client in clients:
            client.collect()


@case
def a_long_operation_waits_for_one_of_each_other_client(box):
    """However many those have sent.  CACHE does nothing; it is the clock."""
    def ticks(client, count):
        return b"".join(client.pack(nbd.CMD_CACHE, 0, LONG)
                        for _ in range(count))
    server = box.server("disk=memory:4M", options=["--threads", 1])
    greedy = box.closing(nbd.Client(server.address()).ready("disk"))
    other = box.closing(nbd.Client(server.address()).ready("disk"))
    with server.asleep():
        greedy.send(pack_long(greedy, 60))
        other.send(ticks(other, 40) + pack_long(other, 1) + ticks(other, 40))
    before = replies_before(other, other.cookie - 40)
    assert before < 60, f"{before - 40} passes"
    other.collect()
    greedy.collect()


def numbers_read(client, reads, length):
    """
    The number at the beginning of each reply to that many READs.  The rest
    of it is dropped in the kernel, which takes less time than to send it.
    """
    head, rest = bytearray(16 + 8), bytearray(length - 8)
    client.sock.setblocking(True)
    numbers = []
    for _ in range(reads):
        eq(client.sock.recv_into(head, 0, socket.MSG_WAITALL), len(head))
        magic, error, _, number = struct.unpack(">IIQQ", head)
        eq((magic, error), (nbd.SIMPLE_MAGIC, nbd.OK), "reply")
        eq(client.sock.recv_into(rest, 0, socket.MSG_WAITALL |
                                 socket.MSG_TRUNC), len(rest))
        numbers.append(number)
    return numbers


@case
def a_client_that_reads_as_fast_as_it_is_sent_to(box):
    """
    The sender gives way after a mebibyte; it sent on for as long as the socket
    took what it had.  One client writes a number to where the other one reads,
    the next one in each pass of the loop, which what it does besides takes to
    be long; so what is read tells the pass.  A reply is two turns long.
    """
    steps, reads = 300, 128
    server = box.server("disk=memory:8M", tcp=["127.0.0.1"],
                        options=["--threads", 1])
    unix, tcp = server.addresses()
    other = box.closing(nbd.Client(unix).ready("disk"))
    eq(other.zero(0, 8 * MIB, nbd.FLAG_NO_HOLE), nbd.OK, "WRITE_ZEROES")
    greedy = box.closing(nbd.Client(tcp).ready("disk", structured=False))
    with server.asleep():
        greedy.send(packed(nbd.CMD_READ, 1, 2 * MIB) * reads)
        other.send(b"".join(
            other.pack(nbd.CMD_WRITE, 0, 8, data=struct.pack(">Q", i)) +
            b"".join(other.pack(nbd.CMD_WRITE_ZEROES, 4 * MIB, MIB,
                                nbd.FLAG_NO_HOLE) for _ in range(4))
            for i in range(1, steps + 1)))
    numbers = numbers_read(greedy, reads, 2 * MIB)
    note(f"the passes: {numbers}")
    other.collect()
    begun = [n for n in numbers if 0 < n < steps]
    again = len(begun) - len(set(begun))
    assert again < 10, f"{again} replies in the pass of another one"
    assert numbers[16] > 0, "the other client had no turn"


def clock(client):
    """Writes the number of each pass, from 1, to where it can be read."""
    return b"".join(client.pack(nbd.CMD_WRITE, 0, 8,
                                data=struct.pack(">Q", i)) +
                    client.pack(nbd.CMD_CACHE, 0, LONG)
                    for i in range(1, 301))


@case
def a_handshake_shares_the_passes_of_a_thread(box):
    """
    A few bytes may ask for many: what was sent in a handshake did not count.
    The list of the exports, 7 MB of it, fits into the client's socket.
    """
    lists = 350
    more = [f"{i:0200}=null:1M" for i in range(100)]
    server = box.server("disk=memory:4M", *more, unix=False,
                        tcp=["127.0.0.1"], options=["--threads", 1])
    greedy = box.closing(nbd.Client(server.address()))
    try:
        greedy.sock.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, 32 * MIB)
    except PermissionError:
        raise Skip("only root may have so large a socket buffer") from None
    greedy.hello()
    other = box.closing(nbd.Client(server.address()).ready("disk"))
    go = nbd.pack_name_and_infos("disk", ())
    with server.asleep():
        greedy.send(nbd.pack_option(nbd.OPT_LIST) * lists +
                    nbd.pack_option(nbd.OPT_GO, go) +
                    packed(nbd.CMD_READ, 1, 8))
        other.send(clock(other))
    for _ in range(lists):
        eq(len(greedy.option_replies(nbd.OPT_LIST)), len(more) + 2, "replies")
    eq(greedy.option_replies(nbd.OPT_GO)[-1].type, nbd.REP_ACK, "GO")
    magic, error, _, number = greedy.unpack(">IIQQ")
    eq((magic, error), (nbd.SIMPLE_MAGIC, nbd.OK), "reply")
    note(f"in {number} passes")
    assert number >= 5, f"all of it in {number} passes"
    other.collect()


@case
def small_requests_share_the_passes_of_a_thread(box):
    """
    A receiver gives way when it has taken in what is a turn: some hundred small
    requests, where one receive brings them.  It went on for as long as there
    were any.  The other client's numbers tell the passes, as above.
    """
    count = 3000
    server = box.server("disk=memory:4M", options=["--threads", 1])
    greedy = box.closing(nbd.Client(server.address()).ready("disk", False))
    other = box.closing(nbd.Client(server.address()).ready("disk"))
    with server.asleep():
        greedy.send(packed(nbd.CMD_READ, 1, 8) * count)
        other.send(clock(other))
    numbers = numbers_read(greedy, count, 8)
    other.collect()
    passes = collections.Counter(numbers)
    note(f"requests in each pass: {list(passes.values())}")
    assert max(passes.values()) < 1000, \
        f"{max(passes.values())} of {count} requests in one pass"


@case
def many_greedy_clients(box):
    """The limit is one for each connection."""
    server = serve(box)
    with nbd.Client(server.address()) as other:
        other.ready()
        before = server.peak_rss()
        requests = packed(nbd.CMD_READ, 100, 256 * KIB)
        clients = [box.closing(nbd.Client(server.address()).ready())
                   for _ in range(8)]
        for client in clients:
            client.sock.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                client.sock.sendall(requests * 100)
        for i in range(100):
            eq(len(other.read(i * 512, 512)), 512, "length")
        if not is_instrumented():
            grown = server.peak_rss() - before
            assert grown < 8 * INFLIGHT + BESIDES, f"{grown // KIB} KiB more"
        for client in clients:
            client.close()


@case
def a_throttled_client_that_reads_in_the_end_gets_everything(box):
    server = serve(box)
    client = box.closing(nbd.Client(server.address()).ready())
    requests = b"".join(client.pack(nbd.CMD_READ, i * 4096, 64 * KIB)
                        for i in range(400))
    client.sock.settimeout(0.3)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < len(requests):
            sent += client.sock.send(requests[sent:])
    client.sock.settimeout(30)
    client.send(requests[sent:])
    data = pattern(4 * MIB)
    for reply in client.collect().values():
        eq(reply.data, data[reply.offset:reply.offset + 64 * KIB],
           f"data at {reply.offset}")


@case
def the_largest_request_in_the_smallest_room(box):
    """32 MiB are admitted if nothing else is in flight."""
    for most in 1, MIB:
        server = box.server("disk=memory:64M",
                            options=["--max-inflight", most])
        with nbd.Client(server.address()) as client:
            client.ready("disk")
            data = pattern(32 * MIB)
            eq(client.write(5, data), nbd.OK, "WRITE")
            assert client.read(5, 32 * MIB) == data, "data differ"
            for i in range(20):
                client.post(nbd.CMD_READ, i, 4096)
            eq(len(client.collect()), 20, "replies")


main()
