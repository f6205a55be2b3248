"""fw_cfg, QEMU's way to tell a guest's firmware, and its kernel, what machine it is on.

    0x510  16 bits written   select an item, from its first byte
    0x511   8 bits read      the next byte of it; zero behind its end
    0x514  64 bits           where a DMA access is described, big-endian; its low half, 0x518, starts it.
                             Reads "QEMU CFG"

Items 0x20 and up are files, found by name through item 0x19:

    00 "QEMU"    01 features     03 RAM in bytes, 8     05 CPUs, 2     0F limit of APIC IDs, 2     19 file directory
    8002 whether IRQ 0 is at pin 2 of the IOAPIC, 1

Integers are little-endian, but for those of the directory and of DMA. A DMA access is a structure in guest RAM, struct
fw_cfg_dma_access: control, length, address. Its control becomes 0 when it is done, or FW_CFG_DMA_CTL_ERROR; a long one
goes on in pieces, and the guest waits for that. One that comes meanwhile is lost.

One file is written by the guest: etc/vmcoreinfo, where Linux says where its notes for a crash dump are.
Source: QEMU docs/specs/fw_cfg and docs/specs/vmcoreinfo; Linux include/uapi/linux/qemu_fw_cfg.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from pyvmm.bus import ALL_ONES
from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.trace import OFF, Channel
from pyvmm.units import MIB

FW_CFG_LENGTH: Final = 12
"""Ports."""
FW_CFG_CTRL: Final = 0
FW_CFG_DATA: Final = 1
FW_CFG_DMA: Final = 4
"""Offsets of the selector, the data and the DMA register."""
FW_CFG_SIGNATURE: Final = 0x00
FW_CFG_ID: Final = 0x01
FW_CFG_RAM_SIZE: Final = 0x03
FW_CFG_NB_CPUS: Final = 0x05
FW_CFG_MAX_CPUS: Final = 0x0F
FW_CFG_FILE_DIR: Final = 0x19
FW_CFG_FILE_FIRST: Final = 0x20
FW_CFG_WRITE_CHANNEL: Final = 0x4000
FW_CFG_ARCH_LOCAL: Final = 0x8000
FW_CFG_IRQ0_OVERRIDE: Final = FW_CFG_ARCH_LOCAL + 2
FW_CFG_VERSION: Final = 0x01
"""Of FW_CFG_ID: the selector and the data register."""
FW_CFG_VERSION_DMA: Final = 0x02
FW_CFG_MAX_FILE_PATH: Final = 56
MAX_FILES: Final = FW_CFG_WRITE_CHANNEL - FW_CFG_FILE_FIRST

FW_CFG_DMA_CTL_ERROR: Final = 0x01
FW_CFG_DMA_CTL_READ: Final = 0x02
FW_CFG_DMA_CTL_SKIP: Final = 0x04
FW_CFG_DMA_CTL_SELECT: Final = 0x08
FW_CFG_DMA_CTL_WRITE: Final = 0x10
FW_CFG_DMA_SIGNATURE: Final = b"QEMU CFG"

VMCOREINFO_FILE: Final = "etc/vmcoreinfo"
FW_CFG_VMCOREINFO_FORMAT_NONE: Final = 0
FW_CFG_VMCOREINFO_FORMAT_ELF: Final = 1

PIECE: Final = MIB
"""Bytes of a DMA access that are moved at once, about a millisecond's work."""

_FILE: Final = struct.Struct(f">I H 2x {FW_CFG_MAX_FILE_PATH}s")
_ACCESS: Final = struct.Struct(">I I Q")
"""struct fw_cfg_dma_access."""
_GOING_ON: Final = struct.Struct(">Q I I Q")
_REGISTERS: Final = struct.Struct(">H I I")
"""What dma_access, and selected, offset and dma_high can hold."""
_VMCOREINFO: Final = struct.Struct("<H H I Q")
"""struct fw_cfg_vmcoreinfo: host_format, guest_format, size, paddr."""


class VmCoreInfo(NamedTuple):
    """Where a Linux has its VMCOREINFO note: *size* bytes at guest physical address *paddr*. Nobody has looked whether
    there is RAM."""

    paddr: int
    size: int


def check_name(name: str) -> None:
    """ValueError where no file in fw_cfg can be called so: 1 to 55 printable ASCII characters."""
    if not 0 < len(name) < FW_CFG_MAX_FILE_PATH or not name.isascii() or not name.isprintable():
        raise ValueError(f"{name!r} is no name of a file in fw_cfg: 1 to {FW_CFG_MAX_FILE_PATH - 1} ASCII characters")


class FwCfg:
    """*ram_size* is in bytes. There may be *cpus*; *present* gives how many there are now, which is all without it.
    *files* are named as QEMU names them, etc/e820; it is called once after each reset, when a guest first looks for a
    file, and gives the same as before unless the board has changed; check_name() holds for their names.

    Accesses go to *memory*. *defer* calls back soon, on the board's loop.
    """

    STATE = ("selected", "offset", "dma_high", "dma_access", "vmcoreinfo")

    def __init__(
        self,
        memory: GuestMemory,
        ram_size: int,
        cpus: int,
        files: Callable[[], Mapping[str, bytes]],
        defer: Callable[[Callable[[], None]], None],
        trace: Channel = OFF,
        present: Callable[[], int] | None = None,
    ) -> None:
        self._memory = memory
        self._make_files = files
        self._defer = defer
        self._trace = trace
        self._present = present or (lambda: cpus)
        self._fixed = {
            FW_CFG_SIGNATURE: b"QEMU",
            FW_CFG_ID: (FW_CFG_VERSION | FW_CFG_VERSION_DMA).to_bytes(4, "little"),
            FW_CFG_RAM_SIZE: ram_size.to_bytes(8, "little"),
            FW_CFG_MAX_CPUS: cpus.to_bytes(2, "little"),
            FW_CFG_IRQ0_OVERRIDE: b"\1",
        }
        self.vmcoreinfo = bytearray(_VMCOREINFO.size)
        self.reset()

    def reset(self) -> None:
        """Back to item 0, its first byte; an access that goes on ends where it is, and what the guest wrote is gone."""
        self.selected = FW_CFG_SIGNATURE
        self.offset = 0
        self.dma_high = 0
        """What was written to the high half of the DMA register."""
        self.dma_access: tuple[int, int, int, int] | None = None
        """(where it is described, its control, bytes that are left, where they go), of one that goes on."""
        self.vmcoreinfo[:] = _VMCOREINFO.pack(FW_CFG_VMCOREINFO_FORMAT_ELF, 0, 0, 0)
        self._files: dict[int, bytes] | None = None
        self._names: dict[int, str] = {}

    def restored(self) -> None:
        """After a load, perhaps of a file, which may have anything: an access that went on does so again. struct.error
        where no guest has left it so."""
        _REGISTERS.pack(self.selected, self.offset, self.dma_high)
        _VMCOREINFO.unpack(self.vmcoreinfo)
        if self.dma_access is not None:
            _GOING_ON.pack(*self.dma_access)
            self._defer(self._go_on)

    @property
    def vmcoreinfo_note(self) -> VmCoreInfo | None:
        """What Linux's driver (qemu_fw_cfg) has said of its VMCOREINFO note; None before."""
        _, guest_format, size, paddr = _VMCOREINFO.unpack(self.vmcoreinfo)
        return VmCoreInfo(paddr, size) if guest_format == FW_CFG_VMCOREINFO_FORMAT_ELF else None

    def read(self, offset: int, size: int) -> int:
        if offset >= FW_CFG_DMA:
            start = offset - FW_CFG_DMA
            return int.from_bytes(FW_CFG_DMA_SIGNATURE[start : start + size], "little")
        if size != 1 or offset > FW_CFG_DATA:
            return ALL_ONES[size]
        data = self._item()
        if self.offset >= len(data):
            return 0
        self.offset += 1
        return data[self.offset - 1]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == FW_CFG_CTRL and size == 2:
            self._select(value)
        elif size == 4 and offset == FW_CFG_DMA:
            self.dma_high = _swapped(value)
        elif size == 4 and offset == FW_CFG_DMA + 4:
            address, self.dma_high = self.dma_high << 32 | _swapped(value), 0
            self._begin(address)

    def _select(self, item: int) -> None:
        self.selected = item & ~FW_CFG_WRITE_CHANNEL
        self.offset = 0
        if self._trace.enabled:
            self._item()
            self._trace(f"select {self.selected:#x} {self._names.get(self.selected, '')}".rstrip())

    def _item(self) -> bytes | bytearray:
        """What is selected."""
        if self.selected == FW_CFG_NB_CPUS:
            return self._present().to_bytes(2, "little")
        if self.selected in self._fixed:
            return self._fixed[self.selected]
        if self._files is None:
            self._files = self._number(self._make_files())
        if self._names.get(self.selected) == VMCOREINFO_FILE:
            return self.vmcoreinfo
        return self._files.get(self.selected, b"")

    def _number(self, files: Mapping[str, bytes]) -> dict[int, bytes]:
        """The directory, and the files that it names."""
        found = dict(files) | {VMCOREINFO_FILE: bytes(self.vmcoreinfo)}
        self._names = dict(enumerate(sorted(found), FW_CFG_FILE_FIRST))
        items = {key: found[name] for key, name in self._names.items()}
        entries = [_FILE.pack(len(found[name]), key, name.encode("ascii")) for key, name in self._names.items()]
        items[FW_CFG_FILE_DIR] = struct.pack(">I", len(entries)) + b"".join(entries)
        return items

    # DMA

    def _begin(self, where: int) -> None:
        if self.dma_access is not None:
            return
        try:
            control, length, address = _ACCESS.unpack(self._memory.read(where, _ACCESS.size))
        except GuestMemoryError:
            self._end(where, FW_CFG_DMA_CTL_ERROR)
            return
        if control & FW_CFG_DMA_CTL_SELECT:
            self._select(control >> 16)
        if not control & (FW_CFG_DMA_CTL_READ | FW_CFG_DMA_CTL_WRITE | FW_CFG_DMA_CTL_SKIP):
            length = 0
        if self._trace.enabled:
            self._trace(f"DMA at {where:#x}: control {control:#x}, {length:#x} bytes at {address:#x}")
        self.dma_access = where, control, length, address
        self._go_on()

    def _go_on(self) -> None:
        """Another piece of the access, the last one or not."""
        if self.dma_access is None:  # a reset came between
            return
        where, control, length, address = self.dma_access
        data = self._item()
        # Only what fills RAM takes long; a write is no longer than its item.
        piece = min(length, PIECE) if control & FW_CFG_DMA_CTL_READ else length
        try:
            if control & FW_CFG_DMA_CTL_READ:
                self._read_item(data, address, piece)
            elif control & FW_CFG_DMA_CTL_WRITE:
                self._write_item(data, address, piece)
        except (GuestMemoryError, _NotWritableError):
            self._end(where, FW_CFG_DMA_CTL_ERROR)
            return
        self.offset = max(self.offset, min(self.offset + piece, len(data)))
        if piece == length:
            self._end(where, 0)
        else:
            self.dma_access = where, control, length - piece, address + piece
            self._defer(self._go_on)

    def _read_item(self, data: bytes | bytearray, address: int, length: int) -> None:
        """The next bytes of the item to RAM, and zeroes where it has ended."""
        part = data[self.offset : self.offset + length]
        if part:
            self._memory.write(address, part)
        if length > len(part):
            self._memory.clear(address + len(part), length - len(part))

    def _write_item(self, data: bytes | bytearray, address: int, length: int) -> None:
        if not isinstance(data, bytearray) or self.offset + length > len(data):
            raise _NotWritableError
        data[self.offset : self.offset + length] = self._memory.read(address, length)

    def _end(self, where: int, control: int) -> None:
        self.dma_access = None
        try:
            self._memory.write(where, control.to_bytes(4, "big"))
        except GuestMemoryError:  # the guest has nowhere to hear it
            pass


class _NotWritableError(Exception):
    """The guest cannot write there."""


def _swapped(value: int) -> int:
    """32 bits that were written big-endian."""
    return int.from_bytes(value.to_bytes(4, "little"), "big")
