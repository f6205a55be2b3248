"""VGA in text mode: 80x25 characters with attributes, a cursor, sixteen colours; and in mode 13h (vga_frame.py).

Ports 0x3C0-0x3DF (offset 0 is port 0x3C0), 8-bit registers; a wider access is a row of bytes, so that `outw` to an
index port writes index and data:

    0x3C0 attribute index and data by turns (a read of 0x3DA makes it the index's turn), 0x3C1 attribute data, read
    0x3C2 miscellaneous output, read at 0x3CC; reads as input status 0      0x3CA feature control, read
    0x3C4/5 sequencer   0x3CE/F graphics controller   0x3D4/5 CRT controller: index, data
    0x3C6 pixel mask    0x3C7 read index, state       0x3C8 write index      0x3C9 DAC data, red green blue by turns
    0x3DA input status 1: bit 0 no picture is being drawn, bit 3 vertical retrace; write: feature control

The characters are guest RAM, 32 KiB at 0xB8000, a byte of code page 437 and a byte of attribute a cell: the guest's
writes there never come here. No interrupt. The machine starts as the VGA BIOS leaves it, in mode 3.

Only what these two show is here: the 64 KiB at 0xA0000 are pixels of mode 13h and nothing else, so the guest can't
load a font through plane 2, and the monochrome ports 0x3B4-0x3BA are absent. Registers hold what is written to them
and read back. The line compare splits the screen between rows: a row of characters that it cuts is shown whole.

Source: IBM Personal System/2 Hardware Interface Technical Reference, "Video Subsystem"; FreeVGA; register values of
mode 3 from the VGA BIOS parameter table; Linux drivers/video/console/vgacon.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from pyvmm.clock import NS_PER_SECOND, Clock
from pyvmm.devices import vga_frame
from pyvmm.devices.vga_frame import FRAME_WIDTH, VGA_FRAME_SIZE, VgaFrame
from pyvmm.trace import OFF, Channel

VGA_TEXT_BASE: Final = 0xB8000
VGA_TEXT_SIZE: Final = 0x8000
VGA_PORT_BASE: Final = 0x3C0
VGA_PORT_COUNT: Final = 0x20

# Offsets from port 0x3C0, as linux/include/video/vga.h spells the ports.
VGA_ATT_W: Final = 0x00
VGA_ATT_R: Final = 0x01
VGA_MIS_W: Final = 0x02
VGA_SEQ_I: Final = 0x04
VGA_SEQ_D: Final = 0x05
VGA_PEL_MSK: Final = 0x06
VGA_PEL_IR: Final = 0x07
VGA_PEL_IW: Final = 0x08
VGA_PEL_D: Final = 0x09
VGA_FTC_R: Final = 0x0A
VGA_MIS_R: Final = 0x0C
VGA_GFX_I: Final = 0x0E
VGA_GFX_D: Final = 0x0F
VGA_CRT_IC: Final = 0x14
VGA_CRT_DC: Final = 0x15
VGA_IS1_RC: Final = 0x1A

# CRT controller
VGA_CRTC_H_DISP: Final = 0x01
VGA_CRTC_OVERFLOW: Final = 0x07
VGA_CRTC_MAX_SCAN: Final = 0x09
VGA_CRTC_CURSOR_START: Final = 0x0A
VGA_CRTC_CURSOR_END: Final = 0x0B
VGA_CRTC_START_HI: Final = 0x0C
VGA_CRTC_START_LO: Final = 0x0D
VGA_CRTC_CURSOR_HI: Final = 0x0E
VGA_CRTC_CURSOR_LO: Final = 0x0F
VGA_CRTC_V_SYNC_END: Final = 0x11
VGA_CRTC_V_DISP_END: Final = 0x12
VGA_CRTC_OFFSET: Final = 0x13
VGA_CRTC_MODE: Final = 0x17
VGA_CRTC_LINE_COMPARE: Final = 0x18

CRTC_CURSOR_OFF: Final = 0x20  # CURSOR_START
CRTC_PROTECT: Final = 0x80  # V_SYNC_END: registers 0-7 can't be written, but for bit 4 of OVERFLOW
CRTC_SYNC_ENABLE: Final = 0x80  # MODE
CRTC_HALF_CLOCK: Final = 0x04  # MODE: the vertical counters count every second line
MAX_SCAN_DOUBLE: Final = 0x80  # MAX_SCAN: each line is shown twice
MAX_SCAN_LINE_COMPARE_9: Final = 0x40
OVERFLOW_LINE_COMPARE_8: Final = 0x10

# Sequencer, attribute controller, input status 1
VGA_SEQ_CLOCK_MODE: Final = 0x01
SEQ_SCREEN_OFF: Final = 0x20
VGA_ATC_MODE: Final = 0x10
VGA_ATC_PLANE_ENABLE: Final = 0x12
VGA_ATC_COLOR_PAGE: Final = 0x14
ATC_MODE_BLINK: Final = 0x08
ATC_MODE_PALETTE_54: Final = 0x80  # bits 4 and 5 of a colour come from COLOR_PAGE
ATC_PALETTE_ADDRESS_SOURCE: Final = 0x20  # index port: while clear, the screen is dark
IS1_DISPLAY_DISABLED: Final = 0x01
IS1_V_RETRACE: Final = 0x08

# Mode 3 (80x25, 16 colours, 720x400 at 70 Hz) as the VGA BIOS sets it.
_MODE3_SEQ: Final = bytes.fromhex("0300030002")
_MODE3_CRTC: Final = bytes.fromhex("5f4f50825581bf1f004f0d0e000000009c8e8f281f96b9a3ff")
_MODE3_GFX: Final = bytes.fromhex("0000000000100e00ff")
_MODE3_ATC: Final = bytes.fromhex("000102030405140738393a3b3c3d3e3f0c000f0800")
_MODE3_MISC: Final = 0x67
_BLANK_CELL: Final = b" \x07"

_LINES_A_FRAME: Final = 449
_LINES_SHOWN: Final = 400
_NS_A_LINE: Final = NS_PER_SECOND * 900 // 28_322_000  # 900 dots at 28.322 MHz
_NS_SHOWN_OF_A_LINE: Final = _NS_A_LINE * 720 // 900
_CELLS: Final = VGA_TEXT_SIZE // 2


class Cursor(NamedTuple):
    """A cursor that shows: its cell and the scan lines of the cell that it fills, first and last included."""

    column: int
    row: int
    first_line: int
    last_line: int


def _default_dac() -> list[tuple[int, int, int]]:
    """The 64 colours of text modes: bits 2-0 are red, green and blue at two thirds, bits 5-3 add a third."""

    def level(i: int, low: int, high: int) -> int:
        return (0x2A if i >> low & 1 else 0) + (0x15 if i >> high & 1 else 0)

    return [(level(i, 2, 5), level(i, 1, 4), level(i, 0, 3)) for i in range(64)] + [(0, 0, 0)] * 192


class VgaText:
    """The registers, and what they make of the 32 KiB of *memory* and, in mode 13h, the 64 KiB of *frame*.

    *memory_changed* says whether the guest may have written the memory since it was last asked (a dirty log); without
    one, every look at the screen takes the memory as changed.
    """

    # fmt: off
    STATE = (
        "_memory", "_frame", "_seq", "_crtc", "_gfx", "_atc", "_misc", "_feature", "_seq_index", "_crtc_index",
        "_gfx_index", "_atc_index", "_atc_data_next", "_dac", "_dac_mask", "_dac_index", "_dac_reading", "_dac_latch",
    )
    # fmt: on

    def __init__(
        self,
        memory: memoryview,
        clock: Clock,
        memory_changed: Callable[[], bool] = lambda: True,
        trace: Channel = OFF,
        frame: memoryview | None = None,
    ) -> None:
        if len(memory) != VGA_TEXT_SIZE:
            raise ValueError(f"text memory is {len(memory):#x} bytes, must be {VGA_TEXT_SIZE:#x}")
        self._memory = memory
        self._frame = memoryview(bytearray(VGA_FRAME_SIZE)) if frame is None else frame
        self._clock = clock
        self._memory_changed = memory_changed
        self._trace = trace
        self._generation = 0
        self.reset()

    def reset(self) -> None:
        """Mode 3 with an empty screen, as after power-on and the VGA BIOS."""
        self._memory[:] = _BLANK_CELL * _CELLS
        self._frame[:] = bytes(VGA_FRAME_SIZE)
        self._seq = bytearray(_MODE3_SEQ)
        self._crtc = bytearray(_MODE3_CRTC)
        self._gfx = bytearray(_MODE3_GFX)
        self._atc = bytearray(_MODE3_ATC)
        self._misc = _MODE3_MISC
        self._feature = 0
        self._seq_index = self._crtc_index = self._gfx_index = 0
        self._atc_index = ATC_PALETTE_ADDRESS_SOURCE
        self._atc_data_next = False
        self._dac = _default_dac()
        self._dac_mask = 0xFF
        self._dac_index = 0
        self._dac_reading = False
        self._dac_latch: list[int] = []
        self._generation += 1

    def restored(self) -> None:
        """After a load: the picture is another."""
        self._generation += 1

    # What the guest reaches

    def read(self, offset: int, size: int) -> int:
        value = 0
        for i in range(size):
            value |= self._read_register(offset + i) << (8 * i)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        for i in range(size):
            self._write_register(offset + i, value >> (8 * i) & 0xFF)

    def _read_register(self, port: int) -> int:
        match port:
            case 0x14:  # VGA_CRT_IC
                return self._crtc_index
            case 0x15:
                return _indexed(self._crtc, self._crtc_index)
            case 0x1A:  # VGA_IS1_RC
                self._atc_data_next = False
                return self._input_status_1()
            case 0x00:  # VGA_ATT_W
                return self._atc_index
            case 0x01:
                return _indexed(self._atc, self._atc_index & 0x1F)
            case 0x02:  # input status 0: the switch sense of a colour display
                return 0x10
            case 0x04:
                return self._seq_index
            case 0x05:
                return _indexed(self._seq, self._seq_index)
            case 0x06:
                return self._dac_mask
            case 0x07:
                return 0x03 if self._dac_reading else 0x00
            case 0x08:
                return self._dac_index
            case 0x09:
                return self._read_dac()
            case 0x0A:
                return self._feature
            case 0x0C:
                return self._misc
            case 0x0E:
                return self._gfx_index
            case 0x0F:
                return _indexed(self._gfx, self._gfx_index)
            case _:
                return 0xFF

    def _write_register(self, port: int, value: int) -> None:
        match port:
            case 0x14:  # VGA_CRT_IC
                self._crtc_index = value
            case 0x15:
                self._write_crtc(self._crtc_index, value)
            case 0x00:  # VGA_ATT_W
                if self._atc_data_next:
                    self._set(self._atc, self._atc_index & 0x1F, value, "attribute")
                else:
                    self._atc_index = value & 0x3F
                    self._generation += 1
                self._atc_data_next = not self._atc_data_next
            case 0x02:
                self._misc = value
            case 0x04:
                self._seq_index = value
            case 0x05:
                self._set(self._seq, self._seq_index, value, "sequencer")
            case 0x06:
                self._dac_mask = value
                self._generation += 1
            case 0x07 | 0x08:
                self._dac_index = value
                self._dac_reading = port == VGA_PEL_IR
                self._dac_latch = []
            case 0x09:
                self._write_dac(value)
            case 0x0E:
                self._gfx_index = value
            case 0x0F:
                self._set(self._gfx, self._gfx_index, value, "graphics")
            case 0x1A:
                self._feature = value
            case _:
                pass

    def _set(self, registers: bytearray, index: int, value: int, name: str) -> None:
        if index < len(registers):
            if self._trace.enabled and registers[index] != value:
                self._trace(f"{name} {index:#04x} = {value:#04x}")
            registers[index] = value
            self._generation += 1

    def _write_crtc(self, index: int, value: int) -> None:
        if index <= VGA_CRTC_OVERFLOW and self._crtc[VGA_CRTC_V_SYNC_END] & CRTC_PROTECT:
            if index != VGA_CRTC_OVERFLOW:
                return
            value = self._crtc[index] & ~OVERFLOW_LINE_COMPARE_8 | value & OVERFLOW_LINE_COMPARE_8
        self._set(self._crtc, index, value, "crtc")

    def _read_dac(self) -> int:
        position = len(self._dac_latch)
        value = self._dac[self._dac_index][position]
        if position == 2:
            self._dac_latch = []
            self._dac_index = (self._dac_index + 1) & 0xFF
        else:
            self._dac_latch.append(value)
        return value

    def _write_dac(self, value: int) -> None:
        self._dac_latch.append(value & 0x3F)
        if len(self._dac_latch) == 3:
            red, green, blue = self._dac_latch
            self._dac[self._dac_index] = (red, green, blue)
            self._dac_latch = []
            self._dac_index = (self._dac_index + 1) & 0xFF
            self._generation += 1

    def _input_status_1(self) -> int:
        # The whole vertical blank is given as retrace: on a slow host a poll could miss the two lines of the pulse.
        line, in_line = divmod(self._clock.now() % (_LINES_A_FRAME * _NS_A_LINE), _NS_A_LINE)
        if line >= _LINES_SHOWN:
            return IS1_V_RETRACE | IS1_DISPLAY_DISABLED
        return IS1_DISPLAY_DISABLED if in_line >= _NS_SHOWN_OF_A_LINE else 0

    # What the registers show

    def generation(self) -> int:
        """A number that is another one whenever the picture may have changed since the last call."""
        if self._memory_changed():
            self._generation += 1
        return self._generation

    @property
    def shows_frame(self) -> bool:
        """Whether it is in mode 13h."""
        return vga_frame.is_mode_13h(self._seq, self._gfx)

    def frame(self) -> VgaFrame | None:
        """What mode 13h shows; None in another mode. The start address counts four bytes at a time, the pitch eight."""
        if not self.shows_frame:
            return None
        start = (self._crtc[VGA_CRTC_START_HI] << 8 | self._crtc[VGA_CRTC_START_LO]) * 4 % VGA_FRAME_SIZE
        pitch = self._crtc[VGA_CRTC_OFFSET] * 8 or FRAME_WIDTH
        colours = (self._dac[value & self._dac_mask] for value in range(256))
        palette = tuple((_eight_bits(red), _eight_bits(green), _eight_bits(blue)) for red, green, blue in colours)
        return VgaFrame(vga_frame.pixels(self._frame, start, pitch), palette)

    @property
    def columns(self) -> int:
        """Characters in a row, 1 to 256."""
        return self._crtc[VGA_CRTC_H_DISP] + 1

    @property
    def cell_height(self) -> int:
        """Scan lines of a character, 1 to 32."""
        return (self._crtc[VGA_CRTC_MAX_SCAN] & 0x1F) + 1

    @property
    def rows(self) -> int:
        """Rows of characters, 1 to 128."""
        overflow = self._crtc[VGA_CRTC_OVERFLOW]
        lines = (self._crtc[VGA_CRTC_V_DISP_END] | (overflow & 0x02) << 7 | (overflow & 0x40) << 3) + 1
        return min(max(self._lines(lines) // self.cell_height, 1), 128)

    def _lines(self, count: int) -> int:
        """Lines of characters in *count* steps of the vertical counter."""
        if self._crtc[VGA_CRTC_MAX_SCAN] & MAX_SCAN_DOUBLE:
            count //= 2
        return count * 2 if self._crtc[VGA_CRTC_MODE] & CRTC_HALF_CLOCK else count

    @property
    def split_row(self) -> int:
        """The first row of the lower part, which shows the memory from its beginning; `rows` where there is none.

        At the end of the line that LINE COMPARE names, the address counter is cleared. The row that begins there or
        next is the first, as in QEMU.
        """
        compare = self._crtc[VGA_CRTC_LINE_COMPARE]
        compare |= 0x100 if self._crtc[VGA_CRTC_OVERFLOW] & OVERFLOW_LINE_COMPARE_8 else 0
        compare |= 0x200 if self._crtc[VGA_CRTC_MAX_SCAN] & MAX_SCAN_LINE_COMPARE_9 else 0
        return min(-(-self._lines(compare) // self.cell_height), self.rows)

    @property
    def start(self) -> int:
        """The cell of the memory that is shown at the top left: vgacon scrolls by moving it."""
        return (self._crtc[VGA_CRTC_START_HI] << 8 | self._crtc[VGA_CRTC_START_LO]) % _CELLS

    @property
    def pitch(self) -> int:
        """Cells from a row to the next, 0 to 510: CRTC 0x13 counts pairs of cells."""
        return self._crtc[VGA_CRTC_OFFSET] * 2

    @property
    def blink_enabled(self) -> bool:
        """Whether bit 7 of an attribute makes the character blink; else it is the background's intensity."""
        return self._atc[VGA_ATC_MODE] & ATC_MODE_BLINK != 0

    @property
    def blank(self) -> bool:
        """Whether the screen is switched dark, whatever the memory holds."""
        return (
            self._seq[VGA_SEQ_CLOCK_MODE] & SEQ_SCREEN_OFF != 0
            or not self._atc_index & ATC_PALETTE_ADDRESS_SOURCE
            or not self._crtc[VGA_CRTC_MODE] & CRTC_SYNC_ENABLE
        )

    def cursor_position(self) -> tuple[int, int] | None:
        """Row and column of the cursor, whether or not it shows; None where it is outside the screen. Of a cell that a
        split screen shows twice it is the upper one."""
        cell = self._crtc[VGA_CRTC_CURSOR_HI] << 8 | self._crtc[VGA_CRTC_CURSOR_LO]
        split = self.split_row
        for start, top, bottom in ((self.start, 0, split), (0, split, self.rows)):
            row, column = divmod((cell - start) % _CELLS, self.pitch or 1)
            if top + row < bottom and column < self.columns:
                return top + row, column
        return None

    def cursor(self) -> Cursor | None:
        """The cursor, or None where it is off, empty or outside the screen."""
        first = self._crtc[VGA_CRTC_CURSOR_START]
        first_line, last_line = first & 0x1F, self._crtc[VGA_CRTC_CURSOR_END] & 0x1F
        position = self.cursor_position()
        if position is None or first & CRTC_CURSOR_OFF or first_line > last_line or first_line >= self.cell_height:
            return None
        return Cursor(position[1], position[0], first_line, min(last_line, self.cell_height - 1))

    def cells(self) -> bytes:
        """A copy of what is shown, row by row: character and attribute of each cell, 2 * columns * rows bytes."""
        columns, rows, start, pitch, split = self.columns, self.rows, self.start, self.pitch, self.split_row
        if split == rows and pitch == columns and start + rows * pitch <= _CELLS:
            return bytes(self._memory[2 * start : 2 * (start + rows * pitch)])
        parts = []
        for row in range(rows):
            first = (start + row * pitch) % _CELLS if row < split else (row - split) * pitch % _CELLS
            part = bytes(self._memory[2 * first : 2 * (first + columns)])
            parts.append(part + bytes(self._memory[: 2 * columns - len(part)]))  # the memory wraps
        return b"".join(parts)

    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """Red, green and blue, 0 to 255, of the sixteen attribute colours."""
        page = self._atc[VGA_ATC_COLOR_PAGE]
        colours = []
        for i in range(16):
            index = self._atc[i & self._atc[VGA_ATC_PLANE_ENABLE]] & 0x3F
            if self._atc[VGA_ATC_MODE] & ATC_MODE_PALETTE_54:
                index = index & 0x0F | (page & 0x03) << 4
            red, green, blue = self._dac[(index | (page & 0x0C) << 4) & self._dac_mask]
            colours.append((_eight_bits(red), _eight_bits(green), _eight_bits(blue)))
        return tuple(colours)


def _indexed(registers: bytearray, index: int) -> int:
    return registers[index] if index < len(registers) else 0


def _eight_bits(six: int) -> int:
    return six << 2 | six >> 4
