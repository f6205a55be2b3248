"""What a guest may do to its machine without ending it: each of these once raised in the monitor, or hung the guest."""

from __future__ import annotations

import errno

import pytest

from kvm_cffi import KvmError, Regs, Vcpu
from pyvmm.board.layout import ECAM_START, PCI_MMIO_START
from pyvmm.board.user_irqchip import SplitIrqchip
from pyvmm.config import MachineConfig
from pyvmm.devices.ioapic import IOAPIC_REG_TABLE, IOREGSEL, IOWIN, RTE_LEVEL, RTE_MASKED
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome
from pyvmm.pci.regs import PCI_CAP_ID_MSIX
from pyvmm.units import MIB
from tests.rig.board import Board, board

MSI_TO_CPU_0 = 0xFEE00000


def config_of(machine: Machine, device_id: int) -> int:
    """Where in ECAM the function of *device_id* on bus 0 is."""
    for slot in range(32):
        config = ECAM_START + (slot << 15)
        if machine.board.mmio.read(config + 2, 2) == device_id:
            return config
    raise AssertionError(f"no device {device_id:#x}")


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_msix_with_any_interrupt_controller(irqchip: str) -> None:
    with Board(MachineConfig(guest="hello", memory=16 * MIB, irqchip=irqchip, rng=True)) as machine:  # type: ignore[arg-type]
        mmio, config = machine.board.mmio, config_of(machine, 0x1044)
        capability = mmio.read(config + 0x34, 1)
        while mmio.read(config + capability, 1) != PCI_CAP_ID_MSIX:
            capability = mmio.read(config + capability + 1, 1)
        table = PCI_MMIO_START
        mmio.write(config + 0x10 + 4 * (mmio.read(config + capability + 4, 4) & 7), 4, table)
        mmio.write(config + 4, 2, 6)
        mmio.write(config + capability + 2, 2, 0x8000)
        for register, value in enumerate((MSI_TO_CPU_0, 0, 0x41, 0)):
            mmio.write(table + 4 * register, 4, value)
        assert [mmio.read(table + 4 * n, 4) for n in range(4)] == [MSI_TO_CPU_0, 0, 0x41, 0]


def test_a_level_interrupt_that_is_masked_before_its_eoi_comes_again() -> None:
    """As Linux does with one that a thread handles (IRQF_ONESHOT): mask, EOI, and unmask when the thread is done."""
    with board("msi", parameters={"count": 3}, irqchip="split") as machine:
        assert isinstance(machine.board.irqchip, SplitIrqchip)
        ioapic, pin = machine.board.irqchip.ioapic, 16

        def unmask_and_mask() -> None:
            for entry in (RTE_LEVEL | 0x45, RTE_MASKED | RTE_LEVEL | 0x45):
                ioapic.write(IOREGSEL, 4, IOAPIC_REG_TABLE + 2 * pin)
                ioapic.write(IOWIN, 4, entry)
            timer.arm(machine.life.loop.now() + 20_000_000)

        ioapic.line(pin).set_level(True)
        timer = machine.life.loop.timer(unmask_and_mask)
        timer.arm(machine.life.loop.now())
        assert machine.finish(10) == Outcome(End.DEBUG_EXIT, 0)
        assert machine.value("taken") == 3


def test_a_report_that_fails_does_not_hide_the_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM refuses every call to a VM that it has given up (EIO)."""

    def get_regs(vcpu: Vcpu) -> Regs:
        raise KvmError(errno.EIO, "KVM_GET_REGS")

    with board("shutdown") as machine:
        monkeypatch.setattr(Vcpu, "get_regs", get_regs)
        outcome = machine.finish()
    assert outcome.end is End.TRIPLE_FAULT
    assert outcome.report == "vCPU 0: KVM_GET_REGS: Input/output error"
