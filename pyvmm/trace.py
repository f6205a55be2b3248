"""Watching the machine: named channels that cost one attribute test while nobody watches.

A device takes a Channel in its constructor (OFF by default) and writes

    if self._trace.enabled:
        self._trace(f"output buffer = {byte:#04x}")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, TextIO

CHANNELS: Final = (
    "acpi",
    "control",
    "evdev",
    "exits",
    "i8042",
    "input",
    "irq",
    "pci",
    "rtc",
    "serial",
    "vga",
    "x11",
)
"""All that there are."""

Sink = Callable[[int, str, str], None]
"""(nanoseconds of CLOCK_MONOTONIC, channel name, message)."""


class Channel:
    """One subject that can be watched, such as i8042 or irq."""

    __slots__ = ("_sink", "enabled", "name")

    def __init__(self, name: str, sink: Sink | None = None) -> None:
        self.name = name
        self._sink = sink
        self.enabled = sink is not None

    def __call__(self, message: str) -> None:
        if self._sink is not None:
            self._sink(time.monotonic_ns(), self.name, message)


OFF = Channel("off")
"""The channel that nobody watches."""


class Trace:
    """The channels of one machine."""

    def __init__(self, enabled: Iterable[str] = (), sink: Sink | None = None) -> None:
        self._enabled = frozenset(enabled)
        self._sink = sink
        self._channels: dict[str, Channel] = {}

    def channel(self, name: str) -> Channel:
        """The channel *name*, one of CHANNELS; it is on if the user asked for it (or for "all")."""
        assert name in CHANNELS, name
        if name not in self._channels:
            on = name in self._enabled or "all" in self._enabled
            self._channels[name] = Channel(name, self._sink if on else None)
        return self._channels[name]


def text_sink(stream: TextIO, end: str = "\n") -> Sink:
    """A sink that writes a line a message: seconds since the first one, the channel, the message, *end*.

    It falls silent when *stream* takes no more (a reader that has gone, a full disk): the machine runs on.
    """
    start: list[int] = []
    silent = False

    def sink(ns: int, channel: str, message: str) -> None:
        nonlocal silent
        if silent:
            return
        if not start:
            start.append(ns)
        try:
            stream.write(f"{(ns - start[0]) / 1e9:12.6f} {channel:<8} {message}{end}")
            stream.flush()
        except OSError:
            silent = True

    return sink
