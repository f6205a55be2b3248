"""The BIOS data area and the EBDA: what a PC's firmware knows of its board, in the first KiBs of RAM.

    0x400  ports of COM1-COM4     0x40E  segment of the EBDA         0x449  video mode, columns, bytes of a page
    0x410  equipment              0x413  base memory, KiB            0x460  cursor: last line, first line
    0x417  keyboard               0x46C  timer ticks since midnight  0x463  port of the CRT controller
    0x484  rows less one, lines of a character, VGA                  0x496  what kind of keyboard

Source: IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference (1987), section 3; struct
bios_data_area_s in SeaBIOS, src/biosvar.h and vgasrc/vgabios.h.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pyvmm.boot.lowmem import BDA_BASE_MEMORY_KB, BDA_EBDA_SEGMENT, EBDA_GPA, EBDA_SIZE

if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory

BDA_GPA: Final = 0x400
BDA_SIZE: Final = 0x100
BDA_TIMER_TICKS: Final = 0x46C
BDA_TIMER_OVERFLOW: Final = 0x470
TICKS_A_DAY: Final = 0x1800B0
SERIAL_PORTS_MAX: Final = 4

EQUIPMENT_FPU: Final = 1 << 1
EQUIPMENT_POINTING_DEVICE: Final = 1 << 2
EQUIPMENT_VIDEO_80X25_COLOUR: Final = 2 << 4
EQUIPMENT_SERIAL_SHIFT: Final = 9

VIDEO_MODE: Final = 3
COLUMNS: Final = 80
ROWS: Final = 25
CHARACTER_LINES: Final = 16
PAGE_BYTES: Final = 0x1000
CURSOR: Final = 0x0607
"""Lines 6 and 7 of 8: INT 10h, AH=01h scales them to the lines of a character."""
CRTC_PORT: Final = 0x3D4
KEYBOARD_BUFFER: Final = (0x1E, 0x3E)
"""Offsets from segment 0x40 of the ring's beginning and end."""


def write_bda(memory: GuestMemory, serial_ports: Sequence[int] = (), *, pointing_device: bool = False) -> None:
    """Write all of both areas: a PC with an FPU, a VGA in mode 3 (80x25), an enhanced keyboard, the serial ports at
    *serial_ports* (four are told of), perhaps a PS/2 mouse, and base memory that ends where the EBDA begins.

    The tick counter begins at 0.
    """
    ports = tuple(serial_ports)[:SERIAL_PORTS_MAX]
    equipment = EQUIPMENT_FPU | EQUIPMENT_VIDEO_80X25_COLOUR | len(ports) << EQUIPMENT_SERIAL_SHIFT
    if pointing_device:
        equipment |= EQUIPMENT_POINTING_DEVICE
    start, end = KEYBOARD_BUFFER
    fields: tuple[tuple[int, str, tuple[int, ...]], ...] = (
        (0x400, f"<{len(ports)}H", ports),
        (BDA_EBDA_SEGMENT, "<H", (EBDA_GPA >> 4,)),
        (0x410, "<H", (equipment,)),
        (BDA_BASE_MEMORY_KB, "<H", (EBDA_GPA >> 10,)),
        (0x41A, "<HH", (start, start)),  # head and tail: the keyboard's buffer is empty
        (0x449, "<BHH", (VIDEO_MODE, COLUMNS, PAGE_BYTES)),
        (0x460, "<H", (CURSOR,)),
        (0x463, "<HBB", (CRTC_PORT, 0x29, 0x30)),  # and what a CGA's mode and colour registers would hold
        (0x478, "<4B4B", (20, 20, 20, 20, 10, 10, 10, 10)),  # time-outs of parallel and serial ports
        (0x480, "<HH", (start, end)),
        (0x484, "<BH", (ROWS - 1, CHARACTER_LINES)),
        (0x487, "<4B", (0x60, 0xF9, 0x51, 0x08)),  # VGA: 256 KiB; switches; active, 400 lines; analog colour display
        (0x496, "<B", (0x10,)),  # a keyboard of 101 or 102 keys
    )
    area = bytearray(BDA_SIZE)
    for gpa, form, values in fields:
        struct.pack_into(form, area, gpa - BDA_GPA, *values)
    memory.write(BDA_GPA, area)
    memory.write(EBDA_GPA, bytes((EBDA_SIZE >> 10,)).ljust(EBDA_SIZE, b"\0"))
