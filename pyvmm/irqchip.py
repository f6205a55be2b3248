"""The board's interrupt controllers, by where they live; to devices they are a line for each GSI."""

from __future__ import annotations

from typing import Protocol

from kvm_cffi import Vm, constants

from .gsi import GsiTable, kernel_pins
from .irq import Irq, LevelIrq, SharedLine
from .layout import IRQ_SCI, PCI_GSIS, PCI_IRQS
from .trace import Channel
from .vcpu import InterruptController

APIC_SPIV, APIC_LVT0, APIC_LVT1 = 0xF0, 0x350, 0x360
"""Local APIC registers: spurious vector, LINT0, LINT1 (Intel SDM volume 3, table 11-1)."""

LEVEL_IRQS = (IRQ_SCI, *PCI_IRQS)
"""What firmware makes level-triggered at the PIC."""
PIC_STATE_ELCR = 14
"""Offset of elcr in struct kvm_pic_state (<asm/kvm.h>)."""


class Irqchip(Protocol):
    """What the machine needs of one, whichever it is."""

    local_apic: bool
    """The guest has local APICs (in the kernel)."""
    pic: InterruptController | None
    """The PIC that the boot CPU asks, where it is in user space."""

    def line(self, gsi: int) -> LevelIrq:
        """A new wire to the ISA IRQ *gsi*."""

    def pci_line(self, pirq: int) -> Irq:
        """The wire of PIRQA-PIRQD (0-3), which arrives at IOAPIC and PIC both."""


def virtual_wire(lapic: bytes) -> bytes:
    """The boot CPU's local APIC as firmware leaves it: enabled, LINT0 takes the PIC (ExtINT), LINT1 the NMI.

    Source: Intel MultiProcessor Specification 1.4, 3.6.2.2 (virtual wire mode).
    """
    state = bytearray(lapic)
    for register, value in ((APIC_SPIV, 0x1FF), (APIC_LVT0, 0x700), (APIC_LVT1, 0x400)):
        state[register : register + 4] = value.to_bytes(4, "little")
    return bytes(state)


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
        for chip, irqs in (
            (constants.KVM_IRQCHIP_PIC_MASTER, range(8)),
            (constants.KVM_IRQCHIP_PIC_SLAVE, range(8, 16)),
        ):
            state = bytearray(vm.get_irqchip(chip))
            state[PIC_STATE_ELCR] = sum(1 << irq - irqs.start for irq in LEVEL_IRQS if irq in irqs)
            vm.set_irqchip(chip, bytes(state))

    def line(self, gsi: int) -> LevelIrq:
        irq_line, trace = self._vm.irq_line, self._trace

        def drive(level: bool) -> None:
            if trace.enabled:
                trace(f"IRQ {gsi} {'up' if level else 'down'}")
            irq_line(gsi, level)

        return LevelIrq(drive)

    def pci_line(self, pirq: int) -> Irq:
        apic, pic = self.line(PCI_GSIS[pirq]), self._isa_pci[PCI_IRQS[pirq]].source()

        def drive(level: bool) -> None:
            apic.set_level(level)
            pic.set_level(level)

        return LevelIrq(drive)
