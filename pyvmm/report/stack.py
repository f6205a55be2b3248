"""Who called: by frame pointers where the code has them, else by a scan of the stack whose lines are marked with `?`.

A line with `?` is an address of code that lies on the stack, as in Linux' own traces (arch/x86/kernel/dumpstack.c,
show_trace_log_lvl): most are callers, some are left over from before.
"""

from __future__ import annotations

from typing import Final

from pyvmm.report.cpu import Cpu
from pyvmm.report.symbols import Symbols

FRAMES: Final = 8
"""Lines at the most."""
SCANNED: Final = 4096
"""Bytes of stack that are scanned."""
FRAME_LIMIT: Final = 1 << 16
"""Bytes of the largest frame that is believed."""
WORDS: Final = {2: 12, 4: 8, 8: 4}
"""Words of the stack that are shown where no code is found on it, by their size."""


def stack_lines(cpu: Cpu, symbols: Symbols | None = None) -> list[str]:
    """The stack of *cpu*, of its user where that runs."""
    found = frames(cpu, symbols)
    by = "frame pointers"
    if not found:
        found = scan(cpu, symbols)
        by = "scan"
    if found:
        return [f"stack at {cpu.rsp:#x}, by {by}:", *(f"  {line}" for line in found)]
    data = cpu.read(cpu.rsp, WORDS[cpu.word] * cpu.word)
    words = [data[i : i + cpu.word] for i in range(0, len(data) // cpu.word * cpu.word, cpu.word)]
    if not words:
        return [f"stack at {cpu.rsp:#x}: {cpu.refuses(cpu.rsp, 'read') or 'no RAM there'}"]
    return [f"stack at {cpu.rsp:#x}: {' '.join(word[::-1].hex() for word in words)}"]


def frames(cpu: Cpu, symbols: Symbols | None) -> list[str]:
    """The chain of frame pointers, which rise, from RBP; empty where it does not lead to code at once.

    System V ABI, AMD64 supplement, 3.2.2: at RBP lies the caller's RBP, behind it the return address.
    """
    if cpu.bits == 16:
        return []
    out: list[str] = []
    frame, below = cpu.regs.rbp & cpu.mask, cpu.rsp
    while len(out) < FRAMES and below <= frame < below + FRAME_LIMIT and frame % cpu.word == 0:
        back = cpu.read_word(frame + cpu.word, cpu.word)
        if back is None or not _returns_to(cpu, back, symbols):
            break
        out.append(_line(back, symbols))
        below = frame + 2 * cpu.word
        frame = cpu.read_word(frame, cpu.word) or 0
    return out


def scan(cpu: Cpu, symbols: Symbols | None) -> list[str]:
    """Words on the stack that code may return to."""
    if cpu.bits == 16:
        return []
    out: list[str] = []
    data = cpu.read(cpu.rsp, SCANNED)
    for i in range(0, len(data) - cpu.word + 1, cpu.word):
        value = int.from_bytes(data[i : i + cpu.word], "little")
        if len(out) < FRAMES and value and _returns_to(cpu, value, symbols):
            out.append(f"? {_line(value, symbols)}")
    return out


def _line(address: int, symbols: Symbols | None) -> str:
    name = symbols.describe(address) if symbols is not None else ""
    return f"{address:#x} {name}".rstrip()


def _returns_to(cpu: Cpu, address: int, symbols: Symbols | None) -> bool:
    """Whether a call may have pushed *address*: it is in known code, where there are symbols; and there is a call in
    front of it, where that can be read."""
    if symbols is not None and not symbols.describe(address):
        return False
    if not cpu.executes(address):
        return False
    start = address - 7 & cpu.mask
    return _ends_in_call(cpu.read(start, 7))


def _ends_in_call(code: bytes) -> bool:
    """E8 with its 4 bytes, or FF /2 with a ModR/M byte and what that asks for (Intel SDM volume 2, CALL)."""
    if len(code) < 7:
        return False
    if code[-5] == 0xE8:
        return True
    return any(
        code[-size] == 0xFF and code[-size + 1] >> 3 & 7 == 2 and _length(code[-size:]) == size for size in range(2, 8)
    )


def _length(code: bytes) -> int:
    """The bytes of an instruction of one opcode byte, ModR/M and no immediate (SDM volume 2, tables 2-2 and 2-3)."""
    modrm = code[1]
    mod, rm = modrm >> 6, modrm & 7
    if mod == 3:
        return 2
    length = 2
    if rm == 4:
        length += 1
        if len(code) > 2 and code[2] & 7 == 5 and mod == 0:
            return length + 4
    elif rm == 5 and mod == 0:
        return length + 4
    return length + (0, 1, 4)[mod]
