from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.input.codes import KEY_C, KEY_L, KEY_LEFTCTRL, KEY_LEFTSHIFT, KEY_S
from pyvmm.input.keymap import KeyTextError, split_script, strokes
from pyvmm.input.typist import TypeAfter, Typist
from tests.rig.input_fakes import FakeKeyboard, make_router


def events_of(text: str) -> list[tuple[int, int]]:
    return [
        event for stroke in strokes(text) for event in [*((c, 1) for c in stroke), *((c, 0) for c in reversed(stroke))]
    ]


def test_the_next_key_waits_for_the_guest() -> None:
    keyboard = FakeKeyboard(room=1)
    typist = Typist(make_router(ps2_keyboard=keyboard))
    typist.type("lS")
    assert keyboard.keys == [(KEY_L, 1)] and not typist.idle
    for _ in range(5):
        keyboard.make_room()
    assert keyboard.keys == [(KEY_L, 1), (KEY_L, 0), (KEY_LEFTSHIFT, 1), (KEY_S, 1), (KEY_S, 0), (KEY_LEFTSHIFT, 0)]
    assert not typist.idle
    keyboard.make_room()
    assert typist.idle


def test_ten_thousand_keys_in_order() -> None:
    text = "".join(chr(0x21 + i % 94) for i in range(5000))
    keyboard = FakeKeyboard(room=0)
    typist = Typist(make_router(ps2_keyboard=keyboard))
    typist.type(text)
    typist.type(text)
    while not typist.idle:
        keyboard.make_room(3)
    assert keyboard.keys == events_of(text + text)


def test_press_a_chord() -> None:
    keyboard = FakeKeyboard()
    Typist(make_router(ps2_keyboard=keyboard)).press("ctrl", "c")
    assert keyboard.keys == [(KEY_LEFTCTRL, 1), (KEY_C, 1), (KEY_C, 0), (KEY_LEFTCTRL, 0)]


def test_text_that_cannot_be_typed_types_nothing() -> None:
    keyboard = FakeKeyboard()
    with pytest.raises(KeyTextError):
        Typist(make_router(ps2_keyboard=keyboard)).type("aé")
    assert keyboard.keys == []


def test_stop_releases() -> None:
    keyboard = FakeKeyboard(room=2)
    typist = Typist(make_router(ps2_keyboard=keyboard))
    typist.type("A")
    typist.stop()
    keyboard.make_room(100)
    assert keyboard.keys[2:] == [(KEY_LEFTSHIFT, 0), (keyboard.keys[1][0], 0)] and typist.idle


class Script:
    def __init__(self, *steps: str) -> None:
        self.keyboard = FakeKeyboard()
        self.script = TypeAfter([split_script(step) for step in steps], Typist(make_router(ps2_keyboard=self.keyboard)))

    def typed(self) -> list[tuple[int, int]]:
        keys, self.keyboard.keys = self.keyboard.keys, []
        return keys

    def show(self, *lines: str) -> None:
        """A screen of six rows of twenty columns."""
        self.script.screen_changed([line.ljust(20) for line in lines] + [" " * 20] * (6 - len(lines)))


def test_serial_steps_one_after_the_other() -> None:
    script = Script("login\\: :root\\n", "# :ls\\n", "# :x")
    script.script.serial_output(b"# Debian\r\nlog")
    assert script.typed() == []
    script.script.serial_output(b"in: ")
    assert script.typed() == events_of("root\n")
    script.script.serial_output(b"root\r\n# ")
    assert script.typed() == events_of("ls\n")
    assert not script.script.done
    script.script.serial_output(b"ls\r\nbin etc\r\n# ")
    assert script.typed() == events_of("x") and script.script.done
    script.script.serial_output(b"# ")
    assert script.typed() == []


def test_a_text_that_is_not_ascii_comes_byte_by_byte() -> None:
    script = Script("Kennwörter ▶:a", "☺:b")
    for byte in b"noise \xff\xe2" + "Kennwörter ▶ ☺".encode():
        script.script.serial_output(bytes((byte,)))
    assert script.typed() == events_of("ab")


def test_serial_memory_is_bounded() -> None:
    script = Script("never:x")
    for _ in range(100):
        script.script.serial_output(bytes(range(256)) * 10)
    assert len(script.script._serial._text) <= len("never")


def test_two_texts_in_one_write() -> None:
    script = Script("one:a", "two:b")
    script.script.serial_output(b"two one two")
    assert script.typed() == events_of("ab")


def test_an_old_prompt_on_the_screen_does_not_count() -> None:
    script = Script("# :ls\\n", "# :y")
    script.show("boot", "# ")
    assert script.typed() == events_of("ls\n")
    script.show("boot", "# ls")
    script.show("boot", "# ls", "bin etc")
    assert script.typed() == []
    script.show("boot", "# ls", "bin etc", "# ")
    assert script.typed() == events_of("y")


def test_an_old_prompt_that_scrolled_does_not_count() -> None:
    script = Script("x# :ls\\n", "# :y")
    script.show("a", "#", "b", "c", "d", "x# ")
    assert script.typed() == events_of("ls\n")
    script.show("b", "c", "d", "x# ls", "bin", "etc")
    assert script.typed() == []
    script.show("c", "d", "x# ls", "bin", "etc", "# ")
    assert script.typed() == events_of("y")


def test_everything_is_new_after_a_clear() -> None:
    script = Script("# :clear\\n", "# :y")
    script.show("a", "b", "# ")
    script.typed()
    script.show("# ")
    assert script.typed() == events_of("y")


def test_texts_that_came_between_two_looks() -> None:
    script = Script("one:a", "two:b", "one:c")
    script.show("two", "one", "x two")
    assert script.typed() == events_of("ab")
    script.show("two", "one", "x two", "   one")
    assert script.typed() == events_of("c")


def test_a_text_that_runs_into_the_next_row() -> None:
    script = Script("login:x", "go:y")
    script.show(" " * 17 + "log", "in")
    assert script.typed() == events_of("x")
    script.show(" " * 17 + "log", "in g", "o")
    assert script.typed() == []
    script.show(" " * 17 + "log", "in g", "o", "go")
    assert script.typed() == events_of("y")


@pytest.mark.parametrize("serial_first", [True, False])
def test_one_prompt_on_both_is_one(serial_first: bool) -> None:
    script = Script("> :a", "> :b", "> :c")
    if serial_first:
        script.script.serial_output(b"> ")
    script.show("> ")
    script.script.serial_output(b"" if serial_first else b"> ")
    assert script.typed() == events_of("a")
    script.show("> a", "> ")
    script.script.serial_output(b"a\r\n> ")
    assert script.typed() == events_of("b")
    script.script.serial_output(b"b\r\n> ")
    script.show("> a", "> b", "> ")
    assert script.typed() == events_of("c")


def test_from_the_serial_port_to_the_screen() -> None:
    script = Script("boot\\::x", "login\\::y", "# :z")
    script.script.serial_output(b"boot: ")
    script.show("login: ")
    script.show("login: y", "# ")
    assert script.typed() == events_of("xyz")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(st.lists(st.text("# x", max_size=4), max_size=6), st.binary(max_size=8), st.sampled_from([b"# x"])),
        max_size=10,
    )
)
def test_any_output(shown: list[list[str] | bytes]) -> None:
    script = Script("#:a", "x:b", "# x:c")
    for part in shown:
        if isinstance(part, bytes):
            script.script.serial_output(part)
        else:
            script.script.screen_changed(part)
    assert script.typed() in ([], events_of("a"), events_of("ab"), events_of("abc"))
