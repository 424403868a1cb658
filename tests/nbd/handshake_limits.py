#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
The limits of the handshake: data of options, their number, time.

A limit may show as an error reply or as the end of the connection, but never
as memory, a hang, or harm to another client.
"""

import contextlib
import struct
import time

import nbdclient as nbd
from nbdtest import (KIB, MIB, case, eq, is_instrumented, main, seconds,
                     short_handshake)


def serve(box, *options):
    return box.server(f"disk={box.image()}", options=options)


def check_served(server):
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        eq(client.read(0, 4096), bytes(4096), "data")
        client.disconnect()


def open_hello(box, server):
    return box.closing(nbd.Client(server.address()).hello())


def send_quietly(client, data):
    """Sends to a server that may have closed the connection."""
    with contextlib.suppress(OSError):
        client.send(data)


@case
def oversized_option_data(box):
    """
    It is skipped, and the reply is that of an option whose data is too much,
    may not be there, or means nothing.
    """
    server = serve(box, "--handshake-timeout", 600)
    for option, expected in ((nbd.OPT_GO, nbd.REP_ERR_TOO_BIG),
                             (nbd.OPT_SET_META_CONTEXT, nbd.REP_ERR_TOO_BIG),
                             (nbd.OPT_LIST, nbd.REP_ERR_INVALID),
                             (nbd.OPT_STRUCTURED_REPLY, nbd.REP_ERR_INVALID),
                             (999, nbd.REP_ERR_UNSUP)):
        client = open_hello(box, server)
        eq(client.option_status(option, bytes(MIB)), expected,
           f"reply to option {option}")
        eq(client.go("disk"), nbd.REP_ACK, "reply to GO")
    client = open_hello(box, server)
    eq(client.option_status(nbd.OPT_ABORT, bytes(MIB)), nbd.REP_ACK,
       "reply to ABORT")
    client.expect_eof()
    check_served(server)


@case
def option_data_where_there_is_no_memory_for_a_large_buffer(box):
    """As with a WRITE's payload (requests.py), the small one has to do."""
    server = serve(box)
    client = open_hello(box, server)
    with server.without_mappings():
        for _ in range(4):
            eq(client.option_status(999, bytes(16 * KIB)), nbd.REP_ERR_UNSUP,
               "reply")
    eq(client.go("disk"), nbd.REP_ACK, "reply to GO")
    check_served(server)


@case
def option_data_of_which_nothing_comes(box):
    """Lengths of up to 4 GiB are announced; no memory may be set aside."""
    server = serve(box)
    for length in 64 * KIB, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1:
        for _ in range(50):
            send_quietly(open_hello(box, server),
                         nbd.pack_option(nbd.OPT_GO, length=length))
    check_served(server)
    check_rss(server, 64 * MIB)


def check_rss(server, most):
    if not is_instrumented():
        peak = server.peak_rss()
        assert peak < most, f"{peak // KIB} KiB of memory in use"


@case
def export_name_that_is_too_long(box):
    server = serve(box, "--handshake-timeout", 600)
    for length in 4097, 64 * KIB, 2 ** 32 - 1:
        client = open_hello(box, server)
        send_quietly(client, nbd.pack_option(nbd.OPT_EXPORT_NAME, b"x" * 4097,
                                             length=length))
        client.half_close()
        client.expect_eof()
    check_served(server)


@case
def names_of_the_greatest_length(box):
    """4096 bytes are legal."""
    server = serve(box)
    client = open_hello(box, server)
    eq(client.go("x" * nbd.MAX_STRING), nbd.REP_ERR_UNKNOWN, "reply to GO")
    client.use_structured()
    status, _ = client.meta_context(nbd.OPT_SET_META_CONTEXT,
                                    "x" * nbd.MAX_STRING, ["base:allocation"])
    eq(status, nbd.REP_ERR_UNKNOWN, "reply to SET_META_CONTEXT")
    status, contexts = client.meta_context(
        nbd.OPT_SET_META_CONTEXT, "disk", ["x:" + "y" * (nbd.MAX_STRING - 2)])
    eq((status, contexts), (nbd.REP_ACK, []), "reply to SET_META_CONTEXT")
    eq(client.go("disk"), nbd.REP_ACK, "reply to GO")


@case
def zero_length_names_without_a_default_export(box):
    """With two exports none is the default, unless the server is told so."""
    server = box.server(f"disk={box.image()}", "scratch=memory:1M")
    client = open_hello(box, server)
    eq(client.go(""), nbd.REP_ERR_UNKNOWN, "reply to GO")
    eq(client.info(nbd.OPT_INFO, ""), nbd.REP_ERR_UNKNOWN, "reply to INFO")
    client.use_structured()
    status, _ = client.meta_context(nbd.OPT_LIST_META_CONTEXT, "", [])
    eq(status, nbd.REP_ERR_UNKNOWN, "reply to LIST_META_CONTEXT")
    client.send(nbd.pack_option(nbd.OPT_EXPORT_NAME, b""))
    client.expect_eof()


@case
def a_reasonable_number_of_options(box):
    server = serve(box)
    client = open_hello(box, server)
    for _ in range(20):
        eq(client.option_status(999), nbd.REP_ERR_UNSUP, "reply")
    eq(client.go("disk"), nbd.REP_ACK, "reply to GO")


@case
def too_many_options(box):
    """A client that haggles for ever is dropped, however polite it is."""
    server = serve(box, "--handshake-timeout", 600)
    client = open_hello(box, server)
    option = nbd.pack_option(nbd.OPT_LIST)
    for _ in range(100000):
        try:
            client.send(option)
            client.option_replies(nbd.OPT_LIST)
        except (nbd.Eof, OSError):
            break
    else:
        raise AssertionError("100,000 options were answered")
    check_served(server)


@case
def option_flood_that_reads_no_reply(box):
    server = serve(box)
    flood = nbd.pack_option(nbd.OPT_LIST) * 1000
    clients = [open_hello(box, server) for _ in range(8)]
    for client in clients:
        client.sock.settimeout(0.2)
        with contextlib.suppress(OSError):
            for _ in range(1000):
                client.sock.send(flood)
    check_served(server)
    check_rss(server, 64 * MIB)


@case
def a_client_that_says_nothing_is_dropped(box):
    server = serve(box, "--handshake-timeout", short_handshake())
    silent = box.closing(nbd.Client(server.address()))
    after_flags = open_hello(box, server)
    in_option = open_hello(box, server)
    in_option.send(nbd.pack_option(nbd.OPT_GO)[:9])
    in_data = open_hello(box, server)
    in_data.send(nbd.pack_option(nbd.OPT_GO, b"\0\0\0\4di", length=10))
    check_served(server)
    silent.greeting()
    for client in silent, after_flags, in_option, in_data:
        client.expect_eof()
    check_served(server)


@case
def a_client_that_dribbles_is_dropped(box):
    """The time is for the handshake as a whole; each byte buys no more."""
    server = serve(box, "--handshake-timeout", short_handshake())
    client = open_hello(box, server)
    end = time.monotonic() + seconds(30)
    # Complete options and pieces of one.
    message = nbd.pack_option(nbd.OPT_LIST) + nbd.pack_option(999, bytes(4096))
    with contextlib.suppress(OSError, nbd.Eof):
        for byte in message * 100:
            assert time.monotonic() < end, "the client is still served"
            client.send(bytes([byte]))
            client.sock.settimeout(0.02)
            with contextlib.suppress(TimeoutError):
                client.fill()
    check_served(server)


@case
def a_client_in_transmission_may_be_silent(box):
    """The limit is one of the handshake only."""
    server = serve(box, "--handshake-timeout", short_handshake())
    client = nbd.Client(server.address()).ready("disk")
    box.closing(client)
    # That the limit has passed shows in the silent client's end.
    silent = box.closing(nbd.Client(server.address()))
    silent.greeting()
    silent.expect_eof()
    eq(client.read(0, 512), bytes(512), "data")


@case
def silent_clients_do_not_outlive_the_server(box):
    server = serve(box, "--handshake-timeout", 600)
    for _ in range(10):
        box.closing(nbd.Client(server.address())).greeting()
    server.stop()


@case
def half_closed_in_the_middle_of_the_handshake(box):
    """Whole options are answered; a piece of one is not waited for."""
    server = serve(box, "--handshake-timeout", 600)
    client = open_hello(box, server)
    client.send(nbd.pack_option(nbd.OPT_LIST) + b"IHAVE")
    client.half_close()
    client.option_replies(nbd.OPT_LIST)
    client.expect_eof()
    header = struct.pack(">QI", nbd.IHAVEOPT, nbd.OPT_GO)
    client = open_hello(box, server)
    client.send(header)
    client.half_close()
    client.expect_eof()


main()
