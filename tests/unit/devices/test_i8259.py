"""The 8259A pair against its data sheet, against a model that keeps the priorities as a list, and as Linux uses it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.bus import Bus
from pyvmm.devices.i8259 import I8259Pair

BASE = (0x20, 0x28)
COMMAND = (0x20, 0xA0)
DATA = (0x21, 0xA1)


class Board:
    def __init__(self) -> None:
        self.levels: list[bool] = []
        self.acknowledged: list[int] = []
        self.eois: list[int] = []
        self.pic = I8259Pair(self.levels.append, self.acknowledged.append, self.eois.append)
        self.bus = Bus("pio", 0x10000)
        self.bus.map(0x20, 2, self.pic.master)
        self.bus.map(0xA0, 2, self.pic.slave)
        self.bus.map(0x4D0, 2, self.pic.elcr)

    def inb(self, port: int) -> int:
        return self.bus.read(port, 1)

    def outb(self, port: int, value: int) -> None:
        self.bus.write(port, 1, value)

    def initialize(self, master_icw4: int = 0x01, slave_icw4: int = 0x01) -> None:
        """init_8259A() of Linux, and then nothing masked."""
        for chip, (icw3, icw4) in enumerate(((0x04, master_icw4), (0x02, slave_icw4))):
            self.outb(COMMAND[chip], 0x11)
            self.outb(DATA[chip], BASE[chip])
            self.outb(DATA[chip], icw3)
            self.outb(DATA[chip], icw4)
        self.outb(0x21, 0)
        self.outb(0xA1, 0)

    def raise_(self, irq: int) -> None:
        self.pic.line(irq).set_level(True)

    def lower(self, irq: int) -> None:
        self.pic.line(irq).set_level(False)

    def pulse(self, *irqs: int) -> None:
        for irq in irqs:
            self.pic.line(irq).pulse()

    def take(self) -> int:
        """The IRQ that the processor takes; -1 where INTR is down."""
        return self.pic.acknowledge() - 0x20 if self.pic.intr else -1

    def irr(self, chip: int = 0) -> int:
        self.outb(COMMAND[chip], 0x0A)
        return self.inb(COMMAND[chip])

    def isr(self, chip: int = 0) -> int:
        self.outb(COMMAND[chip], 0x0B)
        return self.inb(COMMAND[chip])


@pytest.fixture
def board() -> Board:
    board = Board()
    board.initialize()
    return board


def test_an_edge_interrupts_once(board: Board) -> None:
    board.raise_(4)
    assert board.pic.intr and board.irr() == 0x10 and board.isr() == 0
    assert board.pic.acknowledge() == 0x24
    assert not board.pic.intr and board.irr() == 0 and board.isr() == 0x10
    board.outb(0x20, 0x20)
    assert board.isr() == 0 and not board.pic.intr
    board.lower(4)
    board.raise_(4)
    assert board.take() == 4
    assert board.levels == [True, False, True, False]
    assert (board.acknowledged, board.eois) == ([4, 4], [4])


def test_a_pulse_stays_until_it_is_taken(board: Board) -> None:
    board.outb(0x21, 0x10)
    board.pulse(4)
    assert not board.pic.intr
    board.outb(0x21, 0x00)
    assert board.take() == 4


def test_a_level_interrupts_as_long_as_it_is_up(board: Board) -> None:
    board.outb(0x4D0, 0x20)
    board.raise_(5)
    for _ in range(3):
        assert board.take() == 5
        assert not board.pic.intr
        board.outb(0x20, 0x65)
        assert board.pic.intr
    board.lower(5)
    assert not board.pic.intr


def test_elcr_keeps_the_lines_that_are_always_edges(board: Board) -> None:
    board.bus.write(0x4D0, 2, 0xFFFF)
    assert board.bus.read(0x4D0, 2) == 0xDEF8


def test_making_a_line_level_triggered_looks_at_the_line(board: Board) -> None:
    board.pulse(5)
    board.raise_(6)
    assert board.take() == 5
    board.outb(0x20, 0x20)
    assert board.take() == 6
    board.outb(0x20, 0x20)
    board.outb(0x4D0, 0x60)
    assert board.irr() == 0x40


def test_the_highest_priority_first_and_nested(board: Board) -> None:
    board.pulse(7, 3, 5)
    assert board.take() == 3
    assert board.take() == -1
    board.pulse(1)
    assert board.take() == 1
    assert board.isr() == 0x0A
    board.outb(0x20, 0x20)
    assert board.isr() == 0x08, "the highest in service ends"
    board.outb(0x20, 0x20)
    assert board.take() == 5
    board.outb(0x20, 0x65)
    assert board.take() == 7


def test_the_slave_comes_through_ir2(board: Board) -> None:
    board.pulse(12, 3)
    assert board.pic.acknowledge() == 0x2C
    assert board.isr(0) == 0x04 and board.isr(1) == 0x10
    assert not board.pic.intr
    board.outb(0xA0, 0x64)
    board.outb(0x20, 0x62)
    assert board.take() == 3
    assert (board.acknowledged, board.eois) == ([12, 3], [12])


def test_a_higher_request_of_the_slave_waits_for_the_masters_eoi(board: Board) -> None:
    board.pulse(12)
    assert board.take() == 12
    board.pulse(9)
    assert not board.pic.intr
    board.outb(0xA0, 0x20)
    assert not board.pic.intr
    board.outb(0x20, 0x20)
    assert board.take() == 9


def test_special_fully_nested_mode_lets_it_through() -> None:
    board = Board()
    board.initialize(master_icw4=0x11)
    board.pulse(12)
    assert board.take() == 12
    board.pulse(9)
    assert board.take() == 9
    board.pulse(3)
    assert board.take() == -1, "but not what is below the slave"
    board.pulse(1)
    assert board.take() == 1


def test_spurious_irq_7(board: Board) -> None:
    board.pulse(4)
    board.outb(0x21, 0xFF)
    assert not board.pic.intr
    assert board.pic.acknowledge() == 0x27
    assert board.isr() == 0
    assert board.acknowledged == []


def test_spurious_irq_15(board: Board) -> None:
    board.pulse(12)
    board.outb(0xA1, 0xFF)
    assert board.pic.acknowledge() == 0x2F
    assert board.isr(1) == 0 and board.isr(0) == 0x04, "the master does not know"
    assert board.acknowledged == []
    board.outb(0x20, 0x62)
    assert not board.pic.intr


def test_a_level_that_goes_away_takes_intr_with_it(board: Board) -> None:
    board.outb(0x4D0, 0x20)
    board.raise_(5)
    board.lower(5)
    assert board.levels == [True, False]


def test_automatic_eoi() -> None:
    board = Board()
    board.initialize(0x03, 0x03)
    board.pulse(12, 14, 4)
    assert [board.take(), board.take(), board.take(), board.take()] == [12, 14, 4, -1]
    assert board.isr(0) == board.isr(1) == 0
    assert board.eois == [12, 14, 4]


def test_rotation_in_automatic_eoi() -> None:
    board = Board()
    board.initialize(0x03, 0x03)
    board.outb(0x20, 0x80)
    board.pulse(4)
    assert board.take() == 4
    board.pulse(3, 6)
    assert board.take() == 6, "4 is the lowest now, so 5 is the highest"
    board.outb(0x20, 0x00)
    board.pulse(0)
    assert board.take() == 0 and board.take() == 3


def test_rotation_on_non_specific_eoi(board: Board) -> None:
    board.pulse(4)
    assert board.take() == 4
    board.outb(0x20, 0xA0)
    board.pulse(4, 5)
    assert board.take() == 5


def test_rotation_on_specific_eoi(board: Board) -> None:
    board.pulse(4)
    assert board.take() == 4
    board.outb(0x20, 0xE4)
    assert board.isr() == 0
    board.pulse(4, 5)
    assert board.take() == 5


def test_set_priority(board: Board) -> None:
    board.outb(0x20, 0xC5)
    board.pulse(0, 5, 6)
    assert board.take() == 6


def test_special_mask_mode(board: Board) -> None:
    board.pulse(3)
    assert board.take() == 3
    board.pulse(5)
    assert board.take() == -1
    board.outb(0x21, 0x08)
    assert board.take() == -1
    board.outb(0x20, 0x68)
    assert board.take() == 5, "what is masked in service holds up nothing"
    board.outb(0x20, 0x20)
    assert board.isr() == 0x08, "and a non-specific EOI leaves it alone"
    board.outb(0x20, 0x63)
    assert board.isr() == 0
    board.outb(0x20, 0x48)
    board.pulse(1)
    assert board.take() == 1


def test_poll(board: Board) -> None:
    board.outb(0x20, 0x0C)
    assert board.inb(0x20) == 0
    board.pulse(4)
    board.outb(0x20, 0x0C)
    assert board.inb(0x20) == 0x84
    assert board.isr() == 0x10 and not board.pic.intr
    board.outb(0x20, 0x20)
    board.pulse(10)
    board.outb(0x20, 0x0C)
    assert board.inb(0x20) == 0x82
    board.outb(0xA0, 0x0C)
    assert board.inb(0xA0) == 0x82


def test_which_register_reads_is_remembered(board: Board) -> None:
    board.pulse(4)
    board.take()
    board.outb(0x20, 0x0B)
    assert board.inb(0x20) == board.inb(0x20) == 0x10
    board.outb(0x20, 0x0A)
    assert board.inb(0x20) == 0


def test_linux_probes_the_mask(board: Board) -> None:
    """probe_8259A() of arch/x86/kernel/i8259.c."""
    board.outb(0xA1, 0xFF)
    board.outb(0x21, 0xFB)
    assert board.inb(0x21) == 0xFB
    assert board.inb(0xA1) == 0xFF


def test_icw1_forgets_edges_but_not_levels(board: Board) -> None:
    board.outb(0x4D0, 0x20)
    board.raise_(4)
    board.raise_(5)
    board.pulse(3)
    assert board.take() == 3
    board.outb(0x21, 0xFF)
    board.initialize()
    assert board.irr() == 0x20 and board.isr() == 0 and board.inb(0x21) == 0
    assert board.take() == 5


def test_icw3_and_icw4_come_only_if_icw1_says_so(board: Board) -> None:
    board.outb(0x20, 0x12)
    board.outb(0x21, 0x40)
    board.outb(0x21, 0xA5)
    assert board.inb(0x21) == 0xA5
    board.outb(0x21, 0x00)
    board.pulse(0)
    assert board.pic.acknowledge() == 0x40


def test_irq_2_is_no_line(board: Board) -> None:
    with pytest.raises(ValueError, match="IRQ 2"):
        board.pic.line(2)


def test_reset(board: Board) -> None:
    board.outb(0x4D0, 0x20)
    board.raise_(5)
    board.pic.reset()
    assert not board.pic.intr and board.inb(0x4D0) == 0
    board.outb(0x21, 0xFF)
    assert board.inb(0x21) == 0xFF, "no ICW is awaited"


def test_what_is_told_of_an_acknowledge_may_interrupt_again() -> None:
    """The PIT's owed tick goes in during the INTA cycle of the one before."""
    levels: list[bool] = []

    def again(irq: int) -> None:
        pic.line(0).set_level(False)
        pic.line(0).set_level(True)

    pic = I8259Pair(levels.append, again)
    pic.line(0).set_level(True)
    pic.acknowledge()
    assert not pic.intr and pic.master.irr == 1
    pic.master.write(0, 1, 0x20)
    assert pic.intr


class Sheet:
    """One 8259A in other words than the device's: priorities as a list of IRs, highest first; sets instead of bits."""

    def __init__(self) -> None:
        self.order = list(range(8))
        self.requested: set[int] = set()
        self.served: set[int] = set()
        self.masked: set[int] = set()
        self.special = False

    def lowest(self, ir: int) -> None:
        while self.order[-1] != ir:
            self.order.append(self.order.pop(0))

    def winner(self) -> int | None:
        for ir in self.order:
            if ir in self.served and not (self.special and ir in self.masked):
                return None
            if ir in self.requested and ir not in self.masked:
                return ir
        return None

    def take(self) -> int | None:
        ir = self.winner()
        if ir is not None:
            self.requested.discard(ir)
            self.served.add(ir)
        return ir

    def end(self, rotate: bool) -> None:
        for ir in self.order:
            if ir in self.served and not (self.special and ir in self.masked):
                self.served.discard(ir)
                if rotate:
                    self.lowest(ir)
                return

    def end_one(self, ir: int, rotate: bool) -> None:
        self.served.discard(ir)
        if rotate:
            self.lowest(ir)


MASTER_IRQS = (0, 1, 3, 4, 5, 6, 7)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("pulse"), st.sampled_from(MASTER_IRQS)),
            st.tuples(st.just("take"), st.just(0)),
            st.tuples(st.just("mask"), st.integers(0, 255)),
            st.tuples(st.just("eoi"), st.sampled_from((0x20, 0xA0))),
            st.tuples(st.just("specific"), st.integers(0x60, 0x67)),
            st.tuples(st.just("specific"), st.integers(0xE0, 0xE7)),
            st.tuples(st.just("priority"), st.integers(0, 7)),
            st.tuples(st.just("special"), st.integers(0, 1)),
        ),
        max_size=60,
    )
)
@settings(max_examples=150, deadline=None)
def test_agrees_with_the_model_of_the_sheet(operations: list[tuple[str, int]]) -> None:
    board = Board()
    board.initialize()
    sheet = Sheet()
    for name, value in operations:
        if name == "pulse":
            board.pulse(value)
            sheet.requested.add(value)
        elif name == "take":
            expected = sheet.take()
            assert board.take() == (-1 if expected is None else expected)
        elif name == "mask":
            board.outb(0x21, value)
            sheet.masked = {ir for ir in range(8) if value >> ir & 1}
        elif name == "eoi":
            board.outb(0x20, value)
            sheet.end(value == 0xA0)
        elif name == "specific":
            board.outb(0x20, value)
            sheet.end_one(value & 7, value >= 0xE0)
        elif name == "priority":
            board.outb(0x20, 0xC0 | value)
            sheet.lowest(value)
        else:
            board.outb(0x20, 0x48 | value << 5)
            sheet.special = bool(value)
        assert board.pic.intr == (sheet.winner() is not None)
        assert board.irr() == sum(1 << ir for ir in sheet.requested)
        assert board.isr() == sum(1 << ir for ir in sheet.served)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("out"), st.sampled_from((0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1)), st.integers(0, 255)),
            st.tuples(st.just("in"), st.sampled_from((0x20, 0x21, 0xA0, 0xA1, 0x4D0)), st.sampled_from((1, 2, 4))),
            st.tuples(st.just("line"), st.sampled_from((*MASTER_IRQS, *range(8, 16))), st.integers(0, 1)),
            st.tuples(st.just("take"), st.just(0), st.just(0)),
        ),
        max_size=80,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_sequence_leaves_a_pair_that_agrees_with_itself(operations: list[tuple[str, int, int]]) -> None:
    board = Board()
    for name, a, b in operations:
        if name == "out":
            board.outb(a, b)
        elif name == "in":
            assert 0 <= board.bus.read(a, b) < 1 << 8 * b
        elif name == "line":
            board.pic.line(a).set_level(bool(b))
        else:
            assert 0 <= board.pic.acknowledge() <= 0xFF
        assert board.pic.intr == (board.pic.master.request() >= 0)
        assert board.levels == [i % 2 == 0 for i in range(len(board.levels))], "told of changes only"
        for chip in (board.pic.master, board.pic.slave):
            assert 0 <= chip.irr | chip.isr | chip.imr <= 0xFF
