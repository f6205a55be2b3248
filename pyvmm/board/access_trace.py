"""The guest's accesses to the parts of a board, each on the channel of its part: `edu BAR0+0x20 R4 -> 0x1 rip=…`.

It watches exits, so it costs nothing while none of these channels is on; where a write rings a doorbell (ioeventfd)
there is no exit, and no line. Accesses to configuration space, by 0xCF8 or ECAM, go to the function's channel, else to
that of `pci`, with bus:device.function and the register by its name. RIP is what KVM says at the exit: the instruction
that reads; of a write that one, or the next where KVM is done with it.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from kvm_cffi import Exit, KvmError, Vcpu
from kvm_cffi.exits import MmioRead, MmioWrite, PioIn, PioOut
from pyvmm.board.pc import Pc
from pyvmm.bus import Bus, Range
from pyvmm.pci.host import CONFIG_ADDRESS, CONFIG_ENABLE, RST_CNT, ConfigPorts, Ecam
from pyvmm.pci.names import register_name
from pyvmm.trace import Channel, Trace


class Place(NamedTuple):
    """Who answers in one range of a bus."""

    channel: Channel
    label: str
    base: int | None
    """The address that offsets are counted from; None: the address itself is shown."""


class BusMap:
    """Who answers where on one bus, worked out anew when the bus has changed."""

    def __init__(self, board: Pc, trace: Trace, bus: Bus) -> None:
        self._board = board
        self._trace = trace
        self._bus = bus
        self._ranges: tuple[Range, ...] = ()
        self._starts: list[int] = []
        self._places: list[Place | None] = []

    def at(self, address: int) -> tuple[Range, Place] | None:
        """The range that *address* is in, and whose it is; None where nobody of a channel's answers."""
        if self._bus.ranges is not self._ranges:
            self.update()
        return self.found(address)

    def update(self) -> None:
        """The bus has changed."""
        self._ranges = self._bus.ranges
        self._starts = [start for start, *_ in self._ranges]
        self._places = self._work_out(self._ranges)

    def found(self, address: int) -> tuple[Range, Place] | None:
        """As at(), as of the last update."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._ranges[index][1]:
            return None
        place = self._places[index]
        return None if place is None else (self._ranges[index], place)

    def _work_out(self, ranges: tuple[Range, ...]) -> list[Place | None]:
        board, trace = self._board, self._trace
        is_io = self._bus is board.pio
        bars: dict[tuple[int, int], Place] = {}
        functions = board.pci.all_functions()
        shared = [function.trace for function in functions]
        for function in functions:
            for bar in function.ranges:
                if bar.io == is_io:
                    base = bar.address(function.config)
                    whose = "" if shared.count(function.trace) == 1 else f"{function.name} "
                    bars[id(bar.device), base] = Place(function.trace, f"{whose}{bar.name}", base)
        parts: list[tuple[int, int, Place]] = []
        for placement in board.parts:
            if placement.part is not None:
                channel = trace.channel(placement.name)
                for start, length in placement.ports if is_io else placement.memory:
                    place = Place(channel, "port " if is_io else f"{start:#x}", None if is_io else start)
                    parts.append((start, start + length, place))
        found: list[Place | None] = []
        for start, end, device, offset in ranges:
            mine = (place for first, last, place in parts if first <= start and end <= last)
            found.append(bars.get((id(device), start - offset)) or next(mine, None))
        return found


class AccessTrace:
    """An Observer; see vcpu/observer.py."""

    def __init__(self, board: Pc, trace: Trace) -> None:
        self._board = board
        self._trace = trace
        self._pio, self._mmio = (BusMap(board, trace, bus) for bus in (board.pio, board.mmio))
        self._several = board.sockets.possible > 1

    def entering(self, vcpu: Vcpu) -> None: ...

    def gathered(self, pio: bool, address: int, size: int, value: int) -> None:
        self._tell(None, self._pio if pio else self._mmio, address, f"W{size} <- {value:#x}", value)

    def exited(self, vcpu: Vcpu, exit: Exit) -> None:
        match exit:
            case PioOut(port, size, value):
                self._tell(vcpu, self._pio, port, f"W{size} <- {value:#x}", value)
            case MmioWrite(address, size, value):
                self._tell(vcpu, self._mmio, address, f"W{size} <- {value:#x}", value)

    def answered(self, vcpu: Vcpu, exit: Exit, value: int) -> None:
        match exit:
            case PioIn(port, size):
                self._tell(vcpu, self._pio, port, f"R{size} -> {value:#x}")
            case MmioRead(address, size):
                self._tell(vcpu, self._mmio, address, f"R{size} -> {value:#x}")

    def _tell(self, vcpu: Vcpu | None, where: BusMap, address: int, what: str, written: int | None = None) -> None:
        """A line for an access, if somebody watches who answers it; *vcpu* is whose it is, where that is known."""
        found = where.at(address)
        if found is None:
            return
        (start, _, device, offset), place = found
        channel, more = place.channel, ""
        if isinstance(device, (ConfigPorts, Ecam)):
            channel, name, more = self._configuration(device, address - start + offset, channel, written)
        elif place.base is None:
            name = f"{place.label}{address:#x}"
        else:
            name = f"{place.label}+{address - place.base:#x}"
        if channel.on:
            channel(f"{name} {what}{more}{self._rip(vcpu)}")

    def _configuration(
        self, device: ConfigPorts | Ecam, offset: int, pci: Channel, written: int | None
    ) -> tuple[Channel, str, str]:
        """The channel for an access to configuration space, what it reaches, and what else is to be said."""
        host = self._board.pci
        if isinstance(device, Ecam):
            function, register = device.target(offset)
            number, devfn = offset >> 20, offset >> 12 & 0xFF
        else:
            if offset == RST_CNT - CONFIG_ADDRESS:
                return self._trace.channel("reset-control"), "port 0xcf9", ""
            address = device.address if offset >= 4 or written is None else written
            number, devfn = address >> 16 & 0xFF, address >> 8 & 0xFF
            function, register = host.find(number, devfn), (address & 0xFC) + max(offset - 4, 0)
            if not address & CONFIG_ENABLE:
                return pci, "CONFIG_DATA" if offset >= 4 else "CONFIG_ADDRESS", ", not enabled"
        name = f"{number:02x}:{devfn >> 3:02x}.{devfn & 7} {register_name(function, register)}"
        if offset < 4 and isinstance(device, ConfigPorts):
            return pci, "CONFIG_ADDRESS", f" ({name})"
        if function is None:
            return pci, name, ", no function"
        return function.trace if function.trace.on else pci, name, ""

    def _rip(self, vcpu: Vcpu | None) -> str:
        if vcpu is None:
            return ""
        try:
            rip = f" rip={vcpu.get_regs().rip:#x}"
        except KvmError:  # KVM has given the VM up
            return ""
        return f"{rip} vcpu{vcpu.id}" if self._several else rip
