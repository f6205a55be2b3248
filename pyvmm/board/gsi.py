"""The GSI table: which in-kernel pin each GSI drives, and which message the GSIs above the pins send."""

from __future__ import annotations

from collections.abc import Iterable

from kvm_cffi import IrqchipRoute, MsiRoute, Vm, constants
from pyvmm.board.layout import FIRST_MSI_GSI, IOAPIC_PINS, IRQ_CASCADE, IRQ_TIMER


def kernel_pins() -> list[IrqchipRoute]:
    """A PC's wiring: ISA IRQs go to PIC and IOAPIC alike, IRQ 0 to IOAPIC pin 2, GSIs 16-23 to the IOAPIC only."""
    routes = []
    for gsi in range(IOAPIC_PINS):
        if gsi != IRQ_CASCADE and gsi < 16:
            chip = constants.KVM_IRQCHIP_PIC_MASTER if gsi < 8 else constants.KVM_IRQCHIP_PIC_SLAVE
            routes.append(IrqchipRoute(gsi, chip, gsi % 8))
        if gsi != IRQ_CASCADE:
            routes.append(IrqchipRoute(gsi, constants.KVM_IRQCHIP_IOAPIC, 2 if gsi == IRQ_TIMER else gsi))
    return routes


class GsiTable:
    """The VM's routing table. KVM takes it only whole, so every change sends all of it: change many at once."""

    def __init__(self, vm: Vm, pins: list[IrqchipRoute]) -> None:
        self._vm = vm
        self._pins = pins
        self._messages: dict[int, MsiRoute] = {}
        self._free: list[int] = []
        self._next = FIRST_MSI_GSI
        # The kernel counts routes: an ISA IRQ has two, and with a split irqchip each IOAPIC pin has a message.
        self._limit = vm.check_extension("KVM_CAP_IRQ_ROUTING") - max(len(pins), FIRST_MSI_GSI)
        if pins:
            self._commit()

    def add_pin(self, pin: IrqchipRoute) -> None:
        """Let a GSI drive this pin too; nothing where it does."""
        if pin not in self._pins:
            self._pins.append(pin)
            self._commit()

    def allocate(self) -> int | None:
        """A GSI for one message; None when the kernel's table has no room for more."""
        if self._free:
            return self._free.pop()
        if self._next >= FIRST_MSI_GSI + self._limit:
            return None
        self._next += 1
        return self._next - 1

    def free(self, gsi: int) -> None:
        """Give a GSI back that no eventfd is bound to any more; the kernel forgets its route with the next change."""
        self._messages.pop(gsi, None)
        self._free.append(gsi)

    def set_message(self, gsi: int, address: int, data: int) -> None:
        """Let *gsi* send *data* to *address*."""
        self.set_messages([(gsi, address, data)])

    def set_messages(self, messages: Iterable[tuple[int, int, int]]) -> None:
        """Let each GSI send data to an address; all of them, as (GSI, address, data), by one change of the table."""
        routes = [MsiRoute(*message) for message in messages]
        if any(self._messages.get(route.gsi) != route for route in routes):
            self._messages.update((route.gsi, route) for route in routes)
            self._commit()

    def clear_message(self, gsi: int) -> None:
        """Let *gsi* send nothing."""
        if self._messages.pop(gsi, None) is not None:
            self._commit()

    def _commit(self) -> None:
        self._vm.set_gsi_routing([*self._pins, *self._messages.values()])
