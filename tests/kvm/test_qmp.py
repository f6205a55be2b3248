"""QMP on small guests: QEMU's own client holds a machine of ours, and hostile ones come to nothing; `pyvmm plug`."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from pyvmm import Machine, MachineConfig, QmpServer
from pyvmm.board import layout
from pyvmm.control.qmp.messages import REQUEST_LIMIT
from pyvmm.control.qmp.table import COMMANDS, NEGOTIATE
from pyvmm.devices.acpi_pm import PM1_CNT, PM1_STS, SLP_EN, SLP_TYP_S3, SLP_TYP_SHIFT
from pyvmm.devices.pci_hotplug import PCI_DOWN_BASE, PCI_EJ_BASE
from pyvmm.errors import UserError
from pyvmm.machine.outcome import End, Outcome
from tests.rig.hotplug_driver import HotplugDriver

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
PATIENCE = 120.0
"""Seconds until an answer; the machine may be busy."""


@contextmanager
def served(tmp_path: Path, guest: str = "keyboard", **config: object) -> Iterator[tuple[Machine, str]]:
    path = str(tmp_path / "qmp")
    with Machine(MachineConfig(guest=guest, **config)) as machine, QmpServer(machine, path):  # type: ignore[arg-type]
        machine.start()
        yield machine, path


def state(machine: Machine) -> str:
    return machine.state


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def talk(path: str, conversation: Callable[[QMPClient], Coroutine[Any, Any, None]]) -> None:
    """With QEMU's client, as it comes."""

    async def main() -> None:
        client = QMPClient("test")
        await client.connect(path)
        try:
            await asyncio.wait_for(conversation(client), PATIENCE)
        finally:
            with suppress(EOFError):  # the server has been the first to say goodbye
                await client.disconnect()

    asyncio.run(main())


async def event(client: QMPClient, name: str) -> dict[str, Any]:
    """The data of the next event, which is *name*."""
    told: Any = await client.events.get()
    assert told["event"] == name
    return dict(told.get("data", {}))


async def ask(client: QMPClient, command: str, **arguments: object) -> Any:
    """What *command* returns. ExecuteError where it is refused."""
    return await client.execute(command, arguments)


class Raw:
    """A client that sends what it likes."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path)
        self._lines = self.socket.makefile("rb")
        assert self.answer()["QMP"]["capabilities"] == []

    def answer(self) -> dict[str, Any]:
        line = self._lines.readline()
        assert line.endswith(b"\r\n")
        return dict(json.loads(line))

    def ask(self, text: str) -> dict[str, Any]:
        self.socket.sendall(text.encode())
        return self.answer()

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


def test_the_life_of_a_machine(tmp_path: Path) -> None:
    """What is asked, what is done and what is told of it, in QEMU's order and words."""

    async def conversation(client: QMPClient) -> None:
        greeting: Any = client.greeting
        version = greeting._asdict()["QMP"]["version"]
        assert version["package"] == "pyvmm" and await ask(client, "query-version") == version
        names = {command["name"] for command in await ask(client, "query-commands")}
        assert names == {*COMMANDS, NEGOTIATE}
        assert await ask(client, "query-status") == {"status": "running", "running": True}
        await ask(client, "stop")
        await event(client, "STOP")
        assert state(machine) == "paused"
        assert await ask(client, "query-status") == {"status": "paused", "running": False}
        await ask(client, "cont")
        await event(client, "RESUME")
        assert state(machine) == "running"
        await ask(client, "system_reset")
        assert await event(client, "RESET") == {"guest": False, "reason": "host-qmp-system-reset"}
        await ask(client, "system_powerdown")
        await event(client, "POWERDOWN")
        machine.call(lambda: machine.board.pio.write(layout.ACPI_PM + PM1_STS, 2, 0xFFFF))
        machine.call(lambda: machine.board.pio.write(layout.ACPI_PM + PM1_CNT, 2, SLP_EN | SLP_TYP_S3 << SLP_TYP_SHIFT))
        await event(client, "SUSPEND")
        await ask(client, "system_powerdown")
        await event(client, "POWERDOWN")
        await event(client, "WAKEUP")
        await event(client, "RESET")  # of a machine whose guest has left no waking vector
        await ask(client, "quit")
        assert await event(client, "SHUTDOWN") == {"guest": False, "reason": "host-qmp-quit"}

    with served(tmp_path) as (machine, path):
        assert stat.S_IMODE((tmp_path / "qmp").stat().st_mode) == 0o600
        talk(path, conversation)
        assert machine.run().end is End.QUIT
    assert not (tmp_path / "qmp").exists()


def test_what_came_of_a_command_is_told_before_its_answer(tmp_path: Path) -> None:
    with served(tmp_path) as (_, path):
        client = Raw(path)
        assert client.ask('{"execute": "qmp_capabilities"}') == {"return": {}}
        for command, name in (("stop", "STOP"), ("cont", "RESUME")) * 3:
            assert client.ask(f'{{"execute": "{command}"}}')["event"] == name
            assert client.answer() == {"return": {}}
        client.close()


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Outcome(End.POWER_OFF), {"guest": True, "reason": "guest-shutdown"}),
        (Outcome(End.SIGNAL, 15), {"guest": False, "reason": "host-signal"}),
        (Outcome(End.QUIT), {"guest": False, "reason": "host-ui"}),
    ],
)
def test_how_it_ended(tmp_path: Path, outcome: Outcome, told: dict[str, object]) -> None:
    async def conversation(client: QMPClient) -> None:
        machine.end(outcome)
        assert await event(client, "SHUTDOWN") == told

    with served(tmp_path) as (machine, path):
        talk(path, conversation)


def test_a_panic(tmp_path: Path) -> None:
    async def conversation(client: QMPClient) -> None:
        machine.end(Outcome(End.PANIC, message="Attempted to kill init!"))
        assert await event(client, "GUEST_PANICKED") == {"action": "poweroff"}
        assert await event(client, "SHUTDOWN") == {"guest": True, "reason": "guest-panic"}

    with served(tmp_path) as (machine, path):
        talk(path, conversation)


def test_what_is_refused(tmp_path: Path) -> None:
    async def conversation(client: QMPClient) -> None:
        for command, arguments, kind in (
            ("migrate", {"uri": "tcp:0:1"}, "CommandNotFound"),
            (NEGOTIATE, {}, "CommandNotFound"),
            ("stop", {"now": True}, "GenericError"),
        ):
            with pytest.raises(ExecuteError) as refused:
                await ask(client, command, **arguments)
            assert refused.value.error_class == kind
        assert await ask(client, "query-status")

    with served(tmp_path) as (_machine, path):
        talk(path, conversation)


def test_negotiation_comes_first_and_ids_come_back(tmp_path: Path) -> None:
    with served(tmp_path) as (_machine, path):
        raw = Raw(path)
        said = raw.ask('{"execute": "query-status", "id": 7}')
        assert (said["id"], said["error"]["class"]) == (7, "CommandNotFound")
        assert "error" in raw.ask('{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}')
        assert "error" in raw.ask('{"execute": "qmp_capabilities", "arguments": {"enable": [], "more": 1}}')
        assert raw.ask('{"execute": "qmp_capabilities", "id": {"a": null}}') == {"return": {}, "id": {"a": None}}
        assert raw.ask('{"execute": "query-status"}')["return"]["running"]
        assert raw.ask('{"execute": 1, "id": "x"}')["id"] == "x"
        raw.close()


def test_hostile_clients(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """One by one, some that go in the middle of a word; the machine runs on, and the next client is served."""
    chosen = random.Random(14)
    words = [f'"{name}"' for name in (*COMMANDS, NEGOTIATE, "execute", "arguments", "id", "\\ud800", "\\u0000")]
    words.remove('"quit"')
    words += ["{", "}", "[", "]", ":", ",", "\n", "1e999", "-1", "null", "\xff", '"']
    with served(tmp_path) as (machine, path):
        assert machine.wait(lambda: "ready" in machine.screen, 60)  # what is typed earlier its driver throws away
        for number in range(60):
            raw = Raw(path)
            raw.socket.setblocking(False)
            if number % 2:
                raw.socket.send(b'{"execute": "qmp_capabilities"}')
            try:
                raw.socket.send("".join(chosen.choices(words, k=chosen.randrange(1, 400))).encode())
            except BlockingIOError:
                pass
            raw.close()
        raw = Raw(path)
        assert "at most" in raw.ask('{"execute": "' + "a" * REQUEST_LIMIT)["error"]["desc"]
        assert raw._lines.readline() == b"", "it is let go"
        raw.close()
        machine.resume("qmp")  # one of them may have stopped it
        talk(path, lambda client: _is_served(client))
        machine.keyboard.type("echo still there\n")
        assert machine.wait(lambda: "still there" in machine.screen, 60)


def test_who_goes_on_talking_is_left_all_the_same(tmp_path: Path) -> None:
    """The server ends while a client sends a space now and then, each sooner than it may be waited for."""
    refused = threading.Event()

    def talk_on(raw: Raw) -> None:
        with suppress(OSError):
            for _ in range(600):
                raw.socket.sendall(b" ")
                time.sleep(0.05)
            return
        refused.set()

    with served(tmp_path) as (_, path):
        raw = Raw(path)
        talker = threading.Thread(target=talk_on, args=(raw,))
        talker.start()
    talker.join()
    raw.close()
    assert refused.is_set(), "the server has waited until the client was done"


def test_what_a_slow_reader_has_asked_for_does_not_keep_it(tmp_path: Path) -> None:
    """The answers fill the socket; what is still to be answered when the server closes is not."""
    asked = REQUEST_LIMIT // 2
    path = str(tmp_path / "qmp")
    with Machine(MachineConfig(guest="keyboard")) as machine:
        server = QmpServer(machine, path)
        raw = Raw(path)
        raw.socket.sendall(b"{}" * asked)
        raw.answer()  # it has begun
        closer = threading.Thread(target=server.close)
        closer.start()
        while not server._closing:
            time.sleep(0)
        answered = 1
        while raw._lines.readline():
            answered += 1
        closer.join()
        raw.close()
    assert answered < asked


async def _is_served(client: QMPClient) -> None:
    assert await ask(client, "query-status") == {"status": "running", "running": True}


def test_who_stops_it_and_goes_leaves_it_stopped_for_the_next(tmp_path: Path) -> None:
    async def stop(client: QMPClient) -> None:
        await ask(client, "stop")

    async def go_on(client: QMPClient) -> None:
        assert (await ask(client, "query-status"))["status"] == "paused"
        await ask(client, "cont")

    with served(tmp_path) as (machine, path):
        talk(path, stop)
        assert state(machine) == "paused"
        talk(path, go_on)
        assert state(machine) == "running"


def test_the_command_line(tmp_path: Path) -> None:
    """pyvmm run --qmp PATH, and its end by `quit`."""
    path = tmp_path / "qmp"
    command = [sys.executable, "-m", "pyvmm", "run", "keyboard", "--qmp", str(path), "--send-after", "nothing:x"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:

        async def quit(client: QMPClient) -> None:
            await ask(client, "quit")

        while not listens(path):
            assert process.poll() is None, process.stderr and process.stderr.read()
        talk(str(path), quit)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 7 and said == "pyvmm: quit: by QMP\n"
    (tmp_path / "file").touch()
    command[6] = str(tmp_path / "file")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("pyvmm: --qmp: socket ") and done.stderr.count("\n") == 1


def test_a_socket_that_cannot_be(tmp_path: Path) -> None:
    with (
        Machine(MachineConfig(guest="keyboard")) as machine,
        pytest.raises(UserError, match=r"--qmp: .*No such file or directory"),
    ):
        QmpServer(machine, str(tmp_path / "none" / "qmp"))


def test_devices_come_and_go(tmp_path: Path) -> None:
    """With the keys of --device, whatever JSON makes of their values; what is wrong is refused in one line."""

    async def conversation(client: QMPClient) -> None:
        (tmp_path / "disk").write_bytes(bytes(1 << 16))
        disk = {"path": str(tmp_path / "disk"), "readonly": True, "queues": 1}
        await ask(client, "device_add", driver="virtio-blk", id="d1", port=0, **disk)
        assert "d1" in machine.parts
        for command, arguments, kind, why in (
            ("device_add", {"id": "x"}, "GenericError", "Parameter 'driver' is missing"),
            ("device_add", {"driver": "virtio-blk", "path": ["a"]}, "GenericError", "'path', expected: string"),
            ("device_add", {"driver": "virtio-blk", "path": "a\0b"}, "GenericError", "has a NUL"),
            ("device_add", {"driver": "virtio-rng", "id": "d1"}, "GenericError", "there is a device d1 already"),
            ("device_add", {"driver": "virtio-rng", "a b": 1}, "GenericError", "is no KEY=VALUE"),
            ("device_add", {"driver": "virtio-rang"}, "GenericError", "did you mean virtio-rng?"),
            ("device_del", {"id": "d2"}, "DeviceNotFound", "Device 'd2' not found"),
            ("device_del", {"id": "d1"}, "GenericError", "has no driver for the slot of a PCI Express port"),
            ("device_del", {"id": "d1", "force": 1}, "GenericError", "'force', expected: boolean"),
        ):
            with pytest.raises(ExecuteError) as refused:
                await ask(client, command, **arguments)
            assert refused.value.error_class == kind
            assert why in str(refused.value) and "\n" not in str(refused.value)
        await ask(client, "device_del", id="d1", force=True)
        assert await event(client, "DEVICE_DELETED") == {"device": "d1", "path": "/machine/peripheral/d1"}
        assert "d1" not in machine.parts

    with served(tmp_path, root_ports=1) as (machine, path):
        talk(path, conversation)


def test_plug_and_unplug_from_another_terminal(tmp_path: Path) -> None:
    """A file of the user's own is looked for where he is."""

    def pyvmm(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pyvmm", *words], cwd=EXAMPLES, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.stdout == ""
        return done.returncode, done.stderr

    with served(tmp_path, root_ports=1, devices=("virtio-rng,id=r1",)) as (machine, path):
        assert pyvmm("plug", path, "edu.py:Edu,id=e1,port=0,dma_ms=1") == (0, "")
        assert type(machine.parts["e1"]).__name__ == "Edu"
        assert pyvmm("plug", path, "virtio-rng,id=e1") == (
            2, "pyvmm: virtio-rng,id=e1: there is a device e1 already: give it another id\n"
        )  # fmt: skip
        assert pyvmm("plug", path, "virtio-net,to=foo") == (
            2, "pyvmm: virtio-net,to=foo: there is no such network: there are: user, tap, socket:PATH\n"
        )  # fmt: skip
        assert pyvmm("plug", path, "virtio-rng,id=") == (2, "pyvmm: virtio-rng,id=: id= is a name of your own\n")
        assert pyvmm("unplug", path, "e2") == (2, "pyvmm: Device 'e2' not found: there are: e1, r1, root-port\n")
        assert pyvmm("unplug", path, "e1", "--force") == (0, "")
        assert "e1" not in machine.parts
        driver = HotplugDriver(machine)
        driver.turn_acpi_on()
        command = [sys.executable, "-m", "pyvmm", "unplug", path, "r1"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
            assert waiting.stderr is not None
            assert waiting.stderr.readline().startswith("pyvmm: waiting for the guest to let go of r1")
            assert driver.read(PCI_DOWN_BASE) == 1 << 1 and "r1" in machine.parts
            driver.write(PCI_EJ_BASE, 1 << 1)
            assert waiting.wait(PATIENCE) == 0 and waiting.stderr.read() == ""
        assert "r1" not in machine.parts
    status, said = pyvmm("plug", path, "virtio-rng")
    assert status == 2 and said.startswith(f"pyvmm: socket {path}: No such file or directory: is there a machine")
