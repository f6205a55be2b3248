"""The PCI Express capability, as endpoints and root ports have it (PCI Express Base Specification 3.0, section 7.8)."""

from __future__ import annotations

from typing import Final

from pyvmm.pci.config_space import ConfigSpace
from pyvmm.pci.regs import (
    PCI_CAP_ID_EXP,
    PCI_EXP_DEVCAP_RBER,
    PCI_EXP_FLAGS_SLOT,
    PCI_EXP_LNKCAP_DLLLARC,
    PCI_EXP_LNKCAP_SLS_2_5GB,
    PCI_EXP_LNKSTA_CLS_2_5GB,
    PCI_EXP_LNKSTA_DLLLA,
    PCI_EXP_LNKSTA_NLW_X1,
    PCI_EXP_SLTCAP_HPC,
    PCI_EXP_SLTCAP_HPS,
    PCI_EXP_SLTCAP_NCCS,
    PCI_EXP_SLTCAP_PSN,
    PCI_EXP_SLTCTL_DLLSCE,
    PCI_EXP_SLTCTL_HPIE,
    PCI_EXP_SLTCTL_PDCE,
    PCI_EXP_TYPE_ROOT_PORT,
)

SLOT_CONTROL: Final = PCI_EXP_SLTCTL_PDCE | PCI_EXP_SLTCTL_HPIE | PCI_EXP_SLTCTL_DLLSCE
"""What can be turned on of a slot: presence and link events, and the interrupt of both."""


def add_express(config: ConfigSpace, kind: int, port: int = 0, slot: int | None = None) -> int:
    """Add a capability of PCI_EXP_TYPE_* *kind*, version 2, with the link up at 2.5 GT/s and one lane; its offset.

    A root port has a slot of physical number *slot*, or none. What is in the slot may come and go at any time: without
    a button, a latch, an indicator or a power controller for a driver to wait for, and its commands are done at once.
    """
    root = kind == PCI_EXP_TYPE_ROOT_PORT
    link = PCI_EXP_LNKCAP_SLS_2_5GB | 1 << 4 | (PCI_EXP_LNKCAP_DLLLARC | port << 24 if root else 0)
    state = PCI_EXP_LNKSTA_CLS_2_5GB | PCI_EXP_LNKSTA_NLW_X1 | (PCI_EXP_LNKSTA_DLLLA if root else 0)
    hot_plug = PCI_EXP_SLTCAP_HPC | PCI_EXP_SLTCAP_HPS | PCI_EXP_SLTCAP_NCCS if slot is not None else 0
    hot_plug |= (slot or 0) << 19 & PCI_EXP_SLTCAP_PSN
    registers = (
        (2 | kind << 4 | (PCI_EXP_FLAGS_SLOT if slot is not None else 0), 2, 0),  # capabilities: version 2
        (PCI_EXP_DEVCAP_RBER, 4, 0),  # device capabilities: 128 bytes of payload, role-based error reporting
        (0, 2, 0x78FF),  # device control
        (0, 2, 0),  # device status
        (link, 4, 0),
        (0, 2, 0x00CB),  # link control
        (state, 2, 0),
        (hot_plug, 4, 0),  # slot capabilities
        (0, 2, SLOT_CONTROL if slot is not None else 0),
        (0, 2, 0),  # slot status
        (0, 2, 0x001F if root else 0),  # root control
        (0, 2, 0),
        (0, 4, 0),  # root status
        (0, 4, 0),  # device capabilities 2
        (0, 2, 0),
        (0, 2, 0),
        (2, 4, 0),  # link capabilities 2: 2.5 GT/s
        (1, 2, 0x000F),  # link control 2: target speed
        (0, 2, 0),
        (0, 4, 0),  # slot capabilities 2
        (0, 2, 0),
        (0, 2, 0),
    )
    body = b"".join(value.to_bytes(size, "little") for value, size, _ in registers)
    writable = b"".join(mask.to_bytes(size, "little") for _, size, mask in registers)
    return config.add_capability(PCI_CAP_ID_EXP, body, writable)
