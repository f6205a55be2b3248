"""RTL8029AS: an NE2000 as a PCI function, which drivers of the nineties and of one's own know; see devices/dp8390.py.

    BAR 0   32 ports, the chip's        INTA   its interrupt

Source: Realtek RTL8029AS data sheet. A frame for which the ring has no room waits on the wire until
the driver has moved BNRY, as behind a switch that has been told to pause: the chip has 16 KiB, and gets no bursts.
"""

from __future__ import annotations

from pathlib import Path

from pyvmm.backends.mac import parse_mac, random_mac
from pyvmm.backends.wire import HEADER_SIZE, Networks
from pyvmm.devices.dp8390 import PORTS, Dp8390
from pyvmm.errors import UserError, printable
from pyvmm.pci.device import PciDevice


class Ne2000(PciDevice):
    """A network card for guests without virtio, to=user, tap or socket:PATH (docs/networks.md)."""

    vendor_id, device_id, class_code, interrupt_pin = 0x10EC, 0x8029, 0x020000, 1
    subsystem_vendor_id, subsystem_id = 0x10EC, 0x8029
    STATE = ("chip", "_refused")

    def __init__(
        self,
        to: str,
        networks: Networks,
        *,
        mac: str | None = None,
        name: str | None = None,
        forward: str | None = None,
        dump: Path | None = None,
    ) -> None:
        super().__init__()
        try:
            address = random_mac() if mac is None else parse_mac(mac)
        except ValueError as error:
            raise UserError(f"net {printable(to)}: {error}") from None
        self.chip = Dp8390(address, self.interrupt, self._send, self._room)
        self._refused = False
        """A frame waits on the wire."""
        self.wire = networks.open(to, name=name, forward=forward, dump=dump)
        self.wire.listen(self._receive)
        self.add_io_bar(0, PORTS, self.chip)

    def attached(self) -> None:
        self.chip.trace = self.trace

    def _send(self, frame: bytes) -> None:
        if len(frame) >= HEADER_SIZE:  # nobody takes a fragment
            self.wire.send(frame)

    def _receive(self, frame: bytes) -> bool:
        if not self.chip.has_room(len(frame)):
            self._refused = True
            return False
        self.chip.receive(frame)
        return True

    def _room(self) -> None:
        """The driver has made some, or has begun anew."""
        if self._refused:
            self._refused = False
            self.wire.ready()

    def reset(self) -> None:
        self.chip.reset()
        self._room()  # what waits is lost, as all that comes before the driver is back

    def restored(self) -> None:
        super().restored()
        if self.slot is not None:
            self.slot.defer(self.wire.ready)  # whatever waits there now

    def close(self) -> None:
        self.wire.close()
