"""Which writes to configuration space ask for a function level reset: by the PCI Express capability, or by that of
Advanced Features, in a function that says there that it can.

PCI Express Base Specification 3.0, section 6.6.2; PCI-SIG ECN "Advanced Capabilities for Conventional PCI".
"""

from __future__ import annotations

from pyvmm.pci.config_space import ConfigSpace
from pyvmm.pci.regs import (
    PCI_AF_CAP,
    PCI_AF_CAP_FLR,
    PCI_AF_CTRL,
    PCI_AF_CTRL_FLR,
    PCI_CAP_ID_AF,
    PCI_CAP_ID_EXP,
    PCI_EXP_DEVCAP,
    PCI_EXP_DEVCAP_FLR,
    PCI_EXP_DEVCTL,
    PCI_EXP_DEVCTL_BCR_FLR,
)


class FunctionLevelReset:
    """Of the function that has *config*."""

    def __init__(self, config: ConfigSpace) -> None:
        self._config = config
        self._express = config.find_capability(PCI_CAP_ID_EXP)
        self._af = config.find_capability(PCI_CAP_ID_AF)

    def is_asked_by(self, offset: int, size: int, value: int) -> bool:
        """Whether a guest asks for it that writes *value*."""

        def has(register: int, bit: int) -> bool:
            at = register - offset
            return 0 <= at < size and bool(value >> 8 * at & bit)

        config = self._config
        if self._af and has(self._af + PCI_AF_CTRL, PCI_AF_CTRL_FLR):
            return bool(config.read(self._af + PCI_AF_CAP, 1) & PCI_AF_CAP_FLR)
        if self._express and has(self._express + PCI_EXP_DEVCTL + 1, PCI_EXP_DEVCTL_BCR_FLR >> 8):
            return bool(config.read(self._express + PCI_EXP_DEVCAP, 4) & PCI_EXP_DEVCAP_FLR)
        return False
