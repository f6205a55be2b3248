"""A machine gives everything back: threads, descriptors, memory; after any end, and after an error while it is made."""

from __future__ import annotations

import gc
import linecache
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pyvmm.board.pc import Pc
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine import build as build_module
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome
from pyvmm.units import MIB
from pyvmm.vcpu.group import VcpuGroup
from tests.rig.board import Board, board

SMALL = 16 * MIB


def descriptors() -> list[str]:
    names = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            names.append(f"{path.name} {os.readlink(path)}")
        except FileNotFoundError:  # the listing's own
            pass
    return sorted(names)


def mappings() -> int:
    return sum("pyvmm-ram" in line or "kvm-vcpu" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = descriptors(), threading.enumerate(), mappings()
    yield
    gc.collect()
    assert (descriptors(), threading.enumerate(), mappings()) == before


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_a_machine_that_never_ran(irqchip: str) -> None:
    with board("hello", irqchip=irqchip, rng=True, virtio_input="standard"):
        pass


def test_closing_twice() -> None:
    machine = Machine(MachineConfig(guest="pio", memory=SMALL))
    machine.close()
    machine.close()
    machine.end(Outcome(End.QUIT))


@pytest.mark.parametrize("guest", ["pio", "shutdown", "internal-error", "reset-cf9", "keyboard"])
def test_each_kind_of_end(guest: str) -> None:
    with board(guest) as machine:
        if guest == "keyboard":
            machine.on_output = lambda data: machine.end(Outcome(End.QUIT))
        machine.finish()


def test_a_timeout_with_four_cpus_that_sleep() -> None:
    with board("hlt", cpus=4) as machine:
        assert machine.run(0.1).end is End.TIMEOUT
        assert threading.active_count() == 1, "run() has joined them"


@pytest.mark.parametrize("what", ["call", "join"])
def test_an_exception_while_it_is_asked_whether_the_loop_runs(what: str) -> None:
    """As that of a signal handler, wherever it lands in CPython's Thread: nothing is closed under the vCPUs."""

    def interrupt(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is not threading.Thread._wait_for_tstate_lock.__code__:  # type: ignore[attr-defined]
            return None
        if "lock.acquire" in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
            raise KeyboardInterrupt
        return interrupt

    with board("keyboard") as machine:
        machine.start()
        if what == "join":  # as run() does when the guest has ended
            machine.end()
        sys.settrace(interrupt)
        try:
            machine.call(lambda: None) if what == "call" else machine.life.join()
        except (KeyboardInterrupt, UserError):
            pass
        finally:
            sys.settrace(None)
        if what == "call":
            assert machine.call(lambda: threading.current_thread().name) == "machine"


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_end_from_another_thread_while_the_guest_sleeps(irqchip: str) -> None:
    with board("hello", irqchip=irqchip) as machine:
        timer = threading.Timer(0.1, lambda: machine.end(Outcome(End.QUIT)))
        timer.start()
        assert machine.finish() == Outcome(End.QUIT)
        timer.join()


def test_end_before_run() -> None:
    with board("hlt") as machine:
        machine.end(Outcome(End.SIGNAL, 15))
        machine.end(Outcome(End.QUIT))
        assert machine.finish() == Outcome(End.SIGNAL, 15), "the first one stands"


def test_fifty_machines_in_a_row() -> None:
    for n in range(50):
        with board("pio", cpus=1 + n % 3) as machine:
            assert machine.finish() == Outcome(End.DEBUG_EXIT, 0)


def test_two_machines_at_once() -> None:
    with board("timer", parameters={"count": 3}) as one, board("timer", parameters={"count": 3}) as two:
        outcomes: list[Outcome] = []
        thread = threading.Thread(target=lambda: outcomes.append(one.finish()))
        thread.start()
        outcomes.append(two.finish())
        thread.join()
        assert outcomes == [Outcome(End.DEBUG_EXIT, 0)] * 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MachineConfig(memory=SMALL, guest="nobody"), "there is no guest 'nobody'"),
        (MachineConfig(memory=MIB, guest="hello"), "needs 16384 KiB"),
        (MachineConfig(memory=SMALL, guest="pio", guest_parameters=(("x", 1),)), "has no x"),
        (MachineConfig(memory=SMALL, cpus=5000, guest="pio"), "1 to 255 vCPUs"),
        (MachineConfig(memory=SMALL, cpus=2, irqchip="user", guest="pio"), "one CPU"),
        (MachineConfig(memory=1 << 45, guest="pio"), "ask for less"),
        (MachineConfig(memory=SMALL, guest="pio", devices=("/no/such/file.py:Device",)), "no/such/file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_while_it_is_made(config: MachineConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Machine(config)
    assert "\n" not in str(error.value)


STEPS: list[tuple[object, str]] = [
    *(
        (Pc, step)
        for step in ("_make_irqchip", "_add_chips", "_add_input", "_add_vga", "_add_pci", "_add_virtio_input")
    ),
    *((Pc, step) for step in ("assign_pci_resources",)),
    (VcpuGroup, "_create"),
    (VcpuGroup, "save"),
    *((build_module, step) for step in ("Ram", "Pc", "VcpuGroup", "Payload", "_start_at", "KernelTime", "furnish")),
]


@pytest.mark.parametrize(("where", "step"), STEPS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_error_at_each_step(where: object, step: str, after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails while a machine is made, in each of its steps, before it or right after it."""
    original: Callable[..., object] = getattr(where, step)

    def fail(*arguments: object, **named: object) -> object:
        if after and not isinstance(original, type):
            original(*arguments, **named)
        raise OSError("made to fail")

    monkeypatch.setattr(where, step, fail)
    with pytest.raises(OSError, match="made to fail"):
        Board(MachineConfig(memory=SMALL, cpus=2, guest="pio", rng=True, virtio_input="standard"))


def test_kvm_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UserError("no")

    monkeypatch.setattr(build_module, "open_kvm", refuse)
    with pytest.raises(UserError, match=r"^no$"):
        Machine(MachineConfig(memory=SMALL, guest="pio"))


def test_a_device_that_raises() -> None:
    class Broken:
        def read(self, offset: int, size: int) -> int:
            raise ZeroDivisionError

        def write(self, offset: int, size: int, value: int) -> None:
            raise ZeroDivisionError

    with board("pio", cpus=2) as machine:
        machine.board.pio.map(0x5000, 4, Broken())
        assert machine.finish().end is End.DEVICE_FAULT


def test_a_callback_of_the_loop_that_raises() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), board("hlt", cpus=2) as machine:
        machine.life.loop.post(broken)
        machine.finish()


@pytest.mark.parametrize("which", ["loop", "second vCPU"])
def test_a_thread_that_cannot_be_started(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no memory for its stack: the threads that run end before the VM is closed under them."""

    def refuse() -> None:
        raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError, match="can't start new thread"), board("hlt", cpus=2) as machine:
        starter = machine.life._thread if which == "loop" else machine.life.cpus.threads[1]
        monkeypatch.setattr(starter, "start", refuse)
        machine.finish()
    assert threading.active_count() == 1


def test_a_thread_that_cannot_be_started_while_the_guest_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vCPU that is about to say so does not keep start() from giving up, nor start() the vCPU."""
    ending = threading.Event()

    def refuse() -> None:
        assert ending.wait(60)
        raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError, match="can't start new thread"), board("pio") as machine:
        end = machine.life.end

        def told(outcome: Outcome) -> None:
            ending.set()
            end(outcome)

        monkeypatch.setattr(machine.life, "end", told)
        monkeypatch.setattr(machine.life._thread, "start", refuse)
        machine.finish()
    assert threading.active_count() == 1
