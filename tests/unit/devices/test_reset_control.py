"""Port 0xCF9 as the data sheet and Linux's reboot use it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.reset_control import ResetControl


def make() -> tuple[ResetControl, list[str]]:
    resets: list[str] = []
    return ResetControl(lambda: resets.append("hard"), lambda: resets.append("soft")), resets


def test_linux_reboots_through_cf9() -> None:
    """native_machine_emergency_restart(), BOOT_CF9_FORCE: request, then go."""
    port, resets = make()
    cf9 = port.read(0, 1) & ~0x06
    port.write(0, 1, cf9 | 0x02)
    assert resets == []
    port.write(0, 1, cf9 | 0x06)
    assert resets == ["hard"]


def test_rst_cpu_alone_resets_the_processors() -> None:
    port, resets = make()
    port.write(0, 1, 0x04)
    port.write(0, 1, 0x0C)
    assert resets == ["soft", "hard"]


def test_other_bits_do_not_stick() -> None:
    port, resets = make()
    port.write(0, 1, 0xFB)
    assert port.read(0, 1) == 0x0A
    assert resets == []


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from((1, 2, 4)), st.integers(0, 0xFFFFFFFF))))
def test_nothing_a_guest_writes_raises(accesses: list[tuple[int, int, int]]) -> None:
    port, resets = make()
    for offset, size, value in accesses:
        port.write(offset, size, value & ((1 << 8 * size) - 1))
        assert 0 <= port.read(offset, size) <= 0xFF
    assert len(resets) <= len(accesses)
