"""The whole page: what is on it, that it fits a screen, and that nothing of the guest's can break it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_cffi import Dtable, ExitRecord, KvmError, Regs, Segment, Sregs, constants
from kvm_cffi.exits import FailEntry, InternalError, Shutdown
from pyvmm.machine.autopsy import _cause
from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.report.cpu import Cpu
from pyvmm.report.elf_symbols import Symbol
from pyvmm.report.kaslr import find_shift
from pyvmm.report.page import COLUMNS, Context, describe_mode, fit, page, vcpu_report, wrap
from pyvmm.report.symbols import Symbols
from pyvmm.vcpu.paging import CR0_PG, CR4_PAE, EFER_LMA
from tests.rig.paged import CODE, Paged, real_cpu

LINES = 40


def sregs(cr0: int = 0, efer: int = 0, cs_l: int = 0, cs_db: int = 0, dpl: int = 0) -> Sregs:
    return Sregs(cr0=cr0, efer=efer, cs=Segment(l=cs_l, db=cs_db), ss=Segment(dpl=dpl))


@pytest.mark.parametrize(
    ("state", "rflags", "mode"),
    [
        (sregs(), 2, "real mode"),
        (sregs(cr0=1), 2, "16-bit protected mode, paging off, CPL 0"),
        (sregs(cr0=1, cs_db=1), 2, "32-bit protected mode, paging off, CPL 0"),
        (sregs(cr0=1 | 1 << 31, cs_db=1, dpl=3), 2, "32-bit protected mode, paging on, CPL 3"),
        (sregs(cr0=1 | 1 << 31), 2 | 1 << 17, "virtual-8086 mode"),
        (sregs(cr0=1 | 1 << 31, efer=0x500, cs_l=1), 2, "64-bit long mode, paging on, CPL 0"),
        (sregs(cr0=1 | 1 << 31, efer=0x500, cs_db=1, dpl=3), 2, "compatibility mode, paging on, CPL 3"),
    ],
)
def test_modes(state: Sregs, rflags: int, mode: str) -> None:
    assert describe_mode(state, rflags) == mode


class FakeVcpu:
    id = 1
    exits = 2

    def get_regs(self) -> Regs:
        return Regs(rax=0x1234, rip=0x10, rflags=0x246)

    def get_sregs(self) -> Sregs:
        return Sregs(cr0=0x10, cs=Segment(base=0x1000, selector=0x100))

    def get_mp_state(self) -> int:
        raise KvmError(22, "KVM_GET_MP_STATE")

    def last_exits(self) -> list[ExitRecord]:
        return [ExitRecord(1, constants.KVM_EXIT_HLT, 0, 0, 0, False, 0)]


def test_the_report_of_a_vcpu() -> None:
    memory = GuestMemory([(0, memoryview(bytearray(0x10000)))])
    report = vcpu_report(FakeVcpu(), memory, Context(insn_bytes=b"\xd9\x03"))  # type: ignore[arg-type]
    lines = report.splitlines()
    assert lines[0] == "vCPU 1: real mode"
    assert "RAX 0000000000001234" in lines[1]
    assert "RIP 0000000000000010  RFLAGS 00000246 [PF ZF IF]" in report
    assert " CS 0100 base 00001000" in report
    assert "> 0x1010  00 00 " in report
    assert "instruction that KVM could not emulate: d9 03" in report
    assert lines[-2:] == ["last exits of 2:", "       1 KVM_EXIT_HLT"]
    assert "could not emulate" not in vcpu_report(FakeVcpu(), memory)  # type: ignore[arg-type]


def test_cr2_where_it_matters() -> None:
    paged = Paged().code(b"\xf4")
    paged.sregs.cr2 = 0xDEADBEEF000
    assert any(line.startswith("CR2 0xdeadbeef000: PML4[1b] 0x0 > not present") for line in page(paged.cpu()))
    assert not any(line.startswith("CR2 0x") for line in page(paged.cpu(), Context(faulted=False)))
    assert not any(line.startswith("CR2 0x") for line in page(real_cpu()))


def test_where_the_symbols_are_from() -> None:
    symbols = Symbols([Symbol(CODE, "f", 0, True, True)], "System.map")
    assert "symbols: System.map, as linked" in page(Paged().code(b"\xf4").cpu(), Context(symbols))
    symbols.shift, symbols.shift_source = -0x1000 % (1 << 64), "IDT"
    assert "symbols: System.map, shifted by -0x1000 (from the IDT)" in page(Paged().code(b"").cpu(), Context(symbols))


def test_lines_are_as_wide_as_the_screen() -> None:
    assert fit(["x" * COLUMNS, "y" * (COLUMNS + 1), "\x1b[2J"]) == [
        "x" * COLUMNS,
        "y" * (COLUMNS - 1) + "…",
        "\\x1b[2J",
    ]
    assert all(len(line) <= COLUMNS for line in wrap("a long line of words " * 20)) and wrap("") == [""]


QUAD = st.integers(0, (1 << 64) - 1)
NEAR = st.integers(0, 0x1FFF) | st.integers((1 << 64) - 0x20, (1 << 64) - 1)
ADDRESS = QUAD | NEAR
SEGMENT = st.builds(
    Segment,
    base=ADDRESS,
    limit=st.integers(0, (1 << 32) - 1),
    selector=st.integers(0, 0xFFFF),
    type=st.integers(0, 15),
    dpl=st.integers(0, 3),
    db=st.integers(0, 1),
    l=st.integers(0, 1),
    unusable=st.integers(0, 1),
)
DTABLE = st.builds(Dtable, ADDRESS, st.integers(0, 0xFFFF))
SREGS = st.builds(
    Sregs,
    cr0=st.sampled_from([0, 1, CR0_PG | 1]),
    cr2=ADDRESS,
    cr3=NEAR,
    cr4=st.sampled_from([0, 1 << 4, CR4_PAE, CR4_PAE | 1 << 12, CR4_PAE | 1 << 20 | 1 << 21]),
    efer=st.sampled_from([0, 0x500, 0xD00, EFER_LMA]),
    gdt=DTABLE,
    idt=DTABLE,
    **dict.fromkeys(("cs", "ss", "ds", "es", "fs", "gs", "tr"), SEGMENT),
)
REGS = st.builds(Regs, **dict.fromkeys(("rax", "rbx", "rcx", "rsi", "rdi", "rsp", "rbp", "rip", "rflags"), ADDRESS))
TABLE_ENTRY = st.integers(0, 0xFFF) | st.sampled_from([0x1000 | 7, 0x2000 | 7, 0x87, 0x83, 0x1FFF, 1 << 63 | 0x1007])


class Watched(GuestMemory):
    """RAM that remembers what was asked of it, and that it is only read."""

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        raise AssertionError("written")

    def view(self, gpa: int, length: int) -> memoryview:
        raise AssertionError("a view to write through")


@given(REGS, SREGS, st.lists(QUAD | TABLE_ENTRY, min_size=16, max_size=64), st.binary(max_size=64), st.booleans())
@settings(max_examples=600, deadline=None)
def test_anything_in_registers_and_memory(
    regs: Regs, state: Sregs, words: list[int], code: bytes, symbolic: bool
) -> None:
    """Nothing raises, nothing is written, and it fits the screen."""
    ram = bytearray(b"".join(word.to_bytes(8, "little") for word in words) * 48)
    ram[0x800 : 0x800 + len(code)] = code
    memory = Watched([(0, memoryview(ram))])
    records = (ExitRecord(0, constants.KVM_EXIT_SHUTDOWN, 0, 0, 0, False, 0),)
    cpu = Cpu(0, regs, state, memory, records=records, exits=1)
    symbols = Symbols([Symbol(a, n, 0, True, True) for a, n in ((0x100, "page_fault"), (0x140, "divide_error"))], "map")
    if symbolic:
        find_shift([cpu], memory, symbols)
    lines = page(cpu, Context(symbols if symbolic else None, code[:15]))
    for reason in (
        Shutdown(),
        FailEntry(0x80000021, 0),
        InternalError(1, (), code[:15]),
        InternalError(3, (regs.rax, regs.rbx, regs.rcx), b""),
        KvmError(14, "KVM_RUN"),
    ):
        cause = wrap(_cause(reason, cpu, symbols if symbolic else None))
        assert all(len(line) <= COLUMNS and line.isprintable() for line in [*cause, *lines])
        assert 1 + len(cause) + len(lines) <= LINES


@given(REGS, SREGS)
@settings(max_examples=50, deadline=None)
def test_no_ram_at_all(regs: Regs, state: Sregs) -> None:
    memory = GuestMemory()
    with pytest.raises(GuestMemoryError):
        memory.read(0, 1)
    cpu = Cpu(0, regs, state, memory)
    assert page(cpu) and _cause(Shutdown(), cpu, None)
