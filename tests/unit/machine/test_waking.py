"""Where a guest goes on after S3."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.acpi.tables import facs
from pyvmm.board import layout
from pyvmm.machine.waking import REAL_MODE_END, waking_state
from pyvmm.memory import GuestMemory
from pyvmm.units import MIB


def left(vector: int) -> GuestMemory:
    memory = GuestMemory.of_size(MIB)
    memory.write(layout.FACS, facs())
    memory.write_int(layout.FACS + 12, 4, vector)
    return memory


@given(st.integers(1, REAL_MODE_END - 1))
def test_the_vector_is_a_real_mode_address(vector: int) -> None:
    state = waking_state(left(vector))
    assert state is not None
    assert (state.cs.selector, state.rip) == (vector >> 4, vector & 15)
    assert state.cs.base + state.rip == vector and state.cr0 & 1 == 0


@given(st.sampled_from([0, REAL_MODE_END]) | st.integers(REAL_MODE_END, (1 << 32) - 1))
def test_no_vector(vector: int) -> None:
    assert waking_state(left(vector)) is None


@given(st.binary(min_size=64, max_size=64))
def test_whatever_the_guest_makes_of_it(data: bytes) -> None:
    memory = GuestMemory.of_size(MIB)
    memory.write(layout.FACS, data)
    assert waking_state(memory) is None or data[:4] == b"FACS"
