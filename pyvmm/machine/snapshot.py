"""A machine as it was at a moment, kept in memory, to go back to as often as one likes.

Both happen while everything stands still. What is under way between the parts is finished before a snapshot: calls that
were posted, doorbells that have rung, writes that KVM has gathered. Going back puts RAM first, for rings are looked up
in it, then the guest's clock, then all parts, then the vCPUs, whose state has what the chips have sent them.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvmm.board.pages import Pages, RamPages
from pyvmm.errors import UserError
from pyvmm.machine.event import MachineEvent
from pyvmm.state import Plain

if TYPE_CHECKING:
    from pyvmm.board.pc import Pc
    from pyvmm.machine.life import Life
    from pyvmm.machine.verdicts import Verdicts
    from pyvmm.vcpu.kernel_time import KernelTime, Stood
    from pyvmm.vcpu.state import VcpuState


@dataclass(eq=False)
class Snapshot:
    """What machine.snapshot() gives; let it go to free it."""

    pages: Pages
    parts: dict[str, Plain]
    vcpus: list[VcpuState]
    now: int
    """On the guest's clock, in ns."""
    time: Stood

    @property
    def size(self) -> int:
        """Bytes of guest RAM that were copied for it: what the guest had touched, or had written since the last one."""
        return self.pages.size


class Snapshots:
    """Of one machine; both methods in the loop's thread, while all stands still."""

    def __init__(self, life: Life, board: Pc, verdicts: Verdicts, time: KernelTime) -> None:
        self._life = life
        self._board = board
        self._verdicts = verdicts
        self._time = time
        self.ram = RamPages(board.vm, board.memory, board.slots)

    def take(self) -> Snapshot:
        """Raises UserError where a part cannot be saved, or this host has no memory for it."""
        life = self._life
        life.loop.run_once(0)
        with life.lock:
            life.cpus.catch_up()
            parts, now = self._board.parts.save(), life.clock.now()
            vcpus, time = life.cpus.save(), self._time.save()
            try:
                pages = self.ram.take()
            except OSError as error:
                raise UserError(f"no memory for a snapshot: {error.strerror}") from None
            weakref.finalize(pages, life.loop.post, self.ram.release_unused)
            life.events(MachineEvent("snapshot"))
        return Snapshot(pages, parts, vcpus, now, time)

    def go_back(self, snapshot: Snapshot) -> None:
        """Raises UserError where it is of another machine; then nothing has changed."""
        if not self.ram.holds(snapshot.pages):
            raise UserError("this snapshot is of another machine: restore one that this machine has made")
        life = self._life
        life.loop.run_once(0)  # what has rung or was posted belongs to the time that is left now
        with life.lock:
            life.cpus.catch_up()
            self.ram.put_back(snapshot.pages)
            life.clock.set(snapshot.now)
            self._board.parts.load(snapshot.parts)
            life.cpus.load(snapshot.vcpus)
            self._time.load(snapshot.time)
            self._verdicts.restarted()
            life.events(MachineEvent("restored"))
