"""The registers as gdb sees them: target.xml, and a vCPU's as its bytes.

The layout is the 64-bit one, whatever mode the processor is in: gdb cannot change its idea of it in a session. Features
by the gdb manual, G.5.15 (i386 Features); what a kernel's author wants besides is in a feature of our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kvm_cffi import Fpu, KvmError, Regs, Segment, Sregs, Vcpu

MSR_KERNEL_GS_BASE: Final = 0xC0000102
GENERAL: Final = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip",
)  # fmt: skip
SEGMENTS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
X87: Final = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
CONTROL: Final = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
CR0_PE: Final = 1
_EMPTY, _VALID, _ZERO, _SPECIAL = 3, 0, 1, 2


@dataclass(frozen=True)
class Register:
    """One of the list, in gdb's order."""

    name: str
    feature: str
    size: int
    """Bytes."""
    type: str = "int"


def _registers() -> Iterator[Register]:
    core, sse, segments, system = "i386.core", "i386.sse", "i386.segments", "pyvmm.system"
    pointers = {"rbp": "data_ptr", "rsp": "data_ptr", "rip": "code_ptr"}
    for name in GENERAL:
        yield Register(name, core, 8, pointers.get(name, "int64"))
    yield Register("eflags", core, 4, "i386_eflags")
    for name in SEGMENTS:
        yield Register(name, core, 4, "int32")
    for number in range(8):
        yield Register(f"st{number}", core, 10, "i387_ext")
    for name in X87:
        yield Register(name, core, 4, "int")
    for number in range(16):
        yield Register(f"xmm{number}", sse, 16, "vec128")
    yield Register("mxcsr", sse, 4, "int")
    for name in ("fs_base", "gs_base"):
        yield Register(name, segments, 8, "int64")
    for name in ("k_gs_base", *CONTROL):
        yield Register(name, system, 8, "int64")


REGISTERS: Final = tuple(_registers())
SIZE: Final = sum(register.size for register in REGISTERS)
"""Bytes of all of them, as the packets g and G have them."""
_NUMBERS: Final = {register.name: number for number, register in enumerate(REGISTERS)}

_FLAGS: Final = (
    ("CF", 0), ("", 1), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("DF", 10), ("OF", 11),
    ("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18), ("VIF", 19), ("VIP", 20), ("ID", 21),
)  # fmt: skip


def target_xml() -> str:
    """The description that gdb reads as target.xml."""
    lines = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', "<target>"]
    lines.append("<architecture>i386:x86-64</architecture>")
    feature = ""
    for register in REGISTERS:
        if register.feature != feature:
            if feature:
                lines.append("</feature>")
            feature = register.feature
            lines.append(f'<feature name="{"org.gnu.gdb." if feature.startswith("i386") else "org."}{feature}">')
            lines += _TYPES.get(feature, ())
        lines.append(f'<reg name="{register.name}" bitsize="{register.size * 8}" type="{register.type}"/>')
    return "\n".join([*lines, "</feature>", "</target>", ""])


_TYPES: Final = {
    "i386.core": (
        '<flags id="i386_eflags" size="4">',
        *(f'<field name="{name}" start="{bit}" end="{bit}"/>' for name, bit in _FLAGS),
        "</flags>",
    ),
    "i386.sse": (
        '<vector id="v4f" type="ieee_single" count="4"/>',
        '<vector id="v2d" type="ieee_double" count="2"/>',
        '<vector id="v16i8" type="int8" count="16"/>',
        '<vector id="v8i16" type="int16" count="8"/>',
        '<vector id="v4i32" type="int32" count="4"/>',
        '<vector id="v2i64" type="int64" count="2"/>',
        '<union id="vec128">',
        '<field name="v4_float" type="v4f"/>',
        '<field name="v2_double" type="v2d"/>',
        '<field name="v16_int8" type="v16i8"/>',
        '<field name="v8_int16" type="v8i16"/>',
        '<field name="v4_int32" type="v4i32"/>',
        '<field name="v2_int64" type="v2i64"/>',
        '<field name="uint128" type="uint128"/>',
        "</union>",
    ),
}


class CpuRegisters:
    """Those of *vcpu*, which stands still, read when they are asked for; what is set goes to KVM at once, and KvmError
    comes back where it is nothing that a processor can hold."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self.regs: Regs = vcpu.get_regs()
        self.sregs: Sregs = vcpu.get_sregs()
        self._fpu: Fpu = vcpu.get_fpu()
        self._kernel_gs_base = _kernel_gs_base(vcpu)

    def all(self) -> bytes:
        """SIZE bytes: the answer to g."""
        return b"".join(self.get(number) for number in range(len(REGISTERS)))

    def get(self, number: int) -> bytes:
        """Register *number*, little-endian; IndexError where there is none."""
        register = REGISTERS[number]
        name, fpu = register.name, self._fpu
        if name in GENERAL:
            value: int = getattr(self.regs, name)
        elif name in SEGMENTS:
            value = getattr(self.sregs, name).selector
        elif name in CONTROL:
            value = getattr(self.sregs, name)
        elif name.startswith("st"):
            return fpu.fpr[int(name[2:])][:10]
        elif name.startswith("xmm"):
            return fpu.xmm[int(name[3:])]
        else:
            value = {
                "eflags": self.regs.rflags,
                "fctrl": fpu.fcw,
                "fstat": fpu.fsw,
                "ftag": _full_tag(fpu),
                "fioff": fpu.last_ip & 0xFFFFFFFF,
                "fooff": fpu.last_dp & 0xFFFFFFFF,
                "fop": fpu.last_opcode,
                "mxcsr": fpu.mxcsr,
                "fs_base": self.sregs.fs.base,
                "gs_base": self.sregs.gs.base,
                "k_gs_base": self._kernel_gs_base,
            }.get(name, 0)  # fiseg and foseg, which 64-bit FXSAVE does not keep
        return (value & (1 << register.size * 8) - 1).to_bytes(register.size, "little")

    def set(self, number: int, data: bytes) -> None:
        """Register *number* from *data*, as many bytes as it has. ValueError for one that cannot be set."""
        register = REGISTERS[number]
        name, value = register.name, int.from_bytes(data, "little")
        if len(data) != register.size:
            raise ValueError(f"{name} has {register.size} bytes")
        if data == self.get(number):
            return
        if name in GENERAL or name == "eflags":
            setattr(self.regs, "rflags" if name == "eflags" else name, value)
            self._vcpu.set_regs(self.regs)
        elif name in SEGMENTS:
            self._set_segment(name, value)
        elif name in CONTROL:
            setattr(self.sregs, name, value)
            self._vcpu.set_sregs(self.sregs)
        elif name in ("fs_base", "gs_base"):
            segment: Segment = getattr(self.sregs, name[:2])
            segment.base = value
            self._vcpu.set_sregs(self.sregs)
        elif name == "k_gs_base":
            self._vcpu.set_msrs({MSR_KERNEL_GS_BASE: value})
            self._kernel_gs_base = value
        else:
            self._set_fpu(name, data, value)

    def set_all(self, data: bytes) -> None:
        """From the SIZE bytes of G; what is as it was is not touched."""
        if len(data) != SIZE:
            raise ValueError(f"{SIZE} bytes, not {len(data)}")
        at = 0
        for number, register in enumerate(REGISTERS):
            self.set(number, data[at : at + register.size])
            at += register.size

    def _set_segment(self, name: str, selector: int) -> None:
        """In real mode the base follows; elsewhere a selector alone would say nothing (SDM volume 3, 3.4.3)."""
        if self.sregs.cr0 & CR0_PE:
            raise ValueError(f"{name}: outside real mode a segment is loaded by the guest")
        segment: Segment = getattr(self.sregs, name)
        segment.selector, segment.base = selector & 0xFFFF, (selector & 0xFFFF) << 4
        self._vcpu.set_sregs(self.sregs)

    def _set_fpu(self, name: str, data: bytes, value: int) -> None:
        fpu = self._fpu
        if name.startswith("st"):
            fpr = list(fpu.fpr)
            fpr[int(name[2:])] = data + bytes(6)
            fpu.fpr = tuple(fpr)
        elif name.startswith("xmm"):
            xmm = list(fpu.xmm)
            xmm[int(name[3:])] = data
            fpu.xmm = tuple(xmm)
        else:
            field = {"fctrl": "fcw", "fstat": "fsw", "mxcsr": "mxcsr"}.get(name)
            if field is None:
                raise ValueError(f"{name} cannot be set")
            setattr(fpu, field, value & (0xFFFFFFFF if name == "mxcsr" else 0xFFFF))
        self._vcpu.set_fpu(fpu)


def number_of(name: str) -> int:
    return _NUMBERS[name]


def _kernel_gs_base(vcpu: Vcpu) -> int:
    try:
        return vcpu.get_msrs([MSR_KERNEL_GS_BASE]).get(MSR_KERNEL_GS_BASE, 0)
    except KvmError:  # a processor without long mode
        return 0


def _full_tag(fpu: Fpu) -> int:
    """The tag word, two bits a register, of FXSAVE's one bit (SDM volume 1, 10.5.1)."""
    top, tag = fpu.fsw >> 11 & 7, 0
    for physical in range(8):
        kind = _EMPTY
        if fpu.ftwx >> physical & 1:
            value = int.from_bytes(fpu.fpr[(physical - top) % 8][:10], "little")
            exponent, fraction = value >> 64 & 0x7FFF, value & (1 << 64) - 1
            if not exponent and not fraction:
                kind = _ZERO
            else:
                kind = _VALID if 0 < exponent < 0x7FFF and fraction >> 63 else _SPECIAL
        tag |= kind << 2 * physical
    return tag
