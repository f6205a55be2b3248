"""The terminal on hvc0 and COM1."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.host.terminal_port import TerminalPort


class Port:
    def __init__(self) -> None:
        self.on_room: Callable[[], None] | None = None
        self.listening = True
        self.got = b""

    def receive(self, data: bytes) -> int:
        self.got += data
        return len(data)


def test_hvc0_gets_what_is_typed_while_the_guest_has_it_open() -> None:
    hvc, com1 = Port(), Port()
    port = TerminalPort(hvc, com1)
    hvc.listening = False
    assert port.listening and port.receive(b"boot") == 4
    hvc.listening = True
    assert port.receive(b"shell") == 5
    assert (com1.got, hvc.got) == (b"boot", b"shell")
    hvc.listening = com1.listening = False
    assert not port.listening
    called: list[int] = []
    port.on_room = lambda: called.append(1)
    for one in (hvc, com1):
        assert one.on_room is not None
        one.on_room()
    assert len(called) == 2 and port.on_room is not None
    port.on_room = None
    assert hvc.on_room is None and com1.on_room is None
