"""An ATA cable: the command block and the control block of a channel, and up to two drives that hear what is written.

    1F0-1F7  command block, see ata.py            3F6  r: status, without an end to the interrupt (alternate status)
    170-177  of the secondary channel             376  w: SRST 04, nIEN 02, HOB 80 (read what was there before)

Both drives take what is written, the one that DEV selects answers. Device 0 answers for a device 1 that is not there:
with its own registers, but status 0. With no drive at all the cable floats, and reads 7F: DD7 is pulled down.
INTRQ is the selected drive's, unless nIEN keeps it off the cable; reading the status ends it.
Source: ATA/ATAPI-6 (T13 1410D), chapter 7, and of chapter 9 what it says of a device that is alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.devices.ata import AtaDrive
from pyvmm.devices.ata_abi import BSY, COMMAND, DEVICE, DEVICE_DEV, DRQ, STATUS
from pyvmm.irq import Irq

SRST, NIEN, HOB = 0x04, 0x02, 0x80
EXECUTE_DEVICE_DIAGNOSTIC: Final = 0x90
FLOATING: Final = 0x7F
COMMAND_BLOCK_PORTS: Final = 8


class AtaChannel:
    """Up to two drives, device 0 first."""

    STATE = ("drives", "control", "_selected", "intrq")

    def __init__(self, line: Irq, number: int = 0) -> None:
        """*number*: 0 for the primary channel, 1 for the secondary one; what the trace says."""
        self.number = number
        self.drives: list[AtaDrive] = []
        self.command_block = CommandBlock(self)
        self.control_block = ControlBlock(self)
        self._line = line
        self.rose: Callable[[], None] = lambda: None
        """INTRQ has come."""
        self.settled: Callable[[], None] = lambda: None
        """A drive has ended something, or begun."""
        self.dma_wanted: Callable[[], None] = lambda: None
        """A drive has data for DMA, or room."""
        self.control = 0
        """The Device Control register."""
        self._selected = 0
        self.intrq = False
        """The level on the cable."""

    def attach(self, drive: AtaDrive) -> None:
        """Put *drive* on the cable, as device 0, then as device 1."""
        drive.number = len(self.drives)
        drive.changed = self.update
        drive.dma_wanted = lambda: self.dma_wanted()
        self.drives.append(drive)

    @property
    def selected(self) -> AtaDrive | None:
        """The drive that DEV names."""
        return self.drives[self._selected] if self._selected < len(self.drives) else None

    def reset(self) -> None:
        """RESET-."""
        self.control = self._selected = 0
        for drive in self.drives:
            drive.reset()
        self.update()

    def update(self) -> None:
        """Drive INTRQ."""
        drive = self.selected
        level = drive is not None and drive.pending and not self.control & NIEN
        rose = level and not self.intrq
        self.intrq = level
        if rose and drive is not None and drive.trace.enabled:
            drive.trace("INTRQ", ("intrq", self.number))
        self._line.set_level(level)
        if rose:
            self.rose()
        self.settled()

    def read(self, register: int) -> int:
        if not self.drives:
            return FLOATING
        drive = self.selected
        if register != STATUS:
            return (drive or self.drives[0]).read_register(register, bool(self.control & HOB))
        if drive is None:
            return 0
        if drive.pending:
            if drive.trace.enabled:
                over = not drive.status & (BSY | DRQ)
                drive.trace(f"read of the status returns {drive.status:#04x}", ("answer", int(over)))
            drive.pending = False
            self.update()
        return drive.status

    def alternate_status(self) -> int:
        if not self.drives:
            return FLOATING
        return 0 if self.selected is None else self.selected.status

    def write(self, register: int, value: int) -> None:
        drive = self.selected or (self.drives[0] if self.drives else None)
        if drive is None or not drive.accepts:
            return
        self.control &= ~HOB
        if register == COMMAND:
            self._command(value)
            return
        for each in self.drives:
            if each.accepts:
                each.write_register(register, value)
        if register == DEVICE:
            self._selected = 1 if value & DEVICE_DEV else 0
            self.update()

    def _command(self, code: int) -> None:
        if code == EXECUTE_DEVICE_DIAGNOSTIC:
            self._diagnose()
        elif self.selected is not None:
            self.selected.command(code)

    def _diagnose(self) -> None:
        """Both do it, whichever is selected, and device 0 tells (EXECUTE DEVICE DIAGNOSTIC)."""
        for drive in self.drives:
            drive.signature()
        self._selected = 0
        self.drives[0].pending = True
        self.update()

    def write_control(self, value: int) -> None:
        self.control = value & (HOB | SRST | NIEN)
        for drive in self.drives:
            drive.set_srst(bool(value & SRST))
        if value & SRST:
            self._selected = 0
        self.update()


class CommandBlock:
    """Ports 1F0-1F7: the data register at any width, the others a byte at a time."""

    def __init__(self, channel: AtaChannel) -> None:
        self._channel = channel

    def read(self, offset: int, size: int) -> int:
        channel = self._channel
        if offset == 0:
            drive = channel.selected
            return drive.read_data(size) if drive is not None else -1 ^ (FLOATING ^ 0xFF)
        return sum(channel.read(offset + at) << 8 * at for at in range(min(size, COMMAND_BLOCK_PORTS - offset)))

    def read_string(self, offset: int, size: int, count: int) -> bytes | None:
        """REP INSW of the data register."""
        drive = self._channel.selected
        return drive.read_string(size * count) if offset == 0 and size > 1 and drive is not None else None

    def write(self, offset: int, size: int, value: int) -> None:
        channel = self._channel
        if offset == 0:
            drive = channel.selected
            if drive is not None:
                drive.write_data(size, value)
            return
        for at in range(min(size, COMMAND_BLOCK_PORTS - offset)):
            channel.write(offset + at, value >> 8 * at & 0xFF)


class ControlBlock:
    """Port 3F6."""

    def __init__(self, channel: AtaChannel) -> None:
        self._channel = channel

    def read(self, offset: int, size: int) -> int:
        return self._channel.alternate_status()

    def write(self, offset: int, size: int, value: int) -> None:
        self._channel.write_control(value & 0xFF)
