"""Scan codes against what is published of them elsewhere, written down here once more by the keyboard's rows."""

from __future__ import annotations

import pytest

from pyvmm.devices.scancodes import (
    BREAK,
    EXTENDED,
    KEY_OF_SET3,
    KEYS,
    SET3_MAKE_BREAK,
    SET3_MAKE_ONLY,
    TRANSLATION,
    sequences,
    translate,
)
from pyvmm.input import codes as ic

ALL_KEYS = [*KEYS, ic.KEY_PAUSE, ic.KEY_SYSRQ, ic.KEY_HANGEUL, ic.KEY_HANJA]


def keys(names: str) -> list[int]:
    return [getattr(ic, f"KEY_{name}") for name in names.split()]


# IBM PS/2 Technical Reference, Keyboards (101- and 102-key): the rows of the keyboard, set 2 and set 3 make codes.
ROWS = (
    ("GRAVE 1 2 3 4 5 6 7 8 9 0 MINUS EQUAL BACKSPACE", "0e161e26252e363d3e46454e5566", "0e161e26252e363d3e46454e5566"),
    (
        "TAB Q W E R T Y U I O P LEFTBRACE RIGHTBRACE BACKSLASH",
        "0d151d242d2c353c43444d545b5d",
        "0d151d242d2c353c43444d545b5c",
    ),
    (
        "CAPSLOCK A S D F G H J K L SEMICOLON APOSTROPHE ENTER",
        "581c1b232b34333b424b4c525a",
        "141c1b232b34333b424b4c525a",
    ),
    (
        "LEFTSHIFT 102ND Z X C V B N M COMMA DOT SLASH RIGHTSHIFT",
        "12611a22212a32313a41494a59",
        "12131a22212a32313a41494a59",
    ),
    ("LEFTCTRL LEFTALT SPACE", "141129", "111929"),
    ("ESC F1 F2 F3 F4 F5 F6 F7 F8 F9 F10 F11 F12", "760506040c030b830a01097807", "08070f171f272f373f474f565e"),
    ("SCROLLLOCK NUMLOCK KPASTERISK KPMINUS KPPLUS KPDOT", "7e777c7b7971", "5f767e847c71"),
    ("KP0 KP1 KP2 KP3 KP4 KP5 KP6 KP7 KP8 KP9", "7069727a6b73746c757d", "7069727a6b73746c757d"),
)
EXTENDED_ROWS = (
    ("INSERT HOME PAGEUP DELETE END PAGEDOWN", "706c7d71697a", "676e6f64656d"),
    ("UP LEFT DOWN RIGHT", "756b7274", "6361606a"),
    ("RIGHTCTRL RIGHTALT KPSLASH KPENTER", "14114a5a", "58397779"),
    ("LEFTMETA RIGHTMETA COMPOSE", "1f272f", "8b8c8d"),
)

# Microsoft, Keyboard Scan Code Specification 1.3a: key, set 1 after the E0, set 2 after the E0.
MICROSOFT = {
    "KPENTER": (0x1C, 0x5A),
    "RIGHTCTRL": (0x1D, 0x14),
    "KPSLASH": (0x35, 0x4A),
    "RIGHTALT": (0x38, 0x11),
    "HOME": (0x47, 0x6C),
    "UP": (0x48, 0x75),
    "PAGEUP": (0x49, 0x7D),
    "LEFT": (0x4B, 0x6B),
    "RIGHT": (0x4D, 0x74),
    "END": (0x4F, 0x69),
    "DOWN": (0x50, 0x72),
    "PAGEDOWN": (0x51, 0x7A),
    "INSERT": (0x52, 0x70),
    "DELETE": (0x53, 0x71),
    "LEFTMETA": (0x5B, 0x1F),
    "RIGHTMETA": (0x5C, 0x27),
    "COMPOSE": (0x5D, 0x2F),
    "POWER": (0x5E, 0x37),
    "SLEEP": (0x5F, 0x3F),
    "WAKEUP": (0x63, 0x5E),
    "NEXTSONG": (0x19, 0x4D),
    "PREVIOUSSONG": (0x10, 0x15),
    "STOPCD": (0x24, 0x3B),
    "PLAYPAUSE": (0x22, 0x34),
    "MUTE": (0x20, 0x23),
    "VOLUMEUP": (0x30, 0x32),
    "VOLUMEDOWN": (0x2E, 0x21),
    "MEDIA": (0x6D, 0x50),
    "MAIL": (0x6C, 0x48),
    "CALC": (0x21, 0x2B),
    "COMPUTER": (0x6B, 0x40),
    "SEARCH": (0x65, 0x10),
    "HOMEPAGE": (0x32, 0x3A),
    "BACK": (0x6A, 0x38),
    "FORWARD": (0x69, 0x30),
    "STOP": (0x68, 0x28),
    "REFRESH": (0x67, 0x20),
    "BOOKMARKS": (0x66, 0x18),
}


def made(scan_code_set: int, key: int) -> bytes:
    pair = sequences(scan_code_set, key)
    assert pair is not None
    return pair[0]


@pytest.mark.parametrize(("names", "set2", "set3"), ROWS)
def test_the_rows_of_the_keyboard(names: str, set2: str, set3: str) -> None:
    for key, two, three in zip(keys(names), bytes.fromhex(set2), bytes.fromhex(set3), strict=True):
        assert sequences(2, key) == (bytes((two,)), bytes((BREAK, two)))
        assert sequences(3, key) == (bytes((three,)), bytes((BREAK, three)))


@pytest.mark.parametrize(("names", "set2", "set3"), EXTENDED_ROWS)
def test_the_extended_keys(names: str, set2: str, set3: str) -> None:
    for key, two, three in zip(keys(names), bytes.fromhex(set2), bytes.fromhex(set3), strict=True):
        assert sequences(2, key) == (bytes((EXTENDED, two)), bytes((EXTENDED, BREAK, two)))
        assert sequences(3, key) == (bytes((three,)), bytes((BREAK, three)))


@pytest.mark.parametrize("name", MICROSOFT)
def test_the_extended_keys_as_microsoft_lists_them(name: str) -> None:
    key = getattr(ic, f"KEY_{name}")
    one, two = MICROSOFT[name]
    assert sequences(1, key) == (bytes((EXTENDED, one)), bytes((EXTENDED, one | 0x80)))
    assert sequences(2, key) == (bytes((EXTENDED, two)), bytes((EXTENDED, BREAK, two)))


def test_the_first_input_codes_are_set_1() -> None:
    # linux/input-event-codes.h took its first 83 numbers, and F11 and F12, from the set 1 of the AT keyboard.
    for key in (*range(1, 84), ic.KEY_F11, ic.KEY_F12, ic.KEY_102ND):
        assert sequences(1, key) == (bytes((key,)), bytes((key | 0x80,)))


@pytest.mark.parametrize("down", [(), (ic.KEY_LEFTCTRL,), (ic.KEY_RIGHTSHIFT,), (ic.KEY_LEFTALT,)])
def test_set_1_is_set_2_translated(down: tuple[int, ...]) -> None:
    for key in ALL_KEYS:
        one, two = sequences(1, key, down), sequences(2, key, down)
        if two is None:
            assert one is None
        else:
            assert one == (translate(two[0]), translate(two[1]))


@pytest.mark.parametrize("scan_code_set", [1, 2, 3])
def test_every_key_has_a_code_of_its_own(scan_code_set: int) -> None:
    codes = [pair[0] for key in ALL_KEYS if (pair := sequences(scan_code_set, key)) is not None]
    assert len(codes) > 100
    assert len(set(codes)) == len(codes)
    assert not [(a, b) for a in codes for b in codes if a != b and b.startswith(a)]


def test_the_translation_of_the_8042() -> None:
    assert len(TRANSLATION) == 256
    # One to one below 0x80; above it F7 and SysRq have a code, and what a keyboard answers comes through as it is.
    assert sorted({*TRANSLATION[1:0x80]}) == list(range(1, 0x80))
    assert TRANSLATION[0] == 0xFF
    assert (TRANSLATION[0x83], TRANSLATION[0x84]) == (0x41, 0x54)
    for byte in (0xAA, 0xAB, 0xE0, 0xE1, 0xEE, 0xFA, 0xFC, 0xFE, 0xFF):
        assert TRANSLATION[byte] == byte


def test_pause() -> None:
    assert sequences(2, ic.KEY_PAUSE) == (bytes.fromhex("e11477e1f014f077"), b"")
    assert sequences(1, ic.KEY_PAUSE) == (bytes.fromhex("e11d45e19dc5"), b"")
    assert sequences(2, ic.KEY_PAUSE, [ic.KEY_RIGHTCTRL]) == (bytes.fromhex("e07ee0f07e"), b"")
    assert sequences(1, ic.KEY_PAUSE, [ic.KEY_LEFTCTRL]) == (bytes.fromhex("e046e0c6"), b"")
    assert sequences(3, ic.KEY_PAUSE) == (b"\x62", b"\xf0\x62")


def test_print_screen() -> None:
    assert sequences(2, ic.KEY_SYSRQ) == (bytes.fromhex("e012e07c"), bytes.fromhex("e0f07ce0f012"))
    assert sequences(1, ic.KEY_SYSRQ) == (bytes.fromhex("e02ae037"), bytes.fromhex("e0b7e0aa"))
    for key in (ic.KEY_LEFTSHIFT, ic.KEY_RIGHTSHIFT, ic.KEY_LEFTCTRL, ic.KEY_RIGHTCTRL):
        assert sequences(2, ic.KEY_SYSRQ, [key]) == (bytes.fromhex("e07c"), bytes.fromhex("e0f07c"))
        assert sequences(1, ic.KEY_SYSRQ, [key]) == (bytes.fromhex("e037"), bytes.fromhex("e0b7"))
    for key in (ic.KEY_LEFTALT, ic.KEY_RIGHTALT):
        assert sequences(2, ic.KEY_SYSRQ, [key]) == (b"\x84", b"\xf0\x84")
        assert sequences(1, ic.KEY_SYSRQ, [key]) == (b"\x54", b"\xd4")
    assert sequences(3, ic.KEY_SYSRQ) == (b"\x57", b"\xf0\x57")


def test_korean_keys_have_no_break_code() -> None:
    assert sequences(2, ic.KEY_HANGEUL) == (b"\xf2", b"")
    assert sequences(2, ic.KEY_HANJA) == (b"\xf1", b"")


def test_a_key_without_a_code() -> None:
    assert [sequences(number, ic.KEY_F24) for number in (1, 2, 3)] == [None, None, None]
    assert made(2, ic.KEY_WAKEUP)
    assert sequences(3, ic.KEY_WAKEUP) is None


def test_set_3_key_types() -> None:
    assert not SET3_MAKE_BREAK & SET3_MAKE_ONLY
    assert all(KEY_OF_SET3[made(3, key)[0]] == key for key in SET3_MAKE_BREAK | SET3_MAKE_ONLY)
    # IBM's key numbers 62, 64, 75, 80, 81, 85, 86, 90-93, 95-105, 108, 110 and 112-126.
    assert len(SET3_MAKE_ONLY) == 39
