"""The MC146818A against its data sheet, against datetime, and as Linux's drivers use it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.clock import FakeClock
from pyvmm.devices.cmos_rtc import UPDATE_TIME, CmosRtc, civil_from_days, days_from_civil
from pyvmm.irq import FakeIrq

SECOND = 1_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = datetime(2026, 3, 9, 13, 59, 58, tzinfo=UTC)
A, B, C, D = 10, 11, 12, 13
PIE, AIE, UIE = 0x40, 0x20, 0x10


def bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


class Board:
    """A clock chip whose host's wall clock and timers run together."""

    def __init__(self, start: datetime = START, below: int = 512 << 20, above: int = 0) -> None:
        self.clock = FakeClock()
        self.start = (start - EPOCH) // timedelta(microseconds=1) * 1000
        self.irq = FakeIrq()
        self.nmi: list[bool] = []
        self.rtc = CmosRtc(self.irq, self.clock, lambda: self.start + self.clock.now(), below, above, self.nmi.append)

    def get(self, index: int) -> int:
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def set(self, index: int, value: int) -> None:
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def time(self) -> tuple[int, ...]:
        """Century, year, month, day, hour, minute, second."""
        return tuple(self.get(i) for i in (0x32, 9, 8, 7, 4, 2, 0))

    def linux_set_time(self, t: datetime) -> None:
        """mc146818_set_time()."""
        control, freq = self.get(B), self.get(A)
        self.set(B, control | 0x80)
        self.set(A, freq | 0x70)
        for index, value in ((9, t.year % 100), (8, t.month), (7, t.day), (4, t.hour), (2, t.minute), (0, t.second)):
            self.set(index, bcd(value))
        self.set(0x32, bcd(t.year // 100))
        self.set(B, control)
        self.set(A, freq)


@pytest.fixture
def board() -> Board:
    return Board()


def test_the_time_is_the_hosts_in_bcd_and_24_hours(board: Board) -> None:
    assert board.time() == (0x20, 0x26, 0x03, 0x09, 0x13, 0x59, 0x58)
    assert board.get(6) == 2, "a Monday"
    board.clock.advance(2 * SECOND)
    assert board.time() == (0x20, 0x26, 0x03, 0x09, 0x14, 0x00, 0x00)


@pytest.mark.parametrize(
    ("control", "hour", "register"),
    [
        (0x02, 13, 0x13),
        (0x06, 13, 13),
        (0x00, 0, 0x12),
        (0x00, 1, 0x01),
        (0x00, 12, 0x92),
        (0x00, 23, 0x91),
        (0x04, 23, 0x8B),
        (0x04, 0, 12),
    ],
)
def test_hours_in_every_mode(control: int, hour: int, register: int) -> None:
    board = Board(START.replace(hour=hour))
    board.set(B, control)
    assert board.get(4) == register
    board.set(4, register)
    assert board.get(4) == register
    board.set(B, 0x02)
    assert board.get(4) == bcd(hour)


def test_uip_comes_before_the_second_and_goes_with_it(board: Board) -> None:
    assert board.get(A) == 0x26
    board.clock.advance(SECOND - UPDATE_TIME - 1)
    assert board.get(A) == 0x26
    board.clock.advance(1)
    assert board.get(A) == 0xA6
    assert board.get(0) == 0x58, "what is read meanwhile is the old second, whole"
    board.clock.advance(UPDATE_TIME)
    assert board.get(A) == 0x26
    assert board.get(0) == 0x59


def test_linux_sets_the_time(board: Board) -> None:
    board.clock.advance(300_000_000)
    wanted = datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC)
    board.linux_set_time(wanted)
    assert board.time() == (0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59)
    board.clock.advance(SECOND // 2 - 1)
    assert board.get(0) == 0x59
    board.clock.advance(1)
    assert board.time() == (0x20, 0x00, 0x01, 0x01, 0, 0, 0), "half a second after the divider was let go"
    assert board.get(6) == 7, "a Saturday"


def test_set_holds_the_registers_and_keeps_the_phase(board: Board) -> None:
    board.clock.advance(SECOND // 4)
    board.set(B, 0x82)
    board.clock.advance(10 * SECOND)
    assert board.get(0) == 0x58
    assert board.get(A) & 0x80 == 0
    board.set(0, 0x30)
    board.set(B, 0x02)
    assert board.get(0) == 0x30
    board.clock.advance(SECOND * 3 // 4)
    assert board.get(0) == 0x31


def test_a_write_while_the_clock_runs_changes_that_field_only(board: Board) -> None:
    board.set(2, 0x07)
    assert board.time() == (0x20, 0x26, 0x03, 0x09, 0x13, 0x07, 0x58)


def test_set_clears_the_update_enable(board: Board) -> None:
    board.set(B, 0x92)
    assert board.get(B) == 0x82


def test_update_ended(board: Board) -> None:
    board.set(B, 0x02 | UIE)
    board.clock.advance(SECOND - 1)
    assert not board.irq.level
    board.clock.advance(1)
    assert board.irq.level
    board.clock.advance(5 * SECOND)
    assert board.irq.edges == 1, "one until it is acknowledged"
    assert board.get(C) == 0xD0
    assert not board.irq.level and board.get(C) == 0
    board.clock.advance(SECOND)
    assert board.irq.edges == 2


def test_flags_come_without_their_enables_too(board: Board) -> None:
    board.get(C)
    board.clock.advance(SECOND)
    assert board.get(C) == 0x50, "UF and PF, no IRQF"
    assert board.irq.edges == 0
    board.clock.advance(SECOND)
    board.set(B, 0x02 | UIE)
    assert board.irq.level, "enabling a flag that is up interrupts at once"


@pytest.mark.parametrize(("rate", "hertz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_periodic_interrupts_do_not_drift(rate: int, hertz: int) -> None:
    board = Board()
    board.set(A, 0x20 | rate)
    board.get(C)
    board.set(B, 0x02 | PIE)
    count = 0
    end = 3 * SECOND
    while True:
        deadline = board.clock.timers[0].deadline
        assert deadline is not None
        if deadline > end:
            break
        board.clock.advance(deadline - board.clock.now())
        assert board.irq.level
        assert board.get(C) & 0xC0 == 0xC0
        count += 1
    assert count == 3 * hertz


def test_no_periodic_interrupts_at_rate_zero(board: Board) -> None:
    board.set(A, 0x20)
    board.get(C)
    board.set(B, 0x02 | PIE)
    board.clock.advance(10 * SECOND)
    assert board.irq.edges == 0


def test_alarm_at_a_time(board: Board) -> None:
    for index, value in ((5, 0x14), (3, 0x02), (1, 0x03)):
        board.set(index, value)
    board.set(B, 0x02 | AIE)
    board.clock.advance(124 * SECOND)
    assert not board.irq.level
    board.clock.advance(SECOND)
    assert board.irq.level
    assert board.time()[4:] == (0x14, 0x02, 0x03)
    assert board.get(C) & 0xA0 == 0xA0
    board.clock.advance(86399 * SECOND)
    assert board.irq.edges == 1
    board.clock.advance(SECOND)
    assert board.irq.edges == 2, "and again the next day"


def test_alarm_with_dont_care(board: Board) -> None:
    board.set(5, 0xFF)
    board.set(3, 0xC0)
    board.set(1, 0x30)
    board.set(B, 0x02 | AIE)
    for _ in range(5):
        board.clock.advance(60 * SECOND)
        assert board.irq.level and board.get(0) == 0x58
        board.get(C)
    assert board.irq.edges == 5


def test_an_alarm_that_never_comes_needs_no_timer(board: Board) -> None:
    board.set(1, 0x7F)
    board.set(B, 0x02 | AIE)
    assert board.clock.timers[0].deadline is None


def test_the_alarm_follows_the_hosts_clock(board: Board) -> None:
    for index, value in ((5, 0x20), (3, 0x00), (1, 0x00)):
        board.set(index, value)
    board.set(B, 0x02 | AIE)
    board.start += 6 * 3600 * SECOND
    board.clock.advance(60 * SECOND)
    assert board.irq.level


def test_the_nmi_mask_is_reported_when_it_changes(board: Board) -> None:
    for index in (0x8F, 0x80, 0x0D, 0x00, 0x8D):
        board.rtc.write(0, 1, index)
    assert board.nmi == [True, False, True]
    assert board.rtc.read(1, 1) == 0x80, "bit 7 is not part of the index"
    assert board.rtc.read(0, 1) == 0xFF


def test_register_d_and_the_flags_cannot_be_written(board: Board) -> None:
    board.set(D, 0)
    board.set(C, 0xFF)
    board.set(A, 0xA6)
    assert (board.get(D), board.get(C), board.get(A)) == (0x80, 0, 0x26)


@pytest.mark.parametrize(
    ("below", "above", "extended", "above_16m"),
    [(1 << 20, 0, 0, 0), (16 << 20, 0, 15360, 0), (512 << 20, 0, 0xFFFF, 7936), (3 << 30, 5 << 30, 0xFFFF, 48896)],
)
def test_memory_sizes(below: int, above: int, extended: int, above_16m: int) -> None:
    board = Board(below=below, above=above)

    def word(index: int) -> int:
        return board.get(index) | board.get(index + 1) << 8

    assert word(0x15) == 640
    assert word(0x17) == word(0x30) == extended
    assert word(0x34) == above_16m
    assert word(0x5B) << 16 | board.get(0x5D) << 32 == above
    assert board.get(0x2E) << 8 | board.get(0x2F) == sum(board.get(i) for i in range(0x10, 0x2E))
    assert (board.get(0x10), board.get(0x14)) == (0, 6)


def test_the_rest_is_ram_and_survives_a_reset(board: Board) -> None:
    board.set(0x0F, 0x0A)
    board.set(0x7F, 0x55)
    board.set(B, 0x02 | PIE | UIE)
    board.clock.advance(SECOND)
    board.rtc.reset()
    assert not board.irq.level
    assert board.rtc.shutdown_status == 0x0A
    assert (board.get(0x7F), board.get(B), board.get(C)) == (0x55, 0x02, 0)


@given(st.integers(-1_000_000, 4_000_000))
def test_civil_dates_are_datetimes(days: int) -> None:
    year, month, day = civil_from_days(days)
    assert days_from_civil(year, month, day) == days
    if 1 <= year <= 9999:
        assert (datetime(year, month, day) - datetime(1970, 1, 1)).days == days


@given(st.datetimes(datetime(1900, 1, 1), datetime(9900, 1, 1)), st.sampled_from((0, 2, 4, 6)), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_what_the_guest_sets_it_reads(t: datetime, control: int, later: int) -> None:
    board = Board()
    board.set(B, 0x80 | control)
    binary = control & 4

    def encode(value: int) -> int:
        return value if binary else bcd(value)

    hour = encode(t.hour) if control & 2 else encode(t.hour % 12 or 12) | (0x80 if t.hour >= 12 else 0)
    for index, value in ((0x32, t.year // 100), (9, t.year % 100), (8, t.month), (7, t.day), (2, t.minute)):
        board.set(index, encode(value))
    board.set(4, hour)
    board.set(0, encode(t.second))
    board.set(B, control)
    board.clock.advance(later * SECOND)
    board.set(B, 0x06)
    after = t + timedelta(seconds=later)
    assert board.time() == (after.year // 100, after.year % 100, *after.timetuple()[1:6])


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 255), st.integers(0, 255)),
            st.tuples(st.just("set"), st.integers(0, 13), st.integers(0, 255)),
            st.tuples(st.just("get"), st.integers(0, 255), st.just(0)),
            st.tuples(st.just("out"), st.integers(0, 9), st.sampled_from((1, 2, 4, 8))),
            st.tuples(st.just("advance"), st.integers(0, 3 * SECOND), st.just(0)),
            st.tuples(st.just("jump"), st.integers(-(10**20), 10**20), st.just(0)),
        ),
        max_size=40,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_sequence_leaves_a_chip_that_agrees_with_itself(operations: list[tuple[str, int, int]]) -> None:
    board = Board()
    for name, a, b in operations:
        if name == "set":
            board.set(a, b)
        elif name == "get":
            assert 0 <= board.get(a) <= 0xFF
        elif name == "out":
            board.rtc.write(a, b, 0x5A5A5A5A5A5A5A5A & ((1 << 8 * b) - 1))
            assert 0 <= board.rtc.read(a, b) < 1 << 8 * b
        elif name == "advance":
            if board.clock.timers[0].deadline is not None:
                # An 8 kHz interrupt nobody acknowledges fires once; none of them makes the loop spin.
                assert board.clock.timers[0].deadline > board.clock.now()
            board.clock.advance(a)
        else:
            board.start += a
        for index in range(14):
            board.get(index)
    assert not board.irq.level, "register C was read last"


def test_who_wakes_a_machine_hears_of_an_alarm_that_is_enabled() -> None:
    clock, heard = FakeClock(0), list[int]()
    rtc = CmosRtc(FakeIrq(), clock, lambda: clock.now(), 0, alarm=lambda: heard.append(clock.now() // SECOND))

    def put(index: int, value: int) -> None:
        rtc.write(0, 1, index)
        rtc.write(1, 1, value)

    for index, value in ((5, 0xFF), (3, 0xFF), (1, 0x30)):
        put(index, value)
    clock.advance(40 * SECOND)
    rtc.write(0, 1, C)
    rtc.read(1, 1)
    assert heard == [], "nobody has asked for it"
    put(B, 0x02 | AIE)
    clock.advance(60 * SECOND)
    clock.advance(60 * SECOND)
    assert heard == [90], "the one that nobody has taken notice of stands for the next"
