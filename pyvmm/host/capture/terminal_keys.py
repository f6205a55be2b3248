"""The user's terminal as the guest's keyboard: what a terminal sends becomes key strokes again.

A terminal sends characters, not keys: a letter, a control character, or a sequence such as ESC [ A for a cursor key.
Each becomes the stroke that types it on a US keyboard; what no key types is dropped.

Source: XTerm Control Sequences, "PC-Style Function Keys"; ECMA-48 5.4 for the shape of a sequence; terminfo's entries
linux for ESC [ [ A (F1 of the Linux console) and rxvt for a second ESC before a sequence (Alt).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from pyvmm.input import codes as ic
from pyvmm.input.keymap import US_LAYOUT, Stroke
from pyvmm.input.typist import Typist

STROKES_WAITING: Final = 4096
"""Strokes that wait for a guest that does not read its keyboard; more are dropped."""

_LETTERS: Final = {
    "A": ic.KEY_UP,
    "B": ic.KEY_DOWN,
    "C": ic.KEY_RIGHT,
    "D": ic.KEY_LEFT,
    "H": ic.KEY_HOME,
    "F": ic.KEY_END,
    "P": ic.KEY_F1,
    "Q": ic.KEY_F2,
    "R": ic.KEY_F3,
    "S": ic.KEY_F4,
}
_NUMBERS: Final = {
    1: ic.KEY_HOME,
    2: ic.KEY_INSERT,
    3: ic.KEY_DELETE,
    4: ic.KEY_END,
    5: ic.KEY_PAGEUP,
    6: ic.KEY_PAGEDOWN,
    7: ic.KEY_HOME,
    8: ic.KEY_END,
    11: ic.KEY_F1,
    12: ic.KEY_F2,
    13: ic.KEY_F3,
    14: ic.KEY_F4,
    15: ic.KEY_F5,
    17: ic.KEY_F6,
    18: ic.KEY_F7,
    19: ic.KEY_F8,
    20: ic.KEY_F9,
    21: ic.KEY_F10,
    23: ic.KEY_F11,
    24: ic.KEY_F12,
}
_MODIFIERS: Final = ((1, ic.KEY_LEFTSHIFT), (2, ic.KEY_LEFTALT), (4, ic.KEY_LEFTCTRL))
_SEQUENCE: Final = re.compile(
    r"(?P<alt>\x1b)?\x1b(?:\[\[(?P<linux>[A-E])|O(?P<ss3>[@-~])|\[(?P<parameters>[0-?]*)[ -/]*(?P<final>[@-~]))"
)


def terminal_strokes(text: str) -> Iterator[Stroke]:
    """The strokes that made a terminal send *text*."""
    position = 0
    while position < len(text):
        character = text[position]
        match = _SEQUENCE.match(text, position)
        if match is not None:
            stroke = _sequence(match)
            if stroke is not None:
                yield (ic.KEY_LEFTALT, *stroke) if match["alt"] else stroke
            position = match.end()
            continue
        position += 1
        if character == "\x1b" and position < len(text):
            after = _character(text[position])
            if after is not None:
                yield (ic.KEY_LEFTALT, *after)
                position += 1
                continue
        plain = _character(character)
        if plain is not None:
            yield plain


def _character(character: str) -> Stroke | None:
    stroke = US_LAYOUT.get(character) if character not in "\n\b" else None
    if stroke is None and ord(character) < 0x20:  # Ctrl-@ to Ctrl-_
        stroke = (ic.KEY_LEFTCTRL, *US_LAYOUT[chr(ord(character) + 0x40).lower()])
    return stroke


def _sequence(match: re.Match[str]) -> Stroke | None:
    code: int | None
    if match["linux"]:
        code, modifiers = ic.KEY_F1 + ord(match["linux"]) - ord("A"), 0
    elif match["ss3"]:
        code, modifiers = _LETTERS.get(match["ss3"]), 0
    else:
        numbers = [int(part) if part.isdecimal() and len(part) < 4 else 0 for part in match["parameters"].split(";")]
        modifiers = max(numbers[1] - 1, 0) if len(numbers) > 1 else 0
        if match["final"] == "Z":
            return (ic.KEY_LEFTSHIFT, ic.KEY_TAB)
        code = _NUMBERS.get(numbers[0]) if match["final"] == "~" else _LETTERS.get(match["final"])
    if code is None:
        return None
    return (*(key for bit, key in _MODIFIERS if modifiers & bit), code)


class TerminalKeys:
    """Types what the user types on the terminal."""

    def __init__(self, typist: Typist) -> None:
        self._typist = typist

    def feed(self, data: bytes) -> None:
        """What was read from the terminal in one go; an ESC at its end is the key Esc."""
        for stroke in terminal_strokes(data.decode("utf-8", "replace")):
            if self._typist.waiting < STROKES_WAITING:
                self._typist.strokes([stroke])
