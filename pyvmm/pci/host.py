"""The PCI host: root bus, configuration mechanisms, and what its functions need from the machine.

Configuration mechanism #1 (PCI 3.0, section 3.2.2.3.2), I/O ports 0xCF8–0xCFF:
  0xCF8  CONFIG_ADDRESS  dword only: bit 31 enable, 23:16 bus, 15:11 device, 10:8 function, 7:2 register
  0xCF9  bytes go to the reset control register, which lies inside (Intel ICH9 data sheet, section 13.7.5)
  0xCFC  CONFIG_DATA     the addressed register, byte lanes by the port's low bits, at every width
ECAM (PCI Express 3.0, section 7.2.2): 4 KiB of memory a function at base + (bus << 20 | device << 15 | function << 12).
A function that isn't there reads all ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pyvmm.bus import ALL_ONES, Bus, Device
from pyvmm.clock import Clock
from pyvmm.irq import Irq, LevelIrq, SharedLine, swizzle
from pyvmm.memory import GuestMemory
from pyvmm.pci.bar import Bar
from pyvmm.pci.bridge import PciBridge, bridges
from pyvmm.pci.bus import PciBus
from pyvmm.pci.decoder import AddressClaim, AddressDecoder
from pyvmm.pci.device import PciDevice
from pyvmm.pci.doorbell import Doorbells
from pyvmm.pci.msi import MsiRouter
from pyvmm.pci.window import Windows
from pyvmm.trace import OFF, Channel

CONFIG_ADDRESS: Final = 0xCF8
CONFIG_DATA: Final = 0xCFC
CONFIG_ENABLE: Final = 0x80000000
CONFIG_ADDRESS_BITS: Final = 0x80FFFFFC
"""The bits of CONFIG_ADDRESS that exist; the rest read zero."""
RST_CNT: Final = 0xCF9

ECAM_BUS_SIZE: Final = 1 << 20
"""Bytes of ECAM a bus."""

Defer = Callable[[Callable[[], None]], None]
"""Runs a call later under the machine lock (Loop.post)."""


class PciHost:
    """The root complex; the Slot that the root bus hangs on.

    *intx* are the four lines PIRQA–PIRQD, level, high is asserted; *interrupt_lines* their ISA IRQ numbers, which go
    into the Interrupt Line registers as firmware would put them there. *reset_control* answers bytes at 0xCF9. By
    *defer* a function puts off what would hold the guest for long.
    """

    STATE = ("config_ports",)

    name = "root complex"
    bus_master = powered = True

    def __init__(
        self,
        memory_bus: Bus,
        io_bus: Bus,
        memory: GuestMemory,
        intx: Sequence[Irq],
        msi: MsiRouter,
        *,
        clock: Clock,
        defer: Defer,
        interrupt_lines: Sequence[int] = (11, 10, 11, 10),
        doorbells: Doorbells | None = None,
        windows: Windows | None = None,
        reset_control: Device | None = None,
        memory_limit: int = 1 << 52,
        trace: Channel = OFF,
    ) -> None:
        if len(intx) != 4 or len(interrupt_lines) != 4:
            raise ValueError("a PCI host has four interrupt lines")
        self.memory = memory
        self.clock = clock
        self.msi = msi
        self._defer = defer
        self.trace = trace
        self.interrupt_lines = tuple(interrupt_lines)
        self.memory_decoder = AddressDecoder(memory_bus, memory_limit, doorbells, windows)
        memory.watch(self.memory_decoder)
        self.io_decoder = AddressDecoder(io_bus, 0x10000, doorbells)
        self._lines = tuple(SharedLine(line) for line in intx)
        self.found_empty: Callable[[int], None] = lambda slot: None
        """Told of a slot of bus 0 where the guest has read configuration space, and no function answered."""
        self.root = PciBus(self)
        self.config_ports = ConfigPorts(self, reset_control)
        self.ecam = Ecam(self)

    def claim(self, bar: Bar) -> AddressClaim:
        claim = (self.io_decoder if bar.io else self.memory_decoder).claim(bar.device)
        for offset, doorbell in bar.doorbells:
            claim.add_doorbell(offset, doorbell)
        for offset, buffer in bar.backing:
            claim.back(offset, buffer)
        return claim

    def apply(self) -> None:
        """Bring both address spaces to what all the BARs say now."""
        self.memory_decoder.apply()
        self.io_decoder.apply()

    def intx(self, pin: int) -> LevelIrq:
        """A new source on PIRQA–PIRQD (1–4)."""
        return self._lines[pin - 1].source()

    def interrupt_line(self, pin: int) -> int:
        return self.interrupt_lines[pin - 1]

    def defer(self, call: Callable[[], None]) -> None:
        self._defer(call)

    def find(self, number: int, devfn: int) -> PciDevice | None:
        """The function that a configuration access to bus *number* reaches, as the bridges are programmed now."""
        bus = self.root
        if number == 0:
            return bus.functions.get(devfn)
        while True:
            for bridge in bridges(bus):
                if bridge.secondary != 0 and bridge.secondary <= number <= bridge.subordinate:
                    break
            else:
                return None
            bus = bridge.child
            if bridge.secondary == number:
                return bus.functions.get(devfn)

    def nobody_answers(self, number: int, devfn: int) -> None:
        """A read of the configuration space of *devfn* on bus *number* finds nothing."""
        if number == 0:
            self.found_empty(devfn >> 3)

    def place_of(self, function: PciDevice) -> str | None:
        """Bus:device.function, as the bridges are numbered now and as lspci writes it; None if it is not plugged in."""
        buses = [(0, self.root)]
        for number, bus in buses:
            for devfn, other in bus.functions.items():
                if other is function:
                    return f"{number:02x}:{devfn >> 3:02x}.{devfn & 7}"
            buses += ((bridge.secondary, bridge.child) for bridge in bridges(bus))
        return None

    def bus_of(self, function: PciDevice) -> PciBus | None:
        """The bus that *function* is plugged into; None if it is not."""
        buses = [self.root]
        for bus in buses:
            if any(other is function for other in bus.functions.values()):
                return bus
            buses += (bridge.child for bridge in bridges(bus))
        return None

    def pirq_of(self, function: PciDevice, pin: int) -> int:
        """Which of PIRQA–PIRQD (0–3) pin INTA–INTD (1–4) of *function* ends at; ValueError if it is not plugged in."""
        for path, other in self.parts():
            if other is function:
                line = pin - 1
                for place in reversed(path.split("/")):
                    line = swizzle(int(place.partition(".")[0], 16), line)
                return line
        raise ValueError(f"{function.name} is not plugged in")

    @property
    def last_bus(self) -> int:
        """The highest bus number that is forwarded, as the bridges are programmed now; 0 where there is no bridge."""
        return max((bridge.subordinate for bridge in bridges(self.root)), default=0)

    def all_functions(self) -> list[PciDevice]:
        """Every function, bridges before what is behind them."""
        found: list[PciDevice] = []
        buses = [self.root]
        while buses:
            bus = buses.pop(0)
            found += (f for _, f in sorted(bus.functions.items()))
            buses += (bridge.child for bridge in bridges(bus))
        return found

    def parts(self) -> list[tuple[str, PciDevice]]:
        """Every function by its place, which no guest can change: "0a.0", and behind a bridge "10.0/00.0"."""
        found: list[tuple[str, PciDevice]] = []
        buses = [("", self.root)]
        for path, bus in buses:
            for devfn, function in sorted(bus.functions.items()):
                place = f"{path}{devfn >> 3:02x}.{devfn & 7}"
                found.append((place, function))
                if isinstance(function, PciBridge):
                    buses.append((f"{place}/", function.child))
        return found

    def reset(self) -> None:
        """A platform reset: every function and the address register."""
        for function in self.all_functions():
            function.reset_function()
        self.config_ports.reset()

    def close(self) -> None:
        """Tell every function that it is thrown away, the last plugged in first. Raises what the first of them raised
        that did, when all have been told."""
        errors: list[BaseException] = []
        for function in reversed(self.all_functions()):
            try:
                function.close()
            except BaseException as error:
                errors.append(error)
        if errors:
            raise errors[0]


class ConfigPorts:
    """The Device at ports 0xCF8–0xCFF (8 ports): configuration mechanism #1."""

    STATE = ("_address",)

    def __init__(self, host: PciHost, reset_control: Device | None) -> None:
        self._host = host
        self._reset_control = reset_control
        self._address = 0

    def reset(self) -> None:
        self._address = 0

    @property
    def address(self) -> int:
        """CONFIG_ADDRESS."""
        return self._address

    def target(self, offset: int) -> tuple[PciDevice | None, int]:
        """The function, if there is one, and its register that an access to CONFIG_DATA at *offset* reaches."""
        address = self._address
        if not address & CONFIG_ENABLE or offset < 4:
            return None, 0
        return self._host.find(address >> 16 & 0xFF, address >> 8 & 0xFF), (address & 0xFC) + offset - 4

    def read(self, offset: int, size: int) -> int:
        if offset >= 4:
            function, register = self.target(offset)
            if function is not None:
                return function.config_read(register, size)
            if self._address & CONFIG_ENABLE:
                self._host.nobody_answers(self._address >> 16 & 0xFF, self._address >> 8 & 0xFF)
            return ALL_ONES[size]
        if offset == 0 and size == 4:
            return self._address
        if offset == RST_CNT - CONFIG_ADDRESS and size == 1 and self._reset_control is not None:
            return self._reset_control.read(0, 1)
        return ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= 4:
            function, register = self.target(offset)
            if function is not None:
                function.config_write(register, size, value)
        elif offset == 0 and size == 4:
            self._address = value & CONFIG_ADDRESS_BITS
        elif offset == RST_CNT - CONFIG_ADDRESS and size == 1 and self._reset_control is not None:
            self._reset_control.write(0, 1, value)


class Ecam:
    """The Device of memory-mapped configuration space: ECAM_BUS_SIZE bytes for each of 256 buses."""

    def __init__(self, host: PciHost) -> None:
        self._host = host

    def target(self, offset: int) -> tuple[PciDevice | None, int]:
        """The function, if there is one, and its register that an access at *offset* reaches."""
        return self._host.find(offset >> 20, offset >> 12 & 0xFF), offset & 0xFFF

    def read(self, offset: int, size: int) -> int:
        if size == 8:
            return self.read(offset, 4) & ALL_ONES[4] | self.read(offset + 4, 4) << 32
        function, register = self.target(offset)
        if function is not None:
            return function.config_read(register, size)
        self._host.nobody_answers(offset >> 20, offset >> 12 & 0xFF)
        return ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 8:
            self.write(offset, 4, value & 0xFFFFFFFF)
            self.write(offset + 4, 4, value >> 32)
            return
        function, register = self.target(offset)
        if function is not None:
            function.config_write(register, size, value)
