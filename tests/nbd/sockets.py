#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Where the server listens: UNIX sockets (stale, live, foreign), TCP over IPv4
and IPv6, several at once, sockets handed over by a service manager, and what
is left after kill -9.
"""

import ctypes
import errno
import fcntl
import os
import signal
import socket
import stat
import sys

import nbdclient as nbd
from nbdtest import (MIB, Skip, case, connect, eq, free_port, is_refused, main,
                     need, pattern, run, seconds, wait_until)

PIDFD_GETFD = 438
PASSRIGHTS = 83

# Plays the service manager: puts the sockets where they belong and says so.
LAUNCHER = """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split(",")]
spare = [os.dup(fd) for fd in fds]
while min(spare) < 3 + len(fds):
    spare = [os.dup(fd) for fd in spare]
for i, fd in enumerate(spare):
    os.dup2(fd, 3 + i, inheritable=True)
os.closerange(3 + len(fds), 256)
os.environ["LISTEN_FDS"] = str(len(fds))
os.environ["LISTEN_PID"] = sys.argv[2] if sys.argv[2] != "self" else str(
    os.getpid())
os.execvp(sys.argv[3], sys.argv[3:])
"""


def check_served(server, address=None, export="disk"):
    with nbd.Client(address or server.address()) as client:
        client.ready(export)
        eq(client.read(0, 4096), bytes(4096), "data")
        client.disconnect()


def is_served(server):
    """Or there is no room, until others are known to have gone."""
    try:
        check_served(server)
    except (nbd.Eof, ConnectionError):
        return False
    return True


def failing(server, status=1):
    """Starts a server that must not come up; returns what it says."""
    server.launch()
    eq(server.process.wait(seconds(30)), status, "exit status")
    server.process = None
    lines = server.lines()
    eq(len(lines), 1, f"lines of {lines}")
    return lines[0]


@case
def nobody_passes_descriptors(box):
    """The I/O thread would close them, and sleep in that for as long as the
    client likes (SO_LINGER)."""
    passed = box.closing(socket.socket(socket.AF_UNIX))
    passed.bind(box.path("passed.sock"))
    passed.listen()
    if not has_passrights(passed):
        raise Skip("the kernel cannot refuse them (SO_PASSRIGHTS)")
    server = box.disk_server()
    with nbd.Client(server.address()) as client:
        client.ready()
        try:
            socket.send_fds(client.sock, [b"x"], [passed.fileno()])
        except PermissionError:
            return
        raise AssertionError("a descriptor was passed")


def has_passrights(sock):
    try:
        sock.getsockopt(socket.SOL_SOCKET, PASSRIGHTS)
    except OSError:
        return False
    return True


@case
def a_unix_socket_is_removed_at_the_end(box):
    server = box.disk_server()
    assert stat.S_ISSOCK(os.stat(server.unix).st_mode)
    check_served(server)
    server.stop()   # which checks it


@case
def a_stale_socket_is_replaced(box):
    server = box.unstarted(f"disk={box.image()}")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(server.unix)
        stale.listen()
    assert os.path.exists(server.unix)
    server.start()
    check_served(server)


@case
def somebody_elses_lock_of_the_directory_keeps_nobody_waiting(box):
    server = box.unstarted("disk=memory:1M")
    folder = os.open(os.path.dirname(server.unix), os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_SH)
    server.start()
    check_served(server)
    os.close(folder)
    server.stop()


@case
def a_live_socket_is_left_alone(box):
    server = box.disk_server()
    second = box.unstarted("other=memory:1M")
    second.unix = server.unix
    assert server.unix in failing(second), second.output()
    check_served(server)


@case
def a_live_socket_that_does_not_accept_is_left_alone(box):
    """Its backlog is full; it is in use all the same."""
    path = box.path("busy.sock")
    busy = box.closing(socket.socket(socket.AF_UNIX))
    busy.bind(path)
    busy.listen(0)
    waiting = [box.closing(connect(path))]
    try:
        for _ in range(10):
            sock = box.closing(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            sock.connect(path)
            waiting.append(sock)
    except BlockingIOError:
        pass
    server = box.unstarted("disk=memory:1M")
    server.unix = path
    failing(server)
    assert os.path.exists(path), "somebody else's socket was removed"


@case
def a_file_that_is_no_socket_is_left_alone(box):
    server = box.unstarted("disk=memory:1M")
    with open(server.unix, "w") as file:
        file.write("precious")
    line = failing(server)
    assert server.unix in line and "no socket" in line, line
    with open(server.unix) as file:
        eq(file.read(), "precious", "contents")


@case
def a_socket_that_was_replaced_is_not_removed(box):
    """Somebody has put his own in its place; that one stays."""
    server = box.disk_server()
    os.unlink(server.unix)
    other = box.closing(socket.socket(socket.AF_UNIX))
    other.bind(server.unix)
    other.listen()
    path, server.unix = server.unix, None
    server.stop()
    assert os.path.exists(path), "somebody else's socket was removed"


@case
def a_socket_in_a_folder_that_is_not_there(box):
    server = box.unstarted("disk=memory:1M")
    server.unix = box.path("no/such/folder/x.sock")
    assert server.unix in failing(server), server.output()


@case
def a_path_that_is_too_long(box):
    server = box.unstarted("disk=memory:1M")
    server.unix = box.path("x" * 150)
    failing(server)


def restart(server):
    """A ring, which the kernel takes down after its process, may hold the
    socket for longer than a new server tries for."""
    wait_until(lambda: is_refused(server.address()), "the socket to go")
    server.start()


@case
def kill_9_and_restart(box):
    """
    The socket is stale then and is replaced; what was flushed is there, and
    so is everything that was answered, since the page cache has survived.
    """
    server = box.disk_server()
    flushed, answered = pattern(MIB, 1), pattern(MIB, 2)
    with nbd.Client(server.address()) as client:
        client.ready()
        eq(client.write(0, flushed), nbd.OK, "WRITE")
        eq(client.flush(), nbd.OK, "FLUSH")
        eq(client.write(MIB, answered), nbd.OK, "WRITE")
        for i in range(64):   # and some that are under way
            client.post_write(2 * MIB + i * 4096, pattern(4096))
        server.kill()
        client.drain()
    assert os.path.exists(server.unix), "no stale socket to replace"
    restart(server)
    with nbd.Client(server.address()) as client:
        client.ready()
        eq(client.read(0, MIB), flushed, "what was flushed")
        eq(client.read(MIB, MIB), answered, "what was answered")
        eq(client.write(0, answered), nbd.OK, "WRITE")


@case
def several_sockets(box):
    server = box.unstarted(f"disk={box.image()}", tcp=["127.0.0.1"] * 2)
    other = box.path("other.sock")
    server.options += ["--unix", other]
    server.start()
    for address in server.addresses() + [other]:
        wait_until(lambda: server.is_listening(address), f"{address}")
        check_served(server, address)
    server.stop()
    assert not os.path.exists(other), "the other socket is there"


@case
def tcp_over_ipv4(box):
    server = box.server(f"disk={box.image()}", unix=False, tcp=["127.0.0.1"])
    check_served(server)
    assert "disk" in run("nbdinfo", "--list", server.uri())


@case
def tcp_over_ipv6(box):
    server = box.server(f"disk={box.image()}", unix=False, tcp=["::1"])
    check_served(server)
    assert "disk" in run("nbdinfo", "--list", server.uri())


# With other hosts: the file is its first argument, a command the rest.
IN_HOSTS = ["unshare", "--mount",
            *(["--map-root-user"] if os.getuid() != 0 else []),
            "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"']


@case
def a_name_that_stands_for_one_address_twice(box):
    """
    As localhost does with two lines in /etc/hosts.  The second time the
    address was in use, by the server itself, which gave up then.
    """
    need("unshare")
    with open(box.path("hosts"), "w") as hosts:
        hosts.write("127.0.0.1 twice\n127.0.0.1 twice other\n")
    wrap = IN_HOSTS + [box.path("hosts")]
    found = run(*wrap, sys.executable, "-c", "import socket; print(*socket."
                "getaddrinfo('twice', 1, type=socket.SOCK_STREAM), sep='\\n')",
                status=None)
    if found.count("('127.0.0.1', 1)") != 2:
        raise Skip(f"no name has an address twice here: {found.strip()}")
    port = free_port("127.0.0.1")
    server = box.unstarted(f"disk={box.image()}", wrap=wrap,
                           options=["--tcp", f"twice:{port}"])
    server.start()
    check_served(server, ("127.0.0.1", port))
    eq(server.output().count(f"nbd://127.0.0.1:{port}/"), 1, "sockets")


@case
def tcp_port_in_use(box):
    server = box.server(f"disk={box.image()}", unix=False, tcp=["127.0.0.1"])
    second = box.unstarted("disk=memory:1M", unix=False, tcp=["127.0.0.1"])
    second.ports = server.ports
    assert str(server.ports[0]) in failing(second), second.output()
    check_served(server)


@case
def tcp_restart_on_the_same_port(box):
    """In spite of connections that linger in TIME_WAIT."""
    server = box.disk_server(unix=False, tcp=["127.0.0.1"])
    client = box.closing(nbd.Client(server.address()).ready())
    server.stop()
    client.expect_eof()
    server.start()
    check_served(server)
    client = box.closing(nbd.Client(server.address()).ready())
    server.kill()
    client.drain()
    restart(server)
    check_served(server)


def sockets_of(server):
    """The server's stream sockets over TCP, as sockets of this process."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    pidfd = os.pidfd_open(server.process.pid)
    for fd in os.listdir(f"/proc/{server.process.pid}/fd"):
        copy = syscall(PIDFD_GETFD, pidfd, int(fd), 0)
        if copy < 0:
            if ctypes.get_errno() == errno.EBADF:
                continue   # it was closed meanwhile
            raise Skip(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
        if not stat.S_ISSOCK(os.fstat(copy).st_mode):
            os.close(copy)
            continue
        with socket.socket(fileno=copy) as sock:
            yield sock
    os.close(pidfd)


@case
def tcp_replies_do_not_wait_for_nagle(box):
    """TCP_NODELAY is set, as a look through the server's eyes shows."""
    server = box.disk_server(unix=False, tcp=["127.0.0.1"])
    client = box.closing(nbd.Client(server.address()).ready())
    mine = client.sock.getsockname()
    found = [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
             for sock in sockets_of(server)
             if sock.family == socket.AF_INET and is_peer(sock, mine)]
    eq(len(found), 1, "sockets that lead to the client")
    assert found[0], "TCP_NODELAY is not set"


def is_peer(sock, address):
    try:
        return sock.getpeername() == address
    except OSError:
        return False   # it listens


def bound(box, kind):
    """A listening socket as a service manager would make it."""
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(box.path(f"activated{sock.fileno()}.sock"))
    else:
        sock = socket.socket(socket.AF_INET)
        sock.bind(("127.0.0.1", 0))
    sock.listen()
    return box.closing(sock)


def activated(box, sockets, pid="self", **options):
    fds = [s.fileno() for s in sockets]
    return box.unstarted(
        f"disk={box.image()}", pass_fds=fds,
        wrap=[sys.executable, "-c", LAUNCHER, ",".join(map(str, fds)), pid],
        **options)


@case
def socket_activation(box):
    sockets = [bound(box, "unix"), bound(box, "tcp")]
    server = activated(box, sockets, unix=False)
    server.launch()
    for sock in sockets:
        # The connection waits in the backlog until the server is there.
        check_served(server, sock.getsockname())
    server.stop()
    path = sockets[0].getsockname()
    assert os.path.exists(path), "the service manager's socket was removed"


@case
def socket_activation_with_a_socket_of_its_own(box):
    sock = bound(box, "unix")
    server = activated(box, [sock])
    server.start()
    check_served(server, sock.getsockname())
    check_served(server)


@case
def sockets_for_another_process_are_not_taken(box):
    """LISTEN_PID names somebody else; nothing to listen on is left."""
    sock = bound(box, "unix")
    server = activated(box, [sock], pid="1", unix=False)
    failing(server, status=2)


@case
def the_service_managers_variables_are_not_trusted(box):
    for fds in "0", "-1", "x", "99999999999", "1":
        server = box.unstarted("disk=memory:1M", unix=False)
        server.env = {"LISTEN_FDS": fds}
        server.wrap = ["sh", "-c", 'LISTEN_PID=$$ exec "$0" "$@" 3>&-']
        server.launch()
        status = server.process.wait(seconds(30))
        assert status in (1, 2), f"LISTEN_FDS={fds}: status {status}"
        eq(len(server.lines()), 1, server.output())
        os.unlink(server.log)
        server.process = None


@case
def dead_sockets_do_not_count_as_connections(box):
    """Clients that vanish at once, by the hundred, on TCP with a reset."""
    server = box.disk_server(unix=False, tcp=["127.0.0.1"],
                             options=["--max-connections", 100])
    linger = b"\1\0\0\0\0\0\0\0"   # on, 0 seconds: close() resets
    for _ in range(300):
        with connect(server.address()) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    wait_until(lambda: is_served(server), "room")


@case
def sigterm_while_connections_wait_to_be_accepted(box):
    server = box.disk_server()
    with server.asleep():
        waiting = [box.closing(connect(server.address())) for _ in range(5)]
        server.process.send_signal(signal.SIGTERM)
    server.wait()
    for sock in waiting:
        try:
            while sock.recv(4096):
                pass
        except ConnectionResetError:
            pass


main()
