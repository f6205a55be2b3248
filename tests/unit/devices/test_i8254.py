"""The 8254 against the waveforms of its data sheet, against a counter clocked tick by tick, and as Linux uses it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.clock import FakeClock
from pyvmm.devices.i8254 import I8254, MIN_PERIOD, PIT_TICK_RATE, ns_of
from pyvmm.irq import FakeIrq

SECOND = 1_000_000_000
LATCH_1000 = (PIT_TICK_RATE + 500) // 1000


class Board:
    def __init__(self, reinject: bool = True) -> None:
        self.clock = FakeClock()
        self.irq = FakeIrq()
        self.pit = I8254(self.irq, self.clock, reinject)
        self.tick = 0

    def outb(self, port: int, value: int) -> None:
        self.pit.write(port - 0x40, 1, value)

    def inb(self, port: int) -> int:
        return self.pit.read(port - 0x40, 1)

    def to(self, tick: int) -> None:
        """Go on to *tick* clocks since the start of time."""
        self.clock.advance(ns_of(tick) - self.clock.now())
        self.tick = tick

    def program(self, channel: int, mode: int, count: int, bcd: int = 0) -> None:
        self.outb(0x43, channel << 6 | 0x30 | mode << 1 | bcd)
        self.outb(0x40 + channel, count & 0xFF)
        self.outb(0x40 + channel, count >> 8)

    def latch(self, channel: int) -> int:
        self.outb(0x43, channel << 6)
        return self.inb(0x40 + channel) | self.inb(0x40 + channel) << 8

    def status(self, channel: int) -> int:
        self.outb(0x43, 0xE0 | 2 << channel)
        return self.inb(0x40 + channel)

    def waveform(self, ticks: int) -> list[tuple[int, int]]:
        """(output, count) of counter 2 at each of the next *ticks* clocks."""
        result = []
        for _ in range(ticks):
            result.append((int(self.pit.out2()), self.latch(2)))
            self.to(self.tick + 1)
        return result


@pytest.fixture
def board() -> Board:
    return Board()


def test_mode_0_interrupt_on_terminal_count(board: Board) -> None:
    board.pit.set_gate2(True)
    board.program(2, 0, 4)
    assert board.waveform(7) == [(0, 4), (0, 3), (0, 2), (0, 1), (1, 0), (1, 0xFFFF), (1, 0xFFFE)]


def test_mode_0_stands_still_while_the_gate_is_down(board: Board) -> None:
    board.pit.set_gate2(True)
    board.program(2, 0, 4)
    board.to(2)
    board.pit.set_gate2(False)
    board.to(100)
    assert (board.pit.out2(), board.latch(2)) == (False, 2)
    board.pit.set_gate2(True)
    board.to(101)
    assert (board.pit.out2(), board.latch(2)) == (False, 1)
    board.to(102)
    assert board.pit.out2()


def test_mode_0_the_first_byte_of_a_new_count_stops_it(board: Board) -> None:
    board.pit.set_gate2(True)
    board.program(2, 0, 4)
    board.to(10)
    assert board.pit.out2()
    board.outb(0x42, 3)
    assert not board.pit.out2()
    board.to(20)
    board.outb(0x42, 0)
    assert board.waveform(4) == [(0, 3), (0, 2), (0, 1), (1, 0)]


def test_mode_1_one_shot(board: Board) -> None:
    board.program(2, 1, 3)
    board.to(5)
    assert board.pit.out2()
    assert board.status(2) & 0xC0 == 0xC0, "null count until the trigger"
    board.pit.set_gate2(True)
    board.pit.set_gate2(False)
    assert [out for out, _ in board.waveform(5)] == [0, 0, 0, 1, 1]
    board.pit.set_gate2(True)
    board.to(board.tick + 2)
    board.pit.set_gate2(False)
    board.pit.set_gate2(True)
    assert board.waveform(4) == [(0, 3), (0, 2), (0, 1), (1, 0)], "retriggered"


def test_mode_2_rate_generator(board: Board) -> None:
    board.pit.set_gate2(True)
    board.program(2, 2, 3)
    assert board.waveform(7) == [(1, 3), (1, 2), (0, 1), (1, 3), (1, 2), (0, 1), (1, 3)]


def test_mode_2_gate(board: Board) -> None:
    board.pit.set_gate2(True)
    board.program(2, 2, 4)
    board.to(3)
    assert not board.pit.out2()
    board.pit.set_gate2(False)
    assert board.pit.out2(), "output up at once"
    board.to(50)
    assert board.latch(2) == 1
    board.pit.set_gate2(True)
    assert board.waveform(5) == [(1, 4), (1, 3), (1, 2), (0, 1), (1, 4)]


def test_mode_2_takes_a_new_count_at_the_end_of_the_period(board: Board) -> None:
    board.pit.set_gate2(True)
    board.program(2, 2, 4)
    board.to(1)
    board.outb(0x42, 5)
    board.outb(0x42, 0)
    assert board.status(2) & 0x40
    assert board.waveform(6) == [(1, 3), (1, 2), (0, 1), (1, 5), (1, 4), (1, 3)]
    assert not board.status(2) & 0x40


def test_mode_3_even(board: Board) -> None:
    board.pit.set_gate2(True)
    board.program(2, 3, 4)
    assert board.waveform(9) == [(1, 4), (1, 2), (0, 4), (0, 2), (1, 4), (1, 2), (0, 4), (0, 2), (1, 4)]


def test_mode_3_odd(board: Board) -> None:
    board.pit.set_gate2(True)
    board.program(2, 3, 5)
    assert board.waveform(11) == [(1, 4), (1, 2), (1, 0), (0, 4), (0, 2)] * 2 + [(1, 4)]


def test_mode_3_takes_a_new_count_at_the_end_of_the_half_period(board: Board) -> None:
    board.pit.set_gate2(True)
    board.program(2, 3, 8)
    board.to(1)
    board.outb(0x42, 4)
    board.outb(0x42, 0)
    assert [out for out, _ in board.waveform(9)] == [1, 1, 1, 0, 0, 1, 1, 0, 0]


def test_mode_4_software_strobe(board: Board) -> None:
    board.pit.set_gate2(True)
    board.program(2, 4, 3)
    assert board.waveform(6) == [(1, 3), (1, 2), (1, 1), (0, 0), (1, 0xFFFF), (1, 0xFFFE)]


def test_mode_5_hardware_strobe(board: Board) -> None:
    board.program(2, 5, 3)
    board.to(10)
    assert board.pit.out2()
    board.pit.set_gate2(True)
    assert [out for out, _ in board.waveform(5)] == [1, 1, 1, 0, 1]


def test_bcd(board: Board) -> None:
    board.pit.set_gate2(True)
    board.program(2, 2, 0x0100, bcd=1)
    board.to(1)
    assert board.latch(2) == 0x0099
    board.program(2, 0, 0, bcd=1)
    board.to(2)
    assert board.latch(2) == 0x9999


def test_zero_is_the_largest_count(board: Board) -> None:
    board.program(0, 2, 0)
    board.to(1)
    assert board.latch(0) == 0xFFFF
    board.to(0x10000)
    assert board.latch(0) == 0
    assert board.irq.edges == 1


@pytest.mark.parametrize(("access", "written", "read"), [(1, 0x0034, 0x34), (2, 0x1200, 0x12)])
def test_one_byte_of_a_count(board: Board, access: int, written: int, read: int) -> None:
    board.outb(0x43, access << 4 | 2 << 1)
    board.outb(0x40, read)
    assert board.inb(0x40) == board.inb(0x40) == read
    board.to(written)
    assert board.irq.edges == 1


def test_unlatched_reads_take_turns(board: Board) -> None:
    board.program(0, 2, 0x1234)
    assert [board.inb(0x40) for _ in range(4)] == [0x34, 0x12, 0x34, 0x12]


def test_a_latched_count_holds_until_it_is_read(board: Board) -> None:
    board.program(0, 2, 0x1234)
    board.outb(0x43, 0x00)
    board.to(0x100)
    board.outb(0x43, 0x00)
    assert board.inb(0x40) | board.inb(0x40) << 8 == 0x1234
    assert board.latch(0) == 0x1134


def test_read_back_latches_what_is_selected_status_first(board: Board) -> None:
    board.program(0, 2, 0x1234)
    board.program(1, 3, 0x0100)
    board.outb(0x43, 0xC0 | 0x06)
    board.to(7)
    assert [board.inb(0x40) for _ in range(3)] == [0xB4, 0x34, 0x12]
    assert [board.inb(0x41) for _ in range(3)] == [0xB6, 0x00, 0x01]
    assert board.status(2) == 0xC0 & board.status(2) | 0x00


def test_status_gives_the_mode_as_written(board: Board) -> None:
    board.outb(0x43, 0x3E)
    assert board.status(0) == 0xFE
    board.outb(0x43, 0x11)
    assert board.status(0) == 0x51


def test_the_periodic_interrupt_does_not_drift(board: Board) -> None:
    board.program(0, 2, LATCH_1000)
    for k in range(1, 2001):
        deadline = board.clock.timers[0].deadline
        assert deadline == ns_of(k * LATCH_1000)
        board.clock.advance(deadline - board.clock.now())
        assert board.irq.edges == k
    assert abs(board.clock.now() - 2 * SECOND) < SECOND // 1000


@pytest.mark.parametrize("mode", [0, 4])
def test_one_shot_interrupts(board: Board, mode: int) -> None:
    board.program(0, mode, 1000)
    board.clock.advance(ns_of(1000) - 1)
    assert board.irq.edges == 0
    board.clock.advance(ns_of(2))
    assert board.irq.edges == 1
    board.clock.advance(SECOND)
    assert board.irq.edges == 1
    board.outb(0x40, 0x10)
    board.outb(0x40, 0x00)
    board.clock.advance(SECOND)
    assert board.irq.edges == 2


@pytest.mark.parametrize("mode", [2, 3, 4])
def test_the_first_byte_of_a_new_count_changes_nothing_yet(board: Board, mode: int) -> None:
    """As Linux writes a one-shot tick: two bytes, and the clock goes by the second."""
    board.program(0, mode, 1000)
    board.to(100)
    edges = [board.irq.edges]
    before = board.pit._timer.deadline
    board.outb(0x40, 0x10)
    assert board.pit._timer.deadline == before
    board.to(1001)  # the old count ends while the new one is half written
    edges.append(board.irq.edges)
    board.outb(0x40, 0x27)
    board.to(1001 + 10_001)
    edges.append(board.irq.edges)
    assert edges == [0, 1, 2]


def test_no_interrupt_before_it_is_programmed(board: Board) -> None:
    board.clock.advance(10 * SECOND)
    board.outb(0x43, 0x34)
    board.clock.advance(10 * SECOND)
    assert board.irq.edges == 0


def test_counter_2_has_no_timer(board: Board) -> None:
    board.pit.set_gate2(True)
    board.program(2, 2, 2)
    assert all(timer.deadline is None for timer in board.clock.timers)


@pytest.mark.parametrize("mode", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 100])
def test_a_tiny_period_does_not_flood(board: Board, mode: int, count: int) -> None:
    board.program(0, mode, count)
    board.clock.advance(SECOND // 10)
    assert 0 < board.irq.edges <= SECOND // 10 // MIN_PERIOD + 1
    assert 0 <= board.latch(0) <= count


def late_ticks(board: Board, ticks: int) -> None:
    """The timer calls back *ticks* periods of 1 ms late, all at once."""
    timer = board.clock.timers[0]
    timer.cancel()
    board.clock.advance(ns_of(ticks * LATCH_1000))
    timer.callback()


def test_late_ticks_go_in_as_the_processor_takes_them(board: Board) -> None:
    board.program(0, 2, LATCH_1000)
    board.clock.advance(ns_of(LATCH_1000))
    board.pit.acknowledged()
    late_ticks(board, 5)
    assert board.irq.edges == 2
    for edges in (3, 4, 5, 6, 6):
        board.pit.acknowledged()
        assert board.irq.edges == edges
    assert board.pit.lost == 0


def test_a_tick_that_finds_the_last_one_waiting_is_owed(board: Board) -> None:
    board.program(0, 2, LATCH_1000)
    board.clock.advance(ns_of(LATCH_1000))
    board.pit.acknowledged()
    board.clock.advance(ns_of(3 * LATCH_1000))
    taken = 0
    edges = -1
    while board.irq.edges != edges:
        edges = board.irq.edges
        board.pit.acknowledged()
        taken += 1
    assert taken == 3


def test_a_long_pause_is_not_replayed(board: Board) -> None:
    board.program(0, 2, LATCH_1000)
    board.clock.advance(ns_of(LATCH_1000))
    board.pit.acknowledged()
    late_ticks(board, 5000)
    before = board.irq.edges
    for _ in range(1000):
        board.pit.acknowledged()
    assert 95 <= board.irq.edges - before <= 100
    assert board.pit.lost > 4890


def guest_time(board: Board, cost: int, duration: int) -> float:
    """The share of *duration* that a guest has to itself if each tick takes it *cost*; both in ns."""
    clock, own, taken = board.clock, 0, 0
    end = clock.now() + duration
    while clock.now() < end:
        if board.irq.edges > taken:
            taken = board.irq.edges
            board.pit.acknowledged()
            clock.advance(cost)
        else:
            clock.advance(10_000)
            own += 10_000
    return own / duration


@pytest.mark.parametrize(("cost", "own"), [(200_000, 0.8), (700_000, 0.3), (1_400_000, 0.5), (5_000_000, 0.45)])
def test_a_guest_that_is_slow_keeps_about_half_of_its_time(board: Board, cost: int, own: float) -> None:
    board.program(0, 2, LATCH_1000)
    guest_time(board, cost, SECOND)
    assert guest_time(board, cost, 2 * SECOND) == pytest.approx(own, abs=0.08)


def test_a_guest_that_becomes_fast_gets_every_tick_again(board: Board) -> None:
    board.program(0, 2, LATCH_1000)
    guest_time(board, 2_000_000, SECOND)
    guest_time(board, 100_000, SECOND)
    lost, edges = board.pit.lost, board.irq.edges
    late_ticks(board, 60)
    guest_time(board, 100_000, SECOND)
    assert board.pit.lost == lost
    assert 1055 <= board.irq.edges - edges <= 1070


@pytest.mark.parametrize("reinject", [False, True])
def test_without_acknowledgement_or_reinjection_ticks_merge(reinject: bool) -> None:
    board = Board(reinject)
    board.program(0, 2, LATCH_1000)
    board.clock.advance(ns_of(LATCH_1000))
    if not reinject:
        board.pit.acknowledged()
    late_ticks(board, 5)
    assert board.irq.edges == 2
    assert board.pit.lost == 4
    if not reinject:
        board.pit.acknowledged()
    assert board.irq.edges == 2


def test_programming_forgets_what_is_owed(board: Board) -> None:
    board.program(0, 2, LATCH_1000)
    board.clock.advance(ns_of(LATCH_1000))
    board.pit.acknowledged()
    late_ticks(board, 5)
    board.program(0, 2, LATCH_1000)
    edges = board.irq.edges
    board.pit.acknowledged()
    assert board.irq.edges == edges


def test_linux_calibrates_the_tsc(board: Board) -> None:
    """pit_calibrate_tsc() of arch/x86/kernel/tsc.c: 10 ms on counter 2, watched through port 0x61."""
    count = PIT_TICK_RATE // 100
    board.pit.set_gate2(True)
    board.program(2, 0, count)
    start = board.clock.now()
    while not board.pit.out2():
        board.clock.advance(1000)
    assert abs(board.clock.now() - start - SECOND // 100) < 2000


def test_linux_quick_calibration_reads_the_high_byte_falling(board: Board) -> None:
    """quick_pit_calibrate(): mode 0 from 0xffff, unlatched reads in pairs."""
    board.pit.set_gate2(True)
    board.program(2, 0, 0xFFFF)
    seen = []
    for _ in range(3000):
        board.inb(0x42)
        seen.append(board.inb(0x42))
        board.clock.advance(1000)
    assert sorted(set(seen), reverse=True) == list(range(0xFF, seen[-1] - 1, -1))
    assert seen == sorted(seen, reverse=True)


class Clocked:
    """Counter 2 as the data sheet words it: a counting element that a clock decrements, its gate up."""

    def __init__(self, mode: int, count: int) -> None:
        self.mode, self.n = mode, count or 0x10000
        self.ce = self.n - (self.n & 1 if mode == 3 else 0)
        self.out = 0 if mode == 0 else 1
        self.extra = self.n & 1

    def clock(self) -> None:
        if self.mode == 3:
            last = 0 if self.out and self.extra else 2
            if self.ce == last:
                self.out ^= 1
                self.ce = self.n - self.extra
            else:
                self.ce -= 2
            return
        self.ce -= 1
        if self.mode == 0 and self.ce == 0:
            self.out = 1
        elif self.mode == 2:
            self.out = 0 if self.ce == 1 else 1
            if self.ce == 0:
                self.ce = self.n
        elif self.mode == 4:
            self.out = 0 if self.ce == 0 else 1
        self.ce &= 0x1FFFF
        if self.ce == 0x1FFFF:
            self.ce = 0xFFFF


@given(st.sampled_from((0, 2, 3, 4)), st.integers(2, 40), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_agrees_with_a_counter_clocked_tick_by_tick(mode: int, count: int, ticks: int) -> None:
    board = Board()
    board.pit.set_gate2(True)
    board.program(2, mode, count)
    model = Clocked(mode, count)
    for out, value in board.waveform(ticks):
        assert (out, value) == (model.out, model.ce & 0xFFFF)
        model.clock()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("out"), st.integers(0, 3), st.integers(0, 255)),
            st.tuples(st.just("in"), st.integers(0, 7), st.sampled_from((1, 2, 4, 8))),
            st.tuples(st.just("wide"), st.integers(0, 3), st.sampled_from((2, 4, 8))),
            st.tuples(st.just("gate"), st.integers(0, 1), st.just(0)),
            st.tuples(st.just("advance"), st.integers(0, 20_000_000), st.just(0)),
            st.tuples(st.just("acknowledged"), st.just(0), st.just(0)),
        ),
        max_size=60,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_sequence_is_survived_and_never_floods(operations: list[tuple[str, int, int]]) -> None:
    board = Board()
    for name, a, b in operations:
        if name == "out":
            board.pit.write(a, 1, b)
        elif name == "in":
            assert 0 <= board.pit.read(a, b) < 1 << 8 * b
        elif name == "wide":
            board.pit.write(a, b, 0x3412B0345A34)
        elif name == "gate":
            board.pit.set_gate2(bool(a))
        elif name == "acknowledged":
            board.pit.acknowledged()
        else:
            edges = board.irq.edges
            board.clock.advance(a)
            assert board.irq.edges - edges <= a // MIN_PERIOD + 2
        board.pit.out2()
        deadline = board.clock.timers[0].deadline
        assert deadline is None or deadline > board.clock.now()
