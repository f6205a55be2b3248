"""Why a processor gave up (triple fault), in words: found out from what it left behind, for KVM says no more than that.

The exception is looked for where the processor would meet it: the fetch at RIP, the instruction there with its
operands, the stack. What is told has been seen in registers and memory; where nothing fits, that is told. Why it was
not delivered is in delivery.py.

Source: Intel SDM volume 3, 6.15 (exceptions), 5.3 (limits); volume 1, 3.3.7.1 (canonical), 3.7.5 (addresses).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from pyvmm.report.code import INSN_LIMIT, disassembler
from pyvmm.report.cpu import RFLAGS_VM, Cpu
from pyvmm.report.delivery import BP, DB, DE, GP, NM, PF, SS, UD, undeliverable, vector_name
from pyvmm.report.symbols import Symbols
from pyvmm.vcpu.paging import CR0_PG, EFER_LMA, Access, is_canonical

PRIVILEGED: Final = frozenset((
    "hlt", "lgdt", "lidt", "lldt", "ltr", "lmsw", "clts", "invd", "wbinvd", "invlpg", "rdmsr", "wrmsr", "swapgs",
    "xsetbv",
))  # fmt: skip
"""#GP at CPL 3, whatever IOPL says (SDM volume 3, 5.9)."""
PUSHES: Final = frozenset(("push", "pushf", "pushfq", "pushfd", "pushal", "pushaw", "call", "lcall", "enter"))
POPS: Final = frozenset(
    ("pop", "popf", "popfq", "popfd", "popal", "popaw", "ret", "retf", "retfq", "iret", "iretd", "iretq", "leave")
)
UNDEFINED: Final = frozenset(("ud0", "ud1", "ud2", "ud2b"))
NO_ACCESS: Final = frozenset(
    ("lea", "nop", "prefetchw", "prefetchnta", "prefetcht0", "prefetcht1", "prefetcht2", "invlpg")
)
"""They name memory and do not touch it."""
ALIGNED: Final = frozenset(("movaps", "movapd", "movdqa", "movntps", "movntpd", "movntdq", "movntdqa"))
"""They want an address that is a multiple of their size (SDM volume 1, 14.9)."""
CR0_EM, CR0_TS = 1 << 2, 1 << 3
CR4_OSFXSR, CR4_OSXSAVE = 1 << 9, 1 << 18
WRITE: Final = 2
"""CS_AC_WRITE of capstone."""
EXPAND_DOWN: Final = 1 << 2
"""In a data segment's type."""


class Found(NamedTuple):
    """An exception that the processor must have met; vector None: which is not known."""

    vector: int | None
    what: str
    """Without where: "#PF writing 0xdeadbeef000 (not present)"."""


def triple_fault(cpu: Cpu, symbols: Symbols | None = None) -> str:
    """One line."""
    if cpu.lost:
        return "triple fault; its cause is lost: an AMD processor loses its state in a shutdown"
    found = exception(cpu)
    where = f"at RIP {place(cpu.rip, symbols)}"
    why = undeliverable(cpu, found.vector)
    return f"{found.what} {where}, {why}: triple fault" if why else f"{found.what} {where}: triple fault"


def place(address: int, symbols: Symbols | None) -> str:
    """An address as a person reads it: its symbol where there is one."""
    name = symbols.describe(address) if symbols is not None else ""
    return f"{address:#x} ({name})" if name else f"{address:#x}"


def exception(cpu: Cpu) -> Found:
    """The first exception, as far as it can be seen."""
    delivered = _in_idt(cpu)
    if delivered is not None:
        return Found(delivered, vector_name(delivered))
    if cpu.bits == 64 and not is_canonical(cpu.rip, cpu.sregs):
        return Found(GP, "#GP: RIP is not canonical")
    refused = cpu.refuses(cpu.rip, "fetch")
    if refused:
        return Found(PF, f"#PF fetching {cpu.rip:#x} ({refused})")
    code = cpu.read(cpu.rip, INSN_LIMIT)
    if not code:
        return Found(None, "no RAM to fetch from")
    made = disassembler(cpu.bits, detail=True)
    if made is None:
        return _by_cr2(cpu)
    insn = next(made.disasm(code, cpu.rip, 1), None)
    if insn is None:
        beyond = cpu.rip + len(code) & cpu.mask
        if len(code) < INSN_LIMIT and cpu.refuses(beyond, "fetch"):
            return Found(PF, f"#PF fetching {beyond:#x} ({cpu.refuses(beyond, 'fetch')})")
        return Found(UD, f"#UD: no known instruction ({code[:4].hex(' ')} …)")
    return _of_instruction(cpu, insn) or _by_cr2(cpu)


def places_touched(cpu: Cpu, code: bytes) -> list[int]:
    """The linear addresses of the memory operands of the instruction *code* at RIP."""
    made = disassembler(cpu.bits, detail=True)
    insn = next(made.disasm(code, cpu.rip, 1), None) if made is not None else None
    if insn is None or insn.mnemonic.split()[-1] in NO_ACCESS:
        return []
    places = (_place(cpu, insn, operand) for operand in insn.operands if operand.type == _capstone().CS_OP_MEM)
    return [_linear(cpu, *found) for found in places if found is not None]


def _in_idt(cpu: Cpu) -> int | None:
    """The vector whose gate could not be read: CR2 is in the IDT, and that is not mapped."""
    size = 16 if cpu.sregs.efer & EFER_LMA else 8
    offset = cpu.sregs.cr2 - cpu.sregs.idt.base
    if not cpu.sregs.cr0 & CR0_PG or not cpu.sregs.cr2 or not 0 <= offset <= min(cpu.sregs.idt.limit, 256 * size - 1):
        return None
    return offset // size if cpu.walk(cpu.sregs.cr2).physical is None else None


def _by_cr2(cpu: Cpu) -> Found:
    """What CR2 alone says."""
    cr2 = cpu.sregs.cr2
    if cpu.sregs.cr0 & CR0_PG and cr2:
        refused = cpu.walk(cr2).refuses("write", cpu.sregs, cpu.cpl == 3, cpu.regs.rflags)
        if refused:
            return Found(None, f"an exception (#PF at {cr2:#x}, {refused}, was the last page fault)")
    return Found(None, "an exception")


def _of_instruction(cpu: Cpu, insn: Any) -> Found | None:
    """What *insn*, capstone's with its details, raises; None where nothing is seen."""
    mnemonic = insn.mnemonic.split()[-1]
    if mnemonic in UNDEFINED:
        return Found(UD, f"#UD ({mnemonic})")
    if mnemonic == "int3":
        return Found(BP, "#BP (int3)")
    if mnemonic == "int1":
        return Found(DB, "#DB (int1)")
    if mnemonic == "int" and insn.operands:
        vector = insn.operands[0].imm & 0xFF
        return Found(vector, f"int {vector:#x}")
    if mnemonic in PRIVILEGED and cpu.cpl == 3:
        return Found(GP, f"#GP ({mnemonic} at CPL 3)")
    found = _of_vectors(cpu, insn, mnemonic)
    if found is not None:
        return found
    if mnemonic not in NO_ACCESS:
        for operand in insn.operands:
            if operand.type == _capstone().CS_OP_MEM:
                found = _of_memory(cpu, insn, operand)
                if found is not None:
                    return found
    if mnemonic in ("div", "idiv") and _operand_value(cpu, insn, insn.operands[0]) == 0:
        return Found(DE, f"#DE ({mnemonic} by 0)")
    if mnemonic in PUSHES:
        return _of_stack(cpu, cpu.rsp - cpu.word & cpu.mask, "write")
    if mnemonic in POPS:
        return _of_stack(cpu, cpu.rsp, "read")
    return None


def _of_vectors(cpu: Cpu, insn: Any, mnemonic: str) -> Found | None:
    """SSE and AVX where the control registers have not switched them on (SDM volume 3, 2.5 and 13.1), or unaligned."""
    names = [insn.reg_name(operand.reg) or "" for operand in insn.operands if operand.type == _capstone().CS_OP_REG]
    if not any(name.startswith(("xmm", "ymm", "zmm")) for name in names):
        return None
    avx = mnemonic.startswith("v")
    needed, bit = ("OSXSAVE", CR4_OSXSAVE) if avx else ("OSFXSR", CR4_OSFXSR)
    if not cpu.sregs.cr4 & bit:
        return Found(UD, f"#UD ({mnemonic} without CR4.{needed})")
    if not avx and cpu.sregs.cr0 & CR0_EM:
        return Found(UD, f"#UD ({mnemonic} with CR0.EM)")
    if cpu.sregs.cr0 & CR0_TS:
        return Found(NM, f"#NM ({mnemonic} with CR0.TS)")
    for operand in insn.operands:
        place = _place(cpu, insn, operand) if operand.type == _capstone().CS_OP_MEM else None
        if place is not None and mnemonic.removeprefix("v") in ALIGNED and _linear(cpu, *place) % operand.size:
            return Found(GP, f"#GP ({mnemonic} at {_linear(cpu, *place):#x}, which is not aligned to {operand.size})")
    return None


def _capstone() -> Any:
    import capstone

    return capstone


def _register(cpu: Cpu, insn: Any, number: int) -> int | None:
    """The value of a general register of capstone's; None of what is no such register."""
    if number == 0:
        return 0
    name = insn.reg_name(number) or ""
    if name in ("rip", "eip"):
        return int(insn.address) + int(insn.size)
    if name in ("riz", "eiz"):
        return 0
    for full, narrow in _NARROW.items():
        if name in narrow:
            size = narrow[name]
            return int(getattr(cpu.regs, full)) & (1 << size) - 1
    return None


def _narrow(name: str) -> dict[str, int]:
    if name[1:].isdigit():
        return {name: 64, f"{name}d": 32, f"{name}w": 16, f"{name}b": 8}
    short = name[1:]
    low = f"{short[0]}l" if short in ("ax", "bx", "cx", "dx") else f"{short}l"
    return {name: 64, f"e{short}": 32, short: 16, low: 8}


_NARROW: Final = {
    name: _narrow(name)
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
}


def _place(cpu: Cpu, insn: Any, operand: Any) -> tuple[str, int] | None:
    """The segment register and the offset of a memory operand (SDM volume 1, 3.7.5); None where they are not plain."""
    memory = operand.mem
    base, index = _register(cpu, insn, memory.base), _register(cpu, insn, memory.index)
    if base is None or index is None:
        return None
    offset = base + index * memory.scale + memory.disp & (1 << 8 * insn.addr_size) - 1
    if memory.segment:
        return insn.reg_name(memory.segment), offset
    if insn.mnemonic.split()[-1].startswith(("stos", "scas")) or (operand.access & WRITE and _is_string(insn)):
        return "es", offset
    return "ss" if insn.reg_name(memory.base) in ("rsp", "esp", "sp", "rbp", "ebp", "bp") else "ds", offset


def _linear(cpu: Cpu, segment: str, offset: int) -> int:
    if cpu.bits == 64 and segment not in ("fs", "gs"):
        return offset
    return int(getattr(cpu.sregs, segment).base) + offset & cpu.mask


def _is_string(insn: Any) -> bool:
    return insn.mnemonic.split()[-1] in ("movsb", "movsw", "movsd", "movsq", "insb", "insw", "insd")


def _of_memory(cpu: Cpu, insn: Any, operand: Any) -> Found | None:
    found = _place(cpu, insn, operand)
    if found is None:
        return None
    segment, offset = found
    size = max(operand.size, 1)
    access: Access = "write" if operand.access & WRITE else "read"
    if cpu.bits != 64 and not cpu.regs.rflags & RFLAGS_VM:
        s = getattr(cpu.sregs, segment)
        vector, where = (SS if segment == "ss" else GP), f"{segment.upper()}:{offset:#x}"
        if not cpu.real_mode and s.unusable:
            return Found(vector, f"{vector_name(vector)} {_DOING[access]} {where} (no segment is loaded)")
        if offset + size - 1 > s.limit and not s.type & EXPAND_DOWN:
            return Found(vector, f"{vector_name(vector)} {_DOING[access]} {where} (its limit is {s.limit:#x})")
    linear = _linear(cpu, segment, offset)
    for address in {linear: None, linear + size - 1 & cpu.mask: None}:
        refused = _of_access(cpu, address, access)
        if refused is not None:
            return refused
    return None


def _of_stack(cpu: Cpu, linear: int, access: Access) -> Found | None:
    found = _of_access(cpu, linear, access)
    if found is None:
        return None
    name = {GP: "#SS", PF: "#PF"}[found.vector or PF]
    what = found.what.partition(" ")[2].replace(f"{linear:#x}", f"the stack at {linear:#x}")
    return Found(SS if found.vector == GP else found.vector, f"{name} {what}")


def _of_access(cpu: Cpu, linear: int, access: Access) -> Found | None:
    if cpu.bits == 64 and not is_canonical(linear, cpu.sregs):
        return Found(GP, f"#GP {_DOING[access]} {linear:#x} (not canonical)")
    refused = cpu.refuses(linear, access)
    return Found(PF, f"#PF {_DOING[access]} {linear:#x} ({refused})") if refused else None


_DOING: Final = {"read": "reading", "write": "writing", "fetch": "fetching"}


def _operand_value(cpu: Cpu, insn: Any, operand: Any) -> int | None:
    if operand.type == _capstone().CS_OP_REG:
        name = insn.reg_name(operand.reg)
        if name in ("ah", "bh", "ch", "dh"):
            return int(getattr(cpu.regs, f"r{name[0]}x")) >> 8 & 0xFF
        return _register(cpu, insn, operand.reg)
    if operand.type == _capstone().CS_OP_MEM:
        found = _place(cpu, insn, operand)
        return None if found is None else cpu.read_word(_linear(cpu, *found), operand.size)
    return None
