"""A base address register, and the claim on addresses that becomes of it where the function is plugged in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from pyvmm.bus import Device
from pyvmm.pci.config_space import ConfigSpace
from pyvmm.pci.doorbell import Doorbell
from pyvmm.pci.regs import PCI_BASE_ADDRESS_0
from pyvmm.units import PAGE_SIZE

Span = tuple[int, int]
"""(start, end) of a range of addresses; end is exclusive."""


class Claim(Protocol):
    """A BAR's wish to answer some addresses."""

    def place(self, base: int, spans: Iterable[Span]) -> bool:
        """Offset 0 is at *base*, and of the addresses *spans* are wanted; it takes effect at the next Slot.apply().

        False if that is where it was placed last."""

    def release(self) -> None:
        """Answer nowhere any more, for good."""


class Bar:
    """One base address register: *size* bytes of I/O or memory space that *device* answers, from its offset 0."""

    def __init__(self, index: int, size: int, device: Device, io: bool, bits64: bool, prefetchable: bool) -> None:
        self.index = index
        self.size = size
        self.device = device
        self.io = io
        self.bits64 = bits64
        self.prefetchable = prefetchable
        self.doorbells: list[tuple[int, Doorbell]] = []
        self.backing: list[tuple[int, memoryview]] = []
        self.claim: Claim | None = None

    @property
    def name(self) -> str:
        return f"BAR{self.index}"

    @property
    def offset(self) -> int:
        """Where the register is in configuration space."""
        return PCI_BASE_ADDRESS_0 + 4 * self.index

    @property
    def width(self) -> int:
        """Bytes of the register: 4 or 8."""
        return 8 if self.bits64 else 4

    def address(self, config: ConfigSpace) -> int:
        """Where the guest has put it; 0 is nowhere."""
        return config.get(self.offset, self.width) & ~(self.size - 1)

    def enabled(self, config: ConfigSpace) -> bool:
        """Whether the register itself lets it decode."""
        return True

    def add_doorbell(self, offset: int, doorbell: Doorbell) -> None:
        """Let a guest's write at *offset* ring without the vCPU waiting, where the machine can (ioeventfd).

        The device must still handle the write in its write(): a machine may have no doorbells.
        """
        self.doorbells.append((offset, doorbell))

    def back(self, offset: int, buffer: memoryview) -> None:
        """Let the guest reach *buffer* at *offset* without an exit, where the machine can (a memory slot); both are
        whole pages. The device must still handle accesses there; what is not backed always reaches it.

        Before the function is plugged in; ValueError where it does not fit.
        """
        end = offset + len(buffer)
        if self.io or (offset | end) % PAGE_SIZE or not 0 <= offset < end <= self.size:
            raise ValueError(f"BAR {self.index} has no whole pages of memory at {offset:#x} to {end:#x}")
        self.backing.append((offset, buffer))


class FixedPorts(Bar):
    """Ports that a PC always had where they are, which no register moves; the I/O bit of COMMAND turns them on, and the
    device may keep them off."""

    def __init__(self, port: int, count: int, device: Device) -> None:
        super().__init__(-port, count, device, io=True, bits64=False, prefetchable=False)
        self.port = port
        self.decoded = True

    @property
    def name(self) -> str:
        return f"port {self.port:#x}"

    def address(self, config: ConfigSpace) -> int:
        return self.port if self.decoded else 0
