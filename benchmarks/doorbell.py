"""What a doorbell and an interrupt by message cost: the guest's write to a device in Python, and the device's answer.

The guest is guests/doorbell: it times its own writes with the TSC. Without `wait` it writes on at once, so a doorbell
by ioeventfd costs it what the kernel takes, and the loop answers several at a time. With `wait` it sleeps after each
write until the device's interrupt has come: a round trip of doorbell, callback, interrupt and handler, the
waking of threads included.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.document import table
from benchmarks.pio import tsc_hz
from benchmarks.programs import BenchError, say
from benchmarks.stats import Runs, in_turn, spread
from pyvmm import guests
from pyvmm.board.doorbell import IoeventfdDoorbells
from pyvmm.board.msi import EventfdMsi, EventfdMsiRouter
from pyvmm.config import MachineConfig
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome
from pyvmm.pci.doorbell import Doorbell

ADDRESS: Final = 0xD0000000
MSI_ADDRESS, MSI_DATA = 0xFEE00000, 0x40
"""To CPU 0, vector 0x40 (Intel SDM volume 3, 11.11)."""
WRITES: Final = 20_000
ROUND_TRIPS: Final = 3000
CALLS: Final = 20_000
TIMEOUT: Final = 60.0
IRQ: Final = 5
"""A wire that nothing else is on and that the guest has masked."""


class DoorbellRegister:
    """A device whose only register is a doorbell."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._ring()


@contextmanager
def machine_and_vector(**parameters: int) -> Iterator[tuple[Machine, EventfdMsi]]:
    """A machine with guests/doorbell, and a vector of it that is not masked."""
    guest = guests.load("doorbell")
    config = MachineConfig(guest=guest.name, memory=guest.memory, guest_parameters=tuple(parameters.items()))
    with Machine(config) as machine:
        router = EventfdMsiRouter(machine.board.vm, machine.board.irqchip.gsi, machine.life.loop.post)
        vector = router.allocate()
        vector.update(MSI_ADDRESS, MSI_DATA)
        vector.unmask()
        for _ in ("the route", "the eventfd"):
            machine.life.loop.run_once(0)
        try:
            yield machine, vector
        finally:
            router.close()


def writes(count: int, *, ioeventfd: bool, answer: str) -> float:
    """The guest's cycles of a write, the mean of *count*; the device answers with nothing, pulse or signal_msi."""
    with machine_and_vector(count=count, address=ADDRESS, wait=int(answer != "nothing")) as (machine, vector):
        signal_msi = machine.board.vm.signal_msi

        def send() -> None:
            signal_msi(MSI_ADDRESS, MSI_DATA)

        ring = {"nothing": lambda: None, "pulse": vector.pulse, "signal_msi": send}[answer]
        machine.board.mmio.map(ADDRESS, 0x1000, DoorbellRegister(ring))
        doorbells = IoeventfdDoorbells(machine.board.vm, machine.life.loop, machine.board.pio)
        if ioeventfd and doorbells.add(machine.board.mmio, ADDRESS, Doorbell(ring, 4)) is None:
            raise BenchError("KVM gives no ioeventfd")
        try:
            outcome = machine.run(TIMEOUT)
        finally:
            doorbells.close()
        if outcome != Outcome(End.DEBUG_EXIT, 0):
            raise BenchError(f"doorbell: {outcome}")
        return machine.memory.read_int(guests.load("doorbell").symbols["cycles"], 8) / count


GUEST: Final[dict[str, Callable[[], float]]] = {
    "a write, exit to the device": lambda: writes(WRITES, ioeventfd=False, answer="nothing"),
    "a write, ioeventfd, the loop's callbacks meanwhile": lambda: writes(WRITES, ioeventfd=True, answer="nothing"),
    "round trip: exit, device, `EventfdMsi.pulse()`": lambda: writes(ROUND_TRIPS, ioeventfd=False, answer="pulse"),
    "round trip: ioeventfd, callback, `EventfdMsi.pulse()`": lambda: writes(
        ROUND_TRIPS, ioeventfd=True, answer="pulse"
    ),
    "round trip: ioeventfd, callback, `Vm.signal_msi()`": lambda: writes(
        ROUND_TRIPS, ioeventfd=True, answer="signal_msi"
    ),
}


def each(call: Callable[[], object], count: int) -> float:
    """The mean time of *count* calls, in µs, without the empty loop's."""

    def loop(called: Callable[[], object]) -> int:
        start = time.perf_counter_ns()
        for _ in range(count):
            called()
        return time.perf_counter_ns() - start

    return (loop(call) - loop(lambda: None)) / count / 1000


def calls(count: int) -> dict[str, Callable[[], float]]:
    """What Python calls cost while no vCPU runs, so that nobody is woken; each makes a machine of its own."""

    def alone() -> float:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            return each(lambda: os.eventfd_write(fd, 1), count)
        finally:
            os.close(fd)

    def pulse() -> float:
        with machine_and_vector() as (_, vector):
            return each(vector.pulse, count)

    def signal_msi() -> float:
        with machine_and_vector() as (machine, _):
            return each(lambda: machine.board.vm.signal_msi(MSI_ADDRESS, MSI_DATA), count)

    def irq_line() -> float:
        with machine_and_vector() as (machine, _):
            line = machine.board.irqchip.line(IRQ)
            return each(line.pulse, count)

    def callback() -> float:
        with machine_and_vector() as (machine, _):
            rung: list[None] = []
            doorbells = IoeventfdDoorbells(machine.board.vm, machine.life.loop, machine.board.pio)
            doorbell = doorbells.add(machine.board.mmio, ADDRESS, Doorbell(lambda: rung.append(None), 4))
            assert doorbell is not None
            fd, run_once = doorbell._fd, machine.life.loop.run_once

            def ring() -> None:
                os.eventfd_write(fd, 1)
                run_once()

            try:
                mean = each(ring, count)
            finally:
                doorbells.close()
            if len(rung) != count:
                raise BenchError(f"{count} doorbells, {len(rung)} callbacks")
            return mean

    return {
        "`os.eventfd_write()` to nobody": alone,
        "interrupt: `EventfdMsi.pulse()`": pulse,
        "interrupt: `Vm.signal_msi()`": signal_msi,
        "interrupt: a wire up and down, `KVM_IRQ_LINE` twice": irq_line,
        "doorbell: `os.eventfd_write()`, `Loop.run_once()` to the callback": callback,
    }


def report(cycles: Runs, python: Runs, hz: int) -> str:
    rows = [[name, spread([value / hz * 1e6 for value in values], 2)] for name, values in cycles.items()]
    text = table(["in the guest", "µs (least–most)"], rows)
    rows = [[name, spread(values, 2)] for name, values in python.items()]
    return text + "\n\n" + table(["in Python, no vCPU running", "µs (least–most)"], rows)


def measure(rounds: int) -> str:
    return report(in_turn(GUEST, rounds, say), in_turn(calls(CALLS), rounds, say), tsc_hz())
