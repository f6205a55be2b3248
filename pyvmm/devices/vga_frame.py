"""Mode 13h of a VGA: 320x200 pixels of 256 colours, a byte a pixel, at 0xA0000.

It is three bits of its registers: graphics instead of characters (graphics controller 6), the shift register that takes
eight bits a pixel (graphics controller 5), and the four planes chained to one row of bytes (sequencer 4). The guest's
writes to the bytes never come here. Each line is shown twice on the screen, which is 400 lines high.

Source: IBM Personal System/2 Hardware Interface Technical Reference, "Video Subsystem"; FreeVGA, "Chain 4".
"""

from __future__ import annotations

from typing import Final, NamedTuple

VGA_FRAME_BASE: Final = 0xA0000
VGA_FRAME_SIZE: Final = 0x10000
FRAME_WIDTH: Final = 320
FRAME_HEIGHT: Final = 200

VGA_GFX_MODE: Final = 0x05
VGA_GFX_MISC: Final = 0x06
VGA_SEQ_MEMORY_MODE: Final = 0x04
GFX_MODE_256: Final = 0x40
GFX_MISC_GRAPHICS: Final = 0x01
SEQ_CHAIN_4: Final = 0x08

Rgb = tuple[int, int, int]


class VgaFrame(NamedTuple):
    """What mode 13h shows: 64,000 pixels, line by line, and (red, green, blue) of 0 to 255 of each of 256 values."""

    pixels: bytes
    palette: tuple[Rgb, ...]


def is_mode_13h(sequencer: bytes | bytearray, graphics: bytes | bytearray) -> bool:
    """Whether a VGA with these registers shows a frame."""
    return bool(
        graphics[VGA_GFX_MISC] & GFX_MISC_GRAPHICS
        and graphics[VGA_GFX_MODE] & GFX_MODE_256
        and sequencer[VGA_SEQ_MEMORY_MODE] & SEQ_CHAIN_4
    )


def pixels(memory: memoryview, start: int, pitch: int) -> bytes:
    """The frame's, from byte *start* on, a line every *pitch* bytes; the memory wraps."""
    size = FRAME_WIDTH * FRAME_HEIGHT
    if pitch == FRAME_WIDTH and start + size <= len(memory):
        return bytes(memory[start : start + size])
    twice = bytes(memory) * 2
    firsts = ((start + line * pitch) % len(memory) for line in range(FRAME_HEIGHT))
    return b"".join(twice[first : first + FRAME_WIDTH] for first in firsts)
