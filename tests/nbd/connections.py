#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Connections: many at once, many in a row, too many; none leaves anything
behind; on one I/O thread and on several.
"""

import contextlib
import resource
import select
import time

import nbdclient as nbd
import recorder
from nbdtest import (KIB, MIB, WRAPPER, Skip, case, connect, eq,
                     is_instrumented, main, note, pattern, rounds,
                     wait_until)

MANY = 100
CROWD = 4


def ready(box, server, **options):
    return box.closing(nbd.Client(server.address(), **options).ready())


def many_at_once(box, threads):
    """A hundred clients, each with requests in flight at the same time."""
    server = box.disk_server(options=["--threads", threads])
    clients = [ready(box, server) for _ in range(MANY)]
    for i, client in enumerate(clients):
        client.send(client.pack(nbd.CMD_WRITE, i * 8 * KIB, 8 * KIB,
                                data=pattern(8 * KIB, i)) +
                    client.pack(nbd.CMD_FLUSH))
    for client in clients:
        for reply in client.collect().values():
            eq(reply.error, nbd.OK, "error of a reply")
    for i, client in enumerate(clients):
        # What the next one has written.
        client.post(nbd.CMD_READ, (i + 1) % MANY * 8 * KIB, 8 * KIB)
    for i, client in enumerate(clients):
        eq(client.reply().data, pattern(8 * KIB, (i + 1) % MANY), "data")


@case
def a_hundred_at_once_on_one_thread(box):
    many_at_once(box, 1)


@case
def a_hundred_at_once_on_two_threads(box):
    many_at_once(box, 2)


def come_and_go(server, count, leave, idle):
    """
    One client after the other.  The server may still be busy with some that
    have left, but never with more than CROWD: its caches keep what it needs
    at the most, so the memory that it has would tell of that.
    """
    for i in range(count):
        server.wait_fds(idle + CROWD - 1)
        with nbd.Client(server.address()) as client:
            client.ready()
            client.post(nbd.CMD_READ, i * 512, 512)
            leave(client)


def leave_politely(client):
    client.reply()
    client.send(nbd.pack_request(nbd.CMD_DISC, 0))


def leave_with_replies_due(client):
    client.post_write(0, bytes(64 * KIB))


def leave_in_the_middle_of_a_payload(client):
    client.post(nbd.CMD_WRITE, 0, 64 * KIB)
    client.send(bytes(1000))


def nothing_left_behind(box, leave, transport):
    server = box.disk_server(**transport)
    wait_until(lambda: settled(server), "the server to come to rest")
    idle = server.fds()
    # Fills caches and pools: each I/O thread keeps 128 coroutines that it has
    # finished, and what accepts takes new ones until then.
    come_and_go(server, rounds(500) if is_instrumented() else 500, leave, idle)
    wait_until(lambda: settled(server), "the server to come to rest")
    fds, rss = server.fds(), server.rss()
    come_and_go(server, rounds(1000), leave, idle)
    server.wait_fds(fds)
    if not is_instrumented():
        grown = server.rss() - rss
        note(f"{grown // KIB} KiB more")
        assert grown < 512 * KIB, f"{grown // KIB} KiB of memory left behind"


def settled(server):
    """Whether the number of file descriptors has stopped to fall."""
    fds = server.fds()
    with nbd.Client(server.address()) as client:
        client.ready()
        client.disconnect()
    return server.fds() >= fds


@case
def a_thousand_in_a_row(box):
    nothing_left_behind(box, leave_politely, {})


@case
def a_thousand_in_a_row_over_tcp(box):
    nothing_left_behind(box, leave_politely,
                        {"unix": False, "tcp": ["127.0.0.1"]})


@case
def a_thousand_that_leave_with_replies_due(box):
    nothing_left_behind(box, leave_with_replies_due, {})


@case
def a_thousand_that_leave_in_the_middle_of_a_payload(box):
    nothing_left_behind(box, leave_in_the_middle_of_a_payload, {})


@case
def a_thousand_that_only_connect(box):
    server = box.disk_server()
    with nbd.Client(server.address()) as client:
        client.ready()
        fds = server.fds()
        for _ in range(rounds(1000)):
            connect(server.address()).close()
        server.wait_fds(fds)
        eq(client.read(0, 512), bytes(512), "data")


def is_turned_away(client):
    """Whether the server has closed it, without waiting."""
    readable, _, _ = select.select([client.sock], [], [], 0)
    if not readable:
        return False
    with contextlib.suppress(ConnectionResetError):
        return client.sock.recv(1) == b""
    return True


@case
def one_too_many(box):
    """It is not served; the others are; when one leaves there is room."""
    server = box.unstarted("disk=memory:1M", options=["--max-connections", 3])
    server.start()
    # Connections that looked whether the server listens go away in time.
    clients = [wait_until(lambda: try_ready(box, server), "room")
               for _ in range(3)]
    fds = server.fds()
    for _ in range(20):
        extra = box.closing(nbd.Client(server.address()))
        for client in clients:
            eq(client.read(0, 512), bytes(512), "data")
        wait_until(lambda: is_turned_away(extra),
                   "the one too many to be closed")
        extra.close()
    server.wait_fds(fds)
    clients.pop().disconnect()
    wait_until(lambda: try_ready(box, server), "room for another")


def try_ready(box, server):
    """A client, or None if there is no room."""
    client = box.closing(nbd.Client(server.address(), limit=5))
    try:
        return client.ready()
    except (nbd.Eof, TimeoutError, ConnectionError):
        client.close()
        return None


def processor_share(server):
    """In a second of leisure."""
    before, begin = server.processor_seconds(), time.monotonic()
    select.select([], [], [], 1)
    used = server.processor_seconds() - before
    return used / (time.monotonic() - begin)


def check_not_spinning(server):
    """It may have something left to do at first; one that spins never rests."""
    shares = []
    while not shares or shares[-1] >= 0.3:
        assert len(shares) < 5, f"{shares} of a processor"
        shares.append(processor_share(server))


@case
def idle_clients_cost_no_processor(box):
    server = box.disk_server(options=["--threads", 2])
    clients = [ready(box, server) for _ in range(20)]
    clients += [box.closing(nbd.Client(server.address())) for _ in range(20)]
    for client in clients[:20]:
        client.send(client.pack(nbd.CMD_READ, 0, 512) * 4 +
                    nbd.pack_request(nbd.CMD_WRITE, 1, 0, 4096)[:20])
    check_not_spinning(server)


@case
def slow_clients_end_busy_polling(box):
    """One whose pauses are longer than --busy-poll has no use for it."""
    server = box.disk_server(options=["--threads", 1, "--busy-poll", 2000])
    client = ready(box, server)
    for _ in range(1000):
        client.read(0, 512)  # as quick as can be: it polls
    before, begin = server.processor_seconds(), time.monotonic()
    for _ in range(100):
        client.read(0, 512)
        time.sleep(0.01)
    used = server.processor_seconds() - before
    share = used / (time.monotonic() - begin)
    assert share < 0.1, f"{share} of a processor, of which --busy-poll is 0.2"


@case
def no_more_file_descriptors(box):
    """accept() fails for a while; the server recovers and does not spin."""
    if WRAPPER:
        raise Skip("the tool that the server runs under needs descriptors")
    server = box.server("disk=memory:1M", options=["--threads", 1],
                        limits={"nofile": 40})
    first = ready(box, server)
    crowd = [box.closing(connect(server.address())) for _ in range(60)]
    for _ in range(100):
        eq(first.read(0, 512), bytes(512), "data")
    wait_until(lambda: server.fds() >= 38, "all descriptors to be taken")
    check_not_spinning(server)
    for sock in crowd:
        sock.close()
    wait_until(lambda: try_ready(box, server), "room")


@case
def threads_take_no_descriptors_from_connections(box):
    """The limit that the server gives itself once left their loops out."""
    if WRAPPER:
        raise Skip("the tool that the server runs under needs descriptors")
    most = 10
    server = box.server("disk=memory:1M", limits={"nofile": "64:4096"},
                        options=["--threads", 64, "--max-connections", most])
    clients = [wait_until(lambda: try_ready(box, server), "room")
               for _ in range(most)]
    for client in clients:
        eq(client.read(0, 512), bytes(512), "data")
    assert "cannot accept" not in server.output(), server.output()
    limit, _ = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    # Enough, and by far not all that it might have.
    assert server.fds() < limit < 1024, f"{server.fds()} of {limit}"


@case
def connections_are_spread_over_all_threads(box):
    """And each stays on its own."""
    shim = box.shim(record=True)
    server = box.disk_server(shim=shim, options=["--threads", 3])
    clients = [ready(box, server) for _ in range(6)]
    for _ in range(20):
        for client in clients:
            client.post(nbd.CMD_READ, 0, 4096)
            client.post_write(0, bytes(512))
        for client in clients:
            client.collect()
    for client in clients:
        client.disconnect()
    server.stop()
    recording = recorder.Recording.load(shim.log_path)
    threads = []
    for talk in recording.conversations():
        if not talk.requests:
            continue   # that was only to see whether the server listens
        here = {call.thread for call in talk.receives + talk.sends}
        eq(len(here), 1, "threads of one connection")
        threads += here
    eq(len(threads), 6, "connections")
    eq(len(set(threads)), 3, "threads")
    eq({threads.count(t) for t in threads}, {2}, "connections of a thread")


@case
def as_many_threads_as_it_was_told(box):
    counts = []
    for number in 1, 2, 7:
        server = box.server("disk=memory:1M", options=["--threads", number])
        counts.append(len(server.threads()))
    eq([count - counts[0] for count in counts], [0, 1, 6], "more threads")


@case
def writes_of_all_connections_meet_in_one_file(box):
    """Four clients interleave their blocks; each must land in its place."""
    server = box.disk_server(size=4 * MIB, options=["--threads", 2])
    clients = [ready(box, server) for _ in range(4)]
    for block in range(1024):
        client = clients[block % 4]
        client.post_write(block * 4 * KIB, pattern(4 * KIB, block))
        if len(client.pending) == 32:
            client.collect()
    for client in clients:
        client.collect()
    eq(clients[0].flush(), nbd.OK, "FLUSH")
    with open(server.image, "rb") as image:
        for block in range(1024):
            eq(image.read(4 * KIB), pattern(4 * KIB, block), f"block {block}")


main()
