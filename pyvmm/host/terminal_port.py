"""The terminal on hvc0 and COM1: what is typed goes to hvc0 as soon as the guest has it open, before that to COM1."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.host.console import SerialPort


class TerminalPort:
    """See console.SerialPort."""

    def __init__(self, hvc: SerialPort, com1: SerialPort) -> None:
        self._hvc, self._com1 = hvc, com1

    @property
    def _port(self) -> SerialPort:
        return self._hvc if self._hvc.listening else self._com1

    @property
    def on_room(self) -> Callable[[], None] | None:
        return self._hvc.on_room

    @on_room.setter
    def on_room(self, call: Callable[[], None] | None) -> None:
        self._hvc.on_room = self._com1.on_room = call

    @property
    def listening(self) -> bool:
        return self._port.listening

    def receive(self, data: bytes) -> int:
        return self._port.receive(data)
