"""The last exits, joined."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_cffi import ExitRecord, constants
from pyvmm.report.exits import LINES, describe_exit, exit_lines

IO, MMIO, HLT = constants.KVM_EXIT_IO, constants.KVM_EXIT_MMIO, constants.KVM_EXIT_HLT


def out(data: int, port: int = 0x3F8) -> ExitRecord:
    return ExitRecord(0, IO, port, 1, 1, True, data)


def status() -> ExitRecord:
    return ExitRecord(0, IO, 0x3FD, 1, 1, False, 0x60)


def lines(*records: ExitRecord) -> list[str]:
    return exit_lines([r._replace(number=n) for n, r in enumerate(records)], uarts=(0x3F8,), consoles=(0xE9,))


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (ExitRecord(0, IO, 0x3F8, 1, 1, True, 0x41), "KVM_EXIT_IO        out 0x03f8 size 1, 0x41"),
        (ExitRecord(0, IO, 0x60, 1, 1, False, 0x1E), "KVM_EXIT_IO        in  0x0060 size 1, 0x1e"),
        (ExitRecord(0, IO, 0x5000, 4, 256, True, 1), "KVM_EXIT_IO        out 0x5000 size 4 x256, 0x1"),
        (ExitRecord(0, MMIO, 0xD0000000, 8, 1, True, 5), "KVM_EXIT_MMIO      write 0xd0000000 size 8, 0x5"),
        (ExitRecord(0, MMIO, 0xD0000000, 4, 1, False, 5), "KVM_EXIT_MMIO      read 0xd0000000 size 4, 0x5"),
        (ExitRecord(0, constants.KVM_EXIT_SHUTDOWN, 0, 0, 0, False, 0), "KVM_EXIT_SHUTDOWN"),
        (ExitRecord(0, 4711, 0, 0, 0, False, 0), "KVM_EXIT 4711"),
    ],
)
def test_one(record: ExitRecord, text: str) -> None:
    assert describe_exit(record) == text


def test_bytes_on_a_console_are_one_line() -> None:
    records = [record for byte in b"hi\r\n\x1b[2J" for record in (status(), out(byte))]
    assert lines(*records) == [
        "       0 KVM_EXIT_IO        in  0x03fd size 1, 0x60",
        "       1 KVM_EXIT_IO        out 0x03f8 'hi\\r\\n\\x1b[2J'",
    ]
    assert lines(out(0x68, 0xE9), out(0x69, 0xE9)) == ["       0 KVM_EXIT_IO        out 0x00e9 'hi'"]


def test_other_exits_part_them() -> None:
    halt = ExitRecord(0, HLT, 0, 0, 0, False, 0)
    assert [line[9:] for line in lines(out(0x68), out(0x69), halt, out(0x6A))] == [
        "KVM_EXIT_IO        out 0x03f8 'hi'",
        "KVM_EXIT_HLT",
        "KVM_EXIT_IO        out 0x03f8 size 1, 0x6a",
    ]


def test_what_repeats_is_one_line() -> None:
    read = ExitRecord(0, IO, 0x64, 1, 1, False, 0x14)
    assert lines(*[read] * 31) == ["       0 KVM_EXIT_IO        in  0x0064 size 1, 0x14, 31 times"]


def test_the_latest_are_shown() -> None:
    records = [ExitRecord(0, IO, port, 1, 1, True, 0) for port in range(32)]
    assert [line.split()[3] for line in lines(*records)] == [f"{port:#06x}" for port in range(32 - LINES, 32)]


RECORD = st.builds(
    ExitRecord,
    st.integers(0, 1 << 40),
    st.sampled_from([IO, MMIO, HLT, 4711]),
    st.sampled_from([0x3F8, 0x3FD, 0xE9, 0xD0000000]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 256]),
    st.booleans(),
    st.integers(0, 255),
)


@given(st.lists(RECORD, max_size=32))
def test_any_exits(records: list[ExitRecord]) -> None:
    shown = exit_lines(records, uarts=(0x3F8,), consoles=(0xE9,))
    assert len(shown) <= LINES and bool(shown) == bool(records)
    assert all(line.isprintable() for line in shown)
