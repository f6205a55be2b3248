"""The vectors and the code behind them, byte by byte; tests/kvm/test_no_bios.py runs them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.boot.no_bios import APM_PORT, BIOS_CALL, DUMMY_IRET, ENDS, ENTRY, bios_call, write_bios
from pyvmm.memory import GuestMemory
from pyvmm.units import MIB

F000 = 0xF0000


def written() -> GuestMemory:
    memory = GuestMemory.of_size(MIB)
    memory.view(0, MIB)[:] = b"\xa5" * MIB
    write_bios(memory)
    return memory


def target(memory: GuestMemory, vector: int) -> int:
    """Where a vector leads to, as a linear address."""
    return (memory.read_int(4 * vector + 2, 2) << 4) + memory.read_int(4 * vector, 2)


def test_where_the_vectors_lead_to() -> None:
    memory = written()
    ends = [v for v in range(256) if target(memory, v) == F000 + ENDS + ENTRY * v]
    assert ends == [*range(8), *range(0x10, 0x1B), 0x20, 0x21, 0x40]
    irqs = {target(memory, v) for v in (*range(8, 16), *range(0x70, 0x78))}
    assert len(irqs) == 16 and all(memory.read_int(at, 1) == 0x50 for at in irqs)
    nowhere = [v for v in range(256) if target(memory, v) == 0]
    assert nowhere == [0x1E, 0x1F, 0x43, *range(0x60, 0x67), 0x79], "as SeaBIOS leaves them, pointers apart"
    returns = [v for v in range(256) if target(memory, v) == F000 + DUMMY_IRET]
    assert len(returns) == 256 - len(ends) - 16 - len(nowhere)
    assert memory.read_int(F000 + 0xFF53, 1) == 0xCF
    assert memory.read_int(0xFFFFE, 1) == 0xFC


def test_it_owns_its_bytes_and_no_others() -> None:
    memory = written()
    assert memory.read(0x400, 0x100) == b"\xa5" * 0x100 == memory.read(0xFDF00, 0x100)
    memory.view(0xFE000, 0x2000)[:] = memory.view(0, 0x2000)
    write_bios(memory)
    assert memory.read(0xFE000, 0x2000) == written().read(0xFE000, 0x2000), "again, over what a guest left"


def test_nothing_that_a_guest_looks_for_in_a_rom_is_there() -> None:
    code = written().read(0xFE000, 0x2000)
    for anchor in (b"_SM_", b"_SM3_", b"_MP_", b"RSD PTR ", b"$PnP", b"$PIR", b"_32_", b"_DMI_"):
        assert anchor not in code


def call(vector: int, code: bytes = b"\x90\x90", *, at: int = 0x7C13, ax: int = 0x0E41, sp: int = 0x7000) -> str:
    """What is said of a CPU that came to the end of *vector* with the return address 0000:*at*, behind *code*."""
    memory = written()
    memory.write(at - len(code), code)
    for i, word in enumerate((ax, at, 0, 0x0202)):
        memory.write_int(sp + 2 * i, 2, word)
    rip = ENDS + ENTRY * vector + 5  # behind the OUT
    found = bios_call(memory, rip=rip, cs_base=F000, rax=ax & 0xFF00 | BIOS_CALL, rsp=sp, ss_base=0)
    assert found is not None and found.frame == (ax, at, 0, 0x0202)
    assert found.exception == found.message.startswith("exception")
    return found.message


def test_calls() -> None:
    assert call(0x10, b"\xcd\x10") == "INT 10h (AH=0e) from 0000:7c13: there is no BIOS here"
    assert call(0x13) == "INT 13h (AH=0e) from 0000:7c13: there is no BIOS here", "by pushf and a far call"
    assert call(0x21, b"\xcd\x21", ax=0x4C00) == "INT 21h (AH=4c) from 0000:7c13: there is no DOS here"
    assert call(5, b"\xcd\x05").startswith("INT 05h"), "print the screen, not a bound exceeded"
    assert call(3, b"\x90\xcc").startswith("INT 03h")
    assert call(4, b"\x90\xce").startswith("INT 04h")


def test_exceptions() -> None:
    said = "exception 06h (#UD, invalid opcode) at 0000:7c13: the guest has no handler, and there is no BIOS here"
    assert call(6) == said
    assert call(0, b"\xcd\x10").startswith("exception 00h (#DE, divide error) at 0000:7c13")
    assert call(0x0D).startswith("exception 0dh (#GP")
    assert call(0x0A).startswith("exception 0ah at")


def test_a_stack_that_is_no_ram() -> None:
    found = bios_call(written(), rip=ENDS + 6 * ENTRY + 3, cs_base=F000, rax=0, rsp=0x100, ss_base=0xFFFF0)
    assert found is not None and found.frame is None and "no stack" in found.message


WORD = st.integers(0, 0xFFFF)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, (1 << 64) - 1), WORD, st.integers(0, (1 << 64) - 1), WORD, WORD, st.binary(max_size=16))
def test_any_registers_and_any_memory(rip: int, cs: int, rsp: int, ss: int, rax: int, garbage: bytes) -> None:
    memory = GuestMemory.of_size(MIB)
    memory.write(ss << 4 if ss << 4 < MIB - 16 else 0, garbage)
    for base in (cs << 4, F000):
        found = bios_call(memory, rip=rip, cs_base=base, rax=rax, rsp=rsp, ss_base=ss << 4)
        inside = base == F000 and ENDS <= rip & 0xFFFF < ENDS + 256 * ENTRY
        assert (found is not None) == inside
        assert found is None or "\n" not in found.message


def test_the_command_is_none_of_acpis() -> None:
    assert (APM_PORT, BIOS_CALL) == (0xB2, 0xB1) and BIOS_CALL not in (2, 3)
