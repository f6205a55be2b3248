"""A machine as it was at a moment, kept in memory, to go back to as often as one likes.

Both happen while everything stands still. What is under way between the parts is finished before a snapshot: calls that
were posted, doorbells that have rung, writes that KVM has gathered. Going back puts RAM first, for rings are looked up
in it, then the guest's clock, then all parts, then the vCPUs, whose state has what the chips have sent them.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from pyvmm.board.pages import Level, Pages, RamPages
from pyvmm.board.pages import Progress as Progress
from pyvmm.errors import UserError
from pyvmm.machine.event import MachineEvent
from pyvmm.machine.identity import Identity, MachineState

if TYPE_CHECKING:
    from pyvmm.board.pc import Pc
    from pyvmm.board.placement import Parts
    from pyvmm.config import MachineConfig
    from pyvmm.machine.life import Life
    from pyvmm.machine.plugging import Plugger
    from pyvmm.machine.saved import Saved
    from pyvmm.machine.verdicts import Verdicts
    from pyvmm.vcpu.kernel_time import KernelTime


@dataclass(eq=False, repr=False)
class Snapshot:
    """What machine.snapshot() gives; let it go to free it."""

    identity: Identity
    state: MachineState
    pages: Pages
    ram: RamPages
    board_parts: Parts
    devices: dict[str, str]
    """What was where, by name."""
    cpus: tuple[int, ...]
    """The numbers of the CPUs that there were."""
    plugged: dict[tuple[int, int], int]
    """Where in a file RAM begins that was plugged in, in bytes, by (address, bytes)."""
    config: Callable[[], MachineConfig]
    """The configuration that makes a machine with these devices. Raises UserError."""

    @property
    def size(self) -> int:
        """Bytes of guest RAM that were copied for it: what the guest had touched, or had written since the last one."""
        return self.pages.size

    def __repr__(self) -> str:
        return f"<Snapshot of {self.size} bytes>"

    def save(self, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
        """Write it to a new file, which then takes the place of *path*; from any thread, the machine runs on meanwhile.
        *progress* is told bytes of RAM done, of how many; what it raises ends it. Raises UserError."""
        from pyvmm.machine import saved

        with self.ram.reading():
            state = replace(self.state, parts=self.board_parts.portable(self.state.parts))
            identity = replace(self.identity, config=self.config())
            size = identity.config.ram_size + sum(size for _, size in self.plugged)
            saved.save(identity, state, size, self.ram.runs(self.pages, self.plugged), os.fspath(path), progress)


class Snapshots:
    """Of one machine; both methods in the loop's thread, while all stands still."""

    def __init__(
        self,
        life: Life,
        board: Pc,
        verdicts: Verdicts,
        time: KernelTime,
        identity: Identity,
        saved: Saved | None,
        plugger: Plugger,
    ) -> None:
        self._life = life
        self._identity = identity
        self._plugger = plugger
        self._board = board
        self._verdicts = verdicts
        self._time = time
        plugged_from = 1 << 64 if board.banks is None else board.banks.window[0]
        image: Callable[[], Level] | None = None
        if saved is not None and saved.image is not None:
            image = lambda: saved.level([region for region in board.memory.ram if region.gpa < plugged_from])  # noqa: E731
        self.ram = RamPages(board.vm, board.memory, board.slots, image, plugged_from)

    def take(self, progress: Progress | None = None) -> Snapshot:
        """Raises UserError where a part cannot be saved, or this host has no memory for it."""
        life = self._life
        life.do_what_was_asked()  # else who goes back to it would find it half done, and nobody to end it
        if life.outcome is not None:
            raise UserError("the machine has ended: a snapshot needs one that lives")
        life.loop.run_once(0)
        with life.lock:
            life.cpus.catch_up()
            parts, now = self._board.parts.save(), life.clock.now()
            vcpus, time = life.cpus.save(), self._time.save()
        try:
            pages = self.ram.take(progress)  # which may take a while, and all stands still
        except OSError as error:
            raise UserError(f"no memory for a snapshot: {error.strerror}") from None
        weakref.finalize(pages, life.loop.post, self.ram.release_unused)
        with life.lock:
            life.events(MachineEvent("snapshot"))
        state = MachineState(parts, vcpus, now, time)
        banks, devices = self._board.banks, self._plugger.devices()
        cpus, plugged = self._board.sockets.present, {} if banks is None else banks.file_offsets()
        return Snapshot(
            self._identity, state, pages, self.ram, self._board.parts, devices, cpus, plugged, self._config()
        )

    def _config(self) -> Callable[[], MachineConfig]:
        try:
            config = self._plugger.config(self._identity.config)
        except UserError as error:
            return partial(_refuse, str(error))
        return lambda: config

    def go_back(self, snapshot: Snapshot) -> None:
        """Raises UserError where it is of another machine, or a disk is not what it was; then nothing has changed."""
        if not self.ram.holds(snapshot.pages):
            raise UserError("this snapshot is of another machine: restore one that this machine has made")
        self._check_devices(snapshot.devices)
        life = self._life
        life.loop.run_once(0)  # what has rung or was posted belongs to the time that is left now
        with life.lock:
            life.cpus.catch_up()
            self._board.rest()
            self._board.parts.check(snapshot.state.parts)
            with self._plugger.cpus.going_to(snapshot.cpus):
                self.ram.put_back(snapshot.pages)
                self._load(snapshot.state)
            self._verdicts.restarted()
            life.events(MachineEvent("restored"))

    def _check_devices(self, then: dict[str, str]) -> None:
        """Raises UserError where others are plugged in than *then*: the guest would find them changed."""
        now = self._plugger.devices()
        for name, place in now.items():
            if then.get(name) != place:
                raise UserError(f"device {name} was not there when the snapshot was taken: unplug it first")
        for name, place in then.items():
            if name not in now:
                raise UserError(f"device {name} was there when the snapshot was taken: plug in {place} first")

    def begin_with(self, state: MachineState) -> None:
        """What was saved of another machine alike, whose RAM this one has, before it starts."""
        with self._life.lock:
            self._load(state)
            self._plugger.cpus.follow()

    def _load(self, state: MachineState) -> None:
        self._life.forget_reset()
        self._life.clock.set(state.now)
        self._board.parts.load(state.parts)
        self._life.cpus.load(state.vcpus)
        self._plugger.restored()
        self._time.load(state.time)
        self._verdicts.fell_asleep_before()


def _refuse(why: str) -> NoReturn:
    raise UserError(why)
