"""The guest's screen in the user's terminal (`--display text`): only what changed, in the terminal's sixteen colours.

Drawn on the alternate screen, which is left as it was found however we end. A terminal that is smaller than the guest's
screen shows the part with the cursor in it. Blinking is left to the terminal's own cursor. A frame that takes longer
than WORK_NS goes on at a later turn, for all this is done under the machine lock.

Source: ECMA-48 for CUP and SGR; XTerm Control Sequences for the private modes 7 (autowrap), 25 (cursor) and 1049
(alternate screen), and for SGR 90-107.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from typing import Final

from pyvmm.clock import NS_PER_SECOND, Clock
from pyvmm.devices.vga_text import VgaText
from pyvmm.errors import UserError
from pyvmm.host.nonblocking import Output
from pyvmm.host.tty import in_foreground
from pyvmm.screen.screen import CP437, Run, ScreenFollower, SeenScreen

FRAME_NS: Final = NS_PER_SECOND // 60
WORK_NS: Final = NS_PER_SECOND // 100
_ENTER: Final = b"\x1b[?1049h\x1b[?7l\x1b[0m\x1b[2J"
_LEAVE: Final = b"\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
PATIENCE_MS: Final = 1000
"""How long close() waits for a terminal that takes nothing."""
NOTE_COLOURS: Final = (15, 1)
"""White on blue: a note of ours over the guest's screen."""
NOTE_NS: Final = 20 * NS_PER_SECOND
"""How long notes stay when nothing is typed."""
_ERASE: Final = "\x1b[0m\x1b[2J"


def sgr(foreground: int, background: int) -> str:
    """The sequence that selects two of the sixteen colours of a VGA, whose bits are intensity, red, green, blue."""

    def number(colour: int, base: int) -> int:
        return base + (60 if colour & 8 else 0) + (colour & 2) + (colour >> 2 & 1) + ((colour & 1) << 2)

    return f"\x1b[{number(foreground, 30)};{number(background, 40)}m"


class TerminalScreen:
    """The screen of *vga* on the terminal behind *fd*; raises UserError where that is no terminal."""

    def __init__(self, vga: VgaText, clock: Clock, fd: int = 1) -> None:
        if not os.isatty(fd):
            raise UserError("--display text draws on a terminal and standard output is none: use --display none")
        self._follower = ScreenFollower(vga)
        self._clock = clock
        self._timer = clock.timer(self._frame)
        self._fd = fd
        self._out = Output(fd)
        self._waiting = b""
        self._size = (0, 0)
        self._top = 0
        self._left: tuple[SeenScreen, Iterator[list[Run]]] | None = None
        self._note: list[str] = []
        self._note_timer = clock.timer(self.clear_note)
        self._drawn_size = (0, 0)
        self._erase = False
        self._started = False
        self.visible = False
        """The alternate screen is shown, or will be with the next frame."""

    def start(self) -> None:
        """Take the terminal and draw from now on, sixty times a second at most."""
        self._started = True
        atexit.register(self.close)
        self.take_again()
        self._frame()

    def note(self, text: bytes) -> None:
        """Show *text* over the guest's screen and above the notes before it, as far as there is room, until
        clear_note() or for NOTE_NS."""
        self._note[:0] = [line for line in text.decode("ascii", "replace").split("\r\n") if line]
        self._follower.redraw()
        self._note_timer.arm(self._clock.now() + NOTE_NS)

    def clear_note(self) -> None:
        """The guest's screen alone again."""
        self._note_timer.cancel()
        if self._note:
            self._note.clear()
            self._erase = True  # they may have covered more than the guest's rows and columns
            self._follower.redraw()

    def _frame(self) -> None:
        start = self._clock.now()
        self.refresh()
        if self._started:
            now = self._clock.now()
            self._timer.arm(now + max(FRAME_NS, 3 * (now - start)))  # at most a quarter of our time, as for a window

    def refresh(self) -> None:
        """Draw what changed; while the terminal has yet to take the last frame, that goes on instead. Never waits."""
        if not self.visible:
            return
        if not self._waiting:
            self._waiting = self._next().encode()
        try:
            self._waiting = self._waiting[self._out.write(self._waiting) :]
        except OSError:  # the terminal is gone
            self._waiting = b""
            self._started = self.visible = False

    def give_back(self) -> None:
        """Leave the alternate screen; before the process stops."""
        if self.visible and _ENTER not in self._waiting:  # we have been there at all
            try:
                # A frame may have stopped within a sequence: CAN ends it.
                self._out.write(b"\x18" + _LEAVE if self._waiting else _LEAVE, PATIENCE_MS)
            except OSError:
                pass
        self.visible = False
        self._waiting = b""

    def take_again(self) -> None:
        """Draw everything again, where we are in the foreground: the process continues."""
        self.visible = self._started and in_foreground(self._fd)
        if self.visible:
            self._waiting = b"\x18" + _ENTER if self._waiting else _ENTER  # as in give_back(), after SIGSTOP
            self._size = (0, 0)
            self._left = None

    def close(self) -> None:
        """Give the terminal back as it was; any number of times."""
        atexit.unregister(self.close)
        self._timer.cancel()
        self._note_timer.cancel()
        self.give_back()
        self._started = False
        self._out.close()

    def _next(self) -> str:
        """What is to be sent next: the whole of a frame, or the rows of it that can be made in WORK_NS."""
        end = self._clock.now() + WORK_NS
        size = self._terminal_size()
        if size != self._size:
            self._size, self._left = size, None
            self._follower.redraw()
        if self._left is None:
            self._left = self._begin()
            if self._left is None:
                return ""
        seen, rows = self._left
        out = ["\x1b[?25l"]
        if self._erase:
            out.append(_ERASE)
            self._erase = False
        for runs in rows:
            out += map(self._run, runs)
            if self._clock.now() >= end:
                return "".join(out)
        self._left = None
        for row, line in enumerate(self._note[: size[1]]):
            out.append(f"\x1b[{row + 1};1H{sgr(*NOTE_COLOURS)}{line[: size[0]].ljust(size[0])}")
        cursor = seen.cursor
        if cursor is not None and cursor.column < size[0] and 0 <= cursor.row - self._top < size[1]:
            out.append(f"\x1b[{cursor.row - self._top + 1};{cursor.column + 1}H\x1b[?25h")
        return "".join(out)

    def _begin(self) -> tuple[SeenScreen, Iterator[list[Run]]] | None:
        frame = self._follower.next(0)
        if frame is None:
            return None
        seen, rows = frame
        size = (seen.screen.columns, seen.screen.rows)
        if size != self._drawn_size:
            self._drawn_size = size
            self._erase = True
        top = self._first_row(seen)
        if top != self._top:
            self._top = top
            rows = seen.changes(None)
        return seen, rows

    def _terminal_size(self) -> tuple[int, int]:
        try:
            columns, lines = os.get_terminal_size(self._fd)
        except OSError:
            return (80, 25)
        return (columns or 80, lines or 25)

    def _first_row(self, seen: SeenScreen) -> int:
        lines = self._size[1]
        cursor_row = seen.cursor.row if seen.cursor is not None else self._top + lines - 1
        low, high = cursor_row - lines + 1, cursor_row
        return max(0, min(max(min(self._top, high), low), seen.screen.rows - lines))

    def _run(self, run: Run) -> str:
        columns, lines = self._size
        row = run.row - self._top
        if not 0 <= row < lines or run.column >= columns:
            return ""
        text = "".join(map(CP437.__getitem__, run.characters[: columns - run.column]))
        return f"\x1b[{row + 1};{run.column + 1}H{sgr(run.foreground, run.background)}{text}"
