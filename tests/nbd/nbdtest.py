# SPDX-License-Identifier: MIT
"""
What the tests of the NBD server share: cases that report TAP, servers that
are started and stopped, images, the preloaded shim, real clients.

A test is a script with functions marked @case, and ends with main().  Each
case gets a Box, through which it starts servers, makes files and runs
clients; whatever the Box has handed out is gone when the case is over.

A case passes if it returns, every server that it leaves running ends with
status 0 on SIGTERM and removes its sockets, and no sanitizer has complained.
Everything that waits has a limit: sockets, programs, and each case as a whole.

    COAIO_NBD                 the server
    COAIO_NBD_WRAPPER         a command to run it with, such as valgrind
    COAIO_NBD_SHIM            shim.so; made with cc if this is not set
    COAIO_TEST_DIR            where to put images (default: /var/tmp, if it is
                              on a disk)
    COAIO_TEST_SEED           seed of what is drawn at random
    COAIO_TEST_LOAD           per cent of the rounds to run
    COAIO_TEST_TIMEOUT_SCALE  factor for all limits of time
    COAIO_TEST_EXCEPT         cases not to run: patterns, with colons in between

A script takes the names of the cases to run, and --list.
"""

import atexit
import contextlib
import errno
import faulthandler
import fnmatch
import functools
import mmap
import os
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.parse
import zlib

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

HERE = os.path.dirname(os.path.abspath(__file__))
SERVER = os.environ.get("COAIO_NBD", "coaio-nbd")
WRAPPER = shlex.split(os.environ.get("COAIO_NBD_WRAPPER", ""))

CASES = []


class Skip(Exception):
    """Raised by a case that cannot run here; the text is the reason."""


class Expired(Exception):
    """A limit of time has passed."""


# Limits.

@functools.lru_cache(maxsize=None)
def is_instrumented():
    """Whether the server runs under a sanitizer or a tool: slow and fat."""
    if WRAPPER:
        return True
    with open(shutil.which(SERVER) or SERVER, "rb") as program:
        image = program.read()
    return b"__asan_init" in image or b"__tsan_init" in image


def seconds(limit):
    """A limit of time for this machine and this build of the server."""
    scale = float(os.environ.get("COAIO_TEST_TIMEOUT_SCALE", "1"))
    return limit * scale * (5 if is_instrumented() else 1)


def short_handshake():
    """Whole seconds in which whoever does not wait on purpose gets through its
    handshake."""
    return max(2, min(10, int(seconds(1))))


def rounds(number):
    """The number of rounds to run where number is the full load."""
    return max(1, number * int(os.environ.get("COAIO_TEST_LOAD", "100")) // 100)


@functools.lru_cache(maxsize=None)
def seed():
    value = os.environ.get("COAIO_TEST_SEED")
    value = int(value, 0) if value else random.SystemRandom().getrandbits(32)
    note(f"COAIO_TEST_SEED={value}")
    return value


def wait_until(condition, what, limit=20):
    """Polls until condition() is true, and returns what it returned."""
    end = time.monotonic() + seconds(limit)
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Expired(f"waited {seconds(limit):g} s for {what}")
        time.sleep(0.005)


def eq(actual, expected, what="value"):
    if actual != expected:
        raise AssertionError(
            f"{what}: expected {brief(expected)}, got {brief(actual)}")


def brief(value):
    text = repr(value)
    return text if len(text) < 400 else f"{text[:400]}... ({len(text)} long)"


# TAP.

def note(text):
    for line in str(text).splitlines():
        print(f"# {line}", flush=True)


def case(function):
    CASES.append(function)
    return function


def case_on_uring_too(function):
    """
    A case that is run once more, with every call on a file by the ring but for
    syncs, which the server may make as it likes.
    """
    def twin(box):
        box.ring = True
        function(box)
        assert box.shims, "nothing was preloaded"
        for shim in box.shims:
            shim.check_ring()
    twin.__name__ = f"{function.__name__}_on_uring"
    case(function)
    case(twin)
    return function


def on_alarm(_signal, _frame):
    raise Expired("the case took too long")


def run_case(function):
    """Runs one case; returns None, or the reason why it was skipped."""
    limit = seconds(90)
    signal.setitimer(signal.ITIMER_REAL, limit)
    # For the case that does not even react to its alarm.
    faulthandler.dump_traceback_later(limit + 60, exit=True)
    try:
        with Box() as box:
            function(box)
    except Skip as reason:
        return str(reason) or "no reason given"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    return None


def report_case(number, function):
    name = function.__name__.replace("_", " ")
    try:
        reason = run_case(function)
    except Exception:
        note(traceback.format_exc())
        print(f"not ok {number} - {name}", flush=True)
        return False
    skip = f" # SKIP {reason}" if reason else ""
    print(f"ok {number} - {name}{skip}", flush=True)
    return True


def is_excepted(function):
    patterns = os.environ.get("COAIO_TEST_EXCEPT", "").split(":")
    return any(fnmatch.fnmatchcase(function.__name__, p) for p in patterns)


def main():
    wanted = sys.argv[1:]
    if wanted == ["--list"]:
        print("\n".join(function.__name__ for function in CASES))
        return
    cases = [c for c in CASES
             if (c.__name__ in wanted if wanted else not is_excepted(c))]
    signal.signal(signal.SIGALRM, on_alarm)
    # Otherwise killed by meson's own limit, it would leave files behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"1..{len(cases)}", flush=True)
    good = [report_case(n, c) for n, c in enumerate(cases, 1)]
    sys.exit(0 if all(good) else 1)


# Programs.

def spawn(*command, limits=None, **options):
    """
    A subprocess.Popen that dies with this process, and has the resource
    limits {name of prlimit's option: value}.
    """
    options.setdefault("stdin", subprocess.DEVNULL)
    prefix = []
    if shutil.which("setpriv"):
        prefix += ["setpriv", "--pdeathsig", "KILL"]
    if limits:
        need("prlimit")
        prefix += ["prlimit"] + [f"--{k}={v}" for k, v in limits.items()]
    return subprocess.Popen(prefix + [str(c) for c in command], **options)


def own_lines(text):
    """What the server has said, without what a tool has that it runs under."""
    return [line for line in text.splitlines()
            if not (WRAPPER and re.match(r"(--|==)\d+(--|==) ", line))]


def need(program):
    if not shutil.which(program):
        raise Skip(f"{program} is not installed")


def run(*command, limit=60, status=0, **options):
    """Runs a client to its end and returns what it has printed."""
    need(command[0])
    with spawn(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
               text=True, errors="backslashreplace", **options) as process:
        try:
            text, _ = process.communicate(timeout=seconds(limit))
        except BaseException:
            process.kill()
            raise
    if status is not None and process.returncode != status:
        raise AssertionError(f"{shlex.join(map(str, command))}: status "
                             f"{process.returncode}\n{text}")
    return text


# Files.

def file_system(path):
    return subprocess.run(["stat", "-f", "-c", "%T", path], text=True,
                          stdout=subprocess.PIPE, check=True).stdout.strip()


@functools.lru_cache(maxsize=None)
def work_root():
    """A folder on a disk, if there is one, for images."""
    chosen = os.environ.get("COAIO_TEST_DIR")
    if chosen:
        return chosen
    if os.access("/var/tmp", os.W_OK) and file_system("/var/tmp") != "tmpfs":
        return "/var/tmp"
    return tempfile.gettempdir()


def need_disk():
    """Transfers on tmpfs never leave the loop's thread; some cases hold them
    back for a while, or want the ring to make them, and so need a file system
    that is not."""
    if file_system(work_root()) in ("tmpfs", "ramfs"):
        raise Skip(f"{work_root()} is a memory file system; set COAIO_TEST_DIR")


@functools.lru_cache(maxsize=None)
def pool():
    """Random bytes, of a length that no power of two divides."""
    return random.Random(1).randbytes(MIB + 7)


def need_holes(box):
    """Some cases are about holes in files, which the file system must know."""
    path = box.path("holes")
    with open(path, "wb") as file:
        file.write(b"x" * MIB)
        file.flush()
        os.fsync(file.fileno())
    done = subprocess.run(["fallocate", "--punch-hole", "--offset", "0",
                           "--length", str(MIB), path],
                          stderr=subprocess.DEVNULL)
    if done.returncode != 0 or allocated(path) >= MIB:
        raise Skip(f"{work_root()} has no holes; set COAIO_TEST_DIR")
    with open(path, "rb") as file:
        try:
            file.seek(0, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
    raise Skip(f"{work_root()} does not tell of holes; set COAIO_TEST_DIR")


def need_direct(box):
    path = box.image("direct", size=MIB)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError:
        raise Skip(f"{work_root()} knows no direct I/O; "
                   "set COAIO_TEST_DIR") from None


def pattern(length, key=0):
    """Bytes that are others for another key, and at another offset."""
    start = zlib.crc32(repr(key).encode()) % len(pool())
    copies = (start + length) // len(pool()) + 1
    return (pool() * copies)[start:start + length]


def allocated(path):
    return os.stat(path).st_blocks * 512


class Box:
    """What a case has in use."""

    def __init__(self):
        self.stack = contextlib.ExitStack()
        self.servers = []
        self.shims = []
        self.ring = False   # whether shims are for a ring
        self.dir = None

    def __enter__(self):
        self.dir = tempfile.mkdtemp(prefix="coaio-nbd-", dir=work_root())
        self.stack.callback(shutil.rmtree, self.dir, ignore_errors=True)
        return self

    def __exit__(self, kind, _value, _trace):
        try:
            if kind is None:
                for server in self.servers:
                    server.finish()
            elif not issubclass(kind, Skip):
                for server in self.servers:
                    server.describe()
        finally:
            for server in self.servers:
                server.destroy()
            self.stack.close()

    def path(self, name):
        return os.path.join(self.dir, name)

    def image(self, name="disk.img", size=64 * MIB, data=None, at=None):
        """A sparse file; data, if any, goes to its beginning."""
        path = os.path.join(at or self.dir, name)
        with open(path, "wb") as image:
            image.write(data or b"")
            image.truncate(max(size, len(data or b"")))
        return path

    def memory_dir(self):
        """A folder on a memory file system."""
        if not os.path.isdir("/dev/shm") or not os.access("/dev/shm", os.W_OK):
            raise Skip("no /dev/shm")
        if shutil.disk_usage("/dev/shm").free < 128 * MIB:
            raise Skip("too little room in /dev/shm")
        path = tempfile.mkdtemp(prefix="coaio-nbd-", dir="/dev/shm")
        self.stack.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    def server(self, *exports, **options):
        """A running server; see Server."""
        server = self.unstarted(*exports, **options)
        server.start()
        return server

    def unstarted(self, *exports, **options):
        server = Server(self, exports, number=len(self.servers), **options)
        self.servers.append(server)
        return server

    def disk_server(self, size=64 * MIB, data=None, **options):
        """A server of one image, default export and "disk" in one."""
        image = self.image(size=size, data=data)
        server = self.unstarted(f"disk={image}", **options)
        server.options += ["--default-export", "disk"]
        server.image = image
        server.start()
        return server

    def closing(self, thing):
        """Have thing.close() called when the case is over."""
        self.stack.callback(thing.close)
        return thing

    def shim(self, **options):
        self.shims.append(self.closing(Shim(self, ring=self.ring, **options)))
        return self.shims[-1]

    def shim_of_ring(self):
        """For a case that has no use for a shim where there is no ring."""
        return self.shim() if self.ring else None


class Server:
    """
    One server process.

    exports  NAME=SOURCE[,ro], each for one --export
    unix     whether to listen on self.unix
    tcp      addresses (127.0.0.1, ::1) to listen on, at self.ports
    options  further arguments
    shim     a Shim to preload
    program  another program than $COAIO_NBD
    limits   {name of an option of prlimit: value}
    wrap     arguments to put before the program
    """

    def __init__(self, box, exports, number=0, unix=True, tcp=(), options=(),
                 env=None, shim=None, program=None, limits=None, wrap=(),
                 pass_fds=()):
        self.box = box
        self.program = program or SERVER
        self.exports = list(exports)
        self.options = [str(o) for o in options]
        self.unix = box.path(f"s{number}.sock") if unix else None
        self.tcp = list(tcp)
        self.ports = [free_port(address) for address in tcp]
        self.env = dict(env or {})
        self.shim = shim
        self.limits = dict(limits or {})
        self.wrap = list(wrap)
        self.pass_fds = tuple(pass_fds)
        self.log = box.path(f"s{number}.log")
        self.process = None
        self.image = None

    # Life.

    def command(self):
        listen = ["--unix", self.unix] if self.unix else []
        for address, port in zip(self.tcp, self.ports):
            host = f"[{address}]" if ":" in address else address
            listen += ["--tcp", f"{host}:{port}"]
        exports = [word for e in self.exports for word in ("--export", e)]
        return (self.wrap + WRAPPER + [self.program] + listen + exports +
                self.options)

    def environment(self):
        env = dict(os.environ)
        # A sanitizer ends the server with a status that no test expects, and
        # accepts that the shim is loaded before it.
        env["ASAN_OPTIONS"] = ":".join(
            [env.get("ASAN_OPTIONS", ""),
             "verify_asan_link_order=0"]).strip(":")
        if self.shim:
            env.update(self.shim.environment())
        env.update(self.env)
        return env

    def launch(self):
        """Starts the process and does not wait for it to listen."""
        with open(self.log, "ab") as log:
            self.process = spawn(
                *self.command(), stdout=log, stderr=log, cwd=self.box.dir,
                env=self.environment(), pass_fds=self.pass_fds,
                limits=self.limits)

    def start(self):
        self.launch()
        for address in self.addresses():
            wait_until(lambda: self.is_listening(address), f"{address}")
        if self.shim and self.shim.ring:
            self.need_ring()

    def is_listening(self, address):
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with status "
                                 f"{self.process.returncode}\n{self.output()}")
        with contextlib.suppress(OSError), connect(address) as sock:
            return sock.recv(8) == b"NBDMAGIC"
        return False

    def need_ring(self):
        """The server says so if it must do without."""
        refused = re.search(r"io_uring does not work here \(.*\)",
                            self.output())
        if refused:
            raise Skip(refused[0])

    def stop(self, number=signal.SIGTERM, status=0):
        """Ends the server by a signal and checks that it does so well."""
        self.process.send_signal(number)
        self.wait(status)

    def wait(self, status=0, limit=30):
        """Waits for the end of a server that has been told to end."""
        try:
            self.process.wait(seconds(limit))
        except subprocess.TimeoutExpired:
            raise Expired("the server does not end") from None
        eq(self.process.returncode, status, "the server's exit status")
        if self.unix:
            assert not os.path.lexists(self.unix), "the socket is still there"
        self.check_output()

    def kill(self):
        self.process.kill()
        self.process.wait()

    @contextlib.contextmanager
    def asleep(self):
        """Stopped; what is sent meanwhile has come at once when it goes on."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)   # every thread
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def without_mappings(self):
        """Every mmap() fails; what is mapped stays."""
        if is_instrumented():
            raise Skip("an instrumented server does not go on without memory")
        pid, kind = self.process.pid, resource.RLIMIT_AS
        before = resource.prlimit(pid, kind)
        resource.prlimit(pid, kind, (MIB, before[1]))
        try:
            yield
        finally:
            resource.prlimit(pid, kind, before)

    def finish(self):
        """At the end of a case that has passed."""
        if self.process and self.process.returncode is None:
            if self.process.poll() is not None:
                raise AssertionError("the server ended with status "
                                     f"{self.process.returncode}")
            self.stop()
        self.check_output()

    def destroy(self):
        if self.process and self.process.returncode is None:
            self.kill()

    def describe(self):
        state = self.process.poll() if self.process else "not started"
        note(f"server: {shlex.join(self.command())}")
        note(f"status: {'running' if state is None else state}")
        note(self.output()[-8000:])

    # What it has said.

    def output(self):
        if not os.path.exists(self.log):
            return ""
        with open(self.log, errors="replace") as log:
            return log.read()

    def lines(self):
        return own_lines(self.output())

    def check_output(self):
        found = re.search(r"Sanitizer|runtime error:", self.output())
        assert not found, f"a sanitizer complains:\n{self.output()}"

    # How to reach it.

    def addresses(self):
        unix = [self.unix] if self.unix else []
        return unix + list(zip(self.tcp, self.ports))

    def address(self):
        return self.addresses()[0]

    def uri(self, export="", index=0):
        """The URI of an export, through the listener of that number."""
        name = urllib.parse.quote(export, safe="")
        address = self.addresses()[index]
        if isinstance(address, str):
            return f"nbd+unix:///{name}?socket={address}"
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"nbd://{host}:{address[1]}/{name}"

    # What the kernel knows of it.

    def status_field(self, field):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(rf"{field}:\s+(\d+)", status.read())[1])

    def rss(self):
        return self.status_field("VmRSS") * KIB

    def peak_rss(self):
        return self.status_field("VmHWM") * KIB

    def fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def threads(self):
        return os.listdir(f"/proc/{self.process.pid}/task")

    def stat_field(self, number):
        """A field of /proc/PID/stat by its number in proc(5)."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            return int(stat.read().rpartition(")")[2].split()[number - 3])

    def minor_faults(self):
        return self.stat_field(10)

    def processor_seconds(self):
        ticks = self.stat_field(14) + self.stat_field(15)
        return ticks / os.sysconf("SC_CLK_TCK")

    def wait_fds(self, number, limit=20):
        """Waits until at most that many file descriptors are open."""
        try:
            wait_until(lambda: self.fds() <= number, "", limit)
        except Expired:
            raise AssertionError(f"{self.fds()} file descriptors are open, "
                                 f"expected {number}") from None


def connect(address, limit=20):
    """A stream socket to a path or to (address, port)."""
    if isinstance(address, str):
        family = socket.AF_UNIX
    else:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds(limit))
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def is_refused(address):
    """Whether nobody listens there."""
    try:
        connect(address).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return True
    except ConnectionResetError:
        pass   # it came just before the TCP socket was closed: the next tells
    return False


def free_port(address):
    """A port that nobody uses, and that the kernel gives to nobody."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in random.SystemRandom().sample(range(15000, 32000), 50):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            try:
                sock.bind((address, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise Skip(f"cannot bind to {address}: {error}") from None
        return port
    raise Skip(f"no free port at {address}")


# The preloaded shim.

def avoided():
    return os.environ.get("COAIO_URING_WITHOUT", "")


def need_uring():
    """For calls on files; whether the kernel has it, the server must say."""
    engine = os.environ.get("COAIO_ENGINE") or "auto"
    if engine not in ("auto", "uring", "io_uring"):
        raise Skip(f"this is a run on {engine}")
    if "files" in avoided():
        raise Skip("COAIO_URING_WITHOUT names files")
    need_disk()


@functools.lru_cache(maxsize=None)
def shim_library():
    path = os.environ.get("COAIO_NBD_SHIM")
    if path:
        return path
    need("cc")
    folder = tempfile.mkdtemp(prefix="coaio-nbd-shim-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "shim.so")
    sources = [os.path.join(HERE, name) for name in ("shim.c", "shim_uring.c")]
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-D_GNU_SOURCE", *sources,
                    "-o", path], check=True)
    return path


class Shim:
    """
    The test's side of shim.c: its Control, and where it records.

    With ring, every call on a file is an operation of io_uring if the server
    may make it so: what comes from the page cache without waiting does not
    come.  Gates hold no operations of a ring.
    """

    READ, WRITE, SYNC, ALLOCATE = range(4)
    LAYOUT = {"error": 0, "shut": 16, "held": 32, "calls": 48, "by_ring": 96}
    LOW, HIGH, MOST_FILE, MOST_SOCKET, INTERRUPT = 64, 72, 80, 84, 88
    NO_CACHE, NO_THREADS, SIGNAL_AT_JOIN = 112, 116, 120
    SIZE = 124

    def __init__(self, box, record=False, record_size=256 * MIB, ring=False):
        self.ring = ring
        if ring:
            need_uring()
        self.control_path = box.path(f"shim{id(self)}.control")
        self.log_path = None
        self.map = self.make(self.control_path, self.SIZE)
        self.concern(0, 2 ** 63)
        struct.pack_into("=I", self.map, self.NO_CACHE, ring)
        if record:
            self.log_path = box.path(f"shim{id(self)}.log")
            with open(self.log_path, "wb") as log:
                log.truncate(record_size)

    @staticmethod
    def make(path, size):
        with open(path, "w+b") as file:
            file.truncate(size)
            return mmap.mmap(file.fileno(), size)

    def close(self):
        for kind in range(4):
            self.open_gate(kind)
        self.map.close()

    def environment(self):
        # Of what io_uring does by itself, the shim sees what it does to files.
        without = ["sockets"] if self.ring else ["files", "sockets"]
        env = {"LD_PRELOAD": shim_library(),
               "COAIO_URING_WITHOUT": ",".join([*without, avoided()]),
               "COAIO_SHIM_CONTROL": self.control_path}
        if self.ring:
            env["COAIO_ENGINE"] = "uring"
        if self.log_path:
            env["COAIO_SHIM_LOG"] = self.log_path
        return env

    def put(self, field, kind, value):
        struct.pack_into("=I", self.map, self.LAYOUT[field] + 4 * kind, value)

    def get(self, field, kind):
        return struct.unpack_from("=I", self.map,
                                  self.LAYOUT[field] + 4 * kind)[0]

    def concern(self, low, high):
        """Errors and gates concern transfers that touch [low, high)."""
        struct.pack_into("=QQ", self.map, self.LOW, low, high)

    def fail(self, kind, error):
        self.put("error", kind, error)

    def fail_threads(self, error):
        struct.pack_into("=I", self.map, self.NO_THREADS, error)

    def signal_at_join(self, number):
        """Have the server signal itself once, when it has joined a thread."""
        struct.pack_into("=I", self.map, self.SIGNAL_AT_JOIN, number)

    def calls(self, kind):
        return self.get("calls", kind)

    def check_ring(self):
        """The ring has done something, and nobody else has but for syncs."""
        names = "reads", "writes", "syncs", "fallocates"
        made = [self.calls(kind) for kind in range(4)]
        by_ring = [self.get("by_ring", kind) for kind in range(4)]
        note("by the ring: " + ", ".join(
            f"{n} {name}" for n, name in zip(by_ring, names)))
        made[self.SYNC] = by_ring[self.SYNC]
        eq(by_ring, made, "calls on files by the ring")
        assert sum(by_ring) > by_ring[self.SYNC], "the ring has done nothing"

    def limit(self, file=0, sock=0, interrupt=0):
        """Move at most that many bytes a call; EINTR on each n-th call."""
        struct.pack_into("=III", self.map, self.MOST_FILE, file, sock,
                         interrupt)

    def shut_gate(self, kind):
        self.put("shut", kind, 1)

    def open_gate(self, kind):
        self.put("shut", kind, 0)

    def wait_held(self, kind, number=1):
        """Waits until that many calls wait at the gate."""
        wait_until(lambda: self.get("held", kind) >= number,
                   f"{number} calls at the gate")
