"""An ATA disk drive: the task file of one device, its commands, and the data that goes through its data register.

    1  features w, error r          4  LBA mid, cylinder low        6  device: LBA 40, DEV 10, head or LBA 27:24
    2  sector count                 5  LBA high, cylinder high      7  command w, status r: BSY 80 DRDY 40 DF 20
    3  LBA low, sector number                                          DSC 10 DRQ 08 ERR 01
    0  data, 16 bits

Sectors have 512 bytes. What the drive reads or writes passes through a buffer of 64 KiB, or by DMA straight from and to
memory; the medium answers later, and BSY is set until then. Commands come as CHS, LBA of 28 bits or (EXT) of 48.
Source: ATA/ATAPI-6 (T13 1410D), chapters 7 (registers), 8 (commands) and 9 (protocols).

Two drives share a cable, which is ata_channel.py. What a drive does not know it aborts (ERR, ABRT).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from pyvmm.devices.ata_abi import (
    ABRT,
    ACTIVE,
    BSY,
    COUNT,
    DEVICE,
    DEVICE_LBA,
    DIAGNOSTIC_PASSED,
    DMA_IN,
    DMA_OUT,
    DRQ,
    ERR,
    ERROR,
    FEATURES,
    IDLE,
    IDNF,
    LBA_HIGH,
    LBA_LOW,
    LBA_MID,
    NOTHING,
    PIO_IN,
    PIO_OUT,
    READY,
    SECTOR,
    SET_TRANSFER_MODE,
    SLEEPING,
    STANDBY,
    TRANSFERS,
    UNC,
    VERIFY,
    Transfer,
)
from pyvmm.devices.ata_identify import DEFAULT_GEOMETRY, MAX_LBA28, MAX_MULTIPLE, DriveIdentity, Geometry, identify
from pyvmm.trace import OFF, Channel

BUFFER_SECTORS: Final = 128
DMA_SECTORS: Final = 1024
"""At most so many are asked of the medium at once."""

Done = Callable[[bool], None]


class Medium(Protocol):
    """Where the sectors are. A request ends in *done*, with whether all went well: at once, or later."""

    @property
    def sectors(self) -> int: ...

    @property
    def readonly(self) -> bool: ...

    @property
    def busy(self) -> bool:
        """Whether a request is under way, given up or not."""

    def read(self, sector: int, views: Sequence[memoryview], done: Done) -> None: ...

    def write(self, sector: int, views: Sequence[memoryview], through: bool, done: Done) -> None:
        """*through*: done only once a loss of power does not undo it."""

    def flush(self, done: Done) -> None: ...

    def give_up(self) -> None:
        """Nobody waits for what is under way; *done* is called all the same where it had begun."""


class AtaDrive:
    """One device on a cable. *changed* is called when its interrupt may have changed, *dma_wanted* when it has data for
    DMA or room for some."""

    # fmt: off
    STATE = (
        "now", "before", "status", "error", "pending", "in_reset", "_resetting", "_heads", "_track", "_multiple",
        "_mwdma", "_write_cache", "_reverts", "_power", "_command", "_kind", "_sector", "_left", "_block", "_through",
        "_buffer", "_position", "_block_end", "_filled",
    )
    # fmt: on

    def __init__(self, medium: Medium, model: str, serial: str, firmware: str, trace: Channel = OFF) -> None:
        self._medium = medium
        self._identity = DriveIdentity(model, serial, firmware, medium.sectors)
        self.trace = trace
        self.number = 0
        """0 or 1, by its place on the cable."""
        self.changed: Callable[[], None] = lambda: None
        self.dma_wanted: Callable[[], None] = lambda: None
        self._waiting: object | None = None
        """Which request to the medium is this command's."""
        self._power_on()

    def _power_on(self) -> None:
        self.now, self.before = [0] * 8, [0] * 8
        """The registers, and what was in them before the last write to each."""
        self.in_reset = self._resetting = False
        """SRST is held; and what was under way has not ended yet."""
        self._mwdma: int | None = None
        self._write_cache = self._reverts = True
        self._power = ACTIVE
        self._revert()
        self._clear_transfer()
        self.signature()

    def _revert(self) -> None:
        """What a software reset brings back, unless the host has forbidden it."""
        self._heads, self._track = DEFAULT_GEOMETRY
        self._multiple = 0
        self._write_cache = True

    def _clear_transfer(self) -> None:
        self._waiting = None
        self._command = self._kind = self._sector = self._left = self._block = 0
        self._through = False
        self._buffer = bytearray(BUFFER_SECTORS * SECTOR)  # a new one: the old may still be read into
        self._position = self._block_end = self._filled = 0

    # Resets

    def reset(self) -> None:
        """RESET- or power-on."""
        self._medium.give_up()
        self._power_on()

    def set_srst(self, held: bool) -> None:
        """SRST of the Device Control register, which both drives hear (chapter 9, software reset protocol)."""
        if held and not self.in_reset:
            self._medium.give_up()
            self._clear_transfer()
            self.pending = False
            self.status = BSY
            self._resetting = True
            self._power = ACTIVE
            if self._reverts:
                self._revert()
        self.in_reset = held
        self._end_reset()

    def _end_reset(self) -> None:
        if self._resetting and not self.in_reset and not self._medium.busy:
            self._resetting = False
            self.signature()

    def signature(self) -> None:
        """What the registers hold after a reset, and after EXECUTE DEVICE DIAGNOSTIC (chapter 9, signature)."""
        self.now[COUNT], self.now[LBA_LOW], self.now[LBA_MID], self.now[LBA_HIGH], self.now[DEVICE] = 1, 1, 0, 0, 0
        self.error = DIAGNOSTIC_PASSED
        self.status = READY
        self.pending = False

    # Registers

    @property
    def accepts(self) -> bool:
        """Whether the command block may be written to: no command is under way."""
        return not self.status & (BSY | DRQ)

    def write_register(self, register: int, value: int) -> None:
        self.before[register], self.now[register] = self.now[register], value

    def read_register(self, register: int, high: bool) -> int:
        """*high*: what was there before the last write (HOB)."""
        if register == ERROR:
            return self.error
        if register == DEVICE:
            return self.now[DEVICE] | 0xA0  # bits 7 and 5 are obsolete, and one
        return (self.before if high else self.now)[register]

    def _set_address(self, sector: int, ext: bool) -> None:
        """Let the registers name a sector, in the way that the command did."""
        now = self.now
        if ext:
            for at, register in enumerate((LBA_LOW, LBA_MID, LBA_HIGH)):
                now[register], self.before[register] = sector >> 8 * at & 0xFF, sector >> 24 + 8 * at & 0xFF
            return
        if now[DEVICE] & DEVICE_LBA:
            low, cylinder, head = sector & 0xFF, sector >> 8 & 0xFFFF, sector >> 24
        else:
            track, number = divmod(sector, self._track)
            cylinder, head = divmod(track, self._heads)
            low = number + 1
        now[LBA_LOW], now[LBA_MID], now[LBA_HIGH] = low, cylinder & 0xFF, cylinder >> 8 & 0xFF
        now[DEVICE] = now[DEVICE] & 0xF0 | head & 0x0F

    def _address(self, ext: bool) -> int | None:
        """The sector that the registers name; None where there is none of that number on a track or cylinder."""
        now, before = self.now, self.before
        low = now[LBA_HIGH] << 16 | now[LBA_MID] << 8 | now[LBA_LOW]
        if ext:
            return before[LBA_HIGH] << 40 | before[LBA_MID] << 32 | before[LBA_LOW] << 24 | low
        head = now[DEVICE] & 0x0F
        if now[DEVICE] & DEVICE_LBA:
            return head << 24 | low
        number = now[LBA_LOW]
        if not 1 <= number <= self._track or head >= self._heads:
            return None
        return ((low >> 8) * self._heads + head) * self._track + number - 1

    # Commands

    def command(self, code: int) -> None:
        """The host writes the Command register of this drive."""
        if not self.accepts or self._power == SLEEPING:
            return
        if self.pending:
            self.pending = False
            self.changed()  # at once: the next one is another edge
        self.error = 0
        self._command = code
        if self.trace.enabled:
            self.trace(f"command {code:#04x} registers {bytes(self.now[1:7]).hex(' ')}", ("command",))
        transfer = TRANSFERS.get(code)
        if transfer is not None:
            self._begin(transfer)
            return
        handler = _COMMANDS.get(code, AtaDrive._abort)
        handler(self)
        self.changed()

    def _end(self, status: int = READY, error: int = 0, interrupt: bool = True) -> None:
        """A command is over."""
        self._waiting = None
        self._kind = NOTHING
        self.status, self.error = status, error
        self.pending = self.pending or interrupt

    def _abort(self) -> None:
        self._end(READY | ERR, ABRT)

    def _count(self, ext: bool) -> int:
        if ext:
            return (self.before[COUNT] << 8 | self.now[COUNT]) or 0x10000
        return self.now[COUNT] or 0x100

    def _begin(self, transfer: Transfer) -> None:
        sector, count = self._address(transfer.ext), self._count(transfer.ext)
        writes = transfer.kind in (PIO_OUT, DMA_OUT)
        if (transfer.multiple and not self._multiple) or (writes and self._medium.readonly):
            self._abort()
        elif sector is None or sector + count > self._identity.sectors:
            self._end(READY | ERR, IDNF)
        else:
            self._power = ACTIVE
            self._kind, self._sector, self._left = transfer.kind, sector, count
            self._block = (self._multiple if transfer.multiple else 1) * SECTOR
            self._through = transfer.through or not self._write_cache
            self._go_on()
        self.changed()

    def _go_on(self) -> None:
        """The next part of a transfer."""
        kind = self._kind
        if not self._left:
            self._end()
        elif kind in (PIO_IN, VERIFY):
            self._fetch()
        elif kind == PIO_OUT:
            self._filled = min(self._left, BUFFER_SECTORS) * SECTOR
            self._position = 0
            self._offer()
        else:
            self.status = READY | DRQ
            self.dma_wanted()

    def _request(self) -> Done:
        """BSY until the medium has done what it is about to be asked for."""
        self.status = BSY
        token = self._waiting = object()
        return lambda well: self._answered(token, well)

    def _answered(self, token: object, well: bool) -> None:
        if token is self._waiting:
            self._waiting = None
            if well:
                self._continue()
            else:
                self._fail()
        else:
            self._end_reset()
        self.changed()

    def _fail(self) -> None:
        if self._kind != NOTHING:
            self._set_address(self._sector, _is_ext(self._command))
        self._end(READY | ERR, UNC if self._kind in (PIO_IN, DMA_IN, VERIFY) else ABRT)

    def _continue(self) -> None:
        """What the medium was asked for is done."""
        if self._kind == NOTHING:  # FLUSH CACHE
            self._end()
        elif self._kind == PIO_IN:
            self._position = 0
            self._offer()
            self.pending = True
        else:
            done = self._filled // SECTOR
            self._sector += done
            self._left -= done
            kind = self._kind
            self._go_on()
            self.pending = self.pending or kind == PIO_OUT

    def _flush(self) -> None:
        self._kind = NOTHING
        self._medium.flush(self._request())

    # Data through the data register

    def _fetch(self) -> None:
        self._filled = min(self._left, BUFFER_SECTORS) * SECTOR
        self._medium.read(self._sector, [memoryview(self._buffer)[: self._filled]], self._request())

    def _offer(self) -> None:
        """The next DRQ block is there to be read, or may be written."""
        self._block_end = min(self._position + self._block, self._filled)
        self.status = READY | DRQ

    def read_data(self, size: int) -> int:
        """The host reads *size* bytes, 1 to 4, of the data register: words, of which a byte is the lower half."""
        position = self._position
        if self._kind != PIO_IN or not self.status & DRQ:
            return -1
        value = int.from_bytes(self._buffer[position : position + size], "little")
        self._position = position + (size + 1 & ~1)
        if self._position >= self._block_end:
            self._block_read()
        return value

    def read_string(self, length: int) -> bytes | None:
        """*length* bytes of the data register in a row, words; None where the DRQ block has not as many."""
        end = self._position + length
        if self._kind != PIO_IN or not self.status & DRQ or end > self._block_end:
            return None
        data = bytes(self._buffer[self._position : end])
        self._position = end
        if end == self._block_end:
            self._block_read()
        return data

    def _block_read(self) -> None:
        if self._block_end < self._filled:
            self._position = self._block_end
            self._offer()
            self.pending = True
        else:
            sectors = self._filled // SECTOR
            self._sector += sectors
            self._left -= sectors
            if self.trace.enabled:
                self.trace(f"{self._filled} bytes of data are read", ("answer", int(self._left <= 0)))
            if self._left > 0:
                self._fetch()
            else:
                self._end(interrupt=False)
        self.changed()

    def write_data(self, size: int, value: int) -> None:
        """The host writes the data register."""
        position = self._position
        if self._kind != PIO_OUT or not self.status & DRQ:
            return
        end = min(position + (size + 1 & ~1), self._block_end)
        self._buffer[position:end] = value.to_bytes(4, "little")[: end - position]
        self._position = end
        if self._position >= self._block_end:
            self._block_written()

    def _block_written(self) -> None:
        if self._block_end < self._filled:
            self._position = self._block_end
            self._offer()
            self.pending = True
        else:
            views = [memoryview(self._buffer)[: self._filled]]
            self._medium.write(self._sector, views, self._through, self._request())
        self.changed()

    # Data by DMA

    @property
    def dma_direction(self) -> int:
        """DMA_IN (to memory) or DMA_OUT while the drive waits for its DMA, else NOTHING."""
        waits = self._kind in (DMA_IN, DMA_OUT) and self.status & DRQ
        return self._kind if waits else NOTHING

    @property
    def dma_bytes(self) -> int:
        """How many it would move at once."""
        return min(self._left, DMA_SECTORS) * SECTOR

    def transfer(self, views: Sequence[memoryview]) -> None:
        """Move whole sectors, at most dma_bytes, to or from *views*."""
        self._filled = sum(map(len, views))
        if self._kind == DMA_IN:
            self._medium.read(self._sector, views, self._request())
        else:
            self._medium.write(self._sector, views, self._through, self._request())

    # Commands without data from the medium

    def _identify(self) -> None:
        geometry = Geometry(self._heads, self._track)
        data = identify(self._identity, self.number, geometry, self._multiple, self._mwdma, self._write_cache)
        self._buffer[:SECTOR] = data
        self._kind, self._left, self._block, self._filled, self._position = PIO_IN, 1, SECTOR, SECTOR, 0
        self._offer()
        self.pending = True

    def _set_features(self) -> None:
        feature, count = self.now[FEATURES], self.now[COUNT]
        if feature == 0x82 and self._write_cache:  # off: what is in it goes to the medium
            self._write_cache = False
            self._flush()
        elif feature in (0x02, 0x82):
            self._write_cache = feature == 0x02
            self._end()
        elif feature in (0x66, 0xCC):
            self._reverts = feature == 0xCC
            self._end()
        elif feature == SET_TRANSFER_MODE and (count <= 0x01 or 0x08 <= count <= 0x0C):
            self._mwdma = None
            self._end()
        elif feature == SET_TRANSFER_MODE and 0x20 <= count <= 0x22:
            self._mwdma = count & 7
            self._end()
        elif feature in (0x55, 0xAA):  # read look-ahead: the host's page cache has its own
            self._end()
        else:
            self._abort()

    def _set_multiple(self) -> None:
        count = self.now[COUNT]
        if count > MAX_MULTIPLE or count & count - 1:
            self._abort()
        else:
            self._multiple = count
            self._end()

    def _initialize_parameters(self) -> None:
        if self.now[COUNT]:
            self._heads, self._track = (self.now[DEVICE] & 0x0F) + 1, self.now[COUNT]
            self._end()
        else:
            self._abort()

    def _seek(self) -> None:
        sector = self._address(ext=False)
        if sector is None or sector >= self._identity.sectors:
            self._end(READY | ERR, IDNF)
        else:
            self._end()

    def _check_power(self) -> None:
        self.now[COUNT] = self._power
        self._end()

    def _set_power(self, power: int) -> None:
        self._power = power
        self._end()

    def _standby(self) -> None:
        """The cache goes to the medium first (STANDBY IMMEDIATE)."""
        self._power = STANDBY
        self._flush()

    def _native_max(self, ext: bool) -> None:
        last = self._identity.sectors - 1
        if not ext:
            self.now[DEVICE] |= DEVICE_LBA
            last = min(last, MAX_LBA28 - 1)
        self._set_address(last, ext)
        self._end()


_Handler = Callable[[AtaDrive], None]
_COMMANDS: Final[dict[int, _Handler]] = {
    0x27: lambda drive: drive._native_max(True),  # READ NATIVE MAX ADDRESS EXT
    0x91: AtaDrive._initialize_parameters,  # INITIALIZE DEVICE PARAMETERS
    0xC6: AtaDrive._set_multiple,  # SET MULTIPLE MODE
    0xE0: AtaDrive._standby,  # STANDBY IMMEDIATE
    0xE1: lambda drive: drive._set_power(IDLE),  # IDLE IMMEDIATE
    0xE2: AtaDrive._standby,  # STANDBY
    0xE3: lambda drive: drive._set_power(IDLE),  # IDLE
    0xE5: AtaDrive._check_power,  # CHECK POWER MODE
    0xE6: lambda drive: drive._set_power(SLEEPING),  # SLEEP
    0xE7: AtaDrive._flush,  # FLUSH CACHE
    0xEA: AtaDrive._flush,  # FLUSH CACHE EXT
    0xEC: AtaDrive._identify,  # IDENTIFY DEVICE
    0xEF: AtaDrive._set_features,  # SET FEATURES
    0xF8: lambda drive: drive._native_max(False),  # READ NATIVE MAX ADDRESS
    **dict.fromkeys(range(0x10, 0x20), lambda drive: drive._end()),  # RECALIBRATE, until ATA-3
    **dict.fromkeys(range(0x70, 0x80), AtaDrive._seek),  # SEEK
}


def _is_ext(command: int) -> bool:
    transfer = TRANSFERS.get(command)
    return transfer is not None and transfer.ext
