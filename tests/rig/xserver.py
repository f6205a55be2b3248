"""An X server without a screen, and reading text from the pixels of a picture."""

from __future__ import annotations

import os
import subprocess

from pyvmm.screen.font import GLYPH_HEIGHT, GLYPH_WIDTH, glyph
from pyvmm.screen.screen import CP437


def start_server(
    depth: int = 24, visual_class: int | None = None, size: str = "800x600"
) -> tuple[subprocess.Popen[bytes], str]:
    """An X server of our own, on a display number that it finds free; its root visual is of the *visual_class*, else
    TrueColor, or PseudoColor where the *depth* is 8."""
    read_fd, write_fd = os.pipe()
    command = ["Xvfb", "-screen", "0", f"{size}x{depth}", "-nolisten", "tcp", "-noreset", "-displayfd", str(write_fd)]
    if visual_class is not None:
        command += ["-cc", str(visual_class)]
    process = subprocess.Popen(command, pass_fds=[write_fd], stderr=subprocess.DEVNULL)
    os.close(write_fd)
    with open(read_fd) as numbers:
        number = numbers.readline().strip()
    assert number, "Xvfb did not start"
    return process, f":{number}"


_CHARACTERS = {glyph(code): CP437[code] for code in reversed(range(0x20, 0x7F))}


def read_text(pixels: bytes, width: int, pixel_size: int) -> list[str]:
    """The rows of text in a picture of 8x16 cells on black ground, *pixel_size* bytes a pixel; "\ufffd" is no ASCII."""
    line_size = width * pixel_size
    lit = [any(pixels[i : i + min(pixel_size, 3)]) for i in range(0, len(pixels), pixel_size)]
    rows = []
    for row in range(len(pixels) // line_size // GLYPH_HEIGHT):
        text = ""
        for x in range(0, width, GLYPH_WIDTH):
            start = row * GLYPH_HEIGHT * width + x
            lines = bytes(
                sum(lit[start + y * width + i] << (7 - i) for i in range(GLYPH_WIDTH)) for y in range(GLYPH_HEIGHT)
            )
            text += _CHARACTERS.get(lines, "\ufffd")
        rows.append(text)
    return rows
