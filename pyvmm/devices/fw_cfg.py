"""fw_cfg, QEMU's way to tell a guest's firmware what machine it is on; test programs ask it for the number of CPUs.

Port 0x510, 16 bits written, selects an item; each read of a byte of port 0x511 gives the next byte of it, and zero
behind its end. Items 0x20 and up are files, found by name through item 0x19:

    00 "QEMU"    01 features     03 RAM in bytes, 8     05 CPUs, 2     0F limit of APIC IDs, 2     19 file directory

Integers are little-endian, but for those of the directory. There is no DMA, and the features do not say that there is.
Source: QEMU docs/specs/fw_cfg; Linux include/uapi/linux/qemu_fw_cfg.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final

from pyvmm.bus import ALL_ONES

FW_CFG_LENGTH: Final = 2
"""Ports."""
FW_CFG_SIGNATURE: Final = 0x00
FW_CFG_ID: Final = 0x01
FW_CFG_RAM_SIZE: Final = 0x03
FW_CFG_NB_CPUS: Final = 0x05
FW_CFG_MAX_CPUS: Final = 0x0F
FW_CFG_FILE_DIR: Final = 0x19
FW_CFG_FILE_FIRST: Final = 0x20
FW_CFG_WRITE_CHANNEL: Final = 0x4000
FW_CFG_VERSION: Final = 0x01
"""Of FW_CFG_ID: the selector and the data register."""
FW_CFG_MAX_FILE_PATH: Final = 56

_FILE: Final = struct.Struct(f">I H 2x {FW_CFG_MAX_FILE_PATH}s")


class FwCfg:
    """*ram_size* is in bytes; *files* are named as QEMU names them, in at most 55 characters: etc/e820.

    There may be *cpus*; *present* gives how many there are now, which is all without it.
    """

    STATE = ("selected", "offset")

    def __init__(
        self,
        ram_size: int,
        cpus: int,
        files: Mapping[str, bytes] | None = None,
        present: Callable[[], int] | None = None,
    ) -> None:
        self._present = present or (lambda: cpus)
        self._items = {
            FW_CFG_SIGNATURE: b"QEMU",
            FW_CFG_ID: FW_CFG_VERSION.to_bytes(4, "little"),
            FW_CFG_RAM_SIZE: ram_size.to_bytes(8, "little"),
            FW_CFG_MAX_CPUS: cpus.to_bytes(2, "little"),
        }
        directory = b""
        for key, (name, data) in enumerate(sorted((files or {}).items()), FW_CFG_FILE_FIRST):
            if len(name) >= FW_CFG_MAX_FILE_PATH:
                raise ValueError(f"no name of a file in fw_cfg, too long: {name}")
            self._items[key] = data
            directory += _FILE.pack(len(data), key, name.encode("ascii"))
        self._items[FW_CFG_FILE_DIR] = struct.pack(">I", len(directory) // _FILE.size) + directory
        self.reset()

    def reset(self) -> None:
        """Back to item 0, its first byte."""
        self.selected = FW_CFG_SIGNATURE
        self.offset = 0

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return ALL_ONES[size]
        if self.selected == FW_CFG_NB_CPUS:
            data = self._present().to_bytes(2, "little")
        else:
            data = self._items.get(self.selected, b"")
        if self.offset >= len(data):
            return 0
        self.offset += 1
        return data[self.offset - 1]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and size == 2:
            self.selected = value & ~FW_CFG_WRITE_CHANNEL
            self.offset = 0
