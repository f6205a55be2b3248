"""A PCI function in a slot that has no bus, no decoder and no machine around it."""

from __future__ import annotations

import pytest

from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.pci.bus import PciBus
from pyvmm.pci.device import PciDevice
from pyvmm.pci.doorbell import Doorbell
from pyvmm.pci.regs import PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY, PCI_INTERRUPT_LINE
from pyvmm.pci.root_port import RootPort
from pyvmm.pci.slot import FakeSlot
from pyvmm.virtio.pci import VirtioPci
from pyvmm.virtio.rng import VirtioRng
from tests.rig.virtio_driver import SplitDriver

MESSAGE = 0xFEE00000
RAM = 1 << 20


class Copier(PciDevice):
    """A write of an address to its register copies four bytes from there to the next four, and interrupts."""

    vendor_id, device_id, interrupt_pin = 0x1234, 5, 2

    def __init__(self) -> None:
        super().__init__()
        self.bar = self.add_memory_bar(0, 16, self)
        self.bar.add_doorbell(8, Doorbell(lambda: None))
        self.add_msix(3, 2)
        self.failed = 0

    def write(self, offset: int, size: int, value: int) -> None:
        try:
            self.dma.write(value + 4, self.dma.read(value, 4))
        except GuestMemoryError:
            self.failed += 1
        self.interrupt.set_level(True)


@pytest.fixture
def slot() -> FakeSlot:
    return FakeSlot(GuestMemory.of_size(RAM))


def test_bars_are_claims(slot: FakeSlot) -> None:
    device = Copier()
    device.connect(slot)
    assert sorted(slot.claims) == [0, 2] and slot.claims[0].bar.device is device
    assert [offset for offset, _ in slot.claims[0].bar.doorbells] == [8]
    device.config_write(0x10, 4, 0xC0000000)
    device.config_write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY)
    assert (slot.claims[0].base, slot.claims[0].spans) == (0xC0000000, ((0xC0000000, 0xC0000010),))
    assert slot.claims[2].spans == () and slot.applied
    device.config_write(PCI_COMMAND, 2, 0)
    assert slot.claims[0].spans == ()


def test_in_d3hot_only_configuration_space_answers(slot: FakeSlot) -> None:
    device = Copier()
    device.connect(slot)
    device.config_write(0x10, 4, 0xC0000000)
    device.config_write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER)
    device.interrupt.set_level(True)

    def seen() -> tuple[object, ...]:
        device.write(0, 4, 0x1000)
        return slot.claims[0].spans, device.bus_master, slot.lines[2].level, device.failed

    assert seen() == (((0xC0000000, 0xC0000010),), True, True, 0)
    slot.powered = False
    device.slot_power_changed()
    assert seen() == ((), False, False, 1)
    assert device.config_read(PCI_COMMAND, 2) == PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER
    device.config_write(PCI_COMMAND, 2, PCI_COMMAND_MASTER)
    assert seen() == ((), False, False, 2)
    device.config_write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER)
    slot.powered = True
    device.slot_power_changed()
    assert seen() == (((0xC0000000, 0xC0000010),), True, True, 2)


def test_dma_only_while_the_guest_allows_it(slot: FakeSlot) -> None:
    device = Copier()
    with pytest.raises(GuestMemoryError):
        device.dma.read(0, 1)
    device.connect(slot)
    slot.memory.write(0x100, b"abcd")
    device.write(0, 4, 0x100)
    assert device.failed == 1 and device.dma.size == 0 and slot.memory.read(0x104, 4) == bytes(4)
    device.config_write(PCI_COMMAND, 2, PCI_COMMAND_MASTER)
    device.write(0, 4, 0x100)
    assert device.failed == 1 and device.dma.size == RAM and slot.memory.read(0x104, 4) == b"abcd"
    slot.bus_master = False
    device.update_bus_master()
    assert device.dma.size == 0, "a bridge above forbids it"
    slot.bus_master = True
    device.update_bus_master()
    device.disconnect()
    assert device.dma.size == 0


def test_interrupts_by_pin_and_by_message(slot: FakeSlot) -> None:
    device = Copier()
    device.connect(slot)
    assert device.config_read(PCI_INTERRUPT_LINE, 1) == 0xFF
    device.write(0, 4, 0)
    assert [pin for pin, line in slot.lines.items() if line.level] == [2]
    device.interrupt.set_level(False)
    device.config_write(PCI_COMMAND, 2, PCI_COMMAND_MASTER)
    table = slot.claims[2].bar.device
    for register, value in enumerate((MESSAGE, 0, 0x41, 0)):
        table.write(4 * register, 4, value)
    assert device.msix is not None
    device.config_write(device.msix.offset + 2, 2, 0x8000)
    device.write(0, 4, 0)
    assert slot.msi.sent == [(MESSAGE, 0x41)] and not slot.lines[2].level


def test_unplugged_it_lets_everything_go(slot: FakeSlot) -> None:
    device = Copier()
    device.connect(slot)
    device.write(0, 4, 0)
    device.disconnect()
    assert not slot.lines[2].level and device.command == 0 and device.slot is None
    assert all(claim.released for claim in slot.claims.values())
    assert all(irq.closed for irq in slot.msi.irqs)
    device.config_write(0x10, 4, 0xC0000000)
    device.disconnect()
    other = FakeSlot()
    device.connect(other)
    device.write(0, 4, 0)
    assert other.lines[2].level and not slot.lines[2].level


def test_a_bus_hangs_on_a_slot(slot: FakeSlot) -> None:
    """So a whole tree is served by whoever serves one function."""
    bus, port, device = PciBus(slot), RootPort(), Copier()
    bus.add(port, 3)
    port.child.add(device, 0)
    device.write(0, 4, 0)
    assert [pin for pin, line in slot.lines.items() if line.level] == [(3 + 1) % 4 + 1]
    for function in (port, device):
        function.config_write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER)
    device.config_write(0x10, 4, 0xC0000000)
    assert not slot.claims[0].spans
    port.config_write(0x20, 4, 0xC000C000)
    assert slot.claims[0].spans == ((0xC0000000, 0xC0000010),) and device.dma is slot.memory
    port.config_write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY)
    assert device.dma.size == 0


def test_a_virtio_device_by_its_function_alone(slot: FakeSlot) -> None:
    function = VirtioPci(VirtioRng(lambda count: b"\xa5" * count))
    function.connect(slot)
    driver = SplitDriver(slot.memory, 0x10000, 64)
    function.write(20, 1, 3)
    function.write(8, 4, 1)
    function.write(12, 4, 1)
    function.write(20, 1, 11)
    for at, width, value in (
        (22, 2, 0),
        (24, 2, 64),
        (32, 8, driver.desc),
        (40, 8, driver.driver),
        (48, 8, driver.device),
        (28, 2, 1),
        (20, 1, 15),
    ):
        function.write(at, width, value)
    driver.add([(0x8000, 16, True)])
    function.write(0x1000, 2, 0)
    assert driver.used() == [], "no bus master yet"
    function.config_write(PCI_COMMAND, 2, PCI_COMMAND_MASTER)
    assert [length for _, length in driver.used()] == [16] and slot.lines[1].level
    assert slot.memory.read(0x8000, 17) == b"\xa5" * 16 + b"\0"
    for _ in range(64):
        driver.add([(0x8000 + n, 1, True) for n in range(1)])
    function.write(0x1000, 2, 0)
    while slot.later:
        slot.run_later()
    assert len(driver.used()) == 64
