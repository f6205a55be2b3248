r"""Typing by script: the next key goes when the guest has taken the last one, never after a sleep.

    --type-after 'login\: :root\n' --type-after '# :poweroff<enter>'

waits until the text stands on the serial port or the screen, types the keys on the guest's keyboard, goes on to the
next pair.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from pyvmm.input.keymap import Stroke, key_code, strokes
from pyvmm.input.router import Router
from pyvmm.trace import OFF, Channel

T = TypeVar("T")


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


class _SerialText:
    """The guest's serial output, as far as it has not been waited for."""

    def __init__(self, longest: int) -> None:
        self.next = 0
        self._longest = longest
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character comes in pieces: byte by byte
        self._text = ""

    def feed(self, data: bytes) -> None:
        self._text += self._decoder.decode(data)

    def find(self, text: str) -> bool:
        """Whether *text* is there; what stands before its end is done with then."""
        at = self._text.find(text)
        if at >= 0:
            self._text = self._text[at + len(text) :]
        return at >= 0

    def forget(self) -> None:
        """Keep only what may be the beginning of a text."""
        self._text = self._text[-self._longest :]


class _ScreenText:
    """The guest's screen, as far as it has not been waited for: what stands beyond the end of the last text found.

    That place moves up as the screen scrolls. The rows above it change only by scrolling, so the shift is found by
    laying the old rows over the new; where none fits (all has scrolled away, the screen was cleared), all of it is new.
    """

    def __init__(self) -> None:
        self.next = 0
        self._rows: list[str] = []
        self._done: list[str] = []  # the rows up to the end of the last text found, that row only as far as the end

    def show(self, rows: Sequence[str]) -> None:
        self._rows = list(rows)
        if self._done:
            self._scroll()

    def _scroll(self) -> None:
        *above, last = self._done
        for shift in range(max(len(above), 1)):
            row = len(above) - shift
            if self._rows[:row] == above[shift:] and row < len(self._rows) and self._rows[row].startswith(last):
                self._done = [*above[shift:], last]
                return
        self._done = []

    def find(self, text: str) -> bool:
        """Whether *text* is there, in one row or running on into the next; what stands before its end is done with."""
        row, column = (len(self._done) - 1, len(self._done[-1])) if self._done else (0, 0)
        tail = [self._rows[row][column:], *self._rows[row + 1 :]] if self._rows else []
        at = "".join(tail).find(text)
        if at < 0:
            return False
        left = at + len(text)
        for part in tail:
            if left <= len(part):
                break
            left -= len(part)
            row, column = row + 1, 0
        self._done = [*self._rows[:row], self._rows[row][: column + left]]
        return True


class After(Generic[T]):
    """Pairs of a text and what to *do* when the guest has shown it, one pair after the other.

    A text counts once: what the guest showed up to the end of the last one does not count for the next, so a prompt is
    waited for anew each time, and a guest that shows the same on its serial port and its screen has shown it once.
    """

    def __init__(
        self,
        steps: Sequence[tuple[str, T]],
        do: Callable[[T], object],
        trace: Channel = OFF,
        on_done: Callable[[str, bool], None] = lambda text, on_serial: None,
    ) -> None:
        """*on_done* is told the text for which it was done, and whether that came on the serial port."""
        self._steps = list(steps)
        self._do = do
        self._on_done = on_done
        self._typed = 0
        self._trace = trace
        self._serial = _SerialText(max((len(text) for text, _ in steps), default=0))
        self._screen = _ScreenText()

    @property
    def done(self) -> bool:
        """Whether every text has been shown."""
        return self._typed == len(self._steps)

    def serial_output(self, data: bytes) -> None:
        """The guest has written *data* to its serial port."""
        if not self.done:
            self._serial.feed(data)
            self._look(self._serial, on_serial=True)
            self._serial.forget()

    def screen_changed(self, rows: Sequence[str]) -> None:
        """The guest's screen shows *rows*."""
        if not self.done:
            self._screen.show(rows)
            self._look(self._screen, on_serial=False)

    def _look(self, shown: _SerialText | _ScreenText, *, on_serial: bool) -> None:
        # Each of the two finds the texts in their order. One that is behind may skip to the text that is waited for,
        # unless that is also one that it has yet to find: then what it shows is taken for the earlier one.
        while not self.done:
            wanted = self._steps[self._typed][0]
            behind = [text for text, _ in self._steps[shown.next : self._typed]]
            if wanted not in behind and shown.find(wanted):
                shown.next = self._typed
            elif not behind or not shown.find(behind[0]):
                return
            shown.next += 1
            if shown.next > self._typed:
                self._act(on_serial)

    def _act(self, on_serial: bool) -> None:
        text, what = self._steps[self._typed]
        if self._trace.enabled:
            where = "serial port" if on_serial else "screen"
            self._trace(f"{text!r} on the {where}: {self.doing(what)}")
        self._typed += 1
        self._do(what)
        self._on_done(text, on_serial)

    def doing(self, what: T) -> str:
        """For the trace."""
        return "it was waited for"


class TypeAfter(After[list[Stroke]]):
    """Strokes to type."""

    def __init__(
        self,
        steps: Sequence[tuple[str, list[Stroke]]],
        typist: Typist,
        trace: Channel = OFF,
        on_done: Callable[[str, bool], None] = lambda text, on_serial: None,
    ) -> None:
        super().__init__(steps, typist.strokes, trace, on_done)

    def doing(self, what: list[Stroke]) -> str:
        return f"typing {len(what)} keys"


class SendAfter(After[bytes]):
    """Bytes to send to COM1."""

    def doing(self, what: bytes) -> str:
        return f"sending {len(what)} bytes to COM1"
