"""The values of --keyboard and --mouse: where the guest's input comes from on the host."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pyvmm.errors import UserError


class InputOption(NamedTuple):
    """Where from: auto is the window if there is one, and else no device of the host's.

    *path* is the one device to take with evdev; None takes every keyboard or mouse, also those plugged in later.
    """

    kind: Literal["auto", "x11", "evdev"]
    path: str | None = None


def parse_input_option(option: str, text: str) -> InputOption:
    """The value *text* of *option* ("--keyboard" or "--mouse"): auto, x11, evdev or evdev=PATH; raises UserError."""
    kind, equals, path = text.partition("=")
    match kind:
        case "auto" | "x11" if not equals:
            return InputOption(kind)
        case "evdev" if path or not equals:
            return InputOption(kind, path or None)
        case _:
            raise UserError(f"{option} {text}: use auto, x11, evdev or evdev=/dev/input/eventN")


def x11_wanted(option: InputOption, display: str) -> bool:
    """Whether the window is to give this input; raises UserError where it must and *display* is no window."""
    if option.kind == "x11" and display != "x11":
        raise UserError("--keyboard x11 and --mouse x11 take input from a window: add --display x11")
    return option.kind != "evdev" and display == "x11"
