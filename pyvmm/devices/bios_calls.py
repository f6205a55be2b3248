"""What a call of a PC's BIOS asks for, in words: the interrupt, the function in AH or AX, the registers that matter.

Source: Ralf Brown's Interrupt List; IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

REGISTERS: Final = struct.Struct("<3H8I4H")
"""struct regs of firmware/bios/bios.h."""
CF: Final = 0x01
ZF: Final = 0x40

Read = Callable[[int, int], bytes]
"""(guest physical address, length) -> what is there; GuestMemoryError where there is no RAM."""


class Registers(NamedTuple):
    """The caller's, and where it comes back to."""

    fs: int
    es: int
    ds: int
    edi: int
    esi: int
    ebp: int
    esp: int
    ebx: int
    edx: int
    ecx: int
    eax: int
    vector: int
    ip: int
    cs: int
    flags: int


CALLS: Final = {
    (0x10, 0x00): "set video mode {al:02x}h",
    (0x10, 0x01): "cursor shape: lines {ch} to {cl}",
    (0x10, 0x02): "move the cursor to row {dh}, column {dl} of page {bh}",
    (0x10, 0x03): "where is the cursor of page {bh}",
    (0x10, 0x05): "show page {al}",
    (0x10, 0x06): "scroll up {al} lines: rows {ch} to {dh}, columns {cl} to {dl}",
    (0x10, 0x07): "scroll down {al} lines: rows {ch} to {dh}, columns {cl} to {dl}",
    (0x10, 0x08): "read the character at the cursor of page {bh}",
    (0x10, 0x09): "write {character} {cx} times, attribute {bl:02x}h",
    (0x10, 0x0A): "write {character} {cx} times",
    (0x10, 0x0C): "pixel {cx}, {dx} = {al:02x}h",
    (0x10, 0x0D): "read pixel {cx}, {dx}",
    (0x10, 0x0E): "teletype {character}",
    (0x10, 0x0F): "which video mode",
    (0x10, 0x10): "palette, function {al:02x}h",
    (0x10, 0x11): "character generator, function {al:02x}h",
    (0x10, 0x12): "video configuration, function {bl:02x}h",
    (0x10, 0x13): "write a string of {cx} at {es:04x}:{bp:04x} to row {dh}, column {dl}",
    (0x10, 0x1A): "which display",
    (0x11, None): "equipment",
    (0x12, None): "base memory",
    (0x13, 0x00): "reset drive {dl:02x}h",
    (0x13, 0x01): "status of drive {dl:02x}h",
    (0x13, 0x02): "read {al} sectors of drive {dl:02x}h from {chs} to {es:04x}:{bx:04x}",
    (0x13, 0x03): "write {al} sectors of drive {dl:02x}h to {chs} from {es:04x}:{bx:04x}",
    (0x13, 0x04): "verify {al} sectors of drive {dl:02x}h from {chs}",
    (0x13, 0x08): "parameters of drive {dl:02x}h",
    (0x13, 0x15): "type of drive {dl:02x}h",
    (0x13, 0x41): "has drive {dl:02x}h extensions",
    (0x13, 0x42): "extended read of drive {dl:02x}h: {packet}",
    (0x13, 0x43): "extended write of drive {dl:02x}h: {packet}",
    (0x13, 0x44): "extended verify of drive {dl:02x}h: {packet}",
    (0x13, 0x47): "extended seek of drive {dl:02x}h: {packet}",
    (0x13, 0x48): "extended parameters of drive {dl:02x}h to {ds:04x}:{si:04x}",
    (0x14, 0x00): "set up serial port {dx}",
    (0x14, 0x01): "send {character} on serial port {dx}",
    (0x14, 0x02): "receive on serial port {dx}",
    (0x14, 0x03): "status of serial port {dx}",
    (0x15, 0x2400): "close A20",
    (0x15, 0x2401): "open A20",
    (0x15, 0x2402): "is A20 open",
    (0x15, 0x2403): "which gates has A20",
    (0x15, 0x4F): "key with scan code {al:02x}h",
    (0x15, 0x53): "power management, function {al:02x}h",
    (0x15, 0x86): "wait {microseconds} microseconds",
    (0x15, 0x87): "move {cx} words by the descriptors at {es:04x}:{si:04x}",
    (0x15, 0x88): "memory above 1 MiB",
    (0x15, 0xC0): "configuration",
    (0x15, 0xC1): "segment of the EBDA",
    (0x15, 0xE801): "memory above 1 MiB and above 16 MiB",
    (0x15, 0xE820): "memory map, entry {ebx} to {es:04x}:{di:04x}",
    (0x16, 0x00): "wait for a key",
    (0x16, 0x01): "is there a key",
    (0x16, 0x02): "shift keys",
    (0x16, 0x05): "put key {cx:04x}h",
    (0x16, 0x10): "wait for a key of 101",
    (0x16, 0x11): "is there a key of 101",
    (0x16, 0x12): "all shift keys",
    (0x18, None): "no operating system",
    (0x19, None): "boot",
    (0x1A, 0x00): "ticks since midnight",
    (0x1A, 0x01): "set the ticks since midnight",
    (0x1A, 0x02): "what time is it",
    (0x1A, 0x03): "set the time",
    (0x1A, 0x04): "which day is it",
    (0x1A, 0x05): "set the day",
    (0x1A, 0x06): "set the alarm",
    (0x1A, 0x07): "alarm off",
    (0x1A, 0xB101): "is there a PCI BIOS",
    (0x1A, 0xB102): "find PCI device {cx:04x}h of vendor {dx:04x}h, number {si}",
    (0x1A, 0xB103): "find PCI class {ecx:06x}h, number {si}",
    (0x1A, 0xB108): "read a byte of PCI {bdf}, register {di:02x}h",
    (0x1A, 0xB109): "read a word of PCI {bdf}, register {di:02x}h",
    (0x1A, 0xB10A): "read 4 bytes of PCI {bdf}, register {di:02x}h",
    (0x1A, 0xB10B): "write a byte of PCI {bdf}, register {di:02x}h = {cl:02x}h",
    (0x1A, 0xB10C): "write a word of PCI {bdf}, register {di:02x}h = {cx:04x}h",
    (0x1A, 0xB10D): "write 4 bytes of PCI {bdf}, register {di:02x}h = {ecx:08x}h",
}
"""By the interrupt and AH, or AX, or neither."""


def _words(registers: Registers, read: Read) -> dict[str, int | str]:
    """What CALLS may name: registers, halves of them, and what they mean together."""
    words: dict[str, int | str] = dict(registers._asdict())
    for name in "abcd":
        value = getattr(registers, f"e{name}x")
        words |= {f"{name}x": value & 0xFFFF, f"{name}h": value >> 8 & 0xFF, f"{name}l": value & 0xFF}
    for name in ("si", "di", "bp"):
        words[name] = getattr(registers, f"e{name}") & 0xFFFF
    ecx, edx, ebx = registers.ecx, registers.edx, registers.ebx
    cylinder = ecx >> 8 & 0xFF | (ecx & 0xC0) << 2
    words["chs"] = f"cylinder {cylinder}, head {edx >> 8 & 0xFF}, sector {ecx & 0x3F}"
    words["character"] = repr(chr(registers.eax & 0xFF))
    words["microseconds"] = (ecx & 0xFFFF) << 16 | edx & 0xFFFF
    words["bdf"] = f"{ebx >> 8 & 0xFF:02x}:{ebx >> 3 & 0x1F:02x}.{ebx & 7}"
    if registers.vector == 0x13 and 0x42 <= registers.eax >> 8 & 0xFF <= 0x47:
        words["packet"] = _packet(registers, read)
    return words


def _packet(registers: Registers, read: Read) -> str:
    """The disk address packet at DS:SI (EDD 3.0, table 1)."""
    try:
        data = read((registers.ds << 4) + (registers.esi & 0xFFFF), 16)
    except ValueError:  # no RAM
        return "no packet"
    _, _, count, offset, segment, block = struct.unpack("<BBHHHQ", data)
    return f"{count} sectors from {block}, {segment:04x}:{offset:04x}"


def _function(registers: Registers) -> tuple[str, str | None]:
    """How the function is written, and what CALLS has of it."""
    vector, ax = registers.vector, registers.eax & 0xFFFF
    ah = ax >> 8
    if (vector, ax) in CALLS and ax > 0xFF:
        return f" AX={ax:04x}h", CALLS[vector, ax]
    if (vector, None) in CALLS:
        return "", CALLS[vector, None]
    return f" AH={ah:02x}h", CALLS.get((vector, ah))


def asked(registers: Registers, read: Read) -> str:
    """One line of a call."""
    function, words = _function(registers)
    what = "" if words is None else f": {words.format(**_words(registers, read))}"
    return f"INT {registers.vector:02x}h{function}{what} (from {registers.cs:04x}:{registers.ip:04x})"


def answered(before: Registers, after: Registers) -> str:
    """One line of its return: CF, ZF where INT 16h has it, and the registers that are others now."""
    function, _ = _function(before)
    told = [f"CF={after.flags & CF}"]
    if before.vector == 0x16 and before.eax >> 8 & 0xEF == 0x01:
        told.append(f"ZF={int(after.flags & ZF != 0)}")
    for name in ("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "es"):
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        if name != "es" and old >> 16 == new >> 16:
            told.append(f"{name[1:].upper()}={new & 0xFFFF:04x}h")
        else:
            told.append(f"{name.upper()}={new:x}h")
    return f"INT {before.vector:02x}h{function} returns {' '.join(told)}"
