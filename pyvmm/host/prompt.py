"""A question to the user on the terminal that the guest has: one line is typed for us and not for the guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

ENTER: Final = b"\r\n"
ERASE: Final = b"\b\x7f"
CANCEL: Final = b"\x03\x1b"
"""Ctrl-C and Esc."""
LONGEST: Final = 200


class Prompt:
    """feed() it what is typed until `done`; *answer* then gets the line, None where the user thought better of it.

    *say* shows bytes at the end of what is shown; with *whole* it shows one text in place of the one before.
    """

    def __init__(
        self, question: str, answer: Callable[[str | None], None], say: Callable[[bytes], None], whole: bool = False
    ) -> None:
        self.done = False
        self._question = question
        self._answer = answer
        self._say = say
        self._whole = whole
        self._text = ""
        say((f"\n{question} ").replace("\n", "\r\n").encode())

    def feed(self, data: bytes) -> bytes:
        """Take *data* as far as it belongs to the line; what is left is the guest's."""
        for index, byte in enumerate(data):
            if byte in ENTER or byte in CANCEL:
                self.done = True
                if not self._whole:
                    self._say(b"\r\n")
                self._answer(self._text if byte in ENTER else None)
                return data[index + 1 :]
            if byte in ERASE:
                if self._text:
                    self._text = self._text[:-1]
                    self._show(b"\b \b")
            elif 0x20 <= byte < 0x7F and len(self._text) < LONGEST:
                self._text += chr(byte)
                self._show(bytes((byte,)))
        return b""

    def _show(self, echo: bytes) -> None:
        self._say(f"\r\n{self._question} {self._text}".encode() if self._whole else echo)
