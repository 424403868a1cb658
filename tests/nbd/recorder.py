# SPDX-License-Identifier: MIT
"""
Reads what shim.c has recorded of a server, and judges it.

A Recording is a list of calls, some of them a ring's (by_ring).  Each has a
place where it began and a place where it had returned, in one order for all
threads of the server; the shim would rather place a beginning too early, and an
end too late, than have the server look better than it is.  From the
bytes received and sent on each socket the conversation is put together again:
which request came in where, and where the first byte of its reply left.

check_durability() holds the recording against the promise of FLUSH and FUA:

- A FLUSH covers every write that was answered, on any connection, before the
  FLUSH was received.  After the last of their system calls has returned, a
  sync must begin, and it must have succeeded before the reply to the FLUSH
  begins to leave.
- A request with FUA covers itself in the same way.

Only calls on the image count.  A write answered with success must have put
all of its bytes there before its reply, and no call may touch what no request
in progress is about: a TRIM, which need not do anything, could else be answered
before it does.
"""

import collections
import struct

import nbdclient as nbd

READ, WRITE, SYNC, ALLOCATE, RECEIVE, SEND = range(1, 7)

HEADER = struct.Struct("=QQ")
RECORD = struct.Struct("=IHBBiiQqqQII")
RWF_DSYNC = 2
RWF_SYNC = 4

NOT_YET = float("inf")


class Call:
    """One call; end is NOT_YET if the server was killed before it returned."""

    def __init__(self, kind, file, thread, begin, offset=-1, length=0,
                 flags=0, by_ring=False):
        self.kind = kind
        self.file = file
        self.thread = thread
        self.begin = begin
        self.end = NOT_YET
        self.offset = offset
        self.length = length
        self.flags = flags
        self.by_ring = by_ring
        self.result = None
        self.data = b""

    def finish(self, end, result):
        self.end = end
        self.result = result
        return self

    def succeeded(self):
        return self.result is not None and self.result >= 0


class Recording:
    def __init__(self, calls):
        self.calls = calls

    @classmethod
    def load(cls, path):
        with open(path, "rb") as file:
            cursor, size = HEADER.unpack(file.read(HEADER.size))
            if cursor + HEADER.size > size:
                raise RuntimeError("the recording is full")
            log = file.read(cursor)
        return cls(read_calls(log))

    def of(self, kind, file=None):
        return [c for c in self.calls
                if c.kind == kind and file in (None, c.file)]

    def conversations(self):
        """One for each socket."""
        sockets = {c.file: None for c in self.calls
                   if c.kind in (RECEIVE, SEND)}
        return [Conversation(self, file) for file in sockets]


def read_calls(log):
    calls = {}
    place = 0
    while place < len(log):
        (size, kind, is_end, by_ring, thread, _fd, file, offset, result, begin,
         flags, length) = RECORD.unpack_from(log, place)
        if size == 0:
            break   # the server was killed while it wrote this record
        data = log[place + RECORD.size:place + RECORD.size + length]
        if not is_end:
            call = Call(kind, file, thread, begin, offset, result, flags,
                        by_ring)
            call.data = data
            calls[begin] = call
        else:
            call = calls[begin].finish(place, result)
            call.data = call.data or data
        place += size
    return list(calls.values())


class Stream:
    """The bytes that went one way, and the call that carried each."""

    def __init__(self, calls):
        self.calls = [c for c in calls if c.succeeded() and c.result > 0]
        self.data = b"".join(c.data[:c.result] for c in self.calls)
        self.starts = []
        start = 0
        for call in self.calls:
            self.starts.append(start)
            start += call.result
        self.at = 0
        self.index = 0

    def left(self):
        return len(self.data) - self.at

    def peek(self, length):
        return self.data[self.at:self.at + length]

    def take(self, length):
        data = self.peek(length)
        self.at += length
        return data

    def carrier(self, position):
        """The call that carried the byte at a position that only grows."""
        while (self.index + 1 < len(self.starts)
               and self.starts[self.index + 1] <= position):
            self.index += 1
        return self.calls[self.index]


Request = collections.namedtuple(
    "Request", "cookie command flags offset length received answered error")


class Conversation:
    """What was said on one socket in the transmission phase."""

    def __init__(self, recording, file):
        self.file = file
        self.receives = recording.of(RECEIVE, file)
        self.sends = recording.of(SEND, file)
        # By cookie, of which a client makes use again: those to be answered.
        self.commands = collections.defaultdict(collections.deque)
        self.requests = []
        self.parse_requests(Stream(self.receives))
        self.parse_replies(Stream(self.sends))
        for cookie, commands in self.commands.items():
            while commands:
                self.answer(cookie, NOT_YET, None)

    def parse_requests(self, stream):
        stream.take(4)   # the client's flags
        magic = struct.pack(">Q", nbd.IHAVEOPT)
        while stream.left() >= 16 and stream.peek(8) == magic:
            _, _, length = struct.unpack(">QII", stream.take(16))
            stream.take(length)
        while stream.left() >= 28:
            (magic, flags, command, cookie, offset,
             length) = struct.unpack(">IHHQQI", stream.take(28))
            if magic != nbd.REQUEST_MAGIC:
                raise RuntimeError(f"no request: magic number {magic:#x}")
            received = stream.carrier(stream.at - 1)
            if command == nbd.CMD_WRITE:
                stream.take(length)
            self.commands[cookie].append((command, flags, offset, length,
                                          received.end))

    def parse_replies(self, stream):
        stream.take(18)
        magic = struct.pack(">Q", nbd.OPTION_REPLY_MAGIC)
        while stream.left() >= 20 and stream.peek(8) == magic:
            *_, length = struct.unpack(">QIII", stream.take(20))
            stream.take(length)
        errors = {}
        while stream.left() >= 16:
            start = stream.at
            cookie, error, done = self.parse_reply(stream)
            errors[cookie] = errors.get(cookie, 0) or error
            if done:
                self.answer(cookie, stream.carrier(start).begin,
                            errors.pop(cookie))

    def parse_reply(self, stream):
        magic, = struct.unpack(">I", stream.take(4))
        if magic == nbd.SIMPLE_MAGIC:
            error, cookie = struct.unpack(">IQ", stream.take(12))
            command, _, _, length, _ = self.commands[cookie][0]
            if command == nbd.CMD_READ and error == 0:
                stream.take(length)
            return cookie, error, True
        if magic != nbd.STRUCTURED_MAGIC:
            raise RuntimeError(f"no reply: magic number {magic:#x}")
        flags, kind, cookie, length = struct.unpack(">HHQI", stream.take(16))
        payload = stream.take(length)
        error = struct.unpack(">I", payload[:4])[0] if kind & 1 << 15 else 0
        return cookie, error, flags & nbd.REPLY_DONE

    def answer(self, cookie, answered, error):
        (command, flags, offset, length,
         received) = self.commands[cookie].popleft()
        self.requests.append(Request(cookie, command, flags, offset, length,
                                     received, answered, error))


# The judgement.

# changes are the calls that have changed the file, by_ring those of a ring.
Report = collections.namedtuple(
    "Report", "violations flushes fuas writes changes by_ring")

WRITING = {nbd.CMD_WRITE, nbd.CMD_WRITE_ZEROES, nbd.CMD_TRIM}


def calls_of(request, changes):
    """The calls that have changed the bytes of a request meanwhile."""
    return [c for c in changes
            if c.begin > request.received and c.end <= request.answered
            and c.offset < request.offset + request.length
            and c.offset + c.length > request.offset]


def missing_bytes(request, calls):
    """Whether the calls leave out some of the request's bytes."""
    at = request.offset
    for call in sorted(calls, key=lambda c: c.offset):
        if call.succeeded() and call.offset <= at:
            moved = call.result if call.kind == WRITE else call.length
            at = max(at, call.offset + moved)
    return at < request.offset + request.length


def is_synced(after, before, syncs):
    return any(s.begin > after and s.end < before and s.succeeded()
               for s in syncs)


def has_synced_itself(calls):
    return all(c.kind == WRITE and c.flags & (RWF_DSYNC | RWF_SYNC)
               for c in calls)


class Judge:
    def __init__(self, recording, file):
        self.syncs = recording.of(SYNC, file)
        self.changes = recording.of(WRITE, file) + recording.of(ALLOCATE, file)
        self.all = [r for c in recording.conversations() for r in c.requests]
        self.requests = [r for r in self.all if r.error == 0]
        self.violations = []
        self.landed = {}    # request -> place where its last call returned

    def judge_writes(self):
        writing = [r for r in self.requests if r.command in WRITING]
        for request in writing:
            calls = calls_of(request, self.changes)
            self.landed[request] = max((c.end for c in calls), default=-1)
            must_land = request.command != nbd.CMD_TRIM and request.length
            if must_land and missing_bytes(request, calls):
                self.complain(request, "was answered before it had landed")
            if request.flags & nbd.FLAG_FUA:
                self.judge_fua(request, calls)
        return writing

    def judge_changes(self):
        writing = [r for r in self.all if r.command in WRITING]
        for call in self.changes:
            if not any(calls_of(request, [call]) for request in writing):
                self.violations.append(
                    f"a call on {call.offset}+{call.length} belongs to no "
                    "request in progress")

    def judge_fua(self, request, calls):
        if calls and not has_synced_itself(calls) and not is_synced(
                self.landed[request], request.answered, self.syncs):
            self.complain(request, "has FUA, and no sync")

    def judge_flush(self, request):
        covered = [r for r in self.landed if r.answered < request.received]
        after = max((self.landed[r] for r in covered), default=-1)
        if after >= 0 and not is_synced(after, request.answered, self.syncs):
            self.complain(request, f"covers {len(covered)} writes without a "
                                   "sync after them")

    def complain(self, request, text):
        self.violations.append(
            f"request {request.cookie:#x} (command {request.command}, "
            f"{request.offset}+{request.length}) {text}")


def check_durability(recording, file):
    """Judges the recording of a server whose image has that inode number."""
    judge = Judge(recording, file)
    writes = judge.judge_writes()
    judge.judge_changes()
    flushes = [r for r in judge.requests if r.command == nbd.CMD_FLUSH]
    for request in flushes:
        judge.judge_flush(request)
    fuas = [r for r in writes if r.flags & nbd.FLAG_FUA]
    changes = [c for c in judge.changes if c.succeeded()]
    return Report(judge.violations, len(flushes), len(fuas), len(writes),
                  len(changes), sum(c.by_ring for c in changes))
