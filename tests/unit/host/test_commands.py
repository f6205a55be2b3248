"""The table of Ctrl-A letters: each does its thing to the machine and answers where it was typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import UserError
from pyvmm.host.commands import COMMANDS, perform
from pyvmm.machine.snapshot import Snapshot
from pyvmm.trace import Trace


class Seat:
    """A user who typed a letter; the machine notes what is done to it."""

    def __init__(self, shot: Path | UserError = Path("screen.png")) -> None:
        self.machine: Any = Mock()
        self.snapshot: Snapshot | None = None
        self.writer: Any = None
        self.said: list[str] = []
        self._shot = shot
        self.answer: str | None = None

    def say(self, text: str) -> None:
        self.said.append(text)

    def ask(self, question: str, answer: Callable[[str | None], None]) -> None:
        self.said.append(question)
        answer(self.answer)

    def screenshot(self) -> Path:
        if isinstance(self._shot, UserError):
            raise self._shot
        return self._shot

    def prompt(self) -> None:
        self.said.append("a prompt")

    def type(self, letter: str) -> list[str]:
        """What was done to the machine, as calls."""
        perform(letter, self)
        return [str(call).removeprefix("call.") for call in self.machine.mock_calls]


@pytest.mark.parametrize(
    ("letter", "calls"),
    [
        ("p", ["power_button()"]),
        ("n", ["nmi()"]),
        ("b", ["board.com1.receive_break()"]),
        ("x", ["end()"]),
    ],
)
def test_what_reaches_the_machine(letter: str, calls: list[str]) -> None:
    seat = Seat()
    assert seat.type(letter) == calls
    assert seat.said == []


def test_c_is_a_prompt_of_the_seats() -> None:
    seat = Seat()
    assert seat.type("c") == [] and seat.said == ["a prompt"]


def test_the_help_has_every_letter_once() -> None:
    seat = Seat()
    assert seat.type("h") == []
    (text,) = seat.said
    lines = [line.split("  ", 1) for line in text.split("\n")]
    assert lines == [[f"Ctrl-A {letter}", command.help] for letter, command in COMMANDS.items()] + [
        ["Ctrl-A Ctrl-A", "send Ctrl-A"]
    ]


def test_s_says_what_it_wrote_or_why_not() -> None:
    seat = Seat(Path("here.png"))
    seat.type("s")
    assert seat.said == [f"pyvmm: wrote {Path.cwd()}/here.png"]
    seat = Seat(UserError("cannot write here.png: No space left on device"))
    seat.type("s")
    assert seat.said == ["pyvmm: cannot write here.png: No space left on device"]


@pytest.mark.parametrize(("typed", "named"), [("q", "q"), ("\x1b", "Ctrl-["), ("\r", "Ctrl-M"), ("\x9b", "0x9b")])
def test_an_unknown_letter_says_so(typed: str, named: str) -> None:
    seat = Seat()
    assert seat.type(typed) == []
    assert seat.said == [f"pyvmm: Ctrl-A {named} is no command: Ctrl-A h shows them"]


@given(st.characters(max_codepoint=255))
def test_no_answer_has_a_control_character(typed: str) -> None:
    seat = Seat()
    if typed not in COMMANDS:
        seat.type(typed)
        assert all(said.isascii() and said.isprintable() for said in seat.said) and seat.said


def test_z_lets_it_stand_and_go_on() -> None:
    seat = Seat()
    seat.machine.life.reasons = ("gdb",)
    assert seat.type("z") == ["life.pause('console', wait=False)"]
    seat.machine.life.reasons = ("gdb", "console")
    assert seat.type("z")[-1] == "life.resume('console', wait=False)"
    assert len(seat.said) == 2


@pytest.mark.parametrize(
    ("answer", "on"),
    [
        ("irq", "i8042, irq"),
        ("irq,i8042", "irq"),
        (" pci  irq ", "i8042, irq, pci"),
        ("all", "i8042, irq, pci"),
        ("none", "nothing"),
    ],
)
def test_t_switches_channels_over(answer: str, on: str) -> None:
    seat = Seat()
    seat.machine.trace = trace = Trace({"i8042"}, lambda ns, channel, message: None)
    for name in ("i8042", "irq", "pci"):
        trace.channel(name)
    seat.answer = answer
    seat.type("t")
    assert "[i8042] irq pci" in seat.said[0]
    assert seat.said[1:] == [f"pyvmm: traced: {on}"]


@pytest.mark.parametrize("answer", [None, ""])
def test_t_with_no_answer_switches_nothing(answer: str | None) -> None:
    seat = Seat()
    seat.machine.trace = Trace()
    seat.answer = answer
    seat.type("t")
    assert len(seat.said) == 1


def test_t_with_a_name_that_there_is_not() -> None:
    seat = Seat()
    seat.machine.trace = Trace()
    seat.answer = "xyz"
    seat.type("t")
    assert seat.said[1] == "pyvmm: trace: no channel xyz; there are: all"


def test_nothing_to_undo() -> None:
    seat = Seat()
    assert seat.type("u") == []
    assert seat.said == ["pyvmm: there is no snapshot to go back to: Ctrl-A w takes one"]
