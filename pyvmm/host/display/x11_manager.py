"""What a window manager is told of the window: title, icon, whose process it is.

Source: Extended Window Manager Hints 1.5, _NET_WM_NAME, _NET_WM_ICON, _NET_WM_PID; ICCCM 4.1.2.1 (WM_NAME), 4.1.2.9
(WM_CLIENT_MACHINE, without which a process ID says nothing).
"""

from __future__ import annotations

import os
from typing import Any, Final

from Xlib import X, Xatom

from pyvmm.errors import printable
from pyvmm.screen.screen import scan_lines

ICON_TEXT: Final = b">_"
ICON_SCALE: Final = 3
ICON_INK, ICON_GROUND = 0xFF55FF55, 0xFF000000
"""Pixels of an icon: alpha, red, green, blue."""


def icon() -> list[int]:
    """Width, height and pixels of the icon: a prompt in the guest's font, 48 by 48."""
    pixels: list[int] = []
    for line in scan_lines(ICON_TEXT):
        row = [ICON_INK if byte >> bit & 1 else ICON_GROUND for byte in line for bit in reversed(range(8))]
        pixels += [pixel for pixel in row for _ in range(ICON_SCALE)] * ICON_SCALE
    width = 8 * len(ICON_TEXT) * ICON_SCALE
    return [width, len(pixels) // width, *pixels]


class ManagerHints:
    """Of *window* on *display*."""

    def __init__(self, display: Any, window: Any) -> None:
        self._window = window
        self._net_wm_name = display.intern_atom("_NET_WM_NAME")
        self._utf8 = display.intern_atom("UTF8_STRING")
        window.set_wm_class("pyvmm", "Pyvmm")
        window.set_wm_client_machine(os.uname().nodename)
        window.change_property(display.intern_atom("_NET_WM_PID"), Xatom.CARDINAL, 32, [os.getpid()], X.PropModeReplace)
        window.change_property(display.intern_atom("_NET_WM_ICON"), Xatom.CARDINAL, 32, icon(), X.PropModeReplace)

    def title(self, text: str) -> None:
        """The title from now on; what no title bar shows is spelled out."""
        text = printable(text)
        self._window.set_wm_name(text.encode("latin-1", "replace"))
        self._window.change_property(self._net_wm_name, self._utf8, 8, text.encode(), X.PropModeReplace)
