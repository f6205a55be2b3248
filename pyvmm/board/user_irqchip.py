"""PIC, PIT and IOAPIC in user space: --irqchip user, as in 2007, and --irqchip split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from kvm_cffi import Vm
from pyvmm.board import layout
from pyvmm.board.bios import PIC_BASES, PIC_MASKS, PIT_COUNT, PIT_MODE
from pyvmm.board.gsi import GsiTable
from pyvmm.board.irqchip import LEVEL_IRQS, both
from pyvmm.board.layout import PCI_GSIS, PCI_IRQS
from pyvmm.board.placement import Parts
from pyvmm.clock import Clock
from pyvmm.devices.i8254 import I8254, PIT_CONTROL, RW_WORD
from pyvmm.devices.i8259 import ICW1, ICW1_IC4, I8259Pair
from pyvmm.devices.ioapic import MSI_DATA_LEVEL, IoApic
from pyvmm.devices.system_control import SystemControlB
from pyvmm.irq import Irq, LevelIrq, SharedLine, Wires
from pyvmm.trace import Channel
from pyvmm.vcpu.thread import InterruptController

ICW3: Final = (1 << layout.IRQ_CASCADE, layout.IRQ_CASCADE)
"""The second PIC is on line 2 of the first."""
ICW4_8086: Final = 0x01
EXTINT: Final = 7
"""Delivery mode of an MSI that asks the PIC for the vector."""


class UserIrqchip:
    """As in 2007: a pair of 8259A and an 8254 of ours, no APIC at all; interrupts go in with KVM_INTERRUPT.

    *wake* makes the boot CPU look at INTR.
    """

    local_apic = False
    resamples = False
    STATE: ClassVar[tuple[str, ...]] = ("_wires",)

    def __init__(self, vm: Vm, parts: Parts, clock: Clock, wake: Callable[[], None], trace: Channel) -> None:
        def intr(level: bool) -> None:
            if level:
                wake()

        def acknowledged(irq: int) -> None:
            if irq == layout.IRQ_TIMER:
                self.pit.acknowledged()

        self._wires = Wires()
        self.ended: Sequence[list[Callable[[], None]]] = tuple([] for _ in PCI_IRQS)
        self.i8259 = I8259Pair(intr, acknowledged, self._irq_ended, trace)
        self.pic: InterruptController | None = self.i8259
        self.pit = I8254(self.line(layout.IRQ_TIMER), clock)
        self.gsi = GsiTable(vm, [])
        self._isa_pci = {irq: SharedLine(self.line(irq)) for irq in sorted(set(PCI_IRQS))}
        parts.add(
            "i8259",
            self.i8259,
            ports=[
                (layout.PIC_MASTER, 2, self.i8259.master),
                (layout.PIC_SLAVE, 2, self.i8259.slave),
                (layout.ELCR, 2, self.i8259.elcr),
            ],
            irqs=[layout.IRQ_CASCADE],
        )
        parts.add("i8254", self.pit, ports=[(layout.PIT, 4)], irqs=[layout.IRQ_TIMER])
        port_61 = SystemControlB(self.pit.set_gate2, self.pit.out2, clock)
        parts.add("port61", port_61, ports=[(layout.SYSTEM_CONTROL_B, 1)])
        self._leave_as_a_bios_does()

    def _leave_as_a_bios_does(self) -> None:
        """See bios.py: the writes that a BIOS makes."""
        self.i8259.elcr.write(0, 2, sum(1 << irq for irq in LEVEL_IRQS))
        for number, pic in enumerate((self.i8259.master, self.i8259.slave)):
            pic.write(0, 1, ICW1 | ICW1_IC4)
            for data in (PIC_BASES[number], ICW3[number], ICW4_8086, PIC_MASKS[number]):
                pic.write(1, 1, data)
        self.pit.write(PIT_CONTROL, 1, RW_WORD << 4 | PIT_MODE << 1)
        for _ in range(2):
            self.pit.write(0, 1, PIT_COUNT & 0xFF)  # 0 for 65,536

    def _irq_ended(self, irq: int) -> None:
        for pirq, isa in enumerate(PCI_IRQS):
            if isa == irq:
                self._pirq_ended(pirq)

    def _pirq_ended(self, pirq: int) -> None:
        for call in list(self.ended[pirq]):
            call()

    def resample(self, pirq: int, trigger: int, unmask: int) -> None:
        raise NotImplementedError("KVM does not know these chips")

    def resample_no_more(self, pirq: int, trigger: int) -> None: ...

    def reset(self) -> None:
        """The chips are parts of the board, reset like the others."""
        self._leave_as_a_bios_does()

    def line(self, irq: int) -> LevelIrq:
        return self.i8259.line(irq)

    def pci_line(self, pirq: int) -> Irq:
        return self._wires.add(self._isa_pci[PCI_IRQS[pirq]].source())

    def eoi(self, vector: int) -> None:
        """Never called: there is no IOAPIC."""


class SplitIrqchip(UserIrqchip):
    """PIC, PIT and IOAPIC of ours, local APICs in the kernel: IOAPIC entries become messages (KVM_SIGNAL_MSI)."""

    local_apic = True
    STATE = ()

    def __init__(self, vm: Vm, parts: Parts, clock: Clock, wake: Callable[[], None], trace: Channel) -> None:
        vm.enable_split_irqchip(layout.IOAPIC_PINS)

        def deliver(address: int, data: int) -> None:
            if data >> 8 & 7 == EXTINT:
                return  # the local APIC's LINT0 takes the PIC's INTR; KVM has no message for that
            if trace.enabled:
                trace(f"KVM_SIGNAL_MSI: vector {data & 0xFF:#x}{', level' if data & MSI_DATA_LEVEL else ''}")
            vm.signal_msi(address, data)

        def route(pin: int, address: int, data: int, masked: bool) -> None:
            if data >> 8 & 7 == EXTINT:
                self.gsi.clear_message(pin)
            else:
                self.gsi.set_message(pin, address, data)  # masked or not: KVM tells of an EOI only where a route is

        def ended(pin: int) -> None:
            if pin in PCI_GSIS:
                self._pirq_ended(PCI_GSIS.index(pin))

        self.ioapic = IoApic(deliver, route, ended, trace=trace)
        super().__init__(vm, parts, clock, wake, trace)
        parts.add("ioapic", self.ioapic, memory=[(layout.IOAPIC, layout.IOAPIC_SIZE)])

    def line(self, irq: int) -> LevelIrq:
        return self._wires.add(both(self.ioapic.line(2 if irq == layout.IRQ_TIMER else irq), self.i8259.line(irq)))

    def pci_line(self, pirq: int) -> Irq:
        return self._wires.add(both(self.ioapic.line(PCI_GSIS[pirq]), super().pci_line(pirq)))

    def eoi(self, vector: int) -> None:
        self.ioapic.eoi(vector)
