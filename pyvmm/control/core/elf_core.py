"""The form of an ELF core file of 64 bits for x86: header, program headers, notes.

Source: System V ABI, chapters 4 and 5 (ELF header, program header, note section); Linux include/uapi/linux/elf.h
(ET_CORE, NT_PRSTATUS), include/linux/elfcore.h (struct elf_prstatus), arch/x86/include/asm/user_64.h (struct
user_regs_struct), kernel/crash_core.c (the note VMCOREINFO).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from kvm_cffi import Regs, Sregs
from pyvmm.boot.elf import ELF_MAGIC, ELFCLASS64, ELFDATA2LSB, EM_X86_64, PT_LOAD, PT_NOTE
from pyvmm.boot.lowmem import align_up

ET_CORE: Final = 4
EV_CURRENT: Final = 1
NT_PRSTATUS: Final = 1
PF_R, PF_W, PF_X = 4, 2, 1
USER_REGS: Final = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
NO_SYSTEM_CALL: Final = (1 << 64) - 1
"""orig_rax where none is on its way."""
EHDR: Final = struct.Struct("<4s5B7xHHIQQQIHHHHHH")
PHDR: Final = struct.Struct("<IIQQQQQQ")
NHDR: Final = struct.Struct("<III")
_PRSTATUS_HEAD: Final = 112
_PRSTATUS: Final = struct.Struct(f"<{_PRSTATUS_HEAD}x{len(USER_REGS)}Qi4x")
_PID: Final = 32


class LoadedRange(NamedTuple):
    """A PT_LOAD: *size* bytes at *offset* of the file were at guest physical and at linear address."""

    offset: int
    linear: int
    physical: int
    size: int


def note(name: bytes, kind: int, desc: bytes) -> bytes:
    """One note; *name* without its NUL."""
    parts = (NHDR.pack(len(name) + 1, len(desc), kind), name + b"\0", desc)
    return b"".join(part.ljust(align_up(len(part), 4), b"\0") for part in parts)


def prstatus(number: int, regs: Regs, sregs: Sregs) -> bytes:
    """The note of vCPU *number*, whose process number is one more: gdb takes 0 for none."""
    values = {
        "orig_rax": NO_SYSTEM_CALL,
        "eflags": regs.rflags,
        "fs_base": sregs.fs.base,
        "gs_base": sregs.gs.base,
        **{name: getattr(sregs, name).selector for name in ("cs", "ss", "ds", "es", "fs", "gs")},
    }
    words = [values[name] if name in values else getattr(regs, name) for name in USER_REGS]
    desc = bytearray(_PRSTATUS.pack(*words, 0))
    desc[_PID : _PID + 4] = (number + 1).to_bytes(4, "little")
    return note(b"CORE", NT_PRSTATUS, bytes(desc))


def headers(notes: bytes, segments: Sequence[LoadedRange]) -> bytes:
    """What the file begins with: header, program headers, *notes*; headers_size() bytes."""
    count = len(segments) + 1
    notes_at = EHDR.size + count * PHDR.size
    ident = (ELF_MAGIC, ELFCLASS64, ELFDATA2LSB, EV_CURRENT, 0, 0)
    sizes = (EHDR.size, PHDR.size, count, 0, 0, 0)
    made = [EHDR.pack(*ident, ET_CORE, EM_X86_64, EV_CURRENT, 0, EHDR.size, 0, 0, *sizes)]
    made.append(PHDR.pack(PT_NOTE, 0, notes_at, 0, 0, len(notes), len(notes), 4))
    for offset, linear, physical, size in segments:
        made.append(PHDR.pack(PT_LOAD, PF_R | PF_W | PF_X, offset, linear, physical, size, size, 0))
    return b"".join([*made, notes])


def headers_size(notes: bytes, segments: int) -> int:
    """Bytes of headers() with so many *segments*."""
    return EHDR.size + (segments + 1) * PHDR.size + len(notes)
