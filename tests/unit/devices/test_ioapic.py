"""The 82093AA against its data sheet and as Linux's io_apic.c uses it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.devices.ioapic import IOAPIC_PINS, IoApic, is_level, message

MASKED, LEVEL, REMOTE_IRR, LOGICAL = 1 << 16, 1 << 15, 1 << 14, 1 << 11
NMI, EXTINT = 4 << 8, 7 << 8


class Board:
    def __init__(self, version: int = 0x20) -> None:
        self.sent: list[tuple[int, int]] = []
        self.routes: list[tuple[int, int, int, bool]] = []
        self.ended: list[int] = []
        self.apic = IoApic(
            lambda address, data: self.sent.append((address, data)),
            lambda *route: self.routes.append(route),
            self.ended.append,
            version=version,
        )

    def get(self, register: int) -> int:
        self.apic.write(0x00, 4, register)
        return self.apic.read(0x10, 4)

    def set(self, register: int, value: int) -> None:
        self.apic.write(0x00, 4, register)
        self.apic.write(0x10, 4, value)

    def program(self, pin: int, low: int, destination: int = 0) -> None:
        """ioapic_write_entry() of Linux: the high half first."""
        self.set(0x11 + 2 * pin, destination << 24)
        self.set(0x10 + 2 * pin, low)

    def take(self) -> list[tuple[int, int]]:
        sent, self.sent = self.sent, []
        return sent


@pytest.fixture
def board() -> Board:
    return Board()


def test_identification(board: Board) -> None:
    assert board.get(0) == 0
    board.set(0, 0xFF000000)
    assert board.get(0) == board.get(2) == 0x0F000000
    assert board.get(1) == 0x00170020
    board.set(1, 0)
    assert board.get(1) == 0x00170020
    assert Board(0x11).get(1) == 0x00170011
    assert board.get(3) == board.get(0x40) == board.get(0xFF) == 0


def test_every_pin_starts_masked(board: Board) -> None:
    for pin in range(IOAPIC_PINS):
        assert board.get(0x10 + 2 * pin) == MASKED and board.get(0x11 + 2 * pin) == 0
        board.apic.line(pin).pulse()
    assert board.sent == []


def test_read_only_and_reserved_bits(board: Board) -> None:
    board.set(0x10, 0xFFFFFFFF)
    board.set(0x11, 0xFFFFFFFF)
    assert board.get(0x10) == 0x0001AFFF
    assert board.get(0x11) == 0xFF000000


@pytest.mark.parametrize(
    ("low", "destination", "sent"),
    [
        (0x30, 0, (0xFEE00000, 0x0030)),
        (0x31, 3, (0xFEE03000, 0x0031)),
        (0x31 | LOGICAL | 1 << 8, 0xFF, (0xFEEFF004, 0x0131)),
        (0x31 | LEVEL, 1, (0xFEE01000, 0xC031)),
        (NMI | LEVEL, 2, (0xFEE02000, 0x0400)),
        (EXTINT, 0, (0xFEE00000, 0x0700)),
    ],
)
def test_messages(board: Board, low: int, destination: int, sent: tuple[int, int]) -> None:
    board.program(4, low, destination)
    board.apic.line(4).set_level(True)
    assert board.sent == [sent]


def test_an_edge_is_sent_once_a_rise(board: Board) -> None:
    board.program(4, 0x34)
    for _ in range(3):
        board.apic.line(4).pulse()
    assert len(board.take()) == 3
    board.apic.eoi(0x34)
    assert board.sent == [] and board.ended == []


def test_an_edge_at_a_masked_pin_is_lost(board: Board) -> None:
    board.program(4, 0x34 | MASKED)
    board.apic.line(4).set_level(True)
    board.program(4, 0x34)
    assert board.sent == []


def test_a_level_is_sent_again_after_each_eoi_while_it_is_up(board: Board) -> None:
    board.program(16, 0x41 | LEVEL)
    board.apic.line(16).set_level(True)
    assert len(board.take()) == 1
    assert board.get(0x30) & REMOTE_IRR
    for _ in range(3):
        board.apic.eoi(0x41)
        assert len(board.take()) == 1
    board.apic.line(16).set_level(False)
    board.apic.line(16).set_level(True)
    assert board.sent == [], "not while remote IRR is set"
    board.apic.line(16).set_level(False)
    board.apic.eoi(0x41)
    assert board.sent == [] and not board.get(0x30) & REMOTE_IRR
    assert board.ended == [16] * 4


def test_an_eoi_ends_every_pin_of_its_vector_and_no_other(board: Board) -> None:
    for pin, vector in ((16, 0x41), (17, 0x41), (18, 0x42)):
        board.program(pin, vector | LEVEL)
        board.apic.line(pin).set_level(True)
    board.take()
    board.apic.eoi(0x41)
    assert board.ended == [16, 17]
    assert [data & 0xFF for _, data in board.take()] == [0x41, 0x41]


def test_ended_may_lower_the_line() -> None:
    sent: list[int] = []
    apic = IoApic(lambda address, data: sent.append(data), ended=lambda pin: apic.line(pin).set_level(False))
    apic.write(0, 4, 0x30)
    apic.write(0x10, 4, 0x41 | LEVEL)
    apic.line(16).set_level(True)
    apic.eoi(0x41)
    assert sent == [0xC041]


def test_unmasking_sends_a_level_that_is_up(board: Board) -> None:
    board.program(16, 0x41 | LEVEL | MASKED)
    board.apic.line(16).set_level(True)
    assert board.sent == []
    board.program(16, 0x41 | LEVEL)
    assert len(board.take()) == 1
    board.program(16, 0x41 | LEVEL | MASKED)
    board.program(16, 0x41 | LEVEL)
    assert board.sent == [], "still in service"


def test_the_eoi_register(board: Board) -> None:
    board.program(16, 0x41 | LEVEL)
    board.apic.line(16).set_level(True)
    board.apic.write(0x40, 4, 0x41)
    assert len(board.take()) == 2


def test_version_11_has_no_eoi_register_but_linux_knows_a_way() -> None:
    """__eoi_ioapic_pin(): masked and edge-triggered for a moment."""
    board = Board(0x11)
    board.program(16, 0x41 | LEVEL)
    board.apic.line(16).set_level(True)
    board.apic.write(0x40, 4, 0x41)
    assert board.get(0x30) & REMOTE_IRR
    board.program(16, 0x41 | MASKED)
    assert not board.get(0x30) & REMOTE_IRR
    board.program(16, 0x41 | LEVEL)
    assert len(board.take()) == 2


def test_linux_clears_a_pin(board: Board) -> None:
    """clear_IO_APIC_pin() complains if remote IRR cannot be cleared."""
    board.program(16, 0x41 | LEVEL)
    board.apic.line(16).set_level(True)
    board.program(16, 0x41 | LEVEL | MASKED)
    board.apic.write(0x40, 4, 0x41)
    board.program(16, MASKED)
    assert not board.get(0x30) & REMOTE_IRR


def test_routes_are_told_before_they_are_used() -> None:
    events: list[str] = []
    apic = IoApic(lambda address, data: events.append("deliver"), lambda *route: events.append("route"))
    apic.line(16).set_level(True)
    apic.write(0, 4, 0x30)
    apic.write(0x10, 4, 0x41 | LEVEL)
    assert events == ["route", "deliver"]
    apic.write(0x10, 4, 0x41 | LEVEL)
    assert events == ["route", "deliver"], "nothing changed"


def test_routes_say_what_is_masked(board: Board) -> None:
    board.program(5, 0x35 | MASKED, 1)
    board.program(5, 0x35, 1)
    assert board.routes[-2:] == [(5, 0xFEE01000, 0x35, True), (5, 0xFEE01000, 0x35, False)]


def test_narrow_accesses(board: Board) -> None:
    board.apic.write(0x00, 1, 0x01)
    assert board.apic.read(0x10, 1) == 0x20
    assert board.apic.read(0x10, 8) == 0x00170020
    assert board.apic.read(0x00, 4) == 1
    assert board.apic.read(0x44, 4) == 0


def test_reset(board: Board) -> None:
    board.program(16, 0x41 | LEVEL)
    board.apic.line(16).set_level(True)
    board.take()
    board.apic.reset()
    assert board.apic.entry(16) == MASKED and board.sent == []
    board.program(16, 0x41 | LEVEL)
    assert len(board.take()) == 1, "the line is still up"


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 0x45), st.integers(0, 0xFFFFFFFF)),
            st.tuples(st.just("program"), st.integers(0, 23), st.integers(0, 0x1FFFF)),
            st.tuples(st.just("line"), st.integers(0, 23), st.integers(0, 1)),
            st.tuples(st.just("eoi"), st.integers(0, 0xFF), st.just(0)),
            st.tuples(st.just("write"), st.integers(0, 0xFFF), st.integers(0, 2**64 - 1)),
            st.tuples(st.just("read"), st.integers(0, 0xFFF), st.sampled_from((1, 2, 4, 8))),
        ),
        max_size=60,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_sequence_keeps_levels_and_remote_irr_in_step(operations: list[tuple[str, int, int]]) -> None:
    board = Board()
    up = [0] * IOAPIC_PINS
    for name, a, b in operations:
        if name == "set":
            board.set(a, b)
        elif name == "program":
            board.program(a, b)
        elif name == "line":
            up[a] = b
            board.apic.line(a).set_level(bool(b))
        elif name == "eoi":
            board.apic.eoi(a)
        elif name == "write":
            board.apic.write(a, 8, b)
        else:
            assert 0 <= board.apic.read(a, b) < 1 << 8 * b
        assert len(board.take()) <= IOAPIC_PINS
        for pin in range(IOAPIC_PINS):
            entry = board.apic.entry(pin)
            if up[pin] and is_level(entry) and not entry & MASKED:
                assert entry & REMOTE_IRR, "a level that is up and unmasked has been sent"
            if not entry & LEVEL:
                assert not entry & REMOTE_IRR
            address, data = message(entry)
            assert address & ~0xFF004 == 0xFEE00000 and data & ~0xC7FF == 0
