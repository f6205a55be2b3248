"""The code at RIP, disassembled; by capstone, which is imported where it is needed and may be missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from pyvmm.report.cpu import Cpu
from pyvmm.report.symbols import Symbols

LINES: Final = 5
BEFORE: Final = 2
"""So many of them are in front of RIP."""
INSN_LIMIT: Final = 15
"""Bytes of the longest instruction (Intel SDM volume 2, 2.3.11)."""
BACK: Final = 48
"""Bytes in front of RIP that are tried, where no symbol says where the function begins."""
FUNCTION_LIMIT: Final = 8192
CODE_BEFORE, CODE_AFTER = 16, 16
"""Bytes that are shown where there is no disassembler."""
_Insn = tuple[int, int, str, str]
"""Address, size, mnemonic, operands: what disasm_lite() gives."""
NO_CAPSTONE: Final = "pip install capstone disassembles them"


def disassembler(bits: int, detail: bool = False) -> Any:
    """capstone's, for code of so many bits; None where it is not installed, or does not load."""
    try:
        import capstone
    except Exception:  # its shared library may be missing too
        return None
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    made = capstone.Cs(capstone.CS_ARCH_X86, mode)
    made.detail = detail
    return made


def code_lines(cpu: Cpu, symbols: Symbols | None = None, insn_bytes: bytes = b"") -> list[str]:
    """Five instructions, RIP's marked, under a line that says where; bytes where they cannot be disassembled.

    *insn_bytes* is the instruction as KVM saw it, for where it cannot be read any more.
    """
    name = symbols.describe(cpu.rip) if symbols is not None else ""
    head = f"code at {cpu.rip:#x}{f' {name}' if name else ''}"
    made = disassembler(cpu.bits)
    ahead = cpu.read(cpu.rip, INSN_LIMIT * LINES)
    if made is None:
        return [f"{head}: {code_bytes(cpu)}", f"({NO_CAPSTONE})"]
    if not ahead:
        ahead = insn_bytes
    if not ahead:
        return [f"{head}: {cpu.refuses(cpu.rip, 'fetch') or 'no RAM there'}"]
    before = _before(cpu, symbols, made)
    after = list(made.disasm_lite(ahead, cpu.rip, LINES - len(before)))
    if not after:
        unknown = f"> {cpu.rip:#x}  {ahead[:INSN_LIMIT].hex(' ')}  no instruction"
        return [f"{head}:", *(_line(cpu, insn) for insn in before), unknown]
    return [f"{head}:", *(_line(cpu, insn) for insn in (*before, *after))]


def _line(cpu: Cpu, insn: _Insn) -> str:
    address, size, mnemonic, operands = insn
    mark = ">" if address == cpu.rip else " "
    return f"{mark} {address:#x}  {cpu.read(address, size).hex(' '):<30} {mnemonic} {operands}".rstrip()


def _before(cpu: Cpu, symbols: Symbols | None, made: Any) -> Sequence[_Insn]:
    """The two instructions in front of RIP. From the start of its function they are certain; else those are taken that
    most starts lead to, for x86 code falls into step by itself."""
    start = symbols.start(cpu.rip) if symbols is not None else None
    if start is not None and cpu.rip - start <= FUNCTION_LIMIT:
        found = _ending_at(cpu, made, start)
        return [] if found is None else found
    votes: Counter[tuple[_Insn, ...]] = Counter()
    for back in range(1, min(BACK, cpu.rip) + 1):
        found = _ending_at(cpu, made, cpu.rip - back)
        if found is not None and len(found) == BEFORE:
            votes[tuple(found)] += 1
    return votes.most_common(1)[0][0] if votes else []


def _ending_at(cpu: Cpu, made: Any, start: int) -> list[_Insn] | None:
    """The last instructions from *start* to RIP; None where the code does not come by there."""
    data = cpu.read(start, cpu.rip - start)
    if len(data) < cpu.rip - start:
        return None
    last: list[_Insn] = []
    end = start
    for insn in made.disasm_lite(data, start):
        end = insn[0] + insn[1]
        last = [*last[-BEFORE + 1 :], insn]
    return last if end == cpu.rip else None


def code_bytes(cpu: Cpu) -> str:
    """The bytes around RIP, the one at it in brackets; ?? where no RAM is mapped."""
    out = []
    for offset in range(-CODE_BEFORE, CODE_AFTER):
        data = cpu.read(cpu.rip + offset & cpu.mask, 1)
        text = data.hex() or "??"
        out.append(f"[{text}]" if offset == 0 else text)
    return " ".join(out)
