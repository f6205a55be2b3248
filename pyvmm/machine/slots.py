"""What the user plugs in: root ports, an entropy source and other devices on PCI bus 0, devices of the board."""

from __future__ import annotations

from pyvmm.board import layout
from pyvmm.board.irqchip import isa_lines
from pyvmm.board.pc import Pc
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine.loading import blaming
from pyvmm.machine.registry import BoardDevice, Services, device_port, make_device, parse_device
from pyvmm.pci.bus import PciBus
from pyvmm.pci.device import PciDevice
from pyvmm.pci.root_port import RootPort
from pyvmm.trace import Channel
from pyvmm.virtio.pci import VirtioPci
from pyvmm.virtio.rng import VirtioRng


def plug_in(config: MachineConfig, board: Pc, trace: Channel) -> None:
    """Put what *config* says into slots of PCI bus 0 that are free, or elsewhere on *board*; UserError for what the
    user got wrong."""
    services: Services = {"lines": lambda: isa_lines(board.irqchip), "flush_page": lambda: board.ram.flush_page}
    root = board.pci.root
    ports = [RootPort(number) for number in range(config.root_ports)]
    for number, port in enumerate(ports):
        root.add(port, layout.ROOT_PORT_SLOT + number)
    for option in config.devices:
        what = f"device {option}"
        device, behind = make_device(option, services), device_port(option)
        if not isinstance(device, PciDevice):
            if behind is not None:
                raise UserError(f"{what}: no PCI device: leave port away")
            _add_to_board(option, device, board)
        elif behind is None:
            _add(option, device, root, _free_slot(what, root))
        elif 0 <= behind < len(ports) and not ports[behind].child.functions:
            _add(option, device, ports[behind].child, 0)
        else:
            raise UserError(f"{what}: root port {behind} does not exist or is taken")
    if config.rng:
        root.add(VirtioPci(VirtioRng(trace=trace)), _free_slot("the entropy source", root))


def _add_to_board(option: str, device: BoardDevice, board: Pc) -> None:
    console = (layout.DEBUGCON, 1)
    in_the_way = any(start <= layout.DEBUGCON < start + length for start, length, _ in device.ports)
    if in_the_way and console in board.parts["debugcon"].ports:
        board.parts.give_up("debugcon", *console)  # as QEMU's would
    try:
        board.parts.add(parse_device(option)[1], device, ports=device.ports, memory=device.memory)
    except ValueError as error:
        raise UserError(f"device {option}: {error}: leave it away, or what is there") from None


def _free_slot(what: str, root: PciBus) -> int:
    try:
        return root.free_slot()
    except ValueError as error:
        raise UserError(f"{what}: {error}: leave a device away, or put one behind a root port") from None


def _add(option: str, device: PciDevice, bus: PciBus, slot: int) -> None:
    file = parse_device(option)[0]
    if file is None:
        bus.add(device, slot)
        return
    with blaming(f"device {option}", file):  # attached() is the user's own code
        bus.add(device, slot)
