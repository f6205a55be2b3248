"""The host's device, as a guest's accesses reach it: nothing of the guest's doing raises."""

from __future__ import annotations

from collections.abc import Callable

from kvm_cffi.vfio import VfioRegion
from pyvmm.trace import Channel
from pyvmm.vfio.host import HostDevice


class Access:
    """*name* is what the trace calls it."""

    def __init__(self, device: HostDevice, name: str, trace: Channel) -> None:
        self.device = device
        self.name = name
        self._trace = trace

    @property
    def told(self) -> bool:
        """Whether somebody watches."""
        return self._trace.enabled

    def tell(self, what: str) -> None:
        if self.told:
            self._trace(f"{self.name}: {what}")

    def attempt(self, what: str, call: Callable[[], object]) -> bool:
        """Whether the host has done *call*; why not, is told."""
        try:
            call()
        except OSError as error:
            self.tell(f"{what}: {error}")
            return False
        return True

    def read(self, region: VfioRegion, offset: int, size: int) -> bytes:
        """What the device has there; all ones where it does not answer."""
        try:
            data = self.device.read(region, offset, size)
        except OSError:
            data = b""
        return data.ljust(size, b"\xff")

    def write(self, region: VfioRegion, offset: int, data: bytes) -> None:
        what = f"region {region.index}, {len(data)} bytes to {offset:#x}"
        self.attempt(what, lambda: self.device.write(region, offset, data))
