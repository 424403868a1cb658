#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
scripts/serve, which `make serve` runs: it creates the image, says where it is
served and what to try, and ends by a signal; what it cannot serve it names.
"""

import os
import signal
import socket
import subprocess

import nbdclient as nbd
from nbdtest import (MIB, Skip, allocated, case, eq, main, pattern, run,
                     seconds, wait_until)


def script():
    source = os.environ.get("COAIO_SOURCE_DIR")
    if not source:
        raise Skip("COAIO_SOURCE_DIR is not set")
    return os.path.join(source, "scripts", "serve")


class Serve:
    def __init__(self, box, image, name="serve.sock"):
        self.socket = box.path(name)
        self.said = open(box.path(name + ".out"), "w+b")
        self.process = subprocess.Popen(
            [script(), image], cwd=box.dir, stdout=self.said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "SOCKET": self.socket, "TCP": ""})
        box.stack.callback(self.destroy)

    def destroy(self):
        if self.process.poll() is None:
            self.stop()
        self.said.close()

    def text(self):
        self.said.seek(0)
        return self.said.read().decode()

    def started(self):
        wait_until(lambda: "Ctrl-C" in self.text() or
                   self.process.poll() is not None, "what to try")
        assert "Ctrl-C" in self.text(), self.text()
        return self

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds(30))


def check_refused(box, image, culprit, name="serve.sock"):
    serve = Serve(box, image, name)
    eq(serve.process.wait(seconds(30)), 1, "exit status")
    lines = serve.text().splitlines()
    eq(len(lines), 1, f"lines of {lines}")
    assert lines[0].startswith("serve: ") and culprit in lines[0], lines


@case
def an_image_is_created_served_and_kept(box):
    image = box.path("a disk.img")
    serve = Serve(box, "a disk.img").started()
    eq(os.stat(image).st_size, 1024 * MIB, "size of the image")
    assert allocated(image) < MIB, "it is not sparse"
    uri = f"nbd+unix:///disk?socket={serve.socket}"
    for line in uri, f"nbdinfo '{uri}'", f"nbdcopy --progress '{uri}'":
        assert line in serve.text(), serve.text()
    with nbd.Client(serve.socket) as client:
        client.ready("disk")
        eq(client.write(0, pattern(4096)), nbd.OK, "WRITE")
        client.disconnect()
    eq(serve.stop(), 0, "exit status")
    assert not os.path.exists(serve.socket), "the socket is left"
    serve = Serve(box, image).started()
    assert "Created" not in serve.text(), serve.text()
    with nbd.Client(serve.socket) as client:
        client.ready()
        eq(client.read(0, 4096), pattern(4096), "data")
        client.disconnect()
    eq(serve.stop(), 0, "exit status")


@case
def the_line_to_try_works(box):
    serve = Serve(box, "disk.img").started()
    line = next(line for line in serve.text().splitlines()
                if "nbdinfo" in line)
    out = run("sh", "-c", line)
    assert "1073741824" in out, out
    eq(serve.stop(), 0, "exit status")


@case
def what_cannot_be_served_is_named(box):
    check_refused(box, "", "name an image")
    check_refused(box, box.dir, "is a directory")
    with open(box.path("file.sock"), "w") as file:
        file.write("precious")
    check_refused(box, "disk.img", "file.sock", "file.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(box.path("live.sock"))
        other.listen()
        check_refused(box, "disk.img", "live.sock", "live.sock")
    assert not os.path.exists(box.path("disk.img")), "an image was created"


main()
