"""The device end of a PS/2 cable: what a keyboard and a mouse have in common.

The device holds bytes for the host in two queues: answers to commands, and what it reports by itself (scan codes,
movement). Answers go first. The controller takes a byte when its output buffer is free, and says when the guest has
read it; until then the clock line is held low and everything else waits here, as on the cable.

Source: IBM PS/2 Technical Reference, Keyboards (101- and 102-key), "Keyboard buffer" and "Commands from the system".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import ClassVar, Final

PS2_RET_ACK: Final = 0xFA
PS2_RET_NAK: Final = 0xFE
"""Resend: what the device got was no command, or no option of the command before."""
PS2_RET_BAT: Final = 0xAA
"""The basic assurance test, which follows power-on and reset, has passed."""

ANSWER_CAPACITY: Final = 16
"""Bytes of unread answers that a device holds; a command whose answer finds no room goes unanswered.

16 is also all that Linux's i8042_flush() reads before it decides that there is no controller.
"""


def _unplugged() -> None:
    pass


class Ps2Device:
    """A device on a PS/2 cable. `write`, `take` and `taken` are the cable, and the controller's to call."""

    STATE: ClassVar[tuple[str, ...]] = ("_answers", "_reports", "_taken_report", "_last_sent")

    def __init__(self) -> None:
        self.data_ready: Callable[[], None] = _unplugged
        """Set by the controller: to be called when there is a byte to take."""
        self._answers: deque[int] = deque()
        self._reports: deque[int] = deque()
        self._taken_report = False
        self._last_sent = PS2_RET_BAT

    def write(self, value: int) -> None:
        """Receive one byte (a command, or an option of one) from the host."""
        raise NotImplementedError

    def take(self) -> int:
        """Hand over the next byte for the host, or -1 if there is none; `taken` follows when the guest has read it."""
        if self._answers:
            self._taken_report = False
            value = self._answers.popleft()
        elif self._reports:
            self._taken_report = True
            value = self._reports.popleft()
        else:
            return -1
        if value != PS2_RET_NAK:
            self._last_sent = value
        return value

    def taken(self) -> None:
        """The guest has read the byte that `take` handed over."""
        if self._taken_report:
            self._taken_report = False
            self._report_taken()

    def _report_taken(self) -> None:
        """A byte that was no answer has been read."""

    def _answer(self, *values: int) -> None:
        if len(self._answers) + len(values) <= ANSWER_CAPACITY:
            self._answers.extend(values)
            self.data_ready()

    def _resend(self) -> None:
        self._answer(self._last_sent)
