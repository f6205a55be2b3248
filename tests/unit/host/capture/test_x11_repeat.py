"""Auto-repeat as a server without the XKB extension sends it; with the extension, tests/unit/display/test_x11.py."""

from __future__ import annotations

from typing import NamedTuple

from Xlib import X

from pyvmm.host.capture.x11_keys import without_auto_repeat


class Event(NamedTuple):
    type: int
    detail: int
    time: int


def test_a_repeat_is_a_release_and_a_press_in_one_millisecond() -> None:
    press, release = Event(X.KeyPress, 38, 100), Event(X.KeyRelease, 38, 900)
    repeats = [event for t in (600, 640, 680) for event in (Event(X.KeyRelease, 38, t), Event(X.KeyPress, 38, t))]
    assert without_auto_repeat([press, *repeats, release]) == [press, release]


def test_other_releases_and_presses_stay() -> None:
    events = [
        Event(X.KeyPress, 38, 1),
        Event(X.KeyRelease, 38, 5),
        Event(X.KeyPress, 38, 9),
        Event(X.KeyRelease, 38, 9),
        Event(X.KeyPress, 39, 9),
        Event(X.MotionNotify, 0, 9),
        Event(X.KeyRelease, 39, 12),
        Event(X.ButtonPress, 39, 12),
    ]
    assert without_auto_repeat(events) == events
