"""Why a processor gave up: every exception that can be seen, and every reason not to deliver it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvm_cffi import Dtable, ExitRecord, Segment, constants
from pyvmm.report import code
from pyvmm.report.cause import exception, places_touched, triple_fault
from pyvmm.report.cpu import Cpu
from pyvmm.report.delivery import undeliverable
from pyvmm.report.elf_symbols import Symbol
from pyvmm.report.symbols import Symbols
from pyvmm.vcpu.paging import NX, P, W
from tests.rig.paged import CODE, DATA, STACK, Paged, protected_cpu, real_cpu

AWAY = 0xDEADBEEF000
WRITE, READ = "488918", "488b18"  # mov [rax], rbx and mov rbx, [rax]


def dead(code: str, cpl: int = 0, cr2: int = 0, **regs: int) -> Cpu:
    paged = Paged().code(bytes.fromhex(code))
    for name, value in regs.items():
        setattr(paged.regs, name, value)
    paged.sregs.ss.dpl = cpl
    paged.sregs.cr2 = cr2
    paged.map(0x40000, DATA, P)
    paged.map(0x50000, DATA, P | W | NX)
    return paged.cpu()


def test_the_whole_sentence() -> None:
    cpu = dead(WRITE, rax=AWAY, cr2=AWAY)
    assert triple_fault(cpu) == "#PF writing 0xdeadbeef000 (not present) at RIP 0x10000, no IDT: triple fault"
    symbols = Symbols([Symbol(CODE - 0x10, "boot", 0, True, True)])
    assert " at RIP 0x10000 (boot+0x10), no IDT" in triple_fault(cpu, symbols)


@pytest.mark.parametrize(
    ("code", "regs", "vector", "what"),
    [
        (WRITE, {"rax": AWAY}, 14, "#PF writing 0xdeadbeef000 (not present)"),
        (READ, {"rax": AWAY}, 14, "#PF reading 0xdeadbeef000 (not present)"),
        (WRITE, {"rax": 0x40000}, 14, "#PF writing 0x40000 (read-only)"),
        (READ, {"rax": AWAY << 8}, 13, "#GP reading 0xdeadbeef00000 (not canonical)"),
        (READ, {"rax": 0x50FFC}, 14, "#PF reading 0x51003 (not present)"),
        ("488b5c8810", {"rax": AWAY, "rcx": 4}, 14, "#PF reading 0xdeadbeef020 (not present)"),
        ("48891d00000700", {}, 14, "#PF writing 0x80007 (not present)"),
        ("64488b18", {"rax": AWAY}, 14, "#PF reading 0xdeadbeef000 (not present)"),
        ("f348ab", {"rdi": AWAY, "rcx": 1}, 14, "#PF writing 0xdeadbeef000 (not present)"),
        ("48a5", {"rsi": STACK, "rdi": AWAY}, 14, "#PF writing 0xdeadbeef000 (not present)"),
        ("53", {"rsp": AWAY}, 14, "#PF writing the stack at 0xdeadbeeeff8 (not present)"),
        ("e800000000", {"rsp": 0x50000}, 14, "#PF writing the stack at 0x4fff8 (not present)"),
        ("c3", {"rsp": AWAY}, 14, "#PF reading the stack at 0xdeadbeef000 (not present)"),
        ("c3", {"rsp": AWAY << 8}, 12, "#SS reading the stack at 0xdeadbeef00000 (not canonical)"),
        ("0f0b", {}, 6, "#UD (ud2)"),
        ("06", {}, 6, "#UD: no known instruction (06 00 00 00 …)"),
        ("cc", {}, 3, "#BP (int3)"),
        ("f1", {}, 1, "#DB (int1)"),
        ("cd80", {}, 0x80, "int 0x80"),
        ("48f7f1", {"rcx": 0}, 0, "#DE (div by 0)"),
        ("f6f4", {"rax": 0x00FF}, 0, "#DE (div by 0)"),
        ("f736", {"rsi": STACK}, 0, "#DE (div by 0)"),
        ("48f7f1", {"rcx": 1}, None, "an exception"),
        ("90", {}, None, "an exception"),
        ("488d18", {"rax": AWAY}, None, "an exception"),
    ],
)
def test_instructions(code: str, regs: dict[str, int], vector: int | None, what: str) -> None:
    assert exception(dead(code, **regs)) == (vector, what)


@pytest.mark.parametrize(
    ("code", "cr0", "cr4", "what"),
    [
        ("0f280424", 0, 0, (6, "#UD (movaps without CR4.OSFXSR)")),
        ("0f280424", 0, 1 << 9, (None, "an exception")),
        ("0f28442408", 0, 1 << 9, (13, "#GP (movaps at 0x30008, which is not aligned to 16)")),
        ("0f10442408", 0, 1 << 9, (None, "an exception")),
        ("0f280424", 1 << 2, 1 << 9, (6, "#UD (movaps with CR0.EM)")),
        ("0f280424", 1 << 3, 1 << 9, (7, "#NM (movaps with CR0.TS)")),
        ("c5f858c1", 0, 1 << 9, (6, "#UD (vaddps without CR4.OSXSAVE)")),
        ("c5f858c1", 0, 1 << 18, (None, "an exception")),
    ],
)
def test_sse_and_avx(code: str, cr0: int, cr4: int, what: tuple[int | None, str]) -> None:
    cpu = dead(code)
    cpu.sregs.cr0 |= cr0
    cpu.sregs.cr4 |= cr4
    assert exception(cpu) == what


def test_at_user_level() -> None:
    assert exception(dead("f4", cpl=3)) == (13, "#GP (hlt at CPL 3)")
    assert exception(dead(READ, cpl=3, rax=0x50000)) == (14, "#PF reading 0x50000 (a supervisor page)")


@pytest.mark.parametrize(
    ("rip", "what"),
    [
        (0x9999999999, (14, "#PF fetching 0x9999999999 (not present)")),
        (0x50000, (14, "#PF fetching 0x50000 (NX)")),
        (1 << 62, (13, "#GP: RIP is not canonical")),
    ],
)
def test_where_nothing_can_be_fetched(rip: int, what: tuple[int, str]) -> None:
    assert exception(dead("90", rip=rip)) == what


def test_an_instruction_that_ends_in_a_page_that_is_not_there() -> None:
    paged = Paged().code(b"\x48\x89", CODE + 0xFFE)
    assert exception(paged.cpu()) == (14, "#PF fetching 0x11000 (not present)")


def test_rip_in_no_ram() -> None:
    paged = Paged().code(b"")
    paged.map(0x60000, 1 << 40)
    paged.regs.rip = 0x60000
    assert exception(paged.cpu()) == (None, "no RAM to fetch from")


def test_the_last_page_fault_where_nothing_else_is_seen() -> None:
    found = exception(dead("90", cr2=AWAY))
    assert found == (None, "an exception (#PF at 0xdeadbeef000, not present, was the last page fault)")
    assert exception(dead("90", cr2=STACK)) == (None, "an exception")


def test_a_gate_that_could_not_be_read() -> None:
    """CR2 is in the IDT: it tells which exception it was."""
    cpu = dead("90", cr2=AWAY + 16 * 6)
    cpu.sregs.idt = Dtable(AWAY, 0xFFF)
    assert triple_fault(cpu) == "#UD at RIP 0x10000, the IDT at 0xdeadbeef000 is not present: triple fault"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: None, "no IDT"),
        (lambda p: setattr(p.sregs, "idt", Dtable(AWAY, 0xFFF)), "the IDT at 0xdeadbeef000 is not present"),
        (lambda p: p.gate(3, CODE), "no gate for #UD in the IDT"),
        (lambda p: p.gate(3, CODE, limit=0x40), "the IDT (limit 0x40) ends before #UD"),
        (lambda p: [p.gate(6, 0), p.memory.clear(DATA, 4096)], "no IDT: at 0x20000 are zeroes"),
        (lambda p: p.gate(6, CODE, kind=0x85), "the gate for #UD in the IDT is of type 0x5"),
        (lambda p: p.gate(6, AWAY), "the handler of #UD, 0xdeadbeef000, is not present"),
        (lambda p: p.gate(6, 0x50000), "the handler of #UD, 0x50000, is in no RAM that can be executed"),
        (lambda p: p.gate(6, CODE, selector=0), "the gate for #UD has selector 0x0, none"),
        (lambda p: p.gate(6, CODE, selector=0x88), "the gate for #UD has selector 0x88, beyond the GDT (limit 0x1f)"),
        (lambda p: [p.gate(6, CODE), p.regs.__init__(rip=CODE, rsp=AWAY)], "the stack at 0xdeadbeef000 is not present"),
        (lambda p: p.gate(6, CODE), ""),
    ],
)
def test_delivery(make: Callable[[Paged], object], why: str) -> None:
    paged = Paged().code(b"\x0f\x0b")
    paged.map(0x50000, DATA, P | W | NX)
    make(paged)
    assert undeliverable(paged.cpu(), 6) == why


def test_delivery_of_what_is_not_known() -> None:
    paged = Paged().code(b"\x90")
    assert undeliverable(paged.cpu(), None) == "no IDT"
    paged.gate(6, CODE)
    assert undeliverable(paged.cpu(), None) == ""
    assert triple_fault(paged.cpu()) == "an exception at RIP 0x10000: triple fault"


def test_real_mode() -> None:
    cpu = real_cpu(b"\x0f\x0b")
    assert undeliverable(cpu, 6) == ""
    cpu.sregs.idt = Dtable(0, 0)
    assert triple_fault(cpu) == "#UD (ud2) at RIP 0x7c00, no interrupt vectors (IDT limit 0x0): triple fault"
    cpu.sregs.idt = Dtable(0, 0x17)
    assert "the interrupt vectors (IDT limit 0x17) end before #UD" in triple_fault(cpu)


def test_limits_of_segments() -> None:
    cpu = protected_cpu(b"\x8b\x18", rax=0x5000)
    cpu.sregs.ds = Segment(limit=0x4FFF, type=3, present=1, s=1, db=1, selector=16)
    assert exception(cpu) == (13, "#GP reading DS:0x5000 (its limit is 0x4fff)")
    cpu.sregs.ds = Segment(unusable=1)
    assert exception(cpu) == (13, "#GP reading DS:0x5000 (no segment is loaded)")
    cpu = protected_cpu(b"\x89\x18", rax=0x5000)
    assert exception(cpu) == (None, "an exception")


def test_an_amd_processor_has_lost_its_state() -> None:
    cpu = real_cpu()
    shutdown = ExitRecord(0, constants.KVM_EXIT_SHUTDOWN, 0, 0, 0, False, 0)
    lost = Cpu(0, cpu.regs, cpu.sregs, cpu.memory, records=(shutdown,))
    lost.sregs.cs = Segment(selector=0xF000, base=0xFFFF0000, limit=0xFFFF)
    assert "loses its state" in triple_fault(lost)


def test_without_a_disassembler(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "capstone", None)
    assert code.disassembler(64) is None
    assert exception(dead(WRITE, rax=AWAY, cr2=AWAY)).what.startswith("an exception (#PF at 0xdeadbeef000")
    assert exception(dead("90", rip=0x9999999999)).vector == 14
    assert places_touched(dead("90"), b"\x90") == []


def test_what_an_instruction_touches() -> None:
    assert places_touched(dead("90", rbx=0xD0000000), b"\xd9\x03") == [0xD0000000]
    assert places_touched(dead("90", rax=1), b"\x48\x8d\x18") == [], "lea"
