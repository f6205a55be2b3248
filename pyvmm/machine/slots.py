"""What the user plugs in: PCI devices and root ports on bus 0 or behind a port, devices of the board."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyvmm.backends.disks import Disks
from pyvmm.backends.networks import HostNetworks
from pyvmm.backends.sockets import Sockets
from pyvmm.backends.wire import Networks
from pyvmm.board import layout
from pyvmm.board.dimm import Dimm
from pyvmm.board.fake_vm import FakeVm
from pyvmm.board.irqchip import isa_lines
from pyvmm.board.pc import Pc
from pyvmm.clock import Clock, GuestClock
from pyvmm.config import MAX_ROOT_PORTS, MachineConfig
from pyvmm.device_spec import DeviceSpec
from pyvmm.devices.pc_testdev import FlushPage, IsaLines
from pyvmm.errors import UserError
from pyvmm.loop import Loop
from pyvmm.machine.cpus import name as cpu_name
from pyvmm.machine.loading import blaming
from pyvmm.machine.registry import BoardDevice, Services, as_function, find, inner, make
from pyvmm.pci.bridge import PciBridge
from pyvmm.pci.bus import PciBus
from pyvmm.pci.device import PciDevice
from pyvmm.pci.root_port import RootPort
from pyvmm.trace import Channel
from pyvmm.vfio.host import Passthrough
from pyvmm.virtio.input import VirtioKeyboard, VirtioMouse, VirtioTablet
from pyvmm.virtio.vhost import RingServers

if TYPE_CHECKING:
    from pyvmm.pci.ata_disk import AtaDisk

ROOT_PORT = "root-port"


def specs(config: MachineConfig) -> list[DeviceSpec | object]:
    """All that *config* asks for, root ports first: --root-ports and --rng are other words for devices."""
    wanted: list[DeviceSpec | object] = [DeviceSpec(ROOT_PORT)] * config.root_ports
    for device in config.devices:
        wanted.append(DeviceSpec.parse(device) if isinstance(device, str) else device)
    if config.rng:
        wanted.append(DeviceSpec("virtio-rng"))
    return sorted(wanted, key=lambda spec: not (isinstance(spec, DeviceSpec) and spec.name == ROOT_PORT))


class Slots:
    """Puts devices into *board*, each where its spec says. Raises UserError."""

    def __init__(self, board: Pc) -> None:
        self._board = board
        self._ports: list[RootPort] = []
        self.functions: dict[str, PciDevice] = {}
        """The PCI functions that may be unplugged again, by the names of their devices."""
        self.dimms: dict[str, Dimm] = {}
        """The memory that may."""
        self.specs: dict[str, DeviceSpec] = {}
        """What devices were made from, by name, but for those that somebody else has made."""

    def plug(self, wanted: DeviceSpec | object, *, running: bool = False) -> object:
        """A device by its spec, or one that somebody has made, into a free slot of bus 0; it is returned. In a machine
        that is *running* already only a PCI function or memory can come, and to where it can go again."""
        spec = wanted if isinstance(wanted, DeviceSpec) else DeviceSpec(type(wanted).__name__)
        there = name_of(self._board, wanted)
        if there is not None:
            raise UserError(f"device {spec}: it is in the machine already, as {there}: make another")
        if running and not _may_come(find(wanted) if isinstance(wanted, DeviceSpec) else type(wanted)):
            raise UserError(f"device {spec}: it comes with the machine, and cannot be plugged in later")
        name = self._name(spec)
        device = as_function(wanted) if wanted is not spec else self._make(spec, name)
        try:
            self._put(spec, name, device, running)
        except BaseException:
            self._discard(device)
            raise
        plugged = inner(device)
        self._board.devices[name] = plugged
        if wanted is spec:
            self.specs[name] = spec
        if isinstance(device, PciDevice) and not isinstance(device, RootPort):
            self.functions[name] = device
        elif isinstance(device, Dimm):
            self.dimms[name] = device
        self._tell_router(plugged)
        return plugged

    def _put(
        self, spec: DeviceSpec, name: str, device: PciDevice | BoardDevice | AtaDisk | Dimm, running: bool
    ) -> None:
        if isinstance(device, PciDevice):
            self._add(spec, device, *self._place(spec, device, running), self._board.trace.channel(name))
            return
        if isinstance(device, Dimm):
            self._add_memory(spec, device)
            return
        from pyvmm.pci.ata_disk import AtaDisk  # few want a device that is no PCI function

        if spec.port is not None or spec.slot is not None:
            raise UserError(f"device {spec}: no PCI device: leave port and slot away")
        if isinstance(device, AtaDisk):
            self._add_ata_disk(spec, device)
        else:
            self._add_to_board(spec, device)

    def _discard(self, device: PciDevice | BoardDevice | AtaDisk | Dimm) -> None:
        """What could not be plugged in gives back what it has."""
        if isinstance(device, PciDevice):
            with suppress(Exception):  # the user's own code may raise again; what it raised first is told
                bus = self._board.pci.bus_of(device)
                if bus is not None:
                    bus.remove(device)
            with suppress(Exception):
                device.close()

    def unplug(self, name: str) -> None:
        """Take device *name*, which is among `functions` or `dimms`, out, and let it give back what it has."""
        if name in self.dimms:
            self.specs.pop(name, None)
            del self._board.devices[name]
            assert self._board.banks is not None
            self._board.banks.remove(self.dimms.pop(name))
            return
        board, function = self._board, self.functions[name]
        try:
            board.hotplug.remove(function)
        finally:
            board.router.remove(board.devices[name])
            board.parts.newer[:] = [part for part in board.parts.newer if part is not function]
            try:
                function.close()
            finally:
                del self.functions[name], board.devices[name]
                self.specs.pop(name, None)

    def replaced(self, name: str, new: PciDevice) -> None:
        """*new* is in the place of device *name*."""
        self._board.devices[name] = inner(new)
        self.functions[name] = new

    def place_of(self, name: str) -> DeviceSpec:
        """What device *name* would be asked for by, to be where it is and to be called what it is."""
        board = self._board
        spec = self.specs.get(name) or DeviceSpec(type(board.devices[name]).__name__)
        if name in self.dimms:
            return self.dimms[name].spec(name)
        for function in board.pci.all_functions():
            if inner(function) is board.devices[name]:
                port = board.hotplug.port_of(function)
                if port is not None:
                    return replace(spec, id=name, port=self._ports.index(port), slot=None)
                slot = next(devfn >> 3 for devfn, other in board.pci.root.functions.items() if other is function)
                return replace(spec, id=name, port=None, slot=slot)
        return replace(spec, id=name)

    def users(self, gpa: int, size: int) -> list[str]:
        """The devices that would go on with what they keep in [gpa, gpa+size) of guest RAM."""
        names = {id(device): name for name, device in self._board.devices.items()}
        return [
            names.get(id(inner(function)), "a device of the machine")
            for function in self._board.pci.all_functions()
            if function.uses(gpa, size)
        ]

    def make_again(self, name: str) -> object:
        """Device *name* by its spec once more."""
        return make(self.specs[name], self._services(name))

    def _make(self, spec: DeviceSpec, name: str) -> PciDevice | BoardDevice | AtaDisk | Dimm:
        if spec.name != ROOT_PORT:
            return make(spec, self._services(name))
        if len(self._ports) == MAX_ROOT_PORTS:
            raise UserError(f"device {spec}: there are at most {MAX_ROOT_PORTS} root ports: leave one away")
        if spec.arguments:
            raise UserError(f"device {spec}: root-port has no key {spec.arguments[0][0]}: it has none")
        return RootPort(len(self._ports))

    def _services(self, name: str) -> Services:
        board = self._board
        return {
            Channel: lambda: board.trace.channel(name),
            Clock: lambda: board.clock,
            Disks: self._disks,
            FlushPage: lambda: board.ram.flush_page,
            IsaLines: lambda: isa_lines(board.irqchip),
            Loop: lambda: board.loop,
            Networks: self._networks,
            Passthrough: lambda: board.passthrough,
            Sockets: lambda: Sockets(board.loop, look_only=isinstance(board.vm, FakeVm)),
            RingServers: lambda: board.vhost,
        }

    def _disks(self) -> Disks:
        """Those of this board, which rest and end with it."""
        board = self._board
        if board.disks is None:
            loop, look_only = board.loop, isinstance(board.vm, FakeVm)
            board.disks = Disks(loop.post, board.io_error, look_only=look_only, run_here=loop.run_here)
        return board.disks

    def _networks(self) -> HostNetworks:
        board = self._board
        if board.networks is None:
            clock = board.clock
            stands = (lambda: clock.stands) if isinstance(clock, GuestClock) else (lambda: False)
            look_only = isinstance(board.vm, FakeVm)
            board.networks = HostNetworks(board.loop, clock, stands, board.io_error, look_only)
        return board.networks

    def _name(self, spec: DeviceSpec) -> str:
        """What the machine calls it: its id, or its kind and a number where there are several."""
        there = self._board.devices
        if spec.id is not None:
            if spec.id in there:
                raise UserError(f"device {spec}: there is a device {spec.id} already: give it another id")
            if self._board.config.max_cpus is not None and spec.id in map(
                cpu_name, range(self._board.sockets.possible)
            ):
                raise UserError(f"device {spec}: {spec.id} is what a CPU is called: give it another id")
            return spec.id
        name, number = spec.kind, 1
        while name in there:
            number += 1
            name = f"{spec.kind}-{number}"
        return name

    def _place(self, spec: DeviceSpec, device: PciDevice, running: bool) -> tuple[PciBus, int]:
        root = self._board.pci.root
        if spec.port is not None and isinstance(device, RootPort):
            raise UserError(f"device {spec}: a root port is on bus 0: leave port away")
        if spec.port is not None:
            if not 0 <= spec.port < len(self._ports):
                there = f"{len(self._ports)}, from 0 up" if self._ports else "none"
                raise UserError(
                    f"device {spec}: there is no root port {spec.port} (there are {there}): "
                    "say how many root_ports, or leave port away"
                )
            child = self._ports[spec.port].child
            self._check_free(spec, f"root port {spec.port}", child.functions.values(), "port")
            return child, spec.slot or 0
        if spec.slot is not None:
            in_slot = [function for devfn, function in root.functions.items() if devfn >> 3 == spec.slot]
            self._check_free(spec, f"slot {spec.slot}", in_slot, "slot")
        if running:
            return self._place_later(spec)
        if spec.slot is not None:
            return root, spec.slot
        if isinstance(device, RootPort):
            return root, layout.ROOT_PORT_SLOT + len(self._ports)
        try:
            return root, root.free_slot()
        except ValueError as error:
            raise UserError(f"device {spec}: {error}: leave a device away, or put one behind a root port") from None

    def _check_free(self, spec: DeviceSpec, place: str, functions: Iterable[PciDevice], key: str) -> None:
        """Where *functions* are, there is none. *key* of *spec* has asked for the place."""
        for function in functions:
            who = name_of(self._board, inner(function)) or type(inner(function)).__name__
            raise UserError(f"device {spec}: {place} is taken by {who}: leave {key} away")

    def _place_later(self, spec: DeviceSpec) -> tuple[PciBus, int]:
        root, slots = self._board.pci.root, self._board.hotplug.slots
        taken = {devfn >> 3 for devfn in root.functions}
        if spec.slot is not None:
            if spec.slot not in slots:
                there = ", ".join(map(str, slots))
                raise UserError(f"device {spec}: nothing can be plugged into slot {spec.slot} later, but into {there}")
            return root, self._check_found(spec, spec.slot)
        for slot in slots:
            if slot not in taken:
                return root, self._check_found(spec, slot)
        for port in self._ports:
            if not port.child.functions:
                return port.child, 0
        raise UserError(f"device {spec}: no slot is free: unplug a device, or start with more --root-ports")

    def _check_found(self, spec: DeviceSpec, slot: int) -> int:
        """*slot* of bus 0, where the guest will know of what comes there."""
        if not self._board.hotplug.finds(slot):
            raise UserError(
                f"device {spec}: its guest has found slot {slot} empty and has not turned on ACPI (SCI_EN), which "
                "would tell it: wait until it has, or say port=0 where there are --root-ports"
            )
        return slot

    def _add(self, spec: DeviceSpec, device: PciDevice, bus: PciBus, slot: int, trace: Channel) -> None:
        if isinstance(device, RootPort):
            self._ports.append(device)
        try:
            if spec.file is None:
                bus.add(device, slot, trace=trace)
            else:
                with blaming(f"device {spec}", spec.file):  # attached() is the user's own code
                    bus.add(device, slot, trace=trace)
        except ValueError as error:
            raise UserError(f"device {spec}: {error}") from None

    def _add_ata_disk(self, spec: DeviceSpec, disk: AtaDisk) -> None:
        """On the IDE controller, which is there from the first such disk on."""
        try:
            self._board.ide.attach(disk)
        except ValueError as error:
            raise UserError(f"device {spec}: {error}") from None

    def _add_memory(self, spec: DeviceSpec, dimm: Dimm) -> None:
        if spec.port is not None:
            raise UserError(f"device {spec}: no PCI device: leave port away")
        if self._board.banks is None:
            raise UserError(f"device {spec}: there are no slots for memory: start with -m SIZE,slots=N,max=SIZE")
        try:
            self._board.banks.plug(dimm, spec.slot)
        except UserError as error:
            raise UserError(f"device {spec}: {error}") from None

    def _add_to_board(self, spec: DeviceSpec, device: BoardDevice) -> None:
        board, console = self._board, (layout.DEBUGCON, 1)
        in_the_way = any(start <= layout.DEBUGCON < start + length for start, length, _ in device.ports)
        if in_the_way and console in board.parts["debugcon"].ports:
            board.parts.give_up("debugcon", *console)  # as QEMU's would
        try:
            board.parts.add(spec.id or spec.kind, device, ports=device.ports, memory=device.memory)
        except ValueError as error:
            raise UserError(f"device {spec}: {error}: leave it away, or what is there") from None

    def _tell_router(self, device: Any) -> None:
        """Input goes to what takes it."""
        router = self._board.router
        match device:
            case VirtioKeyboard():
                router.add_virtio_keyboard(device)
            case VirtioMouse():
                router.add_virtio_mouse(device)
            case VirtioTablet():
                router.add_virtio_tablet(device)


def name_of(board: Pc, device: object) -> str | None:
    """What *board* calls *device*; None where it is not among those that were asked for."""
    return next((name for name, other in board.devices.items() if other is device), None)


def _may_come(kind: type) -> bool:
    """Whether what is made of *kind* can come and go: a PCI function, or memory."""
    from pyvmm.virtio.device import VirtioDevice

    return issubclass(kind, (PciDevice, VirtioDevice, Dimm)) and not issubclass(kind, PciBridge)


def plug_in(config: MachineConfig, board: Pc) -> Slots:
    """All that *config* says. Raises UserError."""
    slots = Slots(board)
    for wanted in specs(config):
        slots.plug(wanted)
    return slots
