"""The ELF core's form, read back by the ABI's own words, and its registers by drgn."""

from __future__ import annotations

from pathlib import Path

from drgn import Program
from hypothesis import given
from hypothesis import strategies as st

from kvm_cffi import Regs, Segment, Sregs
from pyvmm.control.core.elf_core import (
    EHDR,
    ET_CORE,
    NHDR,
    PHDR,
    USER_REGS,
    LoadedRange,
    headers,
    headers_size,
    note,
    prstatus,
)  # fmt: skip

WORD = st.integers(0, (1 << 64) - 1)


@given(
    st.lists(st.tuples(st.binary(max_size=20).filter(lambda n: b"\0" not in n), st.integers(0, 99), st.binary())),
    st.lists(st.builds(LoadedRange, WORD, WORD, WORD, WORD), max_size=20),
)
def test_what_is_written_is_there(wanted: list[tuple[bytes, int, bytes]], segments: list[LoadedRange]) -> None:
    notes = b"".join(note(*each) for each in wanted)
    data = headers(notes, segments)
    assert len(data) == headers_size(notes, len(segments))
    header = EHDR.unpack_from(data)
    assert header[:4] == (b"\x7fELF", 2, 1, 1)
    kind, machine, _, _, phoff, _, _, ehsize, phentsize, phnum = header[6:16]
    assert (kind, machine, phoff, ehsize, phentsize) == (ET_CORE, 62, 64, 64, 56)
    table = list(PHDR.iter_unpack(data[phoff : phoff + phentsize * phnum]))
    assert [(row[2], row[3], row[4], row[5]) for row in table[1:]] == segments
    assert all(row[0] == 1 and row[5] == row[6] for row in table[1:])
    at, end = table[0][2], table[0][2] + table[0][5]
    assert table[0][0] == 4 and end == len(data)
    read = []
    while at < end:
        namesz, descsz, number = NHDR.unpack_from(data, at)
        name = data[at + 12 : at + 12 + namesz - 1]
        desc_at = at + 12 + (namesz + 3 & ~3)
        read.append((name, number, data[desc_at : desc_at + descsz]))
        at = desc_at + (descsz + 3 & ~3)
    assert at == end and read == wanted


def test_registers_as_drgn_reads_them(tmp_path: Path) -> None:
    """Each register has a value of its own; two vCPUs are two threads."""
    general = [name for name in USER_REGS if hasattr(Regs(), name)]
    path = tmp_path / "core"
    notes, wanted = b"", []
    for number in range(2):
        regs = Regs(**{name: 0x1000 * (number + 1) + place for place, name in enumerate(general)}, rflags=0x246)
        sregs = Sregs(fs=Segment(base=0x7777, selector=5), gs=Segment(base=0x8888), cs=Segment(selector=0x10))
        notes += prstatus(number, regs, sregs)
        wanted.append(regs)
    path.write_bytes(headers(notes, []))
    program = Program()
    program.set_core_dump(path)
    assert sorted(thread.tid for thread in program.threads()) == [1, 2]
    for number, regs in enumerate(wanted):
        (frame, *_) = program.thread(number + 1).stack_trace()
        seen = frame.registers()
        for name in general:
            assert seen[name] == getattr(regs, name), name
        assert (seen["rflags"], seen["cs"], seen["fs"]) == (0x246, 0x10, 5)
        assert (seen["fs.base"], seen["gs.base"]) == (0x7777, 0x8888)
