"""Watching the machine: named channels that cost one attribute test while nobody watches.

A device takes a Channel in its constructor (OFF by default) and writes

    if self._trace.enabled:
        self._trace(f"output buffer = {byte:#04x}")
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import TextIO

from pyvmm.errors import UserError, there_are

Sink = Callable[[int, str, str], None]
"""(nanoseconds of CLOCK_MONOTONIC, channel name, message)."""
Step = tuple[str, *tuple[int, ...]]
"""What a message says, for a program that follows one event through several parts: a word and its numbers, such as
("kick", queue)."""
Listener = Callable[[int, str, str, Step | None], None]
"""As a sink, and what the message says, where it says that."""


class Channel:
    """One subject that can be watched, such as i8042 or irq."""

    __slots__ = ("_listener", "_sink", "enabled", "name", "on")

    def __init__(self, name: str, sink: Sink | None = None, enabled: bool = True) -> None:
        self.name = name
        self._sink = sink
        self._listener: Listener | None = None
        self.on = False
        """The user watches it; what a listener hears is not shown."""
        self.enabled = False
        """Somebody watches it."""
        self.switch(enabled)

    def switch(self, on: bool) -> None:
        """Whether the user watches it."""
        self.on = on and self._sink is not None
        self.enabled = self.on or self._listener is not None

    def listen(self, listener: Listener | None) -> None:
        """Who hears all of it whether or not it is on; None: nobody."""
        self._listener = listener
        self.switch(self.on)

    def __call__(self, message: str, step: Step | None = None) -> None:
        if not self.enabled:
            return
        ns = time.monotonic_ns()
        if self.on and self._sink is not None:
            self._sink(ns, self.name, message)
        listener = self._listener
        if listener is not None:
            listener(ns, self.name, message, step)


OFF = Channel("off")
"""The channel that nobody watches."""


class Trace:
    """The channels of one machine, each made when a part first asks for it; on() and off() at any time."""

    def __init__(self, enabled: Iterable[str] = (), sink: Sink | None = None) -> None:
        self._wanted = set(enabled)
        self._sink = sink
        self._channels: dict[str, Channel] = {}
        self._watchers: list[Callable[[], None]] = []
        self.listener: Listener | None = None

    def channel(self, name: str) -> Channel:
        """The channel *name*; it is on if the user asked for it (or for "all")."""
        if name not in self._channels:
            channel = self._channels[name] = Channel(name, self._show, not self._wanted.isdisjoint((name, "all")))
            channel.listen(self.listener)
            if channel.on:
                self._tell_watchers()
        return self._channels[name]

    def _show(self, ns: int, name: str, message: str) -> None:
        if self._sink is None:
            self._sink = text_sink(sys.stderr)
        self._sink(ns, name, message)

    @property
    def names(self) -> tuple[str, ...]:
        """The channels that this machine has."""
        return tuple(sorted(self._channels))

    @property
    def enabled(self) -> tuple[str, ...]:
        """Those that are on."""
        return tuple(name for name in self.names if self._channels[name].on)

    def on(self, *names: str) -> None:
        """Switch channels on, "all" for all; UserError for one that is not there, and then none is switched."""
        self._switch(names, True)

    def off(self, *names: str) -> None:
        """Switch channels off."""
        self._switch(names, False)

    def _switch(self, names: tuple[str, ...], on: bool) -> None:
        if unknown := sorted(set(names) - {"all", *self._channels}):
            what = there_are(unknown[0], ["all", *self.names])
            raise UserError(f"trace: no channel {', '.join(unknown)}; {what}")
        for name in self.names if "all" in names else names:
            self._channels[name].switch(on)
        self._tell_watchers()

    def listen(self, listener: Listener | None) -> None:
        """Let *listener* hear every channel, those that are made later too, until another takes its place; None ends
        it. Raises UserError where there is one."""
        if listener is not None and self.listener is not None:
            raise UserError("trace: somebody listens to its channels already, as a timeline does")
        self.listener = listener
        for channel in list(self._channels.values()):
            channel.listen(listener)

    def watch(self, callback: Callable[[], None]) -> None:
        """Call *callback* now, and each time that some channel may have come on or gone off."""
        self._watchers.append(callback)
        callback()

    def _tell_watchers(self) -> None:
        for callback in self._watchers:
            callback()

    @property
    def unknown(self) -> tuple[str, ...]:
        """What the user asked for and the machine does not have, once it is whole."""
        return tuple(sorted(self._wanted - {"all", *self._channels}))


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
