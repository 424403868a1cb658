#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
SIGTERM and SIGINT: stop accepting, finish what is in flight, drop idle
clients at once, remove the sockets, exit 0.
"""

import contextlib
import os
import signal
import socket
import time

import nbdclient as nbd
from nbdtest import (KIB, MIB, Shim, case, eq, is_refused, main, need_disk, note,
                     pattern, wait_until)


@case
def without_clients(box):
    for number in signal.SIGTERM, signal.SIGINT:
        box.disk_server().stop(number)


@case
def idle_clients_are_dropped_at_once(box):
    for number in signal.SIGTERM, signal.SIGINT:
        server = box.disk_server(tcp=["127.0.0.1"])
        clients = [box.closing(nbd.Client(address).ready())
                   for address in server.addresses() * 5]
        for client in clients:
            eq(client.write(0, pattern(4096)), nbd.OK, "WRITE")
        # stop() waits, and the clients stay.
        server.stop(number)
        for client in clients:
            client.expect_eof()
        assert "dropping it" not in server.output(), server.output()


@case
def clients_in_the_handshake_are_dropped(box):
    server = box.disk_server()
    silent = box.closing(nbd.Client(server.address()))
    silent.greeting()
    half = box.closing(nbd.Client(server.address()).hello())
    half.send(nbd.pack_option(nbd.OPT_GO)[:7])
    server.stop()


@case
def another_signal_a_second_later_ends_it_at_once(box):
    need_disk()
    for number in signal.SIGTERM, signal.SIGINT:
        shim = box.shim()
        server = box.disk_server(shim=shim)
        client = box.closing(nbd.Client(server.address()).ready())
        shim.shut_gate(Shim.WRITE)
        client.post_write(MIB, pattern(4096))
        shim.wait_held(Shim.WRITE)
        with server.asleep():
            server.process.send_signal(signal.SIGTERM)
            server.process.send_signal(number)   # counts as the same
        wait_until(lambda: is_refused(server.address()), "the socket to go")
        time.sleep(1.1)
        eq(server.process.poll(), None, "the server's exit status")
        server.process.send_signal(number)
        server.wait(128 + number)
        client.expect_eof()


@case
def what_is_in_flight_is_finished(box):
    """A write is held in the file system while the signal comes."""
    need_disk()
    for number in signal.SIGTERM, signal.SIGINT:
        shim = box.shim()
        server = box.disk_server(shim=shim)
        idle = box.closing(nbd.Client(server.address()).ready())
        client = box.closing(nbd.Client(server.address()).ready())
        shim.shut_gate(Shim.WRITE)
        data = pattern(4096, number)
        cookie = client.post_write(MIB, data)
        shim.wait_held(Shim.WRITE)
        server.process.send_signal(number)
        wait_until(lambda: is_refused(server.address()), "the socket to go")
        idle.expect_eof()
        eq(server.process.poll(), None, "the server's exit status")
        shim.open_gate(Shim.WRITE)
        reply = client.reply()
        eq((reply.cookie, reply.error), (cookie, nbd.OK), "reply")
        client.expect_eof()
        server.wait()
        with open(server.image, "rb") as image:
            image.seek(MIB)
            eq(image.read(4096), data, "data in the file")


@case
def busy_clients_get_every_reply_or_none(box):
    """
    The signal meets clients at full speed.  What they have been answered is
    in the file; each connection ends cleanly after a whole reply.
    """
    for round_ in range(5):
        server = box.disk_server()
        clients = [box.closing(nbd.Client(server.address()).ready())
                   for _ in range(4)]
        answered = [fill_pipe(c, i) for i, c in enumerate(clients)]
        server.process.send_signal(signal.SIGTERM)
        for client, list_ in zip(clients, answered):
            take_rest(client, list_)
        server.wait()
        with open(server.image, "rb") as image:
            for list_ in answered:
                for offset in list_:
                    image.seek(offset)
                    eq(image.read(4096), pattern(4096, offset), "data")
        assert sum(map(len, answered)) > 0, f"nothing answered in {round_}"


def fill_pipe(client, number):
    """Posts 64 writes; returns the offsets of the first few answered."""
    requests = []
    for i in range(64):
        offset = (number * 64 + i) * 4096
        requests.append(client.pack(nbd.CMD_WRITE, offset, 4096,
                                    data=pattern(4096, offset)))
    client.send(b"".join(requests))
    return [client.reply().offset for _ in range(4)]


def take_rest(client, answered):
    try:
        while client.pending:
            reply = client.reply()
            assert reply.error in (nbd.OK, nbd.ESHUTDOWN), reply.error
            if reply.error == nbd.OK:
                answered.append(reply.offset)
        client.expect_eof()
    except nbd.Eof:
        eq(len(client.buffer), 0, "bytes of half a reply")


@case
def a_client_that_never_reads_does_not_hold_the_server_up(box):
    """Its replies cannot leave; it is dropped in the end."""
    server = box.disk_server()
    client = box.closing(nbd.Client(server.address()).ready())
    requests = [client.pack(nbd.CMD_READ, 0, MIB) for _ in range(16)]
    client.send(b"".join(requests))
    # The replies have begun to leave.
    client.fill()
    server.stop()


@case
def a_client_that_reads_slowly_is_dropped_in_time(box):
    """It takes some of its replies, again and again."""
    server = box.disk_server(options=["--stop-timeout", 1])
    client = box.closing(nbd.Client(server.address()).ready())
    client.send(b"".join(client.pack(nbd.CMD_READ, 0, 32 * MIB)
                         for _ in range(200)))
    client.fill()
    server.process.send_signal(signal.SIGTERM)
    taken = 0
    while server.process.poll() is None:
        taken += len(client.sock.recv(4 * KIB))
        time.sleep(0.01)
    server.wait()
    assert taken < 200 * 32 * MIB, "it took everything"


@case
def clients_that_read_slowly_and_steadily_get_every_reply(box):
    """
    The server can send again when a good part of the socket's buffer is free,
    and that takes them longer than it waits for one that takes nothing: they
    were dropped after five seconds.
    """
    server = box.server("disk=memory:16M", tcp=["127.0.0.1"],
                        options=["--stop-timeout", 600])
    # Of what a UNIX socket holds, less than of what TCP does.
    rates = {box.closing(nbd.Client(server.address()).ready()): 20 * KIB,
             client_of_a_narrow_window(box, server, 1): 100 * KIB}
    for client in rates:
        client.send(b"".join(client.pack(nbd.CMD_READ, i * MIB, MIB)
                             for i in range(16)))
        client.buffer += client.sock.recv(1)   # so all were received
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: is_refused(server.address()), "the socket to go")
    start = time.monotonic()
    while (now := time.monotonic() - start) < 7:
        for client, rate in rates.items():
            due = int(now * rate) - len(client.buffer)
            if due > 0:
                client.buffer += client.sock.recv(due)
        time.sleep(0.02)
    for client in rates:
        for reply in client.collect().values():
            eq((reply.error, len(reply.data)), (nbd.OK, MIB), "reply")
    for client in rates:
        client.expect_eof()
    server.wait()
    assert "dropping it" not in server.output(), server.output()


def client_of_a_narrow_window(box, server, index=0):
    """What it does not read stays with the server's end of the connection."""
    client = nbd.Client(server.addresses()[index])
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
    return box.closing(client.ready())


def send_another(client):
    """A request which nobody has to read any more; returns whether it left."""
    try:
        client.sock.send(client.pack(nbd.CMD_READ, 0, MIB))
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        return False
    return True


@case
def a_client_that_goes_on_sending_over_tcp_gets_every_reply(box):
    """
    It reads slowly, and sends as long as it is let to.  When the server had
    closed the connection, the first request was answered with a reset, and
    what the kernel still had to send of the replies was gone.
    """
    server = box.server("disk=memory:16M", unix=False, tcp=["127.0.0.1"])
    client = client_of_a_narrow_window(box, server)
    client.send(b"".join(client.pack(nbd.CMD_READ, i * MIB, MIB)
                         for i in range(16)))
    before = set(client.pending)
    client.fill()   # so all were received
    server.process.send_signal(signal.SIGTERM)
    stream = bytearray(client.buffer)
    sent = 0
    with contextlib.suppress(ConnectionResetError):
        while data := client.sock.recv(64 * KIB):
            stream += data
            sent += send_another(client)
            time.sleep(0.002)
    assert sent > 0, "nothing was sent"
    note(f"{len(stream)} bytes, and {sent} requests meanwhile")
    client.buffer = stream   # which ends behind a reply
    answered = set()
    while client.buffer:
        reply = client.reply()
        eq((reply.error, len(reply.data)), (nbd.OK, MIB), "reply")
        answered.add(reply.cookie)
    # Some that were sent later may have come before the signal did.
    first = min(before)
    eq(answered, set(range(first, first + len(answered))), "what was answered")
    assert len(before) <= len(answered) < len(before) + sent, answered
    server.wait()


@case
def a_slow_back_end_is_not_held_against_the_client(box):
    """
    The last reply is not ready before --stop-timeout is over: the client, who
    has not had the time to take it, is given some.
    """
    need_disk()
    shim = box.shim()
    server = box.disk_server(unix=False, tcp=["127.0.0.1"], shim=shim,
                             options=["--stop-timeout", 1])
    client = client_of_a_narrow_window(box, server)
    shim.shut_gate(Shim.WRITE)
    client.send(client.pack(nbd.CMD_READ, 0, MIB))
    client.fill()
    client.post_write(MIB, pattern(4096, 1))
    shim.wait_held(Shim.WRITE)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    shim.open_gate(Shim.WRITE)
    time.sleep(0.5)   # it was dropped now
    send_another(client)
    time.sleep(0.1)
    for _ in range(2):
        eq(client.reply().error, nbd.OK, "reply")
    client.close()
    server.wait()
    assert "dropping it" not in server.output(), server.output()


@case
def a_client_that_only_sends_over_tcp_does_not_hold_the_server_up(box):
    """Its replies wait in the kernel, and it will never take them."""
    server = box.server("disk=memory:16M", unix=False, tcp=["127.0.0.1"],
                        options=["--stop-timeout", 1])
    client = client_of_a_narrow_window(box, server)
    client.send(client.pack(nbd.CMD_READ, 0, MIB))
    client.sock.recv(1)   # it has begun to leave
    server.process.send_signal(signal.SIGTERM)
    client.sock.setblocking(False)
    while server.process.poll() is None:
        send_another(client)
        time.sleep(0.001)
    server.wait()


@case
def a_client_that_leaves_is_not_waited_for_over_tcp(box):
    """With replies that are in the kernel and that it does not want."""
    for closes_first in False, True:
        server = box.server("disk=memory:16M", unix=False, tcp=["127.0.0.1"])
        client = client_of_a_narrow_window(box, server)
        client.send(client.pack(nbd.CMD_READ, 0, MIB))
        client.sock.recv(1)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(server.address()), "the socket to go")
        if closes_first:
            client.half_close()
        client.close()   # there are bytes that it has not read: a reset
        server.wait()
        assert "dropping it" not in server.output(), server.output()


@case
def a_signal_that_comes_twice(box):
    server = box.disk_server()
    client = box.closing(nbd.Client(server.address()).ready())
    eq(client.flush(), nbd.OK, "FLUSH")
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGINT)
    server.stop()


@case
def a_signal_before_it_listens(box):
    """Whenever it comes: the server ends, and leaves no socket behind."""
    for _ in range(10):
        server = box.unstarted("disk=memory:1M")
        server.launch()
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(30)
        assert status in (0, -signal.SIGTERM), status
        assert not os.path.lexists(server.unix), "the socket is there"


@case
def a_signal_while_it_gives_up(box):
    """
    It could not write its pid file, and ends one thread after the other.  A
    signal between two of them once had it post to the loop of the first.
    """
    shim = box.shim()
    shim.signal_at_join(signal.SIGTERM)
    server = box.unstarted("disk=memory:1M", shim=shim, options=[
        "--threads", 3, "--pid-file", box.path("nowhere/pid")])
    server.launch()
    server.wait(1)
    eq(len(server.lines()), 1, f"lines of {server.output()}")


@case
def a_client_that_is_gone_is_no_sigpipe(box):
    server = box.disk_server()
    for _ in range(20):
        with nbd.Client(server.address()) as client:
            client.ready()
            requests = [client.pack(nbd.CMD_READ, 0, MIB) for _ in range(8)]
            client.send(b"".join(requests))
    with nbd.Client(server.address()) as client:
        client.ready()
        eq(client.read(0, 512), bytes(512), "data")


main()
