"""INT 11h to 1Ah against a table of inputs: the same registers and bytes as SeaBIOS gives under QEMU.

One boot sector makes all calls of the table, which lies behind it on the disk, and tells of each on the debug console:
flags, registers, the packet at 0000:5000 and the buffer at 0000:6000.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import pytest

from pyvmm.units import MIB
from tests.rig import boot_sector
from tests.rig.boot_sector import DISK, FLOPPY, Kind, assemble

CALLER: Final = (
    boot_sector.PRELUDE
    + """
        .set    ENTRY, 64
        movb    %dl, drive
        movw    $0x0200 + 24, %ax       /* what is behind this sector: 24 more, to 0000:7E00 and up */
        movw    $0x7E00, %bx
        movw    $0x0002, %cx
        movb    $0, %dh
        cmpb    $0x80, %dl
        jb      floppy
        int     $0x13
        jmp     go
floppy: movw    $2, %bp                 /* one at a time, as it is on tracks of 18 */
1:      movw    $0x0201, %ax
        movw    %bp, %cx
        cmpw    $18, %bp
        jbe     2f
        subw    $18, %cx
        incb    %dh
2:      int     $0x13
        jc      fail
        movb    $0, %dh
        addw    $512, %bx
        incw    %bp
        cmpw    $25, %bp
        jbe     1b
go:     movw    $0x7E00, %si
next:   movw    %si, at
        cmpb    $0, (%si)
        jz      done
        movb    (%si), %al
        movb    %al, vector
        movw    $0x6000, %di            /* the buffer */
        movw    $0xCCCC, %ax
        movw    $0x200, %cx
        cld
        rep stosw
        leaw    32(%si), %si            /* the packet */
        movw    $0x5000, %di
        movw    $32, %cx
        rep movsb
        movw    at, %bp
        movw    2(%bp), %es
        movl    4(%bp), %eax
        movl    8(%bp), %ebx
        movl    12(%bp), %ecx
        movl    16(%bp), %edx
        movl    20(%bp), %esi
        movl    24(%bp), %edi
        clc
        .byte   0xCD
vector: .byte   0
        pushfw
        pushw   %es
        pushal
        xorw    %ax, %ax
        movw    %ax, %es
        movw    %ax, %ds
        cld
        movw    $0xE9, %dx
        movw    %sp, %si
        movw    $36, %cx
        rep outsb
        movw    $0x5000, %si
        movw    $32, %cx
        rep outsb
        movw    $0x6000, %si
        movw    $512, %cx
        rep outsb
        movw    $0x7C00, %sp
        movw    at, %si
        addw    $ENTRY, %si
        jmp     next
fail:   movb    $1, %al
        outb    %al, $0xF4
done:   movb    $0, %al
        outb    %al, $0xF4
1:      hlt
        jmp     1b
at:     .word   0
drive:  .byte   0
"""
)
RESULT: Final = struct.Struct("<8I2H32s512s")


@dataclass(frozen=True)
class Result:
    eax: int
    ebx: int
    ecx: int
    edx: int
    esi: int
    edi: int
    es: int
    flags: int
    packet: bytes
    buffer: bytes

    @property
    def ax(self) -> int:
        return self.eax & 0xFFFF

    @property
    def ah(self) -> int:
        return self.eax >> 8 & 0xFF

    @property
    def al(self) -> int:
        return self.eax & 0xFF

    @property
    def bx(self) -> int:
        return self.ebx & 0xFFFF

    @property
    def cx(self) -> int:
        return self.ecx & 0xFFFF

    @property
    def dx(self) -> int:
        return self.edx & 0xFFFF

    @property
    def dl(self) -> int:
        return self.edx & 0xFF

    @property
    def cf(self) -> int:
        return self.flags & 1

    @property
    def zf(self) -> int:
        return self.flags >> 6 & 1


@dataclass(frozen=True)
class Call:
    """INT *vector* with these registers; *same* are those that both must give."""

    name: str
    vector: int
    eax: int
    ebx: int = 0
    ecx: int = 0
    edx: int = 0
    esi: int = 0x5000
    edi: int = 0x6000
    es: int = 0
    packet: bytes = b""
    same: tuple[str, ...] = field(default=("ax", "bx", "cx", "dx", "cf"))

    def entry(self) -> bytes:
        registers = (self.eax, self.ebx, self.ecx, self.edx, self.esi, self.edi)
        head = struct.pack("<BxH6I", self.vector, self.es, *registers)
        return head.ljust(32, b"\0") + self.packet.ljust(32, b"\0")


def dap(count: int, lba: int, segment: int = 0, offset: int = 0x6000, size: int = 16) -> bytes:
    return struct.pack("<BBHHHQ", size, 0, count, offset, segment, lba)


def table(drive: int, sectors: int, heads: int, cylinders: int, spt: int) -> list[Call]:
    """INT 13h on a drive of that geometry."""
    last_cylinder = cylinders - 1
    end = (last_cylinder & 0xFF) << 8 | last_cylinder >> 2 & 0xC0 | spt
    read = ("ah", "cf", "buffer")
    return [
        Call("reset", 0x13, 0x0000, edx=drive, same=("ah", "cf")),
        Call("status of the last", 0x13, 0x0100, edx=drive, same=("ah", "cf")),
        Call("parameters", 0x13, 0x0800, edx=drive, same=("ah", "cx", "dx", "cf")),
        Call("type", 0x13, 0x1500, edx=drive, same=("ah", "cf")),
        Call("type of no drive", 0x13, 0x1500, edx=drive ^ 1, same=("ah", "cf")),
        Call("read the first", 0x13, 0x0201, ebx=0x6000, ecx=1, edx=drive, same=(*read, "al")),
        Call("read head 1", 0x13, 0x0201, ebx=0x6000, ecx=1, edx=drive | 0x100, same=(*read, "al")),
        Call("read cylinder 5", 0x13, 0x0201, ebx=0x6000, ecx=0x0503, edx=drive, same=(*read, "al")),
        Call("read through a segment", 0x13, 0x0201, ebx=0x10, ecx=2, edx=drive, es=0x5FF, same=(*read, "al")),
        Call("read the last", 0x13, 0x0201, ebx=0x6000, ecx=end, edx=drive | (heads - 1) << 8, same=(*read, "al")),
        Call("write", 0x13, 0x0301, ebx=0x7C00, ecx=0x0A01, edx=drive, same=("ah", "al", "cf")),
        Call("read what was written", 0x13, 0x0201, ebx=0x6000, ecx=0x0A01, edx=drive, same=read),
        Call("verify", 0x13, 0x0401, ebx=0x6000, ecx=1, edx=drive, same=("ah", "cf")),
        Call("no sector 0", 0x13, 0x0201, ebx=0x6000, ecx=0, edx=drive, same=("cf", "buffer")),
        Call("no such sector", 0x13, 0x0201, ebx=0x6000, ecx=spt + 1, edx=drive, same=("cf", "buffer")),
        Call("no such head", 0x13, 0x0201, ebx=0x6000, ecx=1, edx=drive | heads << 8, same=("cf", "buffer")),
        Call("no such cylinder", 0x13, 0x0201, ebx=0x6000, ecx=0xFFC1, edx=drive, same=("cf", "buffer")),
        Call("no sectors", 0x13, 0x0200, ebx=0x6000, ecx=1, edx=drive, same=("cf", "buffer")),
        Call("no such drive", 0x13, 0x0201, ebx=0x6000, ecx=1, edx=drive | 0x10, same=("ah", "cf")),
        Call("no such function", 0x13, 0xEE00, edx=drive, same=("ah", "cf")),
        Call("recalibrate", 0x13, 0x1100, edx=drive, same=("ah", "cf") if drive else ("cf",)),
    ]


EXTENSIONS: Final = [
    Call("extensions?", 0x13, 0x4100, ebx=0x55AA, edx=0x80, same=("ah", "bx", "cx", "cf")),
    Call("extended read", 0x13, 0x4200, edx=0x80, packet=dap(1, 5), same=("ah", "cf", "buffer", "packet")),
    Call(
        "extended read of the last", 0x13, 0x4200, edx=0x80, packet=dap(1, DISK // 512 - 1), same=("ah", "cf", "buffer")
    ),
    Call("extended read of nothing", 0x13, 0x4200, edx=0x80, packet=dap(0, 5), same=("ah", "cf", "buffer")),
    Call("extended write of nothing", 0x13, 0x4300, edx=0x80, packet=dap(0, 5), same=("ah", "cf", "buffer")),
    Call("and the drive goes on", 0x13, 0x4200, edx=0x80, packet=dap(1, 5), same=("ah", "cf", "buffer")),
    Call("behind the end", 0x13, 0x4200, edx=0x80, packet=dap(1, DISK // 512), same=("ah", "cf", "buffer")),
    Call("far behind the end", 0x13, 0x4200, edx=0x80, packet=dap(1, 1 << 40), same=("ah", "cf", "buffer")),
    Call("beyond the end", 0x13, 0x4200, edx=0x80, packet=dap(3, DISK // 512 - 2), same=("cf",)),
    Call("extended write", 0x13, 0x4300, edx=0x80, packet=dap(1, 40, offset=0x7C00), same=("ah", "cf")),
    Call("read it", 0x13, 0x4200, edx=0x80, packet=dap(1, 40), same=("ah", "cf", "buffer")),
    Call("extended verify", 0x13, 0x4400, edx=0x80, packet=dap(1, 5), same=("ah", "cf", "buffer")),
    Call("extended seek", 0x13, 0x4700, edx=0x80, packet=dap(1, 5), same=("ah", "cf")),
    Call("extended parameters", 0x13, 0x4800, edx=0x80, packet=struct.pack("<H", 26), same=("ah", "cf", "packet")),
    Call("too little room for them", 0x13, 0x4800, edx=0x80, packet=struct.pack("<H", 20), same=("ah", "cf", "packet")),
    Call("on no drive", 0x13, 0x4200, edx=0x81, packet=dap(1, 5), same=("ah", "cf", "buffer")),
]
"""INT 13h, AH=41h and up."""


def descriptor(base: int) -> bytes:
    return struct.pack("<HHBBBB", 0xFFFF, base & 0xFFFF, base >> 16 & 0xFF, 0x93, 0, base >> 24)


SYSTEM: Final = [
    Call("equipment", 0x11, 0, same=("cf",)),
    Call("base memory", 0x12, 0, same=("ax", "cf")),
    Call("open A20", 0x15, 0x2401, same=("ah", "cf")),
    Call("A20 is open", 0x15, 0x2402, same=("ax", "cf")),
    Call("A20 gates", 0x15, 0x2403, same=("ah", "bx", "cf")),
    Call("no such A20 function", 0x15, 0x2405, same=("ah", "cf")),
    Call("E820 without SMAP", 0x15, 0xE820, ecx=20, same=("ah", "cf")),
    Call("E820, the first", 0x15, 0xE820, ecx=20, edx=0x534D4150, same=("eax", "ecx", "cf", "buffer")),
    Call("E820 with 24 bytes", 0x15, 0xE820, ecx=24, edx=0x534D4150, same=("eax", "cf")),
    Call("E820, room for 19", 0x15, 0xE820, ecx=19, edx=0x534D4150, same=("cf",)),
    Call("E820 behind the end", 0x15, 0xE820, ecx=20, ebx=0x99, edx=0x534D4150, same=("cf", "buffer")),
    Call("E801", 0x15, 0xE801, same=("ax", "cx", "cf")),
    Call("extended memory", 0x15, 0x8800, same=("cf",)),
    Call("EBDA", 0x15, 0xC100, same=("es", "cf")),
    Call("configuration", 0x15, 0xC000, same=("ah", "cf")),
    Call("a move from above", 0x15, 0x8700, ecx=16, packet=bytes(16) + descriptor(0x7C00) + descriptor(0x6000)),
    Call(
        "to 16 MiB",
        0x15,
        0x8700,
        ecx=16,
        packet=bytes(16) + descriptor(0x7C00) + descriptor(0x1000000),
        same=("ah", "cf"),
    ),
    Call("and from there", 0x15, 0x8700, ecx=16, packet=bytes(16) + descriptor(0x1000000) + descriptor(0x6000)),
    Call("a wait", 0x15, 0x8600, ecx=0, edx=1000, same=("cf",)),
    Call("APM", 0x15, 0x5300, same=("ax", "bx", "cf")),
    Call("no such function", 0x15, 0xEE00, same=("ah", "cf")),
    Call("no key", 0x16, 0x0100, same=("zf",)),
    Call("a key put there", 0x16, 0x0500, ecx=0x1E61, same=("al",)),
    Call("it is there", 0x16, 0x0100, same=("ax", "zf")),
    Call("and stays", 0x16, 0x1100, same=("ax", "zf")),
    Call("it is taken", 0x16, 0x0000, same=("ax",)),
    Call("and gone", 0x16, 0x0100, same=("zf",)),
    Call("shift keys", 0x16, 0x0200, same=("al",)),
    Call("all shift keys", 0x16, 0x1200, same=("ax",)),
    Call("the clock's date", 0x1A, 0x0400, same=("cx", "dx", "cf")),
    Call("ticks are set", 0x1A, 0x0100, ecx=2, edx=3, same=("ah", "cf")),
    Call("PCI BIOS", 0x1A, 0xB101, same=("ah", "edx", "cf")),
    Call("a function of none", 0x1A, 0xB102, ecx=0x1234, edx=0x5678, same=("ah", "cf")),
    Call("host bridge by its class", 0x1A, 0xB103, ecx=0x060000, same=("ah", "bx", "cf")),
    Call("no second one", 0x1A, 0xB103, ecx=0x060000, esi=1, same=("ah", "cf")),
    Call("its vendor and device", 0x1A, 0xB10A, edi=0, same=("ah", "ecx", "cf")),
    Call("its vendor", 0x1A, 0xB109, edi=0, same=("ah", "cx", "cf")),
    Call("the upper byte of it", 0x1A, 0xB108, edi=1, same=("ah", "cf")),
    Call("the video mode", 0x10, 0x0F00, same=("ax", "bx")),
    Call("the cursor is put", 0x10, 0x0200, edx=0x0A14, same=()),
    Call("and is there", 0x10, 0x0300, same=("cx", "dx")),
    Call("display", 0x10, 0x1A00, same=("al", "bx")),
    Call("EGA", 0x10, 0x1200, ebx=0x10, same=("bx",)),
    Call("a mode set", 0x10, 0x0003, same=("al",)),
    Call("a character", 0x10, 0x0941, ebx=0x1E, ecx=3, same=()),
    Call("is read", 0x10, 0x0800, same=("ax",)),
    Call("a colour of the DAC", 0x10, 0x1015, ebx=0x3A, same=("cx", "dx")),
    Call("a palette register", 0x10, 0x1007, ebx=0x06, same=("bx",)),
]


STRICTER: Final = [
    (Call("extensions, asked wrongly", 0x13, 0x4100, ebx=0, edx=0x80), 0x01),
    (Call("a short packet", 0x13, 0x4200, edx=0x80, packet=dap(1, 5, size=15)), 0x01),
    (Call("beyond the end", 0x13, 0x4200, edx=0x80, packet=dap(3, DISK // 512 - 2)), 0x01),
    (Call("no vendor", 0x1A, 0xB102, ecx=0x1234, edx=0xFFFF), 0x83),
    (Call("out of place", 0x1A, 0xB109, edi=1), 0x87),
]
"""Where SeaBIOS does not look: an error in AH, and CF, as the EDD and PCI BIOS specifications have it."""


def results(calls: list[Call], said: bytes) -> dict[str, Result]:
    assert len(said) == len(calls) * RESULT.size
    found = {}
    for number, call in enumerate(calls):
        edi, esi, _, _, ebx, edx, ecx, eax, es, flags, packet, buffer = RESULT.unpack_from(said, number * RESULT.size)
        found[call.name] = Result(eax, ebx, ecx, edx, esi, edi, es, flags, packet, buffer)
    return found


def disk_of(calls: list[Call], folder: Path, size: int) -> bytes:
    """A disk that makes *calls*; each sector behind them says its number."""
    entries = b"".join(call.entry() for call in calls).ljust(24 * 512, b"\0")
    assert len(entries) == 24 * 512
    head = assemble(CALLER + "\n .org 510\n .word 0xAA55\n", folder) + entries
    rest = b"".join(b"sector %8d" % number + bytes(497) for number in range(len(head) // 512, size // 512))
    return head + rest


DRIVES: Final[dict[Kind, tuple[int, int, tuple[int, int, int, int]]]] = {
    "virtio": (0x80, DISK, (DISK // 512, 16, DISK // 512 // 1008, 63)),
    "ata": (0x80, DISK, (DISK // 512, 16, DISK // 512 // 1008, 63)),
    "floppy": (0x00, FLOPPY, (2880, 2, 80, 18)),
}


def compare(calls: list[Call], ours: dict[str, Result], theirs: dict[str, Result]) -> list[str]:
    """A line for each difference."""
    return [
        f"{call.name}: {what} is {getattr(ours[call.name], what)!r}, SeaBIOS has {getattr(theirs[call.name], what)!r}"
        for call in calls
        for what in call.same
        if getattr(ours[call.name], what) != getattr(theirs[call.name], what)
    ]


@pytest.mark.parametrize("kind", DRIVES)
def test_disks_answer_as_those_of_seabios(tmp_path: Path, kind: Kind) -> None:
    drive, size, (sectors, heads, cylinders, spt) = DRIVES[kind]
    calls = table(drive, sectors, heads, cylinders, spt) + (EXTENSIONS if drive else [])
    image = disk_of(calls, tmp_path, size)
    ours = results(calls, boot_sector.pyvmm(image, tmp_path, kind=kind, end=False).console)
    theirs = results(calls, boot_sector.seabios(image, tmp_path, kind=kind, end=False).console)
    assert not compare(calls, ours, theirs), "\n".join(compare(calls, ours, theirs))
    number = heads * spt * 5 + 2
    assert ours["read cylinder 5"].buffer[:15] == b"sector %8d" % number


@pytest.mark.parametrize("kind", DRIVES)
def test_any_sector_is_the_images(tmp_path: Path, kind: Kind) -> None:
    """Reads from all over the drive and beyond it; what cannot be is an error, and leaves the buffer as it was."""
    drive, size, (_, heads, cylinders, spt) = DRIVES[kind]
    random = Random(kind)
    calls: list[Call] = []
    expected: list[int | None] = []
    for number in range(190):
        cylinder, head, at = random.randrange(cylinders + 4), random.randrange(heads + 1), random.randrange(spt + 2)
        lba = (cylinder * heads + head) * spt + at - 1
        ecx, edx = (cylinder & 0xFF) << 8 | cylinder >> 2 & 0xC0 | at & 0x3F, drive | head << 8
        there = cylinder < cylinders and head < heads and 1 <= at & 0x3F <= spt and at == at & 0x3F
        calls.append(Call(str(number), 0x13, 0x0201, ebx=0x6000, ecx=ecx, edx=edx))
        expected.append(lba if there else None)
    image = disk_of(calls, tmp_path, size)
    found = results(calls, boot_sector.pyvmm(image, tmp_path, kind=kind, end=False).console)
    for call, block in zip(calls, expected, strict=True):
        result = found[call.name]
        if block is None:
            assert (result.cf, result.al, result.buffer) == (1, 0, b"\xcc" * 512)
        else:
            assert (result.cf, result.ax) == (0, 1)
            assert result.buffer == image[block * 512 : block * 512 + 512]


def test_what_is_written_is_in_the_file(tmp_path: Path) -> None:
    """Two sectors from block 40 on; the second is of the buffer."""
    calls = [Call("write", 0x13, 0x4300, edx=0x80, packet=dap(2, 40, offset=0x5E00))]
    image = disk_of(calls, tmp_path, DISK)
    found = results(calls, boot_sector.pyvmm(image, tmp_path, end=False).console)
    assert (found["write"].cf, found["write"].ah) == (0, 0)
    after = (tmp_path / "pyvmm.img").read_bytes()
    assert after[41 * 512 : 42 * 512] == b"\xcc" * 512
    assert after[: 40 * 512] == image[: 40 * 512] and after[42 * 512 :] == image[42 * 512 :]


def test_mistakes_that_seabios_lets_pass(tmp_path: Path) -> None:
    calls = [call for call, _ in STRICTER]
    found = results(calls, boot_sector.pyvmm(disk_of(calls, tmp_path, DISK), tmp_path, end=False).console)
    for call, error in STRICTER:
        assert (found[call.name].ah, found[call.name].cf) == (error, 1), call.name
        assert found[call.name].buffer == b"\xcc" * 512, call.name


MAP: Final = (
    (0, 0x9FC00, 1),
    (0x9FC00, 0x400, 2),
    (0xE0000, 0x20000, 2),
    (0x100000, 0x1F00000, 1),
    (0xE0000000, 0x10000000, 2),
    (0xFFFC0000, 0x40000, 2),
)
"""Of a machine of 32 MiB: where, bytes, type."""


def entries(folder: Path, memory: int) -> list[tuple[int, int, int]]:
    """What E820h gives, one entry after the other, on a machine with so much RAM."""
    calls = [Call(str(n), 0x15, 0xE820, ebx=n, ecx=20, edx=0x534D4150) for n in range(8)]
    found = results(calls, boot_sector.pyvmm(disk_of(calls, folder, DISK), folder, end=False, memory=memory).console)
    told, number = [], 0
    while True:
        result = found[str(number)]
        assert result.cf == 0
        told.append(struct.unpack_from("<QQI", result.buffer))
        number = result.ebx
        if not number:
            return told


def test_the_memory_map(tmp_path: Path) -> None:
    """The CMOS's answers beside it."""
    assert entries(tmp_path, 32 * MIB) == list(MAP)
    calls = [Call("behind", 0x15, 0xE820, ebx=len(MAP), ecx=20, edx=0x534D4150)]
    calls += [Call("E801", 0x15, 0xE801), Call("88", 0x15, 0x8800)]
    found = results(calls, boot_sector.pyvmm(disk_of(calls, tmp_path, DISK), tmp_path, end=False).console)
    assert found["behind"].cf == 1
    assert (found["E801"].ax, found["E801"].bx) == (15 << 10, 16 << 4)
    assert found["88"].ax == 31 << 10


@pytest.mark.parametrize("memory", [MIB, 2 * MIB, 16 * MIB, 3 << 30, (3 << 30) + 64 * MIB])
def test_memory_of_any_size(tmp_path: Path, memory: int) -> None:
    """All that there is of RAM, but for the EBDA and the shadow; what does not fit below 3 GiB is above 4 GiB."""
    told = entries(tmp_path, memory)
    above = [(4 << 30, memory - (3 << 30))] if memory > 3 << 30 else []
    below = [(MIB, min(memory, 3 << 30) - MIB)] if memory > MIB else []
    assert [(start, size) for start, size, kind in told if kind == 1] == [(0, 0x9FC00), *below, *above]
    assert told == sorted(told)


def test_services_answer_as_those_of_seabios(tmp_path: Path) -> None:
    image = disk_of(SYSTEM, tmp_path, DISK)
    ours = results(SYSTEM, boot_sector.pyvmm(image, tmp_path, end=False).console)
    theirs = results(SYSTEM, boot_sector.seabios(image, tmp_path, end=False).console)
    assert not compare(SYSTEM, ours, theirs), "\n".join(compare(SYSTEM, ours, theirs))
    assert ours["and from there"].buffer[:32] == image[:32], "moved up and down again"
