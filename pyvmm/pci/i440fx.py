"""The host bridge at 00:00.0 of a machine that SeaBIOS starts: Intel 82441FX PMC, the north bridge of the 440FX.

SeaBIOS knows two host bridges of QEMU's machines. On Q35 (host_bridge.py) it puts ECAM at 0xB0000000, where this board
may have RAM, and wants an ICH9 beside it; here it leaves ECAM alone and needs nothing else.

PAM0-PAM6  0x59-0x5F  what is at 0xC0000-0xFFFFF: each half of a register, but for the lower one of PAM0, is a piece of
                      16 KiB (0xF0000: 64 KiB), with bit 0 reads and bit 1 writes going to RAM, else to the ROM
                      (82441FX data sheet 290549, section 3.2.16)

What is left away: this board has RAM there whatever PAM says, with a copy of the firmware in it after a reset
(board/rom.py), so that a guest that makes it read-only still can write. The bits are kept and read back.
"""

from __future__ import annotations

from typing import Final

from pyvmm.pci.device import PciDevice
from pyvmm.pci.regs import PCI_CLASS_BRIDGE_HOST, PCI_VENDOR_ID_INTEL

PCI_DEVICE_ID_INTEL_82441: Final = 0x1237
I440FX_PAM0: Final = 0x59
PAM_REGISTERS: Final = 7
PAM_BITS: Final = 0x33
PAM0_BITS: Final = 0x30
"""Its lower half is reserved."""
QEMU_SUBSYSTEM: Final = (0x1AF4, 0x1100)
"""By which SeaBIOS knows a machine of QEMU's kind, with fw_cfg."""


class I440fx(PciDevice):
    """00:00.0, with PAM and without an effect of it."""

    vendor_id = PCI_VENDOR_ID_INTEL
    device_id = PCI_DEVICE_ID_INTEL_82441
    revision_id = 2
    class_code = PCI_CLASS_BRIDGE_HOST
    subsystem_vendor_id, subsystem_id = QEMU_SUBSYSTEM
    STATE = ()

    def __init__(self) -> None:
        super().__init__()
        for number in range(PAM_REGISTERS):
            self.config.define(I440FX_PAM0 + number, 1, 0, PAM_BITS if number else PAM0_BITS)
