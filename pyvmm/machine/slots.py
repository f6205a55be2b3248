"""What the user plugs into PCI bus 0: root ports, devices from files of the user's own, an entropy source."""

from __future__ import annotations

from pyvmm.board import layout
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine.registry import blaming, device_port, load_device, parse_device
from pyvmm.pci.bus import PciBus
from pyvmm.pci.device import PciDevice
from pyvmm.pci.root_port import RootPort
from pyvmm.trace import Channel
from pyvmm.virtio.pci import VirtioPci
from pyvmm.virtio.rng import VirtioRng


def plug_in(config: MachineConfig, root: PciBus, trace: Channel) -> None:
    """Put what *config* says on *root*, into slots that are free; UserError for what the user got wrong."""
    ports = [RootPort(number) for number in range(config.root_ports)]
    for number, port in enumerate(ports):
        root.add(port, layout.ROOT_PORT_SLOT + number)
    for option in config.devices:
        what = f"--device {option}"
        device, behind = load_device(option), device_port(option)
        if behind is None:
            _add(option, device, root, _free_slot(what, root))
        elif 0 <= behind < len(ports) and not ports[behind].child.functions:
            _add(option, device, ports[behind].child, 0)
        else:
            raise UserError(f"{what}: root port {behind} does not exist or is taken: see --root-ports")
    if config.rng:
        root.add(VirtioPci(VirtioRng(trace=trace)), _free_slot("--rng", root))


def _free_slot(what: str, root: PciBus) -> int:
    try:
        return root.free_slot()
    except ValueError as error:
        raise UserError(f"{what}: {error}: leave a --device away, or put one behind a root port") from None


def _add(option: str, device: PciDevice, bus: PciBus, slot: int) -> None:
    with blaming(f"--device {option}", parse_device(option)[0]):  # attached() is the user's own code
        bus.add(device, slot)
