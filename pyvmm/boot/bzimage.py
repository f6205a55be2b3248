"""bzImage: a Linux kernel with its setup header, started past its real-mode code.

Source: Linux Documentation/x86/boot.rst. The file is a boot sector and setup code of (setup_sects + 1) * 512 bytes,
whose setup header at 0x1F1 tells the rest, then the protected-mode code. Protocol 2.00 to 2.15; the 64-bit entry, 0x200
into the protected-mode code, where xloadflags offer it (2.12), else the 32-bit entry at its start. The setup code never
runs: it asks the BIOS what boot_params tells already.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from pyvmm.boot.bootparams import SETUP_HEADER, boot_params
from pyvmm.boot.cmdline import write_cmdline
from pyvmm.boot.e820 import E820Entry, high_memory_end
from pyvmm.boot.entry import CpuState, long_mode, protected_mode
from pyvmm.boot.error import BootError
from pyvmm.boot.initrd import load_initrd
from pyvmm.boot.lowmem import FOUR_GIB, HIGH_MEMORY_GPA, INFO_GPA, align_up, no_ram_advice
from pyvmm.units import MIB, PAGE_SIZE

if TYPE_CHECKING:
    from pyvmm.boot.image import Image
    from pyvmm.config import Module
    from pyvmm.memory import GuestMemory

BOOT_FLAG: Final = 0xAA55
HEADER_MAGIC: Final = b"HdrS"
LOADED_HIGH: Final = 1 << 0
XLF_KERNEL_64: Final = 1 << 0
ENTRY_64: Final = 0x200

OLD_CMDLINE_SIZE: Final = 255
"""Before protocol 2.06 there is no cmdline_size."""
OLD_INITRD_ADDR_MAX: Final = 0x37FFFFFF
"""Before protocol 2.03 there is no initrd_addr_max, and the field of 2.03 itself says 0xFFFFFFFF in kernels that do not
mean it."""
OLD_CL_MAGIC: Final = 0xA33F
OLD_CL_ADDRESS: Final = 0x20

HEADER_ROOM: Final = 0x290
"""Where boot_params goes on after the setup header."""
# From 0x1F1: setup_sects, syssize; version at 0x206; loadflags at 0x211; from initrd_addr_max at 0x22C to cmdline_size;
# pref_address at 0x258 and init_size.
_HEADER: Final = struct.Struct("<B 2x I 14x H 9x B 26x I I B x H I 28x Q I")

# Where the setup header ends at least, so that it holds the fields of its protocol version.
_HEADER_END: Final = (
    (0x020F, 0x26C),
    (0x020B, 0x268),
    (0x020A, 0x264),
    (0x0209, 0x258),
    (0x0208, 0x250),
    (0x0207, 0x248),
    (0x0206, 0x23C),
    (0x0205, 0x235),
    (0x0203, 0x230),
    (0x0202, 0x22C),
    (0x0201, 0x226),
    (0x0200, 0x224),
)


class SetupHeader(NamedTuple):
    """The fields of struct setup_header that a loader reads; one newer than the kernel's protocol version is 0."""

    setup_sects: int
    syssize: int
    version: int
    loadflags: int
    initrd_addr_max: int
    kernel_alignment: int
    relocatable_kernel: int
    xloadflags: int
    cmdline_size: int
    pref_address: int
    init_size: int


class BzImage(NamedTuple):
    """What the header of a kernel says, checked. Addresses are guest physical, sizes are bytes."""

    header: SetupHeader
    raw: bytes
    """The file from 0x1F1 to the end of the setup header."""
    offset: int
    """Where the protected-mode code begins in the file."""
    length: int
    """How long it is."""
    load_address: int
    memory_end: int
    """The end of the memory that the kernel uses before it looks at the memory map."""
    entry64: bool
    cmdline_limit: int
    initrd_limit: int
    """First address that the initrd may not occupy."""


def parse_bzimage(image: Image) -> BzImage:
    """Read and check the setup header; raises BootError that says which field cannot be."""

    def refuse(why: str) -> BootError:
        return BootError(f"{image.name}: {why}")

    head = image.read(0, HEADER_ROOM)
    if len(head) < 0x206 or head[0x202:0x206] != HEADER_MAGIC or head[0x1FE:0x200] != b"\x55\xaa":
        raise refuse("not a bzImage")
    if len(head) < 0x208:
        raise refuse(f"bzImage truncated inside its setup header: it has {len(head)} bytes")
    version: int = struct.unpack_from("<H", head, 0x206)[0]
    if not 0x0200 <= version < 0x0300:
        raise refuse(f"bzImage of boot protocol {version >> 8}.{version & 0xFF:02}, only 2.00 to 2.15 are known")
    end = 0x202 + head[0x201]
    needed = next(end for first, end in _HEADER_END if version >= first)
    if not needed <= end <= HEADER_ROOM:
        raise refuse(
            f"damaged bzImage: its setup header ends at {end:#x}, protocol 2.{version & 0xFF:02} says {needed:#x}"
        )
    if len(head) < end:
        raise refuse(
            f"bzImage truncated inside its setup header: it has {len(head)} bytes, the header ends at {end:#x}"
        )
    raw = head[SETUP_HEADER:end]
    # Fields newer than the version are padding, whatever the header's end says.
    header = SetupHeader._make(_HEADER.unpack_from(raw[: needed - SETUP_HEADER].ljust(_HEADER.size, b"\0")))
    if not header.loadflags & LOADED_HIGH:
        raise refuse("a zImage, which is loaded below 1 MiB and needs a BIOS: build the kernel as bzImage")

    offset = ((header.setup_sects or 4) + 1) * 512
    length = image.size - offset
    if length <= 0:
        raise refuse(f"bzImage truncated: it has {image.size} bytes, the setup code alone {offset}")
    if version >= 0x0204 and header.syssize:
        # The size is in paragraphs, and the last one may be short; what follows it is a signature.
        if header.syssize * 16 >= length + 16:
            raise refuse(f"bzImage truncated: {length} bytes of code, the header says {header.syssize * 16}")
        length = min(length, header.syssize * 16)

    load_address = HIGH_MEMORY_GPA
    if header.relocatable_kernel:
        alignment = header.kernel_alignment
        if alignment < PAGE_SIZE or alignment & (alignment - 1):
            raise refuse(f"damaged bzImage: its kernel_alignment is {alignment:#x}")
        load_address = header.pref_address or align_up(HIGH_MEMORY_GPA, alignment)
        runtime_start = align_up(load_address, alignment)
    else:
        runtime_start = header.pref_address or load_address
    # The header is silent before 2.10. A kernel unpacks to three times its size or so, then come bss and page tables.
    init_size = header.init_size or 4 * length
    memory_end = max(load_address + length, runtime_start + init_size)
    if load_address < HIGH_MEMORY_GPA or runtime_start < HIGH_MEMORY_GPA or memory_end > FOUR_GIB:
        raise refuse(f"damaged bzImage: it asks for memory at {load_address:#x} to {memory_end:#x}")

    initrd_addr_max = header.initrd_addr_max
    if version < 0x0204 or initrd_addr_max in (0, 0xFFFFFFFF):
        initrd_addr_max = min(initrd_addr_max or OLD_INITRD_ADDR_MAX, OLD_INITRD_ADDR_MAX)
    entry64 = version >= 0x020C and bool(header.xloadflags & XLF_KERNEL_64)
    if entry64 and length <= ENTRY_64:
        raise refuse(f"bzImage truncated: {length} bytes of code, the 64-bit entry is at {ENTRY_64:#x}")
    return BzImage(
        header=header,
        raw=raw,
        offset=offset,
        length=length,
        load_address=load_address,
        memory_end=memory_end,
        entry64=entry64,
        cmdline_limit=header.cmdline_size or OLD_CMDLINE_SIZE,
        initrd_limit=initrd_addr_max + 1,
    )


def load_bzimage(
    memory: GuestMemory,
    image: Image,
    *,
    cmdline: str = "",
    modules: Sequence[Module] = (),
    e820: Sequence[E820Entry],
    rsdp: int = 0,
) -> CpuState:
    """Load kernel, *modules* as one initrd, command line and boot_params; BootError where they do not fit."""
    kernel = parse_bzimage(image)
    if kernel.memory_end > high_memory_end(e820):
        need = align_up(kernel.memory_end, MIB) // MIB
        advice = no_ram_advice(kernel.load_address, kernel.memory_end, "build it with a lower CONFIG_PHYSICAL_START")
        raise BootError(f"{image.name}: this kernel needs {need} MiB of RAM to unpack: {advice}")
    cmdline_gpa = write_cmdline(memory, cmdline, kernel.cmdline_limit)
    image.load(memory, kernel.load_address, kernel.offset, kernel.length)
    initrd = load_initrd(memory, modules, e820, floor=kernel.memory_end, limit=kernel.initrd_limit)
    params = boot_params(
        kernel.raw, e820, cmdline=cmdline_gpa, initrd=initrd, rsdp=rsdp, code32_start=kernel.load_address
    )
    if kernel.header.version < 0x0202:
        # The offset is from boot_params, and the kernel takes both for being at 0x90000: they are.
        struct.pack_into("<HH", params, OLD_CL_ADDRESS, OLD_CL_MAGIC, cmdline_gpa - INFO_GPA)
    memory.write(INFO_GPA, params)
    if kernel.entry64:
        return long_mode(memory, kernel.load_address + ENTRY_64, rsi=INFO_GPA)
    return protected_mode(memory, kernel.load_address, esi=INFO_GPA)
