"""Vital product data of a device of the host, which the guest reads and writes through a window of four bytes.

The guest writes an address to PCI_VPD_ADDR, with bit 15 (PCI_VPD_ADDR_F) clear to read and set to write what is in
PCI_VPD_DATA, and waits until the device has turned the bit over. VFIO lets no write to the address come back before
that, and an EEPROM takes milliseconds, one that does not answer 125 of them (drivers/pci/vpd.c): so it is for another
thread, and until it is done the guest sees the bit as it has written it.

PCI Local Bus Specification 3.0, appendix I.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.pci.regs import PCI_VPD_ADDR, PCI_VPD_DATA
from pyvmm.vfio.jobs import Jobs

LENGTH: Final = PCI_VPD_DATA + 4
"""Bytes of the capability."""


class VpdWindow:
    """The capability at *at*. *write* (offset, data) reaches the device, and may take long and raise OSError; *done* is
    called each time that it has come back."""

    def __init__(self, at: int, jobs: Jobs, write: Callable[[int, bytes], None], done: Callable[[], None]) -> None:
        self._at = at
        self._flag = at + PCI_VPD_ADDR + 1
        """Where the byte is that has bit 15 of the address."""
        self._jobs = jobs
        self._write = write
        self._done = done
        self._under_way: int | None = None
        """What the guest has written to that byte and the device has not answered."""

    def write(self, offset: int, data: bytes) -> bool:
        """Whether a write to configuration space is one for this window, which sees to it: what comes before the last
        is done is lost."""
        if self._under_way is not None and offset < self._at + LENGTH and offset + len(data) > self._at + PCI_VPD_ADDR:
            return True
        if not offset <= self._flag < offset + len(data):
            return False
        self._under_way = data[self._flag - offset]
        self._jobs.add(lambda say: self._write(offset, data), self._ended)
        return True

    def _ended(self) -> None:
        self._under_way = None
        self._done()

    def read(self, offset: int, data: bytes) -> bytes:
        """What the guest reads where the device's configuration space has *data*."""
        if self._under_way is None or not offset <= self._flag < offset + len(data):
            return data
        at = self._flag - offset
        return data[:at] + bytes((self._under_way,)) + data[at + 1 :]
