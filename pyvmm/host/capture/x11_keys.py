"""Input from an X11 window: its events become keys, buttons and motions of the guest.

Keys count while the window has the focus; when it loses it, all are released. A click takes the mouse (the pointer
vanishes and stays in the window), both Ctrl keys together give it back; a guest with a tablet needs neither, its
pointer is where the host's is.

Source: X Window System Protocol, X11R7.7, "Events" and GrabPointer; The X Keyboard Extension: Protocol Specification,
kbUseExtension and kbPerClientFlags, for auto-repeat without releases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from Xlib import X, error
from Xlib.protocol import rq

from pyvmm.input.codes import (
    BTN_EXTRA,
    BTN_LEFT,
    BTN_MIDDLE,
    BTN_RIGHT,
    BTN_SIDE,
    KEY_LEFTCTRL,
    KEY_RIGHTCTRL,
)
from pyvmm.input.keymap import x11_keymap
from pyvmm.input.router import Router, Source

CHORD: Final = frozenset({KEY_LEFTCTRL, KEY_RIGHTCTRL})
"""The keys that give the mouse back when they are down together."""

BUTTONS: Final = {1: BTN_LEFT, 2: BTN_MIDDLE, 3: BTN_RIGHT, 8: BTN_SIDE, 9: BTN_EXTRA}
WHEEL: Final = {4: (1, 0), 5: (-1, 0), 6: (0, -1), 7: (0, 1)}
"""What X calls buttons and is a click of the wheel: up or away from the user, and to the right, are positive."""

EVENT_MASK: Final = (
    X.KeyPressMask
    | X.KeyReleaseMask
    | X.ButtonPressMask
    | X.ButtonReleaseMask
    | X.PointerMotionMask
    | X.FocusChangeMask
)
_GRAB_MASK: Final = X.ButtonPressMask | X.ButtonReleaseMask | X.PointerMotionMask

ABSOLUTE_MAX: Final = 32767


class _UseExtension(rq.ReplyRequest):  # type: ignore[misc]
    _request = rq.Struct(
        rq.Card8("opcode"), rq.Opcode(0), rq.RequestLength(), rq.Card16("wanted_major"), rq.Card16("wanted_minor")
    )
    _reply = rq.Struct(rq.Pad(1), rq.Bool("supported"), rq.Card16("sequence_number"), rq.Pad(28))


class _PerClientFlags(rq.ReplyRequest):  # type: ignore[misc]
    _request = rq.Struct(
        rq.Card8("opcode"),
        rq.Opcode(21),
        rq.RequestLength(),
        rq.Card16("device"),
        rq.Pad(2),
        rq.Card32("change"),
        rq.Card32("value"),
        rq.Pad(12),
    )
    _reply = rq.Struct(
        rq.Pad(1), rq.Card8("device"), rq.Card16("sequence_number"), rq.Pad(8), rq.Card32("value"), rq.Pad(16)
    )


_USE_CORE_KEYBOARD: Final = 0x100
_DETECTABLE_AUTO_REPEAT: Final = 1


def set_detectable_auto_repeat(display: Any) -> bool:
    """Ask the server to repeat a held key with presses alone; False if it can't."""
    extension = display.query_extension("XKEYBOARD")
    if extension is None:
        return False
    opcode = extension.major_opcode
    if not _UseExtension(display=display.display, opcode=opcode, wanted_major=1, wanted_minor=0).supported:
        return False
    flags = _PerClientFlags(
        display=display.display,
        opcode=opcode,
        device=_USE_CORE_KEYBOARD,
        change=_DETECTABLE_AUTO_REPEAT,
        value=_DETECTABLE_AUTO_REPEAT,
    )
    return bool(flags.value & _DETECTABLE_AUTO_REPEAT)


def without_auto_repeat(events: Sequence[Any]) -> list[Any]:
    """*events* less each release that the same key's press follows in the same millisecond, and less that press.

    That is how a server without detectable auto-repeat repeats a held key.
    """
    kept: list[Any] = []
    for event in events:
        last = kept[-1] if kept else None
        if (
            last is not None
            and (last.type, event.type) == (X.KeyRelease, X.KeyPress)
            and (last.detail, last.time) == (event.detail, event.time)
        ):
            kept.pop()
        else:
            kept.append(event)
    return kept


class X11Input:
    """The input half of a window. *size* gives the window's width and height in pixels now.

    *keyboard* and *mouse* say which of the two the guest gets from here. *on_grab* is told when the mouse is taken
    and given back.
    """

    def __init__(
        self,
        display: Any,
        window: Any,
        router: Router,
        size: Callable[[], tuple[int, int]],
        *,
        keyboard: bool = True,
        mouse: bool = True,
        on_grab: Callable[[bool], None] = lambda grabbed: None,
    ) -> None:
        self._display = display
        self._window = window
        self._router = router
        self._size = size
        self._keyboard = keyboard
        self._mouse = mouse
        self._on_grab = on_grab
        self._source: Source = router.source("x11")
        self._ctrl: set[int] = set()
        self._at = (0, 0)
        self._warped = False
        self._no_pointer: Any = None
        self.grabbed = False
        self._keymap = self._read_keymap()
        self._repeats_are_presses = set_detectable_auto_repeat(display)

    def _read_keymap(self) -> dict[int, int]:
        info = self._display.display.info
        first, last = info.min_keycode, info.max_keycode
        mapping = self._display.get_keyboard_mapping(first, last - first + 1)
        return x11_keymap(lambda keycode: mapping[keycode - first] if first <= keycode <= last else (), first, last)

    def handle(self, events: Sequence[Any]) -> None:
        """Take a batch of events in their order; those that are no input are left alone."""
        if not self._repeats_are_presses:
            events = without_auto_repeat(events)
        for event in events:
            match event.type:
                case X.KeyPress | X.KeyRelease:
                    self._key(event.detail, int(event.type == X.KeyPress))
                case X.ButtonPress | X.ButtonRelease:
                    self._button(event, int(event.type == X.ButtonPress))
                case X.MotionNotify:
                    self._motion(event.event_x, event.event_y)
                case X.FocusOut:
                    self.release()
                case _:
                    pass

    def release(self) -> None:
        """Release all keys and buttons and give the mouse back."""
        self._ctrl.clear()
        self._source.release_all()
        self._ungrab()

    def _key(self, keycode: int, value: int) -> None:
        code = self._keymap.get(keycode)
        if code is None:
            return
        if code in CHORD:
            if value:
                self._ctrl.add(code)
            else:
                self._ctrl.discard(code)
            if self.grabbed and self._ctrl == CHORD:
                self.release()
                return
        if self._keyboard:
            self._source.key(code, value)

    def _button(self, event: Any, value: int) -> None:
        if not self._mouse:
            return
        if not self.grabbed and not self._router.absolute:
            if value and event.detail in BUTTONS:
                self._grab(event)
            return
        if event.detail in BUTTONS:
            self._source.key(BUTTONS[event.detail], value)
        elif event.detail in WHEEL and value:
            self._source.wheel(*WHEEL[event.detail])

    def _motion(self, x: int, y: int) -> None:
        if not self._mouse:
            return
        width, height = self._size()
        if self._router.absolute:
            self._source.absolute(x * ABSOLUTE_MAX // max(width - 1, 1), y * ABSOLUTE_MAX // max(height - 1, 1))
        if not self.grabbed:
            return
        centre = (width // 2, height // 2)
        if self._warped and (x, y) == centre:
            # The warp itself. Until it came, motions were counted from where the pointer really was.
            self._warped = False
            self._at = centre
            return
        self._source.motion(x - self._at[0], y - self._at[1])
        self._at = (x, y)
        near_edge = not (width // 4 < x < width * 3 // 4 and height // 4 < y < height * 3 // 4)
        if near_edge and not self._warped:
            self._warped = True
            self._window.warp_pointer(*centre)

    def _grab(self, event: Any) -> None:
        if self._no_pointer is None:
            pixmap = self._window.create_pixmap(1, 1, 1)
            gc = pixmap.create_gc(foreground=0)
            pixmap.fill_rectangle(gc, 0, 0, 1, 1)
            self._no_pointer = pixmap.create_cursor(pixmap, (0, 0, 0), (0, 0, 0), 0, 0)
            gc.free()
            pixmap.free()
        try:
            status = self._window.grab_pointer(
                False, _GRAB_MASK, X.GrabModeAsync, X.GrabModeAsync, self._window, self._no_pointer, event.time
            )
        except error.XError:  # there was no memory for the cursor, or the window has gone
            return
        if status == X.GrabSuccess:
            self.grabbed = True
            self._at = (event.event_x, event.event_y)
            self._warped = False
            self._on_grab(True)

    def _ungrab(self) -> None:
        if self.grabbed:
            self.grabbed = False
            self._display.ungrab_pointer(X.CurrentTime)
            self._on_grab(False)

    def close(self) -> None:
        """Release everything; the connection is not used any more."""
        self.grabbed = False
        self._source.close()
