#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
The handshake: greeting, options, their errors, the way to transmission.

After each refusal the case goes on with the same connection and must get an
export, since an option that fails must not end the conversation.
"""

import struct

import nbdclient as nbd
from nbdtest import MIB, case, eq, main

SIZE = 3 * MIB + 512


def serve(box):
    """
    Two exports, "disk" the default.  No client is dropped because it is slow,
    lest that be taken for what a case waits for.
    """
    image = box.image(size=SIZE)
    return box.server(f"disk={image}", "scratch=memory:1M",
                      options=["--default-export", "disk",
                               "--handshake-timeout", 600])


def open_hello(box, server=None):
    server = server or serve(box)
    return box.closing(nbd.Client(server.address()).hello())


def check_usable(client, name="disk", size=SIZE):
    """The connection is in haggling still and works from here on."""
    eq(client.go(name), nbd.REP_ACK, "reply to GO")
    eq(client.size, size, "size")
    eq(client.read(512, 4096), bytes(4096), "data")
    client.disconnect()


@case
def the_greeting_is_fixed_newstyle(box):
    server = serve(box)
    with nbd.Client(server.address()) as client:
        eq(client.greeting(), nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES, "flags")


@case
def export_name_with_zeroes(box):
    server = serve(box)
    with nbd.Client(server.address()) as client:
        client.hello(nbd.FIXED_NEWSTYLE)
        client.export_name("disk", zeroes=True)
        eq(client.size, SIZE, "size")
        eq(client.read(0, 512), bytes(512), "data")
        client.disconnect()


@case
def export_name_without_zeroes(box):
    client = open_hello(box)
    client.export_name("scratch", zeroes=False)
    eq(client.size, MIB, "size")
    eq(client.read(0, 512), bytes(512), "data")
    client.disconnect()


@case
def export_name_from_a_client_that_sets_no_flags(box):
    """Plain newstyle: this is the only option such a client may send."""
    server = serve(box)
    with nbd.Client(server.address()) as client:
        client.hello(0)
        client.export_name("disk", zeroes=True)
        eq(client.read(0, 512), bytes(512), "data")
        client.disconnect()


@case
def export_name_empty_is_the_default_export(box):
    client = open_hello(box)
    client.export_name("", zeroes=False)
    eq(client.size, SIZE, "size")
    client.disconnect()


@case
def export_name_after_structured_replies(box):
    client = open_hello(box)
    client.use_structured()
    client.export_name("disk", zeroes=False)
    eq(client.read(0, 512), bytes(512), "data")
    client.disconnect()


@case
def export_name_unknown_ends_the_connection(box):
    client = open_hello(box)
    client.send(nbd.pack_option(nbd.OPT_EXPORT_NAME, b"nobody"))
    client.expect_eof()


@case
def requests_may_follow_export_name_at_once(box):
    """A client need not wait for the reply to EXPORT_NAME to say more."""
    client = open_hello(box)
    request = nbd.pack_request(nbd.CMD_READ, 7, 0, 512)
    client.send(nbd.pack_option(nbd.OPT_EXPORT_NAME, b"disk") + request)
    client.take_export(*client.unpack(">QH"))
    client.pending[7] = (nbd.CMD_READ, 0, 512, 0)
    eq(client.reply().data, bytes(512), "data")


@case
def go(box):
    check_usable(open_hello(box))


@case
def go_to_the_default_export(box):
    check_usable(open_hello(box), name="")


@case
def go_unknown_export(box):
    client = open_hello(box)
    eq(client.go("nobody"), nbd.REP_ERR_UNKNOWN, "reply to GO")
    eq(client.info(nbd.OPT_INFO, "nobody"), nbd.REP_ERR_UNKNOWN,
       "reply to INFO")
    check_usable(client)


@case
def names_are_compared_whole(box):
    client = open_hello(box)
    for name in "dis", "disk2", "Disk", "disk\0", " disk":
        eq(client.go(name), nbd.REP_ERR_UNKNOWN, f"reply to GO {name!r}")
    check_usable(client)


@case
def info_with_block_size_name_and_description(box):
    client = open_hello(box)
    wanted = [nbd.INFO_NAME, nbd.INFO_DESCRIPTION, nbd.INFO_BLOCK_SIZE]
    for option in nbd.OPT_INFO, nbd.OPT_GO:
        eq(client.info(option, "", wanted), nbd.REP_ACK, "reply")
        eq(client.size, SIZE, "size")
        # The name is the canonical one, not the one that was asked for.
        eq(client.infos[nbd.INFO_NAME], b"disk", "name")
        client.infos.get(nbd.INFO_DESCRIPTION, b"").decode()
        check_block_size(client)
    eq(client.read(0, 512), bytes(512), "data")


def check_block_size(client):
    least, preferred, most = struct.unpack(
        ">III", client.infos[nbd.INFO_BLOCK_SIZE])
    eq(least, 1, "minimum block size")
    assert preferred & (preferred - 1) == 0 and preferred >= 512, preferred
    eq(most, 32 * MIB, "maximum block size")


@case
def info_that_is_unknown_is_ignored(box):
    client = open_hello(box)
    eq(client.info(nbd.OPT_INFO, "disk", [77, 0xffff]), nbd.REP_ACK, "reply")
    assert 77 not in client.infos
    check_usable(client)


@case
def info_asked_for_many_times(box):
    client = open_hello(box)
    eq(client.info(nbd.OPT_INFO, "disk", [nbd.INFO_BLOCK_SIZE] * 100),
       nbd.REP_ACK, "reply")
    check_usable(client)


@case
def info_leaves_the_client_in_haggling(box):
    client = open_hello(box)
    for _ in range(3):
        eq(client.info(nbd.OPT_INFO, "scratch"), nbd.REP_ACK, "reply to INFO")
        eq(client.size, MIB, "size")
    check_usable(client)


@case
def transmission_flags(box):
    client = open_hello(box)
    client.use_structured()
    eq(client.go("disk"), nbd.REP_ACK, "reply to GO")
    eq(client.flags, nbd.HAS_FLAGS | nbd.SEND_FLUSH | nbd.SEND_FUA |
       nbd.SEND_TRIM | nbd.SEND_WRITE_ZEROES | nbd.SEND_DF |
       nbd.CAN_MULTI_CONN | nbd.SEND_CACHE | nbd.SEND_FAST_ZERO, "flags")


@case
def transmission_flags_without_structured_replies(box):
    client = open_hello(box)
    eq(client.go("disk"), nbd.REP_ACK, "reply to GO")
    eq(client.flags & nbd.SEND_DF, 0, "NBD_FLAG_SEND_DF")


@case
def list_names_every_export(box):
    client = open_hello(box)
    eq(sorted(client.list_exports()), ["disk", "scratch"], "names")
    check_usable(client)


@case
def list_with_data_is_invalid(box):
    client = open_hello(box)
    eq(client.option_status(nbd.OPT_LIST, b"x"), nbd.REP_ERR_INVALID, "reply")
    check_usable(client)


@case
def abort_is_acknowledged(box):
    client = open_hello(box)
    eq(client.option_status(nbd.OPT_ABORT), nbd.REP_ACK, "reply to ABORT")
    client.expect_eof()


@case
def abort_from_a_client_that_does_not_wait(box):
    server = serve(box)
    for _ in range(20):
        with nbd.Client(server.address()) as client:
            client.hello()
            client.send(nbd.pack_option(nbd.OPT_ABORT))
    check_usable(open_hello(box, server))


@case
def structured_reply_with_data_is_invalid(box):
    client = open_hello(box)
    eq(client.option_status(nbd.OPT_STRUCTURED_REPLY, b"x"),
       nbd.REP_ERR_INVALID, "reply")
    check_usable(client)   # in which a structured reply would be an error


@case
def structured_reply_twice(box):
    """Whether the second is an error or not, the first holds."""
    client = open_hello(box)
    client.use_structured()
    client.option(nbd.OPT_STRUCTURED_REPLY)
    check_usable(client)


@case
def unknown_options_are_unsupported(box):
    client = open_hello(box)
    for option in (0, nbd.OPT_PEEK_EXPORT, nbd.OPT_STARTTLS,
                   nbd.OPT_EXTENDED_HEADERS, 12, 0x7fffffff, 0xffffffff):
        for data in b"", b"some data":
            eq(client.option_status(option, data), nbd.REP_ERR_UNSUP,
               f"reply to option {option}")
    check_usable(client)


@case
def malformed_go_is_invalid(box):
    client = open_hello(box)
    broken = {
        "nothing": b"",
        "half a length": b"\0\0",
        "no count": struct.pack(">I4s", 4, b"disk"),
        "half a count": struct.pack(">I4sB", 4, b"disk", 0),
        "a name that is too short": struct.pack(">I4sH", 5, b"disk", 0),
        "a name that is too long": struct.pack(">I4sH", 3, b"disk", 0),
        "a huge name": struct.pack(">I4sH", 0xffffffff, b"disk", 0),
        "an information missing": struct.pack(">I4sH", 4, b"disk", 1),
        "too many informations": struct.pack(">I4sHHH", 4, b"disk", 1, 3, 3),
        "a huge count": struct.pack(">I4sHH", 4, b"disk", 0xffff, 3),
    }
    for option in nbd.OPT_INFO, nbd.OPT_GO:
        for name, data in broken.items():
            eq(client.option_status(option, data), nbd.REP_ERR_INVALID,
               f"reply to an option {option} with {name}")
    check_usable(client)


@case
def unknown_client_flags_end_the_connection(box):
    server = serve(box)
    for flags in 4, 1 << 31, 0xffffffff:
        with nbd.Client(server.address()) as client:
            client.hello(flags)
            client.expect_eof()
    check_usable(open_hello(box, server))


@case
def bad_option_magic_ends_the_connection(box):
    server = serve(box)
    with nbd.Client(server.address()) as client:
        client.hello()
        client.send(nbd.pack_option(nbd.OPT_LIST, magic=nbd.IHAVEOPT + 1))
        client.expect_eof()
    check_usable(open_hello(box, server))


@case
def options_may_arrive_byte_by_byte(box):
    server = serve(box)
    with nbd.Client(server.address()) as client:
        client.greeting()
        go_ = nbd.pack_name_and_infos("disk", [nbd.INFO_BLOCK_SIZE])
        data = (struct.pack(">I", nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES) +
                nbd.pack_option(nbd.OPT_STRUCTURED_REPLY) +
                nbd.pack_option(nbd.OPT_GO, go_))
        for i in range(len(data)):
            client.send(data[i:i + 1])
        eq(client.option_replies(nbd.OPT_STRUCTURED_REPLY)[-1].type,
           nbd.REP_ACK, "reply")
        client.structured = True
        eq(client.option_replies(nbd.OPT_GO)[-1].type, nbd.REP_ACK, "reply")
        request = client.pack(nbd.CMD_READ, 0, 512)
        for i in range(len(request)):
            client.send(request[i:i + 1])
        eq(client.reply().data, bytes(512), "data")


@case
def options_may_arrive_all_at_once(box):
    """With the first requests behind them."""
    client = open_hello(box)
    go_ = nbd.pack_name_and_infos("disk", [])
    client.structured = True
    requests = [client.pack(nbd.CMD_READ, i * 512, 512) for i in range(10)]
    client.send(nbd.pack_option(nbd.OPT_STRUCTURED_REPLY) +
                nbd.pack_option(nbd.OPT_LIST) +
                nbd.pack_option(nbd.OPT_GO, go_) + b"".join(requests))
    for option in nbd.OPT_STRUCTURED_REPLY, nbd.OPT_LIST, nbd.OPT_GO:
        eq(client.option_replies(option)[-1].type, nbd.REP_ACK, "reply")
    for reply in client.collect().values():
        eq(reply.data, bytes(512), "data")


main()
