"""The guest's serial port in the hands of a test: what it prints is kept, what is sent waits until it is taken."""

from __future__ import annotations

from pyvmm.machine.machine import Machine
from pyvmm.testing.patience import PATIENCE, Patience
from pyvmm.testing.shell import Ran, run
from pyvmm.testing.transcript import Transcript


class Serial(Transcript):
    """Of COM1 of *machine*, which nobody else feeds."""

    def __init__(self, machine: Machine) -> None:
        super().__init__("the guest")
        self._machine = machine
        self._waiting = bytearray()
        self._port = machine.board.com1
        self._port.on_room = self._give
        machine.serial.add(self.feed)
        machine.events.add(lambda event: self.feed(b"") if event.kind == "ended" else None)

    def send(self, text: str | bytes) -> None:
        """Type *text* at the other end of the wire; it need not be taken yet."""
        data = text.encode() if isinstance(text, str) else text

        def add() -> None:
            self._waiting += data
            self._give()

        self._machine.call(add)

    def _give(self) -> None:
        """There is room, or somebody listens now; under the machine lock."""
        if self._waiting and self._port.listening:
            del self._waiting[: self._port.receive(bytes(self._waiting))]

    def run(self, command: str, timeout: float = PATIENCE) -> Ran:
        """What *command* printed in the shell at the other end, and its exit status."""
        return run(self, command, timeout)

    def patience(self, seconds: float = PATIENCE) -> Patience:
        """Output and exits are progress."""
        vcpus = self._machine.vcpus
        return Patience(seconds, self.pid, lambda: (len(self._received), sum(vcpu.exits for vcpu in vcpus) >> 8))

    def begin_again(self) -> None:
        """Forget what was sent and is not taken, and what has come: the guest is another."""
        self._waiting.clear()
        self.skip()
