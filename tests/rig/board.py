"""A whole machine of pyvmm, run in this process with one of the guests that come with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyvmm import guests
from pyvmm.config import MachineConfig
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import Outcome
from pyvmm.machine.saved import Saved
from pyvmm.machine.verdicts import Verdicts
from pyvmm.trace import Sink
from pyvmm.units import MIB

LONGEST = 250.0
"""Seconds; a guest that takes longer hangs."""


class Board(Machine):
    """A Machine that keeps what the guest prints, and what its guest left behind can be asked for."""

    def __init__(self, config: MachineConfig, trace_sink: Sink | None = None, saved: Saved | None = None) -> None:
        self.output = bytearray()
        self.on_output: Callable[[bytes], None] | None = None
        self.guest = guests.load(config.guest or guests.DEFAULT) if config.complete().boots_guest else None
        super().__init__(config, trace_sink, saved)
        self.serial.add(self._take)

    def _take(self, data: bytes) -> None:
        self.output += data
        if self.on_output is not None:
            self.on_output(data)

    @property
    def verdicts(self) -> Verdicts:
        """What exits lead to."""
        return self._built.verdicts

    def finish(self, timeout: float = LONGEST) -> Outcome:
        return self.run(timeout)

    def value(self, name: str) -> int:
        """What the guest left at one of its symbols."""
        assert self.guest is not None
        return self.memory.read_int(self.guest.symbols[name], 8)


@contextmanager
def board(guest: str, *, parameters: dict[str, int] | None = None, **options: object) -> Iterator[Board]:
    """A machine with *guest*; *options* are the fields of MachineConfig."""
    fields = {"memory": guests.load(guest).memory, **options}
    with Board(MachineConfig(guest=guest, guest_parameters=tuple((parameters or {}).items()), **fields)) as machine:  # type: ignore[arg-type]
        yield machine


SPIN = "66 ff 06 00 05 eb f9"
"""inc dword [0x500]; jmp back: a real-mode guest that counts as fast as it can."""


def counting(tmp_path: Path, **options: object) -> Board:
    """A machine with SPIN, whose file goes to *tmp_path*."""
    (tmp_path / "code").write_bytes(bytes.fromhex(SPIN))
    return Board(MachineConfig(memory=MIB, kernel=tmp_path / "code", flat="real@0x1000", **options))  # type: ignore[arg-type]


def count(machine: Board) -> int:
    """How far SPIN has counted."""
    return machine.memory.read_int(0x500, 4)
