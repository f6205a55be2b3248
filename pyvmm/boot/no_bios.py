"""What stands where a PC's BIOS would: interrupt vectors for real mode, and code in segment F000 that they lead to.

    vectors 00-07       the end, which tells of the exception
    vectors 08-0F       IRQ 0-7: EOI and return, IRQ 0 counts ticks; an exception where none is in service at the PIC
    vectors 10-1A, 40   what a BIOS serves: the end, which tells of the call
    vectors 20, 21      the same for DOS
    vectors 70-77       IRQ 8-15: EOI and return
    vectors 1E, 1F, 43, 60-66, 79   0:0, for pointers to tables, and for programs
    all others          return, as where a BIOS serves nothing
    FFFF:0000           a reset

The code of such an end writes BIOS_CALL to the command port of APM, by which a BIOS calls its SMM handler, and halts.
Whoever hears the command asks bios_call(), which looks whether the CPU is in that code, so that a stray write of the
same byte does nothing. All of it is plain RAM: what is loaded over it takes its place.

Source: IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference (1987), section 2; SeaBIOS,
src/post.c, ivt_init, and src/romlayout.S for the addresses that are fixed (F000:FF53, F000:FFF0); Intel SDM volume 3,
table 20-1, for exceptions in real mode.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from pyvmm.boot.bda import BDA_TIMER_OVERFLOW, BDA_TIMER_TICKS, TICKS_A_DAY
from pyvmm.memory import GuestMemoryError

if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory

BIOS_SEGMENT: Final = 0xF000
ENDS: Final = 0xE000
"""Where the ends begin, ENTRY bytes for each of the 256 vectors."""
ENTRY: Final = 8
HANDLERS: Final = ENDS + 256 * ENTRY
DUMMY_IRET: Final = 0xFF53
RESET_VECTOR: Final = 0xFFF0
MODEL: Final = 0xFFFE
MODEL_AT: Final = 0xFC

APM_PORT: Final = 0xB2
BIOS_CALL: Final = 0xB1
"""The command; those of the FADT are others."""
PIC_PORTS: Final = (0x20, 0xA0)
IRQ_VECTORS: Final = (0x08, 0x70)
"""Vectors of IRQ 0 and IRQ 8, as a BIOS sets the two PICs."""

BIOS_SERVICES: Final = (*range(0x10, 0x1B), 0x40)
DOS_SERVICES: Final = (0x20, 0x21)
NO_CODE: Final = (0x1E, 0x1F, 0x43, *range(0x60, 0x67), 0x79)

EXCEPTIONS: Final = {
    0x00: "#DE, divide error",
    0x01: "#DB, debug",
    0x02: "NMI",
    0x03: "#BP, breakpoint",
    0x04: "#OF, overflow",
    0x05: "#BR, bound range exceeded",
    0x06: "#UD, invalid opcode",
    0x07: "#NM, no coprocessor",
    0x08: "#DF, double fault",
    0x09: "coprocessor segment overrun",
    0x0C: "#SS, stack fault",
    0x0D: "#GP, general protection",
}
_ONE_BYTE_INTS: Final = {0xF1: 0x01, 0xCC: 0x03, 0xCE: 0x04}
"""INT1, INT3 and INTO."""


def write_bios(memory: GuestMemory) -> None:
    """Write the interrupt vectors and the code, both whole."""
    vectors, code = _image()
    memory.write(0, vectors)
    memory.write((BIOS_SEGMENT << 4) + ENDS, code)


@cache
def _image() -> tuple[bytes, bytes]:
    """The 1 KiB of vectors, and the code from F000:ENDS to the segment's end."""
    code = bytearray(0x10000 - ENDS)

    def put(offset: int, data: bytes) -> int:
        code[offset - ENDS : offset - ENDS + len(data)] = data
        return offset + len(data)

    # push ax; mov al,BIOS_CALL; out APM_PORT,al; hlt; jmp to the hlt
    put(ENDS, bytes((0x50, 0xB0, BIOS_CALL, 0xE6, APM_PORT, 0xF4, 0xEB, 0xFD)) * 256)
    targets = dict.fromkeys(range(256), DUMMY_IRET)
    targets.update({vector: ENDS + vector * ENTRY for vector in (*range(8), *BIOS_SERVICES, *DOS_SERVICES)})
    put(DUMMY_IRET, b"\xcf")
    at = HANDLERS
    for irq in range(16):
        vector = IRQ_VECTORS[irq >> 3] + irq % 8
        targets[vector] = at
        at = put(at, _first_pic(irq, at) if irq < 8 else _second_pic(irq))
    reset = at
    put(reset, bytes.fromhex("b0fe e664 f4 ebfd"))  # mov al,0xFE; out 0x64,al (the i8042's reset); hlt; jmp to the hlt
    put(RESET_VECTOR, struct.pack("<BHH", 0xEA, reset, BIOS_SEGMENT))  # jmp far
    put(MODEL, bytes((MODEL_AT,)))
    vectors = b"".join(
        struct.pack("<HH", targets[v], BIOS_SEGMENT) if v not in NO_CODE else bytes(4) for v in range(256)
    )
    return vectors, bytes(code)


def _in_service(irq: int) -> bytes:
    """push ax; ZF is set where the PIC does not have *irq* in service. It shows IRR again afterwards, as after ICW1."""
    port = PIC_PORTS[irq >> 3]
    # mov al,OCW3 read ISR; out; in; mov ah,al; mov al,OCW3 read IRR; out; test ah,bit
    return bytes((0x50, 0xB0, 0x0B, 0xE6, port, 0xE4, port, 0x88, 0xC4, 0xB0, 0x0A, 0xE6, port)) + bytes(
        (0xF6, 0xC4, 1 << irq % 8)
    )


def _first_pic(irq: int, at: int) -> bytes:
    """The handler of IRQ 0-7 that begins at offset *at*."""
    head = _in_service(irq)
    work = _count_tick() if irq == 0 else b""
    work += bytes((0xB0, 0x20, 0xE6, PIC_PORTS[0], 0x58, 0xCF))  # mov al,EOI; out; pop ax; iret
    other = at + len(head) + 2 + len(work)
    if irq == 7:  # nothing else has its vector: the PIC's spurious interrupt, which wants no EOI
        rest = b"\x58\xcf"  # pop ax; iret
    else:
        end = ENDS + (IRQ_VECTORS[0] + irq) * ENTRY
        rest = struct.pack("<BBh", 0x58, 0xE9, end - (other + 4))  # pop ax; jmp to the end
    return head + bytes((0x74, len(work))) + work + rest  # jz to the rest


def _second_pic(irq: int) -> bytes:
    """The handler of IRQ 8-15. A spurious IRQ 15 is an interrupt to the first PIC all the same."""
    # mov al,EOI; jz over; out to the second; out to the first; pop ax; iret
    return _in_service(irq) + bytes((0xB0, 0x20, 0x74, 2, 0xE6, PIC_PORTS[1], 0xE6, PIC_PORTS[0], 0x58, 0xCF))


def _count_tick() -> bytes:
    """The time of day in the BIOS data area; a day that ends is told in BDA_TIMER_OVERFLOW."""
    wrap = struct.pack("<3BHI", 0x66, 0xC7, 0x06, BDA_TIMER_TICKS, 0)  # mov dword [ticks],0
    wrap += struct.pack("<BBHB", 0xC6, 0x06, BDA_TIMER_OVERFLOW, 1)  # mov byte [overflow],1
    count = bytes.fromhex("1e 31c0 8ed8")  # push ds; xor ax,ax; mov ds,ax
    count += struct.pack("<3BH", 0x66, 0xFF, 0x06, BDA_TIMER_TICKS)  # inc dword [ticks]
    count += struct.pack("<3BHI", 0x66, 0x81, 0x3E, BDA_TIMER_TICKS, TICKS_A_DAY)  # cmp dword [ticks],a day
    return count + bytes((0x72, len(wrap))) + wrap + b"\x1f"  # jb over; …; pop ds


class Frame(NamedTuple):
    """What an end finds on its stack: its own AX, and what the processor pushed."""

    ax: int
    ip: int
    cs: int
    flags: int


class BiosCall(NamedTuple):
    """Why a guest came to one of the ends."""

    message: str
    """One line for the user."""
    exception: bool
    """The processor's doing, not the program's: its registers are of interest."""
    frame: Frame | None
    """None where the stack is no RAM."""


def bios_call(memory: GuestMemory, *, rip: int, cs_base: int, rax: int, rsp: int, ss_base: int) -> BiosCall | None:
    """What brought a CPU in real mode with these registers to BIOS_CALL; None where it is not at one of the ends."""
    entry = ((rip & 0xFFFF) - ENDS) // ENTRY
    if cs_base != BIOS_SEGMENT << 4 or not 0 <= entry < 256:
        return None

    def word(base: int, offset: int) -> int:
        return sum(memory.read_int(base + (offset + i & 0xFFFF), 1) << 8 * i for i in range(2))

    frame, where, before = None, "a place that no stack tells", b"\0\0"
    try:
        frame = Frame(*(word(ss_base, rsp + 2 * i) for i in range(4)))
        where = f"{frame.cs:04x}:{frame.ip:04x}"
        before = word(frame.cs << 4, frame.ip - 2).to_bytes(2, "little")
    except GuestMemoryError:
        pass
    software = before == bytes((0xCD, entry)) or _ONE_BYTE_INTS.get(before[1]) == entry
    if entry < 0x10 and not software:
        name = EXCEPTIONS.get(entry)
        what = f"exception {entry:02x}h ({name})" if name else f"exception {entry:02x}h"
        return BiosCall(f"{what} at {where}: the guest has no handler, and there is no BIOS here", True, frame)
    system = "DOS" if entry in DOS_SERVICES else "BIOS"
    message = f"INT {entry:02x}h (AH={rax >> 8 & 0xFF:02x}) from {where}: there is no {system} here"
    return BiosCall(message, False, frame)
