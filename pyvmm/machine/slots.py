"""What the user plugs in: PCI devices and root ports on bus 0 or behind a port, devices of the board."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvmm.backends.disks import Disks
from pyvmm.backends.networks import HostNetworks
from pyvmm.backends.sockets import Sockets
from pyvmm.backends.wire import Networks
from pyvmm.board import layout
from pyvmm.board.fake_vm import FakeVm
from pyvmm.board.irqchip import isa_lines
from pyvmm.board.pc import Pc
from pyvmm.clock import Clock, GuestClock
from pyvmm.config import MAX_ROOT_PORTS, MachineConfig
from pyvmm.device_spec import DeviceSpec
from pyvmm.devices.pc_testdev import FlushPage, IsaLines
from pyvmm.errors import UserError
from pyvmm.loop import Loop
from pyvmm.machine.loading import blaming
from pyvmm.machine.registry import BoardDevice, Services, as_function, inner, make
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
        self.specs: dict[str, DeviceSpec] = {}
        """What devices were made from, by name, but for those that somebody else has made."""

    def plug(self, wanted: DeviceSpec | object) -> object:
        """A device by its spec, or one that somebody has made, into a free slot of bus 0; it is returned."""
        spec = wanted if isinstance(wanted, DeviceSpec) else DeviceSpec(type(wanted).__name__)
        name = self._name(spec)
        device = make(self._numbered(spec), self._services(name)) if wanted is spec else as_function(wanted)
        if isinstance(device, PciDevice):
            self._add(spec, device, *self._place(spec, device), self._board.trace.channel(name))
        else:
            from pyvmm.pci.ata_disk import AtaDisk  # few want a device that is no PCI function

            if spec.port is not None or spec.slot is not None:
                raise UserError(f"device {spec}: no PCI device: leave port and slot away")
            if isinstance(device, AtaDisk):
                self._add_ata_disk(spec, device)
            else:
                self._add_to_board(spec, device)
        plugged = inner(device)
        self._board.devices[name] = plugged
        if wanted is spec:
            self.specs[name] = spec
        self._tell_router(plugged)
        return plugged

    def make_again(self, name: str) -> object:
        """Device *name* by its spec once more."""
        return make(self.specs[name], self._services(name))

    def _numbered(self, spec: DeviceSpec) -> DeviceSpec:
        """A root port knows its number."""
        if spec.name != ROOT_PORT:
            return spec
        if len(self._ports) == MAX_ROOT_PORTS:
            raise UserError(f"device {spec}: there are at most {MAX_ROOT_PORTS} root ports: leave one away")
        return DeviceSpec(ROOT_PORT, (("port_number", str(len(self._ports))),), spec.id, spec.port, spec.slot)

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
            return spec.id
        name, number = spec.kind, 1
        while name in there:
            number += 1
            name = f"{spec.kind}-{number}"
        return name

    def _place(self, spec: DeviceSpec, device: PciDevice) -> tuple[PciBus, int]:
        root = self._board.pci.root
        if spec.port is not None and isinstance(device, RootPort):
            raise UserError(f"device {spec}: a root port is on bus 0: leave port away")
        if spec.port is not None:
            if not (0 <= spec.port < len(self._ports)) or self._ports[spec.port].child.functions:
                raise UserError(f"device {spec}: root port {spec.port} does not exist or is taken")
            return self._ports[spec.port].child, spec.slot or 0
        if spec.slot is not None:
            return root, spec.slot
        if isinstance(device, RootPort):
            return root, layout.ROOT_PORT_SLOT + len(self._ports)
        try:
            return root, root.free_slot()
        except ValueError as error:
            raise UserError(f"device {spec}: {error}: leave a device away, or put one behind a root port") from None

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


def plug_in(config: MachineConfig, board: Pc) -> Slots:
    """All that *config* says. Raises UserError."""
    slots = Slots(board)
    for wanted in specs(config):
        slots.plug(wanted)
    return slots
