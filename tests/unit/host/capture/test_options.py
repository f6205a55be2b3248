from __future__ import annotations

import pytest

from pyvmm.errors import UserError
from pyvmm.host.capture.options import InputOption, parse_input_option, x11_wanted


def test_values() -> None:
    assert parse_input_option("--keyboard", "auto") == InputOption("auto")
    assert parse_input_option("--keyboard", "x11") == InputOption("x11")
    assert parse_input_option("--mouse", "evdev") == InputOption("evdev")
    assert parse_input_option("--mouse", "evdev=/dev/input/event3") == InputOption("evdev", "/dev/input/event3")


@pytest.mark.parametrize("text", ["", "evdev=", "x11=:0", "auto=", "usb", "EVDEV"])
def test_mistakes_are_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^--mouse .*: use auto, x11, evdev or evdev=/dev/input/eventN$"):
        parse_input_option("--mouse", text)


def test_who_gives_input() -> None:
    assert x11_wanted(InputOption("auto"), "x11") and x11_wanted(InputOption("x11"), "x11")
    assert not x11_wanted(InputOption("auto"), "none") and not x11_wanted(InputOption("evdev"), "x11")
    with pytest.raises(UserError, match="--display x11"):
        x11_wanted(InputOption("x11"), "text")
