"""Keys, characters and names: the one place where a Linux input code meets what people and window systems call it.

- character <-> key: a US keyboard, which is what a guest assumes until it is told otherwise;
- name <-> key: "KEY_A" as in linux/input-event-codes.h, and short names for scripts: "enter", "ctrl", "f1", "up";
- X11 keycode -> key: an X server whose keycodes are evdev's has the Linux code + 8; others are read by keysym
  (X11 protocol, appendix A, keysym encoding).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pyvmm.errors import UserError
from pyvmm.input import codes as ic

Stroke = tuple[int, ...]
"""Keys that are pressed in this order and released in the opposite one: a character, or a chord such as Ctrl-C."""


class KeyTextError(UserError):
    """Text that can't be typed: one line that says which part and why."""


_ROWS: Final = (
    (ic.KEY_GRAVE, "`~"),
    *((ic.KEY_1 + i, pair) for i, pair in enumerate(("1!", "2@", "3#", "4$", "5%", "6^", "7&", "8*", "9(", "0)"))),
    (ic.KEY_MINUS, "-_"),
    (ic.KEY_EQUAL, "=+"),
    *((ic.KEY_Q + i, letter + letter.upper()) for i, letter in enumerate("qwertyuiop")),
    (ic.KEY_LEFTBRACE, "[{"),
    (ic.KEY_RIGHTBRACE, "]}"),
    *((ic.KEY_A + i, letter + letter.upper()) for i, letter in enumerate("asdfghjkl")),
    (ic.KEY_SEMICOLON, ";:"),
    (ic.KEY_APOSTROPHE, "'\""),
    (ic.KEY_BACKSLASH, "\\|"),
    *((ic.KEY_Z + i, letter + letter.upper()) for i, letter in enumerate("zxcvbnm")),
    (ic.KEY_COMMA, ",<"),
    (ic.KEY_DOT, ".>"),
    (ic.KEY_SLASH, "/?"),
)

US_LAYOUT: Final[dict[str, Stroke]] = {
    **{pair[0]: (code,) for code, pair in _ROWS},
    **{pair[1]: (ic.KEY_LEFTSHIFT, code) for code, pair in _ROWS},
    " ": (ic.KEY_SPACE,),
    "\n": (ic.KEY_ENTER,),
    "\r": (ic.KEY_ENTER,),
    "\t": (ic.KEY_TAB,),
    "\b": (ic.KEY_BACKSPACE,),
    "\x7f": (ic.KEY_BACKSPACE,),
    "\x1b": (ic.KEY_ESC,),
}
"""The stroke that types each character."""

SHORT_NAMES: Final[dict[str, int]] = {
    "enter": ic.KEY_ENTER,
    "return": ic.KEY_ENTER,
    "esc": ic.KEY_ESC,
    "tab": ic.KEY_TAB,
    "space": ic.KEY_SPACE,
    "backspace": ic.KEY_BACKSPACE,
    "up": ic.KEY_UP,
    "down": ic.KEY_DOWN,
    "left": ic.KEY_LEFT,
    "right": ic.KEY_RIGHT,
    "home": ic.KEY_HOME,
    "end": ic.KEY_END,
    "pageup": ic.KEY_PAGEUP,
    "pagedown": ic.KEY_PAGEDOWN,
    "insert": ic.KEY_INSERT,
    "delete": ic.KEY_DELETE,
    "del": ic.KEY_DELETE,
    "ctrl": ic.KEY_LEFTCTRL,
    "shift": ic.KEY_LEFTSHIFT,
    "alt": ic.KEY_LEFTALT,
    "altgr": ic.KEY_RIGHTALT,
    "meta": ic.KEY_LEFTMETA,
    "menu": ic.KEY_COMPOSE,
    "capslock": ic.KEY_CAPSLOCK,
    "numlock": ic.KEY_NUMLOCK,
    "scrolllock": ic.KEY_SCROLLLOCK,
    "sysrq": ic.KEY_SYSRQ,
    "pause": ic.KEY_PAUSE,
    **{f"f{i}": ic.KEY_F1 + i - 1 for i in range(1, 11)},
    "f11": ic.KEY_F11,
    "f12": ic.KEY_F12,
}


def key_code(name: str) -> int:
    """The code of "KEY_A", "a", "Enter", "ctrl" …; raises KeyTextError for a name that no key has."""
    if name.upper().startswith(("KEY_", "BTN_")):
        code = getattr(ic, name.upper(), None)
        if isinstance(code, int) and 0 < code <= ic.KEY_MAX:
            return code
    elif name.lower() in SHORT_NAMES:
        return SHORT_NAMES[name.lower()]
    elif len(US_LAYOUT.get(name.lower(), ())) == 1:
        return US_LAYOUT[name.lower()][0]
    raise KeyTextError(f"no key is called {name!r}: use a character, a name such as enter, ctrl, f1, up, or KEY_…")


def strokes(text: str) -> list[Stroke]:
    """The strokes that type *text* as it stands; raises KeyTextError for a character that a US keyboard lacks."""
    try:
        return [US_LAYOUT[character] for character in text]
    except KeyError as error:
        raise KeyTextError(f"a US keyboard has no key for {error.args[0]!r}") from None


_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "e": "\x1b", "\\": "\\", "<": "<", ":": ":"}


def parse_keys(text: str) -> list[Stroke]:
    r"""The strokes of a script's KEYS: characters, the escapes \n \t \b \e \\ \< \:, and keys by name in <>.

    A name is one key or a chord joined by "-": <enter>, <f1>, <ctrl-c>, <ctrl-alt-delete>, <KEY_SYSRQ>. Raises
    KeyTextError for what is none of these.
    """
    result: list[Stroke] = []
    for start, part in _pieces(text):
        if len(part) == 1:
            result += strokes(part)
        elif start == "\\":
            result += strokes(_ESCAPES[part[1]])
        else:
            result.append(_parse_chord(part[1:-1]))
    return result


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Characters, escapes and <names>, each with the character that it begins with. Raises KeyTextError."""
    position = 0
    while position < len(text):
        character, end = text[position], position + 1
        if character == "\\":
            end = position + 2
            if text[position + 1 : end] not in _ESCAPES:
                escape = text[position:end]
                raise KeyTextError(f"unknown escape {escape}: use \\n \\t \\b \\e \\\\ \\< or \\:")
        elif character == "<":
            end = text.find(">", position + 2) + 1
            if end == 0:
                raise KeyTextError(f"no '>' after {text[position:]!r}: write \\< for the character")
        yield character, text[position:end]
        position = end


_SENT: Final = {"enter": b"\r", "tab": b"\t", "esc": b"\x1b", "backspace": b"\x7f", "space": b" "}
"""What a terminal sends for a key."""


def parse_data(text: str) -> bytes:
    r"""What a terminal sends for what parse_keys() types: characters as UTF-8, the same escapes, and in <> enter, tab,
    esc, backspace, space and ctrl-@ to ctrl-_. Raises KeyTextError for what is none of these.
    """
    sent = b""
    for start, part in _pieces(text):
        if len(part) == 1:
            sent += part.encode(errors="surrogateescape")
        elif start == "\\":
            sent += _ESCAPES[part[1]].encode()
        else:
            name = part[1:-1].lower()
            key = name.removeprefix("ctrl-").upper()
            if name in _SENT:
                sent += _SENT[name]
            elif name.startswith("ctrl-") and len(key) == 1 and 0x40 <= ord(key) < 0x60:
                sent += bytes((ord(key) - 0x40,))
            else:
                raise KeyTextError(f"no terminal sends {part}: use <{'> <'.join(_SENT)}> or <ctrl-c>")
    return sent


def _parse_chord(text: str) -> Stroke:
    # A "-" joins two names, but the last name may itself be "-": <ctrl-->
    return tuple(key_code(name) for name in re.split("-(?=.)", text))


def split_script(text: str) -> tuple[str, list[Stroke]]:
    r"""TEXT and the strokes of KEYS of 'TEXT:KEYS', split at the first ':' with no backslash before it.

    In TEXT, \: is a colon, \\ a backslash and \n a new line. Raises KeyTextError.
    """
    wanted, keys = _split(text, "TEXT:KEYS, the text to wait for and the keys to type then")
    return wanted, parse_keys(keys)


def split_sending(text: str) -> tuple[str, bytes]:
    """TEXT and the bytes of DATA of 'TEXT:DATA', split as split_script() does. Raises KeyTextError."""
    wanted, data = _split(text, "TEXT:DATA, the text to wait for and what to send to COM1 then")
    return wanted, parse_data(data)


def _split(text: str, what: str) -> tuple[str, str]:
    wanted: list[str] = []
    position = 0
    while position < len(text) and text[position] != ":":
        if text[position] == "\\" and text[position + 1 : position + 2] in _ESCAPES:
            position += 1
            wanted.append(_ESCAPES[text[position]])
        else:
            wanted.append(text[position])
        position += 1
    if position == len(text) or not wanted:
        raise KeyTextError(f"{text!r} is not {what}")
    return "".join(wanted), text[position + 1 :]


X11_KEYCODE_OFFSET: Final = 8
"""An X server on evdev (Xorg, Xwayland, and Xvfb with evdev's rules) adds this to the Linux code."""

XK_UP: Final = 0xFF52
_EVDEV_KEYCODE_UP: Final = ic.KEY_UP + X11_KEYCODE_OFFSET

_KEYSYMS: Final[dict[int, int]] = {
    0xFF08: ic.KEY_BACKSPACE,
    0xFF09: ic.KEY_TAB,
    0xFE20: ic.KEY_TAB,  # XK_ISO_Left_Tab
    0xFF0D: ic.KEY_ENTER,
    0xFF13: ic.KEY_PAUSE,
    0xFF14: ic.KEY_SCROLLLOCK,
    0xFF15: ic.KEY_SYSRQ,
    0xFF1B: ic.KEY_ESC,
    0xFF50: ic.KEY_HOME,
    0xFF51: ic.KEY_LEFT,
    0xFF52: ic.KEY_UP,
    0xFF53: ic.KEY_RIGHT,
    0xFF54: ic.KEY_DOWN,
    0xFF55: ic.KEY_PAGEUP,
    0xFF56: ic.KEY_PAGEDOWN,
    0xFF57: ic.KEY_END,
    0xFF61: ic.KEY_SYSRQ,  # XK_Print
    0xFF63: ic.KEY_INSERT,
    0xFF67: ic.KEY_COMPOSE,  # XK_Menu
    0xFF7F: ic.KEY_NUMLOCK,
    0xFF8D: ic.KEY_KPENTER,
    0xFF95: ic.KEY_KP7,
    0xFF96: ic.KEY_KP4,
    0xFF97: ic.KEY_KP8,
    0xFF98: ic.KEY_KP6,
    0xFF99: ic.KEY_KP2,
    0xFF9A: ic.KEY_KP9,
    0xFF9B: ic.KEY_KP3,
    0xFF9C: ic.KEY_KP1,
    0xFF9D: ic.KEY_KP5,
    0xFF9E: ic.KEY_KP0,
    0xFF9F: ic.KEY_KPDOT,
    0xFFAA: ic.KEY_KPASTERISK,
    0xFFAB: ic.KEY_KPPLUS,
    0xFFAD: ic.KEY_KPMINUS,
    0xFFAF: ic.KEY_KPSLASH,
    **{0xFFBE + i: ic.KEY_F1 + i for i in range(10)},
    0xFFC8: ic.KEY_F11,
    0xFFC9: ic.KEY_F12,
    0xFFE1: ic.KEY_LEFTSHIFT,
    0xFFE2: ic.KEY_RIGHTSHIFT,
    0xFFE3: ic.KEY_LEFTCTRL,
    0xFFE4: ic.KEY_RIGHTCTRL,
    0xFFE5: ic.KEY_CAPSLOCK,
    0xFFE7: ic.KEY_LEFTALT,  # XK_Meta_L
    0xFFE8: ic.KEY_RIGHTALT,  # XK_Meta_R
    0xFFE9: ic.KEY_LEFTALT,
    0xFFEA: ic.KEY_RIGHTALT,
    0xFE03: ic.KEY_RIGHTALT,  # XK_ISO_Level3_Shift
    0xFFEB: ic.KEY_LEFTMETA,
    0xFFEC: ic.KEY_RIGHTMETA,
    0xFFFF: ic.KEY_DELETE,
}


def x11_keymap(keysyms: Callable[[int], Sequence[int]], first: int = 8, last: int = 255) -> dict[int, int]:
    """X11 keycode -> Linux input code, for a server that says by *keysyms* what each keycode's keysyms are.

    A keycode that stands for no key is left out.
    """
    if XK_UP in keysyms(_EVDEV_KEYCODE_UP):
        return {keycode: keycode - X11_KEYCODE_OFFSET for keycode in range(max(first, 9), last + 1)}
    keymap: dict[int, int] = {}
    for keycode in range(first, last + 1):
        for keysym in keysyms(keycode):
            code = _KEYSYMS.get(keysym)
            if code is None and 0x20 <= keysym <= 0x7E:
                code = US_LAYOUT[chr(keysym)][-1]
            if code is not None:
                keymap[keycode] = code
                break
    return keymap
