"""How far a Linux guest was moved: by its IDT, by VMCOREINFO, and not where it is no Linux."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_cffi import Dtable
from pyvmm.memory import GuestMemory
from pyvmm.report.elf_symbols import Symbol
from pyvmm.report.kaslr import find_shift, gate_handler, vmcoreinfo_offset
from pyvmm.report.symbols import Symbols
from tests.rig.paged import DATA, Paged, protected_cpu

LINKED = 0xFFFFFFFF81000000
IDT = 0xFFFFFE0000000000
NEW = {0: "asm_exc_divide_error", 6: "asm_exc_invalid_op", 13: "asm_exc_general_protection", 14: "asm_exc_page_fault"}
OLD = {0: "divide_error", 6: "invalid_op", 13: "general_protection", 14: "page_fault"}


def linux(names: dict[int, str]) -> Symbols:
    return Symbols(Symbol(LINKED + 0x40 * vector, name, 0, True, True) for vector, name in names.items())


def guest(shift: int, vectors: tuple[int, ...] = (0, 6, 13, 14)) -> Paged:
    paged = Paged().code(b"\xf4")
    for vector in vectors:
        paged.gate(vector, LINKED + shift + 0x40 * vector & (1 << 64) - 1, idt=IDT)
    return paged


@pytest.mark.parametrize("names", [NEW, OLD])
@pytest.mark.parametrize("shift", [0, 0x1C000000, -0x200000])
def test_the_gates_say_it(names: dict[int, str], shift: int) -> None:
    symbols, paged = linux(names), guest(shift)
    find_shift([paged.cpu()], paged.memory, symbols)
    assert (symbols.shift, symbols.shift_source) == (shift % (1 << 64), "IDT")


def test_one_gate_is_not_enough() -> None:
    symbols, paged = linux(NEW), guest(0x1C000000, (14,))
    find_shift([paged.cpu()], paged.memory, symbols)
    assert (symbols.shift, symbols.shift_source) == (0, "")


def test_gates_that_lead_elsewhere_are_outvoted() -> None:
    symbols, paged = linux(NEW), guest(0x1C000000)
    paged.gate(6, 0x1234, idt=IDT)
    find_shift([paged.cpu()], paged.memory, symbols)
    assert symbols.shift == 0x1C000000


def test_a_shift_that_is_no_whole_page() -> None:
    symbols, paged = linux(NEW), guest(0x1C000010)
    find_shift([paged.cpu()], paged.memory, symbols)
    assert symbols.shift_source == ""


def test_the_second_cpu_knows_it() -> None:
    """One that waits to be started has no IDT."""
    symbols, paged = linux(NEW), guest(0x1C000000)
    find_shift([protected_cpu(), paged.cpu()], paged.memory, symbols)
    assert symbols.shift == 0x1C000000


def test_vmcoreinfo() -> None:
    symbols = linux(NEW)
    memory = GuestMemory.of_size(0x10000)
    memory.write(0x3000, b"OSRELEASE=6.1.0\nPAGESIZE=4096\nKERNELOFFSET=1c000000\nNUMBER(x)=1\n")
    find_shift([protected_cpu()], memory, symbols)
    assert (symbols.shift, symbols.shift_source) == (0x1C000000, "VMCOREINFO")
    assert vmcoreinfo_offset(GuestMemory.of_size(0x10000)) is None
    memory.write(0x3000, b"OSRELEASE=6.1.0\nKERNELOFFSET=what\n")
    assert vmcoreinfo_offset(memory) is None


def test_what_is_no_linux_is_where_it_was_linked() -> None:
    symbols, paged = linux({14: "my_page_fault"}), guest(0x1C000000)
    find_shift([paged.cpu()], paged.memory, symbols)
    assert (symbols.shift, symbols.shift_source) == (0, "")


def test_a_gate_of_32_bits() -> None:
    cpu = protected_cpu()
    cpu.sregs.idt = Dtable(0x1000, 8 * 32 - 1)
    cpu.memory.write(0x1000 + 8 * 14, bytes.fromhex("78560800008e3412"))
    assert gate_handler(cpu, 14) == 0x12345678
    assert gate_handler(cpu, 32) is None, "beyond the limit"


@given(st.binary(min_size=256, max_size=4096), st.integers(0, (1 << 64) - 1), st.integers(0, 0xFFFF))
@settings(deadline=None)
def test_any_idt(content: bytes, base: int, limit: int) -> None:
    paged = guest(0)
    paged.memory.write(DATA, content)
    for where in (IDT, base):
        paged.sregs.idt = Dtable(where, limit)
        find_shift([paged.cpu()], paged.memory, linux(NEW))
