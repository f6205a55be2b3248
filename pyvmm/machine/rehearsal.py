"""A machine put together without a KVM, to find out whether it can be: what `pyvmm acpi` does first."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from pyvmm.board import layout
from pyvmm.board.memslots import Ram, check_reach
from pyvmm.board.msi import NoMsi
from pyvmm.bus import Bus
from pyvmm.clock import FakeClock
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.irq import LevelIrq
from pyvmm.machine.guest import load_guest
from pyvmm.machine.machine import open_kvm
from pyvmm.machine.payload import load_kernel
from pyvmm.machine.slots import place_bars, plug_in
from pyvmm.memory import GuestMemory
from pyvmm.pci.host import PciHost
from pyvmm.pci.host_bridge import HostBridge
from pyvmm.trace import OFF
from pyvmm.vcpu.cpuid import DEFAULT_PHYS_BITS, phys_bits
from pyvmm.vcpu.model import CpuModel
from pyvmm.virtio.input import VirtioInput, VirtioKeyboard, VirtioMouse, VirtioTablet, virtio_input_functions


def host_phys_bits() -> int:
    """How many physical address bits a guest has on this host: what its KVM says or, where that cannot be asked, its
    processor."""
    try:
        with open_kvm() as system:
            return phys_bits(system.get_supported_cpuid())
    except UserError:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("address sizes"):
                return int(line.partition(":")[2].split()[0])
        return DEFAULT_PHYS_BITS


def rehearse(config: MachineConfig, trace_file: Path | None = None) -> int:
    """Raises the UserError that running a machine of *config* would raise, but for what this host's KVM limits; returns
    how many bits its physical addresses have."""
    config.check()
    bits = CpuModel.parse(config.cpu).address_bits(host_phys_bits())
    if trace_file is not None:
        place = trace_file if trace_file.exists() else trace_file.parent
        if trace_file.is_dir() or not os.access(place, os.W_OK):
            raise UserError(f"--trace: cannot write {trace_file}: name a file where you may write one")
    with closing(Ram(config.memory, shared=config.memory_shared, hugetlb=config.memory_hugetlb)) as ram:
        check_reach(config.memory, bits)
        _try_devices(config, ram.memory)
        load_guest(config, ram.memory) if config.kernel is None else load_kernel(config, ram.memory, bits)
    return bits


def _try_devices(config: MachineConfig, memory: GuestMemory) -> None:
    lines = [LevelIrq(lambda level: None) for _ in range(4)]
    bus, io = Bus("MMIO", 1 << 52), Bus("PIO", 1 << 16)
    host = PciHost(bus, io, memory, lines, NoMsi(), clock=FakeClock(), defer=lambda call: None)
    with closing(host):
        _add_all(config, host)


def _add_all(config: MachineConfig, host: PciHost) -> None:
    host.root.add(HostBridge(layout.ECAM_START), 0)
    if config.virtio_input != "none":
        devices: list[VirtioInput] = [VirtioKeyboard(config.virtio_input), VirtioMouse(config.virtio_input)]
        if config.tablet:
            devices.append(VirtioTablet(config.virtio_input))
        for function, device in enumerate(virtio_input_functions(devices)):
            host.root.add(device, layout.VIRTIO_INPUT_SLOT, function)
    plug_in(config, host.root, OFF)
    place_bars(host)
