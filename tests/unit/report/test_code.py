"""The code at RIP: five lines of it, where there is that much to see."""

from __future__ import annotations

import sys

import pytest

from pyvmm.report.code import code_bytes, code_lines
from pyvmm.report.elf_symbols import Symbol
from pyvmm.report.symbols import Symbols
from tests.rig.paged import CODE, Paged, protected_cpu, real_cpu

# xor eax,eax; mov ebx,0x12345678; mov [rax],rbx; nop; ret
FUNCTION = bytes.fromhex("31c0 bb78563412 488918 90 c3")


def at(offset: int) -> Paged:
    paged = Paged().code(b"\xcc" * 0x40 + FUNCTION + b"\xcc" * 0x40)
    paged.regs.rip = CODE + 0x40 + offset
    return paged


def test_from_the_start_of_its_function() -> None:
    symbols = Symbols([Symbol(CODE + 0x40, "store", 0x20, True, True)])
    assert code_lines(at(7).cpu(), symbols) == [
        "code at 0x10047 store+0x7:",
        "  0x10040  31 c0                          xor eax, eax",
        "  0x10042  bb 78 56 34 12                 mov ebx, 0x12345678",
        "> 0x10047  48 89 18                       mov qword ptr [rax], rbx",
        "  0x1004a  90                             nop",
        "  0x1004b  c3                             ret",
    ]


def test_without_a_symbol() -> None:
    assert (
        code_lines(at(7).cpu())[1:] == code_lines(at(7).cpu(), Symbols([Symbol(CODE + 0x40, "f", 0, True, True)]))[1:]
    )


def test_at_the_start_of_its_function() -> None:
    symbols = Symbols([Symbol(CODE + 0x40, "store", 0x20, True, True)])
    lines = code_lines(at(0).cpu(), symbols)
    assert len(lines) == 6 and lines[1].startswith("> 0x10040 ")


def test_rip_in_the_middle_of_an_instruction() -> None:
    symbols = Symbols([Symbol(CODE + 0x40, "store", 0x20, True, True)])
    assert code_lines(at(3).cpu(), symbols)[1].startswith("> 0x10043 ")


def test_the_first_code_of_a_page() -> None:
    paged = Paged().code(FUNCTION)
    assert code_lines(paged.cpu())[1].startswith("> 0x10000  31 c0 ")


def test_the_last_bytes_that_are_mapped() -> None:
    paged = Paged().code(b"\x48\x89", CODE + 0xFFE)
    lines = code_lines(paged.cpu())
    assert lines[-1] == "> 0x10ffe  48 89  no instruction"


def test_widths() -> None:
    assert code_lines(real_cpu(b"\xb8\x34\x12"))[-3].endswith("mov ax, 0x1234")
    assert code_lines(protected_cpu(b"\xb8\x34\x12\0\0"))[-3].endswith("mov eax, 0x1234")


def test_nothing_mapped() -> None:
    paged = at(0)
    paged.regs.rip = 0x9999999999
    assert code_lines(paged.cpu()) == ["code at 0x9999999999: not present"]
    lines = code_lines(paged.cpu(), insn_bytes=b"\xd9\x03")
    assert lines[1].startswith("> 0x9999999999 ") and lines[1].endswith("fld dword ptr [rbx]")


def test_without_capstone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "capstone", None)
    lines = code_lines(at(7).cpu())
    assert lines[0].startswith("code at 0x10047: ") and "bb 78 56 34 12 [48] 89 18 90 c3" in lines[0]
    assert lines[1] == "(pip install capstone disassembles them)"


def test_bytes_at_the_ends_of_the_address_space() -> None:
    for rip in (0, 5, (1 << 64) - 1, 1 << 63, (1 << 32) - 1):
        paged = at(0)
        paged.regs.rip = rip
        assert len(code_bytes(paged.cpu()).split()) == 32
