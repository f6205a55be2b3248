"""VMCOREINFO in a guest's RAM: that of the kernel that runs, and no other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.memory import GuestMemory
from pyvmm.report import vmcoreinfo
from pyvmm.units import MIB, PAGE_SIZE
from tests.rig.linux_memory import PHYS_BASE, SWAPPER, kernel, note, text
from tests.rig.paged import TABLES


def test_that_of_the_page_tables_in_use() -> None:
    paged = kernel()
    paged.memory.write(0x3000, text("left over", SWAPPER + 0x200000))
    paged.memory.write(0x4000, text("moved", phys_base=PHYS_BASE + PAGE_SIZE))
    paged.memory.write(0x5000, b"OSRELEASE=no more than this\n")
    assert vmcoreinfo.find(paged.memory, [paged.sregs]) is None
    paged.memory.write(0x6000, text())
    assert vmcoreinfo.find(paged.memory, [paged.sregs]) == (text(), TABLES)
    assert vmcoreinfo.find(paged.memory, []) is None
    assert len(list(vmcoreinfo.candidates(paged.memory))) == 4


def test_while_a_program_runs_with_isolated_tables() -> None:
    """The kernel's are in the page below those that CR3 names."""
    paged = kernel()
    paged.memory.write(0x6000, text())
    paged.sregs.cr3 = TABLES | vmcoreinfo.PTI_USER_PGTABLE
    assert vmcoreinfo.find(paged.memory, [paged.sregs]) == (text(), TABLES)


def test_its_lines() -> None:
    lines = vmcoreinfo.parse(text() + b"KERNELOFFSET=1c000000\nKERNELOFFSET=2\nno line\n=\nSYMBOL(x)=what\n")
    assert lines["OSRELEASE"] == "6.1.0" and lines["KERNELOFFSET"] == "1c000000"
    assert vmcoreinfo.symbol(lines, "swapper_pg_dir") == SWAPPER
    assert vmcoreinfo.symbol(lines, "x") is None and vmcoreinfo.symbol(lines, "y") is None


def test_it_begins_a_page_and_ends_with_it() -> None:
    memory = GuestMemory.of_size(4 * PAGE_SIZE)
    memory.write(0x1800, text())
    assert not list(vmcoreinfo.candidates(memory))
    memory.write(0x2000, text() + b"x" * (2 * PAGE_SIZE - len(text())))
    assert [len(found) for found in vmcoreinfo.candidates(memory)] == [PAGE_SIZE]


def test_so_many_are_looked_at_and_no_more() -> None:
    memory = GuestMemory.of_size(2 * MIB)
    for page in range(2 * MIB // PAGE_SIZE):
        memory.write(page * PAGE_SIZE, text())
    assert len(list(vmcoreinfo.candidates(memory))) == vmcoreinfo.CANDIDATES


@given(st.binary(max_size=3 * PAGE_SIZE), st.integers(0, (1 << 64) - 1))
def test_any_ram(content: bytes, cr3: int) -> None:
    paged = kernel()
    paged.memory.write(0x3000, b"OSRELEASE=" + content)
    paged.sregs.cr3 = cr3
    vmcoreinfo.find(paged.memory, [paged.sregs])


@given(
    st.lists(st.sampled_from([b"SYMBOL(swapper_pg_dir)=", b"NUMBER(phys_base)=", b"\n", b"-", b"f", b"9" * 40, b"("]))
)
def test_any_text(pieces: list[bytes]) -> None:
    paged = kernel()
    paged.memory.write(0x3000, b"OSRELEASE=\n" + b"".join(pieces)[: PAGE_SIZE - 16])
    vmcoreinfo.find(paged.memory, [paged.sregs])


def test_a_note_that_the_guest_tells_of() -> None:
    """It counts where its kernel is the one that runs, and needs no page of its own."""
    paged = kernel()
    paged.memory.write(0x6654, note(b"VMCOREINFO\0", text()))
    size = len(note(b"VMCOREINFO\0", text()))
    told = vmcoreinfo.of_note(paged.memory, 0x6654, size)
    assert told == text() and vmcoreinfo.find(paged.memory, [paged.sregs], [told]) == (text(), TABLES)
    assert vmcoreinfo.find(paged.memory, [paged.sregs], [text("left over", SWAPPER + 0x200000)]) is None
    for address, length in ((0x6654, size - 1), (0x6658, size), (1 << 40, size), (0x6654, 4)):
        assert vmcoreinfo.of_note(paged.memory, address, length) is None
    paged.memory.write(0x6654, note(b"CORE\0", text()))
    assert vmcoreinfo.of_note(paged.memory, 0x6654, size) is None


@given(st.binary(max_size=64), st.integers(0, 2 * MIB), st.integers(0, 1 << 32))
def test_any_note(content: bytes, address: int, size: int) -> None:
    memory = GuestMemory.of_size(2 * MIB)
    memory.write(min(address, 2 * MIB - len(content)), content)
    found = vmcoreinfo.of_note(memory, address, size)
    assert found is None or found in content
