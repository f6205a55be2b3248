"""An NE2000 in whole machines: a guest of ours sends a frame and takes the one that answers."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

import pytest

from pyvmm.machine.outcome import End, Outcome
from pyvmm.pci.ne2000 import Ne2000
from tests.rig.board import board
from tests.rig.net_driver import FakeWire, OneWire

MAC = "52:54:00:ab:cd:ef"
ADDRESS = bytes.fromhex(MAC.replace(":", ""))
PEER = b"\x52\x54\x00\x00\x00\x01"
TYPE = b"\x88\xb5"


def answer(frame: bytes) -> bytes:
    """To whoever sent it."""
    return frame[6:12] + PEER + frame[12:]


class EchoWire(FakeWire):
    """Answers what is for everybody, behind frames of others."""

    def send(self, frame: bytes | bytearray | memoryview, more: bool = False) -> None:
        super().send(frame)
        self.waiting += [b"\xff" * 6 + PEER + b"\x08\x06" + bytes(46)] * 40 + [answer(bytes(frame))]
        self.ready()


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_a_guest_sends_and_receives(irqchip: str) -> None:
    wire = EchoWire()
    card = Ne2000("user", OneWire(wire), mac=MAC)
    with board("ne2k", devices=(card,), irqchip=irqchip) as machine:
        assert machine.finish(60) == Outcome(End.DEBUG_EXIT, 0), f"step {machine.value('step')}"
        assert machine.value("mac") == int.from_bytes(ADDRESS, "little")
        assert machine.value("interrupts") >= 1
    (sent,) = wire.out
    assert sent[:14] == b"\xff" * 6 + ADDRESS + TYPE and len(sent) == 60
    assert wire.received == 41 and wire.closed


def test_without_a_card_the_guest_says_so() -> None:
    with board("ne2k") as machine:
        assert machine.finish(60) == Outcome(End.DEBUG_EXIT, 1)


def test_by_a_socket(tmp_path: Path) -> None:
    """--net socket:PATH,model=ne2k: frames behind their length, as QEMU has them."""
    path = tmp_path / "wire"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            stream = peer.makefile("rwb")
            (length,) = struct.unpack(">I", stream.read(4))
            frame = answer(stream.read(length))
            stream.write(struct.pack(">I", len(frame)) + frame)
            stream.flush()
            stream.read(1)

    thread = threading.Thread(target=serve)
    thread.start()
    with board("ne2k", devices=(f"ne2k,to=socket:{path},mac={MAC}",)) as machine:
        assert machine.finish(60) == Outcome(End.DEBUG_EXIT, 0), f"step {machine.value('step')}"
    thread.join()
    listener.close()


def test_a_snapshot_has_the_card_and_its_address(tmp_path: Path) -> None:
    """Saved while the guest waits for an answer, which the restored one gets."""
    wire = FakeWire()
    card = Ne2000("user", OneWire(wire))
    with board("ne2k", devices=(card,)) as machine:
        machine.start()
        machine.wait(lambda: machine.value("step") == 5)
        snapshot = machine.snapshot()
        for _ in range(2):
            machine.call(lambda: wire.give(b"\xff" * 14 + bytes(46)))
            machine.restore(snapshot)
        machine.call(lambda: wire.give(answer(wire.out[0])))
        assert machine.finish(60) == Outcome(End.DEBUG_EXIT, 0), f"step {machine.value('step')}"
