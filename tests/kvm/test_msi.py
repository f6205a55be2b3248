"""MSI-X vectors of a device by the thousand, as they arrive in a real local APIC."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvm_cffi import Vm
from pyvmm.board.layout import PCI_MMIO_START
from pyvmm.board.msi import BATCH, ROUTES
from pyvmm.pci.device import PciDevice
from pyvmm.pci.regs import PCI_MSIX_FLAGS_ENABLE
from tests.rig.board import Board, board

DEVICE = """
from pyvmm.pci.device import PciDevice

class Vectors(PciDevice):
    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000

    def __init__(self, count):
        super().__init__()
        self.add_msix(count, 0)
"""
COUNT = 2048
PARTS = 32
"""Of the turns of the loop until all are bound, and some more."""
TO_CPU_0 = 0xFEE00000
FIRST, LAST = 0x20, 0xFF
"""The vectors of a local APIC that a message may have here."""
APIC_IRR = range(0x200, 0x280, 0x10)
"""Where the eight registers of what waits are (Intel SDM volume 3, table 11-1)."""
IRQCHIPS = pytest.mark.parametrize("irqchip", ["kernel", "split"])


class Guest:
    """A guest's driver of the one device, while its vCPU stands."""

    def __init__(self, machine: Board) -> None:
        self.machine = machine
        self.device = next(f for f in machine.board.pci.all_functions() if f.device_id == 0x5678)
        self.device.config_write(4, 2, 6)
        for n in range(COUNT):
            for register, value in enumerate((TO_CPU_0, 0, apic_vector(n), 0)):
                machine.board.mmio.write(PCI_MMIO_START + 16 * n + 4 * register, 4, value)

    def enable(self) -> None:
        """One write of the control register."""
        msix = self.device.msix
        assert msix is not None
        self.device.config_write(msix.offset + 2, 2, PCI_MSIX_FLAGS_ENABLE)

    def turn(self) -> None:
        self.machine.life.loop.run_once(0)

    def waiting(self) -> set[int]:
        """What waits in the local APIC of the boot CPU."""
        state = self.machine.vcpus[0].get_lapic()
        bits = b"".join(state[at : at + 4] for at in APIC_IRR)
        return {8 * at + bit for at, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1}

    def arrived(self) -> set[int]:
        """What waits there, and is forgotten."""
        seen = self.waiting()
        state = bytearray(self.machine.vcpus[0].get_lapic())
        for at in APIC_IRR:
            state[at : at + 4] = bytes(4)
        self.machine.vcpus[0].set_lapic(bytes(state))
        return seen

    def soon(self, wanted: set[int]) -> bool:
        """Whether *wanted* arrives and nothing else: what was signalled before its eventfd was bound, a thread of the
        kernel's delivers."""
        patience = time.monotonic() + 60
        while self.waiting() < wanted and time.monotonic() < patience:
            pass
        return self.arrived() == wanted


def apic_vector(n: int) -> int:
    return FIRST + n % (LAST + 1 - FIRST)


@contextmanager
def guest(tmp_path: Path, irqchip: str) -> Iterator[Guest]:
    file = tmp_path / "device.py"
    file.write_text(DEVICE)
    with board("hello", irqchip=irqchip, devices=(f"{file}:Vectors,count={COUNT}",)) as machine:
        yield Guest(machine)


@IRQCHIPS
def test_thousands_of_vectors_are_enabled_by_one_write(
    tmp_path: Path, irqchip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each works from that write on: before its route is there, before its eventfd is bound, and after."""
    tables: list[None] = []
    bound: list[list[None]] = [[]]
    set_gsi_routing, irqfd = Vm.set_gsi_routing, Vm.irqfd

    def count_tables(self: Vm, routes: Any) -> None:
        tables.append(None)
        set_gsi_routing(self, routes)

    def count_bound(self: Vm, *arguments: Any, **more: Any) -> None:
        bound[-1].append(None)
        irqfd(self, *arguments, **more)

    def pulse(part: int) -> set[int]:
        for n in range(part, COUNT, PARTS):
            assert driver.device.send_message(n)
        return {apic_vector(n) for n in range(part, COUNT, PARTS)}

    with guest(tmp_path, irqchip) as driver:
        monkeypatch.setattr(Vm, "set_gsi_routing", count_tables)
        monkeypatch.setattr(Vm, "irqfd", count_bound)
        driver.enable()
        assert not tables and not bound[-1], "no call to the kernel while the vCPU waits"
        for part in range(PARTS):
            wanted = pulse(part)
            assert driver.arrived() == wanted
            driver.turn()
            bound.append([])
        assert len(tables) == COUNT // ROUTES
        assert sum(map(len, bound)) == COUNT and max(map(len, bound)) <= BATCH


def eventfds(device: PciDevice) -> list[int]:
    assert device.msix is not None
    return [fd for fd in device.msix.fds() if fd is not None]


@IRQCHIPS
def test_what_others_signal(tmp_path: Path, irqchip: str) -> None:
    """As VFIO does: before the guest has enabled anything, and while it runs."""
    with guest(tmp_path, irqchip) as driver:
        fds = eventfds(driver.device)
        assert len(fds) == COUNT
        for n in (1, 2, COUNT - 1):
            os.eventfd_write(fds[n], 1)
        assert driver.arrived() == set()
        driver.enable()
        for _ in range(1 + COUNT // ROUTES + COUNT // BATCH):
            driver.turn()
        assert driver.soon({apic_vector(n) for n in (1, 2, COUNT - 1)})
        os.eventfd_write(fds[5], 1)
        assert driver.soon({apic_vector(5)})


@IRQCHIPS
def test_more_vectors_than_descriptors(tmp_path: Path, irqchip: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        with guest(tmp_path, irqchip) as driver:
            driver.enable()
            for _ in range(1 + COUNT // ROUTES + COUNT // BATCH):
                driver.turn()
            os.close(os.dup(0))
            for n in range(COUNT):
                driver.device.send_message(n)
            assert driver.arrived() == set(range(FIRST, LAST + 1))
            for n in range(0, COUNT, 100):
                driver.device.send_message(n)
                assert driver.arrived() == {apic_vector(n)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
