# SPDX-License-Identifier: MIT
"""How NBD servers are measured, and the rows of them that bench/run has.

The image on tmpfs has 1 GiB, all other media SMALL_BYTES.  Images are filled
before, so that all pages are there, each 4,096 bytes beginning with their own
offset, which nbdload checks in every reply; memory exports are filled through
the server.  All servers stay up, idle, while one of them is measured.  They
listen on UNIX sockets in a private folder and on ports of 127.0.0.1, and end
with the run, as the images do.

CPU time is user and system time of the server's process, its threads and its
children, from before the first request until after the last reply, while the
load generator waits (of copies: of all that nbdcopy does), over all requests
(of copies: over 4 KiB).

System calls a request are counted apart, once for each server, by strace over
a fixed number of requests, with those that a connection costs among them: they
do not depend on time, which strace distorts, and takes its own for each call.
"""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time

from common import summary
from nbdservers import KINDS, cpu_seconds

IMAGE_BYTES = 1 << 30
SMALL_BYTES = 256 << 20
STRIDE = 4096

OURS = 'coaio-nbd coaio-nbd-epoll'
KITS = 'coaio-nbd coaio-nbd-1 nbdkit'
LEAN = KITS + ' qemu-nbd blocking-loop'
LOOPS = 'blocking-loop batching-loop limit'
MAIN = KITS + ' qemu-nbd nbd-server ' + LOOPS
ALL = OURS + ' coaio-nbd-1 nbdkit qemu-nbd qemu-nbd-uring nbd-server '
ALL += LOOPS
# Where io_uring works, it is the engine of coaio-nbd: the same server once
# more, so that a row shows what it is uncertain by.
TWICE = ALL + ' coaio-nbd-uring nbd-server-splice'
SEQUENTIAL = '--depth 16 --size 131072 --pattern sequential'
WRITE = '--depth 16 --op write'
TWO = '--depth 16 --connections 2'


class Case:
    """A row: who serves which medium how, under what load.  A load of 'from'
    or 'to' is nbdcopy's.  Secondary rows are left out with QUICK=1."""

    def __init__(self, name, title, load, servers, medium='file',
                 transport='unix', calls=False, secondary=False):
        self.name = name
        self.title = title
        self.load = load.split()
        self.servers = servers.split()
        self.medium = medium
        self.transport = transport
        self.calls = calls      # count system calls, too
        self.secondary = secondary

    @property
    def copies(self):
        return self.load[0] in ('from', 'to')


CASES = [
    Case('nbd_read_1', 'Read 4 KiB, depth 1', '--depth 1', ALL),
    Case('nbd_read_16', 'Read 4 KiB, depth 16', '--depth 16',
         TWICE, calls=True),
    Case('nbd_read_64', 'Read 4 KiB, depth 64', '--depth 64', ALL),
    Case('nbd_write_16', 'Write 4 KiB, depth 16', WRITE, MAIN),
    Case('nbd_read_16x2', 'Read 4 KiB, depth 16, 2 connections', TWO,
         MAIN),
    Case('nbd_seq', 'Read 128 KiB in sequence, depth 16', SEQUENTIAL, MAIN),
    Case('nbd_tcp_1', 'TCP: read 4 KiB, depth 1', '--depth 1', LEAN,
         transport='tcp', secondary=True),
    Case('nbd_tcp_16', 'TCP: read 4 KiB, depth 16', '--depth 16',
         MAIN, transport='tcp'),
    Case('nbd_tcp_64', 'TCP: read 4 KiB, depth 64', '--depth 64', KITS,
         transport='tcp', secondary=True),
    Case('nbd_tcp_write_16', 'TCP: write 4 KiB, depth 16', WRITE, KITS,
         transport='tcp', secondary=True),
    Case('nbd_tcp_16x2', 'TCP: read 4 KiB, depth 16, 2 connections', TWO,
         KITS + ' blocking-loop', transport='tcp', secondary=True),
    Case('nbd_tcp_seq', 'TCP: read 128 KiB in sequence, depth 16',
         SEQUENTIAL, LEAN, transport='tcp'),

    Case('nbd_memory_1', 'Memory: read 4 KiB, depth 1', '--depth 1', KITS,
         'memory', secondary=True),
    Case('nbd_memory_16', 'Memory: read 4 KiB, depth 16', '--depth 16',
         KITS + ' nbdkit-malloc', 'memory', calls=True),
    Case('nbd_memory_64', 'Memory: read 4 KiB, depth 64', '--depth 64',
         KITS, 'memory', secondary=True),
    Case('nbd_memory_write_16', 'Memory: write 4 KiB, depth 16', WRITE,
         KITS, 'memory', secondary=True),
    Case('nbd_memory_16x2', 'Memory: read 4 KiB, depth 16, 2 connections',
         TWO, KITS, 'memory', secondary=True),
    Case('nbd_memory_seq', 'Memory: read 128 KiB in sequence, depth 16',
         SEQUENTIAL, KITS, 'memory', secondary=True),
    Case('nbd_memory_tcp_16', 'Memory, TCP: read 4 KiB, depth 16',
         '--depth 16', KITS, 'memory', 'tcp', secondary=True),
    Case('nbd_null_1', 'Null: read 4 KiB, depth 1', '--depth 1', KITS,
         'null', secondary=True),
    Case('nbd_null_16', 'Null: read 4 KiB, depth 16', '--depth 16',
         KITS + ' limit', 'null'),
    Case('nbd_null_64', 'Null: read 4 KiB, depth 64', '--depth 64',
         KITS + ' limit', 'null', secondary=True),
    Case('nbd_null_write_16', 'Null: write 4 KiB, depth 16', WRITE, KITS,
         'null', secondary=True),
    Case('nbd_null_16x2', 'Null: read 4 KiB, depth 16, 2 connections', TWO,
         KITS + ' limit', 'null', secondary=True),
    Case('nbd_null_seq', 'Null: read 128 KiB in sequence, depth 16',
         SEQUENTIAL, KITS + ' limit', 'null', secondary=True),
    Case('nbd_null_tcp_16', 'Null, TCP: read 4 KiB, depth 16', '--depth 16',
         KITS + ' limit', 'null', 'tcp', secondary=True),

    Case('nbd_disk_16', 'Disk, page cache: read 4 KiB, depth 16',
         '--depth 16', OURS + ' coaio-nbd-1 nbdkit qemu-nbd blocking-loop'
         ' batching-loop', 'disk', calls=True),
    Case('nbd_disk_64', 'Disk, page cache: read 4 KiB, depth 64',
         '--depth 64', OURS + ' nbdkit batching-loop', 'disk',
         secondary=True),
    Case('nbd_disk_16x2',
         'Disk, page cache: read 4 KiB, depth 16, 2 connections', TWO, KITS,
         'disk', secondary=True),
    Case('nbd_disk_write_16', 'Disk, page cache: write 4 KiB, depth 16',
         WRITE, OURS + ' nbdkit qemu-nbd blocking-loop', 'disk'),
    Case('nbd_direct_16', 'Disk, O_DIRECT: read 4 KiB, depth 16',
         '--depth 16', OURS + ' qemu-nbd qemu-nbd-uring', 'direct'),
    Case('nbd_direct_write_16', 'Disk, O_DIRECT: write 4 KiB, depth 16',
         WRITE, OURS + ' qemu-nbd qemu-nbd-uring', 'direct',
         secondary=True),

    Case('nbd_copy_from', 'nbdcopy from the server, 1 GiB', 'from',
         'coaio-nbd nbdkit qemu-nbd nbd-server'),
    Case('nbd_copy_to', 'nbdcopy to the server, 1 GiB', 'to',
         'coaio-nbd nbdkit qemu-nbd nbd-server', secondary=True),
]

# What no server can be measured at, and why: for the report.
CANNOT = [
    'nbdkit, O_DIRECT: its file plugin has none',
    'nbd-server, O_DIRECT: it has none',
    'blocking-loop, batching-loop and limit, nbdcopy: they know no options',
]


def fill(path, size):
    zeros = bytes(STRIDE - 8)
    with open(path, 'wb') as file:
        for chunk in range(0, size, 1 << 20):
            file.write(b''.join(
                struct.pack('>Q', offset) + zeros
                for offset in range(chunk, chunk + (1 << 20), STRIDE)))
        file.flush()
        os.fsync(file.fileno())


def sync(path):
    handle = os.open(path, os.O_RDWR)
    os.fsync(handle)
    os.close(handle)


def file_system(folder):
    """The type of the file system that folder is on."""
    best, kind = '', 'unknown'
    with open('/proc/self/mounts') as file:
        for line in file:
            _, where, what = line.split()[:3]
            inside = os.path.join(os.path.realpath(folder), '').startswith(
                os.path.join(where, ''))
            if inside and len(where) >= len(best):
                best, kind = where, what
    return kind


def why_no_direct(path):
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        return f'the file system refuses it: {error.strerror}'
    return None


def count_of(trace):
    """All calls of the table that strace -c has written, or None."""
    for line in reversed(trace.splitlines()):
        fields = line.split()
        if fields and fields[-1] == 'total':
            return int(fields[3])
    return None


def stepped(command, at_step, seconds):
    """What nbdload prints within so many seconds.  at_step() is called before
    its first request and after the last reply, while it waits."""
    with subprocess.Popen([*command, '--step'], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as load:
        watchdog = threading.Timer(seconds, load.kill)
        watchdog.start()
        try:
            for step in 'ready', 'done':
                line = load.stderr.readline()
                if line != f'{step}\n':
                    break
                at_step()
                load.stdin.write('\n')
                load.stdin.flush()
            out, errors = load.communicate()
        finally:
            watchdog.cancel()
    if load.returncode == -signal.SIGKILL:
        raise RuntimeError(f'no result in {seconds} seconds')
    if load.returncode:
        raise RuntimeError((line + errors).strip()
                           or f'nbdload: exit status {load.returncode}')
    return json.loads(out)


class Servers:
    """The servers that cases name, as a context manager that leaves nothing
    behind."""

    image_bytes = IMAGE_BYTES   # on tmpfs
    timeout = 120               # of a load, in seconds

    def __init__(self, build, cases, kinds=None, seconds=0.25, warmup=0.05,
                 traced=3200):
        self.build = build
        self.cases = cases
        self.kinds = kinds or KINDS
        self.seconds = seconds  # that a load is measured
        self.warmup = warmup
        self.traced = traced    # requests that system calls are counted in
        self.folder = None
        self.images = {}        # medium to path
        self.made = []          # files to be removed
        self.servers = {}       # (name, medium) to Server
        self.missing = set()
        self.skipped = []
        self.about = {}
        self.results = {}
        self.calls = {}
        self.failed = {}        # (name of a server, of a case) to reasons

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in self.servers.values():
            server.stop()
        for path in self.made:
            os.unlink(path)
        if self.folder:
            shutil.rmtree(self.folder)

    def make_image(self, folder, size):
        handle, path = tempfile.mkstemp(prefix='coaio-bench-', dir=folder)
        os.close(handle)
        self.made.append(path)
        try:
            fill(path, size)
        except OSError:
            os.truncate(path, 0)   # where there is no room, leave some
            raise
        return path

    def make_disk(self):
        """An image on a disk, or a reason in `skipped`."""
        for folder in ('/var/tmp', os.path.realpath(self.build)):
            kind = file_system(folder)
            if kind not in ('tmpfs', 'ramfs') and os.access(folder, os.W_OK):
                break
        else:
            self.skipped.append('disk and O_DIRECT: neither /var/tmp nor the '
                                'build is on a disk')
            return
        path = self.make_image(folder, SMALL_BYTES)
        self.images['disk'] = path
        self.about['disk'] = {'version': kind, 'settings': f'below {folder}'}
        why = why_no_direct(path)
        if why:
            self.skipped.append(f'O_DIRECT: {why}')
        else:
            # Its own: direct writes take the other's pages out of the cache.
            self.images['direct'] = self.make_image(folder, SMALL_BYTES)

    def prepare(self):
        shm = '/dev/shm' if os.path.isdir('/dev/shm') else None
        media = {case.medium for case in self.cases}
        self.folder = tempfile.mkdtemp(prefix='coaio-bench-')
        try:
            if 'file' in media:
                self.images['file'] = self.make_image(shm, self.image_bytes)
        except OSError as error:
            self.skipped.append(f'tmpfs: {error}: {shm}')
        try:
            if media & {'disk', 'direct'}:
                self.make_disk()
        except OSError as error:
            self.skipped.append(f'disk and O_DIRECT: {error}')
        self.cases = [case for case in self.cases
                      if case.medium in ('memory', 'null', *self.images)]
        if any(c.copies for c in self.cases) and not shutil.which('nbdcopy'):
            self.skipped.append('nbdcopy: not installed')
            self.cases = [case for case in self.cases if not case.copies]
        wanted = {(name, case.medium) for case in self.cases
                  for name in case.servers}
        for kind in self.kinds:
            for medium in kind.media:
                if (kind.name, medium) in wanted:
                    self.add(kind, medium)

    def add(self, kind, medium):
        size = self.image_bytes if medium == 'file' else SMALL_BYTES
        server = kind(self.build, self.folder, medium,
                      self.images.get(medium), size)
        if not server.executable():
            self.missing.add(kind.name)
            return
        self.servers[kind.name, medium] = server
        self.about.setdefault(kind.name, {'version': server.version(),
                                          'settings': server.settings})

    def present(self, case):
        return [self.servers[name, case.medium] for name in case.servers
                if (name, case.medium) in self.servers]

    def nbdload(self, server, case, *options, at_step=lambda: None):
        command = [os.path.join(self.build, 'bench', 'nbdload'),
                   *server.load[case.transport], *options]
        if server.stamped and case.medium != 'null':
            command.append('--stamped')
        return stepped(command, at_step, self.timeout)

    def serve(self, server, case):
        if server.serve(case.transport) and case.medium == 'memory':
            self.nbdload(server, case, '--op', 'write', '--size', '131072',
                         '--pattern', 'sequential', '--requests',
                         str(server.size // 131072))

    def load(self, server, case):
        cpu = []
        pid = server.pids[case.transport]
        answer = self.nbdload(server, case, '--seconds', str(self.seconds),
                              '--warmup', str(self.warmup), *case.load,
                              at_step=lambda: cpu.append(cpu_seconds(pid)))
        time.sleep(0.03)        # connections end, while nothing is measured
        if answer['requests'] < answer['connections']:
            raise RuntimeError(f'{answer["requests"]} replies to '
                               f'{answer["connections"]} connections')
        latency = answer['latency_us']
        return {
            'cpu_per_million': (cpu[1] - cpu[0]) / answer['total_requests']
            * 1e6,
            'per_second': answer['per_second'],
            'mb_per_second': answer['mb_per_second'],
            'client_cpu_per_million': answer['client']['cpu_seconds']
            / answer['total_requests'] * 1e6,
            **{name: latency[name]
               for name in ('p50', 'p99', 'p99.9', 'max', 'mean')},
        }

    def copy(self, server, case):
        uri = server.uri[case.transport]
        pid = server.pids[case.transport]
        cpu = cpu_seconds(pid)
        ends = ([uri, 'null:'] if case.load == ['from']
                else [server.image, uri])
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.monotonic()
        done = subprocess.run(['nbdcopy', *ends], capture_output=True,
                              text=True, timeout=120)
        seconds = time.monotonic() - begin
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        time.sleep(0.03)        # a child for the connection ends
        requests = server.size / STRIDE
        return {
            'cpu_per_million': (cpu_seconds(pid) - cpu) / requests * 1e6,
            'per_second': requests / seconds,
            'mb_per_second': server.size / 1e6 / seconds,
            'client_cpu_per_million': (now.ru_utime + now.ru_stime
                                       - used.ru_utime - used.ru_stime)
            / requests * 1e6,
        }

    def measure(self, server, case):
        self.serve(server, case)
        result = (self.copy if case.copies else self.load)(server, case)
        if case.medium == 'disk' and 'write' in case.load:
            sync(server.image)  # not while the next one is measured
        return result

    def trace(self, server, case):
        """System calls of the server for each request."""
        self.serve(server, case)
        table = server.path('strace')
        tracer = subprocess.Popen(
            ['strace', '-f', '-c', '-o', table, '-p',
             str(server.pids[case.transport])],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True)
        try:
            line = tracer.stderr.readline()     # once it is attached
            if 'attached' not in line:
                raise RuntimeError(f'strace: {line.strip()}')
            self.nbdload(server, case, *case.load, '--requests',
                         str(self.traced))
            time.sleep(0.05)
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.communicate(timeout=30)
        with open(table) as file:
            return count_of(file.read()) / self.traced

    def count_calls(self, progress):
        """After all rounds: nothing is measured any more."""
        for case in [case for case in self.cases if case.calls]:
            if not shutil.which('strace'):
                self.skipped.append('system calls: strace is not installed')
                return
            for server in self.present(case):
                progress(f'system calls: {case.name}: {server.name}')
                try:
                    self.calls.setdefault(case.name, {})[server.name] = (
                        self.trace(server, case))
                except (RuntimeError, OSError, ValueError, TypeError,
                        subprocess.TimeoutExpired) as error:
                    self.skipped.append(f'system calls: {server.name}, '
                                        f'{case.name}: {error}')

    def round(self, number, progress):
        if not self.cases:
            return
        if not self.folder:
            progress('filling the images')
            self.prepare()
        for case in self.cases:
            servers = self.present(case)
            for i in range(len(servers)):
                server = servers[(i + number) % len(servers)]
                progress(f'round {number + 1}: {case.name}: {server.name}')
                try:
                    result = self.measure(server, case)
                except (RuntimeError, OSError, ValueError,
                        subprocess.TimeoutExpired) as error:
                    self.failed.setdefault((server.name, case.name),
                                           []).append(str(error))
                    continue
                self.results.setdefault(case.name, {}).setdefault(
                    server.name, []).append(result)

    def failures(self):
        return [f'{server}, {case}: {reason}' for (server, case), reasons
                in self.failed.items() for reason in reasons]

    def report(self):
        rows = {}
        for case in self.cases:
            rivals = {}
            for name, rounds in self.results.get(case.name, {}).items():
                rivals[name] = {}
                for key in rounds[0]:
                    rivals[name][key] = summary([r[key] for r in rounds])
                calls = self.calls.get(case.name, {}).get(name)
                if calls is not None:
                    rivals[name]['calls'] = {'median': calls}
            rows[case.name] = {
                'title': case.title, 'load': ' '.join(case.load),
                'transport': case.transport, 'medium': case.medium,
                'rivals': rivals,
                'not_installed': sorted(self.missing & set(case.servers))}
        return rows


def of_run(build, only, quick):
    """The servers of bench/run."""
    cases = [case for case in CASES if only.search(case.name)
             and not (quick and case.secondary)]
    servers = Servers(build, cases, seconds=0.12 if quick else 0.2,
                      traced=1600 if quick else 3200)
    servers.skipped += CANNOT if cases else []
    return servers
