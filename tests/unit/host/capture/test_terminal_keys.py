from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.host.capture.terminal_keys import STROKES_WAITING, TerminalKeys, terminal_strokes
from pyvmm.input import codes as ic
from pyvmm.input.keymap import strokes
from pyvmm.input.typist import Typist
from tests.rig.input_fakes import FakeKeyboard, make_router


@given(st.text(string.printable.replace("\n", "").replace("\x0b", "").replace("\x0c", "")))
def test_text_is_typed_as_it_stands(text: str) -> None:
    assert list(terminal_strokes(text)) == strokes(text)


@pytest.mark.parametrize(
    ("sent", "stroke"),
    [
        ("\r", (ic.KEY_ENTER,)),
        ("\x7f", (ic.KEY_BACKSPACE,)),
        ("\t", (ic.KEY_TAB,)),
        ("\x1b", (ic.KEY_ESC,)),
        ("\x03", (ic.KEY_LEFTCTRL, ic.KEY_C)),
        ("\n", (ic.KEY_LEFTCTRL, ic.KEY_J)),
        ("\x08", (ic.KEY_LEFTCTRL, ic.KEY_H)),
        ("\x1c", (ic.KEY_LEFTCTRL, ic.KEY_BACKSLASH)),
        ("\x00", (ic.KEY_LEFTCTRL, ic.KEY_LEFTSHIFT, ic.KEY_2)),
        ("\x1bx", (ic.KEY_LEFTALT, ic.KEY_X)),
        ("\x1b[A", (ic.KEY_UP,)),
        ("\x1bOD", (ic.KEY_LEFT,)),
        ("\x1bOP", (ic.KEY_F1,)),
        ("\x1b[24~", (ic.KEY_F12,)),
        ("\x1b[3~", (ic.KEY_DELETE,)),
        ("\x1b[1;5C", (ic.KEY_LEFTCTRL, ic.KEY_RIGHT)),
        ("\x1b[5;4~", (ic.KEY_LEFTSHIFT, ic.KEY_LEFTALT, ic.KEY_PAGEUP)),
        ("\x1b[Z", (ic.KEY_LEFTSHIFT, ic.KEY_TAB)),
        ("\x1b[[A", (ic.KEY_F1,)),
        ("\x1b[[E", (ic.KEY_F5,)),
        ("\x1b\x1b[A", (ic.KEY_LEFTALT, ic.KEY_UP)),
        ("\x1b\x1bOP", (ic.KEY_LEFTALT, ic.KEY_F1)),
    ],
)
def test_what_a_terminal_sends_for_a_key(sent: str, stroke: tuple[int, ...]) -> None:
    assert list(terminal_strokes(sent)) == [stroke]
    assert list(terminal_strokes("a" + sent))[1:] == [stroke]


def test_what_no_key_types_is_dropped() -> None:
    assert list(terminal_strokes("é\x1b[999~\x1b[?1;2c\x1b[<0;1;1M€a")) == [(ic.KEY_A,)]


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=50) | st.text(alphabet="\x1b[O;0159~AZ", max_size=30))
def test_anything_may_be_pasted(text: str) -> None:
    for stroke in terminal_strokes(text):
        assert stroke and all(0 < code <= ic.KEY_MAX for code in stroke)


def test_a_paste_to_a_guest_that_does_not_read_is_bounded() -> None:
    typist = Typist(make_router(ps2_keyboard=FakeKeyboard(room=0)))
    TerminalKeys(typist).feed(b"a" * 100_000)
    assert typist.waiting == STROKES_WAITING
