r"""Typing by script: the next key goes when the guest has taken the last one, never after a sleep.

    --type-after 'login\: :root\n' --type-after '# :poweroff<enter>'

waits until the text stands on the serial port or the screen, types the keys on the guest's keyboard, goes on to the
next pair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from pyvmm.hostinput.keymap import Stroke, key_code, strokes
from pyvmm.hostinput.router import Router
from pyvmm.trace import OFF, Channel


class Typist:
    """A pair of hands at the guest's keyboard. Text is for a US layout."""

    def __init__(self, router: Router, name: str = "script") -> None:
        self._router = router
        self._source = router.source(name)
        self._waiting: deque[tuple[int, int]] = deque()
        self._typing = False
        router.on_keyboard_idle(self._go_on)

    def type(self, text: str) -> None:
        """Type *text* after what still waits; raises KeyTextError for a character that the keyboard lacks."""
        self.strokes(strokes(text))

    def press(self, *names: str) -> None:
        """Press a chord and release it: press("ctrl", "c"), press("KEY_SYSRQ"); raises KeyTextError."""
        self.strokes([tuple(key_code(name) for name in names)])

    def strokes(self, wanted: Iterable[Stroke]) -> None:
        """Press and release each stroke in turn."""
        for stroke in wanted:
            self._waiting.extend((code, 1) for code in stroke)
            self._waiting.extend((code, 0) for code in reversed(stroke))
        self._go_on()

    @property
    def waiting(self) -> int:
        """Presses and releases that the guest's keyboard has yet to take."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether the guest's keyboard has taken everything."""
        return not self._waiting and self._router.keyboard_idle

    def stop(self) -> None:
        """Forget what has not been typed, release what is pressed."""
        self._waiting.clear()
        self._source.release_all()

    def _go_on(self) -> None:
        if self._typing:
            return  # a key that the keyboard takes at once makes it idle again, and that calls back here
        self._typing = True
        try:
            while self._waiting and self._router.keyboard_idle:
                self._source.key(*self._waiting.popleft())
        finally:
            self._typing = False


class TypeAfter:
    """Pairs of a text and the strokes to type when the guest has shown it, one pair after the other.

    What the guest had shown before the last strokes were typed does not count for the next text, so a prompt is waited
    for anew each time.
    """

    def __init__(self, steps: Sequence[tuple[str, list[Stroke]]], typist: Typist, trace: Channel = OFF) -> None:
        self._steps = deque(steps)
        self._typist = typist
        self._trace = trace
        self._serial = ""
        self._rows: list[str] = []
        self._cursor = (0, 0)
        self._seen: tuple[list[str], int, int] | None = None

    @property
    def done(self) -> bool:
        """Whether every text has been shown."""
        return not self._steps

    def serial_output(self, data: bytes) -> None:
        """The guest has written *data* to its serial port."""
        if not self._steps:
            return
        self._serial += data.decode("utf-8", "replace")
        while self._steps and (at := self._serial.find(self._steps[0][0])) >= 0:
            self._serial = self._serial[at + len(self._steps[0][0]) :]
            self._step("serial port")
        if self._steps:
            self._serial = self._serial[-len(self._steps[0][0]) :]

    def screen_changed(self, rows: Sequence[str], cursor: tuple[int, int] | None) -> None:
        """The guest's screen shows *rows*, at least one, its cursor is at (row, column), or None if it is not there."""
        self._rows = list(rows)
        self._cursor = cursor or _end_of_text(self._rows)
        if self._seen is not None and self._seen[1] >= len(self._rows):
            self._seen = None  # another mode, with fewer rows
        if self._steps and self._steps[0][0] in self._new_text():
            self._step("screen")

    def _step(self, where: str) -> None:
        text, keys = self._steps.popleft()
        if self._trace.enabled:
            self._trace(f"{text!r} on the {where}: typing {len(keys)} keys")
        self._seen = (self._rows, *self._cursor)
        self._typist.strokes(keys)

    def _new_text(self) -> str:
        """What the screen shows beyond the cursor of the last step, wherever that place has been scrolled to.

        The rows above the cursor's change only by scrolling, so the shift is found by laying the old rows over the
        new; where none fits (all has scrolled away, the screen was cleared), all of it is new.
        """
        row = column = 0
        if self._seen is not None:
            old, old_row, old_column = self._seen
            for shift in range(max(old_row, 1)):
                row, column = old_row - shift, old_column
                if self._rows[:row] == old[shift:old_row] and self._rows[row][:column] == old[old_row][:column]:
                    break
            else:
                row = column = 0
                self._seen = None
        return "".join([self._rows[row][column:], *self._rows[row + 1 :]])


def _end_of_text(rows: Sequence[str]) -> tuple[int, int]:
    last = max((row for row, text in enumerate(rows) if text.strip()), default=0)
    return last, len(rows[last].rstrip())
