# SPDX-License-Identifier: MIT
"""The NBD servers that bench/run compares, and how each is measured.

Every server serves the same image of 1 GiB on tmpfs, filled so that all of
its pages are there, each 4,096 bytes beginning with their own offset, which
nbdload checks in every reply.  All servers stay up, idle, while one of them is
measured.  They listen on UNIX sockets in a private folder and on ports of
127.0.0.1, and end with the run, as the image does.

CPU time is user and system time of the server's process, its threads and its
children, from before the load generator starts until after it has ended,
over all requests that it made.
"""

import json
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import tempfile
import time

IMAGE_BYTES = 1 << 30
STRIDE = 4096
TICK = os.sysconf('SC_CLK_TCK')


class Case:
    def __init__(self, name, title, load, transport='unix'):
        self.name = name
        self.title = title
        self.load = load.split()
        self.transport = transport


CASES = [
    Case('nbd_read_1', 'Read 4 KiB, depth 1', '--depth 1'),
    Case('nbd_read_16', 'Read 4 KiB, depth 16', '--depth 16'),
    Case('nbd_read_64', 'Read 4 KiB, depth 64', '--depth 64'),
    Case('nbd_write_16', 'Write 4 KiB, depth 16', '--depth 16 --op write'),
    Case('nbd_read_16x2', 'Read 4 KiB, depth 16, 2 connections',
         '--depth 16 --connections 2'),
    Case('nbd_seq', 'Read 128 KiB in sequence, depth 16',
         '--depth 16 --size 131072 --pattern sequential'),
    Case('nbd_tcp_16', 'TCP: read 4 KiB, depth 16', '--depth 16', 'tcp'),
    Case('nbd_tcp_seq', 'TCP: read 128 KiB in sequence, depth 16',
         '--depth 16 --size 131072 --pattern sequential', 'tcp'),
]


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def version_of(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True,
                              timeout=30)
    except OSError:
        return ''
    text = done.stdout or done.stderr
    return text.strip().split('\n')[0]


def stat_fields(pid):
    with open(f'/proc/{pid}/stat') as file:
        return file.read().rsplit(')', 1)[1].split()


def processes():
    """A dictionary from each process to its parent."""
    parents = {}
    for name in os.listdir('/proc'):
        if name.isdigit():
            try:
                parents[int(name)] = int(stat_fields(name)[1])
            except OSError:
                pass
    return parents


def family(pid):
    parents = processes()
    members = [pid]
    for member in members:
        members += [child for child, parent in parents.items()
                    if parent == member]
    return members


def cpu_seconds(pid):
    """Of the process, its living descendants, and children that ended."""
    ticks = 0
    for member in family(pid):
        try:
            ticks += sum(int(x) for x in stat_fields(member)[11:15])
        except OSError:
            pass
    return ticks / TICK


class Server:
    """One kind of server.  A subclass says how it is started."""
    name = None
    program = None
    settings = None
    stamped = True

    def __init__(self, build, folder, image):
        self.build = build
        self.folder = folder
        self.image = image
        self.pids = {}          # transport to pid
        self.load = {}          # transport to nbdload's options
        self.started = []

    def executable(self):
        return shutil.which(self.program)

    def version(self):
        return version_of(self.executable(), '--version')

    def path(self, suffix):
        return os.path.join(self.folder, f'{self.name}.{suffix}')

    def spawn(self, *command):
        log = open(self.path('log'), 'a')
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log)
        log.close()
        self.started.append(process)
        return process.pid

    def serve(self, transport):
        """Start the server on a transport, unless it is up."""
        if transport in self.pids:
            return
        where = self.path('sock') if transport == 'unix' else free_port()
        pid = self.start(transport, where)
        self.load[transport] = (
            ['--unix', where] if transport == 'unix'
            else ['--tcp', f'127.0.0.1:{where}']) + ['--export', 'bench']
        self.await_answer(transport, where)
        self.pids[transport] = self.pid(pid)

    def pid(self, pid):
        return pid

    def await_answer(self, transport, where):
        for _ in range(100):
            s = socket.socket(socket.AF_UNIX if transport == 'unix'
                              else socket.AF_INET)
            try:
                s.connect(where if transport == 'unix'
                          else ('127.0.0.1', where))
                return
            except OSError:
                time.sleep(0.05)
            finally:
                s.close()
        with open(self.path('log')) as log:
            raise RuntimeError(f'{self.name} does not answer: '
                               f'{log.read().strip()[-500:]}')

    def stop(self):
        for process in self.started:
            process.terminate()
        for process in self.started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class CoaioNbd(Server):
    name = 'coaio-nbd'

    def __init__(self, build, folder, image):
        super().__init__(build, folder, image)
        self.threads = len(os.sched_getaffinity(0))
        self.settings = f'--threads {self.threads}'

    def executable(self):
        path = os.path.join(self.build, 'nbd', 'coaio-nbd')
        return path if os.access(path, os.X_OK) else None

    def start(self, transport, where):
        listen = (['--unix', where] if transport == 'unix'
                  else ['--tcp', f'127.0.0.1:{where}'])
        return self.spawn(self.executable(), *listen, '--export',
                          f'bench={self.image}', '--threads',
                          str(self.threads))


class QemuNbd(Server):
    name = 'qemu-nbd'
    program = 'qemu-nbd'
    aio = 'threads'
    settings = 'raw, cache=writeback, aio=threads (its defaults)'

    def start(self, transport, where):
        listen = (['--socket', where] if transport == 'unix'
                  else ['--bind', '127.0.0.1', '--port', str(where)])
        return self.spawn(self.executable(), '--persistent', '--shared=0',
                          '--format=raw', '--cache=writeback',
                          f'--aio={self.aio}', '--export-name=bench', *listen,
                          self.image)


class QemuNbdUring(QemuNbd):
    name = 'qemu-nbd-uring'
    aio = 'io_uring'
    settings = 'raw, cache=writeback, aio=io_uring'


class Nbdkit(Server):
    name = 'nbdkit'
    program = 'nbdkit'
    settings = 'file plugin, 16 threads a connection (its default)'

    def start(self, transport, where):
        listen = (['--unix', where] if transport == 'unix'
                  else ['--ipaddr', '127.0.0.1', '--port', str(where)])
        return self.spawn(self.executable(), '--foreground', *listen,
                          'file', self.image)


class NbdServer(Server):
    name = 'nbd-server'
    program = 'nbd-server'
    splice = 'false'
    settings = '4 threads, no splice (its defaults)'

    def version(self):
        return version_of(self.executable(), '-V')

    def start(self, transport, where):
        listen = (f'unixsock = {where}' if transport == 'unix' else
                  f'listenaddr = 127.0.0.1\nport = {where}')
        config = self.path(f'{transport}.conf')
        with open(config, 'w') as file:
            file.write(f'[generic]\n{listen}\n[bench]\n'
                       f'exportname = {self.image}\n'
                       f'splice = {self.splice}\n')
        # It turns itself into a daemon, and says which.
        self.pid_file = self.path(f'{transport}.pid')
        return self.spawn(self.executable(), '-C', config, '-p',
                          self.pid_file)

    def pid(self, pid):
        for _ in range(100):
            try:
                with open(self.pid_file) as file:
                    return int(file.read())
            except (OSError, ValueError):
                time.sleep(0.05)
        raise RuntimeError(f'{self.name} writes no pid file')

    def stop(self):
        super().stop()
        for pid in self.pids.values():
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                pass


class NbdServerSplice(NbdServer):
    name = 'nbd-server-splice'
    splice = 'true'
    settings = '4 threads, splice = true'


class Loop(Server):
    mode = None

    def executable(self):
        path = os.path.join(self.build, 'bench', 'nbd-loop')
        return path if os.access(path, os.X_OK) else None

    def version(self):
        return 'own'

    def source(self):
        return self.image

    def start(self, transport, where):
        return self.spawn(self.executable(), self.mode, str(where),
                          self.source())


class BlockingLoop(Loop):
    name = 'blocking-loop'
    mode = 'blocking'
    settings = 'one thread a connection, one request at a time'


class Limit(Loop):
    name = 'limit'
    mode = 'limit'
    stamped = False
    settings = 'no disk; all requests that came answered at once'

    def source(self):
        return str(IMAGE_BYTES)


KINDS = [CoaioNbd, QemuNbd, QemuNbdUring, Nbdkit, NbdServer, NbdServerSplice,
         BlockingLoop, Limit]


def fill(path):
    zeros = bytes(STRIDE - 8)
    with open(path, 'wb') as file:
        for chunk in range(0, IMAGE_BYTES, 1 << 20):
            file.write(b''.join(
                struct.pack('>Q', offset) + zeros
                for offset in range(chunk, chunk + (1 << 20), STRIDE)))


class Servers:
    """All servers, as a context manager that leaves nothing behind."""

    def __init__(self, build, only, quick):
        self.build = build
        self.quick = quick
        self.cases = [case for case in CASES if only.search(case.name)]
        self.folder = None
        self.image = None
        self.servers = []
        self.missing = []
        self.about = {}
        self.results = {}
        self.failures = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.stop()
        if self.image:
            os.unlink(self.image)
        if self.folder:
            shutil.rmtree(self.folder)

    def prepare(self):
        shm = '/dev/shm' if os.path.isdir('/dev/shm') else None
        self.folder = tempfile.mkdtemp(prefix='coaio-bench-')
        handle, self.image = tempfile.mkstemp(prefix='coaio-bench-', dir=shm)
        os.close(handle)
        fill(self.image)
        for kind in KINDS:
            server = kind(self.build, self.folder, self.image)
            if not server.executable():
                self.missing.append(server.name)
                continue
            self.servers.append(server)
            self.about[server.name] = {'version': server.version(),
                                       'settings': server.settings}

    def measure(self, server, case):
        server.serve(case.transport)
        pid = server.pids[case.transport]
        seconds, warmup = ('0.5', '0.1') if self.quick else ('1.5', '0.3')
        command = [os.path.join(self.build, 'bench', 'nbdload'),
                   *server.load[case.transport], *case.load,
                   '--seconds', seconds, '--warmup', warmup]
        if server.stamped:
            command.append('--stamped')
        before = cpu_seconds(pid)
        done = subprocess.run(command, capture_output=True, text=True,
                              timeout=120)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        time.sleep(0.05)        # a child for the connection ends
        cpu = cpu_seconds(pid) - before
        answer = json.loads(done.stdout)
        latency = answer['latency_us']
        return {
            'per_second': answer['per_second'],
            'mb_per_second': answer['mb_per_second'],
            'cpu_per_million': cpu / answer['total_requests'] * 1e6,
            'p50': latency['p50'], 'p99': latency['p99'],
            'p99.9': latency['p99.9'], 'max': latency['max'],
            'mean': latency['mean'],
        }

    def round(self, number, progress):
        if not self.cases:
            return
        if not self.folder:
            progress('filling the image')
            self.prepare()
        for case in self.cases:
            for i in range(len(self.servers)):
                server = self.servers[(i + number) % len(self.servers)]
                progress(f'round {number + 1}: {case.name}: {server.name}')
                try:
                    result = self.measure(server, case)
                except (RuntimeError, OSError, ValueError,
                        subprocess.TimeoutExpired) as error:
                    self.failures.append(
                        f'{server.name}, {case.name}: {error}')
                    continue
                self.results.setdefault(case.name, {}).setdefault(
                    server.name, []).append(result)

    def report(self):
        rows = {}
        for case in self.cases:
            rivals = {}
            for name, rounds in self.results.get(case.name, {}).items():
                rivals[name] = {}
                for key in rounds[0]:
                    values = [r[key] for r in rounds]
                    rivals[name][key] = {
                        'min': min(values), 'max': max(values),
                        'median': statistics.median(values),
                        'rounds': values}
            rows[case.name] = {
                'title': case.title, 'load': ' '.join(case.load),
                'transport': case.transport, 'rivals': rivals,
                'not_installed': self.missing}
        return rows
