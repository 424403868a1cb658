#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
The command line: each mistake gives one clear line on stderr that names the
culprit, and exit status 2 (usage) or 1 (whatever else keeps the server from
serving).  Also --help, --version, --pid-file, --log-level.
"""

import os
import re
import signal
import socket
import subprocess

import nbdclient as nbd
from nbdtest import (MIB, SERVER, WRAPPER, Skip, case, eq, main, own_lines,
                     pattern, seconds, spawn, wait_until)

EXPORT = ["--export", "disk=memory:1M"]


def call(*arguments):
    """Runs the server, which must end by itself: (status, stdout, stderr)."""
    with spawn(*WRAPPER, SERVER, *arguments, stdout=subprocess.PIPE,
               stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=seconds(30))
        except BaseException:
            process.kill()
            raise
    return process.returncode, out, "".join(
        line + "\n" for line in own_lines(err))


def check_refused(status, culprit, *arguments):
    """status, and one line with the culprit in it."""
    code, out, err = call(*arguments)
    what = f"{arguments}: {err!r}"
    eq(out, "", f"stdout of {what}")
    eq(len(err.splitlines()), 1, f"number of lines of {what}")
    assert err.startswith("coaio-nbd: "), what
    assert culprit in err, f"{culprit!r} is not in {what}"
    eq(code, status, f"status of {what}")


@case
def help_and_version(_box):
    code, out, err = call("--help")
    eq((code, err), (0, ""), "status and stderr of --help")
    for option in ("unix", "tcp", "export", "default-export", "threads",
                   "busy-poll", "max-connections", "max-inflight",
                   "handshake-timeout", "stop-timeout",
                   "pid-file", "log-level", "direct", "help", "version"):
        assert f"--{option}" in out, f"--{option} is not in the help"
    assert all(len(line) <= 80 for line in out.splitlines()), "long lines"
    code, out, err = call("--version")
    eq((code, err), (0, ""), "status and stderr of --version")
    assert re.fullmatch(r"coaio-nbd \d+\.\d+\.\d+\S*\n", out), out


@case
def the_man_page_knows_every_option(_box):
    source = os.environ.get("COAIO_SOURCE_DIR")
    if not source:
        raise Skip("COAIO_SOURCE_DIR is not set")
    with open(os.path.join(source, "nbd", "coaio-nbd.1")) as file:
        page = file.read().replace("\\-", "-")
    _, out, _ = call("--help")
    for option in set(re.findall(r"--[a-z-]+", out)):
        assert option in page, f"{option} is not in the man page"
    for option in set(re.findall(r"--[a-z][a-z-]+", page)):
        assert option in out, f"{option} is not in the help"


@case
def unknown_options(box):
    listen = ["--unix", box.path("x.sock")]
    check_refused(2, "--nonsense", "--nonsense")
    check_refused(2, "-x", "-x")
    check_refused(2, "--threads", *listen, *EXPORT, "--threads")
    check_refused(2, "--direct=yes", *listen, *EXPORT, "--direct=yes")
    check_refused(2, "left over", *listen, *EXPORT, "left over")
    check_refused(2, "--max", *listen, *EXPORT, "--max", "1")  # ambiguous


@case
def nothing_to_serve_or_nowhere(box):
    check_refused(2, "--export", "--unix", box.path("x.sock"))
    check_refused(2, "--unix", *EXPORT)
    check_refused(2, "--export")


@case
def exports_that_make_no_sense(box):
    listen = ["--unix", box.path("x.sock")]
    for text in "disk", "=x", "disk=", "", "=", "x" * 4097 + "=memory:1M":
        culprit = text if len(text) < 100 else "4097"
        check_refused(2, culprit, *listen, "--export", text)
    check_refused(2, "twice", *listen, "--export", "twice=memory:1M",
                  "--export", "twice=memory:2M")
    check_refused(2, "nobody", *listen, *EXPORT, "--default-export", "nobody")


@case
def sizes_that_do_not_parse(box):
    listen = ["--unix", box.path("x.sock")]
    for size in ("", "x", "1X", "1MM", "-1", "+1", " 1", "1 ", "1.5G", "0x10",
                 "M", "16E", "9223372036854775808", "99999999999999999999",
                 "1" * 100, "9007199254740992K"):
        for kind in "memory", "null":
            check_refused(2, size, *listen, "--export", f"d={kind}:{size}")
    for size in "", "0", "x", "-1", "1Q", "16E":
        check_refused(2, size, *listen, *EXPORT, "--max-inflight", size)


@case
def numbers_that_do_not_parse(box):
    listen = ["--unix", box.path("x.sock")]
    for option in ("threads", "max-connections", "handshake-timeout",
                   "stop-timeout"):
        for number in ("", "0", "-1", "x", "1x", " 1", "1.5", "0x10",
                       "4294967297", "99999999999999999999"):
            check_refused(2, f"--{option}", *listen, *EXPORT, f"--{option}",
                          number)
    for number in "", "-1", "x", "1.5", "1000001", "4294967296":
        check_refused(2, "--busy-poll", *listen, *EXPORT, "--busy-poll",
                      number)
    check_refused(2, "loud", *listen, *EXPORT, "--log-level", "loud")


@case
def addresses_that_do_not_parse(_box):
    for address in ("", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x",
                    "127.0.0.1:65536", "127.0.0.1:-1", "::1:10809",
                    "[::1]", "[::1]:", "[::1:10809", "127.0.0.1:10809:"):
        check_refused(2, address, *EXPORT, "--tcp", address)
    check_refused(2, "--unix", *EXPORT, "--unix", "")


@case
def addresses_that_are_not_there(_box):
    check_refused(1, "192.0.2.1", *EXPORT, "--tcp", "192.0.2.1:10809")
    check_refused(1, "2001:db8::1", *EXPORT, "--tcp", "[2001:db8::1]:10809")


@case
def sources_that_cannot_be_opened(box):
    listen = ["--unix", box.path("x.sock")]
    missing = box.path("no-such-image")
    check_refused(1, missing, *listen, "--export", f"disk={missing}")
    check_refused(1, missing, *listen, "--export", f"disk={missing},ro")
    check_refused(1, box.dir, *listen, "--export", f"disk={box.dir}")
    check_refused(1, "/dev/null", *listen, "--export", "disk=/dev/null")
    fifo = box.path("fifo")
    os.mkfifo(fifo)
    check_refused(1, fifo, *listen, "--export", f"disk={fifo}")
    check_refused(1, fifo, *listen, "--export", f"disk={fifo},ro")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(box.path("sock"))
        check_refused(1, "sock", *listen, "--export",
                      f"disk={box.path('sock')}")
    if os.getuid() != 0:
        image = box.image()
        os.chmod(image, 0o400)
        check_refused(1, image, *listen, "--export", f"disk={image}")
    assert not os.path.exists(box.path("x.sock")), "a socket is left"


@case
def what_failed_to_start_leaves_no_socket(box):
    """The second listener is impossible; the first is taken down again."""
    path, pid = box.path("x.sock"), box.path("pid")
    check_refused(1, "192.0.2.1", *EXPORT, "--unix", path, "--tcp",
                  "192.0.2.1:10809", "--pid-file", pid)
    assert not os.path.lexists(path), "a socket is left"
    assert not os.path.lexists(pid), "a pid file is left"


@case
def names_with_odd_characters(box):
    """Only the first '=' divides; ',ro' counts at the very end only."""
    image = box.image("a,b=c,ro.img", size=MIB)
    server = box.server(f"x={image}", f"y,ro={image},ro")
    with nbd.Client(server.address()) as client:
        client.ready("x")
        eq(client.write(0, b"x"), nbd.OK, "WRITE")
    with nbd.Client(server.address()) as client:
        client.ready("y,ro")
        eq(client.write(0, b"x"), nbd.EPERM, "WRITE")


@case
def long_options_may_be_joined_and_shortened(box):
    server = box.unstarted("disk=memory:1M")
    server.options = ["--threads=1", "--handshake=5", "--max-c=7",
                      "--max-inflight=1M", "--log-level=debug"]
    server.start()
    with nbd.Client(server.address()) as client:
        client.ready("disk")


@case
def a_pid_file_is_written_and_removed(box):
    path = box.path("pid")
    server = box.server("disk=memory:1M", options=["--pid-file", path])
    wait_until(lambda: os.path.exists(path), "the pid file")
    with open(path) as file:
        eq(file.read(), f"{server.process.pid}\n", "contents")
    server.stop()
    assert not os.path.exists(path), "the pid file is still there"


@case
def a_pid_file_that_is_old_is_replaced(box):
    path = box.path("pid")
    with open(path, "w") as file:
        file.write("123456789\n" * 100)
    server = box.server("disk=memory:1M", options=["--pid-file", path])
    expected = f"{server.process.pid}\n"
    wait_until(lambda: open(path).read() == expected, "the pid file")


@case
def a_pid_file_appears_when_the_server_is_ready(box):
    path = box.path("pid")
    for _ in range(5):
        server = box.unstarted("disk=memory:1M", options=["--pid-file", path])
        server.launch()
        wait_until(lambda: os.path.exists(path), "the pid file")
        with nbd.Client(server.address()) as client:
            client.ready("disk")
        with open(path) as file:
            eq(file.read(), f"{server.process.pid}\n", "contents")
        server.stop()


@case
def a_pid_file_that_cannot_be_written(box):
    path = box.path("no/such/folder/pid")
    socket_path = box.path("x.sock")
    check_refused(1, path, *EXPORT, "--unix", socket_path, "--pid-file", path)
    assert not os.path.exists(socket_path), "a socket is left"


def lines_at(box, level):
    """What a server says to a client that makes every mistake once."""
    server = box.server("disk=memory:1M", options=["--log-level", level])
    with nbd.Client(server.address()) as client:
        client.hello()
        client.go("nobody")
        client.option(999)
        eq(client.go("disk"), nbd.REP_ACK, "reply to GO")
        client.call(77)
        client.call(nbd.CMD_READ, 2 * MIB, 1)
        client.send(b"garbage that is long enough for a request")
        client.expect_eof()
    server.stop()
    return len(server.lines())


@case
def log_levels(box):
    """A client's mistakes are no errors of the server's."""
    counts = [lines_at(box, level)
              for level in ("error", "warning", "info", "debug")]
    eq(counts[0], 0, "lines at level error")
    eq(counts, sorted(counts), "lines at the four levels")
    assert counts[3] > counts[0], "debug says no more than error"


@case
def a_client_cannot_fill_the_log(box):
    server = box.server("disk=memory:1M", options=["--log-level", "debug"])
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        for _ in range(20):
            requests = [client.pack(77) for _ in range(500)]
            client.send(b"".join(requests))
            client.collect()
    lines = server.lines()
    assert len(lines) < 5000, f"{len(lines)} lines for 10,000 mistakes"


@case
def names_from_clients_cannot_forge_lines(box):
    """Control characters in an export's name do not reach the log raw."""
    server = box.server("disk=memory:1M", options=["--log-level", "debug"])
    with nbd.Client(server.address()) as client:
        client.hello()
        client.go("x\ncoaio-nbd: forged\x1b[2J")
        client.meta_context(nbd.OPT_LIST_META_CONTEXT, "y\ncoaio-nbd: forged",
                            [])
    server.stop()
    assert "\x1b" not in server.output(), "an escape sequence in the log"
    forged = [line for line in server.output().splitlines()
              if line.startswith("coaio-nbd: forged")]
    eq(forged, [], "forged lines")


@case
def a_log_that_nobody_reads_holds_nobody_up(box):
    """stderr is a pipe that is full."""
    if WRAPPER:
        raise Skip("Valgrind has lines of its own to write, and waits")
    server = box.unstarted("disk=memory:1M", options=["--log-level", "debug"])
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        try:
            while os.write(writer, bytes(65536)):
                pass
        except BlockingIOError:
            pass
        os.set_blocking(writer, True)
        server.process = spawn(*server.command(), stderr=writer)
    finally:
        os.close(writer)
    wait_until(lambda: server.is_listening(server.unix), "the server")
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        for _ in range(100):
            client.call(77)
        eq(client.write(0, pattern(512)), nbd.OK, "WRITE")
    server.stop()
    os.close(reader)


@case
def standard_descriptors_may_be_closed(box):
    """Files that are opened must not end up as standard error."""
    if WRAPPER:
        raise Skip("Valgrind does not start without them")
    image = box.image(size=MIB, data=pattern(MIB))
    server = box.unstarted(f"disk={image}", options=["--log-level", "debug"])
    server.wrap = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-']
    server.start()
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        client.call(77)
        eq(client.read(0, MIB), pattern(MIB), "data")
    server.stop()
    with open(image, "rb") as file:
        eq(file.read(), pattern(MIB), "the image")


@case
def sigpipe_is_ignored(box):
    server = box.server("disk=memory:1M")
    server.process.send_signal(signal.SIGPIPE)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        eq(client.read(0, 512), bytes(512), "data")


main()
