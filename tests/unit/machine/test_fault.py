"""Who is named when a device returns what it may not, raises, or does not come back."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pyvmm.bus import Bus
from pyvmm.devices.post_port import PostPort
from pyvmm.loop import Loop
from pyvmm.machine import fault
from pyvmm.memory import GuestMemory
from pyvmm.pci.device import PciDevice
from pyvmm.pci.root_port import RootPort
from pyvmm.testing.pci import Board
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.pci import DEVICE, NOTIFY, VirtioPci
from pyvmm.virtio.queue import VirtQueue
from pyvmm.virtio.rng import VirtioRng

MEMORY, PORTS = 0xC0000000, 0xC000
Act = Callable[[], Any]
NOT_INTS: list[object] = [None, "x", b"x", 1.5, [], object(), (1,)]


class Edu(PciDevice):
    """Does what it is told on each access."""

    vendor_id, device_id, class_code = 0x1234, 0x11E8, 0x00FF00

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.act = act
        self.add_io_bar(1, 16, self)
        self.add_memory_bar(0, 0x1000, self)
        self.part = Part(act)
        self.add_memory_bar(2, 0x1000, self.part)

    def read(self, offset: int, size: int) -> int:
        return self.act()  # type: ignore[no-any-return]

    def write(self, offset: int, size: int, value: int) -> None:
        self.act()


class Part:
    """Answers a BAR for another."""

    def __init__(self, act: Act) -> None:
        self.read: Callable[[int, int], int] = lambda offset, size: act()
        self.act = act

    def write(self, offset: int, size: int, value: int) -> None:
        self.act()


class Config(PciDevice):
    vendor_id, device_id = 0x1234, 0x0001

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.act = act

    def config_read(self, offset: int, size: int) -> int:
        return self.act() if offset == 0x40 else super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        if offset == 0x40:
            self.act()


class Four(VirtioDevice):
    device_id = 4
    queue_sizes = (8,)

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.act = act

    def handle_queue(self, queue: VirtQueue) -> None:
        self.act()

    def config_read(self, offset: int, size: int) -> int:
        return self.act()  # type: ignore[no-any-return]


def bang() -> None:
    raise ValueError("bang\nand \x1b[31mred")


def plugged(device: PciDevice) -> Board:
    """*device* at 00:03.0, its BARs at MEMORY, 64 KiB apart, and PORTS."""
    board = Board()
    board.host.root.add(device, 3)
    for bar in device.bars.values():
        device.config_write(bar.offset, 4, PORTS if bar.io else MEMORY + (bar.index << 16))
    device.config_write(4, 2, 7)
    return board


def blame(board: Board, access: Act) -> tuple[fault.Fault, str]:
    """What is found when *access* fails, and its line with the numbers of the lines taken out."""
    with pytest.raises(BaseException) as caught:
        access()
    found = fault.find(fault.stack_of(caught.value), board.host)
    assert found is not None
    line = fault.raised(found, caught.value)
    assert re.search(r" \(test_fault\.py:\d+\)", line) or not found.is_users
    return found, re.sub(r" \(test_fault\.py:\d+\)", "", line)


@pytest.mark.parametrize("answer", NOT_INTS, ids=lambda answer: type(answer).__name__)
def test_a_read_that_returns_no_int(answer: object) -> None:
    board = plugged(Edu(lambda: answer))
    found, line = blame(board, lambda: board.memory_bus.read(MEMORY + 8, 4))
    assert line == f"device test_fault.py:Edu at 00:03.0: read of 4 bytes at BAR 0+0x8 returned {answer!r}"
    assert found.is_users
    assert found.place == f"test_fault.py:{Edu.read.__code__.co_firstlineno}"
    assert found.rip is None, "there is no vCPU here"
    assert fault.its_traceback(found, TypeError()) == "", "nothing was raised by the device"


@pytest.mark.parametrize(("answer", "reads"), [(-1, 0xFFFFFFFF), (1 << 200 | 5, 5), (True, 1), (-(1 << 100) + 7, 7)])
def test_an_int_of_any_size_is_truncated(answer: int, reads: int) -> None:
    board = plugged(Edu(lambda: answer))
    assert board.memory_bus.read(MEMORY, 4) == board.io_bus.read(PORTS, 4) == reads
    board = plugged(Config(lambda: answer))
    assert board.ecam(0, 3).read(0x40, 4) == board.ports(0, 3).read(0x40, 4) == reads
    assert board.ecam(0, 3).read(0x40, 8) == reads, "the next four bytes are another access"


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(9), KeyboardInterrupt(), GeneratorExit(), MemoryError()]
)
def test_whatever_is_raised(error: BaseException) -> None:
    def act() -> object:
        raise error.with_traceback(None)

    board = plugged(Edu(act))
    says = f"raised {type(error).__name__}" + (f": {error}" if str(error) else "")
    for access, doing in (
        (lambda: board.memory_bus.read(MEMORY + 0xFFC, 4), "read of 4 bytes at BAR 0+0xffc"),
        (lambda: board.memory_bus.write(MEMORY + 1, 1, 0xFE), "write of 0xfe, 1 byte, at BAR 0+0x1"),
        (lambda: board.io_bus.read(PORTS + 2, 2), "read of 2 bytes at BAR 1+0x2"),
        (lambda: board.io_bus.write(PORTS + 15, 1, 0), "write of 0x0, 1 byte, at BAR 1+0xf"),
        (lambda: board.memory_bus.write(MEMORY + 0x20000, 8, 1 << 63), f"write of {1 << 63:#x}, 8 bytes, at BAR 2+0x0"),
    ):
        found, line = blame(board, access)
        assert line == f"device test_fault.py:Edu at 00:03.0: {doing} {says}"
        assert found.is_users
        text = fault.its_traceback(found, error)
        assert text.startswith("Traceback") and "in act" in text and "bus.py" not in text


def test_an_access_that_is_split() -> None:
    board = plugged(Edu(bang))
    _, line = blame(board, lambda: board.memory_bus.read(MEMORY - 1, 4))
    assert "read of 1 byte at BAR 0+0x0 raised ValueError: bang and" in line
    _, line = blame(board, lambda: board.memory_bus.write(MEMORY + 0xFFE, 4, 0x44332211))
    assert "write of 0x11, 1 byte, at BAR 0+0xffe raised" in line


def test_a_method_with_other_arguments() -> None:
    device = Edu(bang)
    board = plugged(device)
    device.part.read = lambda offset: 0  # type: ignore[assignment, misc]
    found, line = blame(board, lambda: board.memory_bus.read(MEMORY + 0x20000, 4))
    assert (
        "test_fault.py:Edu at 00:03.0: read of 4 bytes at BAR 2+0x0 raised TypeError: Part.__init__.<locals>"
        not in line
    )
    assert "Edu at 00:03.0: read of 4 bytes at BAR 2+0x0 raised TypeError: " in line
    assert "takes 1 positional argument but 2 were given" in line
    assert found.is_users


def test_configuration_space() -> None:
    board = plugged(Config(bang))
    for space in (board.ecam(0, 3), board.ports(0, 3)):
        _, line = blame(board, lambda space=space: space.read(0x40, 2))  # type: ignore[misc]
        assert line.startswith(
            "device test_fault.py:Config at 00:03.0: read of 2 bytes at configuration space 0x40 raised"
        )
        _, line = blame(board, lambda space=space: space.write(0x40, 4, 7))  # type: ignore[misc]
        assert "write of 0x7, 4 bytes, at configuration space 0x40 raised ValueError" in line
    board = plugged(Config(lambda: None))
    found, line = blame(board, lambda: board.ports(0, 3).read(0x40, 4))
    assert line == "device test_fault.py:Config at 00:03.0: read of 4 bytes at configuration space 0x40 returned None"
    assert found.place == f"test_fault.py:{Config.config_read.__code__.co_firstlineno}"
    found, line = blame(board, lambda: board.ecam(0, 3).read(0x40, 8))
    assert "Config at 00:03.0: read of 8 bytes at configuration space 0x40 raised TypeError" in line and found.is_users


def test_behind_a_root_port() -> None:
    board, port, device = Board(), RootPort(), Edu(lambda: None)
    board.host.root.add(port, 0x1C)
    port.child.add(device, 0)
    port.config_write(0x18, 4, 0x00050500)
    port.config_write(0x20, 4, 0xC000C000)
    port.config_write(4, 2, 7)
    device.config_write(0x10, 4, MEMORY)
    device.config_write(4, 2, 7)
    _, line = blame(board, lambda: board.memory_bus.read(MEMORY, 4))
    assert line.startswith("device test_fault.py:Edu at 05:00.0: read of 4 bytes at BAR 0+0x0 returned None")


def test_a_virtio_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Four(bang)
    function = VirtioPci(device)
    board = plugged(function)
    monkeypatch.setattr(VirtQueue, "running", True)
    found, line = blame(board, lambda: board.memory_bus.write(MEMORY + NOTIFY, 2, 0))
    assert line.startswith(
        "device test_fault.py:Four at 00:03.0: write of 0x0, 2 bytes, at BAR 0+0x1000 raised ValueError"
    )
    assert found.is_users
    device.act = lambda: "text"
    found, line = blame(board, lambda: board.memory_bus.read(MEMORY + DEVICE, 4))
    assert line == "device test_fault.py:Four at 00:03.0: read of 4 bytes at BAR 0+0x3000 returned 'text'"
    assert found.place == f"test_fault.py:{Four.config_read.__code__.co_firstlineno}"


def test_a_device_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named too; but what it raises is a bug of ours."""
    device = VirtioRng()
    board = plugged(VirtioPci(device))
    monkeypatch.setattr(VirtioRng, "config_read", lambda self, offset, size: 1 // 0)
    found, line = blame(board, lambda: board.memory_bus.read(MEMORY + DEVICE, 4))
    assert line.startswith(
        "device rng.py:VirtioRng at 00:03.0: read of 4 bytes at BAR 0+0x3000 raised ZeroDivisionError"
    )
    assert not found.is_users
    bus = Bus("PIO", 1 << 16)
    bus.map(0x80, 1, PostPort())
    monkeypatch.setattr(PostPort, "write", lambda self, offset, size, value: 1 // 0)
    found, line = blame(board, lambda: bus.write(0x80, 1, 0))
    assert line.startswith("device post_port.py:PostPort: write of 0x0, 1 byte, at port 0x80 raised ZeroDivisionError")
    assert not found.is_users


def test_a_device_that_is_on_a_bus_alone() -> None:
    bus = Bus("PIO", 1 << 16)
    bus.map(0x300, 4, Part(bang))
    found, line = blame(Board(), lambda: bus.read(0x302, 1))
    assert (
        line.startswith("device test_fault.py:Part: read of 1 byte at port 0x302 raised ValueError") and found.is_users
    )


def test_timers_and_posted_calls() -> None:
    device = Edu(bang)
    board = plugged(device)
    loop = Loop(threading.Lock())
    for arm, doing in (
        (lambda call: loop.timer(call).arm(loop.now()), "timer"),
        (loop.post, "callback"),
    ):
        for call in (device.act, lambda: device.write(0, 4, 0), lambda device=device: device.read(0, 4)):
            arm(call)
            found, line = blame(board, lambda: loop.run_once(0))
            assert line == f"device test_fault.py:Edu at 00:03.0: {doing} raised ValueError: bang and \x1b[31mred"
            assert found.is_users and "loop.py" not in fault.its_traceback(found, ValueError())
    loop.post(lambda: GuestMemory.of_size(4096).write(1 << 40, b"x"))
    with pytest.raises(Exception) as caught:
        loop.run_once(0)
    assert fault.find(fault.stack_of(caught.value), Board().host) is None, "no device there"
    loop.close()


def test_a_thread_that_does_not_come_back() -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait() -> object:
        entered.set()
        leave.wait()
        return 0

    board = plugged(Edu(wait))
    thread = threading.Thread(target=board.memory_bus.read, args=(MEMORY + 4, 4))
    thread.start()
    entered.wait()
    assert thread.ident is not None
    found = fault.find(fault.stack_at(sys._current_frames()[thread.ident]), board.host)
    assert found is not None and found.answer is None
    line = re.sub(r"\d+\)", "N)", found.line("has not returned"))
    assert (
        line == "device test_fault.py:Edu at 00:03.0: read of 4 bytes at BAR 0+0x4 has not returned (test_fault.py:N)"
    )
    assert "leave.wait()" in fault.describe_stack(found.stack)
    leave.set()
    thread.join()


class Unprintable:
    def __repr__(self) -> str:
        raise ValueError


class Unreadable(Exception):
    def __str__(self) -> str:
        raise ValueError


def test_an_answer_and_an_error_that_cannot_be_shown() -> None:
    def act() -> object:
        raise Unreadable

    _, line = blame(board := plugged(Edu(Unprintable)), lambda: board.memory_bus.read(MEMORY, 4))
    assert line.endswith("returned a Unprintable")
    _, line = blame(board := plugged(Edu(act)), lambda: board.memory_bus.read(MEMORY, 4))
    assert line.endswith("raised Unreadable")
    _, line = blame(board := plugged(Edu(lambda: "x" * 10000)), lambda: board.memory_bus.read(MEMORY, 4))
    assert len(line) < 400
