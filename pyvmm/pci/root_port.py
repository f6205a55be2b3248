"""A PCI Express root port: a bridge on the root bus with one slot behind it.

PCI Express Base Specification 3.0, section 7.8.

ID: Intel 8086:29C1, the PCI Express port of the same Q35 chipset as the host bridge; Linux has no quirk for it.
There is no hot-plug: the link is up while a function is behind the port, and nobody is told when that changes.
"""

from __future__ import annotations

from typing import Final

from pyvmm.pci.bridge import PciBridge
from pyvmm.pci.express import add_express
from pyvmm.pci.regs import (
    PCI_CFG_SPACE_EXP_SIZE,
    PCI_EXP_LNKSTA,
    PCI_EXP_LNKSTA_CLS_2_5GB,
    PCI_EXP_LNKSTA_DLLLA,
    PCI_EXP_LNKSTA_NLW_X1,
    PCI_EXP_TYPE_ROOT_PORT,
    PCI_VENDOR_ID_INTEL,
)

PCI_DEVICE_ID_INTEL_Q35_PEG: Final = 0x29C1


class RootPort(PciBridge):
    """A PCI Express root port, x1 at 2.5 GT/s, with one MSI vector; *port_number* is that in its link capabilities."""

    vendor_id = PCI_VENDOR_ID_INTEL
    device_id = PCI_DEVICE_ID_INTEL_Q35_PEG
    interrupt_pin = 1
    config_size = PCI_CFG_SPACE_EXP_SIZE
    STATE = ()

    def __init__(self, port_number: int = 0) -> None:
        super().__init__()
        self.add_msi()
        self._express = add_express(self.config, PCI_EXP_TYPE_ROOT_PORT, port_number)
        self._set_link(False)

    def child_changed(self) -> None:
        self._set_link(bool(self.child.functions))

    def _set_link(self, up: bool) -> None:
        state = PCI_EXP_LNKSTA_CLS_2_5GB | (PCI_EXP_LNKSTA_NLW_X1 | PCI_EXP_LNKSTA_DLLLA if up else 0)
        self.config.set(self._express + PCI_EXP_LNKSTA, 2, state)
        self.config.freeze_byte(self._express + PCI_EXP_LNKSTA)
        self.config.freeze_byte(self._express + PCI_EXP_LNKSTA + 1)
