"""Lines of the human monitor, and the part of RAM that a dump is of."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.control.qmp.human import MOST_ITEMS, answer
from pyvmm.control.qmp.memory import part_of
from pyvmm.machine.machine import Machine
from pyvmm.memory import GuestMemory
from pyvmm.units import PAGE_SIZE


class Standing:
    """A machine, as far as its memory goes."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory


def machine() -> Machine:
    memory = GuestMemory([(start, memoryview(bytearray(0x3000))) for start in (0, 0x10000)])
    memory.write(0x10, bytes(range(1, 19)))
    return cast(Machine, Standing(memory))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "xp /10xb 0x10",
            "0000000000000010: 0x01 0x02 0x03 0x04 0x05 0x06 0x07 0x08\r\n0000000000000018: 0x09 0x0a\r\n",
        ),
        ("xp /1xg 16", "0000000000000010: 0x0807060504030201\r\n"),
        ("xp /1xg 020", "0000000000000010: 0x0807060504030201\r\n"),
        ("xp /1xb 00", "0000000000000000: 0x00\r\n"),
        ("gpa2hva 050000", "No memory is mapped at address 0x5000\r\n"),
        ("gpa2hva 09", "unknown command: 'gpa2hva 09'\r\n"),
        ("xp 0x10", "0000000000000010: 0x04030201\r\n"),
        ("xp/2h 0x10", "0000000000000010: 0x0201 0x0403\r\n"),
        ("xp /3xw 0x2ff8", "0000000000002ff8: 0x00000000 0x00000000 Cannot access memory\r\n"),
        ("xp /1xb 0xffffffffffffffff", "ffffffffffffffff: Cannot access memory\r\n"),
        ("gpa2hva 0x5000", "No memory is mapped at address 0x5000\r\n"),
        ("info registers", "unknown command: 'info registers'\r\n"),
        ("", "unknown command: ''\r\n"),
    ],
)
def test_lines(line: str, said: str) -> None:
    assert answer(machine(), line) == said


def test_where_ram_is() -> None:
    tree = answer(machine(), "info mtree -f")
    assert "\n  0000000000000000-0000000000002fff (prio 0, ram): ram\r\n" in tree
    assert "\n  0000000000010000-0000000000012fff (prio 0, ram): ram\r\n" in tree
    first, second = (int(answer(machine_at, "gpa2hva 0x10").split()[-1], 16) for machine_at in [machine()] * 2)
    assert first == second > 1 << 30


@given(
    st.lists(
        st.sampled_from(
            ["xp", " ", "/", "99999", "1", "x", "b", "g", "w", "q", "0x", "fff", "-f", "info mtree", "gpa2hva"]
        )
    ).map("".join)
    | st.text(max_size=30)
)
def test_any_line(line: str) -> None:
    said = answer(machine(), line)
    assert said.endswith("\n") and len(said) < MOST_ITEMS * 40


@given(st.integers(), st.integers())
def test_any_part(begin: int, length: int) -> None:
    memory = machine().memory
    found = part_of(memory, begin, length)
    touched = {
        page * PAGE_SIZE
        for gpa, size in memory.regions
        for page in range(gpa // PAGE_SIZE, (gpa + size) // PAGE_SIZE)
        if begin < (page + 1) * PAGE_SIZE and page * PAGE_SIZE < begin + length and length > 0
    }
    pages: list[Any] = [region.gpa + at for region in found for at in range(0, len(region.buffer), PAGE_SIZE)]
    assert set(pages) == touched and len(pages) == len(touched)
