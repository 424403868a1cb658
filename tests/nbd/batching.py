#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Few system calls: one receive takes in as many requests as have arrived, and
replies that are ready leave in one send.  Buffers come from a cache.

Calls are counted by the recorder, pages by the kernel; nothing is timed.
"""

import collections
import os
import time

import nbdclient as nbd
import recorder
from nbdtest import (KIB, MIB, Skip, avoided, case, eq, is_instrumented, main,
                     note, pattern)

COUNT = 64


def counted(box, *exports, talk, env=None):
    """Runs talk(client) with a recorded server; returns the conversation."""
    shim = box.shim(record=True)
    server = box.server(*exports, shim=shim, options=["--threads", 1], env=env)
    with nbd.Client(server.address()) as client:
        client.ready("disk")
        talk(client)
        client.disconnect()
    server.stop()
    recording = recorder.Recording.load(shim.log_path)
    conversation, = [c for c in recording.conversations() if c.requests]
    return conversation


def transfers(calls, conversation):
    """The calls that moved bytes, from the first request on."""
    start = min(r.received for r in conversation.requests)
    return [c for c in calls if c.succeeded() and c.result > 0
            and c.end >= start]


def check_batched(conversation, rounds_, receives, sends):
    """At most that many calls in each of the rounds, on average.  Replies
    leave in two sends, the first half of them before the others are made."""
    received = len(transfers(conversation.receives, conversation))
    sent = len(transfers(conversation.sends, conversation))
    note(f"{rounds_} rounds of {COUNT}: {received} receives, {sent} sends")
    assert received <= receives * rounds_ + 2, f"{received} receives"
    assert sent <= sends * rounds_ + 2, f"{sent} sends"


def rounds_of(command, length, data=b"", count=COUNT):
    def talk(client):
        for _ in range(10):
            client.send(b"".join(
                client.pack(command, i * length, length, data=data)
                for i in range(count)))
            client.collect()
    return talk


def replies_by_send(conversation, length):
    """How many replies to READs of that length began in each send."""
    requests = [r for r in conversation.requests
                if r.command == nbd.CMD_READ and r.length == length]
    begins = collections.Counter(r.answered for r in requests)
    return [begins[place] for place in sorted(begins)]


@case
def small_reads_from_memory(box):
    conversation = counted(box, "disk=memory:16M",
                           talk=rounds_of(nbd.CMD_READ, 512))
    check_batched(conversation, 10, receives=1.5, sends=2)


@case
def small_writes_to_memory(box):
    conversation = counted(box, "disk=memory:16M",
                           talk=rounds_of(nbd.CMD_WRITE, 512, bytes(512)))
    check_batched(conversation, 10, receives=8, sends=8)


@case
def flushes_of_memory(box):
    conversation = counted(box, "disk=memory:16M",
                           talk=rounds_of(nbd.CMD_FLUSH, 0))
    check_batched(conversation, 10, receives=1.5, sends=2)


@case
def small_reads_from_a_file_in_memory(box):
    """Those are answered on the loop's own thread."""
    image = box.image(size=16 * MIB, data=pattern(MIB), at=box.memory_dir())
    conversation = counted(box, f"disk={image}",
                           talk=rounds_of(nbd.CMD_READ, 512))
    check_batched(conversation, 10, receives=1.5, sends=2)


@case
def small_reads_from_the_page_cache(box):
    """They may pass through workers and come back one by one, but no reply
    costs a send of its own when many are due."""
    image = box.image(size=16 * MIB, data=pattern(MIB))
    conversation = counted(box, f"disk={image}",
                           talk=rounds_of(nbd.CMD_READ, 512))
    check_batched(conversation, 10, receives=1.5, sends=COUNT / 2)


@case
def reads_of_a_pass_leave_in_halves(box):
    """The ring makes all reads that a pass has begun at its end.  All replies
    left in one send, and the client slept meanwhile."""
    image = box.image(size=16 * MIB, data=pattern(MIB))
    conversation = counted(
        box, f"disk={image}", talk=rounds_of(nbd.CMD_READ, 512),
        env={"COAIO_URING_WITH": "reads",
             "COAIO_URING_WITHOUT": f"sockets,{avoided()}"})
    check_batched(conversation, 10, receives=1.5, sends=COUNT / 2)
    sent = len(transfers(conversation.sends, conversation))
    assert sent >= 16, f"{sent} sends"


@case
def of_an_odd_number_the_larger_half_leaves_first(box):
    """The smaller one left, then as many, then the last reply alone."""
    conversation = counted(box, "disk=memory:16M",
                           talk=rounds_of(nbd.CMD_READ, 512, count=9))
    eq(replies_by_send(conversation, 512), [9] + 9 * [5, 4],
       "replies in each send")


def need_reads_at_once(image):
    """Else workers make them, and replies become ready one by one."""
    with open(image, "rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(512)], 0, os.RWF_NOWAIT)
        except OSError as error:
            raise Skip(f"a read that does not wait: {error}") from None


@case
def no_half_of_a_few_reads_is_begun(box):
    """The receiver gave way after eight of twelve; the ring, which takes
    reads that are many, left the others to one system call each, and they had
    a send of their own."""
    image = box.image(size=16 * MIB, data=pattern(MIB))
    need_reads_at_once(image)
    conversation = counted(
        box, f"disk={image}", talk=rounds_of(nbd.CMD_READ, 512, count=12),
        env={"COAIO_URING_WITH": "reads",
             "COAIO_URING_WITHOUT": f"sockets,{avoided()}"})
    check_batched(conversation, 10, receives=1.5, sends=2)


@case
def what_left_while_the_client_read_is_no_part_of_the_next_half(box):
    """The sender waited for the client, and the replies that were queued
    meanwhile were still counted when it had sent them: the next reply left
    alone."""
    def talk(client):
        rounds_of(nbd.CMD_READ, 512)(client)
        client.send(b"".join(client.pack(nbd.CMD_READ, i * KIB, 64 * KIB)
                             for i in range(COUNT)))
        time.sleep(0.2)   # let the socket fill, and the sender wait
        client.collect()
        rounds_of(nbd.CMD_READ, KIB)(client)
    conversation = counted(box, "disk=memory:16M", talk=talk)
    eq(replies_by_send(conversation, KIB), 10 * [COUNT // 2] * 2,
       "replies in each send")


@case
def buffers_are_not_mapped_anew_for_each_request(box):
    """A fresh mapping costs a page fault for each page of it."""
    if is_instrumented():
        raise Skip("an instrumented server faults for reasons of its own")
    server = box.server("disk=memory:16M", options=["--threads", 1])
    for length in 128 * KIB, MIB:
        pages = length // 4096
        with nbd.Client(server.address()) as client:
            client.ready("disk")
            for i in range(8):
                eq(client.write(i * MIB, pattern(length)), nbd.OK, "WRITE")
                client.read(i * MIB, length)
            before = server.minor_faults()
            data = pattern(length)
            for i in range(200):
                client.read(i % 8 * MIB, length)
                eq(client.write(i % 8 * MIB, data), nbd.OK, "WRITE")
            faults = (server.minor_faults() - before) / 400
            note(f"{faults:.2f} faults for each request of {pages} pages")
            assert faults < pages / 8, f"{faults} faults a request"


main()
