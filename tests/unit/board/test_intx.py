"""INTx of a device of the host at each of the interrupt controllers: who raises the line, and who hears of its end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial

from kvm_cffi import IrqchipRoute, MsiRoute, constants
from pyvmm.board import layout
from pyvmm.board.fake_vm import FakeVm
from pyvmm.board.intx_line import KernelLine, LoopLine, RelayLine
from pyvmm.board.irqchip import KernelIrqchip
from pyvmm.board.placement import Parts
from pyvmm.board.user_irqchip import SplitIrqchip, UserIrqchip
from pyvmm.bus import Bus
from pyvmm.clock import FakeClock
from pyvmm.loop import Loop
from pyvmm.trace import OFF

PIRQA, PIRQB, PIRQC = 0, 1, 2


class RecordingVm(FakeVm):
    """Keeps the routes and irqfds that KVM would have."""

    def __init__(self) -> None:
        super().__init__()
        self.routes: list[IrqchipRoute | MsiRoute] = []
        self.irqfds: dict[int, tuple[int, int | None]] = {}

    def set_gsi_routing(self, routes: Iterable[IrqchipRoute | MsiRoute]) -> None:
        self.routes = list(routes)

    def irqfd(self, fd: int, gsi: int, *, resamplefd: int | None = None, deassign: bool = False) -> None:
        if deassign:
            del self.irqfds[fd]
        else:
            self.irqfds[fd] = gsi, resamplefd

    def pins(self, gsi: int) -> set[tuple[int, int]]:
        return {(r.irqchip, r.pin) for r in self.routes if isinstance(r, IrqchipRoute) and r.gsi == gsi}


def parts() -> Parts:
    return Parts(Bus("PIO", 1 << 16), Bus("MMIO", 1 << 52))


def test_in_the_kernel_a_line_ends_at_ioapic_and_pic() -> None:
    vm = RecordingVm()
    irqchip = KernelIrqchip(vm, parts(), OFF)
    slave, ioapic = constants.KVM_IRQCHIP_PIC_SLAVE, constants.KVM_IRQCHIP_IOAPIC
    assert vm.pins(16) == {(ioapic, 16)}
    line = KernelLine(irqchip, PIRQA)
    assert vm.irqfds == {line.trigger: (16, line.unmask)}
    assert vm.pins(16) == {(ioapic, 16), (slave, layout.PCI_IRQS[PIRQA] - 8)}
    shared = KernelLine(irqchip, PIRQC)
    assert layout.PCI_IRQS[PIRQC] == layout.PCI_IRQS[PIRQA]
    assert vm.pins(18) == {(ioapic, 18)}, "the PIC's pin tells one GSI alone of an end"
    other = KernelLine(irqchip, PIRQB)
    assert vm.pins(17) == {(ioapic, 17), (slave, layout.PCI_IRQS[PIRQB] - 8)}
    for each in (line, shared, other):
        each.close()
    assert vm.irqfds == {}


def test_by_chips_of_ours_the_loop_raises_it_and_their_eoi_ends_it() -> None:
    for kind in (UserIrqchip, SplitIrqchip):
        irqchip = kind(RecordingVm(), parts(), FakeClock(), lambda: None, OFF)
        heard: list[str] = []
        loop = Loop(nullcontext())
        line = LoopLine(loop, irqchip, PIRQA, partial(heard.append, "raised"), partial(heard.append, "ended"))
        os.eventfd_write(line.trigger, 1)
        loop.run_once(0)
        loop.run_once(0)
        assert heard == ["raised"]
        wire = irqchip.pci_line(PIRQA)
        wire.set_level(True)
        irq = layout.PCI_IRQS[PIRQA]
        irqchip.i8259.slave.write(1, 1, 0)
        irqchip.i8259.master.write(1, 1, 0)
        assert irqchip.i8259.acknowledge() == 0x70 + irq - 8
        irqchip.i8259.slave.write(0, 1, 0x20)
        assert heard == ["raised", "ended"]
        if isinstance(irqchip, SplitIrqchip):
            pin = layout.PCI_GSIS[PIRQA]
            irqchip.ioapic.write(0, 4, 0x10 + 2 * pin)
            irqchip.ioapic.write(0x10, 4, 1 << 15 | 0x51)
            irqchip.eoi(0x51)
            assert heard == ["raised", "ended", "ended"]
        line.close()
        assert irqchip.ended[PIRQA] == []
        loop.close()


def test_watched_it_goes_both_ways_by_the_loop() -> None:
    vm = RecordingVm()
    loop = Loop(nullcontext())
    seen: list[str] = []
    ended: list[int] = []
    line = RelayLine(loop, KernelIrqchip(vm, parts(), OFF), PIRQA, lambda: ended.append(1), seen.append)
    ((trigger, (gsi, resample)),) = vm.irqfds.items()
    assert gsi == 16 and resample is not None and trigger != line.trigger
    os.eventfd_write(line.trigger, 1)
    loop.run_once(0)
    assert line.is_up and seen == ["INTx up, by the loop"] and os.eventfd_read(trigger) == 1
    os.eventfd_write(resample, 1)
    loop.run_once(0)
    assert ended == [1] and not line.is_up
    line.close()
    assert vm.irqfds == {}
    loop.close()
