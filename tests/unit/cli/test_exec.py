"""`pyvmm exec`: a process of its own, and an agent behind a socket."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import select
import socket
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.boot.initramfs import AGENT
from pyvmm.cli.arguments import main

DATA = random.Random(7).randbytes(300_000)


class Machine:
    """What listens at *path* has an agent behind it; one program at a time."""

    def __init__(self, path: Path) -> None:
        self.wire, self._port = os.openpty()
        tty.setraw(self._port)
        self.agent = subprocess.Popen([AGENT, os.ttyname(self._port)], stdin=subprocess.DEVNULL)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.client: socket.socket | None = None

    def _serve(self) -> None:
        while True:
            try:
                self.client, _ = self._listener.accept()
            except OSError:
                return
            with self.client:
                self._join(self.client)

    def _join(self, client: socket.socket) -> None:
        to_agent = bytearray()
        os.set_blocking(self.wire, False)
        while True:
            wanted = [self.wire] + ([] if len(to_agent) > 1 << 16 else [client])
            readable, writable, _ = select.select(wanted, [self.wire] if to_agent else [], [])
            try:
                if self.wire in readable:
                    client.sendall(os.read(self.wire, 1 << 16))
                if client in readable:
                    data = client.recv(1 << 16)
                    if not data:
                        return
                    to_agent += data
            except OSError:
                return
            if writable:
                del to_agent[: os.write(self.wire, to_agent)]

    def close(self) -> None:
        self.agent.kill()
        self.agent.wait()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        os.close(self.wire)
        os.close(self._port)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("exec") / "agent"
    machine = Machine(path)
    yield path
    machine.close()


def run(path: Path, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "pyvmm", "exec", str(path), "--", *words]
    return subprocess.run(command, input=stdin, capture_output=True)


def waiting(fd: int) -> int:
    """Bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_status_and_streams(path: Path) -> None:
    ran = run(path, "sh", "-c", "cat; echo err >&2; exit 42", stdin=b"in\0put")
    assert (ran.returncode, ran.stdout, ran.stderr) == (42, b"in\0put", b"err\n")
    ran = run(path, "md5sum", stdin=DATA)
    assert ran.stdout.split()[0].decode() == hashlib.md5(DATA).hexdigest()


def test_a_reader_that_has_gone(path: Path) -> None:
    line = f"{sys.executable} -m pyvmm exec {path} -- yes; echo $? >&2"
    ran = subprocess.run(["sh", "-c", f"({line}) | head -n 1"], capture_output=True, stdin=subprocess.DEVNULL)
    assert ran.stdout == b"y\n" and ran.stderr == b"141\n"
    assert run(path, "true").returncode == 0  # and what it ran has ended


def test_a_slow_reader_of_an_output_that_does_not_block(path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    command = [sys.executable, "-m", "pyvmm", "exec", str(path), "--", "head", "-c", "300000", "/dev/zero"]
    with subprocess.Popen(command, stdout=writing, stdin=subprocess.DEVNULL) as process:
        os.close(writing)
        while waiting(reading) < 1 << 16:
            select.select([], [], [], 0.01)
        with os.fdopen(reading, "rb") as output:
            assert len(output.read()) == 300_000
        assert process.wait() == 0


def test_no_more_can_wait_for_their_turn_than_the_socket_lets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(str(tmp_path / "busy"))
        listener.listen(0)
        other.connect(str(tmp_path / "busy"))
        assert main(["exec", "--wait", "0.01", str(tmp_path / "busy"), "--", "true"]) == 2
    assert capfd.readouterr().err == f"pyvmm: exec: {tmp_path}/busy: others wait there already, each for its turn\n"


def test_an_interrupt_ends_the_command(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pyvmm", "exec", str(path), "--", "sh", "-c", "echo $$; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(2)
        assert process.wait() == 130
    assert run(path, "kill", "-0", str(pid)).returncode != 0


def test_a_machine_that_ends(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "ends"))
    listener.listen()
    thread = threading.Thread(target=lambda: listener.accept()[0].close())
    thread.start()
    assert main(["exec", str(tmp_path / "ends"), "--", "true"]) == 3
    thread.join()
    listener.close()
    assert capfd.readouterr().err.startswith("pyvmm: exec: the machine has ended")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["{}/none", "--", "true"],
            "exec: {}/none does not exist: start the machine with --device virtio-console,port.",
        ),
        (["{}/none", "--"], "exec: name the command behind --"),
        (["{}/none"], "exec: name the command behind --"),
        (["{}/left", "--", "true"], "exec: {}/left: no machine listens there"),
        (["{}/x", "--", "x" * 200_000], "exec: a command of more than 131072 bytes"),
        (["--wait", "0.01", "{}/deaf", "--", "true"], "exec: {}/deaf: no agent answers: does the guest run it"),
    ],
)
def test_mistakes(words: list[str], line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as left, socket.socket(socket.AF_UNIX) as deaf:
        left.bind(str(tmp_path / "left"))
        left.close()
        deaf.bind(str(tmp_path / "deaf"))
        deaf.listen()
        assert main(["exec", *(word.replace("{}", str(tmp_path)) for word in words)]) == 2
    told = capfd.readouterr().err
    assert told.startswith("pyvmm: " + line.replace("{}", str(tmp_path))) and told.count("\n") == 1
