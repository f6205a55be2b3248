"""Devices that come and go while a machine lives; docs/hotplug.md.

A machine that has not been started is only made otherwise. In one that runs the guest is told, and what is to go stays
until the guest has let go of it: that is heard in the middle of an access of its own, so the vCPUs stand before they
execute anything more, and all that the device had goes back by the loop's thread.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pyvmm.board.dimm import MEMORY, Dimm
from pyvmm.device_spec import DeviceSpec
from pyvmm.errors import UserError, one_line, there_are
from pyvmm.machine.cpus import CPU, CpuPlugger
from pyvmm.machine.event import MachineEvent
from pyvmm.machine.ost import refused

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
        self._devices: dict[str, str] | None = None
        """What devices() gave last: going back to a snapshot asks each time."""
        self._restores = 0
        """How often the state became that of a snapshot: what the guest has let go of before that, it has again."""
        board.hotplug.ejected = self._ejected
        if board.banks is not None:
            board.banks.ejected = self._memory_ejected
            board.banks.refused = self._memory_refused

    # In the loop's thread, while all stands still

    def plug(self, wanted: str | DeviceSpec | object) -> object:
        """See Machine.plug()."""
        spec = DeviceSpec.parse(wanted) if isinstance(wanted, str) else wanted
        self._life.loop.run_once(0)
        with self._life.lock:
            self._life.cpus.catch_up()
            if isinstance(spec, DeviceSpec) and spec.name == CPU:
                _ = self._board.sockets.chip  # without it none comes, whatever the guest turns on
                self._check_acpi(spec)
                return self.cpus.plug(spec)
            is_memory = isinstance(spec, Dimm) or (isinstance(spec, DeviceSpec) and spec.name == MEMORY)
            if is_memory and self._board.banks is not None:
                self._check_acpi(spec)
            if self.slots is None:
                from pyvmm.machine.slots import Slots

                self.slots = Slots(self._board)
            before = set(self._board.devices)
            try:
                device = self.slots.plug(spec, running=True)
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                raise UserError(
                    f"device {spec}: it needs more descriptors than this process may have: raise ulimit -n"
                ) from None
            (name,) = set(self._board.devices) - before
            if not self._life.begun:
                self._make_room(name)
            elif isinstance(device, Dimm):
                assert self._board.banks is not None
                self._board.banks.tell(device)
            else:
                self._board.hotplug.plugged(self.slots.functions[name])
            self._note_change()
            self._life.events(MachineEvent("plugged", name))
            return device

    def _make_room(self, name: str) -> None:
        """Give device *name* its addresses, as firmware would. Raises UserError, and it is out again."""
        assert self.slots is not None
        try:
            self._board.assign_pci_resources()
        except UserError:
            with suppress(Exception):  # the user's own close() may raise; why there is no room is told
                self.slots.unplug(name)
            self._board.assign_pci_resources()
            raise

    def _check_acpi(self, spec: object) -> None:
        """Of CPUs and memory a guest hears by ACPI alone; what comes before that is on some would never find."""
        if self._life.begun and not self._board.acpi_pm.acpi_enabled:
            raise UserError(
                f"device {spec}: its guest has not turned on ACPI (SCI_EN), which would tell it: wait until it has"
            )

    def unplug(self, name: str, force: bool) -> bool:
        """See Machine.unplug()."""
        self._life.loop.run_once(0)
        with self._life.lock:
            self._life.cpus.catch_up()
            if name not in self._board.devices and self.cpus.is_mine(name):
                return self.cpus.unplug(name, force)
            if self.slots is not None and name in self.slots.dimms:
                return self._unplug_memory(name, force)
            function = self._find(name)
            port = self._board.hotplug.port_of(function)
            if not self._life.begun or (force and port is not None):
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

    def _unplug_memory(self, name: str, force: bool) -> bool:
        banks = self._board.banks
        assert self.slots is not None and banks is not None
        if not self._life.begun:
            self._remove(name)
            return True
        if force:
            raise UserError(f"device {name} is memory, which only the guest can let go of: leave force away")
        try:
            banks.ask_to_eject(self.slots.dimms[name])
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
        if self._board.banks is not None and self.slots is not None:
            for name, dimm in list(self.slots.dimms.items()):
                if self._board.banks.leaving(dimm):
                    self._remove(name)

    def restored(self) -> None:
        """The board's state is another."""
        self._restores += 1

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
        self._note_change()
        try:
            self.slots.unplug(name)
        finally:
            self._life.events(MachineEvent("unplugged", name))

    def _note_change(self) -> None:
        self._changed, self._devices = True, None

    # In the middle of an access of the guest's

    def _ejected(self, function: PciDevice) -> None:
        functions = {} if self.slots is None else self.slots.functions
        for name, other in functions.items():
            if other is function:
                self._life.before_going_on(self._removing(name, function))

    def _removing(self, name: str, function: PciDevice) -> Callable[[], None]:
        restores = self._restores

        def remove() -> None:
            self._life.loop.run_once(0)  # doorbells that have rung are still the device's
            with self._life.lock:
                self._life.cpus.catch_up()
                there = self.slots is not None and self.slots.functions.get(name) is function
                if there and restores == self._restores:
                    self._remove(name)

        return remove

    def _name_of(self, dimm: Dimm) -> str | None:
        dimms = {} if self.slots is None else self.slots.dimms
        return next((name for name, other in dimms.items() if other is dimm), None)

    def _memory_ejected(self, dimm: Dimm) -> None:
        name = self._name_of(dimm)
        if name is not None:
            self._life.before_going_on(partial(self._remove_memory, name, dimm, self._restores))

    def _remove_memory(self, name: str, dimm: Dimm, restores: int) -> None:
        """Now that no vCPU, thread or server in the kernel touches RAM; unless a device has a queue there, which it
        would go on with."""
        self._life.loop.run_once(0)
        with self._life.lock:
            self._life.cpus.catch_up()
            banks, region = self._board.banks, dimm.region
            if self.slots is None or banks is None or region is None or self._name_of(dimm) != name:
                return
            if restores != self._restores:
                return
            users = self.slots.users(region.gpa, dimm.size)
            if users:
                banks.stays(dimm)
                self._life.events(MachineEvent("unplug-refused", f"{name}: {', '.join(users)} has a queue in it"))
            else:
                self._remove(name)

    def _memory_refused(self, dimm: Dimm, was_leaving: bool, status: int) -> None:
        """_OST: the guest says why not."""
        name = self._name_of(dimm)
        if name is not None:
            self._life.events(refused(name, not was_leaving, status))

    # What there is now, for snapshots

    def devices(self) -> dict[str, str]:
        """What is where, by name."""
        slots = self.slots
        if self._devices is None:
            self._devices = {} if slots is None else {name: str(slots.place_of(name)) for name in self._board.devices}
        return self._devices

    def config(self, config: MachineConfig) -> MachineConfig:
        """*config* as it would have to be for a machine with the devices of now. Raises UserError."""
        if not self._changed or self.slots is None:
            return config
        made = [name for name in self._board.devices if name not in self.slots.specs | self.slots.dimms]
        if made:
            raise UserError(
                f"a machine in which devices have come or gone is saved by what they are asked for by, and device "
                f"{made[0]} was made in Python: unplug it first"
            )
        specs = tuple(self.slots.place_of(name) for name in self._board.devices)
        return replace(config, devices=specs, root_ports=0, rng=False)
