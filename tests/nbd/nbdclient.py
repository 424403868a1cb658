# SPDX-License-Identifier: MIT
"""
A client of the NBD protocol for tests.

It sends whatever it is told to, right or wrong, piece by piece or in one go,
and is strict about what it receives: everything that the protocol forbids a
server to send raises ProtocolError.
"""

import collections
import select
import socket
import struct

from nbdtest import MIB, Shim, connect, eq, pattern

NBDMAGIC = 0x4e42444d41474943
IHAVEOPT = 0x49484156454f5054
OPTION_REPLY_MAGIC = 0x3e889045565a9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
STRUCTURED_MAGIC = 0x668e33ef

# Handshake flags, the server's and the client's.
FIXED_NEWSTYLE = 1
NO_ZEROES = 2

# Transmission flags.
HAS_FLAGS = 1 << 0
READ_ONLY = 1 << 1
SEND_FLUSH = 1 << 2
SEND_FUA = 1 << 3
ROTATIONAL = 1 << 4
SEND_TRIM = 1 << 5
SEND_WRITE_ZEROES = 1 << 6
SEND_DF = 1 << 7
CAN_MULTI_CONN = 1 << 8
SEND_RESIZE = 1 << 9
SEND_CACHE = 1 << 10
SEND_FAST_ZERO = 1 << 11

OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_PEEK_EXPORT = 4
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10
OPT_EXTENDED_HEADERS = 11

REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERROR = 1 << 31
REP_ERR_UNSUP = REP_ERROR + 1
REP_ERR_POLICY = REP_ERROR + 2
REP_ERR_INVALID = REP_ERROR + 3
REP_ERR_PLATFORM = REP_ERROR + 4
REP_ERR_TLS_REQD = REP_ERROR + 5
REP_ERR_UNKNOWN = REP_ERROR + 6
REP_ERR_SHUTDOWN = REP_ERROR + 7
REP_ERR_BLOCK_SIZE_REQD = REP_ERROR + 8
REP_ERR_TOO_BIG = REP_ERROR + 9

INFO_EXPORT = 0
INFO_NAME = 1
INFO_DESCRIPTION = 2
INFO_BLOCK_SIZE = 3

CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_CACHE = 5
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7

FLAG_FUA = 1 << 0
FLAG_NO_HOLE = 1 << 1
FLAG_DF = 1 << 2
FLAG_REQ_ONE = 1 << 3
FLAG_FAST_ZERO = 1 << 4

REPLY_DONE = 1
REPLY_NONE = 0
REPLY_DATA = 1
REPLY_HOLE = 2
REPLY_STATUS = 5
REPLY_ERROR = (1 << 15) + 1
REPLY_ERROR_OFFSET = (1 << 15) + 2

STATE_HOLE = 1
STATE_ZERO = 2

OK = 0
EPERM = 1
EIO = 5
ENOMEM = 12
EINVAL = 22
ENOSPC = 28
EOVERFLOW = 75
ENOTSUP = 95
ESHUTDOWN = 108
ERRORS = {EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN}

MAX_STRING = 4096


class ProtocolError(Exception):
    """The server has sent what the protocol does not allow."""


class Eof(Exception):
    """The server has closed the connection."""


def demand(condition, text):
    if not condition:
        raise ProtocolError(text)


def pack_option(option, data=b"", magic=IHAVEOPT, length=None):
    length = len(data) if length is None else length
    return struct.pack(">QII", magic, option, length) + data


def pack_name_and_infos(name, infos):
    """The data of GO and INFO."""
    name = name.encode()
    return struct.pack(f">I{len(name)}sH{len(infos)}H", len(name), name,
                       len(infos), *infos)


def pack_contexts(name, queries):
    """The data of SET_META_CONTEXT and LIST_META_CONTEXT."""
    name = name.encode()
    data = struct.pack(f">I{len(name)}sI", len(name), name, len(queries))
    for query in queries:
        data += struct.pack(">I", len(query)) + query.encode()
    return data


def pack_request(command, cookie, offset=0, length=0, flags=0, data=b"",
                 magic=REQUEST_MAGIC):
    return struct.pack(">IHHQQI", magic, flags, command, cookie, offset,
                       length) + data


OptionReply = collections.namedtuple("OptionReply", "option type data")
Extent = collections.namedtuple("Extent", "length flags")


class Reply:
    """The answer to one request, put together from its parts."""

    def __init__(self, cookie, request):
        self.cookie = cookie
        self.command, self.offset, self.length, self.flags = request
        self.error = OK
        self.message = ""
        self.simple = False
        self.data = bytearray()
        self.covered = []   # (offset, length, is_hole) of content chunks
        self.extents = {}   # by context
        self.chunks = []    # the types, in order of arrival

    def cover(self, offset, length, is_hole):
        demand(length > 0, "an empty chunk")
        demand(self.offset <= offset
               and offset + length <= self.offset + self.length,
               "a chunk outside the request")
        demand(all(offset + length <= o or o + n <= offset
                   for o, n, _ in self.covered), "overlapping chunks")
        demand(not (self.flags & FLAG_DF) or not self.covered,
               "several chunks in spite of DF")
        self.covered.append((offset, length, is_hole))
        if not self.data:
            self.data = bytearray(self.length)

    def finish(self):
        if self.simple or self.error != OK:
            return self
        if self.command == CMD_READ:
            eq(sum(n for _, n, _ in self.covered), self.length,
               "bytes in the chunks of a reply")
        if self.command == CMD_BLOCK_STATUS:
            demand(self.extents, "no extents")
        return self


class Client:
    """
    One connection.  The handshake is made by hand with option(), or by
    ready(), which goes all the way to the transmission phase.
    """

    def __init__(self, address, limit=30):
        self.sock = connect(address, limit)
        self.buffer = bytearray()
        self.pending = {}      # cookie -> (command, offset, length, flags)
        self.replies = {}      # cookie -> Reply, while chunks are missing
        self.cookie = 0x1000
        self.structured = False
        self.contexts = {}     # id -> name
        self.handshake_flags = None
        self.size = None
        self.flags = None
        self.infos = {}

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # Bytes.

    def send(self, data):
        """
        Sends all of it, and takes in what comes meanwhile: a server may stop
        to receive from a client that does not.
        """
        data = memoryview(data)
        limit = self.sock.gettimeout()
        self.sock.setblocking(False)
        try:
            while data:
                readable, writable, _ = select.select(
                    [self.sock], [self.sock], [], limit)
                if writable:
                    data = data[self.sock.send(data):]
                elif readable:
                    self.fill()
                else:
                    raise TimeoutError("the server takes nothing in")
        finally:
            self.sock.settimeout(limit)

    def fill(self):
        try:
            data = self.sock.recv(1 << 20)
        except socket.timeout:
            raise TimeoutError("the server says nothing") from None
        except ConnectionResetError:
            data = b""
        if not data:
            raise Eof(f"end of the connection, {len(self.buffer)} bytes before")
        self.buffer += data

    def receive(self, length):
        while len(self.buffer) < length:
            self.fill()
        data = bytes(memoryview(self.buffer)[:length])
        del self.buffer[:length]
        return data

    def receive_into(self, target):
        """Fills a memoryview, without a copy of what is large."""
        ready = min(len(target), len(self.buffer))
        target[:ready] = memoryview(self.buffer)[:ready]
        del self.buffer[:ready]
        while ready < len(target):
            length = self.sock.recv_into(target[ready:])
            if not length:
                raise Eof(f"end of the connection, {ready} bytes of a chunk")
            ready += length

    def unpack(self, layout):
        return struct.unpack(layout, self.receive(struct.calcsize(layout)))

    def expect_eof(self):
        """The server must close, and must not send anything before it does."""
        try:
            self.fill()
        except (Eof, BrokenPipeError):
            pass
        demand(not self.buffer, f"bytes before the end: {bytes(self.buffer)!r}")

    def drain(self):
        """Reads to the end of the connection."""
        try:
            while True:
                self.fill()
        except Eof:
            data, self.buffer = bytes(self.buffer), bytearray()
            return data

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    # Handshake.

    def greeting(self):
        magic, option_magic, flags = self.unpack(">QQH")
        eq(magic, NBDMAGIC, "first magic number")
        eq(option_magic, IHAVEOPT, "second magic number")
        self.handshake_flags = flags
        return flags

    def hello(self, flags=FIXED_NEWSTYLE | NO_ZEROES):
        """The greeting and the client's flags."""
        self.greeting()
        self.send(struct.pack(">I", flags))
        return self

    def option_reply(self, option=None):
        magic, echoed, kind, length = self.unpack(">QIII")
        eq(magic, OPTION_REPLY_MAGIC, "magic number of an option reply")
        if option is not None:
            eq(echoed, option, "option of an option reply")
        demand(length <= 1 << 20, f"an option reply of {length} bytes")
        data = self.receive(length)
        demand(kind != REP_ACK or not data, "data in an ACK")
        return OptionReply(echoed, kind, data)

    def option(self, option, data=b""):
        """Sends an option; returns all replies, the final one included."""
        self.send(pack_option(option, data))
        return self.option_replies(option)

    def option_replies(self, option):
        replies = [self.option_reply(option)]
        while replies[-1].type != REP_ACK and replies[-1].type < REP_ERROR:
            replies.append(self.option_reply(option))
        return replies

    def option_status(self, option, data=b""):
        """Sends an option; returns the type of the final reply."""
        return self.option(option, data)[-1].type

    def info(self, option, name, infos=()):
        """GO or INFO; returns the type of the final reply."""
        replies = self.option(option, pack_name_and_infos(name, infos))
        if replies[-1].type != REP_ACK:
            return replies[-1].type
        self.infos = {}
        for reply in replies[:-1]:
            eq(reply.type, REP_INFO, "type of an intermediate reply")
            kind, = struct.unpack_from(">H", reply.data)
            demand(kind not in self.infos, f"information {kind} twice")
            self.infos[kind] = reply.data[2:]
        demand(INFO_EXPORT in self.infos, "no NBD_INFO_EXPORT")
        eq(len(self.infos[INFO_EXPORT]), 10, "length of NBD_INFO_EXPORT")
        self.take_export(*struct.unpack(">QH", self.infos[INFO_EXPORT]))
        return REP_ACK

    def take_export(self, size, flags):
        demand(flags & HAS_FLAGS, "no NBD_FLAG_HAS_FLAGS")
        demand(self.structured or not flags & SEND_DF,
               "NBD_FLAG_SEND_DF without structured replies")
        self.size, self.flags = size, flags

    def go(self, name="", infos=()):
        return self.info(OPT_GO, name, infos)

    def export_name(self, name, zeroes):
        """EXPORT_NAME; zeroes says whether 124 of them must follow."""
        self.send(pack_option(OPT_EXPORT_NAME, name.encode()))
        self.take_export(*self.unpack(">QH"))
        if zeroes:
            eq(self.receive(124), bytes(124), "the zeroes")
        return self

    def list_exports(self):
        replies = self.option(OPT_LIST)
        eq(replies[-1].type, REP_ACK, "final reply to LIST")
        names = []
        for reply in replies[:-1]:
            eq(reply.type, REP_SERVER, "type of an entry")
            length, = struct.unpack_from(">I", reply.data)
            demand(length <= len(reply.data) - 4, "name longer than its entry")
            names.append(reply.data[4:4 + length].decode())
        return names

    def meta_context(self, option, name, queries):
        """Returns (type of the final reply, {id: context})."""
        replies = self.option(option, pack_contexts(name, queries))
        contexts = []
        for reply in replies[:-1]:
            eq(reply.type, REP_META_CONTEXT, "type of an entry")
            number, = struct.unpack_from(">I", reply.data)
            contexts.append((number, reply.data[4:].decode()))
        if option == OPT_SET_META_CONTEXT and replies[-1].type == REP_ACK:
            self.contexts = dict(contexts)
            eq(len(self.contexts), len(contexts), "number of context ids")
        return replies[-1].type, contexts

    def use_structured(self):
        eq(self.option_status(OPT_STRUCTURED_REPLY), REP_ACK,
           "reply to STRUCTURED_REPLY")
        self.structured = True

    def ready(self, name="", structured=True, contexts=None):
        """All of the handshake."""
        self.hello()
        if structured:
            self.use_structured()
        if structured and contexts is None:
            contexts = ["base:allocation"]
        if contexts:
            status, _ = self.meta_context(OPT_SET_META_CONTEXT, name, contexts)
            eq(status, REP_ACK, "reply to SET_META_CONTEXT")
        eq(self.go(name), REP_ACK, "reply to GO")
        return self

    # Requests.

    def pack(self, command, offset=0, length=0, flags=0, data=b"",
             cookie=None):
        """The bytes of a request, which counts as sent from now on."""
        if cookie is None:
            self.cookie += 1
            cookie = self.cookie
        self.pending[cookie] = (command, offset, length, flags)
        return pack_request(command, cookie, offset, length, flags, data)

    def post(self, command, offset=0, length=0, flags=0, data=b"",
             cookie=None):
        """Sends a request and returns its cookie."""
        header = self.pack(command, offset, length, flags, b"", cookie)
        if len(data) < 1 << 16:
            self.send(header + data)
        else:
            self.send(header)
            self.send(data)
        return self.cookie if cookie is None else cookie

    def post_write(self, offset, data, flags=0):
        return self.post(CMD_WRITE, offset, len(data), flags, data)

    def call(self, command, offset=0, length=0, flags=0, data=b""):
        """A request while none else is under way, and its reply."""
        cookie = self.post(command, offset, length, flags, data)
        reply = self.reply()
        eq(reply.cookie, cookie, "cookie of the reply")
        return reply

    def read(self, offset, length, flags=0):
        reply = self.call(CMD_READ, offset, length, flags)
        eq(reply.error, OK, f"READ {offset}+{length}")
        return reply.data

    def write(self, offset, data, flags=0):
        return self.call(CMD_WRITE, offset, len(data), flags, data).error

    def flush(self, flags=0):
        return self.call(CMD_FLUSH, flags=flags).error

    def trim(self, offset, length, flags=0):
        return self.call(CMD_TRIM, offset, length, flags).error

    def zero(self, offset, length, flags=0):
        return self.call(CMD_WRITE_ZEROES, offset, length, flags).error

    def cache(self, offset, length, flags=0):
        return self.call(CMD_CACHE, offset, length, flags).error

    def status(self, offset, length, flags=0):
        """The extents of the one context."""
        reply = self.call(CMD_BLOCK_STATUS, offset, length, flags)
        eq(reply.error, OK, f"BLOCK_STATUS {offset}+{length}")
        extents, = reply.extents.values()
        return extents

    def disconnect(self):
        self.send(pack_request(CMD_DISC, 0))
        self.expect_eof()
        self.close()

    # Replies.

    def reply(self):
        """The next reply to be complete."""
        while True:
            magic, = self.unpack(">I")
            if magic == SIMPLE_MAGIC:
                return self.simple_reply()
            eq(magic, STRUCTURED_MAGIC, "magic number of a reply")
            reply = self.chunk()
            if reply:
                return reply

    def collect(self, number=None):
        """That many replies, or all that are due, by cookie."""
        number = len(self.pending) if number is None else number
        replies = [self.reply() for _ in range(number)]
        return {reply.cookie: reply for reply in replies}

    def request_of(self, cookie):
        demand(cookie in self.pending, f"unknown cookie {cookie:#x}")
        return self.pending[cookie]

    def simple_reply(self):
        error, cookie = self.unpack(">IQ")
        demand(error == OK or error in ERRORS, f"unknown error {error}")
        request = self.request_of(cookie)
        demand(cookie not in self.replies, "simple reply after chunks")
        del self.pending[cookie]
        reply = Reply(cookie, request)
        reply.simple = True
        reply.error = error
        if reply.command == CMD_READ:
            demand(not self.structured, "simple reply to a READ")
            if error == OK:
                reply.data = bytearray(reply.length)
                self.receive_into(memoryview(reply.data))
        demand(reply.command != CMD_BLOCK_STATUS or error != OK,
               "simple reply to a BLOCK_STATUS")
        return reply

    def chunk(self):
        """Takes a chunk; returns the Reply if it was the last one."""
        flags, kind, cookie, length = self.unpack(">HHQI")
        demand(self.structured, "structured reply that was not negotiated")
        demand(flags & ~REPLY_DONE == 0, f"unknown reply flags {flags:#x}")
        request = self.request_of(cookie)
        reply = self.replies.setdefault(cookie, Reply(cookie, request))
        reply.chunks.append(kind)
        if kind == REPLY_DATA:
            self.data_chunk(reply, length)
        elif kind == REPLY_HOLE:
            self.hole_chunk(reply, length)
        elif kind == REPLY_STATUS:
            self.status_chunk(reply, length)
        elif kind in (REPLY_ERROR, REPLY_ERROR_OFFSET):
            self.error_chunk(reply, kind, length)
        else:
            eq(kind, REPLY_NONE, "type of a chunk")
            eq(length, 0, "length of NBD_REPLY_TYPE_NONE")
            demand(flags & REPLY_DONE, "NBD_REPLY_TYPE_NONE is not the last")
        if not flags & REPLY_DONE:
            return None
        del self.pending[cookie], self.replies[cookie]
        return reply.finish()

    def data_chunk(self, reply, length):
        eq(reply.command, CMD_READ, "command that got data")
        demand(length >= 9, f"data chunk of {length} bytes")
        offset, = self.unpack(">Q")
        reply.cover(offset, length - 8, False)
        at = offset - reply.offset
        self.receive_into(memoryview(reply.data)[at:at + length - 8])

    def hole_chunk(self, reply, length):
        eq(reply.command, CMD_READ, "command that got a hole")
        eq(length, 12, "length of a hole chunk")
        offset, size = self.unpack(">QI")
        reply.cover(offset, size, True)

    def status_chunk(self, reply, length):
        eq(reply.command, CMD_BLOCK_STATUS, "command that got extents")
        demand(length >= 12 and length % 8 == 4, f"status chunk of {length}")
        context, = self.unpack(">I")
        demand(context in self.contexts, f"unknown context {context}")
        demand(context not in reply.extents, f"context {context} twice")
        extents = [Extent(*self.unpack(">II")) for _ in range(length // 8)]
        demand(all(e.length > 0 for e in extents), "an empty extent")
        # The protocol lets only the last extent pass the end of the request,
        # and only in the absence of REQ_ONE.
        before = sum(e.length for e in extents[:-1])
        demand(before < reply.length, "extents behind the request")
        if reply.flags & FLAG_REQ_ONE:
            eq(len(extents), 1, "extents with REQ_ONE")
            demand(extents[0].length <= reply.length, "extent too long")
        reply.extents[context] = extents

    def error_chunk(self, reply, kind, length):
        fixed = 6 if kind == REPLY_ERROR else 14
        demand(length >= fixed, f"error chunk of {length} bytes")
        error, size = self.unpack(">IH")
        demand(error in ERRORS, f"unknown error {error}")
        demand(size <= length - fixed, "message longer than its chunk")
        reply.message = self.receive(size).decode()
        self.receive(length - 6 - size)
        reply.error = reply.error or error


def check_neighbours_in_one_block(shim, one, other):
    """
    Two clients of one file on a server with --direct write into one block.
    The first has read the block, and is held when it writes it back; the other
    gets all the time it needs to read what is there before.
    """
    before = pattern(4096, "before")
    eq(one.write(0, before), OK, "WRITE")
    shim.concern(0, 4096)
    shim.shut_gate(Shim.WRITE)
    one.post_write(0, pattern(64, 1))
    shim.wait_held(Shim.WRITE)
    second = other.post_write(64, pattern(64, 2))
    replies = []
    for i in range(100):
        other.post(CMD_READ, MIB + i * 4096, 512)
        replies.append(other.reply())
    assert second not in [reply.cookie for reply in replies], \
        "the second has written before the first"
    shim.open_gate(Shim.WRITE)
    for client in one, other:
        for reply in client.collect().values():
            eq(reply.error, OK, "WRITE")
    after = pattern(64, 1) + pattern(64, 2) + before[128:]
    for client in one, other:
        eq(client.read(0, 4096), after, "data")
