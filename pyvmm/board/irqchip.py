"""The board's interrupt controllers and its timer, by where they live: in the kernel, split, or all in user space.

To devices they are a wire for each interrupt. ISA IRQs arrive at the PIC and, where there is one, at the IOAPIC pin of
the same number (IRQ 0 at pin 2); PIRQA-PIRQD at IOAPIC pins 16-19 and at the PIC as two of the ISA IRQs.
"""

from __future__ import annotations

from typing import Final, Protocol

from kvm_cffi import Vm, constants
from pyvmm.board.gsi import GsiTable, kernel_pins
from pyvmm.board.layout import IRQ_SCI, PCI_GSIS, PCI_IRQS
from pyvmm.irq import Irq, LevelIrq, SharedLine
from pyvmm.trace import Channel
from pyvmm.vcpu.thread import InterruptController

APIC_SPIV, APIC_LVT0, APIC_LVT1 = 0xF0, 0x350, 0x360
"""Local APIC registers: spurious vector, LINT0, LINT1 (Intel SDM volume 3, table 11-1)."""
LEVEL_IRQS: Final = (IRQ_SCI, *sorted(set(PCI_IRQS)))
"""What firmware makes level-triggered at the PIC."""
PIC_STATE_ELCR: Final = 14
"""Offset of elcr in struct kvm_pic_state (<asm/kvm.h>)."""


class Irqchip(Protocol):
    """What the machine needs of one, whichever it is."""

    local_apic: bool
    """The guest has local APICs (in the kernel)."""
    pic: InterruptController | None
    """The PIC that the boot CPU asks, where it is in user space."""
    gsi: GsiTable
    """Where MSI vectors get their GSIs."""

    def line(self, irq: int) -> LevelIrq:
        """A new wire to ISA IRQ *irq*, its only source."""

    def pci_line(self, pirq: int) -> Irq:
        """The wire of PIRQA-PIRQD (0-3)."""

    def eoi(self, vector: int) -> None:
        """KVM_EXIT_IOAPIC_EOI."""


def virtual_wire(lapic: bytes) -> bytes:
    """The boot CPU's local APIC as firmware leaves it: enabled, LINT0 takes the PIC (ExtINT), LINT1 the NMI.

    Source: Intel MultiProcessor Specification 1.4, 3.6.2.2 (virtual wire mode).
    """
    state = bytearray(lapic)
    for register, value in ((APIC_SPIV, 0x1FF), (APIC_LVT0, 0x700), (APIC_LVT1, 0x400)):
        state[register : register + 4] = value.to_bytes(4, "little")
    return bytes(state)


def both(first: Irq, second: Irq) -> LevelIrq:
    """One wire that ends at two inputs."""

    def drive(level: bool) -> None:
        first.set_level(level)
        second.set_level(level)

    return LevelIrq(drive)


class KernelIrqchip:
    """PIC pair, IOAPIC, local APICs and PIT in the kernel."""

    local_apic = True
    pic: InterruptController | None = None

    def __init__(self, vm: Vm, trace: Channel) -> None:
        vm.create_irqchip()
        vm.create_pit2(speaker_dummy=True)
        self.gsi = GsiTable(vm, kernel_pins())
        self._vm = vm
        self._trace = trace
        self._isa_pci = {irq: SharedLine(self.line(irq)) for irq in sorted(set(PCI_IRQS))}
        for chip, first in ((constants.KVM_IRQCHIP_PIC_MASTER, 0), (constants.KVM_IRQCHIP_PIC_SLAVE, 8)):
            state = bytearray(vm.get_irqchip(chip))
            state[PIC_STATE_ELCR] = sum(1 << irq - first for irq in LEVEL_IRQS if first <= irq < first + 8)
            vm.set_irqchip(chip, bytes(state))

    def line(self, irq: int) -> LevelIrq:
        irq_line, trace = self._vm.irq_line, self._trace

        def drive(level: bool) -> None:
            if trace.enabled:
                trace(f"KVM_IRQ_LINE: IRQ {irq} {'up' if level else 'down'}")
            irq_line(irq, level)

        return LevelIrq(drive)

    def pci_line(self, pirq: int) -> Irq:
        return both(self.line(PCI_GSIS[pirq]), self._isa_pci[PCI_IRQS[pirq]].source())

    def eoi(self, vector: int) -> None:
        """Never called: the IOAPIC is in the kernel."""
