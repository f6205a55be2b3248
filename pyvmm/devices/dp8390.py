"""DP8390 network controller on an NE2000: registers in pages, packet RAM, a ring of receive pages, remote DMA.

    00     CR: STP 01 STA 02 TXP 04, remote DMA 38 (08 read, 10 write, 18 send packet, 20 none), page C0
    01-0F  the page's registers, below
    10-17  data port of the remote DMA      18-1F  a read resets the chip

    addresses of the chip: 0000-001F the PROM, each byte of the MAC twice, 57 57 57 57 at its end
                           4000-7FFF packet RAM, in pages of 256 bytes
A frame that is received goes to page CURR and on, from PSTOP back to PSTART: {status, next page, length with FCS}, the
frame, the FCS. BNRY is the last page that the driver has read; where CURR would reach it the ring is full (OVW).
Source: National Semiconductor DP8390D/NS32490D data sheet (TL/F/8582); Realtek RTL8029AS, for page 0's 0A and 0B.

What is sent is gone at once. A frame for which there is no room is lost, but whoever has it may ask first (has_room).
In loopback nothing leaves the chip or enters its RAM; the FIFO is not shown.
"""

from __future__ import annotations

from binascii import crc32
from collections.abc import Callable
from typing import Final

from pyvmm.bus import ALL_ONES
from pyvmm.irq import Irq
from pyvmm.trace import OFF, Channel

PORTS: Final = 32
DATA_PORT, RESET_PORT = 0x10, 0x18

CR: Final = 0x00
CR_STP, CR_STA, CR_TXP = 0x01, 0x02, 0x04
CR_RD: Final = 0x38
RD_READ, RD_WRITE, RD_SEND_PACKET, RD_NONE = 0x08, 0x10, 0x18, 0x20
CR_PAGE_SHIFT: Final = 6

# Page 0, read
CLDA0, CLDA1, BNRY, TSR, NCR, FIFO, ISR, CRDA0, CRDA1, ID0, ID1, RSR, CNTR0, CNTR1, CNTR2 = range(1, 16)
# Page 0, written
PSTART, PSTOP, _, TPSR, TBCR0, TBCR1, _, RSAR0, RSAR1, RBCR0, RBCR1, RCR, TCR, DCR, IMR = range(1, 16)
# Page 1
PAR0, CURR, MAR0 = 0x01, 0x07, 0x08

ISR_PRX, ISR_PTX, ISR_RXE, ISR_TXE, ISR_OVW, ISR_CNT, ISR_RDC, ISR_RST = (1 << bit for bit in range(8))
RCR_SEP, RCR_AR, RCR_AB, RCR_AM, RCR_PRO, RCR_MON = (1 << bit for bit in range(6))
RSR_PRX, RSR_MPA, RSR_PHY = 0x01, 0x10, 0x20
TSR_PTX: Final = 0x01
TCR_LOOPBACK: Final = 0x06
TSR_OF_LOOPBACK: Final = {0x02: 0x53, 0x04: 0x43, 0x06: 0x03}
"""By the path: inside the chip, in the encoder, in the transceiver (data sheet, "Loopback Diagnostics")."""
RSR_OF_LOOPBACK: Final = 0x02
DCR_WTS: Final = 0x01

REALTEK_ID: Final = (0x50, 0x43)
PAGE_3_ID: Final = {0x0E: 0x29, 0x0F: 0x80}

PAGE: Final = 256
RAM_START: Final = 0x4000
RAM_SIZE: Final = 0x4000
PROM_SIZE: Final = 32
HEADER_SIZE: Final = 4
FCS_SIZE: Final = 4
MIN_FRAME: Final = 60
"""Without FCS; a shorter one is padded on its way."""
MAX_TALLY: Final = 0xFF
TALLY_HALF: Final = 0x80


def multicast_hash(address: bytes) -> int:
    """Which of the 64 bits of MAR0-MAR7 lets a multicast address through: the first six bits of its CRC."""
    crc = ~crc32(address) & 0x3F
    return int(f"{crc:06b}"[::-1], 2)


def prom_of(mac: bytes) -> bytes:
    """What drivers read at address 0."""
    words = bytearray(PROM_SIZE // 2)
    words[:6] = mac
    words[14:] = b"\x57\x57"  # an NE2000, 16 bits wide
    return bytes(byte for byte in words for _ in range(2))


class Dp8390:
    """The chip; *send* takes a frame, *room* is called when there may be room for one again."""

    # fmt: off
    STATE = (
        "cr", "isr", "imr", "rcr", "tcr", "dcr", "tsr", "rsr", "pstart", "pstop", "bnry", "curr", "tpsr", "tbcr",
        "rsar", "rbcr", "par", "mar", "tallies", "ram", "prom", "_remote", "_remaining",
    )
    # fmt: on

    def __init__(
        self,
        mac: bytes,
        irq: Irq,
        send: Callable[[bytes], None],
        room: Callable[[], None] = lambda: None,
        trace: Channel = OFF,
    ) -> None:
        self.trace = trace
        self.prom = prom_of(mac)
        self._irq = irq
        self._send = send
        self._room = room
        self.ram = bytearray(RAM_SIZE)
        self._power_on()

    def _power_on(self) -> None:
        self.pstart = self.pstop = self.bnry = self.curr = self.tpsr = 0
        self.tbcr = self.rsar = self.rbcr = 0
        self.rcr = self.tcr = self.dcr = self.tsr = self.rsr = 0
        self.par, self.mar = bytearray(6), bytearray(8)
        self.tallies = [0, 0, 0]
        """Frame alignment errors, CRC errors, missed packets."""
        self._remote = self._remaining = 0
        """Address of the remote DMA, and bytes that are left."""
        self._stop()

    def _stop(self) -> None:
        """What the reset pin does to the chip (data sheet, "Initialization Procedures")."""
        self.cr = CR_STP | RD_NONE
        self.isr = ISR_RST
        self.imr = 0
        self.tcr &= ~TCR_LOOPBACK

    def reset(self) -> None:
        """Power-on."""
        self.ram[:] = bytes(RAM_SIZE)
        self._power_on()
        self._update()

    def _update(self) -> None:
        self._irq.set_level(bool(self.isr & self.imr & ~ISR_RST))

    def _raise(self, bits: int) -> None:
        self.isr |= bits
        self._update()

    # Ports

    def read(self, offset: int, size: int) -> int:
        if DATA_PORT <= offset < RESET_PORT:
            return self._read_data(size)
        value = 0
        for at in range(size):
            value |= self._read_byte(offset + at) << 8 * at
        return value

    def _read_byte(self, offset: int) -> int:
        if offset == CR:
            return self.cr
        if offset < DATA_PORT:
            return (self._read_0, self._read_1, self._read_2, self._read_3)[self.cr >> CR_PAGE_SHIFT](offset)
        if RESET_PORT <= offset < PORTS:
            self._stop()
            self._update()
            return 0
        return ALL_ONES[1]

    def write(self, offset: int, size: int, value: int) -> None:
        if DATA_PORT <= offset < RESET_PORT:
            self._write_data(size, value)
            return
        for at in range(size):
            self._write_byte(offset + at, value >> 8 * at & 0xFF)

    def _write_byte(self, offset: int, value: int) -> None:
        if offset == CR:
            self._command(value)
        elif offset < DATA_PORT:
            page = self.cr >> CR_PAGE_SHIFT
            if page == 0:
                self._write_0(offset, value)
            elif page == 1:
                self._write_1(offset, value)

    def _read_0(self, offset: int) -> int:
        if offset >= CNTR0:  # reading clears
            value, self.tallies[offset - CNTR0] = self.tallies[offset - CNTR0], 0
            return value
        return {
            CLDA1: self.curr,
            BNRY: self.bnry,
            TSR: self.tsr,
            ISR: self.isr,
            CRDA0: self._remote & 0xFF,
            CRDA1: self._remote >> 8,
            ID0: REALTEK_ID[0],
            ID1: REALTEK_ID[1],
            RSR: self.rsr,
        }.get(offset, 0)  # NCR: nobody collides; FIFO

    def _read_1(self, offset: int) -> int:
        if offset == CURR:
            return self.curr
        return self.mar[offset - MAR0] if offset >= MAR0 else self.par[offset - PAR0]

    def _read_2(self, offset: int) -> int:
        return {
            PSTART: self.pstart,
            PSTOP: self.pstop,
            TPSR: self.tpsr,
            RCR: self.rcr | 0xC0,
            TCR: self.tcr | 0xE0,
            DCR: self.dcr | 0x80,
            IMR: self.imr | 0x80,
        }.get(offset, 0)

    def _read_3(self, offset: int) -> int:
        return PAGE_3_ID.get(offset, 0)

    def _write_0(self, offset: int, value: int) -> None:
        if offset == PSTART:
            self.pstart = value
        elif offset == PSTOP:
            self.pstop = value
        elif offset == BNRY:
            self.bnry = value
            self._room()
        elif offset == TPSR:
            self.tpsr = value
        elif offset in (TBCR0, TBCR1):
            self.tbcr = _with_byte(self.tbcr, offset - TBCR0, value)
        elif offset == ISR:
            if self.trace.enabled and self.isr & value & ISR_PTX:
                self.trace("PTX is cleared", ("acknowledged",))
            self.isr &= ~value | ISR_RST
        elif offset in (RSAR0, RSAR1):
            self.rsar = _with_byte(self.rsar, offset - RSAR0, value)
        elif offset in (RBCR0, RBCR1):
            self.rbcr = _with_byte(self.rbcr, offset - RBCR0, value)
        elif offset == RCR:
            self.rcr = value & 0x3F
        elif offset == TCR:
            self.tcr = value & 0x1F
        elif offset == DCR:
            self.dcr = value & 0x7F
        elif offset == IMR:
            self.imr = value & 0x7F
        self._update()

    def _write_1(self, offset: int, value: int) -> None:
        if offset == CURR:
            self.curr = value
        elif offset >= MAR0:
            self.mar[offset - MAR0] = value
        else:
            self.par[offset - PAR0] = value

    def _command(self, value: int) -> None:
        if not value & (CR_STP | CR_STA):  # as Linux' do_set_multicast_list(): it runs, or stands, as before
            value |= self.cr & (CR_STP | CR_STA)
        self.cr = value & ~CR_TXP
        if value & CR_STP:
            self.isr |= ISR_RST
        elif value & CR_STA:
            self.isr &= ~ISR_RST
        remote = value & CR_RD
        if remote in (RD_READ, RD_WRITE):
            self._begin_remote(self.rsar, self.rbcr)
        elif remote == RD_SEND_PACKET:
            header = self._load(self.bnry * PAGE, HEADER_SIZE)
            self._begin_remote(self.bnry * PAGE, header[2] | header[3] << 8)
            self.bnry = header[1]
        elif remote:
            self._remaining = 0
        if self.running and value & CR_TXP:
            self._transmit()
        self._update()
        if self.running:
            self._room()

    @property
    def running(self) -> bool:
        return self.cr & (CR_STP | CR_STA) == CR_STA

    # Memory, and remote DMA to it

    def _load(self, address: int, length: int) -> bytes:
        """Bytes as the chip addresses them; ones where nothing is."""
        found = bytearray(b"\xff" * length)
        for start, memory in ((0, self.prom), (RAM_START, self.ram)):
            first, end = max(address, start), min(address + length, start + len(memory))
            if first < end:
                found[first - address : end - address] = memory[first - start : end - start]
        return bytes(found)

    def _store(self, address: int, data: bytes) -> None:
        start, end = max(address, RAM_START), min(address + len(data), RAM_START + RAM_SIZE)
        if start < end:
            self.ram[start - RAM_START : end - RAM_START] = data[start - address : end - address]

    def _begin_remote(self, address: int, count: int) -> None:
        self._remote, self._remaining = address, count
        if not count:
            self._raise(ISR_RDC)

    def _advance(self, width: int) -> None:
        self._remote = self._remote + width & 0xFFFF
        if self._remote == self.pstop * PAGE:
            self._remote = self.pstart * PAGE
        self._remaining = max(0, self._remaining - width)
        if not self._remaining:
            if self.trace.enabled and self.cr & CR_RD == RD_READ:
                self._trace_read()
            self._raise(ISR_RDC)

    def _trace_read(self) -> None:
        """A remote DMA is over: drivers read the header of a frame, then what is behind it, or both at once."""
        page, offset = divmod(self.rsar, PAGE)
        beyond = offset + self.rbcr > HEADER_SIZE
        self.trace(f"remote DMA has read {self.rbcr} bytes at {self.rsar:#06x}", ("fetched", page, int(beyond)))

    def _width(self, size: int) -> int:
        """Bytes of RAM that an access of *size* moves: in word mode a byte has the lower half of a word."""
        return max(size, 2) if self.dcr & DCR_WTS else size

    def _read_data(self, size: int) -> int:
        if not self._remaining or self.cr & CR_RD not in (RD_READ, RD_SEND_PACKET):
            return ALL_ONES[size]
        value = int.from_bytes(self._load(self._remote, size), "little")
        self._advance(self._width(size))
        return value

    def read_string(self, offset: int, size: int, count: int) -> bytes | None:
        """REP INS of the data port; None where it is not all of one piece."""
        length = size * count
        at_once = DATA_PORT <= offset < RESET_PORT and length <= self._remaining and self._width(size) == size
        stop = self.pstop * PAGE
        if not at_once or self.cr & CR_RD != RD_READ or self._remote < stop < self._remote + length:
            return None
        data = self._load(self._remote, length)
        self._advance(length)
        return data

    def _write_data(self, size: int, value: int) -> None:
        if self._remaining and self.cr & CR_RD == RD_WRITE:
            width = self._width(size)
            self._store(self._remote, value.to_bytes(width, "little")[: self._remaining])
            self._advance(width)

    # Frames

    def _transmit(self) -> None:
        loopback = self.tcr & TCR_LOOPBACK
        frame = self._load(self.tpsr * PAGE, min(self.tbcr, RAM_SIZE))
        if loopback:
            self.tsr, self.rsr = TSR_OF_LOOPBACK[loopback], RSR_OF_LOOPBACK
        else:
            self.tsr = TSR_PTX
            if self.trace.enabled:
                self.trace(f"sends {len(frame)} bytes: {frame[:14].hex(' ')}", ("sent",))
            self._send(frame)
        self._raise(ISR_PTX)

    def wants(self, frame: bytes) -> bool:
        """Whether the address filter lets *frame* in."""
        if frame[:6] == b"\xff" * 6:
            return bool(self.rcr & (RCR_AB | RCR_PRO))
        if self.rcr & RCR_PRO:
            return True
        if frame[0] & 1:
            bit = multicast_hash(frame[:6])
            return bool(self.rcr & RCR_AM and self.mar[bit >> 3] >> (bit & 7) & 1)
        return frame[:6] == self.par

    def _pages(self, length: int) -> int:
        return -(-(HEADER_SIZE + max(length, MIN_FRAME) + FCS_SIZE) // PAGE)

    def has_room(self, length: int) -> bool:
        """Whether a frame of *length* bytes is not one too many now. One that the chip would not keep is none."""
        size = self.pstop - self.pstart
        if not self.running or self.rcr & RCR_MON or self.tcr & TCR_LOOPBACK or self._pages(length) >= size:
            return True
        return self._pages(length) < self._free()

    def _free(self) -> int:
        """Pages from CURR to BNRY; the ring is empty where they are one."""
        size = self.pstop - self.pstart
        return (self.bnry - self.curr) % size or size

    def receive(self, frame: bytes) -> None:
        """A frame comes by the wire, without FCS."""
        if not self.running or self.tcr & TCR_LOOPBACK or len(frame) < 14 or not self.wants(frame):
            return
        frame = frame.ljust(MIN_FRAME, b"\0")
        size, pages = self.pstop - self.pstart, self._pages(len(frame))
        if self.rcr & RCR_MON:
            self._miss()
            return
        if not self.pstart <= self.curr < self.pstop or pages >= size or pages >= self._free():
            self._miss()
            self._raise(ISR_OVW)
            return
        following = self.pstart + (self.curr - self.pstart + pages) % size
        self.rsr = RSR_PRX | (RSR_PHY if frame[0] & 1 else 0)
        total = len(frame) + FCS_SIZE
        data = bytes((self.rsr, following, total & 0xFF, total >> 8)) + frame + crc32(frame).to_bytes(4, "little")
        first = (self.pstop - self.curr) * PAGE
        self._store(self.curr * PAGE, data[:first])
        self._store(self.pstart * PAGE, data[first:])
        page, self.curr = self.curr, following
        if self.trace.enabled:
            said = f"received {len(frame)} bytes: {frame[:14].hex(' ')}, next page {following:#x}"
            self.trace(said, ("received", page))
        self._raise(ISR_PRX)

    def _miss(self) -> None:
        self.rsr |= RSR_MPA
        self.tallies[2] = min(self.tallies[2] + 1, MAX_TALLY)
        if self.tallies[2] >= TALLY_HALF:
            self._raise(ISR_CNT)


def _with_byte(value: int, at: int, byte: int) -> int:
    return value & ~(0xFF << 8 * at) | byte << 8 * at
