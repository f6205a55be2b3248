"""Images made for the tests, and the Linux 2.6 guests that lie beside the project."""

from __future__ import annotations

import mmap
import struct

from pyvmm.memory import GuestMemory

# Offset and struct format of the fields of the setup header.
FIELDS = {
    "setup_sects": (0x1F1, "<B"),
    "syssize": (0x1F4, "<I"),
    "boot_flag": (0x1FE, "<H"),
    "jump": (0x200, "<H"),
    "header": (0x202, "<4s"),
    "version": (0x206, "<H"),
    "loadflags": (0x211, "<B"),
    "code32_start": (0x214, "<I"),
    "initrd_addr_max": (0x22C, "<I"),
    "kernel_alignment": (0x230, "<I"),
    "relocatable_kernel": (0x234, "<B"),
    "min_alignment": (0x235, "<B"),
    "xloadflags": (0x236, "<H"),
    "cmdline_size": (0x238, "<I"),
    "pref_address": (0x258, "<Q"),
    "init_size": (0x260, "<I"),
}


def make_bzimage(payload: bytes = bytes(range(256)) * 8, *, end: int = 0x26C, **changes: int | bytes) -> bytearray:
    """A modern 64-bit bzImage in miniature; *changes* set header fields, *end* is where the header says it ends."""
    values: dict[str, int | bytes] = {
        "setup_sects": 1,
        "syssize": (len(payload) + 15) // 16,
        "boot_flag": 0xAA55,
        "jump": 0xEB | (end - 0x202) << 8,
        "header": b"HdrS",
        "version": 0x020F,
        "loadflags": 1,
        "code32_start": 0x100000,
        "initrd_addr_max": 0x7FFFFFFF,
        "kernel_alignment": 0x200000,
        "relocatable_kernel": 1,
        "min_alignment": 21,
        "xloadflags": 1,
        "cmdline_size": 2047,
        "pref_address": 0x1000000,
        "init_size": 0x100000,
    }
    values.update(changes)
    image = bytearray((int(values["setup_sects"] or 4) + 1) * 512)
    for name, value in values.items():
        offset, form = FIELDS[name]
        struct.pack_into(form, image, offset, value)
    return image + payload


def make_old_bzimage(payload: bytes = bytes(2048), **changes: int | bytes) -> bytearray:
    """A bzImage of protocol 2.03, as Linux 2.6.10 is one: nothing behind initrd_addr_max but code."""
    values: dict[str, int | bytes] = {
        "version": 0x0203,
        "initrd_addr_max": 0xFFFFFFFF,
        "kernel_alignment": 0x0B05CDE8,
        "relocatable_kernel": 0xEB,
        "min_alignment": 0x90,
        "xloadflags": 0x9090,
        "cmdline_size": 0x90909090,
        "pref_address": 0x9090909090909090,
        "init_size": 0x90909090,
    }
    values.update(changes)
    return make_bzimage(payload, end=0x230, **values)


def ram(mib: int) -> GuestMemory:
    """Guest RAM of so many MiB, with the hole below 4 GiB where it is larger than 3 GiB; pages exist once touched."""
    size = mib << 20
    low = min(size, 0xC0000000)
    regions = [(0, memoryview(mmap.mmap(-1, low)))]
    if size > low:
        regions.append((1 << 32, memoryview(mmap.mmap(-1, size - low))))
    return GuestMemory(regions)


def make_note(name: bytes, kind: int, desc: bytes, align: int = 4) -> bytes:
    """One ELF note, padded."""

    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % align)

    return pad(pad(struct.pack("<III", len(name), len(desc), kind) + name) + desc)


def make_elf(
    segments: list[tuple[int, bytes, int]],
    *,
    bits: int = 64,
    entry: int = 0x100000,
    notes: bytes = b"",
    machine: int | None = None,
    vaddr: int = 0,
) -> bytearray:
    """An executable of (paddr, bytes, memsz) segments, linked at paddr + *vaddr*, and of a PT_NOTE with *notes*."""
    headers = []
    body = b""
    count = len(segments) + bool(notes)
    start = 64 + 56 * count
    for paddr, data, memsz in segments:
        headers.append((1, start + len(body), paddr + vaddr, paddr, len(data), memsz, 4096))
        body += data
    if notes:
        headers.append((4, start + len(body), 0, 0, len(notes), len(notes), 4))
        body += notes
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(9)
    if bits == 64:
        head = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine or 62, 1, entry, 64, 0, 0, 64, 56, count, 0, 0, 0)
        for kind, offset, virtual, paddr, filesz, memsz, align in headers:
            head += struct.pack("<II6Q", kind, 7, offset, virtual, paddr, filesz, memsz, align)
    else:
        head = ident + struct.pack("<HHIIIIIHHHHHH", 2, machine or 3, 1, entry, 52, 0, 0, 52, 32, count, 0, 0, 0)
        for kind, offset, virtual, paddr, filesz, memsz, align in headers:
            head += struct.pack("<8I", kind, offset, virtual, paddr, filesz, memsz, 7, align)
    return bytearray(head.ljust(start, b"\0") + body)


def pvh_note(entry: int, size: int = 8) -> bytes:
    """XEN_ELFNOTE_PHYS32_ENTRY, among others as Linux has them."""
    return (
        make_note(b"Linux\0", 0x100, b"x")
        + make_note(b"Xen\0", 6, b"linux\0")
        + make_note(b"Xen\0", 18, entry.to_bytes(size, "little"))
        + make_note(b"GNU\0", 3, bytes(20))
    )


def multiboot_header(flags: int, *addresses: int) -> bytes:
    """A Multiboot 1 header, with the five address fields of the a.out kludge if given."""
    magic = 0x1BADB002
    return struct.pack(f"<3I{len(addresses)}I", magic, flags, -(magic + flags) & 0xFFFFFFFF, *addresses)
