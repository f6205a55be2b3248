"""The host bridge at 00:00.0: Intel Q35 MCH, 8086:29C0.

It has no BAR and no interrupt; guests look at its ID to know the chipset. Q35 and not 440FX, because the 82441FX knows
no PCI Express: Linux applies its PCI quirks to 8086:1237 (quirk_natoma) and none to 8086:29C0, and firmware that
identifies the machine by this ID (SeaBIOS, edk2) looks for ECAM only on Q35. Linux does not take ECAM from this ID (its
probes in arch/x86/pci/mmconfig-shared.c do not list it): it takes it from the MCFG table and believes that once a
PNP0C02 device in the DSDT, or the E820 map, reserves the range.

PCIEXBAR  0x60  64 bits  base of ECAM, length in bits 2:1 (0: 256 MiB, 1: 128 MiB, 2: 64 MiB), enable in bit 0
          (Intel 3 Series Express Chipset data sheet, section 5.1.16). Read-only here: ECAM stays where it is.
"""

from __future__ import annotations

from typing import Final

from pyvmm.pci.device import PciDevice
from pyvmm.pci.regs import PCI_CLASS_BRIDGE_HOST, PCI_VENDOR_ID_INTEL

PCI_DEVICE_ID_INTEL_Q35_HB: Final = 0x29C0
PCIEXBAR: Final = 0x60
PCIEXBAR_ENABLE: Final = 0x1
PCIEXBAR_LENGTHS: Final = {256: 0, 128: 1, 64: 2}
"""Bits 2:1 by the number of buses."""


class HostBridge(PciDevice):
    """00:00.0. *ecam_base* is where the machine has mapped ECAM, None if it has not; *ecam_buses* 64, 128 or 256."""

    vendor_id = PCI_VENDOR_ID_INTEL
    device_id = PCI_DEVICE_ID_INTEL_Q35_HB
    class_code = PCI_CLASS_BRIDGE_HOST
    STATE = ()

    def __init__(self, ecam_base: int | None = None, ecam_buses: int = 256) -> None:
        super().__init__()
        value = 0
        if ecam_base is not None:
            value = ecam_base | PCIEXBAR_LENGTHS[ecam_buses] << 1 | PCIEXBAR_ENABLE
        self.config.define(PCIEXBAR, 8, value)
