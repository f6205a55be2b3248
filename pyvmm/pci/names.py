"""What people call a register of configuration space: as setpci has it, from the header's layout and the capabilities.

Nothing else looks here than whoever shows an access to a person. PCI Local Bus Specification 3.0, section 6.1; the
names are those of linux/pci_regs.h without PCI_.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from pyvmm.pci import regs
from pyvmm.pci.device import PciDevice

_COMMON: Final = {
    regs.PCI_VENDOR_ID: "VENDOR_ID",
    regs.PCI_DEVICE_ID: "DEVICE_ID",
    regs.PCI_COMMAND: "COMMAND",
    regs.PCI_STATUS: "STATUS",
    regs.PCI_REVISION_ID: "REVISION_ID",
    regs.PCI_CLASS_PROG: "CLASS_PROG",
    regs.PCI_CLASS_DEVICE: "CLASS_DEVICE",
    regs.PCI_CACHE_LINE_SIZE: "CACHE_LINE_SIZE",
    regs.PCI_LATENCY_TIMER: "LATENCY_TIMER",
    regs.PCI_HEADER_TYPE: "HEADER_TYPE",
    0x0F: "BIST",
    regs.PCI_CAPABILITY_LIST: "CAPABILITY_LIST",
    regs.PCI_INTERRUPT_LINE: "INTERRUPT_LINE",
    regs.PCI_INTERRUPT_PIN: "INTERRUPT_PIN",
}
_NORMAL: Final = {
    **_COMMON,
    **{regs.PCI_BASE_ADDRESS_0 + 4 * bar: f"BAR{bar}" for bar in range(regs.PCI_STD_NUM_BARS)},
    0x28: "CARDBUS_CIS",
    regs.PCI_SUBSYSTEM_VENDOR_ID: "SUBSYSTEM_VENDOR_ID",
    regs.PCI_SUBSYSTEM_ID: "SUBSYSTEM_ID",
    regs.PCI_ROM_ADDRESS: "ROM_ADDRESS",
    0x3E: "MIN_GNT",
    0x3F: "MAX_LAT",
}
_BRIDGE: Final = {
    **_COMMON,
    **{regs.PCI_BASE_ADDRESS_0 + 4 * bar: f"BAR{bar}" for bar in range(2)},
    regs.PCI_PRIMARY_BUS: "PRIMARY_BUS",
    regs.PCI_SECONDARY_BUS: "SECONDARY_BUS",
    regs.PCI_SUBORDINATE_BUS: "SUBORDINATE_BUS",
    0x1B: "SEC_LATENCY_TIMER",
    regs.PCI_IO_BASE: "IO_BASE",
    regs.PCI_IO_LIMIT: "IO_LIMIT",
    regs.PCI_SEC_STATUS: "SEC_STATUS",
    regs.PCI_MEMORY_BASE: "MEMORY_BASE",
    regs.PCI_MEMORY_LIMIT: "MEMORY_LIMIT",
    regs.PCI_PREF_MEMORY_BASE: "PREF_MEMORY_BASE",
    regs.PCI_PREF_MEMORY_LIMIT: "PREF_MEMORY_LIMIT",
    regs.PCI_PREF_BASE_UPPER32: "PREF_BASE_UPPER32",
    regs.PCI_PREF_LIMIT_UPPER32: "PREF_LIMIT_UPPER32",
    regs.PCI_IO_BASE_UPPER16: "IO_BASE_UPPER16",
    regs.PCI_IO_LIMIT_UPPER16: "IO_LIMIT_UPPER16",
    0x38: "ROM_ADDRESS",
    regs.PCI_BRIDGE_CONTROL: "BRIDGE_CONTROL",
}
_CAPABILITIES: Final = {
    0x01: "PM",
    regs.PCI_CAP_ID_MSI: "MSI",
    regs.PCI_CAP_ID_VNDR: "VNDR",
    regs.PCI_CAP_ID_SSVID: "SSVID",
    regs.PCI_CAP_ID_EXP: "EXP",
    regs.PCI_CAP_ID_MSIX: "MSIX",
}


def register_name(function: PciDevice | None, offset: int) -> str:
    """What is at *offset*: COMMAND, BAR2+0x1, MSI+0x4, or 0x40 where it has no name; of a function that there is not,
    what it would be in a header of type 0."""
    names = dict(_NORMAL)
    if function is not None:
        if function.header_type == regs.PCI_HEADER_TYPE_BRIDGE:
            names = dict(_BRIDGE)
        for at, cap_id in function.config.capabilities().items():
            names[at] = _CAPABILITIES.get(cap_id, f"CAP_{cap_id:02X}")
    starts = sorted(names)
    start = starts[bisect_right(starts, offset) - 1]
    if offset >= regs.PCI_CFG_SPACE_SIZE or (offset >= regs.PCI_STD_HEADER_SIZEOF > start):
        return f"{offset:#x}"
    return names[start] if start == offset else f"{names[start]}+{offset - start:#x}"
