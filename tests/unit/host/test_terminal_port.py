"""The terminal on hvc0 and COM1."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.host.terminal_port import TerminalPort


class Port:
    def __init__(self) -> None:
        self.on_room: Callable[[], None] | None = None
        self.output: Callable[[bytes], None] = lambda data: None
        self.listening = True
        self.held = False
        self.got = b""

    def receive(self, data: bytes) -> int:
        self.got += data
        return len(data)

    def release(self) -> None:
        self.held = False


class Bench:
    """A port with hvc0, and what is shown."""

    def __init__(self) -> None:
        self.shown = bytearray()
        self.hvc, self.com1 = Port(), Port()
        self.port = TerminalPort(self.com1, self.shown.extend)
        self.port.give(self.hvc)


def test_hvc0_gets_what_is_typed_while_the_guest_has_it_open() -> None:
    bench = Bench()
    hvc, com1, port = bench.hvc, bench.com1, bench.port
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


def test_hvc0_comes_and_goes() -> None:
    bench = Bench()
    first, second, port = bench.hvc, Port(), bench.port
    called: list[int] = []
    port.on_room = lambda: called.append(1)
    port.give(second)
    assert called == [1], "what waits for room may go there"
    first.output(b"lost")
    second.output(b"shown")
    assert bench.shown == b"shown"
    assert first.on_room is None and second.on_room is port.on_room is not None
    port.receive(b"typed")
    port.give(None)
    second.output(b"lost")
    port.receive(b"to COM1")
    assert (first.got, second.got, bench.com1.got) == (b"", b"typed", b"to COM1")
    assert bench.shown == b"shown" and called == [1, 1]


def test_what_is_shown_is_held_back_of_one_that_comes_too() -> None:
    bench = Bench()
    second = Port()
    bench.port.hold(True)
    bench.port.give(second)
    assert bench.hvc.held and second.held
    bench.port.hold(False)
    assert not second.held
    bench.port.give(None)
    bench.port.hold(True)
    assert not second.held
