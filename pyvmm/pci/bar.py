"""A base address register of a function."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.bus import Device
from pyvmm.pci.config_space import ConfigSpace
from pyvmm.pci.decoder import Claim
from pyvmm.pci.regs import PCI_BASE_ADDRESS_0


class Bar:
    """One base address register: *size* bytes of I/O or memory space that *device* answers, from its offset 0."""

    def __init__(self, index: int, size: int, device: Device, io: bool, bits64: bool, prefetchable: bool) -> None:
        self.index = index
        self.size = size
        self.device = device
        self.io = io
        self.bits64 = bits64
        self.prefetchable = prefetchable
        self.claim: Claim | None = None
        self._doorbells: list[tuple[int, int, int | None, Callable[[], None]]] = []

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

    def add_doorbell(
        self, offset: int, callback: Callable[[], None], size: int = 0, datamatch: int | None = None
    ) -> None:
        """Let a guest's write at *offset* call back without the vCPU waiting, where the machine can (ioeventfd).

        The device must still handle the write in its write(): a machine may have no doorbells.
        """
        self._doorbells.append((offset, size, datamatch, callback))

    def connect(self, claim: Claim) -> None:
        self.claim = claim
        for offset, size, datamatch, callback in self._doorbells:
            claim.add_doorbell(offset, size, datamatch, callback)
