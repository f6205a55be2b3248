"""What a user may have overlooked, said once each: that the guest talks where nobody looks, or does not listen where it
is typed at.

Both look at the machine as the displays do, under its lock, and stop looking when there is nothing left to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pyvmm.clock import NS_PER_SECOND, Clock
from pyvmm.devices.vga_text import VgaText

if TYPE_CHECKING:
    from pyvmm.screen.screen import Screen

PATIENCE_NS: Final = 10 * NS_PER_SECOND
LOOK_NS: Final = NS_PER_SECOND

SILENT: Final = (
    "nothing has come on COM1, and the guest's screen has text: --display text or --display x11 shows it; "
    "Linux prints on COM1 with -p console=ttyS0"
)
UNHEARD: Final = (
    "the guest does nothing with the keys of --type-after: the text before them came on COM1, and they go to its "
    "keyboard; a serial console takes standard input and --send-after"
)


def _screen(vga: VgaText) -> Screen:
    from pyvmm.screen.screen import Screen  # which draws itself: a start need not wait for that

    return Screen.of(vga)


class SilentSerial:
    """Nothing comes on COM1, which is all that the user sees, for ten seconds and until the screen has text."""

    def __init__(self, vga: VgaText, clock: Clock, tell: Callable[[str], None]) -> None:
        self._vga = vga
        self._clock = clock
        self._tell = tell
        self._timer = clock.timer(self._look)
        self._timer.arm(clock.now() + PATIENCE_NS)
        self.done = False

    def serial_output(self, data: bytes) -> None:
        """The guest has written *data* to COM1."""
        self.close()

    def _look(self) -> None:
        if any(line.strip() for line in _screen(self._vga).text()):
            self._tell(SILENT)
            self.done = True
        else:
            self._timer.arm(self._clock.now() + LOOK_NS)

    def close(self) -> None:
        self._timer.cancel()
        self.done = True


class UnheardKeys:
    """A text came on COM1 and not on the screen, keys were typed for it, and for ten seconds nothing shows of them: the
    screen is the same, and COM1 ends no line."""

    def __init__(self, vga: VgaText, clock: Clock, tell: Callable[[str], None]) -> None:
        self._vga = vga
        self._clock = clock
        self._tell = tell
        self._timer = clock.timer(self._look)
        self._picture = 0
        self.done = False

    def typed(self, text: str, on_serial: bool) -> None:
        """Keys were typed because *text* came, on COM1 or on the screen."""
        self._timer.cancel()
        if on_serial and not self.done and text not in _screen(self._vga):
            self._picture = self._vga.generation()
            self._timer.arm(self._clock.now() + PATIENCE_NS)

    def serial_output(self, data: bytes) -> None:
        """The guest has written *data* to COM1: the rest of a prompt, if it is no line."""
        if b"\n" in data:
            self._timer.cancel()

    def _look(self) -> None:
        if self._vga.generation() == self._picture:
            self._tell(UNHEARD)
            self.done = True

    def close(self) -> None:
        self._timer.cancel()
        self.done = True
