"""What a PC keyboard sends for each key: scan code sets 1, 2 and 3, and the 8042's translation of set 2 into set 1.

One table names every key that has a scan code: Linux input code, set 2 make code, set 3 make code. Set 1 is not written
down, because it is what the 8042's translation makes of set 2.

    set 1   make code; break is make | 0x80                  0xE0 before an extended key
    set 2   make code; break is 0xF0 and the make code       0xE0 before an extended key, then 0xF0
    set 3   make code; break is 0xF0 and the make code       no prefix: one code a key

Pause and PrintScreen send sequences of their own in sets 1 and 2. The fake shifts that an IBM keyboard wraps around the
grey cursor keys while Shift or NumLock is on are not sent: drivers drop them, and without them a key is one code in
every state. The two fake shifts of PrintScreen are part of its code and are sent.

Sources: IBM PS/2 Technical Reference, Keyboards (101- and 102-key), scan code tables and set 3 default key types;
Microsoft, Keyboard Scan Code Specification 1.3a, for the extended keys and the translation table. Where that paper and
Linux's drivers/input/keyboard/atkbd.c disagree (F13 to F15) the codes are Linux's; F16 to F24, for which atkbd has no
codes in set 2 but another key's, are left out, so every code sent here is a key that Linux knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pyvmm.input import codes as ic

EXTENDED: Final = 0xE0
"""Prefix of the keys that the 84-key keyboard did not have (sets 1 and 2)."""
PAUSE_PREFIX: Final = 0xE1
BREAK: Final = 0xF0
"""Prefix of a break code (sets 2 and 3); the 8042 swallows it and sets bit 7 of the code that follows."""
BREAK_BIT: Final = 0x80

NONE: Final = -1

KEYS: Final[dict[int, tuple[int, int]]] = {
    ic.KEY_ESC: (0x76, 0x08),
    ic.KEY_1: (0x16, 0x16),
    ic.KEY_2: (0x1E, 0x1E),
    ic.KEY_3: (0x26, 0x26),
    ic.KEY_4: (0x25, 0x25),
    ic.KEY_5: (0x2E, 0x2E),
    ic.KEY_6: (0x36, 0x36),
    ic.KEY_7: (0x3D, 0x3D),
    ic.KEY_8: (0x3E, 0x3E),
    ic.KEY_9: (0x46, 0x46),
    ic.KEY_0: (0x45, 0x45),
    ic.KEY_MINUS: (0x4E, 0x4E),
    ic.KEY_EQUAL: (0x55, 0x55),
    ic.KEY_BACKSPACE: (0x66, 0x66),
    ic.KEY_TAB: (0x0D, 0x0D),
    ic.KEY_Q: (0x15, 0x15),
    ic.KEY_W: (0x1D, 0x1D),
    ic.KEY_E: (0x24, 0x24),
    ic.KEY_R: (0x2D, 0x2D),
    ic.KEY_T: (0x2C, 0x2C),
    ic.KEY_Y: (0x35, 0x35),
    ic.KEY_U: (0x3C, 0x3C),
    ic.KEY_I: (0x43, 0x43),
    ic.KEY_O: (0x44, 0x44),
    ic.KEY_P: (0x4D, 0x4D),
    ic.KEY_LEFTBRACE: (0x54, 0x54),
    ic.KEY_RIGHTBRACE: (0x5B, 0x5B),
    ic.KEY_ENTER: (0x5A, 0x5A),
    ic.KEY_LEFTCTRL: (0x14, 0x11),
    ic.KEY_A: (0x1C, 0x1C),
    ic.KEY_S: (0x1B, 0x1B),
    ic.KEY_D: (0x23, 0x23),
    ic.KEY_F: (0x2B, 0x2B),
    ic.KEY_G: (0x34, 0x34),
    ic.KEY_H: (0x33, 0x33),
    ic.KEY_J: (0x3B, 0x3B),
    ic.KEY_K: (0x42, 0x42),
    ic.KEY_L: (0x4B, 0x4B),
    ic.KEY_SEMICOLON: (0x4C, 0x4C),
    ic.KEY_APOSTROPHE: (0x52, 0x52),
    ic.KEY_GRAVE: (0x0E, 0x0E),
    ic.KEY_LEFTSHIFT: (0x12, 0x12),
    ic.KEY_BACKSLASH: (0x5D, 0x5C),
    ic.KEY_Z: (0x1A, 0x1A),
    ic.KEY_X: (0x22, 0x22),
    ic.KEY_C: (0x21, 0x21),
    ic.KEY_V: (0x2A, 0x2A),
    ic.KEY_B: (0x32, 0x32),
    ic.KEY_N: (0x31, 0x31),
    ic.KEY_M: (0x3A, 0x3A),
    ic.KEY_COMMA: (0x41, 0x41),
    ic.KEY_DOT: (0x49, 0x49),
    ic.KEY_SLASH: (0x4A, 0x4A),
    ic.KEY_RIGHTSHIFT: (0x59, 0x59),
    ic.KEY_KPASTERISK: (0x7C, 0x7E),
    ic.KEY_LEFTALT: (0x11, 0x19),
    ic.KEY_SPACE: (0x29, 0x29),
    ic.KEY_CAPSLOCK: (0x58, 0x14),
    ic.KEY_F1: (0x05, 0x07),
    ic.KEY_F2: (0x06, 0x0F),
    ic.KEY_F3: (0x04, 0x17),
    ic.KEY_F4: (0x0C, 0x1F),
    ic.KEY_F5: (0x03, 0x27),
    ic.KEY_F6: (0x0B, 0x2F),
    ic.KEY_F7: (0x83, 0x37),
    ic.KEY_F8: (0x0A, 0x3F),
    ic.KEY_F9: (0x01, 0x47),
    ic.KEY_F10: (0x09, 0x4F),
    ic.KEY_NUMLOCK: (0x77, 0x76),
    ic.KEY_SCROLLLOCK: (0x7E, 0x5F),
    ic.KEY_KP7: (0x6C, 0x6C),
    ic.KEY_KP8: (0x75, 0x75),
    ic.KEY_KP9: (0x7D, 0x7D),
    ic.KEY_KPMINUS: (0x7B, 0x84),
    ic.KEY_KP4: (0x6B, 0x6B),
    ic.KEY_KP5: (0x73, 0x73),
    ic.KEY_KP6: (0x74, 0x74),
    ic.KEY_KPPLUS: (0x79, 0x7C),
    ic.KEY_KP1: (0x69, 0x69),
    ic.KEY_KP2: (0x72, 0x72),
    ic.KEY_KP3: (0x7A, 0x7A),
    ic.KEY_KP0: (0x70, 0x70),
    ic.KEY_KPDOT: (0x71, 0x71),
    ic.KEY_ZENKAKUHANKAKU: (0x5F, NONE),
    ic.KEY_102ND: (0x61, 0x13),
    ic.KEY_F11: (0x78, 0x56),
    ic.KEY_F12: (0x07, 0x5E),
    ic.KEY_RO: (0x51, NONE),
    ic.KEY_KATAKANA: (0x63, NONE),
    ic.KEY_HIRAGANA: (0x62, NONE),
    ic.KEY_HENKAN: (0x64, 0x86),
    ic.KEY_KATAKANAHIRAGANA: (0x13, 0x87),
    ic.KEY_MUHENKAN: (0x67, 0x85),
    ic.KEY_KPJPCOMMA: (0x27, NONE),
    ic.KEY_KPENTER: (0xE05A, 0x79),
    ic.KEY_RIGHTCTRL: (0xE014, 0x58),
    ic.KEY_KPSLASH: (0xE04A, 0x77),
    ic.KEY_RIGHTALT: (0xE011, 0x39),
    ic.KEY_HOME: (0xE06C, 0x6E),
    ic.KEY_UP: (0xE075, 0x63),
    ic.KEY_PAGEUP: (0xE07D, 0x6F),
    ic.KEY_LEFT: (0xE06B, 0x61),
    ic.KEY_RIGHT: (0xE074, 0x6A),
    ic.KEY_END: (0xE069, 0x65),
    ic.KEY_DOWN: (0xE072, 0x60),
    ic.KEY_PAGEDOWN: (0xE07A, 0x6D),
    ic.KEY_INSERT: (0xE070, 0x67),
    ic.KEY_DELETE: (0xE071, 0x64),
    ic.KEY_MACRO: (0xE06F, 0x8E),
    ic.KEY_MUTE: (0xE023, 0x9C),
    ic.KEY_VOLUMEDOWN: (0xE021, 0x9D),
    ic.KEY_VOLUMEUP: (0xE032, 0x95),
    ic.KEY_POWER: (0xE037, NONE),
    ic.KEY_KPEQUAL: (0x0F, NONE),
    ic.KEY_KPPLUSMINUS: (0xE079, NONE),
    ic.KEY_KPCOMMA: (0x6D, NONE),
    ic.KEY_YEN: (0x6A, NONE),
    ic.KEY_LEFTMETA: (0xE01F, 0x8B),
    ic.KEY_RIGHTMETA: (0xE027, 0x8C),
    ic.KEY_COMPOSE: (0xE02F, 0x8D),
    ic.KEY_STOP: (0xE028, 0x0A),
    ic.KEY_AGAIN: (NONE, 0x0B),
    ic.KEY_PROPS: (NONE, 0x0C),
    ic.KEY_UNDO: (NONE, 0x10),
    ic.KEY_COPY: (NONE, 0x18),
    ic.KEY_OPEN: (NONE, 0x20),
    ic.KEY_PASTE: (NONE, 0x28),
    ic.KEY_FIND: (NONE, 0x30),
    ic.KEY_CUT: (NONE, 0x38),
    ic.KEY_HELP: (NONE, 0x09),
    ic.KEY_MENU: (NONE, 0x91),
    ic.KEY_CALC: (0xE02B, 0x99),
    ic.KEY_SLEEP: (0xE03F, NONE),
    ic.KEY_WAKEUP: (0xE05E, NONE),
    ic.KEY_XFER: (NONE, 0xA2),
    ic.KEY_PROG1: (NONE, 0xA0),
    ic.KEY_PROG2: (NONE, 0xA1),
    ic.KEY_COFFEE: (NONE, 0x96),
    ic.KEY_CYCLEWINDOWS: (NONE, 0x9B),
    ic.KEY_MAIL: (0xE048, NONE),
    ic.KEY_BOOKMARKS: (0xE018, NONE),
    ic.KEY_COMPUTER: (0xE040, NONE),
    ic.KEY_BACK: (0xE038, NONE),
    ic.KEY_FORWARD: (0xE030, NONE),
    ic.KEY_CLOSECD: (NONE, 0x9A),
    ic.KEY_NEXTSONG: (0xE04D, 0x93),
    ic.KEY_PLAYPAUSE: (0xE034, NONE),
    ic.KEY_PREVIOUSSONG: (0xE015, 0x94),
    ic.KEY_STOPCD: (0xE03B, 0x98),
    ic.KEY_RECORD: (NONE, 0x9E),
    ic.KEY_REWIND: (NONE, 0x9F),
    ic.KEY_HOMEPAGE: (0xE03A, 0x97),
    ic.KEY_REFRESH: (0xE020, NONE),
    ic.KEY_F13: (0x2F, 0x7F),
    ic.KEY_F14: (0x37, 0x80),
    ic.KEY_F15: (0x3F, 0x81),
    ic.KEY_F16: (NONE, 0x82),
    ic.KEY_F17: (NONE, 0x83),
    ic.KEY_SEARCH: (0xE010, NONE),
    ic.KEY_MEDIA: (0xE050, NONE),
}
"""Input code -> (set 2, set 3) make codes; 0xE0xx is an extended key, NONE a key that the set does not have."""

TRANSLATION: Final = bytes.fromhex(
    """
    ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59
    65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b
    67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d
    69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f
    6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61
    6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76
    55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f
    52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54
    80 81 82 41 54 85 86 87 88 89 8a 8b 8c 8d 8e 8f
    """
) + bytes(range(0x90, 0x100))
"""The 8042's translation of one byte from the keyboard, 256 entries; BREAK is not in it but a state of the 8042."""

SET3_MAKE_BREAK: Final = frozenset(
    {ic.KEY_CAPSLOCK, ic.KEY_LEFTSHIFT, ic.KEY_RIGHTSHIFT, ic.KEY_LEFTCTRL, ic.KEY_LEFTALT}
)
"""Keys that send make and break in set 3 after power-on."""

SET3_MAKE_ONLY: Final = frozenset(
    {ic.KEY_RIGHTCTRL, ic.KEY_RIGHTALT, ic.KEY_INSERT, ic.KEY_HOME, ic.KEY_END, ic.KEY_PAGEUP, ic.KEY_PAGEDOWN}
    | {ic.KEY_NUMLOCK, ic.KEY_KPSLASH, ic.KEY_KPASTERISK, ic.KEY_KPMINUS, ic.KEY_KPENTER, ic.KEY_KPDOT, ic.KEY_KP0}
    | {ic.KEY_KP1, ic.KEY_KP2, ic.KEY_KP3, ic.KEY_KP4, ic.KEY_KP5, ic.KEY_KP6, ic.KEY_KP7, ic.KEY_KP8, ic.KEY_KP9}
    | {
        ic.KEY_ESC,
        ic.KEY_SYSRQ,
        ic.KEY_SCROLLLOCK,
        ic.KEY_PAUSE,
        ic.KEY_F11,
        ic.KEY_F12,
        *range(ic.KEY_F1, ic.KEY_F10 + 1),
    }
)
"""Keys that send only a make code in set 3 after power-on; a key in neither set is typematic there, without break."""

PAUSE: Final = bytes((PAUSE_PREFIX, 0x14, 0x77, PAUSE_PREFIX, BREAK, 0x14, BREAK, 0x77))
"""Pause in set 2: all of it on make, nothing on break."""
PAUSE_WITH_CTRL: Final = bytes((EXTENDED, 0x7E, EXTENDED, BREAK, 0x7E))
PRINT_SCREEN: Final = bytes((EXTENDED, 0x12, EXTENDED, 0x7C)), bytes((EXTENDED, BREAK, 0x7C, EXTENDED, BREAK, 0x12))
"""PrintScreen in set 2, (make, break), around it the fake left shift."""
PRINT_SCREEN_WITH_SHIFT_OR_CTRL: Final = bytes((EXTENDED, 0x7C)), bytes((EXTENDED, BREAK, 0x7C))
SYSRQ: Final = bytes((0x84,)), bytes((BREAK, 0x84))
"""PrintScreen with Alt in set 2, (make, break)."""
SET3_PAUSE: Final = 0x62
SET3_PRINT_SCREEN: Final = 0x57

SHIFT_OR_CTRL: Final = frozenset({ic.KEY_LEFTSHIFT, ic.KEY_RIGHTSHIFT, ic.KEY_LEFTCTRL, ic.KEY_RIGHTCTRL})
CTRL: Final = frozenset({ic.KEY_LEFTCTRL, ic.KEY_RIGHTCTRL})
ALT: Final = frozenset({ic.KEY_LEFTALT, ic.KEY_RIGHTALT})


def translate(codes: bytes) -> bytes:
    """What the 8042 makes of *codes* with XLATE on: set 2 in, set 1 out."""
    translated = bytearray()
    bit = 0
    for code in codes:
        if code == BREAK:
            bit = BREAK_BIT
        else:
            translated.append(TRANSLATION[code] | bit)
            bit = 0
    return bytes(translated)


def _set2(code: int) -> tuple[bytes, bytes]:
    prefix = bytes((EXTENDED,)) if code > 0xFF else b""
    low = code & 0xFF
    return prefix + bytes((low,)), prefix + bytes((BREAK, low))


_SET2: Final = {key: _set2(set2) for key, (set2, _) in KEYS.items() if set2 != NONE}
_SET2[ic.KEY_HANGEUL] = bytes((0xF2,)), b""
_SET2[ic.KEY_HANJA] = bytes((0xF1,)), b""
_SET1: Final = {key: (translate(make), translate(brk)) for key, (make, brk) in _SET2.items()}
_SET3: Final = {key: _set2(set3) for key, (_, set3) in KEYS.items() if set3 != NONE}
_SET3[ic.KEY_PAUSE] = _set2(SET3_PAUSE)
_SET3[ic.KEY_SYSRQ] = _set2(SET3_PRINT_SCREEN)
_PLAIN: Final = {1: _SET1, 2: _SET2, 3: _SET3}

KEY_OF_SET3: Final = {make[0]: key for key, (make, _) in _SET3.items()}
"""Set 3 make code -> input code."""


def sequences(scan_code_set: int, key: int, down: Iterable[int] = ()) -> tuple[bytes, bytes] | None:
    """(make, break) of *key* in set 1, 2 or 3 while the keys *down* are held; None where the set lacks the key.

    The break is empty for a key that sends none. The order matters for Pause and PrintScreen only: their make depends
    on Shift, Ctrl and Alt, and the break to send later is the one that belongs to that make.
    """
    plain = _PLAIN[scan_code_set].get(key)
    if plain is not None or key not in (ic.KEY_PAUSE, ic.KEY_SYSRQ):
        return plain
    held = frozenset(down)
    if key == ic.KEY_PAUSE:
        pair = (PAUSE_WITH_CTRL if held & CTRL else PAUSE), b""
    elif held & ALT:
        pair = SYSRQ
    elif held & SHIFT_OR_CTRL:
        pair = PRINT_SCREEN_WITH_SHIFT_OR_CTRL
    else:
        pair = PRINT_SCREEN
    return pair if scan_code_set == 2 else (translate(pair[0]), translate(pair[1]))
