"""Devices that come and go while a machine lives; docs/hotplug.md.

A machine that has not been started is only made otherwise. In one that runs the guest is told, and what is to go stays
until the guest has let go of it: that is heard in the middle of an access of its own, so the vCPUs stand before they
execute anything more, and all that the device had goes back by the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pyvmm.device_spec import DeviceSpec
from pyvmm.errors import UserError, one_line, there_are
from pyvmm.machine.cpus import CPU, CpuPlugger
from pyvmm.machine.event import MachineEvent

if TYPE_CHECKING:
    from pyvmm.board.pc import Pc
    from pyvmm.config import MachineConfig
    from pyvmm.machine.life import Life
    from pyvmm.machine.slots import Slots
    from pyvmm.pci.device import PciDevice


class Plugger:
    """Of the devices that *slots*, where the user has asked for any, has plugged into *board*, and of its *cpus*."""

    def __init__(self, life: Life, board: Pc, slots: Slots | None, cpus: CpuPlugger) -> None:
        self._life = life
        self._board = board
        self.cpus = cpus
        self.slots = slots
        """None where the user has plugged in nothing."""
        self._changed = False
        """There are other devices than the configuration has."""
        board.hotplug.ejected = self._ejected

    # In the loop's thread, while all stands still

    def plug(self, wanted: str | DeviceSpec | object) -> object:
        """See Machine.plug()."""
        spec = DeviceSpec.parse(wanted) if isinstance(wanted, str) else wanted
        self._life.loop.run_once(0)
        with self._life.lock:
            self._life.cpus.catch_up()
            if isinstance(spec, DeviceSpec) and spec.name == CPU:
                return self.cpus.plug(spec)
            if self.slots is None:
                from pyvmm.machine.slots import Slots

                self.slots = Slots(self._board)
            before = set(self._board.devices)
            device = self.slots.plug(spec, running=True)
            (name,) = set(self._board.devices) - before
            self._changed = True
            if self._life.state == "built":
                self._board.assign_pci_resources()
            else:
                self._board.hotplug.plugged(self.slots.functions[name])
            self._life.events(MachineEvent("plugged", name))
            return device

    def unplug(self, name: str, force: bool) -> bool:
        """See Machine.unplug()."""
        self._life.loop.run_once(0)
        with self._life.lock:
            self._life.cpus.catch_up()
            if name not in self._board.devices and self.cpus.is_mine(name):
                return self.cpus.unplug(name, force)
            function = self._find(name)
            port = self._board.hotplug.port_of(function)
            if self._life.state == "built" or (force and port is not None):
                try:
                    self._remove(name)
                except Exception as error:  # of the user's own close()
                    raise UserError(f"device {name} is gone, but first its code raised {one_line(error)}") from None
                return True
            if force:
                raise UserError(f"device {name} is on bus 0, where only the guest can let go of it: leave force away")
            try:
                self._board.hotplug.ask_to_eject(function)
            except UserError as error:
                raise UserError(f"device {name}: {error}") from None
            return False

    def finish(self) -> None:
        """A reset: what the guest was asked to let go of, it has. Under the machine lock."""
        self.cpus.finish()
        functions = {} if self.slots is None else dict(self.slots.functions)
        for name, function in functions.items():
            if self._board.hotplug.leaving(function):
                self._remove(name)

    def _find(self, name: str) -> PciDevice:
        devices = self._board.devices
        if name not in devices:
            raise UserError(f"no device {name}: {there_are(name, sorted(devices)) if devices else 'there is none'}")
        assert self.slots is not None
        function = self.slots.functions.get(name)
        hotplug = self._board.hotplug
        if function is None or (hotplug.port_of(function) is None and hotplug.slot_of(function) is None):
            raise UserError(f"device {name} came with the machine, and cannot be unplugged")
        return function

    def _remove(self, name: str) -> None:
        assert self.slots is not None
        self._changed = True
        try:
            self.slots.unplug(name)
        finally:
            self._life.events(MachineEvent("unplugged", name))

    # In the middle of an access of the guest's

    def _ejected(self, function: PciDevice) -> None:
        functions = {} if self.slots is None else self.slots.functions
        for name, other in functions.items():
            if other is function:
                self._life.before_going_on(self._removing(name, function))

    def _removing(self, name: str, function: PciDevice) -> Callable[[], None]:
        def remove() -> None:
            self._life.loop.run_once(0)  # doorbells that have rung are still the device's
            with self._life.lock:
                self._life.cpus.catch_up()
                if self.slots is not None and self.slots.functions.get(name) is function:
                    self._remove(name)

        return remove

    # What there is now, for snapshots

    def devices(self) -> dict[str, str]:
        """What is where, by name; CPUs that could go too."""
        slots, cpus = self.slots, {name: f"{CPU},id={name}" for name in self.cpus.names}
        return cpus if slots is None else cpus | {name: str(slots.place_of(name)) for name in self._board.devices}

    def config(self, config: MachineConfig) -> MachineConfig:
        """*config* as it would have to be for a machine with the devices of now. Raises UserError."""
        if not self._changed or self.slots is None:
            return config
        made = [name for name in self._board.devices if name not in self.slots.specs]
        if made:
            raise UserError(
                f"a machine in which devices have come or gone is saved by what they are asked for by, and device "
                f"{made[0]} was made in Python: unplug it first"
            )
        specs = tuple(self.slots.place_of(name) for name in self._board.devices)
        return replace(config, devices=specs, root_ports=0, rng=False)
