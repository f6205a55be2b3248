"""CPUs that come and go while a machine lives; docs/hotplug.md.

KVM makes a vCPU once and destroys none before its VM, so all that there may be are made with the machine: one that is
in no socket is parked, its thread stands, and when it is plugged in it is what a processor is after power-on. Which are
in sockets the board knows, and with it every snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from pyvmm.device_spec import DeviceSpec
from pyvmm.devices.ost import OST_INSERTION
from pyvmm.errors import UserError, there_are
from pyvmm.machine.event import MachineEvent
from pyvmm.machine.ost import refused

if TYPE_CHECKING:
    from pyvmm.board.pc import Pc
    from pyvmm.machine.life import Life
    from pyvmm.vcpu.kernel_time import KernelTime

CPU: Final = "cpu"
"""What a CPU is asked for by, and with its number called."""


class CpuPlugger:
    """Of the CPUs in the sockets of *board*."""

    def __init__(self, life: Life, board: Pc, time: KernelTime) -> None:
        self._life = life
        self._board = board
        self._sockets = board.sockets
        self._time = time
        self._sockets.ejected = self._ejected
        self._sockets.refused = self._refused
        self.follow()

    @property
    def names(self) -> list[str]:
        """Of those that are there and could go."""
        return [name(cpu) for cpu in self._sockets.present if cpu] if self._board.config.max_cpus is not None else []

    # In the loop's thread, while all stands still, under the machine lock

    def plug(self, spec: DeviceSpec) -> str:
        """A CPU into the socket that its id names, or the first that is free; what it is called. Raises UserError."""
        chip, cpu = self._sockets.chip, self._wanted(spec)
        self._life.cpus.power_on(cpu)
        self._time.align(cpu)
        try:
            self._life.cpus.seat((*self._sockets.present, cpu))
        except RuntimeError as error:
            raise UserError(f"{name(cpu)}: this host has no memory for its thread ({error})") from None
        chip.plugged(cpu)
        self._life.events(MachineEvent("plugged", name(cpu)))
        return name(cpu)

    def _wanted(self, spec: DeviceSpec) -> int:
        if spec.arguments or spec.port is not None or spec.slot is not None:
            raise UserError(f"device {spec}: a CPU takes an id, cpu1 and up, and no other key")
        possible, threads = self._sockets.possible, self._life.cpus.threads
        free = [cpu for cpu in range(possible) if threads[cpu].parked]  # one that was ejected just now is not yet
        if not free:
            raise UserError(f"device {spec}: all CPUs that there may be, {possible}, are there: unplug one first")
        if spec.id is None:
            return free[0]
        for cpu in free:
            if spec.id == name(cpu):
                return cpu
        raise UserError(f"device {spec}: no CPU that could come is called so, but {', '.join(map(name, free))}")

    def is_mine(self, wanted: str) -> bool:
        """Whether *wanted* is called as CPUs are."""
        return wanted.startswith(CPU) and wanted[len(CPU) :].isdecimal()

    def unplug(self, wanted: str, force: bool) -> bool:
        """True where it is gone at once, before the machine has started. Raises UserError."""
        chip = self._sockets.chip
        if wanted == name(0):
            raise UserError(f"{wanted} is the one that the guest started on, and cannot be unplugged")
        if wanted not in self.names:
            raise UserError(f"no CPU {wanted}: {there_are(wanted, self.names) if self.names else 'none could go'}")
        cpu = int(wanted[len(CPU) :])
        if self._life.state == "built":
            chip.unplugged(cpu)
            self._gone(cpu)
            return True
        if force:
            raise UserError(f"{wanted} is a CPU, of which only the guest can let go: leave force away")
        try:
            self._sockets.ask_to_eject(cpu)
        except UserError as error:
            raise UserError(f"{wanted}: {error}") from None
        return False

    def finish(self) -> None:
        """A reset: what the guest was asked to let go of, it has."""
        for cpu in self._sockets.leaving:
            self._sockets.chip.unplugged(cpu)
            self._gone(cpu)

    def follow(self) -> None:
        """The board's state is another: it has been restored."""
        self._life.cpus.seat(self._sockets.present)

    @contextmanager
    def going_to(self, then: Sequence[int]) -> Iterator[None]:
        """Inside, the board's state becomes another, which has the CPUs *then*. Raises UserError where this host has no
        memory for a thread of one, and nothing has changed."""
        now = self._sockets.present
        try:
            self._life.cpus.seat((*now, *then))
        except RuntimeError as error:
            raise UserError(f"this host has no memory for the thread of a CPU ({error})") from None
        yield
        self.follow()
        for cpu in range(self._sockets.possible):
            if (cpu in then) != (cpu in now):
                self._life.events(MachineEvent("plugged" if cpu in then else "unplugged", name(cpu)))

    def _gone(self, cpu: int) -> None:
        """It is quiet from here on: no interrupt finds its local APIC enabled."""
        self._life.cpus.power_on(cpu)
        self.follow()
        self._life.events(MachineEvent("unplugged", name(cpu)))

    # In the middle of an access of the guest's

    def _ejected(self, cpu: int) -> None:
        self._life.before_going_on(partial(self._park, cpu))

    def _park(self, cpu: int) -> None:
        with self._life.lock:
            self._life.cpus.catch_up()
            if cpu not in self._sockets.present:
                self._gone(cpu)

    def _refused(self, cpu: int, event: int, status: int) -> None:
        self._life.events(refused(name(cpu), event in OST_INSERTION, status))


def name(cpu: int) -> str:
    """What a CPU is called."""
    return f"{CPU}{cpu}"
