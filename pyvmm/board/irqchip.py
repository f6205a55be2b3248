"""The board's interrupt controllers and its timer, by where they live: in the kernel, split, or all in user space.

To devices they are a wire for each interrupt. ISA IRQs arrive at the PIC and, where there is one, at the IOAPIC pin of
the same number (IRQ 0 at pin 2); PIRQA-PIRQD at IOAPIC pins 16-19 and at the PIC as two of the ISA IRQs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from kvm_cffi import IrqchipRoute, Vm, constants
from pyvmm.board import layout
from pyvmm.board.bios import PIC_BASES, PIC_MASKS, PIT_COUNT, PIT_MODE
from pyvmm.board.gsi import GsiTable, kernel_pins
from pyvmm.board.layout import IRQ_CASCADE, IRQ_SCI, PCI_GSIS, PCI_IRQS
from pyvmm.board.placement import Parts, Places
from pyvmm.irq import Irq, LevelIrq, SharedLine, Wires
from pyvmm.trace import Channel
from pyvmm.vcpu.thread import InterruptController

LEVEL_IRQS: Final = (IRQ_SCI, *sorted(set(PCI_IRQS)))
"""What firmware makes level-triggered at the PIC."""
CHIPS: Final = (constants.KVM_IRQCHIP_PIC_MASTER, constants.KVM_IRQCHIP_PIC_SLAVE, constants.KVM_IRQCHIP_IOAPIC)
"""In the kernel, in the order of a restore."""
KERNEL_CHIPS: Final[dict[str, Places]] = {
    "i8259": {"ports": layout.PIC_PORTS, "irqs": (layout.IRQ_CASCADE,)},
    "i8254": {"ports": ((layout.PIT, 4),), "irqs": (layout.IRQ_TIMER,)},
    "port61": {"ports": ((layout.SYSTEM_CONTROL_B, 1),)},
    "ioapic": {"memory": ((layout.IOAPIC, layout.IOAPIC_SIZE),)},
}
"""What the kernel answers, and where."""
PIC_STATE_IMR, PIC_STATE_IRQ_BASE, PIC_STATE_INIT4, PIC_STATE_ELCR = 2, 5, 13, 14
"""Offsets in struct kvm_pic_state (<asm/kvm.h>)."""
PIT_CHANNEL_COUNT: Final = struct.Struct("<I")
"""count, first in struct kvm_pit_channel_state (<asm/kvm.h>)."""
PIT_CHANNEL_STATES: Final = struct.Struct("<6B")
"""read_state, write_state, write_latch, rw_mode, mode and bcd there, at offset 9."""
PIT_RW_WORD: Final = 3


class Irqchip(Protocol):
    """What the machine needs of one, whichever it is."""

    local_apic: bool
    """The guest has local APICs (in the kernel)."""
    pic: InterruptController | None
    """The PIC that the boot CPU asks, where it is in user space."""
    gsi: GsiTable
    """Where MSI vectors get their GSIs."""
    resamples: bool
    """KVM can raise a line by an eventfd, and tell by another when the guest has ended its interrupt."""
    ended: Sequence[list[Callable[[], None]]]
    """Who is called when the guest has ended an interrupt of PIRQA-PIRQD, where it does not resample; they may drive
    lines."""

    def resample(self, pirq: int, trigger: int, unmask: int) -> None:
        """Let eventfd *trigger* raise PIRQA-PIRQD (0-3) until the guest has ended the interrupt, and signal *unmask*
        then; only where it resamples."""

    def resample_no_more(self, pirq: int, trigger: int) -> None: ...

    def line(self, irq: int) -> LevelIrq:
        """A new wire to ISA IRQ *irq*, its only source."""

    def pci_line(self, pirq: int) -> Irq:
        """The wire of PIRQA-PIRQD (0-3)."""

    def eoi(self, vector: int) -> None:
        """KVM_EXIT_IOAPIC_EOI."""

    def reset(self) -> None:
        """Back to how it was made, after the devices have let go of their lines; no vCPU runs."""


def both(first: Irq, second: Irq) -> LevelIrq:
    """One wire that ends at two inputs."""

    def drive(level: bool) -> None:
        first.set_level(level)
        second.set_level(level)

    return LevelIrq(drive)


def isa_lines(irqchip: Irqchip) -> list[Irq]:
    """A wire to each ISA IRQ, 0 to 15, beside those of the devices: the last to drive an IRQ sets its level. That of
    IRQ 2, where the second PIC is, ends nowhere."""
    return [irqchip.line(irq) if irq != IRQ_CASCADE else LevelIrq(lambda level: None) for irq in range(16)]


class KernelIrqchip:
    """PIC pair, IOAPIC, local APICs and PIT in the kernel."""

    local_apic = True
    pic: InterruptController | None = None
    resamples = True
    ended: Sequence[list[Callable[[], None]]] = ()

    def __init__(self, vm: Vm, parts: Parts, trace: Channel) -> None:
        vm.create_irqchip()
        vm.create_pit2(speaker_dummy=True)
        self.gsi = GsiTable(vm, kernel_pins())
        self._vm = vm
        self._trace = trace
        self._wires = Wires()
        self._resampled: set[int] = set()
        self._isa_pci = {irq: SharedLine(self.line(irq)) for irq in sorted(set(PCI_IRQS))}
        self._leave_as_a_bios_does()
        self._made = self._chips()
        for name, place in KERNEL_CHIPS.items():
            parts.note(name, **place)

    def _leave_as_a_bios_does(self) -> None:
        """See bios.py."""
        vm = self._vm
        for number, chip in enumerate((constants.KVM_IRQCHIP_PIC_MASTER, constants.KVM_IRQCHIP_PIC_SLAVE)):
            first = 8 * number
            state = bytearray(vm.get_irqchip(chip))
            state[PIC_STATE_IMR] = PIC_MASKS[number]
            state[PIC_STATE_IRQ_BASE] = PIC_BASES[number]
            state[PIC_STATE_INIT4] = 1
            state[PIC_STATE_ELCR] = sum(1 << irq - first for irq in LEVEL_IRQS if first <= irq < first + 8)
            vm.set_irqchip(chip, bytes(state))
        pit = bytearray(vm.get_pit2())  # channel 0 is first
        PIT_CHANNEL_COUNT.pack_into(pit, 0, PIT_COUNT)
        PIT_CHANNEL_STATES.pack_into(pit, 9, PIT_RW_WORD, PIT_RW_WORD, 0, PIT_RW_WORD, PIT_MODE, 0)
        vm.set_pit2(bytes(pit))

    def save(self) -> dict[str, object]:
        """The state of the chips in the kernel, both PICs and the IOAPIC, and the PIT; the levels of all lines."""
        chips, pit = self._chips()
        return {"chips": chips, "pit": pit, "levels": self._wires.levels}

    def load(self, saved: dict[str, Any]) -> None:
        """Put it back."""
        self._put_chips((saved["chips"], saved["pit"]))
        self._wires.levels = saved["levels"]

    def _chips(self) -> tuple[list[bytes], bytes]:
        return [self._vm.get_irqchip(chip) for chip in CHIPS], self._vm.get_pit2()

    def _put_chips(self, state: tuple[list[bytes], bytes]) -> None:
        chips, pit = state
        self._vm.set_pit2(pit)
        for chip, data in zip(CHIPS, chips, strict=True):
            self._vm.set_irqchip(chip, data)

    def reset(self) -> None:
        self._put_chips(self._made)

    def line(self, irq: int) -> LevelIrq:
        irq_line, trace = self._vm.irq_line, self._trace

        def drive(level: bool) -> None:
            if trace.enabled:
                trace(f"KVM_IRQ_LINE: IRQ {irq} {'up' if level else 'down'}", ("irq", irq, int(level)))
            irq_line(irq, level)

        return self._wires.add(LevelIrq(drive))

    def pci_line(self, pirq: int) -> Irq:
        isa = self._wires.add(self._isa_pci[PCI_IRQS[pirq]].source())
        return self._wires.add(both(self.line(PCI_GSIS[pirq]), isa))

    def resample(self, pirq: int, trigger: int, unmask: int) -> None:
        gsi, irq = PCI_GSIS[pirq], PCI_IRQS[pirq]
        # The line ends at the PIC too, of which each pin tells one GSI alone that its interrupt has ended: of two lines
        # that share a pin of the PIC, the second has the IOAPIC only.
        if not any(PCI_IRQS[other] == irq for other in self._resampled if other != pirq):
            chip = constants.KVM_IRQCHIP_PIC_MASTER if irq < 8 else constants.KVM_IRQCHIP_PIC_SLAVE
            self.gsi.add_pin(IrqchipRoute(gsi, chip, irq % 8))
        self._resampled.add(pirq)
        self._vm.irqfd(trigger, gsi, resamplefd=unmask)

    def resample_no_more(self, pirq: int, trigger: int) -> None:
        self._vm.irqfd(trigger, PCI_GSIS[pirq], deassign=True)

    def eoi(self, vector: int) -> None:
        """Never called: the IOAPIC is in the kernel."""
