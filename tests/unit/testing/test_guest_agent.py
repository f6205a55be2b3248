"""A test's hands on a guest with an agent: the program itself, behind a console's port that is a pseudo-terminal."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.agent import PORT, AgentError
from pyvmm.boot.initramfs import AGENT
from pyvmm.testing import guest_agent
from pyvmm.testing.guest_agent import GuestAgent, find_tap
from pyvmm.testing.shell import Ran
from pyvmm.testing.vm import GuestVm
from pyvmm.virtio.console_ports import PortTap
from tests.rig.devices import made

DATA = os.urandom(300_000)


class Wire:
    """What a PortTap is to who writes to it and listens, with an agent at the other end."""

    guest_open = True

    def __init__(self) -> None:
        self._wire, self._port = os.openpty()
        tty.setraw(self._port)
        self.agent = subprocess.Popen([AGENT, os.ttyname(self._port)], stdin=subprocess.DEVNULL)
        self._listeners: list[Callable[[bytes], None]] = []
        self._waiting = bytearray()
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wire, False)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def add(self, callback: Callable[[bytes], None]) -> Any:
        self._listeners.append(callback)
        return SimpleNamespace(remove=lambda: self._listeners.remove(callback))

    def write(self, data: bytes) -> None:
        self._waiting += data
        os.write(self._wake, b"w")

    def _serve(self) -> None:
        while True:
            writing = [self._wire] if self._waiting else []
            readable, writable, _ = select.select([self._wire, self._woken], writing, [])
            if self._woken in readable and os.read(self._woken, 1) == b"e":
                return
            if self._wire in readable:
                data = os.read(self._wire, 1 << 16)
                for listener in list(self._listeners):
                    listener(data)
            if writable:
                del self._waiting[: os.write(self._wire, self._waiting[: 1 << 16])]

    def close(self) -> None:
        os.write(self._wake, b"e")
        self._thread.join()
        self.agent.kill()
        self.agent.wait()
        for fd in (self._wire, self._port, self._woken, self._wake):
            os.close(fd)


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


def machine() -> Any:
    return SimpleNamespace(outcome=None, vcpus=[SimpleNamespace(exits=0)])


@pytest.fixture
def agent(wire: Wire) -> GuestAgent:
    return GuestAgent(machine(), wire)  # type: ignore[arg-type]


def test_commands_and_files(agent: GuestAgent, tmp_path: Path) -> None:
    assert agent.run(["sh", "-c", "cat; echo err >&2; exit 3"], DATA) == (3, DATA, b"err\n")
    path = tmp_path / "file with 'quotes' and $"
    agent.put(DATA, str(path), 0o751)
    assert path.read_bytes() == DATA and path.stat().st_mode & 0o777 == 0o751
    assert agent.get(str(path)) == DATA
    agent.put(path, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == DATA
    with pytest.raises(AgentError, match=r"/no/such/file: .*No such file"):
        agent.get("/no/such/file")
    with pytest.raises(AgentError, match="/no/such/file: "):
        agent.put(b"", "/no/such/file")


def test_a_guest_that_ends(agent: GuestAgent) -> None:
    threading.Timer(0.2, lambda: setattr(agent._machine, "outcome", "power-off")).start()
    with pytest.raises(AgentError, match="the guest ended before its command did: power-off"):
        agent.run(["sleep", "1000"])


def test_nothing_comes(agent: GuestAgent, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_agent, "LOOK_S", 0.01)
    with pytest.raises(AgentError, match=r"its command did not end within 0\.05 s of the guest's own time"):
        agent.run(["sleep", "1000"], timeout=0.05)
    assert agent.run(["echo", "next"]).stdout == b"next\n"  # which ends the one before
    wire.agent.kill()
    with pytest.raises(AgentError, match="its agent did not answer"):
        agent.run(["true"], timeout=0.05)


class Vm(GuestVm):
    def __init__(self, wire: Wire | None) -> None:
        self.machine = machine()
        self._wire = wire
        serial: Any = SimpleNamespace(run=lambda command, timeout: Ran(f"serial: {command}", 5))
        self.serial = serial

    @property
    def agent_port(self) -> PortTap | None:
        return self._wire  # type: ignore[return-value]


def test_run_goes_by_the_agent_where_there_is_one(wire: Wire) -> None:
    ran = Vm(wire).run("echo out; sleep 0.1; echo err >&2; exit 4")
    assert (ran, ran.stdout, ran.stderr) == (("out\nerr\n", 4), b"out\n", b"err\n")
    ran = Vm(None).run("true")
    assert (ran, ran.stdout, ran.stderr) == (("serial: true", 5), None, None)
    wire.guest_open = False
    assert Vm(wire).run("true").status == 5
    with pytest.raises(AgentError, match="this guest has no agent"):
        Vm(wire).get("/etc/passwd")


def test_which_port_it_is() -> None:
    console, other = made(f"virtio-console,port.{PORT}").device, made("virtio-console,port.other").device
    assert find_tap({"a": other, "b": object(), "c": console}) is console[PORT]
    assert find_tap({"a": other}) is None
