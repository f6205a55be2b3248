"""A line for us, typed on the terminal that the guest has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.host.prompt import LONGEST, Prompt


class Asked:
    def __init__(self, whole: bool = False) -> None:
        self.shown = b""
        self.answers: list[str | None] = []
        self.prompt = Prompt("which?", self.answers.append, self._say, whole)

    def _say(self, data: bytes) -> None:
        self.shown += data


def test_a_line_with_a_slip() -> None:
    asked = Asked()
    assert asked.prompt.feed(b"irx\x7fq\rfor the guest") == b"for the guest"
    assert asked.answers == ["irq"] and asked.prompt.done
    assert asked.shown == b"\r\nwhich? irx\b \bq\r\n"


@pytest.mark.parametrize("key", [b"\x03", b"\x1b"])
def test_a_line_that_is_given_up(key: bytes) -> None:
    asked = Asked()
    assert asked.prompt.feed(b"irq" + key) == b""
    assert asked.answers == [None]


def test_over_a_screen_the_whole_is_shown() -> None:
    asked = Asked(whole=True)
    asked.prompt.feed(b"ab")
    assert asked.shown.endswith(b"which? ab")


@given(st.lists(st.binary(max_size=20), max_size=30))
def test_any_bytes(pieces: list[bytes]) -> None:
    """Nothing is shown that would do something to the terminal, and nothing after the line is taken."""
    asked = Asked()
    for piece in pieces:
        left = asked.prompt.feed(piece)
        assert asked.prompt.done or left == b""
        if asked.prompt.done:
            assert piece.endswith(left)
            break
    assert len(asked.answers) == int(asked.prompt.done)
    assert all(byte in b"\r\n\b" or 0x20 <= byte < 0x7F for byte in asked.shown)
    assert all(answer is None or len(answer) <= LONGEST for answer in asked.answers)
