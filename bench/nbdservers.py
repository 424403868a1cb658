# SPDX-License-Identifier: MIT
"""The NBD servers that bench/run compares: how each is started, with what.

A server is one process, or a daemon, that serves one medium on one transport:

    file      an image on tmpfs
    disk      an image on a disk's file system, in the page cache
    direct    the same image, past the page cache (O_DIRECT)
    memory    the server's own memory, filled by whoever measures
    null      reads as zeroes

A subclass of Server knows which of them it can serve.  What it is started with
is what its own documentation recommends, and is said in `settings`.
"""

import os
import shutil
import signal
import socket
import subprocess
import time

TICK = os.sysconf('SC_CLK_TCK')


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
    """One kind of server on one medium.  A subclass says how to start it."""
    name = None
    program = None
    settings = None
    media = ('file', 'disk')
    stamped = True

    def __init__(self, build, folder, medium, image, size):
        self.build = build
        self.folder = folder
        self.medium = medium
        self.image = image      # of a medium that has one
        self.size = size        # in bytes
        self.pids = {}          # transport to pid
        self.load = {}          # transport to nbdload's options
        self.uri = {}           # transport to nbdcopy's
        self.started = []

    def executable(self):
        return shutil.which(self.program)

    def version(self):
        return version_of(self.executable(), '--version')

    def path(self, suffix):
        return os.path.join(self.folder, f'{self.name}.{self.medium}.{suffix}')

    def spawn(self, *command, environment=None):
        with open(self.path('log'), 'a') as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **(environment or {})})
        self.started.append(process)
        return process.pid

    def serve(self, transport):
        """Start the server on a transport.  False if it is up already."""
        if transport in self.pids:
            return False
        where = self.path('sock') if transport == 'unix' else free_port()
        pid = self.start(transport, where)
        if transport == 'unix':
            self.load[transport] = ['--unix', where]
            self.uri[transport] = f'nbd+unix:///bench?socket={where}'
        else:
            self.load[transport] = ['--tcp', f'127.0.0.1:{where}']
            self.uri[transport] = f'nbd://127.0.0.1:{where}/bench'
        self.load[transport] += ['--export', 'bench']
        self.await_answer(transport, where)
        self.pids[transport] = self.pid(pid)
        return True

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
    media = ('file', 'disk', 'direct', 'memory', 'null')
    threads = max(len(os.sched_getaffinity(0)), 2)
    settings = f'--threads {threads}, engine of its choice'
    engine = None

    def executable(self):
        path = os.path.join(self.build, 'nbd', 'coaio-nbd')
        return path if os.access(path, os.X_OK) else None

    def start(self, transport, where):
        listen = (['--unix', where] if transport == 'unix'
                  else ['--tcp', f'127.0.0.1:{where}'])
        source = (f'{self.medium}:{self.size}' if not self.image
                  else self.image)
        options = ['--direct'] if self.medium == 'direct' else []
        return self.spawn(
            self.executable(), *listen, '--export', f'bench={source}',
            '--threads', str(self.threads), *options,
            environment=self.environment())

    def environment(self):
        return {'COAIO_ENGINE': self.engine} if self.engine else {}


class CoaioNbdEpoll(CoaioNbd):
    name = 'coaio-nbd-epoll'
    engine = 'epoll'
    settings = f'--threads {CoaioNbd.threads}, COAIO_ENGINE=epoll'


class CoaioNbdUring(CoaioNbd):
    name = 'coaio-nbd-uring'
    engine = 'uring'
    settings = f'--threads {CoaioNbd.threads}, COAIO_ENGINE=uring'


class CoaioNbdOne(CoaioNbd):
    name = 'coaio-nbd-1'
    threads = 1
    settings = '--threads 1, engine of its choice'


class QemuNbd(Server):
    name = 'qemu-nbd'
    program = 'qemu-nbd'
    media = ('file', 'disk', 'direct')
    aio = 'threads'
    direct_aio = 'native'
    settings = ('raw, cache=writeback, aio=threads (its defaults); direct: '
                'cache=none, aio=native')

    def start(self, transport, where):
        listen = (['--socket', where] if transport == 'unix'
                  else ['--bind', '127.0.0.1', '--port', str(where)])
        direct = self.medium == 'direct'
        return self.spawn(
            self.executable(), '--persistent', '--shared=0', '--format=raw',
            f'--cache={"none" if direct else "writeback"}',
            f'--aio={self.direct_aio if direct else self.aio}',
            '--export-name=bench', *listen, self.image)


class QemuNbdUring(QemuNbd):
    name = 'qemu-nbd-uring'
    aio = direct_aio = 'io_uring'
    settings = 'raw, cache=writeback (direct: none), aio=io_uring'


class Nbdkit(Server):
    name = 'nbdkit'
    program = 'nbdkit'
    media = ('file', 'disk', 'memory', 'null')
    settings = ('16 threads a connection (its default); plugins file, memory '
                'with allocator=sparse (its default), null')
    allocator = 'sparse'

    def plugin(self):
        if self.medium == 'memory':
            return ['memory', str(self.size), f'allocator={self.allocator}']
        if self.medium == 'null':
            return ['null', str(self.size)]
        return ['file', self.image]

    def start(self, transport, where):
        listen = (['--unix', where] if transport == 'unix'
                  else ['--ipaddr', '127.0.0.1', '--port', str(where)])
        return self.spawn(self.executable(), '--foreground', *listen,
                          *self.plugin())


class NbdkitMalloc(Nbdkit):
    name = 'nbdkit-malloc'
    media = ('memory',)
    allocator = 'malloc'
    settings = '16 threads a connection; plugin memory with allocator=malloc'


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
    """A stand-in of our own (rivals/nbd_loop.c)."""
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
    settings = ('one thread a connection, one request at a time; '
                'send buffer as coaio-nbd')


class BatchingLoop(Loop):
    name = 'batching-loop'
    mode = 'batching'
    settings = ('one thread a connection, a pread or pwrite a request, one '
                'send for all that came; send buffer as coaio-nbd')


class Limit(Loop):
    name = 'limit'
    mode = 'limit'
    media = ('file', 'null')
    stamped = False
    settings = ('no disk; all requests that came answered at once; send '
                'buffer as coaio-nbd')

    def source(self):
        return str(self.size)


KINDS = [CoaioNbd, CoaioNbdEpoll, CoaioNbdUring, CoaioNbdOne, QemuNbd,
         QemuNbdUring, Nbdkit, NbdkitMalloc, NbdServer, NbdServerSplice,
         BlockingLoop, BatchingLoop, Limit]
