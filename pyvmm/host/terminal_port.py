"""The terminal on hvc0 and COM1: what is typed goes to hvc0 as soon as the guest has it open, before that to COM1.

A console with hvc0 may come while the machine runs, and go: of several the first has the terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyvmm.host.console import SerialPort


class Hvc(SerialPort, Protocol):
    """The host's end of hvc0 (virtio.console.Port)."""

    output: Callable[[bytes], None]
    """Gets what the guest writes."""
    held: bool
    """What the guest writes stays with it, until release()."""

    def release(self) -> None: ...


class TerminalPort:
    """See console.SerialPort; *write* shows what the guest writes to hvc0. All of it under the machine lock."""

    def __init__(self, com1: SerialPort, write: Callable[[bytes], None]) -> None:
        self._com1 = com1
        self._write = write
        self._hvc: Hvc | None = None
        self._held = False

    def give(self, hvc: Hvc | None) -> None:
        """The terminal is *hvc*'s from here on; None where there is no hvc0."""
        room, old = self.on_room, self._hvc
        if old is not None:
            old.on_room, old.output = None, _lost
        self._hvc = hvc
        if hvc is not None:
            hvc.on_room, hvc.output, hvc.held = room, self._write, self._held
        if room is not None:
            room()  # what waits may go there

    def hold(self, held: bool) -> None:
        """Show no more of hvc0, or go on."""
        self._held = held
        if self._hvc is not None:
            if held:
                self._hvc.held = True
            else:
                self._hvc.release()

    @property
    def _port(self) -> SerialPort:
        return self._hvc if self._hvc is not None and self._hvc.listening else self._com1

    @property
    def on_room(self) -> Callable[[], None] | None:
        return self._com1.on_room

    @on_room.setter
    def on_room(self, call: Callable[[], None] | None) -> None:
        self._com1.on_room = call
        if self._hvc is not None:
            self._hvc.on_room = call

    @property
    def listening(self) -> bool:
        return self._port.listening

    def receive(self, data: bytes) -> int:
        return self._port.receive(data)


def _lost(data: bytes) -> None:
    """Of an hvc0 that has the terminal no more."""
