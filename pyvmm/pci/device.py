"""One PCI function: what a device is derived from.

    class Blinker(PciDevice):
        vendor_id, device_id, class_code, interrupt_pin = 0x1234, 0x0001, 0x088000, 1

        def __init__(self) -> None:
            super().__init__()
            self.add_memory_bar(0, 0x1000, self)        # self.read and self.write answer in the BAR

        def read(self, offset: int, size: int) -> int: ...
        def write(self, offset: int, size: int, value: int) -> None:
            self.interrupt.set_level(bool(value))       # MSI or MSI-X if the guest turned it on, else INTA

The guest may size, move and disable BARs at any time; the device never knows where they are. Once it is plugged in it
has `dma` (guest RAM while the guest lets it be bus master, else no memory at all), `trace` and `slot`.
PCI Local Bus Specification 3.0, chapter 6.
"""

from __future__ import annotations

from typing import ClassVar, Final

from pyvmm.bus import ALL_ONES, Device
from pyvmm.irq import Irq, LevelIrq
from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.pci.bar import Bar, FixedPorts
from pyvmm.pci.config_space import ConfigSpace
from pyvmm.pci.msi import Msi, Msix
from pyvmm.pci.regs import (
    PCI_BASE_ADDRESS_0,
    PCI_BASE_ADDRESS_MEM_PREFETCH,
    PCI_BASE_ADDRESS_MEM_TYPE_64,
    PCI_BASE_ADDRESS_SPACE_IO,
    PCI_CACHE_LINE_SIZE,
    PCI_CFG_SPACE_SIZE,
    PCI_CLASS_PROG,
    PCI_COMMAND,
    PCI_COMMAND_INTX_DISABLE,
    PCI_COMMAND_IO,
    PCI_COMMAND_MASTER,
    PCI_COMMAND_MEMORY,
    PCI_COMMAND_PARITY,
    PCI_COMMAND_SERR,
    PCI_DEVICE_ID,
    PCI_HEADER_TYPE,
    PCI_HEADER_TYPE_NORMAL,
    PCI_INTERRUPT_LINE,
    PCI_INTERRUPT_PIN,
    PCI_LATENCY_TIMER,
    PCI_NO_FUNCTION,
    PCI_REVISION_ID,
    PCI_ROM_ADDRESS,
    PCI_ROM_ADDRESS_ENABLE,
    PCI_STATUS,
    PCI_STATUS_ERRORS,
    PCI_STATUS_INTERRUPT,
    PCI_STD_NUM_BARS,
    PCI_SUBSYSTEM_ID,
    PCI_SUBSYSTEM_VENDOR_ID,
    PCI_VENDOR_ID,
)
from pyvmm.pci.slot import Slot
from pyvmm.trace import OFF, Channel

NO_MEMORY: Final = GuestMemory(())
_ACTIVE: Final = PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER


def _traced(memory: GuestMemory, trace: Channel) -> GuestMemory:
    from pyvmm.pci.dma import TracedMemory  # only who watches has to wait for it

    return TracedMemory(memory, trace)


class FunctionInterrupt:
    """The one interrupt of a simple function: message 0 while the guest has MSI or MSI-X on, else the INTx pin."""

    def __init__(self, function: PciDevice) -> None:
        self._function = function

    def set_level(self, level: bool) -> None:
        rising = level and not self._function.intx_level
        self._function.set_intx(level)
        if rising:
            self._function.send_message(0)

    def pulse(self) -> None:
        if not self._function.send_message(0):
            self.set_level(True)
            self.set_level(False)


class PciDevice:
    """A PCI function with a type 0 header. Derive from it, set the class attributes, add BARs in __init__."""

    vendor_id: int = PCI_NO_FUNCTION
    device_id: int = 0xFFFF
    class_code: int = 0xFF0000
    """Base class, subclass and programming interface, 24 bits."""
    revision_id: int = 0
    subsystem_vendor_id: int = 0
    subsystem_id: int = 0
    interrupt_pin: int = 0
    """0: the function uses no INTx; 1 to 4: INTA to INTD."""
    header_type: ClassVar[int] = PCI_HEADER_TYPE_NORMAL
    config_size: ClassVar[int] = PCI_CFG_SPACE_SIZE
    STATE: ClassVar[tuple[str, ...]] = ("config", "intx_level", "_intx_line", "_was_master", "msi", "msix")
    """What a snapshot keeps, see pyvmm/state.py: each class that is derived names the attributes that it adds."""

    def __init__(self) -> None:
        self.config = self.make_config()
        self.bars: dict[int, Bar] = {}
        self.fixed_ports: list[FixedPorts] = []
        self.msi: Msi | None = None
        self.msix: Msix | None = None
        self.interrupt: Irq = FunctionInterrupt(self)
        self.slot: Slot | None = None
        """What the function is plugged into."""
        self.trace: Channel = OFF
        self._intx_line: Irq = LevelIrq(lambda level: None)
        self.intx_level = False
        self._was_master = False
        self._define_header()

    def _define_header(self) -> None:
        config = self.config
        config.define(PCI_VENDOR_ID, 2, self.vendor_id)
        config.define(PCI_DEVICE_ID, 2, self.device_id)
        command = PCI_COMMAND_MASTER | PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE
        config.define(PCI_COMMAND, 2, 0, command)
        config.define(PCI_STATUS, 2, config.get(PCI_STATUS, 2), w1c=PCI_STATUS_ERRORS)
        config.define(PCI_REVISION_ID, 1, self.revision_id)
        config.define(PCI_CLASS_PROG, 3, self.class_code)
        config.define(PCI_CACHE_LINE_SIZE, 1, 0, 0xFF)
        config.define(PCI_LATENCY_TIMER, 1, 0, 0xFF)
        config.define(PCI_HEADER_TYPE, 1, self.header_type)
        if self.header_type == PCI_HEADER_TYPE_NORMAL:
            config.define(PCI_SUBSYSTEM_VENDOR_ID, 2, self.subsystem_vendor_id)
            config.define(PCI_SUBSYSTEM_ID, 2, self.subsystem_id)
        config.define(PCI_INTERRUPT_PIN, 1, self.interrupt_pin)
        config.define(PCI_INTERRUPT_LINE, 1, 0, 0xFF)

    # What a device adds in its constructor.

    def add_io_bar(self, index: int, size: int, device: Device) -> Bar:
        """An I/O BAR of *size* ports, a power of two from 4 to 256."""
        if not 4 <= size <= 256:
            raise ValueError(f"an I/O BAR has 4 to 256 ports, not {size}")
        return self._add_bar(Bar(index, size, device, io=True, bits64=False, prefetchable=False))

    def add_memory_bar(
        self, index: int, size: int, device: Device, *, bits64: bool = False, prefetchable: bool = False
    ) -> Bar:
        """A memory BAR of *size* bytes, a power of two of at least 16; with *bits64* it takes index + 1 too."""
        if size < 16:
            raise ValueError(f"a memory BAR has at least 16 bytes, not {size}")
        return self._add_bar(Bar(index, size, device, io=False, bits64=bits64, prefetchable=prefetchable))

    def _add_bar(self, bar: Bar) -> Bar:
        slots = {bar.index, bar.index + 1} if bar.bits64 else {bar.index}
        used = {i for b in self.bars.values() for i in range(b.index, b.index + b.width // 4)}
        if bar.size & (bar.size - 1):
            raise ValueError(f"the size of a BAR is a power of two, not {bar.size}")
        if slots & used or not slots <= set(range(PCI_STD_NUM_BARS)):
            raise ValueError(f"BAR {bar.index} is taken or does not exist")
        flags = PCI_BASE_ADDRESS_SPACE_IO if bar.io else 0
        flags |= PCI_BASE_ADDRESS_MEM_TYPE_64 if bar.bits64 else 0
        flags |= PCI_BASE_ADDRESS_MEM_PREFETCH if bar.prefetchable else 0
        mask = ((1 << 8 * bar.width) - 1) & ~(bar.size - 1)
        self.config.define(bar.offset, bar.width, flags, mask)
        # A decode bit that no BAR uses is hardwired to zero.
        self.config.writable[PCI_COMMAND] |= PCI_COMMAND_IO if bar.io else PCI_COMMAND_MEMORY
        self.bars[bar.index] = bar
        return bar

    def add_rom(self, image: bytes) -> Bar:
        """Offer an expansion ROM of what *image* has, at most 16 MiB."""
        from pyvmm.pci.rom import RomBar  # few functions have one

        bar = RomBar(image)
        self.config.define(bar.offset, bar.width, 0, 0xFFFFFFFF & ~(bar.size - 1) | PCI_ROM_ADDRESS_ENABLE)
        self.config.writable[PCI_COMMAND] |= PCI_COMMAND_MEMORY
        self.bars[bar.index] = bar
        return bar

    def add_fixed_ports(self, port: int, count: int, device: Device) -> FixedPorts:
        """*count* ports from *port* on, which no BAR places."""
        ports = FixedPorts(port, count, device)
        self.config.writable[PCI_COMMAND] |= PCI_COMMAND_IO
        self.fixed_ports.append(ports)
        return ports

    @property
    def ranges(self) -> list[Bar]:
        """All that it answers: BARs and fixed ports."""
        return [*self.bars.values(), *self.fixed_ports]

    def add_capability(self, cap_id: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability (see ConfigSpace.add_capability) and return its offset."""
        return self.config.add_capability(cap_id, body, writable)

    def add_msi(self, vectors: int = 1, *, bits64: bool = True, maskable: bool = True) -> Msi:
        """Offer MSI with 1, 2, 4, 8, 16 or 32 vectors."""
        self.msi = Msi(self.config, vectors, bits64, maskable, lambda: self.bus_master, self._write_message)
        return self.msi

    def add_msix(self, vectors: int, bar: int) -> Msix:
        """Offer MSI-X with 1 to 2048 vectors; table and pending bits get 32-bit memory BAR *bar* for themselves."""
        half = max(0x800, 1 << (vectors * 16 - 1).bit_length())
        self.msix = Msix(self.config, vectors, bar, half, lambda: self.bus_master, self._write_message)
        self.add_memory_bar(bar, 2 * half, self.msix)
        return self.msix

    # What a device may override.

    def make_config(self) -> ConfigSpace:
        """Configuration space, with nothing in it yet."""
        return ConfigSpace(self.config_size)

    def reset(self) -> None:
        """Put the device's own registers back to their reset values; configuration space is done by the bus."""

    def bus_master_changed(self, enabled: bool) -> None:
        """The guest (or a bridge above) has allowed or forbidden DMA and messages."""

    def attached(self) -> None:
        """The function is plugged in: `slot`, `dma` and `trace` are there."""

    def uses(self, gpa: int, length: int) -> bool:
        """Whether the function keeps something in [gpa, gpa+length) of guest RAM that it would go on with, such as a
        queue: memory is not taken out under it."""
        return False

    def contract(self) -> dict[str, object]:
        """What else a driver relies on, beside configuration space and BARs; one that takes this one's place has the
        same (pci/replacing.py)."""
        return {}

    def close(self) -> None:
        """The device is thrown away, its place taken by another or the machine has ended. Give back
        files, sockets, processes.

        Called once, under the machine lock, after the last access; nothing of the machine is to be used any more.
        """

    # What the guest and the bus do.

    @property
    def command(self) -> int:
        """The COMMAND register, as it acts: in D3hot only configuration space answers, and nothing goes out (PCI Bus
        Power Management Interface Specification 1.2, section 5.4.1)."""
        command = self.config.get(PCI_COMMAND, 2)
        return command if self.slot is None or self.slot.powered else command & ~_ACTIVE | PCI_COMMAND_INTX_DISABLE

    @property
    def bus_master(self) -> bool:
        """Whether the guest allows this function DMA and messages, all bridges above it included."""
        slot = self.slot
        return bool(self.command & PCI_COMMAND_MASTER) and slot is not None and slot.bus_master

    @property
    def dma(self) -> GuestMemory:
        """Guest RAM while the guest allows DMA, else no memory at all. Take it anew for each transfer."""
        slot = self.slot
        memory = slot.memory if slot is not None and self.bus_master else NO_MEMORY
        return _traced(memory, self.trace) if self.trace.enabled else memory

    @property
    def messages_enabled(self) -> bool:
        """Whether the guest has turned MSI or MSI-X on: INTx is silent then."""
        return (self.msix is not None and self.msix.enabled) or (self.msi is not None and self.msi.enabled)

    def send_message(self, vector: int) -> bool:
        """Send MSI-X or MSI vector *vector*; false if the guest has neither on."""
        for messages in (self.msix, self.msi):
            if messages is not None and messages.enabled:
                if self.trace.enabled:
                    self.trace(messages.describe(vector))
                messages.pulse(vector)
                return True
        return False

    def _write_message(self, address: int, data: int) -> None:
        """A message that the guest has addressed to elsewhere than the local APICs."""
        try:
            self.dma.write_int(address, 4, data)
            where = "RAM"
        except GuestMemoryError:
            where = "nowhere"
        if self.trace.enabled:
            self.trace(f"MSI {data:#x} to {address:#x}, {where}: no interrupt")

    def set_intx(self, level: bool) -> None:
        """Drive the INTx pin. STATUS shows it; the line follows unless INTX_DISABLE, MSI or MSI-X holds it low."""
        if level != self.intx_level and self.trace.enabled:
            self.trace(f"INT{' ABCD'[self.interrupt_pin]} {'up' if level else 'down'}")
        self.intx_level = level
        status = self.config.data[PCI_STATUS] & ~PCI_STATUS_INTERRUPT
        self.config.data[PCI_STATUS] = status | PCI_STATUS_INTERRUPT if level else status
        self._drive_intx()

    def _drive_intx(self) -> None:
        held = self.command & PCI_COMMAND_INTX_DISABLE or self.messages_enabled
        self._intx_line.set_level(self.intx_level and not held)

    def config_read(self, offset: int, size: int) -> int:
        """The guest reads configuration space."""
        return self.config.read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """The guest writes configuration space; BARs, interrupts and bus mastering follow at once."""
        self.config.write(offset, size, value)
        if offset < PCI_COMMAND + 2 and offset + size > PCI_COMMAND:
            self.update_bus_master()
            self._drive_intx()
            self.update_decode()
        elif offset < self._bars_end and offset + size > PCI_BASE_ADDRESS_0:
            self.update_decode()
        for messages in (self.msi, self.msix):
            if messages and offset < messages.offset + messages.length and offset + size > messages.offset:
                messages.sync()
                self._drive_intx()

    @property
    def _bars_end(self) -> int:
        return PCI_ROM_ADDRESS + 4

    def update_bus_master(self) -> None:
        """Follow a change of the BUS_MASTER bit here or in a bridge above."""
        master = self.bus_master
        if master != self._was_master:
            self._was_master = master
            if self.msi:
                self.msi.sync()
            if self.msix:
                self.msix.sync()
            self.bus_master_changed(master)

    def update_decode(self) -> None:
        """Follow the BARs and decode bits: who answers where on the buses."""
        if self.slot is not None:
            self.place_bars()
            self.slot.apply()

    def place_bars(self) -> bool:
        """Say where the BARs are, without applying it yet; whether one has moved."""
        command, moved = self.command, False
        for bar in self.ranges:
            if bar.claim is not None:
                base = bar.address(self.config)
                enabled = base and command & (PCI_COMMAND_IO if bar.io else PCI_COMMAND_MEMORY)
                enabled = enabled and bar.enabled(self.config)
                if bar.claim.place(base, ((base, base + bar.size),) if enabled else ()):
                    moved = True
                    if self.trace.enabled:
                        off = "" if enabled else ", but decoding is off"
                        self.trace(f"{bar.name} is at {base:#x}, {bar.size:#x} bytes{off}")
        return moved

    def slot_power_changed(self) -> None:
        """The slot puts the function into D3hot, or back into D0, where it is what it was."""
        self.update_bus_master()
        self._drive_intx()
        self.update_decode()

    def reset_function(self) -> None:
        """A bus reset: configuration space and device back to their reset values."""
        self.config.reset()
        self.update_decode()  # first: a doorbell that has rung is heard as it goes, not after the reset
        self.reset()
        self.set_intx(False)
        if self.msi:
            self.msi.sync()
        if self.msix:
            self.msix.reset()
        self.update_bus_master()

    def restored(self) -> None:
        """After a load: BARs and messages are where configuration space says. A device that overrides it calls this."""
        if self.slot is not None and self.place_bars():
            self.slot.apply()
        for messages in (self.msi, self.msix):
            if messages:
                messages.sync()

    @property
    def name(self) -> str:
        """As lspci writes it, bus number left out: device.function, and the class."""
        return f"{self.slot.name if self.slot is not None else 'unplugged'} {type(self).__name__}"

    # Device protocol for a function that answers its own BAR.

    def read(self, offset: int, size: int) -> int:
        """The guest reads a BAR that was added with `self` as its device."""
        return ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes a BAR that was added with `self` as its device."""

    def connect(self, slot: Slot) -> None:
        """Plug the function in: its BARs, interrupts and configuration space are *slot*'s from now on."""
        self.slot = slot
        self.trace = slot.trace
        if self.interrupt_pin:
            self._intx_line = slot.intx(self.interrupt_pin)
            self.config.set(PCI_INTERRUPT_LINE, 1, slot.interrupt_line(self.interrupt_pin))
        for bar in self.ranges:
            bar.claim = slot.claim(bar)
        for messages in (self.msi, self.msix):
            if messages:
                messages.connect(slot.msi)
        self.config.freeze()
        self.attached()

    def disconnect(self) -> None:
        """Unplug it: nothing of the function answers or interrupts any more."""
        if self.slot is None:
            return
        try:
            self.reset_function()
        finally:  # reset() may be the user's own
            for bar in self.ranges:
                claim, bar.claim = bar.claim, None
                if claim is not None:
                    claim.release()
            self._intx_line.set_level(False)
            self._intx_line = LevelIrq(lambda level: None)  # a timer that it forgot to cancel must not interrupt
            for messages in (self.msi, self.msix):
                if messages:
                    messages.disconnect()
            self.slot = None
