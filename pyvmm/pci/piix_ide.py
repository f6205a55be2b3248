"""PIIX3 IDE controller (82371SB, function 1): two ATA channels at the ports that a PC always had, and their bus master.

    configuration 40, 42   IDETIM of the primary and the secondary channel: bit 15 lets it answer, the rest is timing
                  44       SIDETIM, timing of the second drives
    ports 1F0-1F7, 3F6, IRQ 14       170-177, 376, IRQ 15       see devices/ata_channel.py
    BAR 4, 16 ports        bus master, 8 ports a channel:
        0  BMICX   bit 0 start, bit 3 into memory
        2  BMISX   bit 0 active, bit 1 error (w1c), bit 2 interrupt (w1c), bits 5 and 6 the driver's own
        4  BMIDTPX address of the table: dwords {address}, {bytes, 0 is 64 KiB; bit 31 ends the table}

Sources: Intel 290550 (82371FB and 82371SB data sheet); SFF-8038i, revision 1.0, for the bus master.
What is left away: the timing registers are kept and mean nothing, and a table ends after 64 KiB of itself.
IDETIM's bit 15 is on after a reset, as a BIOS leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyvmm.bus import ALL_ONES
from pyvmm.devices.ata_abi import BSY, DMA_IN, DMA_OUT, SECTOR
from pyvmm.devices.ata_channel import COMMAND_BLOCK_PORTS, AtaChannel
from pyvmm.irq import Irq
from pyvmm.memory import GuestMemoryError
from pyvmm.pci.ata_disk import AtaDisk
from pyvmm.pci.device import PciDevice
from pyvmm.state import Plain

COMMAND_BLOCKS: Final = (0x1F0, 0x170)
CONTROL_BLOCKS: Final = (0x3F6, 0x376)
DRIVES_A_CHANNEL: Final = 2
MAX_DISKS: Final = DRIVES_A_CHANNEL * len(COMMAND_BLOCKS)

IDETIM: Final = 0x40
SIDETIM: Final = 0x44
IDETIM_IDE: Final = 0x8000

BMICX, BMISX, BMIDTPX = 0, 2, 4
BUS_MASTER_PORTS: Final = 8
BMIC_START, BMIC_TO_MEMORY = 0x01, 0x08
BMIS_ACTIVE, BMIS_ERROR, BMIS_INTERRUPT, BMIS_DRIVER = 0x01, 0x02, 0x04, 0x60
PRD_SIZE: Final = 8
PRD_END: Final = 0x80000000
MAX_PRDS: Final = 65536 // PRD_SIZE
PRDS_AT_ONCE: Final = 256
"""Regions of one request to the drive: a guest can make them two bytes small."""


class BusMaster:
    """The bus master of one channel: walks its table for what the drive wants to move."""

    STATE = ("command", "status", "table", "_next", "_count", "_address", "_room", "_last")

    def __init__(self, function: PciDevice, channel: AtaChannel) -> None:
        self._function = function
        self._channel = channel
        channel.dma_wanted, channel.settled, channel.rose = self.work, self._settle, self._interrupt
        self.reset()

    def reset(self) -> None:
        self.command = self.status = self.table = 0
        self._rewind()

    def _rewind(self) -> None:
        """Go to the start of the table."""
        self._next, self._count = self.table, 0
        self._address = self._room = 0
        """What is left of the region that was read last."""
        self._last = False

    def _interrupt(self) -> None:
        self.status |= BMIS_INTERRUPT

    def _settle(self) -> None:
        """What the table says is moved, once the drive no longer has it."""
        drive = self._channel.selected
        if self._ended and (drive is None or not drive.status & BSY):
            self.status &= ~BMIS_ACTIVE

    def image(self) -> bytes:
        return bytes((self.command, 0, self.status, 0)) + self.table.to_bytes(4, "little")

    def write(self, offset: int, value: int) -> None:
        """A byte of its eight ports."""
        if offset == BMICX:
            self._write_command(value)
        elif offset == BMISX:
            cleared = value & (BMIS_ERROR | BMIS_INTERRUPT)
            self.status = self.status & ~(cleared | BMIS_DRIVER) | value & BMIS_DRIVER
        elif offset >= BMIDTPX:
            shift = 8 * (offset - BMIDTPX)
            self.table = (self.table & ~(0xFF << shift) | value << shift) & 0xFFFFFFFC

    def _write_command(self, value: int) -> None:
        starts = value & BMIC_START and not self.command & BMIC_START
        self.command = value & (BMIC_START | BMIC_TO_MEMORY)
        if starts:
            self._rewind()
            self.status |= BMIS_ACTIVE
            self.work()
        elif not value & BMIC_START:
            self.status &= ~BMIS_ACTIVE

    def work(self) -> None:
        """Move what the drive and the table have now."""
        drive = self._channel.selected
        wanted = DMA_IN if self.command & BMIC_TO_MEMORY else DMA_OUT
        if drive is None or not self.status & BMIS_ACTIVE or drive.dma_direction != wanted:
            return
        try:
            views = self._gather(drive.dma_bytes)
        except GuestMemoryError:
            self.status = self.status & ~BMIS_ACTIVE | BMIS_ERROR
            return
        if views:
            drive.transfer(views)
        else:
            self.status &= ~BMIS_ACTIVE

    @property
    def _ended(self) -> bool:
        return not self._room and (self._last or self._count >= MAX_PRDS)

    def _gather(self, size: int) -> list[memoryview]:
        """The next *size* bytes of the regions, fewer where the table ends; whole sectors. Raises GuestMemoryError."""
        views: list[memoryview] = []
        total = 0
        memory = self._function.dma
        enough = self._count + PRDS_AT_ONCE
        while total < size and not self._ended:
            if not self._room:
                if self._count >= enough:
                    size = -(-total // SECTOR) * SECTOR
                    if total == size:
                        break
                self._read_entry(int.from_bytes(memory.read(self._next, PRD_SIZE), "little"))
            take = min(self._room, size - total)
            views.append(memory.view(self._address, take))
            self._address += take
            self._room -= take
            total += take
        surplus = total % SECTOR
        while surplus:
            cut = min(surplus, len(views[-1]))
            views[-1] = views[-1][: len(views[-1]) - cut]
            surplus -= cut
            if not views[-1]:
                views.pop()
        return views

    def _read_entry(self, entry: int) -> None:
        self._address = entry & 0xFFFFFFFE
        self._room = (entry >> 32 & 0xFFFE) or 0x10000
        self._last = bool(entry >> 32 & PRD_END)
        self._next += PRD_SIZE
        self._count += 1


class PiixIde(PciDevice):
    """An IDE controller for up to four disks; its *lines* are IRQ 14 and 15."""

    vendor_id, device_id, class_code = 0x8086, 0x7010, 0x010180
    STATE = ("channels", "masters", "disks")

    def __init__(self, lines: Sequence[Irq]) -> None:
        super().__init__()
        self.masters: list[BusMaster] = []
        self.channels: list[AtaChannel] = []
        self.disks: list[AtaDisk] = []
        for number, line in enumerate(lines):
            channel = AtaChannel(line, number)
            self.channels.append(channel)
            self.masters.append(BusMaster(self, channel))
            self.config.define(IDETIM + 2 * number, 2, IDETIM_IDE, 0xFFFF)
            self.add_fixed_ports(COMMAND_BLOCKS[number], COMMAND_BLOCK_PORTS, channel.command_block)
            self.add_fixed_ports(CONTROL_BLOCKS[number], 1, channel.control_block)
        self.config.define(SIDETIM, 1, 0, 0xFF)
        self.add_io_bar(4, BUS_MASTER_PORTS * len(self.masters), self)

    def attach(self, disk: AtaDisk) -> None:
        """Put *disk* where there is room: device 0 and 1 of the primary channel, then of the secondary one. ValueError
        where there is none."""
        for channel in self.channels:
            if len(channel.drives) < DRIVES_A_CHANNEL:
                channel.attach(disk.drive)
                self.disks.append(disk)
                return
        raise ValueError(f"there are at most {MAX_DISKS} disks with bus=ata: leave one away")

    def config_write(self, offset: int, size: int, value: int) -> None:
        super().config_write(offset, size, value)
        if offset < SIDETIM and offset + size > IDETIM:
            self.update_decode()

    def place_bars(self) -> bool:
        for number, ports in enumerate(self.fixed_ports):
            ports.decoded = bool(self.config.get(IDETIM + number // 2 * 2, 2) & IDETIM_IDE)
        return super().place_bars()

    def bus_master_changed(self, enabled: bool) -> None:
        for master in self.masters:
            master.work()

    def read(self, offset: int, size: int) -> int:
        image = b"".join(master.image() for master in self.masters)
        return int.from_bytes(image[offset : offset + size], "little") if offset < len(image) else ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        for at in range(offset, min(offset + size, BUS_MASTER_PORTS * len(self.masters))):
            number, register = divmod(at, BUS_MASTER_PORTS)
            self.masters[number].write(register, value & 0xFF)
            value >>= 8

    def reset(self) -> None:
        for channel in self.channels:
            channel.reset()
        for master in self.masters:
            master.reset()

    # What a snapshot has of the disks

    def check_saved(self, saved: Plain) -> None:
        """Raises StateError where a disk is not what it was."""
        for disk, one in self._saved(saved):
            disk.check_saved(one)

    def portable(self, saved: Plain) -> Plain:
        """What was saved, for another process."""
        disks: Plain = [disk.portable(one) for disk, one in self._saved(saved)]
        return saved | {"disks": disks} if isinstance(saved, dict) else saved

    def _saved(self, saved: Plain) -> list[tuple[AtaDisk, Plain]]:
        disks = saved.get("disks") if isinstance(saved, dict) else None
        return list(zip(self.disks, disks, strict=False)) if isinstance(disks, list) else []

    def close(self) -> None:
        for disk in self.disks:
            disk.close()
