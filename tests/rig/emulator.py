"""A terminal, as far as the text display needs one."""

from __future__ import annotations

import re


class Emulator:
    """As much of a terminal as TerminalScreen uses: it fails on every sequence that it does not know."""

    def __init__(self, columns: int, lines: int) -> None:
        self.size = (columns, lines)
        self.cells = [[(" ", "")] * columns for _ in range(lines)]
        self.modes: dict[int, bool] = {}
        self.row = self.column = 0
        self.attribute = ""

    def feed(self, data: bytes) -> None:
        for part in re.findall(r"\x1b\[\?\d+[hl]|\x1b\[[\d;]*[A-Za-z]|[^\x00-\x1f\x7f]|[\s\S]", data.decode()):
            if part.startswith("\x1b[?"):
                self.modes[int(part[3:-1])] = part.endswith("h")
            elif part == "\x1b[2J":
                self.cells = [[(" ", "")] * self.size[0] for _ in range(self.size[1])]
            elif part.endswith("H") and part.startswith("\x1b["):
                self.row, self.column = (int(n) - 1 for n in part[2:-1].split(";"))
                assert self.row < self.size[1] and self.column < self.size[0]
            elif part.endswith("m") and part.startswith("\x1b["):
                self.attribute = part
            else:
                assert part >= " ", repr(part)
                self.cells[self.row][self.column] = (part, self.attribute)
                self.column += 1

    def text(self) -> list[str]:
        return ["".join(character for character, _ in line) for line in self.cells]
