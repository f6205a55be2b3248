"""Breakpoints by each way that a KVM may have: INT3, OUT, debug registers, steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.bus import Bus
from pyvmm.control.gdb.points import ACCESS, HARDWARE, READ, SOFTWARE, WRITE, Point, Points, Unsupported
from pyvmm.control.gdb.port_trap import OUT, PORT, PortTrap, may_stand
from pyvmm.memory import GuestMemory
from pyvmm.vcpu.debugging import DebugAbilities, HardwarePoint, debug_registers
from pyvmm.vcpu.paging import P, W
from tests.rig.paged import CODE, Paged, real_cpu

REAL = DebugAbilities(int3=True, execute=True, write=True, step=True, block_irq=True)
SOFTWARE_BACKED = DebugAbilities(int3=False, execute=True, write=False, step=True, block_irq=True)
EMULATED = DebugAbilities(int3=False, execute=False, write=False, step=True, block_irq=True)
SIZE = 0x4000
MAPPED = 0x8000
"""Linear addresses below that are RAM, twice over: two of them lead to one byte."""


def points(abilities: DebugAbilities, out: bool = False) -> tuple[Points, GuestMemory]:
    """With *out* an OUT may stand everywhere where there is RAM for it."""
    memory = GuestMemory.of_size(SIZE)
    memory.write(0, bytes(range(256)) * (SIZE // 256))

    def port_trap(linear: int) -> bool:
        return out and linear < MAPPED and linear % SIZE < SIZE - 1

    return Points(abilities, memory, lambda linear: linear % SIZE if linear < MAPPED else None, port_trap), memory


def test_int3_goes_in_and_out() -> None:
    made, memory = points(REAL)
    made.add(Point(SOFTWARE, 0x1010, 1))
    made.add(Point(SOFTWARE, 0x1010 + SIZE, 1))
    assert memory.read(0x100F, 3) == b"\x0f\xcc\x11"
    assert made.hide(0x100F, memory.read(0x100F, 3)) == b"\x0f\x10\x11"
    assert made.is_patch(0x1010) and made.patched
    made.remove(Point(SOFTWARE, 0x1010, 1))
    assert memory.read(0x1010, 1) == b"\xcc", "the other one is there still"
    made.remove(Point(SOFTWARE, 0x1010 + SIZE, 1))
    assert memory.read(0x1010, 1) == b"\x10" and not made.patched


def test_what_is_written_over_an_int3_is_there_afterwards() -> None:
    made, memory = points(REAL)
    made.add(Point(SOFTWARE, 0x1010, 1))
    made.write(0x100F, b"\xaa\xbb\xcc")
    assert memory.read(0x100F, 3) == b"\xaa\xcc\xcc"
    assert made.hide(0x100F, memory.read(0x100F, 3)) == b"\xaa\xbb\xcc"
    made.clear()
    assert memory.read(0x100F, 3) == b"\xaa\xbb\xcc"


def test_code_that_was_loaded_anew_gets_its_int3_again() -> None:
    made, memory = points(REAL)
    made.add(Point(SOFTWARE, 0x1010, 1))
    memory.write(0x1000, b"\x90" * 32)
    made.put_again()
    assert memory.read(0x1010, 1) == b"\xcc"
    made.clear()
    assert memory.read(0x1000, 32) == b"\x90" * 32


def test_an_int3_that_the_guest_has_overwritten_stays_overwritten() -> None:
    made, memory = points(REAL)
    made.add(Point(SOFTWARE, 0x1010, 1))
    memory.write(0x1010, b"\x77")
    made.clear()
    assert memory.read(0x1010, 1) == b"\x77"


def test_an_out_where_there_is_no_int3() -> None:
    made, memory = points(EMULATED, out=True)
    made.add(Point(SOFTWARE, 0x1010, 1))
    made.add(Point(SOFTWARE, 0x1010 + SIZE, 1))
    assert memory.read(0x100F, 4) == b"\x0f\xe6\xea\x12" and made.is_patch(0x1010, OUT)
    assert made.hide(0x1011, memory.read(0x1011, 2)) == b"\x11\x12"
    assert not made.patched and not made.stepped, "nothing for KVM_SET_GUEST_DEBUG"
    made.write(0x1011, b"\xaa\xbb")
    assert memory.read(0x100F, 4) == b"\x0f\xe6\xea\xbb"
    memory.write(0x1000, b"\x90" * 32)
    made.put_again()
    assert memory.read(0x1010, 3) == b"\xe6\xea\x90"
    made.remove(Point(SOFTWARE, 0x1010, 1))
    assert made.is_patch(0x1010, OUT), "the other one is there still"
    made.clear()
    assert memory.read(0x1000, 32) == b"\x90" * 32


def test_what_an_out_is_not_for() -> None:
    """Over another one; where it was asked for a debug register; where code may not have it."""
    made, memory = points(EMULATED, out=True)
    made.add(Point(SOFTWARE, 0x1010, 1))
    made.add(Point(SOFTWARE, 0x1011, 1))
    made.add(Point(SOFTWARE, 0x100F, 1))
    made.add(Point(HARDWARE, 0x1020, 1))
    made.add(Point(SOFTWARE, SIZE - 1, 1))
    assert made.stepped == {0x1011, 0x100F, 0x1020, SIZE - 1}
    assert memory.read(0x100F, 4) == b"\x0f\xe6\xea\x12"
    made.add(Point(SOFTWARE, 0x1012, 1))
    assert memory.read(0x1010, 4) == OUT + OUT
    made, memory = points(REAL, out=True)
    made.add(Point(SOFTWARE, 0x1010, 1))
    assert memory.read(0x1010, 2) == b"\xcc\x11"


@pytest.mark.parametrize(
    ("code", "may"),
    [
        ("48 89 e5", True),  # mov %rsp, %rbp
        ("41 54", True),  # push %r12
        ("0f 1f 44 00 00", True),  # nopl
        ("55 48", False),  # push %rbp
        ("c3 cc", False),  # ret
        ("f4 90", False),  # hlt
    ],
)
def test_where_an_out_may_stand(code: str, may: bool) -> None:
    """Over one instruction of two bytes, on a page that only the kernel has."""
    paged = Paged().code(bytes.fromhex(code))
    assert not may_stand(paged.cpu(), CODE), "programs run there too"
    paged.map(CODE, CODE, P | W)
    assert may_stand(paged.cpu(), CODE) == may
    paged.memory.write(CODE + 0xFFF, bytes.fromhex(code))
    assert not may_stand(paged.cpu(), CODE + 0xFFF), "it would run into the next page"
    assert not may_stand(paged.cpu(), 0x5000), "no page is there"


def test_where_an_out_may_stand_without_paging() -> None:
    assert may_stand(real_cpu(b"\x31\xc0"), 0x7C00)
    assert not may_stand(real_cpu(b"\x40\xc0"), 0x7C00), "inc %ax, and no prefix"


@given(st.binary(min_size=1, max_size=4), st.integers(0, 1 << 64))
def test_whatever_code_is_there(code: bytes, linear: int) -> None:
    paged = Paged().code(code)
    paged.map(CODE, CODE, P | W)
    for cpu in (paged.cpu(), real_cpu(code)):
        may_stand(cpu, linear)


def test_the_port_is_a_device_of_the_users_where_he_has_one() -> None:
    hits: list[int] = []
    bus = Bus("pio", 0x10000)
    trap = PortTrap(bus, lambda: hits.append(1))
    assert trap.map() and trap.map()
    bus.write(PORT, 1, 5)
    assert hits == [1] and bus.read(PORT, 1) == 0xFF
    trap.unmap()
    trap.unmap()
    bus.write(PORT, 1, 5)
    bus.map(PORT - 1, 4, PortTrap(bus, lambda: None))
    assert not trap.map() and hits == [1]
    trap.unmap()


def test_four_in_registers_and_the_rest_by_steps() -> None:
    made, memory = points(SOFTWARE_BACKED)
    for address in range(0x100, 0x106):
        made.add(Point(SOFTWARE, address, 1))
    made.add(Point(HARDWARE, 0x200, 1))
    assert made.hardware[0] == HardwarePoint("execute", 0x200), "which was asked to be one goes first"
    assert [point.address for point in made.hardware] == [0x200, 0x100, 0x101, 0x102]
    assert made.stepped == {0x103, 0x104, 0x105}
    made.remove(Point(HARDWARE, 0x200, 1))
    assert made.stepped == {0x104, 0x105}
    assert memory.read(0x100, 8) == bytes(range(8)), "nothing is written"
    with pytest.raises(Unsupported):
        made.add(Point(WRITE, 0x300, 4))


def test_steps_alone() -> None:
    made, _memory = points(EMULATED)
    made.add(Point(HARDWARE, 0x200, 1))
    assert not made.hardware and made.stepped == {0x200}
    nothing = DebugAbilities(int3=False, execute=False, write=False, step=False, block_irq=False)
    made, _memory = points(nothing)
    with pytest.raises(Unsupported):
        made.add(Point(SOFTWARE, 0x200, 1))


def test_watchpoints() -> None:
    made, _memory = points(REAL)
    for address in range(0x300, 0x310, 4):
        made.add(Point(WRITE, address, 4))
    with pytest.raises(ValueError, match="register"):
        made.add(Point(ACCESS, 0x400, 8))
    made.remove(Point(WRITE, 0x304, 4))
    made.add(Point(ACCESS, 0x400, 8))
    assert made.hardware[-1] == HardwarePoint("access", 0x400, 8)
    with pytest.raises(Unsupported):
        made.add(Point(READ, 0x400, 1))  # no debug register of x86 watches reads alone
    for odd in (Point(WRITE, 0x401, 4), Point(WRITE, 0x400, 3), Point(WRITE, 0x400, 16)):
        with pytest.raises(ValueError, match="register"):
            made.add(odd)
    with pytest.raises(ValueError, match="no RAM"):
        made.add(Point(SOFTWARE, MAPPED, 1))


def test_debug_registers() -> None:
    """Intel SDM volume 3, figure 18-1: local and global enables, R/W at 16, LEN at 18."""
    wanted = [HardwarePoint("execute", 0x1234), HardwarePoint("write", 0x2000, 4), HardwarePoint("access", 0x3000, 8)]
    assert debug_registers(wanted) == (0x1234, 0x2000, 0x3000, 0, 0, 0, 0, 0x400 | 0x2A | 0xD << 20 | 0xB << 24)
    assert debug_registers([]) == (0, 0, 0, 0, 0, 0, 0, 0x400)


@given(
    st.sampled_from([REAL, SOFTWARE_BACKED, EMULATED]),
    st.booleans(),
    st.lists(
        st.tuples(
            st.booleans(),
            st.integers(0, 4),
            st.integers(0, MAPPED + 16) | st.sampled_from([0x10, 0x10 + SIZE]),
            st.sampled_from([1, 2, 4, 8, 16]),
        ),
        max_size=30,
    ),
)
def test_whatever_is_asked_for_memory_comes_back(
    abilities: DebugAbilities, out: bool, asked: list[tuple[bool, int, int, int]]
) -> None:
    made, memory = points(abilities, out)
    before = memory.read(0, SIZE)
    for add, kind, address, length in asked:
        try:
            (made.add if add else made.remove)(Point(kind, address, length))
        except (ValueError, Unsupported):
            pass
        assert made.hide(0, memory.read(0, SIZE)) == before
        assert len(made.hardware) <= 4
        debug_registers(made.hardware)
    made.clear()
    assert memory.read(0, SIZE) == before
