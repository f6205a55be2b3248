"""A function in the place of another, of newer code, while its driver goes on: it must look the same to a driver."""

from __future__ import annotations

from typing import Final

from pyvmm import state
from pyvmm.pci.bus import PciBus
from pyvmm.pci.config_space import ConfigSpace
from pyvmm.pci.device import PciDevice
from pyvmm.pci.regs import (
    PCI_BASE_ADDRESS_0,
    PCI_CLASS_PROG,
    PCI_DEVICE_ID,
    PCI_HEADER_TYPE,
    PCI_INTERRUPT_PIN,
    PCI_REVISION_ID,
    PCI_STD_HEADER_SIZEOF,
    PCI_STD_NUM_BARS,
    PCI_SUBSYSTEM_ID,
    PCI_SUBSYSTEM_VENDOR_ID,
    PCI_VENDOR_ID,
)

_REGISTERS: Final = {
    PCI_VENDOR_ID: "vendor_id",
    PCI_DEVICE_ID: "device_id",
    PCI_REVISION_ID: "revision_id",
    PCI_CLASS_PROG: "class_code",
    PCI_SUBSYSTEM_VENDOR_ID: "subsystem_vendor_id",
    PCI_SUBSYSTEM_ID: "subsystem_id",
    PCI_INTERRUPT_PIN: "interrupt_pin",
}


def difference(old: PciDevice, new: PciDevice) -> str | None:
    """What a driver of *old*, which is plugged in, would find changed in *new*, which is not yet; None for nothing."""
    bars = [index for index in range(PCI_STD_NUM_BARS) if _bar(old, index) != _bar(new, index)]
    if bars:
        return f"BAR {bars[0]} is {_bar(new, bars[0])}, it was {_bar(old, bars[0])}"
    was, now = old.contract(), new.contract()
    for name in [*was, *now]:
        if was.get(name) != now.get(name):
            return f"{name} is {now.get(name)}, it was {was.get(name)}"
    if old.config.size != new.config.size:
        return f"its configuration space has {new.config.size} bytes, it had {old.config.size}"
    for offset, (before, after) in enumerate(zip(old.config.shape(), new.config.shape(), strict=True)):
        if before != after and offset != PCI_HEADER_TYPE:  # whose bit for more functions is the bus's
            return f"{_register(old.config, offset)} differs"
    return None


def _bar(device: PciDevice, index: int) -> str:
    bar = device.bars.get(index)
    if bar is None:
        return "none"
    kind = "I/O" if bar.io else "64-bit memory" if bar.bits64 else "memory"
    return f"{bar.size:#x} bytes of {'prefetchable ' if bar.prefetchable else ''}{kind}"


def _register(config: ConfigSpace, offset: int) -> str:
    if offset < PCI_STD_HEADER_SIZEOF:
        start = max((start for start in _REGISTERS if start <= offset), default=0)
        known = offset < PCI_BASE_ADDRESS_0 or offset >= PCI_SUBSYSTEM_VENDOR_ID
        return _REGISTERS[start] if known else f"configuration space at {offset:#04x}"
    starts = [start for start in config.capabilities() if start <= offset]
    return f"capability {config.data[max(starts)]:#04x}" if starts else f"configuration space at {offset:#04x}"


def replace(bus: PciBus, old: PciDevice, new: PciDevice) -> list[str]:
    """Put *new* where *old* is on *bus*, with its configuration space, messages, rings and what both name in STATE.

    The names of what did not go over, of either, are returned. Raises ValueError with what a driver would find changed;
    then, and where anything of *new* raises, *old* is as it was. Only while no vCPU runs.
    """
    bus.complete(new)
    differs = difference(old, new)
    if differs is not None:
        raise ValueError(differs)
    saved = state.save(old)

    def put(there: PciDevice, instead: PciDevice) -> list[str]:
        bus.exchange(there, instead)
        left = state.adopt(instead, saved, but=("_intx_line",))
        instead.set_intx(instead.intx_level)  # which was loaded while nobody listened
        return left

    try:
        return put(old, new)
    except BaseException:
        put(new, old)
        raise
