from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.input import codes as ic
from pyvmm.input.keymap import (
    US_LAYOUT,
    KeyTextError,
    key_code,
    parse_data,
    parse_keys,
    split_script,
    split_sending,
    strokes,
    x11_keymap,
)


def test_every_printable_character_has_its_key() -> None:
    assert set(string.printable) - set("\x0b\x0c") <= set(US_LAYOUT)
    assert strokes("aA1!_\n") == [
        (ic.KEY_A,),
        (ic.KEY_LEFTSHIFT, ic.KEY_A),
        (ic.KEY_1,),
        (ic.KEY_LEFTSHIFT, ic.KEY_1),
        (ic.KEY_LEFTSHIFT, ic.KEY_MINUS),
        (ic.KEY_ENTER,),
    ]
    typed = [US_LAYOUT[c] for c in string.printable if c not in "\x0b\x0c\r"]
    assert len(set(typed)) == len(typed)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("KEY_A", ic.KEY_A),
        ("key_volumeup", ic.KEY_VOLUMEUP),
        ("a", ic.KEY_A),
        ("A", ic.KEY_A),
        ("-", ic.KEY_MINUS),
        ("F12", ic.KEY_F12),
        ("f10", ic.KEY_F10),
        ("Enter", ic.KEY_ENTER),
        ("BTN_LEFT", ic.BTN_LEFT),
    ],
)
def test_names(name: str, code: int) -> None:
    assert key_code(name) == code


@pytest.mark.parametrize("name", ["", "KEY_", "KEY_NOPE", "enterr", "!", "é", "KEY_RESERVED", "KEY_CNT"])
def test_names_of_no_key(name: str) -> None:
    with pytest.raises(KeyTextError, match="no key is called"):
        key_code(name)


def test_no_key_for_a_character() -> None:
    with pytest.raises(KeyTextError, match="no key for 'ü'"):
        strokes("für")


def test_parse_keys() -> None:
    ctrl, alt = ic.KEY_LEFTCTRL, ic.KEY_LEFTALT
    assert parse_keys(r"a\n<enter><ctrl-c>\<\\<ctrl-alt-delete><ctrl--><->>") == [
        (ic.KEY_A,),
        (ic.KEY_ENTER,),
        (ic.KEY_ENTER,),
        (ctrl, ic.KEY_C),
        (ic.KEY_LEFTSHIFT, ic.KEY_COMMA),
        (ic.KEY_BACKSLASH,),
        (ctrl, alt, ic.KEY_DELETE),
        (ctrl, ic.KEY_MINUS),
        (ic.KEY_MINUS,),
        (ic.KEY_LEFTSHIFT, ic.KEY_DOT),
    ]
    assert parse_keys("") == []


@pytest.mark.parametrize("text", ["\\q", "a\\", "<", "<enter", "<>", "<ctrl->", "<a--b>", "<hyper-x>", "naïve"])
def test_what_parse_keys_refuses_in_one_line(text: str) -> None:
    with pytest.raises(KeyTextError) as caught:
        parse_keys(text)
    assert "\n" not in str(caught.value) and str(caught.value)


def test_split_script() -> None:
    assert split_script(r"login\: :root\n") == ("login: ", parse_keys(r"root\n"))
    assert split_script("# :a:b") == ("# ", parse_keys("a:b"))
    assert split_script("#:") == ("#", [])
    for text in ("no colon", ":x", "", r"a\:b"):
        with pytest.raises(KeyTextError, match="is not TEXT:KEYS"):
            split_script(text)


def test_what_is_sent_to_com1() -> None:
    assert split_sending(r"login\: :root\n") == ("login: ", b"root\n")
    assert (
        parse_data(r"\r\t\e\\\<\:é<enter><ctrl-c><Ctrl-[><space><backspace>") == "\r\t\x1b\\<:é\r\x03\x1b \x7f".encode()
    )
    for text in ("<f1>", "<ctrl-é>", "<ctrl-alt-delete>", "\\q", "<enter", "a\\"):
        with pytest.raises(KeyTextError):
            parse_data(text)
    with pytest.raises(KeyTextError, match="is not TEXT:DATA"):
        split_sending("no colon")


@given(st.binary(max_size=40))
def test_bytes_of_the_command_line_are_sent_as_they_are(data: bytes) -> None:
    text = data.replace(b"\\", b"\\\\").replace(b"<", b"\\<").decode(errors="surrogateescape")
    assert parse_data(text) == data


@given(st.text(max_size=40))
def test_any_script_is_strokes_or_one_line(text: str) -> None:
    for parse in (parse_keys, split_script, parse_data, split_sending):
        try:
            parse(text)
        except KeyTextError as error:
            assert "\n" not in str(error)


@given(st.text(alphabet=string.ascii_letters + string.digits + string.punctuation + " ", max_size=40))
def test_plain_text_means_itself(text: str) -> None:
    assert parse_keys(text.replace("\\", "\\\\").replace("<", "\\<")) == strokes(text)


def test_x11_with_evdev_keycodes() -> None:
    keymap = x11_keymap(lambda keycode: [0xFF52] if keycode == 111 else [])
    assert keymap[38] == ic.KEY_A and keymap[111] == ic.KEY_UP and keymap[255] == 247
    assert 8 not in keymap


def test_x11_by_keysyms() -> None:
    server = {98: [0xFF52], 38: [ord("a"), ord("A")], 50: [0xFFE1], 60: [0x01002190], 61: [0, ord("?")], 111: [0xFF61]}
    keymap = x11_keymap(lambda keycode: server.get(keycode, []))
    assert keymap == {
        98: ic.KEY_UP,
        38: ic.KEY_A,
        50: ic.KEY_LEFTSHIFT,
        61: ic.KEY_SLASH,
        111: ic.KEY_SYSRQ,
    }
